//! Any bytes, any type, any chain.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sira_codec::{Chain, ChunkContext, Encoded, KvFacts, TensorContext};
use sira_tensor::DType;
use sira_tensor::kv::{Rope, RopeStyle};

fn dtypes() -> impl Strategy<Value = DType> {
    select(DType::all().collect::<Vec<_>>())
}

/// Texts of up to three transforms and perhaps a compressor, levels given or not.
fn chains() -> impl Strategy<Value = String> {
    let level = |name: &'static str, most: u8| (1..=most).prop_map(move |level| format!("{name}:{level}"));
    let last = prop_oneof![
        select(vec!["lz4", "zstd", "gzip", "float-rans", "float-nibble"]).prop_map(str::to_owned),
        level("zstd", 9), // higher levels take megabytes and long, and share the decoder
        level("gzip", 9),
    ];
    prop_oneof![
        Just("none".to_owned()),
        (1..=4usize).prop_map(|stages| vec!["planes"; stages].join("+")),
        (0..=3usize, last).prop_map(|(transforms, last)| "planes+".repeat(transforms) + &last),
    ]
}

/// Noise and runs, as long as several vectors of any width.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..2000),
        vec((any::<u8>(), 0..300usize), 0..20)
            .prop_map(|runs| runs.into_iter().flat_map(|(byte, len)| std::iter::repeat_n(byte, len)).collect()),
    ]
}

fn context(dtype: DType) -> ChunkContext<'static> {
    ChunkContext::new(dtype, &[1], &[0])
}

/// Lossy chains, and the largest relative error, root mean square, of normal values.
fn lossy() -> impl Strategy<Value = (String, f64)> {
    select(vec![
        ("int8", 0.01),
        ("int8:group=8", 0.01),
        ("int4", 0.15),
        ("int4:group=64", 0.15),
        ("fp8", 0.04),
        ("kvq:near-lossless", 0.05),
        ("kvq:step=0.2:sinks=0:window=3", 0.15),
        ("kvq:rate=4", 0.15),
        ("kvq:compact", 0.5),
    ])
    .prop_map(|(text, most)| (text.to_owned(), most))
}

/// A KV cache of float32: names of axes in some order, extents, whether there is a rotary embedding.
#[derive(Debug)]
struct Cache {
    axes: Vec<String>,
    shape: Vec<u64>,
    facts: Option<KvFacts>,
}

impl Cache {
    fn context(&self) -> ChunkContext<'_> {
        let tensor = TensorContext { shape: &self.shape, axes: &self.axes, kv: self.facts.as_ref(), ..TensorContext::default() };
        ChunkContext { dtype: DType::Float32, shape: &self.shape, origin: &[0; 5], tensor }
    }
}

fn caches() -> impl Strategy<Value = Cache> {
    let named = ["layer", "kv", "token", "head", "dim"].map(str::to_owned).to_vec();
    let extents = (1..3u64, 1..3u64, 1..70u64, 1..3u64, 1..12u64);
    (Just(named).prop_shuffle(), extents, any::<bool>(), 0..10_000u64).prop_map(
        |(axes, (layer, kv, token, head, dim), rope, first_position)| {
            let extent = |name: &String| match name.as_str() {
                "layer" => layer,
                "kv" => kv,
                "token" => token,
                "head" => head,
                _ => dim,
            };
            let shape = axes.iter().map(extent).collect();
            let style = if dim % 2 == 0 { RopeStyle::Half } else { RopeStyle::Interleaved };
            let rope =
                rope.then(|| Rope { theta: 1e4, dim: (dim as u32 / 2 * 2).max(2), style, first_position, scaling: Default::default() });
            Cache { axes, shape, facts: Some(KvFacts { model: None, rope, part: "data".into(), fields: Vec::new() }) }
        },
    )
}

/// Nearly normal values, and their bytes.
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    };
    (0..count).map(|_| (0..6).map(|_| next()).sum()).collect()
}

proptest! {
    #[test]
    fn what_went_in_comes_out_and_was_never_larger(text in chains(), dtype in dtypes(), input in bytes()) {
        let chain: Chain = text.parse().unwrap();
        match chain.encode(&input, context(dtype)).unwrap() {
            Encoded::Raw => prop_assert!(text != "planes"),
            Encoded::Bytes(stored) => {
                prop_assert!(stored.len() <= input.len());
                let read: Chain = chain.to_string().parse().unwrap();
                prop_assert_eq!(read.decode(&stored, input.len(), context(dtype)).unwrap(), input);
            }
        }
    }

    #[test]
    fn foreign_bytes_never_panic(text in chains(), dtype in dtypes(), stored in bytes(), len in 0..5000usize) {
        let chain: Chain = text.parse().unwrap();
        if let Ok(decoded) = chain.decode(&stored, len, context(dtype)) {
            prop_assert_eq!(decoded.len(), len);
        }
    }

    #[test]
    fn damaged_bytes_never_panic(
        text in chains(), dtype in dtypes(), input in bytes(), at in any::<prop::sample::Index>(), to: u8, cut in any::<prop::sample::Index>(),
    ) {
        let chain: Chain = text.parse().unwrap();
        if let Ok(Encoded::Bytes(mut stored)) = chain.encode(&input, context(dtype)) && !stored.is_empty() {
            *at.get_mut(&mut stored) = to;
            for stored in [&stored[..], &stored[..cut.index(stored.len())]] {
                if let Ok(decoded) = chain.decode(stored, input.len(), context(dtype)) {
                    prop_assert_eq!(decoded.len(), input.len());
                }
            }
        }
    }

    #[test]
    fn a_text_that_parses_has_a_canonical_form(text in "[a-z0-9:+]{0,40}|(none|planes|lz4|zstd|gzip|float-rans)([:+](none|planes|lz4|zstd|gzip|float-rans|[0-9]{1,3})){0,5}") {
        if let Ok(chain) = text.parse::<Chain>() {
            prop_assert!(chain.as_str().len() <= text.len());
            prop_assert_eq!(chain.as_str().parse::<Chain>(), Ok(chain));
        }
    }

    #[test]
    fn what_comes_out_of_a_lossy_chain_is_near((text, most) in lossy(), cache in caches(), seed: u64) {
        let chain: Chain = text.parse().unwrap();
        let values = normal(cache.shape.iter().product::<u64>() as usize, seed);
        let input: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        if let Encoded::Bytes(stored) = chain.encode(&input, cache.context()).unwrap() {
            let decoded = chain.decode(&stored, input.len(), cache.context()).unwrap();
            let decoded = decoded.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            let (error, all) = values.iter().zip(decoded).fold((0.0, 0.0), |(error, all), (a, b)| {
                (error + f64::from(a - b).powi(2), all + f64::from(*a).powi(2))
            });
            prop_assert!(error <= all * most * most, "an error of {}", (error / all).sqrt());
        }
    }

    #[test]
    fn damaged_and_foreign_lossy_bytes_never_panic(
        (text, _) in lossy(), cache in caches(), foreign in bytes(), at in any::<prop::sample::Index>(), to: u8, cut in any::<prop::sample::Index>(),
    ) {
        let chain: Chain = text.parse().unwrap();
        let input: Vec<u8> = normal(cache.shape.iter().product::<u64>() as usize, 1).iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut stored = match chain.encode(&input, cache.context()).unwrap() {
            Encoded::Bytes(stored) => stored,
            Encoded::Raw => Vec::new(),
        };
        if !stored.is_empty() {
            *at.get_mut(&mut stored) = to;
        }
        for stored in [&stored[..], &stored[..cut.index(stored.len() + 1)], &foreign] {
            if let Ok(decoded) = chain.decode(stored, input.len(), cache.context()) {
                prop_assert_eq!(decoded.len(), input.len());
            }
        }
    }

    /// Values of a few sizes by channel, as the float codecs expect them, with anything in between.
    #[test]
    fn channels_of_floats_come_back(
        text in select(vec!["float-rans", "float-nibble"]), dtype in dtypes(), rows in 0..90u64, width in 1..300u64, spread in 0..9u32, seed: u64, more in vec(any::<u8>(), 0..9),
    ) {
        let chain: Chain = text.parse().unwrap();
        let mut state = seed | 1;
        let item = u64::from(dtype.bits()).div_ceil(8);
        let mut input = Vec::new();
        for i in 0..rows * width {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            // The upper bits vary little around what the column says, the lower ones freely.
            let high = ((i % width * 37 % 64) << 58) ^ (state >> 40 & ((1 << spread) - 1)) << 55;
            input.extend(&(high ^ state >> 9).to_le_bytes()[8 - item as usize..]);
        }
        input.extend(more);
        let shape = [rows, width];
        let context = ChunkContext::new(dtype, &shape, &[0, 0]);
        if let Encoded::Bytes(stored) = chain.encode(&input, context).unwrap() {
            prop_assert!(stored.len() <= input.len());
            prop_assert!(chain.decode(&stored, input.len(), context).as_ref() == Ok(&input));
            let mut out = vec![0xee; input.len()];
            chain.decode_into(&stored, &mut out, context).unwrap();
            prop_assert!(out == input);
            for cut in [stored.len() / 2, stored.len().saturating_sub(1)] {
                prop_assert!(chain.decode(&stored[..cut], input.len(), context).is_err());
            }
        }
    }
}
