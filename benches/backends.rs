//! Backends alone: values of one chunk in and out, beside a plain copy of the same bytes.

#![allow(missing_docs, clippy::panic, reason = "criterion writes functions without docs; a benchmark that cannot start ends")]

use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sira_backend::file::FileBackend;
use sira_backend::memory::MemoryBackend;
use sira_backend::object::ObjectBackend;
use sira_backend::rocks::{RocksBackend, RocksOptions};
use sira_backend::{Durability, PutOptions, StorageBackend};

type Named = (&'static str, Arc<dyn StorageBackend>);

fn all(folder: &std::path::Path) -> Result<Vec<Named>, sira_backend::BackendError> {
    Ok(vec![
        ("memory", Arc::new(MemoryBackend::new(256 << 20))),
        ("file", Arc::new(FileBackend::open(folder.join("file"), None)?)),
        ("rocksdb", Arc::new(RocksBackend::open(folder.join("rocksdb"), RocksOptions::default())?)),
        ("object, local", Arc::new(ObjectBackend::open_local(folder.join("object"))?)),
    ])
}

fn backends(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap_or_else(|e| panic!("a runtime: {e}"));
    let _inside = runtime.enter();
    for (size, label) in [(4 << 10, "value of 4 KiB"), (256 << 10, "value of 256 KiB"), (2 << 20, "value of 2 MiB")] {
        let raw = Bytes::from(sira_benches::kv_cache(size).unwrap_or_else(|e| panic!("the sample: {e}")));
        let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("a folder: {e}"));
        let mut group = c.benchmark_group(label);
        group.throughput(Throughput::Bytes(size as u64)).sample_size(10);
        group.bench_function("copy", |b| b.iter(|| std::hint::black_box(raw.to_vec())));
        for (name, backend) in all(folder.path()).unwrap_or_else(|e| panic!("backends: {e}")) {
            for (durability, level) in [(Durability::Logged, "put, logged"), (Durability::Durable, "put, durable")] {
                let options = PutOptions { durability, ..PutOptions::default() };
                let put = || runtime.block_on(backend.put("c/bench", raw.clone().into(), options));
                put().unwrap_or_else(|e| panic!("{e}"));
                group.bench_function(BenchmarkId::new(level, name), |b| b.iter(|| put().is_ok()));
            }
            group.bench_function(BenchmarkId::new("get", name), |b| b.iter(|| runtime.block_on(backend.get("c/bench", None)).is_ok()));
        }
        group.finish();
    }
}

criterion_group!(benches, backends);
criterion_main!(benches);
