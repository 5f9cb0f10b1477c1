//! Each codec chain on a real KV cache, beside a plain copy of the same bytes.

#![allow(missing_docs, clippy::panic, reason = "criterion writes functions without docs; a benchmark that cannot start ends")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sira_benches::{Failure, SAMPLE_BYTES, SAMPLE_SHAPE, kv_cache};
use sira_codec::calibration::{Document, FitOptions, Fitter, Model};
use sira_codec::{Calibration, Chain, ChunkContext, Encoded, KvFacts, TensorContext};
use sira_tensor::{DType, TensorSpec};

/// Chains, each by its text; `@` is where the hash of a calibration belongs.
const CHAINS: [&str; 14] = [
    "planes",
    "planes+zstd",
    "float-rans",
    "float-nibble",
    "zstd",
    "lz4",
    "gzip:1",
    "int8",
    "int4",
    "fp8",
    "kvq:high",
    "kvq:high@",
    "kvtc:near-lossless@",
    "kvtc:standard@",
];

/// The whole sample as one chunk: a repetition would flatter the codecs that look far back.
struct Sample {
    raw: Vec<u8>,
    spec: TensorSpec,
    facts: Option<KvFacts>,
}

impl Sample {
    fn load() -> Result<Sample, Failure> {
        let axes = ["layer", "kv", "token", "head", "dim"].map(String::from).to_vec();
        let attributes = [("model", "SmolLM2-135M"), ("rope", "half"), ("rope_theta", "100000"), ("rope_dim", "64")];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let spec = TensorSpec::new(DType::BFloat16, SAMPLE_SHAPE.to_vec())?.with_axes(axes)?.with_attributes(attributes)?;
        Ok(Sample { raw: kv_cache(SAMPLE_BYTES)?, facts: KvFacts::of("kv", &spec, None), spec })
    }

    fn context<'a>(&'a self, calibration: Option<&'a Calibration>) -> ChunkContext<'a> {
        let tensor = TensorContext { shape: self.spec.shape(), axes: self.spec.axes(), kv: self.facts.as_ref(), calibration };
        ChunkContext { tensor, ..ChunkContext::new(self.spec.dtype(), self.spec.shape(), &[0; 5]) }
    }

    /// Fitted to the sample itself: good for speed, not for what a codec does to others.
    fn calibration(&self) -> Result<Calibration, Failure> {
        let model = Model::of(&[(&self.spec, self.facts.as_ref())])?;
        let mut fitter = Fitter::new(model.clone(), None, FitOptions::default())?;
        let mut document = Document::new(&model, SAMPLE_SHAPE[2] as usize);
        document.read(&self.raw, self.context(None))?;
        document.add_to(&mut fitter)?;
        Ok(fitter.finish(&mut |_, _| ())?)
    }
}

fn codecs(c: &mut Criterion) {
    let sample = Sample::load().unwrap_or_else(|error| panic!("the sample: {error}"));
    let calibration = sample.calibration().unwrap_or_else(|error| panic!("the calibration: {error}"));
    let mut group = c.benchmark_group("chunk of 1.8 MB");
    group.throughput(Throughput::Bytes(sample.raw.len() as u64));
    group.bench_function("copy", |b| b.iter(|| std::hint::black_box(sample.raw.clone())));
    for name in CHAINS {
        let calibrated = name.ends_with('@');
        let text = if calibrated { format!("{name}{}", calibration.hash()) } else { name.to_owned() };
        let chain: Chain = text.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
        let context = sample.context(calibrated.then_some(&calibration));
        let stored = match chain.encode(&sample.raw, context) {
            Ok(Encoded::Bytes(stored)) => stored,
            Ok(Encoded::Raw) if name == "planes" => continue,
            other => panic!("{name}: {other:?}"),
        };
        println!("{name}: {:.3}x smaller", sample.raw.len() as f64 / stored.len() as f64);
        group.bench_function(BenchmarkId::new("encode", name), |b| b.iter(|| chain.encode(&sample.raw, context)));
        group.bench_function(BenchmarkId::new("decode", name), |b| b.iter(|| chain.decode(&stored, sample.raw.len(), context)));
    }
    group.finish();
}

criterion_group!(benches, codecs);
criterion_main!(benches);
