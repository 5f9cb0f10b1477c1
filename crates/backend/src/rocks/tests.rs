use super::*;
use crate::testing::Mount;

fn small() -> RocksOptions {
    RocksOptions { cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20, ..RocksOptions::default() }
}

async fn put(backend: &RocksBackend, name: &str, len: usize) -> Result<PutOutcome, BackendError> {
    backend.put(name, vec![7; len].into(), PutOptions::default()).await
}

#[tokio::test]
async fn a_reopened_database_counts_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let backend = RocksBackend::open(folder.path(), small()).unwrap();
    assert_eq!(backend.memory_budget(), 2 << 20);
    let error = RocksBackend::open(folder.path(), small()).unwrap_err();
    assert!(matches!(error, BackendError::Config(_)) && error.to_string().contains("another process"), "{error}");
    for (name, len) in [("a", 10), ("b", 100_000), ("a", 20), ("c", 5)] {
        put(&backend, name, len).await.unwrap();
    }
    backend.delete("c").await.unwrap();
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.values, stats.used_bytes), (Some(2), Some(100_020)));
    drop(backend);
    let limited = RocksOptions { max_bytes: Some(100_020), ..small() };
    let backend = RocksBackend::open(folder.path(), limited).unwrap();
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.values, stats.used_bytes, stats.available_bytes), (Some(2), Some(100_020), Some(0)));
    assert!(matches!(put(&backend, "d", 1).await, Err(BackendError::OutOfSpace(_))));
    assert_eq!(backend.health_check().await.unwrap(), HealthStatus::Healthy);
    let too_large = backend.put("d", Bytes::from(vec![0; (MAX_VALUE + 1) as usize]).into(), PutOptions::default()).await;
    assert!(matches!(too_large, Err(BackendError::TooLarge { .. })));
}

#[test]
fn another_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.create_if_missing(true);
    DB::open(&options, folder.path()).unwrap().put("theirs", "x").unwrap();
    assert!(matches!(RocksBackend::open(folder.path(), small()), Err(BackendError::Config(_))));
}

/// Values pass through blob files, are collected, and the folder does not grow without end.
#[tokio::test]
async fn garbage_of_overwritten_values_is_collected() {
    let folder = tempfile::tempdir().unwrap();
    let backend = RocksBackend::open(folder.path(), small()).unwrap();
    for round in 0..60 {
        for name in ["a", "b", "c", "d"] {
            put(&backend, name, (256 << 10) + round).await.unwrap();
        }
    }
    backend.inner.db.flush_cf(backend.inner.family(VALUES).unwrap()).unwrap();
    backend.inner.db.compact_range_cf(backend.inner.family(VALUES).unwrap(), None::<&[u8]>, None::<&[u8]>);
    drop(backend);
    let bytes: u64 = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 12 << 20, "{bytes} bytes for 1 MiB of values, of 60 MiB written");
}

/// A full disk fails the write, leaves reads working, is seen by the health check, and passes when there is room again.
#[tokio::test]
async fn a_full_disk_is_out_of_space_until_there_is_room() {
    let Some(mount) = Mount::tmpfs("24m") else { return };
    let backend = RocksBackend::open(mount.path().join("db"), small()).unwrap();
    put(&backend, "first", 100_000).await.unwrap();
    let ballast = mount.path().join("ballast");
    std::fs::write(&ballast, vec![1; 12 << 20]).unwrap();
    let mut error = None;
    for index in 0..100 {
        if let Err(why) = put(&backend, &format!("v{index:02}"), 500_000).await {
            error = Some((index, why));
            break;
        }
    }
    let (written, error) = error.unwrap();
    assert!(matches!(error, BackendError::OutOfSpace(_)), "{error}");
    assert!(matches!(backend.health_check().await.unwrap(), HealthStatus::Degraded(_)));
    assert_eq!(backend.get("first", None).await.unwrap().unwrap().len(), 100_000);
    assert_eq!(backend.stats().await.unwrap().values, Some(written + 1));

    std::fs::remove_file(&ballast).unwrap();
    let mut health = HealthStatus::Healthy;
    for _ in 0..150 {
        health = backend.health_check().await.unwrap();
        if health == HealthStatus::Healthy {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(health, HealthStatus::Healthy, "RocksDB did not resume by itself");
    put(&backend, "last", 100_000).await.unwrap();
    drop(backend);
    let backend = RocksBackend::open(mount.path().join("db"), small()).unwrap();
    assert_eq!(backend.get("first", None).await.unwrap().unwrap().len(), 100_000);
    assert_eq!(backend.get("last", None).await.unwrap().unwrap().len(), 100_000);
    drop(backend);
}
