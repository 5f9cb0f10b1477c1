//! Namespaces: what holds for all keys of one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sira_tensor::DType;
use sira_tensor::kv::{KvSpec, MAX_KV_SPEC};
use sira_tensor::shape::MAX_RANK;

use crate::key::MAX_NAMESPACE;
use crate::options::{check_kv_spec, check_ttl, refuse};
use crate::request::{Versioned, parse, versioned};
use crate::{Code, Consistency, Key, WireError};

versioned!(NamespaceRequest, KvSpecRequest, RouteRequest);

/// The namespace of calibration artefacts: one-axis tensors of `uint8`, each under the SHA-256 of its bytes.
pub const CALIBRATIONS: &str = "calibration";

/// What a namespace is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Keeps what it acknowledged; full is an error, and so is damage.
    #[default]
    Store,
    /// Evicts what was used least recently at its limits; damage is a miss.
    Cache,
}

/// What holds for the keys of a namespace. What is absent is as the server is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Cache or store.
    #[serde(default)]
    pub mode: Mode,
    /// Refuse puts and deletes.
    #[serde(default)]
    pub read_only: bool,
    /// Take and give only bytes that are exactly those that were put: lossy codecs are refused, a lossy copy is a miss.
    #[serde(default)]
    pub exact: bool,
    /// Level of puts that do not say. Default of a cache: weak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Seconds to live of puts that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Bytes that its tensors may take in a tier: `memory`, or the name of a backend.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, u64>,
    /// Codec chain of puts that do not say, by the backend that becomes their home.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub codecs: BTreeMap<String, String>,
    /// The backends between which its tensors move. Absent: as the server is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiers: Option<Tiers>,
    /// Backends each of which has a copy of every tensor that does not lie in its record. Such tensors are not moved between tiers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<String>,
}

/// Copies of one tensor, at most.
pub const MAX_COPIES: usize = 8;

/// Two backends below memory: what is used least in the warm one moves to the cold one when the room is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiers {
    /// The faster one.
    pub warm: String,
    /// The larger one.
    pub cold: String,
}

impl Tiers {
    /// Checks what needs no knowledge of the server.
    pub fn check(&self) -> Result<(), WireError> {
        match self.warm == self.cold {
            true => Err(refuse(format!("tiers: {} is both warm and cold; they must be two backends", self.warm))),
            false => Ok(()),
        }
    }
}

impl Policy {
    /// Checks what needs no knowledge of the server.
    pub fn check(&self) -> Result<(), WireError> {
        check_ttl(self.ttl)?;
        if let Some((tier, _)) = self.limits.iter().find(|(_, bytes)| **bytes == 0) {
            return Err(refuse(format!("limits.{tier} is 0; a limit is bytes above 0")));
        }
        let twice = |(i, name): (usize, &String)| self.copies[..i].contains(name);
        if self.copies.iter().enumerate().any(twice) || self.copies.len() == 1 || self.copies.len() > MAX_COPIES {
            return Err(refuse(format!("copies: two to {MAX_COPIES} backends, each once; leave it out for one copy where routing says")));
        }
        match &self.tiers {
            Some(_) if !self.copies.is_empty() => {
                Err(refuse("a namespace has `tiers` or `copies`: what lies in all of its backends moves to none".into()))
            }
            Some(tiers) => tiers.check(),
            None => Ok(()),
        }
    }
}

/// The body of `namespace_set` and `namespace_reset`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceRequest {
    /// Version of the contract.
    pub v: u32,
    /// Its name.
    pub namespace: String,
    /// What is to hold, all of it; of `namespace_set` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

impl NamespaceRequest {
    /// Reads an action's body.
    pub fn parse(body: &[u8]) -> Result<NamespaceRequest, WireError> {
        let request: NamespaceRequest = parse("body", body)?;
        check_namespace(&request.namespace)?;
        request.policy.as_ref().map_or(Ok(()), Policy::check)?;
        Ok(request)
    }
}

/// Whether `name` can be a namespace.
pub fn check_namespace(name: &str) -> Result<(), WireError> {
    let key: Result<Key, WireError> = format!("{name}/x").parse();
    match key {
        Ok(key) if key.namespace() == name => Ok(()),
        _ => Err(WireError::new(
            Code::BadKey,
            format!("{name:?} is no namespace: 1 to {MAX_NAMESPACE} bytes without / and control characters"),
        )),
    }
}

/// What a server says of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceEntry {
    /// Its name.
    pub namespace: String,
    /// What holds for it.
    pub policy: Policy,
    /// Where that comes from.
    pub origin: PolicyOrigin,
    /// Keys in it.
    pub keys: u64,
    /// Raw bytes of their tensors.
    pub nbytes: u64,
    /// Bytes they take in each tier.
    pub bytes: BTreeMap<String, u64>,
    /// Since the server's start.
    #[serde(default)]
    pub operations: NamespaceOperations,
}

/// What was done in a namespace since the server's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceOperations {
    /// Puts committed.
    pub puts: u64,
    /// Raw bytes of them.
    pub put_bytes: u64,
    /// Gets begun.
    pub gets: u64,
    /// Raw bytes read.
    pub get_bytes: u64,
    /// Gets answered from memory.
    pub hits: u64,
    /// Gets and lookups that found nothing.
    pub misses: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Keys evicted at a limit.
    pub evictions: u64,
    /// Keys moved to the tier below.
    #[serde(default)]
    pub demotions: u64,
    /// Keys moved to the tier above.
    #[serde(default)]
    pub promotions: u64,
}

/// Where a policy comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyOrigin {
    /// Nobody said anything.
    #[default]
    Default,
    /// The server's configuration, which actions do not change.
    Configuration,
    /// An action.
    Action,
}

/// The answer of `namespaces`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacesAnswer {
    /// In byte order of their names.
    pub namespaces: Vec<NamespaceEntry>,
}

/// The body of `kv_spec_put` (with `spec`) and `kv_spec_get` (with `hash`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvSpecRequest {
    /// Version of the contract.
    pub v: u32,
    /// The spec to register.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<KvSpec>,
    /// The hash of the spec to look up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}

impl KvSpecRequest {
    /// Reads the body of `kv_spec_put`: the spec, checked.
    pub fn parse_put(body: &[u8]) -> Result<KvSpec, WireError> {
        // As much as a spec may take where every letter is escaped.
        if body.len() > 6 * MAX_KV_SPEC {
            return Err(refuse(format!("body: {} bytes; a kv spec has at most {MAX_KV_SPEC}", body.len())));
        }
        let request: KvSpecRequest = parse("body", body)?;
        let (Some(spec), None) = (request.spec, request.hash) else { return Err(refuse("`spec` is wanted, and nothing else".into())) };
        // Checked, and its element types brought to their names.
        KvSpec::from_json(spec.canonical().as_bytes()).map_err(|e| WireError::new(Code::BadTensor, e.to_string()))
    }

    /// Reads the body of `kv_spec_get`: the hash.
    pub fn parse_get(body: &[u8]) -> Result<String, WireError> {
        let request: KvSpecRequest = parse("body", body)?;
        let (None, Some(hash)) = (request.spec, request.hash) else { return Err(refuse("`hash` is wanted, and nothing else".into())) };
        check_kv_spec(&hash)?;
        Ok(hash)
    }
}

/// The answer of `kv_spec_put` and `kv_spec_get`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvSpecAnswer {
    /// The spec's hash.
    pub hash: String,
    /// The spec.
    pub spec: KvSpec,
}

/// The body of `route`: where a tensor would go.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteRequest {
    /// Version of the contract.
    pub v: u32,
    /// The key's text.
    pub key: String,
    /// Bytes of the tensor.
    pub nbytes: u64,
    /// Element type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Names of axes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub axes: Vec<String>,
    /// Hash of the kv spec that it would follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_spec: Option<String>,
    /// Seconds to live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Level asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
}

/// What may be said of a tensor besides its key and size, to ask where it would go. What is not said is as in a put that does not say it; without an
/// element type it is a tensor of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteOptions {
    /// Element type.
    pub dtype: Option<DType>,
    /// Names of axes.
    pub axes: Vec<String>,
    /// Hash of a registered kv spec that it would follow.
    pub kv_spec: Option<String>,
    /// Seconds to live.
    pub ttl: Option<u64>,
    /// Level asked for.
    pub consistency: Option<Consistency>,
}

impl RouteRequest {
    /// The body that asks this.
    pub fn new(v: u32, key: &Key, nbytes: u64, options: &RouteOptions) -> RouteRequest {
        let RouteOptions { dtype, axes, kv_spec, ttl, consistency } = options.clone();
        let dtype = dtype.map(|dtype| dtype.name().to_owned());
        RouteRequest { v, key: key.to_string(), nbytes, dtype, axes, kv_spec, ttl, consistency }
    }

    /// Reads an action's body: key, bytes of the tensor, and what else is said of it.
    pub fn parse(body: &[u8]) -> Result<(Key, u64, RouteOptions), WireError> {
        let RouteRequest { v: _, key, nbytes, dtype, axes, kv_spec, ttl, consistency } = parse("body", body)?;
        check_ttl(ttl)?;
        kv_spec.as_deref().map_or(Ok(()), check_kv_spec)?;
        if axes.len() > MAX_RANK {
            return Err(refuse(format!("axes: {} names; a tensor has at most {MAX_RANK} axes", axes.len())));
        }
        let dtype = dtype.as_deref().map(crate::options::dtype).transpose()?;
        Ok((key.parse()?, nbytes, RouteOptions { dtype, axes, kv_spec, ttl, consistency }))
    }
}

/// The answer of `route`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteAnswer {
    /// The backend that would become the tensor's home.
    pub backend: String,
    /// Each strategy that was asked, in its own words, and its answer; the last one decided.
    pub steps: Vec<RouteStep>,
    /// Each backend as the strategies saw it, by name. None of an older server.
    #[serde(default)]
    pub candidates: Vec<RouteCandidate>,
    /// Whether the tensor would lie in its record, for being small.
    pub inline: bool,
    /// Whether memory would keep it, room permitting.
    pub memory: bool,
    /// Codec chain of its home.
    pub codec: String,
    /// The level it would be put with.
    pub consistency: Consistency,
}

/// One strategy's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStep {
    /// What it goes by.
    pub strategy: String,
    /// The backend it chose, if any.
    pub backend: Option<String>,
    /// Why, in words for a person; may be empty.
    #[serde(default)]
    pub reason: String,
}

/// A backend as strategies see it. Speeds are of calls with about as many bytes as a chunk of the tensor has, faded by age; `None` where too few
/// were made lately.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteCandidate {
    /// Its name.
    pub backend: String,
    /// Whether it is well, in words: `fit`, or why it is degraded or out.
    pub state: String,
    /// The strongest level that it keeps.
    pub keeps: Consistency,
    /// What speaks against choosing it at all, if something does.
    pub against: Option<String>,
    /// Milliseconds of a put.
    pub put_ms: Option<f64>,
    /// Bytes that one put moves in a second.
    pub put_bytes_per_second: Option<f64>,
    /// Milliseconds of a get.
    pub get_ms: Option<f64>,
    /// Bytes that one get moves in a second.
    pub get_bytes_per_second: Option<f64>,
    /// Calls under way right now.
    pub calls_under_way: u64,
    /// Raw bytes of puts under way whose home it is.
    pub put_bytes_under_way: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_checked() {
        let body = br#"{"v":1,"namespace":"kv","policy":{"mode":"cache","limits":{"memory":1000},"codecs":{"object":"zstd"},"ttl":60}}"#;
        let policy = NamespaceRequest::parse(body).unwrap().policy.unwrap();
        assert_eq!((policy.mode, policy.limits["memory"], policy.consistency), (Mode::Cache, 1000, None));
        for bad in [
            &br#"{"v":1,"namespace":"a/b"}"#[..],
            br#"{"v":1,"namespace":""}"#,
            br#"{"v":1,"namespace":"kv","policy":{"mode":"both"}}"#,
            br#"{"v":1,"namespace":"kv","policy":{"limit":{"memory":1}}}"#,
            br#"{"v":1,"namespace":"kv","policy":{"limits":{"memory":0}}}"#,
            br#"{"v":1,"namespace":"kv","policy":{"ttl":0}}"#,
            br#"{"v":1,"namespace":"kv","policy":{"tiers":{"warm":"a","cold":"a"}}}"#,
            br#"{"v":1,"namespace":"kv","policy":{"tiers":{"warm":"a"}}}"#,
            br#"{"v":1,"namespace":"kv","policy":{"copies":["a"]}}"#,
            br#"{"v":1,"namespace":"kv","policy":{"copies":["a","b","a"]}}"#,
            br#"{"v":1,"namespace":"kv","policy":{"copies":["a","b"],"tiers":{"warm":"a","cold":"b"}}}"#,
        ] {
            assert!(NamespaceRequest::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn routes_are_asked_for_with_what_a_put_would_say() {
        let options = RouteOptions { dtype: Some(DType::BFloat16), axes: vec!["token".into()], ttl: Some(60), ..RouteOptions::default() };
        let key: Key = "kv/a".parse().unwrap();
        let body = serde_json::to_vec(&RouteRequest::new(crate::VERSION, &key, 100, &options)).unwrap();
        assert_eq!(RouteRequest::parse(&body).unwrap(), (key.clone(), 100, options));
        // As older clients ask.
        let plain = RouteRequest::parse(br#"{"v":1,"key":"kv/a","nbytes":7}"#).unwrap();
        assert_eq!(plain, (key, 7, RouteOptions::default()));
        let names = vec!["x"; MAX_RANK + 1];
        for wrong in [
            r#"{"v":1,"key":"kv/a","nbytes":7,"dtype":"bfloat17"}"#.to_owned(),
            r#"{"v":1,"key":"kv/a","nbytes":7,"ttl":0}"#.to_owned(),
            r#"{"v":1,"key":"kv/a","nbytes":7,"kv_spec":"x"}"#.to_owned(),
            r#"{"v":1,"key":"kv/a","nbytes":-7}"#.to_owned(),
            r#"{"v":1,"key":"kv/a","nbytes":7,"shape":[7]}"#.to_owned(),
            serde_json::json!({ "v": 1, "key": "kv/a", "nbytes": 7, "axes": names }).to_string(),
        ] {
            assert!(RouteRequest::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        // What an older server answers is read.
        let step: RouteStep = serde_json::from_str(r#"{"strategy":"default","backend":"rocksdb"}"#).unwrap();
        assert_eq!((step.backend.as_deref(), step.reason.as_str()), (Some("rocksdb"), ""));
    }

    #[test]
    fn kv_specs_are_put_whole_and_asked_for_by_hash() {
        let spec = r#"{"model":"m","block_tokens":16,"parts":[{"dtype":"BF16","axes":["token","dim"]}]}"#;
        let put = format!(r#"{{"v":1,"spec":{spec}}}"#);
        let hash = KvSpecRequest::parse_put(put.as_bytes()).unwrap().hash();
        assert_eq!(hash, KvSpec::from_json(spec.as_bytes()).unwrap().hash());
        assert_eq!(KvSpecRequest::parse_get(format!(r#"{{"v":1,"hash":"{hash}"}}"#).as_bytes()).unwrap(), hash);
        assert!(KvSpecRequest::parse_get(br#"{"v":1,"hash":"xyz"}"#).is_err() && KvSpecRequest::parse_put(br#"{"v":1}"#).is_err());
    }
}
