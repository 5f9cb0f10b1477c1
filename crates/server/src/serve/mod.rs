//! The server: start-up, the one line that says it is ready, and the drain at its end.

mod backends;
mod lock;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use sira_store::StorageClient;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{self, MissedTickBehavior};
use tracing_subscriber::EnvFilter;

use crate::Failure;
use crate::config::Config;

/// Serves until SIGTERM or SIGINT, then drains: no new calls, running ones to their end or the configured time, unwritten tensors to
/// their backends.
///
/// The order of the start: log, lock of the data folder, port (so that a server that cannot listen touches no data), catalog and
/// backends, and, once calls are answered, the line on standard output.
pub async fn run(config: Config) -> Result<(), Failure> {
    start_log()?;
    let mut signals = Signals::new()?;
    let lock = lock::lock_data(&config.server.data_dir)?;
    let (listener, address) = listen(config.server.listen).await?;
    let store = backends::open_store(&config).await?;
    let log = config.storage.metrics_interval.map(|interval| tokio::spawn(log_statistics(store.clone(), interval)));

    let (stop, mut stopped) = watch::channel(false);
    let shutdown = async move {
        // An error means that the sender is gone, which is a reason to stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let serving = store.clone();
    let mut server = tokio::spawn(async move { sira_flight::serve(serving, listener, shutdown).await.map_err(|error| error.to_string()) });
    announce(address)?;

    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "draining");
            None
        }
        ended = &mut server => Some(ended),
    };
    if let Some(ended) = ended {
        return Err(Failure::Failed(match ended {
            Ok(Err(error)) => format!("the server ended: {error}"),
            Ok(Ok(())) => "the server ended".to_owned(),
            Err(error) => format!("the server ended: {error}"),
        }));
    }
    let _ = stop.send(true);
    let drained = tokio::select! {
        drained = time::timeout(config.server.drain_timeout, drain(&store, &mut server)) => drained,
        name = signals.next() => return Err(Failure::Failed(format!("stopped by a second {name} before the drain was over"))),
    };
    server.abort();
    if let Some(log) = log {
        log.abort();
    }
    drop(lock);
    match drained {
        Ok(Ok(())) => {
            tracing::info!("stopped");
            Ok(())
        }
        Ok(Err(error)) => Err(Failure::with("the drain failed", error)),
        Err(_) => Err(Failure::Failed(format!("calls were still running after {:?}; they were cut off", config.server.drain_timeout))),
    }
}

/// Lets running calls end while the store refuses new writes, then writes what is still only in memory.
async fn drain(store: &StorageClient, server: &mut tokio::task::JoinHandle<Result<(), String>>) -> Result<(), String> {
    let (written, served) = tokio::join!(store.drain(), server);
    written.map_err(|error| error.to_string())?;
    served.map_err(|error| error.to_string())?
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

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    // The configuration has refused it with its line; whoever builds a Config by hand is refused here.
    if !address.ip().is_loopback() {
        return Err(Failure::Usage(format!("{address} is not a loopback address, and TLS is not part of this version")));
    }
    let failed = |error: io::Error| Failure::with(format_args!("cannot listen on {address}"), error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// The one line on standard output, for whoever started this and waits.
fn announce(address: SocketAddr) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "sira: listening on grpc://{address}")
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
