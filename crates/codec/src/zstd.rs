//! Zstandard: one frame a chunk, with its content size, without a checksum (the store verifies every chunk itself).

use sira_tensor::DType;
use zstd::bulk;
use zstd::zstd_safe::{self, CParameter};

use crate::{ChunkContext, Codec, CodecError};

const MAGIC: [u8; 4] = zstd_safe::MAGICNUMBER.to_le_bytes();

/// Size of the match finder's table for floating point at level 1: the smallest there is.
///
/// What shrinks there is the entropy of the exponents; the chance matches of a larger table cost time in both directions and
/// gain nothing (KV cache in bf16 after `planes`: encoding 2.3 times, decoding 1.5 times as fast, the same size). Runs and many
/// long repeats are still found; who has more of them takes level 2.
const FLOAT_HASH_LOG: u32 = 6;

#[derive(Debug)]
pub(crate) struct Zstd {
    pub(crate) level: u8,
}

impl Codec for Zstd {
    fn name(&self) -> &'static str {
        "zstd"
    }

    fn lossless(&self) -> bool {
        true
    }

    fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let encode = || {
            let mut encoder = bulk::Compressor::new(self.level.into())?;
            if self.level == 1 && is_float(context.dtype) {
                encoder.set_parameter(CParameter::HashLog(FLOAT_HASH_LOG))?;
            }
            encoder.compress(input)
        };
        encode().map_err(|error| CodecError::encode("zstd", error))
    }

    fn decode(&self, input: &[u8], decoded_len: usize, _: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let corrupt = |found: &dyn ToString| CodecError::corrupt("zstd", format!("one frame of {decoded_len} bytes"), found.to_string());
        // Exactly one frame of today's format: the library may be built with decoders of formats older than 1.0 (RocksDB asks
        // for them), which are not to be reachable with foreign bytes.
        if !input.starts_with(&MAGIC) {
            return Err(corrupt(&"no frame"));
        }
        let frame = zstd_safe::find_frame_compressed_size(input).map_err(|e| corrupt(&zstd_safe::get_error_name(e)))?;
        if frame != input.len() {
            return Err(corrupt(&format!("{} bytes after the frame", input.len() - frame)));
        }
        // Decoding in one go into a buffer of the known size: neither the frame's content size nor its window is believed.
        let mut output = Vec::with_capacity(decoded_len);
        bulk::Decompressor::new()
            .and_then(|mut decoder| decoder.decompress_to_buffer(input, &mut output))
            .map_err(|error| corrupt(&error))?;
        CodecError::check_len("zstd", decoded_len, output.len())?;
        Ok(output)
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }
}

/// Types whose mantissas are mostly noise.
fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::Float16 | DType::BFloat16 | DType::Float32 | DType::Float64 | DType::Complex64)
}
