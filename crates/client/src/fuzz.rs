//! Ways in for tests that feed this crate hostile bytes (docs/fuzzing.md). No part of its interface.

use std::collections::VecDeque;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::task::{Context, Poll};

use arrow_flight::FlightData;
use bytes::Bytes;
use futures::FutureExt;
use loona_hpack::Decoder;
use sira_tensor::carrier::Column;
use sira_wire::same_host::{Kind, Mapped};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::get_into::Incoming;
use crate::http2::{Connection, Messages, Pool, block};
use crate::segments::Segments;
use crate::{ClientError, ConnectOptions, line, message, same_host};

/// Bytes, and chunks, of the largest tensor that is taken in: what a server says a tensor has, its reader makes room for.
const LARGEST: u64 = 64 << 10;

/// Reads what a server answers to a get of one key: a schema, then a batch of `body`.
pub fn tensor(schema: &[u8], batch: Vec<u8>, body: Bytes) -> Result<Bytes, ClientError> {
    let column = Column::of(&sira_wire::ipc::read_first(schema).map_err(ClientError::protocol)?)?;
    message::rows(&FlightData::new().with_data_header(batch).with_data_body(body), &column)
}

/// Reads what a server answers to a get of encoded chunks: a schema, then one message of `metadata` and `body`; gives how many bytes came of it.
pub fn chunks(schema: &[u8], metadata: &[u8], body: &[u8]) -> Result<usize, ClientError> {
    let schema = sira_wire::ipc::read_first(schema).map_err(ClientError::protocol)?;
    let (spec, _) = crate::get::carried_by(&schema)?;
    let Some(layout) = crate::chunks::layout(&schema)? else { return Ok(0) };
    if crate::chunks::Chunked::read(&schema, &spec, layout, None)?.nbytes() > LARGEST {
        return Ok(0);
    }
    Ok(crate::chunks::read(&schema, &spec, &[(metadata, body)])?.map_or(0, |bytes| bytes.len()))
}

/// Reads what a server says of `keys` keys in one message; gives how many events came of it.
pub fn segments(keys: usize, metadata: &[u8], body: &Bytes) -> Result<usize, ClientError> {
    let mut events = VecDeque::new();
    Segments::new(keys, None).read(metadata, body.len(), |range| body.slice(range), &mut events)?;
    Ok(events.len())
}

/// Gets a tensor over a connection on which the server says `bytes`, whatever it is asked, and no more; gives how many bytes the tensor has.
pub fn http2(bytes: &[u8]) -> Result<usize, ClientError> {
    let pool = Pool::new("grpc://localhost:1", &ConnectOptions::default(), None)?;
    let link = Box::new(Said(Cursor::new(bytes.to_vec())));
    let get = async {
        let lease = pool.lease(Connection::greet(link, None).await?);
        let (tensor, _) = Incoming::begin(Messages::over(lease, b"ns/a").await?).await?;
        let mut out = vec![0; tensor.spec.nbytes().min(LARGEST) as usize];
        tensor.read_into(&mut out).await.map(|()| out.len())
    };
    get.now_or_never().unwrap_or_else(|| Err(ClientError::protocol("it waits for what is there already")))
}

/// Reads header blocks, each with its length in two bytes before it, with one decoder; gives how many.
pub fn headers(mut bytes: &[u8]) -> Result<usize, ClientError> {
    let (mut decoder, mut count) = (Decoder::new(), 0);
    while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
        let (block, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
        block::read(&mut decoder, block)?;
        (bytes, count) = (rest, count + 1);
    }
    Ok(count)
}

/// Asks a server of the same machine for a tensor, whose answer is `bytes`; gives how many bytes it says that the tensor has.
pub async fn mapped(bytes: &[u8]) -> Result<u64, ClientError> {
    let lost = |error: io::Error| ClientError::protocol(error.to_string());
    let (mut ours, theirs) = UnixStream::pair().map_err(lost)?;
    // What a socket does not take at once has no reader yet.
    let said = theirs.try_write(bytes).unwrap_or(0);
    drop(theirs.into_std().map_err(lost)?.shutdown(std::net::Shutdown::Write));
    let reply = line::exchange(&mut ours, Kind::Map, b"{}", true).await.map_err(lost)??;
    let mapped: Mapped = serde_json::from_slice(&reply.json).map_err(ClientError::protocol)?;
    debug_assert!(reply.inline.len() <= said);
    Ok(same_host::spec_of(&mapped)?.nbytes())
}

/// A server that says this, and hears nothing.
struct Said(Cursor<Vec<u8>>);

impl AsyncRead for Said {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Said {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
