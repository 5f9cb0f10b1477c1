//! Tensors of a server of the same machine as memory: mapped instead of received, filled in place instead of sent.

use std::fmt;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use sira_shm::Filling;
use sira_tensor::TensorSpec;
use sira_wire::same_host::{Committed, Created as Granted, Handle, Kind, Mapped as Passed};
use sira_wire::{Code, Key, PutAnswer, PutOptions, Ticket};

use crate::client::json;
use crate::line::{Held, Reply};
use crate::{Client, ClientError, GetOptions};

/// A tensor that is read where it lies: in memory of the server, which nobody changes, or in this process's own where that was not to be had.
/// What is the server's counts there until this is dropped.
#[derive(Debug)]
pub struct Mapped {
    spec: TensorSpec,
    version: Option<u64>,
    memory: Memory,
}

enum Memory {
    Shared { map: sira_shm::Mapped, _held: Held },
    Own(Bytes),
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Memory::Shared { .. }) { "Shared" } else { "Own" })
    }
}

impl Mapped {
    /// Dtype, shape, axes and attributes.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The version; `None` where it came over the socket and none was asked for.
    pub fn version(&self) -> Option<u64> {
        self.version
    }

    /// Whether it is the server's memory.
    pub fn is_shared(&self) -> bool {
        matches!(self.memory, Memory::Shared { .. })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Shared { map, .. } => map,
            Memory::Own(bytes) => bytes,
        }
    }
}

/// A tensor that is being made: fill its bytes (row-major, little-endian, zeros at first), then [`Created::commit`]. Dropped before, it leaves
/// nothing behind.
pub struct Created {
    client: Client,
    key: Key,
    spec: TensorSpec,
    options: PutOptions,
    memory: Room,
}

enum Room {
    Shared(Filling, Held),
    Own(Vec<u8>),
}

impl fmt::Debug for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Created").field("key", &self.key).field("is_shared", &self.is_shared()).finish_non_exhaustive()
    }
}

impl Created {
    /// What is being made.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Whether its bytes are memory that becomes the server's.
    pub fn is_shared(&self) -> bool {
        matches!(self.memory, Room::Shared(..))
    }

    /// Stores it: the server takes the memory over as it is, or where it is this process's own, it is put as [`Client::put`] does.
    pub async fn commit(self) -> Result<PutAnswer, ClientError> {
        match self.memory {
            Room::Own(bytes) => self.client.put(self.key.as_str(), &self.spec, bytes, self.options).await,
            Room::Shared(filling, held) => {
                drop(filling); // while it is mapped for writing, the server can only copy it
                let committed: Committed = parsed(&held.ask(Kind::Commit, json(&Handle::of(held.id()))?).await?)?;
                Ok(PutAnswer { key: committed.key, version: committed.version, created: committed.created })
            }
        }
    }
}

impl Deref for Created {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Room::Shared(filling, _) => filling,
            Room::Own(bytes) => bytes,
        }
    }
}

impl DerefMut for Created {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Room::Shared(filling, _) => filling,
            Room::Own(bytes) => bytes,
        }
    }
}

impl Client {
    /// Maps a tensor: where this client is connected to the server's Unix socket, its bytes are the server's own memory, without a copy. Small tensors,
    /// slices, and all of a server that gives no (more) memory or is elsewhere, are got as [`Client::get`] does.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), sira_client::ClientError> {
    /// use sira_client::{Client, GetOptions};
    ///
    /// let client = Client::connect("grpc+unix:///run/sira.sock").await?;
    /// let tensor = client.map("demo/a", &GetOptions::default()).await?;
    /// println!("{:?}: {} bytes", tensor.spec().shape(), tensor.len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn map(&self, key: &str, options: &GetOptions) -> Result<Mapped, ClientError> {
        let parsed_key: Key = key.parse()?;
        if options.slice.is_empty()
            && let Some(mapped) = given(self.passed(&parsed_key, options).await)?.flatten()
        {
            return Ok(mapped);
        }
        let tensor = self.get(key, options).await?;
        let spec = tensor.spec().clone();
        Ok(Mapped { spec, version: options.version, memory: Memory::Own(tensor.into_bytes().await?) })
    }

    /// `None` where there is no Unix socket.
    async fn passed(&self, key: &Key, options: &GetOptions) -> Result<Option<Mapped>, ClientError> {
        let Some(lines) = &self.lines else { return Ok(None) };
        let ticket = Ticket {
            version: options.version,
            part: options.part.clone(),
            kv_spec: options.kv_spec.clone(),
            exact: options.exact,
            ..Ticket::whole(key)
        };
        let (line, mut reply) = lines.ask(Kind::Map, json(&ticket)?).await?;
        let said: Passed = parsed(&reply)?;
        let spec = spec_of(&said)?;
        let memory = if said.inline {
            Memory::Own(std::mem::take(&mut reply.inline).into())
        } else {
            let held = line.hold(said.id);
            let file = reply.passed.ok_or_else(|| ClientError::protocol("memory without its descriptor"))?;
            Memory::Shared { map: sira_shm::Mapped::new(&file, length(&spec)?).map_err(unmapped)?, _held: held }
        };
        let mapped = Mapped { spec, version: Some(said.version), memory };
        match mapped.len() as u64 == mapped.spec.nbytes() {
            true => Ok(Some(mapped)),
            false => Err(ClientError::protocol("a tensor of another length")),
        }
    }

    /// A tensor to be filled in place: where this client is connected to the server's Unix socket, its bytes are memory that becomes the server's at
    /// the commit, without a copy. Elsewhere the commit puts them. Of `options`, the same are used as of a [`Client::put`].
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::{DType, PutOptions, TensorSpec};
    ///
    /// let spec = TensorSpec::new(DType::UInt8, vec![1 << 20])?;
    /// let mut tensor = client.create("demo/a", &spec, PutOptions::default()).await?;
    /// tensor.fill(7);
    /// println!("version {}", tensor.commit().await?.version);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn create(&self, key: &str, spec: &TensorSpec, options: PutOptions) -> Result<Created, ClientError> {
        let key: Key = key.parse()?;
        let memory = match given(self.granted(&key, spec, &options).await)?.flatten() {
            Some((filling, held)) => Room::Shared(filling, held),
            None => Room::Own(vec![0; length(spec)?]),
        };
        Ok(Created { client: self.clone(), key, spec: spec.clone(), options, memory })
    }

    /// `None` where there is no Unix socket, or it is not worth the while.
    async fn granted(&self, key: &Key, spec: &TensorSpec, options: &PutOptions) -> Result<Option<(Filling, Held)>, ClientError> {
        let Some(lines) = &self.lines else { return Ok(None) };
        if spec.nbytes() <= lines.inline().await? {
            return Ok(None);
        }
        let mut options = PutOptions { shape: Some(spec.shape().to_vec()), dtype: Some(spec.dtype()), ..options.clone() };
        options.axes = Some(spec.axes().to_vec()).filter(|axes| !axes.is_empty());
        for (name, value) in spec.attributes() {
            options.attributes.entry(name.clone()).or_insert_with(|| value.clone());
        }
        let command = options.to_command(key).map_err(ClientError::protocol)?;
        let (line, reply) = lines.ask(Kind::Create, command).await?;
        let said: Granted = parsed(&reply)?;
        let held = line.hold(said.id);
        let file = reply.passed.ok_or_else(|| ClientError::protocol("memory without its descriptor"))?;
        Ok(Some((Filling::new(&file, length(spec)?).map_err(unmapped)?, held)))
    }
}

/// `None` where the server gives no memory now or never, or cannot be reached this way: the same is then asked over the socket.
fn given<T>(asked: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match asked {
        Ok(given) => Ok(Some(given)),
        Err(error) if matches!(error.code(), Some(Code::Busy | Code::Unsupported)) => Ok(None),
        Err(ClientError::Transport { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a server says that a tensor is.
pub(crate) fn spec_of(said: &Passed) -> Result<TensorSpec, ClientError> {
    let spec = TensorSpec::new(said.dtype.parse()?, said.shape.clone())?.with_axes(said.axes.clone())?;
    Ok(spec.with_attributes(said.attributes.clone())?)
}

fn parsed<T: DeserializeOwned>(reply: &Reply) -> Result<T, ClientError> {
    serde_json::from_slice(&reply.json).map_err(ClientError::protocol)
}

fn length(spec: &TensorSpec) -> Result<usize, ClientError> {
    usize::try_from(spec.nbytes()).map_err(ClientError::protocol)
}

fn unmapped(error: std::io::Error) -> ClientError {
    ClientError::Transport { context: "memory that cannot be mapped".into(), reason: error.to_string() }
}
