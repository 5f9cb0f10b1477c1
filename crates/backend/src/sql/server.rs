//! Databases across a network: where one is, and how it is used.

use std::fmt;
use std::time::Duration;

use url::Url;

use super::check_table;
use crate::BackendError;

/// Beyond the time that the server gives a statement: how much later this side stops waiting for it.
const GRACE: Duration = Duration::from_secs(5);

/// How long a health check waits.
pub const HEALTH_WAIT: Duration = Duration::from_secs(5);

/// Where a database is, and how it is used.
#[derive(Clone)]
pub struct DatabaseOptions {
    /// `postgres://user:password@host:port/database?sslmode=verify-full`, or `mysql://...?ssl-mode=VERIFY_IDENTITY`. Never shown.
    pub url: String,
    /// The table that holds the values, made if missing. Default: `sira`.
    pub table: String,
    /// Limit of the bytes of values; `None` is what the database has, and then nothing is counted. Default: `None`.
    pub max_bytes: Option<u64>,
    /// Connections that may be open at once. Default: 16.
    pub max_connections: u32,
    /// How long a call waits for a connection, free or new. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long a statement may run. Default: 30 s.
    pub statement_timeout: Duration,
}

impl DatabaseOptions {
    /// The defaults for the database at a URL.
    pub fn new(url: impl Into<String>) -> DatabaseOptions {
        DatabaseOptions {
            url: url.into(),
            table: "sira".into(),
            max_bytes: None,
            max_connections: 16,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
        }
    }

    /// How long this side waits for an answer to a statement.
    pub(crate) fn patience(&self) -> Duration {
        self.statement_timeout.saturating_add(GRACE)
    }

    /// Checks all that can be checked without the database, and gives the URL. Errors never repeat it: it may hold a password.
    pub(crate) fn check(&self, schemes: &[&str], settings: &[&str]) -> Result<Url, BackendError> {
        let bad = |reason: String| Err(BackendError::Config(reason));
        check_table(&self.table)?;
        let example = format!("{}://user@host/database", schemes[0]);
        let url = match Url::parse(&self.url) {
            Ok(url) if schemes.contains(&url.scheme()) => url,
            _ => return bad(format!("the URL must be such as {example}")),
        };
        if url.path().trim_matches('/').is_empty() {
            return bad(format!("the URL names no database: {example}"));
        }
        if let Some((name, _)) = url.query_pairs().find(|(name, _)| !settings.contains(&name.as_ref())) {
            return bad(format!("the URL's setting {name:?} is not one of {}", settings.join(", ")));
        }
        if self.max_connections == 0 {
            return bad("it needs at least one connection".into());
        }
        Ok(url)
    }
}

impl fmt::Debug for DatabaseOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = Url::parse(&self.url).ok();
        let place = url.as_ref().map(|url| (url.scheme(), url.username(), url.host_str(), url.port(), url.path()));
        f.debug_struct("DatabaseOptions")
            .field("place", &place)
            .field("table", &self.table)
            .field("max_bytes", &self.max_bytes)
            .field("max_connections", &self.max_connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .finish()
    }
}

/// What an error at the start means: one that may pass, or one that a person must mend.
pub fn not_opened(error: sqlx::Error) -> BackendError {
    let context = "cannot connect to the database".to_owned();
    match error {
        error @ (sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) => BackendError::Unavailable { context, source: error.into() },
        error => BackendError::Config(format!("{context}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str) -> Result<Url, BackendError> {
        DatabaseOptions::new(url).check(&["postgres", "postgresql"], &["sslmode"])
    }

    #[test]
    fn a_url_is_checked_and_never_repeated() {
        check("postgres://u@h/d").unwrap();
        check("postgresql://u:hush@h:1/d?sslmode=require").unwrap();
        for bad in ["", "hush", "mysql://u:hush@h/d", "postgres://u:hush@h", "postgres://u:hush@h/", "postgres://u:hush@h/d?password=hush"]
        {
            let error = check(bad).unwrap_err();
            assert!(matches!(error, BackendError::Config(_)) && !error.to_string().contains("hush"), "{bad}: {error}");
        }
        let options = DatabaseOptions { table: "Sira".into(), ..DatabaseOptions::new("postgres://u@h/d") };
        options.check(&["postgres"], &[]).unwrap_err();
        let options = DatabaseOptions { max_connections: 0, ..DatabaseOptions::new("postgres://u@h/d") };
        options.check(&["postgres"], &[]).unwrap_err();
    }

    #[test]
    fn a_password_is_not_shown() {
        let options = DatabaseOptions::new("postgres://u:hush@h/d?password=hush");
        let shown = format!("{options:?} {options:#?}");
        assert!(!shown.contains("hush") && shown.contains("\"h\""), "{shown}");
    }
}
