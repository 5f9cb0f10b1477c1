//! Sockets: of TCP, or Unix sockets on the same machine.

use std::io::{self, IoSlice};
use std::net;
use std::os::unix::net as unix;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connection as it was accepted.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection that belongs to no runtime.
pub(crate) enum Parked {
    Tcp(net::TcpStream),
    Unix(unix::UnixStream),
}

impl Stream {
    fn park(self) -> io::Result<Parked> {
        Ok(match self {
            Stream::Tcp(stream) => Parked::Tcp(stream.into_std()?),
            Stream::Unix(stream) => Parked::Unix(stream.into_std()?),
        })
    }
}

impl Parked {
    fn live(self) -> io::Result<Stream> {
        Ok(match self {
            Parked::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            Parked::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        })
    }
}

/// Calls the same method of whichever socket it is.
macro_rules! of_either {
    ($stream:expr, $method:ident, $($argument:expr),*) => {
        match $stream {
            Stream::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

/// A socket that belongs to the runtime that uses it: the one that greets a connection does not go on to serve it.
pub(crate) enum Socket {
    Live(Stream),
    /// Of no runtime; whoever polls it next takes it into its own.
    Parked(Option<Parked>),
}

impl Socket {
    pub fn park(&mut self) -> io::Result<()> {
        if let Socket::Live(stream) = std::mem::replace(self, Socket::Parked(None)) {
            *self = Socket::Parked(Some(stream.park()?));
        }
        Ok(())
    }

    /// A Unix socket, of no runtime.
    pub fn into_unix(mut self) -> io::Result<unix::UnixStream> {
        self.park()?;
        match self {
            Socket::Parked(Some(Parked::Unix(stream))) => Ok(stream),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn live(&mut self) -> io::Result<&mut Stream> {
        if let Socket::Parked(parked) = self {
            let parked = parked.take().ok_or(io::ErrorKind::NotConnected)?;
            *self = Socket::Live(parked.live()?);
        }
        match self {
            Socket::Live(stream) => Ok(stream),
            Socket::Parked(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        of_either!(self.live()?, poll_read, context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        of_either!(self.live()?, poll_write, context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        of_either!(self.live()?, poll_write_vectored, context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_either!(self.live()?, poll_flush, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_either!(self.live()?, poll_shutdown, context)
    }
}
