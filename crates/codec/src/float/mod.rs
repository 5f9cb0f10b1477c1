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
//! then symbols, rests, tail and side follow. All little-endian. The chunk is cut as [`layout::Cut::blocks`] says.
//! - Symbols: those of all coded blocks; rANS with the run of each block, or as they are.
//! - Rests, of each block: what [`planes::split`] leaves, or the elements of a block that stays as it is.
//! - Tail: the bytes behind the last block.
//! - Side: a number of tables, that many tables, a record for each block, then the escapes of all blocks. A record is the block's [`Mode`];
//!   unless that is [`Mode::AsItIs`] the index of its table (`float-rans` only), and its bases if it has any.

mod decode;
mod encode;
mod groups;
mod layout;
mod pairs;
mod planes;

use crate::{ChunkContext, Codec, CodecError};
use decode::Decoder;
use encode::Encoder;
use groups::MAX_TABLES;
use layout::{Cut, Layout};
use planes::on_vectors;

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
        let coded = Layout::of(context.dtype).map(|layout| on_vectors(|| Encoder::new(*self, layout, input).encode(context.shape)));
        if let Some(coded) = coded.transpose()?.filter(|coded| coded.len() <= input.len()) {
            return Ok(coded);
        }
        Ok([&[AS_IT_IS], input].concat())
    }

    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let mut out = vec![0; decoded_len];
        self.decode_into(input, &mut out, context)?;
        Ok(out)
    }

    fn decode_into(&self, input: &[u8], out: &mut [u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        match (input.split_first(), Layout::of(context.dtype)) {
            (Some((&AS_IT_IS, rest)), _) => {
                CodecError::check_len(self.name(), out.len(), rest.len())?;
                out.copy_from_slice(rest);
                Ok(())
            }
            (Some((&CODED, rest)), Some(layout)) => on_vectors(|| Decoder::new(*self, layout, rest, out.len())?.decode(out)),
            (first, _) => {
                let expected = if Layout::of(context.dtype).is_some() { "a first byte of 0 or 1" } else { "a first byte of 0" };
                Err(self.corrupt(expected, first.map_or("nothing".to_owned(), |(byte, _)| byte.to_string())))
            }
        }
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }
}

impl Float {
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
