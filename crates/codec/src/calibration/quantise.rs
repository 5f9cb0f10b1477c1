//! Eigenvectors as rows of whole numbers.

use super::basis::{Basis, MAX_ENTRY};

/// Rows of smaller deviation, in steps, are left out.
const LEAST_DEVIATION: f64 = 0.25;

/// What rounding an entry of a row may do to a value, in steps.
const ROUNDING: f64 = 0.004;

/// The coarsest rounding of a row, as a part of its entries' root mean square: with more the rows would no longer be nearly at right angles.
const COARSEST: f64 = 0.5;

/// The rows that are worth their bytes, as whole numbers: `entry(i, column)` is value i of an eigenvector, `variances` are
/// those of the columns, rising.
///
/// What rounding a row does to the vectors is in proportion to the row's deviation; so the rounding is in inverse proportion to it, and its
/// error the same for all. Rows whose deviation is far below the step are nearly always zero: they are left out.
pub(super) fn quantise(entry: impl Fn(usize, usize) -> f64, variances: &[f64], step: f64) -> Basis {
    let width = variances.len();
    let mut basis = Basis::new(width);
    for (column, &variance) in variances.iter().enumerate().rev() {
        let deviation = variance.max(0.0).sqrt();
        if deviation < step * LEAST_DEVIATION {
            break;
        }
        let most = (0..width).map(|i| entry(i, column).abs()).fold(0.0, f64::max);
        let unit = (step * ROUNDING / deviation).min(COARSEST / (width as f64).sqrt()).max(most / f64::from(MAX_ENTRY));
        let row: Vec<i16> = (0..width).map(|i| (entry(i, column) / unit).round() as i16).collect();
        if row.iter().any(|entry| *entry != 0) {
            basis.push(&row, (4.0 * deviation.log2()).round() as i16);
        }
    }
    basis
}
