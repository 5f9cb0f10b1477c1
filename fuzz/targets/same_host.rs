//! A Unix socket over which memory is passed: what a client says to a server, and the same bytes as what a server answers to a client.

#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sira_backend::memory::MemoryBackend;
use sira_store::catalog::MemoryKv;
use sira_store::{Seams, StorageClient, StoreOptions};
use tokio::runtime::{Builder, Runtime};

/// Connections after which a new store begins: it keeps what was committed.
const CONNECTIONS: u32 = 500;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().unwrap();
    static STORE: RefCell<(Option<StorageClient>, u32)> = const { RefCell::new((None, 0)) };
}

async fn open() -> StorageClient {
    let options = StoreOptions { memory_limit: 16 << 20, hot_limit: 4 << 20, idle_limit: 0, ..StoreOptions::default() };
    let store = StorageClient::new(options, Seams::system(), Arc::new(MemoryKv::default())).unwrap();
    store.register_backend("memory", Arc::new(MemoryBackend::new(64 << 20)));
    store.start().await.unwrap();
    store
}

async fn run(bytes: &[u8]) {
    let (store, count) = STORE.take();
    let (store, count) = match store.filter(|_| count < CONNECTIONS) {
        Some(store) => (store, count),
        None => (open().await, 0),
    };
    sira_flight::fuzz::neighbour(&store, bytes).await.unwrap();
    let held = store.ledger().used();
    let kept = store.stats().await.memory.hot_bytes;
    assert!(held <= kept, "{held} bytes stay in the ledger, of which {kept} are tensors in memory");
    let _ = sira_client::fuzz::mapped(bytes).await;
    STORE.set((Some(store), count + 1));
}

fuzz_target!(|bytes: &[u8]| RUNTIME.with(|runtime| runtime.block_on(run(bytes))));
