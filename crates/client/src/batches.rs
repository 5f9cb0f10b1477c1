//! Lists of keys, in requests that a server takes.

use std::collections::BTreeSet;

use sira_wire::many::{KeysBody, MAX_KEYS};
use sira_wire::{Key, WireError};

use crate::ClientError;

/// Bytes of a request to which no key is added. A server reads requests up to 8 MiB.
const FULL: usize = 4 << 20;

/// Parses keys; an error says which one is wrong, as a server's does.
pub(crate) fn keys(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<Key>, ClientError> {
    let mut keys = Vec::new();
    for (i, text) in texts.into_iter().enumerate() {
        let wrong = |e: WireError| WireError::new(e.code, format!("key {i}: {}", e.message));
        keys.push(text.as_ref().parse().map_err(wrong)?);
    }
    Ok(keys)
}

/// Keys of one request.
pub(crate) struct Batch {
    /// How many.
    pub count: usize,
    /// Theirs.
    pub namespaces: BTreeSet<String>,
    /// The request's body.
    pub body: Vec<u8>,
}

impl Batch {
    fn of(body: KeysBody) -> Result<Batch, ClientError> {
        let count = body.count();
        let (body, namespaces) = body.finish()?;
        Ok(Batch { count, namespaces: namespaces.into_iter().collect(), body })
    }
}

/// Packs keys into the bodies of as few requests as may be; an error says which key is wrong, as a server's does.
pub(crate) fn pack(texts: impl IntoIterator<Item = impl AsRef<str>>, kv_spec: Option<&str>) -> Result<Vec<Batch>, ClientError> {
    let (mut batches, mut body) = (Vec::new(), KeysBody::new(kv_spec, 0));
    for (i, text) in texts.into_iter().enumerate() {
        if body.count() == MAX_KEYS || body.bytes() >= FULL {
            batches.push(Batch::of(std::mem::replace(&mut body, KeysBody::new(kv_spec, i)))?);
        }
        body.push(text.as_ref())?;
    }
    if body.count() > 0 {
        batches.push(Batch::of(body)?);
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use sira_wire::many::KeysRequest;

    use super::*;

    #[test]
    fn requests_are_full_and_lose_no_key() {
        assert!(pack([""; 0], None).unwrap().is_empty());
        let many = pack((0..MAX_KEYS + 1).map(|i| format!("n/{i}")), None).unwrap();
        assert_eq!(many.iter().map(|batch| batch.count).collect::<Vec<_>>(), [MAX_KEYS, 1]);
        let long: Vec<String> = (0..20_000).map(|i| format!("n{}/{i:05}{}", i % 2, "x".repeat(500))).collect();
        let (hash, mut unpacked) = ("0f".repeat(32), Vec::new());
        for batch in pack(&long, Some(&hash)).unwrap() {
            assert!(batch.body.len() < FULL + 200_000);
            assert_eq!(batch.namespaces.iter().collect::<Vec<_>>(), ["n0", "n1"]);
            let (keys, kv_spec) = KeysRequest::parse(&batch.body).unwrap();
            assert!(keys.len() == batch.count && kv_spec.as_ref() == Some(&hash));
            unpacked.extend(keys.iter().map(str::to_owned));
        }
        assert!(unpacked == long);
    }

    #[test]
    fn a_wrong_key_is_named_by_its_place_among_all() {
        for texts in [vec!["n/a", "b"], vec!["n/a", &"b".repeat(70_000)]] {
            assert!(pack(&texts, None).err().unwrap().to_string().starts_with("SIRA_BAD_KEY: key 1: "));
            assert!(keys(texts).unwrap_err().to_string().starts_with("SIRA_BAD_KEY: key 1: "));
        }
        let late = (0..MAX_KEYS + 2).map(|i| if i > MAX_KEYS { "n" } else { "n/k" });
        assert!(pack(late, None).err().unwrap().to_string().starts_with("SIRA_BAD_KEY: key 65537: "));
    }
}
