//! A connection on its way from the thread that greets it to the runtime that serves it.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use sira_wire::same_host;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::frames::Frames;
use crate::http2::STREAM_WINDOW;
use crate::same_host::Neighbour;
use crate::seats::{Guest, Seat};
use crate::stream::{Socket, Stream};

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection speaks.
pub(crate) enum Speaks {
    Http2,
    /// That of processes of the same machine: memory is passed, not bytes.
    SameHost,
}

/// Frames after which a connection lets others have their turn: one read may bring hundreds of tiny ones, each of which takes time, and a flood of them
/// would otherwise hold a thread for as long as it lasts. And bytes, after which a client has to wait for its put in any case. Not fewer of either:
/// whoever gives up its turn is taken up by another thread, with its bytes in another core's cache.
const TURN_FRAMES: u64 = 256;
const TURN_BYTES: usize = STREAM_WINDOW as usize;

/// A connection that has shown that it speaks HTTP/2, over TLS where that is asked for.
pub(crate) enum Greeted {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Greeted {
    /// Shakes hands and waits for the preface. Bounded in time by the caller.
    pub async fn greet(stream: Stream, tls: Option<Arc<ServerConfig>>) -> io::Result<(Greeted, Speaks)> {
        let local = matches!(stream, Stream::Unix(_));
        if let Stream::Tcp(tcp) = &stream {
            tcp.set_nodelay(true)?;
        }
        let socket = Socket::Live(stream);
        let mut stream = match tls {
            Some(config) => Greeted::Tls(Box::new(TlsAcceptor::from(config).accept(socket).await?)),
            None => Greeted::Plain(socket),
        };
        let mut first = [0; PREFACE.len()];
        match &mut stream {
            Greeted::Plain(stream) => stream.read_exact(&mut first).await?,
            Greeted::Tls(stream) => stream.read_exact(&mut first).await?,
        };
        match &first {
            PREFACE => Ok((stream, Speaks::Http2)),
            same_host::PREFACE if local => Ok((stream, Speaks::SameHost)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not HTTP/2")),
        }
    }

    /// The socket of a process of the same machine, for whoever serves it.
    pub fn neighbour(self, seat: Seat) -> io::Result<Neighbour> {
        match self {
            Greeted::Plain(socket) => Ok(Neighbour { stream: socket.into_unix()?, seat }),
            Greeted::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The connection for whoever serves it, in whatever runtime that is.
    pub fn seated(mut self, seat: Seat) -> io::Result<Connection> {
        match &mut self {
            Greeted::Plain(socket) => socket.park()?,
            Greeted::Tls(stream) => stream.get_mut().0.park()?,
        }
        Ok(Connection { stream: self, unread: PREFACE, frames: Frames::new(Instant::now()), turn: (0, 0), pause: None, seat })
    }
}

/// A connection with its seat.
pub(crate) struct Connection {
    stream: Greeted,
    /// What is left of the preface, which was read already and is read again by what serves the connection.
    unread: &'static [u8],
    frames: Frames,
    /// What was read in this turn: bytes, and the frames that had begun before it.
    turn: (usize, u64),
    /// Until when nothing is read, because too many frames came.
    pause: Option<Pin<Box<Sleep>>>,
    seat: Seat,
}

impl Connection {
    /// Whose connection it is.
    pub fn guest(&self) -> Arc<Guest> {
        self.seat.guest.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let (now, later) = self.unread.split_at(self.unread.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.unread = later;
            return Poll::Ready(Ok(()));
        }
        if self.seat.guest.is_leaving(context) {
            return Poll::Ready(Ok(())); // as if the client had ended it
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let (bytes, begun) = self.turn;
        if bytes >= TURN_BYTES || self.frames.begun() - begun >= TURN_FRAMES {
            self.turn = (0, self.frames.begun());
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            Greeted::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Greeted::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        if let Some(wait) = self.frames.passed(&buffer.filled()[before..], Instant::now()) {
            self.pause = Some(Box::pin(sleep(wait)));
        }
        match read.is_ready() {
            true => self.turn.0 += buffer.filled().len() - before,
            false => self.turn = (0, self.frames.begun()),
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Greeted::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Greeted::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Greeted::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Greeted::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Greeted::Plain(stream) => Pin::new(stream).poll_flush(context),
            Greeted::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Greeted::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Greeted::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
