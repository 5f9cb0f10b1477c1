//! Puts and gets of the engine, without the wire, beside a plain copy of the same bytes.

#![allow(missing_docs, clippy::panic, reason = "criterion writes functions without docs; a benchmark that cannot start ends")]

use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sira_backend::memory::MemoryBackend;
use sira_backend::object::ObjectBackend;
use sira_backend::rocks::{RocksBackend, RocksOptions};
use sira_backend::{Payload, StorageBackend};
use sira_store::catalog::RocksKv;
use sira_store::{Rule, Seams, StorageClient, StoreOptions, WriteOptions};
use sira_tensor::{DType, TensorSpec};
use sira_wire::Key;

type Failure = Box<dyn std::error::Error>;

async fn open(folder: &std::path::Path, hot_limit: u64) -> Result<StorageClient, Failure> {
    let options = StoreOptions {
        memory_limit: 512 << 20,
        hot_limit,
        record_backend: "rocksdb".into(),
        default_backend: "rocksdb".into(),
        codec: "planes+zstd".parse()?,
        ..StoreOptions::default()
    };
    let store = StorageClient::new(options, Seams::system(), Arc::new(RocksKv::open(&folder.join("catalog"))?))?;
    let backends: [(&str, Arc<dyn StorageBackend>); 3] = [
        ("rocksdb", Arc::new(RocksBackend::open(folder.join("rocksdb"), RocksOptions::default())?)),
        ("object", Arc::new(ObjectBackend::open_local(folder.join("object"))?)),
        ("memory", Arc::new(MemoryBackend::new(256 << 20))),
    ];
    for (name, backend) in backends {
        store.register_backend(name, backend);
        store.add_strategy(Box::new(Rule::new(&format!("{name}/*"), 0..=u64::MAX, name)?));
    }
    store.start().await?;
    Ok(store)
}

fn store(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap_or_else(|e| panic!("a runtime: {e}"));
    let _inside = runtime.enter();
    for (size, label) in [(16 << 10, "16 KiB"), (1 << 20, "1 MiB"), (16 << 20, "16 MiB")] {
        let raw = Bytes::from(sira_benches::kv_cache(size).unwrap_or_else(|e| panic!("the sample: {e}")));
        let spec = TensorSpec::new(DType::BFloat16, vec![size as u64 / 2]).unwrap_or_else(|e| panic!("{e}"));
        let payload = Payload::from(raw.clone());
        let mut group = c.benchmark_group(label);
        group.throughput(Throughput::Bytes(size as u64)).sample_size(10);
        group.bench_function("copy", |b| b.iter(|| std::hint::black_box(raw.to_vec())));
        for (hot, temperature) in [(0, "cold"), (128 << 20, "hot")] {
            let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("a folder: {e}"));
            let store = runtime.block_on(open(folder.path(), hot)).unwrap_or_else(|e| panic!("a store: {e}"));
            for backend in ["memory", "rocksdb", "object"] {
                let key: Key = format!("{backend}/bench").parse().unwrap_or_else(|e| panic!("{e}"));
                let put = || runtime.block_on(store.store(key.clone(), spec.clone(), &payload, WriteOptions::default()));
                if hot == 0 {
                    group.bench_function(BenchmarkId::new("put", backend), |b| b.iter(|| put().is_ok()));
                }
                put().unwrap_or_else(|e| panic!("{e}"));
                let get = || runtime.block_on(store.retrieve(&key));
                get().unwrap_or_else(|e| panic!("{e}"));
                group.bench_function(BenchmarkId::new(format!("get {temperature}"), backend), |b| b.iter(|| get().is_ok()));
            }
        }
        group.finish();
    }
}

criterion_group!(benches, store);
criterion_main!(benches);
