//! One file a value: on a local disk or a network file system of this machine.
//!
//! ```text
//! root/lock      held while a process has the folder open
//! root/tmp/      values being written; emptied when the folder is opened
//! root/values/   one file a name, one folder for each `/`
//! ```
//!
//! A value is written and synced in `tmp`, then renamed over its name, or linked to it where only a create is asked: the file
//! system lets exactly one link succeed. The folder that holds the name is synced before the put answers, and so is every folder
//! on the way whose creation is not known to be on the disk. There is no log, so `Logged` is as `Durable`.
//!
//! Every path is walked folder by folder from an open handle, never through a symbolic link, so no name leads out of the root.

mod tree;

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use self::tree::{Fresh, Place};
use crate::ledger::{Disk, Ledger, Stripes, blocking, check_size, is_full, within};
use crate::{
    BackendError, Capabilities, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend, StorageStats, Survives, name,
};

/// Far below what any file system takes; reads and writes of one value are one buffer each.
const MAX_VALUE: u64 = 1 << 40;

/// How often a put makes its folders again that racing deletes removed as empty.
const TRIES: usize = 1000;

/// Values as files beneath a folder.
#[derive(Clone, Debug)]
pub struct FileBackend {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    values: OwnedFd,
    tmp: OwnedFd,
    ledger: Ledger,
    stripes: Stripes<Mutex<()>>,
    fresh: Fresh,
    next_tmp: AtomicU64,
    /// Bytes of files written.
    written: AtomicU64,
    /// Let go when the last handle goes.
    _lock: File,
}

impl FileBackend {
    /// Opens the folder, made if missing, and counts what is in it; `max_bytes` limits the bytes of values. Blocks while it reads
    /// the tree: call it at start-up. Refuses a folder that another process has open.
    pub fn open(path: impl AsRef<Path>, max_bytes: Option<u64>) -> Result<FileBackend, BackendError> {
        let path = path.as_ref();
        let bad = |error: io::Error| BackendError::Config(format!("cannot open the folder {}: {error}", path.display()));
        fs::create_dir_all(path).map_err(bad)?;
        let lock = lock_folder(&path.join("lock"), path)?;
        match fs::remove_dir_all(path.join("tmp")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(bad(error)),
            _ => {}
        }
        for folder in ["tmp", "values"] {
            match fs::create_dir(path.join(folder)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(bad(error)),
                _ => {}
            }
        }
        let open = |folder| rustix::fs::open(path.join(folder), tree::FOLDER, Mode::empty()).map_err(|error| bad(error.into()));
        let (values, tmp) = (open("values")?, open("tmp")?);
        let ledger = Ledger::new(max_bytes);
        tree::count(&values, &ledger).map_err(|error| bad(error.into()))?;
        // A process that died may have left folders that are not on the disk yet; puts trust those they find.
        sync_all(&values).map_err(bad)?;
        let (stripes, fresh, next_tmp, written) = (Stripes::default(), Fresh::default(), AtomicU64::new(0), AtomicU64::new(0));
        Ok(FileBackend { inner: Arc::new(Inner { values, tmp, ledger, stripes, fresh, next_tmp, written, _lock: lock }) })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }
}

/// Takes the lock file of a folder, for as long as the handle lives.
pub(crate) fn lock_folder(lock: &Path, folder: &Path) -> Result<File, BackendError> {
    let bad = |reason: String| BackendError::Config(format!("cannot lock the folder {}: {reason}", folder.display()));
    let file = File::options().create(true).append(true).open(lock).map_err(|error| bad(error.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(bad("another process or backend has it open".into())),
        Err(fs::TryLockError::Error(error)) => Err(bad(error.to_string())),
    }
}

/// The file system that a folder, or a file, lies on: one system call.
pub(crate) fn disk_of(folder: impl std::os::fd::AsFd) -> io::Result<Disk> {
    let disk = rustix::fs::fstatvfs(folder)?;
    Ok(Disk { free: disk.f_bavail.saturating_mul(disk.f_frsize), size: disk.f_blocks.saturating_mul(disk.f_frsize) })
}

/// Syncs the whole file system that holds the folder.
pub(crate) fn sync_all(folder: &OwnedFd) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return Ok(rustix::fs::syncfs(folder)?);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        rustix::fs::sync();
        Ok(())
    }
}

fn failed(context: &str, name: &str, error: impl Into<io::Error>) -> BackendError {
    let error = error.into();
    if is_full(&error) {
        return BackendError::OutOfSpace(format!("cannot {context} {name}: {error}"));
    }
    BackendError::Unavailable { context: format!("cannot {context} {name}"), source: error.into() }
}

/// A file in `tmp`, removed unless it got its name.
struct Temporary<'a> {
    folder: &'a OwnedFd,
    name: String,
    renamed: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            // What stays is removed when the folder is next opened.
            let _ = rustix::fs::unlinkat(self.folder, &self.name, AtFlags::empty());
        }
    }
}

impl Inner {
    fn put(&self, name: &str, value: &Payload, mode: PutMode) -> Result<PutOutcome, BackendError> {
        let failed = |error: Errno| failed("write", name, error);
        let old = self.len(name).map_err(failed)?;
        if mode == PutMode::Create && old.is_some() {
            return Ok(PutOutcome::Exists);
        }
        self.ledger.would_fit(old, value.len())?;
        let mut temporary = self.write(value).map_err(|error| self::failed("write", name, error))?;
        for _ in 0..TRIES {
            let place = match Place::make(&self.values, name, &self.fresh) {
                Err(Errno::NOENT) => continue,
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(beneath_value(name)),
                place => place.map_err(failed)?,
            };
            match self.publish(&mut temporary, &place, value.len(), mode) {
                Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR | Errno::NOTEMPTY) => return Err(beneath_value(name)),
                result => match result.map_err(failed)?? {
                    PutOutcome::Exists => return Ok(PutOutcome::Exists),
                    PutOutcome::Written => {
                        place.sync(&self.fresh).map_err(failed)?;
                        return Ok(PutOutcome::Written);
                    }
                },
            }
        }
        Err(BackendError::Unavailable { context: format!("cannot write {name}"), source: "its folder is deleted again and again".into() })
    }

    fn write(&self, value: &Payload) -> io::Result<Temporary<'_>> {
        let name = self.next_tmp.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.tmp, &name, flags, Mode::RUSR | Mode::WUSR)?);
        let temporary = Temporary { folder: &self.tmp, name, renamed: false };
        for piece in value.pieces() {
            file.write_all(piece)?;
            self.written.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        file.sync_all()?;
        Ok(temporary)
    }

    /// Gives the file its name. The stripe makes the count of bytes exact; that creates exclude each other is the file system's.
    fn publish(
        &self,
        temporary: &mut Temporary<'_>,
        place: &Place<'_>,
        len: u64,
        mode: PutMode,
    ) -> Result<Result<PutOutcome, BackendError>, Errno> {
        let _stripe = self.stripes.of(place.name).lock();
        let old = place.len()?;
        if mode == PutMode::Create && old.is_some() {
            return Ok(Ok(PutOutcome::Exists));
        }
        if let Err(full) = self.ledger.replace(old, len) {
            return Ok(Err(full));
        }
        let named = match mode {
            PutMode::Overwrite => rustix::fs::renameat(&self.tmp, &temporary.name, place.folder(), place.leaf),
            PutMode::Create => rustix::fs::linkat(&self.tmp, &temporary.name, place.folder(), place.leaf, AtFlags::empty()),
        };
        match named {
            Ok(()) => temporary.renamed = mode == PutMode::Overwrite,
            Err(_) => self.ledger.undo(old, len),
        }
        match named {
            Err(Errno::EXIST) if mode == PutMode::Create => Ok(Ok(PutOutcome::Exists)),
            named => named.map(|()| Ok(PutOutcome::Written)),
        }
    }

    /// Bytes of the value, if there is one.
    fn len(&self, name: &str) -> Result<Option<u64>, Errno> {
        match tree::folder_of(&self.values, name)? {
            Some((folder, leaf)) => tree::len(&folder, leaf),
            None => Ok(None),
        }
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let failed = |error: Errno| failed("read", name, error);
        let Some((folder, leaf)) = tree::folder_of(&self.values, name).map_err(failed)? else { return Ok(None) };
        // Without NONBLOCK the open of a pipe, which only a stranger can have put here, would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(folder, leaf, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.map_err(failed)?,
        };
        let Some(len) = tree::file_len(&rustix::fs::fstat(&file).map_err(failed)?) else { return Ok(None) };
        let range = within(range, len)?;
        let wanted = (range.end - range.start) as usize;
        let mut bytes = Vec::with_capacity(wanted);
        while bytes.len() < wanted {
            let at = range.start + bytes.len() as u64;
            let read = rustix::io::retry_on_intr(|| rustix::io::pread(&file, spare_capacity(&mut bytes), at)).map_err(failed)?;
            if read == 0 {
                return Err(self::failed("read", name, io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
        }
        // The capacity may be more than was asked for.
        bytes.truncate(wanted);
        Ok(Some(bytes.into()))
    }

    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        let failed = |error: Errno| failed("delete", name, error);
        let Some(place) = Place::find(&self.values, name).map_err(failed)? else { return Ok(false) };
        {
            let _stripe = self.stripes.of(name).lock();
            let len = match place.len() {
                Ok(Some(len)) => len,
                Ok(None) | Err(Errno::ISDIR) => return Ok(false),
                Err(error) => return Err(failed(error)),
            };
            match rustix::fs::unlinkat(place.folder(), place.leaf, AtFlags::empty()) {
                Err(Errno::NOENT) => return Ok(false),
                done => done.map_err(failed)?,
            }
            self.ledger.remove(len);
        }
        place.prune();
        Ok(true)
    }
}

fn beneath_value(name: &str) -> BackendError {
    BackendError::BadName { name: name.into(), reason: "one of its folders is a value, or it is a folder of values".into() }
}

#[async_trait]
impl StorageBackend for FileBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value: MAX_VALUE,
            max_name: name::MAX_NAME,
            ranges: true,
            native_expiry: false,
            shared: false,
            logged_survives: Survives::PowerLoss,
            durable_survives: Survives::PowerLoss,
        }
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        name::check(name)?;
        check_size(value.len(), MAX_VALUE)?;
        let name = name.to_owned();
        self.run(move |inner| inner.put(&name, &value, options.mode)).await
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
        self.run(move |inner| inner.len(&name).map_err(|error| failed("look for", &name, error))).await.map(|len| len.is_some())
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        let (prefix, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        self.run(move |inner| tree::list(&inner.values, &prefix, &after, limit).map_err(|error| failed("list", &prefix, error))).await
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        self.run(|inner| {
            let disk = disk_of(&inner.values).map_err(|error| failed("measure", "the disk", error))?;
            Ok(inner.ledger.stats(Some(disk)))
        })
        .await
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        self.run(|inner| {
            Ok(match rustix::fs::fstatvfs(&inner.values) {
                Err(error) => HealthStatus::Unhealthy(format!("the folder cannot be read: {error}")),
                Ok(disk) if disk.f_flag.contains(StatVfsMountFlags::RDONLY) => HealthStatus::Degraded("the disk is read-only".into()),
                Ok(disk) if disk.f_bavail == 0 => HealthStatus::Degraded("the disk is full".into()),
                Ok(_) => HealthStatus::Healthy,
            })
        })
        .await
    }

    /// The bytes of files; what the file system writes for itself is not in it.
    fn device_bytes_written(&self) -> Option<u64> {
        Some(self.inner.written.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests;
