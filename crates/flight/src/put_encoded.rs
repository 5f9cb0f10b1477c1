//! `DoPut` of chunks that are encoded already (docs/wire.md, "Encoded chunks").

use std::collections::VecDeque;

use sira_store::{EncodedWriter, StorageClient, WriteOptions};
use sira_tensor::TensorSpec;
use sira_tensor::carrier::Column;
use sira_wire::encoded::{ChunkHead, Encoding, PutChunks};
use sira_wire::many::MAX_KEYS;
use sira_wire::{Code, Key, PutAnswer};
use tonic::Status;

use crate::input::Input;
use crate::ipc::{self, Announced};
use crate::put::skip;
use crate::status::{of_store, of_wire, refuse};

/// A put as it comes in.
struct Incoming {
    writer: EncodedWriter,
    /// Chunks that were announced and have not begun.
    announced: VecDeque<ChunkHead>,
}

/// Reads the rest of a put whose options said that it is in chunks. `metadata`: that of its first message.
pub(crate) async fn put(
    store: &StorageClient,
    input: &mut Input,
    (key, spec, column): (Key, TensorSpec, Column),
    (encoding, options): (&Encoding, WriteOptions),
    metadata: Vec<u8>,
) -> Result<PutAnswer, Status> {
    if column.lists || column.value_bytes != 1 || column.permutation.is_some() {
        return Err(refuse(Code::BadTensor, "encoded chunks come in one plain column of uint8"));
    }
    let writer = store.begin_encoded(key, spec, encoding, options).await.map_err(of_store)?;
    let mut incoming = Incoming { writer, announced: VecDeque::new() };
    incoming.announce(&metadata)?;
    drop(metadata);
    while let Some(head) = input.next().await? {
        incoming.announce(&head.metadata)?;
        if head.header.is_empty() {
            continue; // a message of metadata alone
        }
        let Announced::Batch(batch) = ipc::read(&head.header)? else {
            return Err(refuse(Code::BadRequest, "a second schema; a put is one tensor"));
        };
        let (offset, mut left) = batch.check(&column, head.body).map_err(|e| of_wire(&e))?;
        skip(input, offset).await?;
        while left > 0 {
            let missing = incoming.missing().await?;
            let piece = input.body(left.min(missing)).await?;
            left -= piece.len() as u64;
            incoming.writer.write(&piece).await.map_err(of_store)?;
        }
    }
    incoming.ended()?.commit().await.map_err(of_store)
}

impl Incoming {
    fn announce(&mut self, metadata: &[u8]) -> Result<(), Status> {
        let chunks = PutChunks::parse(metadata).map_err(|e| of_wire(&e))?.chunks;
        if self.announced.len() + chunks.len() > MAX_KEYS {
            return Err(refuse(Code::BadRequest, format!("more than {MAX_KEYS} chunks are announced ahead of their bytes")));
        }
        self.announced.extend(chunks);
        Ok(())
    }

    /// How much the chunk misses whose bytes come next.
    async fn missing(&mut self) -> Result<u64, Status> {
        loop {
            if let Some(missing) = self.writer.missing() {
                return Ok(missing);
            }
            let next = self.announced.pop_front();
            let next = next.ok_or_else(|| refuse(Code::Incomplete, "bytes came that no chunk announced. Nothing was stored"))?;
            self.writer.begin_chunk(next).await.map_err(of_store)?;
        }
    }

    fn ended(self) -> Result<EncodedWriter, Status> {
        match (self.writer.missing(), self.announced.len()) {
            (None, 0) => Ok(self.writer),
            (missing, chunks) => Err(refuse(
                Code::Incomplete,
                format!(
                    "the stream ended {} bytes before the end of a chunk and {chunks} chunks before the last announced. Nothing was stored",
                    missing.unwrap_or(0)
                ),
            )),
        }
    }
}
