//! Avro's object container file: a header, then blocks of a count, a length, the records' bytes, and the file's marker.
//!
//! apache-avro has the records. The container is here, since exports need what its reader and writer hide: where each block begins, and whether
//! a file ends between two blocks or within one.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use super::{Codec, MAX_BLOCK, schema};

const MAGIC: &[u8; 4] = b"Obj\x01";
/// Bytes of the marker that ends the header and every block.
pub const MARKER: usize = 16;
/// Bytes of one name or value of the metadata, entries of it.
const MAX_METADATA: (u64, usize) = (1 << 20, 256);
const SCHEMA: &str = "avro.schema";
const CODEC: &str = "avro.codec";

/// Why a file cannot be read on.
#[derive(Debug)]
pub enum Fault {
    /// The system failed.
    Io(io::Error),
    /// The file ends in the middle of something, as when its writer was killed.
    Torn,
    /// The file says what no writer would.
    Bad(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Fault::Torn,
            _ => Fault::Io(error),
        }
    }
}

/// What a file's header says.
#[derive(Debug)]
pub struct FileHeader {
    pub codec: Codec,
    pub marker: [u8; MARKER],
    pub schema: apache_avro::Schema,
    /// Without Avro's own names.
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// A block as it is decoded.
#[derive(Debug)]
pub struct Block {
    /// Where it begins in the file.
    pub start: u64,
    pub records: u64,
    pub data: Vec<u8>,
}

/// Appends a number as Avro writes it: zigzag, seven bits a byte.
pub fn put_long(to: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest > 0x7f {
        to.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    to.push(rest as u8);
}

/// The header of a file.
pub fn file_header(codec: Codec, marker: &[u8; MARKER], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    let avro = [(SCHEMA, schema::TEXT), (CODEC, codec.name())];
    let entries = avro.iter().chain(metadata);
    put_long(&mut header, (avro.len() + metadata.len()) as i64);
    for text in entries.flat_map(|&(name, value)| [name, value]) {
        put_long(&mut header, text.len() as i64);
        header.extend_from_slice(text.as_bytes());
    }
    put_long(&mut header, 0);
    header.extend_from_slice(marker);
    header
}

/// A file that is read, and how far it has been.
#[derive(Debug)]
pub struct Input<R> {
    source: R,
    at: u64,
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl<R: Read> Input<R> {
    pub fn new(source: R) -> Input<R> {
        Input { source, at: 0 }
    }

    /// Bytes of the file that were read.
    pub fn at(&self) -> u64 {
        self.at
    }

    pub fn header(&mut self) -> Result<FileHeader, Fault> {
        let mut magic = [0; 4];
        self.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(Fault::Bad("not an Avro object container file, which begins with Obj and a 1".into()));
        }
        let mut metadata = BTreeMap::new();
        loop {
            let count = self.long()?;
            if count == 0 {
                break;
            }
            if count < 0 {
                self.long()?; // bytes of this run of entries, for readers that skip it
            }
            for _ in 0..count.unsigned_abs() {
                if metadata.len() >= MAX_METADATA.1 {
                    return Err(Fault::Bad(format!("more than {} entries of metadata", MAX_METADATA.1)));
                }
                let name = self.text()?;
                metadata.insert(String::from_utf8_lossy(&name).into_owned(), self.text()?);
            }
        }
        let mut marker = [0; MARKER];
        self.read_exact(&mut marker)?;
        let text = metadata.remove(SCHEMA).ok_or_else(|| Fault::Bad("no schema in the file's metadata".into()))?;
        let codec = Codec::of_name(metadata.remove(CODEC).as_deref()).map_err(Fault::Bad)?;
        Ok(FileHeader { codec, marker, schema: schema::parse(&text).map_err(Fault::Bad)?, metadata })
    }

    /// The next block; `None` where the file ends.
    pub fn block(&mut self, codec: Codec, marker: &[u8; MARKER]) -> Result<Option<Block>, Fault> {
        let start = self.at;
        let Some(records) = self.long_or_end()? else { return Ok(None) };
        let records = u64::try_from(records).map_err(|_| Fault::Bad(format!("a block of {records} records")))?;
        let data = self.bytes(MAX_BLOCK as u64, "a block")?;
        let mut found = [0; MARKER];
        self.read_exact(&mut found)?;
        if found != *marker {
            return Err(Fault::Bad("a block does not end in the file's marker".into()));
        }
        let data = codec.decode(data).map_err(|error| Fault::Bad(format!("a block is not {}: {error}", codec.name())))?;
        Ok(Some(Block { start, records, data }))
    }

    fn text(&mut self) -> Result<Vec<u8>, Fault> {
        self.bytes(MAX_METADATA.0, "an entry of the metadata")
    }

    fn bytes(&mut self, limit: u64, what: &str) -> Result<Vec<u8>, Fault> {
        let len = self.long()?;
        let Some(len) = u64::try_from(len).ok().filter(|&len| len <= limit) else {
            return Err(Fault::Bad(format!("{what} of {len} bytes; at most {limit} are read")));
        };
        let mut bytes = Vec::with_capacity(len as usize);
        self.take(len).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(Fault::Torn) }
    }

    fn long(&mut self) -> Result<i64, Fault> {
        self.long_or_end()?.ok_or(Fault::Torn)
    }

    /// A number; `None` where the file ends before it.
    fn long_or_end(&mut self) -> Result<Option<i64>, Fault> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            match self.read_exact(&mut byte) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && shift == 0 => return Ok(None),
                other => other?,
            }
            if shift == 63 && byte[0] > 1 {
                break;
            }
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed()));
            }
        }
        Err(Fault::Bad("a number of more than 64 bits".into()))
    }
}

impl<R: Seek> Input<R> {
    /// Goes on reading at another place.
    pub fn seek(&mut self, at: u64) -> io::Result<()> {
        self.at = self.source.seek(SeekFrom::Start(at))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for value in [0, -1, 1, 63, 64, -64, -65, 1 << 40, i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            put_long(&mut bytes, value);
            assert_eq!(Input::new(bytes.as_slice()).long().unwrap(), value);
        }
        assert!(matches!(Input::new([0x80].as_slice()).long_or_end(), Err(Fault::Torn)));
        assert!(matches!(Input::new([0xff; 20].as_slice()).long(), Err(Fault::Bad(_))));
    }

    #[test]
    fn sizes_are_checked_before_memory_is_taken() {
        let mut block = Vec::new();
        put_long(&mut block, 1);
        put_long(&mut block, i64::MAX);
        let Err(Fault::Bad(reason)) = Input::new(block.as_slice()).block(Codec::Null, &[0; MARKER]) else { unreachable!() };
        assert!(reason.contains("at most 16777216 are read"), "{reason}");
        let mut header = MAGIC.to_vec();
        put_long(&mut header, i64::MIN);
        put_long(&mut header, 0);
        put_long(&mut header, -5);
        assert!(matches!(Input::new(header.as_slice()).header(), Err(Fault::Bad(_))));
    }
}
