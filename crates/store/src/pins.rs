//! Which records are being read: their chunks stay until the last reader is done.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Readers by the write id of the record they read.
#[derive(Clone, Default)]
pub(crate) struct Pins {
    readers: Arc<Mutex<HashMap<String, usize>>>,
}

/// One reader; done when dropped.
pub(crate) struct Pin {
    pins: Pins,
    write_id: String,
}

impl Pins {
    pub fn pin(&self, write_id: &str) -> Pin {
        *self.readers.lock().entry(write_id.to_string()).or_default() += 1;
        Pin { pins: self.clone(), write_id: write_id.to_string() }
    }

    pub fn held(&self, write_id: &str) -> bool {
        self.readers.lock().contains_key(write_id)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut readers = self.pins.readers.lock();
        if let Some(count) = readers.get_mut(&self.write_id) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&self.write_id);
            }
        }
    }
}
