//! `DoGet` of chunks as they are stored, for clients that decode them (docs/wire.md, "Encoded chunks").

use arrow_schema::{DataType, Field, Schema};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use sira_store::{EncodedChunk, EncodedReader, StoreError};
use sira_tensor::TensorSpec;
use sira_tensor::carrier::COLUMN;
use sira_wire::encoded::{ChunkSegment, GetChunks, Layout};
use sira_wire::many::ALIGN;
use sira_wire::{Code, metadata};
use tonic::Status;

use crate::get::{MESSAGE_BYTES, Source, described, schema_header};
use crate::ipc;
use crate::pieces::{Pieces, begin_message};
use crate::status::{of_store, refuse};

/// Chunks on their way: each message holds 4 MiB of them at most, and a chunk goes on in the next one where it does not fit.
pub(crate) struct Chunks {
    reader: EncodedReader,
    /// Whether the schema is on its way.
    begun: bool,
    /// What is left of the chunk that was read last.
    rest: Option<(EncodedChunk, bool)>,
    ended: bool,
}

impl Source for Chunks {
    async fn next(&mut self) -> Result<Option<Pieces>, Status> {
        let mut before = BytesMut::new();
        if !std::mem::replace(&mut self.begun, true) {
            begin_message(&mut before, &schema_header(&schema(self.reader.spec(), self.reader.layout())?), &[], 0);
        }
        let (mut body, mut bytes, mut segments) = (Pieces::default(), 0u64, Vec::new());
        while bytes < MESSAGE_BYTES {
            let Some((mut chunk, fresh)) = self.chunk(segments.is_empty()).await.map_err(of_store)? else { break };
            let at = bytes.next_multiple_of(ALIGN);
            body.pad((at - bytes) as usize);
            let room = (MESSAGE_BYTES.saturating_sub(at) as usize).max(1);
            let piece: Bytes = chunk.bytes.split_to(chunk.bytes.len().min(room));
            bytes = at + piece.len() as u64;
            segments.push(ChunkSegment { cell: chunk.cell, offset: at, bytes: piece.len() as u64, chunk: fresh.then_some(chunk.head) });
            body.push(piece);
            if !chunk.bytes.is_empty() {
                self.rest = Some((chunk, false));
            }
        }
        if !segments.is_empty() {
            let metadata = serde_json::to_vec(&GetChunks { segments }).map_err(|e| refuse(Code::Internal, e.to_string()))?;
            let padded = bytes.next_multiple_of(8);
            body.pad((padded - bytes) as usize);
            begin_message(&mut before, &ipc::batch_header(None, bytes, bytes), &metadata, padded as usize);
            body.hold(self.reader.hold());
        }
        body.push_front(before.freeze());
        Ok(Some(body).filter(bytes::Buf::has_remaining))
    }
}

impl Chunks {
    pub fn new(reader: EncodedReader) -> Chunks {
        Chunks { reader, begun: false, rest: None, ended: false }
    }

    /// What is left of a chunk, or the next one and that nothing of it has gone out. `None` after the last, and where one would have to be waited for
    /// though not `wait`.
    async fn chunk(&mut self, wait: bool) -> Result<Option<(EncodedChunk, bool)>, StoreError> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        if self.ended {
            return Ok(None);
        }
        let next = match self.reader.next().now_or_never() {
            Some(next) => next?,
            None if !wait => return Ok(None),
            None => self.reader.next().await?,
        };
        self.ended = next.is_none();
        Ok(next.map(|chunk| (chunk, true)))
    }
}

/// One plain column of bytes, and what the tensor is.
fn schema(spec: &TensorSpec, layout: &Layout) -> Result<Schema, Status> {
    let mut says = described(spec).to_metadata();
    let layout = serde_json::to_string(layout).map_err(|e| refuse(Code::Internal, e.to_string()))?;
    says.insert(metadata::ENCODED.to_owned(), layout);
    Ok(Schema::new_with_metadata(vec![Field::new(COLUMN, DataType::UInt8, false)], says))
}
