//! The engine of Sira: tensors under keys, in memory and in backends.
//!
//! A put is gathered into slabs, cut into chunks, encoded, and stored under a random write id ([`Writer`]); its record, created where
//! there was none, is the commit point. A get pins its record, so that it ends on the version it began with ([`Reader`]). One ledger
//! counts memory ([`ledger`]); the catalog ([`catalog`]) is this node's index of records. docs/architecture.md has the picture.

mod behind;
mod calibrations;
pub mod catalog;
mod check;
mod client;
mod coding;
mod commit;
mod copies;
mod digest;
mod encoded;
mod error;
mod evict;
mod fitness;
mod flights;
#[doc(hidden)]
pub mod fuzz;
#[allow(missing_docs, unsafe_code, unused_qualifications, clippy::all, clippy::unwrap_used)]
// Reason: written by flatc from schemas/, see `make schemas`.
mod generated {
    #[rustfmt::skip]
    pub mod record;
}
mod hot;
mod jobs;
mod kvspecs;
pub mod ledger;
mod many;
mod memory;
mod migrate;
mod moves;
mod namespaces;
pub mod observe;
mod part;
mod pins;
mod placement;
mod policies;
mod read;
mod recode;
mod record;
mod recover;
mod region;
mod room;
mod router;
mod seams;
mod share;
mod sink;
mod snapshot;
mod sound;
mod stats;
mod tiers;
mod upkeep;
mod write;

pub use client::{StorageClient, StoreOptions, WriteOptions};
pub use encoded::{EncodedChunk, EncodedReader};
pub use error::StoreError;
pub use fitness::Standing;
pub use observe::{Direction, Operation, Request, Speed, Speeds};
pub use part::PartSpec;
pub use read::{Hold, Reader, SHARED_BYTES};
pub use router::{
    Balance, Candidate, Cheapest, Fastest, Group, Load, Match, PlacementRequest, Price, Router, RoutingStrategy, Rule, View, Why,
};
pub use seams::{Clock, Seams, Spawner};
pub use share::Shared;
pub use snapshot::{Demands, Snapshot};
pub use stats::{
    BackendStats, CallStats, CodecStats, CodingStats, CodingTimes, DeviceStats, FlowStats, Measurements, MemoryStats, MoveStats,
    OperationStats, StoreStats,
};
pub use tiers::TierOptions;
pub use upkeep::ScrubReport;
pub use write::{EncodedWriter, Writer};
