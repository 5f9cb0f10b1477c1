//! Moving the home of tensors from one backend to another.

use std::sync::Arc;

use globset::Glob;
use sira_backend::Durability;
use sira_wire::Code;

use crate::StoreError;
use crate::client::{Inner, needs};
use crate::read::{ChunkSource, inline};
use crate::record::{TensorRecord, chunk_name};
use crate::sink::{ChunkSink, put_chunk};
use crate::upkeep;

/// Keys looked at in one go.
const PAGE: usize = 1000;

pub(crate) async fn migrate(inner: &Arc<Inner>, source: &str, target: &str, pattern: &str) -> Result<u64, StoreError> {
    let glob = Glob::new(pattern).map_err(|e| StoreError::Config(format!("pattern {pattern:?}: {e}")))?.compile_matcher();
    inner.tier(source)?;
    inner.tier(target)?;
    let (mut moved, mut after) = (0, None::<String>);
    loop {
        let page = inner.catalog.records("", after.as_deref(), PAGE)?;
        for record in page.iter().filter(|record| record.alive(inner.now()) && glob.is_match(record.key.as_str())) {
            if record.parts.iter().flat_map(|part| &part.copies).any(|copy| copy.backend == source) {
                moved += u64::from(move_one(inner, record, source, target).await?);
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.to_string()),
            _ => return Ok(moved),
        }
    }
}

/// Copies the chunks as they are stored, then commits the record that names them; false if the key has changed meanwhile.
async fn move_one(inner: &Arc<Inner>, record: &TensorRecord, source: &str, target: &str) -> Result<bool, StoreError> {
    let _pin = inner.pins.pin(&record.write_id);
    let home = inner.tier(target)?;
    if home.keeps() < needs(record.consistency) {
        return Err(StoreError::Unsupported(format!("{}: backend {target} cannot keep {}", record.key, record.consistency)));
    }
    let write_id = inner.seams.write_id();
    let mut next = TensorRecord { write_id: write_id.clone(), ..record.clone() };
    let record = Arc::new(record.clone());
    ChunkSink::announce(inner, &home, &record.key, &write_id)?;
    let copied: Result<bool, StoreError> = async {
        for (index, part) in next.parts.iter_mut().enumerate() {
            if let Some(bytes) = &mut part.inline {
                // The index leaves them out; the next record has them again.
                *bytes = inline(inner, &record, index).await?;
            }
            for copy in part.copies.iter_mut().filter(|copy| copy.backend == source) {
                let chunks = ChunkSource::new(inner, &record, index, copy.clone())?;
                for cell in 0..chunks.grid.cells() {
                    let _memory = inner.reserve(copy.chunks[cell as usize].stored_bytes).await?;
                    put_chunk(inner, &home, &chunk_name(&write_id, index, cell), chunks.fetch(cell).await?, Durability::Durable).await?;
                }
                copy.backend = target.to_string();
                copy.write_id.clone_from(&write_id);
            }
        }
        let _turn = inner.lock(&record.key).await;
        let unchanged = inner.current(&record.key)?.is_some_and(|now| now.write_id == record.write_id);
        if unchanged {
            inner.append(&mut next, Durability::Durable).await?;
        }
        Ok(unchanged)
    }
    .await;
    match &copied {
        Ok(true) => {}
        // Whether the record was written is not known: the next start decides by its intent, so the chunks stay.
        Err(error) if error.code() == Code::Backend => {}
        _ => upkeep::sweep(inner, &home, &write_id).await?,
    }
    match copied {
        // Replaced while it was copied: left to its writer.
        Err(StoreError::Corrupt(_)) if inner.current(&record.key)?.is_none_or(|now| now.write_id != record.write_id) => Ok(false),
        copied => copied,
    }
}
