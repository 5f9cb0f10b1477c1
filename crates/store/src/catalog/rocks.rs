//! An ordered key-value space in RocksDB.

use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Direction, ErrorKind, IteratorMode, Options,
    WriteBatch,
};
use sira_backend::BackendError;

use super::{Change, OrderedKv, Pair};

/// Bytes of the block cache; memtables come on top, see [`RocksKv::MEMORY`].
const CACHE: usize = 16 << 20;
/// Bytes of a memtable; RocksDB holds two.
const MEMTABLE: usize = 8 << 20;

/// A RocksDB of small values.
///
/// It is an index: what it says can be read again from the records. Where it is found damaged, a mark is left beside its folder, and the next
/// start moves it aside and begins anew.
pub struct RocksKv {
    db: DB,
    /// The file whose presence says that the database is damaged.
    mark: PathBuf,
}

impl RocksKv {
    /// Memory this takes, for the ledger.
    pub const MEMORY: u64 = (CACHE + 2 * MEMTABLE) as u64;

    /// Opens or creates the database in `path`. One that is damaged is moved aside, to `path` and `.damaged`.
    pub fn open(path: &Path) -> Result<RocksKv, BackendError> {
        let mark = path.with_extension("mark");
        let opened =
            if mark.exists() { Err(BackendError::Corrupt("it was found damaged".into())) } else { RocksKv::open_as_is(path, mark.clone()) };
        let Err(BackendError::Corrupt(reason)) = opened else { return opened };
        let aside = path.with_extension("damaged");
        tracing::error!(reason, aside = %aside.display(), "the catalog is damaged; it is moved aside and read again from the records");
        let moved =
            |source: std::io::Error| BackendError::Unavailable { context: "cannot move the catalog aside".into(), source: source.into() };
        if aside.exists() {
            std::fs::remove_dir_all(&aside).map_err(moved)?;
        }
        if path.exists() {
            std::fs::rename(path, &aside).map_err(moved)?;
        }
        let fresh = RocksKv::open_as_is(path, mark.clone())?;
        if mark.exists() {
            std::fs::remove_file(&mark).map_err(moved)?;
        }
        Ok(fresh)
    }

    fn open_as_is(path: &Path, mark: PathBuf) -> Result<RocksKv, BackendError> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(CACHE));
        table.set_bloom_filter(10.0, false);
        // Index and filter blocks grow with the number of keys: in the cache, they are bounded.
        table.set_cache_index_and_filter_blocks(true);
        // And in pieces: whole, one is larger than what the cache takes as one block, and would be read again for each lookup.
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        table.set_partition_filters(true);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(MEMTABLE);
        options.set_max_write_buffer_number(2);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_keep_log_file_num(4);
        options.set_max_open_files(256);
        // A torn end is what a crash leaves; any other damage of the log must not pass for it.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        let db = DB::open(&options, path).map_err(|e| {
            if e.to_string().contains("lock") {
                BackendError::Config(format!("{} is in use by another server: {e}", path.display()))
            } else {
                failed("open", e)
            }
        })?;
        Ok(RocksKv { db, mark })
    }
}

fn failed(context: &str, error: rocksdb::Error) -> BackendError {
    if error.kind() == ErrorKind::Corruption {
        return BackendError::Corrupt(format!(
            "{context}: the index of this node is damaged. Restart the server: it is read again from the records"
        ));
    }
    if error.to_string().contains("No space left") {
        return BackendError::OutOfSpace(format!("the disk of the catalog is full: {error}"));
    }
    BackendError::Unavailable { context: context.into(), source: Box::new(error) }
}

impl RocksKv {
    fn failed(&self, context: &str, error: rocksdb::Error) -> BackendError {
        if error.kind() == ErrorKind::Corruption && !self.mark.exists() {
            tracing::error!(%error, "the catalog is damaged; the next start reads it again from the records");
            if let Err(error) = std::fs::write(&self.mark, "") {
                tracing::error!(%error, "cannot leave a mark for the next start: remove the catalog's folder by hand");
            }
        }
        failed(context, error)
    }
}

impl Drop for RocksKv {
    fn drop(&mut self) {
        // Tables have checksums of their own; a log that is empty has nothing to lose.
        if let Err(error) = self.db.flush() {
            tracing::warn!(%error, "the catalog was not flushed; its log has it all");
        }
    }
}

impl OrderedKv for RocksKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        self.db.get(key).map_err(|e| self.failed("get", e))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, BackendError> {
        let iterator = self.db.iterator(IteratorMode::From(from.max(prefix), Direction::Forward));
        let mut pairs = Vec::new();
        for pair in iterator.take(limit) {
            let (key, value) = pair.map_err(|e| self.failed("scan", e))?;
            if !key.starts_with(prefix) {
                break;
            }
            pairs.push((key.into_vec(), value.into_vec()));
        }
        Ok(pairs)
    }

    fn write(&self, changes: Vec<Change>, sync: bool) -> Result<(), BackendError> {
        let batch = || {
            let mut batch = WriteBatch::default();
            for change in &changes {
                match change {
                    Change::Put(key, value) => batch.put(key, value),
                    Change::Delete(key) => batch.delete(key),
                }
            }
            batch
        };
        sira_backend::rocks::write(&self.db, sync, batch).map_err(|e| self.failed("write", e))
    }
}

#[cfg(test)]
mod tests {
    use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};

    use super::*;

    /// Every start looks up every key. What that reads must not grow with the number of keys.
    #[test]
    fn a_lookup_reads_some_blocks_however_many_keys_there_are() {
        const KEYS: u64 = 200_000;
        let folder = tempfile::tempdir().unwrap();
        let kv = RocksKv::open(&folder.path().join("catalog")).unwrap();
        // Values that do not compress, so that tables are as large as they get.
        let key = |number: u64| format!("k/{:064x}/{number:032}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes();
        let value = |number: u64| {
            (0..50).flat_map(move |at| xxhash_rust::xxh3::xxh3_64(&[number, at].map(u64::to_le_bytes).concat()).to_le_bytes())
        };
        for first in (0..KEYS).step_by(1000) {
            let changes = (first..first + 1000).map(|number| Change::Put(key(number), value(number).collect())).collect();
            kv.write(changes, false).unwrap();
        }
        kv.db.compact_range(None::<&[u8]>, None::<&[u8]>);
        set_perf_stats(PerfStatsLevel::EnableCount);
        let mut context = PerfContext::default();
        context.reset();
        for number in (0..KEYS).step_by(100) {
            assert_eq!(kv.get(&key(number)).unwrap(), Some(value(number).collect()));
        }
        let read = context.metric(PerfMetric::BlockReadByte) / (KEYS / 100);
        set_perf_stats(PerfStatsLevel::Disable);
        assert!(read < 64 << 10, "{read} bytes a lookup");
    }
}
