//! Reads an export, a record at a time, and believes nothing of it.

use std::fmt;
use std::io::{Read, Seek};

use apache_avro::reader::datum::GenericDatumReader;
use bytes::Bytes;
use sira_wire::Key;
use sira_wire::many::MAX_PARTS;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::container::{Block, Fault, FileHeader, Input, MARKER};
use super::{Chunk, Codec, End, Header, Record, VERSION, metadata, signed};

/// What comes next in an export.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A tensor begins. Its parts are what they say, see [`super::Part::spec`].
    Begin(Header),
    /// The next bytes of the tensor, verified: of its parts, one after another.
    Data(Bytes),
    /// The tensor is whole, and its checksums are right.
    End,
}

/// A place between two records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Where a block begins in the file.
    pub block: u64,
    /// Records of it that come before.
    pub record: u64,
}

/// Why an export cannot be read on.
#[derive(Debug)]
pub struct ReadError {
    /// Where the block begins that is to blame.
    pub at: u64,
    /// The tensor that was being read.
    pub key: Option<String>,
    fault: Fault,
}

impl ReadError {
    /// Whether the file only ends too early.
    pub fn is_torn(&self) -> bool {
        matches!(self.fault, Fault::Torn)
    }

    /// Whether it is the file that is wrong, not the system that reads it.
    pub fn is_damage(&self) -> bool {
        !matches!(self.fault, Fault::Io(_))
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}", self.at)?;
        if let Some(key) = &self.key {
            write!(f, ", tensor {key}")?;
        }
        match &self.fault {
            Fault::Io(error) => write!(f, ": {error}"),
            Fault::Torn => f.write_str(": the file ends in the middle of it"),
            Fault::Bad(reason) => write!(f, ": {reason}"),
        }
    }
}

impl std::error::Error for ReadError {}

/// An export that is being read.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    header: FileHeader,
    prefix: String,
    block: Block,
    /// Bytes and records of the block that were read.
    used: usize,
    record: u64,
    tensor: Option<Open>,
}

/// A tensor that is being read.
#[derive(Debug)]
struct Open {
    header: Header,
    sizes: Vec<u64>,
    part: usize,
    offset: u64,
    chunks: i64,
    whole: Box<Checksum>,
    header_xxh3: i64,
}

/// A running XXH3-64.
#[derive(Default)]
struct Checksum(Xxh3Default);

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0.digest())
    }
}

impl<R: Read> Reader<R> {
    /// Reads the file's header.
    pub fn new(source: R) -> Result<Reader<R>, ReadError> {
        let mut input = Input::new(source);
        let whole_file = |fault| ReadError { at: 0, key: None, fault };
        let header = input.header().map_err(whole_file)?;
        let text = |name: &str| header.metadata.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
        if let Some(version) = text(metadata::VERSION).filter(|version| version != VERSION) {
            let reason = format!("an export of version {}; this program reads {VERSION}", shown(&version));
            return Err(whole_file(Fault::Bad(reason)));
        }
        let prefix = text(metadata::PREFIX).unwrap_or_default();
        let block = Block { start: input.at(), records: 0, data: Vec::new() };
        Ok(Reader { input, header, prefix, block, used: 0, record: 0, tensor: None })
    }

    /// What the keys of the file begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// How its blocks are compressed.
    pub fn codec(&self) -> Codec {
        self.header.codec
    }

    /// The marker, random, by which a file is known again.
    pub fn marker(&self) -> [u8; MARKER] {
        self.header.marker
    }

    /// Bytes of the file that were read.
    pub fn at(&self) -> u64 {
        self.input.at()
    }

    /// The place behind the last record.
    pub fn place(&self) -> Place {
        match self.block_end() {
            Some(block) => Place { block, record: 0 },
            None => Place { block: self.block.start, record: self.record },
        }
    }

    /// Where the block ends, when all its records were read.
    pub fn block_end(&self) -> Option<u64> {
        (self.record == self.block.records).then(|| self.input.at())
    }

    /// The next event; `None` where the file ends behind a whole tensor. After an error there is nothing more to ask for.
    pub fn read(&mut self) -> Result<Option<Event>, ReadError> {
        let taken = self.take().and_then(|taken| match taken {
            Some((record, xxh3)) => self.event(record, xxh3).map(Some).map_err(Fault::Bad),
            None if self.tensor.is_some() => Err(Fault::Torn),
            None => Ok(None),
        });
        taken.map_err(|fault| self.error(fault))
    }

    fn error(&self, fault: Fault) -> ReadError {
        // Records that were read belong to this block; else it is the next one that could not be read.
        let at = if self.used > 0 || self.block.records > self.record { self.block.start } else { self.input.at() };
        ReadError { at, key: self.tensor.as_ref().map(|tensor| tensor.header.key.clone()), fault }
    }

    /// The next record, and the checksum of its bytes if it is a header.
    fn take(&mut self) -> Result<Option<(Record, i64)>, Fault> {
        while self.record == self.block.records {
            if self.used < self.block.data.len() {
                return Err(Fault::Bad(format!("a block has {} bytes behind its last record", self.block.data.len() - self.used)));
            }
            let start = self.input.at();
            // So that an error is told of the block that has it.
            (self.block, self.used, self.record) = (Block { start, records: 1, data: Vec::new() }, 0, 0);
            let Some(block) = self.input.block(self.header.codec, &self.header.marker)? else {
                self.block.records = 0;
                return Ok(None);
            };
            self.block = block;
        }
        let mut rest = &self.block.data[self.used..];
        let decoder = GenericDatumReader::builder(&self.header.schema).build();
        let record: Record = decoder.and_then(|decoder| decoder.read_deser(&mut rest)).map_err(|error| Fault::Bad(reason(&error)))?;
        let end = self.block.data.len() - rest.len();
        let xxh3 = record.header.as_ref().map_or(0, |_| signed(xxh3_64(&self.block.data[self.used..end])));
        self.used = end;
        self.record += 1;
        Ok(Some((record, xxh3)))
    }

    fn event(&mut self, record: Record, xxh3: i64) -> Result<Event, String> {
        match (record, &mut self.tensor) {
            (Record { header: Some(header), chunk: None, end: None }, None) => {
                self.tensor = Some(Open::new(header.clone(), xxh3)?);
                Ok(Event::Begin(header))
            }
            (Record { header: None, chunk: Some(chunk), end: None }, Some(tensor)) => tensor.chunk(chunk).map(Event::Data),
            (Record { header: None, chunk: None, end: Some(end) }, Some(tensor)) => {
                tensor.end(&end)?;
                self.tensor = None;
                Ok(Event::End)
            }
            (Record { header: Some(header), chunk: None, end: None }, Some(_)) => {
                Err(format!("{} begins before this tensor's end", shown(&header.key)))
            }
            (Record { header: None, chunk: Some(_), end: None } | Record { header: None, chunk: None, end: Some(_) }, None) => {
                Err("a chunk or an end without a header".into())
            }
            _ => Err("a record is a header, a chunk or an end: one of them".into()),
        }
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Goes on at a place that [`Reader::place`] gave, behind a tensor's end.
    pub fn go_to(&mut self, place: Place) -> Result<(), ReadError> {
        self.input.seek(place.block).map_err(|error| self.error(Fault::Io(error)))?;
        self.block = Block { start: place.block, records: 0, data: Vec::new() };
        (self.used, self.record, self.tensor) = (0, 0, None);
        for _ in 0..place.record {
            let taken = self.take().and_then(|taken| taken.ok_or(Fault::Torn));
            taken.map_err(|fault| self.error(fault))?;
        }
        Ok(())
    }
}

impl Open {
    fn new(header: Header, header_xxh3: i64) -> Result<Open, String> {
        let part =
            |part: &super::Part| part.spec().map(|spec| spec.nbytes()).map_err(|error| format!("part {}: {error}", shown(&part.name)));
        let wrong = |error: String| format!("tensor {}: {error}", shown(&header.key));
        let sizes = header.parts.iter().map(part).collect::<Result<Vec<u64>, String>>().map_err(wrong)?;
        // A key that is none may hold anything, such as commands to the terminal that errors are shown on.
        header.key.parse::<Key>().map_err(|error| wrong(error.to_string()))?;
        if sizes.is_empty() || sizes.len() > MAX_PARTS {
            return Err(wrong(format!("{} parts; a key has 1 to {MAX_PARTS}", sizes.len())));
        }
        for (i, part) in header.parts.iter().enumerate() {
            if header.parts[..i].iter().any(|other| other.name == part.name) {
                return Err(wrong(format!("two parts are called {}", shown(&part.name))));
            }
        }
        let mut open = Open { header, sizes, part: 0, offset: 0, chunks: 0, whole: Box::default(), header_xxh3 };
        open.next_part();
        Ok(open)
    }

    /// Leaves the parts that are whole, empty ones among them.
    fn next_part(&mut self) {
        while self.sizes.get(self.part) == Some(&self.offset) {
            self.part += 1;
            self.offset = 0;
        }
    }

    fn chunk(&mut self, chunk: Chunk) -> Result<Bytes, String> {
        let Some(&size) = self.sizes.get(self.part) else { return Err("a chunk behind its last byte".into()) };
        let (part, offset, len) = (self.part as i32, self.offset.cast_signed(), chunk.data.len() as u64);
        if chunk.key != self.header.key || chunk.part != part || chunk.offset != offset {
            let found = format!("{}, part {}, byte {}", shown(&chunk.key), chunk.part, chunk.offset);
            return Err(format!("a chunk of {found}, where that of part {part}, byte {offset} belongs"));
        }
        if chunk.data.is_empty() || len > size - self.offset {
            return Err(format!("a chunk of {len} bytes at byte {offset} of a part of {size}"));
        }
        if signed(xxh3_64(&chunk.data)) != chunk.xxh3 {
            return Err(format!("the checksum of the chunk at byte {offset} of part {part} is wrong: the file is damaged"));
        }
        self.whole.0.update(&chunk.data);
        self.chunks += 1;
        self.offset += len;
        self.next_part();
        Ok(chunk.data)
    }

    fn end(&self, end: &End) -> Result<(), String> {
        let nbytes: u64 = self.sizes.iter().take(self.part).sum::<u64>() + self.offset;
        if self.part < self.sizes.len() {
            return Err(format!("its end comes after {nbytes} of {} bytes", self.header.nbytes()));
        }
        if end.key != self.header.key || end.chunks != self.chunks || end.nbytes != nbytes.cast_signed() {
            let found = format!("{}, {} chunks, {} bytes", shown(&end.key), end.chunks, end.nbytes);
            return Err(format!("its end says {found}; {} chunks, {nbytes} bytes came", self.chunks));
        }
        if end.header_xxh3.is_some_and(|xxh3| xxh3 != self.header_xxh3) {
            return Err("the checksum of its header is wrong: the file is damaged".into());
        }
        match signed(self.whole.0.digest()) == end.xxh3 {
            true => Ok(()),
            false => Err("the checksum of all its bytes is wrong: the file is damaged".into()),
        }
    }
}

/// A text from a file, as an error shows it.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(100).collect::<String>())
}

/// What apache-avro says, without the schema that it repeats.
fn reason(error: &apache_avro::Error) -> String {
    let text = error.to_string();
    let short: String = text.chars().take(200).collect();
    format!("a record is not what the schema says: {short}")
}
