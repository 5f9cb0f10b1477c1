//! `DoGet` of many keys, or of keys with several parts: raw bytes of many tensors in one stream (docs/wire.md, "Many keys").

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use sira_store::{Demands, Reader, SHARED_BYTES, Snapshot, StorageClient, StoreError};
use sira_tensor::carrier::COLUMN;
use sira_wire::many::{ALIGN, GetMessage, KeyHeader, ManyTicket, PartHeader, Segment};
use sira_wire::{Code, Key};
use tonic::Status;

use crate::get::{MESSAGE_BYTES, Source, schema_header};
use crate::ipc;
use crate::pieces::{Pieces, begin_message};
use crate::status::refuse;

/// Bytes of `app_metadata` after which a message is sent though it could hold more.
const METADATA_BYTES: usize = 256 << 10;

/// The one plain column of raw bytes.
pub(crate) fn schema() -> Schema {
    Schema::new(vec![Field::new(COLUMN, DataType::UInt8, false)])
}

/// Many keys on their way out, one after another.
pub(crate) struct Many {
    store: StorageClient,
    ticket: Arc<ManyTicket>,
    keys: VecDeque<Key>,
    /// Position of the next key in the ticket.
    next: usize,
    /// The next part, being opened.
    opening: Option<BoxFuture<'static, Opened>>,
    /// The part that is being read.
    reading: Option<Reading>,
    /// Whether the schema is on its way.
    begun: bool,
    message: Draft,
}

/// A key of which parts are still to come.
struct Rest {
    index: usize,
    snapshot: Arc<Snapshot>,
    parts: VecDeque<usize>,
    /// Said with the first segment.
    header: Option<KeyHeader>,
}

/// A part that is open, or why its key has failed.
enum Opened {
    Part(Box<Rest>, PartHeader, Box<Reader>),
    Failed(usize, StoreError),
}

struct Reading {
    rest: Box<Rest>,
    /// Said with the first segment.
    header: Option<PartHeader>,
    reader: Box<Reader>,
    /// What is left of the piece that came last.
    piece: Bytes,
    /// No byte has gone out yet: an empty part still has its segment.
    fresh: bool,
}

/// A message in the making.
#[derive(Default)]
struct Draft {
    segments: Vec<Segment>,
    metadata: usize,
    /// Bytes of its body, and their buffers.
    bytes: u64,
    body: Pieces,
    /// Small pieces that follow the last of the buffers. Once a message has been sent, its memory serves the next one: fresh memory costs more
    /// than the copy into it.
    small: BytesMut,
}

impl Source for Many {
    async fn next(&mut self) -> Result<Option<Pieces>, Status> {
        self.next_message().await
    }
}

impl Many {
    pub fn new(store: StorageClient, keys: Vec<Key>, ticket: ManyTicket) -> Many {
        let (ticket, keys) = (Arc::new(ticket), keys.into());
        Many { store, ticket, keys, next: 0, opening: None, reading: None, begun: false, message: Draft::default() }
    }

    /// The next message; `None` after the last.
    async fn next_message(&mut self) -> Result<Option<Pieces>, Status> {
        loop {
            if let Some(reading) = self.reading.take() {
                self.read(reading).await;
            } else if let Some(opening) = &mut self.opening {
                let opened = match opening.now_or_never() {
                    Some(opened) => opened,
                    // Who holds memory does not wait for more: what is ready goes out first.
                    None if !self.message.is_empty() => return self.send(),
                    None => {
                        self.message.small = BytesMut::new();
                        opening.await
                    }
                };
                self.opening = None;
                self.opened(opened);
            } else if let Some(key) = self.keys.pop_front() {
                self.opening = Some(open_key(self.store.clone(), key, self.next, self.ticket.clone()).boxed());
                self.next += 1;
            } else {
                return if self.message.is_empty() && self.begun { Ok(None) } else { self.send() };
            }
            if self.message.is_full() {
                return self.send();
            }
        }
    }

    fn send(&mut self) -> Result<Option<Pieces>, Status> {
        let mut before = BytesMut::new();
        if !std::mem::replace(&mut self.begun, true) {
            begin_message(&mut before, &schema_header(&schema()), &[], 0);
        }
        self.message.take(before).map(Some)
    }

    fn opened(&mut self, opened: Opened) {
        match opened {
            Opened::Part(rest, header, reader) => {
                self.reading = Some(Reading { rest, header: Some(header), reader, piece: Bytes::new(), fresh: true });
            }
            Opened::Failed(index, error) => self.message.failed(index, &error),
        }
    }

    /// Takes bytes of the part being read into the message, until the one or the other is full.
    async fn read(&mut self, mut reading: Reading) {
        let left = self.keys.len() as u64;
        while !self.message.is_full() {
            if reading.piece.is_empty() {
                match reading.reader.next().await {
                    Ok(Some(piece)) => reading.piece = piece,
                    Ok(None) => {
                        if reading.fresh {
                            self.message.add(&mut reading, left);
                        }
                        return self.part_ended(reading);
                    }
                    // What came of the key is void.
                    Err(error) => return self.message.failed(reading.rest.index, &error),
                }
            }
            self.message.add(&mut reading, left);
        }
        self.reading = Some(reading);
    }

    fn part_ended(&mut self, reading: Reading) {
        let mut rest = reading.rest;
        if let Some(part) = rest.parts.pop_front() {
            rest.header = None;
            self.opening = Some(open_part(rest, part).boxed());
        }
    }
}

async fn open_key(store: StorageClient, key: Key, index: usize, ticket: Arc<ManyTicket>) -> Opened {
    let demands = Demands { version: None, kv_spec: ticket.kv_spec.clone(), exact: ticket.exact };
    let chosen = store.snapshot(&key, &demands).and_then(|snapshot| {
        let parts: VecDeque<usize> = match &ticket.parts {
            None => (0..snapshot.parts().len()).collect(),
            Some(names) => names.iter().map(|name| snapshot.part(Some(name))).collect::<Result<_, _>>()?,
        };
        Ok((snapshot, parts))
    });
    match chosen {
        Err(error) => Opened::Failed(index, error),
        Ok((snapshot, mut parts)) => {
            let header = KeyHeader { version: snapshot.version(), parts: parts.len(), kv_spec: snapshot.kv_spec().map(String::from) };
            let Some(first) = parts.pop_front() else {
                return Opened::Failed(index, StoreError::NotFound(format!("no part of {key} is asked for")));
            };
            open_part(Box::new(Rest { index, snapshot: Arc::new(snapshot), parts, header: Some(header) }), first).await
        }
    }
}

async fn open_part(rest: Box<Rest>, part: usize) -> Opened {
    let Some((name, spec)) = rest.snapshot.parts().nth(part) else {
        return Opened::Failed(rest.index, StoreError::Internal(format!("part {part} is none of its key")));
    };
    let header = PartHeader::of(name, spec, None);
    match rest.snapshot.read(part, &BTreeMap::new()).await {
        Ok(reader) => Opened::Part(rest, header, Box::new(reader)),
        Err(error) => Opened::Failed(rest.index, error),
    }
}

impl Draft {
    fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    fn is_full(&self) -> bool {
        self.bytes >= MESSAGE_BYTES || self.metadata >= METADATA_BYTES
    }

    /// Takes what fits of the piece. `left`: how many keys come after this one.
    fn add(&mut self, reading: &mut Reading, left: u64) {
        let goes_on = self.segments.last().is_some_and(|last| last.index == reading.rest.index) && !reading.fresh;
        let at = if goes_on { self.bytes } else { self.bytes.next_multiple_of(ALIGN) };
        let room = (MESSAGE_BYTES.saturating_sub(at) as usize).max(1);
        let piece = reading.piece.split_to(reading.piece.len().min(room));
        match self.segments.last_mut() {
            // The next bytes of the same part follow on those before.
            Some(last) if goes_on => last.bytes += piece.len() as u64,
            _ => {
                self.pad((at - self.bytes) as usize);
                let segment = Segment {
                    index: reading.rest.index,
                    offset: at,
                    bytes: piece.len() as u64,
                    key: reading.rest.header.take(),
                    part: reading.header.take(),
                    error: None,
                };
                // Measured by what is long in it.
                self.metadata += 100 + segment.part.as_ref().map_or(0, header_bytes);
                self.segments.push(segment);
                self.body.hold(reading.reader.hold());
            }
        }
        reading.fresh = false;
        self.bytes += piece.len() as u64;
        if piece.len() as u64 > SHARED_BYTES {
            self.end_small();
            return self.body.push(piece);
        }
        if self.small.is_empty() {
            // As much as the keys to come are likely to fill, if they are like this one.
            let likely = (reading.reader.spec().nbytes().min(SHARED_BYTES) + ALIGN).saturating_mul(left + 1);
            self.small.reserve(likely.min(MESSAGE_BYTES).max(piece.len() as u64) as usize);
        }
        self.small.extend_from_slice(&piece);
    }

    /// Appends zeros.
    fn pad(&mut self, count: usize) {
        self.bytes += count as u64;
        match self.small.is_empty() {
            true => self.body.pad(count),
            false => self.small.resize(self.small.len() + count, 0),
        }
    }

    /// The small pieces gathered so far become a buffer of the body.
    fn end_small(&mut self) {
        self.body.push(self.small.split().freeze());
    }

    fn failed(&mut self, index: usize, error: &StoreError) {
        let error = error.to_wire().to_string();
        self.metadata += 100 + error.len();
        self.segments.push(Segment { index, error: Some(error), ..Segment::default() });
    }

    /// The message, after the bytes in `before`; without segments, only those. What is left is empty, and keeps the memory of small pieces.
    fn take(&mut self, mut before: BytesMut) -> Result<Pieces, Status> {
        self.end_small();
        let (bytes, mut body) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.body));
        self.metadata = 0;
        let segments = std::mem::take(&mut self.segments);
        if !segments.is_empty() {
            let metadata = serde_json::to_vec(&GetMessage { segments }).map_err(|e| refuse(Code::Internal, e.to_string()))?;
            let padded = bytes.next_multiple_of(8);
            body.pad((padded - bytes) as usize);
            begin_message(&mut before, &ipc::batch_header(None, bytes, bytes), &metadata, padded as usize);
        }
        body.push_front(before.freeze());
        Ok(body)
    }
}

fn header_bytes(part: &PartHeader) -> usize {
    let attributes: usize = part.attributes.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    let axes: usize = part.axes.iter().map(|axis| axis.len() + 4).sum();
    part.name.len() + 20 * part.shape.len() + axes + attributes
}
