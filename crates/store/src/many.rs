//! Many keys at once.

use std::sync::Arc;

use futures::StreamExt;
use sira_wire::Key;
use sira_wire::many::{DeleteManyAnswer, DeletePrefixAnswer, FailedKey, KeyList};

use crate::catalog::{Wanted, tag};
use crate::client::Inner;
use crate::{StorageClient, StoreError};

/// Deletes under way at once: their syncs share one write of the disk.
const WIDTH: usize = 16;

/// Keys of one page of a `delete_prefix`.
const PAGE: usize = 1000;

/// Looks into the index that are done on the spot; more go where they hold nobody up.
const FEW: usize = 64;

impl StorageClient {
    /// Whether each key exists and follows the kv spec that is demanded.
    pub async fn exists_many(&self, keys: &KeyList<'_>, kv_spec: Option<&str>) -> Result<Vec<bool>, StoreError> {
        let inner = &self.inner;
        let (now, kv_spec) = (inner.now(), kv_spec.map(tag));
        let mut exact = Exact { inner, last: None };
        let mut wanted = |key: &str| Wanted { kv_spec, exact: exact.of(key) };
        // First what waits to be written behind, then the index, into which it moves meanwhile.
        let waiting = !inner.behind.is_empty();
        let (mut exists, mut unknown) = (Vec::with_capacity(keys.len()), Vec::new());
        for (i, key) in keys.iter().enumerate() {
            let waits = if waiting { inner.behind.presence(key) } else { None };
            let wanted = wanted(key);
            let known = waits.or_else(|| inner.catalog.remembered(key));
            if known.is_none() {
                unknown.push((i, key.parse::<Key>()?, wanted));
            }
            exists.push(known.is_some_and(|presence| presence.holds(now, wanted)));
        }
        let catalog = inner.catalog.clone();
        let few = unknown.len() <= FEW;
        let look = move || {
            unknown
                .iter()
                .map(|(i, key, wanted)| Ok((*i, catalog.presence(key)?.holds(now, *wanted))))
                .collect::<Result<Vec<_>, StoreError>>()
        };
        let looked = if few { Some(look()) } else { inner.seams.work(look).await };
        for (i, holds) in looked.ok_or_else(|| StoreError::Internal("a lookup has died".into()))?? {
            exists[i] = holds;
        }
        Ok(exists)
    }

    /// Whether all of these namespaces are caches; false of none at all.
    pub fn are_caches<'a>(&self, namespaces: impl IntoIterator<Item = &'a str>) -> bool {
        let (mut any, mut last) = (false, None);
        for name in namespaces {
            if last != Some(name) {
                if !self.inner.namespaces.find(name).is_some_and(|namespace| namespace.is_cache()) {
                    return false;
                }
                (any, last) = (true, Some(name));
            }
        }
        any
    }

    /// Deletes keys; one that fails does not stop the others.
    pub async fn delete_many(&self, keys: Vec<Key>) -> DeleteManyAnswer {
        let mut answer = DeleteManyAnswer::default();
        let mut deletes = futures::stream::iter(keys).map(|key| delete(self.inner.clone(), key)).buffered(WIDTH);
        while let Some((key, deleted)) = deletes.next().await {
            match deleted {
                Ok(true) => answer.deleted += 1,
                Ok(false) => answer.missing.push(key.to_string()),
                Err(error) => answer.failed.push(failed(&key, &error)),
            }
        }
        answer
    }

    /// Deletes, or only counts, some of the keys that start with `prefix` and come after `after`; the answer says where to go on.
    pub async fn delete_prefix(&self, prefix: &str, after: Option<&str>, dry_run: bool) -> Result<DeletePrefixAnswer, StoreError> {
        let (entries, next) = self.list(prefix, after, PAGE)?;
        let mut answer = DeletePrefixAnswer { next, ..DeletePrefixAnswer::default() };
        if dry_run {
            answer.keys = entries.len() as u64;
            answer.bytes = entries.iter().map(|entry| entry.nbytes).sum();
            return Ok(answer);
        }
        let keys = entries.iter().map(|entry| Ok((entry.key.parse()?, entry.nbytes))).collect::<Result<Vec<(Key, u64)>, StoreError>>()?;
        let deletes = futures::stream::iter(keys).map(|(key, nbytes)| {
            let inner = self.inner.clone();
            async move { (delete(inner, key).await, nbytes) }
        });
        let mut deletes = deletes.buffered(WIDTH);
        while let Some(((key, deleted), nbytes)) = deletes.next().await {
            match deleted {
                Ok(true) => {
                    answer.keys += 1;
                    answer.bytes += nbytes;
                }
                Ok(false) => {}
                Err(error) => answer.failed.push(failed(&key, &error)),
            }
        }
        Ok(answer)
    }
}

/// Which keys lie in namespaces where what is not exact is a miss; those of one namespace most often come together.
struct Exact<'a> {
    inner: &'a Arc<Inner>,
    last: Option<(String, bool)>,
}

impl Exact<'_> {
    fn of(&mut self, key: &str) -> bool {
        let namespace = key.split('/').next().unwrap_or_default();
        match &self.last {
            Some((last, exact)) if last == namespace => *exact,
            _ => {
                let exact = self.inner.namespaces.find(namespace).is_some_and(|namespace| namespace.policy().exact);
                self.last = Some((namespace.to_owned(), exact));
                exact
            }
        }
    }
}

async fn delete(inner: Arc<Inner>, key: Key) -> (Key, Result<bool, StoreError>) {
    let deleted = inner.delete(&key, None, true).await;
    (key, deleted)
}

fn failed(key: &Key, error: &StoreError) -> FailedKey {
    FailedKey { key: key.to_string(), error: error.to_wire().to_string() }
}
