//! A backend before another that now and then says that a call failed: before it does anything, or when all is done.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sira_backend::{BackendError, Capabilities, HealthStatus, Payload, PutOptions, PutOutcome, StorageBackend, StorageStats};

/// Fails one call in `one_in`, as its seed says.
pub struct Flaky {
    inner: Arc<dyn StorageBackend>,
    rng: Mutex<StdRng>,
    one_in: u32,
}

impl Flaky {
    pub fn new(inner: Arc<dyn StorageBackend>, seed: u64, one_in: u32) -> Flaky {
        Flaky { inner, rng: Mutex::new(StdRng::seed_from_u64(seed)), one_in }
    }

    async fn call<T>(&self, effect: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        let (fails, applied) = {
            let mut rng = self.rng.lock();
            (rng.random_ratio(1, self.one_in), rng.random::<bool>())
        };
        if !fails {
            return effect.await;
        }
        if applied {
            effect.await?;
        }
        Err(BackendError::Unavailable {
            context: "call".into(),
            source: if applied { "failed when done" } else { "failed at once" }.into(),
        })
    }
}

#[async_trait::async_trait]
impl StorageBackend for Flaky {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        self.call(self.inner.put(name, value, options)).await
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        self.call(self.inner.get(name, range)).await
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.call(self.inner.delete(name)).await
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
