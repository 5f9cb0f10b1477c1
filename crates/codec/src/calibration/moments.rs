//! What errors in K and V cost a model.

use faer::{Mat, MatRef, Side};
use sha2::{Digest, Sha256};

use super::Model;
use crate::CodecError;

/// Eigenvalues of a metric count at least this much of the largest.
const FLOOR: f64 = 1e-3;

/// The share of a value's variance that an error in the scores of attention moves; found by measurement on one model.
const SHARE: f64 = 1.0 / 3.0;

/// Second moments of a model's queries and output projections: what turns errors in K and V into errors of the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    layers: usize,
    heads: usize,
    dim: usize,
    k_metric: Vec<f32>,
    v_metric: Vec<f32>,
    residual: Vec<f32>,
}

/// A symmetric matrix as its eigenvectors (columns) and eigenvalues; the latter rising.
struct Eigen {
    vectors: Mat<f64>,
    values: Vec<f64>,
}

impl Moments {
    /// Moments of `[layers, heads, dim]`.
    ///
    /// - `k_metric`, `[layer][head][dim][dim]`: E[q qᵀ] over the queries that read a KV head, as a key without its rotary embedding sees them:
    ///   rotated by their distance to the key, averaged over distances;
    /// - `v_metric`, the same shape: the sum of W Wᵀ over the query heads that read a KV head, W the head's rows of the output projection;
    /// - `residual`, `[layer]`: the mean squared norm of the residual stream that enters a layer.
    ///
    /// # Errors
    /// Lengths that do not fit; numbers that are not finite; a residual stream of nothing.
    pub fn new([layers, heads, dim]: [u32; 3], k_metric: Vec<f32>, v_metric: Vec<f32>, residual: Vec<f32>) -> Result<Moments, CodecError> {
        let bad = |reason: String| Err(CodecError::encode("moments", reason));
        let count = [heads, dim, dim].iter().fold(layers as usize, |product, &n| product.saturating_mul(n as usize));
        for (name, values, expected) in
            [("k_metric", &k_metric, count), ("v_metric", &v_metric, count), ("residual", &residual, layers as usize)]
        {
            if values.len() != expected {
                return bad(format!("{name} has {} values, not the {expected} of {layers} layers, {heads} heads of {dim}", values.len()));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return bad(format!("{name} has {value} in it"));
            }
        }
        if residual.iter().any(|&value| value <= 0.0) {
            return bad("residual has a layer without any".to_owned());
        }
        Ok(Moments { layers: layers as usize, heads: heads as usize, dim: dim as usize, k_metric, v_metric, residual })
    }

    /// SHA-256 of the numbers, little-endian: `k_metric`, `v_metric`, `residual`.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for values in [&self.k_metric, &self.v_metric, &self.residual] {
            values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
        hash.finalize().into()
    }

    /// Whether they are of this model.
    pub(super) fn check(&self, model: &Model) -> Result<(), CodecError> {
        let (found, expected) = ([self.layers, self.heads, self.dim], [model.layers, model.heads, model.dim].map(|n| n as usize));
        if found != expected {
            let reason = format!("of {found:?} layers, heads and values, not the model's {expected:?}");
            return Err(CodecError::encode("moments", reason));
        }
        Ok(())
    }

    /// The inverse of the weight of values: an error of one in the weighted vector is one residual stream. Row-major.
    pub(super) fn value_inverse(&self, layer: usize, head: usize) -> Result<Vec<f32>, CodecError> {
        let eigen = eigen(self.metric(&self.v_metric, layer, head))?;
        Ok(inverse_root(&eigen, 1.0 / f64::from(self.residual[layer])))
    }

    /// The inverse of the weight of keys, given the covariance of the same head's values: an error in a key moves scores by q · error / sqrt(dim), and
    /// they move the output by a share of the values' spread.
    pub(super) fn key_inverse(&self, layer: usize, head: usize, values: MatRef<'_, f64>) -> Result<Vec<f32>, CodecError> {
        let metric = self.metric(&self.v_metric, layer, head);
        let spread: f64 =
            (0..self.dim).flat_map(|i| (0..self.dim).map(move |j| (i, j))).map(|(i, j)| metric[(i, j)] * values[(i, j)]).sum();
        let scale = spread.max(f64::MIN_POSITIVE) * SHARE / (self.dim as f64 * f64::from(self.residual[layer]));
        Ok(inverse_root(&eigen(self.metric(&self.k_metric, layer, head))?, scale))
    }

    fn metric(&self, all: &[f32], layer: usize, head: usize) -> Mat<f64> {
        let first = (layer * self.heads + head) * self.dim * self.dim;
        Mat::from_fn(self.dim, self.dim, |i, j| {
            let (a, b) = (all[first + i * self.dim + j], all[first + j * self.dim + i]);
            (f64::from(a) + f64::from(b)) / 2.0
        })
    }
}

fn eigen(matrix: Mat<f64>) -> Result<Eigen, CodecError> {
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(|error| CodecError::encode("moments", format!("{error:?}")))?;
    Ok(Eigen { vectors: eigen.U().to_owned(), values: eigen.S().column_vector().iter().copied().collect() })
}

/// (`scale` M)^(-1/2), M of these eigenvectors, its smallest eigenvalues raised.
fn inverse_root(eigen: &Eigen, scale: f64) -> Vec<f32> {
    let dim = eigen.values.len();
    let least = eigen.values.last().map_or(0.0, |most| most * FLOOR).max(f64::MIN_POSITIVE);
    let roots: Vec<f64> = eigen.values.iter().map(|value| 1.0 / (value.max(least) * scale).sqrt()).collect();
    let entry = |i: usize, j: usize| {
        roots.iter().enumerate().map(|(k, root)| eigen.vectors[(i, k)] * root * eigen.vectors[(j, k)]).sum::<f64>() as f32
    };
    (0..dim * dim).map(|at| entry((at / dim).max(at % dim), (at / dim).min(at % dim))).collect()
}
