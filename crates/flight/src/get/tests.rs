//! What goes out, against Arrow's own decoder and encoder.

use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use futures::TryStreamExt;
use http::HeaderMap;
use http_body_util::BodyExt;
use sira_backend::memory::MemoryBackend;
use sira_store::catalog::MemoryKv;
use sira_store::{SHARED_BYTES, Seams, StoreOptions, WriteOptions};
use sira_tensor::DType;
use sira_wire::Key;
use sira_wire::many::{ALIGN, GetMessage};

use super::*;
use crate::get_many;
use crate::seats::Room;

fn store() -> StorageClient {
    let store = StorageClient::new(StoreOptions::default(), Seams::system(), Arc::new(MemoryKv::default())).unwrap();
    store.register_backend("memory", Arc::new(MemoryBackend::new(1 << 30)));
    store
}

fn spec(dtype: DType, shape: &[u64]) -> TensorSpec {
    TensorSpec::new(dtype, shape.to_vec()).unwrap()
}

fn key(name: &str) -> Key {
    format!("ns/{name}").parse().unwrap()
}

/// Stores `spec` under `name`, filled with bytes that differ from place to place.
async fn put(store: &StorageClient, name: &str, spec: &TensorSpec) -> Vec<u8> {
    let bytes: Vec<u8> = (0..spec.nbytes()).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    store.store(key(name), spec.clone(), &bytes.clone().into(), WriteOptions::default()).await.unwrap();
    bytes
}

/// The frames that answer a ticket, and their trailers.
async fn frames(store: &StorageClient, ticket: &str) -> Result<(Vec<Pieces>, HeaderMap), Status> {
    let ticket = arrow_flight::Ticket::new(ticket.to_string()).encode_to_vec();
    let message = [&[0][..], &(ticket.len() as u32).to_be_bytes(), &ticket].concat();
    let seat = Room::new(1, 4).seat(true).await.unwrap();
    let mut body = handle(store, message.into(), seat.guest.clone()).await?.into_body();
    let mut all = Vec::new();
    loop {
        match body.frame().await.unwrap().unwrap().into_data() {
            Ok(pieces) => all.push(pieces),
            Err(frame) => return Ok((all, frame.into_trailers().unwrap_or_default())),
        }
    }
}

/// The messages in frames, as prost reads them.
fn messages(frames: &[Pieces]) -> Vec<FlightData> {
    let flat = frames.iter().flat_map(Pieces::buffers).fold(Vec::new(), |mut flat, buffer| {
        flat.extend_from_slice(buffer);
        flat
    });
    let (mut rest, mut messages) = (&flat[..], Vec::new());
    while rest.has_remaining() {
        assert_eq!(rest.get_u8(), 0, "not compressed");
        let len = rest.get_u32() as usize;
        messages.push(FlightData::decode(&rest[..len]).unwrap());
        rest.advance(len);
    }
    messages
}

async fn batches(messages: Vec<FlightData>) -> Vec<RecordBatch> {
    let messages = futures::stream::iter(messages.into_iter().map(Ok));
    FlightRecordBatchStream::new_from_flight_data(messages).try_collect().await.unwrap()
}

/// The bytes of the values of a batch.
fn values(batch: &RecordBatch) -> Vec<u8> {
    let data = batch.column(0).to_data();
    let values = data.child_data().first().unwrap_or(&data);
    assert_eq!((data.null_count(), values.null_count()), (0, 0));
    values.buffers()[0].as_slice().to_vec()
}

#[test]
fn messages_are_cut_into_equal_frames() {
    for (len, frame, frames) in [
        (0, 1, 0),
        (1, 1, 1),
        (66_000, 66_000, 1),
        (200_000, 66_667, 3),
        (1 << 20, 128 << 10, 8),
        (4 << 20, 256 << 10, 16),
        ((4 << 20) + 400, 246_748, 17),
    ] {
        assert_eq!((frame_bytes(len), len.div_ceil(frame_bytes(len))), (frame, frames), "{len}");
    }
}

#[tokio::test]
async fn arrow_reads_what_goes_out_and_would_have_said_the_same() {
    let store = store();
    let mut specs = vec![
        spec(DType::Float32, &[]),
        spec(DType::Complex64, &[]),
        spec(DType::Complex64, &[3, 2]),
        spec(DType::Float4E2M1Fn, &[4, 6]),
        spec(DType::Int16, &[3, 0, 2]),
        spec(UInt8, &[1]),
        spec(UInt8, &[9_000_001]),
        spec(DType::Float32, &[5, 700_001]),
        spec(BFloat16, &[2, 3, 1_000_003]),
        spec(UInt8, &[1, MESSAGE_BYTES]),
        spec(UInt8, &[3, MESSAGE_BYTES / 2 + 1]),
    ];
    use DType::{BFloat16, Bool, Float16, Float64, Int8, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
    for dtype in [BFloat16, Bool, Float16, Float64, Int8, Int32, Int64, UInt8, UInt16, UInt32, UInt64] {
        specs.extend([spec(dtype, &[7]), spec(dtype, &[5, 3]), spec(dtype, &[2, 3, 40_001])]);
    }
    for (index, spec) in specs.iter().enumerate() {
        let expected = put(&store, &index.to_string(), spec).await;
        // The second time, what is said before the bytes has been made already.
        for _ in 0..2 {
            let (frames, trailers) = frames(&store, &key(&index.to_string()).to_string()).await.unwrap();
            assert_eq!(trailers["grpc-status"], "0");
            let messages = messages(&frames);
            assert!(messages.iter().all(|message| message.data_body.len() as u64 <= MESSAGE_BYTES + 7), "{spec:?}");
            let ours = batches(messages).await;
            assert_eq!(ours.iter().flat_map(values).collect::<Vec<_>>().len(), expected.len(), "{spec:?}");
            assert!(ours.iter().flat_map(values).eq(expected.iter().copied()), "{spec:?}");
            let schema = Arc::new(carrier(spec).1);
            assert!(ours.iter().all(|batch| batch.schema() == schema));
            let encoded = FlightDataEncoderBuilder::new().with_schema(schema).with_max_flight_data_size(usize::MAX);
            let theirs: Vec<FlightData> =
                encoded.build(futures::stream::iter(ours.clone().into_iter().map(Ok))).try_collect().await.unwrap();
            assert_eq!(batches(theirs).await, ours, "{spec:?}");
        }
    }
}

#[tokio::test]
async fn bytes_go_out_from_where_they_lie() {
    let store = store();
    for (name, spec) in
        [("large", spec(DType::Float32, &[5, 700_001])), ("small", spec(DType::UInt8, &[1000])), ("one", spec(DType::Int8, &[8, 8192]))]
    {
        put(&store, name, &spec).await;
        let (_, kept) = store.retrieve(&key(name)).await.unwrap();
        let kept: Vec<_> = kept.pieces().iter().map(|piece| piece.as_ptr_range()).collect();
        let lies_there =
            |buffer: &&Bytes| kept.iter().any(|range| range.contains(&buffer.as_ptr()) && buffer.as_ptr_range().end <= range.end);
        let single = frames(&store, &key(name).to_string()).await.unwrap().0;
        let sent: u64 = single.iter().flat_map(Pieces::buffers).filter(lies_there).map(|buffer| buffer.len() as u64).sum();
        assert_eq!(sent, spec.nbytes(), "{name}");
        let many = frames(&store, &format!(r#"{{"v":1,"keys":["ns/{name}"]}}"#)).await.unwrap().0;
        let sent: u64 = many.iter().flat_map(Pieces::buffers).filter(lies_there).map(|buffer| buffer.len() as u64).sum();
        let copied = spec.nbytes() <= SHARED_BYTES;
        assert!(if copied { sent == 0 } else { sent + SHARED_BYTES > spec.nbytes() }, "{name}: {sent}");
    }
}

#[tokio::test]
async fn many_keys_lie_where_their_messages_say() {
    let store = store();
    let sizes = [1u64, 64, 5000, 100, 70_000, 3, 0, 9_000_001, 4096, 4097, 65];
    let mut expected = Vec::new();
    for (index, &size) in sizes.iter().enumerate() {
        expected.push(put(&store, &index.to_string(), &spec(DType::UInt8, &[size])).await);
    }
    let keys: Vec<_> = (0..sizes.len()).chain([99]).map(|index| format!("ns/{index}")).collect();
    let ticket = serde_json::to_string(&ManyTicket::of(keys)).unwrap();
    for _ in 0..2 {
        let messages = messages(&frames(&store, &ticket).await.unwrap().0);
        assert_eq!(messages[0].data_header[..], schema_header(&get_many::schema())[..]);
        let (mut read, mut missing) = (vec![Vec::new(); sizes.len()], 0);
        for message in &messages[1..] {
            let said: GetMessage = serde_json::from_slice(&message.app_metadata).unwrap();
            for segment in said.segments {
                if segment.error.is_some() {
                    missing = segment.index;
                    continue;
                }
                assert_eq!(segment.offset % ALIGN, 0);
                let (begin, end) = (segment.offset as usize, (segment.offset + segment.bytes) as usize);
                read[segment.index].extend_from_slice(&message.data_body[begin..end]);
            }
        }
        assert!(read == expected && missing == sizes.len());
        assert!(batches(messages).await.iter().map(|batch| values(batch).len()).sum::<usize>() >= expected.concat().len());
    }
}

#[tokio::test]
async fn a_slice_goes_out_and_a_get_that_cannot_begin_has_no_body() {
    let store = store();
    let expected = put(&store, "x", &spec(DType::UInt8, &[6, 500_000])).await;
    let (sliced, _) = frames(&store, r#"{"v":1,"key":"ns/x","slice":{"0":[2,5]}}"#).await.unwrap();
    let sliced: Vec<u8> = batches(messages(&sliced)).await.iter().flat_map(values).collect();
    assert!(sliced == expected[2 * 500_000..5 * 500_000]);
    for (ticket, code) in [("ns/none", "SIRA_NOT_FOUND: "), ("{", "SIRA_BAD_REQUEST: "), (r#"{"v":1,"keys":["x"]}"#, "SIRA_BAD_KEY: ")] {
        let status = frames(&store, ticket).await.err().unwrap();
        assert!(status.message().starts_with(code), "{status}");
    }
}

#[test]
fn a_request_is_one_message_that_is_not_compressed() {
    let whole = |prefix: [u8; 5], rest: &[u8]| ticket(Bytes::from([&prefix[..], rest].concat()));
    assert_eq!(whole([0, 0, 0, 0, 6], b"\x0a\x04ns/k").unwrap(), "ns/k");
    for (prefix, rest) in [
        ([0, 0, 0, 0, 5], &b"\x0a\x04ns/k"[..]),
        ([0, 0, 0, 0, 7], b"\x0a\x04ns/k"),
        ([1, 0, 0, 0, 6], b"\x0a\x04ns/k"),
        ([0, 0, 0, 0, 2], b"\x0a\x04"),
    ] {
        assert!(whole(prefix, rest).is_err());
    }
    assert!(ticket(Bytes::from_static(&[0, 0])).is_err());
}
