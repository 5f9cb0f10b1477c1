//! Extents with checked arithmetic.

use crate::{DType, TensorError};

/// Axes a tensor may have (numpy's own limit).
pub const MAX_RANK: usize = 64;

/// Elements of a shape; an error where the product passes 63 bits, even if another axis is empty.
pub fn elements(shape: &[u64]) -> Result<u64, TensorError> {
    if shape.len() > MAX_RANK {
        return Err(TensorError::TooManyAxes { rank: shape.len(), limit: MAX_RANK });
    }
    // Zeros are left out of the check: [2^40, 2^40, 0] is as unreasonable as [2^40, 2^40].
    let mut product = 1u64;
    for &extent in shape.iter().filter(|&&extent| extent > 0) {
        product = product.checked_mul(extent).filter(|&p| p <= i64::MAX as u64).ok_or_else(|| TensorError::TooLarge(shape.to_vec()))?;
    }
    Ok(if shape.contains(&0) { 0 } else { product })
}

/// Bytes of a tensor, packed types included.
pub fn nbytes(dtype: DType, shape: &[u64]) -> Result<u64, TensorError> {
    let count = elements(shape)?;
    let bits = u128::from(count) * u128::from(dtype.bits());
    if !bits.is_multiple_of(8) {
        return Err(TensorError::PartialByte { elements: count, bits: dtype.bits() });
    }
    u64::try_from(bits / 8).ok().filter(|&n| n <= i64::MAX as u64).ok_or_else(|| TensorError::TooLarge(shape.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_bytes_of_every_kind() {
        assert_eq!(nbytes(DType::Float32, &[]), Ok(4));
        assert_eq!(nbytes(DType::BFloat16, &[3, 0, 5]), Ok(0));
        assert_eq!(nbytes(DType::Float4E2M1Fn, &[3, 2]), Ok(3));
        assert_eq!(nbytes(DType::Float6E2M3Fn, &[4]), Ok(3));
        assert_eq!(nbytes(DType::Float4E2M1Fn, &[3]), Err(TensorError::PartialByte { elements: 3, bits: 4 }));
    }

    #[test]
    fn refuses_what_overflows() {
        assert!(matches!(nbytes(DType::UInt8, &[1 << 40, 1 << 40]), Err(TensorError::TooLarge(_))));
        assert!(matches!(nbytes(DType::UInt8, &[1 << 40, 1 << 40, 0]), Err(TensorError::TooLarge(_))));
        assert!(matches!(nbytes(DType::Float64, &[1 << 61]), Err(TensorError::TooLarge(_))));
        assert!(matches!(elements(&[1; 65]), Err(TensorError::TooManyAxes { .. })));
    }
}
