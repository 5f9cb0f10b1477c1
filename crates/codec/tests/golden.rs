//! Bytes that were stored once must be read for ever.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use sira_codec::{Chain, ChunkContext, Encoded};
use sira_tensor::DType;

fn context(dtype: DType) -> ChunkContext<'static> {
    ChunkContext::new(dtype, &[20], &[0])
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// bf16 of 0.00, 0.25, 0.50, ... 4.75, and one byte more.
fn values() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..20u8).flat_map(|i| ((f32::from(i) / 4.0).to_bits() >> 16).to_le_bytes()[..2].to_vec()).collect();
    bytes.push(0xee);
    bytes
}

#[test]
fn planes_lie_in_this_order() {
    let input = hex("00 01 02 03 04 05 06 07 10 11 12 13 14 15 16 17 20 21 22");
    for (dtypes, planes) in [
        (&[DType::UInt16, DType::Int16, DType::Float16, DType::BFloat16][..], "00 02 04 06 10 12 14 16 20  01 03 05 07 11 13 15 17 21  22"),
        (&[DType::UInt32, DType::Int32, DType::Float32, DType::Complex64], "00 04 10 14  01 05 11 15  02 06 12 16  03 07 13 17  20 21 22"),
        (&[DType::UInt64, DType::Int64, DType::Float64], "00 10  01 11  02 12  03 13  04 14  05 15  06 16  07 17  20 21 22"),
        (
            &[DType::Bool, DType::UInt8, DType::Float8E4M3Fn, DType::Float4E2M1Fn, DType::Float6E3M2Fn],
            "00 01 02 03 04 05 06 07 10 11 12 13 14 15 16 17 20 21 22",
        ),
    ] {
        let chain: Chain = "planes".parse().unwrap();
        for &dtype in dtypes {
            assert_eq!(chain.encode(&input, context(dtype)), Ok(Encoded::Bytes(hex(planes))), "{dtype}");
            assert_eq!(chain.decode(&hex(planes), input.len(), context(dtype)), Ok(input.clone()), "{dtype}");
        }
    }
}

#[test]
fn what_old_encoders_wrote_is_read() {
    for (text, stored) in FIXTURES {
        let chain: Chain = text.parse().unwrap();
        assert_eq!(chain.as_str(), text);
        let raw = values().repeat(3);
        let stored = hex(stored);
        assert_eq!(chain.decode(&stored, raw.len(), context(DType::BFloat16)), Ok(raw.clone()), "{text}");
    }
}

/// Chains, and what they made of three times [`values`] as bfloat16.
const FIXTURES: [(&str, &str); 7] = [
    (
        "lz4",
        "ff1a0000803e003f403f803fa03fc03fe03f004010402040304040405040604070408040884090409840ee2900396040 \
         90409840ee",
    ),
    (
        "zstd",
        "28b52ffd207b8d010094020000803e003f403f803fa03fc03fe03f004010402040304040405040604070408040884090 \
         409840ee01007986aa32",
    ),
    (
        "gzip",
        "1f8b08000000000000ffadca3101c0201004c1931009911005b99580042420e14b4a4a4aa420050568c004fd48f1cb38 \
         3c3cbd2c1e5e3e20912904954667eb3a3c8bd1e3007b000000",
    ),
    (
        "planes",
        "0080004080a0c0e0001020304050607080889098ee003e3f3f3f3f3f3f4040404040404040404040400080004080a0c0 \
         e0001020304050607080889098003e3f3f3f3f3f3f4040404040404040404040400080004080a0c0e000102030405060 \
         7080889098ee003e3f3f3f3f3f3f404040404040404040404040ee",
    ),
    (
        "planes+lz4",
        "f1090080004080a0c0e0001020304050607080889098ee003e3f0100174001000f2900010f2800150c51006040404040 \
         40ee",
    ),
    (
        "planes+zstd",
        "28b52ffd207b4d0100d00080004080a0c0e0001020304050607080889098ee003e3f40ee050054f8e05225304501c48b \
         00c6",
    ),
    (
        "planes+gzip",
        "1f8b08000000000000ff8dcc211100201044d18d40042290002e021188408495482492284421c16560068538c1d76f3e \
         08e15c1bce07c9a5b2f5a188e9264f30e0af33877a008562d6377b000000",
    ),
];
