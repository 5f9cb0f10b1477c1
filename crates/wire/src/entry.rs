//! Answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Consistency;

/// What a server says of a key: the answer of `info`, the entries of `list`, `app_metadata` of a FlightInfo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `namespace/rest`.
    pub key: String,
    /// Counts contents.
    pub version: u64,
    /// Counts changes of any kind.
    pub generation: u64,
    /// Element type, by ml_dtypes' name.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<u64>,
    /// Axis names; empty when unnamed.
    pub axes: Vec<String>,
    /// Bytes of the tensor.
    pub nbytes: u64,
    /// Bytes of its home copy as stored.
    pub stored_bytes: u64,
    /// The backend of its home copy.
    pub backend: String,
    /// Where it can be read from right now, `memory` among them when it is cached.
    pub tiers: Vec<String>,
    /// Codec chain of the home copy's policy.
    pub codec: String,
    /// Whether a get gives what a lossy codec made of the bytes that were put.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lossy: bool,
    /// Of a lossy copy, as it was measured when it was made: the root of the mean square of the errors for that of the values, of `all`, and of `k`
    /// and `v` where they are known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub relative_rmse: BTreeMap<String, f64>,
    /// Whether its writer said that it was computed from what a lossy codec gave back.
    #[serde(default, skip_serializing_if = "is_false")]
    pub derived_from_lossy: bool,
    /// The level it was put with.
    pub consistency: Consistency,
    /// When it was committed, milliseconds since 1970 by the server's clock.
    pub created_ms: u64,
    /// When it expires, on the same clock.
    pub expires_ms: Option<u64>,
    /// The client's attributes; of a key with several parts, each has its own.
    pub attributes: BTreeMap<String, String>,
    /// Hash of the kv spec that it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_spec: Option<String>,
    /// The parts of a key that has several; `dtype` is then [`PARTS`], and `shape` and `axes` are empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartEntry>,
}

/// What stands for the element type of a key with several parts.
pub const PARTS: &str = "parts";

/// What a server says of one part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartEntry {
    /// Its name.
    pub name: String,
    /// Element type, by ml_dtypes' name.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<u64>,
    /// Axis names; empty when unnamed.
    pub axes: Vec<String>,
    /// Bytes of the part.
    pub nbytes: u64,
    /// Bytes of its home copy as stored.
    pub stored_bytes: u64,
    /// Codec chain of the home copy's policy.
    pub codec: String,
    /// As in [`Entry::lossy`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub lossy: bool,
    /// As in [`Entry::relative_rmse`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub relative_rmse: BTreeMap<String, f64>,
    /// The client's attributes.
    pub attributes: BTreeMap<String, String>,
}

pub(crate) fn is_false(is: &bool) -> bool {
    !is
}

/// The answer to a put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAnswer {
    /// The key.
    pub key: String,
    /// The version this put made.
    pub version: u64,
    /// Whether the key was absent before.
    pub created: bool,
}

/// The answer of `exists`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExistsAnswer {
    /// Whether the key exists.
    pub exists: bool,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Whether its namespace is a cache, where a server that does not answer is a miss.
    #[serde(default)]
    pub cache: bool,
}

/// The answer of `delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteAnswer {
    /// Whether there was such a key.
    pub deleted: bool,
}

/// The answer of `list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListAnswer {
    /// Keys in byte order.
    pub entries: Vec<Entry>,
    /// `after` of the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
