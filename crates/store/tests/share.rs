//! Memory that is shared: the bytes that others map are the bytes that are stored, read and written behind.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use std::collections::BTreeMap;

use common::{World, bytes, key, payload, spec};
use sira_shm::Region;
use sira_store::{Demands, Seams, Shared, StorageClient, WriteOptions};
use sira_wire::Consistency;

const LEN: u64 = (3 << 20) + 3;

async fn store(world: &World) -> StorageClient {
    world.open(Seams::system(), |_| ()).await
}

fn lies_in(piece: &[u8], shared: &Shared) -> bool {
    let (region, piece) = (shared.region().as_ref().as_ptr_range(), piece.as_ptr_range());
    region.contains(&piece.start) && piece.end <= region.end
}

async fn read(store: &StorageClient, name: &str, shared: &Shared) -> Vec<u8> {
    let mut reader = store.read(&key(name), None, &BTreeMap::new()).await.unwrap();
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        assert!(lies_in(&piece, shared), "a copy");
        all.extend_from_slice(&piece);
    }
    all
}

fn options(level: Consistency) -> WriteOptions {
    WriteOptions { consistency: Some(level), ..WriteOptions::default() }
}

#[tokio::test]
async fn what_was_put_is_copied_once_and_then_shared_by_all() {
    let world = World::new(1 << 30);
    let store = store(&world).await;
    for level in [Consistency::Eventual, Consistency::Weak] {
        store.store(key("ns/a"), spec(LEN), &payload(LEN, 1), options(level)).await.unwrap();
        let snapshot = store.snapshot(&key("ns/a"), &Demands::default()).unwrap();
        assert!(snapshot.shared(0).is_none());
        let before = store.ledger().used();
        let (one, other) = tokio::join!(snapshot.share(0), snapshot.share(0));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(one.is(&other) && snapshot.shared(0).unwrap().is(&one));
        assert_eq!(one.region().as_ref(), bytes(LEN, 1));
        assert_eq!(read(&store, "ns/a", &one).await, bytes(LEN, 1));
        drop((snapshot, other));
        // It took the place of the other, which whoever writes it behind may hold a moment longer.
        for _ in 0..1000 {
            if store.ledger().used() <= before + (64 << 10) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(store.ledger().used() <= before + (64 << 10), "{before}, {}", store.ledger().used());
        assert_eq!(read(&store, "ns/a", &one).await, bytes(LEN, 1));
        drop(one);
        assert!(store.delete(&key("ns/a"), None).await.unwrap());
    }
}

#[tokio::test]
async fn what_is_adopted_is_stored_as_it_is_and_comes_back_after_a_restart() {
    let world = World::new(1 << 30);
    let first = store(&world).await;
    for (i, level) in [Consistency::Eventual, Consistency::Weak].into_iter().enumerate() {
        for n in [10, LEN] {
            let name = format!("big/{i}-{n}");
            let reservation = first.reserve(n).await.unwrap();
            let region = Region::create(n as usize).unwrap();
            region.write_at(0, &bytes(n, 2)).unwrap();
            let sealed = region.seal().unwrap();
            let writer = first.begin(key(&name), spec(n), options(level)).await.unwrap();
            assert_eq!(writer.adopt(sealed, reservation).await.unwrap().version, 1);
            if n == LEN {
                let shared = first.snapshot(&key(&name), &Demands::default()).unwrap().shared(0).expect("the region itself");
                assert_eq!(read(&first, &name, &shared).await, bytes(n, 2));
            }
        }
    }
    let wrong = Region::create(11).unwrap().seal().unwrap();
    let writer = first.begin(key("ns/wrong"), spec(10), WriteOptions::default()).await.unwrap();
    assert!(writer.adopt(wrong, first.reserve(11).await.unwrap()).await.unwrap_err().to_string().contains("has 11"));
    first.drain().await.unwrap();
    drop(first);
    let again = store(&world).await;
    for i in 0..2 {
        for n in [10, LEN] {
            assert_eq!(again.retrieve(&key(&format!("big/{i}-{n}"))).await.unwrap().1.into_bytes(), bytes(n, 2));
        }
    }
}

#[tokio::test]
async fn what_somebody_holds_stays_reserved_and_as_it_is() {
    let world = World::new(1 << 30);
    let store = store(&world).await;
    store.store(key("ns/a"), spec(LEN), &payload(LEN, 1), WriteOptions::default()).await.unwrap();
    let shared = store.snapshot(&key("ns/a"), &Demands::default()).unwrap().share(0).await.unwrap();
    store.store(key("ns/a"), spec(LEN), &payload(LEN, 9), WriteOptions::default()).await.unwrap();
    assert!(store.delete(&key("ns/a"), None).await.unwrap());
    assert_eq!(shared.region().as_ref(), bytes(LEN, 1));
    let held = store.ledger().used();
    assert!(held >= LEN);
    drop(shared);
    assert!(store.ledger().used() <= held - LEN);
}
