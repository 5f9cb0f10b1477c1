//! A store whose tensors lie in a backend of one's own, here redb. docs/backends.md goes through it step by step.
//!
//! `cargo run -p sira-store --example own_backend -- [FOLDER]`

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use sira_backend::probe::probe_create_if_absent;
use sira_store::catalog::RocksKv;
use sira_store::{Seams, StorageClient, StoreOptions, WriteOptions};
use sira_tensor::{DType, TensorSpec};
use sira_wire::{Consistency, Key};

mod redb;

/// Opens a store with everything in redb.
async fn open(folder: &Path) -> Result<StorageClient, Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let backend = Arc::new(redb::RedbBackend::open(folder.join("values.redb"))?);
    // What is to keep records must show that one of many racing creates wins.
    probe_create_if_absent(backend.as_ref()).await?;
    let options = StoreOptions { record_backend: "mine".into(), default_backend: "mine".into(), ..StoreOptions::default() };
    // The index of this node; it is made anew from the records where it is gone.
    let catalog = Arc::new(RocksKv::open(&folder.join("catalog"))?);
    let store = StorageClient::new(options, Seams::system(), catalog)?;
    store.register_backend("mine", backend);
    store.start().await?;
    Ok(store)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "own-backend".into());
    let store = open(folder.as_ref()).await?;
    let key: Key = "example/mine".parse()?;
    let values: Vec<u8> = (0..4_000_000_u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    if store.exists(&key, None)?.is_some() {
        println!("{key} is there from an earlier run");
    } else {
        let spec = TensorSpec::new(DType::Float32, vec![4000, 1000])?;
        let strong = WriteOptions { consistency: Some(Consistency::Strong), ..WriteOptions::default() };
        let put = store.store(key.clone(), spec, &values.clone().into(), strong).await?;
        println!("{key} has version {}: run it again", put.version);
    }
    let (spec, payload) = store.retrieve(&key).await?;
    assert!(payload.into_bytes() == values);
    println!("{} of shape {:?}, as it was put", spec.dtype(), spec.shape());
    store.drain().await?;
    Ok(())
}
