//! Copies of one tensor in several backends, where a namespace asks for them: made after the put, from the first one; and a record of which backends
//! are out, so that reads go to the others.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use sira_backend::BackendError;
use sira_wire::Key;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::StoreError;
use crate::check::{self, Report};
use crate::client::Inner;
use crate::moves::Move;
use crate::record::TensorRecord;
use crate::tiers::spawn_loop;

/// Keys that wait for their copies; of more, their namespaces are gone through.
const MOST: usize = 1 << 16;

/// How long a backend that failed is asked last.
const OUT: Duration = Duration::from_secs(5);

/// Records of one look into the index.
const PAGE: usize = 1000;

/// What is to be copied, and what is out.
#[derive(Default)]
pub(crate) struct Replication {
    waiting: Mutex<Waiting>,
    nudge: Arc<Notify>,
    out: Mutex<HashMap<String, Instant>>,
    /// No copy is made until then: the last one failed.
    vain_until: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Waiting {
    /// Keys that lack a copy.
    lacking: BTreeSet<String>,
    /// Keys of which a copy was found damaged.
    damaged: BTreeSet<String>,
    /// Namespaces to be gone through.
    namespaces: BTreeSet<String>,
}

impl Replication {
    /// Has the keys of a namespace looked at.
    pub fn look(&self, namespace: &str) {
        self.waiting.lock().namespaces.insert(namespace.to_owned());
        self.nudge.notify_one();
    }

    fn lacks(&self, key: &Key) {
        let mut waiting = self.waiting.lock();
        match waiting.lacking.len() < MOST {
            true => waiting.lacking.insert(key.to_string()),
            false => waiting.namespaces.insert(key.namespace().to_owned()),
        };
    }

    /// A read of `key` has failed in `backend`, where another copy may do.
    pub fn failed(&self, key: &Key, backend: &str, error: &StoreError) {
        match error {
            StoreError::Backend { source: BackendError::Unavailable { .. }, .. } => {
                self.out.lock().insert(backend.to_owned(), Instant::now() + OUT);
            }
            StoreError::Corrupt(_) => {
                let mut waiting = self.waiting.lock();
                if waiting.damaged.len() < MOST {
                    waiting.damaged.insert(key.to_string());
                    drop(waiting);
                    self.nudge.notify_one();
                }
            }
            _ => {}
        }
    }

    /// Whether making a copy failed a moment ago.
    fn tried_in_vain(&self) -> bool {
        self.vain_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Whether a backend failed a moment ago.
    pub fn is_out(&self, backend: &str) -> bool {
        let mut out = self.out.lock();
        match out.get(backend) {
            Some(until) if Instant::now() < *until => true,
            Some(_) => {
                out.remove(backend);
                false
            }
            None => false,
        }
    }
}

/// Starts the work in the background, which ends with the store. What was put before the start may lack copies.
pub(crate) fn spawn(inner: &Arc<Inner>) {
    inner.namespaces.all().iter().for_each(|namespace| inner.replication.look(&namespace.name));
    let (nudge, every) = (inner.replication.nudge.clone(), inner.options.reap_interval);
    spawn_loop(inner, nudge, every, |inner| Box::pin(async move { work(&inner).await }));
}

impl Inner {
    /// The backends where `record` is to have a copy and has none.
    pub fn lacking(&self, record: &TensorRecord) -> Vec<String> {
        if record.tombstone {
            return Vec::new();
        }
        let Some(namespace) = self.namespaces.find(record.key.namespace()) else { return Vec::new() };
        let policy = namespace.policy();
        let chunked = || record.parts.iter().filter(|part| !part.copies.is_empty());
        let lacks = |name: &&String| chunked().any(|part| part.copies.iter().all(|copy| copy.backend != **name));
        policy.copies.iter().filter(lacks).cloned().collect()
    }

    /// Has copies made of a record that was committed, where they are wanted.
    pub fn check_copies(&self, record: &TensorRecord) {
        if !self.lacking(record).is_empty() {
            self.replication.lacks(&record.key);
            self.replication.nudge.notify_one();
        }
    }

    /// Makes the copies that a key lacks.
    async fn complete(self: &Arc<Self>, key: &Key) -> Result<(), StoreError> {
        loop {
            let Some(record) = self.catalog.record(key)?.filter(|record| record.alive(self.now())) else { return Ok(()) };
            let Some(to) = self.lacking(&record).into_iter().next() else { return Ok(()) };
            match self.relocate(&record, Move { from: None, to: &to, verify: false, throttled: true }).await? {
                Some(bytes) => self.moves.copied.add(bytes),
                // Its writer has changed it, and has it looked at again.
                None => return Ok(()),
            }
        }
    }
}

async fn work(inner: &Arc<Inner>) {
    let namespaces = std::mem::take(&mut inner.replication.waiting.lock().namespaces);
    for namespace in namespaces {
        if let Err(error) = look(inner, &namespace) {
            tracing::warn!(%error, namespace, "not gone through for copies; it is tried again");
            inner.replication.waiting.lock().namespaces.insert(namespace);
        }
    }
    complete_all(inner).await;
    let damaged = std::mem::take(&mut inner.replication.waiting.lock().damaged);
    for key in damaged {
        let mut report = Report::default();
        let Ok(parsed) = key.parse::<Key>() else { continue };
        match check::check_key(inner, &parsed, true, &mut report).await {
            Ok(()) => tracing::warn!(key, found = report.found, mended = report.mended, "a damaged copy was looked at"),
            Err(error) => tracing::warn!(%error, key, "a damaged copy is not mended"),
        }
    }
}

/// Makes the copies that are lacking. Where a backend takes none, the others wait for the next time.
async fn complete_all(inner: &Arc<Inner>) {
    // Each put tells of itself: without a pause, a backend that is out would be tried with each.
    if inner.replication.tried_in_vain() {
        return;
    }
    loop {
        let next = inner.replication.waiting.lock().lacking.pop_first();
        let Some(key) = next.filter(|_| !inner.stopping.load(Ordering::SeqCst)) else { return };
        let Ok(parsed) = key.parse::<Key>() else { continue };
        if let Err(error) = inner.complete(&parsed).await {
            tracing::warn!(%error, key, "lacks a copy; it is tried again");
            let own = matches!(error, StoreError::Corrupt(_) | StoreError::Unsupported(_));
            // What is wrong with this one alone is found by the next start, or a check.
            if own {
                continue;
            }
            inner.replication.waiting.lock().lacking.insert(key);
            *inner.replication.vain_until.lock() = Some(Instant::now() + OUT);
            return;
        }
    }
}

/// Finds the keys of a namespace that lack copies.
fn look(inner: &Arc<Inner>, namespace: &str) -> Result<(), StoreError> {
    if inner.namespaces.find(namespace).is_none_or(|namespace| namespace.policy().copies.is_empty()) {
        return Ok(());
    }
    let (prefix, mut after) = (format!("{namespace}/"), None::<String>);
    loop {
        let page = inner.catalog.records(&prefix, after.as_deref(), PAGE)?;
        for record in page.iter().filter(|record| !inner.lacking(record).is_empty()) {
            let mut waiting = inner.replication.waiting.lock();
            if waiting.lacking.len() >= MOST {
                // The rest when these are done.
                waiting.namespaces.insert(namespace.to_owned());
                return Ok(());
            }
            waiting.lacking.insert(record.key.to_string());
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.to_string()),
            _ => return Ok(()),
        }
    }
}
