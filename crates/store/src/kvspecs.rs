//! Registered kv specs: their canonical texts, in the record backend under their hashes.

use std::sync::Arc;

use quick_cache::sync::Cache;
use sira_backend::{Durability, PutMode, PutOptions};
use sira_tensor::kv::{self, KvSpec};

use crate::StoreError;
use crate::client::Inner;

/// What the names of kv specs start with.
const KV_SPECS: &str = "s/";

/// Specs that may be registered: they are never deleted.
const MOST: usize = 10_000;

/// Specs kept in memory; a fleet has a few.
const KEPT: usize = 256;

/// The specs used lately.
pub(crate) struct KvSpecs {
    cache: Cache<String, Arc<KvSpec>>,
}

impl KvSpecs {
    pub fn new() -> KvSpecs {
        KvSpecs { cache: Cache::new(KEPT) }
    }

    /// Stores `spec` durably and gives its hash; the same spec again changes nothing.
    pub async fn put(&self, inner: &Inner, spec: KvSpec) -> Result<String, StoreError> {
        let (text, hash) = (spec.canonical(), spec.hash());
        if self.cache.get(&hash).is_some() {
            return Ok(hash);
        }
        let tier = inner.record_tier()?;
        tier.headroom().await?;
        let known = tier.backend.list_keys(KV_SPECS, None, MOST).await.map_err(|e| tier.failed(e))?;
        let name = format!("{KV_SPECS}{hash}");
        if known.len() == MOST && tier.backend.get(&name, None).await.map_err(|e| tier.failed(e))?.is_none() {
            return Err(StoreError::OutOfSpace(format!(
                "{MOST} kv specs are registered, and they are kept for ever; an engine needs a few"
            )));
        }
        let options = PutOptions { mode: PutMode::Create, durability: Durability::Durable, expires_in: None };
        // One that exists is this one: its name is the hash of its text.
        tier.backend.put(&name, text.into_bytes().into(), options).await.map_err(|e| tier.failed(e))?;
        self.cache.insert(hash.clone(), Arc::new(spec));
        Ok(hash)
    }

    /// The spec of this hash.
    pub async fn get(&self, inner: &Inner, hash: &str) -> Result<Arc<KvSpec>, StoreError> {
        if let Some(spec) = self.cache.get(hash) {
            return Ok(spec);
        }
        let tier = inner.record_tier()?;
        let name = format!("{KV_SPECS}{hash}");
        let text = tier.backend.get(&name, None).await.map_err(|e| tier.failed(e))?;
        let text = text.ok_or_else(|| StoreError::UnknownKvSpec(format!("no kv spec {hash}; register it with kv_spec_put")))?;
        if kv::hash(&text) != hash {
            return Err(StoreError::Corrupt(format!("kv spec {name} in backend {}: its hash does not match", tier.name)));
        }
        let spec = Arc::new(KvSpec::from_json(&text)?);
        self.cache.insert(hash.to_owned(), spec.clone());
        Ok(spec)
    }
}
