//! Products of many short vectors with one small matrix, in `f32`.
//!
//! Sums are of products that are rounded one by one and added in order, on every machine and however wide its registers are: what is decoded
//! with them is the same bytes everywhere.

/// Vectors that are worked on at a time.
const TILE: usize = 4;

/// Columns that are worked on at a time: with [`TILE`] vectors, as many sums as half of AVX2's registers hold.
const COLUMNS: usize = 16;

/// Vectors of numbers that lie somehow: number `i` of vector `n` is `numbers[n * vector + i * number]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vectors<'a> {
    pub(crate) numbers: &'a [f32],
    /// From one vector to the next.
    pub(crate) vector: usize,
    /// From one number of a vector to the next.
    pub(crate) number: usize,
}

/// For each of `count` vectors the sum of `base` and of its numbers times the rows of `matrix`, which are as long as `base`, to `out`, where
/// vectors are `stride` apart.
pub(crate) fn multiply(vectors: Vectors<'_>, count: usize, matrix: &[f32], base: &[f32], out: &mut [f32], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[allow(unsafe_code, reason = "code for wider registers: the same sums, four times as fast")]
        // SAFETY: AVX2 is there.
        return unsafe { multiply_avx2(vectors, count, matrix, base, out, stride) };
    }
    multiply_any(vectors, count, matrix, base, out, stride);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_avx2(vectors: Vectors<'_>, count: usize, matrix: &[f32], base: &[f32], out: &mut [f32], stride: usize) {
    multiply_any(vectors, count, matrix, base, out, stride);
}

#[inline(always)]
fn multiply_any(vectors: Vectors<'_>, count: usize, matrix: &[f32], base: &[f32], out: &mut [f32], stride: usize) {
    if base.is_empty() {
        return;
    }
    // Plain loops: what an iterator's `for_each` calls is compiled by itself, for the narrow registers that every machine has.
    let mut first = 0;
    while first + TILE <= count {
        tile::<TILE>(vectors, first, matrix, base, out, stride);
        first += TILE;
    }
    while first < count {
        tile::<1>(vectors, first, matrix, base, out, stride);
        first += 1;
    }
}

/// `N` vectors, from number `first` on.
#[inline(always)]
fn tile<const N: usize>(vectors: Vectors<'_>, first: usize, matrix: &[f32], base: &[f32], out: &mut [f32], stride: usize) {
    let Vectors { numbers, vector, number } = vectors;
    let width = base.len();
    let (blocks, rest) = base.as_chunks::<COLUMNS>();
    for (column, base) in (0..).step_by(COLUMNS).zip(blocks) {
        let mut sums = [*base; N];
        for (i, row) in matrix.chunks_exact(width).enumerate() {
            let Some(row) = row[column..].first_chunk::<COLUMNS>() else { break };
            for (n, sums) in (first..).zip(&mut sums) {
                let value = numbers[n * vector + i * number];
                for (sum, entry) in sums.iter_mut().zip(row) {
                    *sum += value * entry;
                }
            }
        }
        (first..).zip(&sums).for_each(|(n, sums)| out[n * stride + column..][..COLUMNS].copy_from_slice(sums));
    }
    for (column, base) in (width - rest.len()..).zip(rest) {
        for n in first..first + N {
            let rows = matrix.chunks_exact(width).enumerate();
            out[n * stride + column] = rows.fold(*base, |sum, (i, row)| sum + numbers[n * vector + i * number] * row[column]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, by: f32) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 % 1013) as f32 - 500.0) * by).collect()
    }

    #[test]
    fn sums_are_those_of_the_definition_to_the_last_bit() {
        for (count, rows, width) in [(1, 8, 8), (5, 64, 64), (4, 13, 13), (9, 3, 40), (3, 0, 20), (0, 4, 4), (6, 1, 1)] {
            let (matrix, base) = (values(rows * width, 0.013), values(width, 0.7));
            let numbers = values(count * rows, 1.7);
            let stride = width + 3;
            let mut expected = vec![7.0; count * stride];
            for n in 0..count {
                for column in 0..width {
                    let products = (0..rows).map(|i| numbers[n * rows + i] * matrix[i * width + column]);
                    expected[n * stride + column] = products.fold(base[column], |sum, product| sum + product);
                }
            }
            let mut found = vec![7.0; count * stride];
            multiply(Vectors { numbers: &numbers, vector: rows, number: 1 }, count, &matrix, &base, &mut found, stride);
            assert_eq!(found, expected);
            let mut portable = vec![7.0; count * stride];
            multiply_any(Vectors { numbers: &numbers, vector: rows, number: 1 }, count, &matrix, &base, &mut portable, stride);
            assert_eq!(portable, expected);
            // The same numbers, transposed.
            let transposed: Vec<f32> =
                (0..rows).flat_map(|i| (0..count).map(move |n| (n, i))).map(|(n, i)| numbers[n * rows + i]).collect();
            found.fill(7.0);
            multiply(Vectors { numbers: &transposed, vector: 1, number: count }, count, &matrix, &base, &mut found, stride);
            assert_eq!(found, expected);
        }
    }
}
