//! Calibration artefacts of codecs, kept as tensors of bytes under `calibration/SHA-256`.
//!
//! # Contract
//! - What lies under such a key has that SHA-256 and is an artefact: [`Artefact::check`] sees to it before the put is committed.
//! - Whoever encodes by an artefact holds a [`Use`] of it until the record that names it is in the index. While there is a use, a live record or a policy
//!   that names it, it is not deleted; it never expires, and nothing evicts it.
//! - It is loaded once for all who need it at the same time, and its memory is the ledger's.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use lru::LruCache;
use parking_lot::Mutex;
use sira_codec::{Calibration, Chain};
use sira_tensor::kv::{self, is_hash};
use sira_tensor::{DType, TensorSpec};
use sira_wire::namespace::CALIBRATIONS;
use sira_wire::{Code, Key, WireError};
use tokio::sync::OnceCell;

use crate::StoreError;
use crate::client::Inner;
use crate::ledger::Reservation;
use crate::part::PartSpec;
use crate::record::TensorRecord;
use crate::snapshot::{Demands, Snapshot};

/// Bytes of memory that an artefact takes for each of its own, while it is read and afterwards.
const READ: u64 = 4;

/// Artefacts that are kept loaded; a fleet has a few models.
const KEPT: usize = 4;

/// Memory that is taken at a time for the bytes of an artefact that come in.
const STEP: usize = 8 << 20;

/// The attribute that says whose KV caches a tensor is of; of an artefact, what it was learnt of.
pub(crate) const MODEL: &str = "model";

/// Artefacts looked at for one of a model.
const LOOKED_AT: usize = 1000;

/// The key of the artefact with this hash.
pub(crate) fn key_of(hash: &str) -> Result<Key, StoreError> {
    Ok(format!("{CALIBRATIONS}/{hash}").parse()?)
}

/// Artefacts that are loaded or in use.
pub(crate) struct Calibrations {
    loaded: Mutex<LruCache<String, Arc<OnceCell<Arc<Loaded>>>>>,
    uses: Arc<Mutex<HashMap<String, u64>>>,
}

/// An artefact in memory.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub calibration: Calibration,
    _memory: Reservation,
}

/// Keeps an artefact from being deleted.
pub(crate) struct Use {
    hash: String,
    uses: Arc<Mutex<HashMap<String, u64>>>,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut uses = self.uses.lock();
        match uses.get_mut(&self.hash) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(uses.remove(&self.hash)),
        }
    }
}

impl Calibrations {
    pub fn new() -> Calibrations {
        Calibrations { loaded: Mutex::new(LruCache::unbounded()), uses: Arc::default() }
    }

    /// The artefact of this hash, loaded.
    pub async fn get(&self, inner: &Arc<Inner>, hash: &str) -> Result<Arc<Loaded>, StoreError> {
        let cell = {
            let mut loaded = self.loaded.lock();
            let cell = loaded.get_or_insert(hash.to_owned(), Arc::default).clone();
            while loaded.len() > KEPT {
                loaded.pop_lru();
            }
            cell
        };
        cell.get_or_try_init(|| load(inner.clone(), hash.to_owned())).await.cloned()
    }

    /// Gives back the memory of those that nobody needs right now.
    pub fn evict(&self) {
        let mut loaded = self.loaded.lock();
        let idle = |cell: &OnceCell<Arc<Loaded>>| cell.get().is_some_and(|loaded| Arc::strong_count(loaded) == 1);
        let idle: Vec<String> = loaded.iter().filter(|(_, cell)| idle(cell)).map(|(hash, _)| hash.clone()).collect();
        idle.iter().for_each(|hash| drop(loaded.pop(hash)));
    }

    /// Keeps the artefact of this hash from being deleted; fails where there is none.
    pub async fn hold(&self, inner: &Inner, hash: &str) -> Result<Use, StoreError> {
        let key = key_of(hash)?;
        // Whoever deletes it has the same turn.
        let _turn = inner.lock(&key).await;
        if inner.alive(&key)?.is_none() {
            return Err(missing(hash));
        }
        *self.uses.lock().entry(hash.to_owned()).or_default() += 1;
        Ok(Use { hash: hash.to_owned(), uses: self.uses.clone() })
    }

    fn is_used(&self, hash: &str) -> bool {
        self.uses.lock().contains_key(hash)
    }
}

/// Reads an artefact from the store. Boxed: to read a tensor, an artefact may be needed.
fn load(inner: Arc<Inner>, hash: String) -> BoxFuture<'static, Result<Arc<Loaded>, StoreError>> {
    Box::pin(async move {
        let snapshot = Snapshot::open(&inner, &key_of(&hash)?, &Demands::default()).map_err(|error| match error {
            StoreError::NotFound(_) => missing(&hash),
            other => other,
        })?;
        let mut reader = snapshot.read_once(snapshot.part(None)?).await?;
        let memory = inner.reserve(READ.saturating_mul(reader.spec().nbytes())).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(reader.spec().nbytes()).unwrap_or(0));
        while let Some(piece) = reader.next().await? {
            bytes.extend_from_slice(&piece);
        }
        let calibration = read(&inner, hash, bytes).await?;
        Ok(Arc::new(Loaded { calibration, _memory: memory }))
    })
}

/// Reads bytes that must be the artefact of this hash.
async fn read(inner: &Inner, hash: String, bytes: Vec<u8>) -> Result<Calibration, StoreError> {
    let work = move || {
        let found = kv::hash(&bytes);
        if found != hash {
            return Err(wrong(format!(
                "{CALIBRATIONS}/{hash}: the SHA-256 of its bytes is {found}; an artefact lies under its own: {CALIBRATIONS}/{found}"
            )));
        }
        Calibration::from_bytes(&bytes).map_err(|error| wrong(format!("{CALIBRATIONS}/{hash} is no calibration artefact: {error}")))
    };
    inner.seams.work(work).await.ok_or_else(|| StoreError::Internal("a task that reads a calibration has died".into()))?
}

fn missing(hash: &str) -> StoreError {
    StoreError::UnknownCalibration(format!("no calibration {hash}; put the artefact under {CALIBRATIONS}/{hash} first"))
}

/// An artefact that is being put: it is committed when all of it has come and proves to be one.
pub(crate) struct Artefact {
    hash: String,
    nbytes: usize,
    bytes: Vec<u8>,
    memory: Reservation,
}

impl Artefact {
    /// What a put of `key` must bring; `None` of any other namespace.
    pub async fn of(inner: &Inner, key: &Key, parts: &[PartSpec]) -> Result<Option<Artefact>, StoreError> {
        if key.namespace() != CALIBRATIONS {
            return Ok(None);
        }
        let refuse = |code, reason: &str| Err(StoreError::Wire(WireError::new(code, format!("{key}: {reason}"))));
        if !is_hash(key.rest()) {
            return refuse(Code::BadKey, "keys of this namespace are the SHA-256 of calibration artefacts, 64 hexadecimal digits");
        }
        let is_bytes = |spec: &TensorSpec| spec.dtype() == DType::UInt8 && spec.shape().len() == 1;
        let nbytes = match parts {
            [part] if is_bytes(&part.spec) => part.spec.nbytes(),
            _ => return refuse(Code::BadTensor, "a calibration artefact is one tensor of uint8 with one axis"),
        };
        let most = Calibration::MAX_LEN;
        if nbytes > most as u64 {
            return refuse(Code::BadTensor, &format!("{nbytes} bytes; a calibration artefact has at most {most}"));
        }
        let memory = inner.reserve(READ * nbytes).await?;
        Ok(Some(Artefact { hash: key.rest().to_owned(), nbytes: nbytes as usize, bytes: Vec::new(), memory }))
    }

    /// Takes its next bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        let left = self.nbytes.saturating_sub(self.bytes.len());
        if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            self.bytes.reserve_exact(left.min(STEP).max(bytes.len()));
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether its bytes are what its key says, and an artefact: of which model.
    pub async fn check(self, inner: &Inner) -> Result<String, StoreError> {
        let _memory = self.memory;
        Ok(read(inner, self.hash, self.bytes).await?.model().name.clone())
    }
}

impl Inner {
    /// Refuses to delete an artefact that is needed. The caller has the key's turn.
    pub fn check_unused(&self, key: &Key) -> Result<(), StoreError> {
        if key.namespace() != CALIBRATIONS {
            return Ok(());
        }
        let hash = key.rest();
        let in_policy =
            self.namespaces.all().into_iter().find(|namespace| namespace.policy().codecs.values().any(|chain| names(chain, hash)));
        let by = match (self.namespaces.references(hash), in_policy) {
            (records @ 1.., _) => format!("{records} records name it as their codec's"),
            (0, Some(namespace)) => format!("the policy of namespace {} names it", namespace.name),
            (0, None) if self.calibrations.is_used(hash) => "a put that runs needs it".to_owned(),
            (0, None) => return Ok(()),
        };
        Err(StoreError::InUse(format!("calibration {hash} is in use: {by}, and could not be read without it")))
    }
}

impl Inner {
    /// The chain of this text. One that lacks the calibration it must have gets it where exactly one of `model` is here.
    pub fn calibrated(&self, text: &str, model: Option<&str>) -> Result<Chain, StoreError> {
        let error = match text.parse::<Chain>() {
            Ok(chain) => return Ok(chain),
            Err(error) => error,
        };
        let with = |hash: &str| format!("{text}@{hash}").parse::<Chain>().ok();
        if with(&"0".repeat(64)).is_none() {
            return Err(error.into());
        }
        let Some(model) = model else {
            return Err(wrong(format!(
                "{error}: {text}@SHA256, or a tensor whose kv spec or attribute `{MODEL}` says of which model it is"
            )));
        };
        let mut known = self.catalog.records(&format!("{CALIBRATIONS}/"), None, LOOKED_AT)?;
        let is_of = |record: &TensorRecord| record.parts.iter().any(|part| part.spec.attributes().get(MODEL).is_some_and(|of| of == model));
        known.retain(|record| record.alive(self.now()) && is_of(record));
        match &known[..] {
            [only] => with(only.key.rest()).ok_or_else(|| error.into()),
            some => {
                Err(wrong(format!("{error}: {text}@SHA256. Of model {model:?} there are {} under {CALIBRATIONS}/, not one", some.len())))
            }
        }
    }
}

fn wrong(reason: String) -> StoreError {
    WireError::new(Code::BadRequest, reason).into()
}

/// The artefacts that a chain's text names.
pub(crate) fn named(chain: &str) -> impl Iterator<Item = &str> {
    chain.split('+').filter_map(|stage| stage.split_once('@')).map(|(_, hash)| hash)
}

fn names(chain: &str, hash: &str) -> bool {
    named(chain).any(|named| named == hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_chain_names_its_artefacts() {
        let hash = "5f".repeat(32);
        assert_eq!(named("planes+zstd:9").count(), 0);
        assert!(names(&format!("kvtc:high@{hash}+zstd"), &hash) && !names(&format!("kvtc@{hash}"), "5f"));
    }
}
