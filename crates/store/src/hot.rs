//! The hot tier: raw parts in memory, as they go out on the wire.

use std::sync::Arc;

use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use sira_backend::Payload;
use xxhash_rust::xxh3::{Xxh3, Xxh3DefaultBuilder};

use crate::ledger::{Ledger, Reservation};

/// A part of at most this share of the tier is kept, so that one large tensor does not empty it.
const LARGEST_SHARE: u64 = 4;

/// A raw part in memory, with the memory it has reserved.
#[derive(Debug)]
pub struct HotPart {
    /// The bytes, row-major.
    pub payload: Payload,
    /// XXH3-64 of them, taken when they came in.
    checksum: u64,
    _reservation: Reservation,
}

impl HotPart {
    /// Takes the checksum of `payload`, whose memory is `reservation`.
    pub fn new(payload: Payload, reservation: Reservation) -> HotPart {
        HotPart { checksum: checksum(&payload), payload, _reservation: reservation }
    }

    /// Whether the bytes are still those that came in.
    pub fn intact(&self) -> bool {
        checksum(&self.payload) == self.checksum
    }
}

fn checksum(payload: &Payload) -> u64 {
    let mut hash = Xxh3::new();
    payload.pieces().iter().for_each(|piece| hash.update(piece));
    hash.digest()
}

#[derive(Clone)]
struct Bytes;

impl Weighter<String, Arc<HotPart>> for Bytes {
    fn weight(&self, _: &String, part: &Arc<HotPart>) -> u64 {
        part.payload.len().max(1)
    }
}

/// Parts by the id of the write that made them; eviction is S3-FIFO's relative in `quick_cache`.
pub struct HotTier {
    cache: Cache<String, Arc<HotPart>, Bytes, Xxh3DefaultBuilder>,
    limit: u64,
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
        HotTier { cache, limit, ledger, evicting: Mutex::new(()) }
    }

    /// Memory for a part that is to be kept, if it may be and the ledger has it; makes room among colder parts.
    pub fn admit(&self, bytes: u64) -> Option<Reservation> {
        if bytes > self.limit / LARGEST_SHARE {
            return None;
        }
        let over = (self.cache.weight() + bytes).saturating_sub(self.limit);
        if over > 0 {
            self.evict(over);
        }
        self.ledger.try_reserve(bytes).or_else(|| {
            self.evict(bytes);
            self.ledger.try_reserve(bytes)
        })
    }

    /// Keeps a part.
    pub fn insert(&self, write_id: &str, part: Arc<HotPart>) {
        self.cache.insert(write_id.to_string(), part);
    }

    /// The part, if it is here.
    pub fn get(&self, write_id: &str) -> Option<Arc<HotPart>> {
        self.cache.get(write_id)
    }

    /// Whether the part is here; does not count as a use.
    pub fn holds(&self, write_id: &str) -> bool {
        self.cache.contains_key(write_id)
    }

    /// Forgets the part.
    pub fn remove(&self, write_id: &str) {
        self.cache.remove(write_id);
    }

    /// Evicts at least `bytes`, or all. Memory that readers still hold comes back when they are done.
    pub fn evict(&self, bytes: u64) {
        let _one = self.evicting.lock();
        self.cache.set_capacity(self.cache.weight().saturating_sub(bytes));
        self.cache.set_capacity(self.limit);
    }

    /// Bytes of the parts here.
    pub fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// Bytes at most.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Parts here whose bytes are no longer those that came in: they are dropped, and named.
    pub fn scrub(&self) -> Vec<String> {
        let parts: Vec<_> = self.cache.iter().collect();
        let bad: Vec<String> = parts.into_iter().filter(|(_, part)| !part.intact()).map(|(id, _)| id).collect();
        bad.iter().for_each(|id| self.remove(id));
        bad
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn part(tier: &HotTier, id: &str, bytes: u64) -> bool {
        let Some(reservation) = tier.admit(bytes) else { return false };
        tier.insert(id, Arc::new(HotPart::new(vec![7u8; bytes as usize].into(), reservation)));
        true
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
