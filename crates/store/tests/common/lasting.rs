//! A backend in memory that claims to last, and can be told to fail or to crash: it outlives the stores that are opened on it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use sira_backend::memory::MemoryBackend;
use sira_backend::{BackendError, Capabilities, HealthStatus, Payload, PutOptions, PutOutcome, StorageBackend, StorageStats, Survives};

/// The process that several backends serve: when it has crashed, no call returns any more.
#[derive(Default)]
pub struct Process {
    /// Calls until the crash; it never comes while this is 0 at the start.
    calls_left: AtomicI64,
    pub crashed: tokio::sync::Notify,
}

impl Process {
    /// Crashes at the call after `calls` others.
    pub fn crash_after(&self, calls: i64) {
        self.calls_left.store(calls + 1, Ordering::SeqCst);
    }

    /// Counts a call; true from the crash on.
    fn gone(&self) -> bool {
        match self.calls_left.load(Ordering::SeqCst) {
            0 => false,
            1 => {
                self.crashed.notify_one();
                self.calls_left.store(-1, Ordering::SeqCst);
                true
            }
            left if left < 0 => true,
            left => {
                self.calls_left.store(left - 1, Ordering::SeqCst);
                false
            }
        }
    }

    /// The call at which the process dies never returns; whether it takes effect is up to the name.
    async fn call<T>(&self, name: &str, effect: impl Future<Output = T>) -> T {
        let before = self.calls_left.load(Ordering::SeqCst);
        if !self.gone() {
            return effect.await;
        }
        if before == 1 && name.len().is_multiple_of(2) {
            effect.await;
        }
        std::future::pending().await
    }
}

/// Wraps a backend of which a restarted store finds everything again.
pub struct Lasting {
    inner: MemoryBackend,
    /// Puts that may still succeed; after them, puts fail.
    puts_left: AtomicU32,
    /// Whether every call fails: the backend does not answer.
    out: AtomicBool,
    /// Whether what is put of chunks is stored with a bit flipped.
    spoils: AtomicBool,
    /// Gets so far.
    gets: AtomicU64,
    /// Whether puts of records say that the disk is full, when all is done.
    full_when_done: AtomicBool,
    process: Arc<Process>,
}

impl Lasting {
    pub fn new(inner: MemoryBackend, process: Arc<Process>) -> Lasting {
        Lasting {
            inner,
            puts_left: AtomicU32::new(u32::MAX),
            out: AtomicBool::new(false),
            spoils: AtomicBool::new(false),
            gets: AtomicU64::new(0),
            full_when_done: AtomicBool::new(false),
            process,
        }
    }

    /// Has every call fail, or none.
    pub fn set_out(&self, out: bool) {
        self.out.store(out, Ordering::SeqCst);
    }

    /// Has every chunk that is put spoilt, or none.
    pub fn set_spoils(&self, spoils: bool) {
        self.spoils.store(spoils, Ordering::SeqCst);
    }

    /// Gets so far.
    pub fn gets(&self) -> u64 {
        self.gets.load(Ordering::SeqCst)
    }

    /// Bytes that lie in it under names that start with `prefix`.
    pub async fn bytes(&self, prefix: &str) -> u64 {
        let mut bytes = 0;
        for name in self.names(prefix).await {
            bytes += self.inner.get(&name, None).await.unwrap().map_or(0, |value| value.len() as u64);
        }
        bytes
    }

    /// Removes a value behind the store's back.
    pub async fn lose(&self, name: &str) {
        assert!(self.inner.delete(name).await.unwrap(), "{name} was there");
    }

    fn answers(&self) -> Result<(), BackendError> {
        match self.out.load(Ordering::SeqCst) {
            true => Err(BackendError::Unavailable { context: "call".into(), source: "told to be out".into() }),
            false => Ok(()),
        }
    }

    /// Lets `count` more puts succeed.
    pub fn fail_after(&self, count: u32) {
        self.puts_left.store(count, Ordering::SeqCst);
    }

    /// Whether a put of a record says from now on that there was no room, as a file system does that had none for the last sync.
    pub fn full_when_done(&self, yes: bool) {
        self.full_when_done.store(yes, Ordering::SeqCst);
    }

    /// Flips one bit of a value.
    pub async fn flip(&self, name: &str, at: usize) {
        let mut value = self.inner.get(name, None).await.unwrap().unwrap().to_vec();
        value[at] ^= 0x10;
        self.inner.put(name, value.into(), PutOptions::default()).await.unwrap();
    }

    /// Puts a value that no store knows of.
    pub async fn plant(&self, name: &str) {
        self.inner.put(name, vec![1, 2, 3].into(), PutOptions::default()).await.unwrap();
    }

    pub async fn names(&self, prefix: &str) -> Vec<String> {
        self.inner.list_keys(prefix, None, usize::MAX).await.unwrap()
    }
}

#[async_trait::async_trait]
impl StorageBackend for Lasting {
    fn capabilities(&self) -> Capabilities {
        Capabilities { logged_survives: Survives::ProcessCrash, durable_survives: Survives::PowerLoss, ..self.inner.capabilities() }
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        tokio::task::yield_now().await;
        self.answers()?;
        let left = self.puts_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            u32::MAX => Some(left),
            left => left.checked_sub(1),
        });
        if left.is_err() {
            return Err(BackendError::Unavailable { context: "put".into(), source: "told to fail".into() });
        }
        if self.spoils.load(Ordering::SeqCst) && name.starts_with("c/") {
            let mut spoilt = value.into_bytes().to_vec();
            spoilt[0] ^= 1;
            return self.process.call(name, self.inner.put(name, spoilt.into(), options)).await;
        }
        let outcome = self.process.call(name, self.inner.put(name, value, options)).await;
        if name.starts_with("r/") && self.full_when_done.load(Ordering::SeqCst) {
            return Err(BackendError::OutOfSpace("told to say so".into()));
        }
        outcome
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        tokio::task::yield_now().await;
        self.answers()?;
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.process.call(name, self.inner.get(name, range)).await
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        tokio::task::yield_now().await;
        self.answers()?;
        self.process.call(name, self.inner.delete(name)).await
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        self.inner.exists(name).await
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        self.answers()?;
        self.inner.list_keys(prefix, after, limit).await
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        self.inner.stats().await
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        Ok(HealthStatus::Healthy)
    }
}
