//! What can be wrong with a tensor's description.

/// Why a description of a tensor was refused. Each message says what was given and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// No such element type.
    #[error("unknown dtype {0:?}; known are the names of ml_dtypes (bfloat16, float8_e4m3fn, ...) and of safetensors (BF16, F8_E4M3, ...)")]
    UnknownDType(String),
    /// The shape has more axes than the limit.
    #[error("{rank} axes; at most {limit} are supported")]
    TooManyAxes {
        /// Axes given.
        rank: usize,
        /// Axes supported.
        limit: usize,
    },
    /// The number of elements, bits or bytes does not fit in 63 bits.
    #[error("shape {0:?} has more bytes than any machine: the product of its axes overflows")]
    TooLarge(Vec<u64>),
    /// A packed tensor that ends inside a byte.
    #[error("{elements} elements of {bits} bits do not fill whole bytes")]
    PartialByte {
        /// Elements of the tensor.
        elements: u64,
        /// Bits of each.
        bits: u32,
    },
    /// The axis names do not fit the shape.
    #[error("bad axes: {0}")]
    BadAxes(String),
    /// An attribute is too long, or there are too many.
    #[error("bad attributes: {0}")]
    BadAttributes(String),
    /// A range names no axis of the tensor, or leaves it.
    #[error("bad slice: {0}")]
    BadSlice(String),
    /// The bytes are not a TensorSpec.
    #[error("not a tensor specification: {0}")]
    BadSpec(String),
    /// A layout of a KV cache that makes no sense, or that a tensor does not follow.
    #[error("kv spec: {0}")]
    BadKvSpec(String),
    /// A part that cannot be.
    #[error("bad part: {0}")]
    BadPart(String),
    /// A column that carries no tensor.
    #[error("bad column: {0}")]
    BadCarrier(String),
}
