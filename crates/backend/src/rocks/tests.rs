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

/// The database as a crash leaves it: a copy while it is open.
fn crashed(backend: &RocksBackend) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&backend.inner.folder).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn files(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.file_name().unwrap().to_str().unwrap().contains(kind)).collect();
    files.sort();
    files
}

/// 50 values of 1000 bytes in the log only.
async fn fifty() -> (tempfile::TempDir, RocksBackend) {
    let folder = tempfile::tempdir().unwrap();
    let backend = RocksBackend::open(folder.path(), small()).unwrap();
    for index in 0..50 {
        put(&backend, &format!("v{index:02}"), 1000).await.unwrap();
    }
    (folder, backend)
}

fn expect_corrupt(folder: &Path, words: &str) {
    let error = RocksBackend::open(folder, small()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BackendError::Corrupt(_)), "{error:?}");
    assert!(text.contains(words) && text.contains(folder.to_str().unwrap()), "{text}");
}

#[tokio::test]
async fn a_damaged_log_is_refused() {
    let (_folder, backend) = fifty().await;
    let origin = crashed(&backend);
    let log = files(origin.path(), ".log").pop().unwrap();
    let whole = std::fs::read(&log).unwrap();
    // In the middle; in the first record's type and the second's, for RocksDB the end and an endless loop; in a length in the last
    // block, for RocksDB a torn tail.
    let end = |at: usize| at + 7 + usize::from(u16::from_le_bytes([whole[at + 4], whole[at + 5]]));
    let second = end(0);
    let late = whole.len() - 5 * (end(second) - second);
    assert!(late > 32 << 10 && end(late) < whole.len() && whole[late + 6] == 1);
    for (at, bit) in [(whole.len() / 2, 1), (6, 4), (second + 6, 4), (late + 5, 0x40), (late + 5, 0x20), (whole.len() - 1, 1)] {
        let mut bad = whole.clone();
        bad[at] ^= bit;
        let copy = crashed(&backend);
        let damaged = copy.path().join(log.file_name().unwrap());
        std::fs::write(&damaged, &bad).unwrap();
        expect_corrupt(copy.path(), "is damaged at byte");
        assert_eq!(std::fs::read(&damaged).unwrap(), bad, "it is left as it is");
    }
}

/// Without the look at the logs beforehand: RocksDB itself refuses damage in the middle, too.
#[tokio::test]
async fn rocksdb_does_not_skip_what_it_cannot_read() {
    let (_folder, backend) = fifty().await;
    let copy = crashed(&backend);
    let log = files(copy.path(), ".log").pop().unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let (cache, buffers) = (Cache::new_lru_cache(1 << 20), WriteBufferManager::new_write_buffer_manager(1 << 20, false));
    let families = [DEFAULT_COLUMN_FAMILY_NAME, SIZES, VALUES].map(|name| family(name, &small(), &cache));
    let error = DB::open_cf_descriptors(&database_options(&small(), &buffers), copy.path(), families).unwrap_err();
    assert!(matches!(not_opened("", copy.path(), error), BackendError::Corrupt(_)));
}

#[tokio::test]
async fn a_torn_log_opens_with_what_is_whole() {
    let (_folder, backend) = fifty().await;
    for cut in [1, 5, 500] {
        let copy = crashed(&backend);
        let log = files(copy.path(), ".log").pop().unwrap();
        let len = log.metadata().unwrap().len();
        std::fs::File::options().write(true).open(&log).unwrap().set_len(len - cut).unwrap();
        let torn = RocksBackend::open(copy.path(), small()).unwrap();
        let names: Vec<String> = (0..49).map(|index| format!("v{index:02}")).collect();
        assert_eq!(torn.list_keys("", None, 100).await.unwrap(), names, "cut by {cut}");
        for name in names {
            assert_eq!(torn.get(&name, None).await.unwrap().unwrap(), vec![7; 1000]);
        }
        put(&torn, "v49", 1000).await.unwrap();
        drop(torn);
        assert_eq!(RocksBackend::open(copy.path(), small()).unwrap().stats().await.unwrap().values, Some(50));
    }
    let whole = RocksBackend::open(crashed(&backend).path(), small()).unwrap();
    assert_eq!(whole.stats().await.unwrap().values, Some(50));
}

#[tokio::test]
async fn damaged_files_are_corrupt_at_open() {
    let (folder, backend) = fifty().await;
    drop(backend);
    let backend = RocksBackend::open(folder.path(), small()).unwrap();
    let change = |kind: &str, change: &dyn Fn(&Path)| {
        let copy = crashed(&backend);
        let changed = files(copy.path(), kind);
        assert!(!changed.is_empty());
        changed.iter().for_each(|path| change(path));
        expect_corrupt(copy.path(), "cannot open the RocksDB database");
    };
    for kind in ["CURRENT", "MANIFEST", ".sst"] {
        change(kind, &|path| std::fs::remove_file(path).unwrap());
        change(kind, &|path| std::fs::write(path, "").unwrap());
        change(kind, &|path| flip(path, |len| len / 2));
    }
}

fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The entries at the start of each table, and the large value in its blob file.
#[tokio::test]
async fn damaged_blocks_are_corrupt_in_every_read() {
    let folder = tempfile::tempdir().unwrap();
    let backend = RocksBackend::open(folder.path(), small()).unwrap();
    for index in 0..50 {
        put(&backend, &format!("v{index:02}"), 1000).await.unwrap();
    }
    put(&backend, "v99", 100_000).await.unwrap();
    for family in [SIZES, VALUES] {
        backend.inner.db.flush_cf(backend.inner.family(family).unwrap()).unwrap();
    }
    for path in [files(folder.path(), ".sst"), files(folder.path(), ".blob")].concat() {
        flip(&path, |len| if len > 50_000 { len / 2 } else { 20 });
    }
    let corrupt = |error: BackendError| assert!(matches!(error, BackendError::Corrupt(_)), "{error:?}");
    corrupt(backend.exists("v05").await.unwrap_err());
    corrupt(backend.list_keys("", None, 100).await.unwrap_err());
    corrupt(backend.list_keys("v0", Some("v03"), 2).await.unwrap_err());
    corrupt(backend.get("v05", None).await.unwrap_err());
    corrupt(backend.get("v99", None).await.unwrap_err());
    corrupt(backend.delete("v05").await.unwrap_err());
    drop(backend);
    // The count at open meets it as well.
    expect_corrupt(folder.path(), "cannot count the values");
}

#[tokio::test]
async fn no_room_to_open_is_out_of_space() {
    let Some(mount) = Mount::tmpfs("1m") else { return };
    std::fs::write(mount.path().join("ballast"), vec![1; 1 << 20]).unwrap_or_default();
    let error = RocksBackend::open(mount.path().join("db"), small()).unwrap_err();
    assert!(matches!(error, BackendError::OutOfSpace(_)), "{error:?}");
}

/// The store asks often: one system call, whatever is stored.
#[tokio::test]
async fn stats_know_the_disk_and_are_cheap() {
    let Some(mount) = Mount::tmpfs("24m") else { return };
    let limited = RocksOptions { max_bytes: Some(1000), ..small() };
    let backend = RocksBackend::open(mount.path().join("db"), limited).unwrap();
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.available_bytes, stats.disk_bytes), (Some(1000), Some(24 << 20)));
    assert!((16 << 20..24 << 20).contains(&stats.disk_free_bytes.unwrap()), "{stats:?}");
    let start = std::time::Instant::now();
    for _ in 0..1000 {
        backend.stats().await.unwrap();
    }
    eprintln!("a call of stats takes {:?}", start.elapsed() / 1000);
    drop(backend);
}

/// A value is written to the log, then to the files of its flush: twice and a little, and again when it is compacted.
#[tokio::test]
async fn what_is_written_to_the_disk_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let options = RocksOptions { write_buffer_bytes: 64 << 20, ..small() };
    let backend = RocksBackend::open(folder.path(), options).unwrap();
    let written = || backend.device_bytes_written().unwrap();
    let begun = written();
    for i in 0..16 {
        put(&backend, &format!("v{i}"), 256 << 10).await.unwrap();
    }
    let logged = written() - begun;
    assert!((4 << 20..(4 << 20) + (64 << 10)).contains(&logged), "{logged} bytes for 4 MiB in the log");
    backend.inner.db.flush_cf(backend.inner.family(VALUES).unwrap()).unwrap();
    let flushed = written() - begun;
    assert!((8 << 20..(8 << 20) + (128 << 10)).contains(&flushed), "{flushed} bytes for 4 MiB in log and files");
}
