//! What a `kvq` stage is asked for.

use std::fmt;

use crate::Preset;

/// What the stage takes, for messages.
pub(crate) const FORM: &str = "[:near-lossless|high|standard|compact|step=S|rate=BITS][:sinks=N][:window=N][@CALIBRATION]";

/// A quality by its name, and the steps that keep it.
pub(super) struct Step {
    pub(super) name: &'static str,
    /// Relative to the root mean square of a layer's keys without the channels' means.
    relative: f32,
    /// In weighted units, where there is a calibration.
    weighted: f32,
    /// What was measured of it.
    promise: &'static str,
}

/// Presets, best first. What one promises holds with a calibration and without; with one it takes fewer bits.
pub(super) const STEPS: [Step; 4] = [
    Step { name: "near-lossless", relative: 0.1, weighted: 0.0035, promise: "KL .0002, 2.9 times smaller; 3.6 with a calibration" },
    Step { name: "high", relative: 0.3, weighted: 0.009, promise: "KL .002, 4.1 times smaller; 5.2 with a calibration" },
    Step { name: "standard", relative: 0.5, weighted: 0.014, promise: "KL .005, 5.0 times smaller; 6.5 with a calibration" },
    Step { name: "compact", relative: 0.8, weighted: 0.019, promise: "KL .013, 6.4 times smaller; 7.9 with a calibration" },
];

/// What there is to choose from by name.
pub(crate) fn presets() -> impl Iterator<Item = Preset> {
    STEPS.iter().map(|step| Preset { name: step.name, promise: step.promise })
}

/// The preset where none is named.
const DEFAULT: &str = "standard";

/// Tokens at the beginning of a sequence that are kept exactly, where nothing else is asked: attention sinks (arXiv 2309.17453), whose keys
/// are outliers and which all later tokens look at.
const SINKS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Options {
    pub(super) quality: Quality,
    /// Tokens at the beginning of the sequence that are kept exactly.
    pub(super) sinks: u32,
    /// Tokens at the end of the tensor that are kept exactly.
    pub(super) window: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Quality {
    /// Index into [`STEPS`].
    Preset(usize),
    /// Step, relative to the root mean square of a layer's keys without the channels' means; with a calibration, in weighted units.
    Step(f32),
    /// Bits of a value's number that are aimed at: exact tokens, and what is stored of channels, are left out.
    Rate(f32),
}

impl Options {
    /// Reads arguments; the one that is wrong otherwise.
    pub(super) fn parse<'a>(texts: &[&'a str]) -> Result<Options, &'a str> {
        let mut options = Options { quality: Quality::Preset(preset(DEFAULT).unwrap_or(0)), sinks: SINKS, window: 0 };
        let mut given = [false; 3];
        for text in texts {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            let number = |range: std::ops::RangeInclusive<f32>| value.parse().ok().filter(|number| range.contains(number));
            let count = || value.parse().ok();
            let (place, known) = match name {
                "step" => (0, number(0.001..=8.0).map(|step| options.quality = Quality::Step(step))),
                "rate" => (0, number(0.5..=12.0).map(|rate| options.quality = Quality::Rate(rate))),
                "sinks" => (1, count().map(|count| options.sinks = count)),
                "window" => (2, count().map(|count| options.window = count)),
                _ => (0, preset(text).map(|index| options.quality = Quality::Preset(index))),
            };
            if known.is_none() || std::mem::replace(&mut given[place], true) {
                return Err(text);
            }
        }
        Ok(options)
    }

    /// The step of presets and of `step=`, with a calibration or without; `None` where a rate is asked for.
    pub(super) fn step(&self, calibrated: bool) -> Option<f32> {
        match self.quality {
            Quality::Preset(index) => STEPS.get(index).map(|preset| if calibrated { preset.weighted } else { preset.relative }),
            Quality::Step(step) => Some(step),
            Quality::Rate(_) => None,
        }
    }
}

fn preset(name: &str) -> Option<usize> {
    STEPS.iter().position(|preset| preset.name == name)
}

impl fmt::Display for Options {
    /// The shortest text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quality {
            Quality::Preset(index) => match STEPS.get(index) {
                Some(Step { name, .. }) if *name != DEFAULT => write!(f, ":{name}")?,
                _ => {}
            },
            Quality::Step(step) => write!(f, ":step={step}")?,
            Quality::Rate(rate) => write!(f, ":rate={rate}")?,
        }
        if self.sinks != SINKS {
            write!(f, ":sinks={}", self.sinks)?;
        }
        if self.window != 0 {
            write!(f, ":window={}", self.window)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_have_a_shortest_text() {
        for (text, shortest) in [
            ("", ""),
            ("standard", ""),
            ("high", ":high"),
            ("step=0.50", ":step=0.5"),
            ("window=128:rate=3:sinks=4", ":rate=3:window=128"),
            ("sinks=0:compact", ":compact:sinks=0"),
        ] {
            let texts: Vec<&str> = text.split(':').filter(|text| !text.is_empty()).collect();
            assert_eq!(Options::parse(&texts).unwrap().to_string(), shortest);
        }
        for wrong in ["low", "step=0", "step=nan", "rate=13", "sinks=-1", "window=", "", "high=1"] {
            assert_eq!(Options::parse(&["sinks=1", wrong]), Err(wrong));
        }
        assert_eq!(Options::parse(&["high", "step=0.2"]), Err("step=0.2"));
    }
}
