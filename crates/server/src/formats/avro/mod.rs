//! Exports: Avro object container files of tensors, by the schema in `schemas/export.avsc`. docs/export.md is the contract.
//!
//! [`Writer`] and [`Reader`] hold one block in memory, whatever the size of the tensors.

mod codec;
mod container;
mod model;
mod reader;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

pub use codec::Codec;
pub use model::{Chunk, End, Header, KvSpec, Part, Record};
pub use reader::{Event, Place, ReadError, Reader};
pub use writer::{Resumed, Writer, partial_path};

/// Names in the file's metadata.
pub mod metadata {
    /// Version of the format, decimal.
    pub const VERSION: &str = "sira.export.version";
    /// What the keys of the file begin with.
    pub const PREFIX: &str = "sira.export.prefix";
    /// When the export began: milliseconds since 1970, decimal.
    pub const CREATED: &str = "sira.export.created_ms";
}

/// Version of the format that is written, and the only one read.
pub const VERSION: &str = "1";

/// Bytes of tensor in a chunk that is written, and of a block that is closed.
pub const CHUNK: usize = 1 << 20;

/// Bytes of the largest block read, stored or decoded.
pub const MAX_BLOCK: usize = 16 << 20;

/// Whether a key is that of a calibration artefact: such a one comes before the keys that need it, in whatever order they are.
pub fn is_artefact(key: &str) -> bool {
    key.split_once('/').is_some_and(|(namespace, _)| namespace == sira_wire::namespace::CALIBRATIONS)
}

/// A checksum as the schema keeps it: Avro has no unsigned numbers.
fn signed(checksum: u64) -> i64 {
    checksum.cast_signed()
}
