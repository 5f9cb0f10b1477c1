use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::conformance::{self, Fixture};
use crate::memory::MemoryBackend;

/// What becomes of one call.
#[derive(Clone, Debug)]
enum Fate {
    /// It goes well.
    Well,
    /// It does not arrive.
    Lost,
    /// It arrives, its answer does not.
    AnswerLost,
    /// It arrives, and is answered after everybody stopped waiting.
    Hangs,
    /// It neither arrives nor ends.
    Stuck,
    /// It is told that there is no room.
    Full,
    /// Somebody else's value is there before it arrives, and its answer is lost.
    Overtaken,
}

/// A backend whose calls end as told, in order; when nothing is left to tell, as `rest` says.
struct Fated {
    backend: MemoryBackend,
    fates: Mutex<VecDeque<Fate>>,
    rest: Fate,
    calls: AtomicUsize,
    under_way: AtomicUsize,
    most: AtomicUsize,
}

impl Fated {
    fn new(fates: &[Fate], rest: Fate) -> Arc<Fated> {
        let fates = Mutex::new(fates.iter().cloned().collect());
        let [calls, under_way, most] = [0; 3].map(AtomicUsize::new);
        Arc::new(Fated { backend: MemoryBackend::new(256 << 20), fates, rest, calls, under_way, most })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    async fn meet<T>(&self, overtake: Option<&str>, call: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        struct Leave<'a>(&'a AtomicUsize);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.most.fetch_max(self.under_way.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        let _leave = Leave(&self.under_way);
        let fate = self.fates.lock().pop_front().unwrap_or_else(|| self.rest.clone());
        let lost = || Err(BackendError::Unavailable { context: "a call".into(), source: "the connection broke".into() });
        match fate {
            Fate::Well => call.await,
            Fate::Lost => lost(),
            Fate::AnswerLost => call.await.and(lost()),
            Fate::Hangs => {
                let answer = call.await;
                tokio::time::sleep(Duration::from_secs(3600)).await;
                answer
            }
            Fate::Stuck => std::future::pending().await,
            Fate::Full => Err(BackendError::OutOfSpace("it is full".into())),
            Fate::Overtaken => {
                if let Some(name) = overtake {
                    self.backend.put(name, value("theirs"), PutOptions::default()).await?;
                }
                call.await.and(lost())
            }
        }
    }
}

#[async_trait]
impl StorageBackend for Fated {
    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }
    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        self.meet(Some(name), self.backend.put(name, value, options)).await
    }
    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        self.meet(None, self.backend.get(name, range)).await
    }
    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.meet(None, self.backend.delete(name)).await
    }
    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        self.meet(None, self.backend.exists(name)).await
    }
    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        self.meet(None, self.backend.list_keys(prefix, after, limit)).await
    }
    async fn stats(&self) -> Result<StorageStats, BackendError> {
        self.meet(None, self.backend.stats()).await
    }
    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        self.meet(None, self.backend.health_check()).await
    }
}

const CREATE: PutOptions = PutOptions { mode: PutMode::Create, durability: crate::Durability::Durable, expires_in: None };

fn value(text: &'static str) -> Payload {
    let (start, end) = text.split_at(1);
    [start, end].into_iter().map(|piece| Bytes::from_static(piece.as_bytes())).collect()
}

fn guard(backend: &Arc<Fated>) -> Guarded {
    Guarded::new("far", backend.clone(), GuardOptions::default())
}

#[tokio::test(start_paused = true)]
async fn what_got_no_answer_is_tried_again_with_growing_pauses_by_chance() {
    let backend = Fated::new(&[Fate::Lost, Fate::AnswerLost, Fate::Lost], Fate::Well);
    let begun = tokio::time::Instant::now();
    guard(&backend).put("a", value("mine"), PutOptions::default()).await.unwrap();
    assert_eq!(backend.calls(), 4);
    // 50, 100 and 200 ms, each with up to as much again.
    let took = begun.elapsed();
    assert!((Duration::from_millis(350)..Duration::from_millis(710)).contains(&took), "{took:?}");

    let backend = Fated::new(&[], Fate::Lost);
    let error = guard(&backend).get("a", None).await.unwrap_err();
    assert!(error.to_string().contains("the connection broke"), "{error}");
    assert_eq!(backend.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_never_asked_for_again() {
    let backend = Fated::new(&[], Fate::Well);
    let guarded = guard(&backend);
    guarded.put("a", value("mine"), PutOptions::default()).await.unwrap();
    assert!(matches!(guarded.get("a", Some(0..99)).await, Err(BackendError::BadRange { len: 4, .. })));
    assert!(matches!(guarded.put("..", value("mine"), CREATE).await, Err(BackendError::BadName { .. })));
    assert!(matches!(guarded.put("b", vec![0; 300 << 20].into(), CREATE).await, Err(BackendError::OutOfSpace(_))));
    assert_eq!(backend.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn time_is_given_by_bytes() {
    let options = GuardOptions { retries: 0, ..GuardOptions::default() };
    let guarded = Guarded::new("far", Fated::new(&[], Fate::Stuck), options);
    for (bytes, seconds) in [(0, 5.0), (40 << 20, 15.0)] {
        let begun = tokio::time::Instant::now();
        let error = guarded.put("a", vec![0; bytes].into(), PutOptions::default()).await.unwrap_err();
        assert!(error.to_string().contains(&format!("call given up: no answer within {seconds:.1} s")), "{error}");
        assert_eq!(begun.elapsed().as_secs_f64(), seconds);
    }
    let begun = tokio::time::Instant::now();
    guarded.get("a", Some(8 << 20..12 << 20)).await.unwrap_err();
    guarded.get("a", None).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::from_secs(6 + 13));
}

#[tokio::test(start_paused = true)]
async fn a_create_in_doubt_is_read_back() {
    use Fate::*;
    let (ours, theirs) = ((PutOutcome::Written, "mine"), (PutOutcome::Exists, "theirs"));
    for (fates, expected) in [
        (vec![AnswerLost], ours),
        (vec![Hangs], ours),
        (vec![Lost], ours),
        (vec![Lost, AnswerLost, Lost], ours),
        // The read back is lost for a while, too.
        (vec![AnswerLost, Well, Lost, Stuck], ours),
        // No further try is left: the value that is there decides.
        (vec![AnswerLost, Lost, Lost, Lost], ours),
        (vec![Lost, Lost, Stuck, Hangs], ours),
        (vec![AnswerLost, Full], ours),
        (vec![Overtaken], theirs),
        (vec![Overtaken, Lost, Lost, Lost], theirs),
        (vec![Lost, Overtaken, Well, Lost], theirs),
    ] {
        let backend = Fated::new(&fates, Well);
        let outcome = guard(&backend).put("a", value("mine"), CREATE).await;
        let there = backend.backend.get("a", None).await.unwrap().unwrap();
        assert_eq!((outcome.unwrap(), there), (expected.0, Bytes::from(expected.1)), "{fates:?}");
    }
    // A value that was there before is not ours, and costs no second look.
    let backend = Fated::new(&[], Well);
    let guarded = guard(&backend);
    guarded.put("a", value("same"), CREATE).await.unwrap();
    assert_eq!(guarded.put("a", value("same"), CREATE).await.unwrap(), PutOutcome::Exists);
    assert_eq!(backend.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_known_is_not_acknowledged() {
    use Fate::*;
    // Done or not, and nobody answers any more.
    for first in [AnswerLost, Lost] {
        let backend = Fated::new(&[first], Stuck);
        assert!(matches!(guard(&backend).put("a", value("mine"), CREATE).await, Err(BackendError::Unavailable { .. })));
    }
    // No room for the second try says nothing of the first, which may still arrive.
    let backend = Fated::new(&[Lost, Full], Well);
    let error = guard(&backend).put("a", value("mine"), CREATE).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable { .. }) && error.to_string().contains("it is full"), "{error}");
    // Never done, and not there in the end: it may still arrive.
    let backend = Fated::new(&[Lost, Lost, Lost, Lost], Well);
    assert!(matches!(guard(&backend).put("a", value("mine"), CREATE).await, Err(BackendError::Unavailable { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_circuit_opens_shows_and_closes_again() {
    let backend = Fated::new(&[], Fate::Lost);
    let options = GuardOptions { retries: 0, ..GuardOptions::default() };
    let guarded = Guarded::new("far", backend.clone(), options);
    for _ in 0..10 {
        guarded.exists("a").await.unwrap_err();
    }
    let error = guarded.exists("a").await.unwrap_err();
    assert!(error.to_string().contains("10 calls in a row failed"), "{error}");
    let health = guarded.health_check().await.unwrap();
    assert!(
        matches!(&health, HealthStatus::Unhealthy(why) if why.contains("left alone") && why.contains("the connection broke")),
        "{health}"
    );
    assert_eq!(
        (backend.calls(), guarded.status()),
        (
            10,
            HealthStatus::Unhealthy(match health {
                HealthStatus::Unhealthy(why) => why.replace("call given up: ", ""),
                other => panic!("{other}"),
            })
        )
    );

    // A second later one call tries, fails, and the pause is two seconds.
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(matches!(guarded.status(), HealthStatus::Degraded(_)));
    assert!(matches!(guarded.health_check().await.unwrap(), HealthStatus::Unhealthy(_)));
    tokio::time::advance(Duration::from_secs(1)).await;
    guarded.exists("a").await.unwrap_err();
    assert_eq!(backend.calls(), 11);

    // It works again: the next call on trial lets all through, here the health check.
    backend.fates.lock().extend([Fate::Well, Fate::Well]);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(guarded.health_check().await.unwrap(), HealthStatus::Healthy);
    assert!(!guarded.exists("a").await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn repeated_tries_have_a_budget() {
    let backend = Fated::new(&[], Fate::Lost);
    let options = GuardOptions { break_after: u32::MAX, ..GuardOptions::default() };
    let guarded = Guarded::new("far", backend.clone(), options);
    futures::future::join_all((0..1000).map(|_| guarded.exists("a"))).await;
    // 200 for the calls and 20 for ten seconds, not 3,000.
    let repeated = backend.calls() - 1000;
    assert!((100..=260).contains(&repeated), "{repeated}");
}

#[tokio::test(start_paused = true)]
async fn few_calls_are_under_way_and_the_rest_waits_its_turn() {
    let backend = Fated::new(&[], Fate::Stuck);
    let options = GuardOptions { retries: 0, in_flight: 4, break_after: 9, ..GuardOptions::default() };
    let guarded = Guarded::new("far", backend.clone(), options);
    let calls = futures::future::join_all((0..20).map(|_| guarded.exists("a")));
    let begun = tokio::time::Instant::now();
    let (answers, health) = tokio::join!(calls, guarded.health_check());
    assert!(answers.iter().all(Result::is_err));
    assert_eq!(backend.most.load(Ordering::Relaxed), 4 + 1, "a health check does not wait its turn");
    assert!(matches!(health.unwrap(), HealthStatus::Unhealthy(_)));
    // Those that could not even begin in the time of a call are told so, and none waits for ever.
    assert!(begun.elapsed() <= Duration::from_secs(11), "{:?}", begun.elapsed());
    let told = answers.iter().filter(|answer| answer.as_ref().is_err_and(|error| error.to_string().contains("4 calls are under way")));
    assert!(told.count() > 0);
}

struct Memory;

#[async_trait]
impl Fixture for Memory {
    async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
        Arc::new(Guarded::new("memory", Arc::new(MemoryBackend::new(256 << 20)), GuardOptions::default()))
    }
    async fn limited(&mut self, bytes: u64) -> Option<Arc<dyn StorageBackend>> {
        Some(Arc::new(Guarded::new("memory", Arc::new(MemoryBackend::new(bytes)), GuardOptions::default())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backend_is_the_same_behind_it() {
    conformance::check(&mut Memory).await;
}
