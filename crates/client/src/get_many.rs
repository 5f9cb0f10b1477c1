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
        let keys: Vec<String> = batches::keys(keys)?.iter().map(Key::to_string).collect();
        if keys.len() > MAX_KEYS {
            return Err(WireError::new(Code::BadRequest, format!("{} keys; one request takes at most {MAX_KEYS}", keys.len())).into());
        }
        let count = keys.len();
        let (parts, kv_spec) = (options.parts.clone(), options.kv_spec.clone());
        let ticket = ManyTicket { parts: parts.clone(), kv_spec, exact: options.exact, ..ManyTicket::of(keys) };
        let messages = match count {
            0 => None,
            _ => Some(self.flight.clone().do_get(Ticket::new(json(&ticket)?)).await?.into_inner()),
        };
        Ok(ManyStream { messages, column: None, segments: Segments::new(count, parts), keys: count, ready: VecDeque::new() })
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
            let column = Column::of(&sira_wire::ipc::read_first(&data.data_header).map_err(ClientError::protocol)?)?;
            if column.row_bytes() != 1 {
                return Err(ClientError::protocol("many keys in a column that is not one of bytes"));
            }
            self.column = Some(column);
            return Ok(());
        };
        // A message without rows may have no batch either.
        let body = if data.data_header.is_empty() { Bytes::new() } else { message::rows(data, column)? };
        self.segments.read(&data.app_metadata, &body, &mut self.ready)
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
        if buffers.len() != self.keys {
            return Err(WireError::new(Code::BadRequest, format!("{} buffers for {} keys", buffers.len(), self.keys)).into());
        }
        let mut results = Vec::new();
        let (mut key, mut filled) = (FilledKey::default(), 0);
        while let Some(event) = self.next().await? {
            match event {
                ManyEvent::Key { version, kv_spec, .. } => (key, filled) = (FilledKey { version, kv_spec, parts: Vec::new() }, 0),
                ManyEvent::Part { name, spec, .. } => key.parts.push((name, spec)),
                ManyEvent::Data { index, bytes } => {
                    // Past its end nothing is written; the count says so when the key ends.
                    if let Some(room) = buffers[index].as_mut().get_mut(filled..filled + bytes.len()) {
                        room.copy_from_slice(&bytes);
                    }
                    filled += bytes.len();
                }
                ManyEvent::End { index } => {
                    let room = buffers[index].as_mut().len();
                    results.push(match filled == room {
                        true => Ok(std::mem::take(&mut key)),
                        false => Err(WireError::new(Code::BadTensor, format!("key {index} has {filled} bytes, its buffer {room}"))),
                    });
                }
                ManyEvent::Failed { error, .. } => results.push(Err(error)),
            }
        }
        Ok(results)
    }
}
