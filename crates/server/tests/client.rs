//! The Rust client against the program itself: batches, parts, kv specs, namespaces, servers that stop answering, and the client's examples.

#![allow(clippy::unwrap_used)] // clippy.toml allows it within #[test] functions, not in their helpers

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{TryStreamExt, stream};
use sira_client::{
    Client, ClientError, Code, Condition, DType, GetManyOptions, GetOptions, KvSpec, LookupOptions, Mode, PartData, Policy, PolicyOrigin,
    PutEntry, PutOptions, RouteOptions, TensorSpec,
};

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;
#[allow(dead_code, reason = "its `main` is for `cargo run --example`")]
#[path = "../../client/examples/kv_blocks.rs"]
mod kv_blocks;
#[allow(dead_code, reason = "its `main` is for `cargo run --example`")]
#[path = "../../client/examples/put_get.rs"]
mod put_get;
#[allow(dead_code, reason = "its `main` is for `cargo run --example`")]
#[path = "../../client/examples/stream_file.rs"]
mod stream_file;

use common::Server;

impl Server {
    /// Stops it, and waits until every thread has stopped: the signal alone is only on its way.
    fn suspend(&self) {
        self.signal("STOP");
        let stopped = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).unwrap().contains(") T ");
        let tasks = || std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap().map(Result::unwrap);
        while !tasks().all(stopped) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn u8s(len: usize) -> TensorSpec {
    TensorSpec::new(DType::UInt8, vec![len as u64]).unwrap()
}

/// Bytes that are others for each seed.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| ((i + seed as u32).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test]
async fn the_examples_run() {
    let server = Server::alone();
    put_get::run(&server.url).await.unwrap();
    kv_blocks::run(&server.url).await.unwrap();
    stream_file::run(&server.url).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tensor_comes_over_several_connections() {
    let server = Server::alone();
    let client = Client::connect(&server.url).await.unwrap();
    let spec = TensorSpec::new(DType::UInt16, vec![50, 100_000]).unwrap().with_axes(vec!["layer".into(), String::new()]).unwrap();
    let bytes = noise(1, 10_000_000);
    client.put("large/x", &spec, bytes.clone(), PutOptions::default()).await.unwrap();
    let whole = GetOptions::default();
    let rows = GetOptions { slice: [("0".to_owned(), [3, 40]), ("1".to_owned(), [10, 90_000])].into(), ..GetOptions::default() };
    let cut: Vec<u8> = (3..40).flat_map(|row| bytes[row * 200_000..][20..180_000].to_vec()).collect();
    for streams in [1, 2, 5, 64] {
        let (got, all) = client.get_parallel("large/x", &whole, streams).await.unwrap();
        assert!(got == spec && all == bytes, "{streams} streams");
        let mut out = vec![0; bytes.len()];
        assert_eq!(client.get_parallel_into("large/x", &whole, streams, &mut out).await.unwrap(), spec);
        assert!(out == bytes, "{streams} streams into a buffer");
        assert!(client.get_parallel("large/x", &rows, streams).await.unwrap().1 == cut, "{streams} streams of a slice");
    }
    let code = |error: ClientError| error.code();
    for streams in [0, 65] {
        assert_eq!(client.get_parallel("large/x", &whole, streams).await.map_err(code), Err(Some(Code::BadRequest)));
    }
    for streams in [1, 4] {
        assert_eq!(client.get_parallel_into("large/x", &whole, streams, &mut [0; 9]).await.map_err(code), Err(Some(Code::BadTensor)));
        assert_eq!(client.get_parallel("large/none", &whole, streams).await.map_err(code), Err(Some(Code::NotFound)));
        let other = GetOptions { version: Some(9), ..GetOptions::default() };
        assert_eq!(client.get_parallel("large/x", &other, streams).await.map_err(code), Err(Some(Code::Stale)));
    }
    // One that has no more elements than this.
    client.put("large/small", &u8s(3), vec![1, 2, 3], PutOptions::default()).await.unwrap();
    assert_eq!(&client.get_parallel("large/small", &whole, 4).await.unwrap().1[..], [1, 2, 3]);
}

#[tokio::test]
async fn many_keys_are_put_found_got_and_deleted() {
    let server = Server::alone();
    let client = Client::connect(&server.url).await.unwrap();
    // Inline in their records, in one chunk, in several chunks and messages; none of a length that Arrow would not pad.
    let lens = [0, 1, 31_000, 70_001, 1 << 20, 9_000_003];
    let entries = |condition| {
        stream::iter(
            (0..lens.len()).map(move |i| PutEntry { condition, ..PutEntry::new(format!("many/{i}"), u8s(lens[i]), noise(i, lens[i])) }),
        )
    };
    let put = client.put_many(entries(None)).await.unwrap();
    assert!(put.iter().all(|result| result.as_ref().is_ok_and(|answer| answer.created)), "{put:?}");
    let again = client.put_many(entries(Some(Condition::Absent))).await.unwrap();
    assert!(again.iter().all(|result| result.as_ref().is_err_and(|error| error.code == Code::Exists)), "{again:?}");
    let twice = [PutEntry::new("many/twice", u8s(1), vec![1]), PutEntry::new("many/twice", u8s(2), vec![2, 2])];
    let twice = client.put_many(stream::iter(twice)).await.unwrap();
    assert_eq!(twice.iter().map(|result| result.as_ref().unwrap().version).collect::<Vec<_>>(), [1, 2]);

    let mut keys: Vec<String> = (0..lens.len()).map(|i| format!("many/{i}")).collect();
    keys.insert(3, "many/none".into());
    let lookup = client.exists_many(&keys, &LookupOptions::default()).await.unwrap();
    assert_eq!((lookup.exists, lookup.leading), (vec![true, true, true, false, true, true, true], 3));
    let fetched = client.get_many(&keys, &GetManyOptions::default()).await.unwrap().collect().await.unwrap();
    let mut buffers: Vec<Vec<u8>> = [0, 1, 31_000, 7, 70_001, 1 << 20, 9_000_003].map(|len| vec![0; len]).into();
    let filled = client.get_many(&keys, &GetManyOptions::default()).await.unwrap().read_into(&mut buffers).await.unwrap();
    for (at, key) in fetched.into_iter().enumerate() {
        let i = if at > 3 { at - 1 } else { at };
        match key {
            Ok(mut key) => {
                assert!(key.version == 1 && filled[at].is_ok());
                assert!(buffers[at] == noise(i, lens[i]) && key.parts.remove(0).into_bytes() == buffers[at], "{at}");
            }
            Err(error) => assert_eq!((at, error.code, filled[at].as_ref().unwrap_err().code), (3, Code::NotFound, Code::NotFound)),
        }
    }

    let listed: Vec<String> = client.list_all("many/").map_ok(|entry| entry.key).try_collect().await.unwrap();
    assert_eq!(listed.len(), lens.len() + 1);
    let deleted = client.delete_many(["many/0", "many/none", "many/1"]).await.unwrap();
    assert_eq!((deleted.deleted, deleted.missing, deleted.failed), (2, vec!["many/none".to_owned()], vec![]));
    let would = client.delete_prefix("many/", true).await.unwrap();
    let bytes: usize = lens[2..].iter().sum();
    assert_eq!((would.keys, would.bytes), (5, bytes as u64 + 2));
    assert_eq!(client.delete_prefix("many/", false).await.unwrap(), would);
    assert_eq!(client.delete_prefix("many/", true).await.unwrap().keys, 0);
    assert_eq!(client.delete_prefix("many", true).await.unwrap_err().code(), Some(Code::BadRequest));
}

#[tokio::test]
async fn parts_are_one_key_and_lists_have_pages() {
    let server = Server::alone();
    let client = Client::connect(&server.url).await.unwrap();
    let values = TensorSpec::new(DType::Float8E4M3Fn, vec![16, 100]).unwrap();
    let scales = TensorSpec::new(DType::Float32, vec![16]).unwrap();
    let parts =
        vec![("k".to_owned(), values.clone(), Bytes::from(noise(1, 1600))), ("k_scale".to_owned(), scales, Bytes::from(noise(2, 64)))];
    let options = PutOptions { attributes: [("of".to_owned(), "layer 3".to_owned())].into(), ..PutOptions::default() };
    assert!(client.put_parts("kv/a", parts.clone(), options.clone()).await.unwrap().created);
    let entry = client.info("kv/a").await.unwrap();
    assert_eq!((entry.dtype.as_str(), entry.nbytes, entry.parts[1].name.as_str()), ("parts", 1664, "k_scale"));
    assert_eq!(entry.parts[0].attributes, options.attributes);

    assert_eq!(client.get("kv/a", &GetOptions::default()).await.unwrap_err().code(), Some(Code::HasParts));
    let part = GetOptions { part: Some("k".into()), slice: [("0".to_owned(), [1, 3])].into(), ..GetOptions::default() };
    let tensor = client.get("kv/a", &part).await.unwrap();
    assert_eq!((tensor.spec().dtype(), tensor.spec().shape()), (DType::Float8E4M3Fn, &[2, 100][..]));
    assert!(tensor.into_bytes().await.unwrap() == noise(1, 1600)[100..300]);
    let scale_only = GetManyOptions { parts: Some(vec!["k_scale".into()]), ..GetManyOptions::default() };
    let fetched = client.get_many(["kv/a"], &scale_only).await.unwrap().collect().await.unwrap().remove(0).unwrap();
    assert!(fetched.parts.len() == 1 && fetched.parts[0].pieces.concat() == noise(2, 64));
    let mut swapped = vec![vec![0u8; 1664]];
    let swapped_order = GetManyOptions { parts: Some(vec!["k_scale".into(), "k".into()]), ..GetManyOptions::default() };
    client.get_many(["kv/a"], &swapped_order).await.unwrap().read_into(&mut swapped).await.unwrap().remove(0).unwrap();
    assert!(swapped[0] == [noise(2, 64), noise(1, 1600)].concat());
    let error = client.put_parts("kv/b", vec![parts[0].clone(), parts[0].clone()], PutOptions::default()).await.unwrap_err();
    assert_eq!((error.code(), client.exists("kv/b").await.unwrap()), (Some(Code::BadRequest), None));

    let small = stream::iter((0..2500).map(|i| PutEntry::new(format!("list/{i:04}"), u8s(1), vec![1])));
    assert!(client.put_many(small).await.unwrap().iter().all(Result::is_ok));
    let listed: Vec<String> = client.list_all("list/").map_ok(|entry| entry.key).try_collect().await.unwrap();
    assert!(listed.len() == 2500 && listed.is_sorted());
}

#[tokio::test]
async fn parts_come_from_a_source_and_are_stored_together_or_not_at_all() {
    let server = Server::alone();
    let client = Client::connect(&server.url).await.unwrap();
    let bytes = noise(3, 5_000_003);
    let put = |key: &'static str, pieces: Vec<std::io::Result<Bytes>>, condition| {
        let parts = [("a", 3_000_001), ("none", 0), ("b", 2_000_002)].map(|(name, len)| (name.to_owned(), u8s(len), None)).to_vec();
        client.put_parts_stream(key, parts, stream::iter(pieces), PutOptions { condition, ..PutOptions::default() })
    };
    let pieces = |len: usize| bytes[..len].chunks(700_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>();
    let answer = put("kv/x", pieces(bytes.len()), None).await.unwrap();
    assert_eq!((answer.key.as_str(), answer.version), ("kv/x", 1));
    let got = client.get_many(["kv/x"], &GetManyOptions::default()).await.unwrap().collect().await.unwrap().remove(0).unwrap();
    let got: Vec<(String, Vec<u8>)> = got.parts.into_iter().map(|part| (part.name.clone(), part.into_bytes().to_vec())).collect();
    let expected = [("a", &bytes[..3_000_001]), ("none", &[]), ("b", &bytes[3_000_001..])];
    assert!(got == expected.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));

    assert!(matches!(put("kv/short", pieces(bytes.len() - 1), None).await, Err(ClientError::Source(_))));
    let mut broken = pieces(bytes.len());
    broken.push(Err(std::io::Error::other("the disk")));
    let error = put("kv/broken", broken, None).await.unwrap_err();
    assert!(error.to_string().contains("the disk"), "{error}");
    assert_eq!(put("kv/x", pieces(bytes.len()), Some(Condition::Absent)).await.unwrap_err().code(), Some(Code::Exists));
    let listed: Vec<String> = client.list_all("kv/").map_ok(|entry| entry.key).try_collect().await.unwrap();
    assert_eq!(listed, ["kv/x"]);
}

#[tokio::test]
async fn kv_specs_are_demanded_and_namespaces_governed() {
    let server = Server::alone();
    let client = Client::connect(&server.url).await.unwrap();
    let text = br#"{"model":"m","block_tokens":16,"parts":[{"dtype":"bfloat16","axes":["token","dim"],"shape":[16,8]}]}"#;
    let kv_spec = KvSpec::from_json(text).unwrap();
    let hash = kv_spec.hash();
    let block = |key: &str, rows: u64| {
        let spec = TensorSpec::new(DType::BFloat16, vec![rows, 8]).unwrap();
        PutEntry { kv_spec: Some(hash.clone()), ..PutEntry::new(key, spec, vec![7; rows as usize * 16]) }
    };
    let codes = |results: Vec<Result<_, sira_client::WireError>>| results.into_iter().map(|r| r.err().map(|e| e.code)).collect::<Vec<_>>();
    assert_eq!(codes(client.put_many(stream::iter([block("kv/a", 16)])).await.unwrap()), [Some(Code::UnknownKvSpec)]);
    assert_eq!(client.kv_spec(&hash).await.unwrap_err().code(), Some(Code::UnknownKvSpec));
    assert_eq!(client.put_kv_spec(&kv_spec).await.unwrap().hash, hash);
    assert_eq!(client.kv_spec(&hash).await.unwrap().spec, kv_spec);
    assert_eq!(codes(client.put_many(stream::iter([block("kv/a", 16), block("kv/b", 15)])).await.unwrap()), [None, Some(Code::BadTensor)]);
    assert_eq!(client.info("kv/a").await.unwrap().axes, ["token", "dim"]);
    let other = LookupOptions { kv_spec: Some("0".repeat(64)), ..LookupOptions::default() };
    let this = LookupOptions { kv_spec: Some(hash.clone()), ..LookupOptions::default() };
    assert_eq!((client.exists_with("kv/a", &this).await.unwrap(), client.exists_with("kv/a", &other).await.unwrap()), (Some(1), None));
    let of_other = GetOptions { kv_spec: other.kv_spec, ..GetOptions::default() };
    assert_eq!(client.get("kv/a", &of_other).await.unwrap_err().code(), Some(Code::NotFound));

    let policy = Policy { mode: Mode::Cache, read_only: true, ..Policy::default() };
    assert_eq!(client.set_namespace("kv", policy.clone()).await.unwrap().policy, policy);
    let error = client.put("kv/c", &u8s(1), vec![1u8], PutOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::ReadOnly));
    let entries = client.namespaces().await.unwrap();
    let entry = entries.iter().find(|entry| entry.namespace == "kv").unwrap();
    assert_eq!((entry.keys, entry.origin), (1, PolicyOrigin::Action));
    assert_eq!(client.reset_namespace("kv").await.unwrap().policy, Policy::default());
    let route = client.route("kv/c", 1 << 20, &RouteOptions::default()).await.unwrap();
    assert!(!route.backend.is_empty() && !route.inline && !route.steps.is_empty(), "{route:?}");
}

#[tokio::test]
async fn a_server_that_stops_is_a_miss_for_what_was_learnt_to_be_a_cache() {
    let server = Server::alone();
    let client = Client::connect(&server.url).await.unwrap();
    client.set_namespace("kv", Policy { mode: Mode::Cache, ..Policy::default() }).await.unwrap();
    for key in ["kv/a", "ns/a"] {
        client.put(key, &u8s(8), vec![1u8; 8], PutOptions::default()).await.unwrap();
    }
    let endless = LookupOptions { deadline: None.into(), ..LookupOptions::default() };
    assert!(client.exists_with("ns/a", &endless).await.unwrap().is_some());
    // This answer says that it is a cache.
    assert!(client.exists_many(["kv/a"], &endless).await.unwrap().exists[0]);

    server.suspend();
    let begun = Instant::now();
    assert_eq!(client.exists("kv/a").await.unwrap(), None);
    assert!(matches!(client.exists("ns/a").await.unwrap_err(), ClientError::DeadlineExceeded { .. }));
    assert!(matches!(
        client.exists_many(["kv/a", "ns/a"], &LookupOptions::default()).await.unwrap_err(),
        ClientError::DeadlineExceeded { .. }
    ));
    // Wide of the 200 ms each: this machine may be busy. What counts is that nobody waited for the server.
    assert!(begun.elapsed() < Duration::from_secs(5));
    server.signal("CONT");
    assert!(client.exists_with("kv/a", &endless).await.unwrap().is_some(), "a wedged server that goes on is found again");

    let waiting = client.clone();
    server.suspend();
    let cut = tokio::spawn(async move { waiting.exists_with("kv/a", &endless).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.signal("KILL");
    assert_eq!(cut.await.unwrap().unwrap(), None, "the connection broke while it waited");
    assert_eq!(client.exists("kv/a").await.unwrap(), None);
    let error = client.exists("ns/a").await.unwrap_err();
    assert!(matches!(error, ClientError::Transport { .. }), "{error}");
    let part = PartData::new("data", u8s(1), vec![1]);
    let put = client.put_many(stream::iter([PutEntry { key: "kv/a".into(), parts: vec![part], ..PutEntry::default() }])).await;
    assert!(matches!(put.unwrap_err(), ClientError::Transport { .. }));
}
