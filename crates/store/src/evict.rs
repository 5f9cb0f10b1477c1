//! Room within the limits of namespaces: a store refuses, a cache evicts what was used least recently.

use std::sync::Arc;

use sira_wire::Key;
use tokio::time::{Instant, timeout_at};

use crate::client::Inner;
use crate::namespaces::{Namespace, Promise, Short, count};
use crate::{StoreError, behind, upkeep};

impl Inner {
    /// Promises `nbytes` of a tier to a put of `key`.
    pub async fn promise(self: &Arc<Self>, namespace: &Arc<Namespace>, key: &Key, tier: &str, nbytes: u64) -> Result<Promise, StoreError> {
        if namespace.limit(tier).is_none()
            && let Ok(promise) = namespace.promise(tier, nbytes, 0, 0)
        {
            return Ok(promise);
        }
        // The key's own present value makes room by being replaced, and only then: it is not evicted for that.
        let mut own = None;
        let promised = self.make_room(namespace, key, tier, nbytes, &mut own).await;
        if let Some(own) = own {
            namespace.keep(tier, own);
        }
        promised
    }

    async fn make_room(
        self: &Arc<Self>,
        namespace: &Arc<Namespace>,
        key: &Key,
        tier: &str,
        nbytes: u64,
        own: &mut Option<Arc<str>>,
    ) -> Result<Promise, StoreError> {
        let (mut reaped, mut written) = (false, false);
        let give_up = Instant::now() + self.options.patience;
        loop {
            let released = namespace.released.notified();
            let stored = self.catalog.record(key)?.filter(|record| !record.tombstone);
            let current = stored.map_or(0, |record| record.stored(&self.options.record_backend).get(tier).copied().unwrap_or(0));
            let short = match namespace.promise(tier, nbytes, current, self.behind.promised(key, tier)) {
                Ok(promise) => return Ok(promise),
                Err(short) => short,
            };
            if !reaped {
                // What has expired takes room until it is buried.
                reaped = true;
                upkeep::reap(self).await?;
                continue;
            }
            let evictable = namespace.is_cache() && short == Short::Held;
            if let Some(victim) = evictable.then(|| namespace.coldest(tier)).flatten() {
                match &*victim == key.as_str() {
                    true => *own = Some(victim),
                    false => self.evict_key(namespace, tier, victim).await?,
                }
                continue;
            }
            // What waits to be written behind was promised its room, and can be given up, or counts for less, once it is written.
            if !written && !self.behind.is_empty() {
                written = true;
                behind::write_soon(self).await;
                continue;
            }
            // Other puts have been promised what is missing: once they are done, a cache can give that up.
            let fits = namespace.limit(tier).is_none_or(|limit| nbytes <= limit);
            if !(namespace.is_cache() && fits && timeout_at(give_up, released).await.is_ok()) {
                return Err(full(namespace, tier, nbytes));
            }
            written = false;
        }
    }

    /// Brings a cache within its limits, after they were set.
    pub async fn shrink(self: &Arc<Self>, namespace: &Arc<Namespace>) -> Result<(), StoreError> {
        for tier in namespace.policy().limits.keys() {
            while namespace.is_cache() && namespace.promise(tier, 0, 0, 0).err() == Some(Short::Held) {
                let Some(victim) = namespace.coldest(tier) else { break };
                self.evict_key(namespace, tier, victim).await?;
            }
        }
        Ok(())
    }

    /// Removes a key of a cache that was used least recently, unless it has been put anew since it was chosen.
    async fn evict_key(self: &Arc<Self>, namespace: &Arc<Namespace>, tier: &str, victim: Arc<str>) -> Result<(), StoreError> {
        let key: Key = victim.parse()?;
        let _turn = self.lock(&key).await;
        if namespace.holds(tier, &victim) || self.behind.record(&key).is_some() {
            return Ok(());
        }
        let Some(stored) = self.catalog.record(&key)?.filter(|record| !record.tombstone) else { return Ok(()) };
        let evicted = self.bury(stored).await;
        match evicted {
            Ok(()) => count(&namespace.counters.evictions, 1),
            Err(_) => namespace.keep(tier, victim),
        }
        evicted
    }
}

fn full(namespace: &Namespace, tier: &str, nbytes: u64) -> StoreError {
    let (name, limit) = (&namespace.name, namespace.limit(tier).unwrap_or(0));
    StoreError::OutOfSpace(format!(
        "namespace {name} may take {limit} bytes of {tier}, and there is no room for {nbytes} more; delete something, or raise limits.{tier}"
    ))
}
