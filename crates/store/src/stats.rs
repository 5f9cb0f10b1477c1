//! What the store counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use sira_backend::{BackendError, StorageStats};

use crate::hot::HotTier;
use crate::ledger::Ledger;

/// Counters since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub puts: AtomicU64,
    pub put_bytes: AtomicU64,
    pub gets: AtomicU64,
    pub get_bytes: AtomicU64,
    pub deletes: AtomicU64,
    pub expired: AtomicU64,
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub corrupt: AtomicU64,
}

/// The answer of `stats`.
#[derive(Clone, Debug, Serialize)]
pub struct StoreStats {
    /// Since the start.
    pub operations: OperationStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Each backend, by name.
    pub backends: BTreeMap<String, BackendStats>,
}

/// Operations since the start.
#[derive(Clone, Debug, Serialize)]
pub struct OperationStats {
    /// Puts committed.
    pub puts: u64,
    /// Raw bytes of them.
    pub put_bytes: u64,
    /// Gets begun.
    pub gets: u64,
    /// Raw bytes read.
    pub get_bytes: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Keys expired.
    pub expired: u64,
    /// Chunks that failed their checksum.
    pub corrupt: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryStats {
    /// Of the ledger.
    pub limit: u64,
    /// Set aside right now.
    pub used: u64,
    /// Of the hot tier.
    pub hot_limit: u64,
    /// In the hot tier.
    pub hot_bytes: u64,
    /// Of weak puts that are not written yet.
    pub unwritten_bytes: u64,
    /// Gets answered from memory.
    pub hits: u64,
    /// Gets that went to a backend.
    pub misses: u64,
}

/// One backend, as far as it knows itself.
#[derive(Clone, Debug, Serialize)]
pub struct BackendStats {
    /// Values stored.
    pub values: Option<u64>,
    /// Bytes they take.
    pub used_bytes: Option<u64>,
    /// Bytes that may still be written.
    pub available_bytes: Option<u64>,
    /// Why the backend could not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl BackendStats {
    pub(crate) fn of(stats: Result<StorageStats, BackendError>) -> BackendStats {
        let error = stats.as_ref().err().map(ToString::to_string);
        let stats = stats.unwrap_or_default();
        BackendStats { values: stats.values, used_bytes: stats.used_bytes, available_bytes: stats.available_bytes, error }
    }
}

impl Counters {
    pub fn snapshot(
        &self,
        ledger: &Ledger,
        hot: &[Arc<HotTier>],
        unwritten_bytes: u64,
        backends: BTreeMap<String, BackendStats>,
    ) -> StoreStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreStats {
            operations: OperationStats {
                puts: of(&self.puts),
                put_bytes: of(&self.put_bytes),
                gets: of(&self.gets),
                get_bytes: of(&self.get_bytes),
                deletes: of(&self.deletes),
                expired: of(&self.expired),
                corrupt: of(&self.corrupt),
            },
            memory: MemoryStats {
                limit: ledger.limit(),
                used: ledger.used(),
                hot_limit: hot[0].limit(),
                hot_bytes: hot.iter().map(|hot| hot.bytes()).sum(),
                unwritten_bytes,
                hits: of(&self.hits),
                misses: of(&self.misses),
            },
            backends,
        }
    }
}
