//! A way to a server that fails as told: what lies between a backend and its network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What the way does to what comes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Each piece takes this much longer.
    Delay(Duration),
    /// So many bytes a second, each way.
    Slow(usize),
    /// Connections are closed, and new ones as soon as they are made.
    Cut,
    /// Connections are accepted and stay open, but what is sent vanishes, for good: as if the other machine had lost its power.
    HalfOpen,
    /// What is sent arrives; answers vanish.
    AnswersLost,
    /// Nothing moves; it goes on, late, when the fault is over.
    Stalled,
}

/// Passes connections on to a server until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    task: AbortHandle,
}

impl Proxy {
    /// In front of a server, as `HOST:PORT`.
    pub async fn to(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, (fault, faults), server) = (listener.local_addr().unwrap(), watch::channel(Fault::None), server.to_owned());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(connect(client, server.clone(), faults.clone()));
            }
        });
        Proxy { address, fault, task: task.abort_handle() }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this from now on, to connections that are there and to new ones.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(client: TcpStream, server: String, faults: watch::Receiver<Fault>) {
    if *faults.borrow() == Fault::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // A connection that lost a byte is of no use any more, and must not deliver what comes after it.
    let gone = Arc::new(AtomicBool::new(false));
    let mut ways = JoinSet::new();
    ways.spawn(pass(from_client, to_server, false, faults.clone(), gone.clone()));
    ways.spawn(pass(from_server, to_client, true, faults, gone));
    // The end of one way ends both.
    ways.join_next().await;
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, answers: bool, mut faults: watch::Receiver<Fault>, gone: Arc<AtomicBool>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let fault = *faults.borrow_and_update();
        match fault {
            Fault::Cut => return,
            Fault::Stalled => {
                if faults.changed().await.is_err() {
                    return;
                }
                continue;
            }
            _ => {}
        }
        let most = if let Fault::Slow(rate) = fault { (rate / 20).clamp(1, buffer.len()) } else { buffer.len() };
        let read = tokio::select! {
            read = from.read(&mut buffer[..most]) => read.unwrap_or(0),
            changed = faults.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
        };
        // The fault may have come while nothing did.
        let fault = *faults.borrow();
        let arrives = fault == Fault::AnswersLost && !answers;
        if fault == Fault::HalfOpen || fault == Fault::AnswersLost && answers || gone.load(Ordering::Relaxed) && !arrives {
            gone.store(true, Ordering::Relaxed);
            // That a side closed is something that the other must not hear.
            while read == 0 && *faults.borrow_and_update() != Fault::Cut {
                if faults.changed().await.is_err() {
                    return;
                }
            }
            continue;
        }
        if read == 0 {
            return;
        }
        match fault {
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::Slow(rate) => tokio::time::sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await,
            _ => {}
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
