//! Bases of whole numbers: what is stored of the principal components, and the products with them.

use crate::CodecError;

use super::product;

/// The largest entry of a row, either sign: what is left of it above four low bits has a symbol.
pub(crate) const MAX_ENTRY: i16 = 2031;

/// The directions that a unit's coefficients belong to, in order of falling variance.
///
/// Each is a row of whole numbers that stands for the unit vector of the same direction. All products with them are of whole numbers
/// too, so they come out the same on every machine, in whatever order a vector unit adds.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Basis {
    width: usize,
    /// Row after row, each padded with zeros to `stride`.
    rows: Vec<i16>,
    stride: usize,
    /// The standard deviation of each row's coefficients, in quarters of an octave: 2^(level / 4).
    levels: Vec<i16>,
}

impl std::fmt::Debug for Basis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Basis").field("width", &self.width).field("rank", &self.levels.len()).finish_non_exhaustive()
    }
}

impl Basis {
    /// An empty basis of vectors of `width` values.
    pub(crate) fn new(width: usize) -> Basis {
        Basis { width, rows: Vec::new(), stride: width.next_multiple_of(product::BLOCK), levels: Vec::new() }
    }

    /// Takes memory for `rank` rows.
    pub(crate) fn reserve(&mut self, rank: usize) -> Result<(), CodecError> {
        self.rows.try_reserve_exact(rank * self.stride).map_err(|_| CodecError::encode("calibration", "no memory for the basis"))
    }

    /// Adds a row of `width` entries within [`MAX_ENTRY`], not all zero.
    pub(crate) fn push(&mut self, row: &[i16], level: i16) {
        debug_assert_eq!(row.len(), self.width);
        self.rows.extend_from_slice(row);
        self.rows.resize(self.rows.len().next_multiple_of(self.stride), 0);
        self.levels.push(level);
    }

    /// Values of a vector.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Values from one vector's beginning to the next one's in the arrays that products take: `width` and some zeros.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// How many rows there are.
    pub(crate) fn rank(&self) -> usize {
        self.levels.len()
    }

    /// The levels of all rows.
    pub(crate) fn levels(&self) -> &[i16] {
        &self.levels
    }

    /// Row `i`, `width` entries.
    pub(crate) fn row(&self, i: usize) -> &[i16] {
        &self.rows[i * self.stride..][..self.width]
    }

    /// The lengths of the rows, and their largest entries.
    pub(crate) fn lengths(&self) -> Vec<(f32, f32)> {
        let rows = self.rows.chunks_exact(self.stride.max(1));
        rows.map(|row| {
            let square: i64 = row.iter().map(|&entry| i64::from(entry) * i64::from(entry)).sum();
            let most = row.iter().map(|entry| entry.unsigned_abs()).max().unwrap_or(0);
            // Both roundings are those of IEEE 754, the same everywhere.
            ((square as f64).sqrt() as f32, f32::from(most))
        })
        .collect()
    }

    /// The products of each of `vectors` (`stride` apart) with each row: `out[vector * rank + row]`, modulo 2^32.
    pub(crate) fn forward(&self, vectors: &[i16], out: &mut [i32]) {
        product::forward(&self.rows, self.stride, vectors, out);
    }

    /// The sums of rows that `factors` (`rank` a vector) ask for: `out[vector * stride + value]`, modulo 2^32.
    pub(crate) fn inverse(&self, factors: &[i16], out: &mut [i32]) {
        product::inverse(&self.rows, self.stride, factors, out);
    }
}
