//! The admin port: liveness, readiness and metrics over HTTP. It runs on a thread of its own, so that it answers whatever hangs elsewhere.

mod http;
mod metrics;
mod process;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sira_backend::HealthStatus;
use sira_store::{StorageClient, StoreStats};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::Failure;
use crate::config::{AdminListen, Config};

/// How long the health of the backends is good for: probes may be as many as they like.
const FRESH: Duration = Duration::from_secs(1);

/// How long requests that are being answered may take when the server ends.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// The admin port of a running server.
pub(crate) struct Admin {
    address: SocketAddr,
    state: Arc<State>,
    /// Taken only when it ends.
    runtime: Option<Runtime>,
}

/// What the answers are made of.
struct State {
    /// Set once it is open.
    store: OnceLock<StorageClient>,
    draining: AtomicBool,
    tiers: Tiers,
    /// Backends are asked here: what they block is not the admin port.
    server: Handle,
    health: Mutex<Option<(Instant, BTreeMap<String, HealthStatus>)>>,
}

/// What the configuration says of the tiers.
struct Tiers {
    /// Backends without which nothing can be put.
    needed: [String; 2],
    /// Kind and limit in bytes of each backend, by name.
    backends: BTreeMap<String, (&'static str, Option<u64>)>,
}

impl Tiers {
    fn of(config: &Config) -> Tiers {
        let storage = &config.storage;
        let backends = storage.backends.iter().map(|(name, backend)| (name.clone(), (backend.kind(), backend.limit())));
        Tiers { needed: [storage.record_backend.clone(), storage.default_backend.clone()], backends: backends.collect() }
    }
}

impl Admin {
    /// Opens the admin port that the configuration asks for. `None` where it is off, or nobody asked for it and somebody else has the
    /// port. Not ready until [`Admin::opened`].
    pub(crate) async fn start(config: &Config) -> Result<Option<Admin>, Failure> {
        let listen = config.admin.listen;
        let Some(address) = listen.address(config.server.listen) else { return Ok(None) };
        // The configuration has refused it with its line; whoever builds a Config by hand is refused here.
        if !address.ip().is_loopback() && !config.server.insecure {
            return Err(Failure::Usage(format!("admin: {address} is not a loopback address, and the admin port asks for no password")));
        }
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) if listen == AdminListen::Beside => {
                tracing::warn!(%address, %error, "no admin port: nobody chose it, and this one cannot be had; [admin] listen chooses another");
                return Ok(None);
            }
            Err(error) => return Err(Failure::with(format_args!("admin: cannot listen on {address}"), error)),
        };
        let failed = |error: io::Error| Failure::with("the admin port does not start", error);
        let (address, listener) = (listener.local_addr().map_err(failed)?, listener.into_std().map_err(failed)?);
        let state = Arc::new(State {
            store: OnceLock::new(),
            draining: AtomicBool::new(false),
            tiers: Tiers::of(config),
            server: Handle::current(),
            health: Mutex::default(),
        });
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("sira-admin").enable_all().build().map_err(failed)?;
        let listener = {
            let _within = runtime.enter();
            TcpListener::from_std(listener).map_err(failed)?
        };
        runtime.spawn(http::serve(listener, http::routes(state.clone())));
        Ok(Some(Admin { address, state, runtime: Some(runtime) }))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store is open: from here on it is ready.
    pub(crate) fn opened(&self, store: StorageClient) {
        // It opens once.
        let _ = self.state.store.set(store);
    }

    /// A drain begins: from here on it is not ready.
    pub(crate) fn draining(&self) {
        self.state.draining.store(true, Ordering::SeqCst);
    }

    /// Ends it, and waits until nothing of the store is held here: it is closed by whoever opened it, not while the process exits.
    pub(crate) async fn close(mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It waits for its threads, which may not be done on a thread that runs async tasks.
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(LAST_ANSWER)).await;
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // Dropping a runtime within another one panics.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl State {
    /// `starting`, `serving` or `draining`.
    fn phase(&self) -> &'static str {
        match self.store.get() {
            _ if self.draining.load(Ordering::SeqCst) => "draining",
            Some(_) => "serving",
            None => "starting",
        }
    }

    /// The health of each backend, at most [`FRESH`] old. Probes that come together wait for one answer.
    async fn health(&self) -> BTreeMap<String, HealthStatus> {
        let Some(store) = self.store.get().cloned() else { return BTreeMap::new() };
        let mut last = self.health.lock().await;
        if let Some((at, health)) = &*last
            && at.elapsed() < FRESH
        {
            return health.clone();
        }
        // Empty where the server's runtime has ended.
        let health = self.server.spawn(async move { store.health().await }).await.unwrap_or_default();
        *last = Some((Instant::now(), health.clone()));
        health
    }

    /// Whether puts can be taken.
    fn ready(&self, health: &BTreeMap<String, HealthStatus>) -> bool {
        let works = |name: &String| matches!(health.get(name), Some(HealthStatus::Healthy | HealthStatus::Degraded(_)));
        self.phase() == "serving" && self.tiers.needed.iter().all(works)
    }

    async fn stats(&self) -> Option<(StorageClient, StoreStats)> {
        let store = self.store.get()?.clone();
        let asked = store.clone();
        let stats = self.server.spawn(async move { asked.stats().await }).await.ok()?;
        Some((store, stats))
    }
}
