//! The answers of calls, and clients that do not read them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use sira_wire::Code;
use tonic::Status;
use tonic::body::Body;

use crate::seats::Call;
use crate::stall::{LOOK, Patience};
use crate::status::refuse;

/// The answers that are on their way to clients. All are looked at together: a task for each would cost more than most calls.
#[derive(Default)]
pub(crate) struct Answers {
    next: AtomicU64,
    unread: Mutex<HashMap<u64, Slot>>,
}

type Slot = Arc<Mutex<Result<Unread, String>>>;

/// An answer, or in its place the reason why it was cut off.
struct Unread {
    body: Body,
    patience: Patience,
    /// Whether the client waits for the server, not the server for the client.
    at_work: bool,
    /// Held until the answer has ended.
    _call: Call,
}

impl Answers {
    /// The answer of `call`, which keeps it until the answer has ended, is dropped or is cut off because nobody reads it.
    pub fn send(self: Arc<Answers>, call: Call, response: http::Response<Body>) -> http::Response<Body> {
        response.map(|body| {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let slot = Arc::new(Mutex::new(Ok(Unread { body, patience: Patience::default(), at_work: false, _call: call })));
            self.unread.lock().insert(number, slot.clone());
            Body::new(Answer { slot, number, answers: self })
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
                let Some(mut state) = slot.try_lock() else { continue };
                let cut = match &mut *state {
                    Ok(unread) if !unread.at_work => unread.patience.waited(LOOK, pressed),
                    _ => None,
                };
                if let Some(reason) = cut {
                    *state = Err(reason);
                }
            }
        }
    }
}

struct Answer {
    slot: Slot,
    number: u64,
    answers: Arc<Answers>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.answers.unread.lock().remove(&self.number);
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = self.slot.lock();
        let unread = match &mut *state {
            Ok(unread) => unread,
            Err(reason) => return Poll::Ready(Some(Err(refuse(Code::Busy, reason.clone())))),
        };
        let polled = Pin::new(&mut unread.body).poll_frame(context);
        unread.at_work = polled.is_pending();
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            unread.patience.moved(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.slot.lock().as_ref().is_ok_and(|unread| unread.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.slot.lock().as_ref().map_or_else(|_| SizeHint::default(), |unread| unread.body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};
    use tokio::time::sleep;

    use super::*;
    use crate::seats::Calls;
    use crate::stall::{IDLE, PRESSED};

    fn full(calls: &Calls, answers: &Arc<Answers>) -> Body {
        let response = http::Response::new(Body::new(Full::new(Bytes::from_static(b"answer"))));
        answers.clone().send(calls.begin(None).ok().unwrap(), response).into_body()
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
        assert!(unread.frame().await.unwrap().unwrap_err().message().starts_with("SIRA_BUSY: "));
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
        let mut at_work = answers.clone().send(calls.begin(None).ok().unwrap(), http::Response::new(Body::new(never))).into_body();
        assert!(futures::poll!(at_work.frame()).is_pending());
        sleep(IDLE - LOOK * 2).await;
        assert!(slow.frame().await.unwrap().is_ok());
        let mut dead = full(&calls, &answers);
        sleep(IDLE + LOOK * 2).await;
        assert!(dead.frame().await.unwrap().is_err());
        assert!(futures::poll!(at_work.frame()).is_pending());
    }
}
