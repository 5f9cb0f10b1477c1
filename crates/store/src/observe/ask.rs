//! Asking backends about themselves, so that one that hangs holds nobody up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use parking_lot::Mutex;
use sira_backend::{HealthStatus, StorageBackend};
use tokio::sync::oneshot;

use crate::client::{Inner, Tier};
use crate::seams::Spawner;
use crate::stats::BackendStats;

/// How long a backend may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// A question to one backend. While it is open, whoever asks again waits for the same answer: a backend that hangs is not asked more and more.
pub(crate) struct Question<T: Clone>(Mutex<Option<Shared<oneshot::Receiver<T>>>>);

impl<T: Clone> Default for Question<T> {
    fn default() -> Question<T> {
        Question(Mutex::default())
    }
}

impl<T: Clone + Send + 'static> Question<T> {
    /// The answer; `None` if it does not come in time.
    async fn ask(&self, spawner: &dyn Spawner, answer: impl FnOnce() -> BoxFuture<'static, T>) -> Option<T> {
        let open = {
            let mut last = self.0.lock();
            match &*last {
                Some(open) if open.peek().is_none() => open.clone(),
                _ => {
                    let (sender, receiver) = oneshot::channel();
                    let answer = answer();
                    spawner.spawn(Box::pin(async move { drop(sender.send(answer.await)) }));
                    last.insert(receiver.shared()).clone()
                }
            }
        };
        tokio::time::timeout(PATIENCE, open).await.ok()?.ok()
    }
}

fn silent() -> String {
    format!("no answer within {} s", PATIENCE.as_secs())
}

impl Inner {
    /// The health of each backend, by name.
    pub async fn health(&self) -> BTreeMap<String, HealthStatus> {
        let ask = |tier: Arc<Tier>| async move {
            let backend = tier.backend.clone();
            let check = || async move { health(&*backend).await }.boxed();
            let status = tier.health.ask(&*self.seams.spawner, check).await;
            (tier.name.clone(), status.unwrap_or_else(|| HealthStatus::Unhealthy(silent())))
        };
        join_all(self.all_tiers().into_iter().map(ask)).await.into_iter().collect()
    }

    /// What each backend knows of itself, and what was measured of it.
    pub async fn backend_stats(&self) -> BTreeMap<String, BackendStats> {
        let ask = |tier: Arc<Tier>| async move {
            let backend = tier.backend.clone();
            let stats = || async move { backend.stats().await.map_err(|error| error.to_string()) }.boxed();
            let stats = tier.stats.ask(&*self.seams.spawner, stats).await;
            (tier.name.clone(), BackendStats::of(&tier, stats.unwrap_or_else(|| Err(silent()))))
        };
        join_all(self.all_tiers().into_iter().map(ask)).await.into_iter().collect()
    }
}

async fn health(backend: &dyn StorageBackend) -> HealthStatus {
    backend.health_check().await.unwrap_or_else(|error| HealthStatus::Unhealthy(error.to_string()))
}
