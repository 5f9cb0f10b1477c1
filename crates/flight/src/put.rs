//! `DoPut`: a tensor in, straight from the frames of the HTTP/2 body into the chunk that is being gathered.

use std::convert::Infallible;

use arrow_flight::{FlightDescriptor, PutResult};
use arrow_schema::Schema;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use sira_store::{Operation, StorageClient, StoreError, WriteOptions, Writer};
use sira_tensor::carrier::Column;
use sira_tensor::{DType, TensorSpec};
use sira_wire::many::ManyCommand;
use sira_wire::{Code, Key, PutAnswer, PutOptions};
use tonic::Status;
use tonic::body::Body;

use crate::input::{Head, Input};
use crate::ipc::{self, Announced, Batch};
use crate::status::{of_store, of_wire, outcome, refuse};
use crate::{put_encoded, put_many};

/// Bytes of a row that is permuted: it must be gathered before it can be reordered.
const MAX_PERMUTED_ROW: u64 = 64 << 20;

/// Answers a `DoPut`. One that stalls is cut off sooner while others wait for memory, or `full` says that no more calls are taken.
pub(crate) async fn handle(
    store: StorageClient,
    full: impl Fn() -> bool + Send + Sync + 'static,
    request: Request<Body>,
) -> Response<Body> {
    let (pressed, mut counted) = (store.clone(), store.request(Operation::Put));
    let answer = put(&store, Input::new(request.into_body(), move || pressed.pressed() || full())).await;
    counted.end(outcome(&answer));
    match answer {
        Ok(answer) => accepted(answer),
        Err(status) => status.into_http(),
    }
}

/// The answer of a put that is done: one PutResult with this JSON, then an Ok status.
fn accepted(json: Vec<u8>) -> Response<Body> {
    let result = PutResult { app_metadata: json.into() };
    let mut message = BytesMut::with_capacity(5 + result.encoded_len());
    message.put_u8(0);
    message.put_u32(result.encoded_len() as u32);
    message.put_slice(&result.encode_to_vec());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok::<_, Infallible>(Frame::data(message.freeze())), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(Body::new(StreamBody::new(stream::iter(frames))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Reads a put to its end; gives the JSON of its answer.
async fn put(store: &StorageClient, mut input: Input) -> Result<Vec<u8>, Status> {
    let Some(mut first) = input.next().await? else {
        return Err(refuse(Code::BadRequest, "an empty stream; a put begins with a descriptor and a schema"));
    };
    let encoded = first.descriptor.take().ok_or_else(|| refuse(Code::BadRequest, "the first message has no descriptor"))?;
    let descriptor = FlightDescriptor::decode(&*encoded);
    let descriptor = descriptor.map_err(|e| refuse(Code::BadRequest, format!("the descriptor cannot be read: {e}")))?;
    drop(encoded);
    let json = if ManyCommand::is(&descriptor.cmd) {
        serde_json::to_vec(&put_many::put(store, &mut input, first).await?)
    } else {
        serde_json::to_vec(&put_one(store, &mut input, descriptor, first).await?)
    };
    json.map_err(|e| refuse(Code::Internal, e.to_string()))
}

async fn put_one(store: &StorageClient, input: &mut Input, descriptor: FlightDescriptor, first: Head) -> Result<PutAnswer, Status> {
    let mut incoming = Incoming::announced(store, &descriptor, &first)?;
    if let Some(encoding) = incoming.options.encoded.take() {
        let (spec, options) = (incoming.spec(0).map_err(of_store)?, incoming.write_options(0));
        let (tensor, metadata) = ((incoming.key, spec, incoming.column), first.metadata);
        drop((descriptor, first.header));
        return put_encoded::put(store, input, tensor, (&encoding, options), metadata).await;
    }
    // They may be large, and what comes next may be long in coming.
    drop((descriptor, first));
    if incoming.options.shape.is_some() {
        incoming.begin(0).await?;
    }
    let mut batches = 0;
    while let Some(head) = input.next().await? {
        if head.header.is_empty() {
            continue; // a message of metadata alone
        }
        let Announced::Batch(batch) = ipc::read(&head.header)? else {
            return Err(refuse(Code::BadRequest, "a second schema; a put is one tensor"));
        };
        batches += 1;
        if incoming.options.shape.is_none() && batches > 1 {
            return Err(refuse(
                Code::Incomplete,
                "a second batch. Without sira.shape the tensor is the one batch sent, since a stream that was cut off cannot be told \
                 from one that is whole; send sira.shape and sira.dtype to use several",
            ));
        }
        incoming.take(input, &batch, &head).await?;
    }
    incoming.commit().await
}

/// A put as it comes in.
struct Incoming<'a> {
    store: &'a StorageClient,
    key: Key,
    options: PutOptions,
    column: Column,
    writer: Option<Writer>,
}

impl<'a> Incoming<'a> {
    /// Reads the first message: descriptor, options and schema.
    fn announced(store: &'a StorageClient, descriptor: &FlightDescriptor, first: &Head) -> Result<Incoming<'a>, Status> {
        let Announced::Schema(schema) = ipc::read(&first.header)? else {
            return Err(refuse(Code::BadRequest, "the first message is no schema"));
        };
        let (key, options) = key_and_options(descriptor, &schema)?;
        let column = Column::of(&schema).map_err(|e| of_store(e.into()))?;
        Ok(Incoming { store, key, options, column, writer: None })
    }

    /// What is being put, when `rows` rows come without a declared shape.
    fn spec(&self, rows: u64) -> Result<TensorSpec, StoreError> {
        let options = &self.options;
        let (dtype, shape) = match &options.shape {
            Some(shape) => {
                let dtype = options.dtype.unwrap_or(self.column.storage);
                self.column.carries(dtype)?;
                (dtype, shape.clone())
            }
            None => self.column.shape_of(rows, options.dtype)?,
        };
        let axes = options.axes.clone().unwrap_or_else(|| self.axes(dtype, shape.len()));
        Ok(TensorSpec::new(dtype, shape)?.with_axes(axes)?.with_attributes(options.attributes.clone())?)
    }

    /// The extension's names for the inner axes, where they fit.
    fn axes(&self, dtype: DType, rank: usize) -> Vec<String> {
        let mut names = self.column.dim_names.clone();
        if dtype == DType::Complex64 {
            names.pop();
        }
        if names.is_empty() || names.len() + 1 != rank {
            return Vec::new();
        }
        names.insert(0, String::new());
        names
    }

    fn write_options(&self, scratch: u64) -> WriteOptions {
        WriteOptions {
            codec: self.options.codec.clone(),
            ttl: self.options.ttl,
            consistency: self.options.consistency,
            condition: self.options.condition,
            kv_spec: self.options.kv_spec.clone(),
            derived_from_lossy: self.options.derived_from_lossy,
            scratch,
        }
    }

    async fn begin(&mut self, rows: u64) -> Result<(), Status> {
        let mut scratch = 0;
        if self.column.permutation.is_some() {
            let row_bytes = self.column.row_bytes();
            if row_bytes > MAX_PERMUTED_ROW {
                return Err(refuse(
                    Code::BadTensor,
                    format!(
                        "a permuted row of {row_bytes} bytes; rows up to {MAX_PERMUTED_ROW} are reordered here, send larger ones contiguous"
                    ),
                ));
            }
            scratch = 2 * row_bytes;
        }
        let (spec, options) = (self.spec(rows).map_err(of_store)?, self.write_options(scratch));
        self.writer = Some(self.store.begin(self.key.clone(), spec, options).await.map_err(of_store)?);
        Ok(())
    }

    /// Takes the rows of one batch.
    async fn take(&mut self, input: &mut Input, batch: &Batch, head: &Head) -> Result<(), Status> {
        let (offset, len) = batch.check(&self.column, head.body).map_err(|e| of_wire(&e))?;
        if self.writer.is_none() {
            self.begin(batch.rows as u64).await?;
        }
        let Some(writer) = &mut self.writer else { return Err(refuse(Code::Internal, "a put without a writer")) };
        if len > writer.missing() {
            let (dtype, shape, has) = (writer.spec().dtype(), writer.spec().shape(), writer.spec().nbytes());
            let more = len - writer.missing();
            return Err(refuse(
                Code::Incomplete,
                format!("{dtype} of shape {shape:?} has {has} bytes; {more} more came. Nothing was stored"),
            ));
        }
        skip(input, offset).await?;
        if self.column.permutation.is_some() {
            return permuted(&self.column, writer, input, len).await;
        }
        let mut left = len;
        while left > 0 {
            let piece = input.body(left).await?;
            writer.write(&piece).await.map_err(of_store)?;
            left -= piece.len() as u64;
        }
        Ok(())
    }

    async fn commit(self) -> Result<PutAnswer, Status> {
        let Some(writer) = self.writer else {
            return Err(refuse(Code::Incomplete, "no batch came; without sira.shape the tensor is the one batch sent. Nothing was stored"));
        };
        writer.commit().await.map_err(of_store)
    }
}

/// The key of a descriptor, and the options: in the schema's metadata, or in the command.
fn key_and_options(descriptor: &FlightDescriptor, schema: &Schema) -> Result<(Key, PutOptions), Status> {
    let from_metadata = PutOptions::from_metadata(schema.metadata()).map_err(|e| of_wire(&e))?;
    if descriptor.cmd.is_empty() {
        return Ok((Key::from_path(&descriptor.path).map_err(|e| of_wire(&e))?, from_metadata));
    }
    if from_metadata != PutOptions::default() {
        return Err(refuse(Code::BadRequest, "options in the command and in the schema's metadata; use one of them"));
    }
    PutOptions::from_command(&descriptor.cmd).map_err(|e| of_wire(&e))
}

pub(crate) async fn skip(input: &mut Input, mut bytes: u64) -> Result<(), Status> {
    while bytes > 0 {
        bytes -= input.body(bytes).await?.len() as u64;
    }
    Ok(())
}

/// Takes rows that are sent in another order of their axes.
async fn permuted(column: &Column, writer: &mut Writer, input: &mut Input, len: u64) -> Result<(), Status> {
    let row_bytes = column.row_bytes();
    let (mut sent, mut logical) = (Vec::with_capacity(row_bytes as usize), vec![0; row_bytes as usize]);
    for _ in 0..len / row_bytes.max(1) {
        sent.clear();
        while (sent.len() as u64) < row_bytes {
            let piece: Bytes = input.body(row_bytes - sent.len() as u64).await?;
            sent.extend_from_slice(&piece);
        }
        column.permute_row(&sent, &mut logical);
        writer.write(&logical).await.map_err(of_store)?;
    }
    Ok(())
}
