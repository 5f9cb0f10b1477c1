//! Elements apart into exponents and rests, and together again.
//!
//! Plain loops over rows that the compiler turns into vector code: inlined, to be compiled for whatever the caller is compiled for.

use super::layout::{Block, Layout, ROWS};

/// Splits the elements of a block: their exponents into `exponents`, what is left of them appended to `rests`.
///
/// The rests: the low bytes of each element, one element after the other; then, of sign and mantissa in the high part, a byte an element
/// if that is what they take, otherwise planes: for each eight rows and each bit, the lowest first, a byte a column in which bit i belongs to
/// row i.
#[inline(always)]
pub(super) fn split(layout: Layout, block: Block, elements: &[u8], exponents: &mut [u8], rests: &mut Vec<u8>) {
    match (layout.item, layout.low) {
        (2, 0) => split_wide(elements.as_chunks().0, exponents, rests, |element: &[u8; 2]| u16::from_le_bytes(*element)),
        (4, _) => {
            let elements = elements.as_chunks().0;
            rests.extend(elements.iter().flat_map(|element: &[u8; 4]| [element[0], element[1]]));
            split_wide(elements, exponents, rests, |element| u16::from_le_bytes([element[2], element[3]]));
        }
        (2, _) => {
            let elements = elements.as_chunks::<2>().0;
            rests.extend(elements.iter().map(|element| element[0]));
            split_narrow(layout, block, elements, exponents, rests, |element| element[1]);
        }
        _ => split_narrow(layout, block, elements, exponents, rests, |element| *element),
    }
}

#[inline(always)]
fn split_wide<T>(elements: &[T], exponents: &mut [u8], rests: &mut Vec<u8>, high: impl Fn(&T) -> u16) {
    // In parts that stay in the first cache, since they are read twice.
    for (elements, exponents) in elements.chunks(1 << 10).zip(exponents.chunks_mut(1 << 10)) {
        rests.extend(elements.iter().map(|element| {
            let bits = high(element);
            (bits & 0x7f) as u8 | (bits >> 8 & 0x80) as u8
        }));
        for (element, exponent) in elements.iter().zip(exponents) {
            *exponent = (high(element) >> 7) as u8;
        }
    }
}

#[inline(always)]
fn split_narrow<T>(layout: Layout, block: Block, elements: &[T], exponents: &mut [u8], rests: &mut Vec<u8>, high: impl Fn(&T) -> u8) {
    let width = block.width;
    let start = rests.len();
    rests.resize(start + block.elements() / 8 * layout.rest as usize, 0);
    let rests = &mut rests[start..];
    let rows = elements.chunks_exact(width * ROWS).zip(exponents.chunks_exact_mut(width * ROWS));
    for ((elements, exponents), planes) in rows.zip(rests.chunks_exact_mut(width * layout.rest as usize)) {
        for ((row, elements), exponents) in (0..).zip(elements.chunks_exact(width)).zip(exponents.chunks_exact_mut(width)) {
            for (element, exponent) in elements.iter().zip(exponents) {
                *exponent = (high(element) & 0x7f) >> layout.mantissa;
            }
            for (bit, plane) in (0..).zip(planes.chunks_exact_mut(width)) {
                let from = if bit == layout.mantissa { 7 } else { bit };
                for (byte, element) in plane.iter_mut().zip(elements) {
                    *byte |= (high(element) >> from & 1) << row;
                }
            }
        }
    }
}

/// The inverse of [`split`] for the rows of a block from `row`, a multiple of eight, on, as many as there are in `elements`; `rests` are those of the
/// whole block.
#[inline(always)]
pub(super) fn merge(layout: Layout, block: Block, row: usize, exponents: &[u8], rests: &[u8], elements: &mut [u8]) {
    let (low, high) = rests.split_at(layout.low * block.elements());
    let low = &low[row * block.width * layout.low..];
    let high = &high[row * block.width / 8 * layout.rest as usize..];
    match (layout.item, layout.low) {
        (2, 0) => {
            for ((element, exponent), rest) in elements.as_chunks_mut::<2>().0.iter_mut().zip(exponents).zip(high) {
                *element = wide(*exponent, *rest).to_le_bytes();
            }
        }
        (4, _) => {
            let low = low.as_chunks::<2>().0;
            for (((element, exponent), rest), low) in elements.as_chunks_mut::<4>().0.iter_mut().zip(exponents).zip(high).zip(low) {
                *element = (u32::from(wide(*exponent, *rest)) << 16 | u32::from(u16::from_le_bytes(*low))).to_le_bytes();
            }
        }
        (2, _) => {
            let elements = elements.as_chunks_mut::<2>().0;
            merge_narrow(layout, block.width, exponents, high, elements, |element, high| element[1] = high);
            for (element, low) in elements.iter_mut().zip(low) {
                element[0] = *low;
            }
        }
        _ => merge_narrow(layout, block.width, exponents, high, elements, |element, high| *element = high),
    }
}

#[inline(always)]
fn wide(exponent: u8, rest: u8) -> u16 {
    u16::from(exponent) << 7 | u16::from(rest & 0x7f) | u16::from(rest & 0x80) << 8
}

#[inline(always)]
fn merge_narrow<T>(layout: Layout, width: usize, exponents: &[u8], rests: &[u8], elements: &mut [T], set: impl Fn(&mut T, u8)) {
    let rows = elements.chunks_exact_mut(width * ROWS).zip(exponents.chunks_exact(width * ROWS));
    for ((elements, exponents), planes) in rows.zip(rests.chunks_exact(width * layout.rest as usize)) {
        for ((row, elements), exponents) in (0..).zip(elements.chunks_exact_mut(width)).zip(exponents.chunks_exact(width)) {
            let mut planes = planes.chunks_exact(width);
            // Three or four bits: the sign's plane is the last.
            let mut next = || planes.next().unwrap_or_default().iter();
            let (first, second) = (next(), next());
            let (third, sign) = if layout.mantissa == 3 { (Some(next()), next()) } else { (None, next()) };
            let bytes = first.zip(second).zip(sign).map(|((a, b), s)| (a >> row & 1) | (b >> row & 1) << 1 | (s >> row & 1) << 7);
            let heads = exponents.iter().map(|exponent| exponent << layout.mantissa & 0x7f);
            match third {
                Some(third) => {
                    for (((element, head), bits), third) in elements.iter_mut().zip(heads).zip(bytes).zip(third) {
                        set(element, head | bits | (third >> row & 1) << 2);
                    }
                }
                None => elements.iter_mut().zip(heads).zip(bytes).for_each(|((element, head), bits)| set(element, head | bits)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sira_tensor::DType;

    #[test]
    fn every_bit_pattern_comes_back() {
        for dtype in DType::all() {
            let Some(layout) = Layout::of(dtype) else { continue };
            let block = Block { start: 0, rows: 512, width: 128 };
            // All of 16 bits, in the upper ones.
            let elements: Vec<u8> = (0..=u16::MAX)
                .flat_map(|bits| {
                    let bits = bits.rotate_left(3);
                    let wide = u32::from(bits) << 16 | u32::from(bits.wrapping_mul(25_173));
                    wide.to_le_bytes()[4 - layout.item..].to_vec()
                })
                .collect();
            let mut exponents = vec![0; block.elements()];
            let mut rests = vec![9];
            split(layout, block, &elements, &mut exponents, &mut rests);
            assert_eq!(rests.len(), 1 + layout.rest_bytes(block.elements()));
            let mut out = vec![0xee; elements.len()];
            for row in (0..block.rows).step_by(64) {
                let part = row * block.width..(row + 64) * block.width;
                let bytes = part.start * layout.item..part.end * layout.item;
                merge(layout, block, row, &exponents[part], &rests[1..], &mut out[bytes]);
            }
            assert!(out == elements, "{dtype}");
        }
    }
}
