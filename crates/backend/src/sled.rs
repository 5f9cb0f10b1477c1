//! Sled: an embedded tree in pure Rust, for those who have one already or cannot link RocksDB.
//!
//! It is nobody's default. Its last release is from 2021; a value beyond some hundred KiB lies in a file of its own, which sled never syncs, so
//! that its own `flush` loses acknowledged values when the power goes; a disk that was full once makes it refuse all until it is opened
//! again; and a leaf of its tree is rewritten with all values in it. [`crate::rocks`] and [`mod@crate::file`] do the same better.
//!
//! Two trees change in one transaction: `values`, and `sizes`, which holds the length of each value under the same name, so that listing, `exists` and the
//! count of bytes at start-up read no value. Each write is flushed, since sled keeps what it logs in this process until then: with that,
//! `Logged` survives the death of the process. `Durable` syncs the whole file system of the folder besides (`syncfs`), which reaches the
//! files of large values too.

use std::ops::{Bound, Range};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sled::transaction::{ConflictableTransactionError, TransactionError, Transactional};
use sled::{Db, IVec, Tree};

use crate::ledger::{Ledger, Stripes, blocking, check_size, is_full, within};
use crate::{
    BackendError, Capabilities, Durability, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend, StorageStats, Survives,
    name,
};

/// A value is copied twice on its way into the tree.
const MAX_VALUE: u64 = 64 << 20;

/// In the default tree: what wrote this database.
const FORMAT_KEY: &str = "format";
const FORMAT: &[u8] = b"sira-values-1";

/// How to open a [`SledBackend`].
#[derive(Clone, Copy, Debug)]
pub struct SledOptions {
    /// Bytes of the cache of pages.
    pub cache_bytes: u64,
    /// Limit of the bytes of values. The files may take several times as much.
    pub max_bytes: Option<u64>,
}

impl Default for SledOptions {
    fn default() -> SledOptions {
        SledOptions { cache_bytes: 64 << 20, max_bytes: None }
    }
}

/// Values in a sled database of their own.
#[derive(Clone)]
pub struct SledBackend {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    values: Tree,
    sizes: Tree,
    /// The open folder: syncs and measures its file system.
    folder: std::os::fd::OwnedFd,
    ledger: Ledger,
    stripes: Stripes<Mutex<()>>,
    /// Why the last write failed, until one succeeds.
    trouble: Mutex<Option<String>>,
    /// Let go when the last handle goes.
    _lock: std::fs::File,
}

impl SledBackend {
    /// Opens the database in a folder, made if missing, and counts its values. Blocks while it reads its log and the lengths: call it at
    /// start-up. Refuses a folder that another process has open, and a database that is not one of this kind.
    pub fn open(path: impl AsRef<Path>, options: SledOptions) -> Result<SledBackend, BackendError> {
        let path = path.as_ref();
        let context = format!("cannot open the sled database in {}", path.display());
        let bad = |reason: String| BackendError::Config(format!("{context}: {reason}"));
        let not_opened = |error: sled::Error| match failed(&context, error) {
            BackendError::Unavailable { context, source } => BackendError::Config(format!("{context}: {source}")),
            corrupt_or_full => corrupt_or_full,
        };
        std::fs::create_dir_all(path).map_err(|error| bad(error.to_string()))?;
        let lock = crate::file::lock_folder(&path.join("lock"), path)?;
        let config = sled::Config::new().path(path.join("db")).cache_capacity(options.cache_bytes).flush_every_ms(None);
        let db = config.open().map_err(not_opened)?;
        match db.get(FORMAT_KEY).map_err(not_opened)? {
            Some(format) if format == FORMAT => {}
            Some(format) => return Err(bad(format!("its format is \"{}\", which this version does not know", format.escape_ascii()))),
            None if db.is_empty() && db.tree_names().len() == 1 => {
                db.insert(FORMAT_KEY, FORMAT).map_err(not_opened)?;
            }
            None => return Err(bad("it holds something else".into())),
        }
        let [values, sizes] = ["values", "sizes"].map(|name| db.open_tree(name));
        let (values, sizes) = (values.map_err(not_opened)?, sizes.map_err(not_opened)?);
        let folder = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?.into();
        let ledger = Ledger::new(options.max_bytes);
        for entry in sizes.iter() {
            let (name, len) = entry.map_err(not_opened)?;
            ledger.found(size(&len, &name)?);
        }
        let (stripes, trouble) = (Stripes::default(), Mutex::default());
        let inner = Inner { db, values, sizes, folder, ledger, stripes, trouble, _lock: lock };
        // A process that died may have left files that are not on the disk yet; what they hold was acknowledged as logged only.
        inner.sync("cannot sync the database", Durability::Durable)?;
        Ok(SledBackend { inner: Arc::new(inner) })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }
}

/// What an error of sled means.
fn failed(context: &str, error: sled::Error) -> BackendError {
    match &error {
        sled::Error::Io(io) if is_full(io) || io.to_string().contains("No space left") => {
            BackendError::OutOfSpace(format!("{context}: {error}"))
        }
        sled::Error::Corruption { .. } => BackendError::Corrupt(format!("{context}: {error}")),
        _ => BackendError::Unavailable { context: context.to_owned(), source: error.into() },
    }
}

/// The length in an entry of `sizes`.
fn size(len: &[u8], name: &[u8]) -> Result<u64, BackendError> {
    let bad = |_| BackendError::Corrupt(format!("the stored length of {}", name.escape_ascii()));
    <[u8; 8]>::try_from(len).map(u64::from_le_bytes).map_err(bad)
}

impl Inner {
    fn len(&self, name: &str) -> Result<Option<u64>, BackendError> {
        let len = self.sizes.get(name).map_err(|error| failed(&format!("cannot read {name}"), error))?;
        len.map(|len| size(&len, name.as_bytes())).transpose()
    }

    /// Changes both trees at once: a value and its length, or none of both.
    fn change(&self, context: &str, name: &str, new: Option<&IVec>) -> Result<(), BackendError> {
        let change = (&self.values, &self.sizes).transaction(|(values, sizes)| {
            match new {
                Some(value) => {
                    values.insert(name, value)?;
                    sizes.insert(name, &(value.len() as u64).to_le_bytes())?;
                }
                None => {
                    values.remove(name)?;
                    sizes.remove(name)?;
                }
            }
            Ok::<(), ConflictableTransactionError<()>>(())
        });
        change.map_err(|error| match error {
            TransactionError::Storage(error) => failed(context, error),
            TransactionError::Abort(()) => BackendError::Unavailable { context: context.to_owned(), source: "it was given up".into() },
        })
    }

    /// Brings what was logged to where it survives what was asked.
    fn sync(&self, context: &str, durability: Durability) -> Result<(), BackendError> {
        self.db.flush().map_err(|error| failed(context, error))?;
        if durability == Durability::Durable {
            crate::file::sync_all(&self.folder).map_err(|error| failed(context, error.into()))?;
        }
        Ok(())
    }

    fn noted<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        *self.trouble.lock() = result.as_ref().err().map(|error| format!("writes fail: {error}"));
        result
    }

    fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        let (context, new) = (format!("cannot write {name}"), value.len());
        if options.mode == PutMode::Create && self.len(name)?.is_some() {
            return Ok(PutOutcome::Exists);
        }
        let value = IVec::from(&value.into_bytes()[..]);
        {
            let _stripe = self.stripes.of(name).lock();
            let old = self.len(name)?;
            if options.mode == PutMode::Create && old.is_some() {
                return Ok(PutOutcome::Exists);
            }
            self.ledger.replace(old, new)?;
            self.noted(self.change(&context, name, Some(&value))).inspect_err(|_| self.ledger.undo(old, new))?;
        }
        self.noted(self.sync(&context, options.durability))?;
        Ok(PutOutcome::Written)
    }

    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        let context = format!("cannot delete {name}");
        {
            let _stripe = self.stripes.of(name).lock();
            let Some(len) = self.len(name)? else { return Ok(false) };
            self.noted(self.change(&context, name, None))?;
            self.ledger.remove(len);
        }
        self.noted(self.sync(&context, Durability::Logged))?;
        Ok(true)
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let value = self.values.get(name).map_err(|error| failed(&format!("cannot read {name}"), error))?;
        let Some(value) = value else { return Ok(None) };
        let range = within(range, value.len() as u64)?;
        Ok(Some(Bytes::from_owner(value).slice(range.start as usize..range.end as usize)))
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut names = Vec::new();
        for entry in self.sizes.range::<&str, _>((start, Bound::Unbounded)).take(limit) {
            let (name, _) = entry.map_err(|error| failed(&format!("cannot list {prefix}"), error))?;
            if !name.starts_with(prefix.as_bytes()) {
                break;
            }
            names.push(String::from_utf8_lossy(&name).into_owned());
        }
        Ok(names)
    }

    fn health(&self) -> HealthStatus {
        if let Err(error) = self.db.get(FORMAT_KEY) {
            return HealthStatus::Unhealthy(format!("reads fail: {error}"));
        }
        self.trouble.lock().clone().map_or(HealthStatus::Healthy, HealthStatus::Degraded)
    }

    fn stats(&self) -> Result<StorageStats, BackendError> {
        let disk = crate::file::disk_of(&self.folder);
        let disk = disk.map_err(|error| BackendError::Unavailable { context: "cannot measure the disk".into(), source: error.into() })?;
        Ok(self.ledger.stats(Some(disk)))
    }
}

#[async_trait]
impl StorageBackend for SledBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value: MAX_VALUE,
            max_name: name::MAX_NAME,
            ranges: false,
            native_expiry: false,
            shared: false,
            logged_survives: Survives::ProcessCrash,
            durable_survives: Survives::PowerLoss,
        }
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        name::check(name)?;
        check_size(value.len(), MAX_VALUE)?;
        let name = name.to_owned();
        self.run(move |inner| inner.put(&name, value, options)).await
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        name::check(name)?;
        let name = name.to_owned();
        self.run(move |inner| inner.get(&name, range)).await
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        let name = name.to_owned();
        self.run(move |inner| inner.delete(&name)).await
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        let name = name.to_owned();
        self.run(move |inner| inner.len(&name).map(|len| len.is_some())).await
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.run(move |inner| inner.list(&prefix, after.as_deref(), limit)).await
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        self.run(Inner::stats).await
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        self.run(|inner| Ok(inner.health())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |what: &str| match SledBackend::open(folder.path(), SledOptions::default()) {
            Err(BackendError::Config(reason)) => assert!(reason.contains(what), "{reason}"),
            other => panic!("{:?}", other.map(|_| ())),
        };
        let backend = SledBackend::open(folder.path(), SledOptions::default()).unwrap();
        refused("another process");
        drop(backend);
        let db = sled::open(folder.path().join("db")).unwrap();
        db.insert(FORMAT_KEY, "sira-values-2").unwrap();
        drop(db);
        refused("sira-values-2");
        let db = sled::open(folder.path().join("db")).unwrap();
        db.remove(FORMAT_KEY).unwrap();
        drop(db);
        refused("something else");
    }

    #[tokio::test]
    async fn what_no_clean_end_followed_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let backend = SledBackend::open(folder.path(), SledOptions::default()).unwrap();
        let names = ["a", "b/c", "large"];
        for (name, len) in names.into_iter().zip([0, 10, 3 << 20]) {
            backend.put(name, vec![7; len].into(), PutOptions::default()).await.unwrap();
        }
        backend.put("gone", vec![7; 5].into(), PutOptions::default()).await.unwrap();
        assert!(backend.delete("gone").await.unwrap());
        // As the files are now, a killed process leaves them.
        let copy = tempfile::tempdir().unwrap();
        let copied = std::process::Command::new("cp").arg("-r").arg(folder.path().join("db")).arg(copy.path()).status().unwrap();
        assert!(copied.success());
        let killed = SledBackend::open(copy.path(), SledOptions::default()).unwrap();
        assert_eq!(killed.list_keys("", None, 10).await.unwrap(), names);
        assert_eq!(killed.get("large", Some(5..8)).await.unwrap().unwrap(), [7; 3].as_slice());
        assert_eq!(killed.stats().await.unwrap().used_bytes, Some(10 + (3 << 20)));
    }
}
