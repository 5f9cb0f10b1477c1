use std::collections::HashMap;

use arrow_schema::{DataType, Field};
use proptest::prelude::*;
use sira_tensor::DType;

use super::*;

fn spec(dtype: DType, shape: &[u64]) -> TensorSpec {
    TensorSpec::new(dtype, shape.to_vec()).unwrap()
}

/// Values that compress, as exponents do.
fn bytes(n: u64) -> Vec<u8> {
    (0..n as u32).map(|i| if i % 2 == 1 { 0x3f } else { (i.wrapping_mul(2_654_435_761) >> 24) as u8 }).collect()
}

/// The schema of an answer.
fn schema(layout: &Layout) -> Schema {
    let metadata = [(metadata::ENCODED.to_owned(), serde_json::to_string(layout).unwrap())];
    Schema::new(vec![Field::new("tensor", DataType::UInt8, false)]).with_metadata(HashMap::from(metadata))
}

fn plan(spec: &TensorSpec, codec: &str) -> Result<Option<Outgoing>, ClientError> {
    Outgoing::plan(spec, &chain(codec)?, None, None)
}

fn chunked(schema: &Schema, spec: &TensorSpec) -> Result<Chunked, ClientError> {
    Chunked::read(schema, spec, layout(schema).unwrap().unwrap(), None)
}

fn layout_of(outgoing: &Outgoing, whole: &TensorSpec, slice: &[[u64; 2]]) -> Layout {
    let Encoding { chunk_shape, chains } = outgoing.encoding();
    Layout { version: 1, part: DATA.into(), shape: whole.shape().to_vec(), chunk_shape, chains, slice: slice.to_vec(), kv_spec: None }
}

/// An answer with the chunks of the box: messages of at most `most` bytes, in which chunks begin at multiples of 64.
fn answer(outgoing: &Outgoing, chunked: &Chunked, data: &[u8], most: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut messages, mut segments, mut body) = (Vec::new(), Vec::new(), Vec::new());
    for cell in chunked.cells() {
        let (head, bytes) = outgoing.encode(data, cell).unwrap();
        let (mut rest, mut chunk) = (&bytes[..], Some(head));
        while chunk.is_some() || !rest.is_empty() {
            body.resize(body.len().next_multiple_of(64), 0);
            let piece = rest.split_off(..rest.len().min(most - body.len())).unwrap();
            segments.push(ChunkSegment { cell, offset: body.len() as u64, bytes: piece.len() as u64, chunk: chunk.take() });
            body.extend_from_slice(piece);
            if body.len() + 64 >= most {
                let said = serde_json::to_vec(&GetChunks { segments: std::mem::take(&mut segments) }).unwrap();
                messages.push((said, std::mem::take(&mut body)));
            }
        }
    }
    messages.push((serde_json::to_vec(&GetChunks { segments }).unwrap(), body));
    messages
}

fn read_all(schema: &Schema, spec: &TensorSpec, messages: &[(Vec<u8>, Vec<u8>)]) -> Result<Option<Vec<u8>>, ClientError> {
    let messages: Vec<_> = messages.iter().map(|(said, body)| (&said[..], &body[..])).collect();
    read(schema, spec, &messages)
}

#[test]
fn what_is_cut_and_encoded_is_put_together_again() {
    for (dtype, shape, axes) in [
        (DType::BFloat16, vec![8, 2, 1024, 2, 64], Some(["layer", "kv", "token", "head", "dim"])),
        (DType::Float32, vec![500_001], None),
        (DType::Float4E2M1Fn, vec![3000, 3000], None),
    ] {
        let whole = spec(dtype, &shape).with_axes(axes.map_or_else(Vec::new, |axes| axes.map(String::from).to_vec())).unwrap();
        let data = bytes(whole.nbytes());
        for codec in ["lz4", "planes+zstd"] {
            let outgoing = plan(&whole, codec).unwrap().unwrap();
            let schema = schema(&layout_of(&outgoing, &whole, &[]));
            let chunked = chunked(&schema, &whole).unwrap();
            assert_eq!(chunked.cells().len() as u64, outgoing.cells());
            for most in [100_000, 4 << 20] {
                let messages = answer(&outgoing, &chunked, &data, most);
                assert!(read_all(&schema, &whole, &messages).unwrap().unwrap() == data, "{dtype} {codec} {most}");
            }
        }
    }
}

#[test]
fn a_box_is_cut_out_of_the_chunks_that_it_touches() {
    let whole = spec(DType::UInt16, &[6, 700, 900]);
    let data = bytes(whole.nbytes());
    let outgoing = plan(&whole, "planes+zstd").unwrap().unwrap();
    let slice = [[1, 3], [600, 650], [0, 900]];
    let wanted = spec(DType::UInt16, &[2, 50, 900]);
    let schema = schema(&layout_of(&outgoing, &whole, &slice));
    let chunked = chunked(&schema, &wanted).unwrap();
    assert!((chunked.cells().len() as u64) < outgoing.cells());
    let expected: Vec<u8> = (1..3).flat_map(|i| data[(i * 700 + 600) * 1800..(i * 700 + 650) * 1800].to_vec()).collect();
    assert!(read_all(&schema, &wanted, &answer(&outgoing, &chunked, &data, 1 << 20)).unwrap().unwrap() == expected);
    // What was asked for is another box than what comes.
    assert!(Chunked::read(&schema, &whole, layout(&schema).unwrap().unwrap(), None).is_err());
}

#[test]
fn small_tensors_and_those_without_a_codec_go_raw() {
    assert!(plan(&spec(DType::UInt8, &[SMALL]), "zstd").unwrap().is_none());
    assert!(plan(&spec(DType::UInt8, &[SMALL + 1]), "none").unwrap().is_none());
    assert!(plan(&spec(DType::UInt8, &[SMALL + 1]), "zstd").unwrap().is_some());
    let unknown = plan(&spec(DType::UInt8, &[9]), "snappy").unwrap_err();
    assert_eq!(unknown.code(), Some(Code::UnknownCodec));
}

/// Metadata and rows.
type Message = (Vec<u8>, Vec<u8>);

/// A whole answer of three chunks, of which the last is raw.
fn good() -> (Schema, TensorSpec, Vec<Message>, Vec<u8>) {
    let whole = spec(DType::UInt8, &[3, 2 << 20]);
    let mut data = bytes(4 << 20);
    data.extend((0..2u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (i.wrapping_mul(40_503) >> 7) as u8));
    let outgoing = plan(&whole, "lz4").unwrap().unwrap();
    assert_eq!(outgoing.cells(), 3);
    let schema = schema(&layout_of(&outgoing, &whole, &[]));
    let chunked = chunked(&schema, &whole).unwrap();
    let messages = answer(&outgoing, &chunked, &data, 1 << 20);
    (schema, whole, messages, data)
}

#[test]
fn a_stream_that_is_not_whole_or_out_of_order_is_an_error() {
    let (schema, whole, messages, data) = good();
    assert!(read_all(&schema, &whole, &messages).unwrap().unwrap() == data);
    let fails = |messages: &[(Vec<u8>, Vec<u8>)], said: &str| {
        let error = read_all(&schema, &whole, messages).unwrap_err().to_string();
        assert!(error.contains(said), "{error} is not {said}");
    };
    fails(&messages[..messages.len() - 1], "chunks early");
    fails(&messages[1..], "it begins or goes on within another");
    fails(&[&messages[..1], &messages[..1]].concat(), "it begins or goes on within another");
    let mut damaged = messages.clone();
    damaged[0].1[500] ^= 1;
    fails(&damaged, "SIRA_CORRUPT: chunk 0: it came with another checksum");
    let said = |change: &dyn Fn(&mut GetChunks)| {
        let mut messages = messages.clone();
        let mut chunks = GetChunks::parse(&messages[0].0).unwrap();
        change(&mut chunks);
        messages[0].0 = serde_json::to_vec(&chunks).unwrap();
        messages
    };
    fails(&said(&|chunks| chunks.segments[0].cell = 1), "chunk 1: it comes where another is due");
    fails(&said(&|chunks| chunks.segments[0].offset = 8), "SIRA_CORRUPT: chunk 0: it came with another checksum");
    fails(&said(&|chunks| chunks.segments[0].offset = u64::MAX), "more bytes than it should");
    let head = |change: fn(&mut ChunkHead)| said(&|chunks| chunks.segments[0].chunk.iter_mut().for_each(change));
    fails(&head(|head| head.chain = 2), "chain 2 of 2");
    fails(&head(|head| head.chain = 0), "where 2097152 are raw");
    fails(&head(|head| head.bytes = u64::MAX), "where 2097152 are raw");
    fails(&head(|head| head.bytes = 0), "0 bytes, where");
    // Without a checksum it is the codec that finds it.
    let mut damaged = head(|head| head.checksum = None);
    damaged[0].1[..8].fill(0xff);
    fails(&damaged, "SIRA_CORRUPT: chunk 0: it does not decode with lz4");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever byte of what is said is another one: an error, or all of the tensor.
    #[test]
    fn mutated_words_end_in_an_error_or_in_the_tensor(at in 0usize..10_000, value in any::<u8>(), message in 0usize..4) {
        let (schema, whole, mut messages, data) = good();
        let message = message % messages.len();
        let said = &mut messages[message].0;
        let at = at % said.len();
        said[at] = value;
        if let Ok(read) = read_all(&schema, &whole, &messages) {
            prop_assert!(read.unwrap() == data);
        }
    }
}
