//! What all namespaces together take of the tiers that have a limit.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes of each tier that has a limit: held by live tensors, and promised to running puts.
pub(crate) struct Room {
    limits: BTreeMap<String, u64>,
    taken: Mutex<BTreeMap<String, Taken>>,
    /// Told when a promise is given back.
    pub released: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    held: u64,
    promised: u64,
}

/// What stands against a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// What the namespace holds: less of it would do.
    Held,
    /// The put itself, or what the namespace has promised to others: nothing that leaves helps.
    Promised,
    /// What all namespaces hold.
    AllHeld,
    /// The put itself, or what all have promised.
    AllPromised,
}

impl Room {
    pub fn new(limits: BTreeMap<String, u64>) -> Room {
        Room { limits, taken: Mutex::default(), released: Notify::new() }
    }

    /// The limit of `tier`, for all namespaces together.
    pub fn limit(&self, tier: &str) -> Option<u64> {
        self.limits.get(tier).copied()
    }

    /// Promises `bytes` of `tier`; see [`crate::namespaces::Namespace::promise`].
    pub fn promise(&self, tier: &str, bytes: u64, current: u64, waiting: u64) -> Result<(), Short> {
        let Some(limit) = self.limit(tier) else { return Ok(()) };
        let mut taken = self.taken.lock();
        let Taken { held, promised } = taken.entry(tier.to_owned()).or_default();
        let needed = promised.saturating_sub(waiting).saturating_add(bytes);
        if needed > limit {
            return Err(Short::AllPromised);
        }
        if held.saturating_sub(current).saturating_add(needed) > limit {
            return Err(Short::AllHeld);
        }
        *promised += bytes;
        Ok(())
    }

    /// Takes a promise back.
    pub fn give_back(&self, tier: &str, bytes: u64) {
        if let Some(taken) = self.taken.lock().get_mut(tier).filter(|_| self.limits.contains_key(tier)) {
            taken.promised = taken.promised.saturating_sub(bytes);
        }
        self.released.notify_waiters();
    }

    /// Bytes of `tier` that are held or promised.
    pub fn taken(&self, tier: &str) -> u64 {
        self.taken.lock().get(tier).map_or(0, |taken| taken.held.saturating_add(taken.promised))
    }

    /// The index now has a record that takes `new` where it had one that took `old`.
    pub fn replaced(&self, old: Option<BTreeMap<String, u64>>, new: Option<BTreeMap<String, u64>>) {
        if self.limits.is_empty() {
            return;
        }
        let mut taken = self.taken.lock();
        let limited = |bytes: Option<BTreeMap<String, u64>>| bytes.into_iter().flatten().filter(|(tier, _)| self.limits.contains_key(tier));
        for (tier, bytes) in limited(old) {
            let held = &mut taken.entry(tier).or_default().held;
            *held = held.saturating_sub(bytes);
        }
        for (tier, bytes) in limited(new) {
            taken.entry(tier).or_default().held += bytes;
        }
    }

    /// Forgets what is held: all that the index has is told anew. Promises stand.
    pub fn reset(&self) {
        self.taken.lock().values_mut().for_each(|taken| taken.held = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_hold_and_are_promised_stays_within_the_limit() {
        let room = Room::new([("warm".to_owned(), 100)].into());
        let bytes = |n| Some(BTreeMap::from([("warm".to_owned(), n), ("cold".to_owned(), 1 << 40)]));
        room.promise("warm", 60, 0, 0).unwrap();
        assert_eq!(room.promise("warm", 60, 0, 0), Err(Short::AllPromised));
        room.replaced(None, bytes(60));
        room.give_back("warm", 60);
        assert_eq!((room.taken("warm"), room.taken("cold")), (60, 0));
        assert_eq!(room.promise("warm", 41, 0, 0), Err(Short::AllHeld));
        assert_eq!(room.promise("warm", 41, 1, 0), Ok(()), "what is replaced makes room");
        assert_eq!(room.promise("cold", u64::MAX, 0, 0), Ok(()));
        room.replaced(bytes(60), bytes(10));
        assert_eq!(room.taken("warm"), 51);
    }
}
