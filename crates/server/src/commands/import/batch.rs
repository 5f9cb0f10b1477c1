//! Small tensors that are put together: one round trip and few syncs for many of them.

use bytes::Bytes;
use sira_client::PutEntry;

use super::job::Job;
use crate::formats::avro::Place;

/// Bytes of the largest tensor that waits for others.
const SMALL: u64 = 512 << 10;
/// Bytes of its attributes and names, at most. Even where JSON makes six bytes of each, a message takes them.
const TEXT: usize = 128 << 10;
/// Bytes of a batch, texts included.
const BYTES: u64 = 16 << 20;
/// Keys of a batch.
const KEYS: usize = 1024;

/// A tensor of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Small {
    /// Its key in the file.
    pub key: String,
    /// Bytes of it.
    pub nbytes: u64,
    /// Tensors that were read when it was, and where it ends.
    pub read: (u64, Place),
}

/// Tensors that were read, and are to be put.
#[derive(Default)]
pub struct Batch {
    tensors: Vec<Small>,
    entries: Vec<PutEntry>,
    bytes: u64,
}

impl Batch {
    /// Whether a key is one that waits for others.
    pub fn takes(job: &Job) -> bool {
        job.nbytes() <= SMALL && job.text() <= TEXT
    }

    /// Whether a key fits with those that are here.
    pub fn has_room(&self, job: &Job) -> bool {
        self.entries.len() < KEYS && self.bytes + weight(job) <= BYTES
    }

    /// Adds a key with its bytes.
    pub fn push(&mut self, tensor: Small, job: Job, bytes: Bytes) {
        self.bytes += weight(&job);
        self.tensors.push(tensor);
        self.entries.push(job.entry(bytes));
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All that waits.
    pub fn take(&mut self) -> (Vec<Small>, Vec<PutEntry>) {
        let Batch { tensors, entries, .. } = std::mem::take(self);
        (tensors, entries)
    }
}

fn weight(job: &Job) -> u64 {
    job.nbytes() + job.text() as u64
}
