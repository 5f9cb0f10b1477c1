//! What is counted of a family of codec chains.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::latency::{Latency, Table};
use crate::coding::Way;

/// In the order of [`Way`].
const WAYS: [&str; 2] = ["encode", "decode"];

/// Counts chunks, their bytes on either side, and the time they took.
#[derive(Default)]
pub(crate) struct CodecMeter {
    times: Table<{ WAYS.len() }, 1>,
    /// Raw and stored bytes, of each way.
    bytes: [[AtomicU64; 2]; WAYS.len()],
}

/// Counters of a family of chains since the start.
#[derive(Clone, Debug)]
pub struct CodecMeasurements {
    /// Time of a chunk that was encoded, and measured where its codec is lossy.
    pub encode: Latency,
    /// Time of a chunk that was decoded.
    pub decode: Latency,
    /// Bytes that were encoded.
    pub raw_in: u64,
    /// Bytes that they became; those of chunks that stayed as they were, too.
    pub stored_out: u64,
    /// Bytes that were decoded.
    pub stored_in: u64,
    /// Bytes that they became.
    pub raw_out: u64,
}

impl CodecMeter {
    /// Counts a chunk.
    pub fn coded(&self, way: Way, took: Duration, raw: u64, stored: u64) {
        self.times.record(way as usize, 0, took);
        for (counter, bytes) in self.bytes[way as usize].iter().zip([raw, stored]) {
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub fn read(&self) -> CodecMeasurements {
        let latency = |way: Way| self.times.read(WAYS, ["ok"])[way as usize].latency;
        let bytes = |way: Way, side: usize| self.bytes[way as usize][side].load(Ordering::Relaxed);
        CodecMeasurements {
            encode: latency(Way::Encode),
            decode: latency(Way::Decode),
            raw_in: bytes(Way::Encode, 0),
            stored_out: bytes(Way::Encode, 1),
            stored_in: bytes(Way::Decode, 1),
            raw_out: bytes(Way::Decode, 0),
        }
    }
}
