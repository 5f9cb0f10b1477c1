//! Namespaces: what holds for their keys, what these take in each tier, and what a cache gives up first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use sira_backend::name;
use sira_codec::Chain;
use sira_wire::Key;
use sira_wire::namespace::{Mode, NamespaceEntry, NamespaceOperations, Policy, PolicyOrigin, Tiers};
use tokio::sync::Notify;

use crate::StoreError;
use crate::hot::HotTier;
use crate::ledger::Ledger;
use crate::record::TensorRecord;
use crate::room::{Room, Short};
use crate::tiers::TierOptions;

/// What the names of stored policies start with.
pub(crate) const POLICIES: &str = "n/";

/// The tier that is not a backend.
pub(crate) const MEMORY: &str = "memory";

/// The name of a namespace's stored policy.
pub(crate) fn policy_name(namespace: &str) -> String {
    format!("{POLICIES}{}", name::components(&name::escape(namespace.as_bytes())))
}

/// A key of its namespace, with the time of its last use.
pub(crate) type Coldest = (Arc<Namespace>, (Arc<str>, u64));

/// One namespace.
pub(crate) struct Namespace {
    pub name: String,
    rules: RwLock<Rules>,
    usage: Mutex<Usage>,
    /// Keys of a cache in each tier, and of a store in the warm one, with the time of their last use, the least recent last; none of a store without
    /// tiers.
    order: Mutex<BTreeMap<String, LruCache<Arc<str>, u64>>>,
    pub counters: Counters,
    /// Told when a promise is given back.
    pub released: Notify,
    /// Bytes of its parts in memory.
    pub memory: Arc<AtomicU64>,
    /// What all namespaces together may take of each tier.
    pub room: Arc<Room>,
    /// Of a namespace that names none.
    default_tiers: Option<Tiers>,
}

#[derive(Clone)]
struct Rules {
    policy: Arc<Policy>,
    origin: PolicyOrigin,
    /// Its own part of memory, where it has a limit there.
    hot: Option<Arc<HotTier>>,
}

/// What live tensors take, and what running puts have been promised.
#[derive(Debug, Default)]
struct Usage {
    keys: u64,
    nbytes: u64,
    bytes: BTreeMap<String, u64>,
    promised: BTreeMap<String, u64>,
}

/// Since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub puts: AtomicU64,
    pub put_bytes: AtomicU64,
    pub gets: AtomicU64,
    pub get_bytes: AtomicU64,
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub deletes: AtomicU64,
    pub evictions: AtomicU64,
    pub demotions: AtomicU64,
    pub promotions: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Namespace {
    fn new(name: &str, room: Arc<Room>, default_tiers: Option<Tiers>) -> Namespace {
        Namespace {
            name: name.to_owned(),
            rules: RwLock::new(Rules { policy: Arc::default(), origin: PolicyOrigin::Default, hot: None }),
            usage: Mutex::default(),
            order: Mutex::default(),
            counters: Counters::default(),
            released: Notify::new(),
            memory: Arc::default(),
            room,
            default_tiers,
        }
    }

    /// What holds for its keys.
    pub fn policy(&self) -> Arc<Policy> {
        self.rules.read().policy.clone()
    }

    /// Whether it may lose what is used least.
    pub fn is_cache(&self) -> bool {
        self.rules.read().policy.mode == Mode::Cache
    }

    /// Its own part of memory, where it has one.
    pub fn hot(&self) -> Option<Arc<HotTier>> {
        self.rules.read().hot.clone()
    }

    /// The codec of puts that do not say, where the policy has one for `home`.
    pub fn codec(&self, home: &str) -> Result<Option<Chain>, StoreError> {
        Ok(self.rules.read().policy.codecs.get(home).map(|text| text.parse()).transpose()?)
    }

    /// The tiers that its tensors move between.
    pub fn tiers(&self) -> Option<Tiers> {
        let policy = self.policy();
        let own = || policy.tiers.clone().or_else(|| self.default_tiers.clone());
        policy.copies.is_empty().then(own).flatten()
    }

    /// The tier to which what lies in `tier` may move for good.
    pub fn below(&self, tier: &str) -> Option<String> {
        self.tiers().filter(|tiers| tiers.warm == tier).map(|tiers| tiers.cold)
    }

    /// The tier to which what is read from `tier` may move.
    pub fn above(&self, tier: &str) -> Option<String> {
        self.tiers().filter(|tiers| tiers.cold == tier).map(|tiers| tiers.warm)
    }

    /// Whether something of it may leave `tier` for others to come.
    pub fn yields(&self, tier: &str) -> bool {
        self.is_cache() || self.below(tier).is_some()
    }

    /// A key was used at `now`: it leaves its tier later.
    pub fn used(&self, key: &Key, now: u64) {
        for keys in self.order.lock().values_mut() {
            // Moves it to the front as well.
            if let Some(at) = keys.get_mut(key.as_str()) {
                *at = now;
            }
        }
    }

    /// The tiers in whose order a record stands.
    pub fn ordered(&self, record: &TensorRecord, record_backend: &str) -> Vec<String> {
        if self.is_cache() {
            return record.stored(record_backend).into_keys().collect();
        }
        let lies = |tier: &String| record.parts.iter().flat_map(|part| &part.copies).any(|copy| copy.backend == *tier);
        self.tiers().map(|tiers| tiers.warm).into_iter().filter(lies).collect()
    }

    /// A key lies in these tiers, and was used at `at`, which is later than all others were.
    pub fn entered(&self, key: &str, tiers: Vec<String>, at: u64) {
        if tiers.is_empty() {
            return;
        }
        let (mut order, key) = (self.order.lock(), Arc::<str>::from(key));
        for tier in tiers {
            order.entry(tier).or_insert_with(LruCache::unbounded).push(key.clone(), at);
        }
    }

    /// Takes a key out of every order; gives when it was used last.
    fn left(&self, key: &str) -> Option<u64> {
        self.order.lock().values_mut().filter_map(|keys| keys.pop(key)).max()
    }

    /// The index now has `new` where it had `old`.
    pub fn replaced(&self, old: Option<&TensorRecord>, new: Option<&TensorRecord>, record_backend: &str) {
        let live = |record: &&TensorRecord| !record.tombstone;
        let (old, new) = (old.filter(live), new.filter(live));
        let mut usage = self.usage.lock();
        if let Some(old) = old {
            usage.keys = usage.keys.saturating_sub(1);
            usage.nbytes = usage.nbytes.saturating_sub(old.nbytes());
            for (tier, bytes) in old.stored(record_backend) {
                let held = usage.bytes.entry(tier).or_default();
                *held = held.saturating_sub(bytes);
            }
        }
        if let Some(new) = new {
            usage.keys += 1;
            usage.nbytes += new.nbytes();
            for (tier, bytes) in new.stored(record_backend) {
                *usage.bytes.entry(tier).or_default() += bytes;
            }
        }
        drop(usage);
        self.room.replaced(old.map(|old| old.stored(record_backend)), new.map(|new| new.stored(record_backend)));
        let before = old.and_then(|old| self.left(old.key.as_str()));
        if let Some(new) = new {
            // What only moved was not used by that.
            let moved = old.is_some_and(|old| old.version == new.version);
            let at = if moved { before.unwrap_or(new.created_ms) } else { new.created_ms };
            self.entered(new.key.as_str(), self.ordered(new, record_backend), at);
        }
    }

    /// Promises `bytes` of `tier` to a put, if its limit and that of all allow it; otherwise says what stands against it. The put replaces `current`
    /// bytes that are held, and `waiting` bytes that are promised to an earlier put of its key.
    pub fn promise(self: &Arc<Self>, tier: &str, bytes: u64, current: u64, waiting: u64) -> Result<Promise, Short> {
        let limit = self.limit(tier);
        if limit.is_none() && self.room.limit(tier).is_none() {
            return Ok(Promise { of: None });
        }
        let mut usage = self.usage.lock();
        let held = usage.bytes.get(tier).copied().unwrap_or(0).saturating_sub(current);
        let promised = usage.promised.entry(tier.to_owned()).or_default();
        let needed = promised.saturating_sub(waiting).saturating_add(bytes);
        match limit {
            Some(limit) if needed > limit => return Err(Short::Promised),
            Some(limit) if held.saturating_add(needed) > limit => return Err(Short::Held),
            _ => {}
        }
        self.room.promise(tier, bytes, current, waiting)?;
        *promised += bytes;
        Ok(Promise { of: Some((self.clone(), tier.to_owned(), bytes)) })
    }

    /// Bytes that its tensors take of `tier`, and those promised to puts.
    pub fn taken(&self, tier: &str) -> u64 {
        let usage = self.usage.lock();
        let of = |map: &BTreeMap<String, u64>| map.get(tier).copied().unwrap_or(0);
        of(&usage.bytes).saturating_add(of(&usage.promised))
    }

    /// The limit in `tier`.
    pub fn limit(&self, tier: &str) -> Option<u64> {
        self.rules.read().policy.limits.get(tier).copied()
    }

    /// The key in the order of `tier` that was used least recently, which is forgotten here, and when it was.
    pub fn coldest(&self, tier: &str) -> Option<(Arc<str>, u64)> {
        self.order.lock().get_mut(tier)?.pop_lru()
    }

    /// When that key was used.
    pub fn coldest_at(&self, tier: &str) -> Option<u64> {
        self.order.lock().get(tier)?.peek_lru().map(|(_, at)| *at)
    }

    /// Whether a key stands in the order of `tier`.
    pub fn holds(&self, tier: &str, key: &str) -> bool {
        self.order.lock().get(tier).is_some_and(|keys| keys.contains(key))
    }

    /// Puts back what [`Namespace::coldest`] gave and which stays after all.
    pub fn keep(&self, tier: &str, (key, at): (Arc<str>, u64)) {
        if let Some(keys) = self.order.lock().get_mut(tier)
            && !keys.contains(&key)
        {
            keys.push(key.clone(), at);
            keys.demote(&key);
        }
    }

    /// Forgets which keys there are: they enter anew.
    pub fn disorder(&self) {
        self.order.lock().clear();
    }

    /// What a client sees of it.
    pub fn entry(&self) -> NamespaceEntry {
        let rules = self.rules.read().clone();
        let usage = self.usage.lock();
        let mut bytes = usage.bytes.clone();
        bytes.retain(|_, bytes| *bytes > 0);
        let memory = self.memory.load(Ordering::Relaxed);
        if memory > 0 {
            bytes.insert(MEMORY.to_owned(), memory);
        }
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        NamespaceEntry {
            namespace: self.name.clone(),
            policy: (*rules.policy).clone(),
            origin: rules.origin,
            keys: usage.keys,
            nbytes: usage.nbytes,
            bytes,
            operations: NamespaceOperations {
                puts: of(&counters.puts),
                put_bytes: of(&counters.put_bytes),
                gets: of(&counters.gets),
                get_bytes: of(&counters.get_bytes),
                hits: of(&counters.hits),
                misses: of(&counters.misses),
                deletes: of(&counters.deletes),
                evictions: of(&counters.evictions),
                demotions: of(&counters.demotions),
                promotions: of(&counters.promotions),
            },
        }
    }

    fn is_idle(&self) -> bool {
        self.rules.read().origin == PolicyOrigin::Default && self.usage.lock().keys == 0 && self.memory.load(Ordering::Relaxed) == 0
    }
}

/// Bytes of a tier that a running put may count on; given back when it ends, when what it stored counts instead.
pub(crate) struct Promise {
    of: Option<(Arc<Namespace>, String, u64)>,
}

impl Promise {
    /// How many bytes of `tier`.
    pub fn bytes(&self, tier: &str) -> u64 {
        self.of.as_ref().filter(|(_, of, _)| of == tier).map_or(0, |(_, _, bytes)| *bytes)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let Some((namespace, tier, bytes)) = &self.of else { return };
        if let Some(promised) = namespace.usage.lock().promised.get_mut(tier) {
            *promised = promised.saturating_sub(*bytes);
        }
        namespace.room.give_back(tier, *bytes);
        namespace.released.notify_waiters();
    }
}

/// All namespaces that have keys or a policy.
pub(crate) struct Namespaces {
    table: RwLock<HashMap<String, Arc<Namespace>>>,
    ledger: Ledger,
    record_backend: String,
    /// How many live records need each calibration artefact.
    references: Mutex<HashMap<String, u64>>,
    /// What all of them together may take of each tier.
    pub room: Arc<Room>,
    tiers: Option<Tiers>,
}

impl Namespaces {
    pub fn new(ledger: Ledger, record_backend: &str, options: &TierOptions) -> Namespaces {
        let (room, tiers) = (Arc::new(Room::new(options.limits.clone())), options.tiers.clone());
        Namespaces {
            table: RwLock::default(),
            ledger,
            record_backend: record_backend.to_owned(),
            references: Mutex::default(),
            room,
            tiers,
        }
    }

    /// The namespace, if it has keys or a policy.
    pub fn find(&self, name: &str) -> Option<Arc<Namespace>> {
        self.table.read().get(name).cloned()
    }

    /// The namespace, made where it is new.
    pub fn of(&self, name: &str) -> Arc<Namespace> {
        if let Some(found) = self.find(name) {
            return found;
        }
        self.table
            .write()
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Namespace::new(name, self.room.clone(), self.tiers.clone())))
            .clone()
    }

    /// Sets what holds for a namespace. The keys of one that becomes a cache have to enter it.
    pub fn set(&self, name: &str, policy: Policy, origin: PolicyOrigin) -> Arc<Namespace> {
        let namespace = self.of(name);
        let mut rules = namespace.rules.write();
        let hot = match (policy.limits.get(MEMORY), rules.hot.take()) {
            (Some(limit), Some(own)) => {
                own.resize(*limit);
                Some(own)
            }
            (Some(limit), None) => Some(Arc::new(HotTier::new(*limit, self.ledger.clone()))),
            (None, _) => None,
        };
        *rules = Rules { policy: Arc::new(policy), origin, hot };
        drop(rules);
        namespace
    }

    /// The index now has `new` where it had `old`.
    pub fn replaced(&self, old: Option<&TensorRecord>, new: Option<&TensorRecord>) {
        if let Some(record) = new.or(old) {
            self.of(record.key.namespace()).replaced(old, new, &self.record_backend);
        }
        let needs =
            |record: Option<&TensorRecord>| record.filter(|record| !record.tombstone).is_some_and(|r| r.calibrations().next().is_some());
        if needs(old) || needs(new) {
            self.refer(old, new);
        }
    }

    /// Counts the calibration artefacts that `new` needs and `old` no longer does.
    fn refer(&self, old: Option<&TensorRecord>, new: Option<&TensorRecord>) {
        let mut references = self.references.lock();
        let live = |record: Option<&TensorRecord>| -> Vec<String> {
            record.filter(|record| !record.tombstone).into_iter().flat_map(TensorRecord::calibrations).map(String::from).collect()
        };
        for hash in live(new) {
            *references.entry(hash).or_default() += 1;
        }
        for hash in live(old) {
            match references.get_mut(&hash) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(references.remove(&hash)),
            }
        }
    }

    /// How often live records name the calibration artefact of this hash.
    pub fn references(&self, hash: &str) -> u64 {
        self.references.lock().get(hash).copied().unwrap_or(0)
    }

    /// Forgets what there is: all that the index has is told anew.
    pub fn reset(&self) {
        self.references.lock().clear();
        self.room.reset();
        for namespace in self.all() {
            *namespace.usage.lock() = Usage::default();
            namespace.disorder();
        }
    }

    /// Every one, in byte order of their names.
    pub fn all(&self) -> Vec<Arc<Namespace>> {
        let mut all: Vec<_> = self.table.read().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Forgets those without keys and policy: names come from clients, and are many.
    pub fn forget_idle(&self) {
        // One that is held elsewhere is in use.
        self.table.write().retain(|_, namespace| Arc::strong_count(namespace) > 1 || !namespace.is_idle());
    }

    /// The key in `tier` that was used least recently, of those that may leave it; it is forgotten in the order of its namespace.
    pub fn coldest(&self, tier: &str, may: impl Fn(&Namespace) -> bool) -> Option<Coldest> {
        let all = self.all().into_iter().filter(|namespace| may(namespace));
        let (_, namespace) = all.filter_map(|namespace| Some((namespace.coldest_at(tier)?, namespace))).min_by_key(|(at, _)| *at)?;
        let key = namespace.coldest(tier)?;
        Some((namespace, key))
    }

    /// Evicts at least `bytes` from the parts of memory that namespaces have for themselves; says how many went.
    pub fn evict(&self, bytes: u64) -> u64 {
        let mut freed = 0;
        for hot in self.all().iter().filter_map(|namespace| namespace.hot()) {
            if freed >= bytes {
                break;
            }
            let before = hot.bytes();
            hot.evict(bytes - freed);
            freed += before.saturating_sub(hot.bytes());
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sira_tensor::{DType, TensorSpec};
    use sira_wire::Consistency;

    use super::*;
    use crate::record::Part;

    fn record(key: &str, bytes: u64) -> TensorRecord {
        let spec = TensorSpec::new(DType::UInt8, vec![bytes]).unwrap();
        TensorRecord {
            key: key.parse().unwrap(),
            version: 1,
            generation: 1,
            tombstone: false,
            created_ms: 0,
            expires_ms: None,
            consistency: Consistency::Eventual,
            write_id: "w".into(),
            parts: vec![Part { name: "data".into(), spec, inline: Some(vec![]), copies: vec![], codec: None }],
            kv_spec: None,
            derived_from_lossy: false,
        }
    }

    #[test]
    fn what_is_promised_and_held_stays_within_the_limit() {
        let all = Namespaces::new(Ledger::new(1 << 20, Duration::ZERO), "disk", &TierOptions::default());
        let policy = Policy { limits: [("disk".to_owned(), 100)].into(), ..Policy::default() };
        let ns = all.set("ns", policy, PolicyOrigin::Action);
        let promise = ns.promise("disk", 60, 0, 0).ok().unwrap();
        assert_eq!(ns.promise("disk", 60, 0, 0).err(), Some(Short::Promised));
        assert!(ns.promise("disk", 60, 0, 60).is_ok(), "what waits of the same key makes room for it");
        let (a, b) = (record("ns/a", 60), record("ns/b", 40));
        all.replaced(None, Some(&a));
        drop(promise);
        all.replaced(None, Some(&b));
        assert_eq!(ns.promise("disk", 1, 0, 0).err(), Some(Short::Held));
        assert!(ns.promise("disk", 60, 60, 0).is_ok(), "what a put replaces makes room for it");
        all.replaced(Some(&a), Some(&TensorRecord { tombstone: true, ..a.clone() }));
        assert_eq!((ns.entry().keys, ns.entry().bytes["disk"]), (1, 40));
        assert!(ns.promise("elsewhere", u64::MAX, 0, 0).is_ok());
    }

    #[test]
    fn a_cache_gives_up_what_was_used_least_recently() {
        let all = Namespaces::new(Ledger::new(1 << 20, Duration::ZERO), "disk", &TierOptions::default());
        let cache = Policy { mode: Mode::Cache, ..Policy::default() };
        let ns = all.set("ns", cache, PolicyOrigin::Action);
        ns.entered("ns/old", vec!["disk".to_owned()], 1);
        ns.entered("ns/elsewhere", vec!["object".to_owned()], 2);
        for key in ["ns/a", "ns/b", "ns/c"] {
            all.replaced(None, Some(&record(key, 1)));
        }
        ns.used(&"ns/a".parse().unwrap(), 9);
        let coldest = || ns.coldest("disk").map(|(key, _)| key.to_string());
        assert_eq!(coldest().as_deref(), Some("ns/old"));
        assert_eq!(coldest().as_deref(), Some("ns/b"));
        ns.keep("disk", ("ns/b".into(), 0));
        assert_eq!(coldest().as_deref(), Some("ns/b"));
        all.replaced(Some(&record("ns/c", 1)), None);
        assert_eq!(coldest().as_deref(), Some("ns/a"));
        assert_eq!(coldest(), None);
        assert_eq!(ns.coldest("object"), Some(("ns/elsewhere".into(), 2)));
    }

    #[test]
    fn the_idle_are_forgotten() {
        let all = Namespaces::new(Ledger::new(1 << 20, Duration::ZERO), "disk", &TierOptions::default());
        all.set("set", Policy::default(), PolicyOrigin::Configuration);
        all.replaced(None, Some(&record("full/a", 1)));
        all.of("empty");
        all.forget_idle();
        assert_eq!(all.all().iter().map(|ns| ns.name.clone()).collect::<Vec<_>>(), ["full", "set"]);
    }

    #[test]
    fn a_store_with_tiers_orders_what_can_leave_the_warm_one() {
        let tiers = |warm: &str| Some(Tiers { warm: warm.into(), cold: "bucket".into() });
        let options = TierOptions { tiers: tiers("disk"), ..TierOptions::default() };
        let all = Namespaces::new(Ledger::new(1 << 20, Duration::ZERO), "disk", &options);
        let copied = |key: &str, backend: &str, at| {
            let mut record = TensorRecord { created_ms: at, ..record(key, 10) };
            let copy = crate::record::PartCopy {
                backend: backend.into(),
                write_id: "w".into(),
                chunk_shape: vec![10],
                chains: vec!["none".into()],
                chunks: vec![crate::record::Chunk { stored_bytes: 10, checksum: 0, chain: 0 }],
                errors: BTreeMap::new(),
            };
            (record.parts[0].inline, record.parts[0].copies) = (None, vec![copy]);
            record
        };
        let (one, other) = (all.of("one"), all.of("other"));
        for record in
            [record("one/inline", 5), copied("one/below", "bucket", 1), copied("one/b", "disk", 20), copied("other/a", "disk", 10)]
        {
            all.replaced(None, Some(&record));
        }
        assert_eq!((one.below("disk"), one.below("bucket"), one.above("bucket")), (Some("bucket".into()), None, Some("disk".into())));
        assert_eq!(one.coldest_at("bucket"), None, "nothing of a store leaves the last tier");
        let coldest = || all.coldest("disk", |namespace| namespace.yields("disk")).map(|(namespace, key)| (namespace.name.clone(), key));
        assert_eq!(coldest(), Some(("other".into(), ("other/a".into(), 10))), "of all namespaces");
        assert_eq!(coldest(), Some(("one".into(), ("one/b".into(), 20))));
        assert_eq!(coldest(), None);
        // One of its own, and copies that stay where they are.
        all.set("one", Policy { tiers: tiers("other"), ..Policy::default() }, PolicyOrigin::Action);
        all.set("other", Policy { copies: vec!["disk".into(), "bucket".into()], ..Policy::default() }, PolicyOrigin::Action);
        assert_eq!((one.below("disk"), one.below("other"), other.tiers()), (None, Some("bucket".into()), None));
    }
}
