//! What processes of one machine say to each other over a Unix socket where memory is passed instead of bytes.
//!
//! Each message is a letter ([`Kind`]), the length of what follows as 4 bytes, most significant first, and a JSON object of that length. The text of a
//! refusal is no JSON, but a stable code, a colon and the reason. A tensor that is [`Mapped::inline`] follows the object.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sira_tensor::TensorSpec;

use crate::request::{Versioned, parse, versioned};
use crate::{VERSION, WireError};

/// What a connection begins with; as long as the beginning of HTTP/2, with which connections to the same socket begin otherwise.
pub const PREFACE: &[u8; 24] = b"SIRA-SAME-HOST/1\r\n\r\n\r\n\r\n";

/// Bytes before the object.
pub const HEAD: usize = 5;

/// Bytes of an object, at most.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Tensors of at most this many bytes are sent, not mapped: that is faster.
pub const INLINE: u64 = 64 << 10;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Hello`], the first message; answered by [`Welcome`].
    Hello,
    /// A ticket; answered by [`Mapped`].
    Map,
    /// The command of a put; answered by [`Created`].
    Create,
    /// [`Handle`]; answered by [`Committed`].
    Commit,
    /// [`Handle`]; not answered.
    Release,
    /// An answer.
    Answer,
    /// A refusal.
    Refusal,
}

const LETTERS: [(Kind, u8); 7] = [
    (Kind::Hello, b'H'),
    (Kind::Map, b'M'),
    (Kind::Create, b'C'),
    (Kind::Commit, b'P'),
    (Kind::Release, b'R'),
    (Kind::Answer, b'A'),
    (Kind::Refusal, b'E'),
];

impl Kind {
    /// The first bytes of a message whose object has `len` bytes.
    pub fn head(self, len: u32) -> [u8; HEAD] {
        let letter = LETTERS.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, letter)| *letter);
        let [a, b, c, d] = len.to_be_bytes();
        [letter, a, b, c, d]
    }

    /// What these first bytes say: kind and length; `None` for a letter that is none.
    pub fn of_head(head: [u8; HEAD]) -> Option<(Kind, usize)> {
        let [letter, a, b, c, d] = head;
        let kind = LETTERS.iter().find(|(_, known)| *known == letter)?.0;
        Some((kind, u32::from_be_bytes([a, b, c, d]) as usize))
    }
}

/// Who a client is.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Version of the contract.
    pub v: u32,
    /// The token, where the server asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl Hello {
    /// With this token.
    pub fn with(token: Option<String>) -> Hello {
        Hello { v: VERSION, token }
    }

    /// Reads one.
    pub fn parse(body: &[u8]) -> Result<Hello, WireError> {
        parse("hello", body)
    }
}

/// What a server says first. More fields may come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version of the contract.
    pub v: u32,
    /// Bytes that a connection may hold at once.
    pub limit: u64,
    /// Tensors of at most this many bytes are sent, not mapped.
    pub inline: u64,
}

/// A tensor. Its memory comes as a descriptor, unless it is inline. More fields may come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapped {
    /// To release it by; 0 where it is inline and there is nothing to release.
    pub id: u64,
    /// The version.
    pub version: u64,
    /// Element type.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<u64>,
    /// Axis names.
    pub axes: Vec<String>,
    /// The writer's attributes.
    pub attributes: BTreeMap<String, String>,
    /// Bytes.
    pub nbytes: u64,
    /// Whether the bytes follow this message.
    pub inline: bool,
}

impl Mapped {
    /// What is said of a tensor.
    pub fn of(spec: &TensorSpec, version: u64, id: u64) -> Mapped {
        Mapped {
            id,
            version,
            dtype: spec.dtype().name().to_owned(),
            shape: spec.shape().to_vec(),
            axes: spec.axes().to_vec(),
            attributes: spec.attributes().clone(),
            nbytes: spec.nbytes(),
            inline: id == 0,
        }
    }
}

/// Memory to fill, which comes as a descriptor. More fields may come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// To commit or release it by.
    pub id: u64,
    /// Bytes.
    pub nbytes: u64,
}

/// What was mapped or created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handle {
    /// Version of the contract.
    pub v: u32,
    /// As the answer said.
    pub id: u64,
}
versioned!(Hello, Handle);

impl Handle {
    /// Of this number.
    pub fn of(id: u64) -> Handle {
        Handle { v: VERSION, id }
    }

    /// Reads one.
    pub fn parse(body: &[u8]) -> Result<Handle, WireError> {
        parse("handle", body)
    }
}

/// What a put has done. More fields may come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The key.
    pub key: String,
    /// Its version now.
    pub version: u64,
    /// Whether it was absent before.
    pub created: bool,
    /// Whether the bytes were copied because the client still has them mapped for writing. The memory is then still to be released.
    pub copied: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_are_written() {
        for (kind, letter) in LETTERS {
            let head = kind.head(0x0102_0304);
            assert_eq!(head, [letter, 1, 2, 3, 4]);
            assert_eq!(Kind::of_head(head), Some((kind, 0x0102_0304)));
        }
        assert_eq!(Kind::of_head(*b"PRI *"), Some((Kind::Commit, 0x5249_202a)));
        assert_eq!(Kind::of_head([0; HEAD]), None);
    }
}
