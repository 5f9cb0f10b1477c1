//! Arrow IPC headers: those of clients, which `sira_wire::ipc` checks, and ours.

use arrow_ipc::{self as fb, MetadataVersion};
use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;
pub(crate) use sira_wire::ipc::{Announced, Batch};
use tonic::Status;

use crate::status::of_wire;

/// Reads the header of a message.
pub(crate) fn read(header: &[u8]) -> Result<Announced, Status> {
    sira_wire::ipc::read(header).map_err(|e| of_wire(&e))
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
