//! Room within the limits of namespaces: a store refuses, a cache evicts what was used least recently.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use sira_wire::Key;
use tokio::time::{Instant, timeout_at};

use crate::client::Inner;
use crate::namespaces::{Coldest, Namespace, Promise, count};
use crate::room::Short;
use crate::tiers::{Left, MOST_STAY, put_back};
use crate::{StoreError, behind, upkeep};

/// What a put of a key replaces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replaces {
    /// What the key has in the tier, and what waits of it.
    Present,
    /// Nothing: its bytes come beside those that are there.
    Nothing,
}

impl Inner {
    /// Promises `nbytes` of a tier to a put of `key`.
    pub async fn promise(self: &Arc<Self>, namespace: &Arc<Namespace>, key: &Key, tier: &str, nbytes: u64) -> Result<Promise, StoreError> {
        self.promised(namespace, key, tier, nbytes, Replaces::Present).await
    }

    /// Promises `nbytes` of a tier for another copy of what `key` has.
    pub fn promise_more<'a>(
        self: &'a Arc<Self>,
        namespace: &'a Arc<Namespace>,
        key: &'a Key,
        tier: &'a str,
        nbytes: u64,
    ) -> BoxFuture<'a, Result<Promise, StoreError>> {
        // Room in one tier may be made by a move to another, which is promised room there.
        self.promised(namespace, key, tier, nbytes, Replaces::Nothing).boxed()
    }

    async fn promised(
        self: &Arc<Self>,
        namespace: &Arc<Namespace>,
        key: &Key,
        tier: &str,
        nbytes: u64,
        replaces: Replaces,
    ) -> Result<Promise, StoreError> {
        if namespace.limit(tier).is_none()
            && namespace.room.limit(tier).is_none()
            && let Ok(promise) = namespace.promise(tier, nbytes, 0, 0)
        {
            return Ok(promise);
        }
        // The key's own present value makes room by being replaced, and only then: it does not leave for that. Nor does what cannot.
        let mut stay = Vec::new();
        let promised = self.make_room(namespace, key, tier, nbytes, replaces, &mut stay).await;
        put_back(tier, stay);
        promised
    }

    async fn make_room(
        self: &Arc<Self>,
        namespace: &Arc<Namespace>,
        key: &Key,
        tier: &str,
        nbytes: u64,
        replaces: Replaces,
        stay: &mut Vec<Coldest>,
    ) -> Result<Promise, StoreError> {
        let (mut reaped, mut written, mut why) = (false, false, None);
        let give_up = Instant::now() + self.options.patience;
        loop {
            let (released, all_released) = (namespace.released.notified(), namespace.room.released.notified());
            let (current, waiting) = match replaces {
                Replaces::Nothing => (0, 0),
                Replaces::Present => {
                    let stored = self.catalog.record(key)?.filter(|record| !record.tombstone);
                    let current = stored.map_or(0, |record| record.stored(&self.options.record_backend).get(tier).copied().unwrap_or(0));
                    (current, self.behind.promised(key, tier))
                }
            };
            let short = match namespace.promise(tier, nbytes, current, waiting) {
                Ok(promise) => return Ok(promise),
                Err(short) => short,
            };
            if !reaped {
                // What has expired takes room until it is buried.
                reaped = true;
                upkeep::reap(self).await?;
                continue;
            }
            let of_all = matches!(short, Short::AllHeld | Short::AllPromised);
            if matches!(short, Short::Held | Short::AllHeld)
                && why.is_none()
                && stay.len() < MOST_STAY
                && let Some(coldest) = self.coldest(namespace, tier, of_all)
            {
                why = self.make_leave(tier, key, coldest, stay).await?;
                continue;
            }
            // What waits to be written behind was promised its room, and can be given up, or counts for less, once it is written.
            if !written && !self.behind.is_empty() {
                written = true;
                behind::write_soon(self).await;
                continue;
            }
            // Other puts have been promised what is missing: once they are done, it can leave.
            let limits = [namespace.limit(tier), namespace.room.limit(tier)];
            let fits = limits.into_iter().flatten().all(|limit| nbytes <= limit);
            let yields = if of_all { self.namespaces.all().iter().any(|other| other.yields(tier)) } else { namespace.yields(tier) };
            // Those that were asked and stay will not leave later either, unless a move that is under way made them.
            let stuck = why.is_some() || stay.iter().any(|(_, (victim, _))| &**victim != key.as_str());
            let waits = self.tiering.is_left(tier) || (yields && !stuck);
            let waited = async { if of_all { all_released.await } else { released.await } };
            if !(waits && fits && timeout_at(give_up, waited).await.is_ok()) {
                return Err(full(namespace, tier, nbytes, of_all, why));
            }
            put_back(tier, std::mem::take(stay));
            (written, why) = (false, None);
        }
    }

    /// What is to leave `tier` first: of a namespace, or of all.
    fn coldest(&self, namespace: &Arc<Namespace>, tier: &str, of_all: bool) -> Option<Coldest> {
        if of_all {
            return self.namespaces.coldest(tier, |other| other.yields(tier));
        }
        let yields = namespace.yields(tier);
        yields.then(|| namespace.coldest(tier)).flatten().map(|key| (namespace.clone(), key))
    }

    /// Has a key leave `tier` for a put of `key`; says why, where others will not leave either.
    async fn make_leave(
        self: &Arc<Self>,
        tier: &str,
        key: &Key,
        coldest: Coldest,
        stay: &mut Vec<Coldest>,
    ) -> Result<Option<StoreError>, StoreError> {
        let (namespace, (victim, _)) = &coldest;
        if &**victim == key.as_str() {
            stay.push(coldest);
            return Ok(None);
        }
        let left = self.leave(namespace, tier, &victim.parse()?, false).await;
        match left {
            Ok(Left::Gone) => Ok(None),
            Ok(Left::Stays(why)) => {
                stay.push(coldest);
                Ok(why)
            }
            Err(error) => {
                stay.push(coldest);
                Err(error)
            }
        }
    }

    /// Brings a namespace within its limits, after they were set: what can leave does.
    pub async fn shrink(self: &Arc<Self>, namespace: &Arc<Namespace>) -> Result<(), StoreError> {
        for tier in namespace.policy().limits.keys() {
            let mut stay = Vec::new();
            while stay.len() < MOST_STAY && namespace.promise(tier, 0, 0, 0).err() == Some(Short::Held) {
                let Some(victim) = self.coldest(namespace, tier, false) else { break };
                let left = self.leave(namespace, tier, &victim.1.0.parse()?, false).await;
                match left {
                    Ok(Left::Gone) => {}
                    Ok(Left::Stays(None)) => stay.push(victim),
                    Ok(Left::Stays(Some(error))) | Err(error) => {
                        stay.push(victim);
                        put_back(tier, stay);
                        return Err(error);
                    }
                }
            }
            put_back(tier, stay);
        }
        Ok(())
    }

    /// Removes a key of a cache that was used least recently, unless it has been put anew since it was chosen.
    pub async fn give_up(self: &Arc<Self>, namespace: &Arc<Namespace>, tier: &str, key: &Key) -> Result<Left, StoreError> {
        let _turn = self.lock(key).await;
        if namespace.holds(tier, key.as_str()) || self.behind.record(key).is_some() {
            return Ok(Left::Gone);
        }
        let Some(stored) = self.catalog.record(key)?.filter(|record| !record.tombstone) else { return Ok(Left::Gone) };
        self.bury(stored).await?;
        count(&namespace.counters.evictions, 1);
        Ok(Left::Gone)
    }
}

fn full(namespace: &Namespace, tier: &str, nbytes: u64, of_all: bool, why: Option<StoreError>) -> StoreError {
    let (name, limit) = (&namespace.name, if of_all { namespace.room.limit(tier) } else { namespace.limit(tier) }.unwrap_or(0));
    let moved = why.map(|why| format!(", and nothing moves to the tier below it: {why}")).unwrap_or_default();
    StoreError::OutOfSpace(match of_all {
        true => format!(
            "tensors may take {limit} bytes of {tier}, and there is no room for {nbytes} more{moved}; delete something, or raise \
             storage.backends.{tier}.max_size"
        ),
        false => format!(
            "namespace {name} may take {limit} bytes of {tier}, and there is no room for {nbytes} more{moved}; delete something, or raise limits.{tier}"
        ),
    })
}
