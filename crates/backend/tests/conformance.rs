//! Every backend passes the suite.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use sira_backend::conformance::{self, Fixture};
use sira_backend::file::FileBackend;
use sira_backend::memory::MemoryBackend;
use sira_backend::object::ObjectBackend;
use sira_backend::rocks::{RocksBackend, RocksCompression, RocksOptions};
use sira_backend::{BackendError, StorageBackend};
use tempfile::TempDir;

struct Memory;

#[async_trait]
impl Fixture for Memory {
    async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
        Arc::new(MemoryBackend::new(256 << 20))
    }

    async fn limited(&mut self, bytes: u64) -> Option<Arc<dyn StorageBackend>> {
        Some(Arc::new(MemoryBackend::new(bytes)))
    }
}

enum Kind {
    File,
    Rocks(RocksOptions),
    Object,
}

/// A backend in a folder: each new one in a new folder.
struct InFolder {
    kind: Kind,
    folder: TempDir,
}

impl InFolder {
    async fn open(&self, path: &Path, limit: Option<u64>) -> Result<Arc<dyn StorageBackend>, BackendError> {
        Ok(match &self.kind {
            Kind::File => Arc::new(FileBackend::open(path, limit)?),
            Kind::Rocks(options) => Arc::new(RocksBackend::open(path, RocksOptions { max_bytes: limit, ..options.clone() })?),
            Kind::Object => {
                let backend = ObjectBackend::open_local(path)?;
                Arc::new(match limit {
                    Some(limit) => backend.with_limit(limit).await?,
                    None => backend,
                })
            }
        })
    }
}

#[async_trait]
impl Fixture for InFolder {
    async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
        self.folder = tempfile::tempdir().unwrap();
        self.open(self.folder.path(), None).await.unwrap()
    }

    async fn reopen(&mut self) -> Option<Arc<dyn StorageBackend>> {
        Some(self.open(self.folder.path(), None).await.unwrap())
    }

    async fn limited(&mut self, bytes: u64) -> Option<Arc<dyn StorageBackend>> {
        self.folder = tempfile::tempdir().unwrap();
        Some(self.open(self.folder.path(), Some(bytes)).await.unwrap())
    }
}

async fn check(kind: Kind) {
    conformance::check(&mut InFolder { kind, folder: tempfile::tempdir().unwrap() }).await;
}

/// A store by URL, each new backend in a new folder of it.
struct ByUrl {
    url: String,
    opened: String,
}

#[async_trait]
impl Fixture for ByUrl {
    async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
        self.opened = format!("{}/{:032x}", self.url.trim_end_matches('/'), rand::random::<u128>());
        Arc::new(ObjectBackend::open_url(&self.opened, []).unwrap())
    }

    async fn reopen(&mut self) -> Option<Arc<dyn StorageBackend>> {
        (!self.url.starts_with("memory")).then(|| Arc::new(ObjectBackend::open_url(&self.opened, []).unwrap()) as Arc<dyn StorageBackend>)
    }

    async fn limited(&mut self, bytes: u64) -> Option<Arc<dyn StorageBackend>> {
        let url = format!("{}/{:032x}", self.url.trim_end_matches('/'), rand::random::<u128>());
        let backend = ObjectBackend::open_url(&url, []).unwrap();
        Some(Arc::new(backend.with_limit(bytes).await.unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory() {
    conformance::check(&mut Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn file() {
    check(Kind::File).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rocks() {
    check(Kind::Rocks(RocksOptions::default())).await;
}

/// Buffers so small that values pass through flushes, blob files and compactions all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rocks_with_little_memory() {
    let (cache_bytes, write_buffer_bytes) = (256 << 10, 256 << 10);
    check(Kind::Rocks(RocksOptions { compression: RocksCompression::Zstd, cache_bytes, write_buffer_bytes, ..RocksOptions::default() }))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn object_local() {
    check(Kind::Object).await;
}

/// The path that stores across a network take, without the network.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn object_memory() {
    conformance::check(&mut ByUrl { url: "memory:///".into(), opened: String::new() }).await;
}

/// A bucket's folder, `s3://bucket/folder`; credentials and endpoint from the environment (`AWS_...`).
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn object_s3() {
    match std::env::var("SIRA_TEST_S3_URL") {
        Ok(url) => conformance::check(&mut ByUrl { url, opened: String::new() }).await,
        Err(_) => eprintln!("skipped: SIRA_TEST_S3_URL is not set"),
    }
}
