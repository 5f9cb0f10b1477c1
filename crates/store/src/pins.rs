//! Which records are being read: their chunks stay until the last reader is done.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::record::TensorRecord;

/// Readers by the write ids of the record and of the chunks they read.
#[derive(Clone, Default)]
pub(crate) struct Pins {
    readers: Arc<Mutex<HashMap<String, usize>>>,
}

/// One reader; done when dropped.
pub(crate) struct Pin {
    pins: Pins,
    write_id: String,
    /// Of chunks that an earlier write made: the record has moved since, or has several copies.
    others: Vec<String>,
}

impl Pins {
    /// Pins what `record` names. A later record may name some of it still, and become garbage before this is done.
    pub fn pin(&self, record: &TensorRecord) -> Pin {
        let mut others = Vec::new();
        for copy in record.parts.iter().flat_map(|part| &part.copies) {
            if copy.write_id != record.write_id && !others.contains(&copy.write_id) {
                others.push(copy.write_id.clone());
            }
        }
        let mut readers = self.readers.lock();
        for write_id in others.iter().chain([&record.write_id]) {
            *readers.entry(write_id.clone()).or_default() += 1;
        }
        drop(readers);
        Pin { pins: self.clone(), write_id: record.write_id.clone(), others }
    }

    pub fn held(&self, write_id: &str) -> bool {
        self.readers.lock().contains_key(write_id)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut readers = self.pins.readers.lock();
        for write_id in self.others.iter().chain([&self.write_id]) {
            if let Some(count) = readers.get_mut(write_id) {
                *count -= 1;
                if *count == 0 {
                    readers.remove(write_id);
                }
            }
        }
    }
}
