//! Tensors that change their place: chunks are copied, then the record that names where they lie now is committed, then the old
//! ones go. A crash at any point leaves the tensor where it was or where it goes, whole, and chunks that the next start sweeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use sira_backend::Durability;
use sira_codec::Chain;
use sira_wire::Code;
use tokio::time::Instant;

use crate::client::{Inner, Tier, needs};
use crate::namespaces::count;
use crate::read::{ChunkSource, inline};
use crate::record::{PartCopy, TensorRecord, chunk_name};
use crate::sink::{ChunkSink, lasting, put_chunk};
use crate::{StoreError, upkeep};

/// Chunks of one tensor that are copied at once.
const AT_ONCE: usize = 4;

/// A change of place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move<'a> {
    /// The backend that gives its copy up; none where a copy is added.
    pub from: Option<&'a str>,
    /// The backend that has a copy afterwards.
    pub to: &'a str,
    /// Whether the new copy is read back, and its checksums compared, before the old one goes.
    pub verify: bool,
    /// Whether it keeps to the rate of moves. What a put waits for does not.
    pub throttled: bool,
}

/// What moves did since the start.
#[derive(Default)]
pub(crate) struct MoveCounters {
    pub demoted: Flow,
    pub promoted: Flow,
    pub migrated: Flow,
    pub copied: Flow,
    /// Parts of those that got another codec with their place.
    pub recoded: Flow,
    pub failed: AtomicU64,
}

/// Tensors and their stored bytes.
#[derive(Default)]
pub(crate) struct Flow {
    pub tensors: AtomicU64,
    pub bytes: AtomicU64,
}

impl Flow {
    pub fn add(&self, bytes: u64) {
        count(&self.tensors, 1);
        count(&self.bytes, bytes);
    }
}

/// Bytes a second that moves in the background may take, all together.
pub(crate) struct Throttle {
    rate: Option<u64>,
    /// When the next bytes may go.
    next: Mutex<Option<Instant>>,
    waited_us: AtomicU64,
}

impl Throttle {
    pub fn new(rate: Option<u64>) -> Throttle {
        Throttle { rate, next: Mutex::default(), waited_us: AtomicU64::new(0) }
    }

    /// Waits until `bytes` more may be moved.
    pub async fn take(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        let begin = {
            let mut next = self.next.lock();
            let begin = next.map_or(now, |next| next.max(now));
            *next = Some(begin + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
            begin
        };
        let wait = begin.duration_since(now);
        self.waited_us.fetch_add(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        tokio::time::sleep(wait).await;
    }

    /// Bytes a second; none without a limit.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Seconds that moves have waited.
    pub fn waited(&self) -> f64 {
        self.waited_us.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// A part whose copy is made.
struct Planned {
    part: usize,
    /// The copy that is replaced; none where one is added.
    replaces: Option<usize>,
    /// The codec that it gets with its place, if another one.
    recodes: Option<Chain>,
}

/// What a move wrote.
#[derive(Default)]
struct Made {
    /// Stored bytes.
    bytes: u64,
    /// Those of each part that got another codec.
    recoded: Vec<u64>,
}

impl Inner {
    /// Moves or copies the chunks of `record`; the stored bytes that were written, or `None` where there was nothing to do or the key has changed
    /// meanwhile: that is left to its writer.
    pub async fn relocate(self: &Arc<Self>, record: &TensorRecord, how: Move<'_>) -> Result<Option<u64>, StoreError> {
        let target = self.tier(how.to)?;
        let record = Arc::new(record.clone());
        let _pin = self.pins.pin(&record);
        let (mut next, mut planned) = plan(&record, how);
        if planned.is_empty() && next.parts == record.parts {
            return Ok(None);
        }
        self.check_level(&record, &next, &planned, &target)?;
        let write_id = self.seams.write_id();
        next.write_id.clone_from(&write_id);
        let most = self.plan_codecs(&record, &mut planned, &target, how)?;
        let namespace = self.namespaces.of(record.key.namespace());
        let _room = self.promise_more(&namespace, &record.key, &target.name, most).await?;
        // Ends before the promise does: who is told of that finds the room.
        let _leaving = how.from.map(|from| self.tiering.leaves(from));
        if !planned.is_empty() {
            ChunkSink::announce(self, &target, &record.key, &write_id)?;
        }
        let (mut appended, mut made) = (false, Made::default());
        let moved: Result<bool, StoreError> = async {
            made = self.make_copies(&record, &mut next, &planned, &target, how).await?;
            let _turn = self.lock(&record.key).await;
            let unchanged = self.current(&record.key)?.is_some_and(|now| now.write_id == record.write_id);
            if unchanged {
                // What is in memory is what it was.
                let hot = self.hot(&namespace);
                let kept: Vec<_> = (0..record.parts.len()).map(|index| hot.get(&record.write_id, index)).collect();
                appended = true;
                self.append(&mut next, Durability::Durable).await?;
                for (index, part) in kept.into_iter().enumerate() {
                    if let Some(part) = part {
                        self.keep_hot(&hot, &record.key, &write_id, index, part);
                    }
                }
            }
            Ok(unchanged)
        }
        .await;
        match &moved {
            Ok(true) => {}
            // Whether the record was written is not known: the next start decides by its intent, so the chunks stay.
            Err(error) if appended && error.code() == Code::Backend => {}
            _ if planned.is_empty() => {}
            _ => {
                if let Err(error) = upkeep::sweep(self, &target, &write_id).await {
                    tracing::warn!(%error, write_id, "chunks of a move that came to nothing are swept later");
                    self.unswept.lock().push((target.name.clone(), write_id.clone()));
                }
            }
        }
        match moved {
            Ok(true) => {
                made.recoded.into_iter().for_each(|bytes| self.moves.recoded.add(bytes));
                Ok(Some(made.bytes))
            }
            Ok(false) => Ok(None),
            // Replaced while it was copied.
            Err(StoreError::Corrupt(_)) if self.current(&record.key)?.is_none_or(|now| now.write_id != record.write_id) => Ok(None),
            Err(error) => {
                count(&self.moves.failed, 1);
                Err(error)
            }
        }
    }

    /// Finds the codec that each part gets with its place; how many bytes the copies may have.
    fn plan_codecs(&self, record: &TensorRecord, planned: &mut [Planned], target: &Tier, how: Move<'_>) -> Result<u64, StoreError> {
        let mut most = 0;
        for planned in planned {
            planned.recodes = if how.from.is_some() { self.recodes(record, planned.part, target)? } else { None };
            // No codec makes it larger than it is.
            let raw = planned.recodes.as_ref().map_or(0, |_| record.parts[planned.part].spec.nbytes());
            most += source(record, planned, how).map_or(0, PartCopy::stored_bytes).max(raw);
        }
        Ok(most)
    }

    /// Makes the planned copies and has `next` name them.
    async fn make_copies(
        self: &Arc<Self>,
        record: &Arc<TensorRecord>,
        next: &mut TensorRecord,
        planned: &[Planned],
        target: &Arc<Tier>,
        how: Move<'_>,
    ) -> Result<Made, StoreError> {
        for (index, part) in next.parts.iter_mut().enumerate() {
            if let Some(bytes) = &mut part.inline {
                // The index leaves them out; the next record has them again.
                *bytes = inline(self, record, index).await?;
            }
        }
        let mut made = Made::default();
        for planned in planned {
            let recoded = match planned.recodes.clone() {
                Some(chain) => self.recode(record, planned.part, chain, target, &next.write_id, how).await?,
                None => None,
            };
            made.recoded.extend(recoded.as_ref().map(PartCopy::stored_bytes));
            let copy = match recoded {
                Some(copy) => copy,
                None => self.copy_chunks(record, planned, target, &next.write_id, how).await?,
            };
            made.bytes += copy.stored_bytes();
            let copies = &mut next.parts[planned.part].copies;
            match planned.replaces {
                Some(index) => copies[index] = copy,
                None => copies.push(copy),
            }
        }
        Ok(made)
    }

    /// Sweeps what moves have left that came to nothing while their target did not answer. What is not swept before the end is by the next start.
    pub async fn sweep_moves(&self) {
        let unswept = std::mem::take(&mut *self.unswept.lock());
        for (tier, write_id) in unswept {
            let swept = match self.tier(&tier) {
                Ok(target) => upkeep::sweep(self, &target, &write_id).await,
                Err(error) => Err(error),
            };
            if swept.is_err() {
                self.unswept.lock().push((tier, write_id));
            }
        }
    }

    /// Refuses a move after which no copy of a part would keep what the record was promised.
    fn check_level(&self, record: &TensorRecord, next: &TensorRecord, planned: &[Planned], target: &Tier) -> Result<(), StoreError> {
        let wanted = needs(record.consistency);
        if target.keeps() >= wanted {
            return Ok(());
        }
        for (index, part) in next.parts.iter().enumerate() {
            let made = planned.iter().find(|planned| planned.part == index);
            let stays = |(at, copy): (usize, &PartCopy)| {
                made.is_none_or(|planned| planned.replaces != Some(at)) && self.tier(&copy.backend).is_ok_and(|tier| tier.keeps() >= wanted)
            };
            if part.inline.is_none() && !part.copies.iter().enumerate().any(stays) {
                let (key, level) = (&record.key, record.consistency);
                return Err(StoreError::Unsupported(format!("{key}: backend {} cannot keep {level}", target.name)));
            }
        }
        Ok(())
    }

    /// Copies the chunks of one part under a new write id.
    async fn copy_chunks(
        self: &Arc<Self>,
        record: &Arc<TensorRecord>,
        planned: &Planned,
        target: &Arc<Tier>,
        write_id: &str,
        how: Move<'_>,
    ) -> Result<PartCopy, StoreError> {
        let copy = source(record, planned, how).ok_or_else(|| StoreError::Internal("a move of a part without copies".into()))?;
        let chunks = ChunkSource::new(self, record, planned.part, copy.clone())?;
        let chunks = &chunks;
        let cells = futures::stream::iter(0..chunks.grid.cells()).map(|cell| async move {
            let bytes = chunks.chunk(cell).stored_bytes;
            if how.throttled {
                self.throttle.take(bytes).await;
            }
            let _memory = self.reserve(bytes).await?;
            target.headroom().await?;
            put_chunk(self, target, &chunk_name(write_id, planned.part, cell), chunks.fetch(cell).await?, lasting()).await
        });
        // All that began are awaited: a backend may finish a put whose caller has gone.
        let copied: Vec<Result<(), StoreError>> = cells.buffer_unordered(AT_ONCE).collect().await;
        copied.into_iter().collect::<Result<(), _>>()?;
        let made = PartCopy { backend: target.name.clone(), write_id: write_id.to_owned(), ..copy.clone() };
        if how.verify {
            self.read_back(record, planned.part, &made).await?;
        }
        Ok(made)
    }

    /// Reads a copy and compares its checksums.
    async fn read_back(self: &Arc<Self>, record: &Arc<TensorRecord>, part: usize, copy: &PartCopy) -> Result<(), StoreError> {
        let chunks = ChunkSource::only(self, record, part, copy.clone())?;
        let chunks = &chunks;
        let cells = futures::stream::iter(0..chunks.grid.cells()).map(|cell| async move {
            let _memory = self.reserve(chunks.chunk(cell).stored_bytes).await?;
            chunks.fetch(cell).await.map(drop)
        });
        cells.buffer_unordered(AT_ONCE).try_collect().await
    }
}

/// The next record of a move, where its copies are still the old ones, and the parts that must be copied for it.
fn plan(record: &TensorRecord, how: Move<'_>) -> (TensorRecord, Vec<Planned>) {
    let (mut next, mut planned) = (record.clone(), Vec::new());
    for (index, part) in next.parts.iter_mut().enumerate() {
        let lies = |name: &str| part.copies.iter().position(|copy| copy.backend == name);
        match (how.from.map(lies), lies(how.to)) {
            // There already: the old one is only dropped.
            (Some(Some(from)), Some(_)) => drop(part.copies.remove(from)),
            (Some(Some(from)), None) => planned.push(Planned { part: index, replaces: Some(from), recodes: None }),
            (None, None) if !part.copies.is_empty() => planned.push(Planned { part: index, replaces: None, recodes: None }),
            _ => {}
        }
    }
    (next, planned)
}

/// The copy that is read for a move.
fn source<'r>(record: &'r TensorRecord, planned: &Planned, how: Move<'_>) -> Option<&'r PartCopy> {
    let copies = &record.parts[planned.part].copies;
    match how.from {
        Some(from) => copies.iter().find(|copy| copy.backend == from),
        None => copies.first(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn moves_keep_to_their_rate() {
        let (throttle, begun) = (Throttle::new(Some(1000)), Instant::now());
        throttle.take(500).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "the first bytes wait for none");
        tokio::join!(throttle.take(1500), throttle.take(1), throttle.take(1));
        assert!((2001..2010).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
        assert!((4.0..5.0).contains(&throttle.waited()), "0.5 s, 2 s and 2 s: {}", throttle.waited());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let idle = Instant::now();
        throttle.take(5000).await;
        assert_eq!(idle.elapsed(), Duration::ZERO, "a pause is not owed");
        let free = Throttle::new(None);
        free.take(u64::MAX).await;
        assert_eq!((idle.elapsed(), free.waited()), (Duration::ZERO, 0.0));
    }
}
