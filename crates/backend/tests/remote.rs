//! Backends behind a network: the conformance suite over real servers, and networks that fail.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sira_backend::conformance::{self, Fixture};
use sira_backend::object::ObjectBackend;
use sira_backend::redis::{RedisBackend, RedisOptions};
use sira_backend::{BackendError, BatchOperation, BatchResult, Durability, HealthStatus, Payload, PutOptions, StorageBackend, Survives};
use support::proxy::{Fault, Proxy};
use support::servers::{Kind, Server};
use support::{matrix, rough};

/// A prefix, or a folder, that nobody has used.
fn fresh() -> String {
    format!("t{:032x}", rand::random::<u128>())
}

fn options(prefix: &str) -> RedisOptions {
    RedisOptions { prefix: prefix.into(), connect_timeout: Duration::from_secs(2), ..RedisOptions::default() }
}

async fn redis(server: &Server, prefix: &str) -> RedisBackend {
    RedisBackend::open(server.url(), options(prefix)).await.unwrap()
}

async fn put(backend: &dyn StorageBackend, name: &str, value: &'static str) -> Result<(), BackendError> {
    backend.put(name, Payload::from(Bytes::from_static(value.as_bytes())), PutOptions::default()).await.map(drop)
}

/// Redis, each new backend under a new prefix.
struct Redis {
    server: Arc<Server>,
    cluster: bool,
    prefix: String,
}

impl Redis {
    fn new(kind: Kind) -> Redis {
        Redis { server: Server::shared(kind), cluster: kind == Kind::Cluster, prefix: String::new() }
    }
}

#[async_trait]
impl Fixture for Redis {
    async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
        self.prefix = fresh();
        self.reopen().await.unwrap()
    }

    async fn reopen(&mut self) -> Option<Arc<dyn StorageBackend>> {
        let options = RedisOptions { cluster: self.cluster, ..options(&self.prefix) };
        Some(Arc::new(RedisBackend::open(self.server.url(), options).await.unwrap()))
    }
}

/// S3, each new backend in a new folder of its bucket.
struct S3 {
    server: Arc<Server>,
    folder: String,
}

impl S3 {
    fn new(kind: Kind) -> S3 {
        S3 { server: Server::shared(kind), folder: String::new() }
    }
}

/// The bucket of a server, by an address of it, with requests that may take so long.
fn s3(server: &Server, folder: &str, address: &str, timeout: &str) -> ObjectBackend {
    let endpoint = format!("http://{address}");
    let options = [
        ("endpoint", endpoint.as_str()),
        ("allow_http", "true"),
        ("region", "us-east-1"),
        ("access_key_id", "sira"),
        ("secret_access_key", server.password()),
        ("timeout", timeout),
    ];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ObjectBackend::open_url(&format!("s3://sira/{folder}"), options).unwrap()
}

#[async_trait]
impl Fixture for S3 {
    async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
        self.folder = fresh();
        self.reopen().await.unwrap()
    }

    async fn reopen(&mut self) -> Option<Arc<dyn StorageBackend>> {
        Some(Arc::new(s3(&self.server, &self.folder, self.server.address(), "60s")))
    }

    async fn limited(&mut self, bytes: u64) -> Option<Arc<dyn StorageBackend>> {
        let backend = s3(&self.server, &fresh(), self.server.address(), "60s");
        Some(Arc::new(backend.with_limit(bytes).await.unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_conforms() {
    matrix::holds("redis", &conformance::check(&mut Redis::new(Kind::Redis)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs a cluster of six: make test-servers"]
async fn redis_cluster_conforms() {
    matrix::holds("redis, cluster", &conformance::check(&mut Redis::new(Kind::Cluster)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s3_conforms() {
    matrix::holds("object, moto", &conformance::check(&mut S3::new(Kind::Moto)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs Ceph: make test-servers"]
async fn ceph_conforms() {
    matrix::holds("object, ceph", &conformance::check(&mut S3::new(Kind::Ceph)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_promises_what_its_settings_keep() {
    for (settings, survives) in [
        (&["--appendfsync", "always"][..], Survives::PowerLoss),
        (&["--appendfsync", "everysec"], Survives::ProcessCrash),
        (&["--appendonly", "no"], Survives::Nothing),
    ] {
        let server = Server::with_settings(Kind::Redis, settings);
        let backend = redis(&server, "a").await;
        let capabilities = backend.capabilities();
        assert_eq!((capabilities.logged_survives, capabilities.durable_survives), (survives, survives), "{settings:?}");
        assert!(capabilities.shared && capabilities.native_expiry && capabilities.ranges);
        assert_eq!(backend.health_check().await.unwrap(), HealthStatus::Healthy);
        if survives == Survives::PowerLoss {
            cli(&server, &["CONFIG", "SET", "appendfsync", "no"]);
            let health = backend.health_check().await.unwrap();
            assert!(matches!(&health, HealthStatus::Degraded(why) if why.contains("`appendfsync` is not `always`")), "{health}");
        }
    }
}

/// What `redis-cli` says.
fn cli(server: &Server, arguments: &[&str]) -> String {
    let (_, port) = server.address().rsplit_once(':').unwrap();
    let said = std::process::Command::new("redis-cli").args(["-p", port]).args(arguments).env("REDISCLI_AUTH", server.password()).output();
    String::from_utf8(said.unwrap().stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_cannot_serve_is_refused() {
    let server = Server::with_settings(Kind::Redis, &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let open = async |url: String, options: RedisOptions| match RedisBackend::open(&url, options).await {
        Err(BackendError::Config(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(open(server.url().into(), options("a")).await.contains("set `noeviction`"));
    cli(&server, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let wrong = server.url().replace(server.password(), "geheim");
    let reason = open(wrong, options("a")).await;
    assert!(!reason.contains("geheim"), "{reason}");
    redis(&server, "a").await;
    // Another layout lies there.
    cli(&server, &["SET", "{a:00}/format", "sira-values-9 7"]);
    assert!(open(server.url().into(), options("a")).await.contains("sira-values-9 7"));
    redis(&server, "b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_of_one_redis_are_apart() {
    let server = Server::shared(Kind::Redis);
    let (one, two) = (redis(&server, &fresh()).await, redis(&server, &fresh()).await);
    put(&one, "a", "one").await.unwrap();
    put(&two, "b", "two").await.unwrap();
    assert_eq!(one.list_keys("", None, 9).await.unwrap(), ["a"]);
    assert_eq!(two.list_keys("", None, 9).await.unwrap(), ["b"]);
    assert_eq!(one.get("b", None).await.unwrap(), None);
    assert!(!format!("{one:?}").contains(server.password()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_in_redis_expire_and_are_listed_no_more() {
    let server = Server::shared(Kind::Redis);
    let backend = redis(&server, &fresh()).await;
    let brief = PutOptions { expires_in: Some(Duration::from_millis(50)), ..PutOptions::default() };
    for name in ["a", "b", "c", "d"] {
        let options = if name == "b" || name == "d" { brief } else { PutOptions::default() };
        backend.put(name, vec![1; 10].into(), options).await.unwrap();
    }
    // An overwrite without an end has none.
    put(&backend, "d", "stays").await.unwrap();
    while backend.exists("b").await.unwrap() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(backend.get("b", None).await.unwrap(), None);
    assert_eq!(backend.list_keys("", None, 2).await.unwrap(), ["a", "c"], "a page is full whatever expired in it");
    assert_eq!(backend.list_keys("", None, 9).await.unwrap(), ["a", "c", "d"]);
    assert_eq!(backend.stats().await.unwrap().values, Some(3));
    put(&backend, "b", "again").await.unwrap();
    assert_eq!(backend.list_keys("", None, 9).await.unwrap(), ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_refuses_writes_and_deletes_make_room() {
    let server = Server::with_settings(Kind::Redis, &["--maxmemory", "32mb"]);
    let backend = redis(&server, "a").await;
    let mut names = Vec::new();
    let error = loop {
        let name = format!("v{:02}", names.len());
        match backend.put(&name, vec![7; 1 << 20].into(), PutOptions::default()).await {
            Ok(_) => names.push(name),
            Err(error) => break error,
        }
        assert!(names.len() < 64, "there is no end");
    };
    assert!(matches!(error, BackendError::OutOfSpace(_)), "{error}");
    assert_eq!(backend.list_keys("", None, 99).await.unwrap(), names, "a refused put leaves no name");
    assert_eq!(backend.get(&names[0], None).await.unwrap().unwrap().len(), 1 << 20);
    assert!(matches!(backend.health_check().await.unwrap(), HealthStatus::Degraded(why) if why.contains("full")));
    for name in &names[..4] {
        assert!(backend.delete(name).await.unwrap());
    }
    put(&backend, "b", "fits").await.unwrap();
    assert!(backend.stats().await.unwrap().available_bytes.unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_keeps_the_order_of_each_name() {
    let server = Server::shared(Kind::Redis);
    let backend = redis(&server, &fresh()).await;
    let mut operations = Vec::new();
    for round in 0..5_u8 {
        for name in 0..50 {
            let name = format!("n{name}");
            operations.push(BatchOperation::Put { name: name.clone(), value: vec![round].into(), options: PutOptions::default() });
            operations.push(BatchOperation::Get { name, range: None });
        }
    }
    let results = backend.batch(operations).await.unwrap();
    for (index, pair) in results.chunks(2).enumerate() {
        let [BatchResult::Put(Ok(_)), BatchResult::Get(Ok(Some(read)))] = pair else { panic!("{pair:?}") };
        assert_eq!(read[..], [(index / 50) as u8]);
    }
}

/// What an append-only file synced with every write acknowledged is there after `kill -9`, and the same backend goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_redis_that_is_killed_loses_nothing_and_is_found_again() {
    let server = Server::with_settings(Kind::Redis, &["--appendfsync", "always"]);
    let backend = redis(&server, "a").await;
    for round in 0..3 {
        let writers = (0..8).map(async |writer| {
            let mut acknowledged = Vec::new();
            for count in 0..1000 {
                let name = format!("{round}/{writer}/{count:04}");
                match backend.put(&name, Payload::from(Bytes::from(name.clone())), PutOptions::default()).await {
                    Ok(_) => acknowledged.push(name),
                    Err(_) => break,
                }
            }
            acknowledged
        });
        let kill = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            server.kill();
        };
        let (acknowledged, ()) = tokio::join!(futures::future::join_all(writers), kill);
        backend.health_check().await.map(|health| assert!(matches!(health, HealthStatus::Unhealthy(_)))).unwrap();
        server.again();
        rough::recovers(&backend, "a kill").await;
        let listed = backend.list_keys(&format!("{round}/"), None, 10_000).await.unwrap();
        for name in acknowledged.iter().flatten() {
            assert_eq!(backend.get(name, None).await.unwrap().as_deref(), Some(name.as_bytes()), "{name} was acknowledged");
            assert!(listed.binary_search(name).is_ok(), "{name} is listed");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_behind_a_network_that_fails() {
    let server = Server::shared(Kind::Redis);
    let proxy = Proxy::to(server.address()).await;
    let prefix = fresh();
    let far = RedisBackend::open(&server.url_by(proxy.address()), options(&prefix)).await.unwrap();
    rough::check(rough::guarded(Arc::new(far), 2), &redis(&server, &prefix).await, &proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s3_behind_a_network_that_fails() {
    let server = Server::shared(Kind::Moto);
    let proxy = Proxy::to(server.address()).await;
    let folder = fresh();
    let far = s3(&server, &folder, &proxy.address().to_string(), "250ms");
    let near = s3(&server, &folder, server.address(), "60s");
    rough::check(rough::guarded(Arc::new(far), 0), &near, &proxy).await;
}

/// A server that is there, accepts, and says nothing: each call ends, and a backend that is opened is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_holds_nobody_up() {
    let server = Server::shared(Kind::Redis);
    let proxy = Proxy::to(server.address()).await;
    let far = RedisBackend::open(&server.url_by(proxy.address()), options(&fresh())).await.unwrap();
    let far = rough::guarded(Arc::new(far), 1);
    proxy.set(Fault::HalfOpen);
    for _ in 0..8 {
        let error = put(&*far, "a", "x").await.unwrap_err();
        assert!(matches!(error, BackendError::Unavailable { .. }), "{error}");
    }
    let health = far.health_check().await.unwrap();
    assert!(matches!(&health, HealthStatus::Unhealthy(why) if why.contains("calls in a row failed")), "{health}");
    assert!(RedisBackend::open(&server.url_by(proxy.address()), options("b")).await.is_err());
    proxy.set(Fault::None);
    rough::recovers(&*far, "silence").await;
    put(&*far, "a", "x").await.unwrap();
}

/// A primary dies: a replica takes over, and the same backend goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs a cluster of six: make test-servers"]
async fn a_cluster_that_loses_a_primary_goes_on() {
    let server = Server::start(Kind::Cluster);
    let open = RedisOptions { cluster: true, ..options("a") };
    let backend = rough::guarded(Arc::new(RedisBackend::open(server.url(), open).await.unwrap()), 3);
    let capabilities = backend.capabilities();
    assert_eq!(capabilities.durable_survives, Survives::ProcessCrash, "replicas lack the last writes");
    let names: Vec<String> = (0..500).map(|index| format!("n{index:03}")).collect();
    for name in &names {
        let durable = PutOptions { durability: Durability::Durable, ..PutOptions::default() };
        backend.put(name, Payload::from(Bytes::from(name.clone())), durable).await.unwrap();
    }
    // The replicas have it all.
    while cli(&server, &["INFO", "replication"]).lines().filter(|line| line.contains(",lag=")).any(|line| !line.contains("state=online")) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    // The one whose address it was given.
    server.kill();
    rough::recovers(&*backend, "the death of a primary").await;
    let begun = std::time::Instant::now();
    for name in &names {
        // A slot without a primary answers once its replica took over.
        let read = loop {
            match backend.get(name, None).await {
                Ok(read) => break read,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(read.as_deref(), Some(name.as_bytes()), "{name}");
    }
    assert_eq!(backend.list_keys("n", None, 1000).await.unwrap(), names);
    put(&*backend, "after", "x").await.unwrap();
}
