//! One part of a put: its bytes are gathered into slabs, which are kept, or cut into chunks and stored.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use sira_backend::Payload;
use sira_codec::Chain;
use sira_tensor::TensorSpec;
use sira_tensor::grid::{Grid, Region as Cells, Slab, Slabs};
use tokio::sync::oneshot;

use crate::StoreError;
use crate::client::Inner;
use crate::coding::PartFacts;
use crate::digest::Digest;
use crate::hot::{BLOCK, HotPart, HotTier};
use crate::ledger::Reservation;
use crate::record::{Chunk, Part};
use crate::region::{Region, taken};
use crate::sink::ChunkSink;

/// Chunks of a part: a table of 24 bytes each must stay in memory.
const MAX_CHUNKS: u64 = 1 << 20;

/// What a writer says of one part.
#[derive(Clone, Debug)]
pub struct PartSpec {
    /// Its name; [`sira_wire::many::DATA`] for a key put as one tensor.
    pub name: String,
    /// What it is.
    pub spec: TensorSpec,
    /// Codec chain of lower tiers.
    pub codec: Option<String>,
}

/// A part that is planned, its bytes still to come.
pub(crate) struct PartPlan {
    pub part: PartSpec,
    pub chain: Chain,
    pub grid: Grid,
    pub facts: Arc<PartFacts>,
    /// Chunks of a slab that are coded at once, and slabs that are stored at once.
    at_once: (u64, u64),
}

impl PartPlan {
    pub fn new(inner: &Inner, part: PartSpec, chain: Chain, facts: Arc<PartFacts>) -> Result<PartPlan, StoreError> {
        let grid = Grid::new(&part.spec, &chain.chunk_shape(&part.spec))?;
        if grid.cells() > MAX_CHUNKS {
            return Err(StoreError::OutOfSpace(format!(
                "a tensor of {} bytes would have {} chunks; a tensor may have {MAX_CHUNKS}",
                part.spec.nbytes(),
                grid.cells()
            )));
        }
        let slab = grid.slabs().next();
        let cells = slab.map_or(1, |slab| grid.touched(&slab.region).len());
        // What is stored as it is waits for the backend, not for a processor.
        let slabs = if chain.is_none() { 1 } else { inner.coders.slabs_at_once(cells) };
        Ok(PartPlan { at_once: (inner.coders.chunks_at_once().min(cells.max(1)) as u64, slabs as u64), part, chain, grid, facts })
    }

    /// Slabs that are stored at once, while one more fills.
    pub fn slabs_at_once(&self) -> usize {
        self.at_once.1 as usize
    }

    /// Memory of a put by chunks: one slab fills while others are stored; each chunk in the making is cut and encoded.
    pub fn working_bytes(&self) -> u64 {
        let slab = self.grid.slab_bytes();
        let slabs = if slab >= self.part.spec.nbytes() { 1 } else { 1 + self.at_once.1 };
        slabs.saturating_mul(taken(slab)).saturating_add(self.coding_bytes())
    }

    /// Memory of the chunks in the making.
    pub fn coding_bytes(&self) -> u64 {
        let (chunks, slabs) = self.at_once;
        chunks.saturating_mul(slabs).saturating_mul(coding_bytes(&self.chain, self.grid.region_bytes(&self.grid.cell(0))))
    }

    /// Memory of the part where all of it stays in memory.
    pub fn kept_bytes(&self) -> u64 {
        self.grid.slabs().map(|slab| taken(slab.bytes(&self.grid))).sum()
    }

    /// Refuses a part of which more must lie in memory at once than there is, because its codec cuts it across.
    pub fn check_memory(&self, limit: u64) -> Result<(), StoreError> {
        let needs = self.working_bytes();
        if needs <= limit || self.grid.chunk() == sira_tensor::grid::chunk_shape(&self.part.spec) {
            return Ok(());
        }
        Err(StoreError::OutOfSpace(format!("{}: {}", self.part.name, across(&self.chain, &self.grid, needs, limit))))
    }
}

/// Memory of one chunk of `raw` bytes while it is coded: cut and encoded; a lossy codec also computes with wider numbers, and what it encoded is
/// decoded and measured.
pub(crate) fn coding_bytes(chain: &Chain, raw: u64) -> u64 {
    raw.saturating_mul(if chain.lossless() { 2 } else { 6 })
}

/// Why chunks that a codec cuts across a part do not fit in memory, and what would.
pub(crate) fn across(chain: &Chain, grid: &Grid, needs: u64, limit: u64) -> String {
    format!(
        "codec {chain} cuts {:?} into chunks of {:?}, of which {} bytes lie in memory at once: that needs {needs} bytes, and memory.limit \
         leaves {limit}. Put blocks of fewer tokens, read a range of an outer axis, take another codec or raise memory.limit",
        grid.shape(),
        grid.chunk(),
        grid.slab_bytes()
    )
}

/// Where the bytes of a part go besides memory.
#[derive(Clone)]
pub(crate) enum Target {
    /// Nowhere: into the record, or behind.
    Kept,
    /// Into the home tier, chunk by chunk.
    Chunks(Arc<ChunkSink>),
}

/// Chunks of a slab that are being stored.
pub(crate) type Storing = oneshot::Receiver<Result<Vec<Chunk>, StoreError>>;

/// A part that is being filled.
pub(crate) struct PartWriter {
    slabs: Slabs,
    grid: Grid,
    target: Target,
    /// The slab being filled, and the checksums of what is in it so far.
    current: Option<(Slab, Region, Digest)>,
    /// The slabs being stored, while the next one fills.
    storing: VecDeque<(Cells, Storing)>,
    /// How many may be.
    at_once: usize,
    /// Cells and what is stored of them.
    chunks: Vec<(u64, Chunk)>,
    /// What stays in memory, with the checksum of each block and its reservation.
    kept: Option<(Payload, Vec<u64>, Reservation)>,
    /// The part of memory that it is for.
    hot: Arc<HotTier>,
    /// Bytes that memory is verified by.
    block_bytes: usize,
}

impl PartWriter {
    /// `reservation`: the memory of what is kept, where it is not the hot tier that keeps it.
    pub fn new(plan: &PartPlan, target: Target, hot: Arc<HotTier>, reservation: Reservation) -> PartWriter {
        let keeps = match target {
            Target::Kept => true,
            // What a lossy codec gives back is all that is ever given: memory keeps that, from the first get on.
            Target::Chunks(_) => plan.chain.lossless() && hot.takes(plan.part.spec.nbytes()),
        };
        // The checksum of a slab that becomes one chunk as it is serves both.
        let as_it_is = |sink: &ChunkSink| sink.plan.chain.is_none() && plan.grid.slab_bytes() == plan.grid.region_bytes(&plan.grid.cell(0));
        let block_bytes = match &target {
            Target::Chunks(sink) if as_it_is(sink) => usize::try_from(plan.grid.slab_bytes()).unwrap_or(BLOCK),
            _ => BLOCK,
        };
        PartWriter {
            slabs: plan.grid.slabs(),
            grid: plan.grid.clone(),
            target,
            current: None,
            storing: VecDeque::new(),
            at_once: plan.slabs_at_once(),
            chunks: Vec::new(),
            kept: keeps.then(|| (Payload::default(), Vec::new(), reservation)),
            hot,
            block_bytes,
        }
    }

    /// Takes the next bytes, not more than the part still misses.
    pub async fn write(&mut self, inner: &Inner, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            if self.current.is_none() {
                let slab = self.slabs.next().ok_or_else(|| StoreError::Internal("a tensor longer than its slabs".into()))?;
                let region = inner.regions.region(slab.bytes(&self.grid))?;
                self.current = Some((slab, region, Digest::new(self.block_bytes)));
            }
            let Some((_, region, digest)) = &mut self.current else { continue };
            let (now, later) = bytes.split_at(region.append(bytes));
            digest.update(now);
            bytes = later;
            if region.is_full() {
                self.slab_full(inner).await?;
            }
        }
        Ok(())
    }

    /// Takes all bytes of a part that is one slab, as they lie.
    pub async fn adopt(&mut self, inner: &Inner, region: Region) -> Result<(), StoreError> {
        let slab = self.slabs.next().ok_or_else(|| StoreError::Internal("a tensor without slabs".into()))?;
        let mut digest = Digest::new(self.block_bytes);
        digest.update(region.bytes());
        self.current = Some((slab, region, digest));
        self.slab_full(inner).await
    }

    /// Hands a full slab on, once few enough of those before it are still being stored.
    async fn slab_full(&mut self, inner: &Inner) -> Result<(), StoreError> {
        let Some((slab, region, digest)) = self.current.take() else { return Ok(()) };
        let (bytes, blocks) = (region.freeze(), digest.finish());
        let checksum = match blocks[..] {
            [only] => Some(only),
            _ => None,
        };
        self.keep(&bytes, blocks);
        if let Target::Chunks(sink) = self.target.clone() {
            while self.storing.len() >= self.at_once {
                self.wait_stored().await?;
            }
            let region = slab.region.clone();
            let mut storing = Box::pin(async move { sink.store(&slab, bytes, checksum).await });
            // A backend that waits for nothing, as memory does, is done here and now: no task.
            if let Some(stored) = storing.as_mut().now_or_never() {
                return self.stored(&region, stored?);
            }
            let (sender, receiver) = oneshot::channel();
            self.storing.push_back((region, receiver));
            // Runs to its end even if the writer goes: what is being written must be known before it can be swept.
            inner.seams.spawner.spawn(Box::pin(async move { drop(sender.send(storing.await)) }));
        }
        Ok(())
    }

    /// Notes what is stored of a slab.
    fn stored(&mut self, slab: &[Range<u64>], stored: Vec<Chunk>) -> Result<(), StoreError> {
        self.chunks.extend(self.grid.touched(slab).into_iter().zip(stored));
        Ok(())
    }

    /// Keeps a slab for the record or the hot tier; where the hot tier has no room for it, the part is not kept there.
    fn keep(&mut self, bytes: &Bytes, blocks: Vec<u64>) {
        let Some((payload, checksums, reservation)) = &mut self.kept else { return };
        if let Target::Chunks(_) = self.target {
            match self.hot.admit(taken(bytes.len() as u64)) {
                Some(more) => reservation.absorb(more),
                None => {
                    self.kept = None;
                    return;
                }
            }
        }
        payload.push(bytes.clone());
        checksums.extend(blocks);
    }

    /// Waits until the oldest slab is stored.
    async fn wait_stored(&mut self) -> Result<(), StoreError> {
        // It stays in the queue while it is waited for: whoever gives up here must know that it may still be written.
        let Some((_, storing)) = self.storing.front_mut() else { return Ok(()) };
        let stored = storing.await.unwrap_or_else(|_| Err(StoreError::Internal("a task that stores chunks has died".into())));
        let Some((slab, _)) = self.storing.pop_front() else { return Ok(()) };
        self.stored(&slab, stored?)
    }

    /// The slabs that are still being stored.
    pub fn storing(&mut self) -> Vec<Storing> {
        self.storing.drain(..).map(|(_, storing)| storing).collect()
    }

    /// The part of the record, and its bytes where they stay in memory. `inline`: the record holds them, and they are not waiting to be
    /// written behind.
    pub async fn finish(mut self, part: PartSpec, inline: bool) -> Result<(Part, Option<HotPart>), StoreError> {
        while !self.storing.is_empty() {
            self.wait_stored().await?;
        }
        let nbytes = part.spec.nbytes();
        let mut record = Part { name: part.name, spec: part.spec, inline: None, copies: Vec::new(), codec: part.codec };
        let mut kept = self.kept.take().filter(|(payload, _, _)| payload.len() == nbytes);
        match &self.target {
            Target::Chunks(sink) => record.copies.push(sink.copy(&self.chunks)),
            Target::Kept if inline => {
                let (payload, checksums, _) = kept.take().ok_or_else(|| StoreError::Internal("an inline part without its bytes".into()))?;
                record.inline = Some(payload.clone().into_bytes().to_vec());
                kept = self.hot.admit(nbytes).map(|admitted| (payload, checksums, admitted));
            }
            Target::Kept => {}
        }
        // What holds no bytes needs no place in memory, but what waits to be written behind must be whole.
        let waits = matches!(self.target, Target::Kept) && !inline;
        let kept = kept.filter(|(payload, _, _)| waits || !payload.is_empty());
        Ok((record, kept.map(|(payload, checksums, reservation)| HotPart::gathered(payload, (self.block_bytes, checksums), reservation))))
    }
}
