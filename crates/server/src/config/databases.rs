//! Databases across a network: `postgres` and `mysql`.

use std::time::Duration;

use sira_backend::BackendError;
use sira_backend::guard::GuardOptions;

use super::SecretUrl;
use super::backends::{max_size, read_guard};
use super::reader::Section;

/// A database that a backend lies in.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    /// `url`: with user and password.
    pub url: SecretUrl,
    /// `table_name`: the table that holds the values, made if missing. Default: `sira`.
    pub table: String,
    /// `max_size`: bytes; `None` is what the database has. Default: `None`.
    pub max_size: Option<u64>,
    /// `max_connections`: open at once. Default: 16.
    pub max_connections: u32,
    /// `statement_timeout`: how long a statement may run. Default: 30 s.
    pub statement_timeout: Duration,
    /// Default: that of [`GuardOptions`].
    pub guard: GuardOptions,
}

/// Which of them.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Postgres,
    MySql,
}

pub(super) fn read(section: &mut Section<'_>, kind: Kind) -> Database {
    let (origin, url) = section.text("url").map_or_else(|| (section.origin.clone(), String::new()), |text| (text.origin, text.value));
    let table = section.text("table_name");
    let connections = section.integer("max_connections", 1..=1000).and_then(|number| u32::try_from(number.value).ok());
    let mut database = Database {
        url: SecretUrl::new(url),
        table: "sira".to_owned(),
        max_size: max_size(section),
        max_connections: connections.unwrap_or(16),
        statement_timeout: section.duration("statement_timeout").map_or(Duration::from_secs(30), |duration| duration.value),
        guard: read_guard(section, GuardOptions::default()),
    };
    let problem = |database: &Database, origin, key: &str| match kind.check(database) {
        Ok(()) => {}
        Err(error) => section.problem(origin, format!("`{}.{key}`: {error}", section.path)),
    };
    problem(&database, &origin, "url");
    if let Some(table) = table {
        database.table = table.value;
        let good_url = Database { url: SecretUrl::new(kind.example()), ..database.clone() };
        problem(&good_url, &table.origin, "table_name");
    }
    database
}

impl Kind {
    fn example(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres://user@host/database",
            Kind::MySql => "mysql://user@host/database",
        }
    }

    /// Checks what can be checked without the database; errors never repeat the URL.
    fn check(self, database: &Database) -> Result<(), BackendError> {
        match self {
            #[cfg(feature = "postgres")]
            Kind::Postgres => sira_backend::postgres::check(&database.options()),
            #[cfg(feature = "mysql")]
            Kind::MySql => sira_backend::mysql::check(&database.options()),
            #[cfg(not(all(feature = "mysql", feature = "postgres")))]
            _ => {
                let _ = database;
                Ok(())
            }
        }
    }
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
impl Database {
    /// As the backend is told.
    pub(crate) fn options(&self) -> sira_backend::DatabaseOptions {
        sira_backend::DatabaseOptions {
            table: self.table.clone(),
            max_bytes: self.max_size,
            max_connections: self.max_connections,
            connect_timeout: self.guard.timeout,
            statement_timeout: self.statement_timeout,
            ..sira_backend::DatabaseOptions::new(self.url.expose())
        }
    }
}
