//! Bases of single heads, for codecs that see heads apart.

use super::{Weights, inverse};

/// An entry of a direction is a whole number of one over so many times the root of its length. Coarser ones would leave more in common between
/// components; what is decoded would not be further off, since encoders invert the rounded ones.
#[cfg(any(feature = "calibrate", test))]
const FINENESS: f64 = 50.0;

/// Transforms of the heads of a unit, one after the other, each `dim` rows of `dim` values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Heads {
    /// Directions of the components of weighted vectors, the one of the largest variance first.
    rows: Vec<i16>,
    /// Row `i` is what one unit of component `i` adds to a head's vector.
    synthesis: Vec<f32>,
    /// The inverse: row `i` is what one unit of value `i` adds to the components.
    analysis: Vec<f32>,
}

/// What is known of one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transform<'a> {
    /// Mean of the head's vectors.
    pub mean: &'a [f32],
    /// Row `i` is what one unit of component `i` adds to a vector.
    pub synthesis: &'a [f32],
    /// Row `i` is what one unit of value `i` adds to the components.
    pub analysis: &'a [f32],
}

impl Heads {
    /// Heads of these directions; `None` where a head's are not `dim` different ones.
    pub(crate) fn new(rows: Vec<i16>, weights: Option<&Weights>, dim: usize) -> Option<Heads> {
        let identity: Vec<f32> = (0..dim * dim).map(|at| f32::from(u8::from(at / dim == at % dim))).collect();
        let mut heads = Heads { synthesis: Vec::with_capacity(rows.len()), analysis: Vec::with_capacity(rows.len()), rows };
        for (head, rows) in heads.rows.chunks_exact(dim * dim).enumerate() {
            let weight = |all: &[f32]| all[head * dim * dim..][..dim * dim].to_vec();
            let (forward, back) = match weights {
                Some(weights) => (weight(&weights.forward), weight(&weights.inverse)),
                None => (identity.clone(), identity.clone()),
            };
            let directions: Vec<f64> = rows.chunks_exact(dim).flat_map(unit_vector).collect();
            let across = transposed(&directions, dim);
            // Nearly the identity: directions of principal components are at right angles, but for their rounding.
            let angles: Vec<f32> = times(&directions, &across, dim).iter().map(|value| *value as f32).collect();
            let angles = inverse(&angles, dim)?;
            let wide = |matrix: &[f32]| matrix.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
            let (synthesis, half) = (times(&directions, &wide(&back), dim), times(&wide(&forward), &across, dim));
            let analysis = times(&half, &wide(&angles), dim);
            if !synthesis.iter().chain(&analysis).all(|value| (*value as f32).is_finite()) {
                return None;
            }
            heads.synthesis.extend(synthesis.iter().map(|value| *value as f32));
            heads.analysis.extend(analysis.iter().map(|value| *value as f32));
        }
        Some(heads)
    }

    /// The directions of all heads, as whole numbers.
    pub(crate) fn rows(&self) -> &[i16] {
        &self.rows
    }

    /// The transform of head number `head`, whose vectors have this mean.
    pub(crate) fn transform<'a>(&'a self, head: usize, mean: &'a [f32]) -> Option<Transform<'a>> {
        let all = head * mean.len().pow(2)..(head + 1) * mean.len().pow(2);
        Some(Transform { mean, synthesis: self.synthesis.get(all.clone())?, analysis: self.analysis.get(all)? })
    }
}

/// Eigenvectors as directions of whole numbers: `entry(i, column)` is value `i` of one, and variances rise from column to column.
#[cfg(any(feature = "calibrate", test))]
pub(super) fn directions(entry: impl Fn(usize, usize) -> f64, dim: usize) -> Vec<i16> {
    let unit = FINENESS * (dim as f64).sqrt();
    let row = |column: usize| (0..dim).map(move |i| (i, column));
    (0..dim).rev().flat_map(row).map(|(i, column)| (entry(i, column) * unit).round() as i16).collect()
}

/// A row divided by its length, in `f64`; not numbers where it is all zeros.
fn unit_vector(row: &[i16]) -> impl Iterator<Item = f64> + '_ {
    let square: i64 = row.iter().map(|&entry| i64::from(entry) * i64::from(entry)).sum();
    let length = (square as f64).sqrt();
    row.iter().map(move |&entry| f64::from(entry) / length)
}

fn transposed(matrix: &[f64], dim: usize) -> Vec<f64> {
    (0..dim * dim).map(|at| matrix[at % dim * dim + at / dim]).collect()
}

/// The product of two square matrices, rounded in the same way on every machine.
fn times(left: &[f64], right: &[f64], dim: usize) -> Vec<f64> {
    let mut product = vec![0.0; dim * dim];
    for (sums, left) in product.chunks_exact_mut(dim).zip(left.chunks_exact(dim)) {
        for (value, right) in left.iter().zip(right.chunks_exact(dim)) {
            sums.iter_mut().zip(right).for_each(|(sum, entry)| *sum += value * entry);
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn analysis_undoes_synthesis_whatever_the_rounding_of_directions() {
        const DIM: usize = 3;
        let weight = vec![2.0, 0.5, 0.0, 0.5, 1.0, 0.25, 0.0, 0.25, 3.0];
        let weights = Weights { forward: weight.clone(), inverse: inverse(&weight, DIM).unwrap() };
        // Far from right angles.
        let heads = Heads::new(vec![5, 1, 0, -1, 4, 2, 0, -1, 6], Some(&weights), DIM).unwrap();
        let transform = heads.transform(0, &[0.0; DIM]).unwrap();
        let wide = |matrix: &[f32]| matrix.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
        let product = times(&wide(transform.synthesis), &wide(transform.analysis), DIM);
        assert!(product.iter().enumerate().all(|(at, value)| (value - f64::from(u8::from(at % 4 == 0))).abs() < 1e-5), "{product:?}");
        assert!(heads.transform(1, &[0.0; DIM]).is_none());
        for wrong in [vec![0; 9], vec![1, 2, 3, 2, 4, 6, 0, 0, 1]] {
            assert_eq!(Heads::new(wrong, None, DIM), None);
        }
    }

    #[test]
    fn directions_are_as_fine_as_their_length_asks() {
        let rows = directions(|i, column| if i == column { 1.0 } else { 0.0 }, 4);
        assert_eq!(rows, [0, 0, 0, 100, 0, 0, 100, 0, 0, 100, 0, 0, 100, 0, 0, 0]);
    }
}
