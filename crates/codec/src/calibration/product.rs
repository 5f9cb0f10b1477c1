//! Products of vectors of small whole numbers with the rows of a basis.
//!
//! `i16` times `i16` added up in `i32`, two products an element of a vector register (`vpmaddwd`): twice as many a cycle as in `f32`. Sums wrap,
//! so their order does not matter and the portable code gives the same numbers.

/// Values of a row that are worked on at a time; rows are padded to a multiple of it.
pub(super) const BLOCK: usize = 64;

/// Pairs of rows whose part of a block stays in the nearest cache: 16 KiB of them, as interleaved pairs of `i16`.
const PAIRS: usize = 64;

/// Blocks whose sums are worked on at a time, group of pairs by group: so that the terms of a group and the sums stay in the second-level cache, and
/// rows are read by several cache lines at once.
const STRIP: usize = 4;

/// Part of two rows, entries of the first and the second by turns.
type Pair = [i16; 2 * BLOCK];

/// What a vector takes of a pair of rows.
#[derive(Clone, Copy)]
struct Term {
    pair: u32,
    factors: [i16; 2],
}

pub(super) fn forward(rows: &[i16], stride: usize, vectors: &[i16], out: &mut [i32]) {
    if stride == 0 || rows.is_empty() {
        return;
    }
    let rank = rows.len() / stride;
    let level = level();
    // Rows are read once a tile of vectors that stays in the second-level cache.
    const TILE: usize = 16;
    for (vectors, out) in vectors.chunks(TILE * stride).zip(out.chunks_mut(TILE * rank)) {
        for (i, row) in rows.chunks_exact(stride).enumerate() {
            for (vector, out) in vectors.chunks_exact(stride).zip(out.chunks_exact_mut(rank)) {
                out[i] = dot(level, row, vector);
            }
        }
    }
}

pub(super) fn inverse(rows: &[i16], stride: usize, factors: &[i16], out: &mut [i32]) {
    out.fill(0);
    if stride == 0 || rows.is_empty() {
        return;
    }
    let rank = rows.len() / stride;
    let level = level();
    let vectors = out.len() / stride;
    let (terms, starts) = terms(factors, rank, vectors);
    let mut panel: Vec<Pair> = vec![[0; 2 * BLOCK]; PAIRS];
    let mut sums: Vec<[i32; BLOCK]> = Vec::new();
    for strip in (0..stride).step_by(STRIP * BLOCK) {
        let blocks = || (strip..stride.min(strip + STRIP * BLOCK)).step_by(BLOCK);
        sums.clear();
        sums.resize(blocks().count() * vectors, [0; BLOCK]);
        for (group, rows) in rows.chunks(2 * PAIRS * stride).enumerate() {
            let starts = &starts[group * vectors..=(group + 1) * vectors];
            for (first, sums) in blocks().zip(sums.chunks_exact_mut(vectors.max(1))) {
                pack(rows, stride, first, &mut panel);
                for (sums, range) in sums.iter_mut().zip(starts.windows(2)) {
                    add(level, &panel, &terms[range[0]..range[1]], sums);
                }
            }
        }
        for (first, sums) in blocks().zip(sums.chunks_exact(vectors.max(1))) {
            for (out, sums) in out.chunks_exact_mut(stride).zip(sums) {
                out[first..first + BLOCK].copy_from_slice(sums);
            }
        }
    }
}

/// The pairs of factors that are not both zero, by groups of `PAIRS` pairs, and in each vector after vector; and where those of each group and vector
/// begin.
fn terms(factors: &[i16], rank: usize, vectors: usize) -> (Vec<Term>, Vec<usize>) {
    let groups = rank.div_ceil(2 * PAIRS);
    let (mut terms, mut starts) = (Vec::with_capacity(factors.len() / 2), Vec::with_capacity(groups * vectors + 1));
    starts.push(0);
    for group in 0..groups {
        let range = 2 * PAIRS * group..rank.min(2 * PAIRS * (group + 1));
        for factors in factors.chunks_exact(rank) {
            for (pair, factors) in (0..).zip(factors[range.clone()].chunks(2)) {
                let factors = [factors[0], factors.get(1).copied().unwrap_or(0)];
                if factors != [0, 0] {
                    terms.push(Term { pair, factors });
                }
            }
            starts.push(terms.len());
        }
    }
    (terms, starts)
}

/// Interleaves `BLOCK` entries of each pair of rows.
fn pack(rows: &[i16], stride: usize, first: usize, panel: &mut [Pair]) {
    for (rows, pair) in rows.chunks(2 * stride).zip(panel) {
        let (upper, lower) = rows.split_at(stride);
        let upper = &upper[first..][..BLOCK];
        let zeros = [0; BLOCK];
        let lower = lower.get(first..first + BLOCK).unwrap_or(&zeros);
        for ((pair, upper), lower) in pair.as_chunks_mut::<2>().0.iter_mut().zip(upper).zip(lower) {
            *pair = [*upper, *lower];
        }
    }
}

/// Which instructions there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return Level::Avx2;
    }
    Level::Portable
}

fn dot(level: Level, a: &[i16], b: &[i16]) -> i32 {
    match level {
        Level::Portable => {
            let products = a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b));
            products.fold(0, i32::wrapping_add)
        }
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "five times the speed of the portable code")]
        // SAFETY: `level` found AVX2.
        Level::Avx2 => unsafe { avx2::dot(a, b) },
    }
}

fn add(level: Level, panel: &[Pair], terms: &[Term], sums: &mut [i32; BLOCK]) {
    match level {
        Level::Portable => {
            for term in terms {
                let [upper, lower] = term.factors.map(i32::from);
                for (sum, entries) in sums.iter_mut().zip(panel[term.pair as usize].as_chunks::<2>().0) {
                    let products = (i32::from(entries[0]) * upper).wrapping_add(i32::from(entries[1]) * lower);
                    *sum = sum.wrapping_add(products);
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "five times the speed of the portable code")]
        // SAFETY: `level` found AVX2.
        Level::Avx2 => unsafe { avx2::add(panel, terms, sums) },
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector loads and stores")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Pair, Term};

    /// Sixteen entries.
    const LANES: usize = 16;

    #[target_feature(enable = "avx2")]
    pub(super) fn dot(a: &[i16], b: &[i16]) -> i32 {
        let mut sums = [_mm256_setzero_si256(); 4];
        let (a, b) = (a.as_chunks::<BLOCK>().0, b.as_chunks::<BLOCK>().0);
        for (a, b) in a.iter().zip(b) {
            for (i, sum) in sums.iter_mut().enumerate() {
                let products = _mm256_madd_epi16(load(&a[i * LANES..]), load(&b[i * LANES..]));
                *sum = _mm256_add_epi32(*sum, products);
            }
        }
        let sum = _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3]));
        let mut lanes = [0i32; 8];
        // SAFETY: `lanes` has the 32 bytes of a register.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
        lanes.into_iter().fold(0, i32::wrapping_add)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn add(panel: &[Pair], terms: &[Term], sums: &mut [i32; BLOCK]) {
        const REGISTERS: usize = BLOCK / 8;
        let mut registers = [_mm256_setzero_si256(); REGISTERS];
        for (register, sums) in registers.iter_mut().zip(sums.as_chunks::<8>().0) {
            // SAFETY: `sums` has the 32 bytes of a register.
            *register = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
        }
        for term in terms {
            let [upper, lower] = term.factors.map(|factor| factor as u16 as u32);
            let factors = _mm256_set1_epi32((upper | lower << 16) as i32);
            let entries = &panel[term.pair as usize];
            for (i, register) in registers.iter_mut().enumerate() {
                let products = _mm256_madd_epi16(load(&entries[i * LANES..]), factors);
                *register = _mm256_add_epi32(*register, products);
            }
        }
        for (register, sums) in registers.iter().zip(sums.as_chunks_mut::<8>().0) {
            // SAFETY: `sums` has the 32 bytes of a register.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), *register) };
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(entries: &[i16]) -> __m256i {
        let entries: &[i16] = &entries[..LANES];
        // SAFETY: the slice has the 32 bytes of a register.
        unsafe { _mm256_loadu_si256(entries.as_ptr().cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole numbers of either sign up to `most`; every third is zero.
    fn numbers(len: usize, most: i32, seed: u64) -> Vec<i16> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) as i32
        };
        (0..len).map(|_| if next() % 3 == 0 { 0 } else { (next() % (2 * most + 1) - most) as i16 }).collect()
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for (rank, stride, vectors) in [(1, 64, 1), (2, 64, 3), (7, 128, 17), (257, 64, 5), (300, 192, 20)] {
            let rows = numbers(rank * stride, 2047, 1);
            let x = numbers(vectors * stride, 32767, 2);
            let mut out = vec![7; vectors * rank];
            forward(&rows, stride, &x, &mut out);
            for (i, &found) in out.iter().enumerate() {
                let (row, vector) = (&rows[i % rank * stride..][..stride], &x[i / rank * stride..][..stride]);
                let sum: i64 = row.iter().zip(vector).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum();
                assert_eq!(found, sum as i32);
            }
            let y = numbers(vectors * rank, 32767, 3);
            let mut out = vec![7; vectors * stride];
            inverse(&rows, stride, &y, &mut out);
            for (i, &found) in out.iter().enumerate() {
                let sum: i64 = (0..rank).map(|r| i64::from(rows[r * stride + i % stride]) * i64::from(y[i / stride * rank + r])).sum();
                assert_eq!(found, sum as i32);
            }
        }
    }

    #[test]
    fn vector_and_portable_code_agree() {
        let level = level();
        for seed in 0..20 {
            let (a, b) = (numbers(192, 32767, seed), numbers(192, 32767, seed + 100));
            assert_eq!(dot(level, &a, &b), dot(Level::Portable, &a, &b), "{level:?}");
            let mut panel = vec![[0; 2 * BLOCK]; 5];
            panel.iter_mut().zip(0..).for_each(|(pair, i)| pair.copy_from_slice(&numbers(2 * BLOCK, 2047, seed + i)));
            let terms: Vec<_> = (0..5).map(|pair| Term { pair, factors: [i16::MIN, b[pair as usize]] }).collect();
            let (mut vector, mut portable) = ([seed as i32; BLOCK], [seed as i32; BLOCK]);
            add(level, &panel, &terms, &mut vector);
            add(Level::Portable, &panel, &terms, &mut portable);
            assert_eq!(vector, portable, "{level:?}");
        }
    }
}
