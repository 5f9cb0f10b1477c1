//! The names every backend takes, and an escape that turns any bytes into one.
//!
//! The alphabet is what file systems, object stores and databases all take unquoted. A name is at most 1,024 bytes, which is S3's
//! limit. A component between two `/` is at most 250: file systems take 255, and writing a file beside its final name, as
//! `object_store` does, needs a few for a suffix.

use std::fmt::Write;

use crate::BackendError;

/// Bytes of the longest name.
pub const MAX_NAME: usize = 1024;

/// Bytes of the longest component, the part between two `/`.
pub const MAX_COMPONENT: usize = 250;

/// Characters of a component made by [`components`].
const SPLIT: usize = 200;

/// Whether `byte` may stand in a name.
pub const fn allowed(byte: u8) -> bool {
    matches!(byte, b'!' | b'-'..=b';' | b'=' | b'@'..=b'Z' | b'_' | b'a'..=b'z')
}

/// Whether every backend takes this name: 1 to 1,024 bytes of the alphabet `! - . / 0-9 : ; = @ A-Z _ a-z`, in components of 1 to
/// 250 bytes, none of them `.` or `..`.
pub fn check(name: &str) -> Result<(), BackendError> {
    let bad = |reason: String| Err(BackendError::BadName { name: name.chars().take(MAX_NAME).collect(), reason });
    if name.is_empty() || name.len() > MAX_NAME {
        return bad(format!("it has {} bytes, not 1 to {MAX_NAME}", name.len()));
    }
    if let Some(other) = name.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        return bad(format!("{other:?} is not in the alphabet"));
    }
    for component in name.split('/') {
        match component {
            "" => return bad("a component is empty".into()),
            "." | ".." => return bad(format!("a component is {component:?}")),
            _ if component.len() > MAX_COMPONENT => return bad(format!("a component has more than {MAX_COMPONENT} bytes")),
            _ => {}
        }
    }
    Ok(())
}

/// Any bytes as text of the alphabet without `/`, so that `escape(a)` compares to `escape(b)` as `a` to `b`, and starts with it
/// only where `a` starts with `b`.
///
/// Most characters of names stand for themselves. A byte outside the alphabet becomes a lead character that sorts where the byte
/// does, and a suffix that orders the bytes with the same lead; the leads themselves get a suffix too, which keeps the code
/// prefix-free. At most three characters a byte.
///
/// No escape holds `!!`, and no component that [`components`] makes starts with it, so a component that starts with `!!` can be
/// told from every escaped one.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 8);
    for &byte in bytes {
        match byte {
            0..=0x2C => hex(&mut text, '!', byte),
            b'.' => text.push_str(".-"),
            b'/' => text.push_str(".0"),
            b';' => text.push_str(";0"),
            b'<' => text.push_str(";1"),
            b'>' => text.push_str("@0"),
            b'?' => text.push_str("@1"),
            b'@' => text.push_str("@@"),
            b'['..=b'^' => text.extend(['_', char::from(byte - b'[' + b'0')]),
            b'_' => text.push_str("__"),
            b'`' => text.push_str("_a"),
            b'z' => text.push_str("z-"),
            0x7B.. => hex(&mut text, 'z', byte),
            _ => text.push(char::from(byte)),
        }
    }
    text
}

fn hex(text: &mut String, lead: char, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{lead}{byte:02x}");
}

/// The bytes that [`escape`] was given; `None` where it makes no such text. Slashes put in by [`components`] are skipped.
pub fn unescape(escaped: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.bytes().filter(|byte| *byte != b'/');
    while let Some(lead) = rest.next() {
        bytes.push(match lead {
            b'!' => unhex(rest.next()?, rest.next()?).filter(|byte| *byte <= 0x2C)?,
            b'.' => match rest.next()? {
                b'-' => b'.',
                b'0' => b'/',
                _ => return None,
            },
            b';' => match rest.next()? {
                b'0' => b';',
                b'1' => b'<',
                _ => return None,
            },
            b'@' => match rest.next()? {
                b'0' => b'>',
                b'1' => b'?',
                b'@' => b'@',
                _ => return None,
            },
            b'_' => match rest.next()? {
                digit @ b'0'..=b'3' => digit - b'0' + b'[',
                b'_' => b'_',
                b'a' => b'`',
                _ => return None,
            },
            b'z' => match rest.next()? {
                b'-' => b'z',
                high => unhex(high, rest.next()?).filter(|byte| *byte >= 0x7B)?,
            },
            plain @ (b'-' | b'0'..=b':' | b'=' | b'A'..=b'Z' | b'a'..=b'y') => plain,
            _ => return None,
        });
    }
    Some(bytes)
}

/// Two lower-case hexadecimal digits; upper case is not what [`escape`] writes.
fn unhex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    Some(digit(high)? << 4 | digit(low)?)
}

/// An escaped text with a `/` after every 200 characters, so that no component is longer than a file system takes. Order and
/// prefixes stay.
///
/// A text of exactly 200 characters becomes a folder of the longer ones that start with it. A caller that uses both as names
/// appends a component of its own, which tells them apart if it starts with `!!` (see [`escape`]).
pub fn components(escaped: &str) -> String {
    let mut name = String::with_capacity(escaped.len() + escaped.len() / SPLIT);
    for (index, character) in escaped.chars().enumerate() {
        if index > 0 && index % SPLIT == 0 {
            name.push('/');
        }
        name.push(character);
    }
    name
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_checked() {
        let component = "c".repeat(250);
        let longest = [component.as_str(); 5].join("/");
        for good in ["a", "a/b", "...", "a/.b", "!-.0:;=@A_z", &component, &longest[..1024]] {
            check(good).unwrap();
        }
        let too_long = "a/".repeat(512) + "b";
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a b", "a%", "a~", "ä", "a\0", &"c".repeat(251), &too_long] {
            assert!(matches!(check(bad), Err(BackendError::BadName { .. })), "{bad:?}");
        }
    }

    #[test]
    fn every_byte_has_its_place() {
        let escapes: Vec<String> = (0..=255).map(|byte| escape(&[byte])).collect();
        for (byte, pair) in escapes.windows(2).enumerate() {
            assert!(pair[0] < pair[1] && !pair[1].starts_with(&pair[0]), "{byte}: {pair:?}");
        }
        assert_eq!(escape(b"Az/.x\n"), "Az-.0.-x!0a");
    }

    #[test]
    fn what_escape_never_writes_is_not_read() {
        for bad in ["!", "!0", "!2d", "!0A", ".", ".1", ";2", "@a", "_4", "_b", "z", "z7", "z7a", "z7B", "~", "ä", "!!"] {
            assert_eq!(unescape(bad), None, "{bad:?}");
        }
    }

    /// Bytes that share prefixes often.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            vec(any::<u8>(), 0..12),
            vec(prop::sample::select(&b"\0!,-./0:;<=>?@AZ[^_`ayz{\xff"[..]), 0..6),
            vec(97..99u8, 190..420)
        ]
    }

    proptest! {
        #[test]
        fn escape_keeps_order_and_prefixes(a in bytes(), b in bytes(), tail in bytes()) {
            let longer = [&a[..], &tail[..]].concat();
            for (x, y) in [(&a, &b), (&a, &longer), (&longer, &b)] {
                let (ex, ey) = (escape(x), escape(y));
                prop_assert_eq!(x.cmp(y), ex.cmp(&ey));
                prop_assert_eq!(x.starts_with(y), ex.starts_with(&ey));
                let (cx, cy) = (components(&ex), components(&ey));
                prop_assert_eq!(x.cmp(y), cx.cmp(&cy));
                prop_assert_eq!(x.starts_with(y), cx.starts_with(&cy));
            }
        }

        #[test]
        fn escapes_are_names_and_come_back(a in bytes()) {
            let escaped = escape(&a);
            let name = components(&escaped);
            prop_assert_eq!(unescape(&escaped), Some(a.clone()));
            prop_assert_eq!(unescape(&name), Some(a.clone()));
            prop_assert!(name.split('/').all(|component| !component.starts_with("!!") && component.len() <= SPLIT));
            if !a.is_empty() && name.len() <= MAX_NAME {
                prop_assert!(check(&name).is_ok(), "{name}");
            }
        }

        #[test]
        fn unescape_takes_only_what_escape_writes(text in "[!-/0-9:;=@A-Z_a-z]{0,12}") {
            if let Some(bytes) = unescape(&text) {
                prop_assert_eq!(escape(&bytes), text.replace('/', ""));
            }
        }
    }
}
