//! The answers of calls, and clients that do not read them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::Buf;
use http_body::Frame;
use parking_lot::Mutex;
use sira_wire::Code;
use tonic::Status;
use tonic::body::Body;

use crate::get::Get;
use crate::http2::Stop;
use crate::pieces::Pieces;
use crate::seats::Call;
use crate::stall::{LOOK, Patience};
use crate::status::{refuse, trailers};

/// The answers that are on their way to clients. All are looked at together: a task for each would cost more than most calls.
#[derive(Default)]
pub(crate) struct Answers {
    next: AtomicU64,
    unread: Mutex<HashMap<u64, Arc<Slot>>>,
}

struct Slot {
    /// The answer, or in its place the reason why it was cut off, until that has been said.
    state: Mutex<Result<Unread, Option<String>>>,
    stop: Option<Stop>,
}

/// What is sent after the headers of an answer.
pub(crate) enum Outgoing {
    /// A get.
    Get(Get),
    /// Anything else.
    Other(Body),
}

impl Outgoing {
    /// Whether others of its connection wait for it to end.
    fn is_awaited(&self) -> bool {
        matches!(self, Outgoing::Get(get) if get.is_awaited())
    }

    fn cut_off(&mut self) {
        if let Outgoing::Get(get) = self {
            get.cut_off();
        }
    }
}

impl From<Body> for Outgoing {
    fn from(body: Body) -> Outgoing {
        Outgoing::Other(body)
    }
}

impl http_body::Body for Outgoing {
    type Data = Pieces;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Status>>> {
        match self.get_mut() {
            Outgoing::Get(get) => Pin::new(get).poll_frame(context).map_err(|never| match never {}),
            Outgoing::Other(body) => Pin::new(body).poll_frame(context).map_ok(|frame| frame.map_data(Pieces::from)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Get(_) => false,
            Outgoing::Other(body) => body.is_end_stream(),
        }
    }
}

/// An answer on its way.
struct Unread {
    body: Outgoing,
    patience: Patience,
    /// Whether the client waits for the server, not the server for the client.
    at_work: bool,
    /// Held until the answer has ended.
    _call: Call,
}

impl Answers {
    /// The answer of `call`, which keeps it until the answer has ended, is dropped or is cut off because nobody reads it.
    pub fn send(self: Arc<Answers>, call: Call, response: http::Response<Outgoing>) -> http::Response<Answer> {
        response.map(|body| {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let unread = Unread { body, patience: Patience::default(), at_work: false, _call: call };
            let slot = Arc::new(Slot { state: Mutex::new(Ok(unread)), stop: Stop::of_this_call() });
            self.unread.lock().insert(number, slot.clone());
            Answer(Some(Kept { slot, number, answers: self }))
        })
    }

    /// Cuts off those that are not read, for as long as there are answers; sooner while `pressed`.
    pub async fn watch(answers: Weak<Answers>, pressed: impl Fn() -> bool) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(answers) = answers.upgrade() else { return };
            let slots: Vec<_> = answers.unread.lock().values().cloned().collect();
            let pressed = pressed();
            for slot in slots {
                // One that is locked is being read right now.
                let Some(mut state) = slot.state.try_lock() else { continue };
                let Ok(unread) = &mut *state else {
                    // Not even the reason was read: what is still to be sent gives its memory back.
                    slot.stop.iter().for_each(Stop::now);
                    continue;
                };
                if !unread.at_work
                    && let Some(reason) = unread.patience.waited(LOOK, pressed || unread.body.is_awaited())
                {
                    unread.body.cut_off();
                    *state = Err(Some(reason));
                }
            }
        }
    }
}

/// The body of an answer; by default, none.
#[derive(Default)]
pub(crate) struct Answer(Option<Kept>);

struct Kept {
    slot: Arc<Slot>,
    number: u64,
    answers: Arc<Answers>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.answers.unread.lock().remove(&self.number);
    }
}

impl http_body::Body for Answer {
    type Data = Pieces;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Status>>> {
        let Some(kept) = &self.0 else { return Poll::Ready(None) };
        let mut state = kept.slot.state.lock();
        let unread = match &mut *state {
            Ok(unread) => unread,
            Err(reason) => {
                let end = |reason| Ok(Frame::trailers(trailers(Err(refuse(Code::Busy, reason)))));
                return Poll::Ready(reason.take().map(end));
            }
        };
        let polled = Pin::new(&mut unread.body).poll_frame(context);
        unread.at_work = polled.is_pending();
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            unread.patience.moved(frame.data_ref().map_or(0, |data| data.remaining() as u64));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|kept| kept.slot.state.lock().as_ref().is_ok_and(|unread| unread.body.is_end_stream()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use tokio::time::sleep;

    use super::*;
    use crate::seats::Calls;
    use crate::stall::{IDLE, PRESSED};

    fn full(calls: &Calls, answers: &Arc<Answers>) -> Answer {
        let response = http::Response::new(Outgoing::from(Body::new(Full::new(Bytes::from_static(b"answer")))));
        answers.clone().send(calls.begin(None).ok().unwrap(), response).into_body()
    }

    fn busy(frame: &Frame<Pieces>) -> bool {
        let message = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-message"));
        message.is_some_and(|message| message.as_bytes().starts_with(b"SIRA_BUSY"))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_gives_its_call_back() {
        let (calls, answers) = (Calls::new(1), Arc::new(Answers::default()));
        let full_of_calls = calls.clone();
        let watch = tokio::spawn(Answers::watch(Arc::downgrade(&answers), move || full_of_calls.are_full()));
        let mut unread = full(&calls, &answers);
        sleep(PRESSED / 2).await;
        assert!(calls.are_full());
        sleep(PRESSED).await;
        assert!(!calls.are_full(), "others may want its place");
        assert!(busy(&unread.frame().await.unwrap().unwrap()));
        assert!(unread.frame().await.is_none());
        drop((unread, answers));
        sleep(LOOK * 2).await;
        assert!(watch.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn while_there_is_room_it_has_a_minute_and_a_server_at_work_has_all_time() {
        let (calls, answers) = (Calls::new(9), Arc::new(Answers::default()));
        tokio::spawn(Answers::watch(Arc::downgrade(&answers), || false));
        let mut slow = full(&calls, &answers);
        let never = http_body_util::StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Status>>());
        let mut at_work = answers.clone().send(calls.begin(None).ok().unwrap(), http::Response::new(Body::new(never).into())).into_body();
        assert!(futures::poll!(at_work.frame()).is_pending());
        sleep(IDLE - LOOK * 2).await;
        assert!(slow.frame().await.unwrap().is_ok());
        let mut dead = full(&calls, &answers);
        sleep(IDLE + LOOK * 2).await;
        assert!(busy(&dead.frame().await.unwrap().unwrap()));
        assert!(futures::poll!(at_work.frame()).is_pending());
    }
}
