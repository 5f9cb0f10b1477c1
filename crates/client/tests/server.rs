//! The client against a small Flight server that reads and writes Arrow with arrow-flight's own code: what the client assembles by hand is
//! what any Arrow implementation understands, and the other way round.

mod common;

use bytes::Bytes;
use common::start;
use futures::stream;
use sira_client::{
    Client, ClientError, Code, Condition, DType, GetManyOptions, GetOptions, ListRequest, LookupOptions, ManyEvent, PutEntry, PutOptions,
    TensorSpec,
};
use sira_wire::many::MAX_KEYS;

#[tokio::test]
async fn a_put_is_what_arrow_reads_and_carries_every_option() {
    let (fake, client) = start().await;
    let bytes: Vec<u8> = (0..5_000_001u32).map(|i| (i % 251) as u8).collect();
    let attributes = [("model".to_owned(), "m".to_owned())].into();
    let spec = TensorSpec::new(DType::Bool, vec![5_000_001]).unwrap().with_axes(vec!["token".into()]).unwrap();
    let options = PutOptions {
        codec: Some("zstd".into()),
        ttl: Some(60),
        consistency: Some("strong".parse().unwrap()),
        condition: Some(Condition::Absent),
        attributes,
        ..PutOptions::default()
    };
    let answer = client.put("ns/a/b", &spec, bytes.clone(), options).await.unwrap();
    assert_eq!((answer.key.as_str(), answer.version, answer.created), ("ns/a/b", 3, true));
    let (metadata, stored) = fake.put.lock().take().unwrap();
    assert!(stored == bytes, "other bytes");
    let expected = [
        ("sira.shape", "[5000001]"),
        ("sira.dtype", "bool"),
        ("sira.axes", r#"["token"]"#),
        ("sira.codec", "zstd"),
        ("sira.ttl", "60"),
        ("sira.consistency", "strong"),
        ("sira.if", "absent"),
        ("sira.attr.model", "m"),
    ];
    assert_eq!(metadata, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());

    client.put_reader("ns/r", &spec, std::io::Cursor::new(bytes.clone()), PutOptions::default()).await.unwrap();
    assert!(fake.put.lock().take().unwrap().1 == bytes, "other bytes from a reader");
    let pieces: Vec<_> = bytes.chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    client.put_stream("ns/s", &spec, stream::iter(pieces), PutOptions::default()).await.unwrap();
    assert!(fake.put.lock().take().unwrap().1 == bytes, "other bytes from a stream");
    let scalar = TensorSpec::new(DType::Float64, vec![]).unwrap();
    client.put("ns/0", &scalar, 1.5f64.to_le_bytes().to_vec(), PutOptions::default()).await.unwrap();
    let empty = TensorSpec::new(DType::Float64, vec![3, 0]).unwrap();
    client.put("ns/e", &empty, Bytes::new(), PutOptions::default()).await.unwrap();
    assert!(fake.put.lock().take().unwrap().1.is_empty());
}

#[tokio::test]
async fn a_put_that_is_not_whole_stores_nothing_and_says_why() {
    let (fake, client) = start().await;
    let spec = TensorSpec::new(DType::UInt8, vec![100]).unwrap();
    for len in [0, 99, 101] {
        let error = client.put("ns/a", &spec, vec![0u8; len], PutOptions::default()).await.unwrap_err();
        assert!(matches!(&error, ClientError::Source(_)), "{len}: {error}");
    }
    let broken = stream::iter([Ok(Bytes::from(vec![0; 50])), Err(std::io::Error::other("disk on fire"))]);
    let error = client.put_stream("ns/a", &spec, broken, PutOptions::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "nothing was stored: disk on fire");
    assert!(fake.put.lock().is_none());
    let error = client.put("ns/taken", &spec, vec![0u8; 100], PutOptions::default()).await.unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), (Some(Code::Exists), "SIRA_EXISTS: ns/taken: the key exists"));
    let error = client.put("nokey", &spec, vec![0u8; 100], PutOptions::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::BadKey));
}

#[tokio::test]
async fn a_get_gives_pieces_as_they_come_and_counts_them() {
    let (_fake, client) = start().await;
    let options = GetOptions { slice: [("token".to_owned(), [1, 3])].into(), ..GetOptions::default() };
    let mut tensor = client.get("ns/a", &options).await.unwrap();
    assert_eq!(
        (tensor.spec().dtype(), tensor.spec().shape(), tensor.spec().axes()[0].as_str()),
        (DType::BFloat16, &[2, 2, 2][..], "token")
    );
    let row = |first: u16| (first..first + 4).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    assert_eq!(tensor.next().await.unwrap().unwrap(), row(0));
    assert_eq!(tensor.next().await.unwrap().unwrap(), row(4));
    assert_eq!(tensor.next().await.unwrap(), None);
    let whole = client.get("ns/a", &options).await.unwrap().into_bytes().await.unwrap();
    assert_eq!(whole, [row(0), row(4)].concat());

    let whole = GetOptions::default();
    for key in ["ns/short", "ns/long"] {
        let error = client.get(key, &whole).await.unwrap().into_bytes().await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Incomplete), "{key}: {error}");
    }
    assert!(client.get("ns/empty", &whole).await.unwrap().into_bytes().await.unwrap().is_empty());
    assert_eq!(client.get("ns/none", &whole).await.unwrap_err().code(), Some(Code::NotFound));
}

#[tokio::test]
async fn many_keys_come_back_as_they_were_put() {
    let (fake, client) = start().await;
    let noise =
        |seed: u32, len: usize| -> Vec<u8> { (0..len as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect() };
    let lens = [0usize, 1, 64, 70_001, 3_000_001, 5, 1 << 20, 32_768];
    let entry = move |i: usize| {
        let spec = TensorSpec::new(DType::UInt8, vec![lens[i] as u64]).unwrap();
        PutEntry { condition: (i == 5).then_some(Condition::Absent), ..PutEntry::new(format!("ns/{i}"), spec, noise(i as u32, lens[i])) }
    };
    let bad = PutEntry { key: "nokey".into(), ..entry(1) };
    let results = client.put_many(stream::iter((0..lens.len()).map(entry).chain([bad]))).await.unwrap();
    let codes: Vec<_> = results.iter().map(|result| result.as_ref().err().map(|error| error.code)).collect();
    assert_eq!(codes, [None, None, None, None, None, Some(Code::Exists), None, None, Some(Code::BadKey)]);
    assert_eq!(fake.many.lock().len(), 7);
    assert!(client.put_many(stream::empty()).await.unwrap().is_empty());

    // More than one stream takes.
    let bytes = |i: usize| PutEntry::new(format!("two-streams/{i}"), TensorSpec::new(DType::UInt8, vec![1]).unwrap(), vec![i as u8]);
    let results = client.put_many(stream::iter((0..MAX_KEYS + 3).map(bytes))).await.unwrap();
    assert!(results.iter().enumerate().all(|(i, result)| result.as_ref().unwrap().key == format!("two-streams/{i}")));
    assert_eq!(fake.many.lock()[&format!("two-streams/{}", MAX_KEYS + 2)].1, [[(MAX_KEYS + 2) as u8]]);

    let keys: Vec<String> = (0..lens.len()).map(|i| format!("ns/{i}")).collect();
    let fetched = client.get_many(&keys, &GetManyOptions::default()).await.unwrap().collect().await.unwrap();
    for (i, key) in fetched.into_iter().enumerate() {
        match key {
            Ok(mut key) => assert!(key.parts.remove(0).into_bytes() == noise(i as u32, lens[i]), "{i}"),
            Err(error) => assert_eq!((i, error.code), (5, Code::NotFound)),
        }
    }
    let mut buffers: Vec<Vec<u8>> = lens.iter().map(|&len| vec![0; len]).collect();
    buffers[2].truncate(63);
    buffers[3].push(0);
    let filled = client.get_many(&keys, &GetManyOptions::default()).await.unwrap().read_into(&mut buffers).await.unwrap();
    for (i, key) in filled.iter().enumerate() {
        match key {
            Ok(key) => assert!(key.parts[0].1.nbytes() == lens[i] as u64 && buffers[i] == noise(i as u32, lens[i]), "{i}"),
            Err(error) if i == 5 => assert_eq!(error.code, Code::NotFound),
            Err(error) => assert!(error.code == Code::BadTensor && (i == 2 || i == 3), "{i}: {error}"),
        }
    }
    let error = client.get_many(&keys, &GetManyOptions::default()).await.unwrap().read_into(&mut buffers[1..]).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::BadRequest));
    assert_eq!(client.get_many([""; 0], &GetManyOptions::default()).await.unwrap().next().await.unwrap(), None);
}

#[tokio::test]
async fn parts_are_announced_with_their_options_and_got_by_name() {
    let (fake, client) = start().await;
    let k = TensorSpec::new(DType::Float8E4M3Fn, vec![4, 8]).unwrap().with_axes(vec!["token".into(), "dim".into()]).unwrap();
    let scale = TensorSpec::new(DType::Float32, vec![4]).unwrap().with_attributes([("of".into(), "k".into())].into()).unwrap();
    let parts = vec![("k".to_owned(), k, Bytes::from(vec![1; 32])), ("scale".to_owned(), scale, Bytes::from(vec![2; 16]))];
    let attributes = [("model".to_owned(), "m".to_owned()), ("of".to_owned(), "all".to_owned())].into();
    let options =
        PutOptions { ttl: Some(9), codec: Some("zstd".into()), kv_spec: Some("ab".repeat(32)), attributes, ..PutOptions::default() };
    let answer = client.put_parts("ns/p", parts.clone(), options.clone()).await.unwrap();
    assert_eq!((answer.key.as_str(), answer.version), ("ns/p", 1));
    let item = fake.many.lock()["ns/p"].0.clone();
    assert_eq!((item.ttl, item.kv_spec, item.parts[1].codec.as_deref()), (Some(9), options.kv_spec.clone(), Some("zstd")));
    assert_eq!((item.parts[0].attributes["of"].as_str(), item.parts[1].attributes["of"].as_str()), ("all", "k"));
    let refused = PutOptions { condition: Some(Condition::Absent), ..options };
    assert_eq!(client.put_parts("ns/p", parts, refused).await.unwrap_err().code(), Some(Code::Exists));

    let wanted = GetManyOptions { parts: Some(vec!["scale".into()]), ..GetManyOptions::default() };
    let mut stream = client.get_many(["ns/p"], &wanted).await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        events.push(event);
    }
    assert!(matches!(&events[0], ManyEvent::Key { index: 0, parts: 1, kv_spec: Some(_), .. }));
    assert!(matches!(&events[1], ManyEvent::Part { name, spec, .. } if name == "scale" && spec.dtype() == DType::Float32));
    assert!(matches!(&events[2], ManyEvent::Data { bytes, .. } if *bytes == vec![2u8; 16]));
    assert_eq!((events.len(), &events[3]), (4, &ManyEvent::End { index: 0 }));
}

#[tokio::test]
async fn actions_say_what_the_contract_says() {
    let (_fake, client) = start().await;
    assert_eq!(client.exists("ns/a").await.unwrap(), Some(3));
    assert_eq!(client.exists("ns/none").await.unwrap(), None);
    assert!(client.delete("ns/a", Some(3)).await.unwrap());
    let page = client.list(&ListRequest { prefix: "ns/".into(), limit: Some(2), ..ListRequest::default() }).await.unwrap();
    assert_eq!(page.next.as_deref(), Some("ns/b"));
    assert_eq!(client.stats().await.unwrap()["keys"], 1);
    assert_eq!(client.health().await.unwrap().backends["rocksdb"], "healthy");
    assert_eq!(client.info("ns/a").await.unwrap_err().code(), Some(Code::BadRequest));
    let lookup = client.exists_many(["ns/a", "ns/b", "ns/none"], &LookupOptions::default()).await.unwrap();
    assert_eq!((lookup.exists.as_slice(), lookup.leading), (&[true, true, false][..], 2));
    let error = client.exists_many(["ns/a"], &LookupOptions::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol(_)), "an answer about other keys: {error}");
    assert!(client.exists_many([""; 0], &LookupOptions::default()).await.unwrap().exists.is_empty());
    assert_eq!(client.delete_many(["ns/a", "ns/b"]).await.unwrap().missing, ["ns/b"]);
    let sum = client.delete_prefix("ns/", true).await.unwrap();
    assert_eq!((sum.keys, sum.bytes, sum.next), (11, 102, None));
    let error = client.delete_prefix("ns/loop", false).await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol(_)), "pages that never end: {error}");
    assert!(client.namespaces().await.unwrap().is_empty());
}

#[tokio::test]
async fn no_server_is_said_with_its_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Client::connect(&url).await.unwrap_err().to_string();
    assert!(error.contains(&url) && error.contains("refused"), "{error}");
}
