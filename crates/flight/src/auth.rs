//! Who may call: bearer tokens from a file.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use sira_wire::Code;
use subtle::{Choice, ConstantTimeEq};
use tonic::Status;

use crate::status::refuse;
use crate::watched::{self, Watched};

/// Characters of the shortest token: 16 random ones cannot be guessed over a network.
const SHORTEST: usize = 16;

/// The one call that may come with name and password, to get the token back.
pub(crate) const HANDSHAKE: &str = "/arrow.flight.protocol.FlightService/Handshake";

/// The tokens that a server accepts. Their file is read again when it changes, so that tokens can be rotated: add the new one, move
/// clients to it, remove the old one.
pub struct Tokens {
    accepted: Watched<Vec<String>>,
}

impl Tokens {
    /// Reads a file of tokens: one a line; blank lines and those that begin with `#` are ignored. The error names the file and the line.
    pub fn load(path: PathBuf) -> Result<Tokens, String> {
        let file = path.clone();
        let accepted = Watched::new(vec![path.clone()], move || read(&file))?;
        if accepted.get().is_empty() {
            return Err(format!("{}: holds no token, so nobody could call", path.display()));
        }
        Ok(Tokens { accepted })
    }

    /// Whether a call with these headers may go on.
    pub(crate) fn check(&self, path: &str, headers: &HeaderMap) -> Result<(), Status> {
        let refused = |why: &str| Err(refuse(Code::Unauthenticated, why));
        let Some(given) = given(headers) else {
            return refused("this server needs `authorization: Bearer TOKEN` with every call");
        };
        if given.basic && path != HANDSHAKE {
            return refused("name and password are for the handshake alone; it answers the token that other calls need");
        }
        self.accept(Some(&given.token))
    }

    /// Whether a client that gave this token may go on.
    pub(crate) fn accept(&self, given: Option<&str>) -> Result<(), Status> {
        let Some(given) = given else { return Err(refuse(Code::Unauthenticated, "this server needs a token")) };
        // All are compared, each in a time that does not depend on where the first difference is; only lengths can be told apart.
        let known = self.accepted.get().iter().fold(Choice::from(0), |known, token| known | token.as_bytes().ct_eq(given.as_bytes()));
        if bool::from(known) { Ok(()) } else { Err(refuse(Code::Unauthenticated, "the token is not one of this server's")) }
    }
}

/// What a client showed.
pub(crate) struct Given {
    pub token: String,
    basic: bool,
}

/// The token in `authorization: Bearer TOKEN`, or in `Basic base64(NAME:TOKEN)`, whatever the name.
pub(crate) fn given(headers: &HeaderMap) -> Option<Given> {
    let (scheme, value) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Given { token: value.trim().to_owned(), basic: false });
    }
    let pair = STANDARD.decode(value.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let (_, token) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
    Some(Given { token: token.to_owned(), basic: true })
}

fn read(path: &Path) -> Result<Vec<String>, String> {
    let wrong = |what: String| format!("{}: {what}", path.display());
    let text = String::from_utf8(watched::read_secret(path)?).map_err(|_| wrong("not text".to_owned()))?;
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    // Errors tell the line's number: its text is a secret.
    let token = |(i, line): (usize, &str)| match line {
        _ if line.len() < SHORTEST => {
            Err(wrong(format!("line {}: a token has at least {SHORTEST} characters; `openssl rand -hex 32` makes one", i + 1)))
        }
        _ if !line.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(wrong(format!("line {}: a token is made of letters, digits and signs of ASCII, without spaces", i + 1)))
        }
        _ => Ok(line.to_owned()),
    };
    lines.map(token).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tonic::Code as Grpc;

    use super::*;

    const ONE: &str = "one-token-of-many-letters";
    const TWO: &str = "two-token:with-a-colon";

    fn with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[test]
    fn a_call_needs_one_of_the_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, format!("# ours\n\n{ONE}\n  {TWO}  \n")).unwrap();
        let tokens = Tokens::load(path).unwrap();
        for good in [format!("Bearer {ONE}"), format!("bearer {TWO}")] {
            assert!(tokens.check("/any", &with(&good)).is_ok(), "{good}");
            assert!(tokens.check(HANDSHAKE, &with(&good)).is_ok(), "{good}");
        }
        let prefix = &ONE[..ONE.len() - 1];
        let near = format!("Bearer {prefix}x");
        let bad = ["Bearer", "Bearer ", "Bearer # ours", ONE, &format!("Bearer {prefix}"), &near, &format!("Bearer {ONE}x"), "Basic ???"];
        for bad in bad {
            let status = tokens.check("/any", &with(bad)).unwrap_err();
            assert_eq!(status.code(), Grpc::Unauthenticated, "{bad}");
            assert!(status.message().starts_with("SIRA_UNAUTHENTICATED: ") && !status.message().contains(ONE), "{bad}");
        }
        assert!(tokens.check("/any", &HeaderMap::new()).is_err());
        // Name and password: for the handshake alone, whatever the name.
        assert!(tokens.check(HANDSHAKE, &with(&basic(&format!("me:{TWO}")))).is_ok());
        assert!(tokens.check("/any", &with(&basic(&format!("me:{TWO}")))).is_err());
        assert!(tokens.check(HANDSHAKE, &with(&basic(&format!("{ONE}:")))).is_err());
        assert_eq!(given(&with(&basic(&format!("me:{TWO}")))).unwrap().token, TWO);
    }

    #[test]
    fn a_file_of_weak_or_no_tokens_is_refused_without_telling_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        for (text, part) in [
            ("", "holds no token"),
            ("# nothing\n", "holds no token"),
            ("\nshort-secret\n", "line 2: a token has at least 16"),
            ("a token of many words\n", "line 1: a token is made of"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Tokens::load(path.clone()).err().unwrap();
            assert!(error.starts_with(&path.display().to_string()) && error.contains(part), "{error}");
            assert!(!error.contains("short-secret") && !error.contains("many words"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(Tokens::load(path).err().unwrap().contains("No such file"));
    }
}
