//! The connection and its calls.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, Ticket as FlightTicket};
use bytes::Bytes;
use futures::{Stream, stream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sira_tensor::TensorSpec;
use sira_wire::{
    Code, DeleteAnswer, DeleteRequest, EmptyRequest, Entry, Key, KeyRequest, ListAnswer, ListRequest, PutAnswer, PutOptions, VERSION,
    WireError,
};
use tokio::io::AsyncRead;
use tonic::Status;

use crate::calibrations::Calibrations;
use crate::connect::{self, Authorized, ConnectOptions};
use crate::get_parallel::Connections;
use crate::http2::Pool;
use crate::line::Lines;
use crate::lookup::Lookups;
use crate::put::{self, Failure, Pieces};
use crate::{ClientError, GetOptions, TensorStream, message};

/// Where a server listens when nothing else is said.
pub const DEFAULT_URL: &str = "grpc://127.0.0.1:9095";

/// Bytes of the largest message taken: a message holds at most 4 MiB of tensor, an answer in JSON may be larger.
const MAX_MESSAGE: usize = 64 << 20;

/// A connection to a server; clones share it. What it can do stands in the [crate's overview](crate).
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) flight: FlightServiceClient<Authorized>,
    /// More of them, for gets in several streams.
    pub(crate) connections: Connections,
    /// Connections for bytes that go straight into memory, or come from there.
    pub(crate) pool: Pool,
    /// What codecs that run here need.
    pub(crate) calibrations: Calibrations,
    pub(crate) lookups: Lookups,
    /// Where the server is on the same machine, and passes memory.
    pub(crate) lines: Option<Arc<Lines>>,
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
    /// Connects to `grpc://host:port`; `http://` and `grpc+tcp://` mean the same, the port is 9095 where none is given. Or to the Unix socket of a
    /// server of the same machine, `grpc+unix:///path`.
    pub async fn connect(url: &str) -> Result<Client, ClientError> {
        Client::connect_with(url, ConnectOptions::default()).await
    }

    /// Connects with a token, with TLS (`grpc+tls://host:port`; `grpcs://` and `https://` mean the same), or both.
    pub async fn connect_with(url: &str, options: ConnectOptions) -> Result<Client, ClientError> {
        let channel = connect::open(url, &options).await?;
        Client::over(channel, url, &options)
    }

    /// A client that connects with its first call, so that it can be made while the server is absent; calls then fail until it is there.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), sira_client::ClientError> {
    /// use sira_client::Client;
    ///
    /// let client = Client::connect_lazy("grpc://127.0.0.1:1")?.with_cache_namespaces(["kv"]);
    /// // Nothing listens there. In a cache that is a miss; anywhere else it would be an error.
    /// assert_eq!(client.exists("kv/block-1").await?, None);
    /// assert!(client.exists("weights/w").await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn connect_lazy(url: &str) -> Result<Client, ClientError> {
        Client::connect_lazy_with(url, &ConnectOptions::default())
    }

    /// As [`Client::connect_lazy`], with a token, with TLS, or both.
    pub fn connect_lazy_with(url: &str, options: &ConnectOptions) -> Result<Client, ClientError> {
        Client::over(connect::lazy(url, options)?, url, options)
    }

    fn over(channel: Authorized, url: &str, options: &ConnectOptions) -> Result<Client, ClientError> {
        Ok(Client {
            flight: flight(channel),
            connections: Connections::new(url, options),
            pool: Pool::new(url, options, None)?,
            calibrations: Calibrations::default(),
            lookups: Lookups::default(),
            lines: connect::lines(url, options).map(Arc::new),
        })
    }

    /// Puts a tensor whose bytes (row-major, little-endian) are at hand; they are sent without being copied.
    ///
    /// `spec` says what the tensor is; of `options`, codec, ttl, consistency, condition and further attributes are used.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sira_client::{DType, PutOptions, TensorSpec};
    ///
    /// let spec = TensorSpec::new(DType::Float32, vec![2, 3])?.with_axes(vec!["token".into(), "dim".into()])?;
    /// let options = PutOptions { ttl: Some(60), codec: Some("planes+zstd".into()), ..PutOptions::default() };
    /// let answer = client.put("demo/a", &spec, vec![0u8; 24], options).await?;
    /// println!("{} has version {}", answer.key, answer.version);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put(&self, key: &str, spec: &TensorSpec, data: impl Into<Bytes>, options: PutOptions) -> Result<PutAnswer, ClientError> {
        let data = data.into();
        self.put_pieces(key, spec, Box::pin(stream::once(async { Ok(data) })), options).await
    }

    /// Puts a tensor whose bytes are read as they are sent. A source that fails, or that has another length than the tensor, stores nothing.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sira_client::{DType, PutOptions, TensorSpec};
    ///
    /// let spec = TensorSpec::new(DType::BFloat16, vec![32, 1 << 20, 128])?;
    /// let file = tokio::fs::File::open("cache.bin").await?;
    /// client.put_reader("demo/large", &spec, file, PutOptions::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use bytes::Bytes;
    /// use sira_client::{DType, PutOptions, TensorSpec};
    ///
    /// let spec = TensorSpec::new(DType::UInt8, vec![4096, 1000])?;
    /// let rows = futures::stream::iter((0..4096).map(|_| Ok(Bytes::from(vec![0u8; 1000]))));
    /// client.put_stream("demo/rows", &spec, rows, PutOptions::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_stream(
        &self,
        key: &str,
        spec: &TensorSpec,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        options: PutOptions,
    ) -> Result<PutAnswer, ClientError> {
        self.put_pieces(key, spec, Box::pin(pieces), options).await
    }

    async fn put_pieces(&self, key: &str, spec: &TensorSpec, pieces: Pieces, options: PutOptions) -> Result<PutAnswer, ClientError> {
        let key: Key = key.parse()?;
        let first = message::schema(key.as_str(), put::describing(options, spec).to_metadata());
        let failure = Failure::default();
        let body = put::body(first, pieces, spec.nbytes(), failure.clone());
        let answered = self.send_put(body).await;
        match failure.lock().take() {
            // The server saw a stream that ended too early; the reason is on this side.
            Some(error) => Err(ClientError::Source(error)),
            None => answered,
        }
    }

    pub(crate) async fn send_put(
        &self,
        body: impl Stream<Item = arrow_flight::FlightData> + Send + 'static,
    ) -> Result<PutAnswer, ClientError> {
        let mut results = self.flight.clone().do_put(body).await?.into_inner();
        let first = results.message().await?.ok_or_else(|| ClientError::protocol("a put without an answer"))?;
        let answer = parse(&first.app_metadata)?;
        while results.message().await?.is_some() {}
        Ok(answer)
    }

    /// Opens a tensor: its spec is known when this returns, its bytes come from the [`TensorStream`].
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sira_client::GetOptions;
    ///
    /// let slice = [("layer".to_owned(), [0, 4]), ("token".to_owned(), [512, 1024])].into();
    /// let mut tensor = client.get("demo/a", &GetOptions { slice, ..GetOptions::default() }).await?;
    /// println!("{} {:?}", tensor.spec().dtype(), tensor.spec().shape());
    /// while let Some(piece) = tensor.next().await? {
    ///     println!("{} bytes", piece.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get(&self, key: &str, options: &GetOptions) -> Result<TensorStream, ClientError> {
        let ticket = FlightTicket::new(json(&options.ticket(key)?)?);
        TensorStream::open(self.flight.clone().do_get(ticket).await?.into_inner()).await
    }

    /// What the server says of a key.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let entry = client.info("demo/a").await?;
    /// println!("{} bytes, {} as stored, in {:?}", entry.nbytes, entry.stored_bytes, entry.tiers);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn info(&self, key: &str) -> Result<Entry, ClientError> {
        self.action("info", &key_request(key)?).await
    }

    /// Deletes a key, or only this version of it; says whether there was one.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// if !client.delete("demo/a", None).await? {
    ///     println!("there was none");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete(&self, key: &str, version: Option<u64>) -> Result<bool, ClientError> {
        let request = key_request(key)?;
        let request = DeleteRequest { v: request.v, key: request.key, condition: version.map(|version| version.to_string()) };
        Ok(self.action::<DeleteAnswer>("delete", &request).await?.deleted)
    }

    /// A page of keys in byte order; the answer's `next` is the `after` of the next request.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sira_client::ListRequest;
    ///
    /// let page = client.list(&ListRequest { prefix: "demo/".into(), limit: Some(100), ..ListRequest::default() }).await?;
    /// for entry in &page.entries {
    ///     println!("{}", entry.key);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn list(&self, request: &ListRequest) -> Result<ListAnswer, ClientError> {
        self.action("list", request).await
    }

    /// Counts, bytes and limits of the server, as its JSON.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// println!("{:#}", client.stats().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stats(&self) -> Result<serde_json::Value, ClientError> {
        self.action("stats", &EmptyRequest { v: VERSION }).await
    }

    /// Whether the server and its backends work.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let health = client.health().await?;
    /// println!("{} {}", health.version, health.status);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.action("health", &EmptyRequest { v: VERSION }).await
    }

    /// Runs an action whose answer is one JSON object.
    pub(crate) async fn action<T: DeserializeOwned>(&self, name: &str, body: &impl Serialize) -> Result<T, ClientError> {
        answer(name, self.ask(name, json(body)?).await?)
    }

    /// Runs an action; its first result, in bytes.
    pub(crate) async fn ask(&self, name: &str, body: Vec<u8>) -> Result<Option<Bytes>, Status> {
        let mut results = self.flight.clone().do_action(Action::new(name, body)).await?.into_inner();
        let first = results.message().await?;
        while results.message().await?.is_some() {}
        Ok(first.map(|result| result.body))
    }
}

/// Flight over a connection.
pub(crate) fn flight(channel: Authorized) -> FlightServiceClient<Authorized> {
    FlightServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

fn key_request(key: &str) -> Result<KeyRequest, ClientError> {
    let key: Key = key.parse()?;
    Ok(KeyRequest { v: VERSION, key: key.to_string(), kv_spec: None })
}

pub(crate) fn json(value: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(value).map_err(|error| WireError::new(Code::BadRequest, error.to_string()).into())
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(ClientError::protocol)
}

/// The JSON of an action's first result.
pub(crate) fn answer<T: DeserializeOwned>(name: &str, first: Option<Bytes>) -> Result<T, ClientError> {
    parse(&first.ok_or_else(|| ClientError::protocol(format!("{name} without an answer")))?)
}
