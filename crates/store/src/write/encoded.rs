//! A put of chunks that are encoded already: they are checked as far as that goes without decoding them all, and stored as they are.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use sira_backend::PutOptions;
use sira_codec::Chain;
use sira_tensor::TensorSpec;
use sira_tensor::grid::{Grid, SLAB_BYTES};
use sira_wire::encoded::{ChunkHead, Encoding};
use sira_wire::{Code, Key, PutAnswer, WireError};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use super::{Course, EARLY_BYTES, INLINE_BYTES, Writer};
use crate::StoreError;
use crate::client::{Inner, StorageClient, Tier, WriteOptions};
use crate::coding::{Awaited, PartFacts, Way};
use crate::part::coding_bytes;
use crate::record::{Chunk, Part, PartCopy, chunk_name};
use crate::sink::{ChunkSink, chunk_options, durability, origin_and_shape, put_chunk};

/// A put of encoded chunks in progress, in the row-major order of their grid. Dropped before its commit, it leaves nothing behind.
///
/// # Contract
/// Of each chunk are checked: its place in the grid, its length (never more than raw, and exactly that where it is raw), the checksum that
/// was announced. The first one that went through a codec is decoded, once, and thrown away, so that a client whose codec is another one than it says is
/// told so before anything is visible. Whether the others decode is found by whoever reads them.
pub struct EncodedWriter {
    /// Until it is committed.
    writer: Option<Writer>,
    plan: Arc<Plan>,
    /// The chunk that is coming, and what has come of it.
    current: Option<(ChunkHead, Vec<u8>)>,
    /// The cell of that chunk, or of the next one.
    cell: u64,
    /// Chunks that are being stored, oldest first.
    storing: VecDeque<oneshot::Receiver<Result<Chunk, StoreError>>>,
    chunks: Vec<Chunk>,
    /// Whether a chunk was, or is being, decoded.
    tried: bool,
}

/// What holds for all chunks of a put.
struct Plan {
    inner: Arc<Inner>,
    home: Arc<Tier>,
    facts: Arc<PartFacts>,
    grid: Grid,
    chains: Vec<Chain>,
    write_id: String,
    options: PutOptions,
}

impl StorageClient {
    /// Begins a put of `spec` under `key` whose chunks come encoded as `encoding` says. As [`StorageClient::begin`] otherwise; a codec in the options must
    /// be the same.
    pub async fn begin_encoded(
        &self,
        key: Key,
        spec: TensorSpec,
        encoding: &Encoding,
        options: WriteOptions,
    ) -> Result<EncodedWriter, StoreError> {
        let chains = encoding.chains.iter().map(|text| text.parse()).collect::<Result<Vec<Chain>, _>>()?;
        let codec = codec_of(&chains)?;
        if let Some(asked) = options.codec.as_deref().map(str::parse::<Chain>).transpose()?
            && asked != codec
        {
            return Err(refuse(format!("codec is {asked}, and the chunks are encoded with {codec}; leave it out")));
        }
        let grid = encoding.grid(&spec)?;
        let writer = self.begin(key, spec, WriteOptions { codec: Some(codec.to_string()), ..options }).await?;
        // Axes may have got their names from a kv spec only now.
        check_grid(&grid, writer.spec(), &chains)?;
        if writer.artefact.is_some() {
            return Err(refuse("calibrations are put raw".into()));
        }
        let plan = Plan {
            inner: writer.inner.clone(),
            home: writer.home.clone(),
            facts: writer.plans[0].facts.clone(),
            grid,
            chains,
            write_id: writer.write_id.clone(),
            options: chunk_options(&writer.inner, durability(writer.level), writer.ttl),
        };
        let plan = Arc::new(plan);
        Ok(EncodedWriter { writer: Some(writer), plan, current: None, cell: 0, storing: VecDeque::new(), chunks: Vec::new(), tried: false })
    }
}

/// The chain of a put: the one that is not `none`.
fn codec_of(chains: &[Chain]) -> Result<Chain, StoreError> {
    let mut coded = chains.iter().filter(|chain| !chain.is_none());
    match (coded.next(), coded.next(), chains) {
        (_, Some(_), _) | (_, _, []) => {
            Err(refuse(format!("{} chains; chunks of a put are raw (none), or went through one codec chain", chains.len())))
        }
        (codec, None, _) => Ok(codec.cloned().unwrap_or_default()),
    }
}

/// Refuses chunks that would be dear to keep or to read, beyond what this server would make of the tensor itself.
fn check_grid(grid: &Grid, spec: &TensorSpec, chains: &[Chain]) -> Result<(), StoreError> {
    let bad = |reason: String| Err(StoreError::Wire(WireError::new(Code::BadTensor, reason)));
    let (cells, nbytes) = (grid.cells(), spec.nbytes());
    if nbytes > 0 && nbytes <= INLINE_BYTES {
        return Err(refuse(format!(
            "a tensor of {nbytes} bytes lies in its record, raw; send those of up to {INLINE_BYTES} bytes as they are"
        )));
    }
    let own = chains.iter().map(|chain| Grid::new(spec, &chain.chunk_shape(spec))).collect::<Result<Vec<_>, _>>()?;
    let most_cells = own.iter().map(Grid::cells).fold((nbytes / INLINE_BYTES).max(1), u64::max);
    if cells > most_cells {
        return bad(format!("{cells} chunks of {nbytes} bytes; on average a chunk has {INLINE_BYTES} or more"));
    }
    let most = own.iter().map(Grid::slab_bytes).fold(SLAB_BYTES, u64::max);
    // A reader holds as much, to give the bytes in their order.
    match grid.slab_bytes() {
        slab if slab > most => bad(format!(
            "chunks of {:?}: {slab} bytes must be decoded before the first rows are whole; at most {most} may be",
            grid.chunk()
        )),
        _ => Ok(()),
    }
}

impl EncodedWriter {
    /// What is being put.
    pub fn spec(&self) -> &TensorSpec {
        &self.plan.facts.spec
    }

    /// Bytes that the chunk which is coming still misses; `None` where the next one must begin first.
    pub fn missing(&self) -> Option<u64> {
        self.current.as_ref().map(|(head, bytes)| head.bytes - bytes.len() as u64)
    }

    /// The next chunk begins.
    pub async fn begin_chunk(&mut self, head: ChunkHead) -> Result<(), StoreError> {
        let bad = |reason: String| StoreError::Wire(WireError::new(Code::BadTensor, reason));
        let Plan { grid, chains, .. } = &*self.plan;
        if self.current.is_some() {
            return Err(StoreError::Internal("a chunk begins within another".into()));
        }
        if self.cell >= grid.cells() {
            return Err(StoreError::Incomplete(format!("more than the {} chunks of the tensor came. Nothing was stored", grid.cells())));
        }
        let (cell, raw) = (self.cell, grid.region_bytes(&grid.cell(self.cell)));
        let chain = chains.get(head.chain as usize);
        let chain = chain.ok_or_else(|| bad(format!("chunk {cell}: chain {} of {}", head.chain, chains.len())))?;
        if head.bytes > raw || (chain.is_none() && head.bytes != raw) || (head.bytes == 0 && raw > 0) {
            return Err(bad(format!("chunk {cell} of chain {chain}: {} bytes, where {raw} are raw", head.bytes)));
        }
        self.current = Some((head, Vec::new()));
        if head.bytes == 0 { self.chunk_full().await } else { Ok(()) }
    }

    /// Takes bytes of the chunk that began last; not more than it misses.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let Some((head, gathered)) = &self.current else { return Err(StoreError::Internal("bytes of no chunk".into())) };
        let came = (gathered.len() + bytes.len()) as u64;
        let whole = came == head.bytes;
        if came > EARLY_BYTES || whole {
            self.settle().await?;
        }
        if let Some((head, gathered)) = &mut self.current {
            if gathered.is_empty() || came > EARLY_BYTES {
                // All of it is reserved by now, unless it is little.
                let room = if came > EARLY_BYTES { head.bytes } else { head.bytes.min(EARLY_BYTES) };
                gathered.reserve_exact((room as usize).saturating_sub(gathered.len()));
            }
            gathered.extend_from_slice(bytes);
        }
        if whole { self.chunk_full().await } else { Ok(()) }
    }

    /// Sets memory aside for all that is to come, once bytes have come and not only a promise of them, and notes that chunks are about to be written.
    async fn settle(&mut self) -> Result<(), StoreError> {
        let Some(writer) = self.writer.as_mut().filter(|writer| writer.course.is_none()) else { return Ok(()) };
        let (inner, grid) = (writer.inner.clone(), &self.plan.grid);
        inner.record_tier()?.headroom().await?;
        writer.promise = Some(inner.promise(&writer.namespace, &writer.key, &writer.home.name, writer.nbytes).await?);
        // One chunk comes while others are stored; one of them is decoded.
        let largest = grid.region_bytes(&grid.cell(0));
        let decoding = self.plan.chains.iter().map(|chain| coding_bytes(chain, largest)).max().unwrap_or(0);
        writer
            .working
            .absorb(inner.reserve(decoding.saturating_add((inner.coders.chunks_at_once() as u64 + 1).saturating_mul(largest))).await?);
        ChunkSink::announce(&inner, &writer.home, &writer.key, &writer.write_id)?;
        writer.course = Some(Course::Chunks);
        Ok(())
    }

    /// Hands a chunk on to be stored, when there is room for it.
    async fn chunk_full(&mut self) -> Result<(), StoreError> {
        let Some((head, bytes)) = self.current.take() else { return Ok(()) };
        while self.storing.len() >= self.plan.inner.coders.chunks_at_once() {
            self.wait_stored().await?;
        }
        let (plan, cell, bytes) = (self.plan.clone(), self.cell, Bytes::from(bytes));
        self.cell += 1;
        let coded = plan.chains.get(head.chain as usize).is_some_and(|chain| !chain.is_none());
        let try_it = coded && !self.tried;
        self.tried |= coded;
        let (sender, receiver) = oneshot::channel();
        self.storing.push_back(receiver);
        // Runs to its end even if the writer goes: what is being written must be known before it can be swept.
        let spawner = plan.inner.seams.spawner.clone();
        spawner.spawn(Box::pin(async move { drop(sender.send(plan.store(cell, head, bytes, try_it).await)) }));
        Ok(())
    }

    async fn wait_stored(&mut self) -> Result<(), StoreError> {
        let Some(storing) = self.storing.front_mut() else { return Ok(()) };
        let stored = storing.await.unwrap_or_else(|_| Err(StoreError::Internal("a task that stores a chunk has died".into())));
        self.storing.pop_front();
        self.chunks.push(stored?);
        Ok(())
    }

    /// Makes the put visible, as [`Writer::commit`] does.
    pub async fn commit(mut self) -> Result<PutAnswer, StoreError> {
        // What is wrong with a chunk says more than that others did not come.
        while !self.storing.is_empty() {
            self.wait_stored().await?;
        }
        let cells = self.plan.grid.cells();
        if self.cell < cells {
            let came = self.cell;
            return Err(StoreError::Incomplete(format!("the tensor has {cells} chunks; {came} came. Nothing was stored")));
        }
        let Some(mut writer) = self.writer.take() else { return Err(StoreError::Internal("a put that is committed twice".into())) };
        if cells > 0 {
            let part = writer.plans[0].part.clone();
            let copy = self.plan.copy(std::mem::take(&mut self.chunks));
            writer.filled = writer.nbytes;
            writer.done.push((Part { name: part.name, spec: part.spec, inline: None, copies: vec![copy], codec: part.codec }, None));
        }
        writer.commit().await
    }
}

impl Drop for EncodedWriter {
    fn drop(&mut self) {
        let (writer, storing) = (self.writer.take(), std::mem::take(&mut self.storing));
        if let Some(writer) = writer.filter(|_| !storing.is_empty()) {
            // What is still being stored is swept after it; the writer does that when it goes.
            self.plan.inner.seams.spawner.spawn(Box::pin(async move {
                for stored in storing {
                    drop(stored.await);
                }
                drop(writer);
            }));
        }
    }
}

impl Plan {
    async fn store(self: Arc<Self>, cell: u64, head: ChunkHead, bytes: Bytes, try_it: bool) -> Result<Chunk, StoreError> {
        self.home.headroom().await?;
        let (plan, checked, len) = (self.clone(), bytes.clone(), bytes.len() as u64);
        let check = move || plan.check(cell, head, &checked, try_it);
        let checksum = match self.chains.get(head.chain as usize).filter(|_| try_it) {
            Some(chain) => {
                let raw = self.grid.region_bytes(&self.grid.cell(cell));
                self.inner.coders.run(&self.inner, (chain, Way::Decode, Awaited::ByClient), raw, move || (check(), len)).await
            }
            None => self.inner.seams.work(check).await,
        };
        let checksum = checksum.ok_or_else(|| StoreError::Internal(format!("checking chunk {cell} failed")))??;
        let chunk = Chunk { stored_bytes: bytes.len() as u64, checksum, chain: head.chain };
        put_chunk(&self.inner, &self.home, &chunk_name(&self.write_id, 0, cell), bytes, self.options).await?;
        self.home.meter.encoded(self.grid.region_bytes(&self.grid.cell(cell)), chunk.stored_bytes);
        Ok(chunk)
    }

    /// The checksum of a chunk, which must be what was announced.
    fn check(&self, cell: u64, head: ChunkHead, bytes: &[u8], try_it: bool) -> Result<u64, StoreError> {
        let bad = |reason: String| StoreError::Wire(WireError::new(Code::BadTensor, format!("chunk {cell}: {reason}. Nothing was stored")));
        let checksum = xxh3_64(bytes);
        if let Some(announced) = head.checksum.filter(|announced| *announced != checksum) {
            return Err(bad(format!("its checksum is {checksum:016x}; {announced:016x} was announced")));
        }
        if try_it && let Some(chain) = self.chains.get(head.chain as usize) {
            let region = self.grid.cell(cell);
            let (origin, shape) = origin_and_shape(&region);
            let decoded = chain.decode(bytes, self.grid.region_bytes(&region) as usize, self.facts.chunk(&shape, &origin));
            decoded.map_err(|error| bad(format!("it does not decode with {chain}: {error}")))?;
        }
        Ok(checksum)
    }

    fn copy(&self, chunks: Vec<Chunk>) -> PartCopy {
        PartCopy {
            backend: self.home.name.clone(),
            write_id: self.write_id.clone(),
            chunk_shape: self.grid.chunk().to_vec(),
            chains: self.chains.iter().map(ToString::to_string).collect(),
            chunks,
            errors: Default::default(), // nobody here has seen what was encoded
        }
    }
}

fn refuse(reason: String) -> StoreError {
    StoreError::Wire(WireError::new(Code::BadRequest, reason))
}
