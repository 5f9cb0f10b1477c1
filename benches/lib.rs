//! What the benchmarks share: a real KV cache, and a server in this process.

use std::path::Path;
use std::sync::Arc;

use sira_backend::StorageBackend;
use sira_backend::rocks::{RocksBackend, RocksOptions};
use sira_store::catalog::RocksKv;
use sira_store::{Seams, StorageClient, StoreOptions};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Why a benchmark cannot run.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Lower quartile, median, upper quartile.
#[must_use]
pub fn quartiles(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    (at(0.25), at(0.5), at(0.75))
}

/// Of the sample KV cache: layers, K and V, tokens, heads, dimensions.
pub const SAMPLE_SHAPE: [u64; 5] = [30, 2, 80, 3, 64];

/// Bytes of the sample, of bfloat16.
pub const SAMPLE_BYTES: usize = 30 * 2 * 80 * 3 * 64 * 2;

/// The bytes of the sample KV cache, repeated to at least `bytes`.
///
/// # Errors
/// When the sample is not in the checkout, or is no safetensors file.
pub fn kv_cache(bytes: usize) -> Result<Vec<u8>, Failure> {
    let file = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/sample/smollm2-kv.safetensors"))?;
    let tensors = safetensors::SafeTensors::deserialize(&file)?;
    let (_, kv) = tensors.iter().next().ok_or("the sample has no tensor")?;
    let mut data = Vec::with_capacity(bytes + kv.data().len());
    while data.len() < bytes {
        data.extend_from_slice(kv.data());
    }
    data.truncate(bytes);
    Ok(data)
}

/// A server over a new RocksDB, on threads of its own, as long as this lives.
pub struct Served {
    url: String,
    _runtime: Runtime,
    _data: tempfile::TempDir,
}

impl Served {
    /// Starts it on a free port of loopback.
    ///
    /// # Errors
    /// Where there is no place for its data, or no port.
    pub fn start(memory_limit: u64) -> Result<Served, Failure> {
        let (runtime, data) = (Runtime::new()?, tempfile::tempdir()?);
        let (store, listener) = runtime.block_on(async {
            let options = StoreOptions {
                memory_limit,
                hot_limit: memory_limit / 4 * 3,
                record_backend: "rocksdb".into(),
                default_backend: "rocksdb".into(),
                codec: "planes+zstd".parse()?,
                ..StoreOptions::default()
            };
            let catalog = Arc::new(RocksKv::open(&data.path().join("catalog"))?);
            let store = StorageClient::new(options, Seams::system(), catalog)?;
            let rocksdb: Arc<dyn StorageBackend> = Arc::new(RocksBackend::open(data.path().join("rocksdb"), RocksOptions::default())?);
            store.register_backend("rocksdb", rocksdb);
            store.start().await?;
            Ok::<_, Failure>((store, TcpListener::bind("127.0.0.1:0").await?))
        })?;
        let url = format!("grpc://{}", listener.local_addr()?);
        runtime.spawn(sira_flight::serve(store, listener, sira_flight::Transport::default(), std::future::pending()));
        Ok(Served { url, _runtime: runtime, _data: data })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }
}
