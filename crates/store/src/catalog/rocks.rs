//! An ordered key-value space in RocksDB.

use std::path::Path;

use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use sira_backend::BackendError;

use super::{Change, OrderedKv, Pair};

/// Bytes of the block cache; memtables come on top, see [`RocksKv::MEMORY`].
const CACHE: usize = 16 << 20;
/// Bytes of a memtable; RocksDB holds two.
const MEMTABLE: usize = 8 << 20;

/// A RocksDB of small values.
pub struct RocksKv {
    db: DB,
}

impl RocksKv {
    /// Memory this takes, for the ledger.
    pub const MEMORY: u64 = (CACHE + 2 * MEMTABLE) as u64;

    /// Opens or creates the database in `path`.
    pub fn open(path: &Path) -> Result<RocksKv, BackendError> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(CACHE));
        table.set_bloom_filter(10.0, false);
        // Index and filter blocks grow with the number of keys: in the cache, they are bounded.
        table.set_cache_index_and_filter_blocks(true);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(MEMTABLE);
        options.set_max_write_buffer_number(2);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_keep_log_file_num(4);
        options.set_max_open_files(256);
        let db = DB::open(&options, path).map_err(|e| {
            if e.to_string().contains("lock") {
                BackendError::Config(format!("{} is in use by another server: {e}", path.display()))
            } else {
                failed("open", e)
            }
        })?;
        Ok(RocksKv { db })
    }
}

fn failed(context: &str, error: rocksdb::Error) -> BackendError {
    if error.to_string().contains("No space left") {
        return BackendError::OutOfSpace(format!("the disk of the catalog is full: {error}"));
    }
    BackendError::Unavailable { context: context.into(), source: Box::new(error) }
}

impl OrderedKv for RocksKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        self.db.get(key).map_err(|e| failed("get", e))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, BackendError> {
        let iterator = self.db.iterator(IteratorMode::From(from.max(prefix), Direction::Forward));
        let mut pairs = Vec::new();
        for pair in iterator.take(limit) {
            let (key, value) = pair.map_err(|e| failed("scan", e))?;
            if !key.starts_with(prefix) {
                break;
            }
            pairs.push((key.into_vec(), value.into_vec()));
        }
        Ok(pairs)
    }

    fn write(&self, changes: Vec<Change>, sync: bool) -> Result<(), BackendError> {
        let mut batch = WriteBatch::default();
        for change in changes {
            match change {
                Change::Put(key, value) => batch.put(key, value),
                Change::Delete(key) => batch.delete(key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(batch, &options).map_err(|e| failed("write", e))
    }
}
