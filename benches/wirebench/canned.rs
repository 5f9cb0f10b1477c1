//! A Flight server that does nothing: gets are answered with frames made beforehand, puts are read and thrown away. What a client reaches with it
//! is what that client can reach at all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{ArrayRef, FixedSizeListArray, RecordBatch, UInt16Array};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{FlightData, PutResult, Ticket};
use arrow_schema::{DataType, Field, Schema};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use sira_benches::Failure;
use tokio::net::{TcpListener, TcpStream};

/// Bytes of tensor in a message: what Sira sends.
const MESSAGE: usize = 4 << 20;
/// Elements of a row.
const ROW: usize = 512;
/// A size beyond this is a mistake, not a tensor.
const LARGEST: usize = 1 << 30;

const FRAME: u32 = 1 << 20;
const WINDOW: u32 = 8 << 20;
const SEND_BUFFER: usize = 4 << 20;

/// Ready messages, by the bytes of the tensor.
type Ready = Arc<Mutex<HashMap<usize, Vec<Bytes>>>>;
/// Why a call is not answered; hyper moves it between threads.
type Refusal = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Serves until it is killed. The first line of standard output says where.
pub fn serve() -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("listening on {}", listener.local_addr()?);
        let ready = Ready::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(connection(stream, ready.clone()));
        }
    })
}

async fn connection(stream: TcpStream, ready: Ready) {
    let service = hyper::service::service_fn(move |request| answer(request, ready.clone()));
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.max_frame_size(FRAME).initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW).max_send_buf_size(SEND_BUFFER);
    // A client that goes away is no concern of anybody.
    drop(builder.serve_connection(TokioIo::new(stream), service).await);
}

async fn answer(request: Request<Incoming>, ready: Ready) -> Result<Answer, Refusal> {
    let put = request.uri().path().ends_with("/DoPut");
    let mut body = request.into_body();
    let messages = if put {
        while let Some(frame) = body.frame().await {
            frame?;
        }
        vec![message(&PutResult { app_metadata: Bytes::from_static(b"{}") })]
    } else {
        let asked = body.collect().await?.to_bytes();
        let ticket = Ticket::decode(asked.get(5..).ok_or("a get without a ticket")?)?;
        let size: usize = std::str::from_utf8(&ticket.ticket)?.parse()?;
        frames(&ready, size)?
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let parts = messages.into_iter().map(Frame::data).chain([Frame::trailers(trailers)]);
    let body = StreamBody::new(futures::stream::iter(parts.map(Ok::<_, Infallible>)));
    Ok(Response::builder().header("content-type", "application/grpc").body(BodyExt::boxed(body))?)
}

/// The messages of a get, made with the first get of that size.
fn frames(ready: &Ready, size: usize) -> Result<Vec<Bytes>, Refusal> {
    if size == 0 || size > LARGEST || !size.is_multiple_of(2 * ROW) {
        return Err(format!("{size} bytes are not rows of {} bytes", 2 * ROW).into());
    }
    let mut ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
    if let Entry::Vacant(absent) = ready.entry(size) {
        absent.insert(make(size)?);
    }
    Ok(ready.get(&size).cloned().unwrap_or_default())
}

fn make(size: usize) -> Result<Vec<Bytes>, Refusal> {
    let item = Arc::new(Field::new("item", DataType::UInt16, true));
    let extension = [("ARROW:extension:name", "arrow.fixed_shape_tensor"), ("ARROW:extension:metadata", r#"{"shape":[512]}"#)];
    let column = Field::new("tensor", DataType::FixedSizeList(item.clone(), ROW as i32), true)
        .with_metadata(extension.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let schema = Schema::new(vec![column]);
    let mut batches = Vec::new();
    let mut left = size;
    while left > 0 {
        let here = left.min(MESSAGE);
        let values: UInt16Array = (0..here / 2).map(|at| Some(at as u16)).collect();
        let rows: ArrayRef = Arc::new(FixedSizeListArray::try_new(item.clone(), ROW as i32, Arc::new(values), None)?);
        batches.push(RecordBatch::try_new(Arc::new(schema.clone()), vec![rows])?);
        left -= here;
    }
    let messages: Vec<FlightData> = batches_to_flight_data(&schema, &batches)?;
    Ok(messages.iter().map(message).collect())
}

/// A message with its gRPC prefix.
fn message(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(length + 5);
    framed.put_u8(0);
    framed.put_u32(length as u32);
    framed.put(message.encode_to_vec().as_slice());
    framed.freeze()
}
