//! `DoPut` of many keys: their bytes one after another, what they are in the metadata of messages (docs/wire.md, "Many keys").

use std::collections::{HashSet, VecDeque};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use sira_store::{PartSpec, StorageClient, StoreError, WriteOptions, Writer};
use sira_tensor::carrier::Column;
use sira_wire::many::{FailedKey, MAX_KEYS, PutItem, PutManyAnswer, PutMessage, PutResult};
use sira_wire::{Code, Key, MAX_KEY, MAX_NAMESPACE, PutAnswer, WireError};
use tonic::Status;

use crate::input::{Head, Input};
use crate::ipc::{self, Announced};
use crate::status::{of_store, of_wire, refuse, shortened};

/// Commits under way at once: their syncs share one write of the disk.
const COMMITS: usize = 16;

/// Bytes of metadata, and parts, that may be announced before their bytes come.
const AHEAD_BYTES: usize = 4 << 20;
const AHEAD_PARTS: usize = MAX_KEYS;

/// Bytes of what is said of a key that failed: all are kept until the end, and what is wrong with a key may be as long as its metadata.
const FAILURE_BYTES: usize = 300;

/// A key whose bytes are to come.
struct Announcement {
    index: usize,
    item: PutItem,
    nbytes: u64,
    /// Its share of the metadata that announced it.
    metadata: usize,
}

/// The key whose bytes come now.
struct Current {
    index: usize,
    key: String,
    /// Nothing where it has failed: its bytes are skipped.
    writer: Option<Writer>,
    missing: u64,
}

type Committed = (usize, String, Result<PutAnswer, StoreError>);

/// Puts in progress, in the order of a stream.
struct Puts<'a> {
    store: &'a StorageClient,
    announced: VecDeque<Announcement>,
    /// Bytes of metadata, and parts, of those.
    waiting: (usize, usize),
    current: Option<Current>,
    commits: FuturesUnordered<BoxFuture<'static, Committed>>,
    /// Keys whose commits are under way.
    committing: HashSet<String>,
    results: Vec<Option<PutResult>>,
}

/// Reads the rest of a stream whose descriptor said that it holds many keys.
pub(crate) async fn put(store: &StorageClient, input: &mut Input, first: Head) -> Result<PutManyAnswer, Status> {
    let Announced::Schema(schema) = ipc::read(&first.header)? else {
        return Err(refuse(Code::BadRequest, "the first message is no schema"));
    };
    let column = Column::of(&schema).map_err(|e| of_store(e.into()))?;
    if column.lists || column.value_bytes != 1 {
        return Err(refuse(Code::BadTensor, "put_many takes one plain column of uint8"));
    }
    if let Some(name) = schema.metadata().keys().find(|name| name.starts_with("sira.")) {
        return Err(refuse(Code::BadRequest, format!("{name} in the schema's metadata; of put_many, options are in app_metadata")));
    }
    let mut puts = Puts {
        store,
        announced: VecDeque::new(),
        waiting: (0, 0),
        current: None,
        commits: FuturesUnordered::new(),
        committing: HashSet::new(),
        results: Vec::new(),
    };
    puts.announce(&first.metadata)?;
    drop(first);
    let ended = puts.read(input, &column).await;
    // What has been handed in whole is committed, whatever the stream does after it.
    while puts.committed().await {}
    ended?;
    puts.answer()
}

impl Puts<'_> {
    async fn read(&mut self, input: &mut Input, column: &Column) -> Result<(), Status> {
        while let Some(head) = input.next().await? {
            self.announce(&head.metadata)?;
            if head.header.is_empty() {
                continue; // a message of metadata alone
            }
            let Announced::Batch(batch) = ipc::read(&head.header)? else {
                return Err(refuse(Code::BadRequest, "a second schema"));
            };
            let (offset, mut left) = batch.check(column, head.body).map_err(|e| of_wire(&e))?;
            crate::put::skip(input, offset).await?;
            while left > 0 {
                self.advance().await?;
                let Some(current) = &mut self.current else {
                    return Err(refuse(Code::Incomplete, format!("{left} bytes came that no key announced")));
                };
                let piece = input.body(left.min(current.missing)).await?;
                left -= piece.len() as u64;
                current.missing -= piece.len() as u64;
                if let Some(writer) = &mut current.writer
                    && let Err(error) = writer.write(&piece).await
                {
                    current.writer = None;
                    let (index, key) = (current.index, current.key.clone());
                    self.failed(index, &key, &error.to_wire());
                }
            }
        }
        self.advance().await?;
        match &self.current {
            None => Ok(()),
            Some(current) => {
                Err(refuse(Code::Incomplete, format!("the stream ended {} bytes before the end of {}", current.missing, current.key)))
            }
        }
    }

    /// Takes in the keys of a message.
    fn announce(&mut self, metadata: &[u8]) -> Result<(), Status> {
        if metadata.is_empty() {
            return Ok(());
        }
        let message: PutMessage =
            serde_json::from_slice(metadata).map_err(|e| refuse(Code::BadRequest, format!("app_metadata of put_many: {e}")))?;
        if self.results.len() + message.items.len() > MAX_KEYS {
            return Err(refuse(Code::BadRequest, format!("more than {MAX_KEYS} keys in one stream")));
        }
        let share = metadata.len() / message.items.len().max(1);
        for item in message.items {
            if item.key.len() > MAX_NAMESPACE + 1 + MAX_KEY {
                return Err(refuse(Code::BadRequest, format!("a key of {} bytes; docs/wire.md has the limits", item.key.len())));
            }
            self.waiting = (self.waiting.0 + share, self.waiting.1 + item.parts.len());
            if self.waiting.0 > AHEAD_BYTES || self.waiting.1 > AHEAD_PARTS {
                return Err(refuse(
                    Code::BadRequest,
                    format!("keys are announced too far ahead of their bytes: {AHEAD_BYTES} bytes of metadata, {AHEAD_PARTS} parts"),
                ));
            }
            // What cannot be measured ends the stream: nobody knows where the next key begins.
            let nbytes = item.nbytes().map_err(|e| of_wire(&e))?;
            self.announced.push_back(Announcement { index: self.results.len(), item, nbytes, metadata: share });
            self.results.push(None);
        }
        Ok(())
    }

    /// Hands in the current key when it is whole, and begins the next one; those without bytes are done at once.
    async fn advance(&mut self) -> Result<(), Status> {
        loop {
            match self.current.take() {
                Some(current) if current.missing > 0 => {
                    self.current = Some(current);
                    return Ok(());
                }
                Some(Current { index, key, writer: Some(writer), .. }) => {
                    while self.commits.len() >= COMMITS {
                        self.committed().await;
                    }
                    self.committing.insert(key.clone());
                    let commit = writer.commit();
                    self.commits.push(Box::pin(async move { (index, key, commit.await) }));
                }
                _ => {}
            }
            let Some(next) = self.announced.pop_front() else { return Ok(()) };
            self.waiting = (self.waiting.0 - next.metadata, self.waiting.1 - next.item.parts.len());
            // Of one key put twice the later one counts, and its conditions see the earlier one.
            while self.committing.contains(&next.item.key) && self.committed().await {}
            let (index, key, missing) = (next.index, next.item.key.clone(), next.nbytes);
            let writer = match begin(self.store, next.item).await {
                Ok(writer) => Some(writer),
                Err(error) => {
                    self.failed(index, &key, &error.to_wire());
                    None
                }
            };
            self.current = Some(Current { index, key, writer, missing });
        }
    }

    /// Waits for one commit; false where none is under way.
    async fn committed(&mut self) -> bool {
        let Some((index, key, committed)) = self.commits.next().await else { return false };
        self.committing.remove(&key);
        match committed {
            Ok(answer) => self.results[index] = Some(PutResult::Done(answer)),
            Err(error) => self.failed(index, &key, &error.to_wire()),
        }
        true
    }

    fn failed(&mut self, index: usize, key: &str, error: &WireError) {
        self.results[index] =
            Some(PutResult::Failed(FailedKey { key: key.to_owned(), error: shortened(error.to_string(), FAILURE_BYTES) }));
    }

    fn answer(self) -> Result<PutManyAnswer, Status> {
        let results = self.results.into_iter().collect::<Option<_>>();
        results.map(|results| PutManyAnswer { results }).ok_or_else(|| refuse(Code::Internal, "a key without a result"))
    }
}

async fn begin(store: &StorageClient, item: PutItem) -> Result<Writer, StoreError> {
    let (key, condition): (Key, _) = (item.key.parse()?, item.condition()?);
    let codecs: Vec<_> = item.parts.iter().map(|part| part.codec.clone()).collect();
    let parts = item.specs()?.into_iter().zip(codecs).map(|((name, spec), codec)| PartSpec { name, spec, codec }).collect();
    let options = WriteOptions {
        ttl: item.ttl,
        consistency: item.consistency,
        condition,
        kv_spec: item.kv_spec,
        derived_from_lossy: item.derived_from_lossy,
        ..WriteOptions::default()
    };
    store.begin_parts(key, parts, options).await
}
