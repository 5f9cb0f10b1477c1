//! Many keys in one round trip: lookups and deletes as actions, tensors as one stream of raw bytes each way (docs/wire.md, "Many keys").

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sira_tensor::shape::MAX_RANK;
use sira_tensor::{TensorSpec, kv};

use crate::entry::{PutAnswer, is_false};
pub use crate::keys::{KeyList, KeysBody, KeysRequest};
use crate::limited::{list, option};
use crate::options::{check_kv_spec, check_ttl, dtype, refuse};
use crate::request::{Versioned, parse, versioned};
use crate::{Code, Condition, Consistency, Key, VERSION, WireError};

/// Keys of one request, at most.
pub const MAX_KEYS: usize = 65_536;

/// Parts of one key, at most.
pub const MAX_PARTS: usize = 64;

/// The name of the only part of a key that is put as one tensor.
pub const DATA: &str = "data";

/// What segments of a `get_many` begin at a multiple of.
pub const ALIGN: u64 = 64;

versioned!(PrefixRequest, ManyTicket, ManyCommand);

/// The answer of `exists_many`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExistsManyAnswer {
    /// Keys asked about.
    pub count: usize,
    /// Keys that exist, from the first one on, before the first that does not: the longest prefix that is here.
    pub leading: usize,
    /// One bit a key, least significant first, in base64.
    pub bitmap: String,
    /// Whether all of the namespaces are caches, where a server that does not answer is a miss.
    #[serde(default)]
    pub cache: bool,
}

impl ExistsManyAnswer {
    /// The answer that says this of each key.
    pub fn of(exists: &[bool], cache: bool) -> ExistsManyAnswer {
        let mut bits = vec![0u8; exists.len().div_ceil(8)];
        for (i, _) in exists.iter().enumerate().filter(|(_, exists)| **exists) {
            bits[i / 8] |= 1 << (i % 8);
        }
        let leading = exists.iter().position(|exists| !exists).unwrap_or(exists.len());
        ExistsManyAnswer { count: exists.len(), leading, bitmap: STANDARD.encode(bits), cache }
    }

    /// Whether each key exists, in the order of the request.
    pub fn exists(&self) -> Result<Vec<bool>, WireError> {
        let bits = STANDARD.decode(&self.bitmap).ok().filter(|bits| bits.len() == self.count.div_ceil(8));
        let bits = bits.ok_or_else(|| refuse(format!("a bitmap that is not one bit for each of {} keys", self.count)))?;
        Ok((0..self.count).map(|i| bits[i / 8] >> (i % 8) & 1 == 1).collect())
    }
}

/// A key that something could not be done with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedKey {
    /// The key.
    pub key: String,
    /// Why: a stable code, a colon, the reason.
    pub error: String,
}

/// The answer of `delete_many`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteManyAnswer {
    /// Keys deleted.
    pub deleted: u64,
    /// Keys that were not there.
    pub missing: Vec<String>,
    /// Keys that are still there.
    pub failed: Vec<FailedKey>,
}

/// The body of `delete_prefix`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixRequest {
    /// Version of the contract.
    pub v: u32,
    /// Keys that start with this text, which names a namespace: `ns/`, `ns/session-1/`.
    pub prefix: String,
    /// Keys after this text, exclusive: `next` of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Only count.
    #[serde(default)]
    pub dry_run: bool,
}

impl PrefixRequest {
    /// Reads an action's body.
    pub fn parse(body: &[u8]) -> Result<PrefixRequest, WireError> {
        let request: PrefixRequest = parse("body", body)?;
        // A key that starts with the prefix shows whether the prefix is one of keys.
        if !request.prefix.contains('/') {
            return Err(refuse(format!("prefix is {:?}; it names a namespace, such as \"ns/\" or \"ns/session-1\"", request.prefix)));
        }
        format!("{}x", request.prefix).parse::<Key>()?;
        Ok(request)
    }
}

/// The answer of `delete_prefix`: of some of the keys, until there is no `next`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletePrefixAnswer {
    /// Keys deleted, or counted.
    pub keys: u64,
    /// Bytes of their tensors.
    pub bytes: u64,
    /// Keys that are still there.
    pub failed: Vec<FailedKey>,
    /// `after` of the next request; absent when all is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The ticket of a `get_many`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManyTicket {
    /// Version of the contract.
    pub v: u32,
    /// The keys' texts. Answers name them by their position.
    #[serde(deserialize_with = "list::<_, _, MAX_KEYS>")]
    pub keys: Vec<String>,
    /// The parts wanted, in this order; all in the order of their put when absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "option::<_, _, MAX_PARTS>")]
    pub parts: Option<Vec<String>>,
    /// Hash of the kv spec that the keys must follow: any other is a miss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_spec: Option<String>,
    /// As in [`crate::Ticket`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
}

impl ManyTicket {
    /// A ticket for all parts of `keys`.
    pub fn of(keys: Vec<String>) -> ManyTicket {
        ManyTicket { v: VERSION, keys, parts: None, kv_spec: None, exact: None }
    }

    /// Reads a ticket, and its keys; `None` if it is one of another kind.
    pub fn parse(bytes: &[u8]) -> Option<Result<(Vec<Key>, ManyTicket), WireError>> {
        #[derive(Deserialize)]
        struct Has {
            keys: Option<serde::de::IgnoredAny>,
        }
        if bytes.first() != Some(&b'{') || serde_json::from_slice::<Has>(bytes).ok()?.keys.is_none() {
            return None;
        }
        Some(parse::<ManyTicket>("ticket", bytes).and_then(|ticket| {
            ticket.kv_spec.as_deref().map_or(Ok(()), check_kv_spec)?;
            for name in ticket.parts.iter().flatten() {
                kv::part_name(name).map_err(|e| refuse(e.to_string()))?;
            }
            Ok((KeyList::new(&ticket.keys)?.to_keys(), ticket))
        }))
    }
}

/// What lies in a message of a `get_many`: its `app_metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetMessage {
    /// In the order of their bytes; of one message, not more than keys of a request.
    #[serde(deserialize_with = "list::<_, _, MAX_KEYS>")]
    pub segments: Vec<Segment>,
}

/// Some bytes of one part of one key, or why there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Position of the key in the ticket.
    pub index: usize,
    /// Where its bytes begin in the message.
    #[serde(default)]
    pub offset: u64,
    /// How many there are.
    #[serde(default)]
    pub bytes: u64,
    /// The first segment of a key says what the key is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyHeader>,
    /// The first segment of a part says what the part is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<PartHeader>,
    /// Nothing more comes of this key: a stable code, a colon, the reason. What came of it is void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a key is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHeader {
    /// Its version.
    pub version: u64,
    /// Parts that come of it.
    pub parts: usize,
    /// Hash of its kv spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_spec: Option<String>,
}

/// What a part is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartHeader {
    /// Its name; `data` for a key that is one tensor.
    #[serde(default = "data", skip_serializing_if = "is_data")]
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Extents.
    #[serde(deserialize_with = "list::<_, _, MAX_RANK>")]
    pub shape: Vec<u64>,
    /// Axis names; empty when unnamed.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "list::<_, _, MAX_RANK>")]
    pub axes: Vec<String>,
    /// The client's attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// Of a put: the codec chain of lower tiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
}

fn data() -> String {
    DATA.to_owned()
}

fn is_data(name: &String) -> bool {
    name == DATA
}

impl PartHeader {
    /// What is said of a part.
    pub fn of(name: &str, spec: &TensorSpec, codec: Option<String>) -> PartHeader {
        PartHeader {
            name: name.to_owned(),
            dtype: spec.dtype().name().to_owned(),
            shape: spec.shape().to_vec(),
            axes: spec.axes().to_vec(),
            attributes: spec.attributes().clone(),
            codec,
        }
    }

    /// The tensor that this describes, within all limits.
    pub fn spec(&self) -> Result<TensorSpec, WireError> {
        let wrong = |e: sira_tensor::TensorError| WireError::new(Code::BadTensor, format!("part {:?}: {e}", self.name));
        let spec = TensorSpec::new(dtype(&self.dtype)?, self.shape.clone()).map_err(wrong)?;
        spec.with_axes(self.axes.clone()).and_then(|spec| spec.with_attributes(self.attributes.clone())).map_err(wrong)
    }
}

/// The command descriptor of a `put_many`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManyCommand {
    /// Version of the contract.
    pub v: u32,
    /// Always true: tells it from the command of one put.
    pub put_many: bool,
}

impl ManyCommand {
    /// Whether a command descriptor is the one of a `put_many`.
    pub fn is(command: &[u8]) -> bool {
        command.len() < 1000 && parse::<ManyCommand>("command", command).is_ok_and(|command| command.put_many)
    }
}

/// What begins in a message of a `put_many`: its `app_metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutMessage {
    /// Keys whose bytes follow those of all keys before them, part after part, without padding.
    #[serde(deserialize_with = "list::<_, _, MAX_KEYS>")]
    pub items: Vec<PutItem>,
}

/// What is put under one key: all of it becomes visible together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutItem {
    /// The key's text.
    pub key: String,
    /// Its parts, in the order of their bytes.
    #[serde(deserialize_with = "list::<_, _, MAX_PARTS>")]
    pub parts: Vec<PartHeader>,
    /// Seconds to live, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// `absent`, or a version in decimal.
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Hash of the kv spec that it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_spec: Option<String>,
    /// Whether it was computed from what a lossy codec gave back.
    #[serde(default, skip_serializing_if = "is_false")]
    pub derived_from_lossy: bool,
}

impl PutItem {
    /// The name and description of each part, within all limits: what follows in bytes is known from here.
    pub fn specs(&self) -> Result<Vec<(String, TensorSpec)>, WireError> {
        if self.parts.is_empty() || self.parts.len() > MAX_PARTS {
            return Err(refuse(format!("{}: {} parts; a key has 1 to {MAX_PARTS}", self.key, self.parts.len())));
        }
        for (i, part) in self.parts.iter().enumerate() {
            kv::part_name(&part.name).map_err(|e| refuse(e.to_string()))?;
            if self.parts[..i].iter().any(|other| other.name == part.name) {
                return Err(refuse(format!("{}: two parts are named {:?}", self.key, part.name)));
            }
        }
        self.parts.iter().map(|part| Ok((part.name.clone(), part.spec()?))).collect()
    }

    /// Bytes of all parts: where the next key begins, whatever else is wrong with this one.
    pub fn nbytes(&self) -> Result<u64, WireError> {
        let wrong = |reason: String| WireError::new(Code::BadTensor, format!("{}: {reason}", self.key));
        self.parts.iter().try_fold(0u64, |sum, part| {
            let spec = TensorSpec::new(dtype(&part.dtype)?, part.shape.clone()).map_err(|e| wrong(e.to_string()))?;
            sum.checked_add(spec.nbytes()).ok_or_else(|| wrong("parts of more bytes than any machine has".into()))
        })
    }

    /// What must hold of the key.
    pub fn condition(&self) -> Result<Option<Condition>, WireError> {
        check_ttl(self.ttl)?;
        self.kv_spec.as_deref().map_or(Ok(()), check_kv_spec)?;
        self.condition.as_deref().map(str::parse).transpose()
    }
}

/// The answer of a `put_many`, sent when all has been committed or refused: one result a key, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutManyAnswer {
    /// One a key.
    pub results: Vec<PutResult>,
}

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PutResult {
    /// It is stored.
    Done(PutAnswer),
    /// It is not.
    Failed(FailedKey),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_says_what_was_put_in() {
        for exists in [vec![], vec![true], vec![false], vec![true, true, false, true, true, true, true, true, true], vec![true; 64]] {
            let answer = ExistsManyAnswer::of(&exists, false);
            assert_eq!(answer.exists().unwrap(), exists);
            assert_eq!(answer.leading, exists.iter().take_while(|e| **e).count());
        }
        let short = ExistsManyAnswer { count: 9, leading: 0, bitmap: "AA==".into(), cache: false };
        assert!(short.exists().is_err());
    }

    #[test]
    fn tickets_of_many_keys_are_told_from_others() {
        let ticket = ManyTicket { parts: Some(vec!["k".into()]), ..ManyTicket::of(vec!["ns/a".into(), "ns/b".into()]) };
        let bytes = serde_json::to_vec(&ticket).unwrap();
        let (keys, again) = ManyTicket::parse(&bytes).unwrap().unwrap();
        assert_eq!((keys.len(), again), (2, ticket));
        assert!(ManyTicket::parse(br#"{"v":1,"key":"ns/a"}"#).is_none() && ManyTicket::parse(b"ns/a").is_none());
        let wrong = ManyTicket::parse(br#"{"v":1,"keys":["ns/a","nokey"]}"#).unwrap().unwrap_err();
        assert!(wrong.code == Code::BadKey && wrong.message.starts_with("key 1:"), "{wrong}");
        assert!(ManyTicket::parse(br#"{"v":1,"keys":["ns/a"],"slice":{}}"#).unwrap().is_err());
        assert!(ManyTicket::parse(br#"{"v":1,"keys":["ns/a"],"kv_spec":"abc"}"#).unwrap().is_err());
    }

    #[test]
    fn items_are_checked_before_a_byte_of_them_comes() {
        let part = |name: &str| PartHeader { name: name.into(), dtype: "bfloat16".into(), shape: vec![2, 3], ..PartHeader::default() };
        let item = |parts| PutItem { key: "ns/k".into(), parts, ..PutItem::default() };
        assert_eq!(item(vec![part("k"), part("v")]).specs().unwrap()[1].1.nbytes(), 12);
        // What is wrong otherwise can still be measured, and skipped.
        let misnamed = PartHeader { axes: vec!["token".into()], ..part("a/b") };
        assert_eq!(item(vec![misnamed, part("v")]).nbytes().unwrap(), 24);
        for wrong in [PartHeader { dtype: "float12".into(), ..part("k") }, PartHeader { shape: vec![u64::MAX, 2], ..part("k") }] {
            assert_eq!(item(vec![wrong]).nbytes().unwrap_err().code, Code::BadTensor);
        }
        assert!(item(vec![PartHeader { shape: vec![1 << 62], ..part("k") }; 4]).nbytes().is_err());
        for parts in [vec![], vec![part("k"), part("k")], vec![part("a/b")], vec![part("")], vec![part("x"); MAX_PARTS + 1]] {
            assert_eq!(item(parts).specs().unwrap_err().code, Code::BadRequest);
        }
        assert!(PutItem { condition: Some("absent".into()), ..item(vec![part("k")]) }.condition().is_ok());
        assert!(PutItem { ttl: Some(0), ..item(vec![part("k")]) }.condition().is_err());
        let json = serde_json::to_string(&item(vec![part(DATA)])).unwrap();
        assert_eq!(json, r#"{"key":"ns/k","parts":[{"dtype":"bfloat16","shape":[2,3]}]}"#);
    }

    #[test]
    fn lists_that_are_too_long_are_refused_while_they_are_read() {
        let ticket =
            |parts: usize| serde_json::to_vec(&ManyTicket { parts: Some(vec!["k".into(); parts]), ..ManyTicket::of(vec![]) }).unwrap();
        assert!(ManyTicket::parse(&ticket(MAX_PARTS)).unwrap().is_ok());
        assert!(ManyTicket::parse(&ticket(MAX_PARTS + 1)).unwrap().unwrap_err().message.contains("at most 64 are taken"));
        let keys = |count: usize| format!(r#"{{"v":1,"keys":[{}"a/b"]}}"#, r#""a/b","#.repeat(count - 1));
        assert_eq!(KeysRequest::parse(keys(MAX_KEYS).as_bytes()).unwrap().0.len(), MAX_KEYS);
        assert!(KeysRequest::parse(keys(MAX_KEYS + 1).as_bytes()).unwrap_err().message.contains("at most 65536 are taken"));
        let put =
            |shape: usize| format!(r#"{{"items":[{{"key":"a/b","parts":[{{"dtype":"uint8","shape":[{}1]}}]}}]}}"#, "1,".repeat(shape - 1));
        assert!(serde_json::from_str::<PutMessage>(&put(MAX_RANK)).is_ok());
        assert!(serde_json::from_str::<PutMessage>(&put(MAX_RANK + 1)).is_err());
    }

    #[test]
    fn prefixes_name_a_namespace() {
        let of = |prefix: &str| PrefixRequest::parse(format!(r#"{{"v":1,"prefix":"{prefix}"}}"#).as_bytes());
        assert!(of("ns/").is_ok() && of("ns/a").is_ok());
        for bad in ["", "ns", "/", "../", "ns/../"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_command_of_many_is_told_from_one() {
        assert!(ManyCommand::is(br#"{"v":1,"put_many":true}"#));
        assert!(!ManyCommand::is(br#"{"v":1,"key":"ns/k"}"#) && !ManyCommand::is(b""));
    }
}
