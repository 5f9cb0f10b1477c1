//! Background work: expiry, garbage, writes behind, scrubs.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use tokio::time::Instant;

use crate::StoreError;
use crate::client::{Inner, Tier};
use crate::read::ChunkSource;
use crate::record::{CHUNKS, chunk_name};
use crate::seams::write_id_ms;

/// Names, keys or pieces of garbage looked at in one go.
const PAGE: usize = 1000;

/// Starts the background work, which ends with the store.
pub(crate) fn spawn(inner: &Arc<Inner>) {
    let (weak, nudge, interval) = (Arc::downgrade(inner), inner.nudge.clone(), inner.options.reap_interval);
    inner.seams.spawner.spawn(Box::pin(async move {
        let mut reaped = Instant::now();
        let mut scrubbed = reaped;
        loop {
            drop(tokio::time::timeout(interval, nudge.notified()).await);
            // Held while waiting, the store would never end.
            let Some(inner) = weak.upgrade() else { return };
            if inner.stopping.load(Ordering::SeqCst) {
                return;
            }
            if reaped.elapsed() >= interval {
                reaped = Instant::now();
                log("expiry", reap(&inner).await);
            }
            log("write behind", crate::behind::write_all(&inner).await);
            log("garbage", collect_garbage(&inner).await);
            if inner.options.scrub_interval.is_some_and(|every| scrubbed.elapsed() >= every) {
                scrubbed = Instant::now();
                match scrub(&inner).await {
                    Ok(report) if report.bad.is_empty() => tracing::info!(?report, "scrub"),
                    Ok(report) => tracing::error!(?report, "scrub found damage"),
                    Err(error) => tracing::warn!(%error, "scrub"),
                }
            }
        }
    }));
}

fn log<T>(what: &str, result: Result<T, StoreError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what} failed; it is tried again");
    }
}

/// Buries what has expired, and forgets tombstones whose grace is over.
pub(crate) async fn reap(inner: &Arc<Inner>) -> Result<(), StoreError> {
    loop {
        let due = inner.catalog.due(inner.now(), PAGE)?;
        for (time, key, generation) in &due {
            let _turn = inner.lock(key).await;
            let stored = inner.catalog.record(key)?.filter(|record| record.generation == *generation);
            let tombstone = stored.as_ref().is_some_and(|record| record.tombstone);
            if let Some(record) = stored {
                if tombstone {
                    let tier = inner.record_tier()?;
                    tier.backend.delete(&record.name()).await.map_err(|e| tier.failed(e))?;
                } else if !record.alive(inner.now()) {
                    // A weak put that waits over it has replaced it for readers; it will replace it on disk as well.
                    if inner.behind.record(key).is_none() {
                        inner.bury(record).await?;
                        inner.counters.expired.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            inner.catalog.done(*time, key, tombstone)?;
        }
        if due.len() < PAGE {
            return Ok(());
        }
    }
}

/// Deletes what superseded records left, unless it is being read; says how many pieces went.
pub(crate) async fn collect_garbage(inner: &Arc<Inner>) -> Result<usize, StoreError> {
    let (mut after, mut count) = (String::new(), 0);
    loop {
        let page = inner.catalog.garbage(&after, PAGE)?;
        for (write_id, _) in &page {
            count += usize::from(collect(inner, write_id).await?);
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => after.clone_from(last),
            _ => return Ok(count),
        }
    }
}

/// Deletes one piece of garbage, unless it is being read.
pub(crate) async fn collect(inner: &Arc<Inner>, write_id: &str) -> Result<bool, StoreError> {
    if inner.pins.held(write_id) {
        return Ok(false);
    }
    let Some(garbage) = inner.catalog.garbage_of(write_id)? else { return Ok(false) };
    for (backend, chunks_of, part, cells) in &garbage.chunks {
        let tier = inner.tier(backend)?;
        for cell in 0..*cells {
            tier.backend.delete(&chunk_name(chunks_of, *part, cell)).await.map_err(|e| tier.failed(e))?;
        }
    }
    if let Some(name) = &garbage.record {
        let tier = inner.record_tier()?;
        tier.backend.delete(name).await.map_err(|e| tier.failed(e))?;
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
    /// Chunks whose bytes are as written.
    pub good: u64,
    /// What is wrong with each of the others.
    pub bad: Vec<String>,
    /// Writes whose chunks no record named: collected.
    pub orphans: u64,
}

/// Reads every chunk of every record and compares checksums; collects old chunks that nothing names.
pub(crate) async fn scrub(inner: &Arc<Inner>) -> Result<ScrubReport, StoreError> {
    let mut report = ScrubReport::default();
    let mut named = HashSet::new();
    let mut after = None::<String>;
    loop {
        let page = inner.catalog.records("", after.as_deref(), PAGE)?;
        for record in &page {
            let _pin = inner.pins.pin(&record.write_id);
            for copy in record.parts.iter().flat_map(|part| &part.copies) {
                named.insert(copy.write_id.clone());
                let source = ChunkSource::new(inner, record, copy.clone())?;
                for cell in 0..source.grid.cells() {
                    let _memory = inner.reserve(copy.chunks[cell as usize].stored_bytes).await?;
                    match source.fetch(cell).await {
                        Ok(_) => report.good += 1,
                        // Replaced while it was read: not ours to judge.
                        Err(StoreError::Corrupt(_)) if changed(inner, record) => {}
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
    report.bad.extend(inner.hot.scrub().into_iter().map(|id| format!("write {id} in memory: its checksum does not match")));
    for tier in inner.all_tiers() {
        report.orphans += orphans(inner, &tier, &named).await?;
    }
    Ok(report)
}

fn changed(inner: &Inner, record: &crate::record::TensorRecord) -> bool {
    !matches!(inner.catalog.record(&record.key), Ok(Some(now)) if now.write_id == record.write_id)
}

/// Collects chunks of `tier` that no record names and no write in progress may still name.
async fn orphans(inner: &Inner, tier: &Tier, named: &HashSet<String>) -> Result<u64, StoreError> {
    let (mut after, mut count) = (None::<String>, 0);
    loop {
        let names = tier.backend.list_keys(CHUNKS, after.as_deref(), PAGE).await.map_err(|e| tier.failed(e))?;
        let Some(first) = names.first() else { return Ok(count) };
        let write_id = first[CHUNKS.len()..].split('/').next().unwrap_or_default().to_string();
        let age = inner.now().saturating_sub(write_id_ms(&write_id).unwrap_or(u64::MAX));
        let old = u128::from(age) > inner.options.orphan_age.as_millis();
        if old && !named.contains(&write_id) && !inner.catalog.knows(&write_id)? {
            sweep(inner, tier, &write_id).await?;
            count += 1;
        }
        // On to the next write: `0` is the character after `/`.
        after = Some(format!("{CHUNKS}{write_id}0"));
    }
}
