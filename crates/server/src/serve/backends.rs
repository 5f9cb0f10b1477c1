//! From configuration to an opened store.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sira_backend::file::FileBackend;
use sira_backend::guard::Guarded;
use sira_backend::memory::MemoryBackend;
#[cfg(feature = "mysql")]
use sira_backend::mysql::MySqlBackend;
use sira_backend::object::ObjectBackend;
#[cfg(feature = "postgres")]
use sira_backend::postgres::PostgresBackend;
use sira_backend::probe::probe_create_if_absent;
#[cfg(feature = "redis")]
use sira_backend::redis;
use sira_backend::rocks::{self, RocksBackend, RocksOptions};
#[cfg(feature = "sled")]
use sira_backend::sled;
#[cfg(feature = "sqlite")]
use sira_backend::sqlite::SqliteBackend;
use sira_backend::{BackendError, StorageBackend};
use sira_store::catalog::{MemoryKv, OrderedKv, RocksKv};
use sira_store::{Seams, StorageClient, StoreError, StoreOptions, TierOptions};

use super::routing;
use crate::Failure;
use crate::config::{Backend, Config, ObjectPlace, RocksCompression, Storage};

/// How long a request waits for memory before it is told that the server is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a backend behind a network may take to open and to be tried.
const OPENING: Duration = Duration::from_secs(60);

/// Of memory for tensors, one part in this many waits for the next puts when nobody uses it.
const IDLE_SHARE: u64 = 16;

/// Opens catalog and backends, tries what the backends claim, and starts the store.
pub(super) async fn open_store(config: &Config) -> Result<StorageClient, Failure> {
    let storage = &config.storage;
    let store = StorageClient::new(options(config), Seams::system(), open_catalog(config).await?).map_err(not_started)?;
    for (name, backend) in &storage.backends {
        let failed = |error: BackendError| Failure::with(format_args!("backend {name}"), cause(&error));
        let opened = match backend.guard() {
            None => open_and_try(name, backend, storage).await.map_err(failed)?,
            Some(guard) => {
                let opened = tokio::time::timeout(OPENING, open_and_try(name, backend, storage)).await;
                let late = |_| Err(BackendError::Unavailable { context: "it was not opened".into(), source: "it does not answer".into() });
                Arc::new(Guarded::new(name, opened.unwrap_or_else(late).map_err(failed)?, guard))
            }
        };
        tracing::info!(backend = name, kind = backend.kind(), "backend opened");
        store.register_backend(name, opened);
    }
    for strategy in routing::strategies(&storage.routing).map_err(|error| Failure::Failed(error.to_string()))? {
        store.add_strategy(strategy);
    }
    for (name, policy) in &config.namespaces {
        store.configure_namespace(name, policy.clone()).map_err(|error| Failure::with(format_args!("namespace {name}"), error))?;
    }
    store.start().await.map_err(not_started)?;
    Ok(store)
}

/// What is to keep records must show that it can: not through its guard, which would let fewer race.
async fn open_and_try(name: &str, backend: &Backend, storage: &Storage) -> Result<Arc<dyn StorageBackend>, BackendError> {
    let opened = open_backend(backend).await?;
    if *name == storage.record_backend {
        match probe_create_if_absent(opened.as_ref()).await {
            // Only deletes make room, and they need a server.
            Err(BackendError::OutOfSpace(reason)) => {
                tracing::warn!(backend = name, reason, "too full to be tried; it is taken at its word")
            }
            probed => probed?,
        }
    }
    Ok(opened)
}

/// An index of records that a backend in memory loses with the process is in memory, too: a log of it would cost each put and help nobody.
/// It takes about as much as those records, which their backend's limit counts.
async fn open_catalog(config: &Config) -> Result<Arc<dyn OrderedKv>, Failure> {
    if matches!(config.storage.backends.get(&config.storage.record_backend), Some(Backend::Memory { .. })) {
        return Ok(Arc::new(MemoryKv::default()));
    }
    let folder = config.server.data_dir.join("catalog");
    Ok(Arc::new(blocking(move || RocksKv::open(&folder)).await.map_err(|error| catalog_failed(&error))?))
}

/// The ledger gets what the backends and the catalog do not take for themselves; the hot tier at most three quarters of it, so that bodies
/// in flight and codecs always find room without waiting for evictions.
fn options(config: &Config) -> StoreOptions {
    let storage = &config.storage;
    let reserved: u64 = storage.backends.values().map(Backend::reserved_memory).sum();
    let tensors = config.memory.limit.saturating_sub(reserved).saturating_sub(RocksKv::MEMORY);
    let idle_limit = tensors / IDLE_SHARE;
    let memory_limit = tensors - idle_limit;
    StoreOptions {
        memory_limit,
        idle_limit,
        hot_limit: if storage.enable_caching { memory_limit / 4 * 3 } else { 0 },
        patience: PATIENCE,
        record_backend: storage.record_backend.clone(),
        default_backend: storage.default_backend.clone(),
        codec: storage.codec.clone(),
        coders: std::thread::available_parallelism().map_or(1, usize::from),
        consistency: storage.consistency,
        ttl: storage.ttl.map(|ttl| ttl.as_secs()),
        tombstone_grace: storage.maintenance.tombstone_grace,
        orphan_age: storage.maintenance.orphan_age,
        reap_interval: storage.maintenance.reap_interval,
        scrub_interval: Some(storage.maintenance.scrub_interval),
        health_check_interval: storage.routing.health_check_interval,
        recovery_delay: storage.routing.recovery_delay,
        cache_ttl: storage.cache_ttl,
        tiers: tiers(config),
    }
}

/// What may lie in a tier, all namespaces together, is what its backend takes, less some for what is no tensor: records, and chunks that wait to be
/// collected. A backend that is no tier refuses what is too much by itself.
fn tiers(config: &Config) -> TierOptions {
    let settings = &config.storage.tiers;
    let named = settings.tiers.iter().chain(config.namespaces.values().filter_map(|policy| policy.tiers.as_ref()));
    let names = named.flat_map(|tiers| [&tiers.warm, &tiers.cold]);
    let limits = names.filter_map(|name| Some((name.clone(), config.storage.backends.get(name)?.limit()? / 16 * 15)));
    TierOptions {
        tiers: settings.tiers.clone(),
        limits: limits.collect(),
        high_watermark: settings.high_watermark,
        low_watermark: settings.low_watermark,
        promote_after: settings.promote_after,
        move_rate: Some(settings.move_rate),
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
        Backend::Object { place, max_size, options, guard: _ } => {
            let opened = match place {
                ObjectPlace::Folder(path) => blocking(move || ObjectBackend::open_local(path)).await?,
                ObjectPlace::Url(url) => ObjectBackend::open_url(&url, options)?,
            };
            Arc::new(match max_size {
                Some(max_size) => opened.with_limit(max_size).await?,
                None => opened,
            })
        }
        #[cfg(feature = "redis")]
        Backend::Redis { url, prefix, cluster, connections, guard } => {
            let options = redis::RedisOptions { prefix, cluster, connections, connect_timeout: guard.timeout };
            Arc::new(redis::RedisBackend::open(url.expose(), options).await?)
        }
        #[cfg(feature = "sled")]
        Backend::Sled { path, max_size, cache_size } => {
            let options = sled::SledOptions { cache_bytes: cache_size, max_bytes: max_size };
            Arc::new(blocking(move || sled::SledBackend::open(path, options)).await?)
        }
        #[cfg(feature = "postgres")]
        Backend::Postgres(database) => Arc::new(PostgresBackend::open(&database.options()).await?),
        #[cfg(feature = "mysql")]
        Backend::MySql(database) => Arc::new(MySqlBackend::open(&database.options()).await?),
        #[cfg(feature = "sqlite")]
        Backend::Sqlite { path, max_size } => Arc::new(SqliteBackend::open(path, max_size).await?),
        #[cfg(not(all(feature = "mysql", feature = "postgres", feature = "redis", feature = "sled", feature = "sqlite")))]
        other => {
            let reason = format!("this build of sira has no backend of the kind `{0}`: build it with the feature `{0}`", other.kind());
            return Err(BackendError::Config(reason));
        }
    })
}

/// RocksDB makes the last folder of its path only.
fn open_rocksdb(path: &Path, options: RocksOptions) -> Result<RocksBackend, BackendError> {
    std::fs::create_dir_all(path).map_err(|error| {
        let reason = format!("cannot make {}: {error}", path.display());
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BackendError::OutOfSpace(reason),
            _ => BackendError::Config(reason),
        }
    })?;
    RocksBackend::open(path, options)
}

/// Why a start fails, for whoever has to do something about it.
fn cause(error: &BackendError) -> String {
    match error {
        BackendError::Corrupt(reason) => format!("its files are damaged: {reason}. Restore them from a copy"),
        BackendError::OutOfSpace(reason) => format!("there is no room left: {reason}. Make room, then start again"),
        // It says itself what is wrong, and not always is it the configuration: another process may have the folder open.
        BackendError::Config(reason) => reason.clone(),
        other => other.to_string(),
    }
}

fn catalog_failed(error: &BackendError) -> Failure {
    let index = "No tensor is lost by this: the catalog is only an index, which the server rebuilds by itself where it is damaged or gone";
    Failure::Failed(match error {
        BackendError::Config(reason) => format!("catalog: {reason}"),
        BackendError::Corrupt(reason) => format!("catalog: it is damaged: {reason}. {index}: start it again"),
        _ => format!("catalog: {}. {index}", cause(error)),
    })
}

fn not_started(error: StoreError) -> Failure {
    match &error {
        StoreError::Backend { backend, source } if backend == "catalog" => catalog_failed(source),
        StoreError::Backend { backend, source } => Failure::with(format_args!("backend {backend}"), cause(source)),
        _ => Failure::with("the store does not start", error),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_start_says_what_is_wrong_in_plain_words() {
        let damaged = cause(&BackendError::Corrupt("checksum mismatch in 000012.sst".into()));
        assert!(damaged.starts_with("its files are damaged: checksum mismatch in 000012.sst."), "{damaged}");
        let full = cause(&BackendError::OutOfSpace("cannot open it: No space left on device".into()));
        assert!(full.starts_with("there is no room left: "), "{full}");
        assert_eq!(cause(&BackendError::Config("another process has it open".into())), "another process has it open");
        let full = BackendError::OutOfSpace("the disk is full".into());
        let catalog = not_started(StoreError::Backend { backend: "catalog".into(), source: full }).to_string();
        assert!(catalog.starts_with("catalog: there is no room left: ") && catalog.contains("only an index"), "{catalog}");
        let damaged = catalog_failed(&BackendError::Corrupt("a bad block".into())).to_string();
        assert!(damaged.contains("it is damaged: a bad block.") && damaged.ends_with("start it again"), "{damaged}");
    }
}
