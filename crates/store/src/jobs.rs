//! Jobs: long work that is started, watched and stopped by clients, and goes on after a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use globset::Glob;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sira_wire::job::{CheckRequest, Job, JobState, MAX_NAMED, MigrateRequest, Work};
use sira_wire::many::FailedKey;
use sira_wire::{Code, WireError};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::check::Report;
use crate::client::Inner;
use crate::{StorageClient, StoreError, migrate};

/// Jobs that run at once, at most.
const RUNNING: usize = 8;

/// Jobs that are remembered when they have ended.
const ENDED: usize = 32;

/// How often the state of a running job is written down.
const SAVED: Duration = Duration::from_secs(1);

/// How long a stop waits for the tensors that are under way.
const STOPS: Duration = Duration::from_secs(20);

/// The jobs of a store, by their ids, which are in the order in which they were started.
#[derive(Default)]
pub(crate) struct Jobs {
    table: Mutex<BTreeMap<String, Arc<Running>>>,
}

/// A job of this process.
pub(crate) struct Running {
    pub state: Mutex<Kept>,
    stop: AtomicBool,
    /// Whether its task has ended; of one that a drain cut short, its state says that it runs.
    over: AtomicBool,
    ended: Notify,
    saved: Mutex<Option<Instant>>,
}

/// What is written down of a job.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    #[serde(flatten)]
    pub job: Job,
    /// The last key that it is done with.
    #[serde(default)]
    pub after: Option<String>,
    /// Whether it has come to its end, even if it was told to stop meanwhile.
    #[serde(default)]
    pub complete: bool,
}

impl StorageClient {
    /// Starts to move the tensors whose keys match a glob from one backend to another, or only to count them; a job of the same words that was stopped or
    /// failed goes on where it was. Readers go on; a key that changes meanwhile is left to its writer.
    pub fn start_migrate(&self, request: &MigrateRequest) -> Result<Job, StoreError> {
        let MigrateRequest { source, target, pattern, dry_run, .. } = request.clone();
        Glob::new(&pattern).map_err(|e| refused(format!("pattern {pattern:?}: {e}")))?;
        for name in [&source, &target] {
            if self.inner.tier(name).is_err() {
                let known = self.inner.all_tiers().iter().map(|tier| tier.name.clone()).collect::<Vec<_>>().join(", ");
                return Err(refused(format!("there is no backend {name}; there are {known}")));
            }
        }
        begin(&self.inner, Work::Migrate { source, target, pattern, dry_run })
    }

    /// Starts to hold every copy of tensors against their records.
    pub fn start_check(&self, request: &CheckRequest) -> Result<Job, StoreError> {
        begin(&self.inner, Work::Check { prefix: request.prefix.clone(), mend: request.mend })
    }

    /// The jobs that run, and the last ones that ended.
    pub fn jobs(&self) -> Vec<Job> {
        self.inner.jobs.table.lock().values().map(|job| job.job()).collect()
    }

    /// One job.
    pub fn job(&self, id: &str) -> Result<Job, StoreError> {
        Ok(self.inner.jobs.find(id)?.job())
    }

    /// Tells a job to stop, and waits until what it has begun is done. Of one that has ended, how it ended.
    pub async fn stop_job(&self, id: &str) -> Result<Job, StoreError> {
        let running = self.inner.jobs.find(id)?;
        running.stop.store(true, Ordering::SeqCst);
        // A large tensor at a low rate takes longer; it is stopped after that.
        let _ = tokio::time::timeout(STOPS, running.wait()).await;
        Ok(running.job())
    }

    /// Waits until a job has ended.
    pub async fn wait_job(&self, id: &str) -> Result<Job, StoreError> {
        let running = self.inner.jobs.find(id)?;
        running.wait().await;
        Ok(running.job())
    }

    /// Moves the home of all keys that match the glob `pattern` from one backend to another, and says how many moved. It fails where one cannot be moved,
    /// after all others have been.
    pub async fn migrate_data(&self, source: &str, target: &str, pattern: &str) -> Result<u64, StoreError> {
        let (source, target, pattern) = (source.to_owned(), target.to_owned(), pattern.to_owned());
        let request = MigrateRequest { v: sira_wire::VERSION, source, target, pattern, dry_run: false };
        let started = self.start_migrate(&request)?;
        let job = self.wait_job(&started.id).await?;
        match (job.error, job.failures.into_iter().next()) {
            (None, None) => Ok(job.keys),
            (Some(error), _) => Err(reread(&error)),
            (None, Some(failed)) => Err(reread(&failed.error)),
        }
    }
}

/// An error from its words, which begin with its code.
fn reread(text: &str) -> StoreError {
    let code = Code::of_message(text).unwrap_or(Code::Internal);
    let reason = text.split_once(": ").map_or(text, |(_, reason)| reason);
    StoreError::Wire(WireError::new(code, reason))
}

fn refused(reason: String) -> StoreError {
    StoreError::Wire(WireError::new(Code::BadRequest, reason))
}

impl Jobs {
    fn find(&self, id: &str) -> Result<Arc<Running>, StoreError> {
        let found = self.table.lock().get(id).cloned();
        found.ok_or_else(|| StoreError::NotFound(format!("no job {id:?}; the last {ENDED} that ended are remembered")))
    }

    /// Writes every job down.
    pub fn save_all(&self, inner: &Inner) {
        let all: Vec<_> = self.table.lock().values().cloned().collect();
        all.iter().for_each(|job| job.save(inner));
    }

    /// Forgets the oldest of those that have ended.
    fn tidy(&self, inner: &Inner) {
        let mut table = self.table.lock();
        let ended: Vec<String> =
            table.iter().filter(|(_, job)| job.state.lock().job.state != JobState::Running).map(|(id, _)| id.clone()).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED)) {
            table.remove(id);
            if let Err(error) = inner.catalog.forget_job(id) {
                tracing::warn!(%error, id, "an old job stays in the catalog");
            }
        }
    }
}

impl Running {
    fn new(kept: Kept) -> Arc<Running> {
        let over = AtomicBool::new(kept.job.state != JobState::Running);
        Arc::new(Running { state: Mutex::new(kept), stop: AtomicBool::new(false), over, ended: Notify::new(), saved: Mutex::default() })
    }

    pub fn job(&self) -> Job {
        self.state.lock().job.clone()
    }

    async fn wait(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            ended.await;
        }
    }

    /// Whether it is to stop: it was told to, or the server drains.
    pub fn stops(&self, inner: &Inner) -> bool {
        self.stop.load(Ordering::SeqCst) || inner.stopping.load(Ordering::SeqCst)
    }

    /// Notes progress; written down once in a while.
    pub fn progress(&self, inner: &Inner, change: impl FnOnce(&mut Kept)) {
        change(&mut self.state.lock());
        let due = {
            let mut saved = self.saved.lock();
            let due = saved.is_none_or(|at| at.elapsed() >= SAVED);
            if due {
                *saved = Some(Instant::now());
            }
            due
        };
        if due {
            self.save(inner);
        }
    }

    /// Has it begin nothing more.
    pub fn halt(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Notes progress of a check with what it found meanwhile.
    pub fn report(&self, inner: &Inner, report: &mut Report, change: impl FnOnce(&mut Kept)) {
        self.progress(inner, |kept| {
            let job = &mut kept.job;
            job.found += std::mem::take(&mut report.found);
            job.mended += std::mem::take(&mut report.mended);
            job.bytes += std::mem::take(&mut report.bytes);
            job.findings.append(&mut report.findings);
            job.findings.truncate(MAX_NAMED);
            change(kept);
        });
    }

    /// Notes a tensor that it could not do its work on.
    pub fn failed(&self, inner: &Inner, key: &str, error: &StoreError) {
        self.progress(inner, |kept| {
            kept.job.failed += 1;
            if kept.job.failures.len() < MAX_NAMED {
                kept.job.failures.push(FailedKey { key: key.to_owned(), error: error.to_wire().to_string() });
            }
        });
    }

    fn save(&self, inner: &Inner) {
        let kept = self.state.lock().clone();
        if let Err(error) = inner.catalog.save_job(&kept.job.id, &kept) {
            tracing::warn!(%error, id = kept.job.id, "how far a job is cannot be written down");
        }
    }

    /// Notes how it ended. Of a task that was cut off, only this process knows: the next one goes on with it.
    fn end(&self, inner: &Inner, result: Option<Result<(), StoreError>>) {
        let cut_off = result.is_none();
        let result = result.unwrap_or_else(|| Err(StoreError::Internal("the task of a job has died".into())));
        let mut kept = self.state.lock();
        let draining = inner.stopping.load(Ordering::SeqCst);
        match result {
            // It goes on after the restart.
            _ if draining => {}
            Ok(()) if self.stop.load(Ordering::SeqCst) && !kept.complete => kept.job.state = JobState::Stopped,
            Ok(()) => kept.job.state = JobState::Done,
            Err(error) => {
                tracing::warn!(%error, id = kept.job.id, "a job cannot go on");
                kept.job.state = JobState::Failed;
                kept.job.error = Some(error.to_wire().to_string());
            }
        }
        kept.job.ended_ms = (!draining).then(|| inner.now());
        drop(kept);
        if !cut_off {
            self.save(inner);
        }
        self.over.store(true, Ordering::SeqCst);
        self.ended.notify_waiters();
    }
}

/// Begins a job, or goes on with one of the same work.
fn begin(inner: &Arc<Inner>, work: Work) -> Result<Job, StoreError> {
    if inner.stopping.load(Ordering::SeqCst) {
        return Err(StoreError::ShuttingDown);
    }
    inner.jobs.tidy(inner);
    let running = {
        let mut table = inner.jobs.table.lock();
        let states: Vec<(String, JobState, bool)> = table
            .iter()
            .map(|(id, job)| {
                let kept = job.state.lock();
                (id.clone(), kept.job.state, kept.job.work == work)
            })
            .collect();
        if let Some((id, ..)) = states.iter().find(|(_, state, same)| *same && *state == JobState::Running) {
            return Err(StoreError::InUse(format!("job {id} is at this already; watch or stop it")));
        }
        if states.iter().filter(|(_, state, _)| *state == JobState::Running).count() >= RUNNING {
            return Err(StoreError::Busy(format!("{RUNNING} jobs run already")));
        }
        let interrupted = states.iter().rev().find(|(_, state, same)| *same && matches!(state, JobState::Stopped | JobState::Failed));
        let kept = match interrupted.and_then(|(id, ..)| table.get(id)) {
            Some(job) => again(job.state.lock().clone()),
            None => Kept { job: new(inner.seams.write_id(), work, inner.now()), after: None, complete: false },
        };
        let running = Running::new(kept);
        table.insert(running.job().id, running.clone());
        running
    };
    running.save(inner);
    run(inner, running.clone());
    Ok(running.job())
}

fn new(id: String, work: Work, now: u64) -> Job {
    Job {
        id,
        work,
        state: JobState::Running,
        started_ms: now,
        ended_ms: None,
        resumed: 0,
        keys_total: 0,
        bytes_total: 0,
        keys: 0,
        bytes: 0,
        changed: 0,
        inline: 0,
        failed: 0,
        failures: Vec::new(),
        found: 0,
        mended: 0,
        findings: Vec::new(),
        error: None,
    }
}

fn again(mut kept: Kept) -> Kept {
    kept.job.state = JobState::Running;
    kept.job.resumed += 1;
    (kept.job.error, kept.job.ended_ms) = (None, None);
    kept
}

/// Goes on with the jobs that ran when the last process ended, and remembers the others.
pub(crate) fn resume(inner: &Arc<Inner>) -> Result<(), StoreError> {
    for kept in inner.catalog.jobs::<Kept>()? {
        let goes_on = kept.job.state == JobState::Running;
        let running = Running::new(if goes_on { again(kept) } else { kept });
        inner.jobs.table.lock().insert(running.job().id, running.clone());
        if goes_on {
            tracing::info!(id = running.job().id, "a job goes on");
            run(inner, running);
        }
    }
    Ok(())
}

/// Ends a job, whatever becomes of its task.
struct Ends {
    inner: Arc<Inner>,
    running: Arc<Running>,
    result: Option<Result<(), StoreError>>,
}

impl Ends {
    fn with(mut self, result: Result<(), StoreError>) {
        self.result = Some(result);
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.running.end(&self.inner, self.result.take());
    }
}

fn run(inner: &Arc<Inner>, running: Arc<Running>) {
    let ends = Ends { inner: inner.clone(), running, result: None };
    inner.seams.spawner.spawn(Box::pin(async move {
        let work = ends.running.job().work;
        let result = match work {
            Work::Migrate { source, target, pattern, dry_run } => {
                migrate::migrate(&ends.inner, &ends.running, (&source, &target), &pattern, dry_run).await
            }
            Work::Check { prefix, mend } => migrate::check(&ends.inner, &ends.running, &prefix, mend).await,
        };
        ends.with(result);
    }));
}
