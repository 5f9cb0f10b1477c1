//! Gets into the caller's memory: bytes are read from the socket to where they belong.

use std::collections::VecDeque;
use std::time::Instant;

use arrow_flight::FlightData;
use arrow_schema::Schema;
use sira_tensor::TensorSpec;
use sira_tensor::carrier::Column;
use sira_wire::{Code, WireError};

use crate::calibrations::Calibrations;
use crate::chunks::{self, Arriving, Chunked};
use crate::client::json;
use crate::get_many::{FilledKey, GetManyOptions};
use crate::http2::{Message, Messages, Pool};
use crate::segments::{ManyEvent, Segments};
use crate::{Client, ClientError, GetOptions, get, get_many, message};

impl Client {
    /// Gets a tensor into `out`, which must be exactly as long as its bytes (row-major, little-endian); says what it is. Nothing is written before
    /// the lengths were compared; of a get that fails later, `out` holds a part.
    ///
    /// It has a connection to itself while it runs, and bytes are not copied on their way from the socket.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::GetOptions;
    ///
    /// let mut buffer = vec![0u8; 16 << 20];
    /// let spec = client.get_into("weights/w", &GetOptions::default(), &mut buffer).await?;
    /// println!("{} {:?}", spec.dtype(), spec.shape());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_into(&self, key: &str, options: &GetOptions, out: &mut [u8]) -> Result<TensorSpec, ClientError> {
        let incoming = Incoming::open_plain(&self.pool, &json(&options.ticket(key)?)?, None).await?;
        let spec = incoming.spec.clone();
        incoming.read_into(out).await?;
        Ok(spec)
    }

    /// As [`Client::get_many`] and [`ManyStream::read_into`](crate::ManyStream::read_into) together, each byte read from the socket to its buffer: one
    /// buffer a key, which takes the bytes of its parts one after another and must be exactly that long; where it is not, that key fails with
    /// [`Code::BadTensor`]. What lies in the buffer of a key that failed is undefined.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::GetManyOptions;
    ///
    /// let mut buffers = vec![vec![0u8; 32768]; 2];
    /// let keys = client.get_many_into(["kv/a", "kv/b"], &GetManyOptions::default(), &mut buffers).await?;
    /// println!("{} hits", keys.iter().filter(|key| key.is_ok()).count());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_many_into(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<str>>,
        options: &GetManyOptions,
        buffers: &mut [impl AsMut<[u8]>],
    ) -> Result<Vec<Result<FilledKey, WireError>>, ClientError> {
        let (count, ticket) = get_many::ticket(keys, options)?;
        get_many::check_buffers(buffers.len(), count)?;
        let Some(ticket) = ticket else { return Ok(Vec::new()) };
        let mut incoming = IncomingMany::open(&self.pool, &ticket, None).await?;
        let mut segments = Segments::new(count, options.parts.clone());
        let mut filling = get_many::Filling::default();
        while let Some(message) = incoming.next().await? {
            let mut events = VecDeque::new();
            segments.read(&message.metadata, message.rows, |range| range, &mut events)?;
            for event in events {
                if let ManyEvent::Data { index, bytes } = &event {
                    incoming.pass(bytes.start as u64).await?;
                    if let Some(room) = filling.room(buffers[*index].as_mut(), bytes.len()) {
                        incoming.read(room).await?;
                    }
                }
                filling.event(event, |index| buffers[index].as_mut().len());
            }
        }
        segments.finish()?;
        incoming.messages.finish();
        Ok(filling.results)
    }
}

/// A tensor whose description has come.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub spec: TensorSpec,
    column: Column,
    messages: Messages,
    /// Where it comes in chunks that are to be decoded: what is said of them.
    pub chunked: Option<Box<Chunked>>,
}

impl Incoming {
    /// Asks for a tensor that comes as it is.
    pub async fn open_plain(pool: &Pool, ticket: &[u8], end: Option<Instant>) -> Result<Incoming, ClientError> {
        Incoming::begin(Messages::open(pool, ticket, end).await?).await.map(|(incoming, _)| incoming)
    }

    /// Asks for a tensor that may come in chunks, if the ticket asks for that.
    pub async fn open(pool: &Pool, ticket: &[u8], end: Option<Instant>, calibrations: &Calibrations) -> Result<Incoming, ClientError> {
        // Twice, where an artefact must be fetched first: for that the server would not wait.
        for again in [true, false] {
            let (mut incoming, schema) = Incoming::begin(Messages::open(pool, ticket, end).await?).await?;
            let Some(layout) = chunks::layout(&schema)? else { return Ok(incoming) };
            if incoming.column.row_bytes() != 1 {
                return Err(ClientError::protocol("chunks in a column that is not one of bytes"));
            }
            let calibration = match chunks::calibration(&layout)? {
                Some(hash) if calibrations.get(&hash).is_none() && again => {
                    drop(incoming);
                    calibrations.fetch(pool, &hash, end).await?;
                    continue;
                }
                Some(hash) => calibrations.get(&hash),
                None => None,
            };
            incoming.chunked = Some(Chunked::read(&schema, &incoming.spec, layout, calibration)?.into());
            return Ok(incoming);
        }
        Err(ClientError::protocol("another calibration each time"))
    }

    /// Reads the description, and gives the schema that has more of it.
    pub async fn begin(mut messages: Messages) -> Result<(Incoming, Schema), ClientError> {
        let first = messages.next().await?.ok_or_else(|| ClientError::protocol("a get without a schema"))?;
        let schema = sira_wire::ipc::read_first(&first.header).map_err(ClientError::protocol);
        let carried = schema.and_then(|schema| get::carried_by(&schema).map(|(spec, column)| (spec, column, schema)));
        let (spec, column, schema) = carried.map_err(|error| {
            let reason = format!("the answer has no tensor's schema, is this a Sira server? {error}");
            WireError::new(Code::BadTensor, reason)
        })?;
        Ok((Incoming { spec, column, messages, chunked: None }, schema))
    }

    /// Refuses a buffer that has not the length of the tensor.
    pub fn check_room(&self, out: &[u8]) -> Result<(), ClientError> {
        let nbytes = self.spec.nbytes();
        match nbytes == out.len() as u64 {
            true => Ok(()),
            false => {
                let reason = format!("the tensor has {nbytes} bytes, the buffer for it {}", out.len());
                Err(WireError::new(Code::BadTensor, reason).into())
            }
        }
    }

    /// The chunks in which it comes.
    pub fn into_chunks(self, chunked: &Chunked) -> Arriving {
        Arriving::new(IncomingMany { messages: self.messages, column: self.column, at: 0 }, chunked)
    }

    /// Fills `out`, which must have the length of the tensor, with bytes that come as they are.
    pub async fn read_into(mut self, out: &mut [u8]) -> Result<(), ClientError> {
        self.check_room(out)?;
        let nbytes = self.spec.nbytes();
        let incomplete = |reason| Err(WireError::new(Code::Incomplete, reason).into());
        let mut filled = 0;
        while let Some(message) = self.messages.next().await? {
            let rows = rows(&message, &self.column)?;
            let Some(room) = out.get_mut(filled..).and_then(|rest| rest.get_mut(..rows.len())) else {
                return incomplete(format!("the stream went on after the tensor's {nbytes} bytes"));
            };
            self.messages.skip(rows.start as u64).await?;
            self.messages.body(room).await?;
            filled += rows.len();
        }
        if filled < out.len() {
            return incomplete(format!("the stream ended after {filled} of {nbytes} bytes"));
        }
        self.messages.finish();
        Ok(())
    }
}

/// Where a message's rows lie in its body; one that is only about others has none.
fn rows(message: &Message, column: &Column) -> Result<std::ops::Range<usize>, ClientError> {
    match message.header.is_empty() {
        true => Ok(0..0),
        false => message::row_range(&message.header, usize::try_from(message.body).unwrap_or(usize::MAX), column),
    }
}

/// Keys on their way, message by message.
#[derive(Debug)]
pub(crate) struct IncomingMany {
    pub messages: Messages,
    column: Column,
    /// How many bytes of the message's rows were read or passed over.
    at: u64,
}

/// What comes before the bytes of a message of many keys.
#[derive(Debug)]
pub(crate) struct ManyMessage {
    /// The JSON that says what they are.
    pub metadata: Vec<u8>,
    /// How many they are.
    pub rows: usize,
}

impl IncomingMany {
    pub async fn open(pool: &Pool, ticket: &[u8], end: Option<Instant>) -> Result<IncomingMany, ClientError> {
        let mut messages = Messages::open(pool, ticket, end).await?;
        let first = messages.next().await?.ok_or_else(|| ClientError::protocol("a get without a schema"))?;
        let column = get_many::column(&FlightData::new().with_data_header(first.header))?;
        Ok(IncomingMany { messages, column, at: 0 })
    }

    /// The next message, whatever was left unread of the one before.
    pub async fn next(&mut self) -> Result<Option<ManyMessage>, ClientError> {
        let Some(message) = self.messages.next().await? else { return Ok(None) };
        let rows = rows(&message, &self.column)?;
        self.messages.skip(rows.start as u64).await?;
        self.at = 0;
        Ok(Some(ManyMessage { metadata: message.metadata, rows: rows.len() }))
    }

    /// Goes on to byte `to` of the message.
    pub async fn pass(&mut self, to: u64) -> Result<(), ClientError> {
        let between = to.checked_sub(self.at).ok_or_else(|| ClientError::protocol("bytes of a message twice"))?;
        self.messages.skip(between).await?;
        self.at = to;
        Ok(())
    }

    /// Fills `room` with the message's next bytes.
    pub async fn read(&mut self, room: &mut [u8]) -> Result<(), ClientError> {
        self.at += room.len() as u64;
        self.messages.body(room).await
    }
}
