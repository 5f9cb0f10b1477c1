//! What the backends share: a count of bytes that never passes its limit, locks striped by name, and small checks.

use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{BackendError, StorageStats};

/// A file system: bytes that it still has for us, and all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    pub(crate) free: u64,
    pub(crate) size: u64,
}

/// Bytes and values stored, within a limit. Exact as long as each name changes under its stripe.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    limit: Option<u64>,
    used: AtomicU64,
    values: AtomicU64,
}

impl Ledger {
    pub(crate) fn new(limit: Option<u64>) -> Ledger {
        Ledger { limit, ..Ledger::default() }
    }

    /// Counts a value that lay there before, whatever the limit.
    pub(crate) fn found(&self, len: u64) {
        self.used.fetch_add(len, Ordering::Relaxed);
        self.values.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts many values that lay there before.
    #[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn found_all(&self, values: u64, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.values.fetch_add(values, Ordering::Relaxed);
    }

    /// Makes room for `new` bytes in place of `old`. A value that does not grow always fits, so a full backend can still be
    /// rewritten, and shrunk after its limit was lowered.
    pub(crate) fn replace(&self, old: Option<u64>, new: u64) -> Result<(), BackendError> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| self.after(used, old, new))
            .map_err(|used| self.full(used, new))?;
        if old.is_none() {
            self.values.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether `replace` would work now: spares the bytes' way to the disk where it would not.
    pub(crate) fn would_fit(&self, old: Option<u64>, new: u64) -> Result<(), BackendError> {
        let used = self.used.load(Ordering::Relaxed);
        self.after(used, old, new).map(|_| ()).ok_or_else(|| self.full(used, new))
    }

    /// Takes back a `replace` whose write failed.
    pub(crate) fn undo(&self, old: Option<u64>, new: u64) {
        self.used.fetch_add(old.unwrap_or(0).wrapping_sub(new), Ordering::Relaxed);
        if old.is_none() {
            self.values.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a value as gone.
    pub(crate) fn remove(&self, old: u64) {
        self.used.fetch_sub(old, Ordering::Relaxed);
        self.values.fetch_sub(1, Ordering::Relaxed);
    }

    /// What is stored, and how much more may be: of the limit, and of what the disk has.
    pub(crate) fn stats(&self, disk: Option<Disk>) -> StorageStats {
        let free = disk.map(|disk| disk.free);
        let used = self.used.load(Ordering::Relaxed);
        let of_limit = self.limit.map(|limit| limit.saturating_sub(used));
        StorageStats {
            values: Some(self.values.load(Ordering::Relaxed)),
            used_bytes: Some(used),
            available_bytes: of_limit.into_iter().chain(free).min(),
            disk_free_bytes: free,
            disk_bytes: disk.map(|disk| disk.size),
        }
    }

    fn after(&self, used: u64, old: Option<u64>, new: u64) -> Option<u64> {
        let old = old.unwrap_or(0);
        // Outside the stripe, `old` may be of a moment when more was used.
        let after = used.saturating_sub(old).checked_add(new)?;
        (new <= old || self.limit.is_none_or(|limit| after <= limit)).then_some(after)
    }

    fn full(&self, used: u64, new: u64) -> BackendError {
        let limit = self.limit.unwrap_or(u64::MAX);
        BackendError::OutOfSpace(format!("{used} bytes are stored and {new} more would pass the limit of {limit}"))
    }
}

/// Locks for names: two names share one now and then, which costs only time.
#[derive(Debug)]
pub(crate) struct Stripes<L> {
    locks: Vec<L>,
    hasher: std::hash::RandomState,
}

impl<L: Default> Default for Stripes<L> {
    fn default() -> Stripes<L> {
        Stripes { locks: std::iter::repeat_with(L::default).take(1024).collect(), hasher: std::hash::RandomState::new() }
    }
}

impl<L> Stripes<L> {
    pub(crate) fn of(&self, name: &str) -> &L {
        let hash = self.hasher.hash_one(name) as usize;
        &self.locks[hash % self.locks.len()]
    }
}

/// The range, or all, as places within a value of `len` bytes.
pub(crate) fn within(range: Option<Range<u64>>, len: u64) -> Result<Range<u64>, BackendError> {
    let Range { start, end } = range.unwrap_or(0..len);
    if start > end || end > len {
        return Err(BackendError::BadRange { start, end, len });
    }
    Ok(start..end)
}

/// Refuses a value that the backend does not take.
pub(crate) fn check_size(len: u64, limit: u64) -> Result<(), BackendError> {
    if len > limit {
        return Err(BackendError::TooLarge { len, limit });
    }
    Ok(())
}

/// Runs work that may wait for a disk where it blocks no async task. It runs to its end even if the caller gives up.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> Result<T, BackendError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(lost) => Err(BackendError::Unavailable { context: "a storage task was lost".into(), source: lost.into() }),
    }
}

/// Whether an I/O error says that there is no room.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_exact() {
        let ledger = Ledger::new(Some(10));
        ledger.replace(None, 10).unwrap();
        assert!(matches!(ledger.replace(None, 1), Err(BackendError::OutOfSpace(_))));
        ledger.replace(None, 0).unwrap();
        ledger.replace(Some(10), 10).unwrap();
        ledger.replace(Some(10), 4).unwrap();
        ledger.undo(Some(10), 4);
        let disk = |available| StorageStats {
            available_bytes: Some(available),
            disk_free_bytes: Some(7),
            disk_bytes: Some(9),
            ..StorageStats::default()
        };
        let stats = || ledger.stats(Some(Disk { free: 7, size: 9 }));
        assert_eq!(stats(), StorageStats { values: Some(2), used_bytes: Some(10), ..disk(0) });
        ledger.remove(10);
        ledger.replace(None, 3).unwrap();
        ledger.undo(None, 3);
        assert_eq!(stats(), StorageStats { values: Some(1), used_bytes: Some(0), ..disk(7) });
    }

    #[test]
    fn a_lowered_limit_lets_values_shrink() {
        let ledger = Ledger::new(Some(5));
        ledger.found(8);
        ledger.replace(Some(8), 7).unwrap();
        ledger.replace(Some(7), 8).unwrap_err();
    }
}
