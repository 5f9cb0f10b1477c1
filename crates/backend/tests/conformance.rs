//! Every backend passes the suite.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use sira_backend::conformance::{self, Fixture, Report};
use sira_backend::file::FileBackend;
use sira_backend::memory::MemoryBackend;
use sira_backend::object::ObjectBackend;
use sira_backend::rocks::{RocksBackend, RocksCompression, RocksOptions};
use sira_backend::sled::{SledBackend, SledOptions};
use sira_backend::{BackendError, StorageBackend};
use tempfile::TempDir;
#[path = "support/matrix.rs"]
mod matrix;
#[path = "support/servers.rs"]
mod servers;

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
    Sqlite,
    Sled,
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
            Kind::Sled => Arc::new(SledBackend::open(path, SledOptions { max_bytes: limit, ..SledOptions::default() })?),
            Kind::Object => {
                let backend = ObjectBackend::open_local(path)?;
                Arc::new(match limit {
                    Some(limit) => backend.with_limit(limit).await?,
                    None => backend,
                })
            }
            Kind::Sqlite => Arc::new(sira_backend::sqlite::SqliteBackend::open(path, limit).await?),
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

async fn check(name: &str, kind: Kind) {
    matrix::holds(name, &conformance::check(&mut InFolder { kind, folder: tempfile::tempdir().unwrap() }).await);
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

/// A database of a server of these tests, each new backend in a new table.
struct InDatabase {
    server: Arc<servers::Server>,
    table: String,
}
impl InDatabase {
    async fn check(kind: servers::Kind) -> Report {
        conformance::check(&mut InDatabase { server: servers::Server::shared(kind), table: String::new() }).await
    }

    async fn open(&mut self, new: bool, max_bytes: Option<u64>) -> Arc<dyn StorageBackend> {
        if new {
            self.table = format!("t{:032x}", rand::random::<u128>());
        }
        match self.server.kind() {
            servers::Kind::Postgres => {
                use sira_backend::postgres::PostgresBackend;
                let options = sira_backend::DatabaseOptions {
                    table: self.table.clone(),
                    max_bytes,
                    ..sira_backend::DatabaseOptions::new(self.server.url())
                };
                Arc::new(PostgresBackend::open(&options).await.unwrap())
            }
            servers::Kind::MariaDb => {
                use sira_backend::mysql::MySqlBackend;
                let options = sira_backend::DatabaseOptions {
                    table: self.table.clone(),
                    max_bytes,
                    ..sira_backend::DatabaseOptions::new(self.server.url())
                };
                Arc::new(MySqlBackend::open(&options).await.unwrap())
            }
            other => unreachable!("{other:?} has no tables"),
        }
    }
}
#[async_trait]
impl Fixture for InDatabase {
    async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
        self.open(true, None).await
    }

    async fn reopen(&mut self) -> Option<Arc<dyn StorageBackend>> {
        Some(self.open(false, None).await)
    }

    async fn limited(&mut self, bytes: u64) -> Option<Arc<dyn StorageBackend>> {
        Some(self.open(true, Some(bytes)).await)
    }
}
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres() {
    matrix::holds("postgres", &InDatabase::check(servers::Kind::Postgres).await);
}
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mysql() {
    matrix::holds("mysql", &InDatabase::check(servers::Kind::MariaDb).await);
}
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite() {
    check("sqlite", Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory() {
    matrix::holds("memory", &conformance::check(&mut Memory).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn file() {
    check("file", Kind::File).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rocks() {
    check("rocksdb", Kind::Rocks(RocksOptions::default())).await;
}

/// Buffers so small that values pass through flushes, blob files and compactions all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rocks_with_little_memory() {
    let (cache_bytes, write_buffer_bytes) = (256 << 10, 256 << 10);
    let options = RocksOptions { compression: RocksCompression::Zstd, cache_bytes, write_buffer_bytes, ..RocksOptions::default() };
    check("rocksdb, little memory", Kind::Rocks(options)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn object_local() {
    check("object, folder", Kind::Object).await;
}
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sled() {
    check("sled", Kind::Sled).await;
}

/// The path that stores across a network take, without the network.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn object_memory() {
    let report = conformance::check(&mut ByUrl { url: "memory:///".into(), opened: String::new() }).await;
    matrix::holds("object, memory", &report);
}

/// A bucket's folder, `s3://bucket/folder`; credentials and endpoint from the environment (`AWS_...`).
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs a bucket of your own: SIRA_TEST_S3_URL"]
async fn object_s3() {
    let url = std::env::var("SIRA_TEST_S3_URL").unwrap();
    conformance::check(&mut ByUrl { url, opened: String::new() }).await;
}

#[test]
fn the_page_has_all_backends() {
    matrix::complete();
}
