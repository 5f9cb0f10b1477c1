//! What a tensor is: dtype, shape, axes, its specification, its chunk grid and its Arrow carrier. No I/O.

pub mod carrier;
mod dtype;
mod error;
#[allow(missing_docs, unsafe_code, unused_qualifications, clippy::all, clippy::unwrap_used)]
// Reason: written by flatc from schemas/, see `make schemas`.
mod generated {
    #[rustfmt::skip]
    pub mod spec;
}
pub mod grid;
pub mod kv;
pub mod shape;
mod spec;

pub use dtype::DType;
pub use error::TensorError;
pub use spec::{MAX_ATTRIBUTES, MAX_NAME, MAX_VALUE, TensorSpec, region};
