//! The server around the service: what it takes from the network, and whom it listens to.

use std::future::Future;
use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use futures::FutureExt;
use http_body_util::Full;
use sira_store::StorageClient;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::answer::{Answer, Answers, Outgoing};
use crate::arrival::{Arrivals, MAX_REQUEST, aside};
use crate::auth::Tokens;
pub use crate::door::{GREETINGS, Listeners};
use crate::same_host::Neighbours;
use crate::seats::{Calls, Guest, Room};
use crate::service::Flight;
use crate::tls::Tls;
use crate::{door, get, http2, put};

/// Connections that may be open at once, where nothing else is said.
pub const DEFAULT_CONNECTIONS: usize = 1024;

/// Calls that a server may have under way.
const CALLS: usize = 2048;

/// Those of them whose requests are streams. Each may be sent a window of [`http2::STREAM_WINDOW`] before it is let in to memory that is counted; any
/// other call is under way once its request has come whole.
const STREAMED_CALLS: usize = 1024;

/// A connection may have a running get for each of these bytes of memory: a get of a large tensor holds 8 MiB, so that the gets of one client
/// that does not read hold a sixteenth of the memory at most.
const GET_SHARE: u64 = 128 << 20;
/// How a server meets the network.
pub struct Transport {
    /// TLS; without it, connections are plaintext.
    pub tls: Option<Tls>,
    /// The tokens of which every call needs one; without them, calls need none.
    pub tokens: Option<Tokens>,
    /// Connections that may be open at once. Where there are more, one without a running call is closed for a new one.
    pub max_connections: usize,
    /// Bytes of memory for tensors (`memory.limit`): gets over one connection have a share of it.
    pub memory: u64,
}

impl Default for Transport {
    fn default() -> Transport {
        Transport { tls: None, tokens: None, max_connections: DEFAULT_CONNECTIONS, memory: 1 << 30 }
    }
}

/// Why a server could not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The thread that accepts connections did not start.
    #[error("connections cannot be accepted: {0}")]
    Accept(#[from] std::io::Error),
}

/// Serves `store` on `listeners` until `shutdown`, then lets running calls end.
pub async fn serve(
    store: StorageClient,
    listeners: impl Into<Listeners>,
    transport: Transport,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let Transport { tls, tokens, max_connections, memory } = transport;
    let flight = FlightServiceServer::new(Flight::new(store.clone(), tokens.is_some())).max_decoding_message_size(MAX_REQUEST);
    let (calls, answers) = (Calls::new(CALLS), Arc::new(Answers::default()));
    let (full, pressed) = (calls.clone(), store.clone());
    tokio::spawn(Answers::watch(Arc::downgrade(&answers), move || full.are_full() || pressed.pressed()));
    let tokens = tokens.map(Arc::new);
    let neighbours = Neighbours::new(store.clone(), tokens.clone(), calls.clone());
    let service = Guarded { flight, store, tokens, calls, streamed: Calls::new(STREAMED_CALLS), arrivals: Arrivals::default(), answers };
    let gets = (memory / GET_SHARE).clamp(4, http2::STREAMS.into()) as usize;
    let arrivals = door::open(listeners.into(), tls, Room::new(max_connections, gets))?;
    let shutdown = shutdown.shared();
    let local = neighbours.serve(arrivals.neighbours, shutdown.clone());
    tokio::join!(http2::serve(ReceiverStream::new(arrivals.connections), Arc::new(service), shutdown), local);
    Ok(())
}

/// Every call passes here. `DoPut` and `DoGet` are not the generated service's.
pub(crate) struct Guarded {
    flight: FlightServiceServer<Flight>,
    store: StorageClient,
    tokens: Option<Arc<Tokens>>,
    calls: Calls,
    /// Those whose requests are streams.
    streamed: Calls,
    arrivals: Arrivals,
    answers: Arc<Answers>,
}

/// What the paths of all calls begin with.
const SERVICE: &str = "/arrow.flight.protocol.FlightService/";

/// Calls whose requests are streams: their bodies are read as they come, or not at all.
const STREAMED: [&str; 3] = ["DoPut", "Handshake", "DoExchange"];

impl Guarded {
    /// Answers a call over `guest`.
    pub async fn call(self: Arc<Guarded>, guest: Arc<Guest>, request: http::Request<Body>) -> http::Response<Answer> {
        self.answer(guest, request).await.unwrap_or_else(Status::into_http)
    }

    async fn answer(&self, guest: Arc<Guest>, request: http::Request<Body>) -> Result<http::Response<Answer>, Status> {
        let path = request.uri().path();
        if let Some(tokens) = &self.tokens {
            tokens.check(path, request.headers())?; // before anything else of it
        }
        let method = path.strip_prefix(SERVICE).ok_or_else(|| Status::unimplemented(format!("{path} is no call of Arrow Flight")))?;
        if STREAMED.contains(&method) {
            let is_put = method == "DoPut";
            let (call, _streamed) = (self.calls.begin(Some(guest))?, self.streamed.begin(None)?);
            let (calls, streamed) = (self.calls.clone(), self.streamed.clone());
            let full = move || calls.are_full() || streamed.are_full();
            let response = if is_put { put::handle(self.store.clone(), full, request).await } else { self.flight(request).await };
            return Ok(self.answers.clone().send(call, response.map(Outgoing::from)));
        }
        let is_get = method == "DoGet";
        // The connection stays while the request comes.
        let running = guest.clone().begin();
        let (mut head, body) = request.into_parts();
        let (body, memory) = self.arrivals.gather(&self.store, body).await?;
        let call = self.calls.begin(Some(guest.clone()))?.holding(memory);
        drop(running);
        let response = if is_get {
            get::handle(&self.store, body, guest).await?
        } else {
            let body = aside(&mut head, body);
            self.flight(http::Request::from_parts(head, Body::new(Full::new(body)))).await.map(Outgoing::from)
        };
        Ok(self.answers.clone().send(call, response))
    }

    /// What the generated service answers.
    async fn flight(&self, request: http::Request<Body>) -> http::Response<Body> {
        self.flight.clone().call(request).await.unwrap_or_else(|never| match never {})
    }
}
