//! The Arrow Flight service over the store (docs/wire.md).
//!
//! Everything but `DoPut` and `DoGet` goes through the generated service (`service.rs`). `DoPut` is read from the HTTP/2 body as its frames come
//! (`put.rs`): a message may be as large as its client likes, and memory stays bounded by the chunk that is being gathered. `DoGet` hands its
//! bytes to HTTP/2 as they lie in the store (`get.rs`, `pieces.rs`).

mod actions;
mod answer;
mod arrival;
mod auth;
mod connection;
mod door;
mod endpoints;
mod frames;
#[doc(hidden)]
pub mod fuzz;
mod get;
mod get_encoded;
mod get_many;
mod http2;
mod input;
mod ipc;
mod pieces;
mod put;
mod put_encoded;
mod put_many;
mod same_host;
mod seats;
mod server;
mod service;
mod stall;
mod status;
mod stream;
mod tls;
mod watched;

pub use auth::Tokens;
pub use server::{DEFAULT_CONNECTIONS, GREETINGS, Listeners, ServeError, Transport, serve};
pub use service::Flight;
pub use tls::{Tls, TlsFiles};
