//! The hot tier: raw parts in memory, as they go out on the wire.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use sira_backend::Payload;
use sira_shm::Sealed;
use sira_tensor::grid::Grid;
use xxhash_rust::xxh3::{Xxh3DefaultBuilder, xxh3_64};

use crate::ledger::{Ledger, Reservation, UNIT};

/// A part of at most this share of the tier is kept, so that one large tensor does not empty it.
const LARGEST_SHARE: u64 = 4;

/// Bytes that are verified together: few enough to be in the processor's cache still when they are sent. A slab that is stored as one chunk, as it
/// is, is one block instead: its checksum is the chunk's, and is taken once.
pub(crate) const BLOCK: usize = 512 << 10;

/// How long a block that was verified is taken to be intact, in milliseconds: a get of it after that verifies it again. So what is read again and
/// again costs no checksum each time, and all that memory holds is verified once in this time at most, however much of it is read.
const INTACT_MS: u64 = 10_000;

/// Of a block that was not verified yet.
const NEVER: u64 = u64::MAX;

/// A raw part in memory, with the memory it has reserved.
#[derive(Debug)]
pub struct HotPart {
    payload: Payload,
    blocks: Blocks,
    /// What is said of the part before its bytes, by whoever serves it.
    announced: OnceLock<bytes::Bytes>,
    _reservation: Reservation,
    /// What its bytes lie in, where others may map it.
    region: Option<Arc<Sealed>>,
    /// Counted for its namespace.
    counted: Option<Counted>,
    /// When it was asked for last, in milliseconds; 0 before that is looked at the first time.
    used: AtomicU64,
}

/// By what a part is verified.
#[derive(Debug)]
struct Blocks {
    /// Bytes of a block; the last one of a piece may be shorter.
    bytes: usize,
    /// Of all pieces, in order.
    all: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    /// XXH3-64, taken when it came in.
    checksum: u64,
    /// When its bytes were last held against that, in milliseconds, or [`NEVER`].
    verified: AtomicU64,
}

impl Blocks {
    fn new(bytes: usize, checksums: impl IntoIterator<Item = u64>) -> Blocks {
        let block = |checksum| Block { checksum, verified: AtomicU64::new(NEVER) };
        Blocks { bytes: bytes.max(1), all: checksums.into_iter().map(block).collect() }
    }
}

impl Block {
    fn is_intact(&self, bytes: &[u8], now: u64) -> bool {
        // Where the clock was set back, too, it is verified.
        if now.abs_diff(self.verified.load(Ordering::Relaxed)) < INTACT_MS {
            return true;
        }
        let intact = xxh3_64(bytes) == self.checksum;
        if intact {
            self.verified.store(now, Ordering::Relaxed);
        }
        intact
    }
}

/// Counts the bytes of a part for its namespace, for as long as it is in memory.
#[derive(Debug)]
struct Counted {
    total: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl HotPart {
    /// Takes the checksums of `payload`, whose memory is `reservation`.
    pub fn new(payload: Payload, reservation: Reservation) -> HotPart {
        let checksums = payload.pieces().iter().flat_map(|piece| piece.chunks(BLOCK)).map(xxh3_64).collect();
        HotPart::gathered(payload, (BLOCK, checksums), reservation)
    }

    /// What is said of the part before its bytes: `make` makes it the first time.
    pub fn announced(&self, make: impl FnOnce() -> bytes::Bytes) -> bytes::Bytes {
        self.announced.get_or_init(make).clone()
    }

    /// As [`HotPart::new`], of pieces whose checksums were taken as they came in, one for each block of so many bytes.
    pub(crate) fn gathered(payload: Payload, (bytes, checksums): (usize, Vec<u64>), reservation: Reservation) -> HotPart {
        HotPart {
            payload,
            blocks: Blocks::new(bytes, checksums),
            announced: OnceLock::new(),
            _reservation: reservation,
            region: None,
            counted: None,
            used: AtomicU64::new(0),
        }
    }

    /// A part whose bytes lie in `region`, cut as the slabs of `grid` are.
    pub fn in_region(region: Arc<Sealed>, grid: &Grid, reservation: Reservation) -> HotPart {
        let payload = crate::write::slabs(region.clone(), grid);
        HotPart { region: Some(region), ..HotPart::new(payload, reservation) }
    }

    /// What its bytes lie in, where others may map it.
    pub fn region(&self) -> Option<&Arc<Sealed>> {
        self.region.as_ref()
    }

    /// Counts its bytes in `total` while it lives.
    pub fn counted(self, total: &Arc<AtomicU64>) -> HotPart {
        let bytes = self.len();
        total.fetch_add(bytes, Ordering::Relaxed);
        HotPart { counted: Some(Counted { total: total.clone(), bytes }), ..self }
    }

    /// It is asked for at `now`, in milliseconds.
    pub fn used(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    /// Bytes of the part.
    pub fn len(&self) -> u64 {
        self.payload.len()
    }

    /// The block at `place`, verified a moment before `now` (milliseconds) or now; `None` after the last. The first is at the default place; the
    /// place moves on.
    pub fn block(&self, place: &mut Place, now: u64) -> Option<Result<bytes::Bytes, Damaged>> {
        let (at, block) = (place.block, self.next(place)?);
        let intact = self.blocks.all.get(at).is_some_and(|known| known.is_intact(&block, now));
        Some(if intact { Ok(block) } else { Err(Damaged) })
    }

    /// Has every block verified with its next read: whoever takes new checksums of the bytes must not take them of damage.
    pub fn doubt(&self) {
        self.blocks.all.iter().for_each(|block| block.verified.store(NEVER, Ordering::Relaxed));
    }

    /// The bytes of the block at `place`, which moves on.
    fn next(&self, place: &mut Place) -> Option<bytes::Bytes> {
        let piece = self.payload.pieces().get(place.piece)?;
        let block = piece.slice(place.offset..piece.len().min(place.offset.saturating_add(self.blocks.bytes)));
        place.block += 1;
        place.offset += block.len();
        if place.offset >= piece.len() {
            (place.piece, place.offset) = (place.piece + 1, 0);
        }
        Some(block)
    }

    /// All bytes, verified now, in the pieces they came in.
    pub fn verified(&self) -> Result<Payload, Damaged> {
        let mut place = Place::default();
        for known in &self.blocks.all {
            if self.next(&mut place).is_none_or(|block| xxh3_64(&block) != known.checksum) {
                return Err(Damaged);
            }
        }
        match self.next(&mut place) {
            None => Ok(self.payload.clone()),
            Some(_) => Err(Damaged),
        }
    }
}

/// A place in a part, between two blocks.
#[derive(Debug, Default)]
pub struct Place {
    piece: usize,
    offset: usize,
    /// Blocks before it.
    block: usize,
}

/// Memory no longer holds what was put there.
#[derive(Debug)]
pub struct Damaged;

#[derive(Clone)]
struct Bytes;

impl Weighter<PartId, Arc<HotPart>> for Bytes {
    fn weight(&self, _: &PartId, part: &Arc<HotPart>) -> u64 {
        // What the ledger counts for it: many small parts must not fill memory before they fill the tier.
        part.len().max(1).next_multiple_of(UNIT)
    }
}

/// A part: the id of the write that made it, and its index.
type PartId = (String, usize);

/// Looks a part up without copying the id.
#[derive(Hash, PartialEq, Eq)]
struct Looked<'a>(&'a str, usize);

impl quick_cache::Equivalent<PartId> for Looked<'_> {
    fn equivalent(&self, id: &PartId) -> bool {
        self.0 == id.0 && self.1 == id.1
    }
}

/// Parts by the id of the write that made them; eviction is S3-FIFO's relative in `quick_cache`.
pub struct HotTier {
    cache: Cache<PartId, Arc<HotPart>, Bytes, Xxh3DefaultBuilder>,
    limit: AtomicU64,
    ledger: Ledger,
    /// Shrinking and restoring the capacity is how this cache is asked to evict: one at a time.
    evicting: Mutex<()>,
}

impl HotTier {
    /// A tier of up to `limit` bytes, which it reserves from `ledger` as it fills. 0 keeps nothing.
    pub fn new(limit: u64, ledger: Ledger) -> HotTier {
        // One shard: the limit is exact, and eviction knows all parts.
        let options = OptionsBuilder::new().shards(1).weight_capacity(limit).estimated_items_capacity(1024).build();
        let cache = match options {
            Ok(options) => Cache::with_options(options, Bytes, Xxh3DefaultBuilder::new(), DefaultLifecycle::default()),
            Err(_) => Cache::with(1024, limit, Bytes, Xxh3DefaultBuilder::new(), DefaultLifecycle::default()),
        };
        HotTier { cache, limit: AtomicU64::new(limit), ledger, evicting: Mutex::new(()) }
    }

    /// Whether a part of `bytes` may be kept at all.
    pub fn takes(&self, bytes: u64) -> bool {
        bytes <= self.limit() / LARGEST_SHARE
    }

    /// Whether a part of `bytes` that has its memory already may be kept.
    pub fn welcomes(&self, bytes: u64) -> bool {
        self.takes(bytes) && self.ledger.used().saturating_sub(self.cache.weight()) <= self.ledger.limit() / 2
    }

    /// Memory for `bytes` of a part that is to be kept, if the ledger has it; makes room among colder parts.
    pub fn admit(&self, bytes: u64) -> Option<Reservation> {
        if !self.takes(bytes) {
            return None;
        }
        // What is only nice to have leaves half of the memory to those who need it.
        let busy = self.ledger.used().saturating_sub(self.cache.weight());
        if busy + bytes > self.ledger.limit() / 2 {
            return None;
        }
        let over = (self.cache.weight() + bytes).saturating_sub(self.limit());
        if over > 0 {
            self.evict(over);
        }
        self.ledger.try_reserve(bytes).or_else(|| {
            self.evict(bytes);
            self.ledger.try_reserve(bytes)
        })
    }

    /// Keeps a part.
    pub fn insert(&self, write_id: &str, index: usize, part: Arc<HotPart>) {
        self.cache.insert((write_id.to_string(), index), part);
    }

    /// The part, if it is here.
    pub fn get(&self, write_id: &str, index: usize) -> Option<Arc<HotPart>> {
        self.cache.get(&Looked(write_id, index))
    }

    /// Whether the part is here; does not count as a use.
    pub fn holds(&self, write_id: &str, index: usize) -> bool {
        self.cache.contains_key(&Looked(write_id, index))
    }

    /// Forgets the part.
    pub fn remove(&self, write_id: &str, index: usize) {
        self.cache.remove(&Looked(write_id, index));
    }

    /// Evicts at least `bytes`, or all. Memory that readers still hold comes back when they are done.
    pub fn evict(&self, bytes: u64) {
        let _one = self.evicting.lock();
        self.cache.set_capacity(self.cache.weight().saturating_sub(bytes));
        self.cache.set_capacity(self.limit());
    }

    /// Changes the limit; what is beyond it is evicted.
    pub fn resize(&self, limit: u64) {
        let _one = self.evicting.lock();
        self.limit.store(limit, Ordering::Relaxed);
        self.cache.set_capacity(limit);
    }

    /// Drops the parts that are counted in `total`.
    pub fn forget(&self, total: &Arc<AtomicU64>) {
        let theirs = |part: &HotPart| part.counted.as_ref().is_some_and(|counted| Arc::ptr_eq(&counted.total, total));
        let ids: Vec<PartId> = self.cache.iter().filter(|(_, part)| theirs(part)).map(|(id, _)| id).collect();
        ids.iter().for_each(|(write_id, index)| self.remove(write_id, *index));
    }

    /// Drops the parts that nobody asked for within `ttl_ms`.
    pub fn forget_unread(&self, now: u64, ttl_ms: u64) {
        let unread = |part: &HotPart| match part.used.load(Ordering::Relaxed) {
            0 => {
                part.used(now);
                false
            }
            used => now.saturating_sub(used) > ttl_ms,
        };
        let ids: Vec<PartId> = self.cache.iter().filter(|(_, part)| unread(part)).map(|(id, _)| id).collect();
        ids.iter().for_each(|(write_id, index)| self.remove(write_id, *index));
    }

    /// Bytes that the parts here have reserved.
    pub fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// Bytes at most.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Parts here whose bytes are no longer those that came in: they are dropped, and named.
    pub fn scrub(&self) -> Vec<String> {
        let parts: Vec<_> = self.cache.iter().collect();
        let bad: Vec<PartId> = parts.into_iter().filter(|(_, part)| part.verified().is_err()).map(|(id, _)| id).collect();
        bad.iter().for_each(|(write_id, index)| self.remove(write_id, *index));
        bad.into_iter().map(|(write_id, _)| write_id).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn part(tier: &HotTier, id: &str, bytes: u64) -> bool {
        let Some(reservation) = tier.admit(bytes) else { return false };
        tier.insert(id, 0, Arc::new(HotPart::new(vec![7u8; bytes as usize].into(), reservation)));
        true
    }

    #[test]
    fn a_block_is_verified_at_first_and_again_after_a_while() {
        let pieces = [vec![1u8; BLOCK + 5], vec![2; 9]];
        let checksums = |last| vec![xxh3_64(&pieces[0][..BLOCK]), xxh3_64(&pieces[0][BLOCK..]), last];
        let part = |last| {
            HotPart::gathered(
                pieces.clone().map(bytes::Bytes::from).into_iter().collect(),
                (BLOCK, checksums(last)),
                Reservation::default(),
            )
        };
        let read = |part: &HotPart, now| {
            let mut place = Place::default();
            std::iter::from_fn(|| part.block(&mut place, now)).map(|block| block.map(|block| block.len()).ok()).collect::<Vec<_>>()
        };
        let good = part(xxh3_64(&pieces[1]));
        assert_eq!(read(&good, 7), [Some(BLOCK), Some(5), Some(9)]);
        assert!(good.verified().is_ok());
        let bad = part(1);
        for now in [0, INTACT_MS - 1, 1 << 50] {
            assert_eq!(read(&bad, now), [Some(BLOCK), Some(5), None], "at {now}");
        }
        assert!(bad.verified().is_err());
        // As if the last block had been damaged a second after it was read.
        bad.blocks.all[2].verified.store(1_000_000, Ordering::Relaxed);
        for (later, intact) in [(1000, true), (INTACT_MS - 1, true), (INTACT_MS, false)] {
            assert_eq!(read(&bad, 1_000_000 + later)[2].is_some(), intact, "{later} ms later");
        }
        assert!(read(&bad, 500_000)[2].is_none(), "the clock was set back");
        assert!(read(&bad, 1_000_000)[2].is_some());
        bad.doubt();
        assert!(read(&bad, 1_000_000)[2].is_none());
        assert!(bad.verified().is_err(), "whoever wants all of it verified gets that");
        let whole = HotPart::gathered(
            pieces.clone().map(bytes::Bytes::from).into_iter().collect(),
            (usize::MAX, pieces.iter().map(|piece| xxh3_64(piece)).collect()),
            Reservation::default(),
        );
        assert_eq!(read(&whole, 0), [Some(BLOCK + 5), Some(9)], "a piece is one block");
    }

    #[test]
    fn stays_within_its_limit_and_gives_memory_back() {
        let ledger = Ledger::new(1 << 20, Duration::ZERO);
        let tier = HotTier::new(512 << 10, ledger.clone());
        for i in 0..100 {
            assert!(part(&tier, &i.to_string(), 32 << 10));
            assert!(tier.bytes() <= tier.limit());
            assert!(ledger.used() <= tier.limit() + (32 << 10));
        }
        assert!(tier.bytes() > tier.limit() / 2, "it keeps what fits");
        assert!(!part(&tier, "large", 256 << 10));
        tier.evict(u64::MAX);
        assert_eq!((tier.bytes(), ledger.used()), (0, 0));
    }

    #[test]
    fn what_nobody_asks_for_is_dropped_in_time() {
        let ledger = Ledger::new(1 << 20, Duration::ZERO);
        let tier = HotTier::new(512 << 10, ledger.clone());
        assert!(part(&tier, "asked", 8 << 10) && part(&tier, "never", 8 << 10));
        tier.forget_unread(1000, 500);
        assert!(tier.holds("asked", 0) && tier.holds("never", 0), "their time begins");
        tier.get("asked", 0).unwrap().used(1400);
        tier.forget_unread(1500, 500);
        assert!(tier.holds("never", 0));
        tier.forget_unread(1501, 500);
        assert!(tier.holds("asked", 0) && !tier.holds("never", 0));
        tier.forget_unread(1901, 500);
        assert_eq!((tier.bytes(), ledger.used()), (0, 0));
    }

    #[test]
    fn makes_room_when_the_ledger_is_short() {
        let ledger = Ledger::new(256 << 10, Duration::ZERO);
        let tier = HotTier::new(256 << 10, ledger.clone());
        for i in 0..8 {
            assert!(part(&tier, &i.to_string(), 32 << 10));
        }
        let in_flight = ledger.try_reserve(128 << 10);
        assert!(in_flight.is_none());
        tier.evict(128 << 10);
        assert!(ledger.try_reserve(128 << 10).is_some());
    }
}
