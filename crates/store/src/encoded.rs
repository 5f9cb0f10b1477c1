//! Chunks of a part as they are stored, for whoever decodes them itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use sira_tensor::{TensorSpec, region};
use sira_wire::encoded::{ChunkHead, Layout};

use crate::StoreError;
use crate::namespaces::count;
use crate::read::{ChunkSource, Hold, overlap};
use crate::sink::origin_and_shape;
use crate::snapshot::{Place, Snapshot};

/// Bytes of a message, two of which are on their way.
const MESSAGE: u64 = 4 << 20;

/// A chunk as it is stored, its checksum verified.
#[derive(Clone, Debug)]
pub struct EncodedChunk {
    /// Its position in the row-major order of the grid.
    pub cell: u64,
    /// What it is.
    pub head: ChunkHead,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A get of chunks in progress, in the order of the grid. What it reads stays as it was when it began.
pub struct EncodedReader {
    spec: TensorSpec,
    layout: Layout,
    chunks: BoxStream<'static, Result<(EncodedChunk, u64), StoreError>>,
    place: Place,
    hold: Arc<Hold>,
}

impl Snapshot {
    /// As [`Snapshot::read`], but the chunks that the box touches as they are stored, where a client that knows these `stages` of codecs can decode them
    /// and they are fewer bytes than the box; otherwise `None`, and nothing is counted.
    pub async fn read_encoded(
        &self,
        index: usize,
        slice: &BTreeMap<String, [u64; 2]>,
        stages: &[String],
    ) -> Result<Option<EncodedReader>, StoreError> {
        let place = self.place(index)?;
        let (inner, record) = (place.inner.clone(), place.record.clone());
        let part = place.part();
        let wanted = region(&part.spec, slice.iter().map(|(name, range)| (name.as_str(), *range)))?;
        if part.copies.is_empty() {
            return Ok(None); // inside its record, or only in memory so far
        }
        let source = ChunkSource::first(&inner, &record, index)?;
        if !source.chains().iter().flat_map(|chain| chain.stages()).all(|stage| stages.iter().any(|known| known == stage)) {
            return Ok(None);
        }
        let (_, extents) = origin_and_shape(&wanted);
        let whole = extents == part.spec.shape();
        let spec = TensorSpec::new(part.spec.dtype(), extents)?
            .with_axes(part.spec.axes().to_vec())?
            .with_attributes(part.spec.attributes().clone())?;
        let slice = if whole { Vec::new() } else { wanted.iter().map(|range| [range.start, range.end]).collect() };
        // A packed part is cut as flat bytes, and always read whole.
        let wanted = if whole { source.grid.shape().iter().map(|&extent| 0..extent).collect() } else { wanted };
        let cells = source.grid.touched(&wanted);
        let sizes = cells.iter().map(|&cell| source.chunk(cell).stored_bytes);
        let (stored, largest) = (sizes.clone().sum::<u64>(), sizes.max().unwrap_or(0));
        if stored >= spec.nbytes() {
            return Ok(None);
        }
        let kv_spec = match &record.kv_spec {
            Some(hash) => Some((*inner.kv_specs.get(&inner, hash).await?).clone()),
            None => None,
        };
        let layout = Layout {
            version: record.version,
            part: part.name.clone(),
            shape: part.spec.shape().to_vec(),
            chunk_shape: source.grid.chunk().to_vec(),
            chains: source.chains().iter().map(ToString::to_string).collect(),
            slice,
            kv_spec,
        };
        let width = inner.coders.chunks_at_once();
        let working = inner.reserve(stored.min(2 * MESSAGE + (width as u64 + 2) * largest)).await?;
        inner.looked_up(self.home(index), false);
        inner.counters.gets.fetch_add(1, Ordering::Relaxed);
        if let Some(namespace) = &place.namespace {
            count(&namespace.counters.gets, 1);
            if let Some(home) = self.home(index) {
                inner.read_below(namespace, &record, home);
            }
        }
        let source = Arc::new(source);
        let chunks = futures::stream::iter(cells).map(move |cell| {
            let source = source.clone();
            let raw = source.grid.region_bytes(&overlap(&source.grid.cell(cell), &wanted));
            async move {
                let (bytes, chunk) = (source.fetch(cell).await?, source.chunk(cell));
                let head = ChunkHead { chain: chunk.chain, bytes: chunk.stored_bytes, checksum: Some(chunk.checksum) };
                Ok((EncodedChunk { cell, head, bytes }, raw))
            }
        });
        let (chunks, hold) = (chunks.buffered(width).boxed(), Arc::new(Hold::new(self.pin(), working)));
        Ok(Some(EncodedReader { spec, layout, chunks, place, hold }))
    }
}

impl EncodedReader {
    /// What is being read: the dtype of the tensor, and the shape of the box.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// How it is cut and encoded.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the chunks are reserved by, for as long as they are on their way.
    pub fn hold(&self) -> Arc<Hold> {
        self.hold.clone()
    }

    /// The next chunk; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<EncodedChunk>, StoreError> {
        let next = self.chunks.try_next().await.map_err(|error| self.place.damaged(error))?;
        let Some((chunk, raw)) = next else { return Ok(None) };
        count(&self.place.inner.counters.get_bytes, raw);
        if let Some(namespace) = &self.place.namespace {
            count(&namespace.counters.get_bytes, raw);
        }
        Ok(Some(chunk))
    }
}
