//! Bytes under names: the [`StorageBackend`] trait, one module a backend, and the conformance suite that each passes.
//!
//! A backend never knows what it stores. Names are made by the store ([`name`]) within the alphabet and lengths that every
//! backend takes; values are a [`Payload`] of a few MiB at most unless [`Capabilities`] says otherwise.
//!
//! | backend | `Logged` survives | `Durable` survives | limit of bytes | range reads |
//! |---|---|---|---|---|
//! | [`memory`] | nothing | nothing | exact | a slice, no copy |
//! | [`mod@file`] | power loss | power loss | exact | only the range |
//! | [`rocks`] | process crash | power loss | exact | whole value from disk |
//! | [`object`] | power loss | power loss | exact while nobody else writes | only the range |
//! | `sqlite` | process crash | power loss | exact | whole value from disk |
//! | `postgres` | process crash | power loss, if the server syncs | exact while nobody else writes | only the range |
//! | `mysql` | as `Durable` | power loss, if the server syncs | exact while nobody else writes | only the range |
//! | `redis` | by the server's settings | the same | the server's `maxmemory` | only the range |
//! | `sled` | process crash | power loss | exact | whole value from disk |
//!
//! The last ones are behind features of their names. What is behind a network belongs behind a [`guard`].
//!
//! # A backend of your own
//! A backend that passes [`conformance::check`] can take any tier. This one keeps values in a map; the crate's own tests run the
//! suite over it.
//!
//! ```
#![doc = include_str!("../tests/example/shelf.rs")]
//! ```

mod backend;
mod batch;
pub mod conformance;
mod error;
pub mod file;
#[doc(hidden)]
pub mod fuzz;
pub mod guard;
mod ledger;
pub mod memory;
#[cfg(feature = "mysql")]
pub mod mysql;
pub mod name;
pub mod object;
mod payload;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod probe;
#[cfg(feature = "redis")]
pub mod redis;
pub mod rocks;
#[cfg(feature = "sled")]
pub mod sled;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(test)]
mod testing;

pub use backend::{
    BatchOperation, BatchResult, Capabilities, Durability, HealthStatus, PutMode, PutOptions, PutOutcome, StorageBackend, StorageStats,
    Survives,
};
pub use error::BackendError;
pub use payload::Payload;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use sql::DatabaseOptions;
