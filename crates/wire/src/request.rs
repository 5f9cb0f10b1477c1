//! Tickets, criteria and action bodies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::encoded::MAX_STAGES;
use crate::limited::option;
use crate::options::check_kv_spec;
use crate::{Code, Key, VERSION, WireError};

/// Bytes of a request; more is refused before it is parsed.
pub(crate) const MAX_BODY: usize = 8 << 20;

/// Parses the JSON of a request and checks its `v`.
pub(crate) fn parse<'a, T: Deserialize<'a> + Versioned>(what: &str, json: &'a [u8]) -> Result<T, WireError> {
    let request: T = object(what, json)?;
    match request.version() {
        VERSION => Ok(request),
        other => Err(WireError::new(Code::BadRequest, format!("{what}: v is {other}; this server speaks {VERSION}"))),
    }
}

/// Parses a JSON object.
pub(crate) fn object<'a, T: Deserialize<'a>>(what: &str, json: &'a [u8]) -> Result<T, WireError> {
    let refuse = |reason: String| WireError::new(Code::BadRequest, format!("{what}: {reason}"));
    if json.len() > MAX_BODY {
        return Err(refuse(format!("{} bytes; at most {MAX_BODY} are read", json.len())));
    }
    // serde would take an array for a struct, its items for the fields in their order.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(refuse("not a JSON object, which begins with {".to_owned()));
    }
    serde_json::from_slice(json).map_err(|e| refuse(e.to_string()))
}

pub(crate) trait Versioned {
    fn version(&self) -> u32;
}

macro_rules! versioned {
    ($($name:ident),*) => { $(impl Versioned for $name { fn version(&self) -> u32 { self.v } })* };
}
pub(crate) use versioned;
versioned!(Ticket, KeyRequest, DeleteRequest, ListRequest, EmptyRequest);

/// What `do_get` is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// Version of the contract.
    pub v: u32,
    /// The key's text.
    pub key: String,
    /// Refuse any other version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// A half-open range for each axis named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slice: BTreeMap<String, [u64; 2]>,
    /// The part, of a key that has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Hash of the kv spec that the tensor must follow: any other is a miss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_spec: Option<String>,
    /// Take only bytes that are exactly those that were put: a lossy copy is a miss. Default: what the namespace says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
    /// Of a get only: stages of codecs that the client can decode, by name. What is stored in no others may come as it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "option::<_, _, MAX_STAGES>")]
    pub encoded: Option<Vec<String>>,
    /// Of a `GetFlightInfo` only: how many endpoints the answer should have, 1 to [`MAX_ENDPOINTS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<u32>,
}

/// Endpoints of one answer, at most.
pub const MAX_ENDPOINTS: u32 = 64;

impl Ticket {
    /// A ticket for the whole of `key`.
    pub fn whole(key: &Key) -> Ticket {
        let (slice, key) = (BTreeMap::new(), key.to_string());
        Ticket { v: VERSION, key, version: None, slice, part: None, kv_spec: None, exact: None, encoded: None, endpoints: None }
    }

    /// Reads a ticket: `ns/key`, or JSON (first byte `{`).
    pub fn parse(bytes: &[u8]) -> Result<(Key, Ticket), WireError> {
        let (key, ticket) = Ticket::read(bytes)?;
        match ticket.endpoints {
            None => Ok((key, ticket)),
            Some(_) => Err(WireError::new(Code::BadRequest, "ticket: `endpoints` is for the command of get_flight_info")),
        }
    }

    /// Reads the command of a `GetFlightInfo`: as a ticket, but it may ask for several endpoints, and not for encoded chunks, which are not what the
    /// answer's schema says.
    pub fn parse_command(bytes: &[u8]) -> Result<(Key, Ticket), WireError> {
        let (key, ticket) = Ticket::read(bytes)?;
        match ticket.encoded {
            None => Ok((key, ticket)),
            Some(_) => Err(WireError::new(Code::BadRequest, "command: `encoded` is for the ticket of a get")),
        }
    }

    fn read(bytes: &[u8]) -> Result<(Key, Ticket), WireError> {
        if bytes.first() == Some(&b'{') {
            let ticket: Ticket = parse("ticket", bytes)?;
            ticket.kv_spec.as_deref().map_or(Ok(()), check_kv_spec)?;
            if let Some(wrong) = ticket.endpoints.filter(|count| !(1..=MAX_ENDPOINTS).contains(count)) {
                return Err(WireError::new(Code::BadRequest, format!("endpoints is {wrong}; it may be 1 to {MAX_ENDPOINTS}")));
            }
            return Ok((ticket.key.parse()?, ticket));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| WireError::new(Code::BadRequest, "ticket: neither JSON nor a key in UTF-8"))?;
        let key: Key = text.parse()?;
        Ok((key.clone(), Ticket::whole(&key)))
    }
}

/// The body of `info` and `exists`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// Version of the contract.
    pub v: u32,
    /// The key's text.
    pub key: String,
    /// Hash of the kv spec that the key must follow: any other is a miss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_spec: Option<String>,
}

impl KeyRequest {
    /// Reads an action's body: the key, and the kv spec that is demanded.
    pub fn parse(body: &[u8]) -> Result<(Key, Option<String>), WireError> {
        let request = parse::<KeyRequest>("body", body)?;
        request.kv_spec.as_deref().map_or(Ok(()), check_kv_spec)?;
        Ok((request.key.parse()?, request.kv_spec))
    }
}

/// The body of `delete`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// Version of the contract.
    pub v: u32,
    /// The key's text.
    pub key: String,
    /// Delete only this version, in decimal.
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
}

impl DeleteRequest {
    /// Reads an action's body: the key, and the version that must be the present one.
    pub fn parse(body: &[u8]) -> Result<(Key, Option<u64>), WireError> {
        let request: DeleteRequest = parse("body", body)?;
        let version = request.condition.as_deref().map(|text| {
            text.parse().map_err(|_| WireError::new(Code::BadRequest, format!("if is {text:?}; a delete takes a version in decimal")))
        });
        Ok((request.key.parse()?, version.transpose()?))
    }
}

/// The body of `stats` and `health`, which say nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmptyRequest {
    /// Version of the contract.
    pub v: u32,
}

impl EmptyRequest {
    /// Reads an action's body, which may be missing.
    pub fn parse(body: &[u8]) -> Result<(), WireError> {
        if body.is_empty() { Ok(()) } else { parse::<EmptyRequest>("body", body).map(drop) }
    }
}

/// Criteria of `list_flights` and body of `list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// Version of the contract.
    pub v: u32,
    /// Keys that start with this text; all when empty.
    #[serde(default)]
    pub prefix: String,
    /// Keys after this text, exclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// How many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl Default for ListRequest {
    fn default() -> ListRequest {
        ListRequest { v: VERSION, prefix: String::new(), after: None, limit: None }
    }
}

impl ListRequest {
    /// Reads criteria; nothing at all lists everything.
    pub fn parse(body: &[u8]) -> Result<ListRequest, WireError> {
        if body.is_empty() { Ok(ListRequest::default()) } else { parse("criteria", body) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_keys_or_json() {
        assert_eq!(Ticket::parse(b"ns/a/b").unwrap().0.as_str(), "ns/a/b");
        let (key, ticket) = Ticket::parse(br#"{"v":1,"key":"ns/k","slice":{"token":[512,1024]}}"#).unwrap();
        assert_eq!((key.as_str(), ticket.slice["token"]), ("ns/k", [512, 1024]));
        let again = Ticket::parse(&serde_json::to_vec(&ticket).unwrap()).unwrap().1;
        assert_eq!(again, ticket);
    }

    #[test]
    fn only_commands_ask_for_endpoints() {
        let asked = |count: &str| format!(r#"{{"v":1,"key":"ns/k","endpoints":{count}}}"#).into_bytes();
        assert_eq!(Ticket::parse_command(&asked("64")).unwrap().1.endpoints, Some(64));
        assert!(Ticket::parse(&asked("1")).unwrap_err().message.contains("get_flight_info"));
        for bad in ["0", "65", "-1", "1.5", "\"2\""] {
            assert_eq!(Ticket::parse_command(&asked(bad)).unwrap_err().code, Code::BadRequest, "{bad}");
        }
    }

    #[test]
    fn only_tickets_ask_for_encoded_chunks() {
        let asked = br#"{"v":1,"key":"ns/k","encoded":["planes","zstd"]}"#;
        assert_eq!(Ticket::parse(asked).unwrap().1.encoded, Some(vec!["planes".to_owned(), "zstd".to_owned()]));
        assert!(Ticket::parse_command(asked).unwrap_err().message.contains("ticket of a get"));
        let many = format!(r#"{{"v":1,"key":"ns/k","encoded":["a"{}]}}"#, r#","a""#.repeat(MAX_STAGES));
        assert!(Ticket::parse(many.as_bytes()).unwrap_err().message.contains("at most 64"));
    }

    #[test]
    fn only_objects_are_requests() {
        for body in [&br#"[1,"ns/k"]"#[..], b" [1]", b"1", b"null", b"\"ns/k\"", b" "] {
            let refused = KeyRequest::parse(body).unwrap_err();
            assert_eq!(refused.code, Code::BadRequest, "{refused}");
            assert!(EmptyRequest::parse(body).is_err() && ListRequest::parse(body).is_err() && DeleteRequest::parse(body).is_err());
            assert!(crate::PutOptions::from_command(body).is_err());
        }
        assert_eq!(KeyRequest::parse(b" \n\t{\"v\":1,\"key\":\"ns/k\"}").unwrap().0.as_str(), "ns/k");
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        let reason = |body: &[u8]| Ticket::parse(body).unwrap_err().to_string();
        assert!(reason(br#"{"v":2,"key":"ns/k"}"#).contains("speaks 1"));
        assert!(reason(br#"{"v":1,"key":"ns/k","slices":{}}"#).contains("unknown field `slices`"));
        assert!(reason(b"\xff\xfe").starts_with("SIRA_BAD_REQUEST"));
        assert!(reason(b"").starts_with("SIRA_BAD_KEY"));
        assert!(DeleteRequest::parse(br#"{"v":1,"key":"ns/k","if":"absent"}"#).is_err());
        assert_eq!(DeleteRequest::parse(br#"{"v":1,"key":"ns/k","if":"7"}"#).unwrap().1, Some(7));
    }
}
