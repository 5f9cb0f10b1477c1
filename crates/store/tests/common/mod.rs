//! Stores for tests.

use std::sync::Arc;
use std::time::Duration;

use sira_backend::Payload;
use sira_backend::memory::MemoryBackend;
use sira_store::catalog::{MemoryKv, OrderedKv};
use sira_store::{Seams, StorageClient, StoreOptions};
use sira_tensor::{DType, TensorSpec};
use sira_wire::Key;

use self::lasting::{Lasting, Process};

pub mod early;
pub mod flaky;
pub mod lasting;

/// What outlives a store: its backends and its catalog.
#[derive(Clone)]
pub struct World {
    pub small: Arc<Lasting>,
    pub large: Arc<Lasting>,
    pub catalog: Arc<MemoryKv>,
    pub process: Arc<Process>,
}

impl World {
    pub fn new(limit: u64) -> World {
        let process = Arc::new(Process::default());
        let backend = || Arc::new(Lasting::new(MemoryBackend::new(limit), process.clone()));
        World { small: backend(), large: backend(), catalog: Arc::new(MemoryKv::default()), process }
    }

    /// A store over this world: records and most tensors in `small`, keys of `big/` in `large`.
    pub async fn open(&self, seams: Seams, change: impl FnOnce(&mut StoreOptions)) -> StorageClient {
        let store = self.prepare(seams, change);
        store.start().await.unwrap();
        store
    }

    /// As [`World::open`], not started yet.
    pub fn prepare(&self, seams: Seams, change: impl FnOnce(&mut StoreOptions)) -> StorageClient {
        let mut options = StoreOptions {
            memory_limit: 64 << 20,
            hot_limit: 16 << 20,
            record_backend: "small".into(),
            default_backend: "small".into(),
            codec: "planes+zstd".parse().unwrap(),
            patience: Duration::from_secs(5),
            ..StoreOptions::default()
        };
        change(&mut options);
        let store = StorageClient::new(options, seams, self.catalog.clone() as Arc<dyn OrderedKv>).unwrap();
        store.register_backend("small", self.small.clone());
        store.register_backend("large", self.large.clone());
        store.add_strategy(Box::new(sira_store::Rule::new("big/*", 0..=u64::MAX, "large").unwrap()));
        store
    }
}

pub fn key(text: &str) -> Key {
    text.parse().unwrap()
}

pub fn spec(n: u64) -> TensorSpec {
    TensorSpec::new(DType::UInt8, vec![n]).unwrap()
}

/// `n` bytes that depend on `seed` and do not compress much; eight at a time, as histories make a gigabyte of them.
pub fn bytes(n: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0u8; n.next_multiple_of(8) as usize];
    for eight in bytes.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *eight = state.to_le_bytes();
    }
    bytes.truncate(n as usize);
    bytes
}

pub fn payload(n: u64, seed: u64) -> Payload {
    bytes(n, seed).into()
}
