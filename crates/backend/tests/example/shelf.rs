use std::{collections::BTreeMap, ops::Range, sync::Mutex};

use bytes::Bytes;
use sira_backend::*;

/// Values in a map.
#[derive(Default)]
pub struct Shelf(Mutex<BTreeMap<String, Bytes>>);

#[async_trait::async_trait]
impl StorageBackend for Shelf {
    fn capabilities(&self) -> Capabilities {
        let nothing = Survives::Nothing;
        Capabilities {
            max_value: 1 << 30,
            max_name: name::MAX_NAME,
            ranges: true,
            native_expiry: false,
            shared: false,
            logged_survives: nothing,
            durable_survives: nothing,
        }
    }
    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        name::check(name)?;
        let mut values = self.0.lock().unwrap();
        if options.mode == PutMode::Create && values.contains_key(name) {
            return Ok(PutOutcome::Exists);
        }
        values.insert(name.into(), value.into_bytes());
        Ok(PutOutcome::Written)
    }
    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        name::check(name)?;
        let Some(value) = self.0.lock().unwrap().get(name).cloned() else { return Ok(None) };
        let len = value.len() as u64;
        let Range { start, end } = range.unwrap_or(0..len);
        if start > end || end > len {
            return Err(BackendError::BadRange { start, end, len });
        }
        Ok(Some(value.slice(start as usize..end as usize)))
    }
    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        Ok(self.0.lock().unwrap().remove(name).is_some())
    }
    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        Ok(self.0.lock().unwrap().contains_key(name))
    }
    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        let values = self.0.lock().unwrap();
        let wanted = values.keys().filter(|name| name.starts_with(prefix) && after.is_none_or(|after| name.as_str() > after));
        Ok(wanted.take(limit).cloned().collect())
    }
    async fn stats(&self) -> Result<StorageStats, BackendError> {
        Ok(StorageStats { values: Some(self.0.lock().unwrap().len() as u64), ..StorageStats::default() })
    }
    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        Ok(HealthStatus::Healthy)
    }
}
