//! Writes an export, a block at a time.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use apache_avro::writer::datum::GenericDatumWriter;
use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::container::{self, MARKER, put_long};
use super::{CHUNK, Chunk, Codec, End, Event, Header, Reader, Record, VERSION, is_artefact, metadata, schema, signed};

/// Bytes that a chunk or an end takes beside its data and key, at most: six numbers and three branches of unions.
const RECORD: usize = 80;

/// Where an export is until it is whole: beside its file.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// An export that is being written. It becomes its file when it is finished, and stays a `.partial` one otherwise.
///
/// A tensor lies within one block, whole, or has its blocks for itself: cutting the file behind any block in which a tensor ends leaves whole tensors.
pub struct Writer {
    pub(super) path: PathBuf,
    file: File,
    codec: Codec,
    marker: [u8; MARKER],
    records: GenericDatumWriter<'static>,
    /// The block that is being filled.
    block: Vec<u8>,
    count: i64,
    /// Bytes of the file.
    at: u64,
    /// Bytes of a chunk, and of a block that is closed; smaller in tests, so that small files have many.
    pub(super) chunk: usize,
    tensor: Option<Open>,
    resumed: Resumed,
}

/// What an export that goes on found there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Tensors that are there already.
    pub tensors: u64,
    /// Bytes of them.
    pub nbytes: u64,
    /// The key of the last one that came in the order of keys: calibration artefacts come before whatever needs them.
    pub last_key: Option<String>,
    /// Keys of the calibration artefacts.
    pub artefacts: BTreeSet<String>,
}

/// A tensor that is being written.
struct Open {
    key: String,
    /// Bytes that each part still has to come.
    left: Vec<u64>,
    part: usize,
    offset: u64,
    pending: BytesMut,
    chunks: i64,
    nbytes: i64,
    whole: Box<Xxh3Default>,
    header_xxh3: u64,
    /// File, block and records before it.
    before: (u64, usize, i64),
}

impl Writer {
    /// Begins an export. One that was interrupted is in the way: it is not thrown away silently.
    pub fn create(path: &Path, codec: Codec, prefix: &str) -> io::Result<Writer> {
        let open = OpenOptions::new().write(true).create_new(true).open(partial_path(path));
        let file = open.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                io::Error::new(error.kind(), "left by an interrupted export: go on with --resume, or remove it")
            }
            _ => error,
        })?;
        Writer::begin(path, file, codec, prefix)
    }

    /// Goes on with an export that was interrupted, behind its last whole tensor; begins one where there is none.
    ///
    /// Every checksum of what is there is verified. `codec` is that of the file, where there is one.
    pub fn resume(path: &Path, codec: Option<Codec>, prefix: &str) -> io::Result<Writer> {
        let partial = partial_path(path);
        let mut file = match OpenOptions::new().read(true).write(true).open(&partial) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Writer::create(path, codec.unwrap_or(Codec::Null), prefix),
            other => other?,
        };
        lock(&file)?;
        let mut reader = match Reader::new(BufReader::with_capacity(1 << 18, &file)) {
            Ok(reader) => reader,
            Err(error) if error.is_torn() => {
                file.set_len(0)?;
                return Writer::begin(path, file, codec.unwrap_or(Codec::Null), prefix);
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        if reader.prefix() != prefix {
            return Err(io::Error::other(format!("an export of {:?}, not of {prefix:?}", reader.prefix())));
        }
        let (marker, found) = (reader.marker(), reader.codec());
        if codec.is_some_and(|codec| codec != found) {
            return Err(io::Error::other(format!("its codec is {}, and an export has one", found.name())));
        }
        let (at, resumed) = whole_tensors(&mut reader)?;
        drop(reader);
        file.set_len(at)?;
        file.seek(SeekFrom::Start(at))?;
        Writer::new(path, file, found, marker, at, resumed)
    }

    fn begin(path: &Path, mut file: File, codec: Codec, prefix: &str) -> io::Result<Writer> {
        lock(&file)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis().to_string();
        let marker = *uuid::Uuid::new_v4().as_bytes();
        let entries = [(metadata::VERSION, VERSION), (metadata::PREFIX, prefix), (metadata::CREATED, &now)];
        let header = container::file_header(codec, &marker, &entries);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header)?;
        Writer::new(path, file, codec, marker, header.len() as u64, Resumed::default())
    }

    fn new(path: &Path, file: File, codec: Codec, marker: [u8; MARKER], at: u64, resumed: Resumed) -> io::Result<Writer> {
        let records = GenericDatumWriter::builder(schema::ours().map_err(io::Error::other)?).build().map_err(io::Error::other)?;
        let path = path.to_owned();
        Ok(Writer { path, file, codec, marker, records, block: Vec::new(), count: 0, at, chunk: CHUNK, tensor: None, resumed })
    }

    /// What was there of an export that goes on.
    pub fn resumed(&self) -> &Resumed {
        &self.resumed
    }

    /// Begins a tensor.
    pub fn header(&mut self, header: Header) -> io::Result<()> {
        let left: Vec<u64> = header.parts.iter().map(|part| u64::try_from(part.nbytes).unwrap_or(0)).collect();
        let (key, nbytes) = (header.key.clone(), header.nbytes());
        let mut bytes = Vec::new();
        self.records.write_ser(&mut bytes, &Record { header: Some(header), ..Record::default() }).map_err(io::Error::other)?;
        // Of a small tensor, each part is one chunk.
        let beside = bytes.len() + (left.len() + 1) * (key.len() + RECORD);
        let small = nbytes <= self.chunk as u64 && self.block.len() + beside + nbytes as usize <= self.chunk;
        if !small {
            self.flush()?;
        }
        let before = (self.at, self.block.len(), self.count);
        let header_xxh3 = xxh3_64(&bytes);
        self.block.extend_from_slice(&bytes);
        self.count += 1;
        let (whole, pending) = (Box::default(), BytesMut::new());
        self.tensor = Some(Open { key, left, part: 0, offset: 0, pending, chunks: 0, nbytes: 0, whole, header_xxh3, before });
        Ok(())
    }

    /// The next bytes of the tensor: of its parts, one after another.
    pub fn data(&mut self, mut piece: Bytes) -> io::Result<()> {
        while !piece.is_empty() {
            let Some(tensor) = &mut self.tensor else { return Err(io::Error::other("bytes of no tensor")) };
            let Some(&left) = tensor.left.get(tensor.part) else {
                return Err(io::Error::other(format!("{}: more bytes than its parts have", tensor.key)));
            };
            let room = (self.chunk - tensor.pending.len()).min(usize::try_from(left).unwrap_or(usize::MAX) - tensor.pending.len());
            let taken = piece.split_to(room.min(piece.len()));
            if taken.len() == room && tensor.pending.is_empty() {
                self.chunk(taken)?;
                continue;
            }
            tensor.pending.extend_from_slice(&taken);
            if taken.len() == room {
                let whole = tensor.pending.split().freeze();
                self.chunk(whole)?;
            }
        }
        Ok(())
    }

    /// Writes a chunk, which may be empty, and goes to the next part when this one is whole.
    fn chunk(&mut self, data: Bytes) -> io::Result<()> {
        let Some(tensor) = &mut self.tensor else { return Ok(()) };
        if !data.is_empty() {
            tensor.whole.update(&data);
            let len = data.len() as u64;
            let (part, offset, xxh3) = (tensor.part as i32, tensor.offset.cast_signed(), signed(xxh3_64(&data)));
            let chunk = Some(Chunk { key: tensor.key.clone(), part, offset, data, xxh3 });
            self.records.write_ser(&mut self.block, &Record { chunk, ..Record::default() }).map_err(io::Error::other)?;
            self.count += 1;
            tensor.chunks += 1;
            tensor.nbytes += len.cast_signed();
            tensor.offset += len;
            tensor.left[tensor.part] -= len;
        }
        if tensor.left.get(tensor.part) == Some(&0) {
            tensor.part += 1;
            tensor.offset = 0;
        }
        if self.block.len() >= self.chunk {
            self.flush()?;
        }
        Ok(())
    }

    /// Ends the tensor, whose bytes must all have come.
    pub fn end(&mut self) -> io::Result<()> {
        while self.tensor.as_ref().is_some_and(|tensor| tensor.left.get(tensor.part) == Some(&0)) {
            self.chunk(Bytes::new())?;
        }
        let Some(tensor) = self.tensor.take_if(|tensor| tensor.part == tensor.left.len()) else {
            return Err(io::Error::other("a tensor that ends before it is whole"));
        };
        let (xxh3, header_xxh3) = (signed(tensor.whole.digest()), Some(signed(tensor.header_xxh3)));
        let end = Some(End { key: tensor.key, chunks: tensor.chunks, nbytes: tensor.nbytes, xxh3, header_xxh3 });
        self.records.write_ser(&mut self.block, &Record { end, ..Record::default() }).map_err(io::Error::other)?;
        self.count += 1;
        if self.at > tensor.before.0 { self.flush() } else { Ok(()) }
    }

    /// Takes back the tensor that has begun, if one has.
    pub fn roll_back(&mut self) -> io::Result<()> {
        let Some(Open { before: (at, block, count), .. }) = self.tensor.take() else { return Ok(()) };
        if self.at > at {
            // What was in the block then was written before the tensor began.
            self.block.clear();
            self.count = 0;
            self.file.set_len(at)?;
            self.file.seek(SeekFrom::Start(at))?;
            self.at = at;
        } else {
            self.block.truncate(block);
            self.count = count;
        }
        Ok(())
    }

    /// Writes the block.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let data = self.codec.encode(&self.block)?;
        let mut front = Vec::new();
        put_long(&mut front, self.count);
        put_long(&mut front, data.len() as i64);
        for bytes in [&front, &*data, &self.marker] {
            self.file.write_all(bytes)?;
        }
        self.at += (front.len() + data.len() + MARKER) as u64;
        self.block.clear();
        self.count = 0;
        Ok(())
    }

    /// Writes what is left of a partial export, without the tensor that has begun.
    pub fn keep(mut self) -> io::Result<()> {
        self.roll_back()?;
        // A block whose writing failed may lie behind.
        self.file.set_len(self.at)?;
        self.file.seek(SeekFrom::Start(self.at))?;
        self.flush()?;
        self.file.sync_all()
    }

    /// Makes the export its file: durable, then under its name. Gives its size.
    pub fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        self.file.sync_all()?;
        std::fs::rename(partial_path(&self.path), &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        Ok(self.at)
    }
}

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::other("another export is writing it"),
        TryLockError::Error(error) => error,
    })
}

/// Reads up to where a file stops being good; says where its last whole tensor ends, and what comes before.
fn whole_tensors(reader: &mut Reader<impl io::Read>) -> io::Result<(u64, Resumed)> {
    let (mut at, mut whole, mut seen) = (reader.at(), Resumed::default(), Resumed::default());
    loop {
        match reader.read() {
            Ok(Some(Event::Begin(header))) => {
                seen.nbytes += header.nbytes();
                match is_artefact(&header.key) {
                    true => drop(seen.artefacts.insert(header.key)),
                    false => seen.last_key = Some(header.key),
                }
            }
            Ok(Some(Event::Data(_))) => {}
            Ok(Some(Event::End)) => {
                seen.tensors += 1;
                if let Some(end) = reader.block_end() {
                    (at, whole) = (end, seen.clone());
                }
            }
            Ok(None) => return Ok((at, whole)),
            // A crash of the system can leave anything behind what was durable: all of it is exported again.
            Err(error) if error.is_damage() => return Ok((at, whole)),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}
