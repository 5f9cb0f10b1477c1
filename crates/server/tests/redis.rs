//! A server whose tensors and records lie in Redis.

#![allow(clippy::unwrap_used, clippy::panic)] // clippy.toml allows them within #[test] functions, not in their helpers

use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use sira_client::{Client, ClientError, Code, Consistency, DType, GetOptions, PutOptions, TensorSpec};

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;
#[path = "../../backend/tests/support/proxy.rs"]
mod proxy;
#[path = "../../backend/tests/support/servers.rs"]
mod servers;

use common::Server;
use proxy::{Fault, Proxy};
use servers::Kind;

/// A server with everything in the Redis at `url`.
fn start(folder: &Path, url: &str) -> Server {
    let config = folder.join("sira.toml");
    std::fs::write(
        &config,
        "[storage.backends.fast]\nkind = \"redis\"\nguard = { timeout = \"500ms\", break_after = 3, break_for = \"100ms\" }\n",
    )
    .unwrap();
    Server::start(&folder.join("data"), |command| {
        command.arg("--config").arg(&config).env("SIRA_STORAGE__BACKENDS__FAST__URL", url).stderr(Stdio::piped());
    })
}

fn tensor(bytes: usize) -> (TensorSpec, Vec<u8>) {
    let data: Vec<u8> = (0..bytes).map(|place| (place % 251) as u8).collect();
    (TensorSpec::new(DType::UInt8, vec![bytes as u64]).unwrap(), data)
}

/// Of 100 bytes, which lie in their record, and of several chunks.
const SIZES: [usize; 2] = [100, 5_000_000];

async fn put(client: &Client, key: &str, bytes: usize, level: Option<Consistency>) -> Result<(), ClientError> {
    let (spec, data) = tensor(bytes);
    let options = PutOptions { consistency: level, ..PutOptions::default() };
    client.put(key, &spec, data, options).await.map(drop)
}

async fn check(client: &Client, key: &str, bytes: usize) {
    let read = client.get(key, &GetOptions::default()).await.unwrap().into_bytes().await.unwrap();
    assert!(read == tensor(bytes).1, "{key}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_in_redis_outlive_a_killed_server_and_a_broken_network() {
    let redis = servers::Server::shared(Kind::Redis);
    let way = Proxy::to(redis.address()).await;
    let folder = tempfile::tempdir().unwrap();
    let mut server = start(folder.path(), &redis.url_by(way.address()));
    let client = Client::connect(&server.url).await.unwrap();
    for (index, bytes) in SIZES.into_iter().enumerate() {
        put(&client, &format!("ns/{index}"), bytes, None).await.unwrap();
    }
    // Its append-only file is synced once a second only.
    let error = put(&client, "ns/strong", 10, Some(Consistency::Strong)).await.unwrap_err();
    assert!(error.code() == Some(Code::Unsupported) && error.to_string().contains("survives ProcessCrash"), "{error}");

    for fault in [Fault::HalfOpen, Fault::Cut, Fault::AnswersLost] {
        way.set(fault);
        let error = put(&client, "ns/never", SIZES[1], None).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Backend), "{fault:?}: {error}");
        way.set(Fault::None);
        let mut tries = 0;
        while let Err(error) = put(&client, &format!("ns/{fault:?}"), SIZES[1], None).await {
            tries += 1;
            assert!(tries < 200, "after {fault:?}: {error}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        check(&client, &format!("ns/{fault:?}"), SIZES[1]).await;
    }

    server.process.kill().unwrap();
    let mut log = String::new();
    server.process.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("left alone") && !log.contains(redis.password()), "{log}");
    drop((server, client));
    let server = start(folder.path(), redis.url());
    let client = Client::connect(&server.url).await.unwrap();
    for (index, bytes) in SIZES.into_iter().enumerate() {
        check(&client, &format!("ns/{index}"), bytes).await;
    }
}
