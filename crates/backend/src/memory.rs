//! Values in this process's memory: the hot tier, and the backend of tests.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use crate::ledger::{Ledger, within};
use crate::{
    BackendError, Capabilities, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend, StorageStats, Survives, name,
};

/// Values in an ordered map, within a limit of bytes.
///
/// The limit counts the bytes of values; a name and its place in the map cost about 100 bytes more (`stats` says how many there
/// are). A value of one piece is kept as it comes, so a small piece cut out of a large buffer keeps the large one alive: copy it
/// first. A value of several pieces is copied once, into one buffer; reads are slices of it.
#[derive(Debug)]
pub struct MemoryBackend {
    values: RwLock<BTreeMap<Box<str>, Bytes>>,
    ledger: Ledger,
}

impl MemoryBackend {
    /// An empty backend that takes `limit_bytes` bytes of values.
    pub fn new(limit_bytes: u64) -> MemoryBackend {
        MemoryBackend { values: RwLock::default(), ledger: Ledger::new(Some(limit_bytes)) }
    }
}

#[async_trait]
impl StorageBackend for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value: isize::MAX as u64,
            max_name: name::MAX_NAME,
            ranges: true,
            native_expiry: false,
            shared: false,
            logged_survives: Survives::Nothing,
            durable_survives: Survives::Nothing,
        }
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        name::check(name)?;
        // Cheap answers before the copy, which is made outside the lock.
        let old = self.values.read().get(name).map(|old| old.len() as u64);
        if options.mode == PutMode::Create && old.is_some() {
            return Ok(PutOutcome::Exists);
        }
        self.ledger.would_fit(old, value.len())?;
        let (key, value) = (Box::from(name), value.into_bytes());

        let mut values = self.values.write();
        let old = values.get(name).map(|old| old.len() as u64);
        if options.mode == PutMode::Create && old.is_some() {
            return Ok(PutOutcome::Exists);
        }
        self.ledger.replace(old, value.len() as u64)?;
        let replaced = values.insert(key, value);
        // A large buffer is freed after the lock.
        drop(values);
        drop(replaced);
        Ok(PutOutcome::Written)
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        name::check(name)?;
        let Some(value) = self.values.read().get(name).cloned() else { return Ok(None) };
        let range = within(range, value.len() as u64)?;
        Ok(Some(value.slice(range.start as usize..range.end as usize)))
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        let mut values = self.values.write();
        let removed = values.remove(name);
        if let Some(value) = &removed {
            self.ledger.remove(value.len() as u64);
        }
        drop(values);
        Ok(removed.is_some())
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        Ok(self.values.read().contains_key(name))
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let values = self.values.read();
        let names = values.range::<str, _>((start, Bound::Unbounded)).map(|(name, _)| name);
        Ok(names.take_while(|name| name.starts_with(prefix)).take(limit).map(|name| name.to_string()).collect())
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        Ok(self.ledger.stats(None))
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        Ok(HealthStatus::Healthy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_share_the_buffer() {
        let backend = MemoryBackend::new(100);
        let value = Bytes::from(vec![7; 64]);
        backend.put("a", value.clone().into(), PutOptions::default()).await.unwrap();
        let read = backend.get("a", Some(3..5)).await.unwrap().unwrap();
        assert_eq!(read.as_ptr(), value[3..].as_ptr());
    }
}
