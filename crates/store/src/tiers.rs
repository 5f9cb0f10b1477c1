//! Tiers: what is used least leaves the warm one for the cold one before it is full, and comes back when it is read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use sira_wire::Key;
use sira_wire::namespace::Tiers;
use tokio::sync::Notify;

use crate::StoreError;
use crate::client::{Inner, Tier, needs};
use crate::fitness::Standing;
use crate::moves::Move;
use crate::namespaces::{Coldest, Namespace, count};
use crate::record::TensorRecord;

/// Keys that were read from a cold tier lately, and how often: more are forgotten, the least recent first.
const READ: usize = 4096;

/// Keys that wait to be promoted; more of them are read again before they are.
const WAITING: usize = 256;

/// How tensors move between tiers.
#[derive(Clone, Debug, PartialEq)]
pub struct TierOptions {
    /// The tiers of namespaces that name none; without, only those move that do.
    pub tiers: Option<Tiers>,
    /// Bytes that the tensors of all namespaces together may take of a backend.
    pub limits: BTreeMap<String, u64>,
    /// Percent of a limit at which tensors begin to leave a tier.
    pub high_watermark: u8,
    /// Percent at which that ends.
    pub low_watermark: u8,
    /// Gets from the cold tier after which a tensor moves to the warm one; 0 for never.
    pub promote_after: u32,
    /// Bytes a second of moves that nobody waits for.
    pub move_rate: Option<u64>,
}

impl Default for TierOptions {
    fn default() -> TierOptions {
        TierOptions { tiers: None, limits: BTreeMap::new(), high_watermark: 90, low_watermark: 80, promote_after: 2, move_rate: None }
    }
}

/// What is known of use, and who is told of it.
pub(crate) struct TierWork {
    read: Mutex<LruCache<Arc<str>, u32>>,
    promoting: Mutex<LruCache<Arc<str>, ()>>,
    promote: Arc<Notify>,
    demote: Arc<Notify>,
    /// Moves that are under way, by the tier that they leave.
    leaving: Mutex<BTreeMap<String, usize>>,
}

/// A move that is under way.
pub(crate) struct Leaving<'a> {
    work: &'a TierWork,
    tier: String,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut leaving = self.work.leaving.lock();
        match leaving.get_mut(&self.tier) {
            Some(moves) if *moves > 1 => *moves -= 1,
            _ => drop(leaving.remove(&self.tier)),
        }
    }
}

impl TierWork {
    pub fn new() -> TierWork {
        let bounded = |keys: usize| std::num::NonZero::new(keys).unwrap_or(std::num::NonZero::<usize>::MIN);
        TierWork {
            read: Mutex::new(LruCache::new(bounded(READ))),
            promoting: Mutex::new(LruCache::new(bounded(WAITING))),
            promote: Arc::default(),
            demote: Arc::default(),
            leaving: Mutex::default(),
        }
    }

    /// Counts a move out of `tier` until it ends.
    pub fn leaves(&self, tier: &str) -> Leaving<'_> {
        *self.leaving.lock().entry(tier.to_owned()).or_default() += 1;
        Leaving { work: self, tier: tier.to_owned() }
    }

    /// Whether something is on its way out of `tier`: it will have more room.
    pub fn is_left(&self, tier: &str) -> bool {
        self.leaving.lock().contains_key(tier)
    }
}

/// What became of a tensor that was to leave a tier.
pub(crate) enum Left {
    /// It has left, or it was not there any more.
    Gone,
    /// It stays; why, if others will stay for the same reason.
    Stays(Option<StoreError>),
}

/// Starts the work in the background, which ends with the store.
pub(crate) fn spawn(inner: &Arc<Inner>) {
    let every = inner.options.reap_interval;
    spawn_loop(inner, inner.tiering.demote.clone(), every, |inner| Box::pin(async move { demote_all(&inner).await }));
    spawn_loop(inner, inner.tiering.promote.clone(), every, |inner| Box::pin(async move { promote_all(&inner).await }));
}

/// Runs `work` when told, and every so often.
pub(crate) fn spawn_loop(
    inner: &Arc<Inner>,
    nudge: Arc<Notify>,
    every: Duration,
    work: impl Fn(Arc<Inner>) -> futures::future::BoxFuture<'static, ()> + Send + Sync + 'static,
) {
    let weak = Arc::downgrade(inner);
    inner.seams.spawner.spawn(Box::pin(async move {
        loop {
            let _ = tokio::time::timeout(every, nudge.notified()).await;
            // Held while waiting, the store would never end.
            let Some(inner) = weak.upgrade() else { return };
            if inner.stopping.load(Ordering::SeqCst) {
                return;
            }
            work(inner).await;
        }
    }));
}

impl Inner {
    /// The home of a put of `nbytes`, for which the router has chosen `home`: what can never find room in it goes to the tier below.
    pub fn fitting(&self, namespace: &Namespace, home: Arc<Tier>, nbytes: u64) -> Result<Arc<Tier>, StoreError> {
        let policy = namespace.policy();
        if let Some(first) = policy.copies.first().filter(|_| !policy.copies.contains(&home.name)) {
            let well = |name: &&String| self.tier(name).is_ok_and(|tier| tier.meter.fitness.standing() != Standing::Out);
            // Where none is, the put itself says what is wrong.
            return self.tier(policy.copies.iter().find(well).unwrap_or(first));
        }
        let limits = [namespace.limit(&home.name), namespace.room.limit(&home.name)];
        match namespace.below(&home.name) {
            Some(below) if limits.into_iter().flatten().any(|limit| nbytes > limit) => self.tier(&below),
            _ => Ok(home),
        }
    }

    /// Tells the background of a tier that has passed its high watermark with `record`.
    pub fn check_watermark(&self, record: &TensorRecord) {
        let Some(namespace) = self.namespaces.find(record.key.namespace()) else { return };
        if let Some(tiers) = namespace.tiers()
            && (self.over(&namespace, &tiers.warm, self.options.tiers.high_watermark).is_some())
        {
            self.tiering.demote.notify_one();
        }
    }

    /// Whether a namespace, or all together, take more than so many percent of a tier.
    fn over(&self, namespace: &Namespace, tier: &str, percent: u8) -> Option<Over> {
        let most = |limit: u64| (u128::from(limit) * u128::from(percent) / 100) as u64;
        let own = namespace.limit(tier).is_some_and(|limit| namespace.taken(tier) > most(limit));
        let all = namespace.room.limit(tier).is_some_and(|limit| namespace.room.taken(tier) > most(limit));
        match (own, all) {
            (true, _) => Some(Over::Own),
            (false, true) => Some(Over::All),
            _ => None,
        }
    }

    /// Has `key`, which was used least recently, leave `tier`: it moves below, or a cache gives it up. `throttled`: nobody waits for it.
    pub async fn leave(self: &Arc<Self>, namespace: &Arc<Namespace>, tier: &str, key: &Key, throttled: bool) -> Result<Left, StoreError> {
        if self.behind.record(key).is_some() {
            return Ok(Left::Gone);
        }
        let Some(record) = self.catalog.record(key)?.filter(|record| record.alive(self.now())) else {
            return if namespace.is_cache() { self.give_up(namespace, tier, key).await } else { Ok(Left::Gone) };
        };
        let Some(below) = namespace.below(tier) else { return self.give_up(namespace, tier, key).await };
        let lies = record.parts.iter().flat_map(|part| &part.copies).any(|copy| copy.backend == tier);
        let moved = match lies && self.tier(&below)?.keeps() >= needs(record.consistency) {
            // It lies in its record, or below it would not be kept as was promised.
            false => Err(None),
            true => self.relocate(&record, Move { from: Some(tier), to: &below, verify: false, throttled }).await.map_err(Some),
        };
        match moved {
            Ok(Some(bytes)) => {
                self.moves.demoted.add(bytes);
                count(&namespace.counters.demotions, 1);
                // What waits for the room waits for the old chunks to go.
                if let Err(error) = crate::upkeep::collect(self, &record.write_id).await {
                    tracing::warn!(%error, %key, "what a moved tensor took is collected later");
                }
                Ok(Left::Gone)
            }
            Ok(None) => Ok(Left::Gone),
            // A cache may lose it, at the last.
            Err(error) if namespace.is_cache() && !throttled => {
                if let Some(error) = error {
                    tracing::warn!(%error, %key, "cannot be moved below; it is evicted");
                }
                self.give_up(namespace, tier, key).await
            }
            // Damage, and what is as good as that, is its own.
            Err(Some(error @ (StoreError::OutOfSpace(_) | StoreError::Busy(_) | StoreError::Backend { .. }))) => {
                Ok(Left::Stays(Some(error)))
            }
            Err(error) => {
                if let Some(error) = error {
                    tracing::warn!(%error, %key, "cannot be moved below");
                }
                Ok(Left::Stays(None))
            }
        }
    }

    /// Counts a get that read `record` from `backend`; one that is read often there moves up.
    pub fn read_below(&self, namespace: &Namespace, record: &TensorRecord, backend: &str) {
        let after = self.options.tiers.promote_after;
        if after == 0 || namespace.above(backend).is_none() {
            return;
        }
        let mut read = self.tiering.read.lock();
        let times = read.get_or_insert_mut(record.key.as_str().into(), || 0);
        *times += 1;
        if *times >= after {
            read.pop(record.key.as_str());
            drop(read);
            self.tiering.promoting.lock().push(record.key.as_str().into(), ());
            self.tiering.promote.notify_one();
        }
    }

    /// Moves a key up, if it is still below and there may be room for it.
    async fn promote(self: &Arc<Self>, key: &Key) -> Result<(), StoreError> {
        let Some(record) = self.catalog.record(key)?.filter(|record| record.alive(self.now())) else { return Ok(()) };
        let namespace = self.namespaces.of(key.namespace());
        let Some(Tiers { warm, cold }) = namespace.tiers().filter(|_| self.behind.record(key).is_none()) else { return Ok(()) };
        let bytes = record.stored(&self.options.record_backend).get(&cold).copied().unwrap_or(0);
        let limits = [namespace.limit(&warm), namespace.room.limit(&warm)];
        // What would take most of the tier would only drive the others out.
        if bytes == 0 || limits.into_iter().flatten().any(|limit| bytes > limit / 4) {
            return Ok(());
        }
        if let Some(moved) = self.relocate(&record, Move { from: Some(&cold), to: &warm, verify: false, throttled: true }).await? {
            self.moves.promoted.add(moved);
            count(&namespace.counters.promotions, 1);
            namespace.used(key, self.now());
        }
        Ok(())
    }
}

/// Whose limit is passed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Own,
    All,
}

/// Brings every tier that has passed its high watermark below the low one.
async fn demote_all(inner: &Arc<Inner>) {
    inner.sweep_moves().await;
    for namespace in inner.namespaces.all() {
        let Some(tiers) = namespace.tiers() else { continue };
        if inner.over(&namespace, &tiers.warm, inner.options.tiers.high_watermark).is_some() {
            demote_from(inner, &namespace, &tiers.warm).await;
        }
    }
}

async fn demote_from(inner: &Arc<Inner>, namespace: &Arc<Namespace>, tier: &str) {
    let mut stay = Vec::new();
    while !inner.stopping.load(Ordering::SeqCst) {
        let coldest = match inner.over(namespace, tier, inner.options.tiers.low_watermark) {
            Some(Over::Own) => namespace.coldest(tier).map(|key| (namespace.clone(), key)),
            Some(Over::All) => inner.namespaces.coldest(tier, |other| other.below(tier).is_some()),
            None => break,
        };
        let Some((of, coldest)) = coldest else { break };
        let left = match coldest.0.parse() {
            Ok(key) => inner.leave(&of, tier, &key, true).await,
            Err(error) => Err(StoreError::from(error)),
        };
        let why = match left {
            Ok(Left::Gone) => continue,
            Ok(Left::Stays(why)) => why,
            Err(error) => Some(error),
        };
        stay.push((of, coldest));
        if let Some(error) = why {
            tracing::warn!(%error, tier, "nothing moves to the tier below; it is tried again");
            break;
        }
        if stay.len() >= MOST_STAY {
            break;
        }
    }
    put_back(tier, stay);
}

/// Tensors that may stay before no others are tried.
pub(crate) const MOST_STAY: usize = 64;

/// Puts keys back in the order that they came out in.
pub(crate) fn put_back(tier: &str, stay: Vec<Coldest>) {
    for (namespace, key) in stay.into_iter().rev() {
        namespace.keep(tier, key);
    }
}

async fn promote_all(inner: &Arc<Inner>) {
    loop {
        let next = inner.tiering.promoting.lock().pop_lru();
        let Some((key, ())) = next else { return };
        if inner.stopping.load(Ordering::SeqCst) {
            return;
        }
        let promoted = match key.parse() {
            Ok(key) => inner.promote(&key).await,
            Err(error) => Err(StoreError::from(error)),
        };
        if let Err(error) = promoted {
            tracing::warn!(%error, %key, "not promoted");
        }
    }
}
