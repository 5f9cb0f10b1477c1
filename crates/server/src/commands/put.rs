//! `sira put`: one tensor of a file, all of them under keys of their own, or all as parts of one key.

use std::collections::BTreeMap;
use std::path::Path;

use futures::StreamExt;
use serde_json::json;
use sira_client::{ClientError, DType, PutAnswer, PutOptions, TensorSpec};
use sira_wire::Key;
use sira_wire::many::MAX_PARTS;
use sira_wire::namespace::CALIBRATIONS;

use super::codec::calibration;
use super::{Server, note, plural, print, print_line, put_many};
use crate::Failure;
use crate::cli::PutArgs;
use crate::config::units::short_size;
use crate::formats::{self, TensorFile};
use crate::progress::Progress;

/// Bytes of the texts of a file's `__metadata__` that are kept with every tensor: what is longer is about the file, not about each of its tensors.
const MAX_METADATA: usize = 4 << 10;

/// What the attributes that hold a file's `__metadata__` begin with.
pub(super) const METADATA_PREFIX: &str = "safetensors.";

/// `sira put`.
pub(crate) async fn put(server: Server<'_>, args: PutArgs) -> Result<(), Failure> {
    if args.file.extension().is_some_and(|extension| extension == "calib") {
        return put_calibration(server, args).await;
    }
    match (args.parts, args.key.ends_with('/')) {
        (true, true) => Err(Failure::Usage("--parts takes one key, which does not end with /".into())),
        (false, true) if args.tensor.is_some() => Err(Failure::Usage("--tensor takes one key, which does not end with /".into())),
        (false, true) => put_many::put_each(server, args).await,
        (true, false) => put_parts(server, args).await,
        (false, false) => put_one(server, args).await,
    }
}

impl PutArgs {
    /// The options that the arguments say.
    pub(super) fn options(&self) -> PutOptions {
        PutOptions {
            codec: self.codec.clone(),
            ttl: self.ttl.map(|ttl| ttl.as_secs()),
            consistency: self.consistency,
            kv_spec: self.spec.clone(),
            condition: self.condition,
            derived_from_lossy: self.derived_from_lossy,
            ..PutOptions::default()
        }
    }

    /// A tensor with the axes and attributes that the arguments say, and what they do not say and the file's metadata does.
    pub(super) fn describe(
        &self,
        spec: TensorSpec,
        metadata: &BTreeMap<String, String>,
        mut attributes: BTreeMap<String, String>,
    ) -> Result<TensorSpec, sira_tensor::TensorError> {
        attributes.extend(self.attributes.iter().cloned());
        formats::named(spec, &self.axes, metadata)?.with_attributes(attributes)
    }
}

async fn put_one(server: Server<'_>, args: PutArgs) -> Result<(), Failure> {
    let source = formats::open(&args.file, args.tensor.as_deref()).await?;
    let attributes = attributes_of(&args.file, &source.metadata);
    let spec = args.describe(source.spec, &source.metadata, attributes).map_err(|error| Failure::Usage(error.to_string()))?;
    let progress = Progress::bytes(Some(spec.nbytes()), !args.json);
    let pieces = source.pieces.inspect(move |piece| progress.advance(piece.as_ref().map_or(0, |piece| piece.len() as u64)));
    let answer = server.connect().await?.put_stream(&args.key, &spec, pieces, args.options()).await?;
    say(&answer, spec.nbytes(), args.json)
}

/// All bytes are in memory at once: the client commits a key's parts from there.
async fn put_parts(server: Server<'_>, args: PutArgs) -> Result<(), Failure> {
    args.key.parse::<Key>().map_err(ClientError::from)?;
    let (file, contents) = TensorFile::open(&args.file).await?;
    let count = contents.tensors.len();
    if count > MAX_PARTS {
        return Err(Failure::Usage(format!("{}: {count} tensors; a key has at most {MAX_PARTS} parts", args.file.display())));
    }
    let attributes = attributes_of(&args.file, &contents.metadata);
    let mut parts = Vec::with_capacity(contents.tensors.len());
    for tensor in contents.tensors {
        let wrong = |error: String| Failure::Usage(format!("{}: tensor {:?}: {error}", args.file.display(), tensor.name));
        sira_tensor::kv::part_name(&tensor.name).map_err(|error| wrong(error.to_string()))?;
        let spec = args.describe(tensor.spec.clone(), &contents.metadata, attributes.clone()).map_err(|error| wrong(error.to_string()))?;
        parts.push((tensor, spec));
    }
    let client = server.connect().await?;
    let progress = Progress::bytes(Some(parts.iter().map(|(_, spec)| spec.nbytes()).sum()), !args.json);
    let mut read = Vec::with_capacity(parts.len());
    for (tensor, spec) in parts {
        let bytes = file.read(&tensor).await?;
        progress.advance(bytes.len() as u64);
        read.push((tensor.name, spec, bytes));
    }
    let nbytes = read.iter().map(|(_, spec, _)| spec.nbytes()).sum();
    let answer = client.put_parts(&args.key, read, args.options()).await?;
    drop(progress);
    say(&answer, nbytes, args.json)
}

/// A calibration has its hash as its key.
async fn put_calibration(server: Server<'_>, args: PutArgs) -> Result<(), Failure> {
    let (calibration, bytes) = calibration(&args.file)?;
    let key = format!("{CALIBRATIONS}/{}", calibration.hash());
    if args.key != key && args.key != format!("{CALIBRATIONS}/") {
        return Err(Failure::Usage(format!("{}: a calibration is put as {CALIBRATIONS}/ or {key}, not {}", args.file.display(), args.key)));
    }
    let spec = TensorSpec::new(DType::UInt8, vec![bytes.len() as u64]).map_err(|error| Failure::Failed(error.to_string()))?;
    let nbytes = spec.nbytes();
    let answer = server.connect().await?.put(&key, &spec, bytes, args.options()).await?;
    say(&answer, nbytes, args.json)
}

fn say(answer: &PutAnswer, nbytes: u64, json: bool) -> Result<(), Failure> {
    if json {
        return print_line(&done(answer, nbytes));
    }
    let created = if answer.created { "created" } else { "replaced" };
    print(&format!("{}: version {}, {created}, {}", answer.key, answer.version, short_size(nbytes)))
}

/// What is said of a key that was put, as JSON.
pub(super) fn done(answer: &PutAnswer, nbytes: u64) -> serde_json::Value {
    json!({ "key": answer.key, "version": answer.version, "created": answer.created, "nbytes": nbytes })
}

/// A file's `__metadata__` as attributes; nothing where it is too long to be kept with every tensor, which is said.
pub(super) fn attributes_of(path: &Path, metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let bytes: usize = metadata.iter().map(|(name, text)| METADATA_PREFIX.len() + name.len() + text.len()).sum();
    let attributes: BTreeMap<_, _> = metadata.iter().map(|(name, text)| (format!("{METADATA_PREFIX}{name}"), text.clone())).collect();
    let fits = TensorSpec::new(DType::UInt8, Vec::new()).and_then(|spec| spec.with_attributes(attributes.clone()));
    if bytes <= MAX_METADATA && fits.is_ok() {
        return attributes;
    }
    note(&format!("{}: __metadata__ is not kept: {}, {bytes} bytes", path.display(), plural(metadata.len() as u64, "text")));
    BTreeMap::new()
}
