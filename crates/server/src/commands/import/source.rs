//! The file of an import, read ahead by a thread of its own while the server takes what was read.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use parking_lot::Mutex as Cell;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::state::State;
use crate::Failure;
use crate::formats::avro::{Event, Header, Place, ReadError, Reader};

/// Events that are read ahead; each holds a block at most.
const AHEAD: usize = 3;

type Read = Result<Option<Event>, ReadError>;

/// What the thread read, and where it was then.
struct Item {
    read: Read,
    at: u64,
    place: Place,
}

/// How far the tensor that was begun is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tensor {
    Open,
    Ended(Place),
}

struct Shared {
    items: Mutex<Receiver<Item>>,
    at: Cell<u64>,
    tensor: Cell<Tensor>,
}

/// An export that is being imported.
pub struct Source {
    /// Bytes of the file.
    pub length: u64,
    /// What its keys begin with.
    pub prefix: String,
    shared: Arc<Shared>,
}

impl Source {
    /// Opens a file, at the place that the state says.
    pub fn open(path: &Path, state: &mut State) -> Result<Source, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::with(path.display(), error);
        let file = File::open(path).map_err(|error| failed(&error))?;
        let length = file.metadata().map_err(|error| failed(&error))?.len();
        let mut reader = Reader::new(BufReader::with_capacity(1 << 18, file)).map_err(|error| failed(&error))?;
        state.belongs_to(&reader.marker(), length)?;
        if state.tensors > 0 {
            reader.go_to(state.place).map_err(|error| failed(&error))?;
        }
        let prefix = reader.prefix().to_owned();
        let (sender, items) = mpsc::channel(AHEAD);
        let shared = Shared { items: Mutex::new(items), at: Cell::new(reader.at()), tensor: Cell::new(Tensor::Ended(state.place)) };
        std::thread::spawn(move || read_ahead(&mut reader, &sender));
        Ok(Source { length, prefix, shared: Arc::new(shared) })
    }

    /// Bytes of the file that were read for what was given out.
    pub fn at(&self) -> u64 {
        *self.shared.at.lock()
    }

    /// The next tensor; `None` at the end of the file. The one before it must be finished.
    pub async fn header(&self) -> Result<Option<Header>, Failure> {
        match self.shared.next().await {
            Ok(None) => Ok(None),
            Ok(Some(Event::Begin(header))) => {
                *self.shared.tensor.lock() = Tensor::Open;
                Ok(Some(header))
            }
            Ok(Some(_)) => Err(Failure::Failed("a tensor was left before its end".into())),
            Err(error) => Err(Failure::Failed(error.to_string())),
        }
    }

    /// The bytes of the tensor. They end where it is known to be whole and right, and with an error otherwise.
    pub fn pieces(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self.shared.clone(), |shared| async move {
            let piece = shared.piece().await.map_err(io::Error::other)?;
            Ok(piece.map(|piece| (piece, shared)))
        })
    }

    /// Reads what is left of the tensor; says where it ends.
    pub async fn finish(&self) -> Result<Place, Failure> {
        while self.shared.piece().await.map_err(|error| Failure::Failed(error.to_string()))?.is_some() {}
        match *self.shared.tensor.lock() {
            Tensor::Ended(place) => Ok(place),
            Tensor::Open => Err(Failure::Failed("the file's reader ended early".into())),
        }
    }
}

impl Shared {
    async fn next(&self) -> Read {
        let Some(item) = self.items.lock().await.recv().await else { return Ok(None) };
        *self.at.lock() = item.at;
        if let Ok(Some(Event::End)) = item.read {
            *self.tensor.lock() = Tensor::Ended(item.place);
        }
        item.read
    }

    /// The next bytes of the tensor; `None` once it has ended.
    async fn piece(&self) -> Result<Option<Bytes>, ReadError> {
        if *self.tensor.lock() != Tensor::Open {
            return Ok(None);
        }
        match self.next().await? {
            Some(Event::Data(data)) => Ok(Some(data)),
            // The reader gives nothing else within a tensor; without an end, the put lacks bytes and commits nothing.
            Some(Event::End | Event::Begin(_)) | None => Ok(None),
        }
    }
}

fn read_ahead(reader: &mut Reader<BufReader<File>>, sender: &Sender<Item>) {
    loop {
        let read = reader.read();
        let last = !matches!(read, Ok(Some(_)));
        let item = Item { read, at: reader.at(), place: reader.place() };
        // Nobody takes it any more when the import has failed.
        if sender.blocking_send(item).is_err() || last {
            return;
        }
    }
}
