//! Databases across a network beyond the conformance suite: nodes that start together, what a put survives, and what goes wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use sira_backend::mysql::MySqlBackend;
use sira_backend::postgres::PostgresBackend;
use sira_backend::{BackendError, DatabaseOptions, Durability, HealthStatus, PutMode, PutOptions, PutOutcome, StorageBackend, Survives};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection};

#[path = "support/servers.rs"]
mod servers;

use servers::{Kind, Server};

const CREATE: PutOptions = PutOptions { mode: PutMode::Create, durability: Durability::Logged, expires_in: None };
const DURABLE: PutOptions = PutOptions { mode: PutMode::Overwrite, durability: Durability::Durable, expires_in: None };

/// A table of its own for each test.
fn options(server: &Server, table: &str) -> DatabaseOptions {
    DatabaseOptions { table: table.into(), ..DatabaseOptions::new(server.url()) }
}

async fn open(server: &Server, options: &DatabaseOptions) -> Result<Arc<dyn StorageBackend>, BackendError> {
    Ok(match server.kind() {
        Kind::Postgres => Arc::new(PostgresBackend::open(options).await?),
        _ => Arc::new(MySqlBackend::open(options).await?),
    })
}

async fn execute(server: &Server, sql: &str) {
    let sql = AssertSqlSafe(sql.to_owned());
    if server.kind() == Kind::Postgres {
        sqlx::raw_sql(sql).execute(&mut PgConnection::connect(server.url()).await.unwrap()).await.unwrap();
    } else {
        sqlx::raw_sql(sql).execute(&mut MySqlConnection::connect(server.url()).await.unwrap()).await.unwrap();
    }
}

async fn nodes_start_together_and_share(kind: Kind) {
    let server = Server::shared(kind);
    let options = options(&server, "together");
    let nodes: Vec<_> = join_all((0..8).map(|_| open(&server, &options))).await.into_iter().map(Result::unwrap).collect();
    let outcomes = join_all(nodes.iter().map(|node| node.put("a", vec![7; 100].into(), CREATE))).await;
    assert_eq!(outcomes.into_iter().filter(|outcome| *outcome.as_ref().unwrap() == PutOutcome::Written).count(), 1);
    for node in &nodes {
        assert_eq!(node.get("a", None).await.unwrap().unwrap(), vec![7; 100]);
        assert!(node.capabilities().shared);
    }
    assert!(nodes[0].delete("a").await.unwrap());
    assert!(!nodes[1].exists("a").await.unwrap());
    // Another table is another place.
    let other = open(&server, &DatabaseOptions { table: "together_too".into(), ..options }).await.unwrap();
    other.put("b", vec![1].into(), DURABLE).await.unwrap();
    assert_eq!(nodes[0].list_keys("", None, 10).await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_share_postgresql() {
    nodes_start_together_and_share(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_share_mariadb() {
    nodes_start_together_and_share(Kind::MariaDb).await;
}

async fn foreign_and_newer_tables_are_refused(kind: Kind) {
    let server = Server::shared(kind);
    execute(&server, "CREATE TABLE foreign_one (id INT)").await;
    let error = open(&server, &options(&server, "foreign_one")).await.unwrap_err_of();
    assert!(matches!(&error, BackendError::Config(reason) if reason.contains("Sira did not make it")), "{error}");
    drop(open(&server, &options(&server, "newer")).await.unwrap());
    execute(&server, "UPDATE newer_schema SET version = 1000").await;
    let error = open(&server, &options(&server, "newer")).await.unwrap_err_of();
    assert!(matches!(&error, BackendError::Config(reason) if reason.contains("has version 1000")), "{error}");
}

/// `unwrap_err` for results whose value cannot be shown.
trait UnwrapErr {
    fn unwrap_err_of(self) -> BackendError;
}

impl<T> UnwrapErr for Result<T, BackendError> {
    fn unwrap_err_of(self) -> BackendError {
        match self {
            Ok(_) => panic!("it worked"),
            Err(error) => error,
        }
    }
}

#[tokio::test]
async fn foreign_and_newer_tables_are_refused_by_postgresql() {
    foreign_and_newer_tables_are_refused(Kind::Postgres).await;
}

#[tokio::test]
async fn foreign_and_newer_tables_are_refused_by_mariadb() {
    foreign_and_newer_tables_are_refused(Kind::MariaDb).await;
}

/// A server killed under a backend, which is not opened again.
async fn a_killed_server_loses_nothing_durable(kind: Kind) {
    let server = Server::start(kind);
    let options = DatabaseOptions { connect_timeout: Duration::from_secs(1), ..options(&server, "killed") };
    let backend = open(&server, &options).await.unwrap();
    for index in 0..50 {
        backend.put(&format!("k/{index:02}"), vec![index; 50_000].into(), DURABLE).await.unwrap();
    }
    server.kill();
    let error = backend.put("x", vec![1].into(), DURABLE).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable { .. }), "{error}");
    assert!(matches!(backend.health_check().await.unwrap(), HealthStatus::Unhealthy(_)));
    let unreachable = open(&server, &options).await.unwrap_err_of();
    assert!(matches!(unreachable, BackendError::Unavailable { .. }), "{unreachable}");
    server.again();
    // Connections that died with it may each fail one call.
    let mut names = backend.list_keys("k/", None, 100).await;
    for _ in 0..20 {
        if names.is_ok() {
            break;
        }
        names = backend.list_keys("k/", None, 100).await;
    }
    assert_eq!(names.unwrap().len(), 50);
    for index in 0..50 {
        assert_eq!(backend.get(&format!("k/{index:02}"), None).await.unwrap().unwrap(), vec![index; 50_000]);
    }
    assert_eq!(backend.health_check().await.unwrap(), HealthStatus::Healthy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_postgresql_loses_nothing_durable() {
    a_killed_server_loses_nothing_durable(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_mariadb_loses_nothing_durable() {
    a_killed_server_loses_nothing_durable(Kind::MariaDb).await;
}

/// Calls that are given up anywhere on their way disturb no later one.
async fn calls_given_up_disturb_nobody(kind: Kind) {
    let server = Server::shared(kind);
    let backend = open(&server, &DatabaseOptions { max_connections: 3, ..options(&server, "given_up") }).await.unwrap();
    let value = Bytes::from(vec![5; 1 << 20]);
    backend.put("kept", value.clone().into(), DURABLE).await.unwrap();
    for round in 0..60_u64 {
        let patience = Duration::from_micros(round * 150);
        let (put, get) = (backend.put("new", value.clone().into(), CREATE), backend.get("kept", None));
        let _ = tokio::time::timeout(patience, async { tokio::join!(put, get) }).await;
        assert_eq!(backend.get("kept", Some(1..3)).await.unwrap().unwrap(), [5; 2][..], "round {round}");
        assert!(backend.get("new", None).await.unwrap().is_none_or(|read| read == value), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_given_up_disturb_nobody_in_postgresql() {
    calls_given_up_disturb_nobody(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_given_up_disturb_nobody_in_mariadb() {
    calls_given_up_disturb_nobody(Kind::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_are_bounded() {
    let server = Server::start(Kind::Postgres);
    let options = DatabaseOptions { max_connections: 3, ..options(&server, "bounded") };
    let backend = PostgresBackend::open(&options).await.unwrap();
    let mut puts = std::pin::pin!(join_all((0..60).map(|index| {
        let backend = backend.clone();
        async move { backend.put(&format!("n{index}"), vec![1; 200_000].into(), DURABLE).await.unwrap() }
    })));
    let mut connection = PgConnection::connect(server.url()).await.unwrap();
    let mut most = 0;
    loop {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        tokio::select! {
            _ = &mut puts => break,
            counted = sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection) => most = most.max(counted.unwrap()),
        }
    }
    assert!((1..=3).contains(&most), "{most} connections");
}

#[tokio::test]
async fn a_wrong_password_is_not_repeated() {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let server = Server::shared(kind);
        let url = server.url().replace(server.password(), "hush-hush");
        let wrong = DatabaseOptions { url, ..options(&server, "unseen") };
        let error = open(&server, &wrong).await.unwrap_err_of();
        let shown = format!("{error} {error:?} {wrong:?}");
        assert!(matches!(error, BackendError::Config(_)) && !shown.contains("hush"), "{shown}");
    }
}

/// A log that nobody flushes for ten seconds but a commit that waits for it.
#[tokio::test]
async fn postgresql_flushes_durable_puts_alone() {
    let server = Server::with_settings(Kind::Postgres, &["-c wal_writer_delay=10s", "-c fsync=off"]);
    let backend = PostgresBackend::open(&options(&server, "flushed")).await.unwrap();
    // Without fsync a flushed log is not on the disk.
    assert_eq!(backend.capabilities().durable_survives, Survives::ProcessCrash);
    let mut connection = PgConnection::connect(server.url()).await.unwrap();
    let mut flushed = async || {
        let read = "SELECT pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()";
        sqlx::query_scalar::<_, bool>(read).fetch_one(&mut connection).await.unwrap()
    };
    for round in 0..5 {
        backend.put("a", vec![round; 1000].into(), PutOptions::default()).await.unwrap();
        assert!(!flushed().await, "a logged put waited");
        backend.put("b", vec![round; 1000].into(), DURABLE).await.unwrap();
        assert!(flushed().await, "a durable put did not wait");
        assert!(backend.delete("a").await.unwrap());
        assert!(!flushed().await, "a delete waited");
    }
    assert_eq!(
        PostgresBackend::open(&options(&Server::shared(Kind::Postgres), "synced")).await.unwrap().capabilities().durable_survives,
        Survives::PowerLoss
    );
}

#[tokio::test]
async fn mariadb_promises_what_its_settings_keep() {
    let settings = ["--max-allowed-packet=16M", "--innodb-flush-log-at-trx-commit=2", "--innodb-log-file-size=256M"];
    let server = Server::with_settings(Kind::MariaDb, &settings);
    let backend = MySqlBackend::open(&options(&server, "packets")).await.unwrap();
    let capabilities = backend.capabilities();
    assert_eq!((capabilities.logged_survives, capabilities.durable_survives), (Survives::ProcessCrash, Survives::ProcessCrash));
    let largest = capabilities.max_value as usize;
    assert!(((16 << 20) - 8192..16 << 20).contains(&largest), "{largest}");
    let name = "n/".repeat(511) + "nn";
    backend.put(&name, vec![3; largest].into(), DURABLE).await.unwrap();
    assert_eq!(backend.get(&name, None).await.unwrap().unwrap().len(), largest);
    let larger = backend.put("n", vec![3; largest + 1].into(), DURABLE).await;
    assert!(matches!(larger, Err(BackendError::TooLarge { .. })), "{larger:?}");
    execute(&server, "SET GLOBAL max_allowed_packet = 1048576").await;
    let error = MySqlBackend::open(&options(&server, "packets")).await.unwrap_err();
    assert!(matches!(&error, BackendError::Config(reason) if reason.contains("max_allowed_packet is 1048576")), "{error}");

    let server = Server::shared(Kind::MariaDb);
    let capabilities =
        MySqlBackend::open(&DatabaseOptions { table: "synced".into(), ..DatabaseOptions::new(server.url()) }).await.unwrap().capabilities();
    assert_eq!((capabilities.logged_survives, capabilities.durable_survives), (Survives::PowerLoss, Survives::PowerLoss));
}

/// What others wrote before is counted, what was refused is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_limit_counts_what_is_there() {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let server = Server::shared(kind);
        let backend = open(&server, &options(&server, "counted")).await.unwrap();
        for (name, len) in [("a", 1000), ("b", 500_000)] {
            backend.put(name, vec![1; len].into(), DURABLE).await.unwrap();
        }
        let stats = backend.stats().await.unwrap();
        assert_eq!((stats.values, stats.used_bytes, stats.available_bytes), (None, None, None), "counted without need");
        let limited = open(&server, &DatabaseOptions { max_bytes: Some(600_000), ..options(&server, "counted") }).await.unwrap();
        let full = limited.put("c", vec![1; 99_001].into(), DURABLE).await;
        assert!(matches!(full, Err(BackendError::OutOfSpace(_))), "{full:?}");
        limited.put("c", vec![1; 99_000].into(), DURABLE).await.unwrap();
        let stats = limited.stats().await.unwrap();
        assert_eq!((stats.values, stats.used_bytes, stats.available_bytes), (Some(3), Some(600_000), Some(0)));
    }
}
