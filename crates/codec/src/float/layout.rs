//! What a float is made of, as this family sees it, and how a chunk is cut into blocks.

use std::ops::Range;

use sira_tensor::DType;

/// Where exponent, sign and mantissa lie in an element.
///
/// An element is its high part (16 bits, or all of an 8-bit float) and, below it, `low` bytes of mantissa that are noise. Of the high
/// part the exponent is taken out; what is left, sign above mantissa, is the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of an element.
    pub(super) item: usize,
    /// Bytes below the high part.
    pub(super) low: usize,
    /// Bits of mantissa in the high part.
    pub(super) mantissa: u32,
    /// Bits of the rest: sign and mantissa.
    pub(super) rest: u32,
}

impl Layout {
    /// The layout of a type; `None` for types this family has nothing to say about.
    pub(super) fn of(dtype: DType) -> Option<Layout> {
        Some(match dtype {
            DType::BFloat16 => Layout { item: 2, low: 0, mantissa: 7, rest: 8 },
            // Its upper half is a bfloat16.
            DType::Float32 | DType::Complex64 => Layout { item: 4, low: 2, mantissa: 7, rest: 8 },
            // Its upper byte is a float8_e5m2.
            DType::Float16 => Layout { item: 2, low: 1, mantissa: 2, rest: 3 },
            DType::Float8E5M2 | DType::Float8E5M2Fnuz => Layout { item: 1, low: 0, mantissa: 2, rest: 3 },
            DType::Float8E4M3Fn | DType::Float8E4M3Fnuz => Layout { item: 1, low: 0, mantissa: 3, rest: 4 },
            _ => return None,
        })
    }

    /// Whether it is bfloat16, of which rests are whole bytes and all there is besides exponents.
    pub(super) fn is_brain(self) -> bool {
        self.item == 2 && self.low == 0
    }

    /// Bytes that hold what is not exponent of `elements`, a multiple of eight.
    pub(super) fn rest_bytes(self, elements: usize) -> usize {
        elements * self.low + elements / 8 * self.rest as usize
    }
}

/// Rows of a block are a multiple of this: the rests of eight rows make whole bytes.
pub(super) const ROWS: usize = 8;

/// Elements that a block should have: exponents, rests and symbols of one stay in the second cache.
const BLOCK: usize = 48 << 10;

/// The widest row: of a wider one, a column of a block is too short to be worth a base of its own.
const MAX_WIDTH: usize = BLOCK / 64;

/// Width of the block at the end that takes what no row is left for, and of chunks that have no channels.
pub(super) const NARROW: usize = 32;

/// How a chunk is cut: rows of `width` elements, blocks of `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) width: usize,
    pub(super) rows: usize,
}

/// Elements `start..start + rows * width` of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Block {
    pub(super) fn elements(self) -> usize {
        self.rows * self.width
    }

    /// Where its elements lie in the chunk.
    pub(super) fn bytes(self, layout: Layout) -> Range<usize> {
        self.start * layout.item..(self.start + self.elements()) * layout.item
    }
}

impl Cut {
    /// Without channels.
    pub(super) const FLAT: Cut = Cut { width: NARROW, rows: BLOCK / NARROW };

    /// Whether [`Cut::blocks`] is defined.
    pub(super) fn is_sound(self) -> bool {
        (NARROW..=MAX_WIDTH).contains(&self.width) && self.rows > 0 && self.rows.is_multiple_of(ROWS)
    }

    /// The cuts worth trying: elements of a column belong together where a row is the last axis, or the last two (the dimensions of all
    /// heads, in a KV cache); and no channels at all.
    pub(super) fn candidates(shape: &[u64]) -> Vec<Cut> {
        let mut cuts = vec![Cut::FLAT];
        for axes in 1..=2 {
            let Some((outer, inner)) = shape.len().checked_sub(axes).map(|at| shape.split_at(at)) else { break };
            let width = inner.iter().try_fold(1, |product: usize, &extent| product.checked_mul(usize::try_from(extent).ok()?));
            let Some(width) = width.filter(|width| (NARROW + 1..=MAX_WIDTH).contains(width)) else { continue };
            let most = BLOCK * 5 / 4 / width;
            let period = outer.last().and_then(|&extent| usize::try_from(extent).ok()).unwrap_or(most).max(1);
            // A block should end where the axis of its rows does.
            let rows = if period < most { most / period * period } else { period.div_ceil(period.div_ceil(most)) };
            let rows = if rows < ROWS { most } else { rows };
            let cut = Cut { width, rows: rows.next_multiple_of(ROWS) };
            if !cuts.contains(&cut) {
                cuts.push(cut);
            }
        }
        cuts
    }

    /// The blocks of a chunk of `elements`, in order; what is behind the last, less than eight narrow rows, belongs to none.
    pub(super) fn blocks(self, elements: usize) -> impl Iterator<Item = Block> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let left = elements - start;
            let (width, most) = if left >= ROWS * self.width { (self.width, self.rows) } else { (NARROW, usize::MAX) };
            let rows = (left / width / ROWS * ROWS).min(most);
            let block = Block { start, rows, width };
            start += block.elements();
            (rows > 0).then_some(block)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_to_the_tail() {
        for cut in [Cut::FLAT, Cut { width: 192, rows: 256 }, Cut { width: 33, rows: 8 }, Cut { width: 768, rows: 64 }] {
            for elements in [0, 1, 255, 256, 1000, 49_151, 49_152, 100_000, 983_040] {
                let mut end = 0;
                for block in cut.blocks(elements) {
                    assert_eq!(block.start, end);
                    assert!(block.rows > 0 && block.rows.is_multiple_of(ROWS));
                    end += block.elements();
                }
                assert!(end <= elements && elements - end < ROWS * NARROW, "{cut:?}, {elements}: {end}");
            }
        }
    }

    #[test]
    fn a_block_of_a_kv_cache_is_the_tokens_of_a_layer() {
        let cut = |shape: &[u64]| Cut::candidates(shape).last().copied().unwrap();
        assert_eq!(cut(&[10, 2, 256, 3, 64]), Cut { width: 192, rows: 256 });
        assert_eq!(cut(&[1, 2, 1536, 3, 64]), Cut { width: 192, rows: 312 });
        assert_eq!(cut(&[4, 4, 64, 3, 64]), Cut { width: 192, rows: 320 });
        for shape in [&[][..], &[7], &[100, 4096], &[u64::MAX, u64::MAX, u64::MAX], &[0, 64], &[3, 0, 64]] {
            for cut in Cut::candidates(shape) {
                assert!(cut.is_sound() && u16::try_from(cut.rows).is_ok(), "{shape:?}: {cut:?}");
            }
        }
    }
}
