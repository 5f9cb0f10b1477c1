//! Weak puts: acknowledged in memory, written behind.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use sira_backend::{Durability, PutOptions};
use sira_codec::Chain;
use sira_wire::Key;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::catalog::Presence;
use crate::client::{Inner, Tier};
use crate::coding::{Awaited, PartFacts};
use crate::fitness::Standing;
use crate::hot::HotPart;
use crate::ledger::Reservation;
use crate::namespaces::Promise;
use crate::part::{PartPlan, PartSpec};
use crate::placement::{UnderWay, Wanted};
use crate::record::{Part, TensorRecord};
use crate::sink::ChunkSink;
use crate::write::INLINE_BYTES;
use crate::{StoreError, upkeep};

/// Bytes of one permit of the budget.
const UNIT: u64 = 4096;

/// Records that are only in memory, with their bytes. They are never evicted; their bytes have a budget.
pub(crate) struct Behind {
    waiting: Mutex<BTreeMap<String, Waiting>>,
    free: Arc<Semaphore>,
    /// One writer at a time: two that wrote the same record would sweep each other's chunks.
    writing: tokio::sync::Mutex<()>,
}

struct Waiting {
    record: TensorRecord,
    /// The backend that was chosen when it was put; another one only if that is out by then.
    home: String,
    /// One for each part of the record.
    parts: Vec<Arc<HotPart>>,
    _permit: OwnedSemaphorePermit,
    /// Room in the tier where it will lie.
    promise: Option<Promise>,
}

impl Waiting {
    fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len()).sum()
    }
}

impl Behind {
    pub fn new(budget: u64) -> Behind {
        Behind { waiting: Mutex::default(), free: Arc::new(Semaphore::new((budget / UNIT) as usize)), writing: Default::default() }
    }

    /// Room for `bytes` of unwritten data, if there is.
    pub fn budget(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_many_owned(u32::try_from(bytes.div_ceil(UNIT)).ok()?).ok()
    }

    pub fn insert(
        &self,
        record: TensorRecord,
        home: String,
        parts: Vec<Arc<HotPart>>,
        permit: OwnedSemaphorePermit,
        promise: Option<Promise>,
    ) {
        self.waiting.lock().insert(record.key.to_string(), Waiting { record, home, parts, _permit: permit, promise });
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    pub fn record(&self, key: &Key) -> Option<TensorRecord> {
        self.waiting.lock().get(key.as_str()).map(|w| w.record.clone())
    }

    /// What is known of `key` by the record that waits.
    pub fn presence(&self, key: &str) -> Option<Presence> {
        self.waiting.lock().get(key).map(|w| Presence::of(Some(&w.record)))
    }

    /// The bytes of a waiting write, part by part.
    pub fn parts(&self, key: &Key, write_id: &str) -> Option<Vec<Arc<HotPart>>> {
        self.waiting.lock().get(key.as_str()).filter(|w| w.record.write_id == write_id).map(|w| w.parts.clone())
    }

    /// Puts part number `index` in the place of the one that waits in the write `write_id`, whose bytes are the same; false where none does.
    pub fn replace(&self, key: &Key, write_id: &str, index: usize, part: &Arc<HotPart>) -> bool {
        let mut waiting = self.waiting.lock();
        let parts = waiting.get_mut(key.as_str()).filter(|w| w.record.write_id == write_id).map(|w| &mut w.parts);
        parts.and_then(|parts| parts.get_mut(index)).map(|present| *present = part.clone()).is_some()
    }

    /// Forgets the waiting record of `key`; with `write_id`, only that one.
    pub fn remove(&self, key: &Key, write_id: Option<&str>) {
        let mut waiting = self.waiting.lock();
        if waiting.get(key.as_str()).is_some_and(|w| write_id.is_none_or(|id| id == w.record.write_id)) {
            waiting.remove(key.as_str());
        }
    }

    /// The keys that wait.
    pub fn keys(&self) -> Vec<Key> {
        self.waiting.lock().values().map(|w| w.record.key.clone()).collect()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.waiting.lock().values().map(Waiting::bytes).sum()
    }

    /// Up to `limit` waiting records of keys that start with `prefix` and come after `after`, in byte order.
    pub fn records(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<TensorRecord> {
        let waiting = self.waiting.lock();
        let start =
            after.map_or(Bound::Included(prefix), |after| if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) });
        let within = waiting.range::<str, _>((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        within.take(limit).map(|(_, w)| w.record.clone()).collect()
    }

    /// Room in `tier` that the waiting record of `key` has been promised.
    pub fn promised(&self, key: &Key, tier: &str) -> u64 {
        self.waiting.lock().get(key.as_str()).and_then(|w| w.promise.as_ref()).map_or(0, |promise| promise.bytes(tier))
    }
}

/// Writes all that waits, whether or not the caller waits for it to be done.
pub(crate) async fn write_soon(inner: &Arc<Inner>) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let (spawner, inner) = (inner.seams.spawner.clone(), inner.clone());
    spawner.spawn(Box::pin(async move {
        if let Err(error) = write_all(&inner).await {
            tracing::warn!(%error, "write behind failed; it is tried again");
        }
        let _ = sender.send(());
    }));
    drop(receiver.await);
}

/// Writes all that waits; one that fails does not hold up the others, and is the answer.
pub(crate) async fn write_all(inner: &Arc<Inner>) -> Result<(), StoreError> {
    let _one = inner.behind.writing.lock().await;
    let mut result = Ok(());
    for key in inner.behind.keys() {
        let written = write(inner, &key).await;
        result = result.and(written);
    }
    result
}

/// Writes the waiting record of `key` to its home. Whoever replaced it meanwhile wins.
async fn write(inner: &Arc<Inner>, key: &Key) -> Result<(), StoreError> {
    let waiting = inner.behind.waiting.lock().get(key.as_str()).map(|w| (w.record.clone(), w.home.clone(), w.parts.clone()));
    let Some((mut record, chosen, parts)) = waiting else { return Ok(()) };
    let write_id = record.write_id.clone();
    let home = home(inner, &chosen, &record).await?;
    let home = inner.fitting(&inner.namespaces.of(key.namespace()), home, record.nbytes())?;
    let _under_way = UnderWay::begin(&home, record.nbytes());
    let chunked = record.nbytes() > INLINE_BYTES;
    if chunked {
        ChunkSink::announce(inner, &home, key, &write_id)?;
    }
    if let Err(error) = store_parts(inner, &home, &mut record, &parts).await {
        if chunked {
            // It is tried again from the start, unless it is deleted meanwhile.
            upkeep::sweep(inner, &home, &write_id).await?;
        }
        return Err(error);
    }
    let turn = inner.lock(key).await;
    if inner.behind.record(key).is_some_and(|waiting| waiting.write_id == write_id) {
        inner.append(&mut record, Durability::Logged).await?;
        let hot = inner.hot(&inner.namespaces.of(key.namespace()));
        // Some may have moved since.
        let parts = inner.behind.parts(key, &write_id).unwrap_or(parts);
        for (index, part) in parts.into_iter().enumerate().filter(|(_, part)| part.len() > 0) {
            hot.insert(&write_id, index, part);
        }
        inner.behind.remove(key, Some(&write_id));
    } else if chunked {
        drop(turn);
        upkeep::sweep(inner, &home, &write_id).await?;
    }
    Ok(())
}

/// The home that was chosen when it was put, or another one if that is out.
async fn home(inner: &Arc<Inner>, chosen: &str, record: &TensorRecord) -> Result<Arc<Tier>, StoreError> {
    let home = inner.tier(chosen)?;
    if home.meter.fitness.standing() != Standing::Out {
        return Ok(home);
    }
    let kv_spec = match &record.kv_spec {
        Some(hash) => inner.kv_specs.get(inner, hash).await.ok(),
        None => None,
    };
    let specs: Vec<PartSpec> = record.parts.iter().map(Part::declared).collect();
    let ttl = record.expires_ms.map(|end| end.saturating_sub(inner.now()) / 1000);
    let (nbytes, consistency) = (record.nbytes(), record.consistency);
    inner.place(&record.key, &specs, &Wanted { kv_spec: kv_spec.as_deref(), nbytes, consistency, demanded: true, ttl })
}

/// Stores the parts of a record: all inside it where they are small together, otherwise chunk by chunk.
async fn store_parts(inner: &Arc<Inner>, home: &Arc<Tier>, record: &mut TensorRecord, parts: &[Arc<HotPart>]) -> Result<(), StoreError> {
    let (key, write_id, inline) = (record.key.clone(), record.write_id.clone(), record.nbytes() <= INLINE_BYTES);
    let kv_spec = record.kv_spec.clone();
    for (index, (part, memory)) in record.parts.iter_mut().zip(parts).enumerate() {
        let payload = memory
            .verified()
            .map_err(|_| StoreError::Corrupt(format!("tensor {key} in memory, not written yet: its checksum does not match")))?;
        if inline {
            part.inline = Some(payload.into_bytes().to_vec());
        } else {
            let (plan, _memory) = plan(inner, &key, home, part, kv_spec.as_deref()).await?;
            let sink = ChunkSink::new(inner, home.clone(), (&write_id, index), plan, PutOptions::default(), Awaited::ByNobody);
            part.copies = vec![sink.store_all(&payload).await?];
        }
    }
    Ok(())
}

/// How a part is written, and the memory that it takes. It was acknowledged as it is, so that no lossy codec is taken, even if its namespace names one
/// by now; and where there is no memory for its codec, it is written as it lies.
async fn plan(
    inner: &Arc<Inner>,
    key: &Key,
    home: &Arc<Tier>,
    part: &Part,
    kv_spec: Option<&str>,
) -> Result<(Arc<PartPlan>, Reservation), StoreError> {
    let namespace = inner.namespaces.of(key.namespace());
    let planned = async |chain: Chain| {
        let facts = PartFacts::of(inner, &part.name, &part.spec, kv_spec, std::slice::from_ref(&chain)).await?;
        Ok::<_, StoreError>(Arc::new(PartPlan::new(inner, part.declared(), chain, facts)?))
    };
    let chain = inner.chain(&namespace, &home.name, part.codec.as_deref(), None, part.spec.dtype())?;
    let plan = match planned(if chain.lossless() { chain } else { inner.options.codec.of(part.spec.dtype()).clone() }).await {
        Err(StoreError::UnknownCalibration(_)) => planned(Chain::none()).await?,
        plan => plan?,
    };
    if plan.chain.is_none() {
        return Ok((plan, Reservation::default()));
    }
    match inner.reserve(plan.working_bytes()).await {
        Ok(memory) => Ok((plan, memory)),
        Err(StoreError::Busy(_) | StoreError::OutOfSpace(_)) => Ok((planned(Chain::none()).await?, Reservation::default())),
        Err(error) => Err(error),
    }
}
