//! Tokens that a lossy codec keeps bit for bit.

use std::ops::Range;

use super::{Float, Layout};
use crate::CodecError;

/// Which tokens of a chunk are kept as they are: those that a codec exempts, and those with an infinity, a NaN or a value of 2^126 and more,
/// with which it could not calculate and which would spoil their neighbours' statistics.
///
/// # Bytes
/// 0 where there is none. Otherwise 1; a bit a token, set for exact ones, the first in the lowest bit of the first byte, and zeros up to
/// a whole byte; then for each matrix of the chunk the elements of its exact tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exact {
    tokens: Vec<bool>,
}

impl Exact {
    /// Those of a chunk: what `exempt` says, and what no codec can calculate with.
    pub(crate) fn of(layout: &Layout<'_>, chunk: &[u8], exempt: impl Fn(usize) -> bool) -> Exact {
        let mut tokens: Vec<bool> = (0..layout.tokens).map(exempt).collect();
        if !layout.float.all_tame(chunk) {
            let mut row = Vec::new();
            for matrix in layout.matrices() {
                for (token, exact) in tokens.iter_mut().enumerate() {
                    row.clear();
                    layout.copy_out(chunk, &matrix, token, &mut row);
                    *exact |= !layout.float.all_tame(&row);
                }
            }
        }
        Exact { tokens }
    }

    /// Whether `token` is one of them.
    pub(crate) fn contains(&self, token: usize) -> bool {
        self.tokens[token]
    }

    /// The tokens that are not, as ranges.
    pub(crate) fn others(&self) -> Vec<Range<usize>> {
        let runs = self.tokens.chunk_by(|a, b| a == b);
        let mut start = 0;
        let ranges = runs.map(|run| {
            start += run.len();
            (run[0], start - run.len()..start)
        });
        ranges.filter(|(exact, _)| !exact).map(|(_, range)| range).collect()
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.tokens.len()).filter(|&token| self.tokens[token])
    }

    /// Appends the tokens and their elements.
    pub(crate) fn write(&self, layout: &Layout<'_>, chunk: &[u8], out: &mut Vec<u8>) {
        let any = self.tokens.contains(&true);
        out.push(u8::from(any));
        if any {
            out.extend(self.tokens.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))));
            for matrix in layout.matrices() {
                self.iter().for_each(|token| layout.copy_out(chunk, &matrix, token, out));
            }
        }
    }

    /// Reads what [`Exact::write`] wrote from the front of `input`, moves `input` on, and puts the elements where they belong.
    pub(crate) fn read(codec: &'static str, layout: &Layout<'_>, input: &mut &[u8], chunk: &mut [u8]) -> Result<Exact, CodecError> {
        let corrupt = |expected: &str, found: &str| CodecError::corrupt(codec, expected, found);
        match input.split_off_first() {
            Some(0) => return Ok(Exact { tokens: vec![false; layout.tokens] }),
            Some(1) => {}
            other => return Err(corrupt("0 or 1 before exact tokens", &format!("{other:?}"))),
        }
        let bits = input.split_off(..layout.tokens.div_ceil(8)).ok_or_else(|| corrupt("a bit a token", "the end"))?;
        let tokens = (0..layout.tokens).map(|token| bits[token / 8] >> (token % 8) & 1 == 1).collect();
        let exact = Exact { tokens };
        for matrix in layout.matrices() {
            for token in exact.iter() {
                if !layout.copy_in(input, &matrix, token, chunk) {
                    return Err(corrupt("the elements of all exact tokens", "the end"));
                }
            }
        }
        Ok(exact)
    }
}

impl Float {
    /// Whether sums of two elements are finite, whichever they are.
    pub(crate) fn all_tame(self, bytes: &[u8]) -> bool {
        match self {
            Float::Bf16 => bytes.as_chunks().0.iter().all(|bytes| u16::from_le_bytes(*bytes) & 0x7fff < 0x7e80),
            Float::F16 => bytes.as_chunks().0.iter().all(|bytes| u16::from_le_bytes(*bytes) & 0x7c00 != 0x7c00),
            Float::F32 => bytes.as_chunks().0.iter().all(|bytes| f32::from_le_bytes(*bytes).abs() < 8.507_059e37),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkContext;
    use crate::TensorContext;
    use sira_tensor::DType;

    #[test]
    fn exempt_and_wild_tokens_come_back_bit_for_bit() {
        let axes = ["head", "token", "dim"].map(str::to_owned);
        let shape = [2, 11, 3];
        let tensor = TensorContext { shape: &shape, axes: &axes, ..TensorContext::default() };
        let context = ChunkContext { dtype: DType::BFloat16, shape: &shape, origin: &[0; 3], tensor };
        let mut chunk: Vec<u8> = (0..66u16).flat_map(|i| (0x3f80 + i).to_le_bytes()).collect();
        let layout = Layout::of("test", context, chunk.len()).unwrap();
        let none = Exact::of(&layout, &chunk, |_| false);
        let mut stored = Vec::new();
        none.write(&layout, &chunk, &mut stored);
        assert_eq!((stored, none.others().into_iter().flatten().count()), (vec![0], 11));
        // Token 9 of the second head has a NaN with a payload, token 1 of the first an infinity.
        chunk[(11 + 9) * 6..][..2].copy_from_slice(&0xffc5u16.to_le_bytes());
        chunk[10..12].copy_from_slice(&0x7f80u16.to_le_bytes());
        let exact = Exact::of(&layout, &chunk, |token| token == 4);
        assert_eq!(exact.iter().collect::<Vec<_>>(), [1, 4, 9]);
        assert_eq!(exact.others(), [0..1, 2..4, 5..9, 10..11]);
        let mut stored = Vec::new();
        exact.write(&layout, &chunk, &mut stored);
        assert_eq!(stored[..3], [1, 0b1_0010, 0b10]);
        assert_eq!(stored.len(), 3 + 2 * 3 * 6);
        stored.push(7);
        let (mut input, mut copy) = (&stored[..], vec![0; chunk.len()]);
        assert_eq!(Exact::read("test", &layout, &mut input, &mut copy).unwrap(), exact);
        assert_eq!(input, [7]);
        for (at, (copied, byte)) in copy.iter().zip(&chunk).enumerate() {
            assert_eq!(*copied, if exact.contains(at / 6 % 11) { *byte } else { 0 });
        }
        for cut in 0..stored.len() - 1 {
            assert!(Exact::read("test", &layout, &mut &stored[..cut], &mut copy).is_err());
        }
    }
}
