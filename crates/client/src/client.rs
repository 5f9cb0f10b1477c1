//! The connection and its calls.

use std::collections::BTreeMap;
use std::io;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, Ticket as FlightTicket};
use bytes::Bytes;
use futures::{Stream, stream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sira_tensor::TensorSpec;
use sira_wire::{
    Code, DeleteAnswer, DeleteRequest, Entry, ExistsAnswer, Key, KeyRequest, ListAnswer, ListRequest, PutAnswer, PutOptions, Ticket,
    VERSION, WireError,
};
use tokio::io::AsyncRead;

use crate::connect::{self, Authorized, ConnectOptions};
use crate::put::{self, Failure, Pieces};
use crate::{ClientError, GetOptions, TensorStream, message};

/// Where a server listens when nothing else is said.
pub const DEFAULT_URL: &str = "grpc://127.0.0.1:9095";

/// Bytes of the largest message taken: a message holds at most 4 MiB of tensor, an answer in JSON may be larger.
const MAX_MESSAGE: usize = 64 << 20;

/// A connection to a server; clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    flight: FlightServiceClient<Authorized>,
}

/// The answer of `health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `healthy`, `degraded` or `unhealthy: reason`.
    pub status: String,
    /// The server's version.
    pub version: String,
    /// The state of each backend.
    pub backends: BTreeMap<String, String>,
}

impl Client {
    /// Connects to `grpc://host:port`; `http://` and `grpc+tcp://` mean the same, the port is 9095 where none is given.
    pub async fn connect(url: &str) -> Result<Client, ClientError> {
        Client::connect_with(url, ConnectOptions::default()).await
    }

    /// Connects with a token, with TLS (`grpc+tls://host:port`; `grpcs://` and `https://` mean the same), or both.
    pub async fn connect_with(url: &str, options: ConnectOptions) -> Result<Client, ClientError> {
        let channel = connect::open(url, &options).await?;
        Ok(Client { flight: FlightServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE) })
    }

    /// Puts a tensor whose bytes (row-major, little-endian) are at hand; they are sent without being copied.
    ///
    /// `spec` says what the tensor is; of `options`, codec, ttl, consistency, condition and further attributes are used.
    pub async fn put(&self, key: &str, spec: &TensorSpec, data: impl Into<Bytes>, options: PutOptions) -> Result<PutAnswer, ClientError> {
        let data = data.into();
        self.put_pieces(key, spec, Box::pin(stream::once(async { Ok(data) })), options).await
    }

    /// Puts a tensor whose bytes are read as they are sent. A source that fails, or that has another length than the tensor, stores nothing.
    pub async fn put_reader(
        &self,
        key: &str,
        spec: &TensorSpec,
        source: impl AsyncRead + Send + 'static,
        options: PutOptions,
    ) -> Result<PutAnswer, ClientError> {
        self.put_pieces(key, spec, Box::pin(put::read_pieces(source)), options).await
    }

    /// Puts a tensor whose bytes come in pieces of any length, as [`Client::put_reader`] does.
    pub async fn put_stream(
        &self,
        key: &str,
        spec: &TensorSpec,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        options: PutOptions,
    ) -> Result<PutAnswer, ClientError> {
        self.put_pieces(key, spec, Box::pin(pieces), options).await
    }

    async fn put_pieces(&self, key: &str, spec: &TensorSpec, pieces: Pieces, mut options: PutOptions) -> Result<PutAnswer, ClientError> {
        let key: Key = key.parse()?;
        options.shape = Some(spec.shape().to_vec());
        options.dtype = Some(spec.dtype());
        options.axes = (!spec.axes().is_empty()).then(|| spec.axes().to_vec());
        for (name, value) in spec.attributes() {
            options.attributes.entry(name.clone()).or_insert_with(|| value.clone());
        }
        let first = message::schema(key.as_str(), options.to_metadata());
        let failure = Failure::default();
        let body = put::body(first, pieces, spec.nbytes(), failure.clone());
        let answered = self.send_put(body).await;
        match failure.lock().take() {
            // The server saw a stream that ended too early; the reason is on this side.
            Some(error) => Err(ClientError::Source(error)),
            None => answered,
        }
    }

    async fn send_put(&self, body: impl Stream<Item = arrow_flight::FlightData> + Send + 'static) -> Result<PutAnswer, ClientError> {
        let mut results = self.flight.clone().do_put(body).await?.into_inner();
        let first = results.message().await?.ok_or_else(|| ClientError::protocol("a put without an answer"))?;
        let answer = parse(&first.app_metadata)?;
        while results.message().await?.is_some() {}
        Ok(answer)
    }

    /// Opens a tensor: its spec is known when this returns, its bytes come from the [`TensorStream`].
    pub async fn get(&self, key: &str, options: &GetOptions) -> Result<TensorStream, ClientError> {
        let key: Key = key.parse()?;
        let ticket = Ticket { version: options.version, slice: options.slice.clone(), ..Ticket::whole(&key) };
        let ticket = FlightTicket::new(json(&ticket)?);
        TensorStream::open(self.flight.clone().do_get(ticket).await?.into_inner()).await
    }

    /// What the server says of a key.
    pub async fn info(&self, key: &str) -> Result<Entry, ClientError> {
        self.action("info", &key_request(key)?).await
    }

    /// The version of a key; `None` where there is no such key.
    pub async fn exists(&self, key: &str) -> Result<Option<u64>, ClientError> {
        let answer: ExistsAnswer = self.action("exists", &key_request(key)?).await?;
        match (answer.exists, answer.version) {
            (true, None) => Err(ClientError::protocol("a key that exists without a version")),
            (true, version) => Ok(version),
            (false, _) => Ok(None),
        }
    }

    /// Deletes a key, or only this version of it; says whether there was one.
    pub async fn delete(&self, key: &str, version: Option<u64>) -> Result<bool, ClientError> {
        let request = key_request(key)?;
        let request = DeleteRequest { v: request.v, key: request.key, condition: version.map(|version| version.to_string()) };
        Ok(self.action::<DeleteAnswer>("delete", &request).await?.deleted)
    }

    /// A page of keys in byte order; the answer's `next` is the `after` of the next request.
    pub async fn list(&self, request: &ListRequest) -> Result<ListAnswer, ClientError> {
        self.action("list", request).await
    }

    /// Counts, bytes and limits of the server, as its JSON.
    pub async fn stats(&self) -> Result<serde_json::Value, ClientError> {
        self.action("stats", &Empty { v: VERSION }).await
    }

    /// Whether the server and its backends work.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.action("health", &Empty { v: VERSION }).await
    }

    async fn action<T: DeserializeOwned>(&self, name: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let action = Action::new(name, json(body)?);
        let mut results = self.flight.clone().do_action(action).await?.into_inner();
        let first = results.message().await?.ok_or_else(|| ClientError::protocol(format!("{name} without an answer")))?;
        let answer = parse(&first.body)?;
        while results.message().await?.is_some() {}
        Ok(answer)
    }
}

/// The body of actions that need nothing.
#[derive(Serialize)]
struct Empty {
    v: u32,
}

fn key_request(key: &str) -> Result<KeyRequest, ClientError> {
    let key: Key = key.parse()?;
    Ok(KeyRequest { v: VERSION, key: key.to_string() })
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(value).map_err(|error| WireError::new(Code::BadRequest, error.to_string()).into())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(ClientError::protocol)
}
