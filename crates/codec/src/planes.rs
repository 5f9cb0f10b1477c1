//! Byte planes: all first bytes of the elements, then all second bytes, and so on.
//!
//! Signs and exponents then lie together, away from the noise of the mantissas, which is what lets an entropy coder find
//! them. Types of one byte, and packed ones, pass through; so does a tail shorter than an element.

use sira_tensor::DType;

use crate::{ChunkContext, Codec, CodecError};

/// Bytes handled at a time: two buffers of it stay in the nearest cache. A multiple of every item size.
const BLOCK: usize = 4096;

#[derive(Debug)]
pub(crate) struct Planes;

impl Codec for Planes {
    fn name(&self) -> &'static str {
        "planes"
    }

    fn lossless(&self) -> bool {
        true
    }

    fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        Ok(match planes_of(context.dtype) {
            1 => input.to_vec(),
            planes => split(input, planes),
        })
    }

    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        CodecError::check_len("planes", decoded_len, input.len())?;
        Ok(match planes_of(context.dtype) {
            1 => input.to_vec(),
            planes => merge(input, planes),
        })
    }

    fn encoded_len(&self, input_len: usize) -> Option<usize> {
        Some(input_len)
    }
}

/// How many planes the elements are split into: 1 (nothing to do), 2, 4 or 8.
fn planes_of(dtype: DType) -> usize {
    match dtype {
        DType::Complex64 => 4, // two float32
        other => other.item_size().filter(|size| [2, 4, 8].contains(size)).unwrap_or(1),
    }
}

/// Even bytes to the first half, odd ones to the second. Twice of it makes four planes, thrice eight.
///
/// Through a `u16`, since that is what the compiler turns into vector code (ten times faster); not inlined, so that it knows
/// `from` and `to` apart.
#[inline(never)]
fn unshuffle(from: &[u8], to: &mut [u8]) {
    let pairs = from.as_chunks::<2>().0;
    let (even, odd) = to.split_at_mut(pairs.len());
    for ((pair, even), odd) in pairs.iter().zip(even).zip(odd) {
        let [low, high] = [u16::from_le_bytes(*pair), u16::from_le_bytes(*pair) >> 8];
        (*even, *odd) = (low as u8, high as u8);
    }
}

/// The inverse of [`unshuffle`].
#[inline(never)]
fn shuffle(from: &[u8], to: &mut [u8]) {
    let pairs = to.as_chunks_mut::<2>().0;
    let (even, odd) = from.split_at(pairs.len());
    for ((pair, even), odd) in pairs.iter_mut().zip(even).zip(odd) {
        *pair = [*even, *odd];
    }
}

fn split(input: &[u8], planes: usize) -> Vec<u8> {
    let elements = input.len() / planes;
    let (body, tail) = input.split_at(elements * planes);
    let mut output = vec![0; input.len()];
    output[body.len()..].copy_from_slice(tail);
    let (mut a, mut b) = ([0; BLOCK], [0; BLOCK]);
    for (start, block) in (0..).step_by(BLOCK / planes).zip(body.chunks(BLOCK)) {
        let (mut from, mut to) = (&mut a[..block.len()], &mut b[..block.len()]);
        unshuffle(block, from);
        for _ in 1..planes.ilog2() {
            unshuffle(from, to);
            (from, to) = (to, from);
        }
        for (plane, run) in from.chunks_exact(block.len() / planes).enumerate() {
            output[plane * elements + start..][..run.len()].copy_from_slice(run);
        }
    }
    output
}

fn merge(input: &[u8], planes: usize) -> Vec<u8> {
    let elements = input.len() / planes;
    let mut output = vec![0; input.len()];
    let (body, tail) = output.split_at_mut(elements * planes);
    tail.copy_from_slice(&input[body.len()..]);
    let (mut a, mut b) = ([0; BLOCK], [0; BLOCK]);
    for (start, block) in (0..).step_by(BLOCK / planes).zip(body.chunks_mut(BLOCK)) {
        let (mut from, mut to) = (&mut a[..block.len()], &mut b[..block.len()]);
        for (plane, run) in from.chunks_exact_mut(block.len() / planes).enumerate() {
            run.copy_from_slice(&input[plane * elements + start..][..run.len()]);
        }
        for _ in 1..planes.ilog2() {
            shuffle(from, to);
            (from, to) = (to, from);
        }
        shuffle(from, block);
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_where_they_should_be_at_any_length() {
        for planes in [2, 4, 8] {
            for len in (0..70).chain(BLOCK - 9..BLOCK + 9).chain(3 * BLOCK - 9..3 * BLOCK + 9) {
                let input: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
                let body = len / planes * planes;
                let expected: Vec<u8> =
                    (0..planes).flat_map(|plane| input[..body].iter().skip(plane).step_by(planes)).chain(&input[body..]).copied().collect();
                assert_eq!(split(&input, planes), expected, "{planes} planes of {len} bytes");
                assert_eq!(merge(&expected, planes), input, "{planes} planes of {len} bytes");
            }
        }
    }

    #[test]
    fn every_type_has_its_number_of_planes() {
        for dtype in DType::all() {
            let expected = match (dtype, dtype.bits()) {
                (DType::Complex64, _) => 4,
                (_, bits) => (bits as usize / 8).max(1),
            };
            assert_eq!(planes_of(dtype), expected, "{dtype}");
        }
    }
}
