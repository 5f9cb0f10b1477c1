//! A way in for tests that feed this crate hostile bytes (docs/fuzzing.md). No part of its interface.

/// Where a log of RocksDB is damaged elsewhere than in a torn tail.
pub fn log_damage(log: &[u8]) -> Option<u64> {
    crate::rocks::log::damage_of(log).unwrap_or_default()
}
