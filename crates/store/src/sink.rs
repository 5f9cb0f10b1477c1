//! Slabs of a part cut into chunks, encoded and stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use sira_backend::{BackendError, Durability, Payload, PutMode, PutOptions};
use sira_codec::{Chain, CodecError, Encoded, Quality};
use sira_tensor::grid::Slab;
use sira_wire::{Consistency, Key};
use xxhash_rust::xxh3::xxh3_64;

use crate::catalog::Intent;
use crate::client::{Inner, Tier};
use crate::coding::{Awaited, Way};
use crate::part::PartPlan;
use crate::record::{Chunk, PartCopy, chunk_name};
use crate::{StoreError, upkeep};

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
    pub plan: Arc<PartPlan>,
    pub options: PutOptions,
    pub awaited: Awaited,
    /// Of the chunks stored so far, where their codec is lossy.
    quality: Mutex<Quality>,
}

/// A chunk as it is stored.
struct Coded {
    stored: Bytes,
    checksum: u64,
    /// Index into the copy's chains.
    chain: u32,
    quality: Quality,
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
        (write_id, part): (&str, usize),
        plan: Arc<PartPlan>,
        options: PutOptions,
        awaited: Awaited,
    ) -> Arc<ChunkSink> {
        let quality = Mutex::default();
        Arc::new(ChunkSink { inner: inner.clone(), home, write_id: write_id.into(), part, plan, options, awaited, quality })
    }

    /// Stores a whole tensor that lies in memory, cut anyhow.
    pub async fn store_all(self: &Arc<Self>, payload: &Payload) -> Result<PartCopy, StoreError> {
        let (mut stored, mut whole) = (Vec::new(), Cut::new(payload));
        let grid = &self.plan.grid;
        for slab in grid.slabs() {
            let chunks = self.store(&slab, whole.take(slab.bytes(grid) as usize), None).await?;
            stored.extend(grid.touched(&slab.region).into_iter().zip(chunks));
        }
        Ok(self.copy(&stored))
    }

    /// Stores the chunks of a slab; their entries are in the order of [`Grid::touched`](sira_tensor::grid::Grid::touched). `checksum`: of the slab,
    /// where it is known.
    pub async fn store(self: &Arc<Self>, slab: &Slab, bytes: Bytes, checksum: Option<u64>) -> Result<Vec<Chunk>, StoreError> {
        self.home.headroom().await?;
        let cells = self.plan.grid.touched(&slab.region);
        let stored = futures::stream::iter(cells).map(|cell| self.clone().store_cell(cell, slab.clone(), bytes.clone(), checksum));
        // All are awaited, even after one has failed: a backend may finish a put whose caller has gone.
        let stored: Vec<_> = stored.buffered(self.inner.coders.chunks_at_once()).collect().await;
        stored.into_iter().collect()
    }

    async fn store_cell(self: Arc<Self>, cell: u64, slab: Slab, bytes: Bytes, checksum: Option<u64>) -> Result<Chunk, StoreError> {
        let PartPlan { grid, chain, .. } = &*self.plan;
        let raw_bytes = grid.region_bytes(&grid.cell(cell));
        let as_it_is = checksum.filter(|_| chain.is_none() && grid.cell(cell) == slab.region);
        let coded = match as_it_is {
            Some(checksum) => Coded { stored: bytes, checksum, chain: 0, quality: Quality::default() },
            None => {
                let sink = self.clone();
                let encode = move || sink.encode(cell, &slab, &bytes);
                let encoded = if chain.is_none() {
                    self.inner.seams.work(encode).await
                } else {
                    let counted = move || {
                        let coded = encode();
                        let stored = coded.as_ref().map_or(0, |coded| coded.stored.len() as u64);
                        (coded, stored)
                    };
                    self.inner.coders.run(&self.inner, (chain, Way::Encode, self.awaited), raw_bytes, counted).await
                };
                encoded.ok_or_else(|| StoreError::Internal(format!("codec {chain} failed")))??
            }
        };
        let chunk = Chunk { stored_bytes: coded.stored.len() as u64, checksum: coded.checksum, chain: coded.chain };
        self.put(cell, coded.stored).await?;
        self.quality.lock().merge(&coded.quality);
        self.home.meter.encoded(raw_bytes, chunk.stored_bytes);
        Ok(chunk)
    }

    fn encode(&self, cell: u64, slab: &Slab, bytes: &Bytes) -> Result<Coded, StoreError> {
        let PartPlan { grid, chain, facts, part, .. } = &*self.plan;
        let region = grid.cell(cell);
        let raw = if region == slab.region {
            bytes.clone()
        } else {
            let mut raw = vec![0; grid.region_bytes(&region) as usize];
            grid.copy(&region, bytes, &slab.region, &mut raw, &region);
            Bytes::from(raw)
        };
        let (origin, shape) = origin_and_shape(&region);
        let context = facts.chunk(&shape, &origin);
        let encoded = match chain.encode(&raw, context) {
            // Made for KV caches, and its namespace, not its writer, asked for it: other tensors stay as they are.
            Err(CodecError::Encode { .. }) if part.codec.is_none() && !chain.lossless() => Encoded::Raw,
            encoded => encoded?,
        };
        let mut quality = Quality::default();
        match &encoded {
            _ if chain.lossless() => {}
            Encoded::Raw => quality.add(&raw, &raw, context),
            // What a reader will get is what is measured.
            Encoded::Bytes(encoded) => quality.add(&raw, &chain.decode(encoded, raw.len(), context)?, context),
        }
        let (stored, chain) = match encoded {
            Encoded::Raw => (raw, 0),
            Encoded::Bytes(encoded) => (Bytes::from(encoded), 1),
        };
        Ok(Coded { checksum: xxh3_64(&stored), stored, chain, quality })
    }

    /// Stores the bytes of one chunk, as they are.
    pub async fn put(&self, cell: u64, value: Bytes) -> Result<(), StoreError> {
        put_chunk(&self.inner, &self.home, &chunk_name(&self.write_id, self.part, cell), value, self.options).await
    }

    /// The copy that the stored slabs make.
    pub fn copy(&self, stored: &[(u64, Chunk)]) -> PartCopy {
        let PartPlan { grid, chain, .. } = &*self.plan;
        let mut chunks = vec![Chunk { stored_bytes: 0, checksum: 0, chain: 0 }; grid.cells() as usize];
        for (cell, chunk) in stored {
            chunks[*cell as usize] = *chunk;
        }
        let mut chains = vec![Chain::NONE.to_string()];
        if !chain.is_none() {
            chains.push(chain.to_string());
        }
        PartCopy {
            backend: self.home.name.clone(),
            write_id: self.write_id.clone(),
            chunk_shape: grid.chunk().to_vec(),
            chains,
            chunks,
            errors: errors(&self.plan.part.name, &self.quality.lock()),
        }
    }
}

/// The errors of a copy of the part `name`, by what they are of; finite numbers.
fn errors(name: &str, quality: &Quality) -> BTreeMap<String, f64> {
    let all = quality.all();
    // Of a part that nothing more is known of, its name is enough.
    let of = |kind: &str, known: Option<f64>| known.or(all.filter(|_| name == kind));
    let measured = [("k", of("k", quality.keys())), ("v", of("v", quality.values())), ("all", all)];
    let finite = |error: f64| if error.is_nan() { f64::MAX } else { error.min(f64::MAX) };
    measured.into_iter().filter_map(|(of, error)| Some((of.to_owned(), finite(error?)))).collect()
}

/// How the chunks of a tensor are put that expires after `ttl` seconds. A backend may drop them by itself, should no server be there to do it:
/// later than the tensor expires, however long its put takes, since that counts from the commit.
pub(crate) fn chunk_options(inner: &Inner, durability: Durability, ttl: Option<u64>) -> PutOptions {
    let expires_in = ttl.map(|ttl| Duration::from_secs(ttl).saturating_add(inner.options.orphan_age));
    PutOptions { mode: PutMode::Overwrite, durability, expires_in }
}

/// How chunks are put that are moved, recoded or mended: durably, and no backend drops them by itself.
pub(crate) fn lasting() -> PutOptions {
    PutOptions { durability: Durability::Durable, ..PutOptions::default() }
}

/// Stores one chunk; where there is no room, garbage is collected first.
pub(crate) async fn put_chunk(inner: &Arc<Inner>, home: &Tier, name: &str, value: Bytes, options: PutOptions) -> Result<(), StoreError> {
    let mut result = home.backend.put(name, value.clone().into(), options).await;
    if matches!(result, Err(BackendError::OutOfSpace(_))) && upkeep::collect_garbage(inner).await? > 0 {
        result = home.backend.put(name, value.into(), options).await;
    }
    result.map(drop).map_err(|e| home.failed(e))
}

/// The bytes of a payload, cut at other places than its pieces are.
struct Cut<'a> {
    pieces: std::slice::Iter<'a, Bytes>,
    rest: Bytes,
}

impl<'a> Cut<'a> {
    fn new(payload: &'a Payload) -> Cut<'a> {
        Cut { pieces: payload.pieces().iter(), rest: Bytes::new() }
    }

    /// The next `len` bytes, or what is left: a copy only where they lie in several pieces.
    fn take(&mut self, len: usize) -> Bytes {
        if self.rest.is_empty() {
            self.rest = self.pieces.next().cloned().unwrap_or_default();
        }
        if self.rest.len() >= len {
            return self.rest.split_to(len);
        }
        let mut gathered = Vec::with_capacity(len);
        while gathered.len() < len {
            let take = self.rest.len().min(len - gathered.len());
            gathered.extend_from_slice(&self.rest.split_to(take));
            if self.rest.is_empty() {
                let Some(next) = self.pieces.next() else { break };
                self.rest = next.clone();
            }
        }
        gathered.into()
    }
}

/// A chunk's place, as a codec sees it.
pub(crate) fn origin_and_shape(region: &[std::ops::Range<u64>]) -> (Vec<u64>, Vec<u64>) {
    region.iter().map(|r| (r.start, r.end - r.start)).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_cut_anywhere_and_copied_only_where_it_must() {
        let payload: Payload = [&b"abcd"[..], b"efgh", b"ij"].into_iter().map(Bytes::copy_from_slice).collect();
        let mut cut = Cut::new(&payload);
        let first = cut.take(2);
        assert_eq!((first.as_ptr(), &first[..]), (payload.pieces()[0].as_ptr(), &b"ab"[..]));
        assert_eq!(&cut.take(2)[..], b"cd");
        let second = cut.take(4);
        assert_eq!((second.as_ptr(), &second[..]), (payload.pieces()[1].as_ptr(), &b"efgh"[..]));
        assert_eq!((&cut.take(9)[..], cut.take(0).len()), (&b"ij"[..], 0));
        assert_eq!(&Cut::new(&payload).take(7)[..], b"abcdefg");
    }
}
