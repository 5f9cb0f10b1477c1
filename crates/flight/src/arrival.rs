//! The bodies of calls other than puts: one message each, which is gathered before its call takes a place among those under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use sira_store::StorageClient;
use sira_store::ledger::Reservation;
use sira_wire::Code;
use tonic::Status;
use tonic::body::Body;

use crate::status::{of_store, refuse};

/// A body must be whole this long after its call came.
const WHOLE_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of a body: that of a lookup of many keys is the largest.
pub(crate) const MAX_REQUEST: usize = 8 << 20;

/// gRPC's prefix of a message.
const PREFIX: usize = 5;

/// Bytes of all bodies that are not whole.
const UNFINISHED: u64 = 64 << 20;

/// Bytes of a small body. Larger ones are in the ledger while their calls run.
const SMALL: usize = 256 << 10;

/// Bytes of a frame that is worth the memory it may keep: that of a frame of the largest size.
const LARGE: usize = 64 << 10;

/// Bytes of [`UNFINISHED`] that only small bodies may take, so that large ones that stall do not keep out the calls that everybody makes.
const FOR_SMALL: u64 = 16 << 20;

/// The bodies that are on their way to a server.
#[derive(Clone, Default)]
pub(crate) struct Arrivals {
    bytes: Arc<AtomicU64>,
}

/// A part of the bytes, given back when dropped.
struct Share {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Share {
    /// Takes `more` bytes, or refuses.
    fn take(&mut self, more: u64) -> Result<(), Status> {
        let most = if self.bytes + more > SMALL as u64 { UNFINISHED - FOR_SMALL } else { UNFINISHED };
        let fits = |all: u64| all.checked_add(more).filter(|sum| *sum <= most);
        if self.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return Err(refuse(Code::Busy, format!("requests that have not come whole take {most} bytes; try again")));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Arrivals {
    /// The whole of a body, and the memory that a large one takes: to be held until the call has ended.
    pub async fn gather(&self, store: &StorageClient, body: Body) -> Result<(Bytes, Reservation), Status> {
        let mut share = Share { all: self.bytes.clone(), bytes: 0 };
        let late = |_| refuse(Code::Busy, format!("the request did not come whole within {} seconds", WHOLE_WITHIN.as_secs()));
        let body = tokio::time::timeout(WHOLE_WITHIN, whole(body, &mut share)).await.map_err(late)??;
        let reservation = match body.len() {
            ..=SMALL => Reservation::default(),
            large => store.reserve(large as u64).await.map_err(of_store)?,
        };
        Ok((body, reservation))
    }
}

/// All bytes of `body`. They are copied: a frame of a few bytes may keep much more memory than they take. Only a large body that comes as one frame
/// stays where it is.
async fn whole(mut body: Body, share: &mut Share) -> Result<Bytes, Status> {
    let (mut first, mut bytes) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let so_far = first.len() + bytes.len();
        if so_far + data.len() > MAX_REQUEST + PREFIX {
            return Err(refuse(Code::BadRequest, format!("a request of more than {MAX_REQUEST} bytes")));
        }
        share.take(data.len() as u64)?;
        if so_far == 0 && data.len() >= LARGE {
            first = data;
            continue;
        }
        let first = std::mem::take(&mut first);
        if !first.is_empty() {
            // As much as its prefix says there will be, unless that is much more than has come.
            bytes.reserve((message_bytes(&first).unwrap_or(0) + PREFIX).min(8 * first.len()));
            bytes.extend_from_slice(&first);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(if first.is_empty() { bytes.freeze() } else { first })
}

/// Bytes of the message that follows a gRPC prefix, if it is not compressed.
fn message_bytes(body: &[u8]) -> Option<usize> {
    let (&[compressed, a, b, c, d], _) = body.split_first_chunk::<PREFIX>()?;
    (compressed == 0).then_some(u32::from_be_bytes([a, b, c, d]) as usize)
}

/// The message of a body that came whole. It goes beside the generated service, which would copy it once more.
#[derive(Clone)]
pub(crate) struct Message(pub Bytes);

/// Puts the message of an action beside its request, whose body is then that of an empty one.
pub(crate) fn aside(head: &mut http::request::Parts, body: Bytes) -> Bytes {
    if !head.uri.path().ends_with("/DoAction") || message_bytes(&body) != Some(body.len().saturating_sub(PREFIX)) {
        return body;
    }
    head.extensions.insert(Message(body.slice(PREFIX..)));
    Bytes::from_static(&[0; PREFIX])
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    /// A body of these pieces, of which the end never comes unless `ends`.
    fn body(pieces: Vec<usize>, ends: bool) -> Body {
        let pieces = futures::stream::iter(pieces).map(|size| Ok::<_, Status>(Frame::data(Bytes::from(vec![7; size]))));
        let rest = futures::stream::poll_fn(move |_| if ends { std::task::Poll::Ready(None) } else { std::task::Poll::Pending });
        Body::new(StreamBody::new(pieces.chain(rest)))
    }

    fn share(all: &Arc<AtomicU64>) -> Share {
        Share { all: all.clone(), bytes: 0 }
    }

    #[tokio::test]
    async fn a_body_is_limited_and_gives_its_share_back() {
        let all = Arc::default();
        let mut taken = share(&all);
        let whole_body = whole(body(vec![3, 0, 1000], true), &mut taken).await.unwrap();
        assert_eq!((whole_body.len(), all.load(Ordering::Relaxed)), (1003, 1003));
        drop(taken);
        assert_eq!(whole(body(vec![MAX_REQUEST, 5], true), &mut share(&all)).await.unwrap().len(), MAX_REQUEST + 5);
        let status = whole(body(vec![MAX_REQUEST, 6], false), &mut share(&all)).await.unwrap_err();
        assert!(status.message().starts_with("SIRA_BAD_REQUEST: "), "{status}");
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn bodies_are_the_same_however_they_are_cut() {
        let bytes: Vec<u8> = (0..3 * LARGE).map(|i| (i % 251) as u8).collect();
        for cuts in [vec![], vec![LARGE], vec![LARGE - 1], vec![LARGE, 2 * LARGE], vec![1, LARGE + 1], vec![2 * LARGE, 2 * LARGE + 1]] {
            let ends = [&cuts[..], &[bytes.len()]].concat();
            let mut start = 0;
            let pieces: Vec<Bytes> =
                ends.iter().map(|end| Bytes::copy_from_slice(&bytes[std::mem::replace(&mut start, *end)..*end])).collect();
            let frames = pieces.clone().into_iter().map(|piece| Ok::<_, Status>(Frame::data(piece)));
            let body = whole(Body::new(StreamBody::new(futures::stream::iter(frames))), &mut share(&Arc::default())).await.unwrap();
            assert_eq!(body, bytes, "{cuts:?}");
            assert_eq!(body.as_ptr() == pieces[0].as_ptr(), cuts.is_empty(), "one large frame stays where it is");
        }
    }

    #[test]
    fn only_whole_actions_go_aside() {
        let aside = |path: &str, body: &'static [u8]| {
            let (mut head, ()) = http::Request::builder().uri(path).body(()).unwrap().into_parts();
            let rest = aside(&mut head, Bytes::from_static(body));
            (head.extensions.remove::<Message>().map(|Message(bytes)| bytes.to_vec()), rest.to_vec())
        };
        assert_eq!(aside("/x/DoAction", &[0, 0, 0, 0, 2, 7, 8]), (Some(vec![7, 8]), vec![0; 5]));
        for (path, body) in [
            ("/x/DoGet", &[0, 0, 0, 0, 2, 7, 8][..]),
            ("/x/DoAction", &[1, 0, 0, 0, 2, 7, 8]),
            ("/x/DoAction", &[0, 0, 0, 0, 3, 7, 8]),
            ("/x/DoAction", &[0, 0, 0, 0, 1, 7, 8]),
            ("/x/DoAction", &[0, 0]),
            ("/x/DoAction", &[]),
        ] {
            assert_eq!(aside(path, body), (None, body.to_vec()), "{path} {body:?}");
        }
    }

    #[tokio::test]
    async fn large_bodies_that_stall_leave_room_for_small_ones() {
        let all: Arc<AtomicU64> = Arc::default();
        let mut stalled: Vec<_> = (0..6).map(|_| share(&all)).collect();
        for share in &mut stalled {
            share.take(MAX_REQUEST as u64).unwrap();
        }
        let status = whole(body(vec![SMALL, 1], true), &mut share(&all)).await.unwrap_err();
        assert!(status.message().starts_with("SIRA_BUSY: "), "{status}");
        assert!(whole(body(vec![SMALL], true), &mut share(&all)).await.is_ok());
        let mut small: Vec<_> = (0..FOR_SMALL / SMALL as u64).map(|_| share(&all)).collect();
        for share in &mut small {
            share.take(SMALL as u64).unwrap();
        }
        assert!(share(&all).take(1).is_err());
        drop(stalled);
        assert!(share(&all).take(MAX_REQUEST as u64).is_ok());
    }
}
