//! Chains of stages, and the one place where stages are registered.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use sira_tensor::{DType, TensorSpec, grid};

use crate::float::Float;
use crate::gzip::Gzip;
use crate::kvq;
use crate::kvtc;
use crate::lz4::Lz4;
use crate::planes::Planes;
use crate::quant::{self, Fp8};
use crate::zstd::Zstd;
use crate::{ChunkContext, Codec, CodecError, StageInfo};

/// Every stage there is. A new codec is a module and a row here.
const STAGES: [Registration; 11] = [
    Registration { name: "planes", takes: Takes::Nothing(|| Box::new(Planes)) },
    Registration { name: "lz4", takes: Takes::Nothing(|| Box::new(Lz4)) },
    Registration { name: "float-nibble", takes: Takes::Nothing(|| Box::new(Float::Nibble)) },
    Registration { name: "float-rans", takes: Takes::Nothing(|| Box::new(Float::Rans)) },
    // After planes level 1 is both smaller and faster than 3 on bf16: what matches 3 finds are not worth their cost.
    Registration {
        name: "zstd",
        takes: Takes::Level(Levels { all: 1..=22, alone: 3, after_another: 1 }, |level| Box::new(Zstd { level })),
    },
    Registration { name: "gzip", takes: Takes::Level(Levels { all: 1..=9, alone: 6, after_another: 6 }, |level| Box::new(Gzip { level })) },
    Registration { name: "int8", takes: Takes::Arguments { form: quant::FORM, build: quant::build_int8 } },
    Registration { name: "int4", takes: Takes::Arguments { form: quant::FORM, build: quant::build_int4 } },
    Registration { name: "fp8", takes: Takes::Nothing(|| Box::new(Fp8)) },
    Registration { name: "kvq", takes: Takes::Arguments { form: kvq::FORM, build: kvq::build } },
    Registration { name: "kvtc", takes: Takes::Arguments { form: kvtc::FORM, build: kvtc::build } },
];

/// Every registered stage, with what is to be known to choose one.
pub fn stages() -> impl Iterator<Item = StageInfo> {
    STAGES.iter().map(|stage| StageInfo::new(stage.name, stage.form(), stage.lossless()))
}

struct Registration {
    name: &'static str,
    takes: Takes,
}

/// What stands behind a stage's name.
enum Takes {
    Nothing(fn() -> Box<dyn Codec>),
    /// `:LEVEL`, or the default.
    Level(Levels, fn(u8) -> Box<dyn Codec>),
    /// `:ARGUMENT:ARGUMENT@CALIBRATION`, as the stage reads them.
    Arguments {
        /// What they look like, for messages: `:int4[:group=32]`.
        form: &'static str,
        build: fn(&Arguments<'_>) -> Result<Built, CodecError>,
    },
}

struct Levels {
    all: RangeInclusive<u8>,
    /// The default of a chain's only stage.
    alone: u8,
    /// The default after another stage.
    after_another: u8,
}

/// The arguments of a stage in a chain's text.
pub(crate) struct Arguments<'a> {
    /// What stands between colons: a preset, `name=value`.
    pub texts: Vec<&'a str>,
    /// What follows `@`: the SHA-256 of a calibration in 64 hexadecimal digits.
    pub calibration: Option<&'a str>,
}

/// A stage made from its arguments, and the shortest text of them: from the first colon to the calibration, which included.
pub(crate) struct Built {
    pub codec: Box<dyn Codec>,
    pub text: String,
}

/// The stages that a chunk goes through on its way into a tier.
///
/// Made from its text, `none`, `lz4`, `zstd:9`, `planes+zstd`; [`Chain::as_str`] gives the shortest text of the same chain, without
/// levels that are the defaults. Cheap to clone.
#[derive(Clone)]
pub struct Chain {
    text: Arc<str>,
    stages: Arc<[Box<dyn Codec>]>,
}

/// What [`Chain::encode`] made of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// Nothing: store the input as it is, and [`Chain::NONE`] as its chain.
    Raw,
    /// Store these, and the chain's text. Never more than the input's bytes.
    Bytes(Vec<u8>),
}

impl Chain {
    /// The text of the chain without stages, under which raw bytes are stored.
    pub const NONE: &'static str = "none";

    /// The most stages that a chain can have.
    pub const MAX_STAGES: usize = 4;

    /// The chain without stages.
    pub fn none() -> Chain {
        Chain { text: Chain::NONE.into(), stages: Arc::new([]) }
    }

    /// The registered stages and what they take: `none, planes, lz4, zstd:1-22, gzip:1-9, ...`.
    pub fn known() -> String {
        STAGES.iter().fold(Chain::NONE.to_owned(), |text, stage| text + ", " + stage.name + &stage.form())
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether chunks are stored as they are.
    pub fn is_none(&self) -> bool {
        self.stages.is_empty()
    }

    /// Whether every bit comes back.
    pub fn lossless(&self) -> bool {
        self.stages.iter().all(|stage| stage.lossless())
    }

    /// Whether elements of `dtype` are what it is meant for: a lossy chain is for bfloat16, float16 and float32, and keeps others as they are.
    pub fn suits(&self, dtype: DType) -> bool {
        self.lossless() || crate::kv::Float::of(dtype).is_some()
    }

    /// The names of its stages, in order; none of a chain without.
    pub fn stages(&self) -> impl Iterator<Item = &'static str> {
        self.stages.iter().map(|stage| stage.name())
    }

    /// Hash of the calibration that the chain needs to encode and decode, if it needs one.
    pub fn calibration(&self) -> Option<&str> {
        self.stages.iter().find_map(|stage| stage.calibration())
    }

    /// Extents of the chunks into which `spec` is to be cut for this chain: its stages' wish, or those of any tensor.
    pub fn chunk_shape(&self, spec: &TensorSpec) -> Vec<u64> {
        self.stages.iter().find_map(|stage| stage.chunk_shape(spec)).unwrap_or_else(|| grid::chunk_shape(spec))
    }

    /// Encodes a chunk; what would come out larger stays raw.
    pub fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Encoded, CodecError> {
        Ok(match self.run(input, context)? {
            Cow::Owned(bytes) if bytes.len() <= input.len() => Encoded::Bytes(bytes),
            _ => Encoded::Raw,
        })
    }

    /// All stages in turn, however large the result.
    pub(crate) fn run<'a>(&self, input: &'a [u8], context: ChunkContext<'_>) -> Result<Cow<'a, [u8]>, CodecError> {
        self.stages.iter().try_fold(Cow::Borrowed(input), |bytes, stage| Ok(Cow::Owned(stage.encode(&bytes, context)?)))
    }

    /// Decodes what was stored under this chain to the chunk's `raw_len` bytes, exactly that many, or fails.
    ///
    /// `raw_len` is allocated, so it must come from a record that is trusted as far as that.
    pub fn decode(&self, stored: &[u8], raw_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        // From the lengths that transforms keep follows what each stage had been given; the stored bytes have the last length.
        let mut given = [0; Chain::MAX_STAGES];
        let mut len = Some(raw_len);
        for (given, stage) in given.iter_mut().zip(self.stages.iter()) {
            *given = len.ok_or_else(|| bad_chain(&self.text, COMPRESSOR_NOT_LAST))?;
            len = stage.encoded_len(*given);
        }
        if let Some(len) = len {
            CodecError::check_len("chain", len, stored.len())?;
        }
        let mut bytes = Cow::Borrowed(stored);
        for (stage, given) in self.stages.iter().zip(given).rev() {
            let decoded = stage.decode(&bytes, given, context)?;
            CodecError::check_len(stage.name(), given, decoded.len())?;
            bytes = Cow::Owned(decoded);
        }
        Ok(bytes.into_owned())
    }

    /// [`Chain::decode`] to memory that the caller has: as many bytes as the chunk has, all of `out`.
    pub fn decode_into(&self, stored: &[u8], out: &mut [u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        if let [stage] = &*self.stages
            && stage.encoded_len(out.len()).is_none()
        {
            return stage.decode_into(stored, out, context);
        }
        let decoded = self.decode(stored, out.len(), context)?;
        CodecError::check_len("chain", out.len(), decoded.len())?;
        out.copy_from_slice(&decoded);
        Ok(())
    }
}

impl FromStr for Chain {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Chain, CodecError> {
        if text == Chain::NONE {
            return Ok(Chain::none());
        }
        let mut stages: Vec<Box<dyn Codec>> = Vec::new();
        let mut canonical = String::new();
        for part in text.split('+') {
            let end = part.find([':', '@']).unwrap_or(part.len());
            let (name, arguments) = part.split_at(end);
            if name == Chain::NONE {
                return Err(bad_chain(text, "`none` stands alone, without a level"));
            }
            if stages.len() == Chain::MAX_STAGES {
                return Err(bad_chain(text, "more than 4 stages"));
            }
            if stages.last().is_some_and(|stage| stage.encoded_len(0).is_none()) {
                return Err(bad_chain(text, COMPRESSOR_NOT_LAST));
            }
            let stage = STAGES.iter().find(|stage| stage.name == name);
            let stage = stage.ok_or_else(|| CodecError::UnknownCodec { name: cut(name), known: Chain::known() })?;
            let built = stage.build(arguments, stages.is_empty())?;
            if !stages.is_empty() {
                canonical.push('+');
            }
            canonical.push_str(name);
            canonical.push_str(&built.text);
            stages.push(built.codec);
        }
        Ok(Chain { text: canonical.into(), stages: stages.into() })
    }
}

const COMPRESSOR_NOT_LAST: &str = "only the last stage may compress";

impl Registration {
    /// Whether every bit comes back. A stage that cannot be built without arguments is a lossy one.
    fn lossless(&self) -> bool {
        self.build("", true).is_ok_and(|built| built.codec.lossless())
    }

    /// What may follow the name.
    fn form(&self) -> String {
        match &self.takes {
            Takes::Nothing(_) => String::new(),
            Takes::Level(Levels { all, .. }, _) => format!(":{}-{}", all.start(), all.end()),
            Takes::Arguments { form, .. } => (*form).to_owned(),
        }
    }

    /// The stage with `arguments`, which begin with a colon or an at sign where there are any; `alone`: whether it is the first.
    fn build(&self, arguments: &str, alone: bool) -> Result<Built, CodecError> {
        let bad = |found: &str, expected| CodecError::BadLevel { codec: self.name, expected, found: cut(found) };
        let after_colon = arguments.strip_prefix(':');
        let levels = match &self.takes {
            Takes::Nothing(build) if arguments.is_empty() => return Ok(Built { codec: build(), text: String::new() }),
            Takes::Nothing(_) => return Err(bad(after_colon.unwrap_or(arguments), "no level".to_owned())),
            Takes::Arguments { build, .. } => return build(&Arguments::parse(self.name, arguments)?),
            Takes::Level(levels, build) => (levels, build),
        };
        let (Levels { all, alone: first, after_another }, build) = levels;
        let default = if alone { *first } else { *after_another };
        let level = match arguments {
            "" => Some(default),
            _ => after_colon.and_then(|text| text.parse().ok()).filter(|level| all.contains(level)),
        };
        let expected = || format!("a level of {} to {}", all.start(), all.end());
        let level = level.ok_or_else(|| bad(after_colon.unwrap_or(arguments), expected()))?;
        Ok(Built { codec: build(level), text: if level == default { String::new() } else { format!(":{level}") } })
    }
}

impl<'a> Arguments<'a> {
    fn parse(codec: &'static str, text: &'a str) -> Result<Arguments<'a>, CodecError> {
        let (texts, calibration) = text.split_once('@').map_or((text, None), |(texts, hash)| (texts, Some(hash)));
        if let Some(hash) = calibration.filter(|hash| !sira_tensor::kv::is_hash(hash)) {
            let expected = "a calibration named by its SHA-256, 64 hexadecimal digits".to_owned();
            return Err(CodecError::BadLevel { codec, expected, found: cut(hash) });
        }
        Ok(Arguments { texts: texts.split(':').skip(1).collect(), calibration })
    }
}

fn bad_chain(text: &str, reason: &'static str) -> CodecError {
    CodecError::BadChain { text: cut(text), reason }
}

/// As much of a peer's text as an error message repeats.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

impl Default for Chain {
    fn default() -> Chain {
        Chain::none()
    }
}

impl PartialEq for Chain {
    fn eq(&self, other: &Chain) -> bool {
        self.text == other.text
    }
}

impl Eq for Chain {}

impl Hash for Chain {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;
    use sira_tensor::DType;

    const CONTEXT: ChunkContext<'_> = ChunkContext::new(DType::BFloat16, &[1000], &[0]);

    #[test]
    fn every_registered_codec_conforms() {
        std::thread::scope(|scope| {
            for stage in &STAGES {
                scope.spawn(|| {
                    // One that needs a calibration has tests of its own.
                    let Ok(Built { codec, .. }) = stage.build("", true) else { return assert_eq!(stage.name, "kvtc") };
                    assert_eq!(codec.name(), stage.name);
                    conformance::check(&*codec);
                });
            }
        });
    }

    #[test]
    fn texts_have_one_canonical_form() {
        for (text, canonical) in [
            ("none", "none"),
            ("planes", "planes"),
            ("lz4", "lz4"),
            ("zstd", "zstd"),
            ("zstd:3", "zstd"),
            ("zstd:1", "zstd:1"),
            ("zstd:22", "zstd:22"),
            ("gzip:6", "gzip"),
            ("planes+zstd", "planes+zstd"),
            ("planes+zstd:1", "planes+zstd"),
            ("planes+zstd:3", "planes+zstd:3"),
            ("planes+planes+planes+gzip:9", "planes+planes+planes+gzip:9"),
        ] {
            let chain: Chain = text.parse().unwrap();
            assert_eq!(chain.as_str(), canonical);
            assert_eq!(chain.to_string().parse(), Ok(chain.clone()));
            assert_eq!(chain.is_none(), text == "none");
            assert!(chain.stages().eq(text.split('+').map(|stage| stage.split(':').next().unwrap()).filter(|name| *name != "none")));
            assert!(chain.stages().all(|name| stages().any(|stage| stage.name == name)));
            assert!(chain.lossless());
        }
    }

    #[test]
    fn errors_say_what_would_have_been_right() {
        for (text, message) in [
            ("none+zstd", r#"codec chain "none+zstd": `none` stands alone, without a level"#),
            ("zstd+planes", r#"codec chain "zstd+planes": only the last stage may compress"#),
            ("planes+planes+planes+planes+lz4", r#"codec chain "planes+planes+planes+planes+lz4": more than 4 stages"#),
            ("zstd:0", r#"codec zstd takes a level of 1 to 22, not "0""#),
            ("zstd:", r#"codec zstd takes a level of 1 to 22, not """#),
            ("gzip:10", r#"codec gzip takes a level of 1 to 9, not "10""#),
            ("planes:2+zstd", r#"codec planes takes no level, not "2""#),
        ] {
            assert_eq!(text.parse::<Chain>().unwrap_err().to_string(), message);
        }
        for text in ["", "snappy", "planes+ zstd"] {
            let message = text.parse::<Chain>().unwrap_err().to_string();
            let name = text.trim_start_matches("planes+");
            assert_eq!(message, format!("unknown codec {name:?}; known: {}", Chain::known()));
        }
        assert!(Chain::known().starts_with("none, planes, lz4, ") && Chain::known().contains(", zstd:1-22, gzip:1-9, "));
    }

    #[test]
    fn lossy_stages_have_one_canonical_form_too() {
        let [long, short] = ["kvq:standard", "kvq"].map(|stage| format!("{stage}@{}", "0".repeat(64)));
        for (text, canonical) in [
            ("int8", "int8") as (&str, &str),
            ("int8:group=64", "int8"),
            ("int4:group=128", "int4:group=128"),
            ("fp8", "fp8"),
            ("kvq", "kvq"),
            ("kvq:standard:window=0", "kvq"),
            ("kvq:window=64:step=0.50:sinks=4", "kvq:step=0.5:window=64"),
            (&long, &short),
        ] {
            let chain: Chain = text.parse().unwrap();
            assert_eq!(chain.as_str(), canonical);
            assert_eq!(chain.to_string().parse(), Ok(chain.clone()));
            assert!(!chain.lossless());
        }
        let hash = "0".repeat(64);
        for text in ["int8:group=4", "int8:8", "int4:group=32:group=32", "fp8:1", "kvq:best", "kvq:step=0", &format!("int8@{hash}")] {
            let error = text.parse::<Chain>().unwrap_err();
            assert!(matches!(error, CodecError::BadLevel { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn every_stage_is_listed_with_what_it_does() {
        let names: Vec<_> = STAGES.iter().map(|stage| stage.name).collect();
        assert_eq!(stages().map(|stage| stage.name).collect::<Vec<_>>(), names);
        for stage in stages() {
            assert!(!stage.about.is_empty(), "{}", stage.name);
            assert!(!(stage.lossless && stage.experimental));
            assert_eq!(stage.experimental, !stage.presets.is_empty());
            for preset in &stage.presets {
                let hash = "5f".repeat(32);
                let chain: Chain = format!("{}:{}@{hash}", stage.name, preset.name).parse().unwrap();
                assert!(chain.calibration() == Some(&hash) && !preset.promise.is_empty());
            }
        }
        let lossy: Vec<_> = stages().filter(|stage| !stage.lossless).map(|stage| stage.name).collect();
        assert_eq!(lossy[..4], ["int8", "int4", "fp8", "kvq"]);
    }

    #[test]
    fn nothing_is_stored_larger_than_raw() {
        let zstd: Chain = "zstd".parse().unwrap();
        assert_eq!(zstd.encode(b"", CONTEXT), Ok(Encoded::Raw));
        assert_eq!(zstd.encode(b"abc", CONTEXT), Ok(Encoded::Raw));
        assert!(matches!(zstd.encode(&[7; 1000], CONTEXT), Ok(Encoded::Bytes(bytes)) if bytes.len() < 30));
        assert_eq!(Chain::none().encode(&[7; 1000], CONTEXT), Ok(Encoded::Raw));
    }

    #[test]
    fn raw_and_planes_must_have_the_recorded_length() {
        for text in ["none", "planes"] {
            let chain: Chain = text.parse().unwrap();
            assert_eq!(
                chain.decode(&[1, 2, 3], 4, CONTEXT).unwrap_err().to_string(),
                "corrupt chain data: expected 4 bytes, found 3 bytes"
            );
        }
        assert_eq!(Chain::none().decode(&[1, 2, 3], 3, CONTEXT), Ok(vec![1, 2, 3]));
    }
}
