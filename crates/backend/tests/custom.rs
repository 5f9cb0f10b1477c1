//! The backend of the crate's documentation passes the suite.
#![allow(clippy::unwrap_used, reason = "the example is kept short")]

use std::sync::Arc;

use sira_backend::StorageBackend;
use sira_backend::conformance::{self, Fixture};

#[path = "support/matrix.rs"]
mod matrix;
#[path = "example/shelf.rs"]
mod shelf;

struct Shelves;

#[async_trait::async_trait]
impl Fixture for Shelves {
    async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
        Arc::new(shelf::Shelf::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_backend_passes() {
    matrix::holds("your own", &conformance::check(&mut Shelves).await);
}
