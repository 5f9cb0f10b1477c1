//! The suite over KV caches: named axes in several orders, parts and fields, rotary embeddings, small blocks, values that are not finite.

use sira_tensor::DType;
use sira_tensor::kv::{KvField, Rope, RopeStyle};

use super::{Noise, corruption};
use crate::kv::Layout;
use crate::{ChunkContext, Codec, KvFacts, TensorContext};

/// The error that a lossy codec may make, root mean square and relative to the values'.
const MOST_ERROR: f64 = 0.5;

/// A chunk of a KV cache.
struct Case {
    what: &'static str,
    axes: Vec<String>,
    shape: Vec<u64>,
    origin: Vec<u64>,
    tensor: Vec<u64>,
    facts: Option<KvFacts>,
}

impl Case {
    fn new(what: &'static str, axes: &str, shape: &[u64], facts: Option<KvFacts>) -> Case {
        let axes = axes.split(' ').map(str::to_owned).collect();
        Case { what, axes, shape: shape.to_vec(), origin: vec![0; shape.len()], tensor: shape.to_vec(), facts }
    }

    fn context(&self, dtype: DType) -> ChunkContext<'_> {
        let tensor = TensorContext { shape: &self.tensor, axes: &self.axes, kv: self.facts.as_ref(), ..TensorContext::default() };
        ChunkContext { dtype, shape: &self.shape, origin: &self.origin, tensor }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product::<u64>() as usize
    }
}

fn facts(part: &str, rope: Option<(u32, RopeStyle)>, fields: &[(&str, u64, u64)]) -> Option<KvFacts> {
    let rope = rope.map(|(dim, style)| Rope { theta: 10_000.0, dim, style, first_position: 11, scaling: Default::default() });
    let field = |&(name, offset, extent): &(&str, u64, u64)| KvField { name: name.into(), axis: "dim".into(), offset, extent, dtype: None };
    Some(KvFacts { model: None, rope, part: part.into(), fields: fields.iter().map(field).collect() })
}

fn cases() -> Vec<Case> {
    let (half, interleaved) = (RopeStyle::Half, RopeStyle::Interleaved);
    let mut later = Case::new("later tokens", "layer kv token head dim", &[1, 2, 33, 1, 8], facts("data", Some((8, half)), &[]));
    (later.origin[2], later.tensor[2]) = (256, 1000);
    vec![
        Case::new("layers", "layer kv token head dim", &[2, 2, 70, 2, 16], facts("data", Some((16, half)), &[])),
        Case::new("heads first", "kv head token dim", &[2, 3, 20, 8], facts("data", Some((4, interleaved)), &[])),
        Case::new("a part of keys", "token head dim", &[16, 2, 8], facts("k", Some((8, half)), &[])),
        Case::new("a part of values", "token head dim", &[16, 2, 7], facts("v", None, &[])),
        Case::new("fields", "token head dim", &[17, 2, 24], facts("data", Some((8, half)), &[("k", 0, 8), ("v", 8, 12)])),
        Case::new("dimensions first", "dim token", &[9, 40], facts("k", Some((8, half)), &[])),
        Case::new("blocks", "block kv token head dim", &[3, 2, 16, 1, 8], facts("data", Some((8, half)), &[])),
        Case::new("nothing but names", "layer kv token head dim", &[2, 2, 16, 1, 8], None),
        Case::new("one token", "kv token head dim", &[2, 1, 2, 8], facts("data", Some((8, half)), &[])),
        Case::new("two tokens", "token dim", &[2, 8], None),
        Case::new("no token", "layer token dim", &[3, 0, 8], None),
        Case::new("tokens alone", "token", &[100], None),
        later,
    ]
}

/// Contents of a chunk: normal values about their channels' means, none, one and the same, as large as there are, and with what is not
/// finite among them.
fn contents(case: &Case, dtype: DType, noise: &mut Noise) -> Vec<(&'static str, Vec<u8>)> {
    let last = case.shape.last().copied().unwrap_or(1).max(1);
    let mut value = |index: usize| {
        let channel = index as u64 % last;
        f32::from_bits(u32::from(noise.bf16_value()) << 16) * (1.0 + channel as f32) + (channel * channel % 17) as f32 - 5.0
    };
    let normal: Vec<f32> = (0..case.elements()).map(&mut value).collect();
    let mut infinite = normal.clone();
    let odd = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN];
    let places = [1, 2, 3, 5].map(|part| infinite.len() * part / 6);
    odd.iter().zip(places).for_each(|(&odd, at)| infinite.iter_mut().skip(at).take(1).for_each(|value| *value = odd));
    let largest: f32 = if dtype == DType::Float16 { 65504.0 } else { 3.3e38 };
    let large: Vec<f32> = normal.iter().map(|value| largest.copysign(*value)).collect();
    let bytes = |values: &[f32]| values.iter().flat_map(|value| element(dtype, *value)).collect();
    vec![
        ("normal values", bytes(&normal)),
        ("zeros", bytes(&vec![0.0; normal.len()])),
        ("ones", bytes(&vec![1.0; normal.len()])),
        ("the largest values", bytes(&large)),
        ("infinities and NaN", bytes(&infinite)),
    ]
}

fn element(dtype: DType, value: f32) -> Vec<u8> {
    match dtype {
        DType::BFloat16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        DType::Float16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

pub(super) fn suite(name: &str, codec: &dyn Codec, noise: &mut Noise) {
    for case in cases() {
        for dtype in [DType::BFloat16, DType::Float16, DType::Float32] {
            for (content, input) in contents(&case, dtype, noise) {
                round_trip(&format!("{name}, {dtype}, {}, {content}", case.what), codec, case.context(dtype), &input);
            }
        }
        let context = case.context(DType::BFloat16);
        for (content, input) in contents(&case, DType::BFloat16, noise) {
            corruption(name, codec, context, content, &input, noise);
        }
    }
}

fn round_trip(case: &str, codec: &dyn Codec, context: ChunkContext<'_>, input: &[u8]) {
    let encoded = match codec.encode(input, context) {
        Ok(encoded) => encoded,
        Err(error) => {
            assert!(!codec.lossless(), "{case}: a lossless codec takes any chunk, but: {error}");
            return;
        }
    };
    assert!(codec.encode(input, context).as_ref() == Ok(&encoded), "{case}: encoded in two ways");
    let decoded = codec.decode(&encoded, input.len(), context).unwrap_or_else(|error| panic!("{case}: encoded, but not decoded: {error}"));
    if codec.lossless() {
        assert!(decoded == input, "{case}: not what went in");
    } else {
        near(case, context, input, &decoded);
    }
}

/// A lossy codec's values are near; those of tokens with what is not finite come back bit for bit, and do not reach others.
fn near(case: &str, context: ChunkContext<'_>, input: &[u8], decoded: &[u8]) {
    assert_eq!(decoded.len(), input.len(), "{case}: wrong length");
    let layout = Layout::of("conformance", context, input.len()).unwrap_or_else(|error| panic!("{case}: {error}"));
    let (mut values, mut found) = (Vec::new(), Vec::new());
    let (mut error, mut all) = (0.0, 0.0);
    for matrix in layout.matrices() {
        values.resize(matrix.dim, 0.0);
        found.resize(matrix.dim, 0.0);
        for token in 0..layout.tokens {
            layout.read(input, &matrix, token..token + 1, &mut values);
            layout.read(decoded, &matrix, token..token + 1, &mut found);
            if values.iter().all(|value| value.is_finite()) {
                assert!(found.iter().all(|value| value.is_finite()), "{case}: token {token} became {found:?}");
                let squares = values.iter().zip(&found).map(|(a, b)| (f64::from(*a).powi(2), (f64::from(*a) - f64::from(*b)).powi(2)));
                squares.for_each(|(square, off)| (all, error) = (all + square, error + off));
            } else {
                let [mut before, mut after] = [Vec::new(), Vec::new()];
                layout.copy_out(input, &matrix, token, &mut before);
                layout.copy_out(decoded, &matrix, token, &mut after);
                assert!(before == after, "{case}: token {token} is not finite and has changed");
            }
        }
    }
    assert!(error <= all * MOST_ERROR * MOST_ERROR, "{case}: an error of {:.3}", (error / all).sqrt());
}
