//! Learning a calibration from documents.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, Par, Side, get_global_parallelism};

use super::format::Content;
use super::heads::{Heads, directions};
use super::quantise::quantise;
use super::{Calibration, Kind, Model, Moments, Unit, Weights, inverse, shapes};
use crate::CodecError;

/// Rows of a covariance that are added to at a time.
const ROWS: usize = 512;

/// Deviation of weighted values, root mean square, where there are no moments to say what errors cost. About what moments make of a model,
/// so that the same step means a similar quality.
const UNWEIGHTED: f64 = 0.04;

/// What a calibration is to be good for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitOptions {
    /// The finest step, in weighted units, that the basis has to be good enough for. Finer ones cost bytes of the artefact, about a bit
    /// of every entry for half the step.
    pub finest_step: f32,
    /// Values of the vectors that are transformed together, at most: layers are cut into groups accordingly. Memory for fitting and the
    /// artefact grow with its square, time with its cube.
    pub max_width: usize,
}

impl Default for FitOptions {
    fn default() -> FitOptions {
        FitOptions { finest_step: 0.0035, max_width: 8192 }
    }
}

/// Learns a [`Calibration`] from KV caches that are given one after the other.
///
/// Holds one covariance matrix of `f64` for each group of layers, of keys and of values, however many tokens it is given: for 30 layers of 3
/// heads of 64 values twice 265 MB; and as much twice again while it finishes. The result depends on the documents, their order
/// and the kind of machine, on nothing else.
#[derive(Debug)]
pub struct Fitter {
    model: Model,
    moments: Option<Moments>,
    options: FitOptions,
    groups: Vec<Group>,
    tokens: u64,
}

/// Sums over the tokens seen, of one unit to be.
#[derive(Debug)]
struct Group {
    kind: Kind,
    first: u32,
    layers: u32,
    width: usize,
    /// Subtracted from all vectors, so that sums of squares are of small numbers.
    pivot: Vec<f64>,
    sum: Vec<f64>,
    /// The lower triangle of the sum of squares.
    squares: Mat<f64>,
}

impl Fitter {
    /// A fitter for `model`; `moments` weigh errors by what they cost, without them each layer counts the same.
    ///
    /// # Errors
    /// Moments of another model; a model without layers, heads or values; no memory.
    pub fn new(model: Model, moments: Option<Moments>, options: FitOptions) -> Result<Fitter, CodecError> {
        let layer = (model.heads as usize).saturating_mul(model.dim as usize);
        if model.layers == 0 || layer == 0 || layer > options.max_width {
            let reason = format!("{} layers of {layer} values; at least one, of 1 to {}, can be fitted", model.layers, options.max_width);
            return Err(CodecError::encode("calibration", reason));
        }
        if !(options.finest_step.is_finite() && options.finest_step > 0.0) {
            return Err(CodecError::encode("calibration", format!("a finest step of {}", options.finest_step)));
        }
        if let Some(moments) = &moments {
            moments.check(&model)?;
        }
        let most = (options.max_width / layer).min(model.layers as usize) as u32;
        // As even as can be: 30 layers in groups of at most 20 are 15 and 15.
        let count = model.layers.div_ceil(most);
        let bounds = |i: u32| (u64::from(model.layers) * u64::from(i) / u64::from(count)) as u32;
        let mut groups = Vec::new();
        for kind in [Kind::Key, Kind::Value] {
            groups.extend((0..count).map(|i| Group::new(kind, bounds(i), bounds(i + 1) - bounds(i), layer)));
        }
        Ok(Fitter { model, moments, options, groups, tokens: 0 })
    }

    /// Adds the tokens of a document: `keys`, without their rotary embedding, and `values`, both `[token][layer][head][dim]`.
    ///
    /// Leave out the first few tokens and, if they will be stored exactly, the last: their statistics are not those of the others.
    ///
    /// # Errors
    /// Lengths that are not whole tokens or differ; numbers that are not finite.
    pub fn add(&mut self, keys: &[f32], values: &[f32]) -> Result<(), CodecError> {
        let token = self.model.layers as usize * self.model.heads as usize * self.model.dim as usize;
        if keys.len() != values.len() || !keys.len().is_multiple_of(token) {
            let reason = format!("{} and {} values of keys and values; both have {token} a token", keys.len(), values.len());
            return Err(CodecError::encode("calibration", reason));
        }
        if keys.iter().chain(values).any(|value| !value.is_finite()) {
            return Err(CodecError::encode("calibration", "a document with numbers that are not finite"));
        }
        for group in &mut self.groups {
            let all = if group.kind == Kind::Key { keys } else { values };
            group.add(all, token, self.model.heads as usize * self.model.dim as usize);
        }
        self.tokens += (keys.len() / token) as u64;
        Ok(())
    }

    /// Tokens added so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The calibration. `progress` is called with how many of how many steps are done; each takes minutes on a large model.
    ///
    /// # Errors
    /// No tokens were added; numbers that no eigenvectors were found for.
    pub fn finish(mut self, progress: &mut dyn FnMut(usize, usize)) -> Result<Calibration, CodecError> {
        if self.tokens == 0 {
            return Err(CodecError::encode("calibration", "no tokens to learn from"));
        }
        let groups = std::mem::take(&mut self.groups);
        let spreads = self.spreads(&groups)?;
        let steps = groups.len();
        progress(0, steps);
        let mut units = Vec::new();
        for (group, inverses) in groups.into_iter().zip(spreads) {
            units.push(self.unit(group, inverses)?);
            progress(units.len(), steps);
        }
        let (moments, shapes) = (self.moments.as_ref().map(Moments::digest), shapes::fit::shapes());
        Calibration::of(Content { model: self.model, tokens: self.tokens, moments, shapes, units })
    }

    /// The inverse weights of each group's heads.
    fn spreads(&self, groups: &[Group]) -> Result<Vec<Vec<f32>>, CodecError> {
        let (heads, dim) = (self.model.heads as usize, self.model.dim as usize);
        let tokens = self.tokens as f64;
        let values = |layer: u32| groups.iter().find(|group| group.kind == Kind::Value && group.has(layer));
        groups
            .iter()
            .map(|group| {
                let mut inverses = Vec::new();
                for layer in group.first..group.first + group.layers {
                    let values = values(layer).unwrap_or(group);
                    for head in 0..heads {
                        let inverse = match (&self.moments, group.kind) {
                            (Some(moments), Kind::Key) => {
                                let at = ((layer - values.first) as usize * heads + head) * dim;
                                moments.key_inverse(layer as usize, head, values.block(at, dim, tokens).as_ref())?
                            }
                            (Some(moments), Kind::Value) => moments.value_inverse(layer as usize, head)?,
                            (None, _) => {
                                let at = (layer - group.first) as usize * heads * dim;
                                scaled(dim, group.variance(at, heads * dim, tokens).sqrt() / UNWEIGHTED)
                            }
                        };
                        inverses.extend(inverse);
                    }
                }
                Ok(inverses)
            })
            .collect()
    }

    fn unit(&self, group: Group, inverse_weights: Vec<f32>) -> Result<Unit, CodecError> {
        let dim = self.model.dim as usize;
        let mut forward = Vec::with_capacity(inverse_weights.len());
        for matrix in inverse_weights.chunks_exact(dim * dim) {
            let weight = inverse(matrix, dim);
            forward.extend(weight.ok_or_else(|| CodecError::encode("calibration", "moments without an inverse"))?);
        }
        let weights = Weights { forward, inverse: inverse_weights };
        let (kind, layers) = (group.kind, group.first..group.first + group.layers);
        let mean = group.mean(self.tokens as f64);
        let covariance = group.weighted(&weights.forward, dim, self.tokens as f64);
        let heads = of_heads(&covariance, &weights, dim)?;
        let eigen = covariance.self_adjoint_eigen(Side::Lower).map_err(|error| CodecError::encode("calibration", format!("{error:?}")))?;
        let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
        let basis = quantise(|i, column| eigen.U()[(i, column)], &values, f64::from(self.options.finest_step));
        Ok(Unit { kind, layers, mean, weights: Some(weights), basis, heads: Some(heads) })
    }
}

/// The principal components of each head alone, of the covariance of all.
fn of_heads(covariance: &Mat<f64>, weights: &Weights, dim: usize) -> Result<Heads, CodecError> {
    let mut rows = Vec::new();
    for at in (0..covariance.nrows()).step_by(dim) {
        let head = covariance.as_ref().submatrix(at, at, dim, dim);
        let eigen = head.self_adjoint_eigen(Side::Lower).map_err(|error| CodecError::encode("calibration", format!("{error:?}")))?;
        rows.extend(directions(|i, column| eigen.U()[(i, column)], dim));
    }
    Heads::new(rows, Some(weights), dim)
        .ok_or_else(|| CodecError::encode("calibration", "moments that are too large or too small for a basis"))
}

impl Group {
    fn new(kind: Kind, first: u32, layers: u32, layer: usize) -> Group {
        let width = layers as usize * layer;
        Group { kind, first, layers, width, pivot: Vec::new(), sum: vec![0.0; width], squares: Mat::zeros(width, width) }
    }

    fn has(&self, layer: u32) -> bool {
        (self.first..self.first + self.layers).contains(&layer)
    }

    fn add(&mut self, all: &[f32], token: usize, layer: usize) {
        let first = self.first as usize * layer;
        let vectors = || all.chunks_exact(token).map(|token| &token[first..first + self.width]);
        let count = all.len() / token;
        if self.pivot.is_empty() {
            let mean = |i: usize| vectors().map(|vector| f64::from(vector[i])).sum::<f64>() / count.max(1) as f64;
            self.pivot = (0..self.width).map(mean).collect();
        }
        let mut matrix = Mat::zeros(self.width, count);
        for (t, vector) in vectors().enumerate() {
            for (i, ((sum, value), pivot)) in self.sum.iter_mut().zip(vector).zip(&self.pivot).enumerate() {
                let value = f64::from(*value) - pivot;
                *sum += value;
                matrix[(i, t)] = value;
            }
        }
        for row in (0..self.width).step_by(ROWS) {
            let rows = ROWS.min(self.width - row);
            let part: MatMut<'_, f64> = self.squares.as_mut().submatrix_mut(row, 0, rows, row + rows);
            let (left, right) = (matrix.as_ref().subrows(row, rows), matrix.as_ref().subrows(0, row + rows));
            matmul(part, Accum::Add, left, right.transpose(), 1.0, get_global_parallelism());
        }
    }

    fn mean(&self, tokens: f64) -> Vec<f32> {
        self.pivot.iter().zip(&self.sum).map(|(pivot, sum)| (pivot + sum / tokens) as f32).collect()
    }

    fn covariance(&self, i: usize, j: usize, tokens: f64) -> f64 {
        self.squares[(i.max(j), i.min(j))] / tokens - self.sum[i] * self.sum[j] / (tokens * tokens)
    }

    /// Covariance of `dim` values from `at`.
    fn block(&self, at: usize, dim: usize, tokens: f64) -> Mat<f64> {
        Mat::from_fn(dim, dim, |i, j| self.covariance(at + i, at + j, tokens))
    }

    /// Mean variance of `count` values from `at`.
    fn variance(&self, at: usize, count: usize, tokens: f64) -> f64 {
        (at..at + count).map(|i| self.covariance(i, i, tokens)).sum::<f64>() / count as f64
    }

    /// The covariance of weighted vectors; its lower triangle counts.
    fn weighted(self, forward: &[f32], dim: usize, tokens: f64) -> Mat<f64> {
        let mut covariance = Mat::zeros(self.width, self.width);
        let weights: Vec<Mat<f64>> =
            forward.chunks_exact(dim * dim).map(|matrix| Mat::from_fn(dim, dim, |i, j| f64::from(matrix[i * dim + j]))).collect();
        for (a, left) in weights.iter().enumerate() {
            for (b, right) in weights.iter().enumerate().take(a + 1) {
                let block = Mat::from_fn(dim, dim, |i, j| self.covariance(a * dim + i, b * dim + j, tokens));
                let half = left * block;
                let part = covariance.as_mut().submatrix_mut(a * dim, b * dim, dim, dim);
                matmul(part, Accum::Replace, half.as_ref(), right.as_ref(), 1.0, Par::Seq);
            }
        }
        covariance
    }
}

/// `factor` times the identity; for a layer without any spread, as it is.
fn scaled(dim: usize, factor: f64) -> Vec<f32> {
    let factor = if factor > 0.0 { factor as f32 } else { 1.0 };
    (0..dim * dim).map(|at| if at / dim == at % dim { factor } else { 0.0 }).collect()
}
