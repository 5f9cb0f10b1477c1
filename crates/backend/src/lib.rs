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
//!
//! # A backend of your own
//! A backend that passes [`conformance::check`] can take any tier. This one keeps values in a map; the crate's own tests run the
//! suite over it.
//!
//! ```
#![doc = include_str!("../tests/example/shelf.rs")]
//! ```

mod backend;
pub mod conformance;
mod error;
pub mod file;
#[doc(hidden)]
pub mod fuzz;
mod ledger;
pub mod memory;
pub mod name;
pub mod object;
mod payload;
pub mod probe;
pub mod rocks;
#[cfg(test)]
mod testing;

pub use backend::{
    BatchOperation, BatchResult, Capabilities, Durability, HealthStatus, PutMode, PutOptions, PutOutcome, StorageBackend, StorageStats,
    Survives,
};
pub use error::BackendError;
pub use payload::Payload;
