//! Headers: a tensor's description and a kv spec, to bytes and back.

#![allow(missing_docs, clippy::panic, reason = "criterion writes functions without docs; a benchmark that cannot start ends")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sira_tensor::kv::KvSpec;
use sira_tensor::{DType, TensorSpec};

const KV_SPEC: &str = r#"{"model":"meta-llama/Llama-3.1-8B","block_tokens":16,"layers":[0,32],"heads":[0,8],
    "rope":{"theta":500000,"dim":128,"scaling":{"rope_type":"llama3","factor":8.0}},
    "parts":[{"dtype":"bfloat16","axes":["layer","kv","token","head","dim"],"shape":[32,2,16,8,128]}]}"#;

fn spec(c: &mut Criterion) {
    let axes = ["layer", "kv", "token", "head", "dim"].map(String::from).to_vec();
    let spec = TensorSpec::new(DType::BFloat16, vec![32, 2, 16, 8, 128]).and_then(|spec| spec.with_axes(axes));
    let spec = spec.unwrap_or_else(|e| panic!("{e}"));
    let bytes = spec.to_bytes();
    let mut group = c.benchmark_group("spec");
    group.throughput(Throughput::Elements(1));
    group.bench_function("write", |b| b.iter(|| std::hint::black_box(&spec).to_bytes()));
    group.bench_function("read", |b| b.iter(|| TensorSpec::from_bytes(std::hint::black_box(&bytes)).is_ok()));
    let kv = KvSpec::from_json(KV_SPEC.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    let mut parts = vec![("data".to_owned(), spec)];
    group.bench_function("kv spec, read and hash", |b| b.iter(|| KvSpec::from_json(KV_SPEC.as_bytes()).map(|kv| kv.hash()).is_ok()));
    group.bench_function("kv spec, admit", |b| b.iter(|| kv.admit(std::hint::black_box(&mut parts)).is_ok()));
    group.finish();
}

criterion_group!(benches, spec);
criterion_main!(benches);
