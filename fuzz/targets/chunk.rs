//! Chunks, as a backend gives them back: the text of a chain up to the first zero byte, a dtype, a length of two bytes, what was stored. They
//! are decoded as chunks of which nothing is known, as those of a KV cache where they can be one, and by the golden calibrations where they name one.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sira_codec::{Calibration, Chain, ChunkContext, KvFacts, TensorContext};
use sira_tensor::DType;
use sira_tensor::kv::Rope;

/// Of a model of two layers of two heads of eight dimensions.
static CALIBRATIONS: LazyLock<[Calibration; 2]> = LazyLock::new(|| {
    let golden: [&[u8]; 2] =
        [include_bytes!("../../crates/codec/golden/kvtc.calib"), include_bytes!("../../crates/codec/golden/kvq.calib")];
    golden.map(|bytes| Calibration::from_bytes(bytes).unwrap())
});

fuzz_target!(|bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else { return };
    let (text, rest) = (&bytes[..end], &bytes[end + 1..]);
    let (Ok(text), Some((head, stored))) = (std::str::from_utf8(text), rest.split_first_chunk::<3>()) else { return };
    let Some(dtype) = DType::from_number(head[0]) else { return };
    let len = usize::from(u16::from_le_bytes([head[1], head[2]]));
    LazyLock::force(&CALIBRATIONS);
    sira_fuzz::bounded(bytes.len() + len, || {
        let Ok(chain) = text.parse::<Chain>() else { return };
        if let Ok(raw) = chain.decode(stored, len, ChunkContext::new(dtype, &[len as u64], &[0])) {
            assert_eq!(raw.len(), len);
        }
        // Two layers of keys and values, heads of eight dimensions, as many tokens as there are.
        let shape = [2, 2, (len * 8 / dtype.bits() as usize / 32) as u64, 1, 8];
        let axes = ["layer", "kv", "token", "head", "dim"].map(str::to_owned);
        let rope = Rope { theta: 10_000.0, dim: 8, style: Default::default(), first_position: 0, scaling: Default::default() };
        let facts = KvFacts { model: None, rope: Some(rope), part: "data".into(), fields: Vec::new() };
        let tensor = TensorContext { shape: &shape, axes: &axes, kv: Some(&facts), ..TensorContext::default() };
        let context = ChunkContext { dtype, shape: &shape, origin: &[0; 5], tensor };
        if let Ok(raw) = chain.decode(stored, len, context) {
            assert_eq!(raw.len(), len);
        }
        // And of two heads, as the calibrations' model has them.
        let shape = [2, 2, (len * 8 / dtype.bits() as usize / 64) as u64, 2, 8];
        let calibration = CALIBRATIONS.iter().find(|calibration| chain.calibration() == Some(calibration.hash()));
        let tensor = TensorContext { shape: &shape, calibration, ..tensor };
        let context = ChunkContext { dtype, shape: &shape, origin: &[0; 5], tensor };
        if let (Some(_), Ok(raw)) = (calibration, chain.decode(stored, len, context)) {
            assert_eq!(raw.len(), len);
        }
    });
});
