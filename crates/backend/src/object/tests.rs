use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{CopyOptions, Error, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutResult, Result};

use super::*;

const CREATE: PutOptions = PutOptions { mode: PutMode::Create, durability: crate::Durability::Durable, expires_in: None };

/// What goes wrong with the next puts.
#[derive(Debug)]
enum Fault {
    /// The put arrives, the answer does not.
    AnswerLost,
    /// The client tries again by itself and is told of its own first attempt.
    Repeated,
    /// The put does not arrive.
    Lost,
    /// The server says that another create is on its way, which then fails.
    Conflict,
}

/// An object store whose first puts fail.
#[derive(Debug)]
struct Faulty {
    store: InMemory,
    fault: Fault,
    left: AtomicU32,
    keep_metadata: bool,
}

impl fmt::Display for Faulty {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Faulty")
    }
}

fn lost() -> Error {
    Error::Generic { store: "Faulty", source: "timed out".into() }
}

fn exists(location: &Path) -> Error {
    Error::AlreadyExists { path: location.to_string(), source: "409".into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut options: object_store::PutOptions) -> Result<PutResult> {
        if !self.keep_metadata {
            options.attributes = Default::default();
        }
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return self.store.put_opts(location, payload, options).await;
        }
        match self.fault {
            Fault::AnswerLost => self.store.put_opts(location, payload, options).await.and(Err(lost())),
            Fault::Repeated => self.store.put_opts(location, payload, options).await.and(Err(exists(location))),
            Fault::Lost => Err(lost()),
            Fault::Conflict => Err(exists(location)),
        }
    }
    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.store.get_opts(location, options).await
    }
    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

fn faulty(fault: Fault, left: u32, keep_metadata: bool) -> ObjectBackend {
    let store = Faulty { store: InMemory::new(), fault, left: AtomicU32::new(left), keep_metadata };
    ObjectBackend::new(Arc::new(store), Path::ROOT, true, true, Survives::Nothing, None)
}

fn value(text: &'static str) -> Payload {
    [Bytes::from_static(text.as_bytes()), Bytes::from_static(b"!")].into_iter().collect()
}

#[tokio::test]
async fn a_create_in_doubt_is_read_back() {
    for keep_metadata in [true, false] {
        for fault in [Fault::AnswerLost, Fault::Repeated, Fault::Conflict] {
            let note = format!("{fault:?}, metadata {keep_metadata}");
            let backend = faulty(fault, 1, keep_metadata);
            assert_eq!(backend.put("a", value("mine"), CREATE).await.unwrap(), PutOutcome::Written, "{note}");
            assert_eq!(backend.put("a", value("other"), CREATE).await.unwrap(), PutOutcome::Exists, "{note}");
            assert_eq!(backend.put("a", value("them"), CREATE).await.unwrap(), PutOutcome::Exists, "{note}");
            assert_eq!(backend.get("a", None).await.unwrap().unwrap(), "mine!", "{note}");
        }
    }
    // The same bytes of another writer are not ours, where metadata tells.
    let backend = faulty(Fault::Lost, 0, true);
    assert_eq!(backend.put("a", value("same"), CREATE).await.unwrap(), PutOutcome::Written);
    assert_eq!(backend.put("a", value("same"), CREATE).await.unwrap(), PutOutcome::Exists);
}

#[tokio::test]
async fn what_cannot_be_decided_is_an_error() {
    let backend = faulty(Fault::Lost, 1, true);
    assert!(matches!(backend.put("a", value("mine"), CREATE).await, Err(BackendError::Unavailable { .. })));
    let backend = faulty(Fault::Conflict, 1000, true);
    assert!(matches!(backend.put("a", value("mine"), CREATE).await, Err(BackendError::Unavailable { .. })));
}

#[tokio::test]
async fn a_limit_counts_what_lies_there() {
    let backend = faulty(Fault::AnswerLost, 0, true);
    backend.put("before", vec![0; 6].into(), PutOptions::default()).await.unwrap();
    let backend = backend.with_limit(10).await.unwrap();
    assert!(matches!(backend.put("a", vec![0; 5].into(), CREATE).await, Err(BackendError::OutOfSpace(_))));
    backend.put("a", vec![0; 4].into(), CREATE).await.unwrap();
    assert_eq!(backend.put("a", vec![0; 4].into(), CREATE).await.unwrap(), PutOutcome::Exists);
    assert_eq!(backend.stats().await.unwrap().available_bytes, Some(0));
    assert!(backend.delete("before").await.unwrap());
    assert_eq!(
        backend.stats().await.unwrap(),
        StorageStats { values: Some(1), used_bytes: Some(4), available_bytes: Some(6), ..StorageStats::default() }
    );
}

#[tokio::test]
async fn a_failed_put_is_counted_as_it_left_things() {
    for (fault, used) in [(Fault::AnswerLost, 7), (Fault::Lost, 0)] {
        let backend = faulty(fault, 1, true).with_limit(10).await.unwrap();
        backend.put("a", vec![0; 7].into(), PutOptions::default()).await.unwrap_err();
        assert_eq!(backend.stats().await.unwrap().used_bytes, Some(used));
        backend.put("a", vec![0; 9].into(), PutOptions::default()).await.unwrap();
        let stats = backend.stats().await.unwrap();
        assert_eq!((stats.values, stats.used_bytes, stats.available_bytes), (Some(1), Some(9), Some(1)));
        assert_eq!((stats.disk_free_bytes, stats.disk_bytes), (None, None));
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let option = |key: &str| [(key.to_owned(), "x".to_owned())];
    for (url, options) in [
        ("no url", &[][..]),
        ("ftp://host/folder", &[]),
        ("http://host/folder", &[]),
        ("s3://bucket/folder", &option("no_such_option")),
        ("gs://bucket", &option("aws_region")),
        ("memory:///", &option("region")),
        ("file:///tmp/sira", &option("region")),
    ] {
        let error = ObjectBackend::open_url(url, options.iter().cloned()).unwrap_err();
        assert!(matches!(error, BackendError::Config(_)), "{url}: {error}");
    }
    let options = [("region", "r"), ("access_key_id", "a"), ("secret_access_key", "b"), ("timeout", "5s")];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let backend = ObjectBackend::open_url("s3://bucket/some/folder", options).unwrap();
    assert_eq!(backend.capabilities().max_name, 1024 - "some/folder/".len());
    assert!(backend.capabilities().shared && backend.inner.ordered);
}

#[tokio::test]
async fn a_folder_of_a_bucket_is_its_own() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let open = |folder: &str| ObjectBackend::new(store.clone(), Path::from(folder), true, true, Survives::Nothing, None);
    let (one, two) = (open("one/x"), open("one/xy"));
    for name in ["a", "b/c0", "b/c1", "b/d"] {
        one.put(name, value("1"), CREATE).await.unwrap();
    }
    two.put("a", value("2"), CREATE).await.unwrap();
    assert_eq!(one.list_keys("", None, 10).await.unwrap(), ["a", "b/c0", "b/c1", "b/d"]);
    assert_eq!(one.list_keys("b/c", None, 10).await.unwrap(), ["b/c0", "b/c1"]);
    assert_eq!(one.list_keys("b/", Some("b/c0"), 1).await.unwrap(), ["b/c1"]);
    assert_eq!(two.list_keys("", None, 10).await.unwrap(), ["a"]);
    assert!(matches!(one.put(&"n".repeat(1020), value("1"), CREATE).await, Err(BackendError::BadName { .. })));
}

#[tokio::test]
async fn a_local_folder_is_locked_and_cleaned() {
    let folder = tempfile::tempdir().unwrap();
    let backend = ObjectBackend::open_local(folder.path()).unwrap();
    backend.put("a/b", value("1"), CREATE).await.unwrap();
    assert!(ObjectBackend::open_local(folder.path()).is_err());
    drop(backend);
    std::fs::write(folder.path().join("a/c#1"), "half").unwrap();
    std::fs::create_dir_all(folder.path().join("left/empty")).unwrap();
    let backend = ObjectBackend::open_local(folder.path()).unwrap();
    assert!(!folder.path().join("a/c#1").exists() && !folder.path().join("left").exists());
    assert_eq!(backend.list_keys("", None, 10).await.unwrap(), ["a/b"]);
    let stats = backend.with_limit(100).await.unwrap().stats().await.unwrap();
    assert_eq!(stats.available_bytes, Some(98));
    assert!(stats.disk_free_bytes.unwrap() > 98 && stats.disk_bytes >= stats.disk_free_bytes);
}
