//! A put copies each byte once, from the buffer that it came in into the memory that becomes the stored payload, and that memory is aligned and
//! used again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use sira_backend::StorageBackend;
use sira_backend::memory::MemoryBackend;
use sira_store::catalog::MemoryKv;
use sira_store::{Seams, StorageClient, StoreOptions, WriteOptions};
use sira_tensor::{DType, TensorSpec};
use sira_wire::{Consistency, Key};

/// Bytes that were ever allocated, in blocks of [`LARGE`] and more: no copy of a frame can do without.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
const LARGE: usize = 32 << 10;

struct Counting;

// SAFETY: all is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            ALLOCATED.fetch_add(layout.size(), Ordering::SeqCst);
        }
        // SAFETY: as of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as of the caller.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FRAME: usize = 256 << 10;

async fn store() -> (StorageClient, Arc<MemoryBackend>) {
    let backend = Arc::new(MemoryBackend::new(256 << 20));
    let options = StoreOptions { memory_limit: 256 << 20, idle_limit: 64 << 20, hot_limit: 128 << 20, ..StoreOptions::default() };
    let store = StorageClient::new(options, Seams::system(), Arc::new(MemoryKv::default())).unwrap();
    store.register_backend("memory", backend.clone());
    store.start().await.unwrap();
    (store, backend)
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

/// Puts `bytes` bytes in frames; gives how many were allocated for it in large blocks.
async fn put(store: &StorageClient, name: &str, bytes: usize) -> usize {
    let frames: Vec<Bytes> = (0..bytes).step_by(FRAME).map(|at| Bytes::from(vec![at as u8 ^ 7; FRAME.min(bytes - at)])).collect();
    let spec = TensorSpec::new(DType::UInt8, vec![bytes as u64]).unwrap();
    let options = WriteOptions { consistency: Some(Consistency::Weak), ..WriteOptions::default() };
    let before = ALLOCATED.load(Ordering::SeqCst);
    let mut writer = store.begin(key(name), spec, options).await.unwrap();
    for frame in &frames {
        writer.write(frame).await.unwrap();
    }
    writer.commit().await.unwrap();
    ALLOCATED.load(Ordering::SeqCst) - before
}

/// Where the pieces of a tensor lie; those that follow one another in memory are one.
async fn places(store: &StorageClient, name: &str) -> Vec<usize> {
    let (_, payload) = store.retrieve(&key(name)).await.unwrap();
    let at = |at: usize| (at / FRAME * FRAME) as u8 ^ 7;
    let whole = payload.clone().into_bytes();
    assert!(whole.iter().enumerate().all(|(index, byte)| *byte == at(index)));
    let (mut places, mut end) = (Vec::new(), 0);
    for piece in payload.pieces() {
        let start = piece.as_ptr() as usize;
        if start != end || start.is_multiple_of(2 << 20) {
            places.push(start);
        }
        end = start + piece.len();
    }
    places
}

#[tokio::test]
async fn a_put_copies_each_byte_once_into_aligned_memory_that_is_used_again() {
    let (store, backend) = store().await;
    // Regions of 2 MiB are maps of their own: what the allocator gives out in large blocks would be a second copy.
    let allocated = put(&store, "ns/large", 16 << 20).await;
    assert!(allocated < 1 << 20, "{allocated} bytes were allocated for 16 MiB");
    let hot = places(&store, "ns/large").await;
    assert!(hot.len() >= 8 && hot.iter().all(|place| place % (2 << 20) == 0), "at huge pages: {hot:x?}");

    // The tier below holds the same memory.
    let mut below = BTreeSet::new();
    for name in backend.list_keys("c/", None, 100).await.unwrap() {
        below.insert(backend.get(&name, None).await.unwrap().unwrap().as_ptr() as usize);
    }
    assert_eq!(below, hot.iter().copied().collect(), "the stored chunks are what was gathered");

    // What is gone makes room for what comes.
    assert!(store.delete(&key("ns/large"), None).await.unwrap());
    put(&store, "ns/next", 16 << 20).await;
    let again = places(&store, "ns/next").await;
    assert_eq!(again.iter().collect::<BTreeSet<_>>(), hot.iter().collect(), "the same memory, used again");

    for bytes in [64, 100, 4096, 60_000, 65_536, 300_000, 1 << 20] {
        // One block of memory at most, whatever the size: the region.
        let allocated = put(&store, "ns/small", bytes).await;
        assert!(allocated <= bytes + FRAME, "{allocated} bytes were allocated for {bytes}");
        assert!(places(&store, "ns/small").await.iter().all(|place| place % 64 == 0), "{bytes} bytes lie at a multiple of 64");
    }
}
