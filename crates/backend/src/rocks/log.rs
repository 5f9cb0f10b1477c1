//! A look at the files of a database before RocksDB opens it.
//!
//! RocksDB, asked to tolerate only a torn tail of its log, reports most damage but not all: a flipped bit in a length near the
//! end, or in the type of the first record, looks to it like the end of the log, and one in the type of a later record makes it
//! read that record for ever. A folder that lost the file `CURRENT` it takes for an empty one, and starts anew. So the logs are read
//! here first, by their format: blocks of 32 KiB with records of a masked CRC-32C of type and bytes, a length, a type, and the bytes.
//! After a clean close there is next to nothing to read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;

/// What is damaged in the folder of a database, as far as this can be seen without RocksDB.
pub(super) fn damage(folder: &Path) -> io::Result<Option<String>> {
    let mut logs = Vec::new();
    let mut pieces = 0;
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some((number, kind)) = name.split_once('.') else { continue };
        if number.bytes().all(|byte| byte.is_ascii_digit()) && ["log", "sst", "blob"].contains(&kind) {
            pieces += 1;
            if kind == "log" {
                logs.push(name);
            }
        }
    }
    // Asked for by name: another process that has the database open may just be replacing it.
    if pieces > 0 && !folder.join("CURRENT").try_exists()? {
        return Ok(Some("its file CURRENT is missing".into()));
    }
    logs.sort();
    for name in logs {
        let file = match File::open(folder.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        if let Some(at) = damage_of(file)? {
            return Ok(Some(format!("its log {name} is damaged at byte {at}, before its end")));
        }
    }
    Ok(None)
}

/// Where a log is damaged elsewhere than in a torn tail.
pub(crate) fn damage_of(mut log: impl Read) -> io::Result<Option<u64>> {
    let mut block = Vec::with_capacity(BLOCK);
    let mut start = 0;
    // The place from which there are only zeros: those that some file systems leave at the end after power loss.
    let mut zeros = None;
    loop {
        block.clear();
        log.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        let mut at = 0;
        while zeros.is_none() && block.len() - at >= HEADER {
            match record(&block[at..], BLOCK - at) {
                Some(len) => at += len,
                None if block[at..].iter().all(|byte| *byte == 0) => zeros = Some(start + at as u64),
                None if block.len() < BLOCK && is_torn(&block[at..], BLOCK - at) => return Ok(None),
                None => return Ok(Some(start + at as u64)),
            }
        }
        if zeros.is_some() && block[at..].iter().any(|byte| *byte != 0) {
            return Ok(zeros);
        }
        if block.len() < BLOCK {
            return Ok(None);
        }
        start += BLOCK as u64;
    }
}

/// The bytes of the whole and sound record that `bytes` start with; it may take `room` bytes.
fn record(bytes: &[u8], room: usize) -> Option<usize> {
    let end = end(bytes).filter(|end| *end <= room)?;
    let checksum = u32::from_le_bytes(*bytes.first_chunk()?);
    (masked(crc32c(bytes.get(6..end)?)) == checksum).then_some(end)
}

/// Where a record ends by its header, if it has a type that this database writes: a full one, or the first, a middle, the last piece.
fn end(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<HEADER>()?;
    (1..=4).contains(&header[6]).then_some(HEADER + usize::from(u16::from_le_bytes([header[4], header[5]])))
}

/// Whether the end of a log is a record that was not written to its end, rather than a damaged one: it would fit its block, and no
/// sound record comes behind.
fn is_torn(tail: &[u8], room: usize) -> bool {
    let cut = end(tail).is_some_and(|end| end > tail.len() && end <= room);
    cut && (1..tail.len()).all(|at| record(&tail[at..], room - at).is_none())
}

/// As it lies in the file.
fn masked(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| (sum >> 8) ^ TABLE[usize::from(sum as u8 ^ byte)])
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_format() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    fn log(records: &[(u8, usize)]) -> Vec<u8> {
        let mut log = Vec::new();
        for (kind, len) in records {
            let mut body = vec![*kind];
            body.resize(len + 1, 9);
            log.extend(masked(crc32c(&body)).to_le_bytes());
            log.extend((*len as u16).to_le_bytes());
            log.extend(body);
        }
        log
    }

    #[test]
    fn a_torn_tail_is_no_damage_and_all_else_is() {
        let whole = log(&[(1, 100), (2, BLOCK - 107 - HEADER), (4, 50), (1, 3), (1, 0)]);
        for len in (0..300).chain(BLOCK - 20..=whole.len()) {
            assert_eq!(damage_of(&whole[..len]).unwrap(), None, "cut to {len}");
        }
        let last = whole.len() - HEADER;
        for bit in (0..110 * 8).chain((BLOCK - 5) * 8..last * 8) {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(damage_of(bad.as_slice()).unwrap().is_some(), "bit {bit}");
        }
        let mut zeros = whole.clone();
        zeros.resize(3 * BLOCK + 5, 0);
        assert_eq!(damage_of(zeros.as_slice()).unwrap(), None);
        zeros.extend(b"more");
        assert_eq!(damage_of(zeros.as_slice()).unwrap(), Some(whole.len() as u64));
        let mut hole = whole.clone();
        hole[..BLOCK].fill(0);
        assert_eq!(damage_of(hole.as_slice()).unwrap(), Some(0));
    }
}
