//! What the server shows to the network: its address, its certificate, its tokens, and the warning where one of these is missing.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sira_flight::{GREETINGS, Listeners, Tls, Tokens, Transport};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time;

use super::unix::{self, SocketFile};
use crate::Failure;
use crate::config::{Auth, Config, Server};

/// How often a server that is open to everybody says so in its log.
const REMINDER: Duration = Duration::from_secs(3600);

/// Files that a server may have open besides its connections: RocksDB's, mostly.
const OTHER_FILES: u64 = 512;

/// Reads certificates and tokens. A file that is wrong is named.
pub(super) fn transport(config: &Config) -> Result<Transport, Failure> {
    let tls = config.server.tls.clone().map(Tls::load).transpose().map_err(Failure::Failed)?;
    let tokens = config.auth.token_file.clone().map(Tokens::load).transpose().map_err(Failure::Failed)?;
    allow_connections(config.server.max_connections);
    Ok(Transport { tls, tokens, max_connections: config.server.max_connections, memory: config.memory.limit })
}

/// Raises the limit of open files as far as the system lets it, which is often 1024 where it could be far more.
fn allow_connections(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let needed = (connections + GREETINGS) as u64 + OTHER_FILES;
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < needed) {
        tracing::warn!("this process may open {files} files; {connections} connections need {needed}: raise the limit (ulimit -n)");
    }
}

/// The server's port with its address, and its Unix socket with the file that goes when the server does.
pub(super) async fn listen(server: &Server) -> Result<(Listeners, SocketAddr, Option<SocketFile>), Failure> {
    let failed = |error: io::Error| Failure::with(format_args!("cannot listen on {}", server.listen), error);
    let tcp = TcpListener::bind(server.listen).await.map_err(failed)?;
    let address = tcp.local_addr().map_err(failed)?;
    let (unix, file) = match &server.unix_socket {
        Some(path) => unix::listen(path).await.map(|(listener, file)| (Some(listener), Some(file)))?,
        None => (None, None),
    };
    Ok((Listeners { tcp, unix }, address, file))
}

/// Says loudly, and again every hour, that the server is open to everybody, if it is.
pub(super) fn warn(server: &Server, auth: &Auth) -> Option<JoinHandle<()>> {
    let missing = server.exposure(auth)?;
    let address = server.listen;
    let line = "*".repeat(78);
    // Past the log's filter: whoever starts it must see it.
    let _ = writeln!(
        io::stderr(),
        "{line}\n** WARNING: INSECURE. This server listens on {address}, beyond loopback:\n** {missing}.\n\
         ** It was told to (--insecure, server.insecure). docs/security.md says what it takes to be safe.\n{line}"
    );
    Some(tokio::spawn(async move {
        loop {
            time::sleep(REMINDER).await;
            tracing::warn!("INSECURE: this server listens on {address}, beyond loopback: {missing}");
        }
    }))
}
