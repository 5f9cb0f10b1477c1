//! Floating point without loss: exponents are worth coding, mantissas are noise.
//!
//! The values of a KV cache, of activations, of weights are nearly normal, and those of a channel (a column of a chunk's last axes) are of one
//! size. So each exponent is written as its distance from what its channel reaches, a nibble. Two rows' nibbles of a column are
//! one symbol, so that what neighbouring tokens have in common shows in the frequencies. `float-nibble` stores these symbols as they
//! are; `float-rans` codes them by [rANS](crate::rans) with a few tables a chunk. Sign and mantissa go through as they are.
//!
//! A block whose exponents are too far apart for nibbles is coded by its exponents themselves (`float-rans`), or stays as it is.
//!
//! # Bytes
//! One byte: 0, and the input as it is follows (types that are not floats, and what would not get smaller); or 1, and a [`Header`],
//! then rests, tail, symbols and side follow. All little-endian. The chunk is cut as [`layout::Cut::blocks`] says.
//! - Rests, of each block: what [`planes::split`] leaves and, in `float-nibble`, the symbols; or the elements of a block that stays as it
//!   is.
//! - Tail: the bytes behind the last block.
//! - Symbols (`float-rans`): those of all coded blocks by rANS, each block a run; nothing if there are none.
//! - Side: a number of tables, that many tables, a record for each block, then the escapes of all blocks. A record is the block's [`Mode`];
//!   unless that is [`Mode::AsItIs`] the index of its table (`float-rans` only), and its bases if it has any.

mod brain;
mod decode;
mod encode;
mod groups;
mod layout;
mod pairs;
mod planes;

use crate::{ChunkContext, Codec, CodecError};
use decode::{Decoder, Target};
use encode::Encoder;
use groups::MAX_TABLES;
use layout::{Cut, Layout};

/// The two stages of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    /// `float-nibble`: the faster.
    Nibble,
    /// `float-rans`: the smaller.
    Rans,
}

impl Codec for Float {
    fn name(&self) -> &'static str {
        match self {
            Float::Nibble => "float-nibble",
            Float::Rans => "float-rans",
        }
    }

    fn lossless(&self) -> bool {
        true
    }

    fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let coded = Layout::of(context.dtype).map(|layout| Encoder::new(*self, layout, input).encode(context.shape));
        if let Some(coded) = coded.transpose()?.filter(|coded| coded.len() <= input.len()) {
            return Ok(coded);
        }
        Ok([&[AS_IT_IS], input].concat())
    }

    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::with_capacity(decoded_len);
        self.decode_to(input, &mut Target::New { out: &mut out, left: decoded_len }, context)?;
        Ok(out)
    }

    fn decode_into(&self, input: &[u8], out: &mut [u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        self.decode_to(input, &mut Target::Given(out), context)
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }
}

impl Float {
    fn decode_to(self, input: &[u8], out: &mut Target<'_>, context: ChunkContext<'_>) -> Result<(), CodecError> {
        match (input.split_first(), Layout::of(context.dtype)) {
            (Some((&AS_IT_IS, rest)), _) => {
                CodecError::check_len(self.name(), out.left(), rest.len())?;
                out.take(rest.len()).unwrap_or_default().copy_from_slice(rest);
                Ok(())
            }
            (Some((&CODED, rest)), Some(layout)) => Decoder::new(self, layout, rest, out.left())?.decode(out),
            (first, _) => {
                let expected = if Layout::of(context.dtype).is_some() { "a first byte of 0 or 1" } else { "a first byte of 0" };
                Err(self.corrupt(expected, first.map_or("nothing".to_owned(), |(byte, _)| byte.to_string())))
            }
        }
    }

    fn corrupt(self, expected: impl Into<String>, found: impl ToString) -> CodecError {
        CodecError::corrupt(self.name(), expected, found)
    }
}

const AS_IT_IS: u8 = 0;
const CODED: u8 = 1;

/// How a block is written. The number is the first byte of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// As it is; nothing more in the record.
    AsItIs = 0,
    /// Pairs of nibbles below one base, which is the next byte.
    OneBase = 1,
    /// Pairs of nibbles below a base for each column: the highest base, then of every two columns a byte, how far the first is below it in the lower
    /// nibble, the second in the upper.
    NearBases = 2,
    /// The same, the bases as they are, a byte each.
    FarBases = 3,
    /// Exponents, one a symbol.
    Exponents = 4,
}

impl Mode {
    const ALL: [Mode; 5] = [Mode::AsItIs, Mode::OneBase, Mode::NearBases, Mode::FarBases, Mode::Exponents];
}

/// Lengths of what follows it.
#[derive(Clone, Copy, Debug)]
struct Header {
    cut: Cut,
    /// Bytes of the symbols.
    symbols: usize,
    /// Bytes of the side.
    side: usize,
}

impl Header {
    /// Width and rows of [`Cut`] as u16, then two lengths as u32.
    const BYTES: usize = 12;

    fn write(self) -> Option<[u8; Header::BYTES]> {
        let mut bytes = [0; Header::BYTES];
        bytes[..2].copy_from_slice(&u16::try_from(self.cut.width).ok()?.to_le_bytes());
        bytes[2..4].copy_from_slice(&u16::try_from(self.cut.rows).ok()?.to_le_bytes());
        bytes[4..8].copy_from_slice(&u32::try_from(self.symbols).ok()?.to_le_bytes());
        bytes[8..].copy_from_slice(&u32::try_from(self.side).ok()?.to_le_bytes());
        Some(bytes)
    }

    fn read(bytes: [u8; Header::BYTES]) -> Header {
        let [w0, w1, r0, r1, symbols @ .., _, _, _, _] = bytes;
        let [.., s0, s1, s2, s3] = bytes;
        let cut = Cut { width: u16::from_le_bytes([w0, w1]).into(), rows: u16::from_le_bytes([r0, r1]).into() };
        Header { cut, symbols: u32::from_le_bytes(symbols) as usize, side: u32::from_le_bytes([s0, s1, s2, s3]) as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sira_tensor::DType;

    /// Normally distributed, by channel of another size; every tenth channel with exponents all over.
    fn values(rows: usize, width: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state >> 32
        };
        (0..rows * width)
            .flat_map(|i| {
                let sum: u64 = (0..6).map(|_| next() & 0xffff).sum();
                let size = (i % width * 7919 % 13) as i32 - 6 + if i % width % 10 == 3 { next() as i32 % 60 } else { 0 };
                let value = (sum as f32 / 65536.0 - 3.0) * 2f32.powi(size);
                (value.to_bits() >> 16).to_le_bytes()[..2].to_vec()
            })
            .collect()
    }

    fn stored(stage: Float, input: &[u8], shape: &[u64]) -> Vec<u8> {
        let stored = stage.encode(input, ChunkContext::new(DType::BFloat16, shape, &[0, 0])).unwrap();
        let mut out = vec![0xee; input.len()];
        stage.decode_into(&stored, &mut out, ChunkContext::new(DType::BFloat16, &[], &[])).unwrap();
        assert!(out == input, "{stage:?} {shape:?}");
        stored
    }

    #[test]
    fn loops_for_any_processor_make_the_same() {
        let input = values(300, 96);
        for stage in [Float::Nibble, Float::Rans] {
            for dtype in [DType::BFloat16, DType::Float16, DType::Float32, DType::Float8E4M3Fn, DType::Float8E5M2] {
                let layout = Layout::of(dtype).unwrap();
                let plain = Encoder::new(stage, layout, &input).encode_inlined(&[300, 96]).unwrap();
                assert!(Encoder::new(stage, layout, &input).encode(&[300, 96]) == Ok(plain.clone()), "{stage:?} {dtype}");
                let mut out = vec![0xee; input.len()];
                Decoder::new(stage, layout, &plain[1..], out.len()).unwrap().decode_inlined(&mut Target::Given(&mut out)).unwrap();
                assert!(out == input, "{stage:?} {dtype}");
            }
        }
    }

    #[test]
    fn channels_make_it_smaller() {
        let input = values(512, 192);
        let sizes =
            |shape: &[u64]| [Float::Rans, Float::Nibble].map(|stage| stored(stage, &input, shape).len() as f64 / input.len() as f64);
        let ([flat, _], [rans, nibble]) = (sizes(&[512 * 192]), sizes(&[512, 192]));
        assert!(rans < 0.73 && rans < flat - 0.05, "{rans} with channels, {flat} without");
        assert!((0.75..0.85).contains(&nibble), "{nibble}");
    }

    #[test]
    fn what_is_no_float_or_noise_grows_by_a_byte() {
        let noise: Vec<u8> = (0..5000u64).flat_map(|i| (i * i).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
        for stage in [Float::Nibble, Float::Rans] {
            let mut kept = noise.clone();
            kept.insert(0, AS_IT_IS);
            for dtype in DType::all() {
                let stored = stage.encode(&noise, ChunkContext::new(dtype, &[8, 128], &[0, 0])).unwrap();
                assert!(stored.len() <= noise.len() + 1, "{stage:?} {dtype}");
                assert!(Layout::of(dtype).is_some() || stored == kept, "{stage:?} {dtype}");
            }
        }
    }

    #[test]
    fn zeros_and_one_exponent_are_coded_by_exponents() {
        // Every second value zero, the others of one exponent: out of reach of each other.
        let input: Vec<u8> = (0..40_000u32).flat_map(|i| if i % 7 < 3 { [0, 0] } else { [i as u8, 0x40] }).collect();
        let stored = stored(Float::Rans, &input, &[400, 100]);
        assert!(stored.len() * 16 < input.len() * 10, "{}", stored.len());
    }
}
