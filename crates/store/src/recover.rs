//! After a start: the index is matched with what the backends hold.

use std::sync::Arc;

use sira_backend::{PutMode, PutOptions, PutOutcome, Survives};

use crate::catalog::Garbage;
use crate::client::Inner;
use crate::record::{RECORDS, TensorRecord, record_prefix};
use crate::{StoreError, upkeep};

/// Where a record backend says which store it belongs to.
const STORE_ID: &str = "m/store";

/// Names looked at in one go.
const PAGE: usize = 1000;

/// Finishes what a crash left open: call before anything else.
pub(crate) async fn recover(inner: &Arc<Inner>) -> Result<(), StoreError> {
    let id = store_id(inner).await?;
    if inner.catalog.store_id()?.as_deref() != Some(&id) {
        rebuild(inner).await?;
        inner.catalog.set_store_id(&id)?;
    }
    for (write_id, intent) in inner.catalog.intents()? {
        resolve(inner, &write_id, &intent.key, &intent.backend).await?;
    }
    forget_lost(inner)
}

/// The id of the store in the record backend; a new one is given where there is none.
async fn store_id(inner: &Arc<Inner>) -> Result<Vec<u8>, StoreError> {
    let tier = inner.record_tier()?;
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let id = inner.seams.write_id().into_bytes();
    let outcome = tier.backend.put(STORE_ID, id.clone().into(), options).await.map_err(|e| tier.failed(e))?;
    if outcome == PutOutcome::Written {
        return Ok(id);
    }
    let found = tier.backend.get(STORE_ID, None).await.map_err(|e| tier.failed(e))?;
    Ok(found.map(|bytes| bytes.to_vec()).unwrap_or(id))
}

/// Reads all records of the record backend into an index that is missing, or another store's. The last record of a key wins;
/// those before it are garbage.
async fn rebuild(inner: &Arc<Inner>) -> Result<(), StoreError> {
    let tier = inner.record_tier()?;
    let (mut after, mut count) = (None::<String>, 0u64);
    loop {
        let names = tier.backend.list_keys(RECORDS, after.as_deref(), PAGE).await.map_err(|e| tier.failed(e))?;
        for name in &names {
            let Some(bytes) = tier.backend.get(name, None).await.map_err(|e| tier.failed(e))? else { continue };
            let record = match TensorRecord::from_bytes(&format!("{name} in {}", tier.name), &bytes) {
                Ok(record) => record,
                Err(error @ StoreError::Corrupt(_)) => {
                    tracing::error!(%error, "skipped");
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Names of a key end in its generation, so that they come in order.
            let before = inner.catalog.record(&record.key)?.filter(|before| before.generation < record.generation);
            inner.adopt(&record, before.as_ref()).await?;
            count += 1;
        }
        match names.last() {
            Some(last) if names.len() == PAGE => after = Some(last.clone()),
            _ => break,
        }
    }
    if count > 0 {
        tracing::info!(records = count, backend = tier.name, "index rebuilt");
    }
    Ok(())
}

/// Decides an unfinished write: if its record was written it counts, otherwise its chunks go.
async fn resolve(inner: &Arc<Inner>, write_id: &str, key: &str, backend: &str) -> Result<(), StoreError> {
    let key = key.parse()?;
    let stored = inner.catalog.record(&key)?;
    let generation = stored.as_ref().map_or(0, |record| record.generation) + 1;
    let tier = inner.record_tier()?;
    let name = format!("{}/!{generation:016x}", record_prefix(&key));
    if let Some(bytes) = tier.backend.get(&name, None).await.map_err(|e| tier.failed(e))? {
        let record = TensorRecord::from_bytes(&format!("{name} in {}", tier.name), &bytes)?;
        if record.write_id == write_id {
            return inner.adopt(&record, stored.as_ref()).await;
        }
    }
    upkeep::sweep(inner, &*inner.tier(backend)?, write_id).await
}

/// Records whose home does not survive a restart are forgotten: what they name is gone.
fn forget_lost(inner: &Arc<Inner>) -> Result<(), StoreError> {
    let volatile = |name: &str| inner.tier(name).is_ok_and(|tier| tier.keeps() == Survives::Nothing);
    if !inner.all_tiers().iter().any(|tier| volatile(&tier.name)) {
        return Ok(());
    }
    let records_lost = volatile(&inner.options.record_backend);
    let mut after = None::<String>;
    loop {
        let page = inner.catalog.records("", after.as_deref(), PAGE)?;
        for record in &page {
            let lost = records_lost || record.parts.iter().flat_map(|part| &part.copies).any(|copy| volatile(&copy.backend));
            if lost {
                inner.catalog.forget(record, &Garbage::of(record, None))?;
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.to_string()),
            _ => return Ok(()),
        }
    }
}
