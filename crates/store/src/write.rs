//! A put in progress: bytes come in row-major order, are gathered into slabs, cut into chunks, encoded and stored; the
//! commit writes the record.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;
use sira_backend::{BackendError, Durability, Payload, PutMode, PutOptions, Survives};
use sira_codec::{Chain, ChunkContext, Encoded};
use sira_tensor::TensorSpec;
use sira_tensor::grid::{Grid, Slab, Slabs, chunk_shape};
use sira_wire::{Code, Condition, Consistency, Key, PutAnswer};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use crate::catalog::Intent;
use crate::client::{Inner, Tier, WriteOptions, needs};
use crate::commit::Commit;
use crate::hot::HotPart;
use crate::ledger::Reservation;
use crate::record::{Chunk, DATA, Part, PartCopy, TensorRecord, chunk_name};
use crate::{StoreError, upkeep};

/// Tensors of at most this many bytes lie inside their record: one write, one sync.
pub(crate) const INLINE_BYTES: u64 = 32 << 10;

/// Bytes of a put that are taken before its working memory is reserved: a client that declares a large tensor and stalls holds this much.
const EARLY_BYTES: u64 = 64 << 10;

/// Chunks of a part: a table of 24 bytes each must stay in memory.
const MAX_CHUNKS: u64 = 1 << 20;

/// Chunks of one slab in the making at once.
const WIDTH: usize = 2;

/// Where the bytes of a put go.
enum Course {
    /// Into the record.
    Inline,
    /// Into memory, written behind.
    Behind(tokio::sync::OwnedSemaphorePermit),
    /// Into the home tier, chunk by chunk.
    Chunks(Arc<ChunkSink>),
}

/// A put in progress. Dropped before its commit, it leaves nothing behind.
pub struct Writer {
    inner: Arc<Inner>,
    key: Key,
    spec: TensorSpec,
    write_id: String,
    codec: Option<String>,
    level: Consistency,
    ttl: Option<u64>,
    condition: Option<Condition>,
    home: Arc<Tier>,
    chain: Chain,
    /// Decided when the first [`EARLY_BYTES`] have come.
    course: Option<Course>,
    slabs: Slabs,
    grid: Grid,
    /// The slab being filled, and the bytes it will have.
    current: Option<(Slab, Vec<u8>, usize)>,
    /// The slab being stored, while the next one fills.
    storing: Option<oneshot::Receiver<Result<Vec<Chunk>, StoreError>>>,
    /// Cells and what is stored of them.
    chunks: Vec<(u64, Chunk)>,
    last: Option<Slab>,
    filled: u64,
    /// What stays in memory, with its reservation.
    kept: Option<(Payload, Reservation)>,
    working: Reservation,
    all_reserved: bool,
    committed: bool,
    _leave: Leave,
}

impl Writer {
    pub(crate) async fn begin(inner: Arc<Inner>, key: Key, spec: TensorSpec, options: WriteOptions) -> Result<Writer, StoreError> {
        inner.writers.fetch_add(1, Ordering::SeqCst);
        let leave = Leave(inner.clone());
        if inner.stopping.load(Ordering::SeqCst) {
            return Err(StoreError::ShuttingDown);
        }
        let chain: Chain = match &options.codec {
            Some(text) => text.parse()?,
            None => inner.options.codec.clone(),
        };
        crate::commit::check(&key, inner.alive(&key)?.as_ref(), options.condition)?;
        let home = inner.place(&key, &spec, options.consistency.unwrap_or(inner.options.consistency))?;
        let level = level(&inner, &home, options.consistency)?;
        let grid = Grid::new(&spec, &chunk_shape(&spec))?;
        if grid.cells() > MAX_CHUNKS {
            return Err(StoreError::OutOfSpace(format!(
                "a tensor of {} bytes would have {} chunks; a tensor may have {MAX_CHUNKS}",
                spec.nbytes(),
                grid.cells()
            )));
        }
        let working = match options.scratch {
            0 => inner.reserve(spec.nbytes().min(EARLY_BYTES)).await?,
            // Who holds that much waits for no more: all of it at once.
            scratch => inner.reserve(scratch + working_bytes(&grid)).await?,
        };
        let write_id = inner.seams.write_id();
        Ok(Writer {
            key,
            spec,
            write_id,
            codec: options.codec,
            level,
            ttl: options.ttl.or(inner.options.ttl),
            condition: options.condition,
            home,
            chain,
            course: None,
            slabs: grid.slabs(),
            grid,
            current: None,
            storing: None,
            chunks: Vec::new(),
            last: None,
            filled: 0,
            kept: None,
            working,
            all_reserved: options.scratch > 0,
            committed: false,
            _leave: leave,
            inner,
        })
    }

    /// Decides where the bytes go and reserves what that takes, once bytes have come and not only a promise of them.
    async fn settle(&mut self) -> Result<(), StoreError> {
        if self.course.is_some() {
            return Ok(());
        }
        self.inner.record_tier()?.headroom().await?;
        let (inner, nbytes) = (&self.inner, self.spec.nbytes());
        let weak = self.level == Consistency::Weak && self.home.keeps() > Survives::Nothing && nbytes > 0;
        if let Some(permit) = weak.then(|| inner.behind.budget(nbytes)).flatten() {
            let reservation = inner.ledger.try_reserve(nbytes).or_else(|| {
                inner.hot.evict(nbytes);
                inner.ledger.try_reserve(nbytes)
            });
            // Without memory to keep it in, it is written at once, which keeps more than was asked.
            if let Some(reservation) = reservation {
                self.kept = Some((Payload::default(), reservation));
                self.course = Some(Course::Behind(permit));
                return Ok(());
            }
        }
        if nbytes <= INLINE_BYTES {
            self.kept = Some((Payload::default(), Reservation::default()));
            self.course = Some(Course::Inline);
            return Ok(());
        }
        if !self.all_reserved {
            self.working.absorb(inner.reserve(working_bytes(&self.grid)).await?);
        }
        self.kept = inner.hot.takes(nbytes).then(Default::default);
        let (home, chain) = (self.home.clone(), self.chain.clone());
        self.course =
            Some(Course::Chunks(ChunkSink::begin(inner, home, &self.key, &self.write_id, &self.spec, chain, durability(self.level))?));
        Ok(())
    }

    /// What is being put.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Bytes still to come.
    pub fn missing(&self) -> u64 {
        self.spec.nbytes() - self.filled
    }

    /// Takes the next bytes, row-major. More than the tensor has is refused.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.len() as u64 > self.missing() {
            return Err(StoreError::Incomplete(format!(
                "{} of shape {:?} has {} bytes; {} more came",
                self.spec.dtype(),
                self.spec.shape(),
                self.spec.nbytes(),
                bytes.len() as u64 - self.missing()
            )));
        }
        while !bytes.is_empty() {
            if self.filled + bytes.len() as u64 > EARLY_BYTES {
                self.settle().await?;
            }
            if self.current.is_none() {
                let slab = self.slabs.next().ok_or_else(|| StoreError::Internal("a tensor longer than its slabs".into()))?;
                let want = slab.bytes(&self.grid) as usize;
                self.current = Some((slab, Vec::with_capacity(want), want));
            }
            let Some((_, buffer, want)) = &mut self.current else { continue };
            let take = bytes.len().min(*want - buffer.len());
            buffer.extend_from_slice(&bytes[..take]);
            self.filled += take as u64;
            bytes = &bytes[take..];
            if buffer.len() == *want {
                self.slab_full().await?;
            }
        }
        Ok(())
    }

    /// Hands a full slab on, once the one before it is stored.
    async fn slab_full(&mut self) -> Result<(), StoreError> {
        let Some((slab, buffer, _)) = self.current.take() else { return Ok(()) };
        let bytes = Bytes::from(buffer);
        self.settle().await?;
        self.keep(&bytes);
        match &self.course {
            None | Some(Course::Inline | Course::Behind(_)) => {}
            Some(Course::Chunks(sink)) => {
                let sink = sink.clone();
                self.wait_stored().await?;
                let (sender, receiver) = oneshot::channel();
                self.last = Some(slab.clone());
                self.storing = Some(receiver);
                // Runs to its end even if the writer goes: what is being written must be known before it can be swept.
                self.inner.seams.spawner.spawn(Box::pin(async move { drop(sender.send(sink.store(&slab, bytes).await)) }));
            }
        }
        Ok(())
    }

    /// Keeps a slab for the record or the hot tier; where the hot tier has no room for it, the tensor is not kept there.
    fn keep(&mut self, bytes: &Bytes) {
        let Some((payload, reservation)) = &mut self.kept else { return };
        if let Some(Course::Chunks(_)) = self.course {
            match self.inner.hot.admit(bytes.len() as u64) {
                Some(more) => reservation.absorb(more),
                None => {
                    self.kept = None;
                    return;
                }
            }
        }
        payload.push(bytes.clone());
    }

    async fn wait_stored(&mut self) -> Result<(), StoreError> {
        let (Some(storing), Some(slab)) = (&mut self.storing, self.last.take()) else { return Ok(()) };
        let stored = storing.await.unwrap_or_else(|_| Err(StoreError::Internal("a task that stores chunks has died".into())));
        self.storing = None;
        self.chunks.extend(self.grid.touched(&slab.region).into_iter().zip(stored?));
        Ok(())
    }

    /// Makes the tensor visible, all of it at once. When this returns, the put survives what its level promises. A caller that goes away
    /// meanwhile does not stop it half-way.
    pub async fn commit(self) -> Result<PutAnswer, StoreError> {
        let spawner = self.inner.seams.spawner.clone();
        let (sender, receiver) = oneshot::channel();
        spawner.spawn(Box::pin(async move { drop(sender.send(self.finish().await)) }));
        receiver.await.unwrap_or_else(|_| Err(StoreError::Internal("a task that commits has died".into())))
    }

    async fn finish(mut self) -> Result<PutAnswer, StoreError> {
        if self.missing() > 0 {
            return Err(StoreError::Incomplete(format!(
                "{} of shape {:?} has {} bytes; the stream ended after {}. Nothing was stored",
                self.spec.dtype(),
                self.spec.shape(),
                self.spec.nbytes(),
                self.filled
            )));
        }
        self.settle().await?;
        self.wait_stored().await?;
        let (payload, mut reservation) = self.kept.take().unwrap_or_default();
        let mut hot_takes = payload.len() == self.spec.nbytes() && !payload.is_empty() && self.inner.hot.takes(payload.len());
        let mut part = Part { name: DATA.into(), spec: self.spec.clone(), inline: None, copies: Vec::new(), codec: self.codec.clone() };
        match &self.course {
            Some(Course::Chunks(sink)) => part.copies.push(sink.copy(&self.chunks)),
            Some(Course::Behind(_)) => {}
            Some(Course::Inline) | None => {
                part.inline = Some(payload.clone().into_bytes().to_vec());
                match self.inner.hot.admit(self.spec.nbytes()) {
                    Some(admitted) => reservation = admitted,
                    None => hot_takes = false,
                }
            }
        }
        let hot = Arc::new(HotPart::new(payload, reservation));
        let now = self.inner.now();
        let record = TensorRecord {
            key: self.key.clone(),
            version: 0,
            generation: 0,
            tombstone: false,
            created_ms: now,
            expires_ms: self.ttl.map(|ttl| now + ttl * 1000),
            consistency: self.level,
            write_id: self.write_id.clone(),
            parts: vec![part],
        };
        let mut commit = Commit { record, condition: self.condition, durability: durability(self.level) };
        let created = match self.course.take() {
            Some(Course::Behind(permit)) => self.inner.commit_behind(&mut commit, hot, permit).await?,
            course => {
                self.course = course;
                let committed = self.inner.commit(&mut commit).await;
                // Whether the record was written is not known: the next start decides by its intent, so the chunks stay.
                self.committed = matches!(&committed, Err(error) if error.code() == Code::Backend);
                let created = committed?;
                if hot_takes {
                    self.inner.hot.insert(&self.write_id, hot);
                }
                created
            }
        };
        self.committed = true;
        self.inner.counters.puts.fetch_add(1, Ordering::Relaxed);
        self.inner.counters.put_bytes.fetch_add(self.spec.nbytes(), Ordering::Relaxed);
        Ok(PutAnswer { key: self.key.to_string(), version: commit.record.version, created })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Some(Course::Chunks(sink)) = &self.course {
            // What the task that stores chunks still writes is swept after it; its memory is in use until then.
            let (sink, storing, write_id) = (sink.clone(), self.storing.take(), self.write_id.clone());
            let working = std::mem::take(&mut self.working);
            self.inner.seams.spawner.spawn(Box::pin(async move {
                if let Some(storing) = storing {
                    drop(storing.await);
                }
                drop(working);
                if let Err(error) = upkeep::sweep(&sink.inner, &sink.home, &write_id).await {
                    tracing::warn!(%error, write_id, "chunks of an abandoned put stay until the next start");
                }
            }));
        }
    }
}

/// Memory of a put by chunks: one slab fills while another is stored; each chunk in the making is cut and encoded.
fn working_bytes(grid: &Grid) -> u64 {
    2 * grid.slab_bytes() + 2 * WIDTH as u64 * grid.region_bytes(&grid.cell(0))
}

/// Counts a writer out.
struct Leave(Arc<Inner>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The level of a put: what was asked, if the home tier keeps it. What was not asked is the configured level, or the best the
/// home tier keeps.
fn level(inner: &Inner, home: &Tier, asked: Option<Consistency>) -> Result<Consistency, StoreError> {
    let keeps = home.keeps().min(inner.record_tier()?.keeps());
    let kept = |level: &Consistency| needs(*level) <= keeps;
    match asked {
        Some(level) if !kept(&level) => {
            Err(StoreError::Unsupported(format!("backend {} cannot keep {level}: what it acknowledges survives {keeps:?}", home.name)))
        }
        Some(level) => Ok(level),
        None => {
            let levels = [inner.options.consistency, Consistency::Eventual, Consistency::Weak];
            Ok(levels.into_iter().find(kept).unwrap_or(Consistency::Weak))
        }
    }
}

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
    pub grid: Grid,
    pub spec: TensorSpec,
    pub chain: Chain,
    pub durability: Durability,
}

impl ChunkSink {
    /// Notes in the catalog that chunks of `write_id` are about to be written to `home`.
    pub fn begin(
        inner: &Arc<Inner>,
        home: Arc<Tier>,
        key: &Key,
        write_id: &str,
        spec: &TensorSpec,
        chain: Chain,
        durability: Durability,
    ) -> Result<Arc<ChunkSink>, StoreError> {
        inner.catalog.begin(write_id, &Intent { key: key.to_string(), backend: home.name.clone() })?;
        let grid = Grid::new(spec, &chunk_shape(spec))?;
        Ok(Arc::new(ChunkSink { inner: inner.clone(), home, write_id: write_id.into(), grid, spec: spec.clone(), chain, durability }))
    }

    /// Stores a whole tensor that lies in memory slab by slab.
    pub async fn store_all(self: &Arc<Self>, slabs: &[Bytes]) -> Result<PartCopy, StoreError> {
        let mut stored = Vec::new();
        for (slab, bytes) in self.grid.slabs().zip(slabs) {
            let chunks = self.store(&slab, bytes.clone()).await?;
            stored.extend(self.grid.touched(&slab.region).into_iter().zip(chunks));
        }
        Ok(self.copy(&stored))
    }

    /// Stores the chunks of a slab; their entries are in the order of [`Grid::touched`].
    pub async fn store(self: &Arc<Self>, slab: &Slab, bytes: Bytes) -> Result<Vec<Chunk>, StoreError> {
        self.home.headroom().await?;
        let cells = self.grid.touched(&slab.region);
        let stored = futures::stream::iter(cells).map(|cell| self.clone().store_cell(cell, slab.clone(), bytes.clone()));
        // All are awaited, even after one has failed: a backend may finish a put whose caller has gone.
        let stored: Vec<_> = stored.buffered(WIDTH).collect().await;
        stored.into_iter().collect()
    }

    async fn store_cell(self: Arc<Self>, cell: u64, slab: Slab, bytes: Bytes) -> Result<Chunk, StoreError> {
        let sink = self.clone();
        let encoded = self.inner.seams.work(move || sink.encode(cell, &slab, &bytes)).await;
        let (stored, checksum, chain) = encoded.ok_or_else(|| StoreError::Internal(format!("codec {} failed", self.chain)))??;
        let chunk = Chunk { stored_bytes: stored.len() as u64, checksum, chain };
        self.put(&chunk_name(&self.write_id, 0, cell), stored).await?;
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
        let context = ChunkContext { dtype: self.spec.dtype(), shape: &shape, origin: &origin };
        Ok(match self.chain.encode(&raw, context)? {
            Encoded::Raw => (raw.clone(), xxh3_64(&raw), 0),
            Encoded::Bytes(encoded) => {
                let checksum = xxh3_64(&encoded);
                (Bytes::from(encoded), checksum, 1)
            }
        })
    }

    /// Stores one chunk; where there is no room, garbage is collected first.
    pub async fn put(&self, name: &str, value: Bytes) -> Result<(), StoreError> {
        let options = PutOptions { mode: PutMode::Overwrite, durability: self.durability, expires_in: None };
        let mut result = self.home.backend.put(name, value.clone().into(), options).await;
        if matches!(result, Err(BackendError::OutOfSpace(_))) && upkeep::collect_garbage(&self.inner).await? > 0 {
            result = self.home.backend.put(name, value.into(), options).await;
        }
        result.map(drop).map_err(|e| self.home.failed(e))
    }

    /// The copy that the stored slabs make.
    fn copy(&self, stored: &[(u64, Chunk)]) -> PartCopy {
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

/// A chunk's place, as a codec sees it.
pub(crate) fn origin_and_shape(region: &[std::ops::Range<u64>]) -> (Vec<u64>, Vec<u64>) {
    region.iter().map(|r| (r.start, r.end - r.start)).unzip()
}
