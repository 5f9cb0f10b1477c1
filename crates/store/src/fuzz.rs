//! Ways in for tests that feed this crate hostile bytes (docs/fuzzing.md). No part of its interface.

use xxhash_rust::xxh3::xxh3_64;

use crate::StoreError;
use crate::record::{HEADER, MAGIC, TensorRecord};

/// Reads a record whose FlatBuffer is `body`, its checksum made right: whoever writes to a backend can do so too. Gives its bytes again.
pub fn record(body: &[u8]) -> Result<Vec<u8>, StoreError> {
    let bytes = [&MAGIC[..], &xxh3_64(body).to_le_bytes(), body].concat();
    TensorRecord::from_bytes("of a test", &bytes).map(|record| record.to_bytes()[HEADER..].to_vec())
}
