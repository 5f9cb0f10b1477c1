//! Data folders that earlier versions wrote: they are opened, read whole and written to. `golden/data-1` is of format 1 and never changes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::{key, spec};
use sira_backend::Payload;
use sira_backend::object::ObjectBackend;
use sira_backend::rocks::{RocksBackend, RocksOptions};
use sira_store::catalog::{Change, OrderedKv, RocksKv};
use sira_store::{Demands, PartSpec, Rule, Seams, StorageClient, StoreError, StoreOptions, WriteOptions};
use sira_tensor::kv::KvSpec;
use sira_tensor::{DType, TensorSpec};
use sira_wire::Consistency;
use sira_wire::namespace::{Mode, Policy, PolicyOrigin};

const KV_SPEC: &str = r#"{"model":"golden","block_tokens":16,"parts":[{"name":"k","dtype":"float8_e4m3fn","axes":["token","head","dim"],"shape":[16,8,64]},
    {"name":"k_scale","dtype":"float32","axes":["head"]}]}"#;

/// What the folder's tensors were made of: `n` bytes that depend on `seed`. As the folder, this never changes.
fn bytes(n: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..n).map(|_| next()).collect()
}

fn payload(n: u64, seed: u64) -> Payload {
    bytes(n, seed).into()
}

/// The folder's names are those that the program gives: catalog, rocksdb, object.
async fn open(folder: &Path) -> Result<StorageClient, StoreError> {
    let options = StoreOptions {
        memory_limit: 64 << 20,
        hot_limit: 0,
        record_backend: "rocksdb".into(),
        default_backend: "rocksdb".into(),
        codec: "planes+zstd".parse().unwrap(),
        ..StoreOptions::default()
    };
    let catalog = Arc::new(RocksKv::open(&folder.join("catalog")).unwrap());
    let store = StorageClient::new(options, Seams::system(), catalog)?;
    let small = RocksOptions { cache_bytes: 4 << 20, write_buffer_bytes: 4 << 20, ..RocksOptions::default() };
    store.register_backend("rocksdb", Arc::new(RocksBackend::open(folder.join("rocksdb"), small).unwrap()));
    store.register_backend("object", Arc::new(ObjectBackend::open_local(folder.join("object")).unwrap()));
    store.add_strategy(Box::new(Rule::new("*", 80_000..=u64::MAX, "object").unwrap()));
    store.start().await?;
    Ok(store)
}

fn kv() -> TensorSpec {
    let axes = ["layer", "kv", "token", "head", "dim"].map(String::from).to_vec();
    let attributes = [("model".to_owned(), "golden".to_owned())].into();
    TensorSpec::new(DType::BFloat16, vec![2, 2, 40, 4, 64])
        .and_then(|s| s.with_axes(axes))
        .and_then(|s| s.with_attributes(attributes))
        .unwrap()
}

fn parts() -> Vec<PartSpec> {
    let of = |name: &str, dtype, shape| PartSpec { name: name.into(), spec: TensorSpec::new(dtype, shape).unwrap(), codec: None };
    vec![of("k", DType::Float8E4M3Fn, vec![16, 8, 64]), of("k_scale", DType::Float32, vec![8])]
}

/// What is in `golden/data-1`.
async fn fill(store: &StorageClient) {
    let of = |codec: &str, level| WriteOptions { codec: Some(codec.into()), consistency: Some(level), ..WriteOptions::default() };
    for (i, dtype) in DType::all().enumerate() {
        let spec = TensorSpec::new(dtype, vec![2, 4, 8]).unwrap();
        let value = payload(spec.nbytes(), i as u64);
        store.store(key(&format!("dtypes/{dtype}")), spec, &value, WriteOptions::default()).await.unwrap();
    }
    for codec in ["none", "lz4", "zstd:9", "gzip", "planes+zstd"] {
        // Half of it compresses, so that both raw and encoded chunks are there.
        let value: Vec<u8> = [bytes(20_000, 7), vec![7; 20_000]].concat();
        store.store(key(&format!("codecs/{codec}")), spec(40_000), &value.into(), of(codec, Consistency::Strong)).await.unwrap();
    }
    store.store(key("kv/large"), kv(), &payload(kv().nbytes(), 1), WriteOptions::default()).await.unwrap();
    store.store(key("kv/weak"), kv(), &payload(kv().nbytes(), 2), of("none", Consistency::Weak)).await.unwrap();
    store
        .store(key("kv/ten years"), spec(10), &payload(10, 3), WriteOptions { ttl: Some(10 * 365 * 86_400), ..WriteOptions::default() })
        .await
        .unwrap();
    for version in 0..3 {
        store.store(key("kv/third"), spec(50), &payload(50, version), WriteOptions::default()).await.unwrap();
    }
    store.store(key("kv/deleted"), spec(50), &payload(50, 1), WriteOptions::default()).await.unwrap();
    store.delete(&key("kv/deleted"), None).await.unwrap();
    store
        .store(key("names/a b//é:=@"), TensorSpec::new(DType::Float64, vec![]).unwrap(), &payload(8, 4), WriteOptions::default())
        .await
        .unwrap();
    store
        .store(key("names/empty"), TensorSpec::new(DType::Int32, vec![3, 0]).unwrap(), &payload(0, 0), WriteOptions::default())
        .await
        .unwrap();
    let hash = store.put_kv_spec(KvSpec::from_json(KV_SPEC.as_bytes()).unwrap()).await.unwrap().hash;
    let options = WriteOptions { kv_spec: Some(hash), ..WriteOptions::default() };
    let mut writer = store.begin_parts(key("parts/block"), parts(), options).await.unwrap();
    writer.write(&bytes(8192 + 32, 5)).await.unwrap();
    writer.commit().await.unwrap();
    let large = [("a", 100_000), ("b", 40)].map(|(name, n)| PartSpec { name: name.into(), spec: spec(n), codec: None }).to_vec();
    let mut writer = store.begin_parts(key("parts/mixed"), large, WriteOptions::default()).await.unwrap();
    writer.write(&bytes(100_040, 6)).await.unwrap();
    writer.commit().await.unwrap();
    let policy = Policy { mode: Mode::Cache, limits: [("object".to_owned(), 1 << 30)].into(), ttl: Some(86_400), ..Policy::default() };
    store.set_namespace("cache", policy).await.unwrap();
    store.drain().await.unwrap();
}

async fn get(store: &StorageClient, name: &str) -> (TensorSpec, Vec<u8>) {
    let (spec, value) = store.retrieve(&key(name)).await.unwrap();
    (spec, value.into_bytes().to_vec())
}

async fn part(store: &StorageClient, name: &str, part: &str) -> Vec<u8> {
    let snapshot = store.snapshot(&key(name), &Demands::default()).unwrap();
    let mut reader = snapshot.read(snapshot.part(Some(part)).unwrap(), &BTreeMap::new()).await.unwrap();
    let mut got = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    got
}

async fn holds(store: &StorageClient) {
    for (i, dtype) in DType::all().enumerate() {
        let (spec, value) = get(store, &format!("dtypes/{dtype}")).await;
        assert_eq!((spec.dtype(), spec.shape()), (dtype, &[2, 4, 8][..]));
        assert_eq!(value, bytes(spec.nbytes(), i as u64));
    }
    for (codec, shown) in [("none", "none"), ("lz4", "lz4"), ("zstd:9", "zstd:9"), ("gzip", "gzip"), ("planes+zstd", "planes+zstd")] {
        let name = format!("codecs/{codec}");
        assert!(get(store, &name).await.1 == [bytes(20_000, 7), vec![7; 20_000]].concat(), "{codec}");
        let entry = store.info(&key(&name)).unwrap();
        assert_eq!((entry.codec.as_str(), entry.consistency), (shown, Consistency::Strong));
    }
    assert!(get(store, "kv/large").await == (kv(), bytes(kv().nbytes(), 1)));
    assert_eq!(store.info(&key("kv/large")).unwrap().backend, "object");
    assert!(get(store, "kv/weak").await == (kv(), bytes(kv().nbytes(), 2)));
    let entry = store.info(&key("kv/ten years")).unwrap();
    assert_eq!(entry.expires_ms.unwrap() - entry.created_ms, 10 * 365 * 86_400_000);
    assert_eq!((get(store, "kv/third").await.1, store.info(&key("kv/third")).unwrap().version), (bytes(50, 2), 3));
    assert_eq!(store.exists(&key("kv/deleted"), None).unwrap(), None);
    assert_eq!(get(store, "names/a b//é:=@").await.1, bytes(8, 4));
    assert_eq!(get(store, "names/empty").await.0.shape(), [3, 0]);
    let block = bytes(8192 + 32, 5);
    assert!(part(store, "parts/block", "k").await == block[..8192] && part(store, "parts/block", "k_scale").await == block[8192..]);
    let hash = store.info(&key("parts/block")).unwrap().kv_spec.unwrap();
    assert_eq!(store.kv_spec(&hash).await.unwrap().spec, KvSpec::from_json(KV_SPEC.as_bytes()).unwrap());
    let mixed = bytes(100_040, 6);
    assert!(part(store, "parts/mixed", "a").await == mixed[..100_000] && part(store, "parts/mixed", "b").await == mixed[100_000..]);
    let cache = store.namespaces().into_iter().find(|entry| entry.namespace == "cache").unwrap();
    assert_eq!((cache.origin, cache.policy.mode, cache.policy.limits["object"]), (PolicyOrigin::Action, Mode::Cache, 1 << 30));
    assert!(store.scrub().await.unwrap().bad.is_empty());
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test]
async fn what_format_1_wrote_is_read_whole_and_goes_on() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/data-1");
    let folder = tempfile::tempdir().unwrap();
    if std::env::var_os("SIRA_WRITE_GOLDEN").is_some() {
        let store = open(folder.path()).await.unwrap();
        fill(&store).await;
        holds(&store).await;
        drop(store);
        // The background work lets go of the store a little later.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        copy(folder.path(), &golden);
        for database in ["catalog", "rocksdb"] {
            // They tell of the machine, and RocksDB does without them.
            let told = |name: &str| name.starts_with("LOG") || name.starts_with("OPTIONS") || name == "LOCK";
            for entry in std::fs::read_dir(golden.join(database)).unwrap().map(Result::unwrap) {
                if told(&entry.file_name().to_string_lossy()) {
                    std::fs::remove_file(entry.path()).unwrap();
                }
            }
        }
        return;
    }
    copy(&golden, folder.path());
    let store = open(folder.path()).await.unwrap();
    holds(&store).await;
    store.store(key("new/k"), kv(), &payload(kv().nbytes(), 9), WriteOptions::default()).await.unwrap();
    assert_eq!(store.store(key("kv/third"), spec(50), &payload(50, 9), WriteOptions::default()).await.unwrap().version, 4);
    store.drain().await.unwrap();
    drop(store);
    // The index is made again from the records of the golden folder, and of today.
    let fresh = tempfile::tempdir().unwrap();
    for name in ["rocksdb", "object"] {
        copy(&folder.path().join(name), &fresh.path().join(name));
    }
    let store = open(fresh.path()).await.unwrap();
    assert!(get(&store, "new/k").await.1 == bytes(kv().nbytes(), 9) && get(&store, "kv/third").await.1 == bytes(50, 9));
    assert!(get(&store, "kv/large").await == (kv(), bytes(kv().nbytes(), 1)));
}

#[tokio::test]
async fn a_catalog_of_a_newer_format_is_refused_and_stays_as_it_is() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/data-1");
    let folder = tempfile::tempdir().unwrap();
    copy(&golden, folder.path());
    let path = folder.path().join("catalog");
    let kv = RocksKv::open(&path).unwrap();
    kv.write(vec![Change::Put(b"m/format".to_vec(), b"2".to_vec())], true).unwrap();
    let before = kv.scan(b"", b"", usize::MAX).unwrap();
    drop(kv);
    let refused = open(folder.path()).await.err().unwrap();
    assert!(refused.to_string().contains("format 2; this version of Sira reads 1"), "{refused}");
    assert!(RocksKv::open(&path).unwrap().scan(b"", b"", usize::MAX).unwrap() == before);
}
