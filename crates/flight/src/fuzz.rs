//! Ways in for tests that feed this crate hostile bytes (docs/fuzzing.md). No part of its interface.

use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;
use sira_store::StorageClient;
use tonic::Status;
use tonic::body::Body;

use crate::frames::Frames;
use crate::seats::Calls;

/// Answers a `DoPut` whose HTTP/2 body is `frames`, as a server does once the call is let in: gives the JSON of the answer, or the refusal.
pub async fn put(store: &StorageClient, frames: Body) -> Result<Vec<u8>, Status> {
    let mut response = crate::put::handle(store.clone(), Calls::new(1), Request::new(frames)).await;
    if let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.code() != tonic::Code::Ok) {
        return Err(status);
    }
    let answer = response.body_mut().collect().await?;
    Ok(answer.to_bytes().to_vec())
}

/// Counts the HTTP/2 frames in what a connection sends, in pieces of `size`: gives how long it has to wait in the end.
pub fn frames(bytes: &[u8], size: usize) -> Option<Duration> {
    let now = Instant::now();
    let mut frames = Frames::new(now);
    bytes.chunks(size.max(1)).filter_map(|piece| frames.passed(piece, now)).last()
}
