//! Encoded chunks from the Rust client to the store and back: what either side encodes the other decodes, and what is wrong is found.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_flight::{FlightData, FlightDescriptor, SchemaAsIpc};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use sira_backend::memory::MemoryBackend;
use sira_backend::{PutOptions as BackendOptions, StorageBackend};
use sira_client::{Client, ClientError, Code, Condition, ConnectOptions, DType, GetOptions, KvSpec, PutOptions, TensorSpec, blocking};
use sira_flight::{Transport, serve};
use sira_store::catalog::MemoryKv;
use sira_store::{Seams, StorageClient, StoreOptions};
use sira_tensor::carrier::Carrier;
use sira_wire::{Consistency, Ticket};
use tonic::Status;
use tonic::body::Body;

/// A store that keeps nothing in memory but what waits, and a server of it.
async fn start() -> (StorageClient, Arc<MemoryBackend>, String) {
    let options = StoreOptions { memory_limit: 256 << 20, hot_limit: 0, codec: "planes+zstd".parse().unwrap(), ..StoreOptions::default() };
    let store = StorageClient::new(options, Seams::system(), Arc::new(MemoryKv::default())).unwrap();
    let backend = Arc::new(MemoryBackend::new(1 << 30));
    store.register_backend("memory", backend.clone());
    store.start().await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(store.clone(), listener, Transport::default(), std::future::pending()));
    (store, backend, url)
}

fn spec(dtype: DType, shape: &[u64], axes: &[&str]) -> TensorSpec {
    TensorSpec::new(dtype, shape.to_vec()).unwrap().with_axes(axes.iter().map(|axis| (*axis).to_owned()).collect()).unwrap()
}

/// As the values of a KV cache: mantissas are noise, exponents are not.
fn kv(spec: &TensorSpec) -> Vec<u8> {
    let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8;
    (0..spec.nbytes() as u32).map(|i| if i % 2 == 1 { 0x3c + noise(i) % 5 } else { noise(i) }).collect()
}

/// The ticket of everything that a client decodes.
fn ticket(key: &str) -> Vec<u8> {
    let ticket = Ticket { encoded: Some(blocking::stages()), ..Ticket::whole(&key.parse().unwrap()) };
    serde_json::to_vec(&ticket).unwrap()
}

/// Whether a get of this ticket is answered in chunks, and the bytes.
fn get(url: &str, ticket: Vec<u8>) -> (bool, Result<Vec<u8>, ClientError>) {
    let client = blocking::Client::new(url, &ConnectOptions::default(), || true).unwrap();
    let tensor = match client.get(&ticket, None) {
        Ok(tensor) => tensor,
        Err(error) => return (false, Err(error)),
    };
    let (encoded, mut out) = (tensor.is_encoded(), vec![0; tensor.spec().nbytes() as usize]);
    (encoded, tensor.read_into(&mut out).map(|()| out))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_encoded_is_decoded_here() {
    let (_store, _, url) = start().await;
    let client = Client::connect(&url).await.unwrap();
    for (name, spec) in [
        ("kv", spec(DType::BFloat16, &[6, 2, 1024, 2, 64], &["layer", "kv", "token", "head", "dim"])),
        ("flat", spec(DType::UInt16, &[3_000_001], &[])),
        ("packed", spec(DType::Float4E2M1Fn, &[3000, 3000], &[])),
    ] {
        let (key, bytes) = (format!("ns/{name}"), kv(&spec));
        client.put(&key, &spec, bytes.clone(), PutOptions::default()).await.unwrap();
        assert!(client.info(&key).await.unwrap().stored_bytes < spec.nbytes() * 9 / 10);
        let (got, all) = client.get_encoded(&key, &GetOptions::default()).await.unwrap();
        assert!(got == spec && all == bytes, "{name}");
        let mut out = vec![0; bytes.len()];
        client.get_encoded_into(&key, &GetOptions::default(), &mut out).await.unwrap();
        assert!(out == bytes, "{name} into a buffer");
        let (url, ticket) = (url.clone(), ticket(&key));
        let (encoded, got) = tokio::task::spawn_blocking(move || get(&url, ticket)).await.unwrap();
        assert!(encoded && got.unwrap() == bytes, "{name}, by threads");
        let wrong = client.get_encoded_into(&key, &GetOptions::default(), &mut out[1..]).await.unwrap_err();
        assert_eq!(wrong.code(), Some(Code::BadTensor));
    }
    let missing = client.get_encoded("ns/none", &GetOptions::default()).await.unwrap_err();
    assert_eq!(missing.code(), Some(Code::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_come_in_chunks_where_that_is_less() {
    let (_store, _, url) = start().await;
    let client = Client::connect(&url).await.unwrap();
    let whole = spec(DType::BFloat16, &[8, 2, 1024, 2, 64], &["layer", "kv", "token", "head", "dim"]);
    let bytes = kv(&whole);
    client.put("ns/kv", &whole, bytes, PutOptions::default()).await.unwrap();
    for (slice, in_chunks) in [
        (vec![("layer", [0, 8]), ("token", [256, 768])], true),
        (vec![("token", [1, 1023])], true),
        (vec![("token", [300, 303])], false), // a few tokens of a chunk of many
        (vec![("token", [5, 5])], false),
    ] {
        let slice: BTreeMap<String, [u64; 2]> = slice.into_iter().map(|(axis, range)| (axis.to_owned(), range)).collect();
        let options = GetOptions { slice: slice.clone(), ..GetOptions::default() };
        let expected = client.get("ns/kv", &options).await.unwrap();
        let expected = (expected.spec().clone(), expected.into_bytes().await.unwrap());
        let (spec, got) = client.get_encoded("ns/kv", &options).await.unwrap();
        assert!((spec, got.clone()) == expected, "{slice:?}");
        let ticket = Ticket { encoded: Some(blocking::stages()), slice, ..Ticket::whole(&"ns/kv".parse().unwrap()) };
        let (url, ticket) = (url.clone(), serde_json::to_vec(&ticket).unwrap());
        let (encoded, bytes) = tokio::task::spawn_blocking(move || get(&url, ticket)).await.unwrap();
        assert!(encoded == in_chunks && bytes.unwrap() == got);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_stored_so_comes_as_it_is() {
    let (store, _, url) = start().await;
    let client = Client::connect(&url).await.unwrap();
    let (large, small) = (spec(DType::BFloat16, &[1000, 1000], &[]), spec(DType::UInt8, &[1000], &[]));
    let codec = |codec: &str| PutOptions { codec: Some(codec.into()), ..PutOptions::default() };
    client.put("ns/small", &small, kv(&small), PutOptions::default()).await.unwrap();
    client.put("ns/raw", &large, kv(&large), codec("none")).await.unwrap();
    client.put("ns/lz4", &large, kv(&large), codec("planes+lz4")).await.unwrap();
    let encoded = |key: &str, stages: &[&str]| {
        let stages = stages.iter().map(|stage| (*stage).to_owned()).collect();
        let ticket = Ticket { encoded: Some(stages), ..Ticket::whole(&key.parse().unwrap()) };
        let (url, ticket) = (url.clone(), serde_json::to_vec(&ticket).unwrap());
        tokio::task::spawn_blocking(move || get(&url, ticket))
    };
    for (key, stages, expected) in [
        ("ns/small", &["planes", "zstd"][..], false), // inside its record
        ("ns/raw", &["planes", "zstd"], false),
        ("ns/lz4", &["planes", "zstd"], false), // a stage that is not known there
        ("ns/lz4", &[], false),
        ("ns/lz4", &["zstd", "lz4", "planes", "one-of-a-newer-client"], true),
    ] {
        let (came_encoded, bytes) = encoded(key, stages).await.unwrap();
        let whole = if key == "ns/small" { &small } else { &large };
        assert!(came_encoded == expected && bytes.unwrap() == kv(whole), "{key} {stages:?}");
    }
    assert_eq!(store.stats().await.operations.gets, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_encoded_here_is_stored_as_it_comes() {
    let (store, _, url) = start().await;
    let client = Client::connect(&url).await.unwrap();
    let axes = ["layer", "kv", "token", "head", "dim"];
    let described = spec(DType::BFloat16, &[6, 2, 1024, 2, 64], &axes);
    let described = described.with_attributes([("model".to_owned(), "m".to_owned())].into()).unwrap();
    let bytes = kv(&described);
    for codec in ["planes+zstd", "planes+lz4", "zstd:1"] {
        let options = PutOptions { ttl: Some(60), consistency: Some(Consistency::Weak), ..PutOptions::default() };
        let answer = client.put_encoded("ns/kv", &described, bytes.clone(), codec, options).await.unwrap();
        let entry = client.info("ns/kv").await.unwrap();
        assert_eq!((entry.version, entry.codec.as_str(), entry.consistency), (answer.version, codec, Consistency::Weak));
        assert!(entry.axes == axes && entry.attributes["model"] == "m" && entry.expires_ms.is_some());
        // As small as if the server had encoded it.
        client.put("ns/raw", &described, bytes.clone(), PutOptions { codec: Some(codec.into()), ..PutOptions::default() }).await.unwrap();
        assert_eq!(entry.stored_bytes, client.info("ns/raw").await.unwrap().stored_bytes, "{codec}");
        assert!(client.get("ns/kv", &GetOptions::default()).await.unwrap().into_bytes().await.unwrap() == bytes);
        assert!(client.get_encoded("ns/kv", &GetOptions::default()).await.unwrap().1 == bytes);
    }
    let absent = PutOptions { condition: Some(Condition::Absent), ..PutOptions::default() };
    let error = client.put_encoded("ns/kv", &described, bytes.clone(), "zstd", absent).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Exists));
    let error = client.put_encoded("ns/kv", &described, bytes.clone(), "snappy", PutOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::UnknownCodec));
    let error = client.put_encoded("ns/kv", &described, bytes[1..].to_vec(), "zstd", PutOptions::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::Source(_)), "{error}");
    // Small ones, empty ones and noise.
    for (shape, fill) in [(vec![0u64, 3], 0u8), (vec![1], 1), (vec![40_000], 2), (vec![3_000_000], 3)] {
        let tensor = spec(DType::UInt8, &shape, &[]);
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(fill));
            (state >> 33) as u8
        };
        let bytes: Vec<u8> = (0..tensor.nbytes()).map(|_| noise()).collect();
        client.put_encoded("ns/other", &tensor, bytes.clone(), "lz4", PutOptions::default()).await.unwrap();
        let (got, all) = client.get_encoded("ns/other", &GetOptions::default()).await.unwrap();
        assert!(got == tensor && all == bytes, "{shape:?}");
    }
    assert_eq!(store.ledger().used(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_encode_for_a_client_without_a_runtime() {
    let (_store, _, url) = start().await;
    let client = Client::connect(&url).await.unwrap();
    let text = br#"{"model":"m","block_tokens":16,"parts":[{"dtype":"bfloat16","axes":["layer","token","dim"]}]}"#;
    let kv_spec = KvSpec::from_json(text).unwrap();
    let hash = client.put_kv_spec(&kv_spec).await.unwrap().hash;
    let tensor = spec(DType::BFloat16, &[4, 2048, 256], &[]);
    let bytes = kv(&tensor);
    let options = PutOptions {
        shape: Some(tensor.shape().to_vec()),
        dtype: Some(tensor.dtype()),
        kv_spec: Some(hash.clone()),
        ..PutOptions::default()
    };
    let (put, at, metadata) = (bytes.clone(), url.clone(), options.to_metadata());
    let answer = tokio::task::spawn_blocking(move || {
        let client = blocking::Client::new(&at, &ConnectOptions::default(), || true).unwrap();
        client.put_encoded("ns/kv", metadata, ("planes+zstd", Some(&kv_spec.canonical())), &put, None)
    });
    assert!(answer.await.unwrap().unwrap().created);
    let entry = client.info("ns/kv").await.unwrap();
    // The kv spec gave its axes names, on both sides.
    assert_eq!((entry.axes, entry.kv_spec), (["layer", "token", "dim"].map(String::from).to_vec(), Some(hash.clone())));
    let options = GetOptions { kv_spec: Some(hash.clone()), ..GetOptions::default() };
    assert!(client.get_encoded("ns/kv", &options).await.unwrap().1 == bytes);
    let options = PutOptions { kv_spec: Some(hash), ..PutOptions::default() };
    client.put_encoded("ns/async", &tensor, bytes.clone(), "planes+zstd", options).await.unwrap();
    assert!(client.get("ns/async", &GetOptions::default()).await.unwrap().into_bytes().await.unwrap() == bytes);
}

/// Chunks of 64 KiB of bytes, so encoded.
const CHUNK: usize = 64 << 10;

fn zstd(raw: &[u8]) -> Vec<u8> {
    let chain: sira_codec::Chain = "zstd".parse().unwrap();
    match chain.encode(raw, sira_codec::ChunkContext::new(DType::UInt8, &[raw.len() as u64], &[0])).unwrap() {
        sira_codec::Encoded::Bytes(bytes) => bytes,
        sira_codec::Encoded::Raw => panic!("bytes that do not compress"),
    }
}

/// Puts chunks as they are given, with what is said of the tensor and of each message.
async fn put(store: &StorageClient, encoded: &str, messages: &[(&str, &[u8])]) -> Result<Vec<u8>, Status> {
    put_of(store, &[("sira.shape", "[131072]"), ("sira.dtype", "uint8"), ("sira.encoded", encoded)], messages).await
}

async fn put_of(store: &StorageClient, options: &[(&str, &str)], messages: &[(&str, &[u8])]) -> Result<Vec<u8>, Status> {
    let metadata = options.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    let schema = Schema::new(vec![Field::new("tensor", DataType::UInt8, false)]).with_metadata(metadata.collect::<HashMap<_, _>>());
    let descriptor = FlightDescriptor::new_path(vec!["ns".into(), "k".into()]);
    let first = FlightData::from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default())).with_descriptor(descriptor);
    let mut all = vec![first];
    for (said, rows) in messages {
        all.push(batch(rows).with_app_metadata(said.as_bytes().to_vec()));
    }
    let frames = all.iter().map(|message| {
        let message = message.encode_to_vec();
        Ok::<_, Status>(Frame::data(Bytes::from([&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat())))
    });
    sira_flight::fuzz::put(store, Body::new(StreamBody::new(stream::iter(frames.collect::<Vec<_>>())))).await
}

fn batch(rows: &[u8]) -> FlightData {
    let column = arrow_array::RecordBatch::try_new(
        Arc::new(Schema::new(vec![Carrier::of(&spec(DType::UInt8, &[rows.len() as u64], &[]), 1 << 30).field])),
        vec![Arc::new(arrow_array::UInt8Array::from(rows.to_vec()))],
    );
    let messages = arrow_flight::utils::batches_to_flight_data(column.as_ref().unwrap().schema_ref(), &[column.as_ref().unwrap().clone()]);
    messages.unwrap().remove(1)
}

const TWO: &str = r#"{"chunk_shape":[65536],"chains":["none","zstd"]}"#;

fn said(chunks: &[(u32, usize)]) -> String {
    let chunks: Vec<_> = chunks.iter().map(|(chain, bytes)| format!(r#"{{"chain":{chain},"bytes":{bytes}}}"#)).collect();
    format!(r#"{{"chunks":[{}]}}"#, chunks.join(","))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_in_any_messages_are_a_tensor() {
    let (store, _, url) = start().await;
    let raw = [vec![7u8; CHUNK], (0..CHUNK as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()].concat();
    let first = zstd(&raw[..CHUNK]);
    let bytes = [&first[..], &raw[CHUNK..]].concat();
    let all = said(&[(1, first.len()), (0, CHUNK)]);
    let (one, other) = (said(&[(1, first.len())]), said(&[(0, CHUNK)]));
    for messages in [
        vec![(all.as_str(), &bytes[..])],
        vec![(all.as_str(), &bytes[..3]), ("", &bytes[3..70]), ("", &bytes[70..])],
        vec![(one.as_str(), &first[..]), (other.as_str(), &raw[CHUNK..])],
        vec![(one.as_str(), &first[..1]), (other.as_str(), &bytes[1..])],
    ] {
        put(&store, TWO, &messages).await.unwrap();
        let (url, ticket) = (url.clone(), ticket("ns/k"));
        let (encoded, got) = tokio::task::spawn_blocking(move || get(&url, ticket)).await.unwrap();
        assert!(encoded && got.unwrap() == raw);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_put_is_said_and_leaves_nothing() {
    let (store, backend, _) = start().await;
    let before = backend.stats().await.unwrap().values;
    let raw = vec![7u8; 2 * CHUNK];
    let chunk = zstd(&raw[..CHUNK]);
    let good = said(&[(1, chunk.len()), (1, chunk.len())]);
    let bytes = [&chunk[..], &chunk].concat();
    let mut other = bytes.clone();
    other[10] ^= 0x55;
    let checksum = format!(r#"{{"chunks":[{{"chain":1,"bytes":{},"checksum":"0123456789abcdef"}}]}}"#, chunk.len());
    let many = format!(r#"{{"chunks":[{}]}}"#, vec![r#"{"chain":0,"bytes":1}"#; 65_537].join(","));
    let encoding = |chunk_shape: &str, chains: &str| format!(r#"{{"chunk_shape":{chunk_shape},"chains":{chains}}}"#);
    for (encoded, messages, reason) in [
        (
            TWO.to_owned(),
            vec![(good.as_str(), &bytes[..bytes.len() - 1])],
            "SIRA_INCOMPLETE: the stream ended 1 bytes before the end of a chunk",
        ),
        (TWO.into(), vec![(good.as_str(), &chunk[..])], "1 chunks before the last announced"),
        (TWO.into(), vec![(&said(&[(1, chunk.len())]), &chunk[..])], "SIRA_INCOMPLETE: the tensor has 2 chunks; 1 came"),
        (TWO.into(), vec![], "the tensor has 2 chunks; 0 came"),
        (TWO.into(), vec![("", &bytes[..])], "bytes came that no chunk announced"),
        (TWO.into(), vec![(good.as_str(), &[&bytes[..], &[1]].concat())], "bytes came that no chunk announced"),
        (TWO.into(), vec![(&said(&[(1, chunk.len()); 3]), &[&bytes[..], &chunk].concat())], "more than the 2 chunks of the tensor came"),
        (TWO.into(), vec![(&said(&[(0, chunk.len())]), &chunk[..])], "SIRA_BAD_TENSOR: chunk 0 of chain none"),
        (TWO.into(), vec![(&said(&[(1, 65_537)]), &raw[..])], "65537 bytes, where 65536 are raw"),
        (TWO.into(), vec![(&said(&[(1, 0)]), &raw[..])], "0 bytes, where 65536 are raw"),
        (TWO.into(), vec![(&said(&[(2, 9)]), &raw[..])], "chunk 0: chain 2 of 2"),
        (TWO.into(), vec![(&said(&[(1, usize::MAX)]), &raw[..])], "18446744073709551615 bytes"),
        (TWO.into(), vec![(&checksum, &chunk[..])], "0123456789abcdef was announced"),
        (TWO.into(), vec![(good.as_str(), &other[..])], "SIRA_BAD_TENSOR: chunk 0: it does not decode with zstd"),
        (TWO.into(), vec![("{}", &bytes[..])], "SIRA_BAD_REQUEST: app_metadata of a put in chunks: missing field `chunks`"),
        (TWO.into(), vec![(many.as_str(), &bytes[..])], "at most 1048576 are read"),
        ("zstd".into(), vec![], "SIRA_BAD_REQUEST: sira.encoded"),
        (encoding("[65536]", r#"["zstd","lz4"]"#), vec![], "SIRA_BAD_REQUEST: 2 chains"),
        (encoding("[65536]", "[]"), vec![], "0 chains"),
        (encoding("[65536]", r#"["none","snappy"]"#), vec![], "SIRA_UNKNOWN_CODEC"),
        (encoding("[0]", r#"["zstd"]"#), vec![], "SIRA_BAD_TENSOR: chunk_shape [0]"),
        (encoding("[256,256]", r#"["zstd"]"#), vec![], "SIRA_BAD_TENSOR: chunk_shape [256, 256]"),
        (encoding("[1]", r#"["zstd"]"#), vec![], "on average a chunk has 32768 or more"),
    ] {
        let refused = put(&store, &encoded, &messages).await.unwrap_err();
        assert!(refused.message().contains(reason), "{} is not {reason}", refused.message());
        assert_eq!(store.list("", None, 10).unwrap().0.len(), 0);
    }
    for (options, reason) in [
        (&[("sira.encoded", TWO)][..], "give shape and dtype"),
        (&[("sira.shape", "[100]"), ("sira.dtype", "uint8"), ("sira.encoded", TWO)], "SIRA_BAD_REQUEST: a tensor of 100 bytes"),
        (&[("sira.shape", "[131072]"), ("sira.dtype", "uint8"), ("sira.codec", "lz4"), ("sira.encoded", TWO)], "codec is lz4, and"),
        (
            // A slab of all rows would have to be decoded before the first is whole.
            &[
                ("sira.shape", "[1024,65536]"),
                ("sira.dtype", "uint8"),
                ("sira.encoded", r#"{"chunk_shape":[1024,1024],"chains":["zstd"]}"#),
            ],
            "67108864 bytes must be decoded before the first rows are whole",
        ),
    ] {
        let refused = put_of(&store, options, &[]).await.unwrap_err();
        assert!(refused.message().contains(reason), "{} is not {reason}", refused.message());
    }
    // What was stored of those that were refused is swept.
    for _ in 0..1000 {
        if backend.stats().await.unwrap().values == before && store.ledger().used() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("{:?} values are left, {} bytes in the ledger", backend.stats().await.unwrap().values, store.ledger().used());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_does_not_decode_is_found_by_whoever_reads_it() {
    let (store, _, url) = start().await;
    let client = Client::connect(&url).await.unwrap();
    let good = zstd(&[7; CHUNK]);
    let others = [
        ("no frame", vec![1u8; 100]),
        ("one of another length", zstd(&[7; CHUNK - 1])),
        ("one with more behind it", [&good[..], &[0]].concat()),
        ("one that is cut", good[..good.len() - 1].to_vec()),
    ];
    for (what, bad) in others {
        let announced = said(&[(1, good.len()), (1, bad.len())]);
        put(&store, TWO, &[(&announced, &[&good[..], &bad].concat())]).await.unwrap();
        let read = match client.get("ns/k", &GetOptions::default()).await {
            Ok(stream) => stream.into_bytes().await.unwrap_err(),
            Err(error) => error,
        };
        assert!(
            read.code() == Some(Code::Corrupt) && read.to_string().contains("tensor ns/k") && read.to_string().contains("chunk 1"),
            "{what}: {read}"
        );
        let read = client.get_encoded("ns/k", &GetOptions::default()).await.unwrap_err();
        assert!(read.code() == Some(Code::Corrupt) && read.to_string().contains("chunk 1: it does not decode with zstd"), "{what}: {read}");
        let (url, ticket) = (url.clone(), ticket("ns/k"));
        let (_, read) = tokio::task::spawn_blocking(move || get(&url, ticket)).await.unwrap();
        assert_eq!(read.unwrap_err().code(), Some(Code::Corrupt), "{what}");
        // What does not touch it is well.
        let slice = [("0".to_owned(), [0, 65_536])].into();
        assert!(client.get_encoded("ns/k", &GetOptions { slice, ..GetOptions::default() }).await.unwrap().1 == vec![7; CHUNK]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_was_damaged_is_not_sent() {
    let (store, backend, url) = start().await;
    let client = Client::connect(&url).await.unwrap();
    let tensor = spec(DType::BFloat16, &[1000, 1000], &[]);
    client.put("ns/kv", &tensor, kv(&tensor), PutOptions::default()).await.unwrap();
    let name = backend.list_keys("c/", None, 1).await.unwrap().remove(0);
    let mut stored = backend.get(&name, None).await.unwrap().unwrap().to_vec();
    stored[1000] ^= 1;
    backend.put(&name, stored.into(), BackendOptions::default()).await.unwrap();
    let error = client.get_encoded("ns/kv", &GetOptions::default()).await.unwrap_err();
    assert!(error.code() == Some(Code::Corrupt) && error.to_string().contains("its checksum does not match"), "{error}");
    assert_eq!(store.stats().await.operations.corrupt, 1);
}

/// A KV cache of the model of the calibration that the store's tests have, in whose covariance such values are likely.
fn tiny(tokens: u64) -> TensorSpec {
    let attributes = [("model", "tiny"), ("rope", "half"), ("rope_theta", "10000"), ("rope_dim", "8")];
    let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    spec(DType::BFloat16, &[2, 2, tokens, 2, 8], &["layer", "kv", "token", "head", "dim"]).with_attributes(attributes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lossy_codecs_give_the_same_here_and_there_with_the_calibration_that_they_name() {
    let (_store, _, url) = start().await;
    let client = Client::connect(&url).await.unwrap();
    let artefact = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../store/golden/tiny.calib")).unwrap();
    let hash = sira_tensor::kv::hash(&artefact);
    let described = spec(DType::UInt8, &[artefact.len() as u64], &[]);
    let calibrated = format!("kvtc:step=0.05@{hash}");
    let tensor = tiny(2000);
    let bytes = kv(&tensor);
    let missing = client.put_encoded("ns/kv", &tensor, bytes.clone(), &calibrated, PutOptions::default()).await.unwrap_err();
    assert_eq!(missing.code(), Some(Code::NotFound), "{missing}");
    client.put(&format!("calibration/{hash}"), &described, artefact, PutOptions::default()).await.unwrap();
    for codec in [calibrated.as_str(), "kvq:high", "int8", "fp8"] {
        let options = || PutOptions { codec: Some(codec.into()), ..PutOptions::default() };
        client.put("ns/there", &tensor, bytes.clone(), options()).await.unwrap();
        client.put_encoded("ns/here", &tensor, bytes.clone(), codec, PutOptions::default()).await.unwrap();
        let (there, here) = (client.info("ns/there").await.unwrap(), client.info("ns/here").await.unwrap());
        assert!(here.lossy && here.codec == there.codec && here.stored_bytes == there.stored_bytes, "{codec}: {here:?}");
        assert!(here.relative_rmse.is_empty() && !there.relative_rmse.is_empty());
        let plain = client.get("ns/there", &GetOptions::default()).await.unwrap().into_bytes().await.unwrap();
        assert!(plain != bytes, "{codec} loses something");
        for key in ["ns/there", "ns/here"] {
            assert!(client.get(key, &GetOptions::default()).await.unwrap().into_bytes().await.unwrap() == plain, "{codec} {key}");
            // By a client that has no calibration yet, with a runtime and without.
            let other = Client::connect(&url).await.unwrap();
            assert!(other.get_encoded(key, &GetOptions::default()).await.unwrap().1 == plain, "{codec} {key}");
            let (url, ticket) = (url.clone(), ticket(key));
            let (encoded, got) = tokio::task::spawn_blocking(move || get(&url, ticket)).await.unwrap();
            assert!(encoded && got.unwrap() == plain, "{codec} {key}");
            let exact = GetOptions { exact: Some(true), ..GetOptions::default() };
            assert_eq!(other.get_encoded(key, &exact).await.unwrap_err().code(), Some(Code::NotFound));
        }
    }
}
