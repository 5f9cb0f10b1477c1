//! A calibration for tests, of covariances that are known: cosines of falling variance, no weights; and KV caches of its model.

use std::sync::LazyLock;

use sira_tensor::DType;
use sira_tensor::kv::{Rope, RopeStyle};

use super::format::Content;
use super::heads::{Heads, directions};
use super::quantise::quantise;
use super::{Calibration, Kind, Model, RopeFacts, Unit, Weights, shapes};
use crate::kv::{self, Layout};
use crate::{Chain, ChunkContext, Encoded, KvFacts, TensorContext};

/// The calibration, good for steps down to `finest`.
pub(crate) fn calibration(model: Model, finest: f64) -> Calibration {
    let (dim, heads) = (model.dim as usize, (model.layers * model.heads) as usize);
    let width = heads * dim;
    let identity: Vec<f32> = (0..heads * dim * dim).map(|at| f32::from(u8::from(at / dim % dim == at % dim))).collect();
    let unit = |kind| Unit {
        kind,
        layers: 0..model.layers,
        mean: (0..width).map(|i| (i % 5) as f32 - 2.0).collect(),
        weights: (kind == Kind::Key).then(|| Weights { forward: identity.clone(), inverse: identity.clone() }),
        basis: quantise(|i, column| cosine(width, width - 1 - column, i), &variances(width), finest),
        heads: Heads::new(directions(|i, column| cosine(dim, dim - 1 - column, i), dim).repeat(heads), None, dim),
    };
    let units = vec![unit(Kind::Key), unit(Kind::Value)];
    Calibration::of(Content { model, tokens: 1, moments: None, shapes: shapes::fit::shapes(), units }).unwrap()
}

/// Rising.
fn variances(width: usize) -> Vec<f64> {
    (0..width).map(|i| 0.5f64.powi((width - 1 - i) as i32)).collect()
}

/// Value `i` of the orthonormal cosine number `k` (DCT-II).
fn cosine(width: usize, k: usize, i: usize) -> f64 {
    let scale = if k == 0 { 1.0 } else { 2.0 } / width as f64;
    scale.sqrt() * (std::f64::consts::PI * k as f64 * (i as f64 + 0.5) / width as f64).cos()
}

/// Vectors of the covariance and mean of a unit of such a calibration; keys are not rotated.
pub(crate) fn vectors(unit: &Unit, count: usize, seed: u64) -> Vec<Vec<f32>> {
    let width = unit.basis.width();
    let mut state = seed.wrapping_mul(2).wrapping_add(unit.kind as u64);
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f64 / f64::from(1 << 24)
    };
    let mut normal = || (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
    (0..count)
        .map(|_| {
            let factors: Vec<f64> = variances(width).iter().rev().map(|variance| normal() * variance.sqrt()).collect();
            let value = |i| factors.iter().enumerate().map(|(k, factor)| factor * cosine(width, k, i)).sum::<f64>();
            (0..width).map(|i| value(i) as f32 + unit.mean[i]).collect()
        })
        .collect()
}

/// Layers, KV heads and values of a head of the model that caches are of.
pub(crate) const LAYERS: usize = 2;
pub(crate) const HEADS: usize = 2;
pub(crate) const DIM: usize = 8;

/// That model.
pub(crate) fn model() -> Model {
    let rope = Some(RopeFacts { theta: 10_000.0, dim: DIM as u32, style: RopeStyle::Half });
    Model { name: "tiny".into(), revision: "1".into(), layers: LAYERS as u32, heads: HEADS as u32, dim: DIM as u32, rope }
}

static CALIBRATION: LazyLock<Calibration> = LazyLock::new(|| calibration(model(), 0.001));

/// A tensor `[layer, kv, token, head, dim]` and what is known of it.
pub(crate) struct Cache {
    pub tokens: u64,
    pub shape: [u64; 5],
    pub axes: Vec<String>,
    pub facts: KvFacts,
    pub calibration: Calibration,
}

impl Cache {
    pub(crate) fn new(tokens: u64) -> Cache {
        let rope = Rope { theta: 10_000.0, dim: DIM as u32, style: RopeStyle::Half, first_position: 0, scaling: Default::default() };
        Cache {
            tokens,
            shape: [LAYERS as u64, 2, tokens, HEADS as u64, DIM as u64],
            axes: ["layer", "kv", "token", "head", "dim"].map(str::to_owned).to_vec(),
            facts: KvFacts { model: None, rope: Some(rope), part: "data".into(), fields: Vec::new() },
            calibration: CALIBRATION.clone(),
        }
    }

    /// `stage`, named with the calibration.
    pub(crate) fn chain(&self, stage: &str) -> Chain {
        format!("{stage}@{}", self.calibration.hash()).parse().unwrap()
    }

    pub(crate) fn context<'a>(&'a self, dtype: DType, shape: &'a [u64; 5], origin: &'a [u64; 5]) -> ChunkContext<'a> {
        let tensor = TensorContext { shape: &self.shape, axes: &self.axes, kv: Some(&self.facts), calibration: Some(&self.calibration) };
        ChunkContext { dtype, shape, origin, tensor }
    }

    /// The whole tensor as one chunk, of the covariance that the calibration knows.
    pub(crate) fn values(&self, seed: u64) -> Vec<f32> {
        let tokens = self.tokens as usize;
        let vectors = [0, 1].map(|unit| vectors(&self.calibration.units()[unit], tokens, seed));
        let mut chunk = vec![0; self.shape.iter().product::<u64>() as usize * 4];
        let layout = Layout::of("test", self.context(DType::Float32, &self.shape, &[0; 5]), chunk.len()).unwrap();
        for matrix in layout.matrices() {
            let at = (matrix.layer as usize * HEADS + matrix.head as usize) * DIM;
            let mut rows: Vec<f32> =
                vectors[usize::from(matrix.kind == kv::Kind::V)].iter().flat_map(|vector| &vector[at..at + DIM]).copied().collect();
            if let Some(rotation) = layout.rotation(&matrix) {
                rotation.apply(&mut rows, DIM);
            }
            layout.write(&mut chunk, &matrix, 0..tokens, &rows);
        }
        chunk.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// Encodes and decodes the whole tensor as `float32`; the values and how many bytes were stored.
    pub(crate) fn round_trip(&self, stage: &str, values: &[f32]) -> (Vec<f32>, usize) {
        let context = self.context(DType::Float32, &self.shape, &[0; 5]);
        let chain = self.chain(stage);
        let Encoded::Bytes(stored) = chain.encode(&bytes(values), context).unwrap() else { panic!("larger than raw") };
        let decoded = chain.decode(&stored, values.len() * 4, context).unwrap();
        (decoded.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), stored.len())
    }
}

pub(crate) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Root mean square of the difference.
pub(crate) fn error(a: &[f32], b: &[f32]) -> f32 {
    (a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / a.len() as f32).sqrt()
}
