//! Many keys in one stream: as events, as whole keys, or into the caller's buffers.

use std::collections::VecDeque;

use arrow_flight::{FlightData, Ticket};
use bytes::Bytes;
use sira_tensor::TensorSpec;
use sira_tensor::carrier::Column;
use sira_wire::many::{MAX_KEYS, ManyTicket};
use sira_wire::{Code, Key, WireError};
use tonic::Streaming;

use crate::client::json;
use crate::segments::{ManyEvent, Segments};
use crate::{Client, ClientError, batches, message};

/// What of many keys to get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GetManyOptions {
    /// The parts to get of each key, in this order; a key that lacks one fails. All of them when absent.
    pub parts: Option<Vec<String>>,
    /// Hash of the kv spec that the keys must follow: a key that follows another, or none, is not found.
    pub kv_spec: Option<String>,
    /// Whether only exactly the bytes that were put will do: a copy that a lossy codec made is then not found. Default: as the namespace says.
    pub exact: Option<bool>,
}

/// A key that came whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchedKey {
    /// Its version.
    pub version: u64,
    /// Hash of the kv spec that it follows.
    pub kv_spec: Option<String>,
    /// Its parts, in the order asked for, or else of their put.
    pub parts: Vec<FetchedPart>,
}

/// A part that came whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedPart {
    /// Its name; `data` for a key that is one tensor.
    pub name: String,
    /// What it is.
    pub spec: TensorSpec,
    /// Its bytes, one after another, as slices of the messages that brought them: a small part keeps up to 4 MiB in memory, shared with its neighbours.
    pub pieces: Vec<Bytes>,
}

impl FetchedPart {
    /// All bytes in one buffer; a copy unless they came in one piece.
    pub fn into_bytes(mut self) -> Bytes {
        match self.pieces.len() {
            0 => Bytes::new(),
            1 => self.pieces.remove(0),
            _ => self.pieces.concat().into(),
        }
    }
}

/// A key whose bytes lie in the caller's buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilledKey {
    /// Its version.
    pub version: u64,
    /// Hash of the kv spec that it follows.
    pub kv_spec: Option<String>,
    /// Name and description of its parts, in the order of their bytes.
    pub parts: Vec<(String, TensorSpec)>,
}

/// Many keys on their way.
#[derive(Debug)]
pub struct ManyStream {
    /// None where no key was asked for.
    messages: Option<Streaming<FlightData>>,
    column: Option<Column>,
    segments: Segments,
    keys: usize,
    ready: VecDeque<ManyEvent>,
}

impl Client {
    /// Gets many keys, up to 65,536, in one stream. A key that is not there, or that something is wrong with, fails by itself.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::GetManyOptions;
    ///
    /// let stream = client.get_many(["kv/a", "kv/b"], &GetManyOptions::default()).await?;
    /// for key in stream.collect().await? {
    ///     match key {
    ///         Ok(key) => println!("version {} with {} parts", key.version, key.parts.len()),
    ///         Err(error) => println!("{error}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_many(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<str>>,
        options: &GetManyOptions,
    ) -> Result<ManyStream, ClientError> {
        let (count, ticket) = ticket(keys, options)?;
        let messages = match ticket {
            None => None,
            Some(ticket) => Some(self.flight.clone().do_get(Ticket::new(ticket)).await?.into_inner()),
        };
        let segments = Segments::new(count, options.parts.clone());
        Ok(ManyStream { messages, column: None, segments, keys: count, ready: VecDeque::new() })
    }
}

/// How many keys these are, and the ticket for them; for none there is none.
pub(crate) fn ticket(
    keys: impl IntoIterator<Item = impl AsRef<str>>,
    options: &GetManyOptions,
) -> Result<(usize, Option<Vec<u8>>), ClientError> {
    let keys: Vec<String> = batches::keys(keys)?.iter().map(Key::to_string).collect();
    let count = keys.len();
    if count > MAX_KEYS {
        return Err(WireError::new(Code::BadRequest, format!("{count} keys; one request takes at most {MAX_KEYS}")).into());
    }
    let GetManyOptions { parts, kv_spec, exact } = options.clone();
    let ticket = json(&ManyTicket { parts, kv_spec, exact, ..ManyTicket::of(keys) })?;
    Ok((count, (count > 0).then_some(ticket)))
}

/// The column of a stream of many keys, which its first message describes.
pub(crate) fn column(first: &FlightData) -> Result<Column, ClientError> {
    let column = Column::of(&sira_wire::ipc::read_first(&first.data_header).map_err(ClientError::protocol)?)?;
    match column.row_bytes() {
        1 => Ok(column),
        _ => Err(ClientError::protocol("many keys in a column that is not one of bytes")),
    }
}

/// One buffer a key.
pub(crate) fn check_buffers(buffers: usize, keys: usize) -> Result<(), WireError> {
    match buffers == keys {
        true => Ok(()),
        false => Err(WireError::new(Code::BadRequest, format!("{buffers} buffers for {keys} keys"))),
    }
}

/// Buffers being filled, key by key.
#[derive(Default)]
pub(crate) struct Filling {
    /// What came of the keys that are through.
    pub results: Vec<Result<FilledKey, WireError>>,
    key: FilledKey,
    filled: usize,
}

impl Filling {
    /// Where the next bytes of the key go; past its buffer's end nothing is written, and the count says so when the key ends.
    pub fn room<'a>(&mut self, buffer: &'a mut [u8], bytes: usize) -> Option<&'a mut [u8]> {
        let start = self.filled;
        self.filled += bytes;
        buffer.get_mut(start..self.filled)
    }

    /// Notes what came; of bytes, [`Filling::room`] has done so.
    pub fn event<B>(&mut self, event: ManyEvent<B>, mut len: impl FnMut(usize) -> usize) {
        match event {
            ManyEvent::Key { version, kv_spec, .. } => {
                (self.key, self.filled) = (FilledKey { version, kv_spec, parts: Vec::new() }, 0);
            }
            ManyEvent::Part { name, spec, .. } => self.key.parts.push((name, spec)),
            ManyEvent::Data { .. } => {}
            ManyEvent::End { index } => {
                let (filled, room) = (self.filled, len(index));
                self.results.push(match filled == room {
                    true => Ok(std::mem::take(&mut self.key)),
                    false => Err(WireError::new(Code::BadTensor, format!("key {index} has {filled} bytes, its buffer {room}"))),
                });
            }
            ManyEvent::Failed { error, .. } => self.results.push(Err(error)),
        }
    }
}

impl ManyStream {
    /// What comes next; `None` once all keys have been answered and the server has confirmed it.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::{GetManyOptions, ManyEvent};
    ///
    /// let mut stream = client.get_many(["kv/a", "kv/b"], &GetManyOptions::default()).await?;
    /// while let Some(event) = stream.next().await? {
    ///     match event {
    ///         ManyEvent::Data { index, bytes } => println!("{} bytes of key {index}", bytes.len()),
    ///         ManyEvent::Failed { index, error } => println!("key {index}: {error}"),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn next(&mut self) -> Result<Option<ManyEvent>, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let next = match &mut self.messages {
                Some(messages) => messages.message().await?,
                None => None,
            };
            match next {
                Some(data) => {
                    if let Err(error) = self.read(&data) {
                        // Nothing of what it sent is to be trusted any more.
                        (self.messages, self.ready) = (None, VecDeque::new());
                        return Err(error);
                    }
                }
                None => return self.segments.finish().map(|()| None),
            }
        }
    }

    fn read(&mut self, data: &FlightData) -> Result<(), ClientError> {
        let Some(column) = &self.column else {
            self.column = Some(column(data)?);
            return Ok(());
        };
        // A message without rows may have no batch either.
        let body = if data.data_header.is_empty() { Bytes::new() } else { message::rows(data, column)? };
        self.segments.read(&data.app_metadata, body.len(), |range| body.slice(range), &mut self.ready)
    }

    /// All keys, one result each in the order of the request, without a copy of their bytes.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::GetManyOptions;
    ///
    /// let options = GetManyOptions { parts: Some(vec!["k".into(), "k_scale".into()]), ..GetManyOptions::default() };
    /// for key in client.get_many(["kv/a", "kv/b"], &options).await?.collect().await?.into_iter().flatten() {
    ///     for part in key.parts {
    ///         let (name, shape) = (part.name.clone(), part.spec.shape().to_vec());
    ///         println!("{name} {shape:?}: {} bytes", part.into_bytes().len());
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn collect(mut self) -> Result<Vec<Result<FetchedKey, WireError>>, ClientError> {
        let mut results = Vec::new();
        let mut key = FetchedKey::default();
        while let Some(event) = self.next().await? {
            match event {
                ManyEvent::Key { version, kv_spec, .. } => key = FetchedKey { version, kv_spec, parts: Vec::new() },
                ManyEvent::Part { name, spec, .. } => key.parts.push(FetchedPart { name, spec, pieces: Vec::new() }),
                ManyEvent::Data { bytes, .. } => {
                    if let Some(part) = key.parts.last_mut() {
                        part.pieces.push(bytes);
                    }
                }
                ManyEvent::End { .. } => results.push(Ok(std::mem::take(&mut key))),
                ManyEvent::Failed { error, .. } => results.push(Err(error)),
            }
        }
        Ok(results)
    }

    /// Fills one buffer a key, with the bytes of its parts one after another, and says what each of them then holds. A buffer must be exactly as long as
    /// its key's bytes; where it is not, that key fails with [`Code::BadTensor`]. What lies in the buffer of a key that failed is undefined.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::GetManyOptions;
    ///
    /// let mut buffers = vec![vec![0u8; 32768]; 2];
    /// let stream = client.get_many(["kv/a", "kv/b"], &GetManyOptions::default()).await?;
    /// let hits = stream.read_into(&mut buffers).await?.iter().filter(|key| key.is_ok()).count();
    /// # Ok(())
    /// # }
    /// ```
    pub async fn read_into(mut self, buffers: &mut [impl AsMut<[u8]>]) -> Result<Vec<Result<FilledKey, WireError>>, ClientError> {
        check_buffers(buffers.len(), self.keys)?;
        let mut filling = Filling::default();
        while let Some(event) = self.next().await? {
            if let ManyEvent::Data { index, bytes } = &event
                && let Some(room) = filling.room(buffers[*index].as_mut(), bytes.len())
            {
                room.copy_from_slice(bytes);
            }
            filling.event(event, |index| buffers[index].as_mut().len());
        }
        Ok(filling.results)
    }
}
