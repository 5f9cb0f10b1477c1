//! A calibration for tests, of covariances that are known: cosines of falling variance, no weights.

use super::format::Content;
use super::quantise::quantise;
use super::{Calibration, Kind, Model, Unit, Weights, shapes};

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
