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

#[cfg(test)]
mod tests {
    use sira_client::{DType, TensorSpec};

    use super::*;
    use crate::cli::ImportArgs;
    use crate::formats::avro::{Header, Part};

    fn job(nbytes: u64, text: usize) -> Job {
        let args = ImportArgs { file: "x.avro".into(), prefix: None, if_absent: false, resume: false, json: false };
        let attributes = (0..text.div_ceil(4000)).map(|i| (i.to_string(), "x".repeat(4000))).collect();
        let spec = TensorSpec::new(DType::UInt8, vec![nbytes]).unwrap().with_attributes(attributes).unwrap();
        let parts = ["k", "v"].map(|name| Part::new(name.into(), &spec, None)).to_vec();
        let (version, created_ms, expires_ms, consistency, kv_spec) = (1, None, None, Default::default(), None);
        let header = Header { key: "t/x".into(), version, parts, created_ms, expires_ms, consistency, derived_from_lossy: false, kv_spec };
        Job::new(&header, "", &args).unwrap().unwrap()
    }

    #[test]
    fn small_keys_wait_for_others_up_to_a_limit() {
        assert!(Batch::takes(&job(SMALL / 2, 60_000)) && Batch::takes(&job(0, 0)));
        assert!(!Batch::takes(&job(SMALL / 2 + 1, 0)), "too many bytes");
        assert!(!Batch::takes(&job(0, 70_000)), "too many attributes");
        let filled = |nbytes: u64, text: usize| {
            let mut batch = Batch::default();
            while batch.has_room(&job(nbytes, text)) {
                let small = Small { key: "t/x".into(), nbytes: 2 * nbytes, read: (1, Place::default()) };
                batch.push(small, job(nbytes, text), vec![0; 2 * nbytes as usize].into());
            }
            let (tensors, entries) = batch.take();
            assert!(batch.is_empty() && tensors.len() == entries.len());
            entries.len()
        };
        assert_eq!(filled(0, 0), KEYS);
        // Names take a few bytes of each.
        assert_eq!(filled(SMALL / 2, 0), 31);
        assert_eq!(filled(0, 60_000), 139);
    }
}
