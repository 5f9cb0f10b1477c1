//! The body of a put: pieces in, messages out, the count exact.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::FlightData;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use sira_tensor::TensorSpec;
use sira_wire::PutOptions;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::message;

/// Bytes of tensor in a message: half of what gRPC libraries accept by default.
const PIECE: usize = 2 << 20;

/// The pieces that a put is made of.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Where the body leaves the reason why it ended early.
pub(crate) type Failure = Arc<Mutex<Option<io::Error>>>;

/// Reads a source in pieces.
pub fn read_pieces(source: impl AsyncRead + Send + 'static) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(Box::pin(source), |mut source| async move {
        let mut piece = BytesMut::with_capacity(PIECE);
        // `read_buf` stops at what the source has at hand; whole pieces make fewer messages, and need no padding.
        while piece.len() < PIECE {
            let room = PIECE - piece.len();
            if (&mut source).take(room as u64).read_buf(&mut piece).await? == 0 {
                break;
            }
        }
        Ok((!piece.is_empty()).then(|| (piece.freeze(), source)))
    })
}

/// The options of a put of this tensor.
pub(crate) fn describing(mut options: PutOptions, spec: &TensorSpec) -> PutOptions {
    options.shape = Some(spec.shape().to_vec());
    options.dtype = Some(spec.dtype());
    options.axes = (!spec.axes().is_empty()).then(|| spec.axes().to_vec());
    for (name, value) in spec.attributes() {
        options.attributes.entry(name.clone()).or_insert_with(|| value.clone());
    }
    options
}

struct Body {
    first: Option<FlightData>,
    pieces: Pieces,
    /// What is left of the piece being cut.
    rest: Bytes,
    /// Bytes of the tensor that are still to come, `rest` included in them.
    wanted: u64,
    total: u64,
    failure: Failure,
}

/// The messages of a put. It ends before the tensor is whole when the source fails or has another length than `nbytes`: the server then
/// commits nothing, and `failure` has the reason.
pub(crate) fn body(first: FlightData, pieces: Pieces, nbytes: u64, failure: Failure) -> impl Stream<Item = FlightData> + Send + 'static {
    let body = Body { first: Some(first), pieces, rest: Bytes::new(), wanted: nbytes, total: nbytes, failure };
    stream::unfold(body, |mut body| async move {
        if let Some(first) = body.first.take() {
            return Some((first, body));
        }
        match body.next().await {
            Ok(piece) => piece.map(|piece| (message::batch(piece), body)),
            Err(error) => {
                *body.failure.lock() = Some(error);
                None
            }
        }
    })
}

impl Body {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.rest.is_empty() {
            match self.pieces.next().await {
                Some(piece) => self.rest = piece?,
                None if self.wanted == 0 => return Ok(None),
                None => return Err(self.wrong_length(&format!("only {}", self.total - self.wanted))),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        let Some(wanted) = self.wanted.checked_sub(piece.len() as u64).filter(|&wanted| wanted > 0 || self.rest.is_empty()) else {
            return Err(self.wrong_length("more"));
        };
        self.wanted = wanted;
        if wanted == 0 {
            // The last piece makes the tensor whole and lets the server commit: only now is it time to know that the source is at its end.
            while let Some(more) = self.pieces.next().await {
                if !more?.is_empty() {
                    return Err(self.wrong_length("more"));
                }
            }
        }
        Ok(Some(piece))
    }

    fn wrong_length(&self, found: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("the tensor has {} bytes, its source has {found}", self.total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(nbytes: u64, pieces: Vec<io::Result<Bytes>>) -> (usize, Option<String>) {
        let failure = Failure::default();
        let stream = body(FlightData::new(), Box::pin(stream::iter(pieces)), nbytes, failure.clone());
        let messages: Vec<FlightData> = stream.collect().await;
        let error = failure.lock().take().map(|error| error.to_string());
        (messages.len() - 1, error)
    }

    #[tokio::test]
    async fn the_last_piece_goes_out_only_when_the_count_is_exact() {
        let piece = |len: usize| Ok(Bytes::from(vec![7; len]));
        assert_eq!(run(0, vec![]).await, (0, None));
        assert_eq!(run(24, vec![piece(16), piece(0), piece(8), piece(0)]).await, (2, None));
        assert_eq!(run(3 * PIECE as u64 + 1, vec![piece(3 * PIECE + 1)]).await, (4, None));
        assert_eq!(run(24, vec![piece(16)]).await.1.unwrap(), "the tensor has 24 bytes, its source has only 16");
        assert_eq!(run(24, vec![piece(16), piece(9)]).await, (1, Some("the tensor has 24 bytes, its source has more".into())));
        assert_eq!(run(24, vec![piece(24), piece(1)]).await, (0, Some("the tensor has 24 bytes, its source has more".into())));
        assert_eq!(run(0, vec![piece(1)]).await.0, 0);
        assert_eq!(run(24, vec![piece(24), Err(io::Error::other("disk"))]).await, (0, Some("disk".into())));
    }

    #[tokio::test]
    async fn a_reader_comes_in_whole_pieces() {
        let bytes: Vec<u8> = (0..PIECE + 5).map(|i| i as u8).collect();
        let pieces: Vec<_> = read_pieces(io::Cursor::new(bytes.clone())).map(Result::unwrap).collect().await;
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE, 5]);
        assert_eq!(pieces.concat(), bytes);
    }
}
