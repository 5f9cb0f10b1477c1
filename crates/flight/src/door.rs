//! Where connections come in. Shaking hands happens on a thread of its own, with less of the processors than the calls get: what an attacker
//! can make a server compute before it has shown a token takes nothing from those who have.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::AbortHandle;
use tokio::time;

use crate::connection::{Connection, Greeted, Speaks};
use crate::same_host::Neighbour;
use crate::seats::Room;
use crate::stream::Stream;
use crate::tls::Tls;

/// From the accept to the HTTP/2 preface, TLS included.
const GREETING: Duration = Duration::from_secs(5);

/// Connections that may be on their way to the preface at once. One more ends the oldest of them.
pub const GREETINGS: usize = 1024;

/// How long a connection may take at least, whoever else comes: the next one waits in the kernel's queue for that long.
const UNDISTURBED: Duration = Duration::from_secs(1);

/// Connections that are ready to be served and not yet taken.
const READY: usize = 64;

/// How much nicer than calls the thread is: a tenth of their share, where all want all of it.
const NICENESS: i32 = 10;

/// Where a server listens.
#[derive(Debug)]
pub struct Listeners {
    /// The address that everybody can be told.
    pub tcp: TcpListener,
    /// A socket in the file system besides, for processes of the same machine. Who may connect is a matter of its file's mode; there is no TLS.
    pub unix: Option<UnixListener>,
}

impl From<TcpListener> for Listeners {
    fn from(tcp: TcpListener) -> Listeners {
        Listeners { tcp, unix: None }
    }
}

impl Listeners {
    async fn accept(&self) -> io::Result<(Stream, String)> {
        let unix = async {
            match &self.unix {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.tcp.accept() => {
                let (stream, peer) = accepted?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
            accepted = unix => {
                let (stream, _) = accepted?;
                let peer = stream.peer_cred().map_or_else(|_| "?".to_owned(), |peer| format!("{} of user {}", peer.pid().unwrap_or(0), peer.uid()));
                Ok((Stream::Unix(stream), format!("process {peer}")))
            }
        }
    }
}

/// What happens at the door.
struct Door {
    tls: Option<Tls>,
    room: Arc<Room>,
    ready: Sender<io::Result<Connection>>,
    neighbours: Sender<Neighbour>,
}

/// A connection that has shown what it speaks.
enum Ready {
    Connection(Connection),
    Neighbour(Neighbour),
}

/// Connections, as they come.
pub(crate) struct Arrivals {
    pub connections: Receiver<io::Result<Connection>>,
    /// Of processes of the same machine that want memory instead of bytes.
    pub neighbours: Receiver<Neighbour>,
}

/// Takes connections from `listeners`, on a thread that ends when that of connections is dropped. At most as many are open as `room` has seats.
pub(crate) fn open(listeners: Listeners, tls: Option<Tls>, room: Arc<Room>) -> io::Result<Arrivals> {
    let (tcp, unix) = (listeners.tcp.into_std()?, listeners.unix.map(UnixListener::into_std).transpose()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ready, connections) = channel(READY);
    let (to_neighbours, neighbours) = channel(READY);
    let door = Arc::new(Door { tls, room, ready, neighbours: to_neighbours });
    std::thread::Builder::new().name("sira-door".into()).spawn(move || {
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::debug!(%error, "the thread of the door has the priority of the others");
        }
        runtime.block_on(async move {
            let watched = door.ready.clone();
            let run = async {
                let unix = unix.map(UnixListener::from_std).transpose()?;
                door.run(Listeners { tcp: TcpListener::from_std(tcp)?, unix }).await
            };
            tokio::select! {
                () = watched.closed() => {}
                result = run => if let Err(error) = result {
                    tracing::error!(%error, "no connections are accepted any more");
                },
            }
        });
    })?;
    Ok(Arrivals { connections, neighbours })
}

impl Door {
    async fn run(self: Arc<Door>, listeners: Listeners) -> io::Result<()> {
        let mut greetings = VecDeque::new();
        loop {
            while !make_room(&mut greetings, GREETINGS, UNDISTURBED) {
                time::sleep(Duration::from_millis(5)).await;
            }
            match listeners.accept().await {
                Ok((stream, peer)) => {
                    let door = self.clone();
                    let greeting = tokio::spawn(async move {
                        let greeted = time::timeout(GREETING, door.greet(stream)).await;
                        match greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                            // These fail when the server is going away.
                            Ok(Ready::Connection(connection)) => drop(door.ready.send(Ok(connection)).await),
                            Ok(Ready::Neighbour(neighbour)) => drop(door.neighbours.send(neighbour).await),
                            Err(error) => tracing::debug!(%peer, %error, "a connection that did not come about"),
                        }
                    });
                    greetings.push_back((Instant::now(), greeting.abort_handle()));
                }
                // The client's trouble, over before it began.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted; others are closed for it");
                    make_room(&mut greetings, 1, Duration::ZERO);
                    self.room.make_room(1);
                    time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn greet(&self, stream: Stream) -> io::Result<Ready> {
        let tls = self.tls.as_ref().filter(|_| matches!(stream, Stream::Tcp(_)));
        let (greeted, speaks) = Greeted::greet(stream, tls.map(Tls::config)).await?;
        let known = tls.is_some_and(Tls::mutual);
        let seat = self.room.clone().seat(known).await.ok_or(io::ErrorKind::ConnectionRefused)?;
        Ok(match speaks {
            Speaks::Http2 => Ready::Connection(greeted.seated(seat)?),
            Speaks::SameHost => Ready::Neighbour(greeted.neighbour(seat)?),
        })
    }
}

/// Makes room for one more greeting among `most`: where none has ended by itself, the oldest is ended, unless it is younger than `undisturbed`.
/// Says whether there is room.
fn make_room(greetings: &mut VecDeque<(Instant, AbortHandle)>, most: usize, undisturbed: Duration) -> bool {
    if greetings.len() >= most {
        greetings.retain(|(_, greeting)| !greeting.is_finished());
    }
    if greetings.len() >= most
        && let Some((_, oldest)) = greetings.pop_front_if(|(begun, _)| begun.elapsed() >= undisturbed)
    {
        oldest.abort();
    }
    greetings.len() < most
}
