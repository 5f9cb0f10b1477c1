//! Quantisation to a fixed number of bits: no entropy coder, no calibration, and fast.

mod fp8;
mod group;

pub(crate) use fp8::Fp8;
pub(crate) use group::{FORM, build_int4, build_int8};
