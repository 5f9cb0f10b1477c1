//! `DoGet`: a tensor out, as the batches of its carrier. Its bytes go from where they lie to the socket; no message is put together.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow_flight::{FlightData, SchemaAsIpc};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::Schema;
use bytes::{Buf, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::{HeaderValue, Response, header};
use http_body::{Body, Frame};
use prost::Message;
use sira_store::{Demands, Operation, Reader, Request, StorageClient, StoreError};
use sira_tensor::TensorSpec;
use sira_tensor::carrier::Carrier;
use sira_wire::many::ManyTicket;
use sira_wire::{Code, PutOptions, Ticket};
use tonic::Status;

use crate::answer::Outgoing;
use crate::get_encoded::Chunks;
use crate::get_many::Many;
use crate::ipc;
use crate::pieces::{Pieces, begin_message};
use crate::seats::{Guest, Turn};
use crate::status::{of_store, of_wire, outcome, refuse, trailers};

/// Bytes of tensor in a message, at most: what docs/wire.md promises.
pub(crate) const MESSAGE_BYTES: u64 = 4 << 20;

/// Bytes of a frame of HTTP/2, at least and at most, and frames of a message in between: a client of gRPC takes a message in while it comes, frame by
/// frame, and is faster with several of them than with one (docs/performance.md).
const LEAST_FRAME: usize = 64 << 10;
const MOST_FRAME: usize = 256 << 10;
const FRAMES: usize = 8;

/// Bytes of each of the frames that `len` bytes are sent in.
fn frame_bytes(len: usize) -> usize {
    let frames = (len / LEAST_FRAME).clamp(1, FRAMES).max(len.div_ceil(MOST_FRAME));
    len.div_ceil(frames).max(1)
}

/// The carrier of a tensor and its schema, which says what the tensor is.
pub(crate) fn carrier(spec: &TensorSpec) -> (Carrier, Schema) {
    let carrier = Carrier::of(spec, MESSAGE_BYTES);
    let schema = Schema::new_with_metadata(vec![carrier.field.clone()], described(spec).to_metadata());
    (carrier, schema)
}

/// What an answer says of a tensor: as a put says it.
pub(crate) fn described(spec: &TensorSpec) -> PutOptions {
    PutOptions {
        shape: Some(spec.shape().to_vec()),
        dtype: Some(spec.dtype()),
        axes: Some(spec.axes().to_vec()).filter(|axes| !axes.is_empty()),
        attributes: spec.attributes().clone(),
        ..PutOptions::default()
    }
}

/// Where the messages of a get come from.
pub(crate) trait Source: Send + 'static {
    /// The next message, or several; `None` after the last.
    fn next(&mut self) -> impl Future<Output = Result<Option<Pieces>, Status>> + Send;
}

/// Answers a `DoGet` whose request has come whole. An error before the first bytes is an answer without a body.
pub(crate) async fn handle(store: &StorageClient, message: Bytes, guest: Arc<Guest>) -> Result<Response<Outgoing>, Status> {
    let mut counted = store.request(Operation::Get);
    let turn = guest.turn().await;
    let begun = begin(store, message).await;
    counted.first_byte();
    if begun.is_err() {
        counted.end(outcome(&begun));
    }
    let (first, rest) = begun?;
    let mut response =
        Response::new(Outgoing::Get(Get { frame: frame_bytes(first.remaining()), message: Some(first), rest: Some(rest), counted, turn }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// The first message of a get, and where the others come from.
async fn begin(store: &StorageClient, message: Bytes) -> Result<(Pieces, Messages), Status> {
    let ticket = ticket(message)?;
    if let Some(many) = ManyTicket::parse(&ticket) {
        let (keys, ticket) = many.map_err(|e| of_wire(&e))?;
        return messages(Many::new(store.clone(), keys, ticket)).await;
    }
    let (key, ticket) = Ticket::parse(&ticket).map_err(|e| of_wire(&e))?;
    let demands = Demands { version: ticket.version, kv_spec: ticket.kv_spec.clone(), exact: ticket.exact };
    let snapshot = store.snapshot(&key, &demands).map_err(of_store)?;
    let part = snapshot.part(ticket.part.as_deref()).map_err(of_store)?;
    if let Some(stages) = &ticket.encoded
        && let Some(reader) = snapshot.read_encoded(part, &ticket.slice, stages).await.map_err(of_store)?
    {
        return messages(Chunks::new(reader)).await;
    }
    messages(Rows::new(snapshot.read(part, &ticket.slice).await.map_err(of_store)?)).await
}

async fn messages(mut source: impl Source) -> Result<(Pieces, Messages), Status> {
    let first = source.next().await?.unwrap_or_default();
    let rest = futures::stream::try_unfold(source, |mut source| async move { Ok(source.next().await?.map(|pieces| (pieces, source))) });
    Ok((first, rest.boxed()))
}

/// The bytes of the ticket in a gRPC message.
fn ticket(mut message: Bytes) -> Result<Bytes, Status> {
    let bad = |why: &str| refuse(Code::BadRequest, format!("the request of a get cannot be read: {why}"));
    if message.len() < 5 {
        return Err(bad("it ends within the prefix of its message"));
    }
    let prefix = message.split_to(5);
    if prefix[0] != 0 {
        return Err(refuse(Code::Unsupported, "compressed gRPC messages are not read"));
    }
    if u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize != message.len() {
        return Err(bad("it is not one message of the length that it says"));
    }
    Ok(arrow_flight::Ticket::decode(message).map_err(|e| bad(&e.to_string()))?.ticket)
}

type Messages = BoxStream<'static, Result<Pieces, Status>>;

/// The body of an answer to `DoGet`. Dropped, it gives back its memory and its turn.
pub(crate) struct Get {
    /// What is left of the message that is being sent, and the bytes of its frames.
    message: Option<Pieces>,
    frame: usize,
    /// Until it has ended.
    rest: Option<Messages>,
    counted: Request,
    turn: Option<Turn>,
}

impl Get {
    /// Whether other gets of its connection wait for it to end.
    pub fn is_awaited(&self) -> bool {
        self.turn.as_ref().is_some_and(Turn::is_awaited)
    }

    /// The next frame of the message, if anything is left of it.
    fn next_frame(&mut self) -> Option<Frame<Pieces>> {
        let (message, frame) = (self.message.as_mut()?, self.frame);
        let next = message.split_to(frame);
        if message.remaining() == 0 {
            self.message = None;
        }
        Some(Frame::data(next))
    }

    /// It is about to be dropped, because its client does not read.
    pub fn cut_off(&mut self) {
        self.counted.end(Err(Code::Busy));
    }
}

impl Body for Get {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        if let Some(frame) = self.next_frame() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let end = match ready!(rest.poll_next_unpin(context)) {
            Some(Ok(message)) => {
                self.frame = frame_bytes(message.remaining());
                self.message = Some(message);
                let frame = self.next_frame().unwrap_or_else(|| Frame::data(Pieces::default()));
                return Poll::Ready(Some(Ok(frame)));
            }
            Some(Err(status)) => Err(status),
            None => Ok(()),
        };
        self.rest = None;
        self.counted.end(outcome(&end));
        Poll::Ready(Some(Ok(Frame::trailers(trailers(end)))))
    }
}

/// A tensor on its way: pieces of any size become batches of whole rows.
struct Rows {
    reader: Reader,
    /// Of a tensor that takes several batches.
    carrier: Option<Carrier>,
    /// Whether the schema is on its way.
    begun: bool,
    waiting: VecDeque<Bytes>,
    bytes: u64,
    ended: bool,
}

impl Source for Rows {
    async fn next(&mut self) -> Result<Option<Pieces>, Status> {
        self.next_batch().await.map_err(of_store)
    }
}

impl Rows {
    fn new(reader: Reader) -> Rows {
        let carrier = (reader.spec().nbytes() > MESSAGE_BYTES).then(|| Carrier::of(reader.spec(), MESSAGE_BYTES));
        Rows { reader, carrier, begun: false, waiting: VecDeque::new(), bytes: 0, ended: false }
    }

    async fn next_batch(&mut self) -> Result<Option<Pieces>, StoreError> {
        let spec = self.reader.spec();
        let row = self.carrier.as_ref().map_or(spec.nbytes(), |carrier| carrier.row_bytes);
        if row == 0 {
            return Ok((!std::mem::replace(&mut self.begun, true)).then(|| Pieces::from(announced(spec).freeze())));
        }
        self.gather(row).await?;
        if self.bytes == 0 {
            return Ok(None);
        }
        if self.bytes < row {
            return Err(StoreError::Internal(format!("a tensor that ends {} bytes into a row of {row}", self.bytes)));
        }
        let rows = (self.bytes.min(MESSAGE_BYTES) / row).max(1);
        let mut message = Pieces::from(self.before(rows, rows * row));
        self.take((rows * row) as usize, &mut message);
        message.hold(self.reader.hold());
        Ok(Some(message))
    }

    /// Reads a message of bytes; less than that, but a row at least, where more would have to be waited for.
    async fn gather(&mut self, row: u64) -> Result<(), StoreError> {
        while self.bytes < MESSAGE_BYTES && !self.ended {
            let next = match self.reader.next().now_or_never() {
                Some(next) => next,
                None if self.bytes >= row => return Ok(()),
                None => self.reader.next().await,
            };
            match next? {
                Some(piece) => {
                    self.bytes += piece.len() as u64;
                    self.waiting.push_back(piece);
                }
                None => self.ended = true,
            }
        }
        Ok(())
    }

    /// What comes before the `bytes` of a batch of `rows` rows: the first time, the schema too.
    fn before(&mut self, rows: u64, bytes: u64) -> Bytes {
        let (begun, spec) = (std::mem::replace(&mut self.begun, true), self.reader.spec());
        let batch = |target: &mut BytesMut, carrier: &Carrier, rows: u64| {
            begin_message(
                target,
                &ipc::batch_header(carrier.lists.then_some(carrier.row_values), rows, bytes),
                &[],
                bytes.next_multiple_of(8) as usize,
            );
        };
        let Some(carrier) = &self.carrier else {
            return self.reader.announced(|| {
                let carrier = Carrier::of(spec, MESSAGE_BYTES);
                let mut target = announced(spec);
                batch(&mut target, &carrier, carrier.rows);
                target.freeze()
            });
        };
        let mut target = if begun { BytesMut::new() } else { announced(spec) };
        batch(&mut target, carrier, rows);
        target.freeze()
    }

    /// Moves the next `len` bytes into the message, as they are, and pads them to a multiple of 8 as Arrow wants it.
    fn take(&mut self, len: usize, message: &mut Pieces) {
        self.bytes -= len as u64;
        let mut left = len;
        while left > 0 {
            let Some(mut front) = self.waiting.pop_front() else { break };
            let piece = front.split_to(front.len().min(left));
            left -= piece.len();
            message.push(piece);
            if !front.is_empty() {
                self.waiting.push_front(front);
            }
        }
        message.pad(len.next_multiple_of(8) - len);
    }
}

/// The message that says what a tensor is.
fn announced(spec: &TensorSpec) -> BytesMut {
    let mut target = BytesMut::new();
    begin_message(&mut target, &schema_header(&carrier(spec).1), &[], 0);
    target
}

/// The header of the message of a schema.
pub(crate) fn schema_header(schema: &Schema) -> Bytes {
    FlightData::from(SchemaAsIpc::new(schema, &IpcWriteOptions::default())).data_header
}

#[cfg(test)]
mod tests;
