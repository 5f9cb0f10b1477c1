//! Copies held against their records: what is missing, damaged or named by nobody; and mended, where another copy is good.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use sira_wire::Key;
use sira_wire::job::{Finding, MAX_NAMED, Problem};

use crate::StoreError;
use crate::client::Inner;
use crate::moves::Move;
use crate::read::{ChunkSource, inline};
use crate::record::{PartCopy, TensorRecord, chunk_name};
use crate::sink::{lasting, put_chunk};
use crate::upkeep;

/// What a check found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub found: u64,
    pub mended: u64,
    /// The first of it.
    pub findings: Vec<Finding>,
    /// Stored bytes that were read.
    pub bytes: u64,
    /// Backends that do not answer: they are not asked again.
    unreachable: BTreeSet<String>,
}

impl Report {
    fn add(&mut self, key: &str, backend: &str, problem: Problem, detail: String, mended: bool) {
        self.found += 1;
        self.mended += u64::from(mended);
        if self.findings.len() < MAX_NAMED {
            self.findings.push(Finding { key: key.to_owned(), backend: backend.to_owned(), problem, detail, mended });
        }
    }

    fn unreachable(&mut self, backend: &str, error: &StoreError) {
        if self.unreachable.insert(backend.to_owned()) {
            self.add("", backend, Problem::Unreachable, error.to_string(), false);
        }
    }
}

/// Checks the present version of a key, if there is one.
pub(crate) async fn check_key(inner: &Arc<Inner>, key: &Key, mend: bool, report: &mut Report) -> Result<(), StoreError> {
    match inner.catalog.record(key)?.filter(|record| record.alive(inner.now())) {
        Some(record) => check_record(inner, record, mend, report).await,
        None => Ok(()),
    }
}

/// Reads every chunk of every copy of a record.
pub(crate) async fn check_record(inner: &Arc<Inner>, record: TensorRecord, mend: bool, report: &mut Report) -> Result<(), StoreError> {
    let record = Arc::new(record);
    let _pin = inner.pins.pin(&record);
    if let Some(index) = record.parts.iter().position(|part| part.inline.is_some() && part.spec.nbytes() > 0) {
        match inline(inner, &record, index).await {
            Ok(bytes) => report.bytes += bytes.len() as u64,
            Err(StoreError::Corrupt(reason)) if is_present(inner, &record) => {
                report.add(record.key.as_str(), &inner.options.record_backend, Problem::Damaged, reason, false);
            }
            Err(StoreError::Corrupt(_)) => {}
            Err(error) => report.unreachable(&inner.options.record_backend, &error),
        }
    }
    for index in 0..record.parts.len() {
        for copy in &record.parts[index].copies {
            check_copy(inner, &record, index, copy, mend, report).await?;
        }
    }
    if is_present(inner, &record) {
        for backend in inner.lacking(&record) {
            let made = mend && add_copy(inner, &record.key, &backend).await?;
            report.add(record.key.as_str(), &backend, Problem::Lacking, "the namespace wants a copy here".into(), made);
        }
    }
    Ok(())
}

/// Makes a copy that a key lacks.
async fn add_copy(inner: &Arc<Inner>, key: &Key, backend: &str) -> Result<bool, StoreError> {
    // Anew: one that was made before has changed it.
    let Some(record) = inner.catalog.record(key)?.filter(|record| record.alive(inner.now())) else { return Ok(false) };
    match inner.relocate(&record, Move { from: None, to: backend, verify: true, throttled: true }).await {
        Ok(Some(bytes)) => {
            inner.moves.copied.add(bytes);
            Ok(true)
        }
        Ok(None) => Ok(false),
        Err(error) => {
            tracing::warn!(%error, %key, backend, "a copy is not made");
            Ok(false)
        }
    }
}

async fn check_copy(
    inner: &Arc<Inner>,
    record: &Arc<TensorRecord>,
    index: usize,
    copy: &PartCopy,
    mend: bool,
    report: &mut Report,
) -> Result<(), StoreError> {
    if report.unreachable.contains(&copy.backend) {
        return Ok(());
    }
    let alone = match ChunkSource::only(inner, record, index, copy.clone()) {
        Ok(alone) => alone,
        // No such backend is configured any more.
        Err(error @ StoreError::Internal(_)) => {
            report.unreachable(&copy.backend, &error);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for cell in 0..alone.grid.cells() {
        let bytes = alone.chunk(cell).stored_bytes;
        inner.throttle.take(bytes).await;
        let _memory = inner.reserve(bytes).await?;
        match alone.fetch(cell).await {
            Ok(_) => report.bytes += bytes,
            // Replaced while it was read: not ours to judge.
            Err(StoreError::Corrupt(_)) if !is_present(inner, record) => return Ok(()),
            Err(StoreError::Corrupt(reason)) => {
                let tier = inner.tier(&copy.backend)?;
                let name = chunk_name(&copy.write_id, index, cell);
                let is_there = tier.backend.exists(&name).await.map_err(|e| tier.failed(e))?;
                let mended = mend && mend_chunk(inner, record, index, copy, cell).await?;
                let problem = if is_there { Problem::Damaged } else { Problem::Missing };
                report.add(record.key.as_str(), &copy.backend, problem, reason, mended);
            }
            Err(error) => {
                report.unreachable(&copy.backend, &error);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Writes a chunk again, from another copy that has the same; false where none has. The record is pinned, so that its chunks are not collected meanwhile.
async fn mend_chunk(inner: &Arc<Inner>, record: &Arc<TensorRecord>, index: usize, copy: &PartCopy, cell: u64) -> Result<bool, StoreError> {
    let tier = inner.tier(&copy.backend)?;
    for other in record.parts[index].copies.iter().filter(|other| other.backend != copy.backend) {
        let same = (&other.chunk_shape, &other.chains, &other.chunks) == (&copy.chunk_shape, &copy.chains, &copy.chunks);
        let Ok(source) = ChunkSource::only(inner, record, index, other.clone()) else { continue };
        let Ok(bytes) = source.fetch(cell).await else { continue };
        if same {
            if let Err(error) = put_chunk(inner, &tier, &chunk_name(&copy.write_id, index, cell), bytes, lasting()).await {
                tracing::warn!(%error, key = %record.key, "a chunk is not mended");
                return Ok(false);
            }
            return Ok(ChunkSource::only(inner, record, index, copy.clone())?.fetch(cell).await.is_ok());
        }
    }
    Ok(false)
}

fn is_present(inner: &Inner, record: &TensorRecord) -> bool {
    matches!(inner.catalog.record(&record.key), Ok(Some(now)) if now.write_id == record.write_id)
}

/// Looks for chunks that no record names, old enough that no put may be writing them.
pub(crate) async fn check_orphans(inner: &Arc<Inner>, mend: bool, report: &mut Report) -> Result<(), StoreError> {
    const PAGE: usize = 1000;
    // Before the records are read: a write that commits meanwhile is found among them.
    let mut candidates = Vec::new();
    for tier in inner.all_tiers() {
        match upkeep::unnamed(inner, &tier).await {
            Ok(found) => candidates.extend(found.into_iter().map(|write_id| (tier.clone(), write_id))),
            Err(error) => report.unreachable(&tier.name, &error),
        }
    }
    let (mut named, mut after) = (HashSet::new(), None::<String>);
    loop {
        let page = inner.catalog.records("", after.as_deref(), PAGE)?;
        named.extend(page.iter().flat_map(|record| &record.parts).flat_map(|part| &part.copies).map(|copy| copy.write_id.clone()));
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.to_string()),
            _ => break,
        }
    }
    for (tier, write_id) in candidates.iter().filter(|(_, write_id)| !named.contains(write_id)) {
        if mend {
            upkeep::sweep(inner, tier, write_id).await?;
        }
        report.add("", &tier.name, Problem::Orphan, format!("chunks of write {write_id} are named by no record"), mend);
    }
    Ok(())
}
