//! Namespaces: what holds for their keys, what these take in each tier, and what a cache gives up first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use sira_backend::name;
use sira_codec::Chain;
use sira_wire::Key;
use sira_wire::namespace::{Mode, NamespaceEntry, NamespaceOperations, Policy, PolicyOrigin};
use tokio::sync::Notify;

use crate::StoreError;
use crate::hot::HotTier;
use crate::ledger::Ledger;
use crate::record::TensorRecord;

/// What the names of stored policies start with.
pub(crate) const POLICIES: &str = "n/";

/// The tier that is not a backend.
pub(crate) const MEMORY: &str = "memory";

/// The name of a namespace's stored policy.
pub(crate) fn policy_name(namespace: &str) -> String {
    format!("{POLICIES}{}", name::components(&name::escape(namespace.as_bytes())))
}

/// One namespace.
pub(crate) struct Namespace {
    pub name: String,
    rules: RwLock<Rules>,
    usage: Mutex<Usage>,
    /// Keys of a cache in each tier, the one used least recently last; empty in a store.
    order: Mutex<BTreeMap<String, LruCache<Arc<str>, ()>>>,
    pub counters: Counters,
    /// Told when a promise is given back.
    pub released: Notify,
    /// Bytes of its parts in memory.
    pub memory: Arc<AtomicU64>,
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
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Namespace {
    fn new(name: &str) -> Namespace {
        Namespace {
            name: name.to_owned(),
            rules: RwLock::new(Rules { policy: Arc::default(), origin: PolicyOrigin::Default, hot: None }),
            usage: Mutex::default(),
            order: Mutex::default(),
            counters: Counters::default(),
            released: Notify::new(),
            memory: Arc::default(),
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

    /// A key was used: a cache gives it up later.
    pub fn used(&self, key: &Key) {
        if self.is_cache() {
            for keys in self.order.lock().values_mut() {
                keys.promote(key.as_str());
            }
        }
    }

    /// A key of a cache lies in these tiers, and was used just now.
    pub fn entered(&self, key: &str, tiers: impl Iterator<Item = String>) {
        let (mut order, key) = (self.order.lock(), Arc::<str>::from(key));
        for tier in tiers {
            order.entry(tier).or_insert_with(LruCache::unbounded).push(key.clone(), ());
        }
    }

    fn left(&self, key: &str) {
        self.order.lock().values_mut().for_each(|keys| {
            keys.pop(key);
        });
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
        if self.is_cache() {
            if let Some(old) = old {
                self.left(old.key.as_str());
            }
            if let Some(new) = new {
                self.entered(new.key.as_str(), new.stored(record_backend).into_keys());
            }
        }
    }

    /// Promises `bytes` of `tier` to a put, if the limit allows; otherwise says what stands against it. The put replaces `current` bytes that are
    /// held, and `waiting` bytes that are promised to an earlier put of its key.
    pub fn promise(self: &Arc<Self>, tier: &str, bytes: u64, current: u64, waiting: u64) -> Result<Promise, Short> {
        let Some(limit) = self.rules.read().policy.limits.get(tier).copied() else { return Ok(Promise { of: None }) };
        let mut usage = self.usage.lock();
        let held = usage.bytes.get(tier).copied().unwrap_or(0).saturating_sub(current);
        let promised = usage.promised.entry(tier.to_owned()).or_default();
        let needed = promised.saturating_sub(waiting).saturating_add(bytes);
        if needed > limit {
            return Err(Short::Promised);
        }
        if held.saturating_add(needed) > limit {
            return Err(Short::Held);
        }
        *promised += bytes;
        Ok(Promise { of: Some((self.clone(), tier.to_owned(), bytes)) })
    }

    /// The limit in `tier`.
    pub fn limit(&self, tier: &str) -> Option<u64> {
        self.rules.read().policy.limits.get(tier).copied()
    }

    /// The key of a cache that was used least recently in `tier`, which is forgotten here.
    pub fn coldest(&self, tier: &str) -> Option<Arc<str>> {
        self.order.lock().get_mut(tier)?.pop_lru().map(|(key, ())| key)
    }

    /// Whether a key of a cache is known to lie in `tier`.
    pub fn holds(&self, tier: &str, key: &str) -> bool {
        self.order.lock().get(tier).is_some_and(|keys| keys.contains(key))
    }

    /// Puts back what [`Namespace::coldest`] gave and which stays after all.
    pub fn keep(&self, tier: &str, key: Arc<str>) {
        if let Some(keys) = self.order.lock().get_mut(tier)
            && !keys.contains(&key)
        {
            keys.push(key.clone(), ());
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
            },
        }
    }

    fn is_idle(&self) -> bool {
        self.rules.read().origin == PolicyOrigin::Default && self.usage.lock().keys == 0 && self.memory.load(Ordering::Relaxed) == 0
    }
}

/// What stands against a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// What is held: less of it would do.
    Held,
    /// The put itself, or what is promised to others: no eviction helps.
    Promised,
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
}

impl Namespaces {
    pub fn new(ledger: Ledger, record_backend: &str) -> Namespaces {
        Namespaces { table: RwLock::default(), ledger, record_backend: record_backend.to_owned(), references: Mutex::default() }
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
        self.table.write().entry(name.to_owned()).or_insert_with(|| Arc::new(Namespace::new(name))).clone()
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
        let all = Namespaces::new(Ledger::new(1 << 20, Duration::ZERO), "disk");
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
        let all = Namespaces::new(Ledger::new(1 << 20, Duration::ZERO), "disk");
        let cache = Policy { mode: Mode::Cache, ..Policy::default() };
        let ns = all.set("ns", cache, PolicyOrigin::Action);
        ns.entered("ns/old", ["disk".to_owned()].into_iter());
        ns.entered("ns/elsewhere", ["object".to_owned()].into_iter());
        for key in ["ns/a", "ns/b", "ns/c"] {
            all.replaced(None, Some(&record(key, 1)));
        }
        ns.used(&"ns/a".parse().unwrap());
        let coldest = || ns.coldest("disk").map(|key| key.to_string());
        assert_eq!(coldest().as_deref(), Some("ns/old"));
        assert_eq!(coldest().as_deref(), Some("ns/b"));
        ns.keep("disk", "ns/b".into());
        assert_eq!(coldest().as_deref(), Some("ns/b"));
        all.replaced(Some(&record("ns/c", 1)), None);
        assert_eq!(coldest().as_deref(), Some("ns/a"));
        assert_eq!(coldest(), None);
        assert_eq!(ns.coldest("object").as_deref(), Some("ns/elsewhere"));
    }

    #[test]
    fn the_idle_are_forgotten() {
        let all = Namespaces::new(Ledger::new(1 << 20, Duration::ZERO), "disk");
        all.set("set", Policy::default(), PolicyOrigin::Configuration);
        all.replaced(None, Some(&record("full/a", 1)));
        all.of("empty");
        all.forget_idle();
        assert_eq!(all.all().iter().map(|ns| ns.name.clone()).collect::<Vec<_>>(), ["full", "set"]);
    }
}
