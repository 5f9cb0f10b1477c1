//! Gets into the caller's memory and puts from it, against a small Flight server that reads and writes Arrow with arrow-flight's own code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::{start, start_at, start_at_socket};
use futures::stream;
use sira_client::{
    Client, ClientError, Code, Condition, ConnectOptions, DType, GetManyOptions, GetOptions, PutEntry, PutOptions, TensorSpec, blocking,
};

#[tokio::test]
async fn a_put_from_memory_is_what_arrow_reads() {
    let (fake, client) = start().await;
    // Beyond the server's windows, and not a multiple of 8.
    for len in [0usize, 1, 8, 70_001, 5_000_001, 40_000_003] {
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let spec = TensorSpec::new(DType::Bool, vec![len as u64]).unwrap().with_axes(vec!["token".into()]).unwrap();
        let options = PutOptions { ttl: Some(60), condition: Some(Condition::Absent), ..PutOptions::default() };
        let answer = client.put_from("ns/a/b", &spec, &bytes, options).await.unwrap();
        assert_eq!((answer.key.as_str(), answer.version, answer.created), ("ns/a/b", 3, true));
        let (metadata, stored) = fake.put.lock().take().unwrap();
        assert!(stored == bytes, "{len}: other bytes");
        assert_eq!((metadata["sira.ttl"].as_str(), metadata["sira.axes"].as_str()), ("60", r#"["token"]"#));
    }
    let spec = TensorSpec::new(DType::UInt8, vec![100]).unwrap();
    for len in [0, 99, 101] {
        let error = client.put_from("ns/a", &spec, &vec![0; len], PutOptions::default()).await.unwrap_err();
        assert!(matches!(&error, ClientError::Source(_)), "{len}: {error}");
    }
    let error = client.put_from("ns/taken", &spec, &[0; 100], PutOptions::default()).await.unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), (Some(Code::Exists), "SIRA_EXISTS: ns/taken: the key exists"));
    let large = TensorSpec::new(DType::UInt8, vec![50_000_000]).unwrap();
    let error = client.put_from("ns/taken", &large, &vec![0; 50_000_000], PutOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Exists), "{error}");
    assert_eq!(client.put_from("nokey", &spec, &[0; 100], PutOptions::default()).await.unwrap_err().code(), Some(Code::BadKey));
}

#[tokio::test]
async fn memory_goes_over_a_unix_socket_too() {
    let folder = tempfile::tempdir().unwrap();
    let (fake, client) = start_at_socket(&folder.path().join("socket")).await;
    let bytes: Vec<u8> = (0..5_000_001).map(|i| (i % 251) as u8).collect();
    let spec = TensorSpec::new(DType::UInt8, vec![bytes.len() as u64]).unwrap();
    client.put_from("ns/a", &spec, &bytes, PutOptions::default()).await.unwrap();
    assert!(fake.put.lock().take().unwrap().1 == bytes);
    let options = GetOptions { slice: [("token".to_owned(), [1, 3])].into(), ..GetOptions::default() };
    let mut out = [0xff; 16];
    client.get_into("ns/a", &options, &mut out).await.unwrap();
    assert_eq!(out[..], (0..8u16).flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
}

#[tokio::test]
async fn a_get_fills_memory_of_its_size_and_no_other() {
    let (_fake, client) = start().await;
    let options = GetOptions { slice: [("token".to_owned(), [1, 3])].into(), ..GetOptions::default() };
    let expected: Vec<u8> = (0..8u16).flat_map(u16::to_le_bytes).collect();
    for _ in 0..3 {
        let mut out = [0xff; 16];
        let spec = client.get_into("ns/a", &options, &mut out).await.unwrap();
        assert_eq!((spec.dtype(), spec.shape(), &out[..]), (DType::BFloat16, &[2, 2, 2][..], &expected[..]));
    }
    for len in [0, 15, 17] {
        let mut out = vec![0xff; len];
        let error = client.get_into("ns/a", &options, &mut out).await.unwrap_err();
        let said = format!("SIRA_BAD_TENSOR: the tensor has 16 bytes, the buffer for it {len}");
        assert_eq!((error.code(), error.to_string()), (Some(Code::BadTensor), said));
        assert!(out.iter().all(|&byte| byte == 0xff), "written before it was compared");
    }
    let whole = GetOptions::default();
    for (key, len) in [("ns/short", 24), ("ns/long", 8)] {
        let error = client.get_into(key, &whole, &mut vec![0; len]).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Incomplete), "{key}: {error}");
    }
    client.get_into("ns/empty", &whole, &mut []).await.unwrap();
    let error = client.get_into("ns/none", &whole, &mut []).await.unwrap_err();
    assert_eq!(error.to_string(), "SIRA_NOT_FOUND: ns/none: no such key");
}

#[tokio::test]
async fn many_keys_fill_a_buffer_each() {
    let (_fake, client) = start().await;
    let noise =
        |seed: u32, len: usize| -> Vec<u8> { (0..len as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect() };
    let lens = [0usize, 1, 64, 70_001, 3_000_001, 5, 1 << 20, 32_768];
    let entry =
        |i: usize| PutEntry::new(format!("ns/{i}"), TensorSpec::new(DType::UInt8, vec![lens[i] as u64]).unwrap(), noise(i as u32, lens[i]));
    client.put_many(stream::iter((0..lens.len()).filter(|&i| i != 5).map(entry).collect::<Vec<_>>())).await.unwrap();
    let keys: Vec<String> = (0..lens.len()).map(|i| format!("ns/{i}")).collect();
    let mut buffers: Vec<Vec<u8>> = lens.iter().map(|&len| vec![0; len]).collect();
    buffers[2].truncate(63);
    buffers[3].push(0);
    let filled = client.get_many_into(&keys, &GetManyOptions::default(), &mut buffers).await.unwrap();
    assert_eq!(filled.len(), lens.len());
    for (i, key) in filled.iter().enumerate() {
        match key {
            Ok(key) => assert!(key.parts[0].1.nbytes() == lens[i] as u64 && buffers[i] == noise(i as u32, lens[i]), "{i}"),
            Err(error) if i == 5 => assert_eq!(error.code, Code::NotFound),
            Err(error) => assert!(error.code == Code::BadTensor && (i == 2 || i == 3), "{i}: {error}"),
        }
    }
    let error = client.get_many_into(&keys, &GetManyOptions::default(), &mut buffers[1..]).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::BadRequest));
    assert!(client.get_many_into([""; 0], &GetManyOptions::default(), &mut [[0; 0]; 0]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_share_a_client_that_blocks() {
    let (fake, url) = start_at().await;
    let client = blocking::Client::new(&url, &ConnectOptions::default(), || true).unwrap();
    let ticket = br#"{"v":1,"key":"ns/a","slice":{"token":[1,3]}}"#;
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::task::spawn_blocking(move || {
                for _ in 0..20 {
                    let tensor = client.get(ticket, Some(Instant::now() + Duration::from_secs(60))).unwrap();
                    let mut out = vec![0; tensor.spec().nbytes() as usize];
                    tensor.read_into(&mut out).unwrap();
                    assert_eq!(out, (0..8u16).flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.await.unwrap();
    }
    let bytes: Vec<u8> = (0..9_000_001).map(|i| (i % 241) as u8).collect();
    let metadata = HashMap::from([("sira.shape".to_owned(), "[9000001]".to_owned()), ("sira.dtype".to_owned(), "uint8".to_owned())]);
    let sent = bytes.clone();
    tokio::task::spawn_blocking(move || client.put("ns/k", metadata, &sent, None)).await.unwrap().unwrap();
    assert!(fake.put.lock().take().unwrap().1 == bytes);
}

#[tokio::test]
async fn a_get_given_up_leaves_the_client_of_use() {
    let (_fake, url) = start_at().await;
    let client = Client::connect(&url).await.unwrap();
    let options = GetOptions { slice: [("token".to_owned(), [1, 3])].into(), ..GetOptions::default() };
    let mut out = [0; 16];
    for micros in [0, 10, 50, 100, 200, 400, 800, 1600] {
        // Whether it comes in time or not: the buffer is free again, and the next get is none the worse.
        let _ = tokio::time::timeout(Duration::from_micros(micros), client.get_into("ns/a", &options, &mut out)).await;
        client.get_into("ns/a", &options, &mut out).await.unwrap();
    }
}
