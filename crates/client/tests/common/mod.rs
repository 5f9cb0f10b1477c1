//! A small Flight server that reads and writes Arrow with arrow-flight's own code.

#![allow(clippy::unwrap_used, dead_code, reason = "a helper of tests, each of which uses some of it")]

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;

use arrow_array::{ArrayRef, FixedSizeListArray, RecordBatch, UInt8Array, UInt16Array, cast::AsArray, types::UInt8Type};
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder, FlightRecordBatchStream};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo,
    PutResult, SchemaResult, Ticket,
};
use arrow_schema::{DataType, Field, Schema};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use sira_client::{Client, FailedKey, PutAnswer, TensorSpec};
use sira_wire::many::{
    GetMessage, KeyHeader, KeysRequest, ManyCommand, ManyTicket, PutItem, PutManyAnswer, PutMessage, PutResult as Outcome, Segment,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub type Put = (HashMap<String, String>, Vec<u8>);

/// What was announced of a key, and the bytes of its parts.
pub type Kept = (PutItem, Vec<Vec<u8>>);

/// Keeps metadata and bytes of the last put, and all that was put as many.
#[derive(Default)]
pub struct Fake {
    pub put: Mutex<Option<Put>>,
    pub many: Mutex<BTreeMap<String, Kept>>,
}

impl Fake {
    async fn put_many(&self, messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static) -> PutManyAnswer {
        let mut decoder = FlightDataDecoder::new(messages.map_err(FlightError::from));
        let (mut items, mut bytes) = (Vec::new(), Vec::new());
        while let Some(decoded) = decoder.next().await {
            let decoded = decoded.unwrap();
            if !decoded.inner.app_metadata.is_empty() {
                items.extend(serde_json::from_slice::<PutMessage>(&decoded.inner.app_metadata).unwrap().items);
            }
            if let DecodedPayload::RecordBatch(batch) = decoded.payload {
                bytes.extend_from_slice(batch.column(0).as_primitive::<UInt8Type>().values());
            }
        }
        let mut rest = bytes.as_slice();
        let mut keep = |item: PutItem| {
            let lens = item.specs().unwrap().into_iter().map(|(_, spec)| spec.nbytes() as usize);
            let parts = lens.map(|len| rest.split_off(..len).unwrap().to_vec()).collect();
            let key = item.key.clone();
            if item.condition.is_some() {
                return Outcome::Failed(FailedKey { key, error: "SIRA_EXISTS: it does".into() });
            }
            self.many.lock().insert(key.clone(), (item, parts));
            Outcome::Done(PutAnswer { key, version: 1, created: true })
        };
        let answer = PutManyAnswer { results: items.into_iter().map(&mut keep).collect() };
        assert!(rest.is_empty(), "bytes of no key");
        answer
    }

    /// Messages of up to 100,000 bytes, of which keys and parts begin anywhere.
    fn get_many(&self, ticket: &ManyTicket) -> Vec<FlightData> {
        let mut open: (Vec<Segment>, Vec<u8>) = Default::default();
        let mut full = Vec::new();
        for (index, key) in ticket.keys.iter().enumerate() {
            let many = self.many.lock();
            let Some((item, parts)) = many.get(key) else {
                open.0.push(Segment { index, error: Some(format!("SIRA_NOT_FOUND: no tensor {key}")), ..Segment::default() });
                continue;
            };
            let wanted = ticket.parts.clone().unwrap_or_else(|| item.parts.iter().map(|part| part.name.clone()).collect());
            let mut key = Some(KeyHeader { version: 1, parts: wanted.len(), kv_spec: item.kv_spec.clone() });
            for name in wanted {
                let at = item.parts.iter().position(|part| part.name == name).unwrap();
                let (mut part, mut rest) = (Some(item.parts[at].clone()), parts[at].as_slice());
                while part.is_some() || !rest.is_empty() {
                    open.1.resize(open.1.len().next_multiple_of(64), 0);
                    if open.1.len() >= 100_000 {
                        full.push(std::mem::take(&mut open));
                    }
                    let piece = rest.split_off(..rest.len().min(100_000 - open.1.len())).unwrap();
                    let (offset, bytes) = (open.1.len() as u64, piece.len() as u64);
                    open.0.push(Segment { index, offset, bytes, key: key.take(), part: part.take(), error: None });
                    open.1.extend_from_slice(piece);
                }
            }
        }
        full.push(open);
        let schema = Schema::new(vec![Field::new("tensor", DataType::UInt8, false)]);
        let (segments, bodies): (Vec<_>, Vec<_>) = full.into_iter().unzip();
        let batch = |body| RecordBatch::try_new(Arc::new(schema.clone()), vec![Arc::new(UInt8Array::from(body)) as ArrayRef]).unwrap();
        let batches: Vec<RecordBatch> = bodies.into_iter().map(batch).collect();
        let mut messages = batches_to_flight_data(&schema, &batches).unwrap();
        for (message, segments) in messages[1..].iter_mut().zip(segments) {
            message.app_metadata = serde_json::to_vec(&GetMessage { segments }).unwrap().into();
        }
        messages
    }
}

#[tonic::async_trait]
impl FlightService for Fake {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;
    type DoExchangeStream = Answers<FlightData>;

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let mut messages = request.into_inner().peekable();
        let first = Pin::new(&mut messages).peek().await.unwrap().as_ref().unwrap();
        let descriptor = first.flight_descriptor.clone().unwrap();
        if ManyCommand::is(&descriptor.cmd) {
            let answer = serde_json::to_vec(&self.put_many(messages).await).unwrap();
            return Ok(Response::new(Box::pin(stream::iter([Ok(PutResult { app_metadata: answer.into() })]))));
        }
        let key = descriptor.path.join("/");
        if key == "ns/taken" {
            return Err(Status::already_exists("SIRA_EXISTS: ns/taken: the key exists"));
        }
        let mut batches = FlightRecordBatchStream::new_from_flight_data(messages.map_err(FlightError::from));
        let mut bytes = Vec::new();
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|error| Status::invalid_argument(format!("SIRA_BAD_TENSOR: {error}")))?;
            bytes.extend_from_slice(batch.column(0).as_primitive::<UInt8Type>().values());
        }
        let metadata = batches.schema().unwrap().metadata().clone();
        let shape: Vec<u64> = serde_json::from_str(&metadata["sira.shape"]).unwrap();
        let spec = TensorSpec::new(metadata["sira.dtype"].parse().unwrap(), shape).unwrap();
        if spec.nbytes() != bytes.len() as u64 {
            return Err(Status::invalid_argument(format!("SIRA_INCOMPLETE: {} of {} bytes", bytes.len(), spec.nbytes())));
        }
        *self.put.lock() = Some((metadata.into(), bytes));
        let answer = format!(r#"{{"key":"{key}","version":3,"created":true}}"#);
        Ok(Response::new(Box::pin(stream::iter([Ok(PutResult { app_metadata: answer.into() })]))))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let ticket = request.into_inner().ticket;
        if let Some(many) = ManyTicket::parse(&ticket) {
            return Ok(Response::new(Box::pin(stream::iter(self.get_many(&many.unwrap().1).into_iter().map(Ok)))));
        }
        let ticket: serde_json::Value = serde_json::from_slice(&ticket).unwrap();
        let key = ticket["key"].as_str().unwrap();
        let (shape, rows) = match key {
            "ns/none" => return Err(Status::not_found("SIRA_NOT_FOUND: ns/none: no such key")),
            "ns/short" => ("[3,2,2]", 2),
            "ns/long" => ("[1,2,2]", 2),
            "ns/empty" => ("[0,2,2]", 0),
            _ => {
                assert_eq!(ticket["slice"], serde_json::json!({"token": [1, 3]}));
                ("[2,2,2]", 2)
            }
        };
        let values: ArrayRef = Arc::new(UInt16Array::from_iter_values(0..rows * 4));
        let list = FixedSizeListArray::new(Arc::new(Field::new("item", DataType::UInt16, true)), 4, values, None);
        let extension = [("ARROW:extension:name", "arrow.fixed_shape_tensor"), ("ARROW:extension:metadata", r#"{"shape":[2,2]}"#)];
        let owned = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<HashMap<_, _>>();
        let list: ArrayRef = Arc::new(list);
        let field = Field::new("tensor", list.data_type().clone(), false).with_metadata(owned(&extension));
        let metadata = [("sira.shape", shape), ("sira.dtype", "bfloat16"), ("sira.axes", r#"["token","",""]"#)];
        let schema = Arc::new(Schema::new(vec![field]).with_metadata(owned(&metadata)));
        let batch = RecordBatch::try_new(schema.clone(), vec![list]).unwrap();
        // One row a batch, as slices of one array.
        let batches: Vec<_> = (0..rows as usize).map(|row| Ok(batch.slice(row, 1))).collect();
        let messages = FlightDataEncoderBuilder::new().with_schema(schema).build(stream::iter(batches));
        Ok(Response::new(Box::pin(messages.map_err(|error| Status::internal(error.to_string())))))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let action = request.into_inner();
        let body = match KeysRequest::parse(&action.body) {
            Ok((keys, None)) => keys.iter().collect::<Vec<_>>().join(" "),
            _ => String::from_utf8(action.body.to_vec()).unwrap(),
        };
        let answer = match (action.r#type.as_str(), body.as_str()) {
            ("exists", r#"{"v":1,"key":"ns/a"}"#) => r#"{"exists":true,"version":3}"#,
            ("exists", r#"{"v":1,"key":"ns/none"}"#) => r#"{"exists":false}"#,
            ("exists_many", "ns/a ns/b ns/none") => r#"{"count":3,"leading":2,"bitmap":"Aw=="}"#,
            ("exists_many", "ns/a") => r#"{"count":3,"leading":2,"bitmap":"Aw=="}"#,
            ("delete_many", "ns/a ns/b") => r#"{"deleted":1,"missing":["ns/b"],"failed":[]}"#,
            ("delete_prefix", r#"{"v":1,"prefix":"ns/","dry_run":true}"#) => r#"{"keys":10,"bytes":100,"failed":[],"next":"ns/b"}"#,
            ("delete_prefix", r#"{"v":1,"prefix":"ns/","after":"ns/b","dry_run":true}"#) => r#"{"keys":1,"bytes":2,"failed":[]}"#,
            ("delete_prefix", r#"{"v":1,"prefix":"ns/loop","dry_run":false}"#) => r#"{"keys":1,"bytes":2,"failed":[],"next":"ns/loop"}"#,
            ("delete_prefix", r#"{"v":1,"prefix":"ns/loop","after":"ns/loop","dry_run":false}"#) => {
                r#"{"keys":1,"bytes":2,"failed":[],"next":"ns/loop"}"#
            }
            ("namespaces", r#"{"v":1}"#) => r#"{"namespaces":[]}"#,
            ("delete", r#"{"v":1,"key":"ns/a","if":"3"}"#) => r#"{"deleted":true}"#,
            ("list", r#"{"v":1,"prefix":"ns/","limit":2}"#) => r#"{"entries":[],"next":"ns/b"}"#,
            ("stats", r#"{"v":1}"#) => r#"{"keys":1}"#,
            ("health", r#"{"v":1}"#) => r#"{"status":"healthy","version":"0.1.0","backends":{"rocksdb":"healthy"}}"#,
            other => return Err(Status::invalid_argument(format!("SIRA_BAD_REQUEST: {other:?}"))),
        };
        Ok(Response::new(Box::pin(stream::iter([Ok(arrow_flight::Result::new(answer))]))))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A server and a client of it.
pub async fn start() -> (Arc<Fake>, Client) {
    let (fake, url) = start_at().await;
    (fake, Client::connect(&url).await.unwrap())
}

/// The server, and where it is.
pub async fn start_at() -> (Arc<Fake>, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    (serve(TcpListenerStream::new(listener)), url)
}

/// A server at a Unix socket.
pub async fn start_at_socket(path: &std::path::Path) -> (Arc<Fake>, Client) {
    let fake = serve(UnixListenerStream::new(tokio::net::UnixListener::bind(path).unwrap()));
    (fake, Client::connect(&format!("grpc+unix://{}", path.display())).await.unwrap())
}

fn serve<S>(incoming: impl Stream<Item = std::io::Result<S>> + Send + 'static) -> Arc<Fake>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + tonic::transport::server::Connected + Unpin + Send + 'static,
{
    let fake = Arc::new(Fake::default());
    let service = FlightServiceServer::from_arc(fake.clone()).max_decoding_message_size(64 << 20);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    fake
}
