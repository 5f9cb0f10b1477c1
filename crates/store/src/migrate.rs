//! The work of jobs, key by key: tensors that move to another backend, and copies that are checked.

use std::sync::Arc;

use futures::StreamExt;
use globset::{Glob, GlobMatcher};

use crate::StoreError;
use crate::behind;
use crate::check::{Report, check_orphans, check_record};
use crate::client::Inner;
use crate::jobs::Running;
use crate::moves::Move;
use crate::record::TensorRecord;

/// Keys looked at in one go.
const PAGE: usize = 1000;

/// Tensors that move at once.
const AT_ONCE: usize = 4;

/// The records of a job, in the order of their keys.
struct Records<'a> {
    inner: &'a Arc<Inner>,
    prefix: &'a str,
    after: Option<String>,
    ended: bool,
}

impl Records<'_> {
    /// The next of them; none after the last.
    async fn page(&mut self) -> Result<Option<Vec<TensorRecord>>, StoreError> {
        if self.ended {
            return Ok(None);
        }
        // The index answers at once: others have their turn between its pages.
        tokio::task::yield_now().await;
        let page = self.inner.catalog.records(self.prefix, self.after.as_deref(), PAGE)?;
        self.ended = page.len() < PAGE;
        self.after = page.last().map(|last| last.key.to_string());
        Ok(Some(page))
    }
}

fn records<'a>(inner: &'a Arc<Inner>, prefix: &'a str, after: Option<String>) -> Records<'a> {
    Records { inner, prefix, after, ended: false }
}

/// Stored bytes of a record's copies in `source`; none where it has none there, or is not meant.
fn leaving(inner: &Inner, record: &TensorRecord, source: &str, glob: &GlobMatcher) -> Option<u64> {
    if !record.alive(inner.now()) || !glob.is_match(record.key.as_str()) {
        return None;
    }
    let copies = || record.parts.iter().flat_map(|part| &part.copies).filter(|copy| copy.backend == source);
    copies().next()?;
    Some(copies().map(|copy| copy.stored_bytes()).sum())
}

/// Moves every tensor that matches `pattern` from one backend to the other, or counts them.
pub(crate) async fn migrate(
    inner: &Arc<Inner>,
    job: &Running,
    (source, target): (&str, &str),
    pattern: &str,
    dry_run: bool,
) -> Result<(), StoreError> {
    let glob = Glob::new(pattern).map_err(|e| StoreError::Config(format!("pattern {pattern:?}: {e}")))?.compile_matcher();
    // What waits to be written lies nowhere yet.
    behind::write_soon(inner).await;
    count(inner, job, source, &glob).await?;
    if dry_run {
        return Ok(());
    }
    let after = job.state.lock().after.clone();
    let mut records = records(inner, "", after);
    while let Some(page) = records.page().await? {
        let leaving = page.into_iter().filter(|record| leaving(inner, record, source, &glob).is_some());
        let moves = futures::stream::iter(leaving).map(|record| async move {
            if job.stops(inner) {
                return (record, None);
            }
            let how = Move { from: Some(source), to: target, verify: true, throttled: true };
            let moved = inner.relocate(&record, how).await;
            (record, Some(moved))
        });
        // In order, so that all keys before the last one are done with.
        let mut moves = std::pin::pin!(moves.buffered(AT_ONCE));
        // Those that began are awaited even after one has failed for all.
        let mut result = Ok(());
        while let Some((record, moved)) = moves.next().await {
            match moved {
                None => return result,
                Some(moved) if result.is_ok() => result = note(inner, job, &record, moved),
                Some(Ok(Some(bytes))) => inner.moves.migrated.add(bytes),
                Some(_) => {}
            }
            if result.is_err() {
                job.halt();
            }
        }
        result?;
        if job.stops(inner) {
            return Ok(());
        }
        let done = records.after.clone();
        job.progress(inner, |kept| kept.after = done.or(kept.after.take()));
    }
    job.progress(inner, |kept| kept.complete = true);
    Ok(())
}

/// Notes what became of one tensor; fails where the others would fare no better.
fn note(inner: &Inner, job: &Running, record: &TensorRecord, moved: Result<Option<u64>, StoreError>) -> Result<(), StoreError> {
    let key = record.key.as_str();
    match moved {
        Ok(Some(bytes)) => {
            inner.moves.migrated.add(bytes);
            job.progress(inner, |kept| {
                (kept.job.keys, kept.job.bytes) = (kept.job.keys + 1, kept.job.bytes + bytes);
                kept.after = Some(key.to_owned());
            });
        }
        Ok(None) => job.progress(inner, |kept| {
            kept.job.changed += 1;
            kept.after = Some(key.to_owned());
        }),
        Err(error @ (StoreError::OutOfSpace(_) | StoreError::Busy(_) | StoreError::Backend { .. })) => return Err(error),
        Err(error) => {
            job.failed(inner, key, &error);
            job.progress(inner, |kept| kept.after = Some(key.to_owned()));
        }
    }
    Ok(())
}

/// Counts what is to move, of a job that goes on what is still to move.
async fn count(inner: &Arc<Inner>, job: &Running, source: &str, glob: &GlobMatcher) -> Result<(), StoreError> {
    let (mut keys, mut bytes, mut inline) = (0, 0, 0);
    let after = job.state.lock().after.clone();
    let mut records = records(inner, "", after);
    while let Some(page) = records.page().await? {
        for record in &page {
            if let Some(stored) = leaving(inner, record, source, glob) {
                (keys, bytes) = (keys + 1, bytes + stored);
            } else if source == inner.options.record_backend
                && record.alive(inner.now())
                && record.parts.iter().any(|part| part.inline.is_some() && part.spec.nbytes() > 0)
                && glob.is_match(record.key.as_str())
            {
                inline += 1;
            }
        }
        if job.stops(inner) {
            return Ok(());
        }
    }
    job.progress(inner, |kept| {
        let job = &mut kept.job;
        (job.keys_total, job.bytes_total, job.inline) = (job.keys + keys, job.bytes + bytes, inline);
    });
    Ok(())
}

/// Reads every copy of the tensors whose keys start with `prefix`; of all, looks for chunks that nobody names as well.
pub(crate) async fn check(inner: &Arc<Inner>, job: &Running, prefix: &str, mend: bool) -> Result<(), StoreError> {
    behind::write_soon(inner).await;
    let after = job.state.lock().after.clone();
    let (mut total, mut counted) = (0, records(inner, prefix, after.clone()));
    while let Some(page) = counted.page().await? {
        total += page.iter().filter(|record| record.alive(inner.now())).count() as u64;
    }
    job.progress(inner, |kept| kept.job.keys_total = kept.job.keys + total);
    let mut report = Report::default();
    let mut records = records(inner, prefix, after);
    while let Some(page) = records.page().await? {
        for record in page.into_iter().filter(|record| record.alive(inner.now())) {
            if job.stops(inner) {
                return Ok(());
            }
            let key = record.key.to_string();
            check_record(inner, record, mend, &mut report).await?;
            job.report(inner, &mut report, |kept| {
                kept.job.keys += 1;
                kept.after = Some(key);
            });
        }
    }
    if prefix.is_empty() {
        check_orphans(inner, mend, &mut report).await?;
    }
    job.report(inner, &mut report, |kept| kept.complete = true);
    Ok(())
}
