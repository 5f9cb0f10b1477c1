//! Tensors whose codec changes with their place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use common::{World, bytes, key, spec};
use sira_store::{Seams, StorageClient, TierOptions, WriteOptions};
use sira_wire::namespace::{Policy, Tiers};

const MIB: u64 = 1 << 20;

/// Numbers that a codec makes much smaller, of several chunks.
fn soft(n: u64, seed: u64) -> Vec<u8> {
    (0..n).map(|i| ((i / 1000 + seed) % 251) as u8).collect()
}

/// Chunks lie in `small` as they are, in `large` through a codec.
async fn store(world: &World, limit: u64) -> StorageClient {
    let store = world
        .open(Seams::system(), |options| {
            options.hot_limit = 0;
            options.codec = "none".parse().unwrap();
            let tiers = Some(Tiers { warm: "small".into(), cold: "large".into() });
            options.tiers = TierOptions { tiers, limits: [("small".to_owned(), limit)].into(), promote_after: 0, ..TierOptions::default() };
        })
        .await;
    let codecs = [("large".to_owned(), "zstd".to_owned())].into();
    store.set_namespace("ns", Policy { codecs, ..Policy::default() }).await.unwrap();
    store
}

async fn put(store: &StorageClient, name: &str, raw: &[u8], codec: Option<&str>) {
    let options = WriteOptions { codec: codec.map(str::to_owned), ..WriteOptions::default() };
    store.store(key(name), spec(raw.len() as u64), &raw.to_vec().into(), options).await.unwrap();
}

async fn get(store: &StorageClient, name: &str) -> Vec<u8> {
    store.retrieve(&key(name)).await.unwrap().1.into_bytes().to_vec()
}

fn codec(store: &StorageClient, name: &str) -> String {
    store.info(&key(name)).unwrap().codec
}

#[tokio::test]
async fn a_migration_gives_each_part_the_codec_of_its_target() {
    let world = World::new(1 << 30);
    let store = store(&world, 1 << 30).await;
    put(&store, "ns/soft", &soft(5 * MIB, 1), None).await;
    put(&store, "ns/own", &soft(5 * MIB, 2), Some("lz4")).await;
    put(&store, "ns/noise", &bytes(5 * MIB, 3), None).await;
    put(&store, "plain/soft", &soft(5 * MIB, 4), None).await;
    let own = codec(&store, "ns/own");
    assert_eq!((codec(&store, "ns/soft").as_str(), own.as_str()), ("none", "lz4"));
    assert_eq!(store.migrate_data("small", "large", "*").await.unwrap(), 4);
    let read = async || {
        assert!(get(&store, "ns/soft").await == soft(5 * MIB, 1) && get(&store, "ns/own").await == soft(5 * MIB, 2));
        assert!(get(&store, "ns/noise").await == bytes(5 * MIB, 3) && get(&store, "plain/soft").await == soft(5 * MIB, 4));
    };
    read().await;
    let codecs = ["ns/soft", "ns/own", "plain/soft"].map(|name| codec(&store, name));
    assert_eq!(codecs, ["zstd", "lz4", "none"], "what its writer chose stays, and what no policy is about");
    let stats = store.stats().await;
    let recoded = stats.moves.recoded;
    // One shrank, the other is noise, which stays as it is behind the codec.
    assert!(recoded.tensors == 2 && (5 * MIB..6 * MIB).contains(&recoded.bytes), "{recoded:?}");
    assert!(stats.moves.migrated.bytes < 17 * MIB, "what was written: {:?}", stats.moves);
    assert_eq!(store.migrate_data("large", "small", "*").await.unwrap(), 4);
    read().await;
    assert_eq!(["ns/soft", "ns/own", "plain/soft"].map(|name| codec(&store, name)), ["none", "lz4", "none"]);
    assert_eq!(store.stats().await.moves.recoded.tensors, 4);
    assert!(store.scrub().await.unwrap().bad.is_empty());
}

#[tokio::test]
async fn what_is_demoted_gets_the_codec_below_and_the_limit_holds() {
    let world = World::new(1 << 30);
    let store = store(&world, 10 * MIB).await;
    for i in 0..30 {
        put(&store, &format!("ns/{i}"), &soft(MIB, i), None).await;
        assert!(world.small.bytes("c/").await <= 10 * MIB, "the limit is hard");
    }
    let stats = store.stats().await;
    let moves = stats.moves;
    assert!(moves.demoted.tensors >= 20 && moves.recoded.tensors == moves.demoted.tensors, "{moves:?}");
    assert!(moves.demoted.bytes == moves.recoded.bytes && moves.demoted.bytes < moves.demoted.tensors * MIB / 10, "{moves:?}");
    assert!(stats.backends["large"].compression_ratio.unwrap() > 10.0);
    for i in 0..30 {
        assert!(get(&store, &format!("ns/{i}")).await == soft(MIB, i), "{i}");
    }
}

/// A move changes no value: what one of the two codecs would change stays as it is.
#[tokio::test]
async fn no_lossy_codec_is_taken_or_undone_by_a_move() {
    let world = World::new(1 << 30);
    let store = store(&world, 1 << 30).await;
    put(&store, "ns/exact", &soft(MIB, 1), None).await;
    let codecs = [("large".to_owned(), "fp8".to_owned())].into();
    store.set_namespace("ns", Policy { codecs, ..Policy::default() }).await.unwrap();
    assert_eq!(store.migrate_data("small", "large", "*").await.unwrap(), 1);
    assert_eq!((codec(&store, "ns/exact").as_str(), store.stats().await.moves.recoded.tensors), ("none", 0));
    assert!(get(&store, "ns/exact").await == soft(MIB, 1));
}
