//! Ways in for tests that feed this crate hostile bytes (docs/fuzzing.md). No part of its interface.

use std::collections::VecDeque;

use arrow_flight::FlightData;
use bytes::Bytes;
use sira_tensor::carrier::Column;

use crate::segments::Segments;
use crate::{ClientError, message};

/// Reads what a server answers to a get of one key: a schema, then a batch of `body`.
pub fn tensor(schema: &[u8], batch: Vec<u8>, body: Bytes) -> Result<Bytes, ClientError> {
    let column = Column::of(&sira_wire::ipc::read_first(schema).map_err(ClientError::protocol)?)?;
    message::rows(&FlightData::new().with_data_header(batch).with_data_body(body), &column)
}

/// Bytes and chunks of the largest tensor that [`chunks`] reads: what a server says a tensor has, its reader makes room for.
const LARGEST: u64 = 1 << 16;

/// Reads what a server answers to a get of encoded chunks: a schema, then one message of `metadata` and `body`; gives how many bytes came of it.
pub fn chunks(schema: &[u8], metadata: &[u8], body: &[u8]) -> Result<usize, ClientError> {
    let schema = sira_wire::ipc::read_first(schema).map_err(ClientError::protocol)?;
    let (spec, _) = crate::get::carried_by(&schema)?;
    let Some(layout) = crate::chunks::layout(&schema)? else { return Ok(0) };
    if crate::chunks::Chunked::read(&schema, &spec, layout, None)?.nbytes() > LARGEST {
        return Ok(0);
    }
    Ok(crate::chunks::read(&schema, &spec, &[(metadata, body)])?.map_or(0, |bytes| bytes.len()))
}

/// Reads what a server says of `keys` keys in one message; gives how many events came of it.
pub fn segments(keys: usize, metadata: &[u8], body: &Bytes) -> Result<usize, ClientError> {
    let mut events = VecDeque::new();
    Segments::new(keys, None).read(metadata, body.len(), |range| body.slice(range), &mut events)?;
    Ok(events.len())
}
