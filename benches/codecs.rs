//! Each codec chain on a real KV cache, beside a plain copy of the same bytes.

#![allow(missing_docs, clippy::panic, reason = "criterion writes functions without docs; a benchmark that cannot start ends")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sira_codec::{Chain, ChunkContext, Encoded};
use sira_tensor::DType;

/// Less than the sample has: a repetition would flatter the codecs that look far back.
const CHUNK: usize = 1 << 20;

fn codecs(c: &mut Criterion) {
    let raw = sira_benches::kv_cache(CHUNK).unwrap_or_else(|e| panic!("the sample: {e}"));
    // Layers of K and V, tokens, heads, dimensions; the last layer is cut short.
    let shape = [(CHUNK as u64 / 2).div_ceil(80 * 3 * 64), 80, 3, 64];
    let context = ChunkContext::new(DType::BFloat16, &shape, &[0; 4]);
    let mut group = c.benchmark_group("chunk of 1 MiB");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    group.bench_function("copy", |b| b.iter(|| std::hint::black_box(raw.clone())));
    for text in ["planes", "planes+zstd", "float-rans", "float-nibble", "zstd", "lz4", "gzip:1"] {
        let Ok(chain) = text.parse::<Chain>() else { continue };
        let Ok(Encoded::Bytes(stored)) = chain.encode(&raw, context) else { continue };
        println!("{text}: {:.3}x smaller", CHUNK as f64 / stored.len() as f64);
        group.bench_function(BenchmarkId::new("encode", text), |b| b.iter(|| chain.encode(&raw, context)));
        group.bench_function(BenchmarkId::new("decode", text), |b| b.iter(|| chain.decode(&stored, CHUNK, context)));
    }
    group.finish();
}

criterion_group!(benches, codecs);
criterion_main!(benches);
