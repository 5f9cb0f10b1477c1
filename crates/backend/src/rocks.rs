//! RocksDB: the store for many values of all sizes on a local disk.
//!
//! Values of 16 KiB and more lie in blob files, outside the tree that compaction rewrites. Two column families are written in one
//! batch: `values`, and `sizes`, which holds the length of each value under the same name. Listing, `exists`, create-if-absent and
//! the count of bytes at start-up read only `sizes`, so none of them touches a large value.
//!
//! There is no lock around the database. A put or delete takes the stripe of its name, so that reading the old length and writing
//! the new value are one step: that decides create-if-absent and keeps the count exact. Writers of other names share RocksDB's
//! group commit.
//!
//! `Durable` syncs the log; `Logged` leaves it to the page cache. A delete is only logged: power loss may bring a value back.
//!
//! What was acknowledged never vanishes in silence: a log that ends in the middle of a record, as a crash leaves it, is read up to
//! there, and with any other damage the database is not opened.

pub(crate) mod log;
mod stall;

pub use stall::write;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::statistics::{StatsLevel, Ticker};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    DEFAULT_COLUMN_FAMILY_NAME, IteratorMode, LogLevel, Options, ReadOptions, WriteBatch, WriteBufferManager, properties,
};

use crate::ledger::{Ledger, Stripes, blocking, check_size, within};
use crate::{
    BackendError, Capabilities, Durability, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend, StorageStats, Survives,
    name,
};

/// A value is copied into a batch and a memtable on its way, so a large one costs three times its size.
const MAX_VALUE: u64 = 256 << 20;

const MIN_BLOB: u64 = 16 << 10;

const VALUES: &str = "values";
const SIZES: &str = "sizes";

/// In the default column family: what wrote this database.
const FORMAT_KEY: &[u8] = b"format";
const FORMAT: &[u8] = b"sira-values-1";

/// In the default column family: written to see whether writes work again.
const PROBE_KEY: &[u8] = b"probe";

/// How values below 16 KiB are compressed on disk; larger ones never are, since codecs have done what can be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RocksCompression {
    /// Not at all.
    None,
    /// LZ4: fast.
    #[default]
    Lz4,
    /// Zstandard: smaller.
    Zstd,
}

/// How to open a [`RocksBackend`].
#[derive(Clone, Debug)]
pub struct RocksOptions {
    /// Compression of the small values.
    pub compression: RocksCompression,
    /// Bytes for blocks of the tree, its indexes and filters.
    pub cache_bytes: usize,
    /// Bytes for values that are logged but not yet in the tree. A value larger than a quarter of it still passes, and is held
    /// beyond it until it is flushed.
    pub write_buffer_bytes: usize,
    /// Background threads that flush and compact.
    pub background_jobs: u8,
    /// Files held open.
    pub open_files: u16,
    /// Limit of the bytes of values. The files may take more for a while: deleted values leave them when they are compacted.
    pub max_bytes: Option<u64>,
}

impl Default for RocksOptions {
    fn default() -> RocksOptions {
        RocksOptions {
            compression: RocksCompression::default(),
            cache_bytes: 64 << 20,
            write_buffer_bytes: 64 << 20,
            background_jobs: 4,
            open_files: 1024,
            max_bytes: None,
        }
    }
}

/// Values in a RocksDB database of their own. The last handle that goes flushes and closes it.
#[derive(Clone, Debug)]
pub struct RocksBackend {
    inner: Arc<Inner>,
    memory_budget: usize,
}

#[derive(Debug)]
struct Inner {
    db: DB,
    /// What it was opened with: it counts what is written.
    counters: Counters,
    folder: PathBuf,
    /// The open folder, to measure its disk by.
    disk: std::fs::File,
    ledger: Ledger,
    stripes: Stripes<Mutex<()>>,
    /// Why the last write failed, until one succeeds.
    trouble: Mutex<Option<String>>,
}

impl RocksBackend {
    /// Opens the database in a folder, made if missing, and counts its values. Blocks while it reads the log and the lengths: call
    /// it at start-up. Refuses a folder that another process has open, and a database that is not one of this kind. A damaged one is
    /// [`BackendError::Corrupt`]; what is found damaged before RocksDB opens it, such as its log, is left untouched.
    pub fn open(path: impl AsRef<Path>, options: RocksOptions) -> Result<RocksBackend, BackendError> {
        let path = path.as_ref();
        let context = format!("cannot open the RocksDB database in {}", path.display());
        let bad = |reason: String| BackendError::Config(format!("{context}: {reason}"));
        if let Some(damage) = log::damage(path).map_err(|error| bad(error.to_string()))? {
            return Err(BackendError::Corrupt(format!("{context}: {damage}")));
        }
        let memory_budget = options.cache_bytes.saturating_add(options.write_buffer_bytes);
        // Memtables are charged to the block cache: blocks give way to them, and one number bounds both.
        let cache = Cache::new_lru_cache(memory_budget);
        let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(options.write_buffer_bytes, false, cache.clone());
        let families = [DEFAULT_COLUMN_FAMILY_NAME, SIZES, VALUES].map(|name| family(name, &options, &cache));
        let database = database_options(&options, &buffers);
        let db = DB::open_cf_descriptors(&database, path, families).map_err(|error| not_opened(&context, path, error))?;
        match db.get(FORMAT_KEY) {
            Ok(Some(format)) if format == FORMAT => {}
            Ok(Some(format)) => {
                return Err(bad(format!("its format is {:?}, which this version does not know", format.escape_ascii().to_string())));
            }
            Ok(None) if db.iterator(IteratorMode::Start).next().is_none() => {
                let batch = || {
                    let mut batch = WriteBatch::default();
                    batch.put(FORMAT_KEY, FORMAT);
                    batch
                };
                write(&db, true, batch).map_err(|error| not_opened(&context, path, error))?;
            }
            Ok(None) => return Err(bad("it holds something else".into())),
            Err(error) => return Err(not_opened(&context, path, error)),
        }
        let disk = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
        let ledger = Ledger::new(options.max_bytes);
        let (stripes, trouble) = (Stripes::default(), Mutex::default());
        let counters = Counters(database);
        let inner = Inner { db, counters, folder: path.to_owned(), disk, ledger, stripes, trouble };
        inner.count().map_err(|error| match error {
            BackendError::Corrupt(damage) => BackendError::Corrupt(format!("{context}: {damage}")),
            error => error,
        })?;
        Ok(RocksBackend { inner: Arc::new(inner), memory_budget })
    }

    /// Bytes of memory that blocks, indexes, filters and write buffers take together at most. Beside it are values on their way
    /// in and out, one value that does not fit the write buffers, and a few MiB for each background job.
    pub fn memory_budget(&self) -> usize {
        self.memory_budget
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }
}

fn database_options(options: &RocksOptions, buffers: &WriteBufferManager) -> Options {
    let mut database = Options::default();
    database.create_if_missing(true);
    database.create_missing_column_families(true);
    // The default would drop, without a word, everything that was logged after a damaged record.
    database.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    database.set_write_buffer_manager(buffers);
    database.set_max_background_jobs(i32::from(options.background_jobs.max(2)));
    database.set_max_open_files(i32::from(options.open_files.max(64)));
    // `sizes` fills slowly and would keep every log file since its last flush.
    database.set_max_total_wal_size((options.write_buffer_bytes as u64).saturating_mul(4));
    // Writes reach the disk as they come, not in one burst when a file is closed.
    database.set_bytes_per_sync(1 << 20);
    database.set_wal_bytes_per_sync(1 << 20);
    database.set_skip_stats_update_on_db_open(true);
    database.set_stats_dump_period_sec(0);
    database.set_stats_persist_period_sec(0);
    // Counters of bytes alone: nothing that asks for the time.
    database.enable_statistics();
    database.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    database.set_log_level(LogLevel::Warn);
    database.set_keep_log_file_num(4);
    database.set_max_log_file_size(16 << 20);
    database
}

fn family(name: &str, options: &RocksOptions, cache: &Cache) -> ColumnFamilyDescriptor {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // In pieces: whole, those of a large table are larger than what the cache takes as one block, and would be read again for each lookup.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_block_size(16 << 10);
    blocks.set_format_version(6);
    let mut family = Options::default();
    family.set_block_based_table_factory(&blocks);
    family.set_compression_type(match options.compression {
        RocksCompression::None => DBCompressionType::None,
        RocksCompression::Lz4 => DBCompressionType::Lz4,
        RocksCompression::Zstd => DBCompressionType::Zstd,
    });
    // Three buffers of each family, one filling and two being flushed, stay below the common bound. After a full disk RocksDB
    // resumes once the largest buffer fits, which is why the default family, left alone, would be harmful.
    family.set_max_write_buffer_number(3);
    let share = if name == VALUES { 4 } else { 32 };
    family.set_write_buffer_size((options.write_buffer_bytes / share).max(64 << 10));
    if name == VALUES {
        family.set_enable_blob_files(true);
        family.set_min_blob_size(MIN_BLOB);
        family.set_blob_compression_type(DBCompressionType::None);
        family.set_enable_blob_gc(true);
        // The older half of the blob files is cleaned as compaction meets it, and compaction is forced when half of it is garbage.
        family.set_blob_gc_age_cutoff(0.5);
        family.set_blob_gc_force_threshold(0.5);
    }
    ColumnFamilyDescriptor::new(name, family)
}

/// The options of an open database, which hold its counters.
struct Counters(Options);

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Counters").field(&self.device_bytes()).finish()
    }
}

impl Counters {
    /// The log, and the files of flushes and compactions, in which values of their own files are counted as well.
    fn device_bytes(&self) -> u64 {
        [Ticker::WalFileBytes, Ticker::FlushWriteBytes, Ticker::CompactWriteBytes]
            .map(|ticker| self.0.get_ticker_count(ticker))
            .iter()
            .sum()
    }
}

/// What an error of RocksDB means. Its status codes come as text only.
fn failed(context: &str, error: rocksdb::Error) -> BackendError {
    let text = error.as_ref();
    let full = ["No space left", "NoSpace", "Disk quota exceeded", "Max allowed space"];
    if full.iter().any(|reason| text.contains(reason)) {
        return BackendError::OutOfSpace(format!("{context}: {error}"));
    }
    if error.kind() == rocksdb::ErrorKind::Corruption {
        return BackendError::Corrupt(format!("{context}: {error}"));
    }
    BackendError::Unavailable { context: context.to_owned(), source: error.into() }
}

/// What an error at open means.
fn not_opened(context: &str, folder: &Path, error: rocksdb::Error) -> BackendError {
    let text = error.as_ref();
    if text.contains("While lock file") || text.contains("lock hold") {
        return BackendError::Config(format!("{context}: another process or backend has it open ({error})"));
    }
    let lost = text.contains("No such file") && folder.join("CURRENT").exists();
    match failed(context, error) {
        BackendError::Unavailable { context, source } if lost => {
            BackendError::Corrupt(format!("{context}: a file of it is missing: {source}"))
        }
        BackendError::Unavailable { context, source } => BackendError::Config(format!("{context}: {source}")),
        corrupt_or_full => corrupt_or_full,
    }
}

/// The bytes from which names are wanted: those that start with `prefix` and come after `after`.
fn seek(prefix: &str, after: Option<&str>) -> Vec<u8> {
    match after {
        // The next name in byte order.
        Some(after) if after >= prefix => [after.as_bytes(), b"\0"].concat(),
        _ => prefix.as_bytes().to_vec(),
    }
}

impl Inner {
    fn family(&self, name: &str) -> Result<&ColumnFamily, BackendError> {
        self.db.cf_handle(name).ok_or_else(|| BackendError::Config(format!("the column family {name} is gone")))
    }

    fn len(&self, name: &str) -> Result<Option<u64>, BackendError> {
        let len = self.db.get_pinned_cf(self.family(SIZES)?, name).map_err(|error| failed(&format!("cannot read {name}"), error))?;
        len.map(|len| size(&len, name.as_bytes())).transpose()
    }

    /// Reads all lengths.
    fn count(&self) -> Result<(), BackendError> {
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        for entry in self.db.iterator_cf_opt(self.family(SIZES)?, read, IteratorMode::Start) {
            let (name, len) = entry.map_err(|error| failed("cannot count the values", error))?;
            self.ledger.found(size(&len, &name)?);
        }
        Ok(())
    }

    fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        let new = value.len();
        let (values, sizes) = (self.family(VALUES)?, self.family(SIZES)?);
        if options.mode == PutMode::Create && self.len(name)?.is_some() {
            return Ok(PutOutcome::Exists);
        }
        let value = value.into_bytes();
        let batch = || {
            let mut batch = WriteBatch::default();
            batch.put_cf(values, name, &value);
            batch.put_cf(sizes, name, new.to_le_bytes());
            batch
        };

        let _stripe = self.stripes.of(name).lock();
        let old = self.len(name)?;
        if options.mode == PutMode::Create && old.is_some() {
            return Ok(PutOutcome::Exists);
        }
        self.ledger.replace(old, new)?;
        // A failed write may still be in the log and come back at a restart, where it is counted again.
        self.write(&format!("cannot write {name}"), batch, options.durability).inspect_err(|_| self.ledger.undo(old, new))?;
        Ok(PutOutcome::Written)
    }

    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        let (values, sizes) = (self.family(VALUES)?, self.family(SIZES)?);
        let batch = || {
            let mut batch = WriteBatch::default();
            batch.delete_cf(values, name);
            batch.delete_cf(sizes, name);
            batch
        };
        let _stripe = self.stripes.of(name).lock();
        let Some(len) = self.len(name)? else { return Ok(false) };
        self.write(&format!("cannot delete {name}"), batch, Durability::Logged)?;
        self.ledger.remove(len);
        Ok(true)
    }

    fn write(&self, context: &str, batch: impl FnMut() -> WriteBatch, durability: Durability) -> Result<(), BackendError> {
        let result = write(&self.db, durability == Durability::Durable, batch);
        let mut trouble = self.trouble.lock();
        match &result {
            Ok(()) if trouble.is_none() => {}
            Ok(()) => *trouble = None,
            Err(error) => *trouble = Some(format!("writes fail: {error}")),
        }
        result.map_err(|error| failed(context, error))
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let value = self.db.get_pinned_cf(self.family(VALUES)?, name).map_err(|error| failed(&format!("cannot read {name}"), error))?;
        let Some(value) = value else { return Ok(None) };
        let range = within(range, value.len() as u64)?;
        Ok(Some(Bytes::copy_from_slice(&value[range.start as usize..range.end as usize])))
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        let mut names = Vec::new();
        let mut entries = self.db.raw_iterator_cf(self.family(SIZES)?);
        entries.seek(seek(prefix, after));
        while let Some(name) = entries.key().filter(|name| names.len() < limit && name.starts_with(prefix.as_bytes())) {
            names.push(String::from_utf8_lossy(name).into_owned());
            entries.next();
        }
        entries.status().map_err(|error| failed(&format!("cannot list {prefix}"), error))?;
        Ok(names)
    }

    fn health(&self) -> HealthStatus {
        // RocksDB resumes by itself, within seconds, when a write buffer fits the disk again; without writes nobody would notice.
        if self.trouble.lock().is_some() {
            let batch = || {
                let mut batch = WriteBatch::default();
                batch.put(PROBE_KEY, b"");
                batch
            };
            if let Err(error) = self.write("cannot write", batch, Durability::Logged) {
                return HealthStatus::Degraded(error.to_string());
            }
        }
        if let Err(error) = self.db.get_pinned(FORMAT_KEY) {
            return HealthStatus::Unhealthy(format!("reads fail: {error}"));
        }
        match self.db.property_int_value(properties::IS_WRITE_STOPPED) {
            Ok(Some(1)) => HealthStatus::Degraded("writes wait for compaction".into()),
            _ => HealthStatus::Healthy,
        }
    }

    fn stats(&self) -> Result<StorageStats, BackendError> {
        let disk = crate::file::disk_of(&self.disk);
        let disk = disk.map_err(|error| BackendError::Unavailable { context: "cannot measure the disk".into(), source: error.into() })?;
        Ok(self.ledger.stats(Some(disk)))
    }
}

/// The length in an entry of `sizes`.
fn size(len: &[u8], name: &[u8]) -> Result<u64, BackendError> {
    let bad = |_| BackendError::Corrupt(format!("the stored length of {}", name.escape_ascii()));
    <[u8; 8]>::try_from(len).map(u64::from_le_bytes).map_err(bad)
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What is logged outlives this process anyway; the sync makes it outlive the machine, the flush spares the next start a
        // replay of the log.
        let synced = self.db.flush_wal(true);
        let flushed =
            [VALUES, SIZES].into_iter().filter_map(|name| self.db.cf_handle(name)).try_for_each(|family| self.db.flush_cf(family));
        for error in [synced.err(), flushed.err()].into_iter().flatten() {
            tracing::warn!(folder = %self.folder.display(), %error, "RocksDB could not be flushed");
        }
    }
}

#[async_trait]
impl StorageBackend for RocksBackend {
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
        self.run(move |inner| inner.len(&name)).await.map(|len| len.is_some())
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

    fn device_bytes_written(&self) -> Option<u64> {
        Some(self.inner.counters.device_bytes())
    }
}

#[cfg(test)]
mod tests;
