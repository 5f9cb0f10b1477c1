//! The answer to a get: pieces as they arrive, the count exact.

use std::collections::BTreeMap;

use arrow_flight::FlightData;
use arrow_schema::Schema;
use bytes::{Bytes, BytesMut};
use sira_tensor::TensorSpec;
use sira_tensor::carrier::Column;
use sira_wire::{Code, Key, Ticket, WireError, metadata};
use tonic::Streaming;

use crate::{ClientError, message};

/// What of a tensor to get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// Refuse any other version.
    pub version: Option<u64>,
    /// A half-open range for each axis named; unnamed axes by position, `"0"`.
    pub slice: BTreeMap<String, [u64; 2]>,
    /// The part to get, of a key that has several.
    pub part: Option<String>,
    /// Hash of the kv spec that the tensor must follow: one that follows another, or none, is not found.
    pub kv_spec: Option<String>,
    /// Whether only exactly the bytes that were put will do: a copy that a lossy codec made is then not found. Default: as the namespace says.
    pub exact: Option<bool>,
}

impl GetOptions {
    /// The ticket for it.
    pub(crate) fn ticket(&self, key: &str) -> Result<Ticket, ClientError> {
        let key: Key = key.parse()?;
        Ok(Ticket {
            version: self.version,
            slice: self.slice.clone(),
            part: self.part.clone(),
            kv_spec: self.kv_spec.clone(),
            exact: self.exact,
            ..Ticket::whole(&key)
        })
    }
}

/// A tensor on its way: what it is, then its bytes, row-major and little-endian.
#[derive(Debug)]
pub struct TensorStream {
    spec: TensorSpec,
    column: Column,
    messages: Streaming<FlightData>,
    received: u64,
}

impl TensorStream {
    /// Reads the schema, which comes first.
    pub(crate) async fn open(mut messages: Streaming<FlightData>) -> Result<TensorStream, ClientError> {
        let first = messages.message().await?.ok_or_else(|| ClientError::protocol("a get without a schema"))?;
        let (spec, column) = carried(&first)?;
        Ok(TensorStream { spec, column, messages, received: 0 })
    }

    /// Dtype, shape and axes of what comes: of the slice, where one was asked for.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The next bytes; `None` once all have come and the server has confirmed it. Fewer or more bytes than the tensor has are an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let incomplete = |reason| Err(WireError::new(Code::Incomplete, reason).into());
        while let Some(data) = self.messages.message().await? {
            if data.data_header.is_empty() {
                continue; // only application metadata
            }
            let piece = message::rows(&data, &self.column)?;
            self.received += piece.len() as u64;
            if self.received > self.spec.nbytes() {
                return incomplete(format!("more than the {} bytes of the tensor came", self.spec.nbytes()));
            }
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        if self.received < self.spec.nbytes() {
            return incomplete(format!("{} of {} bytes came", self.received, self.spec.nbytes()));
        }
        Ok(None)
    }

    /// All bytes in one buffer; a copy unless they came in one message.
    pub async fn into_bytes(mut self) -> Result<Bytes, ClientError> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        let Some(second) = self.next().await? else { return Ok(first) };
        // The server's word is not enough to allocate by: beyond the first pieces the buffer grows with what comes.
        let room = self.spec.nbytes().min(1 << 30);
        let mut whole = BytesMut::with_capacity(usize::try_from(room).unwrap_or(0));
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&second);
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }
}

/// What the first message says of the tensor, and of the column that carries it.
pub(crate) fn carried(first: &FlightData) -> Result<(TensorSpec, Column), ClientError> {
    carried_by(&sira_wire::ipc::read_first(&first.data_header).map_err(ClientError::protocol)?)
}

/// What a schema says of the tensor, and of the column that carries it.
pub(crate) fn carried_by(schema: &Schema) -> Result<(TensorSpec, Column), ClientError> {
    let column = Column::of(schema)?;
    match column.permutation {
        Some(_) => Err(ClientError::protocol("a permuted column")),
        None => Ok((read_spec(schema)?, column)),
    }
}

/// The tensor that a carrier's schema metadata describes.
pub(crate) fn read_spec(schema: &Schema) -> Result<TensorSpec, ClientError> {
    let entry = |name: &str| schema.metadata().get(name).ok_or_else(|| ClientError::protocol(format!("a schema without {name}")));
    let dtype = entry(metadata::DTYPE)?.parse()?;
    let shape = serde_json::from_str(entry(metadata::SHAPE)?).map_err(ClientError::protocol)?;
    let axes = match entry(metadata::AXES) {
        Ok(text) => serde_json::from_str(text).map_err(ClientError::protocol)?,
        Err(_) => Vec::new(),
    };
    Ok(TensorSpec::new(dtype, shape)?.with_axes(axes)?)
}
