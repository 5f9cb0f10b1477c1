//! `int8` and `int4`: whole numbers with a scale and a zero point for each group of values, keys by channel and values by token, as in
//! KIVI (arXiv 2402.02750).
//!
//! Channels of K differ in size by orders of magnitude and keep theirs from token to token: groups of tokens of one channel. V has no such
//! channels: groups of one token's channels; the same where it is not known what is K, and where a chunk has so few tokens that scales
//! would outweigh the values.
//!
//! # Bytes
//! [`Exact`] tokens. Then for each matrix of the chunk its groups, each a scale and the value of code 0, two little-endian floats of 16
//! bits (float16 in a float16 tensor, otherwise bfloat16); and its codes, token after token, for `int4` two a byte, the earlier in the
//! lower half. Groups of K: of the first tokens one for each channel, then of the next ones. Groups otherwise: those of the first token,
//! then of the next. A row of `n` values is cut into groups of `group`, the last of which takes what is left over as well.

use std::ops::Range;

use crate::chain::{Arguments, Built};
use crate::kv::{Exact, Float, Kind, Layout, Matrix};
use crate::{ChunkContext, Codec, CodecError};

/// What the stages take, for messages.
pub(crate) const FORM: &str = "[:group=8-1024]";

/// Fewer tokens than that are grouped by token, K too.
const FEW_TOKENS: usize = 16;

/// Bytes of a group's scale and zero point.
const PARAMETERS: usize = 4;

#[derive(Debug)]
pub(crate) struct Group {
    name: &'static str,
    bits: u32,
    group: usize,
}

/// `int8`, 64 values a group: 8.5 bits a value.
pub(crate) fn build_int8(arguments: &Arguments<'_>) -> Result<Built, CodecError> {
    build("int8", 8, 64, arguments)
}

/// `int4`, 32 values a group: 5 bits a value.
pub(crate) fn build_int4(arguments: &Arguments<'_>) -> Result<Built, CodecError> {
    build("int4", 4, 32, arguments)
}

fn build(name: &'static str, bits: u32, default: usize, arguments: &Arguments<'_>) -> Result<Built, CodecError> {
    let bad = |found: &str| CodecError::BadLevel { codec: name, expected: FORM.to_owned(), found: found.chars().take(64).collect() };
    if let Some(hash) = arguments.calibration {
        return Err(bad(hash));
    }
    let group = match arguments.texts[..] {
        [] => default,
        [text] => {
            let number = text.strip_prefix("group=").and_then(|text| text.parse().ok());
            number.filter(|group| (8..=1024).contains(group)).ok_or_else(|| bad(text))?
        }
        [_, second, ..] => return Err(bad(second)),
    };
    let text = if group == default { String::new() } else { format!(":group={group}") };
    Ok(Built { codec: Box::new(Group { name, bits, group }), text })
}

impl Codec for Group {
    fn name(&self) -> &'static str {
        self.name
    }

    fn lossless(&self) -> bool {
        false
    }

    fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let layout = Layout::of(self.name, context, input.len())?;
        let exact = Exact::of(&layout, input, |_| false);
        let mut out = Vec::with_capacity(input.len() / layout.float.size() * self.bits as usize / 6);
        exact.write(&layout, input, &mut out);
        let mut values = Vec::new();
        for matrix in layout.matrices() {
            values.resize(layout.tokens * matrix.dim, 0.0);
            layout.read(input, &matrix, 0..layout.tokens, &mut values);
            self.encode_matrix(&Groups::of(self, &layout, &matrix), &exact, &values, &mut out);
        }
        Ok(out)
    }

    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let mut out = vec![0; decoded_len];
        self.decode_into(input, &mut out, context)?;
        Ok(out)
    }

    fn decode_into(&self, input: &[u8], out: &mut [u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        let layout = Layout::of(self.name, context, out.len())?;
        let mut input = input;
        let others = Exact::read(self.name, &layout, &mut input, out)?.others();
        let mut values = Vec::new();
        for matrix in layout.matrices() {
            let groups = Groups::of(self, &layout, &matrix);
            let count = layout.tokens * matrix.dim;
            let sizes = (groups.count() * PARAMETERS, (count * self.bits as usize).div_ceil(8));
            let parts = input.split_off(..sizes.0).zip(input.split_off(..sizes.1));
            let (parameters, codes) = parts.ok_or_else(|| CodecError::corrupt(self.name, "groups and codes of every head", "the end"))?;
            values.resize(count, 0.0);
            self.decode_matrix(&groups, parameters, codes, &mut values);
            for run in &others {
                layout.write(out, &matrix, run.clone(), &values[run.start * matrix.dim..run.end * matrix.dim]);
            }
        }
        match input.len() {
            0 => Ok(()),
            more => Err(CodecError::corrupt(self.name, "the end", format!("{more} more bytes"))),
        }
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }
}

impl Group {
    /// The largest code.
    fn most(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    fn encode_matrix(&self, groups: &Groups, exact: &Exact, values: &[f32], out: &mut Vec<u8>) {
        let mut bounds = vec![(f32::INFINITY, f32::NEG_INFINITY); groups.count()];
        for (token, row) in values.chunks_exact(groups.dim.max(1)).enumerate().filter(|(token, _)| !exact.contains(*token)) {
            groups.each(token, |group, channels| {
                let bounds = &mut bounds[group];
                *bounds = row[channels].iter().fold(*bounds, |(least, most), &value| (least.min(value), most.max(value)));
            });
        }
        let mut parameters = Vec::with_capacity(bounds.len());
        for bounds in bounds {
            let (scale, zero) = self.fit(groups.float, bounds);
            out.extend([scale, zero].map(u16::to_le_bytes).concat());
            let scale = groups.float.of_bits(scale);
            parameters.push((if scale > 0.0 { 1.0 / scale } else { 0.0 }, groups.float.of_bits(zero)));
        }
        let mut codes = vec![0; values.len()];
        for (token, (row, codes)) in values.chunks_exact(groups.dim.max(1)).zip(codes.chunks_exact_mut(groups.dim.max(1))).enumerate() {
            groups.each(token, |group, channels| {
                let (inverse, zero) = parameters[group];
                for (code, value) in codes[channels.clone()].iter_mut().zip(&row[channels]) {
                    *code = ((value - zero) * inverse).round_ties_even().clamp(0.0, self.most()) as u8;
                }
            });
        }
        match self.bits {
            4 => out.extend(codes.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |code| code << 4))),
            _ => out.extend(codes),
        }
    }

    fn decode_matrix(&self, groups: &Groups, parameters: &[u8], codes: &[u8], values: &mut [f32]) {
        match self.bits {
            4 => {
                for (pair, byte) in values.chunks_mut(2).zip(codes) {
                    pair[0] = f32::from(byte & 15);
                    if let Some(second) = pair.get_mut(1) {
                        *second = f32::from(byte >> 4);
                    }
                }
            }
            _ => values.iter_mut().zip(codes).for_each(|(value, code)| *value = f32::from(*code)),
        }
        let halves: Vec<u16> = parameters.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        let parameters: Vec<(f32, f32)> =
            halves.as_chunks().0.iter().map(|&[scale, zero]| (groups.float.of_bits(scale), groups.float.of_bits(zero))).collect();
        for (token, row) in values.chunks_exact_mut(groups.dim.max(1)).enumerate() {
            groups.each(token, |group, channels| {
                let (scale, zero) = parameters[group];
                row[channels].iter_mut().for_each(|value| *value = *value * scale + zero);
            });
        }
    }

    /// Scale and zero point of a group with these bounds, so that they are covered.
    fn fit(&self, float: Float, (least, most): (f32, f32)) -> (u16, u16) {
        if least > most {
            return (0, 0); // only exact tokens
        }
        let zero = float.at_most(least);
        let range = f64::from(most) - f64::from(float.of_bits(zero));
        let scale = (range / f64::from(self.most())) as f32;
        // Up: the largest value must have a code.
        (float.at_most(-scale) & 0x7fff, zero)
    }
}

/// How the values of a matrix are grouped.
struct Groups {
    float: Float,
    dim: usize,
    /// By channel: how many rows of groups there are, and tokens of each.
    by_channel: bool,
    /// Values of a group, and groups of a row: of tokens or of channels.
    size: usize,
    across: usize,
    tokens: usize,
}

impl Groups {
    fn of(codec: &Group, layout: &Layout<'_>, matrix: &Matrix) -> Groups {
        let by_channel = matrix.kind == Kind::K && layout.has_tokens && layout.tokens >= FEW_TOKENS;
        let row = if by_channel { layout.tokens } else { matrix.dim };
        // Half the bits for parameters of a float of 16 bits.
        let float = if layout.float == Float::F16 { Float::F16 } else { Float::Bf16 };
        Groups { float, dim: matrix.dim, by_channel, size: codec.group, across: (row / codec.group).max(1), tokens: layout.tokens }
    }

    fn count(&self) -> usize {
        self.across * if self.by_channel { self.dim } else { self.tokens }
    }

    /// Calls `each` with the groups of one token's values, and the channels that each has there.
    fn each(&self, token: usize, mut each: impl FnMut(usize, Range<usize>)) {
        if self.by_channel {
            let first = (token / self.size).min(self.across - 1) * self.dim;
            (0..self.dim).for_each(|channel| each(first + channel, channel..channel + 1));
        } else {
            for group in 0..self.across {
                let end = if group + 1 == self.across { self.dim } else { (group + 1) * self.size };
                each(token * self.across + group, group * self.size..end);
            }
        }
    }
}

impl Float {
    /// The value of these bits of a float of 16.
    fn of_bits(self, bits: u16) -> f32 {
        let mut value = [0.0];
        self.read(&bits.to_le_bytes(), &mut value);
        value[0]
    }

    /// The bits of the largest float of 16 bits that is not above `value`; of the least finite one where all are.
    fn at_most(self, value: f32) -> u16 {
        let mut bytes = [0; 2];
        self.write(&[value], &mut bytes);
        let bits = u16::from_le_bytes(bytes);
        let below = match bits {
            0 => 0x8001,
            0x8000.. => bits + 1,
            _ => bits - 1,
        };
        if self.of_bits(bits) > value && self.of_bits(below).is_finite() { below } else { bits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_rounded_outwards() {
        for float in [Float::Bf16, Float::F16] {
            for value in [0.0, 1.0, 1.0001, -1.0001, 3e-9, -3e-9, 60_000.3, -60_000.3, 0.1, -0.1] {
                let below = float.of_bits(float.at_most(value));
                assert!(below <= value && (value - below).abs() <= value.abs() / 128.0 + 1e-7, "{value}: {below}");
            }
        }
        assert_eq!(Float::F16.of_bits(Float::F16.at_most(f32::MIN)), -65504.0);
        assert!(Float::Bf16.of_bits(Float::Bf16.at_most(f32::MIN)).is_finite());
    }

    #[test]
    fn groups_cut_rows_and_the_last_takes_what_is_left() {
        let of = |by_channel, across| Groups { float: Float::Bf16, dim: 21, by_channel, size: 8, across, tokens: 19 };
        let groups = |of: &Groups, token| {
            let mut all = Vec::new();
            of.each(token, |group, channels| all.push((group, channels)));
            all
        };
        assert_eq!((of(false, 2).count(), groups(&of(false, 2), 3)), (38, vec![(6, 0..8), (7, 8..21)]));
        assert_eq!((of(true, 2).count(), groups(&of(true, 2), 18)[20].clone()), (42, (41, 20..21)));
        assert_eq!(groups(&of(true, 2), 7)[20], (20, 20..21));
    }
}
