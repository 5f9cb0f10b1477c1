//! LZ4, block format: the fastest to decode, little gain on floating point unless `planes` comes first.

use crate::{ChunkContext, Codec, CodecError};

/// The largest input of the LZ4 block format.
const MAX_INPUT: usize = 0x7e00_0000;

#[derive(Debug)]
pub(crate) struct Lz4;

impl Codec for Lz4 {
    fn name(&self) -> &'static str {
        "lz4"
    }

    fn lossless(&self) -> bool {
        true
    }

    fn encode(&self, input: &[u8], _: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        if input.len() > MAX_INPUT {
            return Err(CodecError::encode("lz4", format!("{} bytes are more than {MAX_INPUT}", input.len())));
        }
        Ok(lz4_flex::block::compress(input))
    }

    fn decode(&self, input: &[u8], decoded_len: usize, _: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let mut output = vec![0; decoded_len];
        let len = lz4_flex::block::decompress_into(input, &mut output)
            .map_err(|error| CodecError::corrupt("lz4", format!("a block of {decoded_len} bytes"), error))?;
        CodecError::check_len("lz4", decoded_len, len)?;
        Ok(output)
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }
}
