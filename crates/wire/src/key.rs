//! Keys: `namespace/rest`.

use std::fmt;
use std::str::FromStr;

use crate::{Code, WireError};

/// Bytes of a namespace.
pub const MAX_NAMESPACE: usize = 64;
/// Bytes of the rest of a key.
pub const MAX_KEY: usize = 512;

/// A valid key. Ordered by its bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    text: String,
    slash: usize,
}

impl Key {
    /// What comes before the first `/`.
    pub fn namespace(&self) -> &str {
        &self.text[..self.slash]
    }

    /// What comes after it.
    pub fn rest(&self) -> &str {
        &self.text[self.slash + 1..]
    }

    /// `namespace/rest`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The key that a descriptor's path means: its parts joined by `/`.
    pub fn from_path(path: &[String]) -> Result<Key, WireError> {
        path.join("/").parse()
    }
}

impl FromStr for Key {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Key, WireError> {
        let slash = check(text)?;
        Ok(Key { text: text.to_string(), slash })
    }
}

/// Whether `text` is a key: where its namespace ends.
pub(crate) fn check(text: &str) -> Result<usize, WireError> {
    let refuse = |reason: String| Err(WireError::new(Code::BadKey, format!("{:?}: {reason}", shortened(text))));
    let Some(slash) = text.find('/') else {
        return refuse("a key is namespace/rest, with a / between".into());
    };
    let (namespace, rest) = (&text[..slash], &text[slash + 1..]);
    if namespace.is_empty() || namespace.len() > MAX_NAMESPACE {
        return refuse(format!("the namespace has {} bytes; it may have 1 to {MAX_NAMESPACE}", namespace.len()));
    }
    if rest.is_empty() || rest.len() > MAX_KEY {
        return refuse(format!("{} bytes after the namespace; there may be 1 to {MAX_KEY}", rest.len()));
    }
    if let Some(c) = control(text) {
        return refuse(format!("control character {c:?}; none is allowed"));
    }
    if namespace == "." || (text.contains("..") && text.split('/').any(|segment| segment == "..")) {
        return refuse("a segment is \"..\", or the namespace \".\"; neither is allowed".into());
    }
    Ok(slash)
}

/// Whether nothing in `text` is against the rules of keys but for where namespaces and keys begin and end. Most texts are as plain as this looks for.
pub(crate) fn is_plain(text: &str) -> bool {
    is_printable(text) && !text.contains("..")
}

/// Whether `text` is printable ASCII. Without a branch a byte, so that it is done many at a time.
fn is_printable(text: &str) -> bool {
    text.bytes().fold(true, |plain, byte| plain & (0x20..0x7f).contains(&byte))
}

/// The first control character.
fn control(text: &str) -> Option<char> {
    if is_printable(text) { None } else { text.chars().find(|c| c.is_control()) }
}

/// Enough of a refused text to recognise it; it may be of any length.
pub(crate) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_slash_ends_the_namespace() {
        let key: Key = "llama@8b/sess=1:a/layer=3//x".parse().unwrap();
        assert_eq!((key.namespace(), key.rest()), ("llama@8b", "sess=1:a/layer=3//x"));
        assert_eq!(Key::from_path(&["a".into(), "b".into(), "c".into()]).unwrap().as_str(), "a/b/c");
    }

    #[test]
    fn hostile_keys_are_refused() {
        let long = format!("ns/{}", "x".repeat(MAX_KEY + 1));
        let wide = format!("{}/x", "n".repeat(MAX_NAMESPACE + 1));
        for bad in
            ["", "ns", "/x", "ns/", "ns/../x", "../x", "ns/a/..", "./x", "ns/a\0b", "ns/a\nb", "ns/\u{7f}", "ns/\u{85}", &long, &wide]
        {
            assert_eq!(bad.parse::<Key>().unwrap_err().code, Code::BadKey, "{bad:?}");
        }
        for good in ["ns/..a", "ns/a..", "ns/.", "ns/…", "é/ü"] {
            assert!(good.parse::<Key>().is_ok(), "{good:?}");
        }
    }
}
