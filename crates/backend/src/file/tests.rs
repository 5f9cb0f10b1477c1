use std::os::unix::fs::symlink;

use super::*;
use crate::testing::Mount;

fn bytes(len: usize) -> Payload {
    Payload::from(vec![7; len])
}

async fn put(backend: &FileBackend, name: &str, len: usize) -> Result<PutOutcome, BackendError> {
    backend.put(name, bytes(len), PutOptions::default()).await
}

#[tokio::test]
async fn the_folder_is_locked_and_cleaned() {
    let folder = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(folder.path(), None).unwrap();
    put(&backend, "a/b/c", 10).await.unwrap();
    let error = FileBackend::open(folder.path(), None).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    drop(backend);

    fs::write(folder.path().join("tmp/9"), "half a value").unwrap();
    fs::create_dir_all(folder.path().join("values/left/empty")).unwrap();
    let backend = FileBackend::open(folder.path(), None).unwrap();
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    assert!(!folder.path().join("values/left").exists());
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.values, stats.used_bytes), (Some(1), Some(10)));

    assert!(backend.delete("a/b/c").await.unwrap());
    assert_eq!(fs::read_dir(folder.path().join("values")).unwrap().count(), 0, "empty folders are removed");
}

#[tokio::test]
async fn links_lead_nowhere() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let backend = FileBackend::open(folder.path(), None).unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), folder.path().join("values/out")).unwrap();
    symlink(outside.path().join("secret"), folder.path().join("values/file")).unwrap();

    assert_eq!(backend.get("out/secret", None).await.unwrap(), None);
    assert!(!backend.exists("file").await.unwrap());
    backend.get("file", None).await.unwrap_err();
    assert!(!backend.delete("out/secret").await.unwrap());
    assert!(matches!(put(&backend, "out/mine", 1).await, Err(BackendError::BadName { .. })));
    assert_eq!(backend.list_keys("", None, 10).await.unwrap(), Vec::<String>::new());
    assert_eq!(backend.list_keys("out/../", None, 10).await.unwrap(), Vec::<String>::new());
    // A put replaces the link itself.
    put(&backend, "file", 3).await.unwrap();
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_value_is_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(folder.path(), None).unwrap();
    put(&backend, "a", 1).await.unwrap();
    put(&backend, "b/c", 1).await.unwrap();
    for name in ["a/b", "b"] {
        assert!(matches!(put(&backend, name, 1).await, Err(BackendError::BadName { .. })), "{name}");
        assert_eq!(backend.get(name, None).await.unwrap(), None);
        assert!(!backend.exists(name).await.unwrap());
        assert!(!backend.delete(name).await.unwrap());
    }
    assert_eq!(backend.stats().await.unwrap().used_bytes, Some(2));
}

#[tokio::test]
async fn a_page_of_a_large_folder_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(folder.path(), None).unwrap();
    let values = folder.path().join("values");
    for index in 0..300 {
        // Empty folders sort first, so that one reading of the folder is not enough.
        fs::create_dir(values.join(format!("a{index:03}"))).unwrap();
        fs::write(values.join(format!("b{index:03}")), "").unwrap();
    }
    let page = backend.list_keys("", None, 3).await.unwrap();
    assert_eq!(page, ["b000", "b001", "b002"]);
    let page = backend.list_keys("b", Some("b2"), 1000).await.unwrap();
    assert_eq!((page.len(), page[0].as_str()), (100, "b200"));
}

/// Puts and deletes of values that share folders: no put may fail because a delete removed its folder.
#[tokio::test(flavor = "multi_thread")]
async fn puts_race_deletes_for_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(folder.path(), None).unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let backend = backend.clone();
            tokio::spawn(async move {
                for round in 0..50 {
                    let name = format!("x/{}/{task}", round % 2);
                    put(&backend, &name, 1).await.unwrap();
                    assert!(backend.delete(&name).await.unwrap());
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(backend.stats().await.unwrap().values, Some(0));
    assert!(backend.inner.fresh_is_empty());
}

impl Inner {
    fn fresh_is_empty(&self) -> bool {
        format!("{:?}", self.fresh).contains("{}")
    }
}

#[tokio::test]
async fn a_full_disk_is_out_of_space() {
    let Some(mount) = Mount::tmpfs("4m") else { return };
    let backend = FileBackend::open(mount.path(), None).unwrap();
    put(&backend, "a", 3 << 20).await.unwrap();
    for name in ["a", "b"] {
        let error = put(&backend, name, 2 << 20).await.unwrap_err();
        assert!(matches!(error, BackendError::OutOfSpace(_)), "{error}");
    }
    assert_eq!(backend.get("a", None).await.unwrap().unwrap().len(), 3 << 20);
    let stats = backend.stats().await.unwrap();
    assert_eq!((stats.values, stats.used_bytes), (Some(1), Some(3 << 20)));
    assert!(stats.available_bytes.unwrap() <= 1 << 20);
    assert_eq!((stats.disk_free_bytes, stats.disk_bytes), (stats.available_bytes, Some(4 << 20)));
    assert!(backend.delete("a").await.unwrap());
    put(&backend, "b", 2 << 20).await.unwrap();
    drop(backend);
}
