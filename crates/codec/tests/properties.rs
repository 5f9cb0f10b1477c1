//! Any bytes, any type, any chain.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sira_codec::{Chain, ChunkContext, Encoded};
use sira_tensor::DType;

fn dtypes() -> impl Strategy<Value = DType> {
    select(DType::all().collect::<Vec<_>>())
}

/// Texts of up to three transforms and perhaps a compressor, levels given or not.
fn chains() -> impl Strategy<Value = String> {
    let level = |name: &'static str, most: u8| (1..=most).prop_map(move |level| format!("{name}:{level}"));
    let last = prop_oneof![
        select(vec!["lz4", "zstd", "gzip"]).prop_map(str::to_owned),
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
    fn a_text_that_parses_has_a_canonical_form(text in "[a-z0-9:+]{0,40}|(none|planes|lz4|zstd|gzip)([:+](none|planes|lz4|zstd|gzip|[0-9]{1,3})){0,5}") {
        if let Ok(chain) = text.parse::<Chain>() {
            prop_assert!(chain.as_str().len() <= text.len());
            prop_assert_eq!(chain.as_str().parse::<Chain>(), Ok(chain));
        }
    }
}
