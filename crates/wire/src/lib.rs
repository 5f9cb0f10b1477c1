//! What clients and servers of Sira say to each other (docs/wire.md), in one place for both. No I/O.

pub mod encoded;
mod entry;
mod error;
pub mod ipc;
pub mod job;
mod key;
mod keys;
mod limited;
pub mod many;
pub mod namespace;
mod options;
mod request;
pub mod same_host;

pub use entry::{DeleteAnswer, Entry, ExistsAnswer, ListAnswer, PARTS, PartEntry, PutAnswer};
pub use error::{Code, WireError};
pub use key::{Key, MAX_KEY, MAX_NAMESPACE};
pub use options::{Condition, Consistency, PutOptions, metadata};
pub use request::{DeleteRequest, EmptyRequest, KeyRequest, ListRequest, MAX_ENDPOINTS, Ticket};

/// The version of the contract that requests carry as `v`.
pub const VERSION: u32 = 1;

/// The port Sira listens on when nothing else is said.
pub const DEFAULT_PORT: u16 = 9095;
