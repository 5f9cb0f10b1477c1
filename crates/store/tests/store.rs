//! What the store promises, one behaviour a test, over backends in memory that outlive it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{World, bytes, key, payload, spec};
use sira_store::catalog::{Change, OrderedKv};
use sira_store::{Seams, StorageClient, StoreError, WriteOptions};
use sira_tensor::{DType, TensorSpec};
use sira_wire::{Code, Condition, Consistency};

const SIZES: [u64; 6] = [0, 1, 32 << 10, (32 << 10) + 1, 3 << 20, (9 << 20) + 17];

async fn store(world: &World) -> StorageClient {
    world.open(Seams::system(), |_| ()).await
}

async fn cold(world: &World) -> StorageClient {
    world.open(Seams::system(), |options| options.hot_limit = 0).await
}

async fn put(store: &StorageClient, name: &str, n: u64, seed: u64) -> Result<u64, StoreError> {
    store.store(key(name), spec(n), &payload(n, seed), WriteOptions::default()).await.map(|answer| answer.version)
}

async fn get(store: &StorageClient, name: &str) -> Result<Vec<u8>, StoreError> {
    Ok(store.retrieve(&key(name)).await?.1.into_bytes().to_vec())
}

fn with(condition: Condition) -> WriteOptions {
    WriteOptions { condition: Some(condition), ..WriteOptions::default() }
}

#[tokio::test]
async fn every_size_comes_back_hot_cold_and_after_a_restart() {
    let world = World::new(1 << 30);
    let first = store(&world).await;
    for (i, n) in SIZES.into_iter().enumerate() {
        for place in ["ns", "big"] {
            let name = format!("{place}/k{i}");
            assert_eq!(put(&first, &name, n, n).await.unwrap(), 1);
            assert_eq!(get(&first, &name).await.unwrap(), bytes(n, n), "{name} hot");
        }
    }
    let again = cold(&world).await;
    for (i, n) in SIZES.into_iter().enumerate() {
        assert_eq!(get(&again, &format!("ns/k{i}")).await.unwrap(), bytes(n, n));
        let entry = again.info(&key(&format!("big/k{i}"))).unwrap();
        assert_eq!(entry.backend, if n > 32 << 10 { "large" } else { "small" });
        assert_eq!(get(&again, &format!("big/k{i}")).await.unwrap(), bytes(n, n));
    }
}

#[tokio::test]
async fn slices_read_the_same_from_memory_and_from_chunks() {
    let world = World::new(1 << 30);
    let kv = TensorSpec::new(DType::BFloat16, vec![3, 2, 700, 2, 64])
        .unwrap()
        .with_axes(["layer", "kv", "token", "head", "dim"].map(String::from).to_vec())
        .unwrap();
    let raw = bytes(kv.nbytes(), 5);
    let hot = store(&world).await;
    hot.store(key("ns/kv"), kv.clone(), &raw.clone().into(), WriteOptions::default()).await.unwrap();
    let cold = cold(&world).await;
    for slice in [vec![("token", [250, 520])], vec![("layer", [1, 3]), ("token", [699, 700]), ("dim", [3, 9])], vec![("0", [2, 2])], vec![]]
    {
        let slice: BTreeMap<String, [u64; 2]> = slice.into_iter().map(|(name, range)| (name.to_string(), range)).collect();
        let wanted = sira_tensor::region(&kv, slice.iter().map(|(n, r)| (n.as_str(), *r))).unwrap();
        let (run, begins) = sira_tensor::grid::runs(kv.shape(), 2, &wanted);
        let expected: Vec<u8> = begins.flat_map(|at| raw[at as usize..(at + run) as usize].to_vec()).collect();
        for store in [&hot, &cold] {
            let mut reader = store.read(&key("ns/kv"), None, &slice).await.unwrap();
            let mut got = Vec::new();
            while let Some(piece) = reader.next().await.unwrap() {
                got.extend_from_slice(&piece);
            }
            assert_eq!(got.len() as u64, reader.spec().nbytes());
            assert!(got == expected, "{slice:?}");
        }
    }
    let bad = [("token".to_string(), [0, 701])].into();
    assert_eq!(cold.read(&key("ns/kv"), None, &bad).await.err().unwrap().code(), Code::BadRequest);
}

#[tokio::test]
async fn packed_tensors_come_back_from_chunks() {
    let world = World::new(1 << 30);
    let store = cold(&world).await;
    let packed = TensorSpec::new(DType::Float4E2M1Fn, vec![3, 4_000_000]).unwrap();
    store.store(key("ns/k"), packed.clone(), &payload(6_000_000, 1), WriteOptions::default()).await.unwrap();
    assert!(get(&store, "ns/k").await.unwrap() == bytes(6_000_000, 1));
}

#[tokio::test]
async fn a_put_that_is_not_whole_leaves_nothing() {
    let world = World::new(1 << 30);
    let store = store(&world).await;
    put(&store, "ns/k", 100, 1).await.unwrap();
    let n = 8 << 20;
    let mut writer = store.begin(key("ns/k"), spec(n), WriteOptions::default()).await.unwrap();
    writer.write(&bytes(n - 1, 2)).await.unwrap();
    assert_eq!(writer.commit().await.err().unwrap().code(), Code::Incomplete);
    let mut writer = store.begin(key("ns/k"), spec(4), WriteOptions::default()).await.unwrap();
    assert_eq!(writer.write(&[0; 5]).await.err().unwrap().code(), Code::Incomplete);
    drop(writer);
    assert_eq!(get(&store, "ns/k").await.unwrap(), bytes(100, 1));
    for _ in 0..200 {
        if world.small.names("c/").await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.small.names("c/").await, Vec::<String>::new(), "chunks of the broken put are swept");
    assert_eq!(store.ledger().used(), store.stats().await.memory.hot_bytes, "and its memory is back");
}

#[tokio::test]
async fn conditions_decide_and_versions_count() {
    let store = store(&World::new(1 << 30)).await;
    let write = async |n, options| store.store(key("ns/k"), spec(n), &payload(n, n), options).await;
    let first = write(10, with(Condition::Absent)).await.unwrap();
    assert_eq!((first.version, first.created), (1, true));
    assert_eq!(write(11, with(Condition::Absent)).await.err().unwrap().code(), Code::Exists);
    assert_eq!(write(12, with(Condition::Version(2))).await.err().unwrap().code(), Code::Stale);
    let second = write(13, with(Condition::Version(1))).await.unwrap();
    assert_eq!((second.version, second.created), (2, false));
    assert_eq!(store.delete(&key("ns/k"), Some(1)).await.err().unwrap().code(), Code::Stale);
    assert!(store.delete(&key("ns/k"), Some(2)).await.unwrap());
    assert!(!store.delete(&key("ns/k"), None).await.unwrap());
    assert_eq!(get(&store, "ns/k").await.err().unwrap().code(), Code::NotFound);
    let third = write(14, with(Condition::Absent)).await.unwrap();
    assert_eq!((third.version, third.created), (3, true), "a tombstone keeps the count");
}

#[tokio::test]
async fn only_one_of_many_racing_creators_wins() {
    let store = store(&World::new(1 << 30)).await;
    let racers = (0..16).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { store.store(key("ns/k"), spec(100_000), &payload(100_000, i), with(Condition::Absent)).await.map(|_| i) })
    });
    let results = futures::future::join_all(racers).await;
    let winners: Vec<u64> = results.into_iter().filter_map(|r| r.unwrap().ok()).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(get(&store, "ns/k").await.unwrap(), bytes(100_000, winners[0]));
}

#[tokio::test]
async fn expiry_is_honoured_at_once_and_reaped() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), |options| options.reap_interval = Duration::from_millis(50)).await;
    let options = WriteOptions { ttl: Some(1), ..WriteOptions::default() };
    store.store(key("ns/k"), spec(100_000), &payload(100_000, 1), options).await.unwrap();
    assert!(store.exists(&key("ns/k"), None).unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(1010)).await;
    assert_eq!(store.exists(&key("ns/k"), None).unwrap(), None);
    assert!(store.list("", None, 10).unwrap().0.is_empty());
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if world.small.names("c/").await.is_empty() {
            return;
        }
    }
    panic!("chunks of an expired tensor are still there");
}

#[tokio::test]
async fn a_running_read_ends_on_its_version() {
    let world = World::new(1 << 30);
    let store = cold(&world).await;
    let n = 9 << 20;
    put(&store, "ns/k", n, 1).await.unwrap();
    let mut reader = store.read(&key("ns/k"), None, &BTreeMap::new()).await.unwrap();
    let mut got = reader.next().await.unwrap().unwrap().to_vec();
    put(&store, "ns/k", n, 2).await.unwrap();
    store.delete(&key("ns/k"), None).await.unwrap();
    while let Some(piece) = reader.next().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    assert!(got == bytes(n, 1));
}

#[tokio::test]
async fn a_flipped_bit_is_an_error_that_names_the_tensor() {
    let world = World::new(1 << 30);
    let store = cold(&world).await;
    put(&store, "ns/k", 3 << 20, 1).await.unwrap();
    put(&store, "ns/small", 100, 1).await.unwrap();
    let names = world.small.names("c/").await;
    world.small.flip(&names[1], 1000).await;
    let error = get(&store, "ns/k").await.err().unwrap();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.to_string().contains("ns/k") && error.to_string().contains("chunk 1 in backend small"), "{error}");
    let record = world.small.names("r/ns/small").await;
    world.small.flip(&record[0], 40).await;
    assert_eq!(get(&store, "ns/small").await.err().unwrap().code(), Code::Corrupt);
    let report = store.scrub().await.unwrap();
    assert_eq!((report.good, report.bad.len()), (1, 2), "{report:?}");
}

#[tokio::test]
async fn a_full_backend_refuses_the_writer_and_deleting_makes_room() {
    let world = World::new(4 << 20);
    let store = cold(&world).await;
    put(&store, "ns/a", 3 << 20, 1).await.unwrap();
    assert_eq!(put(&store, "ns/b", 3 << 20, 2).await.err().unwrap().code(), Code::OutOfSpace);
    assert_eq!(get(&store, "ns/a").await.unwrap(), bytes(3 << 20, 1));
    store.delete(&key("ns/a"), None).await.unwrap();
    put(&store, "ns/b", 3 << 20, 2).await.unwrap();
    assert_eq!(get(&store, "ns/b").await.unwrap(), bytes(3 << 20, 2));
}

#[tokio::test]
async fn a_backend_that_is_full_to_the_last_byte_can_be_emptied() {
    let world = World::new(100_000);
    let store = cold(&world).await;
    let mut names = Vec::new();
    for n in [20_000, 1000, 1] {
        for i in 0.. {
            let name = format!("ns/{n}-{i}");
            match put(&store, &name, n, i).await {
                Ok(_) => names.push(name),
                Err(error) => {
                    assert_eq!(error.code(), Code::OutOfSpace);
                    break;
                }
            }
        }
    }
    assert!(names.len() > 10);
    for name in &names {
        assert!(store.delete(&key(name), None).await.unwrap(), "{name}");
        assert_eq!(get(&store, name).await.err().unwrap().code(), Code::NotFound);
    }
    put(&store, "ns/again", 20_000, 1).await.unwrap();
    let again = cold(&world).await;
    assert_eq!(again.list("", None, 1000).unwrap().0.len(), 1, "nothing deleted comes back");
}

#[tokio::test]
async fn old_chunks_that_nothing_names_are_collected() {
    let world = World::new(1 << 30);
    let store = world.open(Seams::system(), |options| (options.hot_limit, options.orphan_age) = (0, Duration::ZERO)).await;
    put(&store, "ns/k", 3 << 20, 1).await.unwrap();
    let orphan = "c/018bcfe5680073a5b1c2d3e4f5061728/0/00000000";
    world.small.plant(orphan).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let report = store.scrub().await.unwrap();
    assert_eq!((report.orphans, report.bad.len()), (1, 0), "{report:?}");
    assert!(!world.small.names("c/").await.contains(&orphan.to_string()));
    assert!(get(&store, "ns/k").await.unwrap() == bytes(3 << 20, 1));
}

#[tokio::test]
async fn weak_puts_are_seen_at_once_and_written_behind() {
    let world = World::new(1 << 30);
    let store = store(&world).await;
    let weak = WriteOptions { consistency: Some(Consistency::Weak), ..WriteOptions::default() };
    for (name, n) in [("ns/a", 100), ("ns/b", 5 << 20)] {
        store.store(key(name), spec(n), &payload(n, 3), weak.clone()).await.unwrap();
        assert_eq!(get(&store, name).await.unwrap(), bytes(n, 3));
        assert_eq!(store.info(&key(name)).unwrap().consistency, Consistency::Weak);
    }
    assert_eq!(store.list("ns/", None, 10).unwrap().0.len(), 2);
    store.drain().await.unwrap();
    assert_eq!(put(&store, "ns/c", 1, 1).await.err().unwrap().code(), Code::ShuttingDown);
    let again = cold(&world).await;
    assert_eq!(get(&again, "ns/a").await.unwrap(), bytes(100, 3));
    assert_eq!(get(&again, "ns/b").await.unwrap(), bytes(5 << 20, 3));
}

#[tokio::test]
async fn a_drain_right_after_weak_puts_keeps_them() {
    for _ in 0..5 {
        let world = World::new(1 << 30);
        let store = world.open(Seams::system(), |options| options.memory_limit = 256 << 20).await;
        let weak = WriteOptions { consistency: Some(Consistency::Weak), ..WriteOptions::default() };
        for (name, n) in [("ns/a", 20 << 20), ("big/b", 12 << 20)] {
            store.store(key(name), spec(n), &payload(n, 3), weak.clone()).await.unwrap();
        }
        // The background has begun to write by now, and the drain writes as well.
        tokio::time::sleep(Duration::from_millis(5)).await;
        store.drain().await.unwrap();
        let again = cold(&world).await;
        assert!(get(&again, "ns/a").await.unwrap() == bytes(20 << 20, 3));
        assert!(get(&again, "big/b").await.unwrap() == bytes(12 << 20, 3));
    }
}

#[tokio::test]
async fn a_version_never_comes_back() {
    let store = store(&World::new(1 << 30)).await;
    let weak = WriteOptions { consistency: Some(Consistency::Weak), ..WriteOptions::default() };
    for version in [1, 2, 3] {
        let put = store.store(key("ns/k"), spec(9), &payload(9, version), weak.clone()).await.unwrap();
        assert_eq!((put.version, put.created), (version, true));
        assert!(store.delete(&key("ns/k"), None).await.unwrap());
    }
}

#[tokio::test]
async fn records_that_the_index_lost_are_found_again() {
    let world = World::new(1 << 30);
    let first = cold(&world).await;
    put(&first, "ns/a", 40_000, 1).await.unwrap();
    // An index as it was before the next changes.
    let old: Vec<_> = world.catalog.scan(b"", b"", usize::MAX).unwrap();
    put(&first, "ns/a", 41_000, 2).await.unwrap();
    put(&first, "ns/b", 100, 3).await.unwrap();
    let behind = World { catalog: Default::default(), ..world };
    behind.catalog.write(old.into_iter().map(|(k, v)| Change::Put(k, v)).collect(), true).unwrap();
    let again = cold(&behind).await;
    assert_eq!(get(&again, "ns/a").await.unwrap(), bytes(41_000, 2));
    assert_eq!(get(&again, "ns/b").await.unwrap(), bytes(100, 3));
    assert_eq!(again.scrub().await.unwrap().bad, Vec::<String>::new());
}

/// The record is there, and nobody was told so: its chunks must be, too.
#[tokio::test]
async fn a_record_that_was_written_when_its_put_failed_keeps_its_chunks() {
    let world = World::new(1 << 30);
    let first = cold(&world).await;
    let strong = WriteOptions { consistency: Some(Consistency::Strong), ..WriteOptions::default() };
    first.store(key("ns/old"), spec(100_000), &payload(100_000, 1), strong.clone()).await.unwrap();
    world.small.full_when_done(true);
    for name in ["ns/new", "ns/old"] {
        let error = first.store(key(name), spec(200_000), &payload(200_000, 2), strong.clone()).await.unwrap_err();
        // Not that there is no room, which says that nothing was written.
        assert_eq!(error.code(), Code::Backend, "{error}");
        // What is swept in the background is swept by then.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.small.full_when_done(false);
    assert_eq!(get(&first, "ns/old").await.unwrap(), bytes(100_000, 1));
    drop(first);
    let again = cold(&world).await;
    for name in ["ns/new", "ns/old"] {
        assert_eq!(get(&again, name).await.unwrap(), bytes(200_000, 2), "{name}");
    }
    assert_eq!(again.scrub().await.unwrap().bad, Vec::<String>::new());
    // The next put goes over what was left.
    assert_eq!(put(&again, "ns/new", 50_000, 3).await.unwrap(), 2);
    assert_eq!(get(&again, "ns/new").await.unwrap(), bytes(50_000, 3));
}

#[tokio::test]
async fn a_promise_of_bytes_takes_no_memory() {
    let store = store(&World::new(1 << 30)).await;
    put(&store, "ns/hot", 3 << 20, 1).await.unwrap();
    let hot = store.stats().await.memory.hot_bytes;
    let mut stalled = Vec::new();
    for i in 0..100 {
        let mut writer = store.begin(key(&format!("ns/{i}")), spec(16 << 20), WriteOptions::default()).await.unwrap();
        writer.write(&[0; 1000]).await.unwrap();
        stalled.push(writer);
    }
    let memory = store.stats().await.memory;
    assert_eq!(memory.hot_bytes, hot);
    assert!(memory.used < (16 << 20), "{memory:?}");
}

#[tokio::test]
async fn listing_pages_in_byte_order() {
    let store = store(&World::new(1 << 30)).await;
    let mut names: Vec<String> = (0..57).map(|i| format!("ns/{:x}", i * 7919 % 1000)).chain(["a/z".into(), "nt/a".into()]).collect();
    for name in &names {
        put(&store, name, 1, 1).await.unwrap();
    }
    names.sort();
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    loop {
        let (entries, next) = store.list("", after.as_deref(), 10).unwrap();
        assert!(entries.len() <= 10);
        seen.extend(entries.into_iter().map(|entry| entry.key));
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, names);
    let (entries, next) = store.list("ns/", Some("ns/3"), 1000).unwrap();
    assert!(entries.iter().all(|entry| entry.key.starts_with("ns/") && entry.key.as_str() > "ns/3"));
    assert_eq!(next, None);
}

#[tokio::test]
async fn migration_moves_the_home_and_keeps_the_version() {
    let world = World::new(1 << 30);
    let store = cold(&world).await;
    put(&store, "ns/a", 3 << 20, 1).await.unwrap();
    put(&store, "other/b", 3 << 20, 2).await.unwrap();
    assert_eq!(store.migrate_data("small", "large", "ns/*").await.unwrap(), 1);
    let entry = store.info(&key("ns/a")).unwrap();
    assert_eq!((entry.backend.as_str(), entry.version, entry.generation), ("large", 1, 2));
    assert_eq!(get(&store, "ns/a").await.unwrap(), bytes(3 << 20, 1));
    let again = cold(&world).await;
    assert_eq!(get(&again, "ns/a").await.unwrap(), bytes(3 << 20, 1));
    assert_eq!(get(&again, "other/b").await.unwrap(), bytes(3 << 20, 2));
}

#[tokio::test]
async fn a_lost_catalog_is_rebuilt_from_the_records() {
    let world = World::new(1 << 30);
    let first = cold(&world).await;
    for i in 0..20 {
        put(&first, &format!("ns/{i}"), 40_000 + i, i).await.unwrap();
    }
    put(&first, "ns/3", 77, 77).await.unwrap();
    first.delete(&key("ns/5"), None).await.unwrap();
    let lost = World { catalog: Default::default(), ..world };
    let again = cold(&lost).await;
    assert_eq!(again.list("", None, 100).unwrap().0.len(), 19);
    assert_eq!(get(&again, "ns/3").await.unwrap(), bytes(77, 77));
    assert_eq!(again.info(&key("ns/3")).unwrap().version, 2);
    assert_eq!(get(&again, "ns/19").await.unwrap(), bytes(40_019, 19));
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_code() {
    let store = store(&World::new(1 << 30)).await;
    let options = WriteOptions { codec: Some("lzma".into()), ..WriteOptions::default() };
    let error = store.begin(key("ns/k"), spec(10), options).await.err().unwrap();
    assert_eq!(error.code(), Code::UnknownCodec);
    assert!(error.to_string().contains("zstd"), "{error}");
    let huge = TensorSpec::new(DType::Float32, vec![1 << 41]).unwrap();
    assert_eq!(store.begin(key("ns/k"), huge, WriteOptions::default()).await.err().unwrap().code(), Code::OutOfSpace);
    assert_eq!(store.ledger().used(), 0);
}
