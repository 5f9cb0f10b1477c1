//! Lists of keys, thousands in one request: as JSON, or in a binary form that is read where it lies (docs/wire.md, "Lists of keys").

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::key::{self, MAX_KEY, MAX_NAMESPACE};
use crate::many::MAX_KEYS;
use crate::options::{check_kv_spec, refuse};
use crate::request::{MAX_BODY, Versioned, object, parse};
use crate::{Key, VERSION, WireError};

/// What the binary form begins with: a zero byte, with which no JSON does, `SK`, and the version of the contract.
const MAGIC: [u8; 4] = [0, b'S', b'K', VERSION as u8];

/// [`MAGIC`], the number of keys, the bytes of the options.
const HEADER: usize = 12;

/// Bytes of a key's length.
const LENGTH: usize = 2;

/// Valid keys, which lie one after another in one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyList<'a> {
    text: Cow<'a, str>,
    ends: Vec<u32>,
    /// The namespace of each run of keys that have the same.
    namespaces: Vec<Range<usize>>,
}

impl<'a> KeyList<'a> {
    /// A list of these keys; the error says which one is wrong.
    pub fn new(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Result<KeyList<'static>, WireError> {
        let (mut all, mut ends) = (String::new(), Vec::new());
        for text in texts {
            let text = text.as_ref();
            count(ends.len() + 1)?;
            check_length(ends.len(), text)?;
            all.push_str(text);
            ends.push(all.len() as u32);
        }
        KeyList::checked(Cow::Owned(all), ends, 0)
    }

    fn checked(text: Cow<'a, str>, ends: Vec<u32>, first: usize) -> Result<KeyList<'a>, WireError> {
        let namespaces = check(&text, &ends, first)?;
        Ok(KeyList { text, ends, namespaces })
    }

    /// Keys.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The keys' texts.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let range = start..*end as usize;
            start = range.end;
            &self.text[range]
        })
    }

    /// Their namespaces: one for each run of keys that have the same.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.iter().map(|range| &self.text[range.clone()])
    }

    /// The keys, each by itself.
    pub fn to_keys(&self) -> Vec<Key> {
        self.iter().filter_map(|text| text.parse().ok()).collect()
    }
}

fn count(keys: usize) -> Result<(), WireError> {
    if keys > MAX_KEYS { Err(refuse(format!("{keys} keys; one request takes at most {MAX_KEYS}"))) } else { Ok(()) }
}

/// The error of the key at `index`.
fn of_key(index: usize, error: WireError) -> WireError {
    WireError::new(error.code, format!("key {index}: {}", error.message))
}

/// Refuses what is longer than any key, before it is kept.
fn check_length(index: usize, text: &str) -> Result<(), WireError> {
    if text.len() <= MAX_NAMESPACE + 1 + MAX_KEY { Ok(()) } else { key::check(text).map(drop).map_err(|e| of_key(index, e)) }
}

/// Checks the keys of `text` that end there; gives their namespaces. Errors count them from `first` on.
fn check(text: &str, ends: &[u32], first: usize) -> Result<Vec<Range<usize>>, WireError> {
    // Looked for in all of them at once, so that little is left to look at in each.
    let plain = key::is_plain(text);
    let mut namespaces = Vec::new();
    // The namespace of the key before, with its slash.
    let (mut start, mut before) = (0, "");
    for (i, end) in ends.iter().enumerate() {
        let range = start..*end as usize;
        start = range.end;
        let key = text.get(range.clone()).ok_or_else(|| not_text(first + i))?;
        let rest = key.strip_prefix(before).filter(|_| plain && !before.is_empty());
        if rest.is_some_and(|rest| (1..=MAX_KEY).contains(&rest.len())) {
            continue;
        }
        let slash = key::check(key).map_err(|e| of_key(first + i, e))?;
        if key[..=slash] != *before {
            before = &key[..=slash];
            namespaces.push(range.start..range.start + slash);
        }
    }
    Ok(namespaces)
}

fn not_text(index: usize) -> WireError {
    refuse(format!("key {index}: not UTF-8"))
}

/// The body of `exists_many` and `delete_many`, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysRequest {
    /// Version of the contract.
    pub v: u32,
    /// The keys' texts.
    pub keys: Vec<String>,
    /// Of a lookup: hash of the kv spec that the keys must follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_spec: Option<String>,
}

impl KeysRequest {
    /// Reads an action's body in either form: the keys, and the kv spec that is demanded.
    pub fn parse(body: &[u8]) -> Result<(KeyList<'_>, Option<String>), WireError> {
        let (keys, kv_spec) = if body.first() == Some(&0) { binary(body)? } else { json(body)? };
        kv_spec.as_deref().map_or(Ok(()), check_kv_spec)?;
        Ok((keys, kv_spec))
    }
}

/// A [`KeysRequest`] whose keys stay where they are in the body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json<'a> {
    v: u32,
    #[serde(borrow)]
    keys: Vec<Text<'a>>,
    #[serde(default)]
    kv_spec: Option<String>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Versioned for Json<'_> {
    fn version(&self) -> u32 {
        self.v
    }
}

fn json(body: &[u8]) -> Result<(KeyList<'_>, Option<String>), WireError> {
    let request: Json<'_> = parse("body", body)?;
    count(request.keys.len())?;
    Ok((KeyList::new(request.keys.iter().map(|text| &*text.0))?, request.kv_spec))
}

/// What a request says beside its keys, in the binary form.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kv_spec: Option<String>,
}

fn binary(body: &[u8]) -> Result<(KeyList<'_>, Option<String>), WireError> {
    let wrong = |reason: String| refuse(format!("body: {reason}"));
    if body.len() > MAX_BODY {
        return Err(wrong(format!("{} bytes; at most {MAX_BODY} are read", body.len())));
    }
    let Some((&[zero, s, k, version, a, b, c, d, e, f, g, h], rest)) = body.split_first_chunk::<HEADER>() else {
        return Err(wrong(format!("{} bytes; a binary list of keys begins with {HEADER}", body.len())));
    };
    if [zero, s, k] != MAGIC[..3] {
        return Err(wrong("neither JSON, which begins with {, nor a binary list of keys, which begins with a zero byte and SK".into()));
    }
    if version != MAGIC[3] {
        return Err(wrong(format!("a binary list of keys of version {version}; this server speaks {VERSION}")));
    }
    let (keys, options) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]) as usize);
    count(keys)?;
    let Some((options, rest)) = rest.split_at_checked(options) else {
        return Err(wrong(format!("options of {options} bytes, of which there are {}", rest.len())));
    };
    let options = if options.is_empty() { Options::default() } else { object("body: options", options)? };
    let Some((text, lengths)) = rest.len().checked_sub(keys * LENGTH).and_then(|text| rest.split_at_checked(text)) else {
        return Err(wrong(format!("lengths of {keys} keys take {} bytes; there are {}", keys * LENGTH, rest.len())));
    };
    Ok((texts(text, lengths, 0)?, options.kv_spec))
}

/// The keys in `text`, which have these lengths. Errors count them from `first` on.
fn texts<'a>(text: &'a [u8], lengths: &[u8], first: usize) -> Result<KeyList<'a>, WireError> {
    let mut end = 0;
    // At most 2^16 of less than 2^16 each: no sum overflows.
    let add = |length: &[u8; LENGTH]| {
        end += u32::from(u16::from_le_bytes(*length));
        end
    };
    let ends: Vec<u32> = lengths.as_chunks::<LENGTH>().0.iter().map(add).collect();
    if end as usize != text.len() {
        return Err(refuse(format!("body: keys of {end} bytes by their lengths; their text has {}", text.len())));
    }
    let text = std::str::from_utf8(text).map_err(|e| not_text(first + ends.partition_point(|end| *end as usize <= e.valid_up_to())))?;
    KeyList::checked(Cow::Borrowed(text), ends, first)
}

/// A request for many keys on its way into the binary form.
#[derive(Debug)]
pub struct KeysBody {
    /// Position of its first key among all that are asked for.
    first: usize,
    body: Vec<u8>,
    /// Where the keys' text begins.
    text: usize,
    lengths: Vec<u8>,
}

impl KeysBody {
    /// A request that demands this kv spec, if any. Errors count keys from `first` on, for lists that take several requests.
    pub fn new(kv_spec: Option<&str>, first: usize) -> KeysBody {
        // A hash is hexadecimal; whatever else is given, the quotes of JSON are kept by its encoder.
        let options = kv_spec.map(|hash| serde_json::json!({ "kv_spec": hash }).to_string()).unwrap_or_default();
        let mut body = [&MAGIC[..], &[0; 4], &(options.len() as u32).to_le_bytes()].concat();
        body.extend_from_slice(options.as_bytes());
        KeysBody { first, text: body.len(), body, lengths: Vec::new() }
    }

    /// Keys so far.
    pub fn count(&self) -> usize {
        self.lengths.len() / LENGTH
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.body.len() + self.lengths.len()
    }

    /// One more key. Whether it is valid is looked at in the end.
    pub fn push(&mut self, key: &str) -> Result<(), WireError> {
        check_length(self.first + self.count(), key)?;
        self.body.extend_from_slice(key.as_bytes());
        self.lengths.extend_from_slice(&(key.len() as u16).to_le_bytes());
        Ok(())
    }

    /// The body, and the namespaces of its keys, one for each run of keys that have the same; the error says which key is wrong.
    pub fn finish(mut self) -> Result<(Vec<u8>, Vec<String>), WireError> {
        count(self.count())?;
        let namespaces = texts(&self.body[self.text..], &self.lengths, self.first)?.namespaces().map(str::to_owned).collect();
        let count = (self.count() as u32).to_le_bytes();
        self.body[4..8].copy_from_slice(&count);
        self.body.extend_from_slice(&self.lengths);
        Ok((self.body, namespaces))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Code;

    /// The binary form, whatever the keys are.
    fn raw(options: &str, keys: &[&[u8]]) -> Vec<u8> {
        let lengths = keys.iter().flat_map(|key| (key.len() as u16).to_le_bytes()).collect::<Vec<u8>>();
        let counts = [(keys.len() as u32).to_le_bytes(), (options.len() as u32).to_le_bytes()].concat();
        [&MAGIC[..], &counts, options.as_bytes(), &keys.concat(), &lengths].concat()
    }

    fn packed(kv_spec: Option<&str>, keys: &[impl AsRef<str>]) -> Result<Vec<u8>, WireError> {
        let mut body = KeysBody::new(kv_spec, 0);
        keys.iter().try_for_each(|key| body.push(key.as_ref()))?;
        Ok(body.finish()?.0)
    }

    #[test]
    fn the_binary_form_is_what_it_was() {
        let golden: String = include_str!("../tests/golden/keys.hex").split_whitespace().collect();
        let golden: Vec<u8> = (0..golden.len()).step_by(2).map(|i| u8::from_str_radix(&golden[i..i + 2], 16).unwrap()).collect();
        let (keys, hash) = (["ns/a", "ns/…", "other/b:c"], "0f".repeat(32));
        assert_eq!(packed(Some(&hash), &keys).unwrap(), golden);
        let (list, kv_spec) = KeysRequest::parse(&golden).unwrap();
        assert_eq!((list.iter().collect::<Vec<_>>(), kv_spec), (keys.to_vec(), Some(hash)));
        assert_eq!(list.namespaces().collect::<Vec<_>>(), ["ns", "other"]);
        assert_eq!(list.to_keys(), keys.map(|key| key.parse().unwrap()));
    }

    #[test]
    fn hostile_bodies_are_refused_and_told_why() {
        let good = raw("", &[b"ns/a", b"ns/b"]);
        assert_eq!(KeysRequest::parse(&good).unwrap().0.len(), 2);
        assert!(KeysRequest::parse(&raw("", &[])).unwrap().0.is_empty());
        let patched = |at: usize, bytes: &[u8]| {
            let mut body = good.clone();
            body[at..at + bytes.len()].copy_from_slice(bytes);
            body
        };
        let cut = |by: usize| good[..good.len() - by].to_vec();
        let wide = "n".repeat(65) + "/x";
        let (most, large) = (vec![&b"n/k"[..]; MAX_KEYS + 1], vec![0; MAX_BODY + 1]);
        for (body, reason) in [
            (vec![0], "body: 1 bytes; a binary list of keys begins with 12"),
            (patched(1, b"X"), "body: neither JSON"),
            (patched(3, &[2]), "version 2; this server speaks 1"),
            (patched(4, &[0xff; 4]), "4294967295 keys; one request takes at most 65536"),
            (raw("", &most), "65537 keys"),
            (patched(4, &[0, 255, 0, 0]), "lengths of 65280 keys take 130560 bytes; there are 12"),
            (patched(4, &[1]), "keys of 4 bytes by their lengths; their text has 10"),
            (patched(8, &[0xff; 4]), "options of 4294967295 bytes, of which there are 12"),
            (patched(8, &[4]), "body: options: not a JSON object"),
            (cut(1), "by their lengths"),
            ([&good[..], b"x"].concat(), "by their lengths"),
            (patched(good.len() - 1, &[255]), "keys of 65288 bytes by their lengths; their text has 8"),
            (raw("", &[b"ns/a", b"n\xff/b"]), "key 1: not UTF-8"),
            (raw("", &[b"ns/\xc3", b"\xa9s/b"]), "key 0: not UTF-8"),
            (raw("", &[b"ns/a", b"", b"ns/b"]), "key 1: \"\": a key is namespace/rest"),
            (raw("", &[b"ns/a", b"ns/"]), "key 1: \"ns/\": 0 bytes after the namespace"),
            (raw("", &[b"ns/a", b"ns/\n"]), "key 1: \"ns/\\n\": control character"),
            (raw("", &[b"ns/a", b"ns/../b"]), "key 1: \"ns/../b\": a segment"),
            (raw("", &[b"ns/a", wide.as_bytes()]), "the namespace has 65 bytes"),
            (raw("", &[b"ns/a", &[b"ns/", &[b'x'; 513][..]].concat()]), "513 bytes after the namespace"),
            (raw(r#"{"kv_spec":"abc"}"#, &[b"ns/a"]), "kv_spec"),
            (raw(r#"{"v":1}"#, &[b"ns/a"]), "unknown field `v`"),
            (raw("[null]", &[b"ns/a"]), "not a JSON object"),
            (large, "at most 8388608 are read"),
        ] {
            let refused = KeysRequest::parse(&body).unwrap_err();
            assert!(refused.message.contains(reason), "{refused}, not {reason}");
        }
    }

    #[test]
    fn what_is_packed_is_checked() {
        let refused = |keys: &[&str]| packed(None, keys).unwrap_err().to_string();
        assert!(refused(&["ns/a", "b"]).starts_with("SIRA_BAD_KEY: key 1: "));
        assert!(refused(&["ns/a", &"x".repeat(70_000)]).starts_with("SIRA_BAD_KEY: key 1: "));
        assert!(refused(&["n/k"; MAX_KEYS + 1]).contains("65537 keys"));
        assert_eq!(KeyList::new(["ns/a", "./b"]).unwrap_err().code, Code::BadKey);
        // Two keys that only together look like a segment of dots.
        assert_eq!(KeyList::new(["ns/a.", "./b"]).unwrap_err().message, KeyList::new(["ns/a", "./b"]).unwrap_err().message);
        assert!(KeyList::new(["ns/a/.", "ns/b", "n..s/…"]).is_ok());
    }

    proptest! {
        #[test]
        fn both_forms_are_the_same(keys in prop::collection::vec("(a|ab|\u{e9}|\\.)?/?[a-z./\u{e9}\n]{0,4}", 0..6), demand in any::<bool>()) {
            let hash = demand.then(|| "ab".repeat(32));
            let json = serde_json::to_vec(&KeysRequest { v: VERSION, keys: keys.clone(), kv_spec: hash.clone() }).unwrap();
            let texts: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
            let options = hash.as_ref().map(|hash| format!(r#"{{"kv_spec":"{hash}"}}"#)).unwrap_or_default();
            let binary = raw(&options, &texts);
            let parsed = KeysRequest::parse(&binary);
            prop_assert_eq!(&parsed, &KeysRequest::parse(&json));
            // And the same as one by one.
            let single: Result<Vec<Key>, WireError> =
                keys.iter().enumerate().map(|(i, key)| key.parse().map_err(|e| of_key(i, e))).collect();
            prop_assert_eq!(parsed.clone().map(|(list, _)| list.to_keys()), single.clone());
            match packed(hash.as_deref(), &keys) {
                Ok(body) => prop_assert_eq!(body, binary),
                Err(error) => prop_assert_eq!(Some(error), single.err()),
            }
        }

        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..64), count in 0u8..4, options in 0u8..4) {
            let header = [&MAGIC[..], &[count, 0, 0, 0, options, 0, 0, 0]].concat();
            if let Ok((list, _)) = KeysRequest::parse(&[header, body].concat()) {
                prop_assert_eq!(list.iter().len(), count as usize);
            }
        }
    }
}
