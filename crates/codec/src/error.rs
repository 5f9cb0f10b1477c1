//! What can go wrong between bytes and fewer bytes.

/// An error of a codec or of a chain's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A chain names a stage that is not registered.
    #[error("unknown codec {name:?}; known: {known}")]
    UnknownCodec {
        /// The name as given, cut to 64 characters.
        name: String,
        /// The registered names: [`Chain::known`](crate::Chain::known).
        known: String,
    },
    /// The stages are known, but not in this order or number.
    #[error("codec chain {text:?}: {reason}")]
    BadChain {
        /// The text as given, cut to 64 characters.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A stage was given a level that it does not have.
    #[error("codec {codec} takes {expected}, not {found:?}")]
    BadLevel {
        /// The stage.
        codec: &'static str,
        /// What it takes: `a level of 1 to 9`.
        expected: String,
        /// The level as given, cut to 64 characters.
        found: String,
    },
    /// A stage was not given the calibration that it was named with.
    #[error("codec {codec} needs the calibration {hash}, which is not here")]
    NoCalibration {
        /// The stage.
        codec: &'static str,
        /// SHA-256 of the calibration.
        hash: String,
    },
    /// Stored bytes that no encoder wrote, or that belong to another chunk.
    #[error("corrupt {codec} data: expected {expected}, found {found}")]
    Corrupt {
        /// The stage that read them, or `chain`.
        codec: &'static str,
        /// What an encoder would have written.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An encoder gave up: no memory, or more input than its format can carry.
    #[error("{codec} cannot encode: {reason}")]
    Encode {
        /// The stage.
        codec: &'static str,
        /// Why.
        reason: String,
    },
}

impl CodecError {
    /// The error of a decoder that found `found` where it needed `expected`.
    pub fn corrupt(codec: &'static str, expected: impl Into<String>, found: impl ToString) -> CodecError {
        CodecError::Corrupt { codec, expected: expected.into(), found: found.to_string() }
    }

    /// The error of a failed encoder.
    pub(crate) fn encode(codec: &'static str, reason: impl ToString) -> CodecError {
        CodecError::Encode { codec, reason: reason.to_string() }
    }

    /// [`CodecError::Corrupt`] unless `found` bytes are the `expected` ones.
    pub(crate) fn check_len(codec: &'static str, expected: usize, found: usize) -> Result<(), CodecError> {
        if found == expected {
            return Ok(());
        }
        Err(CodecError::corrupt(codec, format!("{expected} bytes"), format!("{found} bytes")))
    }
}
