//! Stable error codes.

use std::fmt;

/// What went wrong, in a word that never changes: error messages start with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The key breaks a rule.
    BadKey,
    /// Options, ticket, criteria or body are not what the contract says.
    BadRequest,
    /// Column, dtype or shape cannot be a tensor, or do not agree.
    BadTensor,
    /// The stream ended before the tensor was whole, or went on after it.
    Incomplete,
    /// No such codec.
    UnknownCodec,
    /// No such key, or it has expired.
    NotFound,
    /// `if=absent` and the key exists.
    Exists,
    /// `if=VERSION` and the key has another version.
    Stale,
    /// A tier is full.
    OutOfSpace,
    /// No memory became free in time.
    Busy,
    /// A stored chunk fails its checksum.
    Corrupt,
    /// Known, but not offered.
    Unsupported,
    /// The server is draining.
    ShuttingDown,
    /// A backend failed.
    Backend,
    /// A defect of Sira.
    Internal,
    /// The key has several parts, and the request takes one.
    HasParts,
    /// No such kv spec is registered.
    UnknownKvSpec,
    /// The namespace is read-only.
    ReadOnly,
    /// No token, or one that the server does not accept.
    Unauthenticated,
    /// A codec names a calibration artefact that is not there.
    UnknownCalibration,
    /// Others need what is to be deleted.
    InUse,
}

const CODES: [(Code, &str); 21] = [
    (Code::BadKey, "SIRA_BAD_KEY"),
    (Code::BadRequest, "SIRA_BAD_REQUEST"),
    (Code::BadTensor, "SIRA_BAD_TENSOR"),
    (Code::Incomplete, "SIRA_INCOMPLETE"),
    (Code::UnknownCodec, "SIRA_UNKNOWN_CODEC"),
    (Code::NotFound, "SIRA_NOT_FOUND"),
    (Code::Exists, "SIRA_EXISTS"),
    (Code::Stale, "SIRA_STALE"),
    (Code::OutOfSpace, "SIRA_OUT_OF_SPACE"),
    (Code::Busy, "SIRA_BUSY"),
    (Code::Corrupt, "SIRA_CORRUPT"),
    (Code::Unsupported, "SIRA_UNSUPPORTED"),
    (Code::ShuttingDown, "SIRA_SHUTTING_DOWN"),
    (Code::Backend, "SIRA_BACKEND"),
    (Code::Internal, "SIRA_INTERNAL"),
    (Code::HasParts, "SIRA_HAS_PARTS"),
    (Code::UnknownKvSpec, "SIRA_UNKNOWN_KV_SPEC"),
    (Code::ReadOnly, "SIRA_READ_ONLY"),
    (Code::Unauthenticated, "SIRA_UNAUTHENTICATED"),
    (Code::UnknownCalibration, "SIRA_UNKNOWN_CALIBRATION"),
    (Code::InUse, "SIRA_IN_USE"),
];

impl Code {
    /// Every code.
    pub const ALL: [Code; CODES.len()] = {
        let mut all = [Code::Internal; CODES.len()];
        let mut at = 0;
        while at < CODES.len() {
            all[at] = CODES[at].0;
            at += 1;
        }
        all
    };

    /// The word: `SIRA_NOT_FOUND`.
    pub const fn as_str(self) -> &'static str {
        CODES[self as usize].1
    }

    /// The code that a message starts with.
    pub fn of_message(message: &str) -> Option<Code> {
        let (word, _) = message.split_once(':')?;
        CODES.iter().find(|row| row.1 == word).map(|row| row.0)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal: its code, and what was wrong, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct WireError {
    /// The stable code.
    pub code: Code,
    /// The reason, for a person.
    pub message: String,
}

impl WireError {
    /// An error of this code.
    pub fn new(code: Code, message: impl Into<String>) -> WireError {
        WireError { code, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_lie_in_order_and_are_found_in_messages() {
        for (i, (code, word)) in CODES.into_iter().enumerate() {
            assert_eq!(code as usize, i);
            assert_eq!(Code::of_message(&WireError::new(code, "x: y").to_string()), Some(code), "{word}");
        }
        assert_eq!(Code::of_message("transport error"), None);
    }
}
