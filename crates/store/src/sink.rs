//! Slabs of a part cut into chunks, encoded and stored.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use sira_backend::{BackendError, Durability, PutMode, PutOptions};
use sira_codec::{Chain, ChunkContext, Encoded};
use sira_tensor::TensorSpec;
use sira_tensor::grid::{Grid, Slab, chunk_shape};
use sira_wire::{Consistency, Key};
use xxhash_rust::xxh3::xxh3_64;

use crate::catalog::Intent;
use crate::client::{Inner, Tier};
use crate::record::{Chunk, PartCopy, chunk_name};
use crate::{StoreError, upkeep};

/// Chunks of one slab in the making at once.
pub(crate) const WIDTH: usize = 2;

pub(crate) fn durability(level: Consistency) -> Durability {
    match level {
        Consistency::Strong => Durability::Durable,
        _ => Durability::Logged,
    }
}

/// Cuts slabs into chunks, encodes and stores them.
pub(crate) struct ChunkSink {
    pub inner: Arc<Inner>,
    pub home: Arc<Tier>,
    pub write_id: String,
    /// Index of the part.
    pub part: usize,
    pub grid: Grid,
    pub spec: TensorSpec,
    pub chain: Chain,
    pub durability: Durability,
}

impl ChunkSink {
    /// Notes in the catalog that chunks of `write_id` are about to be written to `home`: before the first of them is.
    pub fn announce(inner: &Inner, home: &Tier, key: &Key, write_id: &str) -> Result<(), StoreError> {
        inner.catalog.begin(write_id, &Intent { key: key.to_string(), backend: home.name.clone() })
    }

    /// A sink for part number `part` of a write that is announced.
    pub fn new(
        inner: &Arc<Inner>,
        home: Arc<Tier>,
        write_id: &str,
        part: usize,
        spec: &TensorSpec,
        chain: Chain,
        durability: Durability,
    ) -> Result<Arc<ChunkSink>, StoreError> {
        let grid = Grid::new(spec, &chunk_shape(spec))?;
        Ok(Arc::new(ChunkSink { inner: inner.clone(), home, write_id: write_id.into(), part, grid, spec: spec.clone(), chain, durability }))
    }

    /// Stores a whole tensor that lies in memory slab by slab.
    pub async fn store_all(self: &Arc<Self>, slabs: &[Bytes]) -> Result<PartCopy, StoreError> {
        let mut stored = Vec::new();
        for (slab, bytes) in self.grid.slabs().zip(slabs) {
            let chunks = self.store(&slab, bytes.clone(), None).await?;
            stored.extend(self.grid.touched(&slab.region).into_iter().zip(chunks));
        }
        Ok(self.copy(&stored))
    }

    /// Stores the chunks of a slab; their entries are in the order of [`Grid::touched`]. `checksum`: of the slab, where it is known.
    pub async fn store(self: &Arc<Self>, slab: &Slab, bytes: Bytes, checksum: Option<u64>) -> Result<Vec<Chunk>, StoreError> {
        self.home.headroom().await?;
        let cells = self.grid.touched(&slab.region);
        let stored = futures::stream::iter(cells).map(|cell| self.clone().store_cell(cell, slab.clone(), bytes.clone(), checksum));
        // All are awaited, even after one has failed: a backend may finish a put whose caller has gone.
        let stored: Vec<_> = stored.buffered(WIDTH).collect().await;
        stored.into_iter().collect()
    }

    async fn store_cell(self: Arc<Self>, cell: u64, slab: Slab, bytes: Bytes, checksum: Option<u64>) -> Result<Chunk, StoreError> {
        let as_it_is = checksum.filter(|_| self.chain.is_none() && self.grid.cell(cell) == slab.region);
        let (stored, checksum, chain) = match as_it_is {
            Some(checksum) => (bytes, checksum, 0),
            None => {
                let sink = self.clone();
                let encoded = self.inner.seams.work(move || sink.encode(cell, &slab, &bytes)).await;
                encoded.ok_or_else(|| StoreError::Internal(format!("codec {} failed", self.chain)))??
            }
        };
        let chunk = Chunk { stored_bytes: stored.len() as u64, checksum, chain };
        self.put(&chunk_name(&self.write_id, self.part, cell), stored).await?;
        self.home.meter.encoded(self.grid.region_bytes(&self.grid.cell(cell)), chunk.stored_bytes);
        Ok(chunk)
    }

    fn encode(&self, cell: u64, slab: &Slab, bytes: &Bytes) -> Result<(Bytes, u64, u32), StoreError> {
        let region = self.grid.cell(cell);
        let raw = if region == slab.region {
            bytes.clone()
        } else {
            let mut raw = vec![0; self.grid.region_bytes(&region) as usize];
            self.grid.copy(&region, bytes, &slab.region, &mut raw, &region);
            Bytes::from(raw)
        };
        let (origin, shape) = origin_and_shape(&region);
        let context = ChunkContext::new(self.spec.dtype(), &shape, &origin);
        Ok(match self.chain.encode(&raw, context)? {
            Encoded::Raw => (raw.clone(), xxh3_64(&raw), 0),
            Encoded::Bytes(encoded) => {
                let checksum = xxh3_64(&encoded);
                (Bytes::from(encoded), checksum, 1)
            }
        })
    }

    /// Stores the bytes of one chunk, as they are.
    pub async fn put(&self, name: &str, value: Bytes) -> Result<(), StoreError> {
        put_chunk(&self.inner, &self.home, name, value, self.durability).await
    }

    /// The copy that the stored slabs make.
    pub fn copy(&self, stored: &[(u64, Chunk)]) -> PartCopy {
        let mut chunks = vec![Chunk { stored_bytes: 0, checksum: 0, chain: 0 }; self.grid.cells() as usize];
        for (cell, chunk) in stored {
            chunks[*cell as usize] = *chunk;
        }
        let mut chains = vec![Chain::NONE.to_string()];
        if !self.chain.is_none() {
            chains.push(self.chain.to_string());
        }
        PartCopy {
            backend: self.home.name.clone(),
            write_id: self.write_id.clone(),
            chunk_shape: self.grid.chunk().to_vec(),
            chains,
            chunks,
        }
    }
}

/// Stores one chunk; where there is no room, garbage is collected first.
pub(crate) async fn put_chunk(inner: &Arc<Inner>, home: &Tier, name: &str, value: Bytes, durability: Durability) -> Result<(), StoreError> {
    let options = PutOptions { mode: PutMode::Overwrite, durability, expires_in: None };
    let mut result = home.backend.put(name, value.clone().into(), options).await;
    if matches!(result, Err(BackendError::OutOfSpace(_))) && upkeep::collect_garbage(inner).await? > 0 {
        result = home.backend.put(name, value.into(), options).await;
    }
    result.map(drop).map_err(|e| home.failed(e))
}

/// A chunk's place, as a codec sees it.
pub(crate) fn origin_and_shape(region: &[std::ops::Range<u64>]) -> (Vec<u64>, Vec<u64>) {
    region.iter().map(|r| (r.start, r.end - r.start)).unzip()
}
