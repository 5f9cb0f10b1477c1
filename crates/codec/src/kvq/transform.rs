//! With a calibration: components of heads in place of their channels.

use crate::ChunkContext;
use crate::calibration::{self, Calibration, Transform};
use crate::kv::{Kind, Layout, Matrix};
use crate::linear::{self, Vectors};

/// Components of this size and more are none that the step can be meant for: their tokens are kept exactly. Far below what whole numbers hold at
/// the finest step, and far beyond what a model makes.
pub(super) const FAR: f32 = 8192.0;

/// The transforms of a chunk's matrices, in their order: none without a calibration. Why the chunk is not one of the calibration's model, if so.
pub(super) fn transforms<'a>(
    layout: &Layout<'_>,
    context: ChunkContext<'_>,
    calibration: Option<&'a Calibration>,
) -> Result<Vec<Option<Transform<'a>>>, String> {
    let Some(calibration) = calibration else { return Ok(vec![None; layout.count()]) };
    if calibration.units().iter().any(|unit| unit.heads.is_none()) {
        return Err("a calibration with bases of heads; that one was made by an earlier version, for kvtc alone".to_owned());
    }
    if !calibration.rope_fits(context) {
        return Err("the rotary embedding of the calibration's keys; that of the chunk is another".to_owned());
    }
    layout.matrices().map(|matrix| transform(layout, &matrix, calibration).map(Some)).collect()
}

fn transform<'a>(layout: &Layout<'_>, matrix: &Matrix, calibration: &'a Calibration) -> Result<Transform<'a>, String> {
    let model = calibration.model();
    let kind = match matrix.kind {
        Kind::K if layout.rotation(matrix).is_some() != model.rope.is_some() => {
            return Err("keys whose rotary embedding is known if the calibration's had one, and only then".to_owned());
        }
        Kind::K => calibration::Kind::Key,
        Kind::V => calibration::Kind::Value,
        Kind::Other => return Err("keys and values that are told apart, by an axis kv, names of parts or a kv spec".to_owned()),
    };
    let [layer, head] = [matrix.layer, matrix.head].map(|index| u32::try_from(index).unwrap_or(u32::MAX));
    let known = calibration.transform(kind, layer, head).filter(|_| matrix.dim == model.dim as usize && matrix.first_dim == 0);
    known.ok_or_else(|| {
        let (layers, heads, dim) = (model.layers, model.heads, model.dim);
        format!(
            "layers below {layers}, heads below {heads}, whole and of {dim} values; it has head {head} of layer {layer}, {} values",
            matrix.dim
        )
    })
}

impl Transform<'_> {
    /// The components of rows of values.
    pub(super) fn components(&self, mut values: Vec<f32>) -> Vec<f32> {
        let dim = self.mean.len();
        for row in values.chunks_exact_mut(dim) {
            row.iter_mut().zip(self.mean).for_each(|(value, mean)| *value -= mean);
        }
        let (mut components, zeros) = (vec![0.0; values.len()], vec![0.0; dim]);
        let rows = Vectors { numbers: &values, vector: dim, number: 1 };
        linear::multiply(rows, values.len() / dim, self.analysis, &zeros, &mut components, dim);
        components
    }
}

/// What is decoded of a head's components, until it becomes values.
#[derive(Debug, Default)]
pub(super) struct Components {
    /// Mean of the values, and what components add that are the same for all tokens.
    base: Vec<f32>,
    /// The others, each of all tokens.
    numbers: Vec<f32>,
    /// What one unit of each of them adds to the values.
    rows: Vec<f32>,
}

impl Components {
    /// Begins with a head.
    pub(super) fn begin(&mut self, transform: &Transform<'_>) {
        self.base.clear();
        self.base.extend_from_slice(transform.mean);
        self.numbers.clear();
        self.rows.clear();
    }

    /// Takes component `i`, which is `value` for all tokens.
    pub(super) fn constant(&mut self, transform: &Transform<'_>, i: usize, value: f32) {
        let row = &transform.synthesis[i * self.base.len()..];
        self.base.iter_mut().zip(row).for_each(|(sum, entry)| *sum += value * entry);
    }

    /// Room for component `i` of so many tokens.
    pub(super) fn room(&mut self, transform: &Transform<'_>, i: usize, tokens: usize) -> &mut [f32] {
        let dim = self.base.len();
        self.rows.extend_from_slice(&transform.synthesis[i * dim..][..dim]);
        let start = self.numbers.len();
        self.numbers.resize(start + tokens, 0.0);
        &mut self.numbers[start..]
    }

    /// The values of `count` tokens, of all `tokens`, from number `first` on.
    pub(super) fn values(&self, tokens: usize, first: usize, count: usize, out: &mut [f32]) {
        let numbers = Vectors { numbers: self.numbers.get(first..).unwrap_or_default(), vector: 1, number: tokens };
        linear::multiply(numbers, count, &self.rows, &self.base, out, self.base.len());
    }
}
