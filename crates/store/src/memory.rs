//! Memory of the store: who gets it, who gives way, what stays in it.

use std::sync::Arc;

use sira_wire::Key;
use xxhash_rust::xxh3::xxh3_64;

use crate::StoreError;
use crate::client::Inner;
use crate::hot::{HotPart, HotTier};
use crate::ledger::Reservation;
use crate::namespaces::Namespace;

/// Parts that are moved at once to memory that can be shared.
pub(crate) const SHARING: usize = 16;

impl Inner {
    /// Sets `bytes` aside, and waits for them where they are taken.
    pub async fn reserve(&self, bytes: u64) -> Result<Reservation, StoreError> {
        self.ledger.reserve(bytes, |bytes| self.evict(bytes)).await
    }

    /// The same, or nothing: who asks holds something that others wait for.
    pub fn reserve_now(&self, bytes: u64) -> Result<Reservation, StoreError> {
        let reserve = || self.ledger.try_reserve(bytes);
        let reserved = reserve().or_else(|| {
            self.evict(bytes);
            reserve()
        });
        reserved.ok_or_else(|| StoreError::Busy(format!("no {bytes} bytes of memory are free now")))
    }

    /// Evicts at least `bytes` from memory, or all: first what namespaces share.
    pub fn evict(&self, bytes: u64) {
        let before = self.shared.bytes();
        self.shared.evict(bytes);
        let freed = before.saturating_sub(self.shared.bytes());
        if freed < bytes {
            self.namespaces.evict(bytes - freed);
            self.calibrations.evict();
        }
    }

    /// The part of memory that holds the tensors of a namespace.
    pub fn hot(&self, namespace: &Namespace) -> Arc<HotTier> {
        namespace.hot().unwrap_or_else(|| self.shared.clone())
    }

    /// Every part of memory.
    pub fn all_memory(&self) -> Vec<Arc<HotTier>> {
        let own = self.namespaces.all().into_iter().filter_map(|namespace| namespace.hot());
        std::iter::once(self.shared.clone()).chain(own).collect()
    }

    /// Keeps part number `index` of a record in memory, unless the record has been replaced meanwhile: whoever replaced it has forgotten already
    /// what was in memory of it, so that nobody else would.
    pub fn keep_hot(&self, hot: &HotTier, key: &Key, write_id: &str, index: usize, part: Arc<HotPart>) {
        hot.insert(write_id, index, part);
        let is_present = self.current(key).is_ok_and(|record| record.is_some_and(|record| record.write_id == write_id));
        if !is_present {
            hot.remove(write_id, index);
        }
    }

    /// Drops from memory what was not read for as long as the configuration says.
    pub fn forget_unread(&self) {
        let Some(ttl) = self.options.cache_ttl else { return };
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.all_memory().iter().for_each(|hot| hot.forget_unread(self.now(), ttl_ms));
    }

    /// Whoever moves a part of `write_id` to memory that can be shared holds this.
    pub async fn sharing(&self, write_id: &str) -> tokio::sync::MutexGuard<'_, ()> {
        self.sharing[xxh3_64(write_id.as_bytes()) as usize % SHARING].lock().await
    }
}
