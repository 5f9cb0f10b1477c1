//! `DoGet`: a tensor out, as the batches of its carrier.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arrow_flight::{FlightData, SchemaAsIpc};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::Schema;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use sira_store::{Reader, Request, StorageClient, StoreError};
use sira_tensor::TensorSpec;
use sira_tensor::carrier::Carrier;
use sira_wire::{Code, PutOptions};
use tonic::Status;

use crate::get_many::Many;
use crate::ipc;
use crate::seats::Turn;
use crate::stall::{LOOK, Patience};
use crate::status::{of_store, outcome, refuse};

/// Bytes of tensor in a message, at most: what docs/wire.md promises.
pub(crate) const MESSAGE_BYTES: u64 = 4 << 20;

/// The carrier of a tensor and its schema, which says what the tensor is.
pub(crate) fn carrier(spec: &TensorSpec) -> (Carrier, Schema) {
    let carrier = Carrier::of(spec, MESSAGE_BYTES);
    let says = PutOptions {
        shape: Some(spec.shape().to_vec()),
        dtype: Some(spec.dtype()),
        axes: Some(spec.axes().to_vec()).filter(|axes| !axes.is_empty()),
        attributes: spec.attributes().clone(),
        ..PutOptions::default()
    };
    let schema = Schema::new_with_metadata(vec![carrier.field.clone()], says.to_metadata());
    (carrier, schema)
}

/// The messages of a get: the schema, then batches of whole rows.
pub(crate) fn messages(
    store: &StorageClient,
    reader: Reader,
    held: Held,
) -> impl Stream<Item = Result<FlightData, Status>> + Send + 'static {
    let (carrier, schema) = carrier(reader.spec());
    let header = FlightData::from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default()));
    watched(store, header, Rows { reader, carrier, waiting: VecDeque::new(), bytes: 0, ended: false }, held)
}

/// Where the messages of a get come from.
pub(crate) trait Source: Send + 'static {
    /// The next message; `None` after the last.
    fn next(&mut self) -> impl Future<Output = Result<Option<FlightData>, Status>> + Send;
}

impl Source for Rows {
    async fn next(&mut self) -> Result<Option<FlightData>, Status> {
        self.next_batch().await.map_err(of_store)
    }
}

impl Source for Many {
    async fn next(&mut self) -> Result<Option<FlightData>, Status> {
        self.next().await
    }
}

/// What a get holds as long as it runs.
pub(crate) struct Held {
    /// The request that it answers, which is counted.
    pub counted: Request,
    /// Its place among the gets of its connection.
    pub turn: Option<Turn>,
}

/// A stream of messages, after its header. A client that stops reading is cut off, and gives back its memory and its turn.
pub(crate) fn watched<S: Source>(
    store: &StorageClient,
    header: FlightData,
    source: S,
    held: Held,
) -> impl Stream<Item = Result<FlightData, Status>> + Send + 'static {
    let slot = Arc::new(Mutex::new(Ok((source, held, Patience::default()))));
    tokio::spawn(watch(store.clone(), Arc::downgrade(&slot)));
    let batches = futures::stream::try_unfold(slot, |slot| async move {
        // Taken out while it works: only a client that does not ask is waited for.
        let taken = std::mem::replace(&mut *lock(&slot), Err("a get that is already under way".to_string()));
        let (mut source, mut held, mut patience) = taken.map_err(|reason| refuse(Code::Busy, reason))?;
        let batch = source.next().await;
        held.counted.first_byte();
        if !matches!(batch, Ok(Some(_))) {
            held.counted.end(outcome(&batch));
        }
        let Some(batch) = batch? else { return Ok(None) };
        patience.moved(batch.data_body.len() as u64);
        *lock(&slot) = Ok((source, held, patience));
        Ok(Some((batch, slot)))
    });
    futures::StreamExt::chain(futures::stream::iter([Ok(header)]), batches)
}

/// A get between two messages, or why there is none.
type Slot<S> = Mutex<Result<(S, Held, Patience), String>>;

fn lock<S>(slot: &Slot<S>) -> std::sync::MutexGuard<'_, Result<(S, Held, Patience), String>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits with a get for its client, and cuts it off when patience ends.
async fn watch<S: Source>(store: StorageClient, slot: Weak<Slot<S>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(slot) = slot.upgrade() else { return };
        let mut state = lock(&slot);
        let cut = state.as_mut().ok().and_then(|(_, held, patience)| {
            let pressed = store.pressed() || held.turn.as_ref().is_some_and(Turn::is_awaited);
            patience.waited(LOOK, pressed)
        });
        if let Some(reason) = cut {
            if let Ok((_, held, _)) = &mut *state {
                held.counted.end(Err(Code::Busy));
            }
            *state = Err(reason);
            return;
        }
    }
}

/// Pieces of any size on their way to batches of whole rows.
struct Rows {
    reader: Reader,
    carrier: Carrier,
    waiting: VecDeque<Bytes>,
    bytes: u64,
    ended: bool,
}

impl Rows {
    async fn next_batch(&mut self) -> Result<Option<FlightData>, StoreError> {
        let row = self.carrier.row_bytes;
        while self.bytes < row && !self.ended {
            match self.reader.next().await? {
                Some(piece) => {
                    self.bytes += piece.len() as u64;
                    self.waiting.push_back(piece);
                }
                None => self.ended = true,
            }
        }
        if self.bytes == 0 {
            return Ok(None);
        }
        if self.bytes < row {
            return Err(StoreError::Internal(format!("a tensor that ends {} bytes into a row of {row}", self.bytes)));
        }
        // Whole rows of the first piece go out as they are; a row that straddles pieces is put together.
        let front = self.waiting.front().map_or(0, |piece| piece.len() as u64);
        let rows = (front.clamp(row, MESSAGE_BYTES.max(row)) / row).max(1);
        let body = self.take((rows * row) as usize);
        Ok(Some(FlightData::new().with_data_header(ipc::batch_header(&self.carrier, rows, rows * row)).with_data_body(body)))
    }

    /// The next `len` bytes, padded to a multiple of 8 as Arrow wants it: a slice of the first piece where that can be.
    fn take(&mut self, len: usize) -> Bytes {
        self.bytes -= len as u64;
        let padded = len.next_multiple_of(8);
        if let Some(front) = self.waiting.front_mut()
            && front.len() >= len
            && padded == len
        {
            let body = front.split_to(len);
            self.waiting.retain(|piece| !piece.is_empty());
            return body;
        }
        let mut body = BytesMut::with_capacity(padded);
        while body.len() < len {
            let Some(front) = self.waiting.front_mut() else { break };
            body.extend_from_slice(&front.split_to(front.len().min(len - body.len())));
            if front.is_empty() {
                self.waiting.pop_front();
            }
        }
        body.resize(padded, 0);
        body.freeze()
    }
}
