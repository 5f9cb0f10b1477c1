//! Lists of keys, in requests that a server takes.

use sira_wire::many::MAX_KEYS;
use sira_wire::{Key, WireError};

use crate::ClientError;

/// Bytes of keys in one request, as JSON. A server reads requests up to 8 MiB.
const MAX_TEXT: usize = 4 << 20;

/// Parses keys; an error says which one is wrong, as a server's does.
pub(crate) fn keys(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<Key>, ClientError> {
    let mut keys = Vec::new();
    for (i, text) in texts.into_iter().enumerate() {
        let wrong = |e: WireError| WireError::new(e.code, format!("key {i}: {}", e.message));
        keys.push(text.as_ref().parse().map_err(wrong)?);
    }
    Ok(keys)
}

/// Cuts keys into runs that fit in a request each.
pub(crate) fn split(keys: &[Key]) -> impl Iterator<Item = &[Key]> {
    let mut rest = keys;
    std::iter::from_fn(move || {
        let mut text = 0;
        let fits = |key: &&Key| {
            // Quotes, a comma, and a backslash before each of the two characters that JSON escapes: others that it escapes are in no key.
            text += key.as_str().len() + key.as_str().matches(['"', '\\']).count() + 3;
            text <= MAX_TEXT
        };
        let len = rest.iter().take(MAX_KEYS).take_while(fits).count();
        let run = rest.split_off(..len)?;
        (!run.is_empty()).then_some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_fit_in_a_request_and_lose_no_key() {
        assert_eq!(split(&[]).count(), 0);
        let many = keys((0..MAX_KEYS + 1).map(|i| format!("n/{i}"))).unwrap();
        assert_eq!(split(&many).map(<[Key]>::len).collect::<Vec<_>>(), [MAX_KEYS, 1]);
        let long = keys((0..20_000).map(|i| format!("n/{i:05}{}", "\"".repeat(500)))).unwrap();
        let runs: Vec<&[Key]> = split(&long).collect();
        assert!(runs.len() > 1 && runs.concat() == long);
        for run in runs {
            let texts: Vec<&str> = run.iter().map(Key::as_str).collect();
            assert!(serde_json::to_vec(&texts).unwrap().len() <= MAX_TEXT + 2);
        }
        assert!(keys(["n/a", "b"]).unwrap_err().to_string().starts_with("SIRA_BAD_KEY: key 1: "));
    }
}
