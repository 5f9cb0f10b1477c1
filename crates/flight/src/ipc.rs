//! Arrow IPC headers: those of a client checked field by field, ours written. Bodies stay opaque.
//!
//! The stock decoder panics on hostile offsets; here nothing is decoded but the flatbuffer of the header, by its verifier.

use std::collections::HashMap;

use arrow_ipc::{self as fb, MetadataVersion, Precision};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;
use sira_tensor::carrier::Column;
use sira_wire::Code;
use tonic::Status;

use crate::status::refuse;

/// What a client's header announces.
#[derive(Debug)]
pub(crate) enum Announced {
    /// The schema.
    Schema(Schema),
    /// A batch, its fields still to be checked against the column: see [`Batch::check`].
    Batch(Batch),
}

/// The layout of a record batch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub rows: i64,
    nodes: Vec<(i64, i64)>,
    buffers: Vec<(i64, i64)>,
    body: i64,
}

/// Reads the header of a message.
pub(crate) fn read(header: &[u8]) -> Result<Announced, Status> {
    let message = fb::root_as_message(header).map_err(|e| bad(format!("not an Arrow message: {e}")))?;
    if message.version() < MetadataVersion::V4 {
        return Err(bad(format!("Arrow metadata {:?}; V4 and V5 are read", message.version())));
    }
    if let Some(schema) = message.header_as_schema() {
        return read_schema(&schema).map(Announced::Schema);
    }
    let Some(batch) = message.header_as_record_batch() else {
        return Err(bad(format!("a message of type {:?}; a put is a schema and its record batches", message.header_type())));
    };
    if batch.compression().is_some() {
        return Err(bad("a compressed body; send it raw: tensors are compressed by sira.codec".into()));
    }
    Ok(Announced::Batch(Batch {
        rows: batch.length(),
        nodes: batch.nodes().into_iter().flatten().map(|node| (node.length(), node.null_count())).collect(),
        buffers: batch.buffers().into_iter().flatten().map(|buffer| (buffer.offset(), buffer.length())).collect(),
        body: message.bodyLength(),
    }))
}

fn read_schema(schema: &fb::Schema<'_>) -> Result<Schema, Status> {
    if schema.endianness() != fb::Endianness::Little {
        return Err(bad("a big-endian schema; send little-endian".into()));
    }
    let fields = schema.fields().ok_or_else(|| bad("a schema without fields".into()))?;
    let [field] = fields.iter().collect::<Vec<_>>()[..] else {
        return Err(bad(format!("{} columns; a tensor is one column", fields.len())));
    };
    Ok(Schema::new_with_metadata(vec![read_field(&field, 0)?], entries(schema.custom_metadata())))
}

fn read_field(field: &fb::Field<'_>, depth: u32) -> Result<Field, Status> {
    if field.dictionary().is_some() {
        return Err(bad("a dictionary column carries no tensor; decode it first".into()));
    }
    let data_type = if let Some(int) = field.type_as_int() {
        match (int.bitWidth(), int.is_signed()) {
            (8, true) => DataType::Int8,
            (16, true) => DataType::Int16,
            (32, true) => DataType::Int32,
            (64, true) => DataType::Int64,
            (8, false) => DataType::UInt8,
            (16, false) => DataType::UInt16,
            (32, false) => DataType::UInt32,
            (64, false) => DataType::UInt64,
            (bits, _) => return Err(bad(format!("integers of {bits} bits"))),
        }
    } else if let Some(float) = field.type_as_floating_point() {
        match float.precision() {
            Precision::HALF => DataType::Float16,
            Precision::SINGLE => DataType::Float32,
            Precision::DOUBLE => DataType::Float64,
            other => return Err(bad(format!("floats of precision {other:?}"))),
        }
    } else if let Some(list) = field.type_as_fixed_size_list().filter(|_| depth == 0) {
        let children: Vec<_> = field.children().into_iter().flatten().collect();
        let [child] = &children[..] else { return Err(bad(format!("a list with {} children", children.len()))) };
        DataType::FixedSizeList(read_field(child, depth + 1)?.into(), list.listSize())
    } else {
        match field.type_type() {
            fb::Type::Bool => DataType::Boolean,
            fb::Type::Binary => DataType::Binary,
            fb::Type::FixedSizeBinary => DataType::FixedSizeBinary(0),
            other => {
                return Err(bad(format!(
                    "a column of Arrow type {other:?} carries no tensor; send integers or floats, alone or as arrow.fixed_shape_tensor"
                )));
            }
        }
    };
    Ok(Field::new(field.name().unwrap_or_default(), data_type, field.nullable()).with_metadata(entries(field.custom_metadata())))
}

fn entries<'a>(list: Option<flatbuffers::Vector<'a, flatbuffers::ForwardsUOffset<fb::KeyValue<'a>>>>) -> HashMap<String, String> {
    let all = list.into_iter().flatten();
    all.filter_map(|entry| Some((entry.key()?.to_string(), entry.value().unwrap_or_default().to_string()))).collect()
}

impl Batch {
    /// Where the values of `column` lie in a body of `body` bytes: `(offset, length)`, the length being exactly that of the rows.
    pub fn check(&self, column: &Column, body: u64) -> Result<(u64, u64), Status> {
        let rows = u64::try_from(self.rows).map_err(|_| bad(format!("a batch of {} rows", self.rows)))?;
        if u64::try_from(self.body) != Ok(body) {
            return Err(bad(format!("the header announces a body of {} bytes, {body} come", self.body)));
        }
        let too_many = || bad(format!("a batch of {rows} rows of {} bytes", column.row_bytes()));
        let values = rows.checked_mul(column.row_values()).ok_or_else(too_many)?;
        let bytes = rows.checked_mul(column.row_bytes()).ok_or_else(too_many)?;
        let lengths: &[u64] = if column.lists { &[rows, values] } else { &[values] };
        if self.nodes.len() != lengths.len() || self.buffers.len() != lengths.len() + 1 {
            return Err(bad(format!("a batch of {} nodes and {} buffers does not fit the column", self.nodes.len(), self.buffers.len())));
        }
        for (&(length, nulls), &expected) in self.nodes.iter().zip(lengths) {
            if u64::try_from(length) != Ok(expected) {
                return Err(bad(format!("an array of {length} values where the batch has {expected}")));
            }
            if nulls != 0 {
                return Err(bad(format!("{nulls} nulls; a tensor has none")));
            }
        }
        for &(offset, length) in &self.buffers {
            let end = u64::try_from(offset).ok().zip(u64::try_from(length).ok()).and_then(|(offset, length)| offset.checked_add(length));
            if end.is_none_or(|end| end > body) {
                return Err(bad(format!("a buffer at {offset} of {length} bytes leaves a body of {body}")));
            }
        }
        let (offset, length) = self.buffers[lengths.len()];
        if (length as u64) < bytes {
            return Err(bad(format!("{length} bytes of values for {rows} rows of {} bytes", column.row_bytes())));
        }
        Ok((offset as u64, bytes))
    }
}

/// The header of a batch of `rows` rows, lists of so many values each or plain values, whose body is `len` bytes of values, padded to 8.
pub(crate) fn batch_header(lists: Option<u64>, rows: u64, len: u64) -> Bytes {
    let mut b = FlatBufferBuilder::with_capacity(256);
    let values = rows * lists.unwrap_or(1);
    let (nodes, buffers) = if lists.is_some() {
        (vec![fb::FieldNode::new(rows as i64, 0), fb::FieldNode::new(values as i64, 0)], vec![0, 0, len])
    } else {
        (vec![fb::FieldNode::new(values as i64, 0)], vec![0, len])
    };
    let buffers: Vec<_> = buffers.into_iter().map(|length| fb::Buffer::new(0, length as i64)).collect();
    let (nodes, buffers) = (b.create_vector(&nodes), b.create_vector(&buffers));
    let mut batch = fb::RecordBatchBuilder::new(&mut b);
    batch.add_length(rows as i64);
    batch.add_nodes(nodes);
    batch.add_buffers(buffers);
    let batch = batch.finish().as_union_value();
    let mut message = fb::MessageBuilder::new(&mut b);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(fb::MessageHeader::RecordBatch);
    message.add_bodyLength(len.next_multiple_of(8) as i64);
    message.add_header(batch);
    let message = message.finish();
    b.finish(message, None);
    Bytes::copy_from_slice(b.finished_data())
}

fn bad(reason: String) -> Status {
    refuse(Code::BadTensor, reason)
}
