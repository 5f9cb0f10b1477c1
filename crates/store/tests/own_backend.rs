//! The backend of the example passes the suite that Sira's own pass.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use sira_backend::StorageBackend;
use sira_backend::conformance::{self, Fixture};

#[path = "../examples/own_backend/redb.rs"]
mod redb;

/// Each new backend in a new folder.
struct Redb(tempfile::TempDir);

/// In memory where that is a file system: each put is synced, which a disk takes its time for.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

#[async_trait::async_trait]
impl Fixture for Redb {
    async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
        self.0 = folder();
        self.reopen().await.unwrap()
    }

    async fn reopen(&mut self) -> Option<Arc<dyn StorageBackend>> {
        Some(Arc::new(redb::RedbBackend::open(self.0.path().join("values.redb")).unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_backend_of_the_example_conforms() {
    conformance::check(&mut Redb(folder())).await;
}
