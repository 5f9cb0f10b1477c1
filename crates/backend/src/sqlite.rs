//! SQLite: one file that every tool reads, on a local disk.
//!
//! ```text
//! root/lock            held while a process has the folder open
//! root/values.sqlite   one table, of names and values; beside it SQLite's write-ahead log
//! ```
//!
//! One connection writes, one value at a time; others read what is committed meanwhile. With [`Durability::Durable`] a commit syncs
//! the log (`synchronous = FULL`). With [`Durability::Logged`] it leaves that to the system (`NORMAL`): the value outlives the
//! process, and is on the disk with the next durable one. After a failed read or write of the file, the log is brought into it and
//! both are synced before anything more is written, since what a sync could not write is not written by the next one.
//!
//! A value takes its room twice, in the log and then in the file, and a delete is written before it frees. So a put is refused while there
//! is still room on the disk to bring the log into the file, and to delete. What a delete frees are pages of the file, for later values.
//!
//! A range is cut out of a value that is read from its start.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection, SqliteExecutor};
use tokio::sync::Mutex;

use crate::file::{disk_of, lock_folder, sync_all};
use crate::ledger::{Disk, within};
use crate::sql::{self, Driver, Meaning, SqlBackend, kept};
use crate::{BackendError, Capabilities, Durability, HealthStatus, Payload, PutMode, PutOutcome, Survives, name};

/// What SQLite takes as it is built, `SQLITE_MAX_LENGTH`, is 10^9 bytes; a value and its row are in memory more than once.
const MAX_VALUE: u64 = 512 << 20;

/// Bytes of a page: values of chunks lie in chains of them.
const PAGE: u32 = 16 << 10;

/// Bytes of the log at which a commit brings it into the file.
const CHECKPOINT: u32 = 64 << 20;

/// Bytes of the disk that puts leave to deletes.
const RESERVE: u64 = 1 << 20;

/// Bytes of pages that a put changes beside those of its value.
const BESIDE: u64 = 4 * PAGE as u64;

/// Connections that read.
const READERS: u32 = 4;

/// Bytes of pages that each connection keeps.
const CACHE: u64 = 4 << 20;

/// Marks the file as one of ours: `SIRA`.
const APPLICATION: i64 = 0x5349_5241;

/// What makes version 1 of version 0, and so on. The index of sizes spares the count at the start the way through every row.
const MIGRATIONS: [&str; 1] = ["CREATE TABLE items (name BLOB NOT NULL PRIMARY KEY, size INTEGER NOT NULL, value BLOB NOT NULL);
     CREATE INDEX sizes ON items (size)"];

const CREATE: &str = "INSERT INTO items (name, size, value) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING";
const OVERWRITE: &str =
    "INSERT INTO items (name, size, value) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET size = excluded.size, value = excluded.value";
const GET: &str = "SELECT value FROM items WHERE name = ?";
const RANGE: &str = "SELECT size, substr(value, ?, ?) FROM items WHERE name = ?";
const DELETE: &str = "DELETE FROM items WHERE name = ?";
const LEN: &str = "SELECT size FROM items WHERE name = ?";
const LIST: &str = "SELECT name FROM items WHERE name >= ? AND name < ? ORDER BY name LIMIT ?";
const COUNT: &str = "SELECT count(*), coalesce(sum(size), 0) FROM items";

/// Values in a file of SQLite.
pub type SqliteBackend = SqlBackend<SqliteDriver>;

/// What is SQLite's own.
pub struct SqliteDriver {
    writer: Mutex<Writer>,
    readers: SqlitePool,
    folder: OwnedFd,
    log: PathBuf,
    /// Let go when the last handle goes.
    _lock: std::fs::File,
}

struct Writer {
    connection: SqliteConnection,
    /// What a commit waits for now.
    durability: Durability,
    /// Whether the file or its log could not be read or written, and nobody brought them together since.
    broken: bool,
}

impl SqliteBackend {
    /// Bytes of memory that its pages take at most.
    pub const MEMORY: u64 = CACHE * (READERS as u64 + 1);

    /// Opens the folder, made if missing, and counts what is in it; `max_bytes` limits the bytes of values. Refuses a folder that
    /// another process has open.
    pub async fn open(path: impl AsRef<Path>, max_bytes: Option<u64>) -> Result<SqliteBackend, BackendError> {
        let path = path.as_ref();
        let bad = |reason: String| BackendError::Config(format!("cannot open the folder {}: {reason}", path.display()));
        std::fs::create_dir_all(path).map_err(|error| bad(error.to_string()))?;
        let path = path.canonicalize().map_err(|error| bad(error.to_string()))?;
        let lock = lock_folder(&path.join("lock"), &path)?;
        let folder = OwnedFd::from(std::fs::File::open(&path).map_err(|error| bad(error.to_string()))?);
        let options = connect_options(&path);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(|error| not_opened(&path, error))?;
        migrate(&mut connection).await.map_err(|error| not_opened(&path, error))??;
        // The file itself, and every folder that was made for it.
        sync_all(&folder).map_err(|error| bad(error.to_string()))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(Duration::from_secs(60))
            .test_before_acquire(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(options.pragma("query_only", "ON"));
        let writer = Mutex::new(Writer { connection, durability: Durability::Durable, broken: false });
        let log = path.join("values.sqlite-wal");
        SqlBackend::counted(SqliteDriver { writer, readers, folder, log, _lock: lock }, max_bytes).await
    }
}

fn connect_options(folder: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(folder.join("values.sqlite"))
        .create_if_missing(true)
        .page_size(PAGE)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(30))
        .pragma("cache_size", format!("-{}", CACHE >> 10))
        .pragma("wal_autocheckpoint", (CHECKPOINT / PAGE).to_string())
        // A log that grew with a large value does not stay so.
        .pragma("journal_size_limit", (2 * CHECKPOINT).to_string())
        // On a Mac, a sync that is one.
        .pragma("fullfsync", "ON")
        .pragma("checkpoint_fullfsync", "ON")
        .disable_statement_logging()
}

/// Makes or migrates the tables, in one transaction.
async fn migrate(connection: &mut SqliteConnection) -> Result<Result<(), BackendError>, sqlx::Error> {
    let mut migration = connection.begin_with("BEGIN IMMEDIATE").await?;
    let application: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *migration).await?;
    let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *migration).await?;
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_master").fetch_one(&mut *migration).await?;
    if application != APPLICATION && (application != 0 || version != 0 || tables > 0) {
        return Ok(Err(BackendError::Config("its values.sqlite is a database that Sira did not make".into())));
    }
    let version = match sql::check_version(version, MIGRATIONS.len()) {
        Ok(version) => version,
        Err(newer) => return Ok(Err(newer)),
    };
    if version < MIGRATIONS.len() {
        for step in &MIGRATIONS[version..] {
            sqlx::raw_sql(*step).execute(&mut *migration).await?;
        }
        let mark = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {}", MIGRATIONS.len());
        sqlx::raw_sql(AssertSqlSafe(mark)).execute(&mut *migration).await?;
    }
    migration.commit().await?;
    Ok(Ok(()))
}

/// The primary result code of SQLite, without what it is about.
fn code(error: &(dyn DatabaseError + 'static)) -> Option<i32> {
    error.code().and_then(|code| code.parse::<i32>().ok()).map(|code| code & 0xff)
}

const IO_ERROR: i32 = 10;
const DAMAGED: i32 = 11;
const FULL: i32 = 13;
const NO_DATABASE: i32 = 26;

fn meaning(error: &(dyn DatabaseError + 'static)) -> Meaning {
    match code(error) {
        Some(FULL) => Meaning::Full,
        Some(DAMAGED | NO_DATABASE) => Meaning::Damaged,
        _ => Meaning::Other,
    }
}

fn failed(what: &str, name: &str) -> impl FnOnce(sqlx::Error) -> BackendError {
    let context = format!("cannot {what} {name}");
    move |error| sql::failed(context, error, meaning)
}

fn not_opened(folder: &Path, error: sqlx::Error) -> BackendError {
    let context = format!("cannot open the folder {}", folder.display());
    match sql::failed(context, error, meaning) {
        BackendError::Unavailable { context, source } => BackendError::Config(format!("{context}: {source}")),
        damaged_or_full => damaged_or_full,
    }
}

impl Writer {
    /// Runs a statement that changes one row at most; says whether it did.
    async fn change(&mut self, statement: &'static str, arguments: SqliteArguments, durability: Durability) -> Result<bool, sqlx::Error> {
        self.mend().await?;
        if durability != self.durability {
            let level = if durability == Durability::Durable { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            sqlx::raw_sql(level).execute(&mut self.connection).await?;
            self.durability = durability;
        }
        let result = sqlx::query_with(statement, arguments).execute(&mut self.connection).await;
        self.broken = result.as_ref().err().and_then(sqlx::Error::as_database_error).and_then(code) == Some(IO_ERROR);
        result.map(|done| done.rows_affected() > 0)
    }

    /// After an error of the disk: brings the whole log into the file, syncs both, and begins a new log.
    async fn mend(&mut self) -> Result<(), sqlx::Error> {
        if self.broken {
            self.bring_in().await?;
            self.broken = false;
        }
        Ok(())
    }

    async fn bring_in(&mut self) -> Result<(), sqlx::Error> {
        let read = "PRAGMA wal_checkpoint(TRUNCATE)";
        let (busy, _, _): (i64, i64, i64) = sqlx::query_as(read).fetch_one(&mut self.connection).await?;
        if busy != 0 {
            return Err(sqlx::Error::Protocol("its log cannot be brought into the file while it is read".into()));
        }
        Ok(())
    }
}

/// Bytes of pages in the file that hold nothing.
async fn free_pages(connection: impl SqliteExecutor<'_>) -> Result<u64, sqlx::Error> {
    let pages: i64 = sqlx::query_scalar("PRAGMA freelist_count").fetch_one(connection).await?;
    Ok(pages.unsigned_abs() * u64::from(PAGE))
}

impl SqliteDriver {
    fn disk_now(&self) -> Result<Disk, BackendError> {
        disk_of(&self.folder).map_err(|error| BackendError::Unavailable { context: "cannot measure the disk".into(), source: error.into() })
    }

    /// Refuses a value with which the log could not be brought into the file any more.
    async fn check_room(&self, writer: &mut Writer, name: &str, len: u64) -> Result<(), BackendError> {
        let value = len + BESIDE;
        let log = std::fs::metadata(&self.log).map_or(0, |log| log.len());
        if self.disk_now()?.free >= log + 2 * value + RESERVE {
            return Ok(());
        }
        let reused = async {
            writer.bring_in().await?;
            Ok(free_pages(&mut writer.connection).await? >= value)
        };
        // Half of the reserve is for values in free pages, or what a delete frees could never be used.
        let needed = if reused.await.map_err(failed("write", name))? { value + RESERVE / 2 } else { 2 * value + RESERVE };
        let free = self.disk_now()?.free;
        if free < needed {
            let reason =
                format!("cannot write {name}: the disk has {free} bytes free, and {needed} are needed for the log, the file and deletes");
            return Err(BackendError::OutOfSpace(reason));
        }
        Ok(())
    }
}

#[async_trait]
impl Driver for SqliteDriver {
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

    async fn put(&self, name: &str, value: Payload, mode: PutMode, durability: Durability) -> Result<PutOutcome, BackendError> {
        let len = value.len();
        let arguments = || {
            let mut arguments = SqliteArguments::default();
            arguments.add(name.as_bytes()).map_err(sqlx::Error::Encode)?;
            arguments.add(value.len() as i64).map_err(sqlx::Error::Encode)?;
            arguments.add(Vec::from(value.into_bytes())).map_err(sqlx::Error::Encode)?;
            Ok(arguments)
        };
        let arguments = arguments().map_err(failed("write", name))?;
        let statement = if mode == PutMode::Create { CREATE } else { OVERWRITE };
        let mut writer = self.writer.lock().await;
        self.check_room(&mut writer, name, len).await?;
        let written = writer.change(statement, arguments, durability).await.map_err(failed("write", name))?;
        Ok(if written { PutOutcome::Written } else { PutOutcome::Exists })
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let failed = || failed("read", name);
        let Some(range) = range else {
            let row = sqlx::query(GET).bind(name.as_bytes()).fetch_optional(&self.readers).await.map_err(failed())?;
            return row.map(|row| kept(row, 0)).transpose().map_err(failed());
        };
        // What lies behind every value is as far behind the end of this one.
        let (start, wanted) = (range.start.min(MAX_VALUE) as i64 + 1, range.end.saturating_sub(range.start).min(MAX_VALUE) as i64);
        let query = sqlx::query(RANGE).bind(start).bind(wanted).bind(name.as_bytes());
        let Some(row) = query.fetch_optional(&self.readers).await.map_err(failed())? else { return Ok(None) };
        let len: i64 = row.try_get(0).map_err(failed())?;
        within(Some(range), len.unsigned_abs())?;
        kept(row, 1).map(Some).map_err(failed())
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        let arguments = || {
            let mut arguments = SqliteArguments::default();
            arguments.add(name.as_bytes()).map_err(sqlx::Error::Encode)?;
            Ok::<_, sqlx::Error>(arguments)
        };
        let delete = async {
            let mut writer = self.writer.lock().await;
            match writer.change(DELETE, arguments()?, Durability::Logged).await {
                // The room of the log becomes free.
                Err(error) if error.as_database_error().and_then(code) == Some(FULL) => {
                    writer.bring_in().await?;
                    writer.change(DELETE, arguments()?, Durability::Logged).await
                }
                result => result,
            }
        };
        delete.await.map_err(failed("delete", name))
    }

    async fn len(&self, name: &str) -> Result<Option<u64>, BackendError> {
        let len = sqlx::query_scalar::<_, i64>(LEN).bind(name.as_bytes()).fetch_optional(&self.readers).await;
        len.map(|len| len.map(i64::unsigned_abs)).map_err(failed("look for", name))
    }

    async fn list(&self, from: Vec<u8>, to: Vec<u8>, limit: i64) -> Result<Vec<String>, BackendError> {
        let names = sqlx::query_scalar::<_, Vec<u8>>(LIST).bind(from).bind(to).bind(limit).fetch_all(&self.readers).await;
        names.map(|names| names.iter().map(|name| sql::listed(name)).collect()).map_err(failed("list", "names"))
    }

    async fn count(&self) -> Result<(u64, u64), BackendError> {
        let (values, bytes): (i64, i64) = sqlx::query_as(COUNT).fetch_one(&self.readers).await.map_err(failed("count", "values"))?;
        Ok((values.unsigned_abs(), bytes.unsigned_abs()))
    }

    async fn health(&self) -> Result<HealthStatus, BackendError> {
        if let Err(error) = sqlx::query_scalar::<_, i64>("PRAGMA user_version").fetch_one(&self.readers).await {
            return Ok(HealthStatus::Unhealthy(format!("reads fail: {error}")));
        }
        // Without writes nobody would notice that it works again; with one running, it does.
        if let Ok(mut writer) = self.writer.try_lock()
            && let Err(error) = writer.mend().await
        {
            return Ok(HealthStatus::Degraded(format!("writes fail: {error}")));
        }
        Ok(if self.disk_now()?.free == 0 { HealthStatus::Degraded("the disk is full".into()) } else { HealthStatus::Healthy })
    }

    /// What is free in the file is as good as free on the disk.
    async fn disk(&self) -> Result<Option<(u64, u64)>, BackendError> {
        let free_pages = free_pages(&self.readers).await.map_err(failed("measure", "the file"))?;
        let disk = self.disk_now()?;
        Ok(Some((disk.free + free_pages, disk.size)))
    }
}

#[cfg(test)]
mod tests;
