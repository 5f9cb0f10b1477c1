//! Many keys in one stream: what to put, and the call. How it is cut into messages stands in `put_messages`.

use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::FlightData;
use bytes::Bytes;
use futures::stream::Peekable;
use futures::{Stream, StreamExt, poll, stream};
use parking_lot::Mutex;
use sira_tensor::TensorSpec;
use sira_wire::many::{DATA, MAX_KEYS, PartHeader, PutItem, PutManyAnswer, PutResult};
use sira_wire::{Code, Condition, Consistency, Key, PutAnswer, WireError};

use crate::client::parse;
use crate::error::refusal;
use crate::put_messages::Messages;
use crate::{Client, ClientError, message};

/// What to put under one key: its parts become visible together, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutEntry {
    /// The key.
    pub key: String,
    /// Its parts, 1 to 64, each of another name.
    pub parts: Vec<PartData>,
    /// Seconds to live, at least 1.
    pub ttl: Option<u64>,
    /// Consistency level.
    pub consistency: Option<Consistency>,
    /// What must hold of the key.
    pub condition: Option<Condition>,
    /// Hash of the registered kv spec that the key follows.
    pub kv_spec: Option<String>,
    /// Whether it was computed from what a lossy codec gave back: then it is not exact, however it is kept.
    pub derived_from_lossy: bool,
}

/// One part of a key, with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartData {
    /// Its name: 1 to 64 bytes without `/` and control characters. A key put as one tensor has one part, `data`.
    pub name: String,
    /// What it is, its attributes among it.
    pub spec: TensorSpec,
    /// Codec chain of lower tiers; as the namespace says where it is absent.
    pub codec: Option<String>,
    /// Its bytes, row-major and little-endian.
    pub bytes: Bytes,
}

impl PutEntry {
    /// A key that is one tensor. What else there is to say of it are fields:
    ///
    /// ```
    /// use sira_client::{DType, PutEntry, TensorSpec};
    ///
    /// let spec = TensorSpec::new(DType::UInt8, vec![3]).unwrap();
    /// let entry = PutEntry { ttl: Some(60), ..PutEntry::new("kv/block-1", spec, vec![1, 2, 3]) };
    /// assert_eq!(entry.parts[0].name, "data");
    /// ```
    pub fn new(key: impl Into<String>, spec: TensorSpec, bytes: impl Into<Bytes>) -> PutEntry {
        PutEntry { key: key.into(), parts: vec![PartData::new(DATA, spec, bytes)], ..PutEntry::default() }
    }

    /// What is announced of it, once it is sure that a server can take it: names, lengths, options.
    fn announce(&self) -> Result<PutItem, WireError> {
        let key: Key = self.key.parse()?;
        let item = PutItem {
            key: key.to_string(),
            parts: self.parts.iter().map(|part| PartHeader::of(&part.name, &part.spec, part.codec.clone())).collect(),
            ttl: self.ttl,
            consistency: self.consistency,
            condition: self.condition.map(|condition| condition.to_string()),
            kv_spec: self.kv_spec.clone(),
            derived_from_lossy: self.derived_from_lossy,
        };
        item.specs()?;
        item.condition()?;
        match self.parts.iter().find(|part| part.bytes.len() as u64 != part.spec.nbytes()) {
            Some(part) => Err(WireError::new(
                Code::Incomplete,
                format!("{key}: part {:?} has {} bytes, and {} are given", part.name, part.spec.nbytes(), part.bytes.len()),
            )),
            None => Ok(item),
        }
    }
}

impl PartData {
    /// A part, with the codec that its namespace says.
    pub fn new(name: impl Into<String>, spec: TensorSpec, bytes: impl Into<Bytes>) -> PartData {
        PartData { name: name.into(), spec, codec: None, bytes: bytes.into() }
    }
}

/// What becomes of one key.
pub(crate) enum Outcome {
    /// It was sent under this key: the server's next result is its.
    Sent(String),
    /// It was never sent.
    Refused(WireError),
}

type Entries = Peekable<Pin<Box<dyn Stream<Item = PutEntry> + Send>>>;

/// What is to be put, and what became of it.
struct Source {
    entries: Entries,
    outcomes: Vec<Outcome>,
}

/// One stream's body. At its end it leaves the source behind, for the next stream and for whoever reads the answer.
struct Body {
    source: Option<Source>,
    left: Arc<Mutex<Option<Source>>>,
    messages: Messages,
    announced: usize,
}

impl Body {
    async fn next(&mut self) -> Option<FlightData> {
        loop {
            if let Some(message) = self.messages.pop() {
                return Some(message);
            }
            let entries = &mut self.source.as_mut()?.entries;
            // A source that has nothing right now may take long: what there is goes out meanwhile.
            if self.messages.is_waiting() && poll!(Pin::new(&mut *entries).peek()).is_pending() {
                self.messages.flush();
                continue;
            }
            match if self.announced < MAX_KEYS { entries.next().await } else { None } {
                Some(entry) => self.take(entry),
                None => {
                    self.messages.flush();
                    *self.left.lock() = self.source.take();
                }
            }
        }
    }

    fn take(&mut self, entry: PutEntry) {
        let added = entry.announce().and_then(|item| self.messages.add(&item, entry.parts.into_iter().map(|part| part.bytes)));
        self.announced += usize::from(added.is_ok());
        let outcome = added.map_or_else(Outcome::Refused, |()| Outcome::Sent(entry.key));
        if let Some(source) = &mut self.source {
            source.outcomes.push(outcome);
        }
    }
}

impl Client {
    /// Puts many keys in one stream: small tensors share messages (and are copied once), large ones are sent as they lie.
    ///
    /// The answer has one result an entry, in their order; what fails with one does not stop the others. An error of the call itself says nothing of
    /// the keys: some may have been committed. Entries are taken as fast as the server takes their bytes, and what has come is sent while there are no
    /// more, but a source that has nothing for a minute loses the stream ([`Code::Busy`]). More entries than one stream takes (65,536) go on in the
    /// next.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sira_client::{DType, PutEntry, TensorSpec};
    ///
    /// let spec = TensorSpec::new(DType::BFloat16, vec![16, 8, 128])?;
    /// let blocks = (0..32).map(move |i| PutEntry::new(format!("kv/block-{i}"), spec.clone(), vec![0u8; 32768]));
    /// for result in client.put_many(futures::stream::iter(blocks)).await? {
    ///     match result {
    ///         Ok(answer) => println!("{} has version {}", answer.key, answer.version),
    ///         Err(error) => println!("{error}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_many(
        &self,
        entries: impl Stream<Item = PutEntry> + Send + 'static,
    ) -> Result<Vec<Result<PutAnswer, WireError>>, ClientError> {
        let entries: Pin<Box<dyn Stream<Item = PutEntry> + Send>> = Box::pin(entries);
        let mut entries = entries.peekable();
        let mut results = Vec::new();
        while Pin::new(&mut entries).peek().await.is_some() {
            let left = Arc::new(Mutex::new(None));
            let source = Some(Source { entries, outcomes: Vec::new() });
            let body = Body { source, left: left.clone(), messages: Messages::default(), announced: 0 };
            let messages = stream::unfold(body, |mut body| async move { Some((body.next().await?, body)) });
            let answer = self.send_many(stream::iter([message::schema_of_many()]).chain(messages)).await?;
            let source = left.lock().take().ok_or_else(|| ClientError::protocol("an answer before the end of what was put"))?;
            merge(source.outcomes, answer, &mut results)?;
            entries = source.entries;
        }
        Ok(results)
    }

    pub(crate) async fn send_many(&self, body: impl Stream<Item = FlightData> + Send + 'static) -> Result<PutManyAnswer, ClientError> {
        let mut results = self.flight.clone().do_put(body).await?.into_inner();
        let first = results.message().await?.ok_or_else(|| ClientError::protocol("a put without an answer"))?;
        let answer = parse(&first.app_metadata)?;
        while results.message().await?.is_some() {}
        Ok(answer)
    }
}

/// Adds what became of each entry: the server's results are those of the entries that were sent, in their order.
pub(crate) fn merge(
    outcomes: Vec<Outcome>,
    answer: PutManyAnswer,
    results: &mut Vec<Result<PutAnswer, WireError>>,
) -> Result<(), ClientError> {
    let mut answered = answer.results.into_iter();
    for outcome in outcomes {
        let key = match outcome {
            Outcome::Sent(key) => key,
            Outcome::Refused(error) => {
                results.push(Err(error));
                continue;
            }
        };
        let (of, result) = match answered.next() {
            Some(PutResult::Done(answer)) => (answer.key.clone(), Ok(answer)),
            Some(PutResult::Failed(failed)) => (failed.key, Err(refusal(&failed.error))),
            None => return Err(ClientError::protocol(format!("no result of {key}"))),
        };
        if of != key {
            return Err(ClientError::protocol(format!("a result of {of:?} where one of {key} is due")));
        }
        results.push(result);
    }
    match answered.next() {
        Some(_) => Err(ClientError::protocol("more results than keys were put")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use sira_tensor::DType;
    use sira_wire::many::FailedKey;

    use super::*;

    fn entry(key: &str, len: u64) -> PutEntry {
        PutEntry::new(key, TensorSpec::new(DType::UInt8, vec![len]).unwrap(), vec![1; len as usize])
    }

    async fn messages(entries: impl Stream<Item = PutEntry> + Send + 'static) -> (Vec<FlightData>, Source) {
        let entries: Pin<Box<dyn Stream<Item = PutEntry> + Send>> = Box::pin(entries);
        let left = Arc::new(Mutex::new(None));
        let source = Some(Source { entries: entries.peekable(), outcomes: Vec::new() });
        let mut body = Body { source, left: left.clone(), messages: Messages::default(), announced: 0 };
        let mut messages = Vec::new();
        while let Some(message) = body.next().await {
            messages.push(message);
        }
        let source = left.lock().take().unwrap();
        (messages, source)
    }

    #[tokio::test]
    async fn what_a_server_cannot_take_is_not_sent() {
        let short = PutEntry { parts: vec![PartData { bytes: Bytes::new(), ..entry("ns/k", 3).parts.remove(0) }], ..entry("ns/short", 3) };
        let none = PutEntry { parts: Vec::new(), ..entry("ns/none", 1) };
        let ttl = PutEntry { ttl: Some(0), ..entry("ns/ttl", 1) };
        let spec = PutEntry { kv_spec: Some("5f3a".into()), ..entry("ns/spec", 1) };
        let (messages, source) = messages(stream::iter([entry("nokey", 1), short, entry("ns/a", 8), none, ttl, spec])).await;
        assert_eq!((messages.len(), messages[0].data_body.len()), (1, 8));
        let code = |outcome: &Outcome| match outcome {
            Outcome::Sent(_) => None,
            Outcome::Refused(error) => Some(error.code),
        };
        let bad = Some(Code::BadRequest);
        let codes: Vec<_> = source.outcomes.iter().map(code).collect();
        assert_eq!(codes, [Some(Code::BadKey), Some(Code::Incomplete), None, bad, bad, bad]);
    }

    #[tokio::test]
    async fn a_stream_ends_at_its_limit_and_leaves_the_rest() {
        let (_, mut source) = messages(stream::iter((0..MAX_KEYS + 2).map(|i| entry(&format!("ns/{i}"), 1)))).await;
        assert_eq!(source.outcomes.len(), MAX_KEYS);
        assert_eq!(source.entries.by_ref().count().await, 2);
    }

    #[tokio::test]
    async fn what_has_come_is_sent_while_the_source_has_no_more() {
        let (send, receive) = futures::channel::mpsc::unbounded();
        let entries: Pin<Box<dyn Stream<Item = PutEntry> + Send>> = Box::pin(receive);
        let source = Some(Source { entries: entries.peekable(), outcomes: Vec::new() });
        let mut body = Body { source, left: Arc::default(), messages: Messages::default(), announced: 0 };
        for key in ["ns/a", "ns/b"] {
            send.unbounded_send(entry(key, 1)).unwrap();
        }
        let first = body.next().await.unwrap();
        assert!(String::from_utf8_lossy(&first.app_metadata).contains("ns/b"), "both are sent, in one message");
        send.unbounded_send(entry("ns/c", 1)).unwrap();
        assert!(String::from_utf8_lossy(&body.next().await.unwrap().app_metadata).contains("ns/c"));
        drop(send);
        assert!(body.next().await.is_none());
    }

    #[test]
    fn results_are_matched_with_what_was_sent() {
        let outcomes = || {
            let refused = Outcome::Refused(WireError::new(Code::BadKey, "x"));
            vec![Outcome::Sent("ns/a".into()), refused, Outcome::Sent("ns/b".into())]
        };
        let done = |key: &str| PutResult::Done(PutAnswer { key: key.into(), version: 1, created: true });
        let failed = |key: &str| PutResult::Failed(FailedKey { key: key.into(), error: "SIRA_EXISTS: it does".into() });
        let of = |results: Vec<PutResult>| {
            let mut merged = Vec::new();
            merge(outcomes(), PutManyAnswer { results }, &mut merged).map(|()| merged)
        };
        let merged = of(vec![done("ns/a"), failed("ns/b")]).unwrap();
        assert!(merged[0].is_ok());
        assert_eq!(merged[1].as_ref().unwrap_err().code, Code::BadKey);
        assert_eq!(*merged[2].as_ref().unwrap_err(), WireError::new(Code::Exists, "it does"));
        for wrong in [vec![], vec![done("ns/a")], vec![done("ns/b"), done("ns/a")], vec![done("ns/a"), done("ns/b"), done("ns/c")]] {
            assert!(matches!(of(wrong), Err(ClientError::Protocol(_))));
        }
    }
}
