//! Calibration artefacts that codecs of this client need: fetched once from the server, and kept.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use sira_codec::Calibration;
use sira_tensor::kv;
use sira_wire::namespace::CALIBRATIONS;
use sira_wire::{Code, Key, Ticket, WireError};

use crate::ClientError;
use crate::client::json;
use crate::get_into::Incoming;
use crate::get_parallel::memory_for;
use crate::http2::Pool;

/// Artefacts that are kept; a client has to do with few models.
const KEPT: usize = 4;

/// The artefacts that were used lately; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calibrations(Arc<Mutex<Vec<Arc<Calibration>>>>);

impl Calibrations {
    /// The artefact of this hash, if it is here.
    pub fn get(&self, hash: &str) -> Option<Arc<Calibration>> {
        self.0.lock().iter().find(|calibration| calibration.hash() == hash).cloned()
    }

    /// The artefact of this hash, from the server where it is not here yet.
    pub async fn fetch(&self, pool: &Pool, hash: &str, end: Option<Instant>) -> Result<Arc<Calibration>, ClientError> {
        if let Some(calibration) = self.get(hash) {
            return Ok(calibration);
        }
        let wrong = |reason: String| ClientError::Refused(WireError::new(Code::Corrupt, format!("calibration {hash}: {reason}")));
        let key: Key = format!("{CALIBRATIONS}/{hash}").parse()?;
        let incoming = Incoming::open_plain(pool, &json(&Ticket::whole(&key))?, end).await?;
        let nbytes = memory_for(&incoming.spec)?;
        if nbytes > Calibration::MAX_LEN {
            return Err(wrong(format!("{nbytes} bytes; at most {} are read", Calibration::MAX_LEN)));
        }
        let mut bytes = vec![0; nbytes];
        incoming.read_into(&mut bytes).await?;
        if kv::hash(&bytes) != hash {
            return Err(wrong("the server gave bytes of another hash".into()));
        }
        let calibration = Arc::new(Calibration::from_bytes(&bytes).map_err(|error| wrong(error.to_string()))?);
        let mut kept = self.0.lock();
        kept.insert(0, calibration.clone());
        kept.truncate(KEPT);
        Ok(calibration)
    }
}
