//! Headers of Arrow IPC messages from outside, checked field by field. Bodies stay opaque bytes.
//!
//! The stock decoder panics on hostile offsets and types; here nothing is decoded but the flatbuffer of the header, by its verifier, whose
//! limits keep what is read in proportion to what came: offsets may point to the same bytes many times, so that a small header can
//! describe gigabytes.

use std::collections::HashMap;

use arrow_ipc::{self as fb, MetadataVersion, Precision};
use arrow_schema::{DataType, Field, Schema};
use flatbuffers::VerifierOptions;
use sira_tensor::carrier::Column;

use crate::{Code, WireError};

/// Nesting of tables: a column with metadata has five.
const MAX_DEPTH: usize = 16;
/// Tables: one for each entry of metadata, and a few.
const MAX_TABLES: usize = 4096;
/// How much larger than its bytes a header may be when every offset is followed; one in which nothing is shared has up to twice its bytes, since the
/// verifier counts vtables wherever they are used.
const MAX_APPARENT: usize = 4;

/// Arrays and buffers of a list column, the longest that carries a tensor: the list's validity, its values' validity, the values.
const MAX_NODES: usize = 2;
const MAX_BUFFERS: usize = 3;

/// What a header announces.
#[derive(Debug)]
pub enum Announced {
    /// The schema.
    Schema(Schema),
    /// A batch, its fields still to be checked against the column: see [`Batch::check`].
    Batch(Batch),
}

/// The layout of a record batch.
#[derive(Debug)]
pub struct Batch {
    /// Rows, as they were sent: any number.
    pub rows: i64,
    nodes: Vec<(i64, i64)>,
    buffers: Vec<(i64, i64)>,
    body: i64,
}

/// Reads the header of a message.
pub fn read(header: &[u8]) -> Result<Announced, WireError> {
    let options = VerifierOptions {
        max_depth: MAX_DEPTH,
        max_tables: MAX_TABLES,
        max_apparent_size: MAX_APPARENT * header.len() + 1024,
        ignore_missing_null_terminator: false,
    };
    let message = fb::root_as_message_with_opts(&options, header).map_err(|e| bad(format!("not an Arrow message: {e}")))?;
    if message.version() < MetadataVersion::V4 {
        return Err(bad(format!("Arrow metadata {:?}; V4 and V5 are read", message.version())));
    }
    if let Some(schema) = message.header_as_schema() {
        return read_schema(&schema).map(Announced::Schema);
    }
    let Some(batch) = message.header_as_record_batch() else {
        return Err(bad(format!("a message of type {:?}; a tensor is a schema and its record batches", message.header_type())));
    };
    read_batch(&batch, message.bodyLength()).map(Announced::Batch)
}

/// Reads the header of the first message of a stream, which must be a schema.
pub fn read_first(header: &[u8]) -> Result<Schema, WireError> {
    match read(header)? {
        Announced::Schema(schema) => Ok(schema),
        Announced::Batch(_) => Err(WireError::new(Code::BadRequest, "the first message is no schema")),
    }
}

fn read_batch(batch: &fb::RecordBatch<'_>, body: i64) -> Result<Batch, WireError> {
    if batch.compression().is_some() {
        return Err(bad("a compressed body; send it raw: tensors are compressed by sira.codec".into()));
    }
    let (nodes, buffers) = (batch.nodes().unwrap_or_default(), batch.buffers().unwrap_or_default());
    if nodes.len() > MAX_NODES || buffers.len() > MAX_BUFFERS {
        return Err(bad(format!("a batch of {} nodes and {} buffers does not fit the column", nodes.len(), buffers.len())));
    }
    Ok(Batch {
        rows: batch.length(),
        nodes: nodes.iter().map(|node| (node.length(), node.null_count())).collect(),
        buffers: buffers.iter().map(|buffer| (buffer.offset(), buffer.length())).collect(),
        body,
    })
}

fn read_schema(schema: &fb::Schema<'_>) -> Result<Schema, WireError> {
    if schema.endianness() != fb::Endianness::Little {
        return Err(bad("a big-endian schema; send little-endian".into()));
    }
    let fields = schema.fields().ok_or_else(|| bad("a schema without fields".into()))?;
    if fields.len() != 1 {
        return Err(bad(format!("{} columns; a tensor is one column", fields.len())));
    }
    Ok(Schema::new_with_metadata(vec![read_field(&fields.get(0), 0)?], entries(schema.custom_metadata())))
}

fn read_field(field: &fb::Field<'_>, depth: u32) -> Result<Field, WireError> {
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
        let children = field.children().unwrap_or_default();
        if children.len() != 1 {
            return Err(bad(format!("a list with {} children", children.len())));
        }
        DataType::FixedSizeList(read_field(&children.get(0), depth + 1)?.into(), list.listSize())
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
    ///
    /// The offset may be any: values are taken as bytes, and where they come to lie is the reader's business.
    pub fn check(&self, column: &Column, body: u64) -> Result<(u64, u64), WireError> {
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

fn bad(reason: String) -> WireError {
    WireError::new(Code::BadTensor, reason)
}

#[cfg(test)]
mod tests {
    use flatbuffers::{FlatBufferBuilder, WIPOffset};

    use super::*;

    /// A schema of one column of bytes whose metadata has these entries; `values` are offsets, which may be shared.
    fn schema<'b>(mut b: FlatBufferBuilder<'b>, entries: &[(String, WIPOffset<&'b str>)]) -> Vec<u8> {
        let entries: Vec<_> = entries
            .iter()
            .map(|(key, value)| {
                let key = b.create_string(key);
                fb::KeyValue::create(&mut b, &fb::KeyValueArgs { key: Some(key), value: Some(*value) })
            })
            .collect();
        let metadata = b.create_vector(&entries);
        let int = fb::Int::create(&mut b, &fb::IntArgs { bitWidth: 8, is_signed: false }).as_union_value();
        let args = fb::FieldArgs { type_type: fb::Type::Int, type_: Some(int), ..fb::FieldArgs::default() };
        let field = fb::Field::create(&mut b, &args);
        let fields = b.create_vector(&[field]);
        let args = fb::SchemaArgs { fields: Some(fields), custom_metadata: Some(metadata), ..fb::SchemaArgs::default() };
        let header = fb::Schema::create(&mut b, &args).as_union_value();
        let args = fb::MessageArgs {
            version: MetadataVersion::V5,
            header_type: fb::MessageHeader::Schema,
            header: Some(header),
            ..fb::MessageArgs::default()
        };
        let message = fb::Message::create(&mut b, &args);
        b.finish(message, None);
        b.finished_data().to_vec()
    }

    #[test]
    fn metadata_of_any_sizes_is_read() {
        for (entries, len) in [(0, 0), (1, 0), (1000, 0), (3, 100_000), (64, 4096)] {
            let mut b = FlatBufferBuilder::new();
            let text = "x".repeat(len);
            let entries: Vec<_> = (0..entries).map(|i| (format!("k{i}"), b.create_string(&text))).collect();
            let Ok(Announced::Schema(read)) = read(&schema(b, &entries)) else { panic!("{} entries of {len}", entries.len()) };
            assert_eq!(read.metadata().len(), entries.len());
            assert!(read.metadata().values().all(|value| *value == text));
        }
    }

    #[test]
    fn a_header_that_grows_when_its_offsets_are_followed_is_refused() {
        let mut b = FlatBufferBuilder::new();
        let shared = b.create_string(&"x".repeat(100_000));
        let entries: Vec<_> = (0..1000).map(|i| (format!("k{i}"), shared)).collect();
        let header = schema(b, &entries);
        assert!(header.len() < 200_000);
        let error = read(&header).unwrap_err();
        assert!(error.to_string().starts_with("SIRA_BAD_TENSOR: not an Arrow message: Apparent size"), "{error}");
    }
}
