//! Writes that wait by themselves while RocksDB holds writes back.
//!
//! RocksDB makes a writer wait inside its queue of writes while memtables are full. When they are full because the disk is, its recovery
//! needs that same queue: it waits for the writer, who waits for it, and neither ever goes on. So no write of ours waits in there.

use std::thread::sleep;
use std::time::{Duration, Instant};

use rocksdb::{DB, Error, ErrorKind, WriteBatch, WriteOptions, properties};

/// How long a write waits. Flushes and compactions catch up within seconds; a disk that takes longer than this has stopped working.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at whether writes are taken again, at first and at most.
const LOOKS: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));

/// Writes a batch to the log, with `sync` to the disk. Blocks while writes are held back; `batch` is then made again, since an attempt takes it.
/// An error of the kind `Incomplete` says that they were held back for longer than anybody waits; nothing was written then.
pub fn write(db: &DB, sync: bool, mut batch: impl FnMut() -> WriteBatch) -> Result<(), Error> {
    let mut options = WriteOptions::default();
    options.set_sync(sync);
    options.set_no_slowdown(true);
    let (begun, (mut look, longest)) = (Instant::now(), LOOKS);
    loop {
        match db.write_opt(batch(), &options) {
            Err(error) if error.kind() == ErrorKind::Incomplete && begun.elapsed() < PATIENCE => {}
            done => return done,
        }
        // Tried again now and then whatever the properties say: they are what RocksDB knew a moment ago.
        for _ in 0..8 {
            sleep(look);
            look = longest.min(look * 2);
            if !held_back(db) {
                break;
            }
        }
    }
}

fn held_back(db: &DB) -> bool {
    let is_set = |property| matches!(db.property_int_value(property), Ok(Some(1..)));
    is_set(properties::IS_WRITE_STOPPED) || is_set(properties::ACTUAL_DELAYED_WRITE_RATE)
}
