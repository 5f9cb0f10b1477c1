//! The records of an export. Names of types and fields are those of the schema.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sira_client::{Consistency, Entry, PartEntry, TensorError, TensorSpec};

/// One record: exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// A tensor begins.
    pub header: Option<Header>,
    /// The next bytes of a part.
    pub chunk: Option<Chunk>,
    /// The tensor is whole.
    pub end: Option<End>,
}

/// What a tensor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `namespace/name`.
    pub key: String,
    /// The version that was exported.
    #[serde(default)]
    pub version: i64,
    /// The arrays under the key, at least one.
    pub parts: Vec<Part>,
    /// When the version was committed, milliseconds since 1970.
    pub created_ms: Option<i64>,
    /// When it expires, milliseconds since 1970.
    pub expires_ms: Option<i64>,
    /// The level it was put with.
    #[serde(default)]
    pub consistency: Consistency,
    /// Whether the bytes are what a lossy codec gave back, or were computed from such bytes.
    #[serde(default)]
    pub derived_from_lossy: bool,
    /// The description of the KV layout that the key names.
    pub kv_spec: Option<KvSpec>,
}

/// One array under a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    #[serde(default = "data")]
    pub name: String,
    /// Element type, by ml_dtypes' name.
    pub dtype: String,
    /// Extents.
    pub shape: Vec<i64>,
    /// Axis names; empty when no axis is named.
    #[serde(default)]
    pub axes: Vec<String>,
    /// The writer's own texts.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Codec chain of lower tiers; none for the configured one.
    pub codec: Option<String>,
    /// Bytes of the part.
    pub nbytes: i64,
}

/// A registered description of a KV layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvSpec {
    /// Its hash, hexadecimal.
    pub hash: String,
    /// Its canonical JSON.
    pub json: String,
}

/// The next bytes of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Of the header.
    pub key: String,
    /// Index into the header's parts.
    #[serde(default)]
    pub part: i32,
    /// Bytes of the part before this chunk.
    pub offset: i64,
    /// Row-major, little-endian.
    pub data: Bytes,
    /// XXH3-64 of `data`.
    pub xxh3: i64,
}

/// The end of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Of the header.
    pub key: String,
    /// Chunks of all parts.
    pub chunks: i64,
    /// Bytes of all parts.
    pub nbytes: i64,
    /// XXH3-64 of the bytes of all parts.
    pub xxh3: i64,
    /// XXH3-64 of the header's record.
    pub header_xxh3: Option<i64>,
}

/// The name of a key's only part.
fn data() -> String {
    "data".into()
}

impl Header {
    /// The header of a key as the server describes it. `kv_spec` is the registered text of the spec that it names.
    pub fn of_entry(entry: &Entry, kv_spec: Option<KvSpec>) -> Result<Header, TensorError> {
        let one = || {
            let spec = TensorSpec::new(entry.dtype.parse()?, entry.shape.clone())?.with_axes(entry.axes.clone())?;
            Ok(Part::new(data(), &spec.with_attributes(entry.attributes.clone())?, Some(entry.codec.clone())))
        };
        let parts = match entry.parts.as_slice() {
            [] => vec![one()?],
            parts => parts.iter().map(Part::of_entry).collect::<Result<_, TensorError>>()?,
        };
        Ok(Header {
            key: entry.key.clone(),
            version: entry.version.cast_signed(),
            parts,
            created_ms: Some(entry.created_ms.cast_signed()),
            expires_ms: entry.expires_ms.map(u64::cast_signed),
            consistency: entry.consistency,
            derived_from_lossy: entry.lossy || entry.derived_from_lossy,
            kv_spec,
        })
    }

    /// Bytes of all parts; saturating, as a file may say anything.
    pub fn nbytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum: u64, part| sum.saturating_add(u64::try_from(part.nbytes).unwrap_or(0)))
    }
}

impl Part {
    fn of_entry(part: &PartEntry) -> Result<Part, TensorError> {
        let spec = TensorSpec::new(part.dtype.parse()?, part.shape.clone())?.with_axes(part.axes.clone())?;
        Ok(Part::new(part.name.clone(), &spec.with_attributes(part.attributes.clone())?, Some(part.codec.clone())))
    }

    /// A part that is described by `spec`.
    pub fn new(name: String, spec: &TensorSpec, codec: Option<String>) -> Part {
        Part {
            name,
            dtype: spec.dtype().to_string(),
            // Extents fit 63 bits: TensorSpec saw to it.
            shape: spec.shape().iter().map(|extent| extent.cast_signed()).collect(),
            axes: spec.axes().to_vec(),
            attributes: spec.attributes().clone(),
            codec,
            nbytes: spec.nbytes().cast_signed(),
        }
    }

    /// What the part is, with everything that it says checked.
    pub fn spec(&self) -> Result<TensorSpec, String> {
        let extent = |&extent: &i64| u64::try_from(extent).map_err(|_| format!("an extent of {extent}"));
        let shape = self.shape.iter().map(extent).collect::<Result<Vec<u64>, String>>()?;
        let spec = self.dtype.parse().and_then(|dtype| TensorSpec::new(dtype, shape));
        let spec = spec.and_then(|spec| spec.with_axes(self.axes.clone())?.with_attributes(self.attributes.clone()));
        let spec = spec.map_err(|error| error.to_string())?;
        if u64::try_from(self.nbytes).is_ok_and(|nbytes| nbytes == spec.nbytes()) {
            return Ok(spec);
        }
        Err(format!("{} of shape {:?} has {} bytes, the header says {}", spec.dtype(), spec.shape(), spec.nbytes(), self.nbytes))
    }
}
