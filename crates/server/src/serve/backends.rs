//! From configuration to an opened store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sira_backend::file::FileBackend;
use sira_backend::memory::MemoryBackend;
use sira_backend::object::ObjectBackend;
use sira_backend::probe::probe_create_if_absent;
use sira_backend::rocks::{self, RocksBackend, RocksOptions};
use sira_backend::{BackendError, StorageBackend};
use sira_store::catalog::RocksKv;
use sira_store::{Rule, Seams, StorageClient, StoreOptions};

use crate::Failure;
use crate::config::{Backend, Config, ObjectPlace, RocksCompression};

/// How long a request waits for memory before it is told that the server is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens catalog and backends, tries what the backends claim, and starts the store.
pub(super) async fn open_store(config: &Config) -> Result<StorageClient, Failure> {
    let storage = &config.storage;
    let catalog_folder = config.server.data_dir.join("catalog");
    let catalog = blocking(move || RocksKv::open(&catalog_folder)).await.map_err(|error| Failure::with("catalog", error))?;
    let store = StorageClient::new(options(config), Seams::system(), Arc::new(catalog)).map_err(|error| Failure::with("catalog", error))?;
    for (name, backend) in &storage.backends {
        let failed = |error: BackendError| Failure::with(format_args!("backend {name}"), error);
        let opened = open_backend(backend).await.map_err(failed)?;
        if *name == storage.record_backend {
            probe_create_if_absent(opened.as_ref()).await.map_err(failed)?;
        }
        tracing::info!(backend = name, kind = backend.kind(), "backend opened");
        store.register_backend(name, opened);
    }
    for rule in &storage.rules {
        let pattern = rule.pattern.as_ref().map_or("*", |glob| glob.glob());
        let bytes = rule.min_size.unwrap_or(0)..=rule.max_size.unwrap_or(u64::MAX);
        let rule = Rule::new(pattern, bytes, &rule.backend).map_err(|error| Failure::Failed(error.to_string()))?;
        store.add_strategy(Box::new(rule));
    }
    store.start().await.map_err(|error| Failure::with("the store does not start", error))?;
    Ok(store)
}

/// The ledger gets what the backends and the catalog do not take for themselves; the hot tier at most three quarters of it, so that bodies
/// in flight and codecs always find room without waiting for evictions.
fn options(config: &Config) -> StoreOptions {
    let storage = &config.storage;
    let reserved: u64 = storage.backends.values().map(Backend::reserved_memory).sum();
    let memory_limit = config.memory.limit.saturating_sub(reserved).saturating_sub(RocksKv::MEMORY);
    StoreOptions {
        memory_limit,
        hot_limit: if storage.enable_caching { memory_limit / 4 * 3 } else { 0 },
        patience: PATIENCE,
        record_backend: storage.record_backend.clone(),
        default_backend: storage.default_backend.clone(),
        codec: storage.codec.clone(),
        consistency: storage.consistency,
        ttl: storage.ttl.map(|ttl| ttl.as_secs()),
        tombstone_grace: storage.maintenance.tombstone_grace,
        orphan_age: storage.maintenance.orphan_age,
        reap_interval: storage.maintenance.reap_interval,
        scrub_interval: Some(storage.maintenance.scrub_interval),
    }
}

async fn open_backend(backend: &Backend) -> Result<Arc<dyn StorageBackend>, BackendError> {
    Ok(match backend.clone() {
        Backend::Memory { max_size } => Arc::new(MemoryBackend::new(max_size)),
        Backend::File { path, max_size } => Arc::new(blocking(move || FileBackend::open(path, max_size)).await?),
        Backend::RocksDb { path, max_size, compression, cache_size, write_buffer_size } => {
            let options = RocksOptions {
                compression: match compression {
                    RocksCompression::None => rocks::RocksCompression::None,
                    RocksCompression::Lz4 => rocks::RocksCompression::Lz4,
                    RocksCompression::Zstd => rocks::RocksCompression::Zstd,
                },
                cache_bytes: in_memory(cache_size),
                write_buffer_bytes: in_memory(write_buffer_size),
                max_bytes: max_size,
                ..RocksOptions::default()
            };
            Arc::new(blocking(move || open_rocksdb(&path, options)).await?)
        }
        Backend::Object { place, max_size, options } => {
            let opened = match place {
                ObjectPlace::Folder(path) => blocking(move || ObjectBackend::open_local(path)).await?,
                ObjectPlace::Url(url) => ObjectBackend::open_url(&url, options)?,
            };
            Arc::new(match max_size {
                Some(max_size) => opened.with_limit(max_size).await?,
                None => opened,
            })
        }
    })
}

/// RocksDB makes the last folder of its path only.
fn open_rocksdb(path: &Path, options: RocksOptions) -> Result<RocksBackend, BackendError> {
    std::fs::create_dir_all(path).map_err(|error| BackendError::Config(format!("cannot make {}: {error}", path.display())))?;
    RocksBackend::open(path, options)
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Runs what blocks (opening databases) off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, BackendError> + Send + 'static) -> Result<T, BackendError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(BackendError::Unavailable { context: "opening it was cut off".into(), source: Box::new(error) }))
}
