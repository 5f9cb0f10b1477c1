//! Tensors in chunks that went through a codec: cutting and encoding on the way out, decoding and assembling on the way in.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow_schema::Schema;
use sira_codec::{Calibration, Chain, ChunkContext, CodecError, Encoded, KvFacts, TensorContext};
use sira_tensor::TensorSpec;
use sira_tensor::grid::{Grid, Region, runs};
use sira_tensor::kv::KvSpec;
use sira_wire::encoded::{ChunkHead, ChunkSegment, Encoding, GetChunks, Layout};
use sira_wire::many::DATA;
use sira_wire::{Code, WireError, metadata};
use xxhash_rust::xxh3::xxh3_64;

use crate::ClientError;
use crate::get_into::IncomingMany;

/// Tensors of at most this many bytes lie inside their record at the server, raw, and are sent so.
const SMALL: u64 = 32 << 10;

/// Bytes that are set aside for a chunk before any of it has come.
const EARLY: u64 = 1 << 20;

/// Processors that code chunks at once, at most: beyond these, memory is what they wait for.
const MOST_WORKERS: usize = 8;

/// How many chunks of one tensor are coded at once.
pub(crate) fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS)
}

/// What codecs are told of a tensor, and how it is cut.
#[derive(Debug)]
struct Cut {
    spec: TensorSpec,
    grid: Grid,
    kv: Option<KvFacts>,
    calibration: Option<Arc<Calibration>>,
}

impl Cut {
    /// Runs `code` with the context of one chunk, and the bytes it has when it is raw.
    fn with_context<T>(&self, cell: u64, code: impl FnOnce(ChunkContext<'_>, usize) -> T) -> T {
        let region = self.grid.cell(cell);
        let (origin, shape): (Vec<u64>, Vec<u64>) = region.iter().map(|range| (range.start, range.end - range.start)).unzip();
        let (kv, calibration) = (self.kv.as_ref(), self.calibration.as_deref());
        let tensor = TensorContext { shape: self.spec.shape(), axes: self.spec.axes(), kv, calibration };
        let context = ChunkContext { dtype: self.spec.dtype(), shape: &shape, origin: &origin, tensor };
        code(context, self.grid.region_bytes(&region) as usize)
    }
}

/// The chain of this text.
pub(crate) fn chain(text: &str) -> Result<Chain, ClientError> {
    Ok(text.parse().map_err(|error: CodecError| WireError::new(Code::UnknownCodec, error.to_string()))?)
}

/// Stages that this client can decode.
pub(crate) fn stages() -> Vec<String> {
    sira_codec::stages().map(|stage| stage.name.to_owned()).collect()
}

/// A tensor that is cut and encoded here.
#[derive(Debug)]
pub(crate) struct Outgoing {
    cut: Cut,
    chain: Chain,
}

/// Chains of a put: raw chunks name the first, encoded ones the second.
const RAW: u32 = 0;
const CODED: u32 = 1;

impl Outgoing {
    /// How `spec` is sent through the chain; `None` where it goes raw. `kv_spec`: the one that the tensor follows. `calibration`: the one that the chain
    /// names, for those that name one.
    pub fn plan(
        spec: &TensorSpec,
        chain: &Chain,
        kv_spec: Option<&KvSpec>,
        calibration: Option<Arc<Calibration>>,
    ) -> Result<Option<Outgoing>, ClientError> {
        if chain.is_none() || spec.nbytes() <= SMALL {
            return Ok(None);
        }
        let mut described = [(DATA.to_owned(), spec.clone())];
        if let Some(kv_spec) = kv_spec {
            kv_spec.admit(&mut described)?; // gives its axes names, as the server does
        }
        let [(_, spec)] = described;
        let grid = Grid::new(&spec, &chain.chunk_shape(&spec))?;
        let kv = KvFacts::of(DATA, &spec, kv_spec);
        Ok(Some(Outgoing { cut: Cut { spec, grid, kv, calibration }, chain: chain.clone() }))
    }

    /// What the put says of its chunks.
    pub fn encoding(&self) -> Encoding {
        Encoding { chunk_shape: self.cut.grid.chunk().to_vec(), chains: vec![Chain::NONE.to_owned(), self.chain.to_string()] }
    }

    /// How many chunks there are.
    pub fn cells(&self) -> u64 {
        self.cut.grid.cells()
    }

    /// One chunk of the tensor whose bytes are `data`: what it is, and its bytes.
    pub fn encode<'a>(&self, data: &'a [u8], cell: u64) -> Result<(ChunkHead, Cow<'a, [u8]>), ClientError> {
        let grid = &self.cut.grid;
        let region = grid.cell(cell);
        let (run, mut begins) = runs(grid.shape(), grid.item(), &region);
        let raw = match (run == grid.region_bytes(&region), begins.next()) {
            (true, Some(begin)) => Cow::Borrowed(&data[begin as usize..(begin + run) as usize]),
            _ => {
                let whole: Region = grid.shape().iter().map(|&extent| 0..extent).collect();
                let mut raw = vec![0; grid.region_bytes(&region) as usize];
                grid.copy(&region, data, &whole, &mut raw, &region);
                Cow::Owned(raw)
            }
        };
        let encoded = self.cut.with_context(cell, |context, _| self.chain.encode(&raw, context));
        let (chain, bytes) = match encoded.map_err(|error| WireError::new(Code::UnknownCodec, format!("chunk {cell}: {error}")))? {
            Encoded::Raw => (RAW, raw),
            Encoded::Bytes(bytes) => (CODED, Cow::Owned(bytes)),
        };
        Ok((ChunkHead { chain, bytes: bytes.len() as u64, checksum: Some(xxh3_64(&bytes)) }, bytes))
    }
}

/// A tensor, or a box of one, that comes in chunks.
#[derive(Debug)]
pub(crate) struct Chunked {
    cut: Cut,
    /// The box that was asked for.
    wanted: Region,
    chains: Vec<Chain>,
    /// Whether chunks lie one after another in the box.
    tiled: bool,
}

/// A chunk that has come whole.
#[derive(Debug)]
pub(crate) struct Chunk {
    cell: u64,
    head: ChunkHead,
    bytes: Vec<u8>,
}

impl Chunk {
    /// Bytes that came of it.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    fn corrupt(&self, reason: &str) -> ClientError {
        WireError::new(Code::Corrupt, format!("chunk {}: {reason}", self.cell)).into()
    }
}

/// A chunk, decoded: the bytes of a box.
#[derive(Debug)]
pub(crate) struct Decoded {
    region: Region,
    raw: Vec<u8>,
}

/// What the schema of an answer says of its chunks; `None` where the tensor comes as it is.
pub(crate) fn layout(schema: &Schema) -> Result<Option<Layout>, ClientError> {
    schema.metadata().get(metadata::ENCODED).map(|text| Layout::parse(text).map_err(ClientError::protocol)).transpose()
}

/// The calibration that the chains of an answer name, where one does.
pub(crate) fn calibration(layout: &Layout) -> Result<Option<String>, ClientError> {
    for text in &layout.chains {
        if let Some(hash) = chain(text)?.calibration() {
            return Ok(Some(hash.to_owned()));
        }
    }
    Ok(None)
}

impl Chunked {
    /// What is to be known to decode the chunks of an answer. `spec`: of the box that was asked for.
    pub fn read(schema: &Schema, spec: &TensorSpec, layout: Layout, calibration: Option<Arc<Calibration>>) -> Result<Chunked, ClientError> {
        let attributes = schema.metadata().iter().filter_map(|(name, text)| Some((name.strip_prefix(metadata::ATTRIBUTE_PREFIX)?, text)));
        let attributes: BTreeMap<String, String> = attributes.map(|(name, text)| (name.to_owned(), text.clone())).collect();
        let whole = TensorSpec::new(spec.dtype(), layout.shape.clone())?.with_axes(spec.axes().to_vec())?.with_attributes(attributes)?;
        let (grid, wanted) = layout.grid(&whole)?;
        let extents: Vec<u64> = wanted.iter().map(|range| range.end - range.start).collect();
        let fits = if layout.slice.is_empty() { spec.shape() == whole.shape() } else { spec.shape() == extents };
        if !fits {
            return Err(ClientError::protocol(format!("chunks of {extents:?} for a tensor of shape {:?}", spec.shape())));
        }
        let chains = layout.chains.iter().map(|text| chain(text)).collect::<Result<_, _>>()?;
        // Its fields are checked as a server checks them: codecs rely on that.
        let kv_spec = layout.kv_spec.map(|kv_spec| KvSpec::from_json(kv_spec.canonical().as_bytes())).transpose()?;
        let kv = KvFacts::of(&layout.part, &whole, kv_spec.as_ref());
        let whole_box: Region = grid.shape().iter().map(|&extent| 0..extent).collect();
        let alone = grid.slabs().next().is_some_and(|slab| grid.touched(&slab.region).len() == 1);
        let tiled = wanted == whole_box && alone;
        Ok(Chunked { cut: Cut { spec: whole, grid, kv, calibration }, wanted, chains, tiled })
    }

    /// Whether chunks lie one after another in the box.
    pub fn is_tiled(&self) -> bool {
        self.tiled
    }

    /// Bytes of the whole tensor.
    pub fn nbytes(&self) -> u64 {
        self.cut.spec.nbytes()
    }

    /// The chunks that come, in order.
    pub fn cells(&self) -> Vec<u64> {
        self.cut.grid.touched(&self.wanted)
    }

    /// Refuses a chunk that cannot be one of these, before memory is taken for it.
    fn check(&self, cell: u64, head: ChunkHead) -> Result<(), ClientError> {
        let raw = self.cut.grid.region_bytes(&self.cut.grid.cell(cell));
        let chain = self.chains.get(head.chain as usize);
        let chain = chain.ok_or_else(|| ClientError::protocol(format!("chunk {cell}: chain {} of {}", head.chain, self.chains.len())))?;
        match head.bytes {
            bytes if bytes > raw || bytes == 0 || (chain.is_none() && bytes != raw) => {
                Err(ClientError::protocol(format!("chunk {cell} of chain {chain}: {bytes} bytes, where {raw} are raw")))
            }
            _ => Ok(()),
        }
    }

    /// Decodes a chunk, its checksum verified before.
    pub fn decode(&self, chunk: Chunk) -> Result<Decoded, ClientError> {
        let region = self.cut.grid.cell(chunk.cell);
        let Some(chain) = self.chain_of(&chunk)? else { return Ok(Decoded { region, raw: chunk.bytes }) };
        let raw = self.cut.with_context(chunk.cell, |context, raw_len| chain.decode(&chunk.bytes, raw_len, context));
        let raw = raw.map_err(|error| chunk.corrupt(&format!("it does not decode with {chain}: {error}")))?;
        Ok(Decoded { region, raw })
    }

    /// The same to where it belongs: `out` is what [`Chunked::place_of`] gave for it.
    pub fn decode_into(&self, chunk: &Chunk, out: &mut [u8]) -> Result<(), ClientError> {
        let Some(chain) = self.chain_of(chunk)? else {
            out.copy_from_slice(&chunk.bytes);
            return Ok(());
        };
        let decoded = self.cut.with_context(chunk.cell, |context, _| chain.decode_into(&chunk.bytes, out, context));
        decoded.map_err(|error| chunk.corrupt(&format!("it does not decode with {chain}: {error}")))
    }

    /// The chain that a chunk went through, if it is not raw; its checksum is verified.
    fn chain_of(&self, chunk: &Chunk) -> Result<Option<&Chain>, ClientError> {
        if chunk.head.checksum.is_some_and(|checksum| checksum != xxh3_64(&chunk.bytes)) {
            return Err(chunk.corrupt("it came with another checksum than it was sent with"));
        }
        Ok(self.chains.get(chunk.head.chain as usize).filter(|chain| !chain.is_none()))
    }

    /// The part of the box that is this chunk's alone, where chunks lie one after another: `rest` is what the chunks before it left, and becomes what it
    /// leaves.
    pub fn place_of<'a>(&self, chunk: &Chunk, rest: &mut &'a mut [u8]) -> Option<&'a mut [u8]> {
        let raw = usize::try_from(self.cut.grid.region_bytes(&self.cut.grid.cell(chunk.cell))).ok();
        let raw = raw.filter(|raw| self.tiled && *raw <= rest.len())?;
        let (place, behind) = std::mem::take(rest).split_at_mut(raw);
        *rest = behind;
        Some(place)
    }

    /// Puts the bytes of a chunk where they belong in the box, `out`.
    pub fn place(&self, decoded: &Decoded, out: &mut [u8]) {
        let common: Region = decoded.region.iter().zip(&self.wanted).map(|(a, b)| a.start.max(b.start)..a.end.min(b.end)).collect();
        self.cut.grid.copy(&common, &decoded.raw, &decoded.region, out, &self.wanted);
    }
}

/// Segments of a stream, put together to chunks. All chunks must come, once and in their order.
pub(crate) struct Gathering {
    expected: std::vec::IntoIter<u64>,
    current: Option<Chunk>,
    /// Of the message that is being read.
    segments: VecDeque<ChunkSegment>,
    rows: usize,
}

impl Gathering {
    pub fn new(chunked: &Chunked) -> Gathering {
        Gathering { expected: chunked.cells().into_iter(), current: None, segments: VecDeque::new(), rows: 0 }
    }

    /// A message begins: its metadata, and how many bytes it has.
    pub fn message(&mut self, metadata: &[u8], rows: usize) -> Result<(), ClientError> {
        self.segments = GetChunks::parse(metadata).map_err(ClientError::protocol)?.segments.into();
        self.rows = rows;
        Ok(())
    }

    /// The next segment of the message: where its bytes lie, and the buffer to append them to. `None` at the end of the message.
    fn segment(&mut self, chunked: &Chunked) -> Result<Option<(u64, usize)>, ClientError> {
        let Some(ChunkSegment { cell, offset, bytes, chunk }) = self.segments.pop_front() else { return Ok(None) };
        let wrong = |what: &str| ClientError::protocol(format!("chunk {cell}: {what}"));
        match (&self.current, chunk) {
            (None, Some(head)) => {
                if self.expected.next() != Some(cell) {
                    return Err(wrong("it comes where another is due"));
                }
                chunked.check(cell, head)?;
                let room = head.bytes.min(EARLY) as usize;
                self.current = Some(Chunk { cell, head, bytes: Vec::with_capacity(room) });
            }
            (Some(current), None) if current.cell == cell => {}
            _ => return Err(wrong("it begins or goes on within another")),
        }
        let missing = self.current.as_ref().map_or(0, |chunk| chunk.head.bytes - chunk.bytes.len() as u64);
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.rows as u64);
        match inside && bytes <= missing {
            true => Ok(Some((offset, bytes as usize))),
            false => Err(wrong("it has more bytes than it should, or its message than it has")),
        }
    }

    /// The chunk, once it is whole.
    fn whole(&mut self) -> Option<Chunk> {
        self.current.take_if(|chunk| chunk.bytes.len() as u64 == chunk.head.bytes)
    }

    /// The stream has ended, which it may when all chunks have come.
    fn finish(&self) -> Result<(), ClientError> {
        match (self.expected.len(), &self.current) {
            (0, None) => Ok(()),
            (missing, current) => {
                let missing = missing + usize::from(current.is_some());
                Err(WireError::new(Code::Incomplete, format!("the stream ended {missing} chunks early")).into())
            }
        }
    }
}

/// Chunks as they come over a connection.
pub(crate) struct Arriving {
    incoming: IncomingMany,
    gathering: Gathering,
}

impl Arriving {
    pub fn new(incoming: IncomingMany, chunked: &Chunked) -> Arriving {
        Arriving { incoming, gathering: Gathering::new(chunked) }
    }

    /// How many chunks are still to come.
    pub fn missing(&self) -> usize {
        self.gathering.expected.len()
    }

    /// The next chunk; `None` when all have come and the server has confirmed it.
    pub async fn next(&mut self, chunked: &Chunked) -> Result<Option<Chunk>, ClientError> {
        loop {
            while let Some((offset, bytes)) = self.gathering.segment(chunked)? {
                self.incoming.pass(offset).await?;
                if let Some(chunk) = &mut self.gathering.current {
                    let filled = chunk.bytes.len();
                    // Within what the tensor has raw, and no more than the server is about to send.
                    chunk.bytes.resize(filled + bytes, 0);
                    self.incoming.read(&mut chunk.bytes[filled..]).await?;
                }
                if let Some(chunk) = self.gathering.whole() {
                    return Ok(Some(chunk));
                }
            }
            match self.incoming.next().await? {
                Some(message) if message.rows == 0 && message.metadata.is_empty() => {}
                Some(message) => self.gathering.message(&message.metadata, message.rows)?,
                None => return self.gathering.finish().map(|()| None),
            }
        }
    }

    /// Ends a get of which all has come, so that its connection can serve another.
    pub fn finish(self) {
        self.incoming.messages.finish();
    }
}

/// Reads the messages of an answer in chunks whose bytes are all there; for tests.
pub(crate) fn read(schema: &Schema, spec: &TensorSpec, messages: &[(&[u8], &[u8])]) -> Result<Option<Vec<u8>>, ClientError> {
    let Some(layout) = layout(schema)? else { return Ok(None) };
    let chunked = Chunked::read(schema, spec, layout, None)?;
    let mut gathering = Gathering::new(&chunked);
    let mut out = vec![0; usize::try_from(spec.nbytes()).unwrap_or(0)];
    for (metadata, body) in messages {
        gathering.message(metadata, body.len())?;
        while let Some((offset, bytes)) = gathering.segment(&chunked)? {
            if let Some(chunk) = &mut gathering.current {
                chunk.bytes.extend_from_slice(&body[offset as usize..][..bytes]);
            }
            if let Some(chunk) = gathering.whole() {
                chunked.place(&chunked.decode(chunk)?, &mut out);
            }
        }
    }
    gathering.finish().map(|()| Some(out))
}

#[cfg(test)]
mod tests;
