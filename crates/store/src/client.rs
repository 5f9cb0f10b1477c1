//! [`StorageClient`]: the store as the rest of the program sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use sira_backend::{BackendError, HealthStatus, Payload, StorageBackend, StorageStats, Survives};
use sira_codec::{Chain, DefaultChain};
use sira_tensor::TensorSpec;
use sira_wire::many::DATA;
use sira_wire::namespace::Policy;
use sira_wire::{Condition, Consistency, Entry, Key, PARTS, PartEntry, PutAnswer};
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::behind::Behind;
use crate::calibrations::Calibrations;
use crate::catalog::{Catalog, OrderedKv};
use crate::coding::Coders;
use crate::copies::Replication;
use crate::flights::Flights;
use crate::hot::HotTier;
use crate::jobs::Jobs;
use crate::kvspecs::KvSpecs;
use crate::ledger::Ledger;
use crate::moves::{MoveCounters, Throttle};
use crate::namespaces::Namespaces;
use crate::observe::{Meter, Observed, Question};
use crate::part::PartSpec;
use crate::pins::Pins;
use crate::read::Reader;
use crate::record::{Part, TensorRecord};
use crate::region::Pool;
use crate::router::{Router, RoutingStrategy};
use crate::seams::Seams;
use crate::snapshot::{Demands, Snapshot};
use crate::stats::{Counters, MoveStats, StoreStats};
use crate::tiers::{TierOptions, TierWork};
use crate::write::Writer;
use crate::{StoreError, copies, fitness, jobs, memory, tiers, upkeep};

/// Stripes of the key locks: commits of different keys rarely meet.
const STRIPES: usize = 256;

/// Bytes of a disk that puts leave free, or a quarter of a small one.
const HEADROOM: u64 = 64 << 20;

/// Bytes beyond those that make a look at the disk good for a while.
const ROOMY: u64 = 1 << 30;

/// Records that a listing reads at once; each may have a table of many chunks.
const LIST_RECORDS: usize = 100;

/// Bytes of keys and attributes after which a page of a listing ends, even before its limit.
const LIST_BYTES: usize = 4 << 20;

/// How a store is set up.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Bytes of the one ledger: everything that holds tensor bytes in memory.
    pub memory_limit: u64,
    /// Bytes of memory, beside the ledger's, that is kept for the next puts when nobody uses it.
    pub idle_limit: u64,
    /// Bytes of the hot tier, within the ledger; 0 turns it off.
    pub hot_limit: u64,
    /// How long a request waits for memory.
    pub patience: Duration,
    /// The backend that keeps records, where create-if-absent is decided.
    pub record_backend: String,
    /// The backend for tensors that no strategy places.
    pub default_backend: String,
    /// How lower tiers keep a tensor whose writer does not say: lossless.
    pub codec: DefaultChain,
    /// Chunks that are encoded or decoded at once: the processors that may be used for it.
    pub coders: usize,
    /// The level of a put that does not say.
    pub consistency: Consistency,
    /// Seconds to live of a put that does not say.
    pub ttl: Option<u64>,
    /// How long a tombstone stays, so that a slow writer cannot raise the dead.
    pub tombstone_grace: Duration,
    /// How old chunks that no record names must be before a scrub collects them: longer than any put may last.
    pub orphan_age: Duration,
    /// How often expired keys and garbage are looked for.
    pub reap_interval: Duration,
    /// How often everything stored is verified; `None` never.
    pub scrub_interval: Option<Duration>,
    /// How often backends are asked whether they are well.
    pub health_check_interval: Duration,
    /// How long a backend that was not well must have been so again before it gets new tensors.
    pub recovery_delay: Duration,
    /// How long memory keeps what is not read; `None` until the room is needed.
    pub cache_ttl: Option<Duration>,
    /// How tensors move between backends.
    pub tiers: TierOptions,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            memory_limit: 1 << 30,
            idle_limit: 1 << 26,
            hot_limit: 1 << 29,
            patience: Duration::from_secs(30),
            record_backend: "memory".into(),
            default_backend: "memory".into(),
            codec: Chain::none().into(),
            coders: 2,
            consistency: Consistency::Eventual,
            ttl: None,
            tombstone_grace: Duration::from_secs(3600),
            orphan_age: Duration::from_secs(86_400),
            reap_interval: Duration::from_secs(1),
            scrub_interval: None,
            health_check_interval: Duration::from_secs(10),
            recovery_delay: Duration::from_secs(30),
            cache_ttl: None,
            tiers: TierOptions::default(),
        }
    }
}

/// What a write may say.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Codec chain of lower tiers, for parts that do not say.
    pub codec: Option<String>,
    /// Seconds to live.
    pub ttl: Option<u64>,
    /// Level.
    pub consistency: Option<Consistency>,
    /// What must hold of the key.
    pub condition: Option<Condition>,
    /// Hash of a registered kv spec that the parts must follow.
    pub kv_spec: Option<String>,
    /// Whether what is put was computed from what a lossy codec gave back: it is not exact, however it is kept.
    pub derived_from_lossy: bool,
    /// Bytes of memory the caller needs besides, for as long as the put runs: reserved together with the writer's own.
    pub scratch: u64,
}

/// The engine. Clones are one store.
#[derive(Clone)]
pub struct StorageClient {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub options: StoreOptions,
    pub seams: Seams,
    pub catalog: Catalog,
    pub ledger: Ledger,
    pub regions: Pool,
    /// Memory of all namespaces that have none of their own.
    pub shared: Arc<HotTier>,
    pub namespaces: Namespaces,
    pub kv_specs: KvSpecs,
    pub calibrations: Calibrations,
    /// Held while a policy is set.
    pub setting: Mutex<()>,
    pub pins: Pins,
    pub behind: Behind,
    pub coders: Coders,
    pub counters: Counters,
    pub moves: MoveCounters,
    pub throttle: Throttle,
    /// Moves that came to nothing and whose chunks may still lie in their target, by its name.
    pub unswept: parking_lot::Mutex<Vec<(String, String)>>,
    pub tiering: TierWork,
    pub replication: Replication,
    pub flights: Flights,
    pub jobs: Jobs,
    pub stopping: AtomicBool,
    pub nudge: Arc<Notify>,
    pub writers: AtomicU64,
    pub router: RwLock<Router>,
    tiers: RwLock<BTreeMap<String, Arc<Tier>>>,
    locks: Vec<Mutex<()>>,
    /// Held by whoever moves a part to memory that can be shared.
    pub sharing: Vec<Mutex<()>>,
}

/// A registered backend.
pub(crate) struct Tier {
    pub name: String,
    pub backend: Arc<dyn StorageBackend>,
    pub meter: Arc<Meter>,
    pub health: Question<HealthStatus>,
    pub stats: Question<Result<StorageStats, String>>,
    /// The disk had plenty of room when last looked at, which is good until then.
    roomy_until: parking_lot::Mutex<Option<Instant>>,
}

impl Tier {
    pub fn failed(&self, source: BackendError) -> StoreError {
        StoreError::Backend { backend: self.name.clone(), source }
    }

    /// Refuses a put when the disk is all but full. What is left belongs to deletes, which write before they free, and to the start.
    pub async fn headroom(&self) -> Result<(), StoreError> {
        if self.roomy_until.lock().is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let stats = self.backend.stats().await.map_err(|e| self.failed(e))?;
        let (Some(free), Some(total)) = (stats.disk_free_bytes, stats.disk_bytes) else { return Ok(()) };
        let kept = HEADROOM.min(total / 4);
        if free < kept {
            return Err(StoreError::OutOfSpace(format!(
                "backend {}: its disk has {free} bytes free, and the last {kept} are kept for deletes",
                self.name
            )));
        }
        *self.roomy_until.lock() = (free > kept + ROOMY).then(|| Instant::now() + Duration::from_millis(200));
        Ok(())
    }

    /// The strongest level this backend keeps.
    pub fn keeps(&self) -> Survives {
        self.backend.capabilities().durable_survives
    }
}

/// What a level asks a backend to survive.
pub(crate) fn needs(level: Consistency) -> Survives {
    match level {
        Consistency::Strong => Survives::PowerLoss,
        Consistency::Eventual => Survives::ProcessCrash,
        Consistency::Weak => Survives::Nothing,
    }
}

impl StorageClient {
    /// A store over `catalog`, without backends yet: register them, then [`StorageClient::start`].
    pub fn new(options: StoreOptions, seams: Seams, catalog: Arc<dyn OrderedKv>) -> Result<StorageClient, StoreError> {
        if !options.codec.lossless() {
            return Err(StoreError::Config(format!("codec {} is lossy; only a writer or a namespace asks for such a one", options.codec)));
        }
        let ledger = Ledger::new(options.memory_limit, options.patience);
        let inner = Inner {
            catalog: Catalog::open(catalog, seams.clone(), presences(options.memory_limit))?,
            shared: Arc::new(HotTier::new(options.hot_limit, ledger.clone())),
            namespaces: Namespaces::new(ledger.clone(), &options.record_backend, &options.tiers),
            kv_specs: KvSpecs::new(),
            calibrations: Calibrations::new(),
            setting: Mutex::default(),
            behind: Behind::new(options.memory_limit / 4),
            router: RwLock::new(Router::new(&options.default_backend)),
            pins: Pins::default(),
            coders: Coders::new(options.coders),
            counters: Counters::default(),
            moves: MoveCounters::default(),
            throttle: Throttle::new(options.tiers.move_rate),
            unswept: Default::default(),
            tiering: TierWork::new(),
            replication: Replication::default(),
            flights: Flights::default(),
            jobs: Jobs::default(),
            stopping: AtomicBool::new(false),
            nudge: Arc::default(),
            writers: AtomicU64::new(0),
            tiers: RwLock::default(),
            regions: Pool::new(options.idle_limit),
            locks: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            sharing: (0..memory::SHARING).map(|_| Mutex::new(())).collect(),
            ledger,
            options,
            seams,
        };
        Ok(StorageClient { inner: Arc::new(inner) })
    }

    /// Adds a backend under `name`; a second one of that name replaces it.
    pub fn register_backend(&self, name: &str, backend: Arc<dyn StorageBackend>) {
        let meter = Arc::new(Meter::new(self.inner.options.recovery_delay));
        let backend = Arc::new(Observed::new(name, backend, meter.clone()));
        let (name, roomy_until) = (name.to_string(), parking_lot::Mutex::new(None));
        let tier = Arc::new(Tier { name, backend, meter, health: Question::default(), stats: Question::default(), roomy_until });
        self.inner.tiers.write().insert(tier.name.clone(), tier);
    }

    /// Appends a routing strategy before the default.
    pub fn add_strategy(&self, strategy: Box<dyn RoutingStrategy>) {
        self.inner.router.write().add_strategy(strategy);
    }

    /// Checks the backends, finishes what a crash left open, and starts the background work. Call once, before any other use.
    pub async fn start(&self) -> Result<(), StoreError> {
        for name in [&self.inner.options.record_backend, &self.inner.options.default_backend] {
            self.inner.tier(name).map_err(|_| StoreError::Config(format!("no backend is named {name:?}")))?;
        }
        self.inner.check_tiers()?;
        crate::recover::recover(&self.inner).await?;
        self.inner.check_calibrations()?;
        for namespace in self.inner.namespaces.all() {
            self.inner.shrink(&namespace).await?;
        }
        upkeep::spawn(&self.inner);
        fitness::watch(&self.inner);
        tiers::spawn(&self.inner);
        copies::spawn(&self.inner);
        jobs::resume(&self.inner)?;
        Ok(())
    }

    /// Refuses new writes, waits for those that run, and writes what is still only in memory.
    pub async fn drain(&self) -> Result<(), StoreError> {
        self.inner.stopping.store(true, Ordering::SeqCst);
        while self.inner.writers.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        crate::behind::write_all(&self.inner).await?;
        self.inner.nudge.notify_waiters();
        self.inner.jobs.save_all(&self.inner);
        Ok(())
    }

    /// Begins a put of `spec` under `key`. Conditions that already fail are answered here; nothing is visible before
    /// [`Writer::commit`].
    pub async fn begin(&self, key: Key, spec: TensorSpec, options: WriteOptions) -> Result<Writer, StoreError> {
        let part = PartSpec { name: DATA.into(), spec, codec: options.codec.clone() };
        self.begin_parts(key, vec![part], options).await
    }

    /// Begins a put of several parts, which become visible together. Their bytes come one after another.
    pub async fn begin_parts(&self, key: Key, mut parts: Vec<PartSpec>, options: WriteOptions) -> Result<Writer, StoreError> {
        for part in parts.iter_mut().filter(|part| part.codec.is_none()) {
            part.codec.clone_from(&options.codec);
        }
        Writer::begin(self.inner.clone(), key, parts, options).await
    }

    /// Stores a tensor whose bytes are at hand.
    pub async fn store(&self, key: Key, spec: TensorSpec, value: &Payload, options: WriteOptions) -> Result<PutAnswer, StoreError> {
        let mut writer = self.begin(key, spec, options).await?;
        for piece in value.pieces() {
            writer.write(piece).await?;
        }
        writer.commit().await
    }

    /// Holds the present version of `key` still, to read of it; fails where it is not what is demanded.
    pub fn snapshot(&self, key: &Key, demands: &Demands) -> Result<Snapshot, StoreError> {
        Snapshot::open(&self.inner, key, demands)
    }

    /// Reads the only part of `key`, or a box of it. With `version`, any other version is refused.
    pub async fn read(&self, key: &Key, version: Option<u64>, slice: &BTreeMap<String, [u64; 2]>) -> Result<Reader, StoreError> {
        let snapshot = self.snapshot(key, &Demands { version, ..Demands::default() })?;
        snapshot.read(snapshot.part(None)?, slice).await
    }

    /// The whole of `key`: what it is, and its bytes.
    pub async fn retrieve(&self, key: &Key) -> Result<(TensorSpec, Payload), StoreError> {
        let mut reader = self.read(key, None, &BTreeMap::new()).await?;
        let mut pieces = Vec::<Bytes>::new();
        while let Some(piece) = reader.next().await? {
            pieces.push(piece);
        }
        Ok((reader.spec().clone(), pieces.into_iter().collect()))
    }

    /// What is known of `key`.
    pub fn info(&self, key: &Key) -> Result<Entry, StoreError> {
        let record = self.inner.alive(key)?.ok_or_else(|| not_found(key))?;
        self.inner.entry(&record)
    }

    /// The version of `key`, if it exists and follows the kv spec that is demanded. In a namespace that is exact, what is not exact does not exist.
    pub fn exists(&self, key: &Key, kv_spec: Option<&str>) -> Result<Option<u64>, StoreError> {
        let exact = self.inner.namespaces.find(key.namespace()).is_some_and(|namespace| namespace.policy().exact);
        let found = self.inner.alive(key)?.filter(|record| kv_spec.is_none_or(|wanted| record.kv_spec.as_deref() == Some(wanted)));
        Ok(found.filter(|record| !exact || record.is_exact()).map(|record| record.version))
    }

    /// Removes `key`; false where there was none. With `version`, only that one.
    pub async fn delete(&self, key: &Key, version: Option<u64>) -> Result<bool, StoreError> {
        self.inner.delete(key, version, true).await
    }

    /// Up to `limit` keys that start with `prefix` and come after `after`, in byte order, and the `after` of the next page.
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<(Vec<Entry>, Option<String>), StoreError> {
        let now = self.inner.now();
        let (mut entries, mut cursor) = (Vec::new(), after.map(String::from));
        let (limit, mut bytes) = (limit.max(1), 0);
        loop {
            let (page, last) = self.inner.page(prefix, cursor.as_deref(), limit.min(LIST_RECORDS))?;
            for record in page {
                if record.alive(now) {
                    if entries.len() == limit || bytes > LIST_BYTES {
                        return Ok((entries, cursor));
                    }
                    let entry = self.inner.entry(&record)?;
                    bytes += entry_bytes(&entry);
                    entries.push(entry);
                }
                cursor = Some(record.key.to_string());
            }
            if last {
                return Ok((entries, None));
            }
        }
    }

    /// Counts, bytes and limits. A backend that does not answer in time is said so; it does not hold this up.
    pub async fn stats(&self) -> StoreStats {
        let inner = &self.inner;
        let backends = inner.backend_stats().await;
        let counted = inner.counters.snapshot(&inner.ledger, &inner.coders, &inner.all_memory(), inner.behind.bytes(), backends);
        StoreStats { moves: MoveStats::of(inner), ..counted }
    }

    /// The health of each backend; one that does not answer within 2 seconds is unhealthy.
    pub async fn health(&self) -> BTreeMap<String, HealthStatus> {
        self.inner.health().await
    }

    /// Verifies every stored chunk and collects orphans; says what it found.
    pub async fn scrub(&self) -> Result<upkeep::ScrubReport, StoreError> {
        upkeep::scrub(&self.inner).await
    }

    /// The ledger of memory, for those who hold tensor bytes outside the store.
    pub fn ledger(&self) -> &Ledger {
        &self.inner.ledger
    }

    /// Whether whoever is slow should be cut off: requests wait for memory, or the store is draining.
    pub fn pressed(&self) -> bool {
        self.inner.ledger.pressed() || self.inner.stopping.load(Ordering::SeqCst)
    }

    /// Sets memory aside, evicting from the hot tier where needed.
    pub async fn reserve(&self, bytes: u64) -> Result<crate::ledger::Reservation, StoreError> {
        self.inner.reserve(bytes).await
    }

    /// The same without waiting, for those who can do without.
    pub fn reserve_now(&self, bytes: u64) -> Result<crate::ledger::Reservation, StoreError> {
        self.inner.reserve_now(bytes)
    }
}

pub(crate) fn not_found(key: &Key) -> StoreError {
    StoreError::NotFound(format!("no tensor {key}"))
}

impl Inner {
    pub fn now(&self) -> u64 {
        self.seams.clock.now_ms()
    }

    pub fn tier(&self, name: &str) -> Result<Arc<Tier>, StoreError> {
        let tiers = self.tiers.read();
        tiers.get(name).cloned().ok_or_else(|| StoreError::Internal(format!("no backend is named {name:?} (any more)")))
    }

    pub fn all_tiers(&self) -> Vec<Arc<Tier>> {
        self.tiers.read().values().cloned().collect()
    }

    pub fn record_tier(&self) -> Result<Arc<Tier>, StoreError> {
        self.tier(&self.options.record_backend)
    }

    /// Whoever commits a record of `key` holds this.
    pub async fn lock(&self, key: &Key) -> tokio::sync::MutexGuard<'_, ()> {
        self.locks[xxh3_64(key.as_str().as_bytes()) as usize % STRIPES].lock().await
    }

    /// The latest record of `key`, tombstones and the expired included.
    pub fn current(&self, key: &Key) -> Result<Option<TensorRecord>, StoreError> {
        match self.behind.record(key) {
            Some(record) => Ok(Some(record)),
            None => self.catalog.record(key),
        }
    }

    /// Records of keys that start with `prefix` and come after `after`, in byte order, tombstones included, and whether they are the last.
    fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<(Vec<TensorRecord>, bool), StoreError> {
        // First what waits to be written behind, then the index, into which it moves meanwhile.
        let waiting = self.behind.records(prefix, after, limit);
        let mut page = self.catalog.records(prefix, after, limit)?;
        let ends = [&page, &waiting].into_iter().filter(|records| records.len() == limit).filter_map(|records| records.last());
        let end = ends.map(|record| record.key.clone()).min();
        for record in waiting {
            match page.binary_search_by(|known| known.key.cmp(&record.key)) {
                Ok(at) if page[at].version < record.version => page[at] = record,
                Ok(_) => {}
                Err(at) => page.insert(at, record),
            }
        }
        if let Some(end) = &end {
            page.retain(|record| record.key <= *end);
        }
        Ok((page, end.is_none()))
    }

    pub fn alive(&self, key: &Key) -> Result<Option<TensorRecord>, StoreError> {
        let now = self.now();
        Ok(self.current(key)?.filter(|record| record.alive(now)))
    }

    /// The record of `key`, pinned: its chunks stay while the pin is held.
    pub fn pinned(&self, key: &Key) -> Result<(TensorRecord, crate::pins::Pin), StoreError> {
        loop {
            let still = self.catalog.still(key);
            let record = self.alive(key)?.ok_or_else(|| not_found(key))?;
            let pin = self.pins.pin(&record);
            // Pinned too late if it has been replaced meanwhile: look again.
            if (still.is_some() && self.catalog.still(key) == still)
                || self.current(key)?.is_some_and(|now| now.write_id == record.write_id)
            {
                return Ok((record, pin));
            }
        }
    }

    pub fn entry(&self, record: &TensorRecord) -> Result<Entry, StoreError> {
        let home = record.parts.iter().find_map(|part| part.copies.first());
        let waiting = record.waits();
        let backend = match home {
            Some(copy) => copy.backend.clone(),
            None if waiting => "memory".to_string(),
            None => self.options.record_backend.clone(),
        };
        let hot = self.namespaces.find(record.key.namespace()).map_or_else(|| self.shared.clone(), |namespace| self.hot(&namespace));
        let mut tiers = Vec::new();
        if waiting || (0..record.parts.len()).all(|index| hot.holds(&record.write_id, index)) {
            tiers.push("memory".to_string());
        }
        if !waiting && !tiers.contains(&backend) {
            tiers.push(backend.clone());
        }
        let mut parts: Vec<PartEntry> = record.parts.iter().map(part_entry).collect();
        let stored_bytes = parts.iter().map(|part| part.stored_bytes).sum();
        let nbytes = record.nbytes();
        let lossy = parts.iter().any(|part| part.lossy);
        let one = match &parts[..] {
            [only] if only.name == DATA => parts.pop(),
            _ => None,
        };
        let relative_rmse = one.as_ref().map(|part| part.relative_rmse.clone()).unwrap_or_default();
        let codec = home.map_or(Chain::NONE, |copy| copy.chains.last().map_or(Chain::NONE, String::as_str)).to_owned();
        let (dtype, shape, axes, attributes) = one.map_or_else(
            || (PARTS.to_owned(), Vec::new(), Vec::new(), BTreeMap::new()),
            |part| (part.dtype, part.shape, part.axes, part.attributes),
        );
        Ok(Entry {
            key: record.key.to_string(),
            version: record.version,
            generation: record.generation,
            dtype,
            shape,
            axes,
            nbytes,
            stored_bytes,
            backend,
            tiers,
            codec,
            lossy,
            relative_rmse,
            derived_from_lossy: record.derived_from_lossy,
            consistency: record.consistency,
            created_ms: record.created_ms,
            expires_ms: record.expires_ms,
            attributes,
            kv_spec: record.kv_spec.clone(),
            parts,
        })
    }
}

/// Roughly what an entry takes in an answer.
fn entry_bytes(entry: &Entry) -> usize {
    let texts = |attributes: &BTreeMap<String, String>| attributes.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>();
    let axes = |names: &[String], shape: &[u64]| names.iter().map(|name| name.len() + 4).sum::<usize>() + 12 * shape.len();
    let part = |part: &PartEntry| 150 + part.name.len() + texts(&part.attributes) + axes(&part.axes, &part.shape);
    300 + entry.key.len() + texts(&entry.attributes) + axes(&entry.axes, &entry.shape) + entry.parts.iter().map(part).sum::<usize>()
}

fn part_entry(part: &Part) -> PartEntry {
    let home = part.copies.first();
    PartEntry {
        name: part.name.clone(),
        dtype: part.spec.dtype().name().to_string(),
        shape: part.spec.shape().to_vec(),
        axes: part.spec.axes().to_vec(),
        nbytes: part.spec.nbytes(),
        stored_bytes: home.map_or(part.spec.nbytes(), |copy| copy.stored_bytes()),
        codec: home.and_then(|copy| copy.chains.last().cloned()).unwrap_or_else(|| Chain::NONE.to_string()),
        lossy: part.is_lossy(),
        relative_rmse: home.map(|copy| copy.errors.clone()).unwrap_or_default(),
        attributes: part.spec.attributes().clone(),
    }
}

/// Refuses changes where a namespace is read-only.
pub(crate) fn writable(key: &Key, policy: &Policy) -> Result<(), StoreError> {
    match policy.read_only {
        true => Err(StoreError::ReadOnly(format!("{key}: namespace {} is read-only", key.namespace()))),
        false => Ok(()),
    }
}

/// Keys whose presence is remembered: two percent of the memory, at most 20 MiB.
fn presences(memory_limit: u64) -> usize {
    (memory_limit / 4096).clamp(1024, 1 << 18) as usize
}
