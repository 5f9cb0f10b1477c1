use super::*;
use crate::testing::Mount;
use crate::{PutOptions, StorageBackend};

const DURABLE: PutOptions = PutOptions { mode: PutMode::Overwrite, durability: Durability::Durable, expires_in: None };

async fn put(backend: &SqliteBackend, name: &str, len: usize, options: PutOptions) -> Result<PutOutcome, BackendError> {
    backend.put(name, vec![7; len].into(), options).await
}

#[tokio::test]
async fn a_reopened_file_counts_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(folder.path(), None).await.unwrap();
    let error = SqliteBackend::open(folder.path(), None).await.unwrap_err();
    assert!(matches!(error, BackendError::Config(_)) && error.to_string().contains("another process"), "{error}");
    for (name, len) in [("a", 10), ("b", 100_000), ("a", 20), ("c", 5)] {
        put(&backend, name, len, PutOptions::default()).await.unwrap();
    }
    assert!(backend.delete("c").await.unwrap());
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.values, stats.used_bytes), (Some(2), Some(100_020)));
    assert!(stats.disk_free_bytes.is_some() && stats.available_bytes == stats.disk_free_bytes);
    drop(backend);
    let backend = SqliteBackend::open(folder.path(), Some(100_020)).await.unwrap();
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.values, stats.used_bytes, stats.available_bytes), (Some(2), Some(100_020), Some(0)));
    assert!(matches!(put(&backend, "d", 1, DURABLE).await, Err(BackendError::OutOfSpace(_))));
    assert_eq!(backend.health_check().await.unwrap(), HealthStatus::Healthy);
}

#[tokio::test]
async fn the_log_is_synced_for_durable_puts_alone() {
    let folder = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(folder.path(), None).await.unwrap();
    let level = async || {
        let mut writer = backend.driver().writer.lock().await;
        sqlx::query_scalar::<_, i64>("PRAGMA synchronous").fetch_one(&mut writer.connection).await.unwrap()
    };
    // 2 is FULL, 1 is NORMAL.
    assert_eq!(level().await, 2);
    put(&backend, "a", 1, PutOptions::default()).await.unwrap();
    assert_eq!(level().await, 1);
    put(&backend, "a", 1, DURABLE).await.unwrap();
    assert_eq!(level().await, 2);
    backend.delete("a").await.unwrap();
    assert_eq!(level().await, 1);
}

#[tokio::test]
async fn after_an_error_of_the_disk_the_log_is_brought_in_first() {
    let folder = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(folder.path(), None).await.unwrap();
    put(&backend, "a", 100_000, PutOptions::default()).await.unwrap();
    let log = || std::fs::metadata(folder.path().join("values.sqlite-wal")).unwrap().len();
    assert!(log() > 100_000);
    backend.driver().writer.lock().await.broken = true;
    put(&backend, "b", 10, DURABLE).await.unwrap();
    assert!(log() < 100_000, "a new log holds only the last put");
    assert!(!backend.driver().writer.lock().await.broken);
    assert_eq!(backend.get("a", None).await.unwrap().unwrap().len(), 100_000);
}

#[tokio::test]
async fn foreign_newer_and_damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.sqlite");
    let foreign = async |sql: &'static str| {
        let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    };
    foreign("CREATE TABLE t (a)").await;
    let error = SqliteBackend::open(folder.path(), None).await.unwrap_err();
    assert!(matches!(&error, BackendError::Config(reason) if reason.contains("Sira did not make")), "{error}");
    std::fs::remove_file(&file).unwrap();
    drop(SqliteBackend::open(folder.path(), None).await.unwrap());
    foreign("PRAGMA user_version = 9").await;
    let error = SqliteBackend::open(folder.path(), None).await.unwrap_err();
    assert!(matches!(&error, BackendError::Config(reason) if reason.contains("has version 9")), "{error}");
    for name in ["values.sqlite", "values.sqlite-wal", "values.sqlite-shm"] {
        let _ = std::fs::remove_file(folder.path().join(name));
    }
    std::fs::write(&file, vec![b'x'; 100_000]).unwrap();
    let error = SqliteBackend::open(folder.path(), None).await.unwrap_err();
    assert!(matches!(error, BackendError::Corrupt(_)), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_out_of_space_until_there_is_room() {
    let Some(disk) = Mount::tmpfs("24m") else { return };
    let backend = SqliteBackend::open(disk.path().join("db"), None).await.unwrap();
    let mut stored = 0;
    let full = loop {
        match put(&backend, &format!("n{stored:03}"), 300_000, DURABLE).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, BackendError::OutOfSpace(_)), "{full}");
    assert!(stored > 20, "{stored}");
    for index in 0..stored {
        assert_eq!(backend.get(&format!("n{index:03}"), None).await.unwrap().unwrap().len(), 300_000);
    }
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.values, stats.used_bytes), (Some(stored), Some(stored * 300_000)));
    for index in 0..10 {
        assert!(backend.delete(&format!("n{index:03}")).await.unwrap());
    }
    for index in 0..5 {
        put(&backend, &format!("m{index}"), 300_000, DURABLE).await.unwrap();
    }
    drop(backend);
    let backend = SqliteBackend::open(disk.path().join("db"), None).await.unwrap();
    assert_eq!(backend.list_keys("", None, 1000).await.unwrap().len() as u64, stored - 5);
}
