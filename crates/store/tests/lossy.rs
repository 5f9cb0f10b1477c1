//! What holds of tensors that a lossy codec keeps, and of the calibrations that codecs need.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use std::collections::BTreeMap;

use common::{World, bytes, key, payload, spec};
use sira_store::{Demands, PartSpec, Seams, StorageClient, StoreError, WriteOptions};
use sira_tensor::{DType, TensorSpec, kv};
use sira_wire::namespace::{Mode, Policy};
use sira_wire::{Code, Condition, Consistency};

const LOSSY: &str = "fp8";

fn kv_block() -> TensorSpec {
    let axes = ["layer", "kv", "token", "head", "dim"].map(String::from).to_vec();
    TensorSpec::new(DType::BFloat16, vec![4, 2, 300, 2, 64]).unwrap().with_axes(axes).unwrap()
}

/// Numbers of a few units' size, V smaller than K.
fn values(spec: &TensorSpec, seed: u64) -> Vec<u8> {
    let noise = bytes(spec.nbytes() / 2, seed);
    let value = |(i, byte): (usize, &u8)| ((f32::from(*byte) - 127.0) * if i % 76_800 < 38_400 { 0.05 } else { 0.01 }).to_bits();
    noise.iter().enumerate().flat_map(|at| ((value(at) >> 16) as u16).to_le_bytes()).collect()
}

async fn store(world: &World) -> StorageClient {
    world.open(Seams::system(), |_| ()).await
}

fn lossy(level: Consistency) -> WriteOptions {
    WriteOptions { codec: Some(LOSSY.into()), consistency: Some(level), ..WriteOptions::default() }
}

async fn put(store: &StorageClient, name: &str, raw: &[u8], options: WriteOptions) -> Result<u64, StoreError> {
    store.store(key(name), kv_block(), &raw.to_vec().into(), options).await.map(|answer| answer.version)
}

async fn get(store: &StorageClient, name: &str, exact: Option<bool>) -> Result<Vec<u8>, StoreError> {
    let snapshot = store.snapshot(&key(name), &Demands { exact, ..Demands::default() })?;
    let mut reader = snapshot.read(snapshot.part(None)?, &BTreeMap::new()).await?;
    let mut got = Vec::new();
    while let Some(piece) = reader.next().await? {
        got.extend_from_slice(&piece);
    }
    Ok(got)
}

fn code<T>(result: Result<T, StoreError>) -> Code {
    result.err().expect("an error").code()
}

#[tokio::test]
async fn a_get_gives_one_thing_from_memory_from_a_tier_and_after_a_restart() {
    let world = World::new(1 << 30);
    let first = store(&world).await;
    let raw = values(&kv_block(), 1);
    let mut seen = Vec::new();
    for level in [Consistency::Strong, Consistency::Eventual, Consistency::Weak] {
        let name = format!("ns/{level}");
        put(&first, &name, &raw, lossy(level)).await.unwrap();
        for _ in 0..2 {
            seen.push(get(&first, &name, None).await.unwrap());
        }
        let entry = first.info(&key(&name)).unwrap();
        assert_eq!((entry.codec.as_str(), entry.lossy, entry.consistency), (LOSSY, true, level));
        assert!(entry.tiers.contains(&"memory".to_owned()), "it was read: {:?}", entry.tiers);
        assert_eq!(entry.relative_rmse.keys().collect::<Vec<_>>(), ["all", "k", "v"]);
        assert!(entry.relative_rmse.values().all(|error| (1e-4..0.1).contains(error)), "{:?}", entry.relative_rmse);
        assert!(entry.stored_bytes < entry.nbytes * 6 / 10);
    }
    let again = store(&world).await;
    for level in ["strong", "eventual", "weak"] {
        seen.push(get(&again, &format!("ns/{level}"), None).await.unwrap());
    }
    assert!(seen[0] != raw && seen.iter().all(|other| *other == seen[0]));
    // A range, from the tier, is of the same.
    let cold = world.open(Seams::system(), |options| options.hot_limit = 0).await;
    let slice = [("token".to_owned(), [250, 280]), ("layer".to_owned(), [1, 3])].into();
    let mut reader = cold.read(&key("ns/weak"), None, &slice).await.unwrap();
    let mut part = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        part.extend_from_slice(&piece);
    }
    let wanted = sira_tensor::region(&kv_block(), slice.iter().map(|(name, range)| (name.as_str(), *range))).unwrap();
    let (run, begins) = sira_tensor::grid::runs(kv_block().shape(), 2, &wanted);
    let expected: Vec<u8> = begins.flat_map(|at| seen[0][at as usize..(at + run) as usize].to_vec()).collect();
    assert!(part == expected);
}

#[tokio::test]
async fn what_wants_exact_bytes_misses_lossy_ones_until_an_exact_put() {
    let world = World::new(1 << 30);
    let store = store(&world).await;
    let raw = values(&kv_block(), 2);
    put(&store, "ns/k", &raw, lossy(Consistency::Eventual)).await.unwrap();
    assert_eq!(code(get(&store, "ns/k", Some(true)).await), Code::NotFound);
    let absent = |options: WriteOptions| WriteOptions { condition: Some(Condition::Absent), ..options };
    assert_eq!(code(put(&store, "ns/k", &raw, absent(lossy(Consistency::Eventual))).await), Code::Exists);
    let derived = WriteOptions { derived_from_lossy: true, ..WriteOptions::default() };
    assert_eq!(code(put(&store, "ns/k", &raw, absent(derived.clone())).await), Code::Exists);
    // To an exact put it is not there.
    let answer = store.store(key("ns/k"), kv_block(), &raw.clone().into(), absent(WriteOptions::default())).await.unwrap();
    assert_eq!((answer.version, answer.created), (2, false));
    assert!(get(&store, "ns/k", Some(true)).await.unwrap() == raw);
    assert_eq!(code(put(&store, "ns/k", &raw, absent(WriteOptions::default())).await), Code::Exists);
    let entry = store.info(&key("ns/k")).unwrap();
    assert!(!entry.lossy && entry.relative_rmse.is_empty());

    // What is derived from lossy data is kept bit for bit, and still is not exact: in memory, in a tier, in its record.
    for (name, level) in [("ns/strong", Consistency::Strong), ("ns/weak", Consistency::Weak)] {
        let options = WriteOptions { consistency: Some(level), ..derived.clone() };
        put(&store, name, &raw, options).await.unwrap();
        assert!(get(&store, name, None).await.unwrap() == raw);
        assert_eq!(code(get(&store, name, Some(true)).await), Code::NotFound);
    }
    store.store(key("ns/small"), spec(100), &payload(100, 1), derived).await.unwrap();
    assert_eq!(code(get(&store, "ns/small", Some(true)).await), Code::NotFound);
    store.drain().await.unwrap();
    let again = self::store(&world).await;
    for name in ["ns/strong", "ns/weak", "ns/small"] {
        let entry = again.info(&key(name)).unwrap();
        assert!(entry.derived_from_lossy && !entry.lossy, "{name}");
        assert_eq!(code(get(&again, name, Some(true)).await), Code::NotFound);
    }
}

#[tokio::test]
async fn a_namespace_that_is_exact_takes_and_gives_nothing_else() {
    let world = World::new(1 << 30);
    let store = store(&world).await;
    let raw = values(&kv_block(), 3);
    put(&store, "ns/lossy", &raw, lossy(Consistency::Eventual)).await.unwrap();
    put(&store, "ns/exact", &raw, WriteOptions::default()).await.unwrap();
    let lossy_policy = Policy { codecs: [("small".to_owned(), LOSSY.to_owned())].into(), ..Policy::default() };
    assert_eq!(code(store.set_namespace("ns", Policy { exact: true, ..lossy_policy.clone() }).await), Code::BadRequest);
    store.set_namespace("ns", Policy { exact: true, ..Policy::default() }).await.unwrap();
    assert_eq!(code(get(&store, "ns/lossy", None).await), Code::NotFound);
    assert!(get(&store, "ns/lossy", Some(false)).await.unwrap() != raw);
    assert!(get(&store, "ns/exact", None).await.unwrap() == raw);
    let list = ["ns/lossy", "ns/exact", "other/k"];
    let keys = sira_wire::many::KeyList::new(list).unwrap();
    assert_eq!(store.exists_many(&keys, None).await.unwrap(), [false, true, false]);
    assert_eq!((store.exists(&key("ns/lossy"), None).unwrap(), store.exists(&key("ns/exact"), None).unwrap()), (None, Some(1)));
    assert_eq!(code(put(&store, "ns/new", &raw, lossy(Consistency::Eventual)).await), Code::Unsupported);
    let derived = WriteOptions { derived_from_lossy: true, ..WriteOptions::default() };
    assert_eq!(code(put(&store, "ns/new", &raw, derived).await), Code::Unsupported);
    // A namespace may ask for a lossy codec, for those that do not say.
    store.set_namespace("cold", lossy_policy).await.unwrap();
    put(&store, "cold/k", &raw, WriteOptions::default()).await.unwrap();
    put(&store, "cold/exact", &raw, WriteOptions { codec: Some("zstd".into()), ..WriteOptions::default() }).await.unwrap();
    assert!(store.info(&key("cold/k")).unwrap().lossy && get(&store, "cold/exact", Some(true)).await.unwrap() == raw);
    // What is no number it leaves as it is; a writer who asks for it is told.
    let large = payload(100_000, 7);
    store.store(key("cold/bytes"), spec(100_000), &large, WriteOptions::default()).await.unwrap();
    assert!(get(&store, "cold/bytes", Some(true)).await.unwrap() == bytes(100_000, 7));
    let refused = store.store(key("cold/bytes"), spec(100_000), &large, lossy(Consistency::Eventual)).await;
    assert_eq!(code(refused), Code::Unsupported);
    // Nothing else may: not the default.
    let mut refused = None;
    let catalog = std::sync::Arc::new(sira_store::catalog::MemoryKv::default());
    let options = sira_store::StoreOptions { codec: LOSSY.parse().unwrap(), ..Default::default() };
    if let Err(error) = StorageClient::new(options, Seams::system(), catalog) {
        refused = Some(error.to_string());
    }
    assert!(refused.unwrap().contains("is lossy"));
}

#[tokio::test]
async fn small_tensors_and_what_was_acknowledged_as_it_is_stay_exact() {
    let world = World::new(1 << 30);
    let store = store(&world).await;
    let small = TensorSpec::new(DType::BFloat16, vec![100]).unwrap();
    let raw = values(&small, 4);
    store.store(key("ns/small"), small, &raw.clone().into(), lossy(Consistency::Weak)).await.unwrap();
    assert!(get(&store, "ns/small", Some(true)).await.unwrap() == raw);
    assert!(!store.info(&key("ns/small")).unwrap().lossy);
    // Weak, and its namespace asks for a lossy codec only afterwards.
    let large = values(&kv_block(), 5);
    put(&store, "ns/weak", &large, WriteOptions { consistency: Some(Consistency::Weak), ..WriteOptions::default() }).await.unwrap();
    let policy = Policy { codecs: [("small".to_owned(), LOSSY.to_owned())].into(), ..Policy::default() };
    store.set_namespace("ns", policy).await.unwrap();
    store.drain().await.unwrap();
    let again = self::store(&world).await;
    assert!(get(&again, "ns/weak", Some(true)).await.unwrap() == large);
}

#[tokio::test]
async fn a_namespaces_lossy_codec_is_for_floats_and_others_take_the_lossless_one() {
    let store = store(&World::new(1 << 30)).await;
    let policy = Policy { codecs: [("small".to_owned(), LOSSY.to_owned())].into(), ..Policy::default() };
    store.set_namespace("ns", policy).await.unwrap();
    for (name, dtype, codec) in [("ns/floats", DType::Float16, LOSSY), ("ns/numbers", DType::Int32, "planes+zstd")] {
        let spec = TensorSpec::new(dtype, vec![100_000]).unwrap();
        let zeros = vec![0; spec.nbytes() as usize];
        store.store(key(name), spec, &zeros.into(), WriteOptions::default()).await.unwrap();
        assert_eq!(store.info(&key(name)).unwrap().codec, codec, "{name}");
    }
}

#[tokio::test]
async fn each_part_has_its_own_codec_and_error() {
    let world = World::new(1 << 30);
    let store = store(&world).await;
    let shape = TensorSpec::new(DType::BFloat16, vec![64, 1024]).unwrap();
    let part = |name: &str, codec: &str| PartSpec { name: name.into(), spec: shape.clone(), codec: Some(codec.into()) };
    let mut writer = store.begin_parts(key("ns/k"), vec![part("k", LOSSY), part("v", "zstd")], WriteOptions::default()).await.unwrap();
    let raw = values(&shape, 6);
    writer.write(&raw).await.unwrap();
    writer.write(&raw).await.unwrap();
    writer.commit().await.unwrap();
    let entry = store.info(&key("ns/k")).unwrap();
    let told: Vec<_> = entry.parts.iter().map(|part| (part.codec.as_str(), part.lossy, part.relative_rmse.len())).collect();
    assert_eq!((entry.lossy, told), (true, vec![(LOSSY, true, 2), ("zstd", false, 0)]));
    assert!(entry.parts[0].relative_rmse["k"] > 0.0);
    let measured = store.stats().await.codecs;
    assert!(measured[LOSSY].encode.chunks == 1 && measured[LOSSY].ratio.unwrap() > 1.5, "{measured:?}");
    // Moved as it is.
    assert_eq!(store.migrate_data("small", "large", "ns/*").await.unwrap(), 1);
    let moved = store.info(&key("ns/k")).unwrap();
    assert_eq!((moved.backend.as_str(), &moved.parts[0].relative_rmse), ("large", &entry.parts[0].relative_rmse));
}

#[tokio::test]
async fn a_calibration_lies_under_its_hash_and_nowhere_else() {
    let world = World::new(1 << 30);
    let store = store(&world).await;
    let junk = vec![7u8; 100_000];
    let put = async |name: &str, spec: TensorSpec| store.store(key(name), spec, &junk.clone().into(), WriteOptions::default()).await;
    assert_eq!(code(put("calibration/mine", spec(100_000)).await), Code::BadKey);
    let hash = kv::hash(&junk);
    let floats = TensorSpec::new(DType::Float32, vec![25_000]).unwrap();
    assert_eq!(code(put(&format!("calibration/{hash}"), floats).await), Code::BadTensor);
    let other = put(&format!("calibration/{}", "5f".repeat(32)), spec(100_000)).await.unwrap_err();
    assert!(other.code() == Code::BadRequest && other.to_string().contains(&hash), "{other}");
    let none = put(&format!("calibration/{hash}"), spec(100_000)).await.unwrap_err();
    assert!(none.code() == Code::BadRequest && none.to_string().contains("no calibration artefact"), "{none}");
    assert_eq!(store.list("calibration/", None, 10).unwrap().0.len(), 0);
    let cache = Policy { mode: Mode::Cache, ..Policy::default() };
    assert_eq!(code(store.set_namespace("calibration", cache).await), Code::BadRequest);
}

/// An artefact of a model of two layers and two heads of eight dimensions.
fn artefact() -> (String, Vec<u8>) {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/golden/tiny.calib")).unwrap();
    (kv::hash(&bytes), bytes)
}

async fn put_artefact(store: &StorageClient) -> String {
    let (hash, bytes) = artefact();
    let options = WriteOptions { ttl: Some(1), consistency: Some(Consistency::Weak), ..WriteOptions::default() };
    store.store(key(&format!("calibration/{hash}")), spec(bytes.len() as u64), &bytes.into(), options).await.unwrap();
    hash
}

/// A KV cache of that model.
fn tiny(tokens: u64) -> TensorSpec {
    let axes = ["layer", "kv", "token", "head", "dim"].map(String::from).to_vec();
    let attributes = [("model", "tiny"), ("rope", "half"), ("rope_theta", "10000"), ("rope_dim", "8")];
    let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let spec = TensorSpec::new(DType::BFloat16, vec![2, 2, tokens, 2, 8]).unwrap();
    spec.with_axes(axes).unwrap().with_attributes(attributes).unwrap()
}

async fn put_tiny(store: &StorageClient, name: &str, tokens: u64, codec: &str) -> Result<Vec<u8>, StoreError> {
    let raw = values(&tiny(tokens), 8);
    let options = WriteOptions { codec: Some(codec.into()), ..WriteOptions::default() };
    store.store(key(name), tiny(tokens), &raw.clone().into(), options).await?;
    Ok(raw)
}

#[tokio::test]
async fn a_calibration_stays_while_something_needs_it() {
    let world = World::new(1 << 30);
    let first = store(&world).await;
    let missing = put_tiny(&first, "ns/early", 600, &format!("kvtc:step=0.05@{}", artefact().0)).await;
    assert_eq!(code(missing), Code::UnknownCalibration);
    assert_eq!(code(put_tiny(&first, "ns/early", 600, "kvtc:step=0.05").await), Code::BadRequest, "none of its model is here");
    let hash = put_artefact(&first).await;
    let entry = first.info(&key(&format!("calibration/{hash}"))).unwrap();
    assert_eq!((entry.consistency, entry.expires_ms, entry.attributes["model"].as_str()), (Consistency::Strong, None, "tiny"));
    // As the attributes of a file that was put say it.
    let of_file = tiny(600).attributes().iter().map(|(name, value)| (format!("safetensors.{name}"), value.clone())).collect();
    let spec = TensorSpec::new(DType::BFloat16, tiny(600).shape().to_vec()).unwrap();
    let spec = spec.with_axes(tiny(600).axes().to_vec()).unwrap().with_attributes(of_file).unwrap();
    let options = WriteOptions { codec: Some("kvtc:step=0.05".into()), ..WriteOptions::default() };
    first.store(key("ns/file"), spec.clone(), &values(&spec, 8).into(), options).await.unwrap();
    assert!(first.info(&key("ns/file")).unwrap().codec.ends_with(&hash));
    assert!(first.delete(&key("ns/file"), None).await.unwrap());
    // Named by nobody, it is the one of its model.
    let raw = put_tiny(&first, "ns/k", 600, "kvtc:step=0.05").await.unwrap();
    let entry = first.info(&key("ns/k")).unwrap();
    assert_eq!((entry.codec, entry.lossy), (format!("kvtc:step=0.05@{hash}"), true));
    // Noise that the model would never make.
    assert!(["k", "v", "all"].iter().all(|of| (0.0..1.0).contains(&entry.relative_rmse[*of])), "{:?}", entry.relative_rmse);
    let got = get(&first, "ns/k", None).await.unwrap();
    assert!(got != raw && got.len() == raw.len());

    let again = store(&world).await;
    let artefact = key(&format!("calibration/{hash}"));
    assert!(get(&again, "ns/k", None).await.unwrap() == got);
    let refused = again.delete(&artefact, None).await.unwrap_err();
    assert!(refused.code() == Code::InUse && refused.to_string().contains("1 records"), "{refused}");
    assert_eq!(again.delete_prefix("calibration/", None, false).await.unwrap().failed.len(), 1);
    again.delete(&key("ns/k"), None).await.unwrap();
    let policy = Policy { codecs: [("small".to_owned(), format!("kvtc:high@{hash}"))].into(), ..Policy::default() };
    again.set_namespace("cold", policy.clone()).await.unwrap();
    assert!(again.delete(&artefact, None).await.unwrap_err().to_string().contains("namespace cold"));
    again.reset_namespace("cold").await.unwrap();
    assert!(again.delete(&artefact, None).await.unwrap());
    assert_eq!(code(again.set_namespace("cold", policy.clone()).await), Code::UnknownCalibration);
    // By configuration: the start says it.
    let configured = world.prepare(Seams::system(), |_| ());
    configured.configure_namespace("cold", policy).unwrap();
    assert!(configured.start().await.unwrap_err().to_string().contains("before the configuration names it"));
}

#[tokio::test]
async fn a_codec_that_cuts_across_a_part_takes_the_memory_it_needs_or_says_what_would_do() {
    let world = World::new(1 << 30);
    let large = store(&world).await;
    let hash = put_artefact(&large).await;
    let codec = format!("kvtc:step=0.05@{hash}");
    put_tiny(&large, "ns/large", 20_000, &codec).await.unwrap();
    let got = get(&large, "ns/large", None).await.unwrap();
    // A range reads what it needs.
    let small = world.open(Seams::system(), |options| (options.memory_limit, options.hot_limit) = (2 << 20, 0)).await;
    let slice = [("token".to_owned(), [300, 310])].into();
    let mut reader = small.read(&key("ns/large"), None, &slice).await.unwrap();
    let mut part = 0;
    while let Some(piece) = reader.next().await.unwrap() {
        part += piece.len();
    }
    assert_eq!((part, got.len()), (2 * 2 * 10 * 16 * 2, 20_000 * 128));
    let refused = put_tiny(&small, "ns/other", 20_000, &codec).await.unwrap_err();
    assert!(refused.code() == Code::OutOfSpace && refused.to_string().contains("blocks of fewer tokens"), "{refused}");
    let refused = get(&small, "ns/large", None).await.unwrap_err();
    assert!(refused.code() == Code::OutOfSpace && refused.to_string().contains("raise memory.limit"), "{refused}");
    put_tiny(&small, "ns/other", 600, &codec).await.unwrap();
    assert!(small.ledger().used() > 0, "the artefact that is loaded counts");
}
