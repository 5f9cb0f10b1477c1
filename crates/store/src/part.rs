//! One part of a put: its bytes are gathered into slabs, which are kept, or cut into chunks and stored.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use sira_backend::Payload;
use sira_codec::Chain;
use sira_tensor::TensorSpec;
use sira_tensor::grid::{Grid, Region as Cells, Slab, Slabs, chunk_shape};
use tokio::sync::oneshot;

use crate::StoreError;
use crate::client::Inner;
use crate::digest::Digest;
use crate::hot::{BLOCK, HotPart, HotTier};
use crate::ledger::Reservation;
use crate::record::{Chunk, Part};
use crate::region::{Region, taken};
use crate::sink::{ChunkSink, WIDTH};

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
}

impl PartPlan {
    pub fn new(part: PartSpec, chain: Chain) -> Result<PartPlan, StoreError> {
        let grid = Grid::new(&part.spec, &chunk_shape(&part.spec))?;
        if grid.cells() > MAX_CHUNKS {
            return Err(StoreError::OutOfSpace(format!(
                "a tensor of {} bytes would have {} chunks; a tensor may have {MAX_CHUNKS}",
                part.spec.nbytes(),
                grid.cells()
            )));
        }
        Ok(PartPlan { part, chain, grid })
    }

    /// Memory of a put by chunks: one slab fills while another is stored; each chunk in the making is cut and encoded.
    pub fn working_bytes(&self) -> u64 {
        2 * taken(self.grid.slab_bytes()) + 2 * WIDTH as u64 * self.grid.region_bytes(&self.grid.cell(0))
    }
}

impl PartPlan {
    /// Memory of the part where all of it stays in memory.
    pub fn kept_bytes(&self) -> u64 {
        self.grid.slabs().map(|slab| taken(slab.bytes(&self.grid))).sum()
    }
}

/// Where the bytes of a part go besides memory.
#[derive(Clone)]
pub(crate) enum Target {
    /// Nowhere: into the record, or behind.
    Kept,
    /// Into the home tier, chunk by chunk.
    Chunks(Arc<ChunkSink>),
}

/// A part that is being filled.
pub(crate) struct PartWriter {
    slabs: Slabs,
    grid: Grid,
    target: Target,
    /// The slab being filled, and the checksums of what is in it so far.
    current: Option<(Slab, Region, Digest)>,
    /// The slab being stored, while the next one fills.
    storing: Option<oneshot::Receiver<Result<Vec<Chunk>, StoreError>>>,
    last: Option<Cells>,
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
            Target::Chunks(_) => hot.takes(plan.part.spec.nbytes()),
        };
        // The checksum of a slab that becomes one chunk as it is serves both.
        let as_it_is = |sink: &ChunkSink| sink.chain.is_none() && plan.grid.slab_bytes() == plan.grid.region_bytes(&plan.grid.cell(0));
        let block_bytes = match &target {
            Target::Chunks(sink) if as_it_is(sink) => usize::try_from(plan.grid.slab_bytes()).unwrap_or(BLOCK),
            _ => BLOCK,
        };
        PartWriter {
            slabs: plan.grid.slabs(),
            grid: plan.grid.clone(),
            target,
            current: None,
            storing: None,
            last: None,
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

    /// Hands a full slab on, once the one before it is stored.
    async fn slab_full(&mut self, inner: &Inner) -> Result<(), StoreError> {
        let Some((slab, region, digest)) = self.current.take() else { return Ok(()) };
        let (bytes, blocks) = (region.freeze(), digest.finish());
        let checksum = match blocks[..] {
            [only] => Some(only),
            _ => None,
        };
        self.keep(&bytes, blocks);
        if let Target::Chunks(sink) = self.target.clone() {
            self.wait_stored().await?;
            let region = slab.region.clone();
            let mut storing = Box::pin(async move { sink.store(&slab, bytes, checksum).await });
            // A backend that waits for nothing, as memory does, is done here and now: no task.
            if let Some(stored) = storing.as_mut().now_or_never() {
                return self.stored(&region, stored?);
            }
            let (sender, receiver) = oneshot::channel();
            (self.last, self.storing) = (Some(region), Some(receiver));
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

    async fn wait_stored(&mut self) -> Result<(), StoreError> {
        let (Some(storing), Some(slab)) = (&mut self.storing, self.last.take()) else { return Ok(()) };
        let stored = storing.await.unwrap_or_else(|_| Err(StoreError::Internal("a task that stores chunks has died".into())));
        self.storing = None;
        self.stored(&slab, stored?)
    }

    /// The slab that is still being stored, if any.
    pub fn storing(&mut self) -> Option<oneshot::Receiver<Result<Vec<Chunk>, StoreError>>> {
        self.storing.take()
    }

    /// The part of the record, and its bytes where they stay in memory. `inline`: the record holds them, and they are not waiting to be
    /// written behind.
    pub async fn finish(mut self, part: PartSpec, inline: bool) -> Result<(Part, Option<HotPart>), StoreError> {
        self.wait_stored().await?;
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
