//! What the backends over SQL databases share: one table of names and values, and around it what no statement decides: checks, the
//! count of bytes where a limit asks for one, and what becomes of a call whose caller gives up.
//!
//! A [`Driver`] is a database's own part, one statement a call. Names are bytes to every database, so that they are compared and
//! listed as such, never by a collation; they and values are bound, never written into a statement. The only part of a statement
//! that comes from outside is the table's name, of few characters and quoted all the same.

#[cfg(any(feature = "mysql", feature = "postgres"))]
mod connections;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod server;
mod wire;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::error::DatabaseError;
use tokio::sync::Mutex;

#[cfg(feature = "mysql")]
pub use self::connections::Prepare;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use self::connections::{Connections, timed};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use self::server::{DatabaseOptions, HEALTH_WAIT, not_opened};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use self::wire::Pieces;
pub use self::wire::{SHRINK, kept};
use crate::ledger::{Disk, Ledger, Stripes, check_size};
use crate::{
    BackendError, Capabilities, Durability, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend, StorageStats, name,
};

/// Bytes of the longest table name: PostgreSQL takes 63, of which indexes and the table of the schema's version need some.
const MAX_TABLE: usize = 48;

/// More names than any page holds are asked for in several.
const MAX_PAGE: usize = 1 << 20;

/// What differs from database to database. Names are checked, and values within [`Capabilities::max_value`].
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// As [`StorageBackend::capabilities`].
    fn capabilities(&self) -> Capabilities;

    /// As [`StorageBackend::put`].
    async fn put(&self, name: &str, value: Payload, mode: PutMode, durability: Durability) -> Result<PutOutcome, BackendError>;

    /// As [`StorageBackend::get`].
    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError>;

    /// As [`StorageBackend::delete`].
    async fn delete(&self, name: &str) -> Result<bool, BackendError>;

    /// Bytes of the value, if there is one.
    async fn len(&self, name: &str) -> Result<Option<u64>, BackendError>;

    /// Up to `limit` names from `from` on and before `to`, in byte order.
    async fn list(&self, from: Vec<u8>, to: Vec<u8>, limit: i64) -> Result<Vec<String>, BackendError>;

    /// Values stored, and their bytes: asked for once, at the start, and only where they are counted.
    async fn count(&self) -> Result<(u64, u64), BackendError>;

    /// As [`StorageBackend::health_check`].
    async fn health(&self) -> Result<HealthStatus, BackendError>;

    /// Where the database is of this machine: bytes that are free for values, and all of the file system.
    async fn disk(&self) -> Result<Option<(u64, u64)>, BackendError> {
        Ok(None)
    }
}

/// Values in a table of an SQL database.
pub struct SqlBackend<D> {
    inner: Arc<Inner<D>>,
}

impl<D> Clone for SqlBackend<D> {
    fn clone(&self) -> SqlBackend<D> {
        SqlBackend { inner: self.inner.clone() }
    }
}

struct Inner<D> {
    driver: D,
    counted: Option<Counted>,
}

/// The count of bytes; it costs a statement before each put and delete.
struct Counted {
    ledger: Ledger,
    stripes: Stripes<Mutex<()>>,
}

impl<D> fmt::Debug for SqlBackend<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A driver knows a password.
        f.debug_struct("SqlBackend").finish_non_exhaustive()
    }
}

impl<D: Driver> SqlBackend<D> {
    /// A backend that counts nothing.
    pub(crate) fn uncounted(driver: D) -> SqlBackend<D> {
        SqlBackend { inner: Arc::new(Inner { driver, counted: None }) }
    }

    /// A backend that counts what is there, and from then on what it writes; what others write is not counted.
    pub(crate) async fn counted(driver: D, max_bytes: Option<u64>) -> Result<SqlBackend<D>, BackendError> {
        let (values, bytes) = driver.count().await?;
        let ledger = Ledger::new(max_bytes);
        ledger.found_all(values, bytes);
        Ok(SqlBackend { inner: Arc::new(Inner { driver, counted: Some(Counted { ledger, stripes: Stripes::default() }) }) })
    }

    /// The database's own part.
    #[cfg(all(test, feature = "sqlite"))]
    pub(crate) fn driver(&self) -> &D {
        &self.inner.driver
    }
}

impl<D: Driver> Inner<D> {
    /// A put that counts: one at a time for each name, so that the old length is known.
    async fn put(&self, counted: &Counted, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        let (new, PutOptions { mode, durability, .. }) = (value.len(), options);
        let _stripe = counted.stripes.of(name).lock().await;
        let old = self.driver.len(name).await?;
        if mode == PutMode::Create && old.is_some() {
            return Ok(PutOutcome::Exists);
        }
        counted.ledger.replace(old, new)?;
        let result = self.driver.put(name, value, mode, durability).await;
        match &result {
            Ok(PutOutcome::Written) => {}
            Ok(PutOutcome::Exists) => counted.ledger.undo(old, new),
            // The bytes may be there all the same; if even that cannot be found out, they count.
            Err(_) => {
                if let Ok(now) = self.driver.len(name).await {
                    counted.ledger.undo(old, new);
                    old.into_iter().for_each(|old| counted.ledger.remove(old));
                    now.into_iter().for_each(|now| counted.ledger.found(now));
                }
            }
        }
        result
    }

    async fn delete(&self, counted: &Counted, name: &str) -> Result<bool, BackendError> {
        let _stripe = counted.stripes.of(name).lock().await;
        let Some(len) = self.driver.len(name).await? else { return Ok(false) };
        let deleted = self.driver.delete(name).await?;
        if deleted {
            counted.ledger.remove(len);
        }
        Ok(deleted)
    }
}

/// Runs what changes a count to its end, even if the caller gives up.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = Result<T, BackendError>> + Send + 'static) -> Result<T, BackendError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(lost) => Err(BackendError::Unavailable { context: "a storage task was lost".into(), source: lost.into() }),
    }
}

#[async_trait]
impl<D: Driver> StorageBackend for SqlBackend<D> {
    fn capabilities(&self) -> Capabilities {
        self.inner.driver.capabilities()
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        name::check(name)?;
        check_size(value.len(), self.inner.driver.capabilities().max_value)?;
        if self.inner.counted.is_none() {
            return self.inner.driver.put(name, value, options.mode, options.durability).await;
        }
        let (inner, name) = (self.inner.clone(), name.to_owned());
        to_its_end(async move {
            match &inner.counted {
                Some(counted) => inner.put(counted, &name, value, options).await,
                None => inner.driver.put(&name, value, options.mode, options.durability).await,
            }
        })
        .await
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        name::check(name)?;
        self.inner.driver.get(name, range).await
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        if self.inner.counted.is_none() {
            return self.inner.driver.delete(name).await;
        }
        let (inner, name) = (self.inner.clone(), name.to_owned());
        to_its_end(async move {
            match &inner.counted {
                Some(counted) => inner.delete(counted, &name).await,
                None => inner.driver.delete(&name).await,
            }
        })
        .await
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        self.inner.driver.len(name).await.map(|len| len.is_some())
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let (mut from, to) = between(prefix, after);
        let mut names = Vec::new();
        loop {
            let page = (limit - names.len()).min(MAX_PAGE);
            let found = self.inner.driver.list(from, to.clone(), page as i64).await?;
            let last = found.len() < page;
            names.extend(found);
            match names.last() {
                Some(name) if !last && names.len() < limit => from = following(name),
                _ => return Ok(names),
            }
        }
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        let disk = self.inner.driver.disk().await?.map(|(free, size)| Disk { free, size });
        Ok(match &self.inner.counted {
            Some(counted) => counted.ledger.stats(disk),
            None => StorageStats { values: None, used_bytes: None, ..Ledger::default().stats(disk) },
        })
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        self.inner.driver.health().await
    }
}

/// The bytes that a listing begins with, and those it ends before: names that start with `prefix` and come after `after`.
fn between(prefix: &str, after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let from = match after {
        Some(after) if after >= prefix => following(after),
        _ => prefix.as_bytes().to_vec(),
    };
    let mut to = prefix.as_bytes().to_vec();
    match to.last_mut() {
        // No text has a byte 255.
        Some(last) => *last += 1,
        None => to.push(u8::MAX),
    }
    (from, to)
}

/// The next name in byte order.
fn following(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// What an error that the database reports means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// There is no room.
    Full,
    /// What it stored is damaged.
    Damaged,
    /// Anything else, which may pass.
    Other,
}

/// The error of a call, from that of a driver and what the database's code means.
pub(crate) fn failed(context: String, error: sqlx::Error, meaning: impl Fn(&(dyn DatabaseError + 'static)) -> Meaning) -> BackendError {
    match error.as_database_error().map_or(Meaning::Other, meaning) {
        Meaning::Full => BackendError::OutOfSpace(format!("{context}: {error}")),
        Meaning::Damaged => BackendError::Corrupt(format!("{context}: {error}")),
        Meaning::Other => BackendError::Unavailable { context, source: error.into() },
    }
}

/// A name as it came from the database.
pub(crate) fn listed(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// Refuses what is no name of a table: 1 to 48 of `a-z 0-9 _`, the first no digit.
pub fn check_table(table: &str) -> Result<(), BackendError> {
    let letters = table.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if table.is_empty() || table.len() > MAX_TABLE || !letters || table.starts_with(|first: char| first.is_ascii_digit()) {
        let reason = format!("{table:?} is no table name: 1 to {MAX_TABLE} of a-z 0-9 _, the first no digit");
        return Err(BackendError::Config(reason));
    }
    Ok(())
}

/// Refuses a table of a version that this one does not know.
pub(crate) fn check_version(version: i64, known: usize) -> Result<usize, BackendError> {
    let newer = || {
        BackendError::Config(format!("its schema has version {version}; this version of Sira knows {known}. Run the version that made it"))
    };
    usize::try_from(version).ok().filter(|version| *version <= known).ok_or_else(newer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_table_name_is_plain() {
        for good in ["sira", "_", "a1_b", &"t".repeat(48)] {
            check_table(good).unwrap();
        }
        for bad in ["", "1a", "Sira", "a b", "a-b", "a.b", "a\"b", "a`b", "a;drop table b", "ä", "a\0", &"t".repeat(49)] {
            assert!(matches!(check_table(bad), Err(BackendError::Config(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_newer_schema_is_refused() {
        assert_eq!(check_version(0, 1).unwrap(), 0);
        assert_eq!(check_version(1, 1).unwrap(), 1);
        for bad in [2, -1, i64::MAX] {
            assert!(check_version(bad, 1).unwrap_err().to_string().contains("Run the version that made it"));
        }
    }

    proptest! {
        #[test]
        fn a_listing_is_between(prefix in "[!-z]{0,3}|ä|~", after in prop::option::of("[!-z]{0,4}"), name in "[!-z]{1,4}") {
            let (from, to) = between(&prefix, after.as_deref());
            let wanted = name.starts_with(&prefix) && after.as_ref().is_none_or(|after| name > *after);
            prop_assert_eq!((&from[..]..&to[..]).contains(&name.as_bytes()), wanted);
        }
    }
}
