//! The same tensor in fewer bytes: one trait, one module a codec family.
//!
//! A chunk is encoded by a [`Chain`], named by its text (`planes+zstd`), which is written beside the chunk; any reader
//! decodes from that text alone, without configuration. Nothing here does I/O.

pub mod calibration;
mod chain;
pub mod conformance;
mod default;
mod error;
mod float;
mod gzip;
mod kv;
mod kvq;
mod kvtc;
mod linear;
mod lz4;
mod planes;
mod quality;
mod quant;
mod rans;
mod stages;
mod zstd;

pub use calibration::Calibration;
pub use chain::{Chain, Encoded, stages};
pub use default::DefaultChain;
pub use error::CodecError;
pub use kv::KvFacts;
pub use quality::Quality;
pub use stages::{Preset, StageInfo};

use sira_tensor::{DType, TensorSpec};

/// Where a chunk lies in its tensor, and what the tensor is: what a codec may know besides the bytes.
#[derive(Clone, Copy, Debug)]
pub struct ChunkContext<'a> {
    /// Element type of the tensor.
    pub dtype: DType,
    /// Extents of this chunk (row-major), one an axis of the tensor.
    pub shape: &'a [u64],
    /// First index of this chunk on each axis.
    pub origin: &'a [u64],
    /// The tensor it is a chunk of.
    pub tensor: TensorContext<'a>,
}

/// What is known of a tensor beyond one of its chunks. Encoding and decoding a chunk take the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct TensorContext<'a> {
    /// Extents of the whole tensor, one an axis; empty where they are not known.
    pub shape: &'a [u64],
    /// Names of the axes, one an axis; empty where none is named.
    pub axes: &'a [String],
    /// What is known of it as a part of a KV cache.
    pub kv: Option<&'a KvFacts>,
    /// The calibration that the chain names, for those that name one.
    pub calibration: Option<&'a Calibration>,
}

impl<'a> ChunkContext<'a> {
    /// The context of a chunk of which nothing more is known.
    pub const fn new(dtype: DType, shape: &'a [u64], origin: &'a [u64]) -> ChunkContext<'a> {
        ChunkContext { dtype, shape, origin, tensor: TensorContext { shape: &[], axes: &[], kv: None, calibration: None } }
    }
}

/// One stage of a chain.
///
/// # Contract
/// - `decode(encode(x, context), context) == x`, bit for bit, for any bytes at all, the empty string included; `lossless`
///   codecs promise it, and the conformance suite checks it.
/// - Encoding is deterministic: equal input, equal output.
/// - `encode` may expand; [`Chain::encode`] then falls back to raw, so what is stored is never larger than raw.
/// - `decode` trusts nothing but `decoded_len`: bytes that no `encode` wrote give an error, or wrong bytes of the right
///   length (checksums are the store's business), never a panic, and never memory taken on the word of the input.
pub trait Codec: Send + Sync + std::fmt::Debug {
    /// The stage's name in a chain's text: lower-case letters, digits and hyphens.
    fn name(&self) -> &'static str;

    /// Whether every bit comes back.
    fn lossless(&self) -> bool;

    /// Encodes `input`.
    fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError>;

    /// Decodes `input` to exactly `decoded_len` bytes, or fails.
    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError>;

    /// [`Codec::decode`] to memory that the caller has, all of `out`; what is written there on an error means nothing.
    ///
    /// Worth an implementation of its own where decoding is about as fast as copying: fresh memory costs more than that.
    fn decode_into(&self, input: &[u8], out: &mut [u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        let decoded = self.decode(input, out.len(), context)?;
        CodecError::check_len(self.name(), out.len(), decoded.len())?;
        out.copy_from_slice(&decoded);
        Ok(())
    }

    /// The length of the output for `input_len` bytes where that is fixed by the length (a transform); `None`, whatever the
    /// length, for a compressor. A chain needs it to know what each stage decodes to, so only its last stage may compress.
    fn encoded_len(&self, input_len: usize) -> Option<usize>;

    /// Hash of the calibration that the stage was named with, if it needs one.
    fn calibration(&self) -> Option<&str> {
        None
    }

    /// Extents of the chunks that the stage wants of `spec`, one an axis; `None` where it does as well with any.
    fn chunk_shape(&self, _: &TensorSpec) -> Option<Vec<u64>> {
        None
    }
}
