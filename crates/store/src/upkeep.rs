//! Background work: expiry, garbage, writes behind, scrubs.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use sira_wire::Key;
use tokio::time::Instant;

use crate::StoreError;
use crate::client::{Inner, Tier};
use crate::read::{ChunkSource, inline};
use crate::record::{CHUNKS, PartCopy, TensorRecord, chunk_name};
use crate::seams::write_id_ms;

/// Names, keys or pieces of garbage looked at in one go.
const PAGE: usize = 1000;

/// How long the first thing to do waits for others to be done with it.
const TOGETHER: Duration = Duration::from_millis(2);

/// Starts the background work, which ends with the store.
pub(crate) fn spawn(inner: &Arc<Inner>) {
    spawn_scrubs(inner);
    let (weak, nudge, interval) = (Arc::downgrade(inner), inner.nudge.clone(), inner.options.reap_interval);
    inner.seams.spawner.spawn(Box::pin(async move {
        let (mut reaped, mut begun) = (Instant::now(), true);
        loop {
            if tokio::time::timeout(interval, nudge.notified()).await.is_ok() {
                // What small puts leave is worth no wake-up each.
                tokio::time::sleep(TOGETHER).await;
            }
            // Held while waiting, the store would never end.
            let Some(inner) = weak.upgrade() else { return };
            if inner.stopping.load(Ordering::SeqCst) {
                return;
            }
            let all = std::mem::take(&mut begun) || reaped.elapsed() >= interval;
            if reaped.elapsed() >= interval {
                reaped = Instant::now();
                log("expiry", reap(&inner).await);
                inner.namespaces.forget_idle();
                inner.forget_unread();
                inner.regions.tidy();
            }
            log("write behind", crate::behind::write_all(&inner).await);
            if all {
                log("garbage", collect_garbage(&inner).await);
            } else {
                collect_each(&inner, &inner.catalog.fresh_garbage()).await;
            }
        }
    }));
}

/// Scrubs on its own, beside the rest: it may take long.
fn spawn_scrubs(inner: &Arc<Inner>) {
    let (weak, Some(every)) = (Arc::downgrade(inner), inner.options.scrub_interval) else { return };
    inner.seams.spawner.spawn(Box::pin(async move {
        loop {
            tokio::time::sleep(every).await;
            let Some(inner) = weak.upgrade() else { return };
            match scrub(&inner).await {
                Ok(report) if report.bad.is_empty() => tracing::info!(?report, "scrub"),
                Ok(report) => tracing::error!(?report, "scrub found damage"),
                Err(error) => tracing::warn!(%error, "scrub"),
            }
        }
    }));
}

fn log<T>(what: &str, result: Result<T, StoreError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what} failed; it is tried again");
    }
}

/// Buries what has expired, and forgets tombstones whose grace is over. A key that fails does not hold up the others.
pub(crate) async fn reap(inner: &Arc<Inner>) -> Result<(), StoreError> {
    loop {
        let due = inner.catalog.due(inner.now(), PAGE)?;
        let mut done = 0;
        for (time, key, generation) in &due {
            match reap_one(inner, *time, key, *generation).await {
                Ok(reaped) => done += usize::from(reaped),
                Err(error) => tracing::warn!(%error, %key, "expiry failed; it is tried again"),
            }
        }
        if due.len() < PAGE || done == 0 {
            return Ok(());
        }
    }
}

/// Does what was due for a key; false where that must wait.
async fn reap_one(inner: &Arc<Inner>, time: u64, key: &Key, generation: u64) -> Result<bool, StoreError> {
    let _turn = inner.lock(key).await;
    // A weak put that waits over it has replaced it for readers; it will replace it on disk as well.
    if inner.behind.record(key).is_some() {
        return Ok(false);
    }
    let stored = inner.catalog.record(key)?.filter(|record| record.generation == generation);
    let tombstone = stored.as_ref().is_some_and(|record| record.tombstone);
    if let Some(record) = stored {
        if tombstone {
            let tier = inner.record_tier()?;
            tier.backend.delete(&record.name()).await.map_err(|e| tier.failed(e))?;
        } else if !record.alive(inner.now()) {
            inner.bury(record).await?;
            inner.counters.expired.fetch_add(1, Ordering::Relaxed);
        }
    }
    inner.catalog.done(time, key, tombstone)?;
    Ok(true)
}

/// Deletes what superseded records left, unless it is being read; says how many pieces went.
pub(crate) async fn collect_garbage(inner: &Arc<Inner>) -> Result<usize, StoreError> {
    let (mut after, mut count) = (String::new(), 0);
    loop {
        let page = inner.catalog.garbage(&after, PAGE)?;
        let write_ids: Vec<String> = page.into_iter().map(|(write_id, _)| write_id).collect();
        count += collect_each(inner, &write_ids).await;
        match write_ids.last() {
            Some(last) if write_ids.len() == PAGE => after.clone_from(last),
            _ => return Ok(count),
        }
    }
}

/// Deletes these pieces of garbage, those that are being read apart; says how many went.
async fn collect_each(inner: &Arc<Inner>, write_ids: &[String]) -> usize {
    let mut count = 0;
    for write_id in write_ids {
        match collect(inner, write_id).await {
            Ok(collected) => count += usize::from(collected),
            Err(error) => tracing::warn!(%error, write_id, "garbage stays; it is tried again"),
        }
    }
    count
}

/// Deletes one piece of garbage, unless it is being read.
pub(crate) async fn collect(inner: &Arc<Inner>, write_id: &str) -> Result<bool, StoreError> {
    if inner.pins.held(write_id) {
        return Ok(false);
    }
    let Some(garbage) = inner.catalog.garbage_of(write_id)? else { return Ok(false) };
    // Chunks that an earlier write made may be read by who began before this record was.
    if garbage.chunks.iter().any(|(_, chunks_of, ..)| chunks_of != write_id && inner.pins.held(chunks_of)) {
        return Ok(false);
    }
    for (backend, chunks_of, part, cells) in &garbage.chunks {
        let tier = inner.tier(backend)?;
        for cell in 0..*cells {
            tier.backend.delete(&chunk_name(chunks_of, *part, cell)).await.map_err(|e| tier.failed(e))?;
        }
    }
    if let Some(name) = &garbage.record {
        let tier = inner.record_tier()?;
        let stored = tier.backend.get(name, None).await.map_err(|e| tier.failed(e))?;
        // A key whose count of generations began again may have another record of this name.
        let others = stored.and_then(|bytes| TensorRecord::from_bytes(name, &bytes).ok()).is_some_and(|record| record.write_id != write_id);
        if !others {
            tier.backend.delete(name).await.map_err(|e| tier.failed(e))?;
        }
    }
    inner.catalog.collected(write_id)?;
    Ok(true)
}

/// Deletes all chunks of a write that came to nothing, then its intent.
pub(crate) async fn sweep(inner: &Inner, tier: &Tier, write_id: &str) -> Result<(), StoreError> {
    let prefix = format!("{CHUNKS}{write_id}/");
    loop {
        let names = tier.backend.list_keys(&prefix, None, PAGE).await.map_err(|e| tier.failed(e))?;
        for name in &names {
            tier.backend.delete(name).await.map_err(|e| tier.failed(e))?;
        }
        if names.len() < PAGE {
            return inner.catalog.end(write_id);
        }
    }
}

/// What a scrub found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ScrubReport {
    /// Chunks and inline tensors whose bytes are as written.
    pub good: u64,
    /// What is wrong with each of the others.
    pub bad: Vec<String>,
    /// Writes whose chunks no record named: collected.
    pub orphans: u64,
}

/// Reads every chunk of every record and compares checksums; collects old chunks that nothing names.
pub(crate) async fn scrub(inner: &Arc<Inner>) -> Result<ScrubReport, StoreError> {
    let mut report = ScrubReport::default();
    // Before the records are read: a write that commits meanwhile is found among them.
    let mut candidates = Vec::new();
    for tier in inner.all_tiers() {
        candidates.extend(unnamed(inner, &tier).await?.into_iter().map(|write_id| (tier.clone(), write_id)));
    }
    let mut named = HashSet::new();
    let mut after = None::<String>;
    loop {
        let page = inner.catalog.records("", after.as_deref(), PAGE)?;
        for record in page.iter().cloned().map(Arc::new) {
            let _pin = inner.pins.pin(&record);
            // One look at the record verifies all of its inline parts.
            if let Some(index) = record.parts.iter().position(|part| part.inline.is_some() && part.spec.nbytes() > 0) {
                match inline(inner, &record, index).await {
                    Ok(_) => report.good += 1,
                    Err(StoreError::Corrupt(_)) if changed(inner, &record) => {}
                    Err(StoreError::Corrupt(reason)) => report.bad.push(reason),
                    Err(error) => return Err(error),
                }
            }
            for (index, copy) in copies(&record) {
                named.insert(copy.write_id.clone());
                let source = ChunkSource::only(inner, &record, index, copy.clone())?;
                for cell in 0..source.grid.cells() {
                    let _memory = inner.reserve(copy.chunks[cell as usize].stored_bytes).await?;
                    match source.fetch(cell).await {
                        Ok(_) => report.good += 1,
                        // Replaced while it was read: not ours to judge.
                        Err(StoreError::Corrupt(_)) if changed(inner, &record) => {}
                        Err(StoreError::Corrupt(reason)) => report.bad.push(reason),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.to_string()),
            _ => break,
        }
    }
    let hot = inner.all_memory();
    report.bad.extend(hot.iter().flat_map(|hot| hot.scrub()).map(|id| format!("write {id} in memory: its checksum does not match")));
    for (tier, write_id) in candidates.iter().filter(|(_, write_id)| !named.contains(write_id)) {
        sweep(inner, tier, write_id).await?;
        report.orphans += 1;
    }
    Ok(report)
}

/// Each copy with the index of its part.
fn copies(record: &TensorRecord) -> Vec<(usize, PartCopy)> {
    let parts = record.parts.iter().enumerate();
    parts.flat_map(|(index, part)| part.copies.iter().map(move |copy| (index, copy.clone()))).collect()
}

fn changed(inner: &Inner, record: &TensorRecord) -> bool {
    !matches!(inner.catalog.record(&record.key), Ok(Some(now)) if now.write_id == record.write_id)
}

/// Old writes whose chunks lie in `tier` and which are neither under way nor garbage; a record may name them.
pub(crate) async fn unnamed(inner: &Inner, tier: &Tier) -> Result<Vec<String>, StoreError> {
    let (mut after, mut found) = (None::<String>, Vec::new());
    loop {
        let names = tier.backend.list_keys(CHUNKS, after.as_deref(), PAGE).await.map_err(|e| tier.failed(e))?;
        let mut ids: Vec<&str> = names.iter().filter_map(|name| name[CHUNKS.len()..].split('/').next()).collect();
        ids.dedup();
        let Some(last) = ids.last() else { return Ok(found) };
        // On to the next write: `0` is the character after `/`.
        after = Some(format!("{CHUNKS}{last}0"));
        for write_id in ids {
            let age = inner.now().saturating_sub(write_id_ms(write_id).unwrap_or(u64::MAX));
            if u128::from(age) > inner.options.orphan_age.as_millis() && !inner.catalog.knows(write_id)? {
                found.push(write_id.to_string());
            }
        }
    }
}
