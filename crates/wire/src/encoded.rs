//! Tensors that travel as the chunks they are stored in, encoded (docs/wire.md, "Encoded chunks").

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sira_tensor::TensorSpec;
use sira_tensor::grid::{Grid, Region};
use sira_tensor::kv::KvSpec;
use sira_tensor::shape::MAX_RANK;

use crate::limited::list;
use crate::many::MAX_KEYS;
use crate::options::refuse;
use crate::{Code, WireError};

/// Codec chains of one tensor, at most: that of its policy, and what is kept raw.
pub const MAX_CHAINS: usize = 8;

/// Stages that a ticket names, at most.
pub const MAX_STAGES: usize = 64;

/// Chunks of one tensor, at most.
pub const MAX_CHUNKS: u64 = 1 << 20;

/// Bytes of a chunk before it was encoded, at most.
pub const MAX_CHUNK_BYTES: u64 = 256 << 20;

/// How a tensor is cut and encoded: what a put says of the chunks that it sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoding {
    /// Extents of a chunk, one an axis; those at the end of an axis may be shorter. Of a packed dtype, one number: its bytes are cut as they lie.
    #[serde(deserialize_with = "list::<_, _, MAX_RANK>")]
    pub chunk_shape: Vec<u64>,
    /// Texts of the codec chains that chunks name by their position here; `none` for what is sent raw.
    #[serde(deserialize_with = "list::<_, _, MAX_CHAINS>")]
    pub chains: Vec<String>,
}

impl Encoding {
    /// Reads the JSON of `sira.encoded` in the metadata of a put.
    pub fn parse(json: &str) -> Result<Encoding, WireError> {
        serde_json::from_str(json).map_err(|e| refuse(format!("sira.encoded: {e}")))
    }

    /// The grid that it cuts `spec` into, within the limits that hold for every tensor.
    pub fn grid(&self, spec: &TensorSpec) -> Result<Grid, WireError> {
        grid(spec, &self.chunk_shape)
    }
}

/// The grid of chunks of this shape, if no chunk is larger and there are no more of them than may be.
fn grid(spec: &TensorSpec, chunk_shape: &[u64]) -> Result<Grid, WireError> {
    let bad = |reason: String| WireError::new(Code::BadTensor, format!("chunk_shape {chunk_shape:?}: {reason}"));
    let (shape, _) = Grid::items(spec.dtype(), spec.shape(), spec.nbytes());
    let within: Vec<u64> =
        chunk_shape.iter().enumerate().map(|(axis, &extent)| extent.min(shape.get(axis).map_or(extent, |&all| all.max(1)))).collect();
    let grid = Grid::new(spec, &within).map_err(|e| bad(e.to_string()))?;
    if grid.cells() > MAX_CHUNKS {
        return Err(bad(format!("{} chunks of a tensor of {} bytes; a tensor may have {MAX_CHUNKS}", grid.cells(), spec.nbytes())));
    }
    // Extents are at most those of the tensor, so that the product is at most its bytes.
    let largest = if grid.cells() == 0 { 0 } else { grid.region_bytes(&grid.cell(0)) };
    match largest {
        ..=MAX_CHUNK_BYTES => Ok(grid),
        _ => Err(bad(format!("chunks of {largest} bytes; a chunk may have {MAX_CHUNK_BYTES}"))),
    }
}

/// What an answer in chunks says of them: `sira.encoded` in its schema's metadata. More fields may come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// The version.
    pub version: u64,
    /// The part's name, which some codecs want to know.
    pub part: String,
    /// Extents of the whole tensor, of which chunks are cut; `sira.shape` has those of the box that was asked for.
    #[serde(deserialize_with = "list::<_, _, MAX_RANK>")]
    pub shape: Vec<u64>,
    /// As in [`Encoding`].
    #[serde(deserialize_with = "list::<_, _, MAX_RANK>")]
    pub chunk_shape: Vec<u64>,
    /// As in [`Encoding`].
    #[serde(deserialize_with = "list::<_, _, MAX_CHAINS>")]
    pub chains: Vec<String>,
    /// The box that was asked for: a half-open range for each axis. Empty where it is the whole tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "list::<_, _, MAX_RANK>")]
    pub slice: Vec<[u64; 2]>,
    /// The kv spec that the key follows, which some codecs want to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_spec: Option<KvSpec>,
}

impl Layout {
    /// Reads the JSON of `sira.encoded` in the metadata of an answer.
    pub fn parse(json: &str) -> Result<Layout, WireError> {
        serde_json::from_str(json).map_err(|e| refuse(format!("sira.encoded: {e}")))
    }

    /// The grid of the whole tensor `spec`, and the box of it that was asked for.
    pub fn grid(&self, spec: &TensorSpec) -> Result<(Grid, Region), WireError> {
        let grid = grid(spec, &self.chunk_shape)?;
        let whole: Region = grid.shape().iter().map(|&extent| 0..extent).collect();
        if self.slice.is_empty() {
            return Ok((grid, whole));
        }
        let inside = self.slice.len() == whole.len() && self.slice.iter().zip(&whole).all(|(&[a, b], all)| a <= b && b <= all.end);
        match inside {
            true => Ok((grid, self.slice.iter().map(|&[a, b]| a..b).collect())),
            false => Err(WireError::new(Code::BadTensor, format!("a slice {:?} of a tensor of shape {:?}", self.slice, self.shape))),
        }
    }
}

/// A chunk that is about to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkHead {
    /// Position of its chain in `chains`.
    pub chain: u32,
    /// Its bytes, as they are stored.
    pub bytes: u64,
    /// XXH3-64 of them, as 16 hexadecimal digits. May be left out of a put.
    #[serde(default, with = "hex", skip_serializing_if = "Option::is_none")]
    pub checksum: Option<u64>,
}

/// What begins in a message of a put in chunks: its `app_metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutChunks {
    /// Chunks in the row-major order of the grid, whose bytes follow those of all chunks before them.
    #[serde(deserialize_with = "list::<_, _, MAX_KEYS>")]
    pub chunks: Vec<ChunkHead>,
}

impl PutChunks {
    /// Reads one; no metadata at all announces nothing.
    pub fn parse(metadata: &[u8]) -> Result<PutChunks, WireError> {
        match metadata {
            [] => Ok(PutChunks::default()),
            json => serde_json::from_slice(json).map_err(|e| refuse(format!("app_metadata of a put in chunks: {e}"))),
        }
    }
}

/// What lies in a message of an answer in chunks: its `app_metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetChunks {
    /// In the order of their bytes.
    #[serde(deserialize_with = "list::<_, _, MAX_KEYS>")]
    pub segments: Vec<ChunkSegment>,
}

impl GetChunks {
    /// Reads one.
    pub fn parse(metadata: &[u8]) -> Result<GetChunks, WireError> {
        serde_json::from_slice(metadata).map_err(|e| refuse(format!("app_metadata of an answer in chunks: {e}")))
    }
}

/// Some bytes of one chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSegment {
    /// Position of the chunk in the row-major order of the grid.
    pub cell: u64,
    /// Where its bytes begin in the message: a multiple of [`crate::many::ALIGN`].
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
    /// The first segment of a chunk says what the chunk is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<ChunkHead>,
}

/// A checksum as 16 hexadecimal digits: not every reader of JSON keeps 64 bits of a number.
mod hex {
    use super::*;

    pub(super) fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", value.unwrap_or_default()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u64::from_str_radix(&text, 16).ok().filter(|_| digits);
        value.map(Some).ok_or_else(|| serde::de::Error::custom("a checksum is 16 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use sira_tensor::DType;

    use super::*;

    fn spec(shape: &[u64]) -> TensorSpec {
        TensorSpec::new(DType::UInt16, shape.to_vec()).unwrap()
    }

    #[test]
    fn chunks_are_said_and_read() {
        let head = ChunkHead { chain: 1, bytes: 812_345, checksum: Some(0x0123_4567_89ab_cdef) };
        let put = PutChunks { chunks: vec![head, ChunkHead { checksum: None, ..head }] };
        let json = serde_json::to_string(&put).unwrap();
        assert_eq!(json, r#"{"chunks":[{"chain":1,"bytes":812345,"checksum":"0123456789abcdef"},{"chain":1,"bytes":812345}]}"#);
        assert_eq!(PutChunks::parse(json.as_bytes()).unwrap(), put);
        assert_eq!(PutChunks::parse(b"").unwrap(), PutChunks::default());
        let segment = ChunkSegment { cell: 3, offset: 64, bytes: 9, chunk: Some(head) };
        let get = GetChunks { segments: vec![segment.clone(), ChunkSegment { chunk: None, ..segment }] };
        assert_eq!(GetChunks::parse(&serde_json::to_vec(&get).unwrap()).unwrap(), get);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (json, reason) in [
            (r#"{"chunks":[{"chain":0}]}"#, "missing field `bytes`"),
            (r#"{"chunks":[{"chain":-1,"bytes":1}]}"#, "invalid value"),
            (r#"{"chunks":[{"chain":0,"bytes":1,"checksum":"12"}]}"#, "16 hexadecimal digits"),
            (r#"{"chunks":[{"chain":0,"bytes":1,"checksum":"+123456789abcdef"}]}"#, "16 hexadecimal digits"),
            (r#"{"chunks":[{"chain":0,"bytes":1,"checksum":7}]}"#, "expected"),
            (r#"{"chunks":[{"chain":0,"bytes":1,"cell":1}]}"#, "unknown field `cell`"),
            (r#"{"chunks":[]} "#, ""),
        ] {
            match PutChunks::parse(json.as_bytes()) {
                Ok(_) => assert_eq!(reason, ""),
                Err(error) => assert!(error.code == Code::BadRequest && error.message.contains(reason), "{json}: {error}"),
            }
        }
        let many = format!(r#"{{"chunk_shape":[1],"chains":["a"{}]}}"#, r#","a""#.repeat(MAX_CHAINS));
        assert!(Encoding::parse(&many).unwrap_err().message.contains("at most 8"));
        assert!(Encoding::parse(r#"{"chunk_shape":[1],"chains":[],"slice":[]}"#).unwrap_err().message.contains("unknown field"));
    }

    #[test]
    fn grids_have_limits() {
        let refused = |shape: &[u64], chunk: &[u64]| {
            let encoding = Encoding { chunk_shape: chunk.to_vec(), chains: vec!["none".into()] };
            encoding.grid(&spec(shape)).map(|grid| grid.cells()).map_err(|error| error.to_string())
        };
        assert_eq!(refused(&[100, 7], &[10, 4]), Ok(20));
        assert_eq!(refused(&[3, 0], &[1, 1]), Ok(0));
        assert_eq!(refused(&[], &[]), Ok(1));
        // Longer than its axis: a chunk is no larger for that.
        assert_eq!(refused(&[100, 7], &[u64::MAX, u64::MAX]), Ok(1));
        assert!(refused(&[100, 7], &[10]).unwrap_err().contains("SIRA_BAD_TENSOR: chunk_shape [10]"));
        assert!(refused(&[100, 7], &[0, 1]).unwrap_err().contains("do not divide"));
        assert!(refused(&[2 << 20], &[1]).unwrap_err().contains("2097152 chunks"));
        assert!(refused(&[1 << 30, 1 << 30], &[1 << 10, 1 << 30]).unwrap_err().contains("a chunk may have"));
    }

    #[test]
    fn a_layout_says_which_box_comes() {
        let layout = |slice: &[[u64; 2]]| Layout {
            version: 3,
            part: "data".into(),
            shape: vec![10, 20],
            chunk_shape: vec![4, 20],
            chains: vec!["none".into(), "planes+zstd".into()],
            slice: slice.to_vec(),
            kv_spec: None,
        };
        let json = serde_json::to_string(&layout(&[[1, 3], [0, 20]])).unwrap();
        let read = Layout::parse(&json).unwrap();
        assert_eq!(read.grid(&spec(&[10, 20])).unwrap().1, [1..3, 0..20]);
        assert_eq!(layout(&[]).grid(&spec(&[10, 20])).unwrap().1, [0..10, 0..20]);
        for slice in [&[[1, 3]][..], &[[3, 1], [0, 20]], &[[0, 11], [0, 20]]] {
            assert_eq!(layout(slice).grid(&spec(&[10, 20])).unwrap_err().code, Code::BadTensor, "{slice:?}");
        }
    }
}
