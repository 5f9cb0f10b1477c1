//! A seeded simulation: puts, gets, deletes, crashes and restarts on one thread, with an oracle.
//!
//! Each seed is one history. Four clients work on keys of their own; a crash stops every call in the middle; after the restart each key
//! must have a state that its client was told of, or one that was under way when the crash came. `SIRA_SIM_SEEDS` sets how many
//! histories run, `SIRA_SIM_SEED` runs one alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{World, bytes, key, payload, spec};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sira_store::{Clock, Demands, PartSpec, Seams, Spawner, StorageClient, StoreError, WriteOptions};
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
}

type Oracle = Arc<Mutex<BTreeMap<String, Known>>>;

async fn read(store: &StorageClient, name: &str) -> Content {
    match read_parts(store, name).await {
        Ok(raw) => {
            let seed = u64::from_le_bytes(raw[..8].try_into().unwrap());
            assert!(raw[8..] == bytes(raw.len() as u64 - 8, seed), "{name}: torn");
            Some((raw.len() as u64, seed))
        }
        Err(error) => {
            assert_eq!(error.code(), Code::NotFound, "{name}: {error}");
            None
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
async fn write(store: &StorageClient, name: &str, raw: &[u8], cuts: [u64; 2], options: WriteOptions) {
    let (n, [first, second]) = (raw.len() as u64, cuts);
    let sizes = if first == 0 { vec![n] } else { vec![first.min(second), first.abs_diff(second), n - first.max(second)] };
    let part = |(i, n): (usize, &u64)| PartSpec { name: format!("p{i}"), spec: spec(*n), codec: None };
    let mut writer = store.begin_parts(key(name), sizes.iter().enumerate().map(part).collect(), options).await.unwrap();
    writer.write(raw).await.unwrap();
    writer.commit().await.unwrap();
}

/// One operation of one client.
async fn step(store: &StorageClient, oracle: &Oracle, rng: &mut StdRng, client: usize) {
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
            write(store, &name, &raw, cuts, options).await;
            let mut oracle = oracle.lock();
            let known = oracle.entry(name).or_default();
            let before = known.told.replace((n, seed));
            if level == Consistency::Weak {
                known.possible.push(before);
            } else {
                known.possible.clear();
            }
        }
        5..8 => {
            let found = read(store, &name).await;
            assert_eq!(found, oracle.lock().get(&name).cloned().unwrap_or_default().told, "{name}");
        }
        8 => {
            oracle.lock().entry(name.clone()).or_default().possible.push(None);
            store.delete(&key(&name), None).await.unwrap();
            // A delete of what was only in memory is as lasting as what it deleted: an older state may come back only if it was weak.
            let mut oracle = oracle.lock();
            let known = oracle.entry(name).or_default();
            known.told = None;
            known.possible.clear();
        }
        _ => {
            let (entries, _) = store.list(&format!("{place}/{client}-"), None, 100).unwrap();
            let oracle = oracle.lock();
            let expected = oracle.iter().filter(|(name, known)| name.starts_with(&format!("{place}/{client}-")) && known.told.is_some());
            assert_eq!(
                entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(),
                expected.map(|(name, _)| name.as_str()).collect::<Vec<_>>()
            );
        }
    }
}

fn history(seed: u64) {
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
            let store = world.open(seams, |options| options.hot_limit = if seed.is_multiple_of(2) { 0 } else { 4 << 20 }).await;
            let before = oracle.lock().clone();
            for (name, known) in before {
                let found = read(&store, &name).await;
                assert!(found == known.told || known.possible.contains(&found), "seed {seed} epoch {epoch} {name}: {found:?}, {known:?}");
                oracle.lock().insert(name, Known { told: found, possible: Vec::new() });
            }
            world.process.crash_after(if drains { -1 } else { crash });
            let clients = (0..CLIENTS).map(|client| {
                let (store, oracle, mut rng) = (store.clone(), oracle.clone(), StdRng::seed_from_u64(rng.random()));
                async move {
                    for _ in 0..60 {
                        step(&store, &oracle, &mut rng, client).await;
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
                store.drain().await.unwrap();
                oracle.lock().values_mut().for_each(|known| known.possible.clear());
            }
        });
        // All tasks end here, in the middle of whatever they do.
        runtime.shutdown_timeout(Duration::ZERO);
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_torn() {
    if let Ok(seed) = std::env::var("SIRA_SIM_SEED") {
        return history(seed.parse().unwrap());
    }
    let count: u64 = std::env::var("SIRA_SIM_SEEDS").map_or(10, |text| text.parse().unwrap());
    for seed in 0..count {
        history(seed);
    }
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
