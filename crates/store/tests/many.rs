//! Parts, namespaces, kv specs and many keys at once, over backends in memory that outlive the store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{World, bytes, key, payload, spec};
use sira_backend::StorageBackend;
use sira_store::{Demands, PartSpec, Seams, StorageClient, StoreError, WriteOptions};
use sira_tensor::kv::KvSpec;
use sira_wire::many::KeyList;
use sira_wire::namespace::{Mode, Policy, PolicyOrigin, RouteOptions};
use sira_wire::{Code, Condition, Consistency, Key};

async fn open(world: &World) -> StorageClient {
    world.open(Seams::system(), |_| ()).await
}

async fn cold(world: &World) -> StorageClient {
    world.open(Seams::system(), |options| options.hot_limit = 0).await
}

async fn put(store: &StorageClient, name: &str, n: u64) -> Result<u64, StoreError> {
    store.store(key(name), spec(n), &payload(n, n), WriteOptions::default()).await.map(|answer| answer.version)
}

async fn put_parts(store: &StorageClient, name: &str, sizes: &[(&str, u64)], options: WriteOptions) -> Result<u64, StoreError> {
    let parts = sizes.iter().map(|(name, n)| PartSpec { name: (*name).into(), spec: spec(*n), codec: None }).collect();
    let mut writer = store.begin_parts(key(name), parts, options).await?;
    let all: Vec<u8> = sizes.iter().flat_map(|(_, n)| bytes(*n, *n)).collect();
    for piece in all.chunks(100_000) {
        writer.write(piece).await?;
    }
    writer.commit().await.map(|answer| answer.version)
}

async fn part(store: &StorageClient, name: &str, part: &str) -> Result<Vec<u8>, StoreError> {
    let snapshot = store.snapshot(&key(name), &Demands::default())?;
    let mut reader = snapshot.read(snapshot.part(Some(part))?, &BTreeMap::new()).await?;
    let mut got = Vec::new();
    while let Some(piece) = reader.next().await? {
        got.extend_from_slice(&piece);
    }
    Ok(got)
}

/// Small together; a small one beside large ones; empty ones; large only.
const SHAPES: [&[(&str, u64)]; 4] = [
    &[("k", 10_000), ("v", 10_000), ("k_scale", 32)],
    &[("k", 3 << 20), ("k_scale", 64), ("v", (5 << 20) + 3), ("v_scale", 64)],
    &[("none", 0), ("k", 40_000), ("nothing", 0)],
    &[("a", 70_000), ("b", 33_000)],
];

#[tokio::test]
async fn parts_come_back_hot_cold_and_after_a_restart() {
    let world = World::new(1 << 30);
    for level in [Consistency::Eventual, Consistency::Weak] {
        let store = open(&world).await;
        for (i, parts) in SHAPES.into_iter().enumerate() {
            let name = format!("ns/{level}{i}");
            put_parts(&store, &name, parts, WriteOptions { consistency: Some(level), ..WriteOptions::default() }).await.unwrap();
            for (name_of_part, n) in parts {
                assert!(part(&store, &name, name_of_part).await.unwrap() == bytes(*n, *n), "{name} {name_of_part}");
            }
        }
        store.drain().await.unwrap();
        let again = cold(&world).await;
        for (i, parts) in SHAPES.into_iter().enumerate() {
            let name = format!("ns/{level}{i}");
            let entry = again.info(&key(&name)).unwrap();
            assert_eq!((entry.dtype.as_str(), entry.parts.len()), ("parts", parts.len()));
            assert_eq!(entry.nbytes, parts.iter().map(|(_, n)| n).sum::<u64>());
            for (name_of_part, n) in parts {
                assert!(part(&again, &name, name_of_part).await.unwrap() == bytes(*n, *n), "{name} {name_of_part} cold");
            }
        }
        assert!(again.scrub().await.unwrap().bad.is_empty());
    }
    let store = open(&world).await;
    let without = store.read(&key("ns/weak0"), None, &BTreeMap::new()).await.err().unwrap();
    assert!(without.code() == Code::HasParts && without.to_string().contains("k, v, k_scale"), "{without}");
    assert_eq!(part(&store, "ns/weak0", "q").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn parts_are_visible_together_or_not_at_all() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    let parts =
        || vec![("k", 3 << 20), ("v", 3 << 20)].into_iter().map(|(name, n)| PartSpec { name: name.into(), spec: spec(n), codec: None });
    let mut writer = store.begin_parts(key("ns/k"), parts().collect(), WriteOptions::default()).await.unwrap();
    writer.write(&bytes(3 << 20, 1)).await.unwrap();
    assert_eq!(store.exists(&key("ns/k"), None).unwrap(), None);
    assert_eq!(writer.commit().await.unwrap_err().code(), Code::Incomplete);
    let mut writer = store.begin_parts(key("ns/k"), parts().collect(), WriteOptions::default()).await.unwrap();
    writer.write(&bytes(4 << 20, 1)).await.unwrap();
    drop(writer);
    // What the abandoned puts had stored goes.
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if world.small.list_keys("c/", None, 10).await.unwrap().is_empty() {
            return;
        }
    }
    panic!("chunks of abandoned puts stay");
}

#[tokio::test]
async fn parts_move_and_are_collected_with_their_key() {
    let world = World::new(1 << 30);
    let store = cold(&world).await;
    put_parts(&store, "ns/k", SHAPES[1], WriteOptions::default()).await.unwrap();
    assert_eq!(store.migrate_data("small", "large", "ns/*").await.unwrap(), 1);
    for (name, n) in SHAPES[1] {
        assert!(part(&store, "ns/k", name).await.unwrap() == bytes(*n, *n));
    }
    assert!(store.delete(&key("ns/k"), None).await.unwrap());
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let left = [world.small.list_keys("c/", None, 10).await.unwrap(), world.large.list_keys("c/", None, 10).await.unwrap()].concat();
        if left.is_empty() {
            return;
        }
    }
    panic!("chunks of a deleted key stay");
}

#[tokio::test]
async fn lookups_of_many_keys_say_what_single_ones_say() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    let keys: Vec<Key> = (0..300).map(|i| key(&format!("ns/{i}"))).collect();
    for i in (0..300).filter(|i| i % 3 != 0 || *i < 30) {
        let options = WriteOptions {
            ttl: (i % 5 == 0).then_some(1),
            consistency: (i % 2 == 0).then_some(Consistency::Weak),
            ..WriteOptions::default()
        };
        store.store(keys[i].clone(), spec(8), &payload(8, 1), options).await.unwrap();
    }
    for i in (0..300).step_by(7) {
        store.delete(&keys[i], None).await.unwrap();
    }
    let agree = async |store: &StorageClient| {
        let many = store.exists_many(&KeyList::new(keys.iter().map(Key::as_str)).unwrap(), None).await.unwrap();
        let single: Vec<bool> = keys.iter().map(|key| store.exists(key, None).unwrap().is_some()).collect();
        assert_eq!(many, single);
        many.into_iter().filter(|exists| *exists).count()
    };
    let before = agree(&store).await;
    assert_eq!(agree(&store).await, before, "remembered");
    store.drain().await.unwrap();
    let again = open(&world).await;
    assert_eq!(agree(&again).await, before, "after a restart");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(agree(&again).await < before, "expired");
}

#[tokio::test]
async fn many_keys_are_deleted_by_name_and_by_prefix() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    for i in 0..2500 {
        put(&store, &format!("ns/a/{i}"), 10).await.unwrap();
    }
    put(&store, "ns/b", 10).await.unwrap();
    let answer = store.delete_many(vec![key("ns/a/0"), key("ns/a/0"), key("ns/none"), key("ns/a/1")]).await;
    assert_eq!((answer.deleted, answer.missing.len(), answer.failed.len()), (2, 2, 0));
    for dry_run in [true, false] {
        let (mut after, mut keys, mut bytes, mut pages) = (None, 0, 0, 0);
        loop {
            let page = store.delete_prefix("ns/a/", after.as_deref(), dry_run).await.unwrap();
            (keys, bytes, pages, after) = (keys + page.keys, bytes + page.bytes, pages + 1, page.next);
            if after.is_none() {
                break;
            }
        }
        assert_eq!((keys, bytes), (2498, 24_980), "dry run: {dry_run}");
        assert!(pages > 1);
    }
    assert_eq!(store.list("", None, 10).unwrap().0.len(), 1);
}

#[tokio::test]
async fn kv_specs_are_demanded() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    let of = |model: &str| {
        let text = format!(r#"{{"model":"{model}","block_tokens":16,"parts":[{{"dtype":"uint8","axes":["byte"],"shape":[1000]}}]}}"#);
        KvSpec::from_json(text.as_bytes()).unwrap()
    };
    let hash = store.put_kv_spec(of("a")).await.unwrap().hash;
    assert_eq!(store.put_kv_spec(of("a")).await.unwrap().hash, hash);
    let other = store.put_kv_spec(of("b")).await.unwrap().hash;
    let with = |hash: &str| WriteOptions { kv_spec: Some(hash.into()), ..WriteOptions::default() };
    store.store(key("ns/k"), spec(1000), &payload(1000, 1), with(&hash)).await.unwrap();
    let wrong = store.store(key("ns/w"), spec(1001), &payload(1001, 1), with(&hash)).await.unwrap_err();
    assert_eq!(wrong.code(), Code::BadTensor, "{wrong}");
    let unknown = store.store(key("ns/u"), spec(1000), &payload(1000, 1), with(&"0".repeat(64))).await.unwrap_err();
    assert_eq!(unknown.code(), Code::UnknownKvSpec);
    put(&store, "ns/plain", 1000).await.unwrap();
    let again = cold(&world).await;
    for store in [&store, &again] {
        let demand = |kv_spec: &str| Demands { kv_spec: Some(kv_spec.into()), ..Demands::default() };
        assert!(store.snapshot(&key("ns/k"), &demand(&hash)).is_ok());
        assert_eq!(store.snapshot(&key("ns/k"), &demand(&other)).err().unwrap().code(), Code::NotFound);
        assert_eq!(store.snapshot(&key("ns/plain"), &demand(&hash)).err().unwrap().code(), Code::NotFound);
        let keys = KeyList::new(["ns/k", "ns/plain", "ns/none"]).unwrap();
        assert_eq!(store.exists_many(&keys, Some(&hash)).await.unwrap(), [true, false, false]);
        assert_eq!(store.exists_many(&keys, Some(&other)).await.unwrap(), [false; 3]);
        let entry = store.info(&key("ns/k")).unwrap();
        assert_eq!((entry.kv_spec.as_deref(), entry.axes), (Some(hash.as_str()), vec!["byte".to_string()]));
        assert_eq!(store.kv_spec(&hash).await.unwrap().spec, of("a"));
    }
}

fn policy(mode: Mode, tier: &str, bytes: u64) -> Policy {
    Policy { mode, limits: [(tier.to_string(), bytes)].into(), ..Policy::default() }
}

fn used(store: &StorageClient, namespace: &str, tier: &str) -> u64 {
    let entry = store.namespaces().into_iter().find(|entry| entry.namespace == namespace);
    entry.and_then(|entry| entry.bytes.get(tier).copied()).unwrap_or(0)
}

#[tokio::test]
async fn a_store_refuses_and_a_cache_evicts_at_its_limit() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    store.set_namespace("store", policy(Mode::Store, "small", 1_000_000)).await.unwrap();
    store.set_namespace("cache", policy(Mode::Cache, "small", 1_000_000)).await.unwrap();
    for i in 0..10 {
        put(&store, &format!("store/{i}"), 100_000).await.unwrap();
    }
    let full = put(&store, "store/more", 100_000).await.unwrap_err();
    assert!(full.code() == Code::OutOfSpace && full.to_string().contains("raise limits.small"), "{full}");
    put(&store, "store/3", 100_000).await.expect("what is replaced makes room");
    store.delete(&key("store/3"), None).await.unwrap();
    put(&store, "store/more", 100_000).await.unwrap();

    let eventual = WriteOptions { consistency: Some(Consistency::Eventual), ..WriteOptions::default() };
    for i in 0..30 {
        store.store(key(&format!("cache/{i}")), spec(100_000), &payload(100_000, 1), eventual.clone()).await.unwrap();
        // Used all the time, so it stays.
        drop(store.snapshot(&key("cache/0"), &Demands::default()).unwrap());
        assert!(used(&store, "cache", "small") <= 1_000_000);
    }
    let kept: Vec<u32> = store.list("cache/", None, 100).unwrap().0.iter().map(|e| e.key[6..].parse().unwrap()).collect();
    assert!(kept.contains(&0) && kept.contains(&29) && !kept.contains(&1) && kept.len() >= 9, "{kept:?}");
    let large = store.store(key("cache/large"), spec(1_000_001), &payload(1_000_001, 1), eventual.clone()).await.unwrap_err();
    assert_eq!(large.code(), Code::OutOfSpace);

    // The policies, what is held and what goes first are known again after a restart.
    let again = open(&world).await;
    let entries = again.namespaces();
    assert!(entries.iter().all(|entry| entry.origin == PolicyOrigin::Action), "{entries:?}");
    assert_eq!(used(&again, "store", "small"), used(&store, "store", "small"));
    assert_eq!(put(&again, "store/x", 100_000).await.unwrap_err().code(), Code::OutOfSpace);
    again.store(key("cache/new"), spec(300_000), &payload(300_000, 1), eventual).await.unwrap();
    assert!(used(&again, "cache", "small") <= 1_000_000 && again.exists(&key("cache/29"), None).unwrap().is_some());
    assert!(again.reset_namespace("store").await.unwrap().policy == Policy::default());
    put(&again, "store/x", 100_000).await.unwrap();
}

#[tokio::test]
async fn weak_puts_count_before_they_are_written() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), |options| options.reap_interval = Duration::from_secs(3600)).await;
    store.set_namespace("ns", policy(Mode::Store, "small", 250_000)).await.unwrap();
    let weak = WriteOptions { consistency: Some(Consistency::Weak), ..WriteOptions::default() };
    let mut refused = 0;
    for i in 0..5 {
        let put = store.store(key(&format!("ns/{i}")), spec(100_000), &payload(100_000, 1), weak.clone()).await;
        refused += usize::from(put.is_err_and(|error| error.code() == Code::OutOfSpace));
    }
    assert_eq!(refused, 3);
}

#[tokio::test]
async fn a_cache_takes_weak_puts_without_end() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    store.set_namespace("cache", policy(Mode::Cache, "small", 500_000)).await.unwrap();
    for i in 0..40 {
        put(&store, &format!("cache/{i}"), 100_000).await.unwrap();
        assert!(used(&store, "cache", "small") <= 500_000);
    }
    assert!(store.exists(&key("cache/39"), None).unwrap().is_some() && store.exists(&key("cache/0"), None).unwrap().is_none());
}

#[tokio::test]
async fn a_put_evicts_neither_its_own_key_nor_what_was_put_just_now() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), |options| options.hot_limit = 0).await;
    store.set_namespace("c", policy(Mode::Cache, "small", 100_000)).await.unwrap();
    let with = |condition| WriteOptions { condition, consistency: Some(Consistency::Eventual), ..WriteOptions::default() };
    for (name, n) in [("c/k", 60_000), ("c/l", 30_000)] {
        store.store(key(name), spec(n), &payload(n, 1), with(None)).await.unwrap();
    }
    // `k` is the coldest, and has version 1: replaced, not evicted.
    let put = store.store(key("c/k"), spec(80_000), &payload(80_000, 2), with(Some(Condition::Version(1)))).await.unwrap();
    assert_eq!((put.version, put.created), (2, false));
    assert!(used(&store, "c", "small") <= 100_000);
    assert_eq!(store.exists(&key("c/l"), None).unwrap(), None, "this made room");
    // Weak overwrites of one key need room for one of it.
    for version in 0..50 {
        let weak = WriteOptions { consistency: Some(Consistency::Weak), ..WriteOptions::default() };
        store.store(key("c/k"), spec(60_000), &payload(60_000, version), weak).await.unwrap();
    }
    assert_eq!(store.retrieve(&key("c/k")).await.unwrap().1.into_bytes(), bytes(60_000, 49));
}

#[tokio::test]
async fn puts_at_once_share_the_room_of_a_cache() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    store.set_namespace("c", policy(Mode::Cache, "small", 500_000)).await.unwrap();
    for level in [Consistency::Weak, Consistency::Eventual] {
        let puts = (0..30).map(|i| {
            let options = WriteOptions { consistency: Some(level), ..WriteOptions::default() };
            let store = store.clone();
            async move { store.store(key(&format!("c/{i}")), spec(100_000), &payload(100_000, 1), options).await }
        });
        for put in futures::future::join_all(puts).await {
            put.unwrap();
        }
        assert!(used(&store, "c", "small") <= 500_000);
    }
}

#[tokio::test]
async fn limits_that_change_hold_at_once() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    for i in 0..20 {
        put(&store, &format!("c/{i}"), 100_000).await.unwrap();
    }
    let limits = |disk, memory| {
        let limits = [("small".to_owned(), disk), ("memory".to_owned(), memory)].into();
        Policy { mode: Mode::Cache, limits, consistency: Some(Consistency::Eventual), ..Policy::default() }
    };
    store.set_namespace("c", limits(1_000_000, 4_000_000)).await.unwrap();
    assert_eq!((used(&store, "c", "small"), used(&store, "c", "memory")), (1_000_000, 0), "its part of the shared memory goes");
    for i in 10..20 {
        store.retrieve(&key(&format!("c/{i}"))).await.unwrap();
    }
    assert_eq!(used(&store, "c", "memory"), 1_000_000);
    store.set_namespace("c", limits(1_000_000, 500_000)).await.unwrap();
    assert!((100_000..=500_000).contains(&used(&store, "c", "memory")), "the hottest stay");
    let again = open(&world).await;
    assert_eq!(used(&again, "c", "small"), 1_000_000);
}

#[tokio::test]
async fn what_has_expired_makes_room_first() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), |options| options.reap_interval = Duration::from_secs(3600)).await;
    for (name, mode) in [("c", Mode::Cache), ("s", Mode::Store)] {
        store.set_namespace(name, policy(mode, "small", 100_000)).await.unwrap();
        let eventual = |ttl| WriteOptions { ttl, consistency: Some(Consistency::Eventual), ..WriteOptions::default() };
        store.store(key(&format!("{name}/old")), spec(50_000), &payload(50_000, 1), eventual(Some(1))).await.unwrap();
        store.store(key(&format!("{name}/kept")), spec(40_000), &payload(40_000, 1), eventual(None)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        store.store(key(&format!("{name}/new")), spec(50_000), &payload(50_000, 1), eventual(None)).await.unwrap();
        assert!(store.exists(&key(&format!("{name}/kept")), None).unwrap().is_some(), "{name}");
    }
}

#[tokio::test]
async fn commits_run_without_being_waited_for() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    let mut writer = store.begin(key("ns/k"), spec(3 << 20), WriteOptions::default()).await.unwrap();
    writer.write(&bytes(3 << 20, 1)).await.unwrap();
    let _answer = writer.commit();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if store.exists(&key("ns/k"), None).unwrap().is_some() {
            return;
        }
    }
    panic!("a commit that waits to be polled");
}

/// A lookup between the index and what waits to be written behind sees a key in one of the two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_found_while_it_is_written_behind() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    let weak = WriteOptions { consistency: Some(Consistency::Weak), ..WriteOptions::default() };
    for i in 0..300 {
        let name = format!("ns/{i:03}");
        store.store(key(&name), spec(100), &payload(100, 1), weak.clone()).await.unwrap();
        for _ in 0..5 {
            assert_eq!(store.exists_many(&KeyList::new([&name]).unwrap(), None).await.unwrap(), [true], "{name}");
            assert_eq!(store.list(&name, None, 10).unwrap().0.len(), 1, "{name}");
        }
    }
    assert_eq!(store.list("ns/", None, 1000).unwrap().0.len(), 300);
}

#[tokio::test]
async fn memory_of_a_namespace_has_its_own_limit() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    store.set_namespace("ns", policy(Mode::Store, "memory", 1_000_000)).await.unwrap();
    for i in 0..50 {
        put(&store, &format!("ns/{i}"), 100_000).await.unwrap();
        put(&store, &format!("other/{i}"), 100_000).await.unwrap();
        assert!(used(&store, "ns", "memory") <= 1_000_000);
    }
    assert!(used(&store, "ns", "memory") >= 800_000 && used(&store, "other", "memory") > 4_000_000);
    for i in 0..50 {
        let (_, got) = store.retrieve(&key(&format!("ns/{i}"))).await.unwrap();
        assert!(got.into_bytes() == bytes(100_000, 100_000));
    }
}

#[tokio::test]
async fn policies_rule_over_puts() {
    let world = World::new(1 << 30);
    let store = open(&world).await;
    put(&store, "ro/k", 10).await.unwrap();
    store.set_namespace("ro", Policy { read_only: true, ..Policy::default() }).await.unwrap();
    assert_eq!(put(&store, "ro/k", 10).await.unwrap_err().code(), Code::ReadOnly);
    assert_eq!(store.delete(&key("ro/k"), None).await.unwrap_err().code(), Code::ReadOnly);
    assert_eq!(store.delete_many(vec![key("ro/k")]).await.failed.len(), 1);
    assert!(store.retrieve(&key("ro/k")).await.is_ok());

    let codecs = [("small".to_string(), "zstd".to_string())].into();
    store.set_namespace("z", Policy { codecs, ttl: Some(100), consistency: Some(Consistency::Strong), ..Policy::default() }).await.unwrap();
    store.store(key("z/k"), spec(100_000), &vec![1; 100_000].into(), WriteOptions::default()).await.unwrap();
    let entry = store.info(&key("z/k")).unwrap();
    assert_eq!((entry.codec.as_str(), entry.consistency), ("zstd", Consistency::Strong));
    assert_eq!(entry.expires_ms.unwrap() - entry.created_ms, 100_000);
    put(&store, "cache/k", 10).await.unwrap();
    store.set_namespace("cache", Policy { mode: Mode::Cache, ..Policy::default() }).await.unwrap();
    put(&store, "cache/k", 10).await.unwrap();
    assert_eq!(store.info(&key("cache/k")).unwrap().consistency, Consistency::Weak);
    assert!(store.are_caches(["cache", "cache"]) && !store.are_caches(["cache", "z"]) && !store.are_caches([]));

    for wrong in [policy(Mode::Store, "tape", 1), Policy { codecs: [("small".into(), "lzw".into())].into(), ..Policy::default() }] {
        assert!(store.set_namespace("x", wrong).await.is_err());
    }
    let route = store.route(&key("big/x"), 1 << 20, &RouteOptions::default()).await.unwrap();
    assert_eq!((route.backend.as_str(), route.steps.len()), ("large", 1));
    assert_eq!(store.route(&key("z/x"), 1 << 20, &RouteOptions::default()).await.unwrap().codec, "zstd");
}

#[tokio::test]
async fn a_record_backend_that_is_gone_is_no_new_store() {
    let world = World::new(1 << 30);
    put(&open(&world).await, "big/k", 100_000).await.unwrap();
    let unmounted = World { small: World::new(1 << 30).small, ..world.clone() };
    for _ in 0..2 {
        let store = unmounted.prepare(Seams::system(), |_| ());
        let refused = store.start().await.unwrap_err().to_string();
        assert!(refused.contains("is its disk mounted?"), "{refused}");
    }
    assert!(open(&world).await.retrieve(&key("big/k")).await.is_ok());
}

#[tokio::test]
async fn damage_in_a_cache_is_a_miss() {
    let world = World::new(1 << 30);
    let store = cold(&world).await;
    store
        .set_namespace("cache", Policy { mode: Mode::Cache, consistency: Some(Consistency::Eventual), ..Policy::default() })
        .await
        .unwrap();
    for name in ["cache/k", "store/k"] {
        put(&store, name, 100_000).await.unwrap();
    }
    for name in world.small.list_keys("c/", None, 10).await.unwrap() {
        let value = vec![0u8; 10];
        world.small.put(&name, value.into(), Default::default()).await.unwrap();
    }
    assert_eq!(store.retrieve(&key("store/k")).await.unwrap_err().code(), Code::Corrupt);
    assert_eq!(store.retrieve(&key("cache/k")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(store.stats().await.operations.corrupt, 2);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if store.exists(&key("cache/k"), None).unwrap().is_none() {
            return;
        }
    }
    panic!("the damaged tensor is still there");
}
