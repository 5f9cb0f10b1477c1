//! Time, randomness and tasks come from outside, so that a seeded single-thread simulation can run the store.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// The server's clock.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// Runs tasks and blocking work.
pub trait Spawner: Send + Sync + 'static {
    /// Runs a task in the background; it ends with the runtime.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Runs work that takes the processor for long (codecs) where it does not hold up tasks.
    fn work(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;
}

/// What the store takes from outside.
#[derive(Clone)]
pub struct Seams {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness: write ids.
    pub rng: Arc<Mutex<dyn RngCore + Send>>,
    /// Tasks.
    pub spawner: Arc<dyn Spawner>,
}

impl Seams {
    /// The system's clock and randomness, and the tokio runtime that is running.
    pub fn system() -> Seams {
        Seams { clock: Arc::new(SystemClock), rng: Arc::new(Mutex::new(StdRng::from_os_rng())), spawner: Arc::new(TokioSpawner) }
    }

    /// Runs `work` off the runtime's threads and gives back its answer.
    pub(crate) async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.spawner.work(Box::new(move || drop(sender.send(work())))).await;
        receiver.await.ok()
    }

    /// A new write id: a UUIDv7, so that a scrub can tell its age.
    pub(crate) fn write_id(&self) -> String {
        let mut random = [0; 10];
        self.rng.lock().fill_bytes(&mut random);
        uuid::Builder::from_unix_timestamp_millis(self.clock.now_ms(), &random).into_uuid().simple().to_string()
    }
}

/// Milliseconds since 1970 at which `write_id` was made.
pub(crate) fn write_id_ms(write_id: &str) -> Option<u64> {
    let (seconds, nanos) = uuid::Uuid::try_parse(write_id).ok()?.get_timestamp()?.to_unix();
    Some(seconds * 1000 + u64::from(nanos) / 1_000_000)
}

struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        since.as_millis().try_into().unwrap_or(u64::MAX)
    }
}

struct TokioSpawner;

impl Spawner for TokioSpawner {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn work(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // A panic in the work shows as an answer that never came.
            drop(tokio::task::spawn_blocking(work).await);
        })
    }
}
