//! Bytes that were stored once must be read for ever.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use sira_codec::{Chain, ChunkContext, Encoded, KvFacts, TensorContext};
use sira_tensor::DType;
use sira_tensor::kv::Rope;

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

/// One layer of a KV cache, 20 tokens of one head of 4 dimensions, in bfloat16; a NaN in token 6 of K.
fn cache() -> Vec<u8> {
    let value = |i: u16| f32::from(i * 37 % 101) / 16.0 - 3.0 + f32::from(i % 4) * 2.5;
    let mut bytes: Vec<u8> = (0..160u16).flat_map(|i| ((value(i).to_bits() >> 16) as u16).to_le_bytes()).collect();
    bytes[6 * 8..][..2].copy_from_slice(&0xffc1u16.to_le_bytes());
    bytes
}

#[test]
fn what_old_encoders_lost_stays_lost() {
    let axes = ["kv", "token", "head", "dim"].map(str::to_owned);
    let rope = Rope { theta: 10_000.0, dim: 4, style: Default::default(), first_position: 0, scaling: Default::default() };
    let facts = KvFacts { model: None, rope: Some(rope), part: "data".into(), fields: Vec::new() };
    let shape = [2, 20, 1, 4];
    let tensor = TensorContext { shape: &shape, axes: &axes, kv: Some(&facts), ..TensorContext::default() };
    let context = ChunkContext { dtype: DType::BFloat16, shape: &shape, origin: &[0; 4], tensor };
    for (text, stored, hash) in LOSSY {
        let chain: Chain = text.parse().unwrap();
        let decoded = chain.decode(&hex(stored), 320, context).unwrap();
        assert_eq!(sira_tensor::kv::hash(&decoded), hash, "{text}");
        assert_eq!(decoded[6 * 8..7 * 8], cache()[6 * 8..7 * 8]);
    }
}

/// Chains, what they made of [`cache`], and the SHA-256 of what is decoded from it.
const LOSSY: [(&str, &str, &str); 5] = [
    (
        "int8",
        "01400000c1ff003faa40224118c01c40e840b840c73c40c0bd3cc0bebd3c1840c13c9240005fb81879de2695f24ca505 \
         67cb1382e03992ff55b8006f00267fec43a5ff5dbc136cda3192ec4aaa0059c71f7fd93898ff46b40d6cc62586ec33a2 \
         ff59b31374d9218fed46a00062c60e7ddb338df9033d88bf1b3dc03e1b3dc0bf1b3d80bd1b3df8bf1b3d00bf00000000 \
         033d103f1b3d34c0033d003e9b3cc83f033da0be1b3d903f033d40bf1b3d303f033d98bf1b3d803e1b3dd0bf1b3d40be \
         1b3d04c0009668fe28007ffe007ffed728007ffe007ffed728007ffe00000000009668fe007ffed7009668fe4f00feaf \
         009668fe28007ffe009668fe28007ffe009668fe28007ffe007ffed728007ffe007ffed7",
        "11cf182620012a8db81c14e5452b43d036c8b901cec9975de6ffbdf928f0aa8f",
    ),
    (
        "int4:group=8",
        "01400000c1ff003faa40224118c01c40e840b840c93e40c0833e703fc93e1840c93e9640c93e2cc0c93ec0beaf3e2c40 \
         c93e9240301bf7922f0ad6710ef9b56000e7a45f1bd6924f0ac5713ef9b4602ce7a35f1bd6914e0ac5703df90b3f88bf \
         253fc03e253fc0bf253f80bd253ff8bf253f00bf000000000b3f103f253f34c00b3f003ea53ec83f0b3fa0be253f903f \
         0b3f40bf253f303f0b3f98bf253f803e253fd0bf253f40be253f04c090f602f770df02f770df02f7000090f670df90f6 \
         05af90f602f790f602f790f602f770df02f770df",
        "10f9e16dbcbb63f343c3150d899c52fb8203e1625db69a386be11ee160369118",
    ),
    (
        "fp8",
        "01400000c1ff003faa40224118c01c40e840b84005ec667572c0726d786c637471d8716b776a5f747bdf706a76000000 \
         00e36e78766440727ae66c787561d47179e96a77745b737079eb68767350726e786d667572cc716c786b627471da706b \
         77695d737a05e06f69766754727ae46d787564c0727ae86c777460d871790000000059737079eb68767348726e786c64 \
         7572d2716c786a61747bdc706a77695b737ae26e68766650727ae56d787562cc7179e86b7774",
        "c14ae104bfcb6e6a3058b711032e15a17568432766ec40be36cab257df4930db",
    ),
    (
        "kvq:high",
        "01035c3815dd014f000040c0e83fd440a44080bd9840504001413840b03fc640964000bf8a403440f440c1ff003faa40 \
         224188bf70401040e240f03fc03ea6402041c0bf54400241d440b83f80bd9840194118c01c40e840b8400000773f0000 \
         c23e0b00000000000000f2e9b060e0840702389e02783d0100193101005d221ec8a15d010073110300380d0100166890 \
         8d453c0100b45693a8b9c9098657570100a1c9a5443c8b0300d3280100dea67e994f7e07002ef0217848020100998c01 \
         007776d366f008010076770100e125385f10ab010095e5080bc91a84047e41670690fbdf0b59e099072cecd20f6fade1 \
         1e3fb9b92200de933efef9ca58f1fdc00df6d52398488ef2a90246976e94f89e7bf089",
        "9d75478d40f202b91a69f6b7a9669649dd629b78a78a5047fce199b6e1d6a802",
    ),
    (
        "kvq:step=0.01:sinks=0",
        "01035c3815dd01400000c1ff003faa40224118c01c40e840b8400000023d00004d3c1000000039000000f3c1d00e202b \
         c0e962461100809379f4ea5828f17f24d96c9053a588a463905bd68787edcea9f8d28c15bd7af1a133f65c43876dd43a \
         a10f5e8369e853ba200fb69c15eaf9d0a1336365ce598ca900c6163bdea52e0f633536c98c4d1affc51c2978e9408106 \
         0a9e3e1a5b0100b9d72f07928c0f659e656909b97d01000a01130b664e0300f5616d12c28d03007af43828eedcd740d1 \
         aa7f4f3469d422f73c9f64df626c15e79e8f775db99b01d7bcef015d8d7304a99ddd00d89b390486cf2501f4d69901ba \
         20fa0088f3b0ab6001995c08f1497d48eee9da336df8dc2eae08a810bf97d47f9fb1f073cfbc443a791b2eb0ab610c52 \
         0d0abac8ae791e6360d62ddbb3678c9bd626f85972cb402804cf9c",
        "704fac92e56e59cd14ecdbb899e016ff9da4fdc78f97265ba2f663db22bce2f4",
    ),
];

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

/// Types of the float codecs, each with its item size.
const FLOATS: [(DType, usize); 7] = [
    (DType::BFloat16, 2),
    (DType::Float16, 2),
    (DType::Float32, 4),
    (DType::Float8E4M3Fn, 1),
    (DType::Float8E4M3Fnuz, 1),
    (DType::Float8E5M2, 1),
    (DType::Float8E5M2Fnuz, 1),
];

/// Two layers of 24 rows of 64 channels, each channel of its own size, with a few values far off; then five elements and a byte more.
fn channels(dtype: DType, item: usize) -> Vec<u8> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let mut bytes = Vec::new();
    for i in 0..2 * 24 * 64 + 5u32 {
        // The more zeros lead, the smaller the value; each has half the chance of the one before.
        let (below, channel, noise) = (next().leading_zeros() - 8, i % 64 % 5, next());
        let (exponent, bits) = match dtype {
            DType::BFloat16 | DType::Float32 => (124 - channel.min(120) - below, 8),
            DType::Float8E4M3Fn | DType::Float8E4M3Fnuz => (11 - channel - below.min(6), 4),
            _ => (20 - channel - below.min(12), 5),
        };
        let exponent = if i % 501 == 17 { i & ((1 << bits) - 1) } else { exponent };
        let value = noise << 31 | exponent << (31 - bits) | (noise >> 1 & ((1 << (31 - bits)) - 1)) ^ noise << 9 & ((1 << (31 - bits)) - 1);
        bytes.extend(&value.to_le_bytes()[4 - item..]);
    }
    bytes.push(0xee);
    bytes
}

#[test]
fn what_old_float_encoders_wrote_is_read() {
    for name in ["float-rans", "float-nibble"] {
        for (dtype, item) in FLOATS {
            let (chain, raw): (Chain, _) = (name.parse().unwrap(), channels(dtype, item));
            let context = ChunkContext::new(dtype, &[2, 24, 64], &[0, 0, 0]);
            let path = format!("golden/{name}-{dtype}.bin");
            let encoded = chain.encode(&raw, context).unwrap();
            if std::env::var_os("SIRA_WRITE_GOLDEN").is_some()
                && let Encoded::Bytes(stored) = &encoded
            {
                std::fs::write(&path, stored).unwrap();
            }
            let Ok(stored) = std::fs::read(&path) else {
                // A nibble and four bits are no less than eight.
                assert!(name == "float-nibble" && item == 1 && encoded == Encoded::Raw, "{path} is missing");
                continue;
            };
            assert!(chain.decode(&stored, raw.len(), context).as_ref() == Ok(&raw), "{path}");
            // Not for ever: a better encoder may write something else, under the same format.
            assert!(encoded == Encoded::Bytes(stored), "{path}: encoded in another way");
        }
    }
}
