//! An ordered key-value space in memory: for tests, simulation and stores that keep nothing.

use std::collections::BTreeMap;
use std::ops::Bound;

use parking_lot::RwLock;
use sira_backend::BackendError;

use super::{Change, OrderedKv, Pair};

/// A map behind a lock. Cloning an `Arc` of it and opening a store on it again is a restart.
#[derive(Debug, Default)]
pub struct MemoryKv {
    map: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl OrderedKv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        Ok(self.map.read().get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, BackendError> {
        let map = self.map.read();
        let start = from.max(prefix);
        let range = map.range::<[u8], _>((Bound::Included(start), Bound::Unbounded));
        Ok(range.take_while(|(key, _)| key.starts_with(prefix)).take(limit).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn write(&self, changes: Vec<Change>, _sync: bool) -> Result<(), BackendError> {
        let mut map = self.map.write();
        for change in changes {
            match change {
                Change::Put(key, value) => map.insert(key, value),
                Change::Delete(key) => map.remove(&key),
            };
        }
        Ok(())
    }
}
