//! HTTP/2 on purpose: what a connection may send ahead, hold and ask, and how its calls run.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::task::AtomicWaker;
use futures::{Stream, StreamExt};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tonic::body::Body;

use crate::connection::Connection;
use crate::seats::Guest;
use crate::server::Guarded;

/// Calls that one connection may have under way. Few, because all of them may send a window ahead of the store (the next constant), and because
/// this bounds what one client can start and reset; a client that wants more opens another connection, as gRPC does.
pub(crate) const STREAMS: u32 = 64;
/// HTTP/2 windows: how much a client may send ahead of the store. A connection's holds that of all its streams: puts that wait for memory
/// must not keep the bytes of those that have it from coming.
/// A smaller window makes a client of gRPC wait for each update of it (docs/performance.md).
pub(crate) const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// Large frames: an upload of 16 MiB in frames of 16 KiB is a thousand of them. Not larger: a frame is handed on when all of it has come, by when its
/// beginning has left a core's cache, and a client with a window of four goes on sending while one is taken.
const FRAME: u32 = 512 << 10;
/// Bytes of an answer that wait to be sent, beyond the message that is being sent: the next one is made when fewer are left.
const SEND_BUFFER: usize = 1 << 20;
/// Headers of a call. Ours take a few hundred bytes; a call with more is refused, and memory for more is never taken.
const HEADERS: u32 = 16 << 10;
/// Calls that were reset before they were looked at: more at once, and the connection is closed (rapid reset).
const PENDING_RESETS: usize = 20;
/// Calls that a client's errors made this server reset: more at once, and the connection is closed (the same attack, the other way round).
const ERROR_RESETS: usize = 64;
/// A connection is asked this often whether it still lives, and closed if it does not answer within the same time.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// How long a client has to say that it has heard that the connection ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves connections until `shutdown`, then lets running calls end.
pub(crate) async fn serve(incoming: impl Stream<Item = io::Result<Connection>>, service: Arc<Guarded>, shutdown: impl Future<Output = ()>) {
    let (ending, ended) = watch::channel(());
    {
        let (mut incoming, mut shutdown) = (pin!(incoming), pin!(shutdown));
        loop {
            let next = tokio::select! {
                () = &mut shutdown => break,
                next = incoming.next() => next,
            };
            match next {
                Some(Ok(connection)) => drop(tokio::spawn(serve_one(connection, service.clone(), ended.clone()))),
                Some(Err(error)) => tracing::debug!(%error, "a connection that did not come about"),
                None => break,
            }
        }
    }
    drop((ended, service));
    ending.send_replace(());
    ending.closed().await;
}

async fn serve_one(connection: Connection, service: Arc<Guarded>, mut ending: watch::Receiver<()>) {
    let guest = connection.guest();
    let caller = guest.clone();
    let answer = service_fn(move |request: http::Request<Incoming>| {
        let call = service.clone().call(guest.clone(), request.map(Body::new));
        async move { Ok::<_, Infallible>(call.await) }
    });
    let mut http = pin!(builder().serve_connection(TokioIo::new(connection), answer));
    let result = tokio::select! {
        biased;
        result = &mut http => result,
        _ = ending.changed() => {
            http.as_mut().graceful_shutdown();
            tokio::select! {
                result = &mut http => result,
                () = silence(&caller) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection has failed");
    }
}

/// Waits until no call runs over a connection that was told to end. One whose client lives ends by itself before that; one whose client is
/// silent, or gone, would never say that it has heard.
async fn silence(guest: &Guest) {
    loop {
        tokio::time::sleep(FAREWELL).await;
        if guest.is_idle() {
            return;
        }
    }
}

fn builder() -> Builder<Calls> {
    let mut builder = Builder::new(Calls);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .auto_date_header(false);
    builder
}

/// Runs calls: at once, in the task of their connection, as far as they come without waiting, which is to the end for most; those that wait
/// get a task of their own.
#[derive(Clone, Copy)]
struct Calls;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        let mut call = Stoppable { call: Box::pin(call), stop: Stop::default() };
        // A task polls what it is given at once: nothing that happens meanwhile is lost on a waker that wakes nobody.
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop()))));
        match polled {
            Ok(Poll::Pending) => drop(tokio::spawn(call)),
            Ok(Poll::Ready(())) => {}
            // The panic has been reported; it ends the call, not the others of the connection.
            Err(_) => {}
        }
    }
}

tokio::task_local! {
    static STOP: Stop;
}

/// Ends a call from outside, even one whose answer waits for its client: what is still to be sent is dropped, and the client is told by a reset.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<(AtomicBool, AtomicWaker)>);

impl Stop {
    /// Of the call that runs here.
    pub fn of_this_call() -> Option<Stop> {
        STOP.try_with(Stop::clone).ok()
    }

    /// Ends the call.
    pub fn now(&self) {
        let (stopped, waker) = &*self.0;
        stopped.store(true, Ordering::Release);
        waker.wake();
    }

    fn is_asked_for(&self, context: &Context<'_>) -> bool {
        let (stopped, waker) = &*self.0;
        waker.register(context.waker());
        stopped.load(Ordering::Acquire)
    }
}

struct Stoppable<F> {
    call: Pin<Box<F>>,
    stop: Stop,
}

impl<F: Future<Output = ()>> Future for Stoppable<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.stop.is_asked_for(context) {
            return Poll::Ready(());
        }
        let stop = self.stop.clone();
        STOP.sync_scope(stop, || self.call.as_mut().poll(context))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_call_that_waits_is_ended_from_outside_and_one_that_panics_ends_alone() {
        let (held, (sender, receiver)) = (Arc::new(()), oneshot::channel());
        let holds = held.clone();
        Calls.execute(async move {
            drop(sender.send(Stop::of_this_call().unwrap()));
            let _holds = holds;
            std::future::pending::<()>().await;
        });
        Calls.execute(async { panic!("on purpose") });
        let stop = receiver.await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&held), 2);
        stop.now();
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
        assert!(Stop::of_this_call().is_none());
    }

    #[tokio::test]
    async fn a_call_that_need_not_wait_runs_at_once() {
        let (sender, mut receiver) = oneshot::channel();
        Calls.execute(async move { sender.send(7).unwrap() });
        assert_eq!(receiver.try_recv(), Ok(7));
    }
}
