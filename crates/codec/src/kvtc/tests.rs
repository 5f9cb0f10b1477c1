//! On a model of two layers whose covariances are known.

use std::path::PathBuf;

use proptest::prelude::*;
use sira_tensor::DType;

use super::*;
use crate::calibration::tiny::{self, Cache, DIM, HEADS, LAYERS, bytes, error, model};
use crate::{Chain, Encoded};

/// Values of a token, K and V.
const TOKEN: usize = LAYERS * 2 * HEADS * DIM;

fn chain(cache: &Cache, arguments: &str) -> Chain {
    cache.chain(&format!("kvtc:{arguments}"))
}

fn round_trip(cache: &Cache, arguments: &str, values: &[f32]) -> (Vec<f32>, usize) {
    cache.round_trip(&format!("kvtc:{arguments}"), values)
}

#[test]
fn errors_are_those_of_the_step_and_bytes_fall_with_it() {
    let cache = Cache::new(96);
    let values = cache.values(1);
    let spread = error(&values, &vec![0.0; values.len()]);
    let mut last = (usize::MAX, 0.0);
    for step in [0.002, 0.01, 0.05, 0.2] {
        let (decoded, len) = round_trip(&cache, &format!("step={step}:sinks=0:window=0"), &values);
        let error = error(&values, &decoded);
        // Weights are one: rounding to the nearest would give step / sqrt(12), thresholds that save bits a little more.
        assert!(error < 0.45 * step && error < spread, "step {step}: {error} of {spread}");
        assert!(len < last.0 && error > last.1, "step {step}: {len} bytes, error {error}");
        last = (len, error);
    }
    // 32-bit values of a known spread in a basis that knows them.
    assert!(last.0 * 12 < values.len() * 4, "{} bytes", last.0);
}

#[test]
fn sinks_and_window_come_back_bit_for_bit() {
    let cache = Cache::new(60);
    let values = cache.values(2);
    let (decoded, _) = round_trip(&cache, "step=0.2:sinks=3:window=7", &values);
    for (at, (value, decoded)) in values.iter().zip(&decoded).enumerate() {
        let token = at / (HEADS * DIM) % 60;
        if !(3..53).contains(&token) {
            assert_eq!(value.to_bits(), decoded.to_bits(), "token {token}");
        }
    }
    assert!(values != decoded);
    let (decoded, _) = round_trip(&cache, "step=0.2:sinks=3:window=60", &values);
    assert_eq!(values, decoded);
}

#[test]
fn exempt_tokens_are_the_tensors_not_the_chunks() {
    let mut cache = Cache::new(100);
    let shape = [LAYERS as u64, 2, 10, HEADS as u64, DIM as u64];
    let values = cache.values(3)[..10 * TOKEN].to_vec();
    let exact = |cache: &Cache, first: u64| {
        let origin = [0, 0, first, 0, 0];
        let context = cache.context(DType::Float32, &shape, &origin);
        let chain = chain(cache, "step=0.5:sinks=4:window=12");
        let stored = chain.run(&bytes(&values), context).unwrap().into_owned();
        let decoded = chain.decode(&stored, values.len() * 4, context).unwrap();
        let same = |token: usize| {
            (0..HEADS * DIM * 4).all(|i| decoded[token * HEADS * DIM * 4 + i] == bytes(&values)[token * HEADS * DIM * 4 + i])
        };
        (0..10).map(same).collect::<Vec<_>>()
    };
    assert_eq!(exact(&cache, 0), (0..10).map(|token| token < 4).collect::<Vec<_>>());
    assert_eq!(exact(&cache, 50), [false; 10]);
    assert_eq!(exact(&cache, 80), (0..10).map(|token| token >= 8).collect::<Vec<_>>());
    assert_eq!(exact(&cache, 90), [true; 10]);
    // A block from the middle of a sequence has no sinks.
    cache.facts.rope.as_mut().unwrap().first_position = 3;
    assert_eq!(exact(&cache, 0), (0..10).map(|token| token < 1).collect::<Vec<_>>());
}

#[test]
fn what_is_not_finite_is_kept() {
    let cache = Cache::new(20);
    let mut values = cache.values(4);
    values[100] = f32::NAN;
    values[333] = f32::NEG_INFINITY;
    let context = cache.context(DType::Float32, &cache.shape, &[0; 5]);
    let chain = chain(&cache, "step=0.5:window=0");
    let stored = chain.run(&bytes(&values), context).unwrap().into_owned();
    assert_eq!(chain.decode(&stored, values.len() * 4, context).unwrap(), bytes(&values));
}

#[test]
fn outliers_beyond_all_tables_come_back_too() {
    // With all components: what the basis leaves out of such values would be lost.
    let cache = Cache { calibration: tiny::calibration(model(), 1e-6), ..Cache::new(40) };
    let mut values = cache.values(5);
    values.iter_mut().step_by(97).for_each(|value| *value *= 3e4);
    values[1] = -1e6;
    let (decoded, _) = round_trip(&cache, "step=0.01:sinks=0:window=0", &values);
    for (at, (value, decoded)) in values.iter().zip(&decoded).enumerate() {
        let most = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        // Whole numbers of 16 bits carry a vector's values.
        assert!((value - decoded).abs() < most * 2e-3, "{at}: {value} became {decoded}");
    }
    // Where even whole numbers of 32 bits do not hold the coefficients, the chunk is kept.
    values[1] = -1e9;
    let context = cache.context(DType::Float32, &cache.shape, &[0; 5]);
    let chain = chain(&cache, "step=0.01:sinks=0:window=0");
    let stored = chain.run(&bytes(&values), context).unwrap().into_owned();
    assert_eq!(chain.decode(&stored, values.len() * 4, context).unwrap(), bytes(&values));
}

#[test]
fn without_its_calibration_or_model_nothing_is_done() {
    let cache = Cache::new(8);
    let values = bytes(&cache.values(6));
    let chain = chain(&cache, "high");
    let mut context = cache.context(DType::Float32, &cache.shape, &[0; 5]);
    let encode = |context: ChunkContext<'_>| chain.encode(&values, context).unwrap_err().to_string();
    context.tensor.kv = None;
    assert!(encode(context).contains("rotary embedding"), "{}", encode(context));
    context.tensor.axes = &[];
    assert!(encode(context).contains("by named axes"), "{}", encode(context));
    context.tensor.calibration = None;
    assert!(encode(context).contains(cache.calibration.hash()), "{}", encode(context));
    let other = Cache { calibration: tiny::calibration(model(), 0.01), ..Cache::new(8) };
    let context = other.context(DType::Float32, &other.shape, &[0; 5]);
    assert!(matches!(chain.encode(&values, context), Err(CodecError::NoCalibration { .. })));
    assert!(matches!(chain.decode(&values, values.len(), context), Err(CodecError::NoCalibration { .. })));
    let half = [1, 2, 8, HEADS as u64, DIM as u64];
    let context = cache.context(DType::Float32, &half, &[0; 5]);
    assert!(chain.encode(&values[..values.len() / 2], context).unwrap_err().to_string().contains("some of them"));
}

#[test]
fn keys_and_values_may_be_parts_of_their_own() {
    let mut cache = Cache::new(30);
    cache.facts.part = "v".into();
    cache.axes[1] = "other".into();
    cache.shape[1] = 1;
    let values = cache.values(9);
    let (decoded, _) = round_trip(&cache, "step=0.05:sinks=0:window=0", &values);
    assert!(error(&values, &decoded) < 0.1 * error(&values, &vec![0.0; values.len()]));
}

#[test]
fn foreign_bytes_are_errors_or_wrong_values() {
    let cache = Cache::new(24);
    let values = bytes(&cache.values(7));
    let context = cache.context(DType::Float32, &cache.shape, &[0; 5]);
    let chain = chain(&cache, "step=0.02:sinks=1:window=2");
    let Encoded::Bytes(stored) = chain.encode(&values, context).unwrap() else { panic!("larger than raw") };
    for cut in 0..stored.len() {
        assert!(chain.decode(&stored[..cut], values.len(), context).is_err(), "{cut}");
    }
    let longer = [&stored[..], &[0]].concat();
    assert!(chain.decode(&longer, values.len(), context).is_err());
    for bit in 0..stored.len() * 8 {
        let mut damaged = stored.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(decoded) = chain.decode(&damaged, values.len(), context) {
            assert_eq!(decoded.len(), values.len());
        }
    }
    assert!(chain.decode(&stored, values.len() / 2, context).is_err());
}

#[test]
fn chunks_are_whole_tokens() {
    let cache = Cache::new(1);
    let shape = |tokens: u64, heads: u64, names: [&str; 5]| {
        let spec = TensorSpec::new(DType::BFloat16, vec![30, 2, tokens, heads, 64]).unwrap();
        let spec = spec.with_axes(names.map(str::to_owned).to_vec()).unwrap();
        let codec = Kvtc { options: Options::parse(&[]).unwrap(), calibration: cache.calibration.hash().to_owned() };
        codec.chunk_shape(&spec)
    };
    let names = ["layer", "kv", "token", "head", "dim"];
    assert_eq!(shape(1536, 3, names), Some(vec![30, 2, 256, 3, 64]));
    assert_eq!(shape(100, 3, names), Some(vec![30, 2, 100, 3, 64]));
    assert_eq!(shape(1536, 16, names), Some(vec![30, 2, 128, 16, 64]));
    assert_eq!(shape(1536, 1000, names), Some(vec![30, 2, 64, 1000, 64]));
    assert_eq!(shape(1536, 3, ["layer", "kv", "block", "head", "dim"]), None);
}

/// Bytes that a first version wrote, and what they stand for.
fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

#[test]
fn what_the_first_version_wrote_is_read() {
    let mut cache = Cache::new(40);
    cache.calibration = Calibration::from_bytes(&std::fs::read(golden("kvtc.calib")).unwrap()).unwrap();
    assert_eq!(cache.calibration.to_bytes().unwrap(), std::fs::read(golden("kvtc.calib")).unwrap());
    let context = cache.context(DType::BFloat16, &cache.shape, &[0; 5]);
    let raw = std::fs::read(golden("kvtc.raw")).unwrap();
    let decoded = chain(&cache, "high").decode(&std::fs::read(golden("kvtc.chunk")).unwrap(), raw.len(), context).unwrap();
    assert!(decoded == raw, "not the same values");
}

#[test]
#[ignore = "writes the golden files: only for a new format, beside the old ones"]
fn write_golden() {
    let cache = Cache::new(40);
    let context = cache.context(DType::BFloat16, &cache.shape, &[0; 5]);
    let values: Vec<u8> = cache.values(11).iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect();
    let chain = chain(&cache, "step=0.02:sinks=2:window=6");
    let Encoded::Bytes(stored) = chain.encode(&values, context).unwrap() else { panic!("larger than raw") };
    std::fs::create_dir_all(golden("")).unwrap();
    std::fs::write(golden("kvtc.calib"), cache.calibration.to_bytes().unwrap()).unwrap();
    std::fs::write(golden("kvtc.raw"), chain.decode(&stored, values.len(), context).unwrap()).unwrap();
    std::fs::write(golden("kvtc.chunk"), stored).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_finite_values_come_back_as_many(seed: u64, tokens in 1u64..70, exponent in -8i32..3, scale in -20i32..40) {
        let cache = Cache::new(tokens);
        let values: Vec<f32> = cache.values(seed).iter().map(|value| value * f32::powi(2.0, scale)).collect();
        let context = cache.context(DType::Float32, &cache.shape, &[0; 5]);
        let chain = chain(&cache, &format!("step={}:window={}", f32::powi(10.0, exponent.max(-6)), seed % 9));
        let stored = chain.run(&bytes(&values), context).unwrap().into_owned();
        prop_assert_eq!(chain.run(&bytes(&values), context).unwrap().into_owned(), stored.clone());
        let decoded = chain.decode(&stored, values.len() * 4, context).unwrap();
        prop_assert!(decoded.as_chunks().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite()));
    }

    #[test]
    fn garbage_is_refused(garbage: Vec<u8>) {
        let cache = Cache::new(9);
        let context = cache.context(DType::BFloat16, &cache.shape, &[0; 5]);
        prop_assert!(chain(&cache, "high").decode(&garbage, 9 * TOKEN * 2, context).is_err());
    }
}
