//! Tensors that change their place: between tiers, by migrations, to further copies; with backends that fail, and crashes at every step.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{World, bytes, key, payload, spec};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sira_backend::memory::MemoryBackend;
use sira_store::{Seams, StorageClient, StoreError, StoreOptions, TierOptions, WriteOptions};
use sira_wire::job::{CheckRequest, JobState, MigrateRequest, Problem};
use sira_wire::namespace::{Mode, Policy, Tiers};
use sira_wire::{Code, Consistency, VERSION};

const MIB: u64 = 1 << 20;

fn tiers() -> Tiers {
    Tiers { warm: "small".into(), cold: "large".into() }
}

/// Tiers `small` of `limit` bytes over `large`, chunks as they are, nothing kept in memory.
fn tiered(limit: u64) -> impl FnOnce(&mut StoreOptions) {
    move |options| {
        options.hot_limit = 0;
        options.codec = "none".parse().unwrap();
        options.tiers = TierOptions { tiers: Some(tiers()), limits: [("small".to_owned(), limit)].into(), ..TierOptions::default() };
    }
}

async fn put(store: &StorageClient, name: &str, n: u64, seed: u64) -> Result<(), StoreError> {
    store.store(key(name), spec(n), &payload(n, seed), WriteOptions::default()).await.map(drop)
}

async fn get(store: &StorageClient, name: &str) -> Result<Vec<u8>, StoreError> {
    Ok(store.retrieve(&key(name)).await?.1.into_bytes().to_vec())
}

fn home(store: &StorageClient, name: &str) -> String {
    store.info(&key(name)).unwrap().backend
}

/// Waits until something holds: for what is done in the background there is no other end to wait for.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came: {what}");
}

fn migration(pattern: &str, dry_run: bool) -> MigrateRequest {
    MigrateRequest { v: VERSION, source: "small".into(), target: "large".into(), pattern: pattern.into(), dry_run }
}

#[tokio::test]
async fn a_full_tier_gives_what_was_used_least_to_the_next_one() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), tiered(10 * MIB)).await;
    for i in 0..9 {
        put(&store, &format!("ns/{i}"), MIB, i).await.unwrap();
    }
    get(&store, "ns/0").await.unwrap();
    for i in 9..30 {
        put(&store, &format!("ns/{i}"), MIB, i).await.unwrap();
        assert!(world.small.bytes("c/").await <= 10 * MIB, "the limit is hard");
        if i == 12 {
            assert_eq!((home(&store, "ns/0").as_str(), home(&store, "ns/1").as_str()), ("small", "large"), "one was used, the other not");
        }
    }
    for i in 0..30 {
        assert_eq!(get(&store, &format!("ns/{i}")).await.unwrap(), bytes(MIB, i), "{i}");
        assert_eq!(store.info(&key(&format!("ns/{i}"))).unwrap().version, 1);
    }
    assert_eq!(home(&store, "ns/29"), "small");
    let moves = store.stats().await.moves;
    assert!(moves.demoted.tensors >= 20 && moves.demoted.bytes == moves.demoted.tensors * MIB && moves.failed == 0, "{moves:?}");
    // What is larger than the tier goes below at once.
    put(&store, "ns/giant", 11 * MIB, 7).await.unwrap();
    assert_eq!((home(&store, "ns/giant").as_str(), get(&store, "ns/giant").await.unwrap() == bytes(11 * MIB, 7)), ("large", true));
}

#[tokio::test]
async fn a_limit_of_a_namespace_moves_its_own() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), |options| (options.hot_limit, options.codec) = (0, "none".parse().unwrap())).await;
    let policy = Policy { limits: [("small".to_owned(), 3 * MIB)].into(), tiers: Some(tiers()), ..Policy::default() };
    put(&store, "other/x", MIB, 99).await.unwrap();
    for i in 0..5 {
        put(&store, &format!("ns/{i}"), MIB, i).await.unwrap();
    }
    // Lowering a limit moves what is above it.
    store.set_namespace("ns", policy).await.unwrap();
    let of = |name: &str| store.namespaces().into_iter().find(|entry| entry.namespace == name).unwrap();
    assert!(of("ns").bytes["small"] <= 3 * MIB && of("ns").operations.demotions >= 2, "{:?}", of("ns"));
    for i in 5..9 {
        put(&store, &format!("ns/{i}"), MIB, i).await.unwrap();
        assert!(of("ns").bytes["small"] <= 3 * MIB);
    }
    for i in 0..9 {
        assert_eq!(get(&store, &format!("ns/{i}")).await.unwrap(), bytes(MIB, i));
    }
    assert_eq!(home(&store, "other/x"), "small");
}

#[tokio::test]
async fn a_tier_above_its_high_watermark_is_brought_below_the_low_one() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), tiered(20 * MIB)).await;
    for i in 0..19 {
        put(&store, &format!("ns/{i}"), MIB, i).await.unwrap();
    }
    until("80 percent", async || world.small.bytes("c/").await <= 16 * MIB).await;
    assert_eq!((home(&store, "ns/0").as_str(), home(&store, "ns/18").as_str()), ("large", "small"));
    assert_eq!(store.stats().await.moves.failed, 0);
}

#[tokio::test]
async fn what_is_read_from_below_comes_up() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), tiered(10 * MIB)).await;
    put(&store, "big/a", MIB, 1).await.unwrap();
    assert_eq!(home(&store, "big/a"), "large", "as the router says");
    get(&store, "big/a").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(home(&store, "big/a"), "large", "once is not often");
    get(&store, "big/a").await.unwrap();
    until("the way up", async || home(&store, "big/a") == "small").await;
    assert_eq!(get(&store, "big/a").await.unwrap(), bytes(MIB, 1));
    until("the room below", async || world.large.bytes("c/").await == 0).await;
    let entry = store.namespaces().into_iter().find(|entry| entry.namespace == "big").unwrap();
    assert_eq!((entry.operations.promotions, entry.operations.demotions), (1, 0));
}

#[tokio::test]
async fn a_cache_evicts_at_the_last_and_a_store_refuses() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), tiered(4 * MIB)).await;
    let limits: BTreeMap<String, u64> = [("small".to_owned(), 3 * MIB), ("large".to_owned(), 5 * MIB)].into();
    let level = Some(Consistency::Eventual);
    store
        .set_namespace("cache", Policy { mode: Mode::Cache, limits: limits.clone(), consistency: level, ..Policy::default() })
        .await
        .unwrap();
    for i in 0..20 {
        put(&store, &format!("cache/{i}"), MIB, i).await.unwrap();
    }
    let kept: Vec<u64> = (0..20).filter(|i| store.exists(&key(&format!("cache/{i}")), None).unwrap().is_some()).collect();
    assert!((7..=8).contains(&kept.len()) && kept.contains(&19) && !kept.contains(&0), "both tiers are full of the latest: {kept:?}");
    store.delete_prefix("cache/", None, false).await.unwrap();
    store.set_namespace("store", Policy { limits, ..Policy::default() }).await.unwrap();
    for i in 0..8 {
        put(&store, &format!("store/{i}"), MIB, i).await.unwrap();
    }
    let refused = put(&store, "store/8", MIB, 8).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfSpace);
    assert!(
        refused.to_string().contains("nothing moves to the tier below it: namespace store may take 5242880 bytes of large"),
        "{refused}"
    );
    for i in 0..8 {
        assert_eq!(get(&store, &format!("store/{i}")).await.unwrap(), bytes(MIB, i), "{i}");
    }
}

#[tokio::test]
async fn no_tensor_moves_where_its_level_is_not_kept() {
    let world = World::new(1 << 30);
    let store = world.prepare(Seams::system(), |options| {
        options.hot_limit = 0;
        options.tiers.tiers = Some(Tiers { warm: "small".into(), cold: "volatile".into() });
        options.tiers.limits = [("small".to_owned(), 3 * MIB)].into();
    });
    store.register_backend("volatile", Arc::new(MemoryBackend::new(1 << 30)));
    store.start().await.unwrap();
    let level = |consistency| WriteOptions { consistency: Some(consistency), ..WriteOptions::default() };
    for (i, consistency) in [(0, Consistency::Strong), (1, Consistency::Eventual)] {
        store.store(key(&format!("ns/{i}")), spec(MIB), &payload(MIB, i), level(consistency)).await.unwrap();
    }
    assert_eq!(put(&store, "ns/2", 2 * MIB, 2).await.unwrap_err().code(), Code::OutOfSpace);
    let refused = store.migrate_data("small", "volatile", "ns/0").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unsupported);
    assert_eq!((home(&store, "ns/0").as_str(), home(&store, "ns/1").as_str()), ("small", "small"));
    // A copy there is no harm: the other one keeps what was promised.
    assert_eq!(get(&store, "ns/0").await.unwrap(), bytes(MIB, 0));
}

#[tokio::test]
async fn a_tier_below_that_is_out_costs_nothing_but_the_put() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), tiered(4 * MIB)).await;
    for i in 0..3 {
        put(&store, &format!("ns/{i}"), MIB, i).await.unwrap();
    }
    world.large.set_out(true);
    let refused = put(&store, "ns/much", 3 * MIB, 9).await.unwrap_err();
    assert!(refused.code() == Code::OutOfSpace && refused.to_string().contains("told to be out"), "{refused}");
    for i in 0..3 {
        assert_eq!(get(&store, &format!("ns/{i}")).await.unwrap(), bytes(MIB, i));
    }
    world.large.set_out(false);
    put(&store, "ns/much", 3 * MIB, 9).await.unwrap();
    for i in 0..3 {
        assert_eq!(get(&store, &format!("ns/{i}")).await.unwrap(), bytes(MIB, i));
    }
}

#[tokio::test]
async fn a_running_read_ends_where_it_began() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), tiered(1 << 30)).await;
    put(&store, "ns/a", 8 * MIB, 1).await.unwrap();
    let mut reader = store.read(&key("ns/a"), None, &BTreeMap::new()).await.unwrap();
    let mut read = reader.next().await.unwrap().unwrap().to_vec();
    assert_eq!(store.migrate_data("small", "large", "*").await.unwrap(), 1);
    assert!(store.delete(&key("ns/a"), None).await.unwrap());
    while let Some(piece) = reader.next().await.unwrap() {
        read.extend_from_slice(&piece);
    }
    assert_eq!(read, bytes(8 * MIB, 1));
    drop(reader);
    until("the chunks go", async || world.small.bytes("c/").await + world.large.bytes("c/").await == 0).await;
}

/// A runtime of its own, whose tasks all end with it, as those of a process that dies.
fn process<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let result = runtime.block_on(run);
    runtime.shutdown_timeout(Duration::ZERO);
    result
}

#[test]
fn a_crash_at_any_step_of_a_move_leaves_the_tensor_whole_and_once() {
    crash_at_each_step(None);
}

#[test]
fn a_crash_at_any_step_of_a_move_that_recodes_leaves_it_whole_and_once() {
    crash_at_each_step(Some("zstd"));
}

/// `codec`: of the tier that it moves to; that of the one where it lies is none.
fn crash_at_each_step(codec: Option<&str>) {
    // What is read here is not to come back up by that.
    fn still(options: &mut StoreOptions) {
        tiered(1 << 30)(options);
        options.tiers.promote_after = 0;
    }
    let mut steps = 0;
    for crash in 0.. {
        let world = World::new(1 << 30);
        let crashed = process(async {
            let store = world.open(Seams::system(), still).await;
            put(&store, "ns/a", 5 * MIB, 1).await.unwrap();
            if let Some(codec) = codec {
                let codecs = [("large".to_owned(), codec.to_owned())].into();
                store.set_namespace("ns", Policy { codecs, ..Policy::default() }).await.unwrap();
            }
            world.process.crash_after(crash);
            tokio::select! {
                biased;
                () = world.process.crashed.notified() => true,
                moved = store.migrate_data("small", "large", "ns/*") => {
                    assert_eq!(moved.unwrap(), 1);
                    false
                }
            }
        });
        world.process.crash_after(-1);
        process(async {
            // The job goes on by itself.
            let store = world.open(Seams::system(), still).await;
            assert_eq!(get(&store, "ns/a").await.unwrap(), bytes(5 * MIB, 1), "after a crash at step {crash}");
            assert_eq!(store.info(&key("ns/a")).unwrap().version, 1);
            until("the job's end", async || store.jobs().iter().all(|job| job.state == JobState::Done)).await;
            assert_eq!(get(&store, "ns/a").await.unwrap(), bytes(5 * MIB, 1), "moved after a crash at step {crash}");
            let moved = store.info(&key("ns/a")).unwrap();
            assert_eq!((moved.backend.as_str(), moved.codec.as_str()), ("large", codec.unwrap_or("none")));
            until("one copy", async || world.small.bytes("c/").await == 0 && world.large.bytes("c/").await == 5 * MIB).await;
        });
        if !crashed {
            steps = crash;
            break;
        }
    }
    assert!(steps > 6, "chunks, their reading back, the record: only {steps} steps");
}

#[tokio::test]
async fn a_migration_counts_moves_and_says_what_it_did() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), tiered(1 << 30)).await;
    for i in 0..10 {
        put(&store, &format!("ns/a/{i}"), 100_000, i).await.unwrap();
    }
    put(&store, "ns/small", 1000, 50).await.unwrap();
    put(&store, "other/x", 100_000, 60).await.unwrap();
    let run = async |request: MigrateRequest| {
        let job = store.start_migrate(&request).unwrap();
        store.wait_job(&job.id).await.unwrap()
    };
    let dry = run(migration("ns/*", true)).await;
    assert_eq!((dry.state, dry.keys_total, dry.bytes_total, dry.inline, dry.keys), (JobState::Done, 10, 1_000_000, 1, 0));
    assert_eq!(world.large.names("").await.len(), 0, "a dry run writes nothing");
    let done = run(migration("ns/*", false)).await;
    assert_eq!((done.state, done.keys, done.bytes, done.failed, done.resumed), (JobState::Done, 10, 1_000_000, 0, 0));
    for i in 0..10 {
        assert_eq!(
            (home(&store, &format!("ns/a/{i}")).as_str(), get(&store, &format!("ns/a/{i}")).await.unwrap()),
            ("large", bytes(100_000, i))
        );
    }
    assert_eq!((home(&store, "other/x").as_str(), get(&store, "ns/small").await.unwrap()), ("small", bytes(1000, 50)));
    let again = run(migration("ns/*", false)).await;
    assert_eq!((again.keys_total, again.keys), (0, 0), "nothing is left to move");
    assert_eq!(store.stats().await.moves.migrated.tensors, 10);
    let refused = async |source: &str, pattern: &str| {
        let request = MigrateRequest { source: source.into(), ..migration(pattern, false) };
        store.start_migrate(&request).unwrap_err()
    };
    assert_eq!(refused("nowhere", "*").await.code(), Code::BadRequest);
    assert!(refused("nowhere", "*").await.to_string().contains("large, small"));
    assert_eq!(refused("small", "a[").await.code(), Code::BadRequest);
    assert_eq!(store.job("x").unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn what_does_not_read_back_stays_where_it_was() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), tiered(1 << 30)).await;
    put(&store, "ns/a", MIB, 1).await.unwrap();
    world.large.set_spoils(true);
    let job = store.start_migrate(&migration("*", false)).unwrap();
    let job = store.wait_job(&job.id).await.unwrap();
    assert_eq!((job.state, job.keys, job.failed), (JobState::Done, 0, 1));
    assert!(job.failures[0].key == "ns/a" && job.failures[0].error.contains("its checksum does not match"), "{job:?}");
    assert_eq!((home(&store, "ns/a").as_str(), get(&store, "ns/a").await.unwrap()), ("small", bytes(MIB, 1)));
    assert_eq!(world.large.names("").await.len(), 0, "what came to nothing is swept");
}

#[tokio::test]
async fn a_migration_that_stops_or_fails_goes_on_where_it_was() {
    let world = World::new(1 << 30);
    let slow = |options: &mut StoreOptions| {
        tiered(1 << 30)(options);
        options.tiers.move_rate = Some(20 * MIB);
    };
    let store = world.open(Seams::system(), slow).await;
    for i in 0..40 {
        put(&store, &format!("ns/{i:02}"), MIB, i).await.unwrap();
    }
    let job = store.start_migrate(&migration("ns/*", false)).unwrap();
    assert_eq!(store.start_migrate(&migration("ns/*", false)).unwrap_err().code(), Code::InUse);
    until("the first tensors", async || store.job(&job.id).unwrap().keys >= 3).await;
    let stopped = store.stop_job(&job.id).await.unwrap();
    assert!(stopped.state == JobState::Stopped && (3..40).contains(&stopped.keys) && stopped.keys_total == 40, "{stopped:?}");
    assert!(stopped.ended_ms.is_some() && store.stats().await.moves.waited_seconds > 0.0, "it was throttled");
    // The target fails in the middle.
    let again = store.start_migrate(&migration("ns/*", false)).unwrap();
    assert_eq!((again.id.as_str(), again.keys, again.resumed), (job.id.as_str(), stopped.keys, 1), "the same job");
    until("more tensors", async || store.job(&job.id).unwrap().keys > stopped.keys).await;
    world.large.set_out(true);
    let failed = store.wait_job(&job.id).await.unwrap();
    assert!(failed.state == JobState::Failed && failed.error.as_ref().unwrap().starts_with("SIRA_BACKEND: "), "{failed:?}");
    world.large.set_out(false);
    // A restart remembers it.
    drop(store);
    let store = world.open(Seams::system(), tiered(1 << 30)).await;
    assert_eq!(store.job(&job.id).unwrap().state, JobState::Failed);
    store.start_migrate(&migration("ns/*", false)).unwrap();
    let done = store.wait_job(&job.id).await.unwrap();
    assert_eq!((done.state, done.failed, done.error, done.resumed), (JobState::Done, 0, None, 2));
    for i in 0..40 {
        assert_eq!(
            (home(&store, &format!("ns/{i:02}")).as_str(), get(&store, &format!("ns/{i:02}")).await.unwrap()),
            ("large", bytes(MIB, i))
        );
    }
}

#[test]
fn a_migration_goes_on_after_the_process_died() {
    let world = World::new(1 << 30);
    let id = process(async {
        let store = world.open(Seams::system(), |options| {
            tiered(1 << 30)(options);
            options.tiers.move_rate = Some(10 * MIB);
        });
        let store = store.await;
        for i in 0..30 {
            put(&store, &format!("ns/{i:02}"), MIB, i).await.unwrap();
        }
        let job = store.start_migrate(&migration("ns/*", false)).unwrap();
        until("the first tensors", async || store.job(&job.id).unwrap().keys >= 2).await;
        job.id
    });
    process(async {
        let store = world.open(Seams::system(), tiered(1 << 30)).await;
        let done = store.wait_job(&id).await.unwrap();
        assert_eq!((done.state, done.failed, done.resumed), (JobState::Done, 0, 1));
        for i in 0..30 {
            assert_eq!(
                (home(&store, &format!("ns/{i:02}")).as_str(), get(&store, &format!("ns/{i:02}")).await.unwrap()),
                ("large", bytes(MIB, i))
            );
        }
    });
}

async fn copied(world: &World) -> StorageClient {
    let store = world
        .open(Seams::system(), |options| {
            (options.hot_limit, options.codec) = (0, "none".parse().unwrap());
            options.orphan_age = Duration::ZERO;
        })
        .await;
    store.set_namespace("ns", Policy { copies: vec!["small".into(), "large".into()], ..Policy::default() }).await.unwrap();
    store
}

#[tokio::test]
async fn copies_follow_a_put_and_stand_in_for_each_other() {
    let world = World::new(1 << 30);
    let store = copied(&world).await;
    for i in 0..5 {
        put(&store, &format!("ns/{i}"), 3 * MIB, i).await.unwrap();
    }
    until("the copies", async || store.stats().await.moves.copied.tensors == 5).await;
    assert_eq!(world.large.bytes("c/").await, 15 * MIB);
    assert_eq!(world.small.bytes("c/").await, 15 * MIB);
    // A backend that is out, one that has lost a chunk, one that has a damaged one.
    world.small.set_out(true);
    assert_eq!(get(&store, "ns/0").await.unwrap(), bytes(3 * MIB, 0));
    world.small.set_out(false);
    let chunks = world.small.names("c/").await;
    world.small.lose(&chunks[0]).await;
    world.small.flip(chunks.last().unwrap(), 77).await;
    // The backend that was out is asked again after a while; until then the other one answers.
    tokio::time::sleep(Duration::from_millis(5100)).await;
    for i in 0..5 {
        assert_eq!(get(&store, &format!("ns/{i}")).await.unwrap(), bytes(3 * MIB, i), "{i}");
    }
    until("what reads found is mended", async || world.small.names("c/").await == chunks).await;
    store.set_namespace("ns", Policy::default()).await.unwrap();
    assert_eq!(store.delete_prefix("ns/", None, false).await.unwrap().keys, 5);
    until("both copies go", async || world.small.bytes("c/").await + world.large.bytes("c/").await == 0).await;
}

#[tokio::test]
async fn a_check_names_differences_and_mends_them() {
    let world = World::new(1 << 30);
    let store = copied(&world).await;
    put(&store, "ns/a", 3 * MIB, 1).await.unwrap();
    put(&store, "alone/b", 3 * MIB, 2).await.unwrap();
    put(&store, "ns/small", 1000, 3).await.unwrap();
    until("the copy", async || store.stats().await.moves.copied.tensors == 1).await;
    let run = async |mend: bool| {
        let job = store.start_check(&CheckRequest { v: VERSION, prefix: String::new(), mend }).unwrap();
        store.wait_job(&job.id).await.unwrap()
    };
    let clean = run(false).await;
    assert_eq!((clean.state, clean.keys, clean.found, clean.bytes), (JobState::Done, 3, 0, 9 * MIB + 1000), "{clean:?}");
    let (lost, flipped) = (world.large.names("c/").await[0].clone(), world.small.names("c/").await[1].clone());
    world.large.lose(&lost).await;
    world.small.flip(&flipped, 9).await;
    let orphan = format!("c/{}/0/00000000", "0190".to_owned() + &"7".repeat(28));
    world.large.plant(&orphan).await;
    let found = run(false).await;
    let mut problems: Vec<_> = found.findings.iter().map(|finding| (finding.problem, finding.backend.as_str(), finding.mended)).collect();
    problems.sort_by_key(|(problem, ..)| format!("{problem:?}"));
    let expected = [(Problem::Damaged, "small", false), (Problem::Missing, "large", false), (Problem::Orphan, "large", false)];
    assert_eq!((found.found, found.mended, &problems[..]), (3, 0, &expected[..]), "{found:?}");
    let mended = run(true).await;
    let whole = |name: &str| mended.findings.iter().any(|finding| finding.key == name && finding.mended);
    assert_eq!((mended.found, mended.mended), (3, 3), "{mended:?}");
    assert!(whole("ns/a") && !world.large.names("c/").await.contains(&orphan));
    assert_eq!(run(false).await.found, 0);
    assert_eq!(get(&store, "ns/a").await.unwrap(), bytes(3 * MIB, 1));
    // A copy that is wanted and not there.
    store.set_namespace("alone", Policy { copies: vec!["small".into(), "large".into()], ..Policy::default() }).await.unwrap();
    world.large.set_out(true);
    let out = run(true).await;
    assert!(out.findings.iter().any(|finding| finding.problem == Problem::Unreachable && finding.backend == "large"), "{out:?}");
    world.large.set_out(false);
}

#[tokio::test]
async fn a_policy_of_copies_is_refused_where_it_cannot_be_kept() {
    let world = World::new(1 << 30);
    let store = world.prepare(Seams::system(), |_| ());
    store.register_backend("volatile", Arc::new(MemoryBackend::new(1 << 20)));
    store.start().await.unwrap();
    let copies = |names: [&str; 2]| Policy { copies: names.map(String::from).to_vec(), ..Policy::default() };
    for (policy, why) in [
        (copies(["small", "nowhere"]), "there is no backend nowhere; there are large, small, volatile"),
        (copies(["small", "volatile"]), "volatile keeps nothing when the server stops"),
        (Policy { tiers: Some(Tiers { warm: "small".into(), cold: "x".into() }), ..Policy::default() }, "tiers: there is no backend x"),
    ] {
        let refused = store.set_namespace("ns", policy).await.unwrap_err();
        assert!(refused.code() == Code::BadRequest && refused.to_string().contains(why), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_of_one_cold_tensor_fetch_it_once() {
    let world = World::new(1 << 30);
    let first = world.open(Seams::system(), |options| options.codec = "none".parse().unwrap()).await;
    put(&first, "ns/large", 3 * MIB + 5, 1).await.unwrap();
    put(&first, "ns/small", 1000, 2).await.unwrap();
    drop(first);
    let store = world.open(Seams::system(), |_| ()).await;
    let chunks = world.small.names("c/").await.len() as u64;
    assert!(chunks > 1);
    for (name, n, seed, fetches) in [("ns/large", 3 * MIB + 5, 1, chunks), ("ns/small", 1000, 2, 1)] {
        let before = world.small.gets();
        let expected = Arc::new(bytes(n, seed));
        let readers = (0..1000).map(|_| {
            let (store, expected) = (store.clone(), expected.clone());
            tokio::spawn(async move { assert!(get(&store, name).await.unwrap() == *expected) })
        });
        for reader in futures::future::join_all(readers).await {
            reader.unwrap();
        }
        assert_eq!(world.small.gets() - before, fetches, "{name}: {chunks} chunks, 1,000 readers");
        get(&store, name).await.unwrap();
        assert_eq!(world.small.gets() - before, fetches, "and now it is in memory");
    }
}

#[tokio::test]
async fn readers_that_share_a_fetch_share_its_failure_and_leave_nothing() {
    let world = World::new(1 << 30);
    let first = world.open(Seams::system(), |options| options.codec = "none".parse().unwrap()).await;
    put(&first, "ns/a", 6 * MIB, 1).await.unwrap();
    drop(first);
    let store = world.open(Seams::system(), |options| options.hot_limit = 32 << 20).await;
    let used = store.ledger().used();
    // One that goes does not take the fetch away from the others.
    let mut gone = store.read(&key("ns/a"), None, &BTreeMap::new()).await.unwrap();
    let mut stays = store.read(&key("ns/a"), None, &BTreeMap::new()).await.unwrap();
    gone.next().await.unwrap();
    drop(gone);
    let mut read = Vec::new();
    while let Some(piece) = stays.next().await.unwrap() {
        read.extend_from_slice(&piece);
    }
    assert_eq!(read, bytes(6 * MIB, 1));
    drop(stays);
    let chunk = world.small.names("c/").await.pop().unwrap();
    world.small.flip(&chunk, 5).await;
    let again = world.open(Seams::system(), |options| options.hot_limit = 32 << 20).await;
    let readers = futures::future::join_all((0..20).map(|_| get(&again, "ns/a"))).await;
    assert!(readers.into_iter().all(|read| read.unwrap_err().code() == Code::Corrupt));
    until("memory comes back", async || again.ledger().used() == used).await;
}

#[tokio::test]
async fn memory_drops_what_nobody_reads_in_time() {
    let world = World::new(1 << 30);
    let store = world
        .open(Seams::system(), |options| {
            options.cache_ttl = Some(Duration::from_millis(300));
            options.reap_interval = Duration::from_millis(20);
        })
        .await;
    put(&store, "ns/a", MIB, 1).await.unwrap();
    assert!(store.info(&key("ns/a")).unwrap().tiers.contains(&"memory".to_owned()));
    until("it goes", async || !store.info(&key("ns/a")).unwrap().tiers.contains(&"memory".to_owned())).await;
    assert_eq!(get(&store, "ns/a").await.unwrap(), bytes(MIB, 1));
    assert!(store.info(&key("ns/a")).unwrap().tiers.contains(&"memory".to_owned()), "read from below, it stays for a while");
}

#[tokio::test]
async fn a_flood_of_misses_takes_no_memory() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), |_| ()).await;
    let (used, asked) = (store.ledger().used(), world.small.gets());
    for i in 0..20_000 {
        let name = key(&format!("ns{i}/k"));
        assert_eq!(store.retrieve(&name).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(store.exists(&name, None).unwrap(), None);
    }
    assert_eq!((store.ledger().used(), store.namespaces().len()), (used, 0));
    assert_eq!(world.small.gets(), asked, "the index answers, no backend is asked");
}

/// What is acknowledged is there, whatever moves meanwhile: a model of random operations with limits of a few tensors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_while_tensors_move() {
    for seed in 0..8 {
        let world = World::new(1 << 30);
        let mut rng = StdRng::seed_from_u64(seed);
        let store = world
            .open(Seams::system(), |options| {
                tiered(MIB)(options);
                options.hot_limit = if seed % 2 == 0 { 0 } else { MIB };
                options.tiers.promote_after = 1;
                options.reap_interval = Duration::from_millis(5);
            })
            .await;
        if seed % 4 < 2 {
            let policy = Policy { codecs: [("large".to_owned(), "zstd".to_owned())].into(), ..Policy::default() };
            store.set_namespace("ns", policy).await.unwrap();
        }
        let mut model = BTreeMap::<String, (u64, u64)>::new();
        for step in 0..150 {
            let name = format!("{}/{}", ["ns", "big"][rng.random_range(0..2)], rng.random_range(0..8));
            match rng.random_range(0..20) {
                0..8 => {
                    let (n, content) = ([1000, 50_000, 200_000, 400_000][rng.random_range(0..4)], rng.random());
                    put(&store, &name, n, content).await.unwrap_or_else(|error| panic!("seed {seed} step {step} {name}: {error}"));
                    model.insert(name, (n, content));
                }
                8..16 => match (model.get(&name), get(&store, &name).await) {
                    (Some((n, content)), read) => assert!(read.unwrap() == bytes(*n, *content), "seed {seed} step {step} {name}"),
                    (None, read) => assert_eq!(read.unwrap_err().code(), Code::NotFound),
                },
                16..18 => assert_eq!(store.delete(&key(&name), None).await.unwrap(), model.remove(&name).is_some()),
                _ => {
                    let (source, target) = if rng.random() { ("small", "large") } else { ("large", "small") };
                    // What finds no room stays where it was.
                    if let Err(error) = store.migrate_data(source, target, "*").await {
                        assert_eq!(error.code(), Code::OutOfSpace, "{error}");
                    }
                }
            }
            assert!(world.small.bytes("c/").await <= 2 * MIB, "what was collected apart, the limit holds");
        }
        for (name, (n, content)) in &model {
            assert!(get(&store, name).await.unwrap() == bytes(*n, *content), "seed {seed}: {name} in the end");
        }
    }
}
