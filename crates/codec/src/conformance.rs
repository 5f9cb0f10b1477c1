//! What every codec must keep, as a suite that a codec's own tests can call.
//!
//! ```
//! sira_codec::conformance::check_chain("planes+lz4");
//! ```
#![allow(clippy::panic, reason = "a test suite: a panic is how it says what failed")]

mod kv;

use sira_tensor::DType;

use crate::{Calibration, Chain, ChunkContext, Codec, CodecError, Encoded, TensorContext};

/// Lengths for every type: empty, odd, around element and vector sizes, around 64 KiB (where encoders change tables).
const LENGTHS: [usize; 16] = [0, 1, 2, 3, 7, 8, 9, 31, 64, 127, 1000, 4095, 4096, 4097, 65_535, 65_551];

/// What a decoder may hold on to beyond its output.
const SLACK: usize = 4096;

/// Panics, with what failed, unless `codec` keeps the contract of [`Codec`].
pub fn check(codec: &dyn Codec) {
    let name = codec.name();
    assert!(!name.is_empty() && name != Chain::NONE, "name {name:?} is taken");
    assert!(
        name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
        "name {name:?} has more than lower-case letters, digits and hyphens"
    );
    suite(name, codec);
}

/// The same for a whole chain, and for what a chain adds: its text comes back, and it never stores more than raw.
pub fn check_chain(text: &str) {
    let chain: Chain = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(chain.as_str().parse().as_ref(), Ok(&chain), "{text}: the canonical text is another chain");
    suite(text, &Whole { chain: chain.clone(), calibration: None });
    let mut noise = Noise(3);
    for dtype in DType::all() {
        for (content, input) in LENGTHS.iter().flat_map(|&len| contents(len, &mut noise)) {
            let case = format!("{text}, {dtype}, {} bytes of {content}", input.len());
            let shape = [elements(dtype, &input)];
            let context = flat(dtype, &shape);
            match chain.encode(&input, context) {
                Err(error) => assert!(!chain.lossless(), "{case}: {error}"),
                Ok(Encoded::Raw) => {}
                Ok(Encoded::Bytes(bytes)) => {
                    assert!(bytes.len() <= input.len(), "{case}: stored as {} bytes", bytes.len());
                    let decoded = chain.decode(&bytes, input.len(), context);
                    assert!(!chain.lossless() || decoded.as_ref() == Ok(&input), "{case}: not what went in");
                }
            }
        }
    }
}

/// The same for a stage that is named with `calibration`, `kvtc:high` or `kvq`; and over KV caches of the calibration's model, none of which it may
/// refuse.
pub fn check_calibrated(stage: &str, calibration: &Calibration) {
    let chain: Chain = format!("{stage}@{}", calibration.hash()).parse().unwrap_or_else(|error| panic!("{stage}: {error}"));
    assert_eq!(chain.calibration(), Some(calibration.hash()), "{stage}: does not say which calibration it needs");
    let codec = Whole { chain, calibration: Some(calibration) };
    suite(stage, &codec);
    kv::of_model(stage, &codec, calibration.model(), &mut Noise(2));
    kv::without(stage, &codec.chain, calibration.model(), &mut Noise(2));
}

/// A chain as one codec, without the fall-back to raw, so that noise goes through its stages too; with the calibration that it is named with.
#[derive(Debug)]
struct Whole<'a> {
    chain: Chain,
    calibration: Option<&'a Calibration>,
}

impl Whole<'_> {
    fn context<'b>(&'b self, context: ChunkContext<'b>) -> ChunkContext<'b> {
        ChunkContext { tensor: TensorContext { calibration: self.calibration, ..context.tensor }, ..context }
    }
}

impl Codec for Whole<'_> {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn lossless(&self) -> bool {
        self.chain.lossless()
    }

    fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        self.chain.run(input, self.context(context)).map(|bytes| bytes.into_owned())
    }

    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        self.chain.decode(input, decoded_len, self.context(context))
    }

    fn decode_into(&self, input: &[u8], out: &mut [u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        self.chain.decode_into(input, out, self.context(context))
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }

    fn calibration(&self) -> Option<&str> {
        self.chain.calibration()
    }
}

fn suite(name: &str, codec: &dyn Codec) {
    let mut noise = Noise(1);
    for dtype in DType::all() {
        for (content, input) in LENGTHS.iter().flat_map(|&len| contents(len, &mut noise)) {
            round_trip(name, codec, dtype, content, &input);
        }
        round_trip(name, codec, dtype, "bf16 values", &noise.bf16(1 << 20));
        for (content, input) in contents(3001, &mut noise) {
            let shape = [elements(dtype, &input)];
            corruption(name, codec, flat(dtype, &shape), content, &input, &mut noise);
        }
    }
    kv::suite(name, codec, &mut noise);
    let bomb = vec![0; 8 << 20];
    wrong_lengths(name, codec, flat(DType::UInt8, &[bomb.len() as u64]), "zeros", &bomb);
}

fn round_trip(name: &str, codec: &dyn Codec, dtype: DType, content: &str, input: &[u8]) {
    let case = format!("{name}, {dtype}, {} bytes of {content}", input.len());
    let count = elements(dtype, input);
    // The bytes count, not the shape: a context that says less than they do must not lose any.
    for shape in [&[count] as &[u64], &[], &[count / 2, 1, 2]] {
        let context = ChunkContext::new(dtype, shape, &[0, 0, 0][..shape.len()]);
        let encoded = match codec.encode(input, context) {
            Ok(encoded) => encoded,
            Err(error) => {
                assert!(!codec.lossless(), "{case}: a lossless codec takes any bytes, but: {error}");
                continue;
            }
        };
        assert!(codec.encode(input, context).as_ref() == Ok(&encoded), "{case}: encoded in two ways");
        if let Some(len) = codec.encoded_len(input.len()) {
            assert_eq!(encoded.len(), len, "{case}: not of the length that was promised");
        }
        let decoded = decoded(&case, codec, &encoded, input.len(), context);
        assert!(!codec.lossless() || decoded == input, "{case}: not what went in");
        if input.len() > 4097 {
            break; // the shapes have been tried; this only takes longer
        }
    }
}

/// What sound bytes decode to, into new memory and into such that was used before.
fn decoded(case: &str, codec: &dyn Codec, encoded: &[u8], len: usize, context: ChunkContext<'_>) -> Vec<u8> {
    let decoded = codec.decode(encoded, len, context).unwrap_or_else(|error| panic!("{case}: encoded, but not decoded: {error}"));
    assert_eq!(decoded.len(), len, "{case}: wrong length");
    let mut used = vec![0xee; len];
    codec.decode_into(encoded, &mut used, context).unwrap_or_else(|error| panic!("{case}: not decoded into memory: {error}"));
    assert!(used == decoded, "{case}: other bytes where there were some");
    decoded
}

/// Bytes that no encoder wrote: an error, or wrong bytes of the right length; the store's checksums tell those.
fn corruption(name: &str, codec: &dyn Codec, context: ChunkContext<'_>, content: &str, input: &[u8], noise: &mut Noise) {
    let dtype = context.dtype;
    let Ok(encoded) = codec.encode(input, context) else { return };
    let case = |damage: String| format!("{name}, {dtype}, {} bytes of {content}, {damage}", input.len());
    let step = (encoded.len() / 100).max(1);
    for kept in (0..encoded.len().min(64)).chain((0..encoded.len()).step_by(step)) {
        decode_bounded(codec, &encoded[..kept], input.len(), context, || case(format!("cut to {kept}")));
    }
    for bit in (0..200).map(|_| noise.below(encoded.len() * 8)).chain(0..(encoded.len() * 8).min(256)) {
        let mut damaged = encoded.clone();
        let Some(byte) = damaged.get_mut(bit / 8) else { break };
        *byte ^= 1 << (bit % 8);
        decode_bounded(codec, &damaged, input.len(), context, || case(format!("bit {bit} flipped")));
    }
    for kept in [0, 1, 2, 4, 5, 8, 10, 18].into_iter().cycle().take(100) {
        let mut garbage = noise.bytes(64);
        let kept = kept.min(encoded.len()).min(garbage.len());
        garbage[..kept].copy_from_slice(&encoded[..kept]);
        garbage.truncate(noise.below(65));
        decode_bounded(codec, &garbage, input.len(), context, || case(format!("{garbage:?}")));
    }
    let longer = [&encoded[..], &encoded[..]].concat();
    decode_bounded(codec, &longer, input.len(), context, || case("twice over".to_owned()));
    wrong_lengths(name, codec, context, content, input);
}

/// Sound bytes under a wrong length.
fn wrong_lengths(name: &str, codec: &dyn Codec, context: ChunkContext<'_>, content: &str, input: &[u8]) {
    let Ok(encoded) = codec.encode(input, context) else { return };
    let (len, dtype) = (input.len(), context.dtype);
    for wrong in [0, 1, len / 2, len.saturating_sub(1), len + 1, len * 2 + 7] {
        let case = || format!("{name}, {dtype}, {len} bytes of {content} decoded as {wrong}");
        decode_bounded(codec, &encoded, wrong, context, case);
    }
}

fn decode_bounded(codec: &dyn Codec, bytes: &[u8], len: usize, context: ChunkContext<'_>, case: impl Fn() -> String) {
    if let Ok(decoded) = codec.decode(bytes, len, context) {
        assert_eq!(decoded.len(), len, "{}: wrong length", case());
        assert!(decoded.capacity() <= len + SLACK, "{}: {} bytes allocated", case(), decoded.capacity());
    }
}

fn flat(dtype: DType, shape: &[u64; 1]) -> ChunkContext<'_> {
    ChunkContext::new(dtype, shape, &[0])
}

/// How many whole elements lie in `bytes`.
fn elements(dtype: DType, bytes: &[u8]) -> u64 {
    bytes.len() as u64 * 8 / u64::from(dtype.bits())
}

fn contents(len: usize, noise: &mut Noise) -> [(&'static str, Vec<u8>); 4] {
    [("noise", noise.bytes(len)), ("zeros", vec![0; len]), ("one byte", vec![0xa5; len]), ("bf16 values", noise.bf16(len))]
}

/// SplitMix64: the same bytes in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where there is none.
    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end.max(1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    /// Normally distributed values rounded to bfloat16, as activations and weights nearly are.
    fn bf16(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(2)).flat_map(|_| self.bf16_value().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    fn bf16_value(&mut self) -> u16 {
        // The sum of eight uniform bytes is as good as normal here.
        let sum: u32 = self.next().to_le_bytes().into_iter().map(u32::from).sum();
        let bits = ((sum as f32 - 1020.0) / 209.0).to_bits();
        ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
    }
}
