//! What stands between the store and a backend behind a network: limits of time and number, repeated tries, and a circuit breaker.
//!
//! - **Time**: a call ends after [`GuardOptions::timeout`], and as much more as its bytes need at [`SLOWEST`].
//! - **Number**: no more than [`GuardOptions::in_flight`] calls are under way; others wait their turn, as long as a call may take.
//! - **Tries**: what got no answer, or [`BackendError::Unavailable`], is tried again after a pause that doubles and is drawn by chance. All
//!   calls share a budget: a fifth as many repeated tries as calls, and two a second, so that a backend in trouble gets little
//!   more to do than in good days. An answer (no room, a bad range, damage) is never asked for again.
//! - **Circuit**: after [`GuardOptions::break_after`] failures in a row calls fail at once, without a try, for a second, later for up to half a minute; then one call
//!   is let through, and if it is answered, all are. [`StorageBackend::health_check`] says which of the three it is, and is such a call.
//!
//! # A create without an answer
//! It may have been done. A later try that is told of a value there, and a call that gives up, read it back: if it is what
//! was to be written, the create succeeded. This tells writers apart because no two of them write the same: records and chunks have a random
//! write id in their value or name.
//!
//! An overwrite without an answer is repeated, and its first try may still arrive after the second. So a name that is
//! overwritten twice within seconds, while the network fails, can be left with the earlier of two values. The store gives no name two values but for the
//! policies of namespaces.

mod breaker;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tower::retry::budget::{Budget, TpsBudget};

use self::breaker::Breaker;
use crate::{
    BackendError, BatchOperation, BatchResult, Capabilities, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend,
    StorageStats, batch,
};

/// Bytes a second that a network must move for calls to end in time.
pub const SLOWEST: u64 = 4 << 20;

/// Bytes for which a read of a whole value has time, since nobody knows how long the value is.
const WHOLE: u64 = 32 << 20;

/// The first pause between two tries, and the longest; up to as much again is added by chance.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// The budget of repeated tries: a part of the calls of the last ten seconds, and some more in each second.
const BUDGET: (Duration, u32, f32) = (Duration::from_secs(10), 2, 0.2);

/// What errors of the guard itself begin with.
const GIVEN_UP: &str = "call given up";

/// How a backend is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardOptions {
    /// How long a call may take that moves no bytes; each of its tries has this long.
    pub timeout: Duration,
    /// Tries after the first one. None where the backend's own library tries again.
    pub retries: u32,
    /// Calls under way at once.
    pub in_flight: usize,
    /// Failures in a row that open the circuit.
    pub break_after: u32,
    /// How long it stays open the first time.
    pub break_for: Duration,
}

impl Default for GuardOptions {
    /// 5 seconds, 3 more tries, 32 calls at once; 10 failures open the circuit for a second.
    fn default() -> GuardOptions {
        GuardOptions { timeout: Duration::from_secs(5), retries: 3, in_flight: 32, break_after: 10, break_for: Duration::from_secs(1) }
    }
}

/// A backend behind its guard.
pub struct Guarded {
    backend: Arc<dyn StorageBackend>,
    options: GuardOptions,
    permits: Semaphore,
    breaker: Breaker,
    budget: TpsBudget,
}

/// How a try ended.
enum Tried<T> {
    /// The backend answered.
    Answered(Result<T, BackendError>),
    /// It did not, or it failed: what was asked may have been done.
    Lost(BackendError),
    /// It was not asked.
    Refused(BackendError),
}

impl Guarded {
    /// Guards a backend; `name` is what the log calls it.
    pub fn new(name: &str, backend: Arc<dyn StorageBackend>, options: GuardOptions) -> Guarded {
        let (ttl, per_second, part) = BUDGET;
        Guarded {
            backend,
            permits: Semaphore::new(options.in_flight.clamp(1, Semaphore::MAX_PERMITS)),
            breaker: Breaker::new(name, options.break_after, options.break_for),
            budget: TpsBudget::new(ttl, per_second, part),
            options,
        }
    }

    /// What is known of the backend without asking it: unhealthy while its circuit is open, degraded while it is on trial.
    pub fn status(&self) -> HealthStatus {
        self.breaker.status()
    }

    /// How long a try may take that moves so many bytes.
    fn limit(&self, bytes: u64) -> Duration {
        self.options.timeout.saturating_add(Duration::from_secs_f64(bytes as f64 / SLOWEST as f64))
    }

    fn unavailable(reason: String) -> BackendError {
        BackendError::Unavailable { context: GIVEN_UP.into(), source: reason.into() }
    }

    /// One try, in its turn.
    async fn attempt<T>(&self, limit: Duration, call: impl Future<Output = Result<T, BackendError>>) -> Tried<T> {
        let Ok(permit) = tokio::time::timeout(limit, self.permits.acquire()).await else {
            let reason = format!("{} calls are under way, and none ended within {:.1} s", self.options.in_flight, limit.as_secs_f64());
            return Tried::Refused(Self::unavailable(reason));
        };
        let tried = self.out_of_turn(limit, call).await;
        drop(permit);
        tried
    }

    /// One try, whatever else is under way.
    async fn out_of_turn<T>(&self, limit: Duration, call: impl Future<Output = Result<T, BackendError>>) -> Tried<T> {
        let pass = match self.breaker.enter() {
            Ok(pass) => pass,
            Err(reason) => return Tried::Refused(Self::unavailable(reason)),
        };
        match tokio::time::timeout(limit, call).await {
            Ok(Err(error @ BackendError::Unavailable { .. })) => {
                pass.failed(error.to_string());
                Tried::Lost(error)
            }
            Ok(answer) => {
                pass.answered();
                Tried::Answered(answer)
            }
            Err(_) => {
                let reason = format!("no answer within {:.1} s", limit.as_secs_f64());
                pass.failed(reason.clone());
                Tried::Lost(Self::unavailable(reason))
            }
        }
    }

    /// The pauses before each further try of one call.
    fn pauses(&self) -> impl Iterator<Item = Duration> + Send + use<> {
        let [first, longest] = PAUSES;
        let retries = usize::try_from(self.options.retries).unwrap_or(usize::MAX);
        ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).with_max_times(retries).with_jitter().build()
    }

    /// Waits before a further try; `false` where there shall be none.
    async fn again(&self, pauses: &mut (impl Iterator<Item = Duration> + Send)) -> bool {
        let Some(pause) = pauses.next() else { return false };
        if !self.budget.withdraw() {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }

    /// Tries until there is an answer; for calls that may be made twice.
    async fn persist<T, F>(&self, limit: Duration, call: impl Fn() -> F) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        self.budget.deposit();
        let mut pauses = self.pauses();
        loop {
            match self.attempt(limit, call()).await {
                Tried::Answered(answer) => return answer,
                Tried::Refused(error) => return Err(error),
                Tried::Lost(error) if !self.again(&mut pauses).await => return Err(error),
                Tried::Lost(_) => {}
            }
        }
    }

    async fn create(&self, name: &str, value: &Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        self.budget.deposit();
        let (limit, mut pauses, mut in_doubt) = (self.limit(value.len()), self.pauses(), false);
        let error = loop {
            match self.attempt(limit, self.backend.put(name, value.clone(), options)).await {
                Tried::Answered(Ok(PutOutcome::Exists)) if in_doubt => {
                    let found = self.get(name, None).await?;
                    return Ok(if found.is_some_and(|found| same(value, &found)) { PutOutcome::Written } else { PutOutcome::Exists });
                }
                // An earlier try may have been done, whatever this one was told.
                Tried::Answered(Err(error)) if in_doubt => {
                    break Self::unavailable(format!("an earlier try got no answer, and a later one: {error}"));
                }
                Tried::Answered(answer) => return answer,
                Tried::Refused(error) => break error,
                Tried::Lost(error) => {
                    in_doubt = true;
                    if !self.again(&mut pauses).await {
                        break error;
                    }
                }
            }
        };
        if !in_doubt {
            return Err(error);
        }
        match self.attempt(limit, self.backend.get(name, None)).await {
            Tried::Answered(Ok(Some(found))) => Ok(if same(value, &found) { PutOutcome::Written } else { PutOutcome::Exists }),
            // It may still arrive.
            _ => Err(error),
        }
    }
}

/// Whether these are the bytes of the payload.
fn same(value: &Payload, found: &[u8]) -> bool {
    let mut rest = found;
    value.len() == found.len() as u64
        && value.pieces().iter().all(|piece| {
            let (start, end) = rest.split_at(piece.len());
            rest = end;
            start == piece
        })
}

#[async_trait]
impl StorageBackend for Guarded {
    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        match options.mode {
            PutMode::Create => self.create(name, &value, options).await,
            PutMode::Overwrite => self.persist(self.limit(value.len()), || self.backend.put(name, value.clone(), options)).await,
        }
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let bytes = range.as_ref().map_or(WHOLE, |range| range.end.saturating_sub(range.start).min(self.backend.capabilities().max_value));
        self.persist(self.limit(bytes), || self.backend.get(name, range.clone())).await
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.persist(self.limit(0), || self.backend.delete(name)).await
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        self.persist(self.limit(0), || self.backend.exists(name)).await
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        self.persist(self.limit(0), || self.backend.list_keys(prefix, after, limit)).await
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        self.persist(self.limit(0), || self.backend.stats()).await
    }

    async fn batch(&self, operations: Vec<BatchOperation>) -> Result<Vec<BatchResult>, BackendError> {
        batch::by_waves(self, operations, self.options.in_flight).await
    }

    /// What the backend says; while its circuit is open, that, at once. Asked even while all permits are taken.
    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        let ask = async {
            match self.backend.health_check().await {
                Ok(HealthStatus::Unhealthy(reason)) => Err(Self::unavailable(reason)),
                status => status,
            }
        };
        Ok(match self.out_of_turn(self.limit(0), ask).await {
            Tried::Answered(Ok(status)) => status,
            Tried::Answered(Err(error)) | Tried::Lost(error) | Tried::Refused(error) => HealthStatus::Unhealthy(match error {
                BackendError::Unavailable { context, source } if context == GIVEN_UP => source.to_string(),
                error => error.to_string(),
            }),
        })
    }
}

#[cfg(test)]
mod tests;
