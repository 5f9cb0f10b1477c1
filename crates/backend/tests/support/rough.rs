//! Work on a backend behind a network that fails in every way, and what must hold of it all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sira_backend::guard::{GuardOptions, Guarded};
use sira_backend::{BackendError, Durability, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend};
use tokio::task::JoinSet;

use super::proxy::{Fault, Proxy};

/// Each fault, as long as this, then as long without one. A try of a call has half of it.
const SPELL: Duration = Duration::from_millis(1200);

const FAULTS: [Fault; 7] = [
    Fault::Delay(Duration::from_millis(80)),
    Fault::Cut,
    Fault::AnswersLost,
    Fault::HalfOpen,
    Fault::Slow(200_000),
    Fault::Stalled,
    Fault::Cut,
];

/// How long recovery may take before the test fails; it takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);

const CREATE: PutOptions = PutOptions { mode: PutMode::Create, durability: Durability::Logged, expires_in: None };

/// A guard with little patience.
pub fn guarded(backend: Arc<dyn StorageBackend>, retries: u32) -> Arc<Guarded> {
    let options = GuardOptions { timeout: SPELL / 2, retries, break_for: Duration::from_millis(100), ..GuardOptions::default() };
    Arc::new(Guarded::new("far", backend, options))
}

/// A value that no other writer writes.
fn value(round: usize, writer: usize) -> Bytes {
    let mut bytes = format!("{round}/{writer}/{:016x}/", rand::random::<u64>()).into_bytes();
    bytes.resize(20_000 + 1000 * writer, b'.');
    bytes.into()
}

/// What a writer knows of its create.
struct Told {
    value: Bytes,
    /// `None`: the call failed, and it may have been written or not.
    outcome: Option<PutOutcome>,
}

/// Races writers for name after name while the network fails; `far` goes through the proxy, `near` does not. Panics where a value is wrong,
/// where a create was acknowledged that did not win, or where the backend does not recover by itself.
pub async fn check(far: Arc<Guarded>, near: &dyn StorageBackend, proxy: &Proxy) {
    const WRITERS: usize = 3;
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut racers = JoinSet::new();
    for lane in 0..4 {
        let (far, done, calls) = (far.clone(), done.clone(), calls.clone());
        racers.spawn(async move {
            let mut rounds = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let name = format!("race/{lane}/{}", rounds.len());
                let writers = (0..WRITERS).map(async |writer| {
                    let value = value(rounds.len(), writer);
                    let outcome = match far.put(&name, Payload::from(value.clone()), CREATE).await {
                        Ok(outcome) => Some(outcome),
                        Err(BackendError::Unavailable { .. }) => None,
                        Err(error) => panic!("{name}: {error}"),
                    };
                    calls.fetch_add(1, Ordering::Relaxed);
                    Told { value, outcome }
                });
                let told = futures::future::join_all(writers).await;
                read_back(&*far, &name, &told).await;
                rounds.push((name, told));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            rounds
        });
    }
    let mut well = Vec::new();
    for fault in FAULTS {
        proxy.set(fault);
        tokio::time::sleep(SPELL).await;
        proxy.set(Fault::None);
        recovers(&*far, fault).await;
        // While nothing is wrong, calls go well.
        let name = format!("well/{}", well.len());
        let begun = Instant::now();
        while let Err(error) = far.put(&name, Payload::from(Bytes::from(name.clone())), CREATE).await {
            assert!(begun.elapsed() < PATIENCE, "after {fault:?}: {error}");
        }
        well.push(name);
        tokio::time::sleep(SPELL / 2).await;
    }
    done.store(true, Ordering::Relaxed);
    let rounds: Vec<(String, Vec<Told>)> = racers.join_all().await.into_iter().flatten().collect();
    // What still hangs somewhere in the network comes to its end.
    tokio::time::sleep(SPELL).await;

    for name in &well {
        assert_eq!(near.get(name, None).await.unwrap().as_deref(), Some(name.as_bytes()), "{name}");
    }
    let (mut acknowledged, mut failed) = (0, 0);
    for (name, told) in &rounds {
        let there = near.get(name, None).await.unwrap();
        let winners: Vec<&Told> = told.iter().filter(|told| told.outcome == Some(PutOutcome::Written)).collect();
        assert!(winners.len() <= 1, "{name}: {} writers were told that they won", winners.len());
        if let Some(winner) = winners.first() {
            assert_eq!(there.as_ref(), Some(&winner.value), "{name}: not what was acknowledged");
            acknowledged += 1;
        }
        if let Some(there) = &there {
            let writer = told.iter().find(|told| told.value == *there).unwrap_or_else(|| panic!("{name}: nobody wrote this"));
            assert_ne!(writer.outcome, Some(PutOutcome::Exists), "{name}: its writer was told of another's");
        } else {
            assert!(told.iter().all(|told| told.outcome.is_none()), "{name}: what was there is gone");
        }
        failed += told.iter().filter(|told| told.outcome.is_none()).count();
    }
    let listed = near.list_keys("race/", None, 1_000_000).await.unwrap();
    let mut there: Vec<&String> = Vec::new();
    for (name, _) in &rounds {
        if near.exists(name).await.unwrap() {
            there.push(name);
        }
    }
    there.sort_unstable();
    assert_eq!(listed.iter().collect::<Vec<_>>(), there, "a listing misses nothing");
    println!("{} creates: {acknowledged} won and were acknowledged, {failed} were told of a failure", calls.load(Ordering::Relaxed));
    assert!(acknowledged > 20 && failed > 0, "the faults did nothing: {acknowledged} acknowledged, {failed} failed");
}

/// Reads what was just raced for: never a value that nobody wrote.
async fn read_back(far: &dyn StorageBackend, name: &str, told: &[Told]) {
    if let Ok(Some(read)) = far.get(name, None).await {
        assert!(told.iter().any(|told| told.value == read), "{name}: nobody wrote this");
    }
    if let Ok(Some(read)) = far.get(name, Some(3..7)).await {
        assert!(told.iter().any(|told| told.value[3..7] == read), "{name}: nobody wrote this");
    }
}

/// Waits until the backend says that it is well.
pub async fn recovers(backend: &dyn StorageBackend, after: impl std::fmt::Debug) {
    let begun = Instant::now();
    loop {
        let health = backend.health_check().await.unwrap();
        if health == HealthStatus::Healthy {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "after {after:?}: {health}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
