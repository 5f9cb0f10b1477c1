//! The server: start-up, the line that says it is ready, and the drain at its end.

mod backends;
mod calls;
mod lock;
mod network;
mod routing;
mod unix;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use sira_store::StorageClient;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{self, MissedTickBehavior};
use tracing_subscriber::EnvFilter;

use crate::Failure;
use crate::admin::Admin;
use crate::config::Config;
use calls::Calls;
use unix::SocketFile;

/// Serves until SIGTERM or SIGINT, then drains: no new calls, running ones to their end or the configured time, unwritten tensors to
/// their backends. Calls that are cut off are no failure; a tensor that could not be written is one.
///
/// The order of the start: log, certificates and tokens, lock of the data folder, ports (so that a server that cannot listen touches no data),
/// catalog and backends, and, once calls are answered, the lines on standard output.
pub async fn run(config: Config) -> Result<(), Failure> {
    start_log()?;
    let mut signals = Signals::new()?;
    let transport = network::transport(&config)?;
    let lock = lock::lock_data(&config.server.data_dir)?;
    lock::check_format(&config.server.data_dir)?;
    let (listeners, address, socket) = network::listen(&config.server).await?;
    let admin = Admin::start(&config).await?;
    let store = backends::open_store(&config).await?;
    if let Some(admin) = &admin {
        admin.opened(store.clone());
    }
    let log = config.storage.metrics_interval.map(|interval| tokio::spawn(log_statistics(store.clone(), interval)));

    let (stop, mut stopped) = watch::channel(false);
    let shutdown = async move {
        // An error means that the sender is gone, which is a reason to stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let serving = store.clone();
    let mut calls =
        Calls::run(async move { sira_flight::serve(serving, listeners, transport, shutdown).await.map_err(|error| error.to_string()) })?;
    let warning = network::warn(&config.server, &config.auth);
    let scheme = if config.server.tls.is_some() { "grpc+tls" } else { "grpc" };
    announce(admin.as_ref().map(Admin::address), socket.as_ref(), scheme, address)?;

    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "draining");
            None
        }
        ended = calls.ended() => Some(ended),
    };
    if let Some(ended) = ended {
        return Err(Failure::with("the server ended", ended.err().unwrap_or_else(|| "nobody asked it to".to_owned())));
    }
    // Whoever spreads calls over servers looks here first.
    if let Some(admin) = &admin {
        admin.draining();
    }
    let _ = stop.send(true);
    let drained = tokio::select! {
        drained = drain(&store, &mut calls, config.server.drain_timeout) => drained.map_err(|error| Failure::with("the drain failed", error)),
        name = signals.next() => Err(Failure::Failed(format!("stopped by a second {name} before the drain was over"))),
    };
    calls.cut_off().await;
    drop(socket);
    for task in [log, warning].into_iter().flatten() {
        task.abort();
    }
    if let Some(admin) = admin {
        admin.close().await;
    }
    drop(lock);
    drained?;
    tracing::info!("stopped");
    Ok(())
}

/// Lets running calls end, for `patience` at most, while the store refuses new writes, then writes what is still only in memory.
async fn drain(store: &StorageClient, calls: &mut Calls, patience: Duration) -> Result<(), String> {
    // It waits for the puts that run: those that are cut off below count as ended. A task of its own, so that nothing interrupts it.
    let unwritten = tokio::spawn({
        let store = store.clone();
        async move { store.drain().await }
    });
    match time::timeout(patience, calls.ended()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error, "the server ended badly"),
        Err(_) => {
            tracing::warn!(
                "calls were still running after {} s; they are cut off, and what they were putting is not stored",
                patience.as_secs_f64()
            );
            calls.cut_off().await;
        }
    }
    unwritten.await.map_err(|error| error.to_string())?.map_err(|error| format!("some tensors are not written: {error}"))
}

/// Logs to standard error; `SIRA_LOG` filters as `RUST_LOG` does elsewhere (`debug`, `sira_store=trace`).
fn start_log() -> Result<(), Failure> {
    let filter = match std::env::var("SIRA_LOG") {
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| Failure::Usage(format!("SIRA_LOG={text}: {error}")))?,
        Err(_) => EnvFilter::new("info"),
    };
    // A second start in one process (tests) keeps the first log.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).try_init();
    Ok(())
}

/// What standard output says, for whoever started this and waits: the last line is that calls are answered.
fn announce(admin: Option<SocketAddr>, socket: Option<&SocketFile>, scheme: &str, address: SocketAddr) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    admin
        .map_or(Ok(()), |admin| writeln!(stdout, "sira: admin on http://{admin}"))
        .and_then(|()| socket.map_or(Ok(()), |socket| writeln!(stdout, "sira: socket on grpc+unix://{}", socket.path().display())))
        .and_then(|()| writeln!(stdout, "sira: listening on {scheme}://{address}"))
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::with("standard output", error))
}

/// Writes the statistics to the log, every `interval`.
async fn log_statistics(store: StorageClient, interval: Duration) {
    let mut ticks = time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await; // the first comes at once
    loop {
        ticks.tick().await;
        match serde_json::to_string(&store.stats().await) {
            Ok(statistics) => tracing::info!(target: "sira::statistics", "{statistics}"),
            Err(error) => tracing::warn!(%error, "statistics"),
        }
    }
}

/// The signals that ask a server to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let failed = |error| Failure::with("signals", error);
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
