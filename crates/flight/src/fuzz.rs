//! Ways in for tests that feed this crate hostile bytes (docs/fuzzing.md). No part of its interface.

use std::io;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;
use sira_store::StorageClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::body::Body;

use crate::frames::Frames;
use crate::same_host::{Neighbour, Neighbours};
use crate::seats::{Calls, Room};

/// Answers a `DoPut` whose HTTP/2 body is `frames`, as a server does once the call is let in: gives the JSON of the answer, or the refusal.
pub async fn put(store: &StorageClient, frames: Body) -> Result<Vec<u8>, Status> {
    let mut response = crate::put::handle(store.clone(), || false, Request::new(frames)).await;
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

/// Serves a connection of the same machine whose client says `bytes` after its greeting, and then no more; gives how many bytes were answered.
pub async fn neighbour(store: &StorageClient, bytes: &[u8]) -> io::Result<usize> {
    let (mut theirs, ours) = UnixStream::pair()?;
    let seat = Room::new(1, 1).seat(true).await.ok_or(io::ErrorKind::ConnectionRefused)?;
    let neighbours = Neighbours::new(store.clone(), None, Calls::new(1));
    let served = neighbours.one(Neighbour { stream: ours.into_std()?, seat });
    let asked = async {
        // A connection that was closed takes no more.
        let _ = theirs.write_all(bytes).await;
        let _ = theirs.shutdown().await;
        let mut answers = Vec::new();
        let _ = theirs.read_to_end(&mut answers).await;
        answers.len()
    };
    Ok(tokio::join!(served, asked).1)
}
