//! A store on one thread, and what must hold of it whatever stream it is sent.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body::Frame;
use http_body_util::StreamBody;
use sira_backend::memory::MemoryBackend;
use sira_backend::{BackendError, Capabilities, HealthStatus, Payload, PutOptions, PutOutcome, StorageBackend, StorageStats, Survives};
use sira_store::catalog::MemoryKv;
use sira_store::{Demands, Seams, Spawner, StorageClient, StoreError, StoreOptions};
use sira_wire::Key;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::memory;

/// Streams after which a new store begins: it keeps what was put.
const STREAMS: u64 = 500;

/// Bytes of memory that a stream may take besides twice its own bytes and those that the ledger counts: parsed descriptors, headers and records.
const BESIDES: usize = 256 << 10;

/// A store with nothing in memory but what is being written: puts go into records, to be written behind, or chunk by chunk.
pub struct Bench {
    runtime: tokio::runtime::Runtime,
    store: std::cell::RefCell<Tried>,
}

/// A store that streams were sent to.
struct Tried {
    store: StorageClient,
    backend: Arc<Lasting>,
    streams: u64,
    /// Its keys and their versions, after the last of them.
    keys: BTreeMap<String, u64>,
}

/// What a stream came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    Refused,
}

impl Bench {
    pub fn new() -> Bench {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let store = std::cell::RefCell::new(runtime.block_on(open()));
        Bench { runtime, store }
    }

    /// Sends a stream in frames of `size` bytes; the error says what must not be.
    pub fn try_stream(&self, stream: &[u8], size: usize) -> Result<Outcome, String> {
        let mut slot = self.store.borrow_mut();
        if slot.streams == STREAMS {
            *slot = self.runtime.block_on(open());
        }
        slot.streams += 1;
        self.runtime.block_on(stream_into(&mut slot, Bytes::copy_from_slice(stream), size))
    }
}

async fn open() -> Tried {
    let options = StoreOptions {
        memory_limit: 64 << 20,
        hot_limit: 0,
        idle_limit: 0,
        codec: "planes+lz4".parse().unwrap(),
        ..StoreOptions::default()
    };
    let seams = Seams { spawner: Arc::new(HereAndNow), ..Seams::system() };
    let store = StorageClient::new(options, seams, Arc::new(MemoryKv::default())).unwrap();
    let backend = Arc::new(Lasting(MemoryBackend::new(256 << 20)));
    store.register_backend("memory", backend.clone());
    store.start().await.unwrap();
    Tried { store, backend, streams: 0, keys: BTreeMap::new() }
}

/// Keys and their versions.
fn visible(store: &StorageClient) -> BTreeMap<String, u64> {
    store.list("", None, usize::MAX).unwrap().0.into_iter().map(|entry| (entry.key, entry.version)).collect()
}

async fn values(backend: &Lasting) -> Option<u64> {
    // Time stands still while anything can go on: what was begun in the background ends here, and the upkeep begins two milliseconds late.
    tokio::time::sleep(Duration::from_millis(10)).await;
    backend.0.stats().await.unwrap().values
}

async fn stream_into(tried: &mut Tried, stream: Bytes, size: usize) -> Result<Outcome, String> {
    let Tried { store, backend, keys, .. } = tried;
    let (count, held) = (values(backend).await, memory::held());
    let (len, counted) = (stream.len(), Arc::new(AtomicU64::new(0)));
    let mark = memory::mark();
    let answer = {
        let body = body(store, stream, size, counted.clone());
        AssertUnwindSafe(sira_flight::fuzz::put(store, body)).catch_unwind().await.map_err(|_| "it panicked".to_owned())?
    };
    let peak = memory::peak_since(mark);
    let most = 2 * len + counted.load(Ordering::Relaxed) as usize + BESIDES;
    if peak > most {
        return Err(format!(
            "{peak} bytes of memory for a stream of {len}, of which the ledger counted {}",
            counted.load(Ordering::Relaxed)
        ));
    }
    let (after, count_after) = (visible(store), values(backend).await);
    let used = store.ledger().used();
    if used != 0 {
        return Err(format!("{used} bytes stay in the ledger"));
    }
    let outcome = match &answer {
        Ok(_) => Outcome::Stored,
        Err(status) => refused(status)?,
    };
    if outcome == Outcome::Refused && after == *keys {
        if count_after > count {
            return Err(format!("{count_after:?} values are stored where {count:?} were, and no key is new"));
        }
        if memory::held() - held > 64 << 10 {
            return Err(format!("{} bytes stay allocated", memory::held() - held));
        }
        return Ok(outcome);
    }
    for (key, _) in after.iter().filter(|(key, version)| keys.get(*key) != Some(version)) {
        match read(store, key).await {
            // A chunk that came encoded may not decode: then that is what a reader is told, and nothing else.
            Err(StoreError::Corrupt(reason)) if reason.contains(", chunk ") && reason.contains(": corrupt ") => {}
            read => read.map_err(|error| format!("{key:?} is listed and cannot be read: {error}"))?,
        }
    }
    *keys = after;
    Ok(outcome)
}

/// Reads all parts of a key; a reader fails where they are not as long as they are said to be.
async fn read(store: &StorageClient, key: &str) -> Result<(), StoreError> {
    let key: Key = key.parse()?;
    let snapshot = store.snapshot(&key, &Demands::default())?;
    for part in 0..snapshot.parts().len() {
        let mut reader = snapshot.read(part, &BTreeMap::new()).await?;
        while reader.next().await?.is_some() {}
    }
    Ok(())
}

/// A refusal blames the client, or says that there is no room. Anything else is a defect.
fn refused(status: &Status) -> Result<Outcome, String> {
    match status.code() {
        Code::InvalidArgument | Code::AlreadyExists | Code::FailedPrecondition | Code::ResourceExhausted | Code::Unimplemented => {
            Ok(Outcome::Refused)
        }
        _ => Err(format!("refused with {:?}: {}", status.code(), status.message())),
    }
}

/// The frames of a stream. Each time one is asked for, it is noted how much memory the ledger counts.
fn body(store: &StorageClient, stream: Bytes, size: usize, counted: Arc<AtomicU64>) -> Body {
    let (store, mut rest) = (store.clone(), stream);
    let frames = std::iter::from_fn(move || {
        counted.fetch_max(store.ledger().used(), Ordering::Relaxed);
        let frame = rest.split_to(rest.len().min(size));
        (!frame.is_empty()).then(|| Ok::<_, Status>(Frame::data(frame)))
    });
    Body::new(StreamBody::new(futures::stream::iter(frames)))
}

/// Runs everything on this thread.
struct HereAndNow;

impl Spawner for HereAndNow {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn work(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move { work() })
    }
}

/// A backend in memory that claims to last, so that puts of every level are taken.
struct Lasting(MemoryBackend);

#[async_trait::async_trait]
impl StorageBackend for Lasting {
    fn capabilities(&self) -> Capabilities {
        Capabilities { logged_survives: Survives::ProcessCrash, durable_survives: Survives::PowerLoss, ..self.0.capabilities() }
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        self.0.put(name, value, options).await
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        self.0.get(name, range).await
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.0.delete(name).await
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        self.0.exists(name).await
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        self.0.list_keys(prefix, after, limit).await
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        self.0.stats().await
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        Ok(HealthStatus::Healthy)
    }
}
