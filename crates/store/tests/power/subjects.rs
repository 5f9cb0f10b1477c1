//! What is cut off. A backend is one line in [`SUBJECTS`] and one in [`open`].

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sira_backend::file::FileBackend;
use sira_backend::rocks::{RocksBackend, RocksOptions};
use sira_backend::sled::{SledBackend, SledOptions};
use sira_backend::sqlite::SqliteBackend;
use sira_backend::{Durability, PutOptions, StorageBackend};
use sira_store::catalog::RocksKv;
use sira_store::{Rule, Seams, StorageClient, StoreOptions, WriteOptions};
use sira_tensor::{DType, TensorSpec};
use sira_wire::{Code, Consistency};

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    PowerLoss,
    Kill,
    Nothing,
    /// It says power loss, and breaks it.
    Planted,
}

pub const SUBJECTS: &[(&str, Promise)] = &[
    ("file", Promise::PowerLoss),
    ("rocksdb", Promise::PowerLoss),
    ("sqlite", Promise::PowerLoss),
    ("sled", Promise::PowerLoss),
    ("store-strong", Promise::PowerLoss),
    ("store-eventual", Promise::Kill),
    ("store-weak", Promise::Nothing),
    ("planted-no-file-sync", Promise::Planted),
];

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Something that keeps values under keys such as `a/b`.
#[async_trait]
pub trait Subject: Send + Sync {
    /// Returns when the write is acknowledged.
    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), Failed>;
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failed>;
}

/// Opens the subject in a folder, which may be what a cut has left.
pub async fn open(name: &str, folder: &Path) -> Result<Arc<dyn Subject>, Failed> {
    let store = async |level| whole(folder, level).await;
    Ok(match name {
        "file" => Arc::new(Values(Arc::new(FileBackend::open(folder.join("values"), None)?))),
        "rocksdb" => Arc::new(Values(Arc::new(rocks(folder)?))),
        "sqlite" => Arc::new(Values(Arc::new(SqliteBackend::open(folder.join("values"), None).await?))),
        "sled" => Arc::new(Values(Arc::new(SledBackend::open(folder.join("values"), SledOptions::default())?))),
        "store-strong" => store(Consistency::Strong).await?,
        "store-eventual" => store(Consistency::Eventual).await?,
        "store-weak" => store(Consistency::Weak).await?,
        "planted-no-file-sync" => Arc::new(NoFileSync(folder.to_owned())),
        other => return Err(format!("no subject is named {other}").into()),
    })
}

/// Buffers so small that values pass through flushes and blob files in the short life of a writer.
fn rocks(folder: &Path) -> Result<RocksBackend, Failed> {
    let options = RocksOptions { cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20, ..RocksOptions::default() };
    Ok(RocksBackend::open(folder.join("rocksdb"), options)?)
}

/// A backend, each put durable.
struct Values(Arc<dyn StorageBackend>);

#[async_trait]
impl Subject for Values {
    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), Failed> {
        let options = PutOptions { durability: Durability::Durable, ..PutOptions::default() };
        self.0.put(key, value.into(), options).await?;
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failed> {
        Ok(self.0.get(key, None).await?.map(Into::into))
    }
}

/// The store as a server opens it: records and small tensors in RocksDB, larger ones in files, its catalog in RocksDB.
async fn whole(folder: &Path, level: Consistency) -> Result<Arc<dyn Subject>, Failed> {
    let options = StoreOptions {
        memory_limit: 64 << 20,
        hot_limit: 16 << 20,
        record_backend: "small".into(),
        default_backend: "small".into(),
        codec: "planes+zstd".parse()?,
        ..StoreOptions::default()
    };
    let store = StorageClient::new(options, Seams::system(), Arc::new(RocksKv::open(&folder.join("catalog"))?))?;
    store.register_backend("small", Arc::new(rocks(folder)?));
    store.register_backend("large", Arc::new(FileBackend::open(folder.join("values"), None)?));
    store.add_strategy(Box::new(Rule::new("*", 100_000..=u64::MAX, "large")?));
    store.start().await?;
    Ok(Arc::new(Whole { store, level }))
}

struct Whole {
    store: StorageClient,
    level: Consistency,
}

#[async_trait]
impl Subject for Whole {
    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), Failed> {
        let spec = TensorSpec::new(DType::UInt8, vec![value.len() as u64])?;
        let options = WriteOptions { consistency: Some(self.level), ..WriteOptions::default() };
        self.store.store(key.parse()?, spec, &value.into(), options).await?;
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failed> {
        match self.store.retrieve(&key.parse()?).await {
            Ok((_, payload)) => Ok(Some(payload.pieces().iter().flat_map(|piece| piece.iter().copied()).collect())),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// What is easily forgotten: the file has its name and the folder is synced, the file's bytes are not.
struct NoFileSync(PathBuf);

#[async_trait]
impl Subject for NoFileSync {
    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), Failed> {
        let (temporary, path) = (self.0.join(key.replace('/', "+")), self.0.join(key));
        let folder = path.parent().ok_or("a key has a folder")?;
        fs::create_dir_all(folder)?;
        File::create(&temporary)?.write_all(&value)?;
        fs::rename(temporary, &path)?;
        File::open(folder)?.sync_all()?;
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failed> {
        match fs::read(self.0.join(key)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => Ok(Some(read?)),
        }
    }
}
