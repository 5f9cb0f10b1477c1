//! Arrow IPC messages of the one column that carries a tensor: built without copying its bytes, read with every length checked.

use std::collections::HashMap;
use std::ops::Range;

use arrow_flight::{FlightData, FlightDescriptor, SchemaAsIpc};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_ipc::{FieldNode, Message, MessageArgs, MessageHeader, MetadataVersion, RecordBatch, RecordBatchArgs};
use arrow_schema::{DataType, Field, Schema};
use bytes::{Bytes, BytesMut};
use flatbuffers::FlatBufferBuilder;
use sira_tensor::carrier::{COLUMN, Column};
use sira_wire::VERSION;
use sira_wire::ipc::{self, Announced};

use crate::ClientError;

/// The first message of a put: the descriptor, and a schema of one plain uint8 column, which may carry any dtype.
pub(crate) fn schema(key: &str, metadata: HashMap<String, String>) -> FlightData {
    let schema = Schema::new(vec![Field::new(COLUMN, DataType::UInt8, false)]).with_metadata(metadata);
    let descriptor = FlightDescriptor::new_path(vec![key.to_owned()]);
    FlightData::from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default())).with_descriptor(descriptor)
}

/// The first message of a put of many keys: its descriptor says so, and its schema is one column of bytes.
pub(crate) fn schema_of_many() -> FlightData {
    let schema = Schema::new(vec![Field::new(COLUMN, DataType::UInt8, false)]);
    let descriptor = FlightDescriptor::new_cmd(format!(r#"{{"v":{VERSION},"put_many":true}}"#));
    FlightData::from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default())).with_descriptor(descriptor)
}

/// A batch of uint8 rows, which are `piece`. Arrow pads bodies to 8 bytes: only a piece of another length is copied.
pub(crate) fn batch(piece: Bytes) -> FlightData {
    let rows = piece.len();
    if rows.is_multiple_of(8) {
        return padded_batch(piece, rows);
    }
    let mut padded = BytesMut::with_capacity(rows.next_multiple_of(8));
    padded.extend_from_slice(&piece);
    padded.resize(rows.next_multiple_of(8), 0);
    padded_batch(padded.freeze(), rows)
}

/// A batch of the first `rows` bytes of `body`, whose length is a multiple of 8.
pub(crate) fn padded_batch(body: Bytes, rows: usize) -> FlightData {
    FlightData::new().with_data_header(batch_header(rows, body.len())).with_data_body(body)
}

/// The Arrow header of a batch of `rows` bytes, in a body of `len`.
pub(crate) fn batch_header(rows: usize, len: usize) -> Vec<u8> {
    let rows = rows as i64;
    let mut builder = FlatBufferBuilder::new();
    let nodes = builder.create_vector(&[FieldNode::new(rows, 0)]);
    // The first buffer is the validity, empty since nothing is null.
    let buffers = builder.create_vector(&[arrow_ipc::Buffer::new(0, 0), arrow_ipc::Buffer::new(0, rows)]);
    let args = RecordBatchArgs { length: rows, nodes: Some(nodes), buffers: Some(buffers), ..RecordBatchArgs::default() };
    let header = RecordBatch::create(&mut builder, &args).as_union_value();
    let args = MessageArgs {
        version: MetadataVersion::V5,
        header_type: MessageHeader::RecordBatch,
        header: Some(header),
        bodyLength: len as i64,
        custom_metadata: None,
    };
    let message = Message::create(&mut builder, &args);
    builder.finish(message, None);
    builder.finished_data().to_vec()
}

/// The bytes of a batch's rows: a slice of its body.
pub(crate) fn rows(data: &FlightData, column: &Column) -> Result<Bytes, ClientError> {
    Ok(data.data_body.slice(row_range(&data.data_header, data.data_body.len(), column)?))
}

/// Where the bytes of a batch's rows lie in its body of `len` bytes.
pub(crate) fn row_range(header: &[u8], len: usize, column: &Column) -> Result<Range<usize>, ClientError> {
    let Announced::Batch(batch) = ipc::read(header).map_err(ClientError::protocol)? else {
        return Err(ClientError::protocol("a message that is not a record batch"));
    };
    let (start, bytes) = batch.check(column, len as u64).map_err(ClientError::protocol)?;
    // Within the body, so neither is more than a usize.
    Ok(start as usize..(start + bytes) as usize)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn column() -> Column {
        Column::of(&Schema::new(vec![Field::new("tensor", DataType::UInt8, false)])).unwrap()
    }

    #[test]
    fn rows_read_what_batch_wrote() {
        for len in [0usize, 1, 8, 13, 4096] {
            let piece = Bytes::from((0..len).map(|i| i as u8).collect::<Vec<_>>());
            let data = batch(piece.clone());
            assert_eq!(data.data_body.len() % 8, 0);
            assert_eq!(rows(&data, &column()).unwrap(), piece);
        }
        let whole = Bytes::from(vec![1u8; 64]);
        assert_eq!(batch(whole.clone()).data_body.as_ptr(), whole.as_ptr(), "a padded piece is not copied");
    }

    #[test]
    fn a_body_shorter_than_its_header_says_is_refused() {
        let mut data = batch(Bytes::from(vec![1u8; 64]));
        data.data_body.truncate(56);
        assert!(rows(&data, &column()).is_err());
        data.data_header.truncate(20);
        assert!(rows(&data, &column()).is_err());
        assert!(rows(&schema("ns/k", HashMap::new()), &column()).is_err());
    }
}
