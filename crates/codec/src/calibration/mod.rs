//! What is learnt once of a model's KV caches: means, the weights of errors, bases, tables.
//!
//! A [`Calibration`] is an artefact: bytes of its own, named by their SHA-256 in the chains of what was encoded with it, without which
//! that cannot be decoded. `docs/format.md` describes the bytes, `docs/codecs.md` how good what comes out of it is.
//!
//! The method is that of KVTC (arXiv 2511.01815), one principal component analysis over all layers and heads, of K before its rotary
//! embedding and of V; and on top of it weights by what errors cost the model ([`Moments`]).

mod basis;
#[cfg(feature = "calibrate")]
mod document;
#[cfg(feature = "calibrate")]
mod fit;
mod format;
mod heads;
#[cfg(feature = "calibrate")]
mod moments;
mod product;
#[cfg(any(feature = "calibrate", test))]
mod quantise;
pub(crate) mod shapes;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tiny;

use std::ops::Range;

use sira_tensor::kv::RopeStyle;

pub(crate) use basis::Basis;
#[cfg(feature = "calibrate")]
pub use document::Document;
#[cfg(feature = "calibrate")]
pub use fit::{FitOptions, Fitter};
pub(crate) use format::flat;
pub(crate) use heads::{Heads, Transform};
#[cfg(feature = "calibrate")]
pub use moments::Moments;
use shapes::Shapes;

use crate::{ChunkContext, CodecError};

/// Whose KV caches a calibration is of.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The model, as its publisher names it; empty where nobody said.
    pub name: String,
    /// Its revision; empty where nobody said.
    pub revision: String,
    /// Layers.
    pub layers: u32,
    /// KV heads of a layer.
    pub heads: u32,
    /// Values of a head.
    pub dim: u32,
    /// The rotary embedding of K; `None` where K has none, or it is not known: K is then taken as it is.
    pub rope: Option<RopeFacts>,
}

/// A rotary embedding, as far as a calibration has to know it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeFacts {
    /// Base of the frequencies.
    pub theta: f64,
    /// Values of a head that are rotated.
    pub dim: u32,
    /// Which of them are pairs.
    pub style: RopeStyle,
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Keys, before their rotary embedding.
    Key,
    /// Values.
    Value,
}

/// What is learnt once of a model's KV caches.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    model: Model,
    /// Tokens that it was learnt from.
    tokens: u64,
    /// SHA-256 of the moments that gave the weights.
    moments: Option<[u8; 32]>,
    shapes: Shapes,
    units: Vec<Unit>,
    hash: String,
}

/// The keys or the values of neighbouring layers, which are transformed together.
///
/// Vectors of a unit are of one token: `[layer][head][dim]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    pub kind: Kind,
    pub layers: Range<u32>,
    /// Mean of the vectors.
    pub mean: Vec<f32>,
    pub weights: Option<Weights>,
    /// Of weighted vectors without their mean.
    pub basis: Basis,
    /// The same of each head alone; artefacts of the first version have none.
    pub heads: Option<Heads>,
}

/// Symmetric matrices `[layer][head][dim][dim]` that head vectors are multiplied with before the transform, and after its inverse.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weights {
    pub forward: Vec<f32>,
    pub inverse: Vec<f32>,
}

impl Calibration {
    /// The most bytes of a calibration.
    pub const MAX_LEN: usize = 1 << 30;

    /// The SHA-256 of its bytes in 64 hexadecimal digits: its name.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whose KV caches it is of.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens that it was learnt from.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// SHA-256 of the moments that gave the weights; `None` where errors are not weighted.
    pub fn moments(&self) -> Option<&[u8; 32]> {
        self.moments.as_ref()
    }

    /// Components that are kept of keys and values, all units together.
    pub fn rank(&self, kind: Kind) -> usize {
        self.units.iter().filter(|unit| unit.kind == kind).map(|unit| unit.basis.rank()).sum()
    }

    /// The mean of a head's vectors, `dim` values; `None` where the model has no such layer or head.
    pub fn mean(&self, kind: Kind, layer: u32, head: u32) -> Option<&[f32]> {
        let (unit, at) = self.head(kind, layer, head)?;
        let dim = self.model.dim as usize;
        unit.mean.get(at * dim..(at + 1) * dim)
    }

    /// The matrix (`dim` rows of `dim` values, symmetric) that makes errors in a head's vectors count as they cost the model; `None` where
    /// the model has no such layer or head, or the calibration no weights.
    pub fn weights(&self, kind: Kind, layer: u32, head: u32) -> Option<&[f32]> {
        let (unit, at) = self.head(kind, layer, head)?;
        let square = (self.model.dim as usize).pow(2);
        unit.weights.as_ref()?.forward.get(at * square..(at + 1) * square)
    }

    /// The transform of a head by itself; `None` where the model has no such layer or head, or the calibration is of the first version.
    pub(crate) fn transform(&self, kind: Kind, layer: u32, head: u32) -> Option<Transform<'_>> {
        let (unit, at) = self.head(kind, layer, head)?;
        unit.heads.as_ref()?.transform(at, self.mean(kind, layer, head)?)
    }

    /// The calibration that a chunk comes with, which has to be the one that `codec` was named with.
    pub(crate) fn named<'a>(codec: &'static str, hash: &str, context: ChunkContext<'a>) -> Result<&'a Calibration, CodecError> {
        let known = context.tensor.calibration.filter(|calibration| calibration.hash() == hash);
        known.ok_or_else(|| CodecError::NoCalibration { codec, hash: hash.to_owned() })
    }

    /// Whether the rotary embedding of the model's keys is what is known of a chunk's, where both are known.
    pub(crate) fn rope_fits(&self, context: ChunkContext<'_>) -> bool {
        let chunk = context.tensor.kv.and_then(|kv| kv.rope.as_ref());
        let (Some(chunk), Some(model)) = (chunk, self.model.rope) else { return true };
        (chunk.theta, chunk.dim, chunk.style) == (model.theta, model.dim, model.style)
    }

    /// The unit that a head belongs to, and which of its heads it is.
    fn head(&self, kind: Kind, layer: u32, head: u32) -> Option<(&Unit, usize)> {
        let unit = self.units.iter().find(|unit| unit.kind == kind && unit.layers.contains(&layer))?;
        (head < self.model.heads).then(|| (unit, ((layer - unit.layers.start) * self.model.heads + head) as usize))
    }

    pub(crate) fn units(&self) -> &[Unit] {
        &self.units
    }

    pub(crate) fn shapes(&self) -> &Shapes {
        &self.shapes
    }
}

/// The inverse of a symmetric positive definite matrix of `dim` rows, by elimination in `f64`; `None` where it has none.
fn inverse(matrix: &[f32], dim: usize) -> Option<Vec<f32>> {
    let mut left: Vec<f64> = matrix.iter().map(|&value| f64::from(value)).collect();
    let mut right = vec![0.0; dim * dim];
    (0..dim).for_each(|i| right[i * dim + i] = 1.0);
    for i in 0..dim {
        let pivot = left[i * dim + i];
        if pivot <= 0.0 || !pivot.is_finite() {
            return None;
        }
        let (left_row, right_row): (Vec<f64>, Vec<f64>) = (0..dim).map(|j| (left[i * dim + j] / pivot, right[i * dim + j] / pivot)).unzip();
        for row in 0..dim {
            let factor = if row == i { continue } else { left[row * dim + i] };
            for j in 0..dim {
                left[row * dim + j] -= factor * left_row[j];
                right[row * dim + j] -= factor * right_row[j];
            }
        }
        left[i * dim..][..dim].copy_from_slice(&left_row);
        right[i * dim..][..dim].copy_from_slice(&right_row);
    }
    // Symmetric to the last bit, which the elimination is not.
    let inverse = (0..dim * dim).map(|at| ((right[at] + right[at % dim * dim + at / dim]) / 2.0) as f32).collect::<Vec<_>>();
    inverse.iter().all(|value| value.is_finite()).then_some(inverse)
}
