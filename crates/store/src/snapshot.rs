//! One version of a key, held still while it is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use sira_tensor::{TensorSpec, region};
use sira_wire::Key;

use crate::StoreError;
use crate::client::Inner;
use crate::hot::HotPart;
use crate::namespaces::{Namespace, count};
use crate::pins::Pin;
use crate::read::Reader;
use crate::record::TensorRecord;

/// What a get demands of a key.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// Refuse any other version.
    pub version: Option<u64>,
    /// Hash of the kv spec that it must follow: any other is a miss.
    pub kv_spec: Option<String>,
    /// Take only exactly what was put; `None` for what the namespace says.
    pub exact: Option<bool>,
}

/// A version of a key with all its parts: what is read of it belongs together.
pub struct Snapshot {
    inner: Arc<Inner>,
    namespace: Option<Arc<Namespace>>,
    record: Arc<TensorRecord>,
    pin: Arc<Pin>,
    /// The parts, where they wait in memory to be written behind.
    waiting: Option<Vec<Arc<HotPart>>>,
}

impl Snapshot {
    pub(crate) fn open(inner: &Arc<Inner>, key: &Key, demands: &Demands) -> Result<Snapshot, StoreError> {
        let namespace = inner.namespaces.find(key.namespace());
        let found = Snapshot::find(inner, key, demands, namespace.as_deref());
        if let (Err(StoreError::NotFound(_)), Some(namespace)) = (&found, &namespace) {
            count(&namespace.counters.misses, 1);
        }
        let (record, pin, waiting) = found?;
        if let Some(namespace) = &namespace {
            namespace.used(key, inner.now());
        }
        Ok(Snapshot { inner: inner.clone(), namespace, record: Arc::new(record), pin: Arc::new(pin), waiting })
    }

    #[allow(clippy::type_complexity, reason = "named once, right above")]
    fn find(
        inner: &Arc<Inner>,
        key: &Key,
        demands: &Demands,
        namespace: Option<&Namespace>,
    ) -> Result<(TensorRecord, Pin, Option<Vec<Arc<HotPart>>>), StoreError> {
        let (record, pin, waiting) = loop {
            let (record, pin) = inner.pinned(key)?;
            let waiting = inner.behind.parts(&record.key, &record.write_id);
            // Written behind since it was looked up: its record now says where it lies.
            if waiting.is_some() || !record.waits() {
                break (record, pin, waiting);
            }
        };
        if let Some(wanted) = demands.version.filter(|wanted| *wanted != record.version) {
            return Err(StoreError::Stale(format!("{key} has version {}, not {wanted}; ask again", record.version)));
        }
        if let Some(wanted) = demands.kv_spec.as_ref().filter(|wanted| record.kv_spec.as_ref() != Some(wanted)) {
            let has = record.kv_spec.as_deref().unwrap_or("none");
            return Err(StoreError::NotFound(format!("no tensor {key} of kv spec {wanted}; the one that is there has {has}")));
        }
        let exact = demands.exact.unwrap_or_else(|| namespace.is_some_and(|namespace| namespace.policy().exact));
        if exact && !record.is_exact() {
            let why = if record.derived_from_lossy { "was computed from lossy data" } else { "went through a lossy codec" };
            return Err(StoreError::NotFound(format!("no exact copy of {key}; the one that is there {why}")));
        }
        Ok((record, pin, waiting))
    }

    /// The version.
    pub fn version(&self) -> u64 {
        self.record.version
    }

    /// Hash of the kv spec that it follows.
    pub fn kv_spec(&self) -> Option<&str> {
        self.record.kv_spec.as_deref()
    }

    /// Its parts: name and description of each.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (&str, &TensorSpec)> {
        self.record.parts.iter().map(|part| (part.name.as_str(), &part.spec))
    }

    /// The index of the part named `name`; without a name, of the only one.
    pub fn part(&self, name: Option<&str>) -> Result<usize, StoreError> {
        self.record.part(name)
    }

    /// Extents of the chunks that part number `index` is stored in; none where it is not cut.
    pub fn chunk(&self, index: usize) -> &[u64] {
        let copy = self.record.parts.get(index).and_then(|part| part.copies.first());
        copy.map_or(&[], |copy| &copy.chunk_shape)
    }

    pub(crate) fn pin(&self) -> Arc<Pin> {
        self.pin.clone()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(crate) fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_deref()
    }

    /// The backend of a part.
    pub(crate) fn home(&self, index: usize) -> Option<&str> {
        self.record.parts.get(index)?.copies.first().map(|copy| copy.backend.as_str())
    }

    /// Whether it is still to be written behind.
    pub(crate) fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    fn hot(&self) -> Arc<crate::hot::HotTier> {
        self.namespace.as_deref().map_or_else(|| self.inner.shared.clone(), |namespace| self.inner.hot(namespace))
    }

    /// Part number `index`, where it lies in memory.
    pub(crate) fn in_memory(&self, index: usize) -> Option<Arc<HotPart>> {
        let hot = || self.hot().get(&self.record.write_id, index).inspect(|part| part.used(self.inner.now()));
        let Some(waiting) = &self.waiting else { return hot() };
        match self.inner.behind.parts(&self.record.key, &self.record.write_id) {
            Some(parts) => parts.get(index).cloned(),
            // Written since.
            None => hot().or_else(|| waiting.get(index).cloned()),
        }
    }

    pub(crate) fn place(&self, index: usize) -> Result<Place, StoreError> {
        if index >= self.record.parts.len() {
            return Err(StoreError::NotFound(format!("{} has no part {index}", self.record.key)));
        }
        let (inner, namespace) = (self.inner.clone(), self.namespace.clone());
        Ok(Place { inner, namespace, hot: self.hot(), record: self.record.clone(), index })
    }

    /// Reads a box of part number `index`; axes that `slice` does not name are whole.
    pub async fn read(&self, index: usize, slice: &BTreeMap<String, [u64; 2]>) -> Result<Reader, StoreError> {
        self.open_part(index, slice, true).await
    }

    /// All of part number `index`, for a reader that keeps the bytes itself: memory keeps none of them.
    pub(crate) async fn read_once(&self, index: usize) -> Result<Reader, StoreError> {
        self.open_part(index, &BTreeMap::new(), false).await
    }

    async fn open_part(&self, index: usize, slice: &BTreeMap<String, [u64; 2]>, keep: bool) -> Result<Reader, StoreError> {
        let part = self.record.parts.get(index).ok_or_else(|| StoreError::NotFound(format!("{} has no part {index}", self.record.key)))?;
        let wanted = region(&part.spec, slice.iter().map(|(name, range)| (name.as_str(), *range)))?;
        Reader::open(self.place(index)?, self.pin.clone(), self.in_memory(index), wanted, keep).await
    }
}

/// A part of a record, and where its bytes may lie in memory.
#[derive(Clone)]
pub(crate) struct Place {
    pub inner: Arc<Inner>,
    pub namespace: Option<Arc<Namespace>>,
    pub hot: Arc<crate::hot::HotTier>,
    pub record: Arc<TensorRecord>,
    pub index: usize,
}

impl Place {
    pub fn part(&self) -> &crate::record::Part {
        &self.record.parts[self.index]
    }

    /// A part for memory; `counted` with its namespace where it stays there.
    pub fn counted(&self, part: HotPart, counted: bool) -> Arc<HotPart> {
        Arc::new(match &self.namespace {
            Some(namespace) if counted => part.counted(&namespace.memory),
            _ => part,
        })
    }

    /// What a damaged tensor is to a client: an error in a store; in a cache a miss, and the tensor goes.
    pub fn damaged(&self, error: StoreError) -> StoreError {
        let StoreError::Corrupt(reason) = error else { return error };
        if !self.namespace.as_ref().is_some_and(|namespace| namespace.is_cache()) {
            return StoreError::Corrupt(reason);
        }
        tracing::warn!(key = %self.record.key, reason, "a damaged tensor of a cache is dropped");
        let (inner, record) = (self.inner.clone(), self.record.clone());
        self.inner.seams.spawner.spawn(Box::pin(async move {
            if let Err(error) = inner.delete(&record.key, Some(record.version), false).await {
                tracing::warn!(%error, key = %record.key, "it is still there");
            }
        }));
        StoreError::NotFound(format!("no tensor {} any more: it was damaged, and its namespace is a cache", self.record.key))
    }
}
