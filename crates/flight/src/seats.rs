//! How many connections and calls there may be at once, and who has to leave when there are more.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Context;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use sira_store::ledger::Reservation;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{self, Duration, Instant};
use tonic::Status;

/// How long a connection may be without a call before it has to make room.
const GRACE: Duration = Duration::from_secs(1);

/// How often a newcomer looks again for one that can leave.
const AGAIN: Duration = Duration::from_millis(100);

/// The connections that a server holds, each with a seat.
pub(crate) struct Room {
    free: Arc<Semaphore>,
    guests: Mutex<HashMap<u64, Arc<Guest>>>,
    next: AtomicU64,
    waiting: AtomicUsize,
    gets: usize,
}

/// One that waits, counted for as long as it does.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(count: &'a AtomicUsize) -> Waits<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Waits(count)
    }

    fn how_many(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection, as the calls that come over it see it.
#[derive(Debug)]
pub(crate) struct Guest {
    state: Mutex<State>,
    leaving: AtomicBool,
    waker: AtomicWaker,
    gets: Arc<Semaphore>,
    gets_waiting: AtomicUsize,
}

#[derive(Debug)]
struct State {
    /// Whether it has made a call that was let in, or shown a certificate.
    known: bool,
    calls: usize,
    idle_since: Instant,
}

impl Room {
    /// `seats` connections, each with `gets` running gets at most.
    pub fn new(seats: usize, gets: usize) -> Arc<Room> {
        let free = Arc::new(Semaphore::new(seats));
        Arc::new(Room { free, guests: Mutex::default(), next: AtomicU64::new(0), waiting: AtomicUsize::new(0), gets })
    }

    /// A seat for a new connection. When all are taken, one without a running call has to leave; where there is none, this waits. `known`:
    /// it has shown who it is.
    pub async fn seat(self: Arc<Room>, known: bool) -> Option<Seat> {
        let free = match self.free.clone().try_acquire_owned() {
            Ok(free) => free,
            Err(_) => {
                let mut turn = pin!(self.free.clone().acquire_owned());
                let waits = Waits::new(&self.waiting);
                loop {
                    self.make_room(waits.how_many());
                    if let Ok(free) = time::timeout(AGAIN, &mut turn).await {
                        break free.ok()?;
                    }
                }
            }
        };
        let state = State { known, calls: 0, idle_since: Instant::now() };
        let guest = Arc::new(Guest {
            state: Mutex::new(state),
            leaving: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            gets: Arc::new(Semaphore::new(self.gets)),
            gets_waiting: AtomicUsize::new(0),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.guests.lock().insert(number, guest.clone());
        Some(Seat { number, guest, room: self, _permit: free })
    }

    /// Closes a connection, unless `wanted` are being closed already: the one that is missed least, of those that never made a call, or where
    /// all have made one, that without a call for longest. Nobody leaves who came or called a moment ago: a flood of newcomers waits for its
    /// own kind, and an honest newcomer is not sent away before its first call.
    pub fn make_room(&self, wanted: usize) {
        let guests = self.guests.lock();
        if guests.values().filter(|guest| guest.leaving.load(Ordering::Acquire)).count() >= wanted {
            return;
        }
        let idle = |guest: &Arc<Guest>| {
            let state = guest.state.lock();
            (state.calls == 0 && !guest.leaving.load(Ordering::Acquire)).then_some((state.known, state.idle_since))
        };
        let missed_least = guests.values().filter_map(|guest| Some((idle(guest)?, guest))).min_by_key(|(order, _)| *order);
        if let Some(((_, since), guest)) = missed_least
            && since.elapsed() >= GRACE
        {
            guest.leaving.store(true, Ordering::Release);
            guest.waker.wake();
        }
    }
}

impl Guest {
    /// Whether the connection is to be closed; if not, the task of `context` is woken once it is.
    pub fn is_leaving(&self, context: &Context<'_>) -> bool {
        self.waker.register(context.waker());
        self.leaving.load(Ordering::Acquire)
    }

    /// Whether no call runs over the connection.
    pub fn is_idle(&self) -> bool {
        self.state.lock().calls == 0
    }

    /// Waits for the turn of a get. The gets of one connection have only a share of the memory, so that a client that asks for much and reads
    /// slowly keeps itself waiting, not the others.
    pub async fn turn(self: Arc<Guest>) -> Option<Turn> {
        let permit = match self.gets.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waits = Waits::new(&self.gets_waiting);
                self.gets.clone().acquire_owned().await.ok()?
            }
        };
        Some(Turn { guest: self, _permit: permit })
    }

    /// Begins a call over the connection, which stays for as long.
    pub fn begin(self: Arc<Guest>) -> Running {
        let mut state = self.state.lock();
        (state.known, state.calls) = (true, state.calls + 1);
        drop(state);
        Running(self)
    }
}

/// The turn of a get, until it is dropped.
pub(crate) struct Turn {
    guest: Arc<Guest>,
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    /// Whether other gets of the same connection wait for it to end.
    pub fn is_awaited(&self) -> bool {
        self.guest.gets_waiting.load(Ordering::Relaxed) > 0
    }
}

/// A place among the connections, given back when dropped.
pub(crate) struct Seat {
    pub guest: Arc<Guest>,
    number: u64,
    room: Arc<Room>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.guests.lock().remove(&self.number);
    }
}

/// A call that runs over a connection.
pub(crate) struct Running(Arc<Guest>);

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        (state.calls, state.idle_since) = (state.calls - 1, Instant::now());
    }
}

/// The calls that a server may have under way.
#[derive(Clone)]
pub(crate) struct Calls {
    free: Arc<Semaphore>,
    most: usize,
}

impl Calls {
    pub fn new(most: usize) -> Calls {
        Calls { free: Arc::new(Semaphore::new(most)), most }
    }

    /// Whether one more would be refused.
    pub fn are_full(&self) -> bool {
        self.free.available_permits() == 0
    }

    /// Begins a call over `guest`, unless there are too many: it is refused at once, since one more that waits would only take more memory.
    pub fn begin(&self, guest: Option<Arc<Guest>>) -> Result<Call, Status> {
        match self.free.clone().try_acquire_owned() {
            Ok(permit) => Ok(Call { _permit: permit, _running: guest.map(Guest::begin), _memory: Reservation::default() }),
            Err(_) => {
                let message = format!("{} calls are under way, as many as this server takes; try again", self.most);
                Err(crate::status::refuse(sira_wire::Code::Busy, message))
            }
        }
    }
}

/// A call under way, until the last byte of its answer is on its way.
pub(crate) struct Call {
    _permit: OwnedSemaphorePermit,
    _running: Option<Running>,
    _memory: Reservation,
}

impl Call {
    /// The call, with the memory that its request takes.
    pub fn holding(self, memory: Reservation) -> Call {
        Call { _memory: memory, ..self }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;
    use tokio::time::timeout;
    use tonic::body::Body;

    use super::*;
    use crate::answer::Answers;

    /// Long enough for whoever has to leave, and no longer than a newcomer waits.
    const SOON: Duration = Duration::from_millis(1500);

    fn leaves(seat: &Seat) -> bool {
        seat.guest.leaving.load(Ordering::Acquire)
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_is_missed_least_makes_room() {
        let (room, calls) = (Room::new(3, 2), Calls::new(10));
        let busy = room.clone().seat(false).await.unwrap();
        let call = calls.begin(Some(busy.guest.clone())).ok().unwrap();
        let known = room.clone().seat(false).await.unwrap();
        drop(calls.begin(Some(known.guest.clone())));
        let silent = room.clone().seat(false).await.unwrap();

        assert!(timeout(GRACE / 2, room.clone().seat(false)).await.is_err());
        assert!(![&busy, &known, &silent].into_iter().any(leaves), "all came a moment ago");
        assert!(timeout(GRACE * 3 / 4, room.clone().seat(false)).await.is_err(), "nobody has left yet");
        assert_eq!([leaves(&busy), leaves(&known), leaves(&silent)], [false, false, true], "it never called");
        drop(silent);
        let fourth = room.clone().seat(true).await.unwrap();
        assert!(timeout(GRACE / 2, room.clone().seat(false)).await.is_err());
        assert_eq!([leaves(&busy), leaves(&known), leaves(&fourth)], [false, true, false], "it has been idle for longest");
        drop((known, fourth));
        let (_fifth, _sixth) = (room.clone().seat(false).await.unwrap(), room.clone().seat(false).await.unwrap());
        drop(call);
        assert!(!leaves(&busy));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_a_running_call_stays() {
        let (room, calls) = (Room::new(1, 2), Calls::new(10));
        let busy = room.clone().seat(true).await.unwrap();
        let call = calls.begin(Some(busy.guest.clone())).ok().unwrap();
        let response = http::Response::new(Body::new(Full::new(Bytes::from_static(b"answer"))).into());
        let answer = Arc::new(Answers::default()).send(call, response);
        assert!(timeout(SOON, room.clone().seat(true)).await.is_err());
        assert!(!leaves(&busy), "its answer is still on its way");
        drop(answer);
        assert!(timeout(SOON, room.clone().seat(true)).await.is_err());
        assert!(leaves(&busy));
    }

    #[tokio::test(start_paused = true)]
    async fn gets_of_one_connection_wait_for_each_other_only() {
        let room = Room::new(2, 2);
        let (greedy, modest) = (room.clone().seat(true).await.unwrap().guest.clone(), room.seat(true).await.unwrap().guest.clone());
        let (first, _second) = (greedy.clone().turn().await.unwrap(), greedy.clone().turn().await.unwrap());
        assert!(!first.is_awaited());
        let third = tokio::spawn(greedy.clone().turn());
        time::sleep(SOON).await;
        assert!(first.is_awaited() && !third.is_finished());
        assert!(modest.turn().await.is_some());
        drop(first);
        assert!(!third.await.unwrap().unwrap().is_awaited());
    }

    #[test]
    fn calls_beyond_the_limit_are_refused_at_once() {
        let calls = Calls::new(2);
        let held = [calls.begin(None), calls.begin(None)];
        let status = calls.begin(None).err().unwrap();
        assert!(status.message().starts_with("SIRA_BUSY: 2 calls are under way"), "{status}");
        drop(held);
        assert!(calls.begin(None).is_ok());
    }
}
