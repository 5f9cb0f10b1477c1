//! A defect made on purpose: a backend whose last durable puts are still in a cache when it acknowledges them, as those of a disk that lies.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sira_backend::{BackendError, Capabilities, HealthStatus, Payload, PutOptions, PutOutcome, StorageBackend, StorageStats};

/// Puts that the cache holds.
const CACHED: usize = 8;

/// Passes every call on, and knows how to lose the last puts again.
pub struct Early {
    inner: Arc<dyn StorageBackend>,
    /// Names of the last puts, and what they replaced.
    cache: Mutex<Vec<(String, Option<Bytes>)>>,
}

impl Early {
    pub fn new(inner: Arc<dyn StorageBackend>) -> Early {
        Early { inner, cache: Mutex::default() }
    }

    /// What a crash does to it.
    pub async fn lose(&self) {
        let cache = std::mem::take(&mut *self.cache.lock());
        for (name, before) in cache.into_iter().rev() {
            match before {
                Some(before) => drop(self.inner.put(&name, before.into(), PutOptions::default()).await.unwrap()),
                None => drop(self.inner.delete(&name).await.unwrap()),
            }
        }
    }
}

#[async_trait::async_trait]
impl StorageBackend for Early {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        let before = self.inner.get(name, None).await?;
        let outcome = self.inner.put(name, value, options).await?;
        let mut cache = self.cache.lock();
        cache.push((name.to_owned(), before));
        if cache.len() > CACHED {
            cache.remove(0);
        }
        Ok(outcome)
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        self.inner.get(name, range).await
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.inner.delete(name).await
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        self.inner.exists(name).await
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        self.inner.list_keys(prefix, after, limit).await
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        self.inner.stats().await
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        self.inner.health_check().await
    }
}
