//! After a start: the index is matched with what the backends hold.

use std::sync::Arc;

use sira_backend::name::unescape;
use sira_backend::{BackendError, PutMode, PutOptions, PutOutcome, Survives};
use sira_wire::{Code, Key};

use crate::catalog::Garbage;
use crate::client::Inner;
use crate::record::{Part, RECORDS, TensorRecord, record_prefix};
use crate::{StoreError, upkeep};

/// Where a record backend says which store it belongs to.
const STORE_ID: &str = "m/store";

/// Names looked at in one go.
const PAGE: usize = 1000;

/// Matches the index with the records, and finishes what a crash left open: call before anything else.
pub(crate) async fn recover(inner: &Arc<Inner>) -> Result<(), StoreError> {
    let known = inner.catalog.store_id()?;
    match store_id(inner).await {
        Ok(id) if known.as_deref() == Some(&id) => {}
        Ok(id) => {
            // Another store's records, or none yet: what is indexed here is not theirs.
            inner.catalog.clear()?;
            inner.catalog.set_store_id(&id)?;
        }
        // One damaged block must not keep all the rest from being read.
        Err(error) if error.code() == Code::Corrupt && known.is_some() => {
            tracing::error!(%error, "the backend does not say whose records it has")
        }
        Err(error) => return Err(error),
    }
    match reconcile(inner).await {
        Err(error) if error.code() == Code::Corrupt && known.is_some() => {
            tracing::error!(%error, "records cannot be listed; the index stays as it is");
        }
        result => result?,
    }
    for (write_id, intent) in inner.catalog.intents()? {
        resolve(inner, &write_id, &intent.key, &intent.backend).await?;
    }
    forget_lost(inner)?;
    inner.load_policies().await?;
    inner.take_stock()
}

/// The id of the store in the record backend; a new one is given where there is none.
async fn store_id(inner: &Arc<Inner>) -> Result<Vec<u8>, StoreError> {
    let tier = inner.record_tier()?;
    if let Some(found) = tier.backend.get(STORE_ID, None).await.map_err(|e| tier.failed(e))? {
        return Ok(found.to_vec());
    }
    // A folder that is not there (a disk that was not mounted) looks like a new store, and a scrub would then collect what the other
    // backends hold.
    if tier.keeps() > Survives::Nothing && !inner.catalog.records("", None, 1)?.is_empty() {
        return Err(StoreError::Config(format!(
            "backend {} is empty, but the catalog knows keys that were in it: is its disk mounted? To begin a new store all the same, delete the catalog",
            tier.name
        )));
    }
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let id = inner.seams.write_id().into_bytes();
    let outcome = tier.backend.put(STORE_ID, id.clone().into(), options).await.map_err(|e| tier.failed(e))?;
    if outcome == PutOutcome::Written {
        return Ok(id);
    }
    let found = tier.backend.get(STORE_ID, None).await.map_err(|e| tier.failed(e))?;
    Ok(found.map(|bytes| bytes.to_vec()).unwrap_or(id))
}

/// Takes every record that the index does not have, or has an older one of: the records are the truth, and the index may have lost the end of its
/// log. Only names are read where the index is right.
async fn reconcile(inner: &Arc<Inner>) -> Result<(), StoreError> {
    let tier = inner.record_tier()?;
    let (mut after, mut taken) = (None::<String>, 0u64);
    loop {
        let names = tier.backend.list_keys(RECORDS, after.as_deref(), PAGE).await.map_err(|e| tier.failed(e))?;
        for name in &names {
            // Names of a key end in its generation, so that they come in order, and the last one wins.
            if let Some((key, generation)) = record_of(name)
                && inner.catalog.record(&key)?.is_some_and(|record| record.generation >= generation)
            {
                continue;
            }
            let place = format!("{name} in {}", tier.name);
            let record = match tier.backend.get(name, None).await {
                Ok(Some(bytes)) => TensorRecord::from_bytes(&place, &bytes),
                Ok(None) => continue,
                Err(BackendError::Corrupt(reason)) => Err(StoreError::Corrupt(format!("record {place}: {reason}"))),
                Err(error) => return Err(tier.failed(error)),
            };
            let record = match record {
                Ok(record) => record,
                Err(error @ StoreError::Corrupt(_)) => {
                    tracing::error!(%error, "skipped");
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Superseded, and only waiting to be collected.
            if inner.catalog.garbage_of(&record.write_id)?.is_some() {
                continue;
            }
            let before = inner.catalog.record(&record.key)?;
            if before.as_ref().is_none_or(|before| before.generation < record.generation) {
                inner.adopt(&record, before).await?;
                taken += 1;
            }
        }
        match names.last() {
            Some(last) if names.len() == PAGE => after = Some(last.clone()),
            _ => break,
        }
    }
    if taken > 0 {
        tracing::info!(records = taken, backend = tier.name, "taken into the index");
    }
    Ok(())
}

/// The key and generation that a record's name tells of; `None` where the name was cut.
fn record_of(name: &str) -> Option<(Key, u64)> {
    let (key, generation) = name.strip_prefix(RECORDS)?.rsplit_once("/!")?;
    let (namespace, rest) = key.split_once('/')?;
    let text = |escaped: &str| String::from_utf8(unescape(escaped)?).ok();
    let key: Key = format!("{}/{}", text(namespace)?, text(rest)?).parse().ok()?;
    let generation = u64::from_str_radix(generation, 16).ok()?;
    // A name that was cut reads as another key.
    (name.rsplit_once("/!")?.0 == record_prefix(&key)).then_some((key, generation))
}

/// Decides an unfinished write: if its record was written it counts, otherwise its chunks go.
async fn resolve(inner: &Arc<Inner>, write_id: &str, key: &str, backend: &str) -> Result<(), StoreError> {
    let key = key.parse()?;
    let stored = inner.catalog.record(&key)?;
    let generation = stored.as_ref().map_or(0, |record| record.generation) + 1;
    let tier = inner.record_tier()?;
    let name = TensorRecord::name_of(&key, generation);
    if let Some(bytes) = tier.backend.get(&name, None).await.map_err(|e| tier.failed(e))? {
        let record = TensorRecord::from_bytes(&format!("{name} in {}", tier.name), &bytes)?;
        if record.write_id == write_id {
            return inner.adopt(&record, stored).await;
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
            // Of several copies, one that is there still is enough.
            let gone = |part: &Part| !part.copies.is_empty() && part.copies.iter().all(|copy| volatile(&copy.backend));
            let lost = records_lost || record.parts.iter().any(gone);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_records_tell_their_keys() {
        let longest = format!("ns/{}", "x".repeat(512));
        for text in ["ns/k", "a b/c/d//é", "@=:/!_z", &longest] {
            let key: Key = text.parse().unwrap();
            let name = format!("{}/!{:016x}", record_prefix(&key), 77);
            assert_eq!(record_of(&name), Some((key, 77)));
        }
        let cut: Key = format!("ns/{}", "é".repeat(256)).parse().unwrap();
        assert_eq!(record_of(&format!("{}/!{:016x}", record_prefix(&cut), 1)), None);
        assert_eq!(record_of("r/ns"), None);
    }
}
