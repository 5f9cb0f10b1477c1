//! Policies of namespaces: set, stored, and read back at the start.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sira_backend::{Durability, PutMode, PutOptions, Survives};
use sira_codec::Chain;
use sira_tensor::kv::KvSpec;
use sira_wire::WireError;
use sira_wire::namespace::{CALIBRATIONS, KvSpecAnswer, Mode, NamespaceEntry, Policy, PolicyOrigin, Tiers};

use crate::calibrations::{key_of, named};
use crate::client::Inner;
use crate::namespaces::{MEMORY, Namespace, POLICIES, policy_name};
use crate::{StorageClient, StoreError};

/// Names or keys looked at in one go.
const PAGE: usize = 1000;

/// The layout of a stored policy.
const FORMAT: u32 = 1;

/// A policy as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    namespace: String,
    policy: Policy,
}

impl StorageClient {
    /// Sets what holds for a namespace by configuration, which actions then do not change. Call before [`StorageClient::start`].
    pub fn configure_namespace(&self, name: &str, policy: Policy) -> Result<(), StoreError> {
        sira_wire::namespace::check_namespace(name)?;
        self.inner.check_policy(name, &policy)?;
        self.inner.namespaces.set(name, policy, PolicyOrigin::Configuration);
        Ok(())
    }

    /// Sets what holds for a namespace, durably.
    pub async fn set_namespace(&self, name: &str, policy: Policy) -> Result<NamespaceEntry, StoreError> {
        self.inner.changeable(name)?;
        self.inner.check_policy(name, &policy)?;
        let mut uses = Vec::new();
        for hash in policy.codecs.values().flat_map(|chain| named(chain)) {
            uses.push(self.inner.calibrations.hold(&self.inner, hash).await?);
        }
        let tier = self.inner.record_tier()?;
        tier.headroom().await?;
        // One at a time: what is stored is what holds.
        let _one = self.inner.setting.lock().await;
        let stored = Stored { format: FORMAT, namespace: name.to_owned(), policy: policy.clone() };
        let bytes = serde_json::to_vec(&stored).map_err(|e| StoreError::Internal(e.to_string()))?;
        let options = PutOptions { mode: PutMode::Overwrite, durability: Durability::Durable, expires_in: None };
        tier.backend.put(&policy_name(name), bytes.into(), options).await.map_err(|e| tier.failed(e))?;
        let own = policy.limits.contains_key(MEMORY);
        let namespace = self.inner.namespaces.set(name, policy, PolicyOrigin::Action);
        if own {
            // What it had in the memory that all share.
            self.inner.shared.forget(&namespace.memory);
        }
        self.inner.order(&namespace)?;
        self.inner.shrink(&namespace).await?;
        self.inner.replication.look(&namespace.name);
        Ok(namespace.entry())
    }

    /// Forgets what was set for a namespace by action.
    pub async fn reset_namespace(&self, name: &str) -> Result<NamespaceEntry, StoreError> {
        self.inner.changeable(name)?;
        let tier = self.inner.record_tier()?;
        let _one = self.inner.setting.lock().await;
        tier.backend.delete(&policy_name(name)).await.map_err(|e| tier.failed(e))?;
        let namespace = self.inner.namespaces.set(name, Policy::default(), PolicyOrigin::Default);
        self.inner.order(&namespace)?;
        Ok(namespace.entry())
    }

    /// The namespaces that have keys or a policy, in byte order.
    pub fn namespaces(&self) -> Vec<NamespaceEntry> {
        let entries = self.inner.namespaces.all().into_iter().map(|namespace| namespace.entry());
        entries.filter(|entry| entry.keys > 0 || !entry.bytes.is_empty() || entry.origin != PolicyOrigin::Default).collect()
    }

    /// Registers a kv spec.
    pub async fn put_kv_spec(&self, spec: KvSpec) -> Result<KvSpecAnswer, StoreError> {
        let hash = self.inner.kv_specs.put(&self.inner, spec.clone()).await?;
        Ok(KvSpecAnswer { hash, spec })
    }

    /// A registered kv spec.
    pub async fn kv_spec(&self, hash: &str) -> Result<KvSpecAnswer, StoreError> {
        let spec = self.inner.kv_specs.get(&self.inner, hash).await?;
        Ok(KvSpecAnswer { hash: hash.to_owned(), spec: (*spec).clone() })
    }
}

impl Inner {
    /// Refuses to change what the configuration sets.
    fn changeable(&self, name: &str) -> Result<(), StoreError> {
        let configured = self.namespaces.find(name).is_some_and(|namespace| namespace.entry().origin == PolicyOrigin::Configuration);
        match configured {
            true => Err(wrong(format!("namespace {name} is set in the server's configuration; change it there"))),
            false => Ok(()),
        }
    }

    /// Holds a policy against the backends and codecs that there are.
    fn check_policy(&self, name: &str, policy: &Policy) -> Result<(), StoreError> {
        policy.check()?;
        if name == CALIBRATIONS && (policy.mode == Mode::Cache || policy.ttl.is_some()) {
            return Err(wrong(format!("namespace {name} holds what codecs need to read others: it is no cache and nothing in it expires")));
        }
        let known = || self.all_tiers().iter().map(|tier| tier.name.clone()).collect::<Vec<_>>().join(", ");
        if let Some(tier) = policy.limits.keys().find(|tier| *tier != MEMORY && self.tier(tier).is_err()) {
            return Err(wrong(format!("limits.{tier}: there is no such tier; there are {MEMORY}, {}", known())));
        }
        if let Some(tiers) = &policy.tiers {
            self.check_tier_names("tiers", tiers)?;
        }
        for copy in &policy.copies {
            match self.tier(copy) {
                Err(_) => return Err(wrong(format!("copies: there is no backend {copy}; there are {}", known()))),
                Ok(tier) if tier.keeps() == Survives::Nothing => {
                    return Err(wrong(format!("copies: backend {copy} keeps nothing when the server stops; memory holds copies anyway")));
                }
                Ok(_) => {}
            }
        }
        for (tier, text) in &policy.codecs {
            if self.tier(tier).is_err() {
                return Err(wrong(format!("codecs.{tier}: there is no such backend; there are {}", known())));
            }
            let chain: Chain = text.parse()?;
            if policy.exact && !chain.lossless() {
                return Err(wrong(format!("codecs.{tier}: {chain} is lossy, and the namespace is to be exact")));
            }
        }
        Ok(())
    }

    /// Refuses tiers of the configuration that are no backends.
    pub(crate) fn check_tiers(&self) -> Result<(), StoreError> {
        self.options.tiers.tiers.as_ref().map_or(Ok(()), |tiers| self.check_tier_names("storage.tiers", tiers))
    }

    fn check_tier_names(&self, place: &str, tiers: &Tiers) -> Result<(), StoreError> {
        tiers.check()?;
        match [&tiers.warm, &tiers.cold].into_iter().find(|name| self.tier(name).is_err()) {
            Some(name) => {
                let known = self.all_tiers().iter().map(|tier| tier.name.clone()).collect::<Vec<_>>().join(", ");
                Err(wrong(format!("{place}: there is no backend {name}; there are {known}")))
            }
            None => Ok(()),
        }
    }

    /// Refuses configured namespaces whose codecs name calibration artefacts that are not there.
    pub(crate) fn check_calibrations(&self) -> Result<(), StoreError> {
        for namespace in self.namespaces.all() {
            let NamespaceEntry { policy, origin, namespace, .. } = namespace.entry();
            for (tier, chain) in policy.codecs.iter().filter(|_| origin == PolicyOrigin::Configuration) {
                for hash in named(chain) {
                    if self.alive(&key_of(hash)?)?.is_none() {
                        return Err(StoreError::Config(format!(
                            "namespaces.{namespace}.codecs.{tier}: no calibration {hash}; put the artefact under {CALIBRATIONS}/{hash} before \
                             the configuration names it"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the policies that were set by action; those of the configuration stand.
    pub(crate) async fn load_policies(&self) -> Result<(), StoreError> {
        let (tier, mut after) = (self.record_tier()?, None::<String>);
        loop {
            let names = tier.backend.list_keys(POLICIES, after.as_deref(), PAGE).await.map_err(|e| tier.failed(e))?;
            for name in &names {
                let Some(bytes) = tier.backend.get(name, None).await.map_err(|e| tier.failed(e))? else { continue };
                let stored: Stored = serde_json::from_slice(&bytes)
                    .map_err(|e| StoreError::Corrupt(format!("policy {name} in backend {}: {e}", tier.name)))?;
                if stored.format != FORMAT {
                    let reason = format!(
                        "policy {name} has format {}; this version of Sira reads {FORMAT}. Run the version that wrote it",
                        stored.format
                    );
                    return Err(StoreError::Config(reason));
                }
                let configured = self.namespaces.find(&stored.namespace).is_some();
                if !configured {
                    if let Err(error) = self.check_policy(&stored.namespace, &stored.policy) {
                        tracing::warn!(%error, namespace = stored.namespace, "its policy does not fit the configured backends; it holds as far as it can");
                    }
                    self.namespaces.set(&stored.namespace, stored.policy, PolicyOrigin::Action);
                }
            }
            match names.last() {
                Some(last) if names.len() == PAGE => after = Some(last.clone()),
                _ => return Ok(()),
            }
        }
    }

    /// Counts what each namespace takes, and orders the keys of caches by their age.
    pub(crate) fn take_stock(&self) -> Result<(), StoreError> {
        self.namespaces.reset();
        let mut after = None::<String>;
        loop {
            let page = self.catalog.records("", after.as_deref(), PAGE)?;
            page.iter().for_each(|record| self.namespaces.replaced(None, Some(record)));
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.key.to_string()),
                _ => break,
            }
        }
        self.namespaces.all().iter().try_for_each(|namespace| self.order(namespace))
    }

    /// Lets the keys that may leave a tier enter its order, oldest first.
    fn order(&self, namespace: &Arc<Namespace>) -> Result<(), StoreError> {
        namespace.disorder();
        if !namespace.is_cache() && namespace.tiers().is_none() {
            return Ok(());
        }
        let prefix = format!("{}/", namespace.name);
        let (mut keys, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = self.catalog.records(&prefix, after.as_deref(), PAGE)?;
            let live = page.iter().filter(|record| !record.tombstone);
            keys.extend(
                live.map(|record| (record.created_ms, record.key.to_string(), namespace.ordered(record, &self.options.record_backend))),
            );
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.key.to_string()),
                _ => break,
            }
        }
        keys.sort_by_key(|(created_ms, ..)| *created_ms);
        keys.into_iter().for_each(|(created_ms, key, tiers)| namespace.entered(&key, tiers, created_ms));
        Ok(())
    }
}

fn wrong(reason: String) -> StoreError {
    WireError::new(sira_wire::Code::BadRequest, reason).into()
}
