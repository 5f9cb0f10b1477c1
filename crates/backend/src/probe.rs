//! Trying at start-up what a backend claims: some object stores accept a create-if-absent and overwrite all the same.

use futures::future::join_all;

use crate::{BackendError, Durability, Payload, PutMode, PutOptions, PutOutcome, StorageBackend};

/// Writers that race; servers that get it wrong let 2 to 16 of them win.
const RACERS: usize = 16;

/// Races 16 creates of one random name: exactly one must win, its value must be the one that is there, and a later create must be
/// told so. Fails with [`BackendError::Config`] where the backend cannot be trusted with records. Cleans up in any case.
pub async fn probe_create_if_absent(backend: &dyn StorageBackend) -> Result<(), BackendError> {
    let name = format!("sira-probe-{:032x}", rand::random::<u128>());
    let result = race(backend, &name).await;
    let deleted = backend.delete(&name).await;
    result?;
    deleted.map(|_| ())
}

async fn race(backend: &dyn StorageBackend, name: &str) -> Result<(), BackendError> {
    let options = PutOptions { mode: PutMode::Create, durability: Durability::Durable, expires_in: None };
    let value = |racer: usize| Payload::from(format!("{name} {racer}").into_bytes());
    let outcomes = join_all((0..RACERS).map(|racer| backend.put(name, value(racer), options))).await;
    let mut winners = Vec::new();
    for (racer, outcome) in outcomes.into_iter().enumerate() {
        if outcome? == PutOutcome::Written {
            winners.push(racer);
        }
    }
    let distrust = |reason: String| Err(BackendError::Config(format!("the backend does not keep create-if-absent: {reason}")));
    let &[winner] = &winners[..] else {
        return distrust(format!("{} of {RACERS} racing writers were told that they won", winners.len()));
    };
    if backend.get(name, None).await? != Some(value(winner).into_bytes()) {
        return distrust("the value is not the winner's".into());
    }
    match backend.put(name, value(RACERS), options).await? {
        PutOutcome::Exists => Ok(()),
        PutOutcome::Written => distrust("a create replaced a value".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::memory::MemoryBackend;
    use crate::{Capabilities, HealthStatus, StorageStats};

    /// Takes creates for overwrites, as some servers do.
    struct Careless(MemoryBackend);

    #[async_trait]
    impl StorageBackend for Careless {
        fn capabilities(&self) -> Capabilities {
            self.0.capabilities()
        }
        async fn put(&self, name: &str, value: Payload, _: PutOptions) -> Result<PutOutcome, BackendError> {
            self.0.put(name, value, PutOptions::default()).await
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
            self.0.health_check().await
        }
    }

    #[tokio::test]
    async fn a_careless_backend_is_found_out() {
        let backend = MemoryBackend::new(1 << 20);
        probe_create_if_absent(&backend).await.unwrap();
        let careless = Careless(backend);
        let error = probe_create_if_absent(&careless).await.unwrap_err();
        assert!(matches!(&error, BackendError::Config(reason) if reason.contains("16 of 16")), "{error}");
        assert_eq!(careless.list_keys("", None, 1).await.unwrap(), Vec::<String>::new());
    }
}
