//! Writes the seeds of the targets, valid input of each kind: `cargo run --example corpus` in fuzz/.

#![allow(clippy::unwrap_used, reason = "a tool of tests")]

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;
use sira::formats::{npy, safetensors};
use sira_codec::{Calibration, Chain, ChunkContext, Encoded, KvFacts, TensorContext};
use sira_fuzz::seeds;
use sira_tensor::kv::Rope;
use sira_tensor::{DType, TensorSpec};
use sira_wire::same_host::Kind;

/// Bytes of the largest seed of put streams: small ones are changed more often.
const LARGEST: usize = 4096;

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn golden(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

fn main() {
    streams();
    requests();
    chunks();
    files();
    logs();
    connections();
    write("record", "golden", &golden("crates/store/golden/record-1.bin")[16..]);
    write("spec", "golden", &golden("crates/tensor/golden/spec-1.bin"));
    write("avro", "golden", &golden("crates/server/golden/export-1.avro"));
    let rules = r#"[{pattern = "kv/*", backend = "memory"}]"#;
    write("config", "example", &golden("docs/sira.example.toml"));
    write("config", "rules", format!("[memory]\nlimit = \"1 GiB\"\n\0{rules}").as_bytes());
    let frame = |kind: u8, len: usize| [&[0, 0, len as u8, kind, 0, 0, 0, 0, 1][..], &vec![0; len]].concat();
    write("frames", "call", &[frame(4, 6), frame(1, 20), frame(0, 100), frame(3, 4), frame(6, 8)].concat());
}

fn streams() {
    for seed in seeds::all() {
        let messages: Vec<Vec<u8>> = seed.messages.iter().map(|message| seeds::framed(&message.encode_to_vec())).collect();
        let stream = messages.concat();
        if stream.len() <= LARGEST {
            write("put_stream", seed.name, &stream);
        }
        for (i, message) in seed.messages.iter().take(2).enumerate().filter(|(_, message)| !message.data_header.is_empty()) {
            write("header", &format!("{}_{i}", seed.name), &message.data_header);
        }
        if let [schema, batch] = &seed.messages[..] {
            answer(seed.name, &[&schema.data_header, &batch.data_header, &batch.data_body]);
        }
    }
    let part = r#"{"dtype":"uint8","shape":[4]}"#;
    let said = format!(
        r#"{{"segments":[{{"index":0,"bytes":4,"key":{{"version":1,"parts":1}},"part":{part}}},{{"index":1,"error":"SIRA_NOT_FOUND: x"}}]}}"#
    );
    answer("segments", &[said.as_bytes(), &[], &[7; 4]]);
    encoded();
}

/// A put's own words, and an answer: its schema, a message of two chunks of which one is raw, and their bytes.
fn encoded() {
    let raw: Vec<u8> = (0..400u32).flat_map(|i| (i / 3).to_le_bytes()).collect();
    let chain: Chain = "planes+lz4".parse().unwrap();
    let context = ChunkContext::new(DType::Float32, &[400], &[0]);
    let Encoded::Bytes(coded) = chain.encode(&raw, context).unwrap() else { unreachable!("it compresses") };
    let layout = r#"{"version":3,"part":"data","shape":[2,400],"chunk_shape":[1,400],"chains":["none","planes+lz4"]}"#;
    let metadata = [("sira.shape", "[2,400]"), ("sira.dtype", "float32"), ("sira.encoded", layout)];
    let metadata = metadata.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let field = arrow_schema::Field::new("tensor", arrow_schema::DataType::UInt8, false);
    let schema = arrow_schema::Schema::new(vec![field]).with_metadata(std::collections::HashMap::from(metadata));
    let schema = arrow_flight::FlightData::from(arrow_flight::SchemaAsIpc::new(&schema, &Default::default())).data_header;
    let (len, at) = (coded.len(), coded.len().next_multiple_of(64));
    let said = format!(
        r#"{{"segments":[{{"cell":0,"offset":0,"bytes":{len},"chunk":{{"chain":1,"bytes":{len}}}}},{{"cell":1,"offset":{at},"bytes":1600,"chunk":{{"chain":0,"bytes":1600}}}}]}}"#
    );
    let mut body = coded;
    body.resize(at, 0);
    body.extend_from_slice(&raw);
    let pieces = |pieces: [&[u8]; 3]| pieces.map(|piece| [&(piece.len() as u16).to_le_bytes()[..], piece].concat()).concat();
    write("encoded", "answer", &pieces([&schema, said.as_bytes(), &body]));
    let head = r#"{"chunks":[{"chain":1,"bytes":812345,"checksum":"0123456789abcdef"},{"chain":0,"bytes":9}]}"#;
    let encoding = r#"{"chunk_shape":[10,2,256,192],"chains":["none","planes+zstd"]}"#;
    write("encoded", "put", &pieces([encoding.as_bytes(), head.as_bytes(), &[]]));
    let slice = r#"{"version":1,"part":"k","shape":[30,2,1536,192],"chunk_shape":[10,2,256,192],"chains":["zstd"],"slice":[[0,3],[0,2],[9,99],[0,192]]}"#;
    write("encoded", "layout", &pieces([slice.as_bytes(), &[], &[]]));
}

fn answer(name: &str, pieces: &[&[u8]; 3]) {
    let pieces = pieces.iter().map(|piece| [&(piece.len() as u16).to_le_bytes()[..], piece].concat());
    write("answers", name, &pieces.collect::<Vec<_>>().concat());
}

fn requests() {
    let hash = "5f".repeat(32);
    let texts = [
        ("key", "llama@8b/sess=1:a/layer=3//x".to_owned()),
        ("ticket", format!(r#"{{"v":1,"key":"ns/k","version":3,"slice":{{"token":[0,16],"0":[1,2]}},"part":"k","kv_spec":"{hash}","exact":true}}"#)),
        ("tickets", r#"{"v":1,"keys":["ns/a","ns/b"],"parts":["k","v"]}"#.to_owned()),
        ("encoded", r#"{"v":1,"key":"ns/k","encoded":["planes","zstd"]}"#.to_owned()),
        ("keys", format!(r#"{{"v":1,"keys":["ns/a","ns/\u00e9"],"kv_spec":"{hash}"}}"#)),
        ("delete", r#"{"v":1,"key":"ns/k","if":"7"}"#.to_owned()),
        ("prefix", r#"{"v":1,"prefix":"ns/a","after":"ns/ab","dry_run":true}"#.to_owned()),
        ("list", r#"{"v":1,"prefix":"ns/","after":"ns/a","limit":10}"#.to_owned()),
        ("command", r#"{"v":1,"key":"ns/k","shape":[2,3],"dtype":"BF16","axes":["a","b"],"codec":"zstd:3","ttl":60,"if":"absent"}"#.to_owned()),
        ("items", r#"{"items":[{"key":"ns/k","parts":[{"name":"k","dtype":"uint8","shape":[4],"attributes":{"a":"b"}}],"ttl":1}]}"#.to_owned()),
        ("namespace", r#"{"v":1,"namespace":"ns","policy":{"mode":"cache","limits":{"memory":100},"codecs":{"a":"zstd"}}}"#.to_owned()),
        ("spec", r#"{"v":1,"spec":{"model":"m","block_tokens":16,"rope":{"theta":5e5,"dim":128,"scaling":{"factor":8.0}},"parts":[{"dtype":"uint8","axes":["token","record"],"shape":[64,656],"fields":[{"name":"latent","axis":"record","offset":0,"extent":512,"dtype":"float8_e4m3fn"}]}]}}"#.to_owned()),
        ("hash", format!(r#"{{"v":1,"hash":"{hash}"}}"#)),
    ];
    for (name, text) in texts {
        write("requests", name, text.as_bytes());
    }
}

fn chunks() {
    let raw: Vec<u8> = (0..1000u32).flat_map(|i| (i / 3).to_le_bytes()).take(2000).collect();
    for text in ["none", "lz4", "zstd", "gzip", "planes+zstd"] {
        let chain: Chain = text.parse().unwrap();
        let context = ChunkContext::new(DType::BFloat16, &[1000], &[0]);
        let Encoded::Bytes(stored) = chain.encode(&raw, context).unwrap() else {
            write("chunk", text, &[text.as_bytes(), &[0, DType::UInt8 as u8, 4, 0, 1, 2, 3, 4]].concat());
            continue;
        };
        let [low, high] = (raw.len() as u16).to_le_bytes();
        write("chunk", text, &[text.as_bytes(), &[0, DType::BFloat16 as u8, low, high], &stored].concat());
    }
    // As the target has them: 15 tokens.
    let axes = ["layer", "kv", "token", "head", "dim"].map(str::to_owned);
    let rope = Rope { theta: 10_000.0, dim: 8, style: Default::default(), first_position: 0, scaling: Default::default() };
    let facts = KvFacts { model: None, rope: Some(rope), part: "data".into(), fields: Vec::new() };
    let shape = [2, 2, 15, 1, 8];
    let tensor = TensorContext { shape: &shape, axes: &axes, kv: Some(&facts), ..TensorContext::default() };
    let context = ChunkContext { dtype: DType::Float16, shape: &shape, origin: &[0; 5], tensor };
    let raw: Vec<u8> = (0..480u16).flat_map(|i| (0x3c00 + i * 7 % 1000).to_le_bytes()).collect();
    for text in ["int8", "int4", "fp8", "kvq"] {
        let Encoded::Bytes(stored) = text.parse::<Chain>().unwrap().encode(&raw, context).unwrap() else { continue };
        let [low, high] = (raw.len() as u16).to_le_bytes();
        write("chunk", text, &[text.as_bytes(), &[0, DType::Float16 as u8, low, high], &stored].concat());
    }
    // 40 tokens of a model of two heads.
    for name in ["kvtc", "kvq"] {
        let stored = golden(&format!("crates/codec/golden/{name}.chunk"));
        let calibration = Calibration::from_bytes(&golden(&format!("crates/codec/golden/{name}.calib"))).unwrap();
        let [low, high] = (40u16 * 64 * 2).to_le_bytes();
        let text = format!("{name}@{}", calibration.hash());
        write("chunk", &format!("{name}_calibrated"), &[text.as_bytes(), &[0, DType::BFloat16 as u8, low, high], &stored].concat());
        write("calibration", name, &golden(&format!("crates/codec/golden/{name}.calib")));
    }
    for (text, dtype) in [("float-rans", DType::BFloat16), ("float-rans", DType::Float8E4M3Fn), ("float-nibble", DType::Float16)] {
        let stored = golden(&format!("crates/codec/golden/{text}-{dtype}.bin"));
        let [low, high] = ((2 * 24 * 64 + 5) * dtype.bits() as u16 / 8 + 1).to_le_bytes();
        write("chunk", &format!("{text}_{dtype}"), &[text.as_bytes(), &[0, dtype as u8, low, high], &stored].concat());
    }
}

fn files() {
    let spec = |dtype, shape: &[u64]| TensorSpec::new(dtype, shape.to_vec()).unwrap();
    write("files", "npy", &npy::header(&spec(DType::Float32, &[3, 4])).unwrap());
    let (a, b) = (spec(DType::BFloat16, &[2, 3]), spec(DType::UInt8, &[5]));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write("files", "safetensors", &safetensors::lay_out(&[("a", &a), ("b/c", &b)], &metadata).unwrap().0);
}

/// A log as RocksDB writes it: records of a checksum, a length, a type and bytes.
fn logs() {
    let record = |kind: u8, len: u16| {
        let body = [&[kind][..], &vec![9; len.into()]].concat();
        let sum = !body
            .iter()
            .fold(!0u32, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 }));
        [&sum.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()[..], &len.to_le_bytes(), &body].concat()
    };
    let whole = [record(1, 100), record(2, 50), record(4, 3), record(1, 0)].concat();
    write("log", "whole", &whole);
    write("log", "torn", &whole[..120]);
    write("log", "zeros", &[&whole[..], &[0; 50]].concat());
}

/// What a server says over HTTP/2 to a client that gets one tensor, and what processes of one machine say to each other.
fn connections() {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let literal = |name: &str, value: &str| [&[0x40, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat();
    let head = [&[0x88][..], &literal("content-type", "application/grpc")].concat();
    let status = |code: &str| [literal("grpc-status", code), literal("grpc-message", "SIRA_NOT_FOUND: no%20tensor")].concat();
    let settings = frame(4, 0, 0, &[[0, 4, 0, 0x20, 0, 0], [0, 5, 0, 8, 0, 0]].concat());
    let steering = [frame(4, 1, 0, &[]), frame(6, 0, 0, &[7; 8]), frame(8, 0, 0, &[0, 1, 0, 0])].concat();
    for seed in seeds::all().iter().filter(|seed| seed.name.starts_with("carrier")) {
        let body: Vec<u8> = seed.messages.iter().flat_map(|message| seeds::framed(&message.encode_to_vec())).collect();
        let (first, rest) = body.split_at(body.len() / 2);
        let padded = frame(0, 8, 1, &[&[3], rest, &[0; 3]].concat());
        let said = [settings.clone(), steering.clone(), frame(1, 4, 1, &head), frame(0, 0, 1, first), padded, frame(1, 5, 1, &status("0"))];
        write("http2", seed.name, &said.concat());
    }
    let (begun, rest) = head.split_at(4);
    let refused = [settings, frame(1, 0, 1, begun), frame(9, 4, 1, rest), frame(1, 5, 1, &status("5")), frame(7, 0, 0, &[0; 8])];
    write("http2", "refused", &refused.concat());
    let block = |bytes: &[u8]| [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat();
    write("hpack", "answer", &[block(&head), block(&status("0")), block(&[0xbe, 0xbf])].concat());

    let message = |kind: Kind, json: &str| [&kind.head(json.len() as u32)[..], json.as_bytes()].concat();
    let hello = message(Kind::Hello, r#"{"v":1}"#);
    let create = message(Kind::Create, r#"{"v":1,"key":"ns/k","shape":[70000],"dtype":"uint8","axes":["x"],"consistency":"weak"}"#);
    let [commit, release] = [Kind::Commit, Kind::Release].map(|kind| message(kind, r#"{"v":1,"id":1}"#));
    let map = message(Kind::Map, r#"{"v":1,"key":"ns/k"}"#);
    write("same_host", "create", &[hello.clone(), create.clone(), release].concat());
    write("same_host", "commit", &[hello, create, commit, map.clone(), map].concat());
    let said = r#"{"id":0,"version":3,"dtype":"float32","shape":[2,3],"axes":["a","b"],"attributes":{"x":"y"},"nbytes":24,"inline":true}"#;
    write("same_host", "mapped", &[message(Kind::Answer, said), vec![7; 24]].concat());
    write("same_host", "refused", &message(Kind::Refusal, "SIRA_NOT_FOUND: no tensor ns/k"));
}
