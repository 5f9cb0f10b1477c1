//! Lookups: they cost no more than their deadline, and where a cache is asked, no answer is a miss.

use std::collections::{BTreeSet, HashSet};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use sira_wire::many::ExistsManyAnswer;
use sira_wire::{ExistsAnswer, Key, KeyRequest, VERSION};
use tokio::time::Instant;
use tonic::Status;

use crate::client::{answer, json};
use crate::{Client, ClientError, batches};

/// How long a lookup may take when nothing else is said.
pub const LOOKUP_DEADLINE: Duration = Duration::from_millis(200);

/// How long one lookup may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deadline {
    /// As long as its client says: [`LOOKUP_DEADLINE`], or what [`Client::with_lookup_deadline`] set.
    #[default]
    OfClient,
    /// This long.
    After(Duration),
    /// As long as it takes.
    Never,
}

impl From<Option<Duration>> for Deadline {
    fn from(deadline: Option<Duration>) -> Deadline {
        deadline.map_or(Deadline::Never, Deadline::After)
    }
}

/// How to look keys up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookupOptions {
    /// Hash of the kv spec that the keys must follow: a key that follows another, or none, is a miss.
    pub kv_spec: Option<String>,
    /// How long it may take.
    pub deadline: Deadline,
}

/// Which of many keys exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// Whether each key exists, in the order of the request.
    pub exists: Vec<bool>,
    /// How many exist before the first that does not: the longest run from the start, which is what a prefix cache can use.
    pub leading: usize,
}

impl Lookup {
    fn of(exists: Vec<bool>) -> Lookup {
        let leading = exists.iter().position(|exists| !exists).unwrap_or(exists.len());
        Lookup { exists, leading }
    }
}

/// What a client holds for its lookups.
#[derive(Clone, Debug)]
pub(crate) struct Lookups {
    deadline: Option<Duration>,
    /// Namespaces that whoever made the client calls caches.
    told: Arc<HashSet<String>>,
    /// Namespaces that the server's latest answers called caches; clones of the client share them.
    learnt: Arc<RwLock<HashSet<String>>>,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups { deadline: Some(LOOKUP_DEADLINE), told: Arc::default(), learnt: Arc::default() }
    }
}

impl Lookups {
    fn limit(&self, deadline: Deadline) -> Option<Duration> {
        match deadline {
            Deadline::OfClient => self.deadline,
            Deadline::After(limit) => Some(limit),
            Deadline::Never => None,
        }
    }

    fn are_caches(&self, namespaces: &BTreeSet<String>) -> bool {
        let learnt = self.learnt.read();
        namespaces.iter().all(|name| self.told.contains(name) || learnt.contains(name))
    }

    /// Remembers what an answer said: whether all of these are caches.
    fn learn(&self, namespaces: &BTreeSet<String>, cache: bool) {
        if cache == namespaces.iter().all(|name| self.learnt.read().contains(name)) {
            return;
        }
        let mut learnt = self.learnt.write();
        if cache {
            learnt.extend(namespaces.iter().cloned());
        } else if let (Some(only), 1) = (namespaces.first(), namespaces.len()) {
            learnt.remove(only);
        }
    }
}

/// One lookup on its way: how long it has, and what no answer means.
struct Asking<'a> {
    client: &'a Client,
    namespaces: BTreeSet<String>,
    limit: Option<Duration>,
    until: Option<Instant>,
}

impl<'a> Asking<'a> {
    fn new(client: &'a Client, namespaces: BTreeSet<String>, deadline: Deadline) -> Asking<'a> {
        let limit = client.lookups.limit(deadline);
        // A deadline past the end of the clock is none.
        Asking { client, namespaces, limit, until: limit.and_then(|limit| Instant::now().checked_add(limit)) }
    }

    /// The answer; `None` where there was none, and none is a miss.
    async fn ask<T: DeserializeOwned>(&self, action: &str, body: Vec<u8>) -> Result<Option<T>, ClientError> {
        let asked = self.client.ask(action, body);
        let answered = match self.until {
            Some(until) => tokio::time::timeout_at(until, asked).await,
            None => Ok(asked.await),
        };
        let unanswered = match answered {
            Ok(Ok(first)) => return answer(action, first).map(Some),
            Ok(Err(status)) if !is_unanswered(&status) => return Err(status.into()),
            Ok(Err(status)) => ClientError::from(status),
            Err(_) => ClientError::DeadlineExceeded { call: action.to_owned(), deadline: self.limit.unwrap_or_default() },
        };
        if self.client.lookups.are_caches(&self.namespaces) { Ok(None) } else { Err(unanswered) }
    }
}

/// Whether a status was made here, for want of an answer: those that a server sent have no cause on this side.
fn is_unanswered(status: &Status) -> bool {
    status.source().is_some()
}

impl Client {
    /// Sets how long lookups ([`Client::exists`] and its kin) may take: 200 ms when not set, `None` for as long as it takes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), sira_client::ClientError> {
    /// use std::time::Duration;
    /// use sira_client::Client;
    ///
    /// let patient = Client::connect_lazy("grpc://127.0.0.1:9095")?.with_lookup_deadline(Duration::from_secs(2));
    /// let endless = patient.clone().with_lookup_deadline(None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_lookup_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Client {
        self.lookups.deadline = deadline.into();
        self
    }

    /// Says which namespaces are caches: a lookup there that has no answer in time, or finds no server, is a miss instead of an error. The client
    /// learns of others from the server's answers, so this is for those it has not asked about yet.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), sira_client::ClientError> {
    /// let client = sira_client::Client::connect_lazy("grpc://127.0.0.1:9095")?.with_cache_namespaces(["kv", "embeddings"]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_cache_namespaces(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Client {
        self.lookups.told = Arc::new(names.into_iter().map(Into::into).collect());
        self
    }

    /// The version of a key; `None` where there is no such key.
    ///
    /// It takes no longer than the client's lookup deadline. When that is over, or there is no server, the answer is `None` if the key's namespace is
    /// known as a cache, and otherwise [`ClientError::DeadlineExceeded`] or [`ClientError::Transport`].
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// match client.exists("demo/ones").await? {
    ///     Some(version) => println!("it has version {version}"),
    ///     None => println!("there is none"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn exists(&self, key: &str) -> Result<Option<u64>, ClientError> {
        self.exists_with(key, &LookupOptions::default()).await
    }

    /// As [`Client::exists`], with a kv spec that the key must follow, or a deadline of its own.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client, hash: String) -> Result<(), sira_client::ClientError> {
    /// use std::time::Duration;
    /// use sira_client::{Deadline, LookupOptions};
    ///
    /// let options = LookupOptions { kv_spec: Some(hash), deadline: Deadline::After(Duration::from_millis(20)) };
    /// let version = client.exists_with("kv/block-1", &options).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn exists_with(&self, key: &str, options: &LookupOptions) -> Result<Option<u64>, ClientError> {
        let key: Key = key.parse()?;
        let asking = Asking::new(self, [key.namespace().to_owned()].into(), options.deadline);
        let request = KeyRequest { v: VERSION, key: key.to_string(), kv_spec: options.kv_spec.clone() };
        let Some(answer) = asking.ask::<ExistsAnswer>("exists", json(&request)?).await? else { return Ok(None) };
        self.lookups.learn(&asking.namespaces, answer.cache);
        match (answer.exists, answer.version) {
            (true, None) => Err(ClientError::protocol("a key that exists without a version")),
            (true, version) => Ok(version),
            (false, _) => Ok(None),
        }
    }

    /// Which of these keys exist, in one round trip, with the deadline of [`Client::exists`] for all of them together. With no answer in time all are
    /// misses if all of their namespaces are known as caches; otherwise it is an error.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::LookupOptions;
    ///
    /// let lookup = client.exists_many(["kv/a", "kv/b", "kv/c"], &LookupOptions::default()).await?;
    /// println!("the first {} blocks need not be computed", lookup.leading);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn exists_many(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<str>>,
        options: &LookupOptions,
    ) -> Result<Lookup, ClientError> {
        let batches = batches::pack(keys, options.kv_spec.as_deref())?;
        let count = batches.iter().map(|batch| batch.count).sum();
        let namespaces = batches.iter().flat_map(|batch| batch.namespaces.iter().cloned()).collect();
        let asking = Asking::new(self, namespaces, options.deadline);
        let mut exists = Vec::with_capacity(count);
        for batch in batches {
            let Some(answer) = asking.ask::<ExistsManyAnswer>("exists_many", batch.body).await? else {
                return Ok(Lookup::of(vec![false; count]));
            };
            if answer.count != batch.count {
                return Err(ClientError::protocol(format!("an answer about {} keys to a question about {}", answer.count, batch.count)));
            }
            exists.extend(answer.exists().map_err(ClientError::protocol)?);
            self.lookups.learn(&batch.namespaces, answer.cache);
        }
        Ok(Lookup::of(exists))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_told_or_learnt_and_unlearnt() {
        let lookups = Lookups { told: Arc::new(["told".to_owned()].into()), ..Lookups::default() };
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert!(lookups.are_caches(&set(&["told"])) && !lookups.are_caches(&set(&["told", "a"])));
        lookups.learn(&set(&["a", "b"]), true);
        assert!(lookups.clone().are_caches(&set(&["told", "a", "b"])));
        // One of the two is no cache: which one, this answer does not say.
        lookups.learn(&set(&["a", "b"]), false);
        lookups.learn(&set(&["b"]), false);
        assert!(lookups.are_caches(&set(&["a"])) && !lookups.are_caches(&set(&["b"])));
        lookups.learn(&set(&["told"]), false);
        assert!(lookups.are_caches(&set(&["told"])), "what the user said stands");
    }

    #[test]
    fn the_leading_run_ends_at_the_first_miss() {
        for (exists, leading) in [(vec![], 0), (vec![true, true], 2), (vec![true, false, true], 1), (vec![false, true], 0)] {
            assert_eq!(Lookup::of(exists).leading, leading);
        }
    }

    #[test]
    fn only_statuses_made_here_count_as_no_answer() {
        assert!(!is_unanswered(&Status::unavailable("SIRA_BUSY: no memory")));
        assert!(is_unanswered(&Status::from_error(Box::new(std::io::Error::other("connection reset")))));
    }
}
