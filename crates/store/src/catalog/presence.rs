//! Which keys exist, in memory: what lookups of thousands of keys are answered from.

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use sira_wire::Key;
use xxhash_rust::xxh3::{Xxh3DefaultBuilder, xxh3_128};

use crate::record::TensorRecord;

/// Stripes of what changes; two keys of one stripe only cost each other a look into the index.
const STRIPES: usize = 256;

/// What is known of a key. The index says the same, more slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Presence {
    /// Milliseconds since 1970 at which it expires; 0 where there is none, `u64::MAX` for never.
    expires_ms: u64,
    /// [`tag`] of its kv spec's hash, 0 where it has none; and in the lowest bit whether it is exact.
    marks: u64,
}

/// What is demanded of a key besides that it exists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    /// [`tag`] of the kv spec that it must follow.
    pub kv_spec: Option<u64>,
    /// It must be exactly what was put, and not be derived from lossy data.
    pub exact: bool,
}

impl Presence {
    pub fn of(record: Option<&TensorRecord>) -> Presence {
        let Some(record) = record.filter(|record| !record.tombstone) else { return Presence { expires_ms: 0, marks: 0 } };
        let marks = record.kv_spec.as_deref().map_or(0, tag) | u64::from(record.is_exact());
        Presence { expires_ms: record.expires_ms.unwrap_or(u64::MAX), marks }
    }

    /// Whether the key exists at `now_ms` and is what is demanded.
    pub fn holds(self, now_ms: u64, wanted: Wanted) -> bool {
        now_ms < self.expires_ms && wanted.kv_spec.is_none_or(|tag| tag == self.marks & !1) && (!wanted.exact || self.marks & 1 == 1)
    }
}

/// The first 63 bits of a kv spec's hash, at the top.
pub(crate) fn tag(hash: &str) -> u64 {
    hash.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0) & !1
}

/// What was put or looked up lately. Bounded; keys are known by 128 bits of their hash.
pub(crate) struct Presences {
    cache: Cache<u128, Presence, quick_cache::UnitWeighter, Xxh3DefaultBuilder>,
    stripes: Vec<Mutex<Changes>>,
}

/// Changes of the index, of the keys of a stripe.
#[derive(Clone, Copy, Default)]
struct Changes {
    begun: u64,
    ended: u64,
}

/// A change of the index that is being made.
pub(crate) struct Changing<'a> {
    presences: &'a Presences,
    hash: u128,
}

impl Changing<'_> {
    /// It is made.
    pub fn made(self, presence: Presence) {
        self.presences.cache.insert(self.hash, presence);
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.presences.stripe(self.hash).lock().ended += 1;
    }
}

impl Presences {
    /// Remembers up to `keys`, about 80 bytes each.
    pub fn new(keys: usize) -> Presences {
        let cache = Cache::with(keys.min(1024), keys as u64, quick_cache::UnitWeighter, Xxh3DefaultBuilder::new(), Default::default());
        Presences { cache, stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }

    /// What is known of `key`.
    pub fn get(&self, key: &str) -> Option<Presence> {
        self.cache.get(&hash(key))
    }

    /// The index is about to change what it has of `key`.
    pub fn change(&self, key: &Key) -> Changing<'_> {
        let hash = hash(key.as_str());
        self.stripe(hash).lock().begun += 1;
        Changing { presences: self, hash }
    }

    /// A number that stands still while the index has the same of `key`; `None` while it changes.
    pub fn still(&self, key: &Key) -> Option<u64> {
        let changes = *self.stripe(hash(key.as_str())).lock();
        (changes.begun == changes.ended).then_some(changes.begun)
    }

    /// Remembers what `look` finds in the index, unless it is overtaken by a change.
    pub fn learn<E>(&self, key: &Key, look: impl FnOnce() -> Result<Presence, E>) -> Result<Presence, E> {
        let hash = hash(key.as_str());
        let before = self.still(key);
        let presence = look()?;
        let changes = self.stripe(hash).lock();
        // Held until it is in: a change that begins later is remembered over it.
        if before == Some(changes.begun) {
            self.cache.insert(hash, presence);
        }
        Ok(presence)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.cache.clear();
    }

    fn stripe(&self, hash: u128) -> &Mutex<Changes> {
        &self.stripes[hash as usize % STRIPES]
    }
}

fn hash(key: &str) -> u128 {
    xxh3_128(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_is_overtaken_is_not_remembered() {
        let presences = Presences::new(16);
        let key: Key = "ns/k".parse().unwrap();
        let there = Presence { expires_ms: u64::MAX, marks: 6 };
        let absent = Presence::of(None);
        let seen = presences.learn(&key, || {
            presences.change(&key).made(there);
            Ok::<_, ()>(absent)
        });
        assert_eq!(seen, Ok(absent));
        assert_eq!(presences.get(key.as_str()), Some(there));
        let changing = presences.change(&key);
        assert_eq!(presences.still(&key), None);
        let seen = presences.learn(&key, || Ok::<_, ()>(absent));
        assert_eq!((seen, presences.get(key.as_str())), (Ok(absent), Some(there)), "learnt while it changes");
        drop(changing);
        assert_eq!((presences.still(&key), presences.get(key.as_str())), (Some(2), Some(there)), "a change that came to nothing");
        let of = |kv_spec| Wanted { kv_spec: Some(kv_spec), exact: false };
        assert!(
            there.holds(5, Wanted::default()) && there.holds(5, of(6)) && !there.holds(5, of(8)) && !absent.holds(0, Wanted::default())
        );
        let exact = Wanted { kv_spec: None, exact: true };
        assert!(!there.holds(5, exact) && Presence { marks: 7, ..there }.holds(5, exact) && Presence { marks: 7, ..there }.holds(5, of(6)));
    }

    #[test]
    fn a_flood_of_misses_is_not_remembered_without_end() {
        let presences = Presences::new(1024);
        for i in 0..100_000 {
            let key: Key = format!("ns{}/k{i}", i % 1000).parse().unwrap();
            presences.learn(&key, || Ok::<_, ()>(Presence::of(None))).unwrap();
        }
        assert!(presences.cache.len() <= 1024 && presences.cache.len() > 512, "{}", presences.cache.len());
    }

    #[test]
    fn tags_come_from_hashes() {
        assert_eq!(tag(&format!("{:016x}{}", 0xabcu64, "0".repeat(48))), 0xabc);
        assert_eq!(tag(&"f".repeat(64)), u64::MAX - 1);
    }
}
