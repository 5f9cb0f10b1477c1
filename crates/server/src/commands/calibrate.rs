//! `sira calibrate`: a calibration from KV caches in files and on a server, some tokens at a time.

use std::path::Path;

use futures::TryStreamExt;
use serde_json::json;
use sira_client::{Client, GetOptions, TensorSpec};
use sira_codec::calibration::{Document, FitOptions, Fitter, Model, Moments};
use sira_codec::{Calibration, ChunkContext, KvFacts, TensorContext};
use sira_tensor::DType;
use sira_tensor::kv::KvSpec;

use super::output::Output;
use super::{Server, plural, print, print_line};
use crate::Failure;
use crate::cli::CalibrateArgs;
use crate::config::units::short_size;
use crate::formats::safetensors::Tensor;
use crate::formats::{self, TensorFile};
use crate::progress::Progress;

/// Tokens at the beginning of a document that are not learnt from: codecs keep them exactly, and their statistics are others.
const SINKS: u64 = 4;

/// Tokens that are in memory at once.
const TOKENS: u64 = 256;

/// A KV cache: its parts, each with what is known of it.
struct Cache {
    /// For messages.
    name: String,
    parts: Vec<Part>,
}

struct Part {
    name: String,
    spec: TensorSpec,
    facts: Option<KvFacts>,
}

/// Where a cache's bytes come from.
enum Source {
    File(TensorFile, Vec<Tensor>),
    Server(Box<Client>, String),
}

/// `sira calibrate`.
pub(crate) async fn calibrate(server: Server<'_>, args: &CalibrateArgs) -> Result<(), Failure> {
    let mut caches = Vec::new();
    for path in &args.files {
        caches.push(of_file(path).await?);
    }
    if !args.keys.is_empty() {
        let client = server.connect().await?;
        for prefix in &args.keys {
            caches.extend(of_server(&client, prefix).await?);
        }
    }
    let Some((first, _)) = caches.first() else { return Err(Failure::NotFound("no key starts with what --keys says".into())) };
    let model = first.model()?;
    let moments = match &args.moments {
        Some(path) => Some(moments(path, &model).await?),
        None => None,
    };
    let options = FitOptions { finest_step: args.finest_step.unwrap_or(FitOptions::default().finest_step), ..FitOptions::default() };
    let mut fitter = Fitter::new(model.clone(), moments, options).map_err(|error| Failure::Usage(error.to_string()))?;
    let total = caches.iter().flat_map(|(cache, _)| &cache.parts).map(|part| part.spec.nbytes()).sum();
    let progress = Progress::bytes(Some(total), !args.json);
    for (cache, source) in &caches {
        progress.message(&cache.name);
        cache.learn(source, &model, &mut fitter, &progress).await.map_err(|failure| Failure::with(&cache.name, failure))?;
    }
    let mut say = |done: usize, of: usize| progress.message(&format!("bases of {of} groups of layers: {done} done"));
    let calibration = fitter.finish(&mut say).map_err(|error| Failure::Failed(error.to_string()))?;
    drop(progress);
    let bytes = calibration.to_bytes().map_err(|error| Failure::Failed(error.to_string()))?;
    let mut output = Output::create(&args.out)?;
    output.write(&bytes).await?;
    output.finish().await?;
    say_done(args, &calibration, bytes.len() as u64, caches.len())
}

/// Tokens that a calibration of `model` wants at least: twice as many as a token's keys have values. One of fewer knows its own documents, and what
/// it does to others was seen to be ten times worse (docs/codecs.md).
fn wanted(model: &Model) -> u64 {
    2 * u64::from(model.layers) * u64::from(model.heads) * u64::from(model.dim)
}

fn say_done(args: &CalibrateArgs, calibration: &Calibration, bytes: u64, documents: usize) -> Result<(), Failure> {
    let model = calibration.model();
    if args.json {
        return print_line(&json!({
            "file": args.out.display().to_string(), "hash": calibration.hash(), "bytes": bytes, "model": model.name, "layers": model.layers,
            "heads": model.heads, "dim": model.dim, "tokens": calibration.tokens(), "documents": documents,
            "weighted": calibration.moments().is_some(), "tokens_wanted": wanted(model),
        }));
    }
    let weighted = if calibration.moments().is_some() { "" } else { "; no moments, so errors count the same everywhere" };
    let few = match wanted(model) {
        wanted if calibration.tokens() < wanted => {
            format!("\nwarning: {wanted} tokens and more are wanted; one of so few fits its own documents and may spoil others")
        }
        _ => String::new(),
    };
    print(&format!(
        "{}: {}, {} of {}, {} layers, {} KV heads of {}{weighted}{few}\n{}",
        args.out.display(),
        short_size(bytes),
        plural(calibration.tokens(), "token"),
        plural(documents as u64, "document"),
        model.layers,
        model.heads,
        model.dim,
        calibration.hash()
    ))
}

/// The cache in a file: its only tensor, or all of them as parts.
async fn of_file(path: &Path) -> Result<(Cache, Source), Failure> {
    let (file, contents) = TensorFile::open(path).await?;
    let mut parts = Vec::new();
    for tensor in &contents.tensors {
        let wrong = |error: sira_tensor::TensorError| Failure::Usage(format!("{}: tensor {:?}: {error}", path.display(), tensor.name));
        let spec = formats::named(tensor.spec.clone(), &[], &contents.metadata).map_err(wrong)?;
        let spec = spec.clone().with_attributes(contents.metadata.clone()).unwrap_or(spec);
        let facts = KvFacts::of(&tensor.name, &spec, None).or_else(|| Some(KvFacts { part: tensor.name.clone(), ..KvFacts::default() }));
        parts.push(Part { name: tensor.name.clone(), spec, facts });
    }
    Ok((Cache { name: path.display().to_string(), parts }, Source::File(file, contents.tensors)))
}

/// The caches below a prefix of a server's keys.
async fn of_server(client: &Client, prefix: &str) -> Result<Vec<(Cache, Source)>, Failure> {
    let entries: Vec<_> = client.list_all(prefix).try_collect().await?;
    let mut caches = Vec::new();
    for entry in entries {
        let kv = match &entry.kv_spec {
            Some(hash) => Some(client.kv_spec(hash).await?.spec),
            None => None,
        };
        let one = (String::from("data"), &entry.dtype, &entry.shape, &entry.axes, &entry.attributes);
        let several = entry.parts.iter().map(|part| (part.name.clone(), &part.dtype, &part.shape, &part.axes, &part.attributes));
        let described: Vec<_> = if entry.parts.is_empty() { vec![one] } else { several.collect() };
        let mut parts = Vec::new();
        for (name, dtype, shape, axes, attributes) in described {
            let spec = dtype.parse::<DType>().and_then(|dtype| TensorSpec::new(dtype, shape.clone()));
            let spec = spec.and_then(|spec| spec.with_axes(axes.clone())).and_then(|spec| spec.with_attributes(attributes.clone()));
            let spec = spec.map_err(|error| Failure::with(&entry.key, error))?;
            let facts = facts(&name, &spec, kv.as_ref());
            parts.push(Part { name, spec, facts });
        }
        caches.push((Cache { name: entry.key.clone(), parts }, Source::Server(Box::new(client.clone()), entry.key.clone())));
    }
    Ok(caches)
}

fn facts(name: &str, spec: &TensorSpec, kv: Option<&KvSpec>) -> Option<KvFacts> {
    KvFacts::of(name, spec, kv).or_else(|| Some(KvFacts { part: name.to_owned(), ..KvFacts::default() }))
}

impl Cache {
    fn model(&self) -> Result<Model, Failure> {
        let parts: Vec<_> = self.parts.iter().map(|part| (&part.spec, part.facts.as_ref())).collect();
        Model::of(&parts).map_err(|error| Failure::with(&self.name, error))
    }

    /// Gives all tokens but the sinks to `fitter`.
    async fn learn(&self, source: &Source, model: &Model, fitter: &mut Fitter, progress: &Progress) -> Result<(), Failure> {
        let failed = |error: sira_codec::CodecError| Failure::Failed(error.to_string());
        let tokens = self.parts.iter().filter_map(Part::tokens).min();
        let tokens = tokens.ok_or_else(|| Failure::Failed("no axis is named token".into()))?;
        let first = self.parts.iter().filter_map(|part| part.facts.as_ref()?.rope.as_ref()).map(|rope| rope.first_position).max();
        let mut at = SINKS.saturating_sub(first.unwrap_or(0));
        while at < tokens {
            let end = (at + TOKENS).min(tokens);
            let mut document = Document::new(model, (end - at) as usize);
            for (index, part) in self.parts.iter().enumerate() {
                let (origin, shape) = part.slice(at, end);
                let bytes = source.read(index, part, [at, end], &origin, &shape).await?;
                let tensor = TensorContext { shape: part.spec.shape(), axes: part.spec.axes(), kv: part.facts.as_ref(), calibration: None };
                let context = ChunkContext { tensor, ..ChunkContext::new(part.spec.dtype(), &shape, &origin) };
                document.read(&bytes, context).map_err(failed)?;
                progress.advance(bytes.len() as u64);
            }
            document.add_to(fitter).map_err(failed)?;
            at = end;
        }
        Ok(())
    }
}

impl Part {
    fn tokens(&self) -> Option<u64> {
        self.spec.axes().iter().position(|axis| axis == "token").map(|axis| self.spec.shape()[axis])
    }

    /// First index and extent on each axis, of some tokens.
    fn slice(&self, start: u64, end: u64) -> (Vec<u64>, Vec<u64>) {
        let axes = self.spec.axes().iter().map(String::as_str).chain(std::iter::repeat(""));
        let of = |(&extent, axis): (&u64, &str)| if axis == "token" { (start, end - start) } else { (0, extent) };
        self.spec.shape().iter().zip(axes).map(|(extent, axis)| of((extent, axis))).unzip()
    }
}

impl Source {
    /// The tokens `range` of a part, which begin at `origin` and have `shape`, row-major.
    async fn read(&self, index: usize, part: &Part, range: [u64; 2], origin: &[u64], shape: &[u64]) -> Result<Vec<u8>, Failure> {
        match self {
            Source::File(file, tensors) => {
                let region: Vec<_> = origin.iter().zip(shape).map(|(&start, &extent)| start..start + extent).collect();
                file.read_box(&tensors[index], &region).await
            }
            Source::Server(client, key) => {
                let options =
                    GetOptions { slice: [("token".to_owned(), range)].into(), part: Some(part.name.clone()), ..GetOptions::default() };
                Ok(client.get(key, &options).await?.into_bytes().await?.to_vec())
            }
        }
    }
}

/// Reads moments of a model.
async fn moments(path: &Path, model: &Model) -> Result<Moments, Failure> {
    let (file, contents) = TensorFile::open(path).await?;
    let mut numbers = Vec::new();
    for name in ["k_metric", "v_metric", "residual"] {
        let tensor = contents.tensors.iter().find(|tensor| tensor.name == name && tensor.spec.dtype() == DType::Float32);
        let tensor = tensor.ok_or_else(|| {
            Failure::with(path.display(), format!("no tensor {name} of float32; moments have k_metric, v_metric and residual"))
        })?;
        let bytes = file.read(tensor).await?;
        numbers.push(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>());
    }
    let [k_metric, v_metric, residual] = <[_; 3]>::try_from(numbers).map_err(|_| Failure::Failed("three tensors are not three".into()))?;
    Moments::new([model.layers, model.heads, model.dim], k_metric, v_metric, residual).map_err(|error| Failure::with(path.display(), error))
}
