//! What the store knows of a key, and its bytes (docs/format.md, schemas/record.fbs).

use std::collections::BTreeMap;

use flatbuffers::FlatBufferBuilder;
use sira_backend::name;
use sira_codec::Chain;
use sira_tensor::TensorSpec;
use sira_wire::{Consistency, Key};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::StoreError;
use crate::calibrations::named;
use crate::generated::record::sira::record as fb;
use crate::part::PartSpec;
use crate::sound;

/// Features of the format that this version knows: none beyond the base.
const KNOWN_FEATURES: u64 = 0;

/// Bytes before the FlatBuffer: the magic, then XXH3-64 of what follows.
pub(crate) const HEADER: usize = 16;
pub(crate) const MAGIC: &[u8; 8] = b"SIRAREC1";

/// Bytes of a record's name in a backend, at most.
const MAX_NAME: usize = 900;

/// One record: the state of a key after one change.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRecord {
    /// The key.
    pub key: Key,
    /// Counts contents; a tombstone keeps the version it ended.
    pub version: u64,
    /// Counts records of this key.
    pub generation: u64,
    /// Whether this record says that there is nothing.
    pub tombstone: bool,
    /// When the contents were committed.
    pub created_ms: u64,
    /// When they expire.
    pub expires_ms: Option<u64>,
    /// The level they were put with.
    pub consistency: Consistency,
    /// Of the write that made this record.
    pub write_id: String,
    /// The parts; none in a tombstone.
    pub parts: Vec<Part>,
    /// Hash of the kv spec that they follow.
    pub kv_spec: Option<String>,
    /// Whether its writer says that it was computed from what a lossy codec gave back.
    pub derived_from_lossy: bool,
}

/// One n-d array of a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its name; `data` for a key put as one tensor.
    pub name: String,
    /// What was declared.
    pub spec: TensorSpec,
    /// The raw bytes, for a small part; the catalog's copy of a record leaves them out.
    pub inline: Option<Vec<u8>>,
    /// Where the chunks lie; none for an inline part.
    pub copies: Vec<PartCopy>,
    /// The chain that the writer asked for.
    pub codec: Option<String>,
}

/// A part as it lies in one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct PartCopy {
    /// The backend's name in the configuration.
    pub backend: String,
    /// Of the write that made the chunks: they lie under its name.
    pub write_id: String,
    /// Extents of a cell of the grid.
    pub chunk_shape: Vec<u64>,
    /// Texts of the codec chains in use.
    pub chains: Vec<String>,
    /// The cells, in row-major order of the grid.
    pub chunks: Vec<Chunk>,
    /// Of a copy that a lossy codec made: the root of the mean square of the errors for that of the values, of `k` and `v` where they are known, and
    /// of `all`.
    pub errors: BTreeMap<String, f64>,
}

/// One stored cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes in the backend.
    pub stored_bytes: u64,
    /// XXH3-64 of them.
    pub checksum: u64,
    /// Index into the copy's chains.
    pub chain: u32,
}

impl Part {
    /// Whether a copy of it is lossy.
    pub fn is_lossy(&self) -> bool {
        self.copies.iter().any(PartCopy::is_lossy)
    }

    /// What its writer said of it.
    pub fn declared(&self) -> PartSpec {
        PartSpec { name: self.name.clone(), spec: self.spec.clone(), codec: self.codec.clone() }
    }
}

impl PartCopy {
    /// Bytes in the backend.
    pub fn stored_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.stored_bytes).sum()
    }

    /// The chains that chunks went through.
    fn used_chains(&self) -> impl Iterator<Item = &str> {
        let used = |index: &usize| self.chunks.iter().any(|chunk| chunk.chain as usize == *index);
        (0..self.chains.len()).filter(used).map(|index| self.chains[index].as_str())
    }

    /// Whether it gives back other bytes than were put, or may: of a chain that is not known, nobody can tell.
    pub fn is_lossy(&self) -> bool {
        self.used_chains().any(|text| text != Chain::NONE && !text.parse::<Chain>().is_ok_and(|chain| chain.lossless()))
    }
}

impl TensorRecord {
    /// Whether there is something to read at `now_ms`.
    pub fn alive(&self, now_ms: u64) -> bool {
        !self.tombstone && self.expires_ms.is_none_or(|at| now_ms < at)
    }

    /// Whether the contents are only in memory so far.
    pub fn waits(&self) -> bool {
        self.parts.iter().any(|part| part.copies.is_empty() && part.inline.is_none())
    }

    /// Whether all copies give back exactly the bytes that were put, and their writer did not say that a lossy codec was in their making.
    pub fn is_exact(&self) -> bool {
        !self.derived_from_lossy && !self.parts.iter().any(Part::is_lossy)
    }

    /// Hashes of the calibration artefacts without which it cannot be read.
    pub fn calibrations(&self) -> impl Iterator<Item = &str> {
        let copies = self.parts.iter().flat_map(|part| &part.copies);
        copies.flat_map(PartCopy::used_chains).flat_map(named)
    }

    /// The index of the part named `name`; without a name, of the only one.
    pub fn part(&self, name: Option<&str>) -> Result<usize, StoreError> {
        let names = || self.parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(", ");
        match (name, self.parts.len()) {
            (None, 1) => Ok(0),
            (None, _) => Err(StoreError::HasParts(format!("{} has the parts {}; name one, or get it with `keys`", self.key, names()))),
            (Some(name), _) => {
                let index = self.parts.iter().position(|part| part.name == name);
                index.ok_or_else(|| StoreError::NotFound(format!("{} has no part {name:?}; it has {}", self.key, names())))
            }
        }
    }

    /// Raw bytes of all parts.
    pub fn nbytes(&self) -> u64 {
        self.parts.iter().map(|part| part.spec.nbytes()).sum()
    }

    /// Bytes of its parts in each backend; those of inline parts lie in `record_backend`.
    pub fn stored(&self, record_backend: &str) -> BTreeMap<String, u64> {
        let mut bytes = BTreeMap::new();
        for part in &self.parts {
            for copy in &part.copies {
                *bytes.entry(copy.backend.clone()).or_default() += copy.stored_bytes();
            }
            if part.inline.is_some() {
                *bytes.entry(record_backend.to_string()).or_default() += part.spec.nbytes();
            }
        }
        bytes
    }

    /// This record without the raw bytes of inline parts, as the catalog keeps it.
    pub fn without_inline(&self) -> TensorRecord {
        let parts = self.parts.iter().map(|part| Part { inline: part.inline.as_ref().map(|_| Vec::new()), ..part.clone() });
        TensorRecord { parts: parts.collect(), ..self.clone() }
    }

    /// The record's name in a backend.
    pub fn name(&self) -> String {
        TensorRecord::name_of(&self.key, self.generation)
    }

    /// The name of a record of `key` in a backend.
    pub fn name_of(key: &Key, generation: u64) -> String {
        format!("{}/!{generation:016x}", record_prefix(key))
    }

    /// The record's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(1024);
        let parts: Vec<_> = self.parts.iter().map(|part| part.build(&mut b)).collect();
        let parts = b.create_vector(&parts);
        let (namespace, key, write_id) =
            (b.create_string(self.key.namespace()), b.create_string(self.key.rest()), b.create_string(&self.write_id));
        let args = fb::TensorRecordArgs {
            required_features: 0,
            namespace_: Some(namespace),
            key: Some(key),
            version: self.version,
            generation: self.generation,
            tombstone: self.tombstone,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms.unwrap_or(0),
            consistency: match self.consistency {
                Consistency::Eventual => fb::Consistency::eventual,
                Consistency::Strong => fb::Consistency::strong,
                Consistency::Weak => fb::Consistency::weak,
            },
            write_id: Some(write_id),
            parts: Some(parts),
            kv_spec: self.kv_spec.as_ref().map(|hash| b.create_string(hash)),
            derived_from_lossy: self.derived_from_lossy,
        };
        let root = fb::TensorRecord::create(&mut b, &args);
        fb::finish_tensor_record_buffer(&mut b, root);
        let body = b.finished_data();
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&xxh3_64(body).to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// Reads a record's bytes; `place` says in errors where they came from.
    pub fn from_bytes(place: &str, bytes: &[u8]) -> Result<TensorRecord, StoreError> {
        let corrupt = |reason: String| StoreError::Corrupt(format!("record {place}: {reason}"));
        let (header, body) = bytes.split_at_checked(HEADER).ok_or_else(|| corrupt(format!("{} bytes are too few", bytes.len())))?;
        if &header[..8] != MAGIC {
            return Err(corrupt("it does not begin with SIRAREC1".into()));
        }
        if xxh3_64(body).to_le_bytes() != header[8..] {
            return Err(corrupt("its checksum does not match".into()));
        }
        // Nothing in a record is shared but vtables, so that it is not much larger than its bytes when its offsets are followed.
        let options = flatbuffers::VerifierOptions { max_tables: 1 << 20, max_apparent_size: 4 * body.len() + 1024, ..Default::default() };
        let root = fb::root_as_tensor_record_with_opts(&options, body).map_err(|e| corrupt(e.to_string()))?;
        if root.required_features() & !KNOWN_FEATURES != 0 {
            let unknown = root.required_features() & !KNOWN_FEATURES;
            return Err(StoreError::Unsupported(format!("record {place} needs features {unknown:#x} of a newer Sira")));
        }
        let key = format!("{}/{}", root.namespace_(), root.key()).parse().map_err(|e| corrupt(format!("{e}")))?;
        let parts = root.parts().into_iter().flatten().map(|part| Part::read(part).map_err(&corrupt));
        let record = TensorRecord {
            key,
            version: root.version(),
            generation: root.generation(),
            tombstone: root.tombstone(),
            created_ms: root.created_ms(),
            expires_ms: Some(root.expires_ms()).filter(|&at| at > 0),
            consistency: match root.consistency() {
                fb::Consistency::eventual => Consistency::Eventual,
                fb::Consistency::strong => Consistency::Strong,
                fb::Consistency::weak => Consistency::Weak,
                other => return Err(corrupt(format!("consistency {} is unknown", other.0))),
            },
            write_id: root.write_id().to_string(),
            parts: parts.collect::<Result<_, _>>()?,
            kv_spec: root.kv_spec().map(String::from),
            derived_from_lossy: root.derived_from_lossy(),
        };
        sound::check(&record).map_err(corrupt)?;
        Ok(record)
    }
}

impl Part {
    fn build<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> flatbuffers::WIPOffset<fb::Part<'b>> {
        let copies: Vec<_> = self
            .copies
            .iter()
            .map(|copy| {
                let chunks: Vec<_> = copy.chunks.iter().map(|c| fb::Chunk::new(c.stored_bytes, c.checksum, c.chain)).collect();
                let chains: Vec<_> = copy.chains.iter().map(|chain| b.create_string(chain)).collect();
                let errors: Vec<_> = copy
                    .errors
                    .iter()
                    .map(|(of, relative_rmse)| {
                        let of = Some(b.create_string(of));
                        fb::Error::create(b, &fb::ErrorArgs { of, relative_rmse: *relative_rmse })
                    })
                    .collect();
                let args = fb::CopyArgs {
                    backend: Some(b.create_string(&copy.backend)),
                    write_id: Some(b.create_string(&copy.write_id)),
                    chunk_shape: Some(b.create_vector(&copy.chunk_shape)),
                    chains: Some(b.create_vector(&chains)),
                    chunks: Some(b.create_vector(&chunks)),
                    // Nothing where there is none, so that records without lossy copies are as they were.
                    errors: (!errors.is_empty()).then(|| b.create_vector(&errors)),
                };
                fb::Copy::create(b, &args)
            })
            .collect();
        let args = fb::PartArgs {
            name: Some(b.create_string(&self.name)),
            spec: Some(b.create_vector(&self.spec.to_bytes())),
            inline: self.inline.as_ref().map(|bytes| b.create_vector(bytes)),
            copies: Some(b.create_vector(&copies)),
            codec: self.codec.as_ref().map(|codec| b.create_string(codec)),
        };
        fb::Part::create(b, &args)
    }

    fn read(part: fb::Part<'_>) -> Result<Part, String> {
        let copies = part.copies().into_iter().flatten().map(|copy| PartCopy {
            backend: copy.backend().to_string(),
            write_id: copy.write_id().to_string(),
            chunk_shape: copy.chunk_shape().iter().collect(),
            chains: copy.chains().iter().map(String::from).collect(),
            chunks: copy
                .chunks()
                .iter()
                .map(|c| Chunk { stored_bytes: c.stored_bytes(), checksum: c.checksum(), chain: c.chain() })
                .collect(),
            errors: copy.errors().into_iter().flatten().map(|error| (error.of().to_owned(), error.relative_rmse())).collect(),
        });
        Ok(Part {
            name: part.name().to_string(),
            spec: TensorSpec::from_bytes(part.spec().bytes()).map_err(|e| e.to_string())?,
            inline: part.inline().map(|bytes| bytes.bytes().to_vec()),
            copies: copies.collect(),
            codec: part.codec().map(String::from),
        })
    }
}

/// What the names of all records of `key` start with, before the `/`.
pub(crate) fn record_prefix(key: &Key) -> String {
    let namespace = name::components(&name::escape(key.namespace().as_bytes()));
    let full = format!("{RECORDS}{namespace}/{}", name::components(&name::escape(key.rest().as_bytes())));
    if full.len() <= MAX_NAME {
        return full;
    }
    // Backends take 1,024 bytes. `!!` is in no escape, so a cut name is no other key's name.
    let hash = xxh3_128(key.as_str().as_bytes());
    format!("{}!!{hash:032x}", full[..MAX_NAME - 100].trim_end_matches('/'))
}

/// What the names of all records start with.
pub(crate) const RECORDS: &str = "r/";

/// What the names of all chunks start with.
pub(crate) const CHUNKS: &str = "c/";

/// The name of a chunk.
pub(crate) fn chunk_name(write_id: &str, part: usize, cell: u64) -> String {
    format!("{CHUNKS}{write_id}/{part}/{cell:08x}")
}

#[cfg(test)]
mod tests {
    use sira_tensor::DType;

    use super::*;

    fn record() -> TensorRecord {
        let spec = TensorSpec::new(DType::BFloat16, vec![4, 1024]).unwrap();
        let copy = PartCopy {
            backend: "rocksdb".into(),
            write_id: "0192".into(),
            chunk_shape: vec![2, 1024],
            chains: vec!["none".into(), "planes+zstd".into()],
            chunks: vec![Chunk { stored_bytes: 9, checksum: 8, chain: 1 }, Chunk { stored_bytes: 7, checksum: 6, chain: 0 }],
            errors: BTreeMap::new(),
        };
        let part = |name: &str, inline, copies| Part { name: name.into(), spec: spec.clone(), inline, copies, codec: Some("zstd".into()) };
        TensorRecord {
            key: "ns/a/b".parse().unwrap(),
            version: 3,
            generation: 5,
            tombstone: false,
            created_ms: 1000,
            expires_ms: Some(2000),
            consistency: Consistency::Strong,
            write_id: "0193".into(),
            parts: vec![part("data", None, vec![copy]), part("scale", Some(vec![1, 2, 3]), vec![])],
            kv_spec: None,
            derived_from_lossy: false,
        }
    }

    #[test]
    fn bytes_come_back() {
        let record = record();
        assert_eq!(TensorRecord::from_bytes("x", &record.to_bytes()).unwrap(), record);
        let tombstone = TensorRecord { tombstone: true, parts: vec![], expires_ms: None, ..record.clone() };
        assert_eq!(TensorRecord::from_bytes("x", &tombstone.to_bytes()).unwrap(), tombstone);
        let follows = TensorRecord { kv_spec: Some("5f".repeat(32)), ..record.clone() };
        assert_eq!(TensorRecord::from_bytes("x", &follows.to_bytes()).unwrap(), follows);
        let mut lossy = TensorRecord { derived_from_lossy: true, ..record };
        lossy.parts[0].copies[0].errors = [("k".to_owned(), 0.25), ("v".to_owned(), 1e-9)].into();
        assert_eq!(TensorRecord::from_bytes("x", &lossy.to_bytes()).unwrap(), lossy);
    }

    #[test]
    fn a_copy_is_lossy_where_a_chunk_went_through_such_a_chain() {
        let mut record = record();
        assert!(record.is_exact());
        // A chain that nobody knows any more: nobody can tell.
        record.parts[0].copies[0].chains[1] = "of-another-version".into();
        assert!(!record.is_exact() && record.parts[0].is_lossy());
        record.parts[0].copies[0].chunks.iter_mut().for_each(|chunk| chunk.chain = 0);
        assert!(record.is_exact(), "all of its chunks are stored as they are");
        record.derived_from_lossy = true;
        assert!(!record.is_exact() && !record.parts[0].is_lossy());
    }

    /// Written by format 1 and never changed: what it says must stay readable.
    #[test]
    fn the_golden_record_reads_as_it_was_written() {
        if std::env::var_os("SIRA_WRITE_GOLDEN").is_some() {
            std::fs::write("golden/record-1.bin", record().to_bytes()).unwrap();
        }
        let golden = std::fs::read("golden/record-1.bin").unwrap();
        assert_eq!(TensorRecord::from_bytes("golden", &golden).unwrap(), record());
    }

    /// As above, with what format 1 gained since: errors of lossy copies, and what is derived from them.
    #[test]
    fn the_golden_record_of_lossy_data_reads_as_it_was_written() {
        let mut lossy = TensorRecord { derived_from_lossy: true, ..record() };
        lossy.parts[0].copies[0].errors = [("all".to_owned(), 0.25), ("k".to_owned(), 1e-9), ("v".to_owned(), 0.5)].into();
        if std::env::var_os("SIRA_WRITE_GOLDEN").is_some() {
            std::fs::write("golden/record-1-lossy.bin", lossy.to_bytes()).unwrap();
        }
        let golden = std::fs::read("golden/record-1-lossy.bin").unwrap();
        assert_eq!(TensorRecord::from_bytes("golden", &golden).unwrap(), lossy);
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        let good = record().to_bytes();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(matches!(TensorRecord::from_bytes("x", &bad), Err(StoreError::Corrupt(_))), "byte {at}");
            assert!(TensorRecord::from_bytes("x", &good[..at]).is_err());
        }
    }

    #[test]
    fn numbers_that_cannot_be_added_up_are_refused() {
        let with = |change: &dyn Fn(&mut TensorRecord)| {
            let mut record = record();
            change(&mut record);
            TensorRecord::from_bytes("x", &record.to_bytes()).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(with(&|_| ()), Ok(()));
        let refused: [&dyn Fn(&mut TensorRecord); 7] = [
            &|record| record.generation = u64::MAX,
            &|record| record.created_ms = u64::MAX - 5,
            &|record| record.parts.clear(),
            &|record| record.parts = vec![record.parts[0].clone(); 65],
            &|record| record.parts[0].copies[0].chunks[0].chain = 2,
            &|record| record.parts[0].copies[0].chunks.iter_mut().for_each(|chunk| chunk.stored_bytes = 1 << 63),
            &|record| {
                let large = TensorSpec::new(DType::UInt8, vec![i64::MAX as u64]).unwrap();
                record.parts.iter_mut().for_each(|part| (part.spec, part.inline) = (large.clone(), None));
            },
        ];
        for change in refused {
            let refused = with(change).unwrap_err();
            assert!(refused.contains("record x: "), "{refused}");
        }
    }

    #[test]
    fn names_of_any_key_are_good_and_different() {
        let longest = |c: char| format!("{}/{}", "n".repeat(64), c.to_string().repeat(512 / c.len_utf8()));
        let mut names = Vec::new();
        for key in
            [longest('x'), longest('é'), longest('\u{10348}'), longest(' '), "a/b".into(), "a/b/!c".into(), "a/b//c".into(), "a/.".into()]
        {
            for generation in [1, u64::MAX] {
                let name = TensorRecord { key: key.parse().unwrap(), generation, ..record() }.name();
                name::check(&name).unwrap();
                names.push(name);
            }
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
