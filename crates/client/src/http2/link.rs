//! What a connection runs over: a socket of the runtime's, or one that blocks its thread.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What bytes come and go through.
pub(crate) trait Link: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Link for T {}

/// How long the calls over a blocking socket wait.
#[derive(Debug)]
pub(crate) struct Patience {
    /// Whether to wait at all.
    waits: AtomicBool,
    /// Until when.
    end: Mutex<Option<Instant>>,
    /// Asked when a signal broke in: whether to go on waiting.
    signalled: fn() -> bool,
}

impl Patience {
    pub fn new(signalled: fn() -> bool) -> Arc<Patience> {
        Arc::new(Patience { waits: AtomicBool::new(true), end: Mutex::new(None), signalled })
    }

    pub fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    pub fn set_end(&self, end: Option<Instant>) {
        *self.end.lock() = end;
    }

    /// The time that is left, or the error that says that there is none. `None`: there is no end.
    pub fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.lock().map(|end| end.saturating_duration_since(Instant::now()));
        match left {
            Some(left) if left.is_zero() => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }

    /// What to do about an error of a blocking socket: `Ok` is to try again.
    fn on_error(&self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Interrupted if (self.signalled)() => Ok(()),
            io::ErrorKind::Interrupted => Err(io::Error::other("interrupted by a signal")),
            io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            _ => Err(error),
        }
    }
}

/// A socket that blocks its thread: none of its futures is ever pending, unless it was told not to wait.
pub(crate) struct Blocking {
    pub socket: TcpStream,
    pub patience: Arc<Patience>,
    /// Whether the socket has a timeout now.
    pub limited: bool,
}

impl Blocking {
    /// Gives the socket what time is left.
    fn limit(&mut self, write: bool) -> io::Result<()> {
        let left = self.patience.left()?;
        if left.is_some() || self.limited {
            self.limited = left.is_some();
            self.socket.set_write_timeout(left)?;
            if !write {
                self.socket.set_read_timeout(left)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.patience.waits.load(Ordering::Relaxed) {
            self.socket.set_nonblocking(true)?;
            let read = self.socket.read(into);
            self.socket.set_nonblocking(false)?;
            return match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                read => Poll::Ready(read),
            };
        }
        loop {
            self.limit(false)?;
            match self.socket.read(into) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) => self.patience.on_error(error)?,
            }
        }
    }

    fn write(&mut self, mut write: impl FnMut(&mut TcpStream) -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            self.limit(true)?;
            match write(&mut self.socket) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) => self.patience.on_error(error)?,
            }
        }
    }
}

impl AsyncRead for Blocking {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = std::task::ready!(self.read(buf.initialize_unfilled()))?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Blocking {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(|socket| socket.write(bytes))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.write(|socket| socket.write_vectored(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.shutdown(Shutdown::Write))
    }
}
