//! Rotary position embeddings (arXiv 2104.09864): keys before the rotation compress better than after it, since their channels keep their
//! means and variances from token to token.

use std::collections::BTreeMap;
use std::f64::consts::TAU;

use serde_json::Value;
use sira_tensor::kv::{Rope, RopeStyle};

/// Tokens after which the angles are calculated anew: until then each is the last one's plus a step, which is fast and whose error stays
/// far below that of `f32`.
const RESTART: u64 = 64;

/// The rotation of consecutive tokens' keys.
///
/// Angles are calculated in `f64` by the `libm` crate, and keys turned in `f32` without fused operations, so that all is the same on every
/// machine. They are those of the formula, not of a model's own rounding of it; taking one and the same rotation back and forth is what matters.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    style: RopeStyle,
    pairs: usize,
    /// Of each token the cosines of its pairs' angles, and the sines.
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotation {
    /// The rotation by `rope` of `tokens` tokens, the first of which is `first_token` of its sequence; `None` where the embedding is scaled
    /// in a way that is not known.
    pub(crate) fn of(rope: &Rope, first_token: u64, tokens: usize) -> Option<Rotation> {
        let frequencies = frequencies(rope)?;
        let first = rope.first_position.checked_add(first_token)?;
        let pairs = frequencies.len();
        let (mut cosines, mut sines) = (Vec::with_capacity(tokens * pairs), Vec::with_capacity(tokens * pairs));
        let step: Vec<(f64, f64)> = frequencies.iter().map(|frequency| angle(*frequency, 1)).collect();
        let mut now = Vec::new();
        for position in (first..=u64::MAX).take(tokens) {
            if now.is_empty() || position.is_multiple_of(RESTART) {
                now = frequencies.iter().map(|frequency| angle(*frequency, position)).collect();
            } else {
                turn(&mut now, &step);
            }
            cosines.extend(now.iter().map(|(cosine, _)| *cosine as f32));
            sines.extend(now.iter().map(|(_, sine)| *sine as f32));
        }
        Some(Rotation { style: rope.style, pairs, cosines, sines })
    }

    /// Rotates the tokens' keys, rows of `dim` values, as the model did.
    pub(crate) fn apply(&self, keys: &mut [f32], dim: usize) {
        self.turn(keys, dim, 1.0);
    }

    /// Takes the rotation back.
    pub(crate) fn undo(&self, keys: &mut [f32], dim: usize) {
        self.turn(keys, dim, -1.0);
    }

    fn turn(&self, keys: &mut [f32], dim: usize, direction: f32) {
        let angles = self.cosines.chunks_exact(self.pairs).zip(self.sines.chunks_exact(self.pairs));
        for (key, (cosines, sines)) in keys.chunks_exact_mut(dim).zip(angles) {
            match self.style {
                RopeStyle::Half => {
                    let (first, second) = key[..2 * self.pairs].split_at_mut(self.pairs);
                    for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                        (*a, *b) = (*a * cosine - *b * (sine * direction), *b * cosine + *a * (sine * direction));
                    }
                }
                RopeStyle::Interleaved => {
                    for (([a, b], cosine), sine) in key[..2 * self.pairs].as_chunks_mut().0.iter_mut().zip(cosines).zip(sines) {
                        (*a, *b) = (*a * cosine - *b * (sine * direction), *b * cosine + *a * (sine * direction));
                    }
                }
            }
        }
    }

    /// A number that differs between rotations, in all likelihood.
    pub(crate) fn fingerprint(&self) -> u32 {
        // FNV-1a over the last token's angles and what is paired.
        let last = self.cosines.len() - self.cosines.len().min(self.pairs);
        let angles = self.cosines[last..].iter().chain(&self.sines[last..]).flat_map(|value| value.to_le_bytes());
        let style = [u8::from(self.style == RopeStyle::Interleaved)];
        angles.chain(style).fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }
}

/// Radians a token, one a pair of dimensions.
fn frequencies(rope: &Rope) -> Option<Vec<f64>> {
    if rope.dim == 0 || !rope.dim.is_multiple_of(2) {
        return None;
    }
    let of_pair = |pair: u32| libm::pow(rope.theta, -2.0 * f64::from(pair) / f64::from(rope.dim));
    let mut frequencies: Vec<f64> = (0..rope.dim / 2).map(of_pair).collect();
    scale(&mut frequencies, rope.theta, &rope.scaling)?;
    frequencies.iter().all(|frequency| frequency.is_finite()).then_some(frequencies)
}

/// Turns each by its step.
fn turn(now: &mut [(f64, f64)], step: &[(f64, f64)]) {
    for ((cosine, sine), step) in now.iter_mut().zip(step) {
        (*cosine, *sine) = (*cosine * step.0 - *sine * step.1, *sine * step.0 + *cosine * step.1);
    }
}

/// Cosine and sine of the angle at `position`.
fn angle(frequency: f64, position: u64) -> (f64, f64) {
    let angle = libm::fmod(frequency * position as f64, TAU);
    (libm::cos(angle), libm::sin(angle))
}

/// Scales the frequencies as a model's configuration says (`rope_scaling` in transformers); `None` where it is not known how.
fn scale(frequencies: &mut [f64], theta: f64, scaling: &BTreeMap<String, Value>) -> Option<()> {
    let number = |name: &str| scaling.get(name).and_then(Value::as_f64);
    let name = scaling.get("rope_type").or_else(|| scaling.get("type"));
    match name.map_or(Some("default"), Value::as_str)? {
        "default" if name.is_some() || scaling.is_empty() => Some(()),
        "linear" => {
            let factor = number("factor").filter(|factor| *factor > 0.0)?;
            frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
            Some(())
        }
        "llama3" => llama3(frequencies, number),
        "yarn" => {
            let truncate = scaling.get("truncate").is_none_or(|truncate| truncate == &Value::Bool(true));
            yarn(frequencies, theta, truncate, number)
        }
        _ => None,
    }
}

/// Llama 3.1: low frequencies are divided by `factor`, high ones are left, and those between are blended.
fn llama3(frequencies: &mut [f64], number: impl Fn(&str) -> Option<f64>) -> Option<()> {
    let factor = number("factor").filter(|factor| *factor > 0.0)?;
    let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
    let context = number("original_max_position_embeddings")?;
    if low >= high {
        return None;
    }
    for frequency in frequencies {
        // How often the original context turns this pair around.
        let turns = context * *frequency / TAU;
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        *frequency = *frequency / factor * (1.0 - kept) + *frequency * kept;
    }
    Some(())
}

/// YaRN (arXiv 2309.00071, as in transformers): pairs that turn often are left, those that turn rarely are divided by `factor`, with a ramp
/// over the pairs between. Its factor of the keys' length is none of a rotation, and stays in them.
fn yarn(frequencies: &mut [f64], theta: f64, truncate: bool, number: impl Fn(&str) -> Option<f64>) -> Option<()> {
    let factor = number("factor").filter(|factor| *factor > 0.0)?;
    let context = number("original_max_position_embeddings").filter(|context| *context > 0.0)?;
    let pairs = frequencies.len() as f64;
    // The pair that turns around so often within the original context.
    let pair_of = |turns: f64| pairs * libm::log(context / (turns * TAU)) / libm::log(theta);
    let (low, high) = (pair_of(number("beta_fast").unwrap_or(32.0)), pair_of(number("beta_slow").unwrap_or(1.0)));
    let (low, high) = if truncate { (libm::floor(low), libm::ceil(high)) } else { (low, high) };
    let (low, mut high) = (low.max(0.0), high.min(2.0 * pairs - 1.0));
    if low == high {
        high += 0.001;
    }
    for (pair, frequency) in frequencies.iter_mut().enumerate() {
        let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        *frequency = *frequency / factor * divided + *frequency * (1.0 - divided);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(style: RopeStyle, dim: u32, first_position: u64, scaling: &str) -> Rope {
        Rope { theta: 10_000.0, dim, style, first_position, scaling: serde_json::from_str(scaling).unwrap() }
    }

    #[test]
    fn pairs_turn_by_position_times_frequency() {
        // Two pairs: the first turns by one radian a token, the second by a hundredth.
        for (style, order) in [(RopeStyle::Half, [0, 2, 1, 3]), (RopeStyle::Interleaved, [0, 1, 2, 3])] {
            let rotation = Rotation::of(&rope(style, 4, 2, "{}"), 1, 1).unwrap();
            let mut pairs = [1.0, 0.0, 0.0, 2.0];
            let mut key = [0.0, 0.0, 0.0, 0.0, 7.0];
            order.iter().zip(pairs).for_each(|(&at, value)| key[at] = value);
            rotation.apply(&mut key, 5);
            order.iter().zip(&mut pairs).for_each(|(&at, value)| *value = key[at]);
            let expected = [3f32.cos(), 3f32.sin(), -2.0 * 0.03f32.sin(), 2.0 * 0.03f32.cos()];
            assert!(pairs.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{style:?}: {pairs:?}");
            assert_eq!(key[4], 7.0, "what is not rotated stays");
        }
    }

    #[test]
    fn steps_are_as_good_as_angles_of_their_own() {
        let far = 1_000_003;
        let rotation = Rotation::of(&rope(RopeStyle::Half, 64, 0, "{}"), far, 300).unwrap();
        for (token, (cosines, sines)) in rotation.cosines.chunks(32).zip(rotation.sines.chunks(32)).enumerate() {
            for (pair, (cosine, sine)) in cosines.iter().zip(sines).enumerate() {
                let expected = angle(1e4f64.powf(-(pair as f64) / 32.0), far + token as u64);
                assert!((f64::from(*cosine) - expected.0).abs() < 1e-7 && (f64::from(*sine) - expected.1).abs() < 1e-7);
            }
        }
    }

    #[test]
    fn undoing_gives_the_keys_back() {
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            let rotation = Rotation::of(&rope(style, 6, 0, "{}"), u64::from(u32::MAX), 100).unwrap();
            let keys: Vec<f32> = (0..800).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let mut turned = keys.clone();
            rotation.undo(&mut turned, 8);
            assert!(turned != keys);
            rotation.apply(&mut turned, 8);
            assert!(keys.iter().zip(&turned).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn scalings_are_those_of_transformers() {
        let of = |scaling: &str| frequencies(&rope(RopeStyle::Half, 128, 0, scaling));
        let plain = of("{}").unwrap();
        let ratios = |scaling: &str| -> Vec<f64> { of(scaling).unwrap().iter().zip(&plain).map(|(a, b)| a / b).collect() };
        assert!(ratios(r#"{"type":"linear","factor":4}"#).iter().all(|ratio| *ratio == 0.25));
        assert!(ratios(r#"{"rope_type":"default"}"#).iter().all(|ratio| *ratio == 1.0));
        let llama3 = ratios(
            r#"{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192}"#,
        );
        // Pair 35 turns 8192 * 10000^(-35/64) / 2 pi = 8.46 times, 45 2.01 times, 50 0.98 times.
        assert!((llama3[35] - 1.0).abs() < 1e-12 && (llama3[50] - 0.125).abs() < 1e-12, "{llama3:?}");
        let kept = (8192.0 * plain[45] / TAU - 1.0) / 3.0;
        assert!((llama3[45] - (kept + (1.0 - kept) / 8.0)).abs() < 1e-12);
        let yarn = ratios(r#"{"type":"yarn","factor":4.0,"original_max_position_embeddings":32768}"#);
        // 32 turns are at pair 35.4, one at 59.4: the ramp goes from 35 to 60.
        assert!((yarn[35] - 1.0).abs() < 1e-12 && (yarn[60] - 0.25).abs() < 1e-12, "{yarn:?}");
        assert!((yarn[40] - (1.0 - 0.2 * 0.75)).abs() < 1e-12);
    }

    #[test]
    fn what_cannot_be_undone_is_left() {
        let of = |dim, scaling: &str| Rotation::of(&rope(RopeStyle::Half, dim, 0, scaling), 0, 1).is_some();
        assert!(of(64, "{}") && of(2, "{}"));
        assert!(!of(3, "{}") && !of(0, "{}"));
        for unknown in
            [r#"{"type":"longrope"}"#, r#"{"factor":2}"#, r#"{"type":7}"#, r#"{"type":"linear"}"#, r#"{"type":"llama3","factor":8}"#]
        {
            assert!(!of(64, unknown), "{unknown}");
        }
        assert!(Rotation::of(&rope(RopeStyle::Half, 64, u64::MAX, "{}"), 1, 1).is_none());
    }
}
