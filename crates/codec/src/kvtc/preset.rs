//! What a user says of `kvtc`: a preset or a step, and which tokens are kept exactly.

use std::fmt;
use std::ops::RangeInclusive;

use crate::Preset;

/// Steps that make sense, in weighted units.
pub(super) const STEPS: RangeInclusive<f32> = 1e-6..=1e3;

/// Tokens at the beginning of a sequence that are kept exactly, unless said otherwise.
const SINKS: u32 = 4;

/// Tokens at the end of a tensor that are kept exactly, unless said otherwise.
const WINDOW: u32 = 128;

/// Presets by their names, what was measured of each, and its step: in units of what an error costs the model, so that it means the same for all of
/// them.
const PRESETS: [(Preset, f32); 4] = [
    (Preset { name: "near-lossless", promise: "KL .0001, 4.1 times smaller" }, 0.0035),
    (Preset { name: "high", promise: "KL .0004, 5.3 times smaller" }, 0.007),
    (Preset { name: "standard", promise: "KL .002, 7.2 times smaller" }, 0.014),
    (Preset { name: "compact", promise: "KL .003, 8.2 times smaller" }, 0.018),
];

/// The step of the preset that is meant where none is named.
const DEFAULT: f32 = PRESETS[2].1;

/// What there is to choose from by name.
pub(crate) fn presets() -> impl Iterator<Item = Preset> {
    PRESETS.iter().map(|(preset, _)| *preset)
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Options {
    /// In weighted units.
    pub step: f32,
    pub sinks: u32,
    pub window: u32,
}

impl Options {
    /// Reads arguments; the one that is not understood is the error.
    pub(super) fn parse<'a>(texts: &[&'a str]) -> Result<Options, &'a str> {
        let mut options = Options { step: DEFAULT, sinks: SINKS, window: WINDOW };
        let mut seen: Vec<&str> = Vec::new();
        for &text in texts {
            let (name, value) = text.split_once('=').unwrap_or(("step", text));
            if seen.contains(&name) {
                return Err(text);
            }
            seen.push(name);
            match name {
                "step" if !text.contains('=') => {
                    options.step = PRESETS.iter().find(|(preset, _)| preset.name == value).ok_or(text)?.1;
                }
                "step" => options.step = value.parse().ok().filter(|step| STEPS.contains(step)).ok_or(text)?,
                "sinks" => options.sinks = value.parse().map_err(|_| text)?,
                "window" => options.window = value.parse().map_err(|_| text)?,
                _ => return Err(text),
            }
        }
        Ok(options)
    }
}

/// The shortest text of the same: the preset is always named, since its step is nothing to remember.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PRESETS.iter().find(|(_, step)| *step == self.step) {
            Some((preset, _)) => write!(f, ":{}", preset.name)?,
            None => write!(f, ":step={}", self.step)?,
        }
        if self.sinks != SINKS {
            write!(f, ":sinks={}", self.sinks)?;
        }
        if self.window != WINDOW {
            write!(f, ":window={}", self.window)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_have_one_shortest_form() {
        for (texts, shortest) in [
            (&[][..], ":standard"),
            (&["high"], ":high"),
            (&["step=0.014"], ":standard"),
            (&["step=1e-2", "window=0", "sinks=4"], ":step=0.01:window=0"),
            (&["sinks=8", "compact"], ":compact:sinks=8"),
        ] {
            let options = Options::parse(texts).unwrap();
            assert_eq!(options.to_string(), shortest);
            let again: Vec<&str> = shortest.split(':').skip(1).collect();
            assert_eq!(Options::parse(&again), Ok(options));
        }
        for wrong in ["best", "", "step=", "step=0", "step=-1", "step=NaN", "step=inf", "sinks=-1", "window=x", "rank=3"] {
            assert_eq!(Options::parse(&["sinks=1", wrong]), Err(wrong));
        }
        assert_eq!(Options::parse(&["high", "step=0.1"]), Err("step=0.1"));
    }
}
