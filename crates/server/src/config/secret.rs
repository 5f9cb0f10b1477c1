//! Addresses that may have a password in them.

use std::fmt;

/// One URL, or several with commas between. What is shown of it has `***` for each password.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// As it was written.
    pub fn new(text: impl Into<String>) -> SecretUrl {
        SecretUrl(text.into())
    }

    /// With its passwords: for the library that connects, and for nobody who prints.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Each URL in it, with its passwords.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').map(str::trim)
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, url) in self.parts().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}", masked(url))?;
        }
        Ok(())
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// All between `//` and the last `@` of the authority is user and password; what is no URL is not shown at all.
fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".into() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    // A password with a slash that is not escaped reaches further than the authority.
    let Some(at) = rest[..end].rfind('@').or_else(|| rest.rfind('@')) else { return url.to_owned() };
    let (user, host) = (&rest[..at], &rest[at + 1..]);
    let Some((user, _)) = user.split_once(':') else { return url.to_owned() };
    format!("{scheme}://{user}:***@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379/1", "redis://127.0.0.1:6379/1"),
            ("postgres://me@host/d", "postgres://me@host/d"),
            ("redis://:geheim@host", "redis://:***@host"),
            ("rediss://me:geheim@host:1/2?x=@", "rediss://me:***@host:1/2?x=@"),
            ("redis://me:ge@heim@host", "redis://me:***@host"),
            ("redis://me:ge/heim@host", "redis://me:***@host"),
            ("redis://:geheim@a:1, redis://:geheim@b:2", "redis://:***@a:1,redis://:***@b:2"),
            ("geheim", "***"),
        ] {
            assert_eq!(SecretUrl::new(url).to_string(), shown);
            assert!(!format!("{:?}", SecretUrl::new(url)).contains("heim"), "{url}");
        }
    }
}
