//! Keys of a listing into the file, in its order: many in one stream, each at the version listed or at a newer one if that is gone.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::time::Duration;

use sira_client::{Client, ClientError, Code, Entry, GetManyOptions, ManyEvent};
use sira_codec::Chain;
use sira_wire::namespace::CALIBRATIONS;

use crate::Failure;
use crate::formats::avro::{Header, KvSpec, Writer, is_artefact};
use crate::progress::Progress;

/// How often a key is tried that changes while it is read, or that the server is too busy for.
const ATTEMPTS: u32 = 6;
/// KV specs that are kept at hand, of up to 64 KiB each; a store has few.
const SPECS: usize = 256;

/// What an export did, besides what its file says.
#[derive(Default)]
pub(super) struct Done {
    pub tensors: u64,
    pub nbytes: u64,
    /// Exported at a newer version than listed.
    pub changed: u64,
    /// Listed, and gone when they were to be read.
    pub vanished: u64,
}

/// A key that is to be copied.
struct Listed {
    /// As it was listed, or as it is now.
    entry: Entry,
    changed: bool,
    attempts: u32,
}

/// Why a stream of keys was left.
enum Stop {
    /// The key has another version than its entry.
    Changed,
    Client(ClientError),
    File(io::Error),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Stop {
        Stop::Client(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::File(error)
    }
}

/// Copies keys into a file.
pub(super) struct Copier<'a> {
    client: &'a Client,
    writer: &'a mut Writer,
    done: &'a mut Done,
    bar: &'a Progress,
    specs: HashMap<String, KvSpec>,
    /// Keys of the calibration artefacts that are in the file.
    artefacts: BTreeSet<String>,
}

impl<'a> Copier<'a> {
    pub fn new(client: &'a Client, writer: &'a mut Writer, done: &'a mut Done, bar: &'a Progress) -> Copier<'a> {
        let artefacts = writer.resumed().artefacts.clone();
        Copier { client, writer, done, bar, specs: HashMap::new(), artefacts }
    }

    /// Copies all of these keys. One that cannot be read on is looked at anew, and the stream begun again there.
    pub async fn copy(&mut self, entries: Vec<Entry>) -> Result<(), Failure> {
        for entry in &entries {
            self.carry(entry).await?;
        }
        let entries = entries.into_iter().filter(|entry| !self.artefacts.contains(&entry.key));
        self.copy_all(entries.collect()).await
    }

    /// Copies the calibration artefacts without which a key could not be stored as it is, where they are not in the file yet.
    async fn carry(&mut self, entry: &Entry) -> Result<(), Failure> {
        let chains = std::iter::once(&entry.codec).chain(entry.parts.iter().map(|part| &part.codec));
        let hashes = chains.filter_map(|chain| Some(chain.parse::<Chain>().ok()?.calibration()?.to_owned()));
        for key in hashes.map(|hash| format!("{CALIBRATIONS}/{hash}")).collect::<BTreeSet<_>>() {
            if self.artefacts.contains(&key) {
                continue;
            }
            let artefact =
                self.client.info(&key).await.map_err(|error| Failure::with(format!("{}, which needs {key}", entry.key), error))?;
            self.copy_all(vec![artefact]).await?;
        }
        Ok(())
    }

    async fn copy_all(&mut self, entries: Vec<Entry>) -> Result<(), Failure> {
        let listed = |entry| Listed { entry, changed: false, attempts: 0 };
        let mut rest: VecDeque<Listed> = entries.into_iter().map(listed).collect();
        while let Err(stop) = self.stream(&mut rest).await {
            self.writer.roll_back().map_err(|error| Failure::Failed(error.to_string()))?;
            self.look_again(&mut rest, stop).await?;
            if let Some(Listed { entry, changed: true, .. }) = rest.front() {
                let entry = entry.clone();
                Box::pin(self.carry(&entry)).await?;
            }
        }
        Ok(())
    }

    /// Copies keys for as long as each comes as its entry says; takes those that are done off the front.
    async fn stream(&mut self, rest: &mut VecDeque<Listed>) -> Result<(), Stop> {
        let keys = rest.iter().map(|listed| &listed.entry.key);
        let mut stream = self.client.get_many(keys, &GetManyOptions::default()).await?;
        let mut due = VecDeque::new();
        while let Some(event) = stream.next().await? {
            let Some(Listed { entry, changed, .. }) = rest.front() else {
                return Err(ClientError::Protocol("more keys than were asked for".into()).into());
            };
            match event {
                ManyEvent::Key { version, .. } if version != entry.version => return Err(Stop::Changed),
                ManyEvent::Key { parts, kv_spec, .. } => {
                    let header = self.header(entry).await?;
                    if kv_spec != entry.kv_spec || parts != header.parts.len() {
                        return Err(unlike(entry).into());
                    }
                    due = header
                        .parts
                        .iter()
                        .map(|part| Ok((part.name.clone(), part.spec()?)))
                        .collect::<Result<_, _>>()
                        .map_err(ClientError::Protocol)?;
                    self.bar.message(&entry.key);
                    self.writer.header(header)?;
                }
                ManyEvent::Part { name, spec, .. } => {
                    if due.pop_front() != Some((name, spec)) {
                        return Err(unlike(entry).into());
                    }
                }
                ManyEvent::Data { bytes, .. } => {
                    self.bar.advance(bytes.len() as u64);
                    self.writer.data(bytes)?;
                }
                ManyEvent::End { .. } => {
                    self.writer.end()?;
                    self.done.tensors += 1;
                    self.done.nbytes += entry.nbytes;
                    self.done.changed += u64::from(*changed);
                    if is_artefact(&entry.key) {
                        self.artefacts.insert(entry.key.clone());
                    }
                    rest.pop_front();
                }
                ManyEvent::Failed { error, .. } if error.code == Code::NotFound => {
                    self.writer.roll_back()?;
                    self.done.vanished += 1;
                    rest.pop_front();
                }
                ManyEvent::Failed { error, .. } => return Err(ClientError::from(error).into()),
            }
        }
        Ok(())
    }

    /// Makes ready for the next try of the first key; fails where another would be of no use.
    async fn look_again(&mut self, rest: &mut VecDeque<Listed>, stop: Stop) -> Result<(), Failure> {
        let Some(first) = rest.front_mut() else {
            return Err(match stop {
                Stop::Client(error) => error.into(),
                Stop::File(error) => Failure::Failed(error.to_string()),
                Stop::Changed => Failure::Failed("a change of no key".into()),
            });
        };
        let key = first.entry.key.clone();
        first.attempts += 1;
        let again = first.attempts < ATTEMPTS;
        match stop {
            Stop::Changed if again => match self.client.info(&key).await {
                Ok(entry) => (first.entry, first.changed) = (entry, true),
                Err(error) if error.code() == Some(Code::NotFound) => {
                    self.done.vanished += 1;
                    rest.pop_front();
                }
                Err(error) => return Err(Failure::with(key, error)),
            },
            Stop::Changed => return Err(Failure::with(key, format!("it had another version each of the {ATTEMPTS} times it was read"))),
            Stop::Client(error) if again && error.code() == Some(Code::Busy) => {
                tokio::time::sleep(Duration::from_millis(100 << first.attempts)).await;
            }
            Stop::Client(error) => return Err(Failure::with(key, error)),
            Stop::File(error) => return Err(Failure::with(key, error)),
        }
        Ok(())
    }

    async fn header(&mut self, entry: &Entry) -> Result<Header, ClientError> {
        let kv_spec = match &entry.kv_spec {
            Some(hash) => Some(self.kv_spec(hash).await?),
            None => None,
        };
        Ok(Header::of_entry(entry, kv_spec)?)
    }

    /// The registered spec of this hash.
    async fn kv_spec(&mut self, hash: &str) -> Result<KvSpec, ClientError> {
        if let Some(spec) = self.specs.get(hash) {
            return Ok(spec.clone());
        }
        let spec = self.client.kv_spec(hash).await?.spec;
        if spec.hash() != hash {
            return Err(ClientError::Protocol(format!("asked for the KV spec {hash}, it gave {}", spec.hash())));
        }
        let spec = KvSpec { hash: hash.to_owned(), json: spec.canonical() };
        if self.specs.len() == SPECS {
            self.specs.clear();
        }
        self.specs.insert(hash.to_owned(), spec.clone());
        Ok(spec)
    }
}

fn unlike(entry: &Entry) -> ClientError {
    ClientError::Protocol(format!("{}: what is listed is not what comes", entry.key))
}
