//! Parts on their way into memory. Whoever asks for one that is on its way is served from there: however many ask, it is fetched once.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};

use crate::StoreError;
use crate::hot::HotPart;
use crate::ledger::Reservation;
use crate::pins::Pin;
use crate::snapshot::Place;

/// The write that made a part, and the part's index.
type PartId = (String, usize);

/// What is on its way right now.
#[derive(Default)]
pub(crate) struct Flights {
    chunked: Mutex<HashMap<PartId, Arc<Flight>>>,
    inline: Mutex<HashMap<PartId, Arc<OnceCell<Arc<HotPart>>>>>,
}

/// One part on its way: readers follow it piece by piece, each at its own speed.
pub(crate) struct Flight {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Default)]
struct State {
    pieces: Vec<Bytes>,
    /// Once all have come, what memory keeps of them; or why they do not come.
    end: Option<Result<Arc<HotPart>, StoreError>>,
}

/// What a reader of a part follows.
pub(crate) enum Joined {
    /// It is on its way.
    Flight(Arc<Flight>),
    /// It has come in the meantime.
    Landed(Arc<HotPart>),
}

/// What a flight needs: the bytes, and memory for them and for reading them.
pub(crate) struct Departure {
    pub pieces: BoxStream<'static, Result<Bytes, StoreError>>,
    pub kept: Reservation,
    pub working: Reservation,
    pub pin: Arc<Pin>,
}

fn id(place: &Place) -> PartId {
    (place.record.write_id.clone(), place.index)
}

impl Flights {
    /// The flight of a part, where it is on its way.
    pub fn find(&self, place: &Place) -> Option<Arc<Flight>> {
        self.chunked.lock().get(&id(place)).cloned()
    }

    /// Joins the flight of a part, or begins it.
    pub fn join(&self, place: &Place, departure: Departure) -> Joined {
        let id = id(place);
        let flight = {
            let mut flights = self.chunked.lock();
            if let Some(flight) = flights.get(&id) {
                return Joined::Flight(flight.clone());
            }
            // Whoever lands is in memory before it is no flight any more.
            if let Some(part) = place.hot.get(&id.0, id.1) {
                return Joined::Landed(part);
            }
            let flight = Arc::new(Flight { state: Mutex::default(), more: Notify::new() });
            flights.insert(id.clone(), flight.clone());
            flight
        };
        let landing = Landing { place: place.clone(), id, flight: flight.clone() };
        place.inner.seams.spawner.spawn(Box::pin(fly(landing, departure)));
        Joined::Flight(flight)
    }

    /// Ends a flight that nobody follows; false where somebody does.
    fn abandon(&self, id: &PartId, flight: &Arc<Flight>) -> bool {
        let mut flights = self.chunked.lock();
        // One is in the table, one with the task that fetches.
        let alone = Arc::strong_count(flight) <= 2;
        if alone {
            flights.remove(id);
        }
        alone
    }

    /// A part inside its record: `load` runs once for all who ask meanwhile. Whoever runs it may be cut off: then the next one does.
    pub async fn inline(
        &self,
        place: &Place,
        load: impl Future<Output = Result<Arc<HotPart>, StoreError>>,
    ) -> Result<Arc<HotPart>, StoreError> {
        let id = id(place);
        let cell = self.inline.lock().entry(id.clone()).or_default().clone();
        let follows = Follows { flights: self, id, cell };
        let again = || place.hot.get(&follows.id.0, follows.id.1);
        let part = follows.cell.get_or_try_init(|| async move {
            match again() {
                Some(part) => Ok(part),
                None => load.await,
            }
        });
        part.await.cloned()
    }
}

/// One who waits for an inline part.
struct Follows<'a> {
    flights: &'a Flights,
    id: PartId,
    cell: Arc<OnceCell<Arc<HotPart>>>,
}

impl Drop for Follows<'_> {
    fn drop(&mut self) {
        let mut inline = self.flights.inline.lock();
        // The last one out: the table has one, this another.
        if Arc::strong_count(&self.cell) <= 2 && inline.get(&self.id).is_some_and(|cell| Arc::ptr_eq(cell, &self.cell)) {
            inline.remove(&self.id);
        }
    }
}

/// Ends its flight, whatever becomes of the task that fetches.
struct Landing {
    place: Place,
    id: PartId,
    flight: Arc<Flight>,
}

impl Landing {
    fn end(&self, end: Result<Arc<HotPart>, StoreError>) {
        let mut state = self.flight.state.lock();
        if state.end.is_none() {
            state.end = Some(end);
        }
        drop(state);
        self.flight.more.notify_waiters();
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.end(Err(StoreError::Internal("a task that reads a tensor has died".into())));
        let mut flights = self.place.inner.flights.chunked.lock();
        if flights.get(&self.id).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            flights.remove(&self.id);
        }
    }
}

async fn fly(landing: Landing, departure: Departure) {
    let Departure { mut pieces, kept, working, pin } = departure;
    loop {
        match pieces.try_next().await {
            Ok(Some(piece)) => {
                landing.flight.state.lock().pieces.push(piece);
                landing.flight.more.notify_waiters();
                if landing.place.inner.flights.abandon(&landing.id, &landing.flight) {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => return landing.end(Err(error)),
        }
    }
    drop((pieces, working));
    let payload: sira_backend::Payload = landing.flight.state.lock().pieces.iter().cloned().collect();
    let (has, wants) = (payload.len(), landing.place.part().spec.nbytes());
    if has != wants {
        return landing.end(Err(StoreError::Internal(format!("a read gave {has} bytes of {wants}"))));
    }
    let place = &landing.place;
    let part = place.counted(HotPart::new(payload, kept), true);
    place.inner.keep_hot(&place.hot, &place.record.key, &landing.id.0, landing.id.1, part.clone());
    landing.end(Ok(part));
    drop(pin);
}

impl Flight {
    /// The pieces, in order, those to come included.
    pub fn pieces(self: Arc<Flight>) -> BoxStream<'static, Result<Bytes, StoreError>> {
        futures::stream::unfold((self, 0), |(flight, at)| async move {
            loop {
                let mut more = std::pin::pin!(flight.more.notified());
                // From here on it hears of what comes, before it has looked.
                more.as_mut().enable();
                let now = {
                    let state = flight.state.lock();
                    match (state.pieces.get(at), &state.end) {
                        (Some(piece), _) => Some(Some(Ok(piece.clone()))),
                        (None, Some(Ok(_))) => Some(None),
                        (None, Some(Err(error))) => Some(Some(Err(shared(error)))),
                        (None, None) => None,
                    }
                };
                match now {
                    Some(next) => return next.map(|next| (next, (flight.clone(), at + 1))),
                    None => more.await,
                }
            }
        })
        .boxed()
    }
}

/// The same error for one more reader.
fn shared(error: &StoreError) -> StoreError {
    match error {
        // A cache makes a miss of it.
        StoreError::Corrupt(reason) => StoreError::Corrupt(reason.clone()),
        other => StoreError::Wire(other.to_wire()),
    }
}
