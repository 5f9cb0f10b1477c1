//! What the store measures: every call of a backend ([`BackendMeasurements`]), every chunk through a codec ([`CodecMeasurements`]) and every
//! request of a client ([`Request`]), in plain atomics.

mod ask;
mod codecs;
mod latency;
mod requests;
mod speed;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sira_backend::{
    BackendError, BatchOperation, BatchResult, Capabilities, HealthStatus, Payload, PutOptions, PutOutcome, StorageBackend, StorageStats,
};
use tokio::time::Instant;

pub(crate) use ask::Question;
pub use codecs::CodecMeasurements;
pub(crate) use codecs::CodecMeter;
use latency::Table;
pub use latency::{BUCKETS, Latency, Measured};
pub(crate) use requests::Requests;
pub use requests::{Operation, Request};
pub(crate) use speed::class;
pub use speed::{Direction, Speed, Speeds};

use crate::fitness::{self, Fitness};

/// What a backend can be asked to do, in the order of [`Call`].
const CALLS: [&str; 8] = ["put", "get", "delete", "exists", "list_keys", "batch", "stats", "health_check"];

/// How a call can end: [`outcome`] gives the place.
const OUTCOMES: [&str; 9] = ["ok", "out_of_space", "bad_name", "bad_range", "too_large", "unavailable", "corrupt", "config", "cancelled"];
const OK: usize = 0;
/// The caller has gone before the backend answered.
const CANCELLED: usize = OUTCOMES.len() - 1;

/// A call of a backend.
#[derive(Clone, Copy)]
enum Call {
    Put,
    Get,
    Delete,
    Exists,
    ListKeys,
    Batch,
    Stats,
    HealthCheck,
}

fn outcome(error: &BackendError) -> usize {
    match error {
        BackendError::OutOfSpace(_) => 1,
        BackendError::BadName { .. } => 2,
        BackendError::BadRange { .. } => 3,
        BackendError::TooLarge { .. } => 4,
        BackendError::Unavailable { .. } => 5,
        BackendError::Corrupt(_) => 6,
        BackendError::Config(_) => 7,
    }
}

/// What is counted of one backend.
#[derive(Default)]
pub(crate) struct Meter {
    calls: Table<{ CALLS.len() }, { OUTCOMES.len() }>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    raw: AtomicU64,
    stored: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    /// How fast it has been lately.
    pub speeds: Speeds,
    /// Whether it is fit for new tensors.
    pub fitness: Fitness,
    /// Calls that have begun and not ended.
    pub calls_under_way: AtomicU64,
    /// Bytes of puts under way whose home it is.
    pub puts_under_way: AtomicU64,
}

/// Counters of one backend since it was registered.
#[derive(Clone, Debug)]
pub struct BackendMeasurements {
    /// Each kind of call and outcome.
    pub calls: Vec<Measured>,
    /// Bytes of values put.
    pub bytes_in: u64,
    /// Bytes of values got.
    pub bytes_out: u64,
    /// Bytes of chunks before they were encoded. Tensors that lie in their record are not counted here, nor in `stored_bytes`.
    pub raw_bytes: u64,
    /// Bytes of the same chunks as stored.
    pub stored_bytes: u64,
    /// Gets of tensors whose home this is that were answered from memory.
    pub hits: u64,
    /// And those that read it.
    pub misses: u64,
}

impl Meter {
    pub fn new(recovery_delay: Duration) -> Meter {
        Meter { fitness: Fitness::new(recovery_delay), ..Meter::default() }
    }

    /// Counts a chunk of `raw` bytes that was stored in `stored`.
    pub fn encoded(&self, raw: u64, stored: u64) {
        self.raw.fetch_add(raw, Ordering::Relaxed);
        self.stored.fetch_add(stored, Ordering::Relaxed);
    }

    /// Counts a get of a tensor whose home this is.
    pub fn looked_up(&self, hit: bool) {
        if hit { &self.hits } else { &self.misses }.fetch_add(1, Ordering::Relaxed);
    }

    pub fn read(&self) -> BackendMeasurements {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BackendMeasurements {
            calls: self.calls.read(CALLS, OUTCOMES),
            bytes_in: of(&self.bytes_in),
            bytes_out: of(&self.bytes_out),
            raw_bytes: of(&self.raw),
            stored_bytes: of(&self.stored),
            hits: of(&self.hits),
            misses: of(&self.misses),
        }
    }
}

/// A call under way; counted as cancelled if nobody waits for its end.
struct Timer<'a> {
    meter: &'a Meter,
    call: Call,
    outcome: usize,
    begun: Instant,
}

impl<'a> Timer<'a> {
    fn begin(meter: &'a Meter, call: Call) -> Timer<'a> {
        meter.calls_under_way.fetch_add(1, Ordering::Relaxed);
        Timer { meter, call, outcome: CANCELLED, begun: Instant::now() }
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.meter.calls_under_way.fetch_sub(1, Ordering::Relaxed);
        self.meter.calls.record(self.call as usize, self.outcome, self.begun.elapsed());
    }
}

/// A backend that counts and times what it is asked, and passes everything on as it is.
pub(crate) struct Observed {
    name: String,
    backend: Arc<dyn StorageBackend>,
    meter: Arc<Meter>,
}

impl Observed {
    pub fn new(name: &str, backend: Arc<dyn StorageBackend>, meter: Arc<Meter>) -> Observed {
        Observed { name: name.to_owned(), backend, meter }
    }

    async fn time<T>(&self, call: Call, answer: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        let mut timer = Timer::begin(&self.meter, call);
        let answer = answer.await;
        timer.outcome = answer.as_ref().err().map_or(OK, outcome);
        self.judge(call, answer.as_ref().err());
        answer
    }

    /// What the end of a call says of the backend's fitness. Most errors are the caller's, or of one value alone.
    fn judge(&self, call: Call, error: Option<&BackendError>) {
        let failure: Option<&dyn std::fmt::Display> = match error {
            None => None,
            Some(error @ BackendError::Unavailable { .. }) => Some(error),
            Some(_) => return,
        };
        // The watch judges what the backend says of itself.
        if !matches!(call, Call::Stats | Call::HealthCheck) {
            let writes = matches!(call, Call::Put | Call::Batch);
            fitness::log(&self.name, self.meter.fitness.ended(writes, failure, Instant::now()));
        }
    }

    fn came_in(&self, bytes: u64, outcome: &Result<PutOutcome, BackendError>) -> bool {
        let written = matches!(outcome, Ok(PutOutcome::Written));
        if written {
            self.meter.bytes_in.fetch_add(bytes, Ordering::Relaxed);
        }
        written
    }

    fn went_out(&self, value: &Result<Option<Bytes>, BackendError>) -> Option<u64> {
        let Ok(Some(bytes)) = value else { return None };
        self.meter.bytes_out.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Some(bytes.len() as u64)
    }

    fn measured(&self, direction: Direction, bytes: u64, begun: Instant) {
        let now = Instant::now();
        self.meter.speeds.record(direction, bytes, now - begun, now);
    }
}

#[async_trait]
impl StorageBackend for Observed {
    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        let (bytes, begun) = (value.len(), Instant::now());
        let outcome = self.time(Call::Put, self.backend.put(name, value, options)).await;
        if self.came_in(bytes, &outcome) {
            self.measured(Direction::Put, bytes, begun);
        }
        outcome
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let begun = Instant::now();
        let value = self.time(Call::Get, self.backend.get(name, range)).await;
        if let Some(bytes) = self.went_out(&value) {
            self.measured(Direction::Get, bytes, begun);
        }
        value
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.time(Call::Delete, self.backend.delete(name)).await
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        self.time(Call::Exists, self.backend.exists(name)).await
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        self.time(Call::ListKeys, self.backend.list_keys(prefix, after, limit)).await
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        self.time(Call::Stats, self.backend.stats()).await
    }

    /// One call, whose outcome is that of its first operation that failed.
    async fn batch(&self, operations: Vec<BatchOperation>) -> Result<Vec<BatchResult>, BackendError> {
        let sizes = operations.iter().map(|operation| if let BatchOperation::Put { value, .. } = operation { value.len() } else { 0 });
        let sizes: Vec<u64> = sizes.collect();
        let mut timer = Timer::begin(&self.meter, Call::Batch);
        let results = self.backend.batch(operations).await;
        timer.outcome = results.as_ref().err().map_or(OK, outcome);
        self.judge(Call::Batch, results.as_ref().err());
        for (result, bytes) in results.iter().flatten().zip(sizes) {
            let failed = match result {
                BatchResult::Put(answer) => {
                    self.came_in(bytes, answer);
                    answer.as_ref().err()
                }
                BatchResult::Get(answer) => {
                    self.went_out(answer);
                    answer.as_ref().err()
                }
                BatchResult::Delete(answer) => answer.as_ref().err(),
            };
            if timer.outcome == OK {
                timer.outcome = failed.map_or(OK, outcome);
            }
        }
        results
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        self.time(Call::HealthCheck, self.backend.health_check()).await
    }

    fn device_bytes_written(&self) -> Option<u64> {
        self.backend.device_bytes_written()
    }
}

#[cfg(test)]
mod tests {
    use sira_backend::conformance::{self, Fixture};
    use sira_backend::memory::MemoryBackend;

    use super::*;

    fn observed(limit: u64) -> Observed {
        Observed::new("memory", Arc::new(MemoryBackend::new(limit)), Arc::default())
    }

    fn count(meter: &Meter, call: Call, outcome: &str) -> u64 {
        let mut calls = meter.read().calls.into_iter().filter(|row| row.operation == CALLS[call as usize] && row.outcome == outcome);
        calls.next().unwrap().latency.count()
    }

    struct Memory;

    #[async_trait]
    impl Fixture for Memory {
        async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
            Arc::new(observed(256 << 20))
        }
        async fn limited(&mut self, bytes: u64) -> Option<Arc<dyn StorageBackend>> {
            Some(Arc::new(observed(bytes)))
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_backend_is_the_same_through_it() {
        conformance::check(&mut Memory).await;
    }

    #[tokio::test]
    async fn calls_are_counted_by_kind_and_outcome_with_their_bytes() {
        let backend = observed(100);
        let piece = Bytes::from(vec![7; 60]);
        backend.put("a", piece.clone().into(), PutOptions::default()).await.unwrap();
        backend.put("b", piece.clone().into(), PutOptions::default()).await.unwrap_err();
        let back = backend.get("a", None).await.unwrap().unwrap();
        assert_eq!(back.as_ptr(), piece.as_ptr(), "the payload is not copied on its way");
        assert_eq!(backend.get("a", Some(10..20)).await.unwrap().unwrap().len(), 10);
        assert_eq!(backend.get("none", None).await.unwrap(), None);
        backend.get("a", Some(0..61)).await.unwrap_err();
        let batch = vec![
            BatchOperation::Put { name: "c".into(), value: vec![1; 5].into(), options: PutOptions::default() },
            BatchOperation::Get { name: "c".into(), range: Some(0..6) },
            BatchOperation::Get { name: "c".into(), range: None },
        ];
        backend.batch(batch).await.unwrap();
        let meter = &backend.meter;
        assert_eq!((count(meter, Call::Put, "ok"), count(meter, Call::Put, "out_of_space")), (1, 1));
        assert_eq!((count(meter, Call::Get, "ok"), count(meter, Call::Get, "bad_range")), (3, 1));
        assert_eq!((count(meter, Call::Batch, "ok"), count(meter, Call::Batch, "bad_range")), (0, 1));
        let read = meter.read();
        assert_eq!((read.bytes_in, read.bytes_out), (60 + 5, 60 + 10 + 5));
    }

    struct Hangs;

    #[async_trait]
    impl StorageBackend for Hangs {
        fn capabilities(&self) -> Capabilities {
            MemoryBackend::new(0).capabilities()
        }
        async fn put(&self, _: &str, _: Payload, _: PutOptions) -> Result<PutOutcome, BackendError> {
            std::future::pending().await
        }
        async fn get(&self, _: &str, _: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
            std::future::pending().await
        }
        async fn delete(&self, _: &str) -> Result<bool, BackendError> {
            std::future::pending().await
        }
        async fn exists(&self, _: &str) -> Result<bool, BackendError> {
            std::future::pending().await
        }
        async fn list_keys(&self, _: &str, _: Option<&str>, _: usize) -> Result<Vec<String>, BackendError> {
            std::future::pending().await
        }
        async fn stats(&self) -> Result<StorageStats, BackendError> {
            std::future::pending().await
        }
        async fn health_check(&self) -> Result<HealthStatus, BackendError> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_is_counted_with_the_time_it_took() {
        let backend = Observed::new("stuck", Arc::new(Hangs), Arc::default());
        tokio::time::timeout(Duration::from_secs(3), backend.get("a", None)).await.unwrap_err();
        let calls = backend.meter.read().calls;
        let row = calls.iter().find(|row| row.operation == "get" && row.outcome == "cancelled").unwrap();
        assert_eq!((row.latency.count(), row.latency.seconds), (1, 3.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_hangs_is_named_in_time_and_asked_once() {
        let options = crate::StoreOptions::default();
        let catalog = Arc::new(crate::catalog::MemoryKv::default());
        let store = crate::StorageClient::new(options, crate::Seams::system(), catalog).unwrap();
        store.register_backend("memory", Arc::new(MemoryBackend::new(1 << 20)));
        store.register_backend("stuck", Arc::new(Hangs));
        for _ in 0..3 {
            let (health, stats) = tokio::join!(store.health(), store.stats());
            assert_eq!(health["memory"], HealthStatus::Healthy);
            assert!(matches!(&health["stuck"], HealthStatus::Unhealthy(reason) if reason.contains("no answer within 2 s")), "{health:?}");
            assert_eq!(stats.backends["memory"].values, Some(0));
            assert!(stats.backends["stuck"].error.as_ref().unwrap().contains("no answer within 2 s"));
        }
        let stuck = store.inner.tier("stuck").unwrap();
        assert_eq!(count(&stuck.meter, Call::HealthCheck, "cancelled"), 0, "the first one still runs");
    }
}
