//! A seeded simulation: puts, gets, deletes, crashes and restarts on one thread, with an oracle.
//!
//! Each seed is one history. Four clients work on keys of their own; a crash stops every call in the middle; after the restart each key
//! must have a state that its client was told of, or one that was under way when the crash came. In every other history the backends fail
//! now and then, before a call takes effect or after: a write that failed may have happened or not, and nothing else may follow from it.
//!
//! `SIRA_SIM_SEEDS` sets how many histories run (100), `SIRA_SIM_FROM` the first (0); `SIRA_SIM_SEED` runs one alone: a failure names it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::early::Early;
use common::flaky::Flaky;
use common::{World, bytes, key, payload, spec};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sira_store::{Clock, Demands, PartSpec, Seams, Spawner, StorageClient, StoreError, TierOptions, WriteOptions};
use sira_wire::namespace::Tiers;
use sira_wire::{Code, Consistency};

const CLIENTS: usize = 4;
const KEYS: u64 = 4;
const EPOCHS: usize = 4;

/// A clock that moves by a millisecond whenever it is looked at.
struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now_ms(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// The runtime's one thread, for work as well.
struct OneThread;

impl Spawner for OneThread {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn work(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            work();
        })
    }
}

/// Contents of a key: `None`, or the length and seed of its bytes.
type Content = Option<(u64, u64)>;

/// What is known of a key.
#[derive(Clone, Debug, Default)]
struct Known {
    /// What its client was told last.
    told: Content,
    /// Also possible after a crash: what was under way, and what a weak put replaced.
    possible: Vec<Content>,
    /// A call failed since the last that did not: what is possible may be there without a crash.
    failed: bool,
}

type Oracle = Arc<Mutex<BTreeMap<String, Known>>>;

/// What a key has; an error is one of a backend that was told to fail, never of what is stored.
async fn read(store: &StorageClient, name: &str) -> Result<Content, StoreError> {
    match read_parts(store, name).await {
        Ok(raw) => {
            let seed = u64::from_le_bytes(raw[..8].try_into().unwrap());
            assert!(raw[8..] == bytes(raw.len() as u64 - 8, seed), "{name}: torn");
            Ok(Some((raw.len() as u64, seed)))
        }
        Err(error) if error.code() == Code::NotFound => Ok(None),
        Err(error) => {
            assert_eq!(error.code(), Code::Backend, "{name}: {error}");
            Err(error)
        }
    }
}

/// All parts of a key, one after another.
async fn read_parts(store: &StorageClient, name: &str) -> Result<Vec<u8>, StoreError> {
    let snapshot = store.snapshot(&key(name), &Demands::default())?;
    let mut raw = Vec::new();
    for part in 0..snapshot.parts().len() {
        let mut reader = snapshot.read(part, &BTreeMap::new()).await?;
        while let Some(piece) = reader.next().await? {
            raw.extend_from_slice(&piece);
        }
    }
    Ok(raw)
}

/// Puts `raw` as one tensor, or cut into parts anywhere.
async fn write(store: &StorageClient, name: &str, raw: &[u8], cuts: [u64; 2], options: WriteOptions) -> Result<(), StoreError> {
    let (n, [first, second]) = (raw.len() as u64, cuts);
    let sizes = if first == 0 { vec![n] } else { vec![first.min(second), first.abs_diff(second), n - first.max(second)] };
    let part = |(i, n): (usize, &u64)| PartSpec { name: format!("p{i}"), spec: spec(*n), codec: None };
    let mut writer = store.begin_parts(key(name), sizes.iter().enumerate().map(part).collect(), options).await?;
    writer.write(raw).await?;
    writer.commit().await?;
    Ok(())
}

/// Of a call that a backend failed, nothing is known: `possible` says what may be there. Where
/// backends fail, a tier may be full as well: nothing moves to one that fails, and chunks of failed writes stay until the next start. Any other
/// error is a defect.
fn failed(oracle: &Oracle, name: &str, error: &StoreError, flaky: bool) {
    let full = flaky && error.code() == Code::OutOfSpace;
    assert!(error.code() == Code::Backend || full, "{name}: {error}");
    oracle.lock().entry(name.to_owned()).or_default().failed = true;
}

/// One operation of one client.
async fn step(store: &StorageClient, oracle: &Oracle, rng: &mut StdRng, (client, flaky): (usize, bool)) {
    let place = if rng.random_bool(0.5) { "ns" } else { "big" };
    let name = format!("{place}/{client}-{}", rng.random_range(0..KEYS));
    match rng.random_range(0..10) {
        0..5 => {
            let n = if rng.random_ratio(1, 16) { 5 << 20 } else { [9, 1000, 40_000, 70_000][rng.random_range(0..4)] };
            let seed: u64 = rng.random();
            let level = [Consistency::Strong, Consistency::Eventual, Consistency::Weak][rng.random_range(0..3)];
            let mut raw = seed.to_le_bytes().to_vec();
            raw.extend(bytes(n - 8, seed));
            oracle.lock().entry(name.clone()).or_default().possible.push(Some((n, seed)));
            let options = WriteOptions { consistency: Some(level), ..WriteOptions::default() };
            let cuts = if rng.random() { [rng.random_range(1..n), rng.random_range(0..=n)] } else { [0, 0] };
            if let Err(error) = write(store, &name, &raw, cuts, options).await {
                return failed(oracle, &name, &error, flaky);
            }
            let mut oracle = oracle.lock();
            let known = oracle.entry(name).or_default();
            let before = known.told.replace((n, seed));
            known.failed = false;
            if level == Consistency::Weak {
                known.possible.push(before);
            } else {
                known.possible.clear();
            }
        }
        5..8 => {
            let Ok(found) = read(store, &name).await else { return };
            let known = oracle.lock().get(&name).cloned().unwrap_or_default();
            assert!(found == known.told || known.failed && known.possible.contains(&found), "{name}: {found:?}, {known:?}");
        }
        8 => {
            oracle.lock().entry(name.clone()).or_default().possible.push(None);
            if let Err(error) = store.delete(&key(&name), None).await {
                return failed(oracle, &name, &error, flaky);
            }
            // A delete of what was only in memory is as lasting as what it deleted: an older state may come back only if it was weak.
            let mut oracle = oracle.lock();
            let known = oracle.entry(name).or_default();
            known.told = None;
            known.failed = false;
            known.possible.clear();
        }
        9 if rng.random_ratio(1, 4) => {
            // Another job may be at it already.
            let (source, target) = if rng.random() { ("small", "large") } else { ("large", "small") };
            if let Err(error) = store.migrate_data(source, target, &format!("*/{client}-*")).await {
                assert!(matches!(error.code(), Code::InUse | Code::Busy | Code::OutOfSpace | Code::Backend), "{error}");
            }
        }
        _ => {
            let (entries, _) = store.list(&format!("{place}/{client}-"), None, 100).unwrap();
            let oracle = oracle.lock();
            // Where a call failed, only a read tells.
            if oracle.values().any(|known| known.failed) {
                return;
            }
            let expected = oracle.iter().filter(|(name, known)| name.starts_with(&format!("{place}/{client}-")) && known.told.is_some());
            assert_eq!(
                entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(),
                expected.map(|(name, _)| name.as_str()).collect::<Vec<_>>()
            );
        }
    }
}

/// What is wrong with a history's backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plant {
    Nothing,
    /// A record is acknowledged as durable before it is: a crash takes the last ones back.
    EarlyAcknowledgement,
}

/// Tiers of which the warm one is soon full, and which a tensor climbs after one read.
fn tiny_tiers() -> TierOptions {
    TierOptions {
        tiers: Some(Tiers { warm: "small".into(), cold: "large".into() }),
        limits: [("small".to_owned(), 6 << 20)].into(),
        promote_after: 1,
        move_rate: Some(1 << 30),
        ..TierOptions::default()
    }
}

fn history(seed: u64, plant: Plant) {
    let flaky = plant == Plant::Nothing && seed % 4 >= 2;
    let world = World::new(1 << 30);
    let oracle = Oracle::default();
    let mut rng = StdRng::seed_from_u64(seed);
    let clock = Arc::new(Ticks(AtomicU64::new(1_700_000_000_000)));
    for epoch in 0..EPOCHS {
        let (crash, drains) = (rng.random_range(0..400), rng.random_ratio(1, 5));
        let (world, oracle, mut rng) = (world.clone(), oracle.clone(), StdRng::seed_from_u64(rng.random()));
        let seams =
            Seams { clock: clock.clone(), rng: Arc::new(Mutex::new(StdRng::seed_from_u64(rng.random()))), spawner: Arc::new(OneThread) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            world.process.crash_after(-1);
            let store = world
                .open(seams, |options| {
                    options.hot_limit = if seed.is_multiple_of(2) { 0 } else { 4 << 20 };
                    if !seed.is_multiple_of(3) {
                        options.tiers = tiny_tiers();
                    }
                })
                .await;
            let before = oracle.lock().clone();
            for (name, known) in before {
                let found = read(&store, &name).await.unwrap();
                assert!(found == known.told || known.possible.contains(&found), "seed {seed} epoch {epoch} {name}: {found:?}, {known:?}");
                oracle.lock().insert(name, Known { told: found, ..Known::default() });
            }
            let early = (plant == Plant::EarlyAcknowledgement).then(|| Arc::new(Early::new(world.small.clone())));
            if let Some(early) = &early {
                store.register_backend("small", early.clone());
            } else if flaky {
                let flaky = |backend, salt| Arc::new(Flaky::new(backend, seed ^ salt, 30));
                store.register_backend("small", flaky(world.small.clone(), epoch as u64));
                store.register_backend("large", flaky(world.large.clone(), 100 + epoch as u64));
            }
            world.process.crash_after(if drains { -1 } else { crash });
            let clients = (0..CLIENTS).map(|client| {
                let (store, oracle, mut rng) = (store.clone(), oracle.clone(), StdRng::seed_from_u64(rng.random()));
                async move {
                    for _ in 0..60 {
                        step(&store, &oracle, &mut rng, (client, flaky)).await;
                    }
                }
            });
            tokio::select! {
                biased;
                () = world.process.crashed.notified() => {}
                _ = futures::future::join_all(clients) => {}
            }
            if drains {
                // A clean end keeps everything, what was only in memory too.
                store.register_backend("small", world.small.clone());
                store.register_backend("large", world.large.clone());
                store.drain().await.unwrap();
                // Of a key whose last call failed, a drain cannot know more than its client does.
                oracle.lock().values_mut().filter(|known| !known.failed).for_each(|known| known.possible.clear());
            } else if let Some(early) = early {
                world.process.crash_after(-1);
                early.lose().await;
            }
        });
        // All tasks end here, in the middle of whatever they do.
        runtime.shutdown_timeout(Duration::ZERO);
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_torn() {
    if let Ok(seed) = std::env::var("SIRA_SIM_SEED") {
        return history(seed.parse().unwrap(), Plant::Nothing);
    }
    let number = |variable: &str, default| std::env::var(variable).map_or(default, |text| text.parse::<u64>().unwrap());
    let from = number("SIRA_SIM_FROM", 0);
    let (next, end) = (AtomicU64::new(from), from + number("SIRA_SIM_SEEDS", 100));
    // Each history is one thread's; several run beside each other.
    let run = || {
        let seeds = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < end);
        std::iter::from_fn(seeds).filter(|seed| std::panic::catch_unwind(|| history(*seed, Plant::Nothing)).is_err()).collect::<Vec<_>>()
    };
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "histories {failed:?} failed; SIRA_SIM_SEED=N runs one alone");
}

#[test]
fn a_history_runs_the_same_twice() {
    // The same seed gives the same names of the same writes: everything random comes through the seams.
    let names = || {
        let world = World::new(1 << 30);
        let seams = Seams {
            clock: Arc::new(Ticks(AtomicU64::new(1))),
            rng: Arc::new(Mutex::new(StdRng::seed_from_u64(7))),
            spawner: Arc::new(OneThread),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let store = world.open(seams, |_| ()).await;
            for i in 0..10 {
                store.store(key(&format!("ns/{i}")), spec(100_000), &payload(100_000, i), WriteOptions::default()).await.unwrap();
            }
            world.small.names("").await
        })
    };
    assert_eq!(names(), names());
}

#[test]
fn a_planted_defect_is_found() {
    let found = |seed| std::panic::catch_unwind(|| history(seed, Plant::EarlyAcknowledgement)).is_err();
    assert!((0..10).any(found), "no history noticed that acknowledged records were lost");
}
