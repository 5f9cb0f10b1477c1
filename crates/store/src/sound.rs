//! What must hold of a record that was read, so that its numbers can be added up: its checksum says that it came as it was written, not who wrote it.

use sira_wire::many::MAX_PARTS;

use crate::record::{Part, TensorRecord};

/// The largest number that counts or times may be: there is always a next one, and a grace can be added.
const MOST: u64 = i64::MAX as u64;

/// Says what is wrong with a record.
pub(crate) fn check(record: &TensorRecord) -> Result<(), String> {
    let TensorRecord { version, generation, created_ms, expires_ms, parts, .. } = record;
    if [*version, *generation, *created_ms, expires_ms.unwrap_or(0)].iter().any(|number| *number > MOST) {
        return Err(format!("version {version}, generation {generation}, times {created_ms} and {expires_ms:?}: at most {MOST}"));
    }
    if parts.is_empty() != record.tombstone || parts.len() > MAX_PARTS {
        return Err(format!("{} parts; a key has 1 to {MAX_PARTS}, and a tombstone none", parts.len()));
    }
    sum(parts.iter().map(|part| part.spec.nbytes())).ok_or("parts of more bytes than any machine has")?;
    parts.iter().try_for_each(|part| of_part(part).map_err(|reason| format!("part {:?}: {reason}", part.name)))
}

fn of_part(part: &Part) -> Result<(), String> {
    sum(part.copies.iter().flat_map(|copy| &copy.chunks).map(|chunk| chunk.stored_bytes))
        .ok_or("chunks of more bytes than any machine has")?;
    for copy in &part.copies {
        if let Some((of, error)) = copy.errors.iter().find(|(_, error)| !error.is_finite() || **error < 0.0) {
            return Err(format!("an error of {error} in {of:?}"));
        }
        if let Some(chunk) = copy.chunks.iter().find(|chunk| chunk.chain as usize >= copy.chains.len()) {
            return Err(format!("codec chain {} of {}", chunk.chain, copy.chains.len()));
        }
    }
    Ok(())
}

/// The sum, where it can be.
fn sum(mut numbers: impl Iterator<Item = u64>) -> Option<u64> {
    numbers.try_fold(0u64, |sum, number| sum.checked_add(number).filter(|sum| *sum <= MOST))
}
