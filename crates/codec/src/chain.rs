//! Chains of stages, and the one place where stages are registered.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use crate::float::Float;
use crate::gzip::Gzip;
use crate::lz4::Lz4;
use crate::planes::Planes;
use crate::zstd::Zstd;
use crate::{ChunkContext, Codec, CodecError};

/// Every stage there is. A new codec is a module and a row here.
const STAGES: [Registration; 6] = [
    Registration { name: "planes", levels: None, build: |_| Box::new(Planes) },
    Registration { name: "lz4", levels: None, build: |_| Box::new(Lz4) },
    Registration { name: "float-nibble", levels: None, build: |_| Box::new(Float::Nibble) },
    Registration { name: "float-rans", levels: None, build: |_| Box::new(Float::Rans) },
    // After planes level 1 is both smaller and faster than 3 on bf16: what matches 3 finds are not worth their cost.
    Registration {
        name: "zstd",
        levels: Some(Levels { all: 1..=22, alone: 3, after_another: 1 }),
        build: |level| Box::new(Zstd { level }),
    },
    Registration { name: "gzip", levels: Some(Levels { all: 1..=9, alone: 6, after_another: 6 }), build: |level| Box::new(Gzip { level }) },
];

struct Registration {
    name: &'static str,
    levels: Option<Levels>,
    /// Given a level of `levels`, 0 where there are none.
    build: fn(u8) -> Box<dyn Codec>,
}

struct Levels {
    all: RangeInclusive<u8>,
    /// The default of a chain's only stage.
    alone: u8,
    /// The default after another stage.
    after_another: u8,
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

    /// The registered stages and their levels: `none, planes, lz4, zstd:1-22, gzip:1-9`.
    pub fn known() -> String {
        STAGES.iter().fold(Chain::NONE.to_owned(), |mut text, stage| {
            text.push_str(", ");
            text.push_str(stage.name);
            if let Some(Levels { all, .. }) = &stage.levels {
                text.push_str(&format!(":{}-{}", all.start(), all.end()));
            }
            text
        })
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
            let (name, level) = part.split_once(':').map_or((part, None), |(name, level)| (name, Some(level)));
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
            let (level, is_default) = stage.level(level, stages.is_empty())?;
            if !stages.is_empty() {
                canonical.push('+');
            }
            canonical.push_str(name);
            if !is_default {
                canonical.push_str(&format!(":{level}"));
            }
            stages.push((stage.build)(level));
        }
        Ok(Chain { text: canonical.into(), stages: stages.into() })
    }
}

const COMPRESSOR_NOT_LAST: &str = "only the last stage may compress";

impl Registration {
    /// The level to build with, and whether it is the default.
    fn level(&self, text: Option<&str>, alone: bool) -> Result<(u8, bool), CodecError> {
        let bad = |found: &str, expected| CodecError::BadLevel { codec: self.name, expected, found: cut(found) };
        let Some(levels) = &self.levels else {
            return text.map_or(Ok((0, true)), |found| Err(bad(found, "no level".to_owned())));
        };
        let default = if alone { levels.alone } else { levels.after_another };
        let Some(text) = text else {
            return Ok((default, true));
        };
        let level = text.parse().ok().filter(|level| levels.all.contains(level));
        let expected = || format!("a level of {} to {}", levels.all.start(), levels.all.end());
        level.map(|level| (level, level == default)).ok_or_else(|| bad(text, expected()))
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

    const CONTEXT: ChunkContext<'_> = ChunkContext { dtype: DType::BFloat16, shape: &[1000], origin: &[0] };

    #[test]
    fn every_registered_codec_conforms() {
        std::thread::scope(|scope| {
            for stage in &STAGES {
                scope.spawn(|| {
                    let codec = (stage.build)(stage.levels.as_ref().map_or(0, |levels| levels.alone));
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
            assert!(chain.lossless());
        }
    }

    #[test]
    fn errors_say_what_would_have_been_right() {
        for (text, message) in [
            ("", r#"unknown codec ""; known: none, planes, lz4, float-nibble, float-rans, zstd:1-22, gzip:1-9"#),
            ("snappy", r#"unknown codec "snappy"; known: none, planes, lz4, float-nibble, float-rans, zstd:1-22, gzip:1-9"#),
            ("planes+ zstd", r#"unknown codec " zstd"; known: none, planes, lz4, float-nibble, float-rans, zstd:1-22, gzip:1-9"#),
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
