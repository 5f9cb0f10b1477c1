//! This node's index of records: what lists, looks up and remembers unfinished work, in one ordered key-value space.
//!
//! | key | value |
//! |---|---|
//! | `m/format` | version of this layout |
//! | `m/store` | id of the store whose records these are |
//! | `k/KEY` | the key's latest record, without inline bytes |
//! | `i/WRITE_ID` | intent: chunks may lie under this id, and no record names them yet |
//! | `g/WRITE_ID` | garbage: chunks and a record that no record names any more |
//! | `j/ID` | a job, as JSON: what it is to do, and how far it came |
//! | `e/TIME KEY` | something to do for a key at a time (big-endian milliseconds): expire it, or forget its tombstone |

mod memory;
mod presence;
mod rocks;

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sira_backend::BackendError;
use sira_wire::Key;

pub use memory::MemoryKv;
pub(crate) use presence::{Presence, Wanted, tag};
pub use rocks::RocksKv;

use crate::StoreError;
use crate::record::TensorRecord;
use crate::seams::Seams;

/// The layout this version writes and reads.
const FORMAT: &[u8] = b"1";

/// One change of a batch.
#[derive(Clone, Debug)]
pub enum Change {
    /// Sets a key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key.
    Delete(Vec<u8>),
}

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered key-value space.
///
/// # Contract
/// - `write` applies all changes or none, in order, at once for every reader; when it returns they survive the death of the process, and
///   with `sync` power loss.
/// - `scan` gives keys in byte order.
pub trait OrderedKv: Send + Sync + 'static {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError>;

    /// Up to `limit` pairs with `from <= key` whose keys start with `prefix`.
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Pair>, BackendError>;

    /// Applies `changes`.
    fn write(&self, changes: Vec<Change>, sync: bool) -> Result<(), BackendError>;
}

/// Chunks of a write that no record names yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub key: String,
    pub backend: String,
}

/// What a superseded record leaves behind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Garbage {
    /// Names of chunks, by backend: `(backend, write id, part, cells)`.
    pub chunks: Vec<(String, String, usize, u64)>,
    /// Name of the record itself.
    pub record: Option<String>,
}

impl Garbage {
    /// What `record` leaves when `kept` follows it: chunks that `kept` names stay.
    pub fn of(record: &TensorRecord, kept: Option<&TensorRecord>) -> Garbage {
        let mut garbage = Garbage { record: Some(record.name()), ..Garbage::default() };
        let stays = |write_id: &str| kept.is_some_and(|k| k.parts.iter().flat_map(|p| &p.copies).any(|copy| copy.write_id == write_id));
        for (index, part) in record.parts.iter().enumerate() {
            for copy in part.copies.iter().filter(|copy| !stays(&copy.write_id)) {
                garbage.chunks.push((copy.backend.clone(), copy.write_id.clone(), index, copy.chunks.len() as u64));
            }
        }
        garbage
    }
}

/// The typed face of the index. Errors name the catalog as their backend.
#[derive(Clone)]
pub(crate) struct Catalog {
    kv: Arc<dyn OrderedKv>,
    presences: Arc<presence::Presences>,
    /// Garbage that was noted since the start and is not gone. To look for it in `kv` costs more the more of it went before.
    fresh_garbage: Arc<Mutex<BTreeSet<String>>>,
    seams: Seams,
}

fn failed(source: BackendError) -> StoreError {
    StoreError::Backend { backend: "catalog".into(), source }
}

fn tagged(tag: &[u8], rest: &[u8]) -> Vec<u8> {
    [tag, rest].concat()
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|e| StoreError::Internal(format!("catalog: {e}")))
}

fn parsed<T: for<'a> Deserialize<'a>>(what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| StoreError::Corrupt(format!("catalog: {what}: {e}")))
}

impl Catalog {
    /// Wraps `kv`, and remembers which keys exist of up to `presences` of them. A layout of another version is refused.
    pub fn open(kv: Arc<dyn OrderedKv>, seams: Seams, presences: usize) -> Result<Catalog, StoreError> {
        match kv.get(b"m/format").map_err(failed)? {
            None => kv.write(vec![Change::Put(b"m/format".to_vec(), FORMAT.to_vec())], true).map_err(failed)?,
            Some(format) if format == FORMAT => {}
            Some(other) => {
                let other = String::from_utf8_lossy(&other).into_owned();
                return Err(StoreError::Config(format!(
                    "the catalog has format {other}; this version of Sira reads 1. Run the version that wrote it"
                )));
            }
        }
        Ok(Catalog { kv, presences: Arc::new(presence::Presences::new(presences)), fresh_garbage: Arc::default(), seams })
    }

    /// The id of the store whose records are indexed here.
    pub fn store_id(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.kv.get(b"m/store").map_err(failed)
    }

    /// Says whose records are indexed here.
    pub fn set_store_id(&self, id: &[u8]) -> Result<(), StoreError> {
        self.kv.write(vec![Change::Put(b"m/store".to_vec(), id.to_vec())], true).map_err(failed)
    }

    /// Forgets everything but the format: what is indexed belongs to another store.
    pub fn clear(&self) -> Result<(), StoreError> {
        self.presences.clear();
        for prefix in [b"k/", b"i/", b"g/", b"e/", b"j/"] {
            loop {
                let pairs = self.kv.scan(prefix, prefix, 1000).map_err(failed)?;
                if pairs.is_empty() {
                    break;
                }
                let changes = pairs.into_iter().map(|(key, _)| Change::Delete(key)).collect();
                self.kv.write(changes, false).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The latest record of `key`, tombstones included, without inline bytes.
    pub fn record(&self, key: &Key) -> Result<Option<TensorRecord>, StoreError> {
        let bytes = self.kv.get(&tagged(b"k/", key.as_str().as_bytes())).map_err(failed)?;
        bytes.map(|bytes| TensorRecord::from_bytes(&format!("{key} in the catalog"), &bytes)).transpose()
    }

    /// A number that stands still while the index has the same of `key`; `None` while it changes.
    pub fn still(&self, key: &Key) -> Option<u64> {
        self.presences.still(key)
    }

    /// What is remembered of `key`.
    pub fn remembered(&self, key: &str) -> Option<Presence> {
        self.presences.get(key)
    }

    /// Whether `key` exists in the index; from memory where it was put or looked up lately.
    pub fn presence(&self, key: &Key) -> Result<Presence, StoreError> {
        match self.presences.get(key.as_str()) {
            Some(presence) => Ok(presence),
            None => self.presences.learn(key, || Ok(Presence::of(self.record(key)?.as_ref()))),
        }
    }

    /// Up to `limit` records of keys that start with `prefix` and come after `after`, tombstones included.
    pub fn records(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<TensorRecord>, StoreError> {
        // The smallest key greater than `after` is `after` and a zero byte.
        let from = after.map_or_else(|| tagged(b"k/", prefix.as_bytes()), |after| [b"k/", after.as_bytes(), &[0]].concat());
        let pairs = self.kv.scan(&tagged(b"k/", prefix.as_bytes()), &from, limit).map_err(failed)?;
        let read = |(key, bytes): &Pair| TensorRecord::from_bytes(&format!("{} in the catalog", String::from_utf8_lossy(&key[2..])), bytes);
        pairs.iter().map(read).collect()
    }

    /// Notes that chunks of `write_id` are about to be written.
    pub fn begin(&self, write_id: &str, intent: &Intent) -> Result<(), StoreError> {
        let change = Change::Put(tagged(b"i/", write_id.as_bytes()), json(intent)?);
        self.kv.write(vec![change], false).map_err(failed)
    }

    /// Forgets an intent whose chunks are gone.
    pub fn end(&self, write_id: &str) -> Result<(), StoreError> {
        self.kv.write(vec![Change::Delete(tagged(b"i/", write_id.as_bytes()))], false).map_err(failed)
    }

    /// All intents.
    pub fn intents(&self) -> Result<Vec<(String, Intent)>, StoreError> {
        let pairs = self.kv.scan(b"i/", b"i/", usize::MAX).map_err(failed)?;
        pairs.iter().map(|(key, value)| Ok((String::from_utf8_lossy(&key[2..]).into_owned(), parsed("intent", value)?))).collect()
    }

    /// Whether `write_id` is noted as unfinished or as garbage.
    pub fn knows(&self, write_id: &str) -> Result<bool, StoreError> {
        for tag in [b"i/", b"g/"] {
            if self.kv.get(&tagged(tag, write_id.as_bytes())).map_err(failed)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes `record` the key's latest in one step: its intent goes, what it replaces becomes garbage, its time is noted.
    pub async fn commit(
        &self,
        record: &TensorRecord,
        replaced: &[(&str, Garbage)],
        due_ms: Option<u64>,
        sync: bool,
    ) -> Result<(), StoreError> {
        let key = record.key.as_str().as_bytes();
        let mut changes = vec![
            Change::Put(tagged(b"k/", key), record.without_inline().to_bytes()),
            Change::Delete(tagged(b"i/", record.write_id.as_bytes())),
        ];
        for (write_id, garbage) in replaced {
            changes.push(Change::Put(tagged(b"g/", write_id.as_bytes()), json(garbage)?));
        }
        if let Some(due) = due_ms {
            changes.push(Change::Put([b"e/", &due.to_be_bytes()[..], key].concat(), record.generation.to_be_bytes().to_vec()));
        }
        let changing = self.presences.change(&record.key);
        let written = if sync {
            // A sync waits for the disk: not on the runtime's threads.
            let kv = self.kv.clone();
            let written = self.seams.work(move || kv.write(changes, true)).await;
            written.unwrap_or_else(|| Err(BackendError::Config("the write was interrupted".into())))
        } else {
            self.kv.write(changes, false)
        };
        written.map_err(failed)?;
        changing.made(Presence::of(Some(record)));
        self.fresh_garbage.lock().extend(replaced.iter().map(|(write_id, _)| (*write_id).to_owned()));
        Ok(())
    }

    /// Forgets a record whose contents are lost.
    pub fn forget(&self, record: &TensorRecord, garbage: &Garbage) -> Result<(), StoreError> {
        let changes = vec![
            Change::Delete(tagged(b"k/", record.key.as_str().as_bytes())),
            Change::Put(tagged(b"g/", record.write_id.as_bytes()), json(garbage)?),
        ];
        let changing = self.presences.change(&record.key);
        self.kv.write(changes, true).map_err(failed)?;
        changing.made(Presence::of(None));
        self.fresh_garbage.lock().insert(record.write_id.clone());
        Ok(())
    }

    /// The garbage that was noted since the start and is not gone.
    pub fn fresh_garbage(&self) -> Vec<String> {
        self.fresh_garbage.lock().iter().cloned().collect()
    }

    /// Up to `limit` pieces of garbage after `after`.
    pub fn garbage(&self, after: &str, limit: usize) -> Result<Vec<(String, Garbage)>, StoreError> {
        let from = [b"g/", after.as_bytes(), &[0]].concat();
        let pairs = self.kv.scan(b"g/", &from, limit).map_err(failed)?;
        pairs.iter().map(|(key, value)| Ok((String::from_utf8_lossy(&key[2..]).into_owned(), parsed("garbage", value)?))).collect()
    }

    /// One piece of garbage.
    pub fn garbage_of(&self, write_id: &str) -> Result<Option<Garbage>, StoreError> {
        let bytes = self.kv.get(&tagged(b"g/", write_id.as_bytes())).map_err(failed)?;
        if bytes.is_none() {
            self.fresh_garbage.lock().remove(write_id);
        }
        bytes.map(|bytes| parsed("garbage", &bytes)).transpose()
    }

    /// Forgets garbage that is gone.
    pub fn collected(&self, write_id: &str) -> Result<(), StoreError> {
        self.kv.write(vec![Change::Delete(tagged(b"g/", write_id.as_bytes()))], false).map_err(failed)?;
        self.fresh_garbage.lock().remove(write_id);
        Ok(())
    }

    /// Up to `limit` keys with something to do at or before `now_ms`: the entry's time, the key, the generation it was noted for.
    pub fn due(&self, now_ms: u64, limit: usize) -> Result<Vec<(u64, Key, u64)>, StoreError> {
        let pairs = self.kv.scan(b"e/", b"e/", limit).map_err(failed)?;
        let mut due = Vec::new();
        for (key, value) in pairs {
            let bad = || StoreError::Corrupt("catalog: an expiry entry".into());
            let (time, name) = key[2..].split_first_chunk::<8>().ok_or_else(bad)?;
            let time = u64::from_be_bytes(*time);
            if time > now_ms {
                break;
            }
            let name = std::str::from_utf8(name).map_err(|_| bad())?;
            due.push((time, name.parse()?, u64::from_be_bytes(value.try_into().map_err(|_| bad())?)));
        }
        Ok(due)
    }

    /// Keeps what is known of a job.
    pub fn save_job(&self, id: &str, job: &impl Serialize) -> Result<(), StoreError> {
        self.kv.write(vec![Change::Put(tagged(b"j/", id.as_bytes()), json(job)?)], false).map_err(failed)
    }

    /// Forgets a job.
    pub fn forget_job(&self, id: &str) -> Result<(), StoreError> {
        self.kv.write(vec![Change::Delete(tagged(b"j/", id.as_bytes()))], false).map_err(failed)
    }

    /// The jobs that are kept, by their ids; those that cannot be read are left out.
    pub fn jobs<T: for<'a> Deserialize<'a>>(&self) -> Result<Vec<T>, StoreError> {
        let pairs = self.kv.scan(b"j/", b"j/", usize::MAX).map_err(failed)?;
        Ok(pairs.iter().filter_map(|(_, value)| parsed("job", value).ok()).collect())
    }

    /// Forgets what was to be done at `time_ms`; with `tombstone`, the key's record as well.
    pub fn done(&self, time_ms: u64, key: &Key, tombstone: bool) -> Result<(), StoreError> {
        let name = key.as_str().as_bytes();
        let mut changes = vec![Change::Delete([b"e/", &time_ms.to_be_bytes()[..], name].concat())];
        if tombstone {
            changes.push(Change::Delete(tagged(b"k/", name)));
        }
        self.kv.write(changes, false).map_err(failed)
    }
}
