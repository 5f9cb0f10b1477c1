//! Element types: every one that safetensors knows.

use std::fmt;
use std::str::FromStr;

use crate::TensorError;

/// The type of a tensor's elements.
///
/// Names are those of `ml_dtypes` and numpy (`bfloat16`); safetensors' spellings (`BF16`) are accepted on the way in.
/// The discriminant is the number in `schemas/spec.fbs`: it is part of the format and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DType {
    /// One byte an element, 0 or 1.
    Bool = 1,
    /// Two elements a byte (OCP MX).
    Float4E2M1Fn = 2,
    /// Four elements in three bytes (OCP MX).
    Float6E2M3Fn = 3,
    /// Four elements in three bytes (OCP MX).
    Float6E3M2Fn = 4,
    /// Unsigned byte.
    UInt8 = 5,
    /// Signed byte.
    Int8 = 6,
    /// FP8 with 5 exponent bits (arXiv 2209.05433).
    Float8E5M2 = 7,
    /// FP8 with 4 exponent bits, no infinities (arXiv 2209.05433).
    Float8E4M3Fn = 8,
    /// A power of two, the scale type of OCP MX.
    Float8E8M0Fnu = 9,
    /// FP8 with 4 exponent bits, one zero, one NaN.
    Float8E4M3Fnuz = 10,
    /// FP8 with 5 exponent bits, one zero, one NaN.
    Float8E5M2Fnuz = 11,
    /// Signed, 16 bits.
    Int16 = 12,
    /// Unsigned, 16 bits.
    UInt16 = 13,
    /// IEEE half precision.
    Float16 = 14,
    /// The upper half of a float32.
    BFloat16 = 15,
    /// Signed, 32 bits.
    Int32 = 16,
    /// Unsigned, 32 bits.
    UInt32 = 17,
    /// IEEE single precision.
    Float32 = 18,
    /// Two float32: real, imaginary.
    Complex64 = 19,
    /// IEEE double precision.
    Float64 = 20,
    /// Signed, 64 bits.
    Int64 = 21,
    /// Unsigned, 64 bits.
    UInt64 = 22,
}

/// Type, name (ml_dtypes, numpy), safetensors' name, bits an element.
const TABLE: [(DType, &str, &str, u32); 22] = [
    (DType::Bool, "bool", "BOOL", 8),
    (DType::Float4E2M1Fn, "float4_e2m1fn", "F4", 4),
    (DType::Float6E2M3Fn, "float6_e2m3fn", "F6_E2M3", 6),
    (DType::Float6E3M2Fn, "float6_e3m2fn", "F6_E3M2", 6),
    (DType::UInt8, "uint8", "U8", 8),
    (DType::Int8, "int8", "I8", 8),
    (DType::Float8E5M2, "float8_e5m2", "F8_E5M2", 8),
    (DType::Float8E4M3Fn, "float8_e4m3fn", "F8_E4M3", 8),
    (DType::Float8E8M0Fnu, "float8_e8m0fnu", "F8_E8M0", 8),
    (DType::Float8E4M3Fnuz, "float8_e4m3fnuz", "F8_E4M3FNUZ", 8),
    (DType::Float8E5M2Fnuz, "float8_e5m2fnuz", "F8_E5M2FNUZ", 8),
    (DType::Int16, "int16", "I16", 16),
    (DType::UInt16, "uint16", "U16", 16),
    (DType::Float16, "float16", "F16", 16),
    (DType::BFloat16, "bfloat16", "BF16", 16),
    (DType::Int32, "int32", "I32", 32),
    (DType::UInt32, "uint32", "U32", 32),
    (DType::Float32, "float32", "F32", 32),
    (DType::Complex64, "complex64", "C64", 64),
    (DType::Float64, "float64", "F64", 64),
    (DType::Int64, "int64", "I64", 64),
    (DType::UInt64, "uint64", "U64", 64),
];

impl DType {
    /// Every element type, in the order of the format's numbers.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (DType, &'static str, &'static str, u32) {
        &TABLE[self as usize - 1]
    }

    /// The name in `ml_dtypes` or numpy: `bfloat16`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The name in a safetensors header: `BF16`.
    pub fn safetensors_name(self) -> &'static str {
        self.row().2
    }

    /// Bits an element takes; 4 and 6 for the packed types.
    pub fn bits(self) -> u32 {
        self.row().3
    }

    /// Whole bytes an element takes, or `None` for the packed types.
    pub fn item_size(self) -> Option<usize> {
        self.bits().is_multiple_of(8).then(|| self.bits() as usize / 8)
    }

    /// The type with this number in the format.
    pub fn from_number(number: u8) -> Option<DType> {
        TABLE.get(usize::from(number).checked_sub(1)?).map(|row| row.0)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = TensorError;

    /// Takes ml_dtypes' and safetensors' names, in any case.
    fn from_str(name: &str) -> Result<DType, TensorError> {
        TABLE
            .iter()
            .find(|row| row.1.eq_ignore_ascii_case(name) || row.2.eq_ignore_ascii_case(name))
            .map(|row| row.0)
            .ok_or_else(|| TensorError::UnknownDType(name.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_at_their_numbers_and_names_come_back() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i + 1, "{row:?}");
            assert_eq!(DType::from_number(row.0 as u8), Some(row.0));
            assert_eq!(row.1.parse::<DType>(), Ok(row.0));
            assert_eq!(row.2.parse::<DType>(), Ok(row.0));
        }
        assert_eq!(DType::from_number(0), None);
        assert_eq!(DType::from_number(23), None);
        assert!("float3".parse::<DType>().is_err());
    }
}
