//! A get in progress: the bytes of a box, row-major, piece by piece, from memory or chunk by chunk from its home.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use sira_backend::{BackendError, Payload};
use sira_codec::Chain;
use sira_tensor::TensorSpec;
use sira_tensor::grid::{Grid, Region, runs};
use tokio::sync::OnceCell;
use xxhash_rust::xxh3::xxh3_64;

use crate::StoreError;
use crate::client::{Inner, Tier};
use crate::coding::{Awaited, PartFacts, Way};
use crate::fitness::Standing;
use crate::flights::{Departure, Flight, Joined};
use crate::hot::{Damaged, HotPart, Place as BlockPlace};
use crate::ledger::Reservation;
use crate::namespaces::count;
use crate::part::{across, coding_bytes};
use crate::pins::Pin;
use crate::record::{Chunk, PartCopy, TensorRecord, chunk_name};
use crate::sink::origin_and_shape;
use crate::snapshot::Place;
use crate::write::INLINE_BYTES;

/// Bytes of a piece gathered from memory for a box that is not whole.
const PIECE: u64 = 2 << 20;

/// Parts of at most this many bytes may be copied into a message beside others: a read of one sets memory aside for that. More bytes are
/// faster sent from where they lie.
pub const SHARED_BYTES: u64 = 4 << 10;

/// Slabs in the making at once, at least: one goes out while the next one comes.
const AHEAD: usize = 2;

/// A get in progress. What it reads stays as it was when it began.
pub struct Reader {
    spec: TensorSpec,
    version: u64,
    pieces: BoxStream<'static, Result<Bytes, StoreError>>,
    missing: u64,
    place: Place,
    /// Pieces to keep in the hot tier when all have come.
    keep: Option<(Payload, Reservation)>,
    /// The part, where all of it is read from memory.
    hot: Option<Arc<HotPart>>,
    hold: Arc<Hold>,
}

/// What the bytes of a read are reserved by. Whoever keeps the bytes beyond the [`Reader`] keeps this with them.
pub struct Hold {
    _part: Option<Arc<HotPart>>,
    _flight: Option<Arc<Flight>>,
    _pin: Arc<Pin>,
    _working: Reservation,
}

impl Hold {
    /// What holds bytes of a pinned record in reserved memory.
    pub(crate) fn new(pin: Arc<Pin>, working: Reservation) -> Hold {
        Hold { _part: None, _flight: None, _pin: pin, _working: working }
    }
}

impl Reader {
    /// `memory`: the part, where it lies in memory. `keep`: whether memory may keep what is read.
    pub(crate) async fn open(
        place: Place,
        pin: Arc<Pin>,
        memory: Option<Arc<HotPart>>,
        wanted: Region,
        keep: bool,
    ) -> Result<Reader, StoreError> {
        let (inner, record) = (place.inner.clone(), place.record.clone());
        let part = &record.parts[place.index];
        let (_, extents) = origin_and_shape(&wanted);
        let whole = extents == part.spec.shape();
        let spec = TensorSpec::new(part.spec.dtype(), extents)?
            .with_axes(part.spec.axes().to_vec())?
            .with_attributes(part.spec.attributes().clone())?;
        // What does not go out as it lies in memory is gathered first, and two pieces are under way; a small part may share a message.
        let gathered = 2 * spec.nbytes().min(4 << 20);
        let is_small = spec.nbytes() <= SHARED_BYTES;
        inner.looked_up(part.copies.first().map(|copy| copy.backend.as_str()), memory.is_some());
        if let Some(namespace) = &place.namespace {
            count(&namespace.counters.gets, 1);
            count(&namespace.counters.hits, u64::from(memory.is_some()));
            if let Some(home) = part.copies.first().filter(|_| memory.is_none()) {
                inner.read_below(namespace, &record, &home.backend);
            }
        }
        let (pieces, working, keep, hot) = if let Some(hot) = memory {
            let working = inner.reserve(if whole && !is_small { 0 } else { gathered }).await?;
            (from_memory(&place, hot.clone(), wanted, whole)?, working, None, Some(hot))
        } else if part.inline.is_some() {
            let working = inner.reserve(gathered + INLINE_BYTES).await?;
            let hot = inner.flights.inline(&place, load_inline(&place)).await?;
            (from_memory(&place, hot.clone(), wanted, whole)?, working, None, Some(hot))
        } else {
            let source = ChunkSource::first(&inner, &place.record, place.index)?;
            let keep = keep && whole && place.hot.takes(part.spec.nbytes());
            if let Some(flight) = if keep && !is_small { inner.flights.find(&place) } else { None } {
                return Ok(Reader::follow(place, pin, flight, spec));
            }
            // What decoding needs is there, or this get fails before its first byte.
            source.facts().await?;
            let needs = gathered.saturating_add(source.working_bytes(spec.nbytes()));
            source.check_memory(needs)?;
            // A packed part is cut as flat bytes, and always read whole.
            let wanted = if whole { source.all() } else { wanted };
            // Where there is memory for it at once, it is fetched into it for all who ask; otherwise this get has its turn.
            let room = if keep && !is_small { Room::of(&place, needs) } else { None };
            match room {
                Some(Room { kept, working }) => {
                    let departure = Departure { pieces: source.stream(wanted), kept, working, pin: pin.clone() };
                    match inner.flights.join(&place, departure) {
                        Joined::Flight(flight) => return Ok(Reader::follow(place, pin, flight, spec)),
                        Joined::Landed(hot) => {
                            let whole = spec.shape().iter().map(|&extent| 0..extent).collect();
                            (from_memory(&place, hot.clone(), whole, true)?, Reservation::default(), None, Some(hot))
                        }
                    }
                }
                None => {
                    let working = inner.reserve(needs).await?;
                    (source.stream(wanted), working, keep.then(Default::default), None)
                }
            }
        };
        count(&inner.counters.gets, 1);
        let hold = Arc::new(Hold { _part: hot.clone(), _flight: None, _pin: pin, _working: working });
        let hot = hot.filter(|_| whole);
        Ok(Reader { missing: spec.nbytes(), spec, version: record.version, pieces, place, keep, hot, hold })
    }

    /// A read of a part that is on its way into memory.
    fn follow(place: Place, pin: Arc<Pin>, flight: Arc<Flight>, spec: TensorSpec) -> Reader {
        count(&place.inner.counters.gets, 1);
        let hold = Arc::new(Hold { _part: None, _flight: Some(flight.clone()), _pin: pin, _working: Reservation::default() });
        let (missing, version) = (spec.nbytes(), place.record.version);
        Reader { missing, spec, version, pieces: flight.pieces(), place, keep: None, hot: None, hold }
    }

    /// What the bytes are reserved by, for as long as they are on their way.
    pub fn hold(&self) -> Arc<Hold> {
        self.hold.clone()
    }

    /// What is said of the tensor before its bytes: `make` makes it, once for a part that is read whole from memory.
    pub fn announced(&self, make: impl FnOnce() -> Bytes) -> Bytes {
        match &self.hot {
            Some(hot) => hot.announced(make),
            None => make(),
        }
    }

    /// What is being read: the dtype of the tensor, and the shape of the box.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The version that is being read.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The next bytes, row-major; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Some(piece) = self.pieces.try_next().await.map_err(|error| self.place.damaged(error))? else {
            return match self.missing {
                0 => Ok(None),
                missing => Err(StoreError::Internal(format!("a read ended {missing} bytes early"))),
            };
        };
        self.missing = self
            .missing
            .checked_sub(piece.len() as u64)
            .ok_or_else(|| StoreError::Internal("a read gave more bytes than its box has".into()))?;
        count(&self.place.inner.counters.get_bytes, piece.len() as u64);
        if let Some(namespace) = &self.place.namespace {
            count(&namespace.counters.get_bytes, piece.len() as u64);
        }
        if let Some((payload, reservation)) = &mut self.keep {
            match self.place.hot.admit(piece.len() as u64) {
                Some(more) => {
                    reservation.absorb(more);
                    payload.push(piece.clone());
                }
                None => self.keep = None,
            }
        }
        if self.missing == 0
            && let Some((payload, reservation)) = self.keep.take()
        {
            let part = self.place.counted(HotPart::new(payload, reservation), true);
            let Place { inner, hot, record, index, .. } = &self.place;
            inner.keep_hot(hot, &record.key, &record.write_id, *index, part);
        }
        Ok(Some(piece))
    }
}

/// Memory for a part that is fetched into it, and for fetching it.
struct Room {
    kept: Reservation,
    working: Reservation,
}

impl Room {
    /// What is free right now: a flight that waited for memory while it holds some would hold up those that have what it waits for.
    fn of(place: &Place, working: u64) -> Option<Room> {
        let kept = place.hot.admit(place.part().spec.nbytes())?;
        Some(Room { kept, working: place.inner.ledger.try_reserve(working)? })
    }
}

/// An inline part, from its record; memory keeps it, room permitting.
async fn load_inline(place: &Place) -> Result<Arc<HotPart>, StoreError> {
    let Place { inner, record, index, hot, .. } = place;
    let bytes = inline(inner, record, *index).await.map_err(|error| place.damaged(error))?;
    let reservation = hot.admit(place.part().spec.nbytes()).filter(|_| !bytes.is_empty());
    let keep = reservation.is_some();
    let part = place.counted(HotPart::new(bytes.into(), reservation.unwrap_or_default()), keep);
    if keep {
        inner.keep_hot(hot, &record.key, &record.write_id, *index, part.clone());
    }
    Ok(part)
}

/// The bytes of inline part number `index`: the catalog's copy of the record leaves them out.
pub(crate) async fn inline(inner: &Inner, record: &TensorRecord, index: usize) -> Result<Vec<u8>, StoreError> {
    if record.parts[index].spec.nbytes() == 0 {
        return Ok(Vec::new());
    }
    let (tier, name) = (inner.record_tier()?, record.name());
    let place = format!("of tensor {} in backend {}", record.key, tier.name);
    let bytes = tier.backend.get(&name, None).await.map_err(|error| match error {
        BackendError::Corrupt(reason) => StoreError::Corrupt(format!("record {place}: {reason}")),
        other => tier.failed(other),
    })?;
    let bytes = bytes.ok_or_else(|| StoreError::Corrupt(format!("record {place} is gone")))?;
    let stored = TensorRecord::from_bytes(&place, &bytes)?;
    let bytes = stored.parts.get(index).and_then(|part| part.inline.as_ref().filter(|bytes| bytes.len() as u64 == part.spec.nbytes()));
    match bytes {
        Some(bytes) if stored.write_id == record.write_id => Ok(bytes.clone()),
        _ => Err(StoreError::Corrupt(format!("record {place} is not the one in the catalog"))),
    }
}

/// The box `wanted` of a part that lies in memory. A block of memory that was not verified a moment ago is verified before a byte of it leaves; one
/// that is damaged is an error, and the part is forgotten, so that the next get reads it from its home.
fn from_memory(
    place: &Place,
    part: Arc<HotPart>,
    wanted: Region,
    whole: bool,
) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
    let spec = place.part().spec.clone();
    let (place, now) = (place.clone(), place.inner.now());
    let damaged = move |Damaged| {
        place.hot.remove(&place.record.write_id, place.index);
        place.inner.counters.corrupt.fetch_add(1, Ordering::Relaxed);
        StoreError::Corrupt(format!("tensor {} in memory: its checksum does not match", place.record.key))
    };
    if whole {
        let mut at = BlockPlace::default();
        let pieces = std::iter::from_fn(move || Some(part.block(&mut at, now)?.map_err(&damaged)));
        return Ok(futures::stream::iter(pieces).boxed());
    }
    let item = spec.dtype().item_size().unwrap_or(1) as u64;
    let (run, begins) = runs(spec.shape(), item, &wanted);
    let mut begins = begins.peekable();
    let mut cursor = Cursor { part, now, next: BlockPlace::default(), block: Bytes::new(), offset: 0 };
    let mut within = 0;
    let pieces = std::iter::from_fn(move || {
        let mut piece = Vec::new();
        while (piece.len() as u64) < PIECE {
            let Some(&begin) = begins.peek() else { break };
            let take = (run - within).min(PIECE - piece.len() as u64);
            if let Err(error) = cursor.append(&mut piece, begin + within, take as usize) {
                return Some(Err(damaged(error)));
            }
            within += take;
            if within == run {
                within = 0;
                begins.next();
            }
        }
        (!piece.is_empty()).then(|| Ok(Bytes::from(piece)))
    });
    Ok(futures::stream::iter(pieces).boxed())
}

/// A place in a part that only moves forward: a slice may have millions of runs.
struct Cursor {
    part: Arc<HotPart>,
    /// When the read began, in milliseconds.
    now: u64,
    /// The block after the present one.
    next: BlockPlace,
    /// The present block, and where it begins.
    block: Bytes,
    offset: u64,
}

impl Cursor {
    /// Appends `len` bytes from `begin` on, which is at or after every byte appended before.
    fn append(&mut self, target: &mut Vec<u8>, begin: u64, len: usize) -> Result<(), Damaged> {
        let (mut begin, mut left) = (begin, len);
        while left > 0 {
            let end = self.offset + self.block.len() as u64;
            if begin >= end {
                let Some(block) = self.part.block(&mut self.next, self.now) else { return Ok(()) };
                (self.block, self.offset) = (block?, end);
                continue;
            }
            let take = left.min((end - begin) as usize);
            let from = (begin - self.offset) as usize;
            target.extend_from_slice(&self.block[from..from + take]);
            begin += take as u64;
            left -= take;
        }
        Ok(())
    }
}

/// The chunks of a part. As they are stored ([`ChunkSource::fetch`]) they need nothing else; decoded, they need [`ChunkSource::facts`].
pub(crate) struct ChunkSource {
    inner: Arc<Inner>,
    record: Arc<TensorRecord>,
    /// Index of the part.
    part: usize,
    copy: PartCopy,
    /// Where its chunks lie, and the write that made them there: of the copy, then of others that have the same chunks.
    places: Vec<(Arc<Tier>, String)>,
    chains: Vec<Chain>,
    facts: OnceCell<Arc<PartFacts>>,
    pub grid: Grid,
}

impl ChunkSource {
    /// The first copy of part number `part`.
    pub fn first(inner: &Arc<Inner>, record: &Arc<TensorRecord>, part: usize) -> Result<ChunkSource, StoreError> {
        let copy = record.parts[part].copies.first().cloned();
        let copy = copy.ok_or_else(|| StoreError::Corrupt(format!("tensor {}: its record names no copy", record.key)))?;
        ChunkSource::new(inner, record, part, copy)
    }

    /// One copy; a chunk that it lacks, and what it has while its backend is out, comes from another copy that has the same.
    pub fn new(inner: &Arc<Inner>, record: &Arc<TensorRecord>, part: usize, copy: PartCopy) -> Result<ChunkSource, StoreError> {
        let same = |other: &&PartCopy| {
            other.backend != copy.backend
                && (&other.chunk_shape, &other.chains, &other.chunks) == (&copy.chunk_shape, &copy.chains, &copy.chunks)
        };
        let others = record.parts[part].copies.iter().filter(same);
        let others: Vec<_> = others.filter_map(|other| Some((inner.tier(&other.backend).ok()?, other.write_id.clone()))).collect();
        ChunkSource::of(inner, record, part, copy, others)
    }

    /// One copy and no other, to see whether it is good.
    pub fn only(inner: &Arc<Inner>, record: &Arc<TensorRecord>, part: usize, copy: PartCopy) -> Result<ChunkSource, StoreError> {
        ChunkSource::of(inner, record, part, copy, Vec::new())
    }

    fn of(
        inner: &Arc<Inner>,
        record: &Arc<TensorRecord>,
        part: usize,
        copy: PartCopy,
        others: Vec<(Arc<Tier>, String)>,
    ) -> Result<ChunkSource, StoreError> {
        let grid = Grid::new(&record.parts[part].spec, &copy.chunk_shape)?;
        if grid.cells() != copy.chunks.len() as u64 {
            let (has, wants) = (copy.chunks.len(), grid.cells());
            return Err(StoreError::Corrupt(format!("tensor {}: {has} chunks in its record, {wants} in its grid", record.key)));
        }
        let chains = copy.chains.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let mut places = others;
        match inner.tier(&copy.backend) {
            Ok(tier) => places.insert(0, (tier, copy.write_id.clone())),
            Err(error) if places.is_empty() => return Err(error),
            // Its backend is not configured any more, and another has the same.
            Err(_) => {}
        }
        Ok(ChunkSource { inner: inner.clone(), record: record.clone(), part, copy, places, chains, facts: OnceCell::new(), grid })
    }

    /// What its codecs are told of the part.
    pub async fn facts(&self) -> Result<Arc<PartFacts>, StoreError> {
        let part = &self.record.parts[self.part];
        let make = || PartFacts::of(&self.inner, &part.name, &part.spec, self.record.kv_spec.as_deref(), &self.chains);
        self.facts.get_or_try_init(make).await.cloned()
    }

    /// Chunks of a slab that are decoded at once, and slabs.
    fn at_once(&self) -> (usize, usize) {
        let slab = self.grid.slabs().next();
        let cells = slab.map_or(1, |slab| self.grid.touched(&slab.region).len()).max(1);
        let coders = &self.inner.coders;
        (coders.chunks_at_once().min(cells), coders.slabs_at_once(cells).max(AHEAD))
    }

    /// Memory to read `nbytes` of the part at once: slabs in the making, and the chunks that are fetched and decoded for them.
    pub fn working_bytes(&self, nbytes: u64) -> u64 {
        let (chunks, slabs) = self.at_once();
        let (slab, chunk) = (self.grid.slab_bytes().min(nbytes), self.grid.region_bytes(&self.grid.cell(0)));
        let slabs = if self.grid.slab_bytes() >= self.record.parts[self.part].spec.nbytes() { 1 } else { slabs as u64 };
        let coding = self.chains.iter().map(|chain| coding_bytes(chain, chunk)).max().unwrap_or(2 * chunk);
        slabs.saturating_mul(slab.saturating_add((chunks as u64).saturating_mul(coding)))
    }

    /// Refuses a read that can never have its memory, because the codec cuts the part across.
    fn check_memory(&self, needs: u64) -> Result<(), StoreError> {
        let (limit, spec) = (self.inner.ledger.limit(), &self.record.parts[self.part].spec);
        match self.chains.last() {
            Some(chain) if needs > limit && self.grid.chunk() != sira_tensor::grid::chunk_shape(spec) => {
                Err(StoreError::OutOfSpace(format!("{}: {}", self.record.key, across(chain, &self.grid, needs, limit))))
            }
            _ => Ok(()),
        }
    }

    /// The chains that its chunks went through.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// What the record says of one chunk.
    pub fn chunk(&self, cell: u64) -> Chunk {
        self.copy.chunks[cell as usize]
    }

    /// The box that is all of it.
    fn all(&self) -> Region {
        self.grid.shape().iter().map(|&extent| 0..extent).collect()
    }

    /// All of it, slab by slab.
    pub fn whole(self) -> BoxStream<'static, Result<Bytes, StoreError>> {
        let all = self.all();
        self.stream(all)
    }

    /// The box `wanted`, slab by slab.
    fn stream(self, wanted: Region) -> BoxStream<'static, Result<Bytes, StoreError>> {
        let slabs = self.at_once().1;
        let source = Arc::new(self);
        let parts = source.grid.slabs().map(move |slab| overlap(&slab.region, &wanted));
        let parts = parts.filter(|part| part.iter().all(|r| !r.is_empty()));
        futures::stream::iter(parts).map(move |part| source.clone().read_slab(part)).buffered(slabs).boxed()
    }

    /// A box that lies within one slab, row-major.
    async fn read_slab(self: Arc<Self>, part: Region) -> Result<Bytes, StoreError> {
        let cells = self.grid.touched(&part);
        if let [cell] = cells[..]
            && self.grid.cell(cell) == part
        {
            return self.read_cell(cell).await;
        }
        let mut target = vec![0; self.grid.region_bytes(&part) as usize];
        let fetched = futures::stream::iter(cells).map(|cell| {
            let source = self.clone();
            async move { source.clone().read_cell(cell).await.map(|raw| (source.grid.cell(cell), raw)) }
        });
        let mut fetched = fetched.buffered(self.at_once().0);
        while let Some((region, raw)) = fetched.try_next().await? {
            self.grid.copy(&overlap(&region, &part), &raw, &region, &mut target, &part);
        }
        Ok(target.into())
    }

    /// One chunk, verified and decoded.
    async fn read_cell(self: Arc<Self>, cell: u64) -> Result<Bytes, StoreError> {
        let stored = self.fetch(cell).await?;
        let chunk = self.copy.chunks[cell as usize];
        let chain = self.chains.get(chunk.chain as usize);
        let chain = chain.ok_or_else(|| self.corrupt(cell, format!("codec chain {} is not in the record", chunk.chain)))?.clone();
        let region = self.grid.cell(cell);
        let raw_len = self.grid.region_bytes(&region) as usize;
        let raw = if chain.is_none() {
            Some(Ok(stored))
        } else {
            let (facts, (origin, shape)) = (self.facts().await?, origin_and_shape(&region));
            let (job, stored_len) = ((&chain.clone(), Way::Decode, Awaited::ByClient), stored.len() as u64);
            let decode = move || (chain.decode(&stored, raw_len, facts.chunk(&shape, &origin)).map(Bytes::from), stored_len);
            self.inner.coders.run(&self.inner, job, raw_len as u64, decode).await
        };
        match raw {
            Some(Ok(raw)) if raw.len() == raw_len => Ok(raw),
            Some(Ok(raw)) => Err(self.corrupt(cell, format!("{} bytes where {raw_len} belong", raw.len()))),
            Some(Err(error)) => Err(self.corrupt(cell, error.to_string())),
            None => Err(StoreError::Internal(format!("decoding a chunk of {} failed", self.record.key))),
        }
    }

    /// The stored bytes of one chunk, verified.
    pub async fn fetch(&self, cell: u64) -> Result<Bytes, StoreError> {
        if let [(tier, write_id)] = &self.places[..] {
            return self.fetch_from(tier, write_id, cell).await;
        }
        let replication = &self.inner.replication;
        let is_out = |tier: &Tier| replication.is_out(&tier.name) || tier.meter.fitness.standing() == Standing::Out;
        let (out, well): (Vec<_>, Vec<_>) = self.places.iter().partition(|(tier, _)| is_out(tier));
        let mut failed = None;
        for (tier, write_id) in well.into_iter().chain(out) {
            match self.fetch_from(tier, write_id, cell).await {
                Ok(stored) => return Ok(stored),
                Err(error) => {
                    replication.failed(&self.record.key, &tier.name, &error);
                    tracing::warn!(%error, key = %self.record.key, "another copy is asked");
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| StoreError::Internal("a part that lies nowhere".into())))
    }

    async fn fetch_from(&self, tier: &Tier, write_id: &str, cell: u64) -> Result<Bytes, StoreError> {
        let chunk = self.copy.chunks[cell as usize];
        let corrupt = |reason| self.corrupt_in(&tier.name, cell, reason);
        let stored = tier.backend.get(&chunk_name(write_id, self.part, cell), None).await.map_err(|error| match error {
            BackendError::Corrupt(reason) => corrupt(reason),
            other => tier.failed(other),
        })?;
        let stored = stored.ok_or_else(|| corrupt("it is gone".into()))?;
        if stored.len() as u64 != chunk.stored_bytes {
            return Err(corrupt(format!("{} bytes are stored where {} were written", stored.len(), chunk.stored_bytes)));
        }
        match xxh3_64(&stored) == chunk.checksum {
            true => Ok(stored),
            false => Err(corrupt("its checksum does not match".into())),
        }
    }

    fn corrupt(&self, cell: u64, reason: String) -> StoreError {
        self.corrupt_in(&self.copy.backend, cell, reason)
    }

    fn corrupt_in(&self, backend: &str, cell: u64, reason: String) -> StoreError {
        count(&self.inner.counters.corrupt, 1);
        let (key, version) = (&self.record.key, self.record.version);
        StoreError::Corrupt(format!("tensor {key} version {version}, chunk {cell} in backend {backend}: {reason}"))
    }
}

/// What two boxes have in common.
pub(crate) fn overlap(a: &[std::ops::Range<u64>], b: &[std::ops::Range<u64>]) -> Region {
    a.iter().zip(b).map(|(a, b)| a.start.max(b.start)..a.end.min(b.end)).collect()
}
