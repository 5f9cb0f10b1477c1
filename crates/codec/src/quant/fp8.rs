//! `fp8`: a cast to e4m3 (arXiv 2209.05433), one byte a value.
//!
//! The values of each matrix (layer, K or V, head; a row where axes have no names) are first multiplied by the largest power of two that
//! leaves them within ±448, the type's range: that is exact, and small heads use the range too.
//!
//! # Bytes
//! [`Exact`] tokens. Then for each matrix of the chunk the exponent of that power of two, one signed byte, and its values, token after
//! token, one byte each. Exact tokens have zeros there.

use crate::kv::{Exact, Layout};
use crate::{ChunkContext, Codec, CodecError};

const NAME: &str = "fp8";

/// The largest value of e4m3, and its code.
const MOST: f32 = 448.0;
const MOST_CODE: u32 = 0x7e;

#[derive(Debug)]
pub(crate) struct Fp8;

impl Codec for Fp8 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn lossless(&self) -> bool {
        false
    }

    fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let layout = Layout::of(NAME, context, input.len())?;
        let exact = Exact::of(&layout, input, |_| false);
        let mut out = Vec::with_capacity(input.len() / layout.float.size() + 64);
        exact.write(&layout, input, &mut out);
        let mut values = Vec::new();
        for matrix in layout.matrices() {
            values.resize(layout.tokens * matrix.dim, 0.0);
            layout.read(input, &matrix, 0..layout.tokens, &mut values);
            for (token, row) in values.chunks_exact_mut(matrix.dim.max(1)).enumerate() {
                if exact.contains(token) {
                    row.fill(0.0);
                }
            }
            let exponent = exponent(values.iter().fold(0.0, |most: f32, value| most.max(value.abs())));
            let scale = power_of_two(exponent);
            out.push(exponent as u8);
            out.extend(values.iter().map(|value| to_e4m3(value * scale)));
        }
        Ok(out)
    }

    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let mut out = vec![0; decoded_len];
        self.decode_into(input, &mut out, context)?;
        Ok(out)
    }

    fn decode_into(&self, input: &[u8], out: &mut [u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        let layout = Layout::of(NAME, context, out.len())?;
        let mut input = input;
        let others = Exact::read(NAME, &layout, &mut input, out)?.others();
        let mut values = Vec::new();
        for matrix in layout.matrices() {
            let part = input.split_off_first().zip(input.split_off(..layout.tokens * matrix.dim));
            let (exponent, codes) = part.ok_or_else(|| CodecError::corrupt(NAME, "a byte for every value", "the end"))?;
            // All that a byte can stand for, 2^126 to 2^-127 times: finite, and none of it a product of more than one rounding.
            let scale = f64::from(power_of_two((*exponent as i8).max(-126))).recip();
            let table: Vec<f32> = (0..=255).map(|code| (f64::from(of_e4m3(code)) * scale) as f32).collect();
            values.clear();
            values.extend(codes.iter().map(|code| table[usize::from(*code)]));
            for run in &others {
                layout.write(out, &matrix, run.clone(), &values[run.start * matrix.dim..run.end * matrix.dim]);
            }
        }
        match input.len() {
            0 => Ok(()),
            more => Err(CodecError::corrupt(NAME, "the end", format!("{more} more bytes"))),
        }
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }
}

/// The largest `e` for which `most` times 2^`e` is within the range.
fn exponent(most: f32) -> i8 {
    if most == 0.0 {
        return 0;
    }
    // 448 is 1.75 times 2^8; what is larger than 1.75 times its power of two has room for one less.
    let bits = most.to_bits();
    let (exponent, mantissa) = ((bits >> 23) as i32 - 127, bits & 0x7f_ffff);
    (8 - exponent - i32::from(mantissa > 0x60_0000)).clamp(-126, 126) as i8
}

fn power_of_two(exponent: i8) -> f32 {
    f32::from_bits(((i32::from(exponent) + 127) as u32) << 23)
}

/// The nearest e4m3 to a value, ties to even; the largest for those beyond.
fn to_e4m3(value: f32) -> u8 {
    let (size, sign) = (value.abs().min(MOST), (value.to_bits() >> 24) as u8 & 0x80);
    let code = if size < 1.0 / 64.0 {
        (size * 512.0).round_ties_even() as u32
    } else {
        let bits = size.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)
    };
    code.min(MOST_CODE) as u8 | sign
}

/// The value of an e4m3; 0x7f and 0xff, which are NaN there and which no encoder writes, go on as 480.
fn of_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i8::from_ne_bytes([code >> 3 & 15]), f32::from(code & 7));
    let size = if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * power_of_two(exponent - 7) };
    if code & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_are_to_the_nearest_even() {
        let values: Vec<f32> = (0..=MOST_CODE as u8).map(of_e4m3).collect();
        assert_eq!((values[1], values[8], values[56], values[MOST_CODE as usize]), (1.0 / 512.0, 1.0 / 64.0, 1.0, MOST));
        for (code, pair) in values.windows(2).enumerate() {
            let middle = (pair[0] + pair[1]) / 2.0;
            let even = code + code % 2;
            assert_eq!(
                [pair[0], middle.next_down(), middle, middle.next_up()].map(to_e4m3),
                [code, code, even, code + 1].map(|code| code as u8)
            );
            assert_eq!(to_e4m3(-middle), even as u8 | 0x80);
        }
        assert_eq!([1e9, -1e9].map(to_e4m3), [0x7e, 0xfe]);
    }

    #[test]
    fn the_scale_uses_the_range() {
        for most in [1.0, 448.0, 448.1, 449.0, 1.75, 1.76, 3e-5, 1e30, f32::MAX] {
            let scaled = most * power_of_two(exponent(most));
            assert!(scaled <= MOST && scaled > MOST / 2.0, "{most}: {scaled}");
        }
        assert_eq!((exponent(0.0), exponent(f32::MIN_POSITIVE), exponent(1e-45)), (0, 126, 126));
    }
}
