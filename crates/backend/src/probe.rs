//! Trying at start-up what a backend claims: some object stores accept a create-if-absent and overwrite all the same.

use futures::future::join_all;

use crate::{BackendError, Durability, Payload, PutMode, PutOptions, PutOutcome, StorageBackend};

/// Writers that race for each name; servers that get it wrong let 2 to 16 of them win.
const RACERS: usize = 16;

/// Names, all raced for at once; servers that check before they write get it right for some.
const NAMES: usize = 20;

/// Races 16 creates of each of 20 random names: exactly one must win each, its value must be the one that is there, and a later create
/// must be told so. Fails with [`BackendError::Config`] where the backend cannot be trusted with records. Cleans up in any case.
pub async fn probe_create_if_absent(backend: &dyn StorageBackend) -> Result<(), BackendError> {
    let names: Vec<String> = (0..NAMES).map(|_| format!("sira-probe-{:032x}", rand::random::<u128>())).collect();
    let results = join_all(names.iter().map(|name| race(backend, name))).await;
    let deleted = join_all(names.iter().map(|name| backend.delete(name))).await;
    // Distrust says more than a call that failed beside it.
    let (distrust, failed): (Vec<_>, Vec<_>) =
        results.into_iter().filter_map(Result::err).partition(|error| matches!(error, BackendError::Config(_)));
    match distrust.into_iter().chain(failed).next() {
        Some(error) => Err(error),
        None => deleted.into_iter().try_for_each(|deleted| deleted.map(|_| ())),
    }
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// Lets a second writer win, once.
    struct LetsTwoWin {
        backend: MemoryBackend,
        creates: AtomicUsize,
    }

    #[async_trait]
    impl StorageBackend for LetsTwoWin {
        fn capabilities(&self) -> Capabilities {
            self.backend.capabilities()
        }
        async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
            let outcome = self.backend.put(name, value.clone(), options).await?;
            match outcome {
                PutOutcome::Exists if self.creates.fetch_add(1, Ordering::Relaxed) == 100 => {
                    self.backend.put(name, value, PutOptions::default()).await
                }
                outcome => Ok(outcome),
            }
        }
        async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
            self.backend.get(name, range).await
        }
        async fn delete(&self, name: &str) -> Result<bool, BackendError> {
            self.backend.delete(name).await
        }
        async fn exists(&self, name: &str) -> Result<bool, BackendError> {
            self.backend.exists(name).await
        }
        async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
            self.backend.list_keys(prefix, after, limit).await
        }
        async fn stats(&self) -> Result<StorageStats, BackendError> {
            self.backend.stats().await
        }
        async fn health_check(&self) -> Result<HealthStatus, BackendError> {
            self.backend.health_check().await
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

    #[tokio::test]
    async fn two_winners_of_one_name_are_enough() {
        let backend = LetsTwoWin { backend: MemoryBackend::new(1 << 20), creates: AtomicUsize::new(0) };
        let error = probe_create_if_absent(&backend).await.unwrap_err();
        assert!(matches!(&error, BackendError::Config(reason) if reason.contains("2 of 16 racing writers")), "{error}");
        assert_eq!(backend.list_keys("", None, 1).await.unwrap(), Vec::<String>::new());
    }
}
