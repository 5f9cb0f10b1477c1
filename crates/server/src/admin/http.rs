//! HTTP of the admin port: three routes, one request a connection, and limits on all of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{HeaderName, Response, StatusCode, header};
use axum::{Router, routing};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time;

use super::{State, metrics};

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// How long a connection may last: head in, answer out.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes and lines of a request's head.
const HEAD_BYTES: usize = 8 << 10;
const HEADERS: usize = 64;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Accepts connections until the runtime ends.
pub(super) async fn serve(listener: TcpListener, routes: Router) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let routes = routes.clone();
                tokio::spawn(async move {
                    // A client that is too slow is gone, and what came of a broken connection concerns only its client.
                    let _ = time::timeout(PATIENCE, answer(stream, routes)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin: no connection could be accepted");
                time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, routes: Router) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await
}

/// The routes; whatever is not among them is told so, and so is every method but GET.
pub(super) fn routes(state: Arc<State>) -> Router {
    Router::new()
        .route("/healthz", only_get(routing::get(async || text(StatusCode::OK, TEXT, "ok\n".into()))))
        .route("/readyz", only_get(routing::get(readyz)))
        .route("/metrics", only_get(routing::get(measured)))
        .fallback(async || text(StatusCode::NOT_FOUND, TEXT, "there are /healthz, /readyz and /metrics\n".into()))
        .with_state(state)
}

fn only_get(route: routing::MethodRouter<Arc<State>, Infallible>) -> routing::MethodRouter<Arc<State>, Infallible> {
    // Axum would answer HEAD as GET.
    let refused = async || {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".into());
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
        response
    };
    route.head(refused).fallback(refused)
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers: [(HeaderName, &str); 2] = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
    for (name, value) in headers {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    state: &'static str,
    backends: BTreeMap<String, String>,
}

async fn readyz(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    let health = state.health().await;
    let ready = state.ready(&health);
    let backends = health.into_iter().map(|(name, status)| (name, status.to_string())).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Text and booleans always serialise.
    let body = serde_json::to_string(&Readiness { ready, state: state.phase(), backends }).unwrap_or_default();
    text(status, JSON, body)
}

async fn measured(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    match metrics::text(&state).await {
        Ok(body) => text(StatusCode::OK, metrics::CONTENT_TYPE, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}
