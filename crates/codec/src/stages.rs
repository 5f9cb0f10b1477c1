//! What there is to choose from: the list that `sira codec list` shows.

use crate::{kvq, kvtc};

/// What a stage is, for who chooses one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageInfo {
    /// Its name in a chain's text.
    pub name: &'static str,
    /// What may follow the name: `:1-22`, `[:group=8-1024]`; empty where nothing may.
    pub form: String,
    /// Whether every bit comes back.
    pub lossless: bool,
    /// Whether its presets have only been measured on a small model: how good they are on others is not known yet.
    pub experimental: bool,
    /// What it does, in a few words.
    pub about: &'static str,
    /// Qualities that may follow the name, best first.
    pub presets: Vec<Preset>,
}

/// A quality that a stage knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// What follows the stage's name, after a colon.
    pub name: &'static str,
    /// What it costs a model and how small it makes a KV cache, as measured on one small model: docs/codecs.md.
    pub promise: &'static str,
}

/// Stages and what is said of them.
const ABOUT: [(&str, &str); 11] = [
    ("planes", "all first bytes of the elements, then all second ones: before a compressor"),
    ("lz4", "LZ4 block format: fast, and finds repeats only"),
    ("float-nibble", "floats, exponents in half a byte: the faster"),
    ("float-rans", "floats, exponents entropy-coded by channel: the smaller"),
    ("zstd", "Zstandard: for anything"),
    ("gzip", "gzip: for whoever reads nothing else"),
    ("int8", "8-bit numbers with scales: K by channel, V by token"),
    ("int4", "4-bit numbers with scales: K by channel, V by token"),
    ("fp8", "a cast to e4m3 with a power of two a head"),
    ("kvq", "K before its rotary embedding and V, quantised and entropy-coded"),
    ("kvtc", "one transform over all layers, calibrated once per model"),
];

impl StageInfo {
    pub(crate) fn new(name: &'static str, form: String, lossless: bool) -> StageInfo {
        let about = ABOUT.iter().find(|(known, _)| *known == name).map_or("", |(_, about)| about);
        let presets: Vec<Preset> = match name {
            kvq::NAME => kvq::presets().collect(),
            kvtc::NAME => kvtc::presets().collect(),
            _ => Vec::new(),
        };
        StageInfo { name, form, lossless, experimental: !presets.is_empty(), about, presets }
    }
}
