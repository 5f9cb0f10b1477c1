//! Connections for bytes: opened when a call needs one, kept a while for the next.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::link::{Blocking, Link, Patience};
use super::tls::Tls;
use super::{CONNECT_TIME, Connection, IDLE, IDLE_TIME, block};
use crate::ClientError;
use crate::connect::{self, ConnectOptions};

/// The connections of one client; clones share them.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Asked when a signal breaks into a call of a pool whose connections block their thread.
    blocking: Option<fn() -> bool>,
}

struct Shared {
    url: String,
    address: Address,
    tls: Option<Tls>,
    /// Headers of every request.
    headers: Vec<u8>,
    idle: Mutex<Vec<(Connection, Instant)>>,
    /// The process that opened them: a child that it forks must not write into its parent's streams.
    process: u32,
}

/// Where the server listens.
#[derive(Debug)]
enum Address {
    /// `host:port`.
    Tcp(String),
    /// A Unix socket.
    File(String),
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

/// A connection that a call has to itself. Dropped, it is closed, which ends the call at the server too.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Connection,
    pool: Pool,
    /// Whether it was open before: then the server may have closed it meanwhile.
    pub reused: bool,
}

impl Pool {
    /// Opens nothing yet. With `blocking`, calls block their thread and need no runtime; it says whether to go on after a signal.
    pub fn new(url: &str, options: &ConnectOptions, blocking: Option<fn() -> bool>) -> Result<Pool, ClientError> {
        let file = connect::socket_path(url).map(str::to_owned);
        if file.is_some() && blocking.is_some() {
            let reason = "calls without a runtime go over TCP: grpc://host:port".to_owned();
            return Err(ClientError::BadUrl { url: url.to_owned(), reason });
        }
        let (authority, secure) = match file {
            Some(_) => ("localhost".to_owned(), false),
            None => connect::authority(url)?,
        };
        let host = authority.rsplit_once(':').map_or(&*authority, |(host, _)| host);
        let shared = Shared {
            url: url.to_owned(),
            tls: if secure { Some(Tls::new(host, options)?) } else { None },
            headers: block::request(&authority, secure, connect::authorization(options)?.as_deref()),
            address: file.map_or(Address::Tcp(authority), Address::File),
            idle: Mutex::default(),
            process: std::process::id(),
        };
        Ok(Pool { shared: Arc::new(shared), blocking })
    }

    /// A connection that is not in use, or a new one. A blocking one waits until `end` at most, here and later.
    pub async fn take(&self, end: Option<Instant>) -> Result<Lease, ClientError> {
        while let Some((mut connection, since)) = self.pop() {
            if since.elapsed() < IDLE_TIME && connection.settle() {
                connection.set_end(end);
                return Ok(Lease { connection, pool: self.clone(), reused: true });
            }
        }
        self.open(end).await
    }

    fn pop(&self) -> Option<(Connection, Instant)> {
        if self.shared.process != std::process::id() {
            return None;
        }
        // Never waits: in a child, the lock may have been taken by a thread of its parent.
        self.shared.idle.try_lock()?.pop()
    }

    async fn open(&self, end: Option<Instant>) -> Result<Lease, ClientError> {
        let limit = Instant::now() + CONNECT_TIME;
        let limit = end.map_or(limit, |end| end.min(limit));
        let patience = self.blocking.map(Patience::new);
        patience.iter().for_each(|patience| patience.set_end(Some(limit)));
        let opening = async {
            let link = match (&self.shared.address, &patience) {
                (Address::File(path), _) => self.over(tokio::net::UnixStream::connect(path).await).await?,
                (Address::Tcp(address), None) => self.over(tokio::net::TcpStream::connect(address).await.and_then(quick)).await?,
                (Address::Tcp(address), Some(patience)) => self.over(blocking(address, limit, patience)).await?,
            };
            Connection::greet(link, patience.clone()).await
        };
        let opened = match &patience {
            None => tokio::time::timeout_at(limit.into(), opening).await.unwrap_or_else(|_| Err(self.unreachable("no answer in time"))),
            Some(_) => opening.await,
        };
        let connection = opened.map_err(|error| match error {
            ClientError::Transport { reason, .. } => self.unreachable(&reason),
            other => other,
        })?;
        connection.set_end(end);
        Ok(self.lease(connection))
    }

    /// Takes this connection for one of its own.
    pub fn lease(&self, connection: Connection) -> Lease {
        Lease { connection, pool: self.clone(), reused: false }
    }

    async fn over(&self, socket: io::Result<impl Link + 'static>) -> Result<Box<dyn Link>, ClientError> {
        let socket = socket.map_err(|error| self.unreachable(&error.to_string()))?;
        match &self.shared.tls {
            Some(tls) => tls.secure(socket).await,
            None => Ok(Box::new(socket)),
        }
    }

    fn unreachable(&self, reason: &str) -> ClientError {
        ClientError::Transport { context: format!("no connection to {}", self.shared.url), reason: reason.to_owned() }
    }
}

fn quick(socket: tokio::net::TcpStream) -> io::Result<tokio::net::TcpStream> {
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Tries one address of the name after another.
fn blocking(address: &str, limit: Instant, patience: &Arc<Patience>) -> io::Result<Blocking> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let left = limit.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(Blocking { socket, patience: patience.clone(), limited: false });
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Lease {
    /// The call is over: another may use the connection.
    pub fn give_back(self) {
        let Lease { connection, pool, .. } = self;
        if !connection.is_reusable() || pool.shared.process != std::process::id() {
            return;
        }
        if let Some(mut idle) = pool.shared.idle.try_lock()
            && idle.len() < IDLE
        {
            idle.push((connection, Instant::now()));
        }
    }

    /// Whether a failed call may be made once more: the connection was an old one, and nothing of an answer came over it.
    pub fn may_try_again(&self, error: &ClientError) -> bool {
        let broken = matches!(error, ClientError::Transport { .. });
        self.reused && broken && !self.connection.is_answered() && !self.connection.is_out_of_time()
    }

    /// Begins a call.
    pub fn begin(&mut self, path: &str) -> Result<(), ClientError> {
        self.connection.call(&self.pool.shared.headers, path)
    }
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}
