//! The suite over KV caches: named axes in several orders, parts and fields, rotary embeddings, small blocks, values that are not finite.

use sira_tensor::DType;
use sira_tensor::kv::{KvField, Rope, RopeStyle};

use super::{Noise, corruption, decoded};
use crate::calibration::Model;
use crate::kv::Layout;
use crate::{Chain, ChunkContext, Codec, KvFacts, TensorContext};

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

/// Whole tokens of a model, in several orders and parts.
fn cases_of(model: &Model) -> Vec<Case> {
    let [layers, heads, dim] = [model.layers, model.heads, model.dim].map(u64::from);
    let rope = model.rope.map(|rope| (rope.dim, rope.style));
    let facts = |part| {
        let mut facts = facts(part, rope, &[]);
        let theta = model.rope.map(|rope| rope.theta);
        facts.iter_mut().filter_map(|facts| facts.rope.as_mut()).zip(theta).for_each(|(rope, theta)| rope.theta = theta);
        facts
    };
    let axes = "layer kv token head dim";
    let mut later = Case::new("a model's later tokens", axes, &[layers, 2, 33, heads, dim], facts("data"));
    (later.origin[2], later.tensor[2]) = (256, 1000);
    vec![
        Case::new("a model's tokens", axes, &[layers, 2, 70, heads, dim], facts("data")),
        Case::new("a model's heads first", "layer kv head token dim", &[layers, 2, heads, 20, dim], facts("data")),
        Case::new("a model's tokens first", "token kv layer dim head", &[40, 2, layers, dim, heads], facts("data")),
        Case::new("a model's keys", "layer token head dim", &[layers, 16, heads, dim], facts("k")),
        Case::new("a model's values", "layer token head dim", &[layers, 16, heads, dim], facts("v")),
        Case::new("a token of a model", axes, &[layers, 2, 1, heads, dim], facts("data")),
        later,
    ]
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
            let contents = contents(&case, dtype, noise);
            let power = power(codec, case.context(dtype), &contents[0].1);
            for (content, input) in contents {
                round_trip(&format!("{name}, {dtype}, {}, {content}", case.what), codec, case.context(dtype), &input, power);
            }
        }
        let context = case.context(DType::BFloat16);
        for (content, input) in contents(&case, DType::BFloat16, noise) {
            corruption(name, codec, context, content, &input, noise);
        }
    }
}

/// The suite over KV caches of a model that the codec has a calibration of.
pub(super) fn of_model(name: &str, codec: &dyn Codec, model: &Model, noise: &mut Noise) {
    for case in cases_of(model) {
        for dtype in [DType::BFloat16, DType::Float16, DType::Float32] {
            let context = case.context(dtype);
            let contents = contents(&case, dtype, noise);
            let power = power(codec, context, &contents[0].1);
            for (content, input) in contents {
                let case = format!("{name}, {dtype}, {}, {content}", case.what);
                if let Err(error) = codec.encode(&input, context) {
                    panic!("{case}: refused, though of the calibration's model: {error}");
                }
                round_trip(&case, codec, context, &input, power);
            }
        }
        let context = case.context(DType::BFloat16);
        for (content, input) in contents(&case, DType::BFloat16, noise) {
            corruption(name, codec, context, content, &input, noise);
        }
    }
}

/// Without its calibration the chain does nothing, and says which it needs.
pub(super) fn without(name: &str, chain: &Chain, model: &Model, noise: &mut Noise) {
    for case in cases_of(model) {
        let context = case.context(DType::BFloat16);
        for (content, input) in contents(&case, DType::BFloat16, noise) {
            let said = chain.run(&input, context).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(chain.calibration().is_some_and(|hash| said.contains(hash)), "{name}, {}, {content}: {said:?}", case.what);
            assert!(chain.decode(&input, input.len(), context).is_err(), "{name}, {}, {content}: decoded", case.what);
        }
    }
}

/// What errors are measured against besides a chunk's own size: the sum of squares of `input`, as large as the model's values are, for a codec
/// whose step is a calibration's; nothing for others.
fn power(codec: &dyn Codec, context: ChunkContext<'_>, input: &[u8]) -> f64 {
    if codec.calibration().is_none() {
        return 0.0;
    }
    let Ok(layout) = Layout::of("conformance", context, input.len()) else { return 0.0 };
    let mut sum = 0.0;
    let mut values = Vec::new();
    for matrix in layout.matrices() {
        values.resize(layout.tokens * matrix.dim, 0.0);
        layout.read(input, &matrix, 0..layout.tokens, &mut values);
        sum += values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    }
    sum
}

/// Errors are against the values' squares, or against `power` where that is more.
fn round_trip(case: &str, codec: &dyn Codec, context: ChunkContext<'_>, input: &[u8], power: f64) {
    let encoded = match codec.encode(input, context) {
        Ok(encoded) => encoded,
        Err(error) => {
            assert!(!codec.lossless(), "{case}: a lossless codec takes any chunk, but: {error}");
            return;
        }
    };
    assert!(codec.encode(input, context).as_ref() == Ok(&encoded), "{case}: encoded in two ways");
    let decoded = decoded(case, codec, &encoded, input.len(), context);
    if codec.lossless() {
        assert!(decoded == input, "{case}: not what went in");
    } else {
        near(case, context, input, &decoded, power);
    }
}

/// A lossy codec's values are near; those of tokens with what is not finite come back bit for bit, and do not reach others.
fn near(case: &str, context: ChunkContext<'_>, input: &[u8], decoded: &[u8], power: f64) {
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
    let all = all.max(power);
    assert!(error <= all * MOST_ERROR * MOST_ERROR, "{case}: an error of {:.3}", (error / all).sqrt());
}
