//! Values in a file of redb, an embedded database that Sira does not know: a backend of one's own.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use sira_backend::{
    BackendError, Capabilities, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend, StorageStats, Survives, name,
};

/// Names are compared as bytes, so that they are listed in the order that the contract asks for.
const VALUES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("values");

/// A value is in memory more than once on its way.
const MAX_VALUE: u64 = 256 << 20;

pub struct RedbBackend {
    db: Arc<Database>,
}

impl RedbBackend {
    pub fn open(path: impl AsRef<Path>) -> Result<RedbBackend, BackendError> {
        let path = path.as_ref();
        let config = |error: redb::Error| BackendError::Config(format!("cannot open {}: {error}", path.display()));
        let db = Database::create(path).map_err(|error| config(error.into()))?;
        // Readers want the table to be there.
        let write = db.begin_write().map_err(|error| config(error.into()))?;
        write.open_table(VALUES).map_err(|error| config(error.into()))?;
        write.commit().map_err(|error| config(error.into()))?;
        Ok(RedbBackend { db: Arc::new(db) })
    }

    /// Runs what waits for the disk away from the async runtime.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, BackendError> {
        let db = self.db.clone();
        let done = tokio::task::spawn_blocking(move || work(&db)).await;
        match done {
            Ok(result) => result.map_err(|error| failed(what, error)),
            Err(lost) => Err(BackendError::Unavailable { context: what.into(), source: lost.into() }),
        }
    }
}

/// What an error means: callers act on the kind, and people read the text.
fn failed(what: &str, error: redb::Error) -> BackendError {
    match &error {
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => BackendError::OutOfSpace(format!("{what}: {error}")),
        redb::Error::Corrupted(_) => BackendError::Corrupt(format!("{what}: {error}")),
        _ => BackendError::Unavailable { context: what.into(), source: error.into() },
    }
}

#[async_trait::async_trait]
impl StorageBackend for RedbBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value: MAX_VALUE,
            max_name: name::MAX_NAME,
            // A value is read whole from its pages.
            ranges: false,
            native_expiry: false,
            shared: false,
            // Every commit is synced.
            logged_survives: Survives::PowerLoss,
            durable_survives: Survives::PowerLoss,
        }
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        name::check(name)?;
        if value.len() > MAX_VALUE {
            return Err(BackendError::TooLarge { len: value.len(), limit: MAX_VALUE });
        }
        let name = name.to_owned();
        self.run("put", move |db| {
            // One transaction writes at a time, so that nobody comes between the look and the insert.
            let write = db.begin_write()?;
            let mut values = write.open_table(VALUES)?;
            if options.mode == PutMode::Create && values.get(name.as_bytes())?.is_some() {
                return Ok(PutOutcome::Exists);
            }
            values.insert(name.as_bytes(), &value.into_bytes()[..])?;
            drop(values);
            write.commit()?;
            Ok(PutOutcome::Written)
        })
        .await
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        name::check(name)?;
        let name = name.to_owned();
        let found = self.run("get", move |db| {
            let values = db.begin_read()?.open_table(VALUES)?;
            Ok(values.get(name.as_bytes())?.map(|value| Bytes::copy_from_slice(value.value())))
        });
        let Some(value) = found.await? else { return Ok(None) };
        let len = value.len() as u64;
        let Range { start, end } = range.unwrap_or(0..len);
        if start > end || end > len {
            return Err(BackendError::BadRange { start, end, len });
        }
        Ok(Some(value.slice(start as usize..end as usize)))
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        let name = name.to_owned();
        self.run("delete", move |db| {
            let write = db.begin_write()?;
            let deleted = write.open_table(VALUES)?.remove(name.as_bytes())?.is_some();
            write.commit()?;
            Ok(deleted)
        })
        .await
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        let name = name.to_owned();
        self.run("exists", move |db| Ok(db.begin_read()?.open_table(VALUES)?.get(name.as_bytes())?.is_some())).await
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.run("list", move |db| {
            let values = db.begin_read()?.open_table(VALUES)?;
            let start = after.as_deref().filter(|after| *after > prefix.as_str()).unwrap_or(&prefix);
            let mut names = Vec::new();
            for entry in values.range(start.as_bytes()..)? {
                let name = String::from_utf8_lossy(entry?.0.value()).into_owned();
                if !name.starts_with(&prefix) || names.len() == limit {
                    break;
                }
                if after.as_ref().is_none_or(|after| name > *after) {
                    names.push(name);
                }
            }
            Ok(names)
        })
        .await
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        let values = self.run("stats", |db| Ok(db.begin_read()?.open_table(VALUES)?.len()?)).await?;
        Ok(StorageStats { values: Some(values), ..StorageStats::default() })
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        Ok(match self.stats().await {
            Ok(_) => HealthStatus::Healthy,
            Err(error) => HealthStatus::Unhealthy(error.to_string()),
        })
    }
}
