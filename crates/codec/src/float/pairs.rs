//! Exponents as nibbles: how far each lies below what its channel reaches, two rows to a byte.

use super::layout::Block;

/// The nibble of an exponent that is out of reach: the exponent itself stands among the escapes.
pub(super) const ESCAPE: u8 = 15;

/// Symbols that are looked through at a time for escapes, which are few.
const SCAN: usize = 32;

/// Exponents above the mean of a channel's maxima that a nibble still reaches.
const HEADROOM: u32 = 4;

/// Rows of which the maximum is taken before the mean: with four, most exponents lie just below it, whatever their spread.
const GROUP: usize = 4;

/// For each column the exponent of nibble 0.
#[inline(always)]
pub(super) fn bases(block: Block, exponents: &[u8], bases: &mut Vec<u8>) {
    let width = block.width;
    let mut sums = vec![0u32; width];
    let mut most = vec![0u8; width];
    for rows in exponents.chunks_exact(width * GROUP) {
        let (first, rest) = rows.split_at(width);
        most.copy_from_slice(first);
        for row in rest.chunks_exact(width) {
            most.iter_mut().zip(row).for_each(|(most, exponent)| *most = (*most).max(*exponent));
        }
        sums.iter_mut().zip(&most).for_each(|(sum, most)| *sum += u32::from(*most));
    }
    let groups = (block.rows / GROUP) as u32;
    bases.clear();
    bases.extend(sums.iter().map(|sum| ((sum + groups / 2) / groups + HEADROOM).min(255) as u8));
}

/// One base for all columns: the mean of theirs.
pub(super) fn one_base(bases: &mut [u8]) {
    let sum: u32 = bases.iter().map(|base| u32::from(*base)).sum();
    let mean = (sum + bases.len() as u32 / 2) / bases.len().max(1) as u32;
    bases.fill(mean as u8);
}

/// Appends a symbol for each two exponents of a column: that of the first row in the lower nibble, that of the second in the upper one.
/// Exponents out of reach are appended to `escapes`, in the order of the symbols. Meanwhile `next` comes into the cache.
#[inline(always)]
pub(super) fn pair(block: Block, exponents: &[u8], bases: &[u8], next: &[u8], symbols: &mut Vec<u8>, escapes: &mut Vec<u8>) {
    let width = block.width;
    let nibble = |base: &u8, exponent: &u8| base.wrapping_sub(*exponent).min(ESCAPE);
    let mut next = next.chunks(next.len().div_ceil(block.rows / 2).max(1));
    for rows in exponents.chunks_exact(2 * width) {
        prefetch(next.next().unwrap_or_default());
        let (first, second) = rows.split_at(width);
        let start = symbols.len();
        symbols.extend(first.iter().zip(second).zip(bases).map(|((first, second), base)| nibble(base, first) | nibble(base, second) << 4));
        each_escape(&symbols[start..], |column, of_second| escapes.push(if of_second { second[column] } else { first[column] }));
    }
}

/// Calls `found` for each nibble that stands for an escape, with its column and whether it is the upper one, in order.
#[inline(always)]
pub(super) fn each_escape(symbols: &[u8], mut found: impl FnMut(usize, bool)) {
    const LOWER: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    const ONES: u64 = 0x0101_0101_0101_0101;
    let nibbles = |symbol: &u8| (symbol & 15).max(symbol >> 4);
    for (symbols, start) in symbols.chunks(SCAN).zip((0..).step_by(SCAN)) {
        // Of a whole part, of known length, it takes a few instructions to see that there is none.
        if symbols.as_array::<SCAN>().is_some_and(|symbols| symbols.iter().fold(0, |most, symbol| nibbles(symbol).max(most)) < ESCAPE) {
            continue;
        }
        for (eight, start) in symbols.chunks(8).zip((start..).step_by(8)) {
            let mut bytes = [0; 8];
            bytes[..eight.len()].copy_from_slice(eight);
            let word = u64::from_le_bytes(bytes);
            // One more than 15 is carried into bit 4 of the byte; that of the upper nibble moves to bit 5.
            let carries = |nibbles: u64| ((nibbles & LOWER) + ONES) & (ONES << 4);
            let mut bits = carries(word) | carries(word >> 4) << 1;
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                found(start + bit / 8, bit % 8 == 5);
                bits &= bits - 1;
            }
        }
    }
}

/// Asks for memory that is read soon; the processor sees only runs, and a block's end ends one.
#[inline(always)]
pub(super) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[allow(unsafe_code, reason = "a hint; measured: encodes a quarter faster")]
        // SAFETY: any address will do, and this one is valid.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// The inverse of [`pair`] for as many rows as there are in `exponents`. Takes what it needs from the front of `escapes`; `None` if there
/// are too few.
#[inline(always)]
pub(super) fn unpair(symbols: &[u8], bases: &[u8], escapes: &mut &[u8], exponents: &mut [u8]) -> Option<()> {
    let width = bases.len();
    for (rows, symbols) in exponents.chunks_exact_mut(2 * width).zip(symbols.chunks_exact(width)) {
        let (first, second) = rows.split_at_mut(width);
        for (((symbol, first), second), base) in symbols.iter().zip(first.iter_mut()).zip(second.iter_mut()).zip(bases) {
            *first = base.wrapping_sub(symbol & 15);
            *second = base.wrapping_sub(symbol >> 4);
        }
        let mut missing = false;
        each_escape(symbols, |column, of_second| match escapes.split_off_first() {
            Some(escape) => *(if of_second { &mut second[column] } else { &mut first[column] }) = *escape,
            None => missing = true,
        });
        if missing {
            return None;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_in_and_out_of_reach_come_back() {
        let block = Block { start: 0, rows: 16, width: 40 };
        for spread in [1u32, 12, 40, 256] {
            let exponents: Vec<u8> = (0..640u32).map(|i| (i * i % 9973 % spread + i % 40 * 5) as u8).collect();
            let (mut base, mut symbols, mut escapes) = (Vec::new(), Vec::new(), Vec::new());
            bases(block, &exponents, &mut base);
            pair(block, &exponents, &base, &[], &mut symbols, &mut escapes);
            assert_eq!(escapes.is_empty(), spread < 12, "{spread}");
            let mut out = vec![0xee; 640];
            let mut left = &escapes[..];
            unpair(&symbols, &base, &mut left, &mut out).unwrap();
            assert!(left.is_empty() && out == exponents, "{spread}");
            if let Some((_, fewer)) = escapes.split_last() {
                assert_eq!(unpair(&symbols, &base, &mut &fewer[..], &mut out), None);
            }
        }
    }

    #[test]
    fn the_mean_of_a_channels_maxima_is_its_base() {
        let block = Block { start: 0, rows: 8, width: 2 };
        let exponents = [120, 5, 121, 0, 119, 0, 100, 0, 122, 0, 90, 7, 1, 0, 2, 0];
        let mut base = vec![1];
        bases(block, &exponents, &mut base);
        assert_eq!(base, [126, 10]);
        one_base(&mut base);
        assert_eq!(base, [68, 68]);
    }
}
