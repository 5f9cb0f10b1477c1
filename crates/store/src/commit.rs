//! The commit point: a record, created where there was none before.

use std::sync::Arc;

use sira_backend::{BackendError, Durability, PutMode, PutOptions, PutOutcome};
use sira_wire::{Code, Condition, Key};
use tokio::sync::OwnedSemaphorePermit;

use crate::catalog::Garbage;
use crate::client::{Inner, Tier};
use crate::hot::HotPart;
use crate::namespaces::{Promise, count};
use crate::record::TensorRecord;
use crate::{StoreError, upkeep};

/// A change that waits for its turn.
pub(crate) struct Commit {
    /// The record, its version and generation still to be set.
    pub record: TensorRecord,
    pub condition: Option<Condition>,
    /// Whether what is put is what a get will give, and nothing lossy was in its making.
    pub exact: bool,
    pub durability: Durability,
}

/// Whether a put of `key` may go ahead over `alive`. To an `exact` put what is not exact counts as absent: whoever wants exact bytes finds nothing
/// there, and would find nothing for ever if nobody might put it.
pub(crate) fn check(key: &Key, alive: Option<&TensorRecord>, condition: Option<Condition>, exact: bool) -> Result<(), StoreError> {
    let alive = alive.filter(|record| !(exact && condition == Some(Condition::Absent) && !record.is_exact()));
    match (condition, alive) {
        (Some(Condition::Absent), Some(record)) => Err(StoreError::Exists(format!("{key} exists with version {}", record.version))),
        (Some(Condition::Version(wanted)), Some(record)) if record.version != wanted => {
            Err(StoreError::Stale(format!("{key} has version {}, not {wanted}", record.version)))
        }
        (Some(Condition::Version(wanted)), None) => Err(StoreError::Stale(format!("{key} does not exist, so it has no version {wanted}"))),
        _ => Ok(()),
    }
}

impl Inner {
    /// Commits a put and says whether the key was absent before.
    pub async fn commit(self: &Arc<Self>, commit: &mut Commit) -> Result<bool, StoreError> {
        let key = commit.record.key.clone();
        let _turn = self.lock(&key).await;
        let created = self.number(commit)?;
        self.append(&mut commit.record, commit.durability).await?;
        self.behind.remove(&key, None);
        Ok(created)
    }

    /// Commits a put to memory; the disk follows.
    pub async fn commit_behind(
        self: &Arc<Self>,
        commit: &mut Commit,
        home: &str,
        parts: Vec<Arc<HotPart>>,
        permit: OwnedSemaphorePermit,
        promise: Option<Promise>,
    ) -> Result<bool, StoreError> {
        let key = commit.record.key.clone();
        let _turn = self.lock(&key).await;
        let created = self.number(commit)?;
        self.behind.insert(commit.record.clone(), home.to_owned(), parts, permit, promise);
        self.namespaces.of(key.namespace()).used(&key, self.now());
        self.nudge.notify_one();
        Ok(created)
    }

    /// Checks the condition of a put and gives it the next version; says whether the key is absent.
    fn number(&self, commit: &mut Commit) -> Result<bool, StoreError> {
        let current = self.current(&commit.record.key)?;
        let alive = current.as_ref().filter(|record| record.alive(self.now()));
        check(&commit.record.key, alive, commit.condition, commit.exact)?;
        commit.record.version = current.as_ref().map_or(0, |record| record.version) + 1;
        commit.record.generation = current.as_ref().map_or(0, |record| record.generation) + 1;
        Ok(alive.is_none())
    }

    /// Removes `key`; false where there was none. A caller that goes away does not stop it half-way. `asked`: a client asked for it, which the
    /// namespace must allow.
    pub async fn delete(self: &Arc<Self>, key: &Key, version: Option<u64>, asked: bool) -> Result<bool, StoreError> {
        let namespace = self.namespaces.find(key.namespace());
        if let Some(namespace) = namespace.filter(|_| asked) {
            crate::client::writable(key, &namespace.policy())?;
        }
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let (inner, key) = (self.clone(), key.clone());
        self.seams.spawner.spawn(Box::pin(async move { drop(sender.send(inner.delete_now(&key, version).await)) }));
        receiver.await.unwrap_or_else(|_| Err(StoreError::Internal("a task that deletes has died".into())))
    }

    async fn delete_now(self: &Arc<Self>, key: &Key, version: Option<u64>) -> Result<bool, StoreError> {
        let turn = self.lock(key).await;
        let alive = |record: &TensorRecord| record.alive(self.now());
        let current = match self.current(key)?.filter(alive) {
            Some(current) => current,
            None => match self.unheard(key).await?.filter(alive) {
                Some(current) => current,
                None => return Ok(false),
            },
        };
        check(key, Some(&current), version.map(Condition::Version), false)?;
        self.check_unused(key)?;
        self.bury(current).await?;
        drop(turn);
        count(&self.counters.deletes, 1);
        if let Some(namespace) = self.namespaces.find(key.namespace()) {
            count(&namespace.counters.deletes, 1);
        }
        Ok(true)
    }

    /// The latest record of a key, of which the index has none or an older one: of a put that was said to have failed, or of another node. Whoever
    /// was told that the key is gone must not see it come back with the next start. It is taken into the index.
    async fn unheard(&self, key: &Key) -> Result<Option<TensorRecord>, StoreError> {
        let tier = self.record_tier()?;
        let mut indexed = self.catalog.record(key)?;
        let mut latest = None;
        loop {
            let name = TensorRecord::name_of(key, indexed.as_ref().map_or(0, |record| record.generation) + 1);
            let Some(bytes) = tier.backend.get(&name, None).await.map_err(|error| tier.failed(error))? else { return Ok(latest) };
            let record = TensorRecord::from_bytes(&format!("{name} in {}", tier.name), &bytes)?;
            self.adopt(&record, indexed.clone()).await?;
            self.namespaces.replaced(indexed.as_ref(), Some(&record));
            indexed = Some(record.clone());
            latest = Some(record);
        }
    }

    /// Puts a tombstone over `current`, whose key the caller has locked, and gives back the room it takes unless it is being read.
    pub async fn bury(self: &Arc<Self>, current: TensorRecord) -> Result<(), StoreError> {
        let key = current.key.clone();
        let stored = self.catalog.record(&key)?;
        // What was never written behind gets a tombstone as well: it keeps the count of versions.
        if self.behind.record(&key).is_some() || stored.as_ref().is_some_and(|stored| !stored.tombstone) {
            let mut tombstone = TensorRecord {
                tombstone: true,
                created_ms: self.now(),
                expires_ms: None,
                write_id: self.seams.write_id(),
                parts: Vec::new(),
                kv_spec: None,
                derived_from_lossy: false,
                ..current.clone()
            };
            match (self.append(&mut tombstone, crate::sink::durability(current.consistency)).await, &stored) {
                // No room even for a tombstone: without one, so that deleting makes room.
                (Err(error), Some(stored)) if error.code() == Code::OutOfSpace => {
                    self.catalog.forget(stored, &Garbage::of(stored, None))?;
                    self.namespaces.replaced(Some(stored), None);
                    self.forget_memory(stored);
                }
                // What waits goes without one, too: nothing of it is on disk.
                (Err(error), None) if error.code() == Code::OutOfSpace => {}
                (result, _) => result?,
            }
            self.behind.remove(&key, None);
            if let Some(stored) = stored
                && let Err(error) = upkeep::collect(self, &stored.write_id).await
            {
                tracing::warn!(%error, %key, "what a deleted tensor took is collected later");
            }
        }
        self.behind.remove(&key, None);
        Ok(())
    }

    /// Makes `record` the next record of its key. The caller holds the key's lock and has set the version.
    pub async fn append(self: &Arc<Self>, record: &mut TensorRecord, durability: Durability) -> Result<(), StoreError> {
        let tier = self.record_tier()?;
        // What this record replaces: the one in the index, and any that this node had not heard of, of a commit that was cut off or of
        // another node. All of it becomes garbage in the step that makes this record the latest, and not before.
        let indexed = self.catalog.record(&record.key)?;
        let mut replaced: Vec<TensorRecord> = indexed.iter().cloned().collect();
        let mut collected = false;
        loop {
            record.generation = replaced.last().map_or(0, |last| last.generation) + 1;
            match create(&tier, record, durability).await {
                Ok(None) => break,
                Ok(Some(other)) => {
                    record.version = record.version.max(other.version + u64::from(!record.tombstone));
                    replaced.push(other);
                }
                Err(error) if error.code() == Code::OutOfSpace && !collected => {
                    collected = true;
                    upkeep::collect_garbage(self).await?;
                }
                Err(error) => return Err(error),
            }
        }
        if let Err(error) = self.index(record, &replaced, durability).await {
            // Not in the index: take the record back, so that a failed put stays invisible after a restart too.
            // Where it stays, whether the put counts is decided by the next start.
            return Err(tier.backend.delete(&record.name()).await.map_or_else(|failed| tier.failed(failed), |_| error));
        }
        self.namespaces.replaced(indexed.as_ref(), Some(record));
        self.check_watermark(record);
        self.check_copies(record);
        for old in &replaced {
            self.forget_memory(old);
            self.nudge.notify_one();
        }
        Ok(())
    }

    /// Takes a record found in the record backend into the index.
    pub async fn adopt(&self, record: &TensorRecord, replaced: Option<TensorRecord>) -> Result<(), StoreError> {
        self.index(record, &Vec::from_iter(replaced), Durability::Logged).await
    }

    /// Drops a record's parts from memory.
    fn forget_memory(&self, record: &TensorRecord) {
        let hot = self.namespaces.find(record.key.namespace()).map_or_else(|| self.shared.clone(), |namespace| self.hot(&namespace));
        for index in 0..record.parts.len() {
            hot.remove(&record.write_id, index);
        }
    }

    async fn index(&self, record: &TensorRecord, replaced: &[TensorRecord], durability: Durability) -> Result<(), StoreError> {
        let forget = record.tombstone.then(|| record.created_ms + self.options.tombstone_grace.as_millis() as u64);
        let garbage = replaced.iter().map(|old| (old.write_id.as_str(), Garbage::of(old, Some(record)))).collect::<Vec<_>>();
        self.catalog.commit(record, &garbage, record.expires_ms.or(forget), durability == Durability::Durable).await
    }
}

/// Creates `record` in its backend. `Some`: another record has its place.
async fn create(tier: &Tier, record: &TensorRecord, durability: Durability) -> Result<Option<TensorRecord>, StoreError> {
    let (name, bytes) = (record.name(), record.to_bytes());
    let options = PutOptions { mode: PutMode::Create, durability, expires_in: None };
    match tier.backend.put(&name, bytes.into(), options).await {
        Ok(PutOutcome::Written) => Ok(None),
        Ok(PutOutcome::Exists) => found(tier, record, &name).await,
        Err(error) => undecided(tier, record, &name, error).await,
    }
}

/// After a create that failed, and may have been done all the same, whatever the error says: what is there decides. Where it cannot, the error is
/// one of [`Code::Backend`], with which the chunks that the record names stay.
async fn undecided(tier: &Tier, record: &TensorRecord, name: &str, error: BackendError) -> Result<Option<TensorRecord>, StoreError> {
    if matches!(tier.backend.get(name, None).await, Ok(None)) {
        return Err(tier.failed(error));
    }
    match found(tier, record, name).await {
        Ok(Some(other)) => Ok(Some(other)),
        // A server whose answer was lost has done all that it does. A disk that failed has the record, but perhaps not for long.
        Ok(None) if tier.backend.capabilities().shared && matches!(error, BackendError::Unavailable { .. }) => Ok(None),
        _ => {
            let context = format!("{name} may have been written all the same");
            Err(tier.failed(BackendError::Unavailable { context, source: error.into() }))
        }
    }
}

/// The record at `name`, unless it is `record` itself.
async fn found(tier: &Tier, record: &TensorRecord, name: &str) -> Result<Option<TensorRecord>, StoreError> {
    let bytes = tier.backend.get(name, None).await.map_err(|e| tier.failed(e))?;
    let bytes = bytes.ok_or_else(|| StoreError::Busy(format!("{} changes too fast; try again", record.key)))?;
    let other = TensorRecord::from_bytes(&format!("{name} in {}", tier.name), &bytes)?;
    Ok((other.write_id != record.write_id).then_some(other))
}
