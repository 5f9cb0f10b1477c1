//! The server around the service: what it takes from the network, and whom it listens to.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use futures::FutureExt;
use sira_store::StorageClient;
use sira_store::ledger::Reservation;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::answer::Answers;
use crate::arrival::{Arrivals, MAX_REQUEST};
use crate::auth::Tokens;
pub use crate::door::{GREETINGS, Listeners};
use crate::same_host::Neighbours;
use crate::seats::{Calls, Guest, Room};
use crate::service::Flight;
use crate::tls::Tls;
use crate::{door, put};

/// Connections that may be open at once, where nothing else is said.
pub const DEFAULT_CONNECTIONS: usize = 1024;

/// Calls that a server may have under way. A put may be sent a window of [`STREAM_WINDOW`] before it is let in to memory that is counted; any
/// other call is under way once its request has come whole.
const CALLS: usize = 2048;

/// Calls that one connection may have under way. Few, because all of them may send a window ahead of the store (the next constant but one),
/// and because this bounds what one client can start and reset; a client that wants more opens another connection, as gRPC does.
const STREAMS: u32 = 64;
/// A connection may have a running get for each of these bytes of memory: a get of a large tensor holds 8 MiB, so that the gets of one client
/// that does not read hold a sixteenth of the memory at most.
const GET_SHARE: u64 = 128 << 20;
/// HTTP/2 windows: how much a client may send ahead of the store. A connection's holds that of all its streams: puts that wait for memory
/// must not keep the bytes of those that have it from coming.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// Large frames: an upload of 16 MiB in frames of 16 KiB is a thousand of them.
const FRAME: u32 = 1 << 20;
/// Headers of a call. Ours take a few hundred bytes; a call with more is refused, and memory for more is never taken.
const HEADERS: u32 = 16 << 10;
/// Calls that were reset before they were looked at: more at once, and the connection is closed (rapid reset).
const PENDING_RESETS: usize = 20;
/// Calls that a client's errors made this server reset: more at once, and the connection is closed (the same attack, the other way round).
const ERROR_RESETS: usize = 64;
/// A connection is asked this often whether it still lives, and closed if it does not answer within the same time.
const KEEPALIVE: Duration = Duration::from_secs(20);

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
    /// The HTTP/2 server failed.
    #[error(transparent)]
    Server(#[from] tonic::transport::Error),
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
    let service = Guarded { flight, store, tokens, calls, arrivals: Arrivals::default(), answers };
    let gets = (memory / GET_SHARE).clamp(4, STREAMS.into()) as usize;
    let arrivals = door::open(listeners.into(), tls, Room::new(max_connections, gets))?;
    let shutdown = shutdown.shared();
    let local = neighbours.serve(arrivals.neighbours, shutdown.clone());
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADERS)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(ERROR_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(arrivals.connections), shutdown);
    let (served, ()) = tokio::join!(server, local);
    Ok(served?)
}

/// Every call of the service passes here, `DoPut` included, which is not the generated service's.
#[derive(Clone)]
struct Guarded {
    flight: FlightServiceServer<Flight>,
    store: StorageClient,
    tokens: Option<Arc<Tokens>>,
    calls: Calls,
    arrivals: Arrivals,
    answers: Arc<Answers>,
}

/// Calls whose requests are streams: their bodies are read as they come, or not at all.
const STREAMED: [&str; 3] = ["/DoPut", "/Handshake", "/DoExchange"];

impl Guarded {
    /// Lets a call in, and answers it. Who calls has been looked at.
    async fn answer(mut self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let guest = request.extensions().get::<Arc<Guest>>().cloned();
        // The connection stays while the request comes.
        let running = guest.clone().map(Guest::begin);
        let path = request.uri().path();
        let (put, streamed) = (path.ends_with("/DoPut"), STREAMED.iter().any(|call| path.ends_with(call)));
        let (request, memory) =
            if streamed { (request, Reservation::default()) } else { self.arrivals.gather(&self.store, request).await? };
        let call = self.calls.begin(guest)?.holding(memory);
        drop(running);
        let response = if put {
            put::handle(self.store, self.calls, request).await
        } else {
            self.flight.call(request).await.unwrap_or_else(|never| match never {})
        };
        Ok(self.answers.send(call, response))
    }
}

impl NamedService for Guarded {
    const NAME: &'static str = <FlightServiceServer<Flight> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for Guarded {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        <FlightServiceServer<Flight> as Service<http::Request<Body>>>::poll_ready(&mut self.flight, context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // Before anything else of it.
        if let Some(tokens) = &self.tokens
            && let Err(status) = tokens.check(request.uri().path(), request.headers())
        {
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let answer = self.clone().answer(request);
        Box::pin(async move { Ok(answer.await.unwrap_or_else(Status::into_http)) })
    }
}
