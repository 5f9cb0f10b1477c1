//! Exponents as nibbles: how far each lies below what its channel reaches, two rows to a byte.

use super::layout::Block;

/// The nibble of an exponent that is out of reach: the exponent itself stands among the escapes.
const ESCAPE: u8 = 15;

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
/// Exponents out of reach are appended to `escapes`, row by row.
#[inline(always)]
pub(super) fn pair(block: Block, exponents: &[u8], bases: &[u8], symbols: &mut Vec<u8>, escapes: &mut Vec<u8>) {
    let width = block.width;
    let start = symbols.len();
    symbols.resize(start + block.elements() / 2, 0);
    for (rows, symbols) in exponents.chunks_exact(2 * width).zip(symbols[start..].chunks_exact_mut(width)) {
        let (first, second) = rows.split_at(width);
        let mut most = 0;
        for (((symbol, first), second), base) in symbols.iter_mut().zip(first).zip(second).zip(bases) {
            let (low, high) = (base.wrapping_sub(*first).min(ESCAPE), base.wrapping_sub(*second).min(ESCAPE));
            *symbol = low | high << 4;
            most = most.max(low).max(high);
        }
        if most == ESCAPE {
            let escaped = |(exponent, base): &(&u8, &u8)| base.wrapping_sub(**exponent) >= ESCAPE;
            escapes.extend(first.iter().zip(bases).filter(escaped).map(|(exponent, _)| exponent));
            escapes.extend(second.iter().zip(bases).filter(escaped).map(|(exponent, _)| exponent));
        }
    }
}

/// The inverse of [`pair`] for as many rows as there are in `exponents`. Takes what it needs from the front of `escapes`; `None` if there
/// are too few.
#[inline(always)]
pub(super) fn unpair(symbols: &[u8], bases: &[u8], escapes: &mut &[u8], exponents: &mut [u8]) -> Option<()> {
    let width = bases.len();
    for (rows, symbols) in exponents.chunks_exact_mut(2 * width).zip(symbols.chunks_exact(width)) {
        let (first, second) = rows.split_at_mut(width);
        let mut most = 0;
        for (((symbol, first), second), base) in symbols.iter().zip(first.iter_mut()).zip(second.iter_mut()).zip(bases) {
            let (low, high) = (symbol & 15, symbol >> 4);
            *first = base.wrapping_sub(low);
            *second = base.wrapping_sub(high);
            most = most.max(low).max(high);
        }
        if most == ESCAPE {
            for (exponent, _) in first.iter_mut().zip(symbols).filter(|(_, symbol)| **symbol & 15 == ESCAPE) {
                *exponent = *escapes.split_off_first()?;
            }
            for (exponent, _) in second.iter_mut().zip(symbols).filter(|(_, symbol)| **symbol >> 4 == ESCAPE) {
                *exponent = *escapes.split_off_first()?;
            }
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
            pair(block, &exponents, &base, &mut symbols, &mut escapes);
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
