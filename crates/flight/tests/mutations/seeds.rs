//! Valid put streams, message by message: those that pyarrow makes, and those of Sira's own clients.

use std::collections::HashMap;

use arrow_flight::{FlightData, FlightDescriptor, SchemaAsIpc};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_ipc::{self as fb, MetadataVersion};
use arrow_schema::{DataType, Field, Schema};
use flatbuffers::FlatBufferBuilder;
use prost::Message;
use sira_tensor::carrier::Carrier;
use sira_tensor::{DType, TensorSpec};

/// A stream: its name, and its messages.
pub struct Seed {
    pub name: &'static str,
    pub messages: Vec<FlightData>,
}

/// As pyarrow sends them, written by fuzz/pyarrow_streams.py: gRPC messages one after another.
const PYARROW: [(&str, &[u8]); 4] = [
    ("pyarrow_tensor", include_bytes!("streams/tensor.bin")),
    ("pyarrow_batches", include_bytes!("streams/batches.bin")),
    ("pyarrow_permuted", include_bytes!("streams/permuted.bin")),
    ("pyarrow_many", include_bytes!("streams/many.bin")),
];

/// A gRPC message.
pub fn framed(data: &[u8]) -> Vec<u8> {
    [&[0][..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// Every seed.
pub fn all() -> Vec<Seed> {
    let pyarrow = PYARROW.iter().map(|(name, bytes)| Seed { name, messages: unframed(bytes) });
    pyarrow
        .chain(carriers())
        .chain([command(), several_batches(), chunks(), behind(), many(), many_parts(), encoded(), encoded_pieces()])
        .collect()
}

fn unframed(mut bytes: &[u8]) -> Vec<FlightData> {
    let mut messages = Vec::new();
    while let Some(([_, a, b, c, d], rest)) = bytes.split_first_chunk::<5>() {
        let (message, rest) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        messages.push(FlightData::decode(message).unwrap());
        bytes = rest;
    }
    messages
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn first(schema: &Schema, descriptor: FlightDescriptor) -> FlightData {
    FlightData::from(SchemaAsIpc::new(schema, &IpcWriteOptions::default())).with_descriptor(descriptor)
}

fn path(key: &str) -> FlightDescriptor {
    FlightDescriptor::new_path(key.split('/').map(String::from).collect())
}

/// A batch of rows of a column: a list of `values` values a row, or plain.
fn batch(rows: u64, values: Option<u64>, mut body: Vec<u8>) -> FlightData {
    let len = body.len() as i64;
    body.resize(body.len().next_multiple_of(8), 0);
    let mut b = FlatBufferBuilder::new();
    let node = |length: u64| fb::FieldNode::new(length as i64, 0);
    let nodes = values.map_or_else(|| vec![node(rows)], |values| vec![node(rows), node(rows * values)]);
    let empty = vec![fb::Buffer::new(0, 0); nodes.len()];
    let buffers = b.create_vector(&[empty, vec![fb::Buffer::new(0, len)]].concat());
    let nodes = b.create_vector(&nodes);
    let args = fb::RecordBatchArgs { length: rows as i64, nodes: Some(nodes), buffers: Some(buffers), ..fb::RecordBatchArgs::default() };
    let header = fb::RecordBatch::create(&mut b, &args).as_union_value();
    let args = fb::MessageArgs {
        version: MetadataVersion::V5,
        header_type: fb::MessageHeader::RecordBatch,
        header: Some(header),
        bodyLength: body.len() as i64,
        custom_metadata: None,
    };
    let message = fb::Message::create(&mut b, &args);
    b.finish(message, None);
    FlightData::new().with_data_header(b.finished_data().to_vec()).with_data_body(body)
}

/// A column of bytes with these options.
fn bytes(options: &[(&str, &str)]) -> Schema {
    let options = options.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Schema::new(vec![Field::new("tensor", DataType::UInt8, false)]).with_metadata(options.collect::<HashMap<_, _>>())
}

/// One tensor of each kind, by the column that Sira itself sends it in.
fn carriers() -> Vec<Seed> {
    let kinds = [
        ("carrier_float32", DType::Float32, vec![4, 2, 3]),
        ("carrier_bfloat16", DType::BFloat16, vec![3, 5]),
        ("carrier_complex64", DType::Complex64, vec![2, 2]),
        ("carrier_float4", DType::Float4E2M1Fn, vec![8]),
        ("carrier_scalar", DType::Int64, vec![]),
        ("carrier_empty", DType::UInt16, vec![3, 0, 2]),
    ];
    let seed = |(name, dtype, shape): (&'static str, DType, Vec<u64>)| {
        let spec = TensorSpec::new(dtype, shape).unwrap();
        let carrier = Carrier::of(&spec, 1 << 20);
        let options = [("sira.dtype".to_owned(), dtype.name().to_owned()), ("sira.shape".to_owned(), format!("{:?}", spec.shape()))];
        let schema = Schema::new(vec![carrier.field.clone()]).with_metadata(HashMap::from(options));
        let values = carrier.lists.then_some(carrier.row_values);
        let body = batch(carrier.rows, values, noise(spec.nbytes() as usize));
        Seed { name, messages: vec![first(&schema, path("ns/carrier")), body] }
    };
    kinds.into_iter().map(seed).collect()
}

/// Everything that a command can say.
fn command() -> Seed {
    let json = r#"{"v":1,"key":"ns/command","shape":[2,4],"dtype":"bfloat16","axes":["token","dim"],"codec":"zstd:3","ttl":60,"consistency":"strong","attributes":{"model":"m","layer":"3"}}"#;
    let first = first(&bytes(&[]), FlightDescriptor::new_cmd(json));
    Seed { name: "command", messages: vec![first, batch(16, None, noise(16))] }
}

fn several_batches() -> Seed {
    let schema = bytes(&[("sira.shape", "[30]"), ("sira.dtype", "uint8"), ("sira.if", "absent"), ("sira.attr.a", "b")]);
    let about = FlightData::new().with_app_metadata(b"nothing".to_vec());
    let messages = vec![first(&schema, path("ns/batches/1")), batch(10, None, noise(10)), about, batch(20, None, noise(20))];
    Seed { name: "several_batches", messages }
}

/// Large enough to be stored in chunks.
fn chunks() -> Seed {
    let schema = bytes(&[("sira.shape", "[300,100]"), ("sira.dtype", "float32"), ("sira.axes", "token,dim"), ("sira.codec", "planes+lz4")]);
    let piece = || batch(60_000, None, noise(60_000));
    Seed { name: "chunks", messages: vec![first(&schema, path("ns/chunks")), piece(), piece()] }
}

/// Kept in memory until it is written.
fn behind() -> Seed {
    let schema = bytes(&[("sira.shape", "[1000]"), ("sira.consistency", "weak"), ("sira.ttl", "3600")]);
    Seed { name: "behind", messages: vec![first(&schema, path("ns/behind")), batch(1000, None, noise(1000))] }
}

/// Chunks of 40,000 bytes, the first and third of which are runs that LZ4 made small.
fn lz4_chunks() -> Vec<Vec<u8>> {
    // A literal, a match of it that goes on to the last 5 bytes, and these: LZ4's own block for a run.
    let run = |byte: u8| {
        let len = 40_000 - 1 - 5 - 4; // of the match, beyond the 4 bytes that every match has
        let mut block = vec![0x1f, byte, 1, 0];
        block.extend(vec![0xff; (len - 15) / 255]);
        block.push(((len - 15) % 255) as u8);
        block.extend([&[0x50][..], &[byte; 5]].concat());
        block
    };
    vec![run(7), noise(40_000), run(9)]
}

const ENCODED: &str = r#"{"chunk_shape":[1,40000],"chains":["none","lz4"]}"#;

/// A tensor whose chunks are encoded already.
fn encoded() -> Seed {
    let chunks = lz4_chunks();
    let options = [("sira.shape", "[3,40000]"), ("sira.dtype", "uint8"), ("sira.encoded", ENCODED)];
    let said = format!(
        r#"{{"chunks":[{{"chain":1,"bytes":{}}},{{"chain":0,"bytes":40000}},{{"chain":1,"bytes":{}}}]}}"#,
        chunks[0].len(),
        chunks[2].len()
    );
    let body = chunks.concat();
    let rows = body.len() as u64;
    let messages = vec![first(&bytes(&options), path("ns/encoded")), batch(rows, None, body).with_app_metadata(said.into_bytes())];
    Seed { name: "encoded", messages }
}

/// The same in a command, each chunk in a message, announced with its checksum or before its bytes.
fn encoded_pieces() -> Seed {
    let chunks = lz4_chunks();
    let json =
        format!(r#"{{"v":1,"key":"ns/pieces","shape":[3,40000],"dtype":"uint8","axes":["a","b"],"codec":"lz4","encoded":{ENCODED}}}"#);
    let mut messages = vec![first(&bytes(&[]), FlightDescriptor::new_cmd(json))];
    for (i, chunk) in chunks.into_iter().enumerate() {
        let (chain, len) = (u8::from(i != 1), chunk.len());
        let checksum = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&chunk));
        let said = format!(r#"{{"chunks":[{{"chain":{chain},"bytes":{len},"checksum":"{checksum}"}}]}}"#).into_bytes();
        if i == 2 {
            messages.push(FlightData::new().with_app_metadata(said));
            messages.push(batch(len as u64, None, chunk));
        } else {
            messages.push(batch(len as u64, None, chunk).with_app_metadata(said));
        }
    }
    Seed { name: "encoded_pieces", messages }
}

const MANY: &str = r#"{"v":1,"put_many":true}"#;

fn many() -> Seed {
    let items = r#"{"items":[{"key":"ns/a","parts":[{"dtype":"uint8","shape":[10]}]},{"key":"ns/b","parts":[{"dtype":"int32","shape":[2,3]}],"ttl":60}]}"#;
    let more = r#"{"items":[{"key":"other/c","parts":[{"dtype":"float8_e4m3fn","shape":[7],"attributes":{"a":"b"}}],"if":"absent"},{"key":"ns/none","parts":[{"dtype":"uint8","shape":[0]}]}]}"#;
    let messages = vec![
        first(&bytes(&[]), FlightDescriptor::new_cmd(MANY)).with_app_metadata(items.as_bytes().to_vec()),
        batch(20, None, noise(20)),
        batch(21, None, noise(21)).with_app_metadata(more.as_bytes().to_vec()),
    ];
    Seed { name: "many", messages }
}

fn many_parts() -> Seed {
    let items = r#"{"items":[{"key":"ns/kv","consistency":"weak","parts":[{"name":"k","dtype":"float8_e4m3fn","shape":[4,8],"axes":["token","dim"]},{"name":"k_scale","dtype":"float32","shape":[4],"codec":"none"}]}]}"#;
    let about = FlightData::new().with_app_metadata(items.as_bytes().to_vec());
    let messages = vec![first(&bytes(&[]), FlightDescriptor::new_cmd(MANY)), about, batch(48, None, noise(48))];
    Seed { name: "many_parts", messages }
}
