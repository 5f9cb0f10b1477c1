//! Object stores: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage, and a local folder in their manner.
//!
//! Create-if-absent is the only conditional write used, and [`crate::probe`] should try it before anything relies on it: some
//! servers accept the header and ignore it. The client repeats requests whose answer was lost, so "there is one already" may be
//! about our own first attempt, and a timeout may hide a success. Each put therefore carries a random id as metadata, and where the
//! answer to a create is in doubt the object is read back: it is ours exactly if it carries our id.

mod remote;

use std::collections::BinaryHeap;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::sync::Mutex;

use crate::ledger::{Ledger, Stripes, check_size, is_full, within};
use crate::{
    BackendError, Capabilities, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend, StorageStats, Survives, name,
};

/// What S3 takes in one request.
const MAX_VALUE: u64 = 5 << 30;

/// How long a health check waits; the client's own retries go on for minutes.
const HEALTH_WAIT: Duration = Duration::from_secs(5);

/// Tries of a create that is told of an object which then is not there: S3 answers so to creates that race each other.
const CREATE_TRIES: usize = 5;

/// Metadata of an object: which put wrote it.
const WRITE_ID: &str = "sira-write-id";

/// Values as objects.
#[derive(Clone, Debug)]
pub struct ObjectBackend {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ObjectStore>,
    /// In front of every name.
    prefix: Path,
    /// Whether the store lists in byte order.
    ordered: bool,
    /// Whether the client may repeat requests, and objects carry metadata.
    remote: bool,
    survives: Survives,
    limited: Option<Limited>,
    /// Of a local folder: let go when the last handle goes.
    lock: Option<std::fs::File>,
}

/// The count of bytes, kept only where a limit asks for it: it costs a request before each put.
#[derive(Debug)]
struct Limited {
    ledger: Ledger,
    stripes: Stripes<Mutex<()>>,
}

impl ObjectBackend {
    /// Opens a local folder, made if missing. Every put is synced to the disk. Blocks while it cleans the folder of what a crash
    /// left: call it at start-up. [`crate::file::FileBackend`] does the same better; this one is for trying object stores out.
    pub fn open_local(path: impl AsRef<FilePath>) -> Result<ObjectBackend, BackendError> {
        let path = path.as_ref();
        let bad = |reason: String| BackendError::Config(format!("cannot open the folder {}: {reason}", path.display()));
        std::fs::create_dir_all(path).map_err(|error| bad(error.to_string()))?;
        // The store takes what ends in `#` and digits for uploads in progress, and lists no such file.
        let lock = crate::file::lock_folder(&path.join("lock#0"), path)?;
        clean(path).map_err(|error| bad(error.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(|error| bad(error.to_string()))?.with_fsync(true);
        Ok(ObjectBackend::new(Arc::new(store), Path::ROOT, false, false, Survives::PowerLoss, Some(lock)))
    }

    /// Opens `s3://bucket/folder`, `gs://bucket/folder` or `az://container/folder`, with options named as `object_store` names
    /// them (`endpoint`, `region`, `access_key_id`, `timeout`, ...). What is not given is taken from the environment (`AWS_...`,
    /// `GOOGLE_...`, `AZURE_...`). An option that the store does not know is refused. `file:///folder` is
    /// [`ObjectBackend::open_local`]; `memory:///` keeps objects in this process, for tests.
    pub fn open_url(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<ObjectBackend, BackendError> {
        remote::open(url, options.into_iter().collect())
    }

    /// Sets a limit of bytes, counting what is there: it lists everything once. Objects that other processes write later are not
    /// counted.
    pub async fn with_limit(self, max_bytes: u64) -> Result<ObjectBackend, BackendError> {
        let limited = Limited { ledger: Ledger::new(Some(max_bytes)), stripes: Stripes::default() };
        let mut objects = self.inner.store.list(self.inner.folder(&self.inner.prefix));
        while let Some(object) = objects.try_next().await.map_err(|error| failed("cannot count the objects", error))? {
            limited.ledger.found(object.size);
        }
        drop(objects);
        let inner = Arc::try_unwrap(self.inner).map_err(|_| BackendError::Config("the limit of a backend in use cannot be set".into()))?;
        Ok(ObjectBackend { inner: Arc::new(Inner { limited: Some(limited), ..inner }) })
    }

    fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        ordered: bool,
        remote: bool,
        survives: Survives,
        lock: Option<std::fs::File>,
    ) -> ObjectBackend {
        ObjectBackend { inner: Arc::new(Inner { store, prefix, ordered, remote, survives, limited: None, lock }) }
    }
}

/// Removes uploads that a crash left, and folders that are empty.
fn clean(folder: &FilePath) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        if kind.is_dir() {
            clean(&entry.path())?;
            // One that is not empty stays.
            let _ = std::fs::remove_dir(entry.path());
        } else if kind.is_file() && name != "lock#0" && name.as_encoded_bytes().contains(&b'#') {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What an error of the store means, by its chain of causes.
fn failed(context: &str, error: object_store::Error) -> BackendError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        let text = error.to_string();
        if error.downcast_ref::<std::io::Error>().is_some_and(is_full)
            || ["QuotaExceeded", "StorageFull", "507 Insufficient Storage"].iter().any(|reason| text.contains(reason))
        {
            return BackendError::OutOfSpace(format!("{context}: {text}"));
        }
        cause = error.source();
    }
    BackendError::Unavailable { context: context.to_owned(), source: error.into() }
}

impl Inner {
    /// A folder to list, in the store's words: its root is none.
    fn folder<'a>(&self, folder: &'a Path) -> Option<&'a Path> {
        (!folder.is_root()).then_some(folder)
    }

    fn max_name(&self) -> usize {
        name::MAX_NAME - if self.prefix.is_root() { 0 } else { self.prefix.as_ref().len() + 1 }
    }

    fn location(&self, name: &str) -> Result<Path, BackendError> {
        if name.len() > self.max_name() {
            let reason = format!("with the folder of this backend it has more than {} bytes", name::MAX_NAME);
            return Err(BackendError::BadName { name: name.into(), reason });
        }
        let full = if self.prefix.is_root() { name.to_owned() } else { format!("{}/{name}", self.prefix) };
        Path::parse(full).map_err(|error| BackendError::BadName { name: name.into(), reason: error.to_string() })
    }

    /// Bytes of the object, if there is one.
    async fn len(&self, location: &Path) -> Result<Option<u64>, BackendError> {
        match self.store.head(location).await {
            Ok(object) => Ok(Some(object.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(&format!("cannot look for {location}"), error)),
        }
    }

    async fn put(&self, location: &Path, value: &Payload, mode: PutMode) -> Result<PutOutcome, BackendError> {
        match mode {
            PutMode::Create => self.create(location, value).await,
            PutMode::Overwrite => {
                let payload = PutPayload::from_iter(value.pieces().iter().cloned());
                let options = self.put_options(object_store::PutMode::Overwrite, &remote::write_id());
                let put = self.store.put_opts(location, payload, options).await;
                put.map(|_| PutOutcome::Written).map_err(|error| failed(&format!("cannot write {location}"), error))
            }
        }
    }

    /// A put that counts: one at a time for each name, so that the old length is known.
    async fn put_limited(&self, limited: &Limited, location: &Path, value: &Payload, mode: PutMode) -> Result<PutOutcome, BackendError> {
        let _stripe = limited.stripes.of(location.as_ref()).lock().await;
        let old = self.len(location).await?;
        if mode == PutMode::Create && old.is_some() {
            return Ok(PutOutcome::Exists);
        }
        limited.ledger.replace(old, value.len())?;
        let result = self.put(location, value, mode).await;
        match &result {
            Ok(PutOutcome::Written) => {}
            Ok(PutOutcome::Exists) => limited.ledger.undo(old, value.len()),
            // The bytes may be there all the same; if even that cannot be found out, they count.
            Err(_) => {
                if let Ok(now) = self.len(location).await {
                    limited.ledger.undo(old, value.len());
                    old.into_iter().for_each(|old| limited.ledger.remove(old));
                    now.into_iter().for_each(|now| limited.ledger.found(now));
                }
            }
        }
        result
    }

    async fn get(&self, location: &Path, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let context = || format!("cannot read {location}");
        if let Some(range) = range.clone().filter(Range::is_empty) {
            // Stores know no empty range.
            return match self.len(location).await? {
                Some(len) => within(Some(range), len).map(|_| Some(Bytes::new())),
                None => Ok(None),
            };
        }
        let options = GetOptions { range: range.clone().map(Into::into), ..GetOptions::default() };
        match self.store.get_opts(location, options).await {
            Ok(object) => {
                let range = within(range, object.meta.size)?;
                if object.range != range {
                    let source = format!("the store answered with the bytes {:?}", object.range).into();
                    return Err(BackendError::Unavailable { context: context(), source });
                }
                object.bytes().await.map(Some).map_err(|error| failed(&context(), error))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => {
                // A range that starts behind the end is an error of the store's own kind.
                if let (Some(range), Ok(Some(len))) = (range, self.len(location).await) {
                    within(Some(range), len)?;
                }
                Err(failed(&context(), error))
            }
        }
    }

    /// Stores answer a delete alike whether or not there was an object; so this one asks first, and of two racing deletes of one
    /// object both may be told that there was one.
    async fn delete(&self, location: &Path) -> Result<bool, BackendError> {
        let _stripe = match &self.limited {
            Some(limited) => Some(limited.stripes.of(location.as_ref()).lock().await),
            None => None,
        };
        let Some(len) = self.len(location).await? else { return Ok(false) };
        match self.store.delete(location).await {
            Ok(()) => {
                if let Some(limited) = &self.limited {
                    limited.ledger.remove(len);
                }
                Ok(true)
            }
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(failed(&format!("cannot delete {location}"), error)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut smallest = BinaryHeap::new();
        let folder = match prefix.rfind('/') {
            // Where the folders of the prefix are no name, nothing lies beneath.
            Some(end) if name::check(&prefix[..end]).is_err() => return Ok(Vec::new()),
            Some(end) => self.location(&prefix[..end])?,
            None => self.prefix.clone(),
        };
        let from = match (after, remote::before(prefix)) {
            (Some(after), Some(before)) => Some(before.max(after.to_owned())),
            (after, before) => after.map(str::to_owned).or(before),
        };
        // A place that the store cannot express only costs time: what comes before it is filtered out again below.
        let from = from.filter(|from| self.ordered && !from.starts_with('/')).and_then(|from| self.location(&from).ok());
        let mut objects = match &from {
            Some(from) => self.store.list_with_offset(self.folder(&folder), from),
            None => self.store.list(self.folder(&folder)),
        };
        let mut ordered = self.ordered;
        while let Some(object) = objects.next().await {
            let object = object.map_err(|error| failed(&format!("cannot list {prefix}"), error))?;
            let Some(name) = object.location.as_ref().strip_prefix(self.prefix.as_ref()) else { continue };
            let name = name.strip_prefix('/').unwrap_or(name);
            // A store that breaks the order it is known for is read to the end.
            ordered &= smallest.peek().is_none_or(|last: &String| last.as_str() < name);
            if !name.starts_with(prefix) || after.is_some_and(|after| name <= after) {
                if ordered && name > prefix && !name.starts_with(prefix) {
                    break;
                }
                continue;
            }
            smallest.push(name.to_owned());
            if smallest.len() > limit {
                smallest.pop();
                if ordered {
                    break;
                }
            }
        }
        Ok(smallest.into_sorted_vec())
    }
}

#[async_trait]
impl StorageBackend for ObjectBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value: MAX_VALUE,
            max_name: self.inner.max_name(),
            ranges: true,
            native_expiry: false,
            shared: self.inner.remote && self.inner.survives == Survives::PowerLoss,
            logged_survives: self.inner.survives,
            durable_survives: self.inner.survives,
        }
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        name::check(name)?;
        check_size(value.len(), MAX_VALUE)?;
        let (inner, location) = (self.inner.clone(), self.inner.location(name)?);
        if inner.limited.is_none() {
            return inner.put(&location, &value, options.mode).await;
        }
        // To its end even if the caller gives up, or the count would be wrong.
        let counted = tokio::spawn(async move {
            match &inner.limited {
                Some(limited) => inner.put_limited(limited, &location, &value, options.mode).await,
                None => inner.put(&location, &value, options.mode).await,
            }
        });
        counted.await.unwrap_or_else(|lost| Err(BackendError::Unavailable { context: "a put was lost".into(), source: lost.into() }))
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        name::check(name)?;
        self.inner.get(&self.inner.location(name)?, range).await
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        let (inner, location) = (self.inner.clone(), self.inner.location(name)?);
        let counted = tokio::spawn(async move { inner.delete(&location).await });
        counted.await.unwrap_or_else(|lost| Err(BackendError::Unavailable { context: "a delete was lost".into(), source: lost.into() }))
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        self.inner.len(&self.inner.location(name)?).await.map(|len| len.is_some())
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        let disk = self.inner.lock.as_ref().and_then(|lock| crate::file::disk_of(lock).ok());
        Ok(match &self.inner.limited {
            Some(limited) => limited.ledger.stats(disk),
            None => StorageStats { values: None, used_bytes: None, ..Ledger::default().stats(disk) },
        })
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        let location = self.inner.location("sira-health")?;
        Ok(match tokio::time::timeout(HEALTH_WAIT, self.inner.len(&location)).await {
            Ok(Ok(_)) => HealthStatus::Healthy,
            Ok(Err(error)) => HealthStatus::Unhealthy(error.to_string()),
            Err(_) => HealthStatus::Unhealthy(format!("no answer within {} seconds", HEALTH_WAIT.as_secs())),
        })
    }
}

#[cfg(test)]
mod tests;
