//! Strong puts of 1 MiB chunks at the `StorageBackend` trait, beside the rocksdb crate called directly: the same durability (the log is synced),
//! the same number of writers, the same size of write buffers, blob files in both. Prints; asserts nothing.

#![allow(clippy::print_stdout, reason = "its output is the result")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rocksdb::{DB, DBCompressionType, Options, WriteOptions};
use sira_backend::rocks::{RocksBackend, RocksOptions};
use sira_backend::{Durability, PutMode, PutOptions, StorageBackend};
use sira_benches::{Failure, quartiles};

const CHUNK: usize = 1 << 20;
const PUTS: usize = 48;
const ROUNDS: usize = 15;
const BUFFERS: usize = 64 << 20;

/// As the backend keeps large values: in blob files, uncompressed.
fn direct(folder: &Path) -> Result<DB, Failure> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(BUFFERS / 4);
    options.set_max_write_buffer_number(3);
    options.set_max_background_jobs(4);
    options.set_bytes_per_sync(1 << 20);
    options.set_wal_bytes_per_sync(1 << 20);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(16 << 10);
    options.set_blob_compression_type(DBCompressionType::None);
    options.set_enable_blob_gc(true);
    Ok(DB::open(&options, folder)?)
}

/// Seconds of the puts of one round, spread over so many threads.
fn put_directly(db: &DB, writers: usize, value: &[u8]) -> Result<f64, Failure> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    let (options, begun) = (&options, Instant::now());
    std::thread::scope(|scope| {
        let puts = |writer: usize| (writer..PUTS).step_by(writers).try_for_each(|n| db.put_opt(format!("chunk/{n:08}"), value, options));
        let threads: Vec<_> = (0..writers).map(|writer| scope.spawn(move || puts(writer))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a writer died")?.map_err(Failure::from))
    })?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The same through the trait, with so many tasks.
async fn put_by_trait(backend: &Arc<RocksBackend>, writers: usize, value: &Bytes) -> Result<f64, Failure> {
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let (backend, value) = (backend.clone(), value.clone());
        tasks.spawn(async move {
            for n in (writer..PUTS).step_by(writers) {
                let options = PutOptions { mode: PutMode::Overwrite, durability: Durability::Durable, expires_in: None };
                backend.put(&format!("chunk/{n:08}"), value.clone().into(), options).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(begun.elapsed().as_secs_f64())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let value: Vec<u8> = (0..CHUNK as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let value = Bytes::from(value);
    for writers in [1, 4] {
        let folder = tempfile::tempdir()?;
        let db = direct(&folder.path().join("direct"))?;
        let options = RocksOptions { write_buffer_bytes: BUFFERS, ..RocksOptions::default() };
        let backend = Arc::new(RocksBackend::open(folder.path().join("trait"), options)?);
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            // Each begins every other round: what one leaves to flush must not always fall on the same other.
            let (by_trait, directly) = if round % 2 == 0 {
                let by_trait = put_by_trait(&backend, writers, &value).await?;
                (by_trait, tokio::task::block_in_place(|| put_directly(&db, writers, &value))?)
            } else {
                let directly = tokio::task::block_in_place(|| put_directly(&db, writers, &value))?;
                (put_by_trait(&backend, writers, &value).await?, directly)
            };
            if round > 0 {
                ratios.push(directly / by_trait);
                rates.push((PUTS * CHUNK) as f64 / by_trait / 1e6);
            }
        }
        let ((low, middle, high), (_, rate, _)) = (quartiles(ratios), quartiles(rates));
        println!(
            "strong puts of 1 MiB, {writers} at once: {rate:.0} MB/s, {middle:.2} of rocksdb directly (quartiles {low:.2} to {high:.2})"
        );
    }
    Ok(())
}
