//! PostgreSQL, 11 or newer: values that several nodes share, and the database keeps as carefully as everything else in it.
//!
//! ```text
//! TABLE         name bytea PRIMARY KEY, value bytea STORAGE EXTERNAL
//! TABLE_schema  version integer: of the tables, which a newer version of Sira migrates
//! ```
//!
//! Values are kept uncompressed and out of line, so that a range is read without the rest. A put is one statement; what a create
//! finds is decided by the primary key. [`Durability::Logged`] lets the commit answer before the log is flushed
//! (`synchronous_commit = off`): the value outlives Sira's process, but the death of PostgreSQL's own may take the last moments with
//! it, 600 ms by default. [`Durability::Durable`] waits for the flush, and for standbys where `synchronous_commit` says so.
//!
//! Each statement stands alone, and session settings are made when connecting: through a pooler, only in session mode.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, Postgres, Row};

use crate::ledger::within;
use crate::sql::{self, Connections, Driver, Meaning, Pieces, SqlBackend, kept, timed};
use crate::{BackendError, Capabilities, DatabaseOptions, Durability, HealthStatus, Payload, PutMode, PutOutcome, Survives, name};

/// Half of what a `bytea` holds: a value and its message are in the server's memory more than once.
const MAX_VALUE: u64 = 512 << 20;

/// What may be set behind the `?` of a URL.
const URL_SETTINGS: [&str; 7] = ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "application_name", "options"];

/// Only one node at a time makes or migrates tables in a database.
const MIGRATION_LOCK: i64 = i64::from_be_bytes(*b"sira-sql");

/// What makes version 1 of version 0, and so on; `TABLE` is the quoted name.
const MIGRATIONS: [&str; 1] = ["CREATE TABLE TABLE (name bytea PRIMARY KEY, value bytea NOT NULL);
     ALTER TABLE TABLE ALTER COLUMN value SET STORAGE EXTERNAL"];

/// Values in a table of PostgreSQL.
pub type PostgresBackend = SqlBackend<PostgresDriver>;

/// What is PostgreSQL's own.
pub struct PostgresDriver {
    connections: Connections<Postgres>,
    statements: Statements,
    patience: Duration,
    /// `synchronous_commit` of a durable put.
    durable: String,
    durable_survives: Survives,
}

impl PostgresBackend {
    /// Connects, makes or migrates the tables, and, where there is a limit, counts what is in them.
    pub async fn open(options: &DatabaseOptions) -> Result<PostgresBackend, BackendError> {
        let connect = connect_options(options)?;
        let mut first = timed(options.connect_timeout, PgConnection::connect_with(&connect)).await.map_err(sql::not_opened)?;
        timed(options.patience(), migrate(&mut first, &options.table)).await.map_err(sql::not_opened)??;
        let (durable, durable_survives) = timed(options.patience(), promises(&mut first)).await.map_err(sql::not_opened)?;
        // Nothing is lost with it.
        let _ = first.close().await;
        let driver = PostgresDriver {
            // What a session needs is said while connecting.
            connections: Connections::new(options, connect, Box::new(|_| Box::pin(async { Ok(()) }))),
            statements: Statements::new(&options.table),
            patience: options.patience(),
            durable,
            durable_survives,
        };
        match options.max_bytes {
            Some(_) => SqlBackend::counted(driver, options.max_bytes).await,
            None => Ok(SqlBackend::uncounted(driver)),
        }
    }
}

/// Checks options as far as that goes without the database.
pub fn check(options: &DatabaseOptions) -> Result<(), BackendError> {
    connect_options(options).map(drop)
}

fn connect_options(options: &DatabaseOptions) -> Result<PgConnectOptions, BackendError> {
    let url = options.check(&["postgres", "postgresql"], &URL_SETTINGS)?;
    let connect = PgConnectOptions::from_url(&url).map_err(|error| BackendError::Config(format!("the URL: {error}")))?;
    Ok(connect
        .options([("statement_timeout", options.statement_timeout.as_millis().max(1).to_string().as_str())])
        // Statements that stand alone need no more, and never fail for the sake of others.
        .options([("default_transaction_isolation", "read committed")])
        .disable_statement_logging())
}

/// Makes or migrates the tables, in one transaction.
async fn migrate(connection: &mut PgConnection, table: &str) -> Result<Result<(), BackendError>, sqlx::Error> {
    let (values, schema) = (quoted(table), quoted(&format!("{table}_schema")));
    let mut migration = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *migration).await?;
    let exists = "SELECT to_regclass($1) IS NOT NULL";
    let made: bool = sqlx::query_scalar(exists).bind(&schema).fetch_one(&mut *migration).await?;
    let version = match made {
        true => {
            let read = format!("SELECT version FROM {schema}");
            i64::from(sqlx::query_scalar::<_, i32>(AssertSqlSafe(read)).fetch_optional(&mut *migration).await?.unwrap_or(0))
        }
        false => {
            if sqlx::query_scalar(exists).bind(&values).fetch_one(&mut *migration).await? {
                return Ok(Err(BackendError::Config(format!("the table {table} is there, but Sira did not make it; choose another name"))));
            }
            sqlx::raw_sql(AssertSqlSafe(format!("CREATE TABLE {schema} (version integer NOT NULL)"))).execute(&mut *migration).await?;
            0
        }
    };
    let version = match sql::check_version(version, MIGRATIONS.len()) {
        Ok(version) => version,
        Err(newer) => return Ok(Err(newer)),
    };
    if version < MIGRATIONS.len() {
        for step in &MIGRATIONS[version..] {
            let step = step.replace("TABLE TABLE", &format!("TABLE {values}"));
            sqlx::raw_sql(AssertSqlSafe(step)).execute(&mut *migration).await?;
        }
        let write = format!("DELETE FROM {schema}; INSERT INTO {schema} VALUES ({})", MIGRATIONS.len());
        sqlx::raw_sql(AssertSqlSafe(write)).execute(&mut *migration).await?;
    }
    migration.commit().await?;
    Ok(Ok(()))
}

/// The `synchronous_commit` of durable puts, and what these survive.
async fn promises(connection: &mut PgConnection) -> Result<(String, Survives), sqlx::Error> {
    let read = "SELECT current_setting('synchronous_commit'), current_setting('fsync')";
    let (commit, fsync): (String, String) = sqlx::query_as(read).fetch_one(connection).await?;
    let commit = if commit == "off" { "on".into() } else { commit };
    Ok((commit, if fsync == "on" { Survives::PowerLoss } else { Survives::ProcessCrash }))
}

/// The alphabet of table names has nothing to escape.
fn quoted(table: &str) -> String {
    format!("\"{table}\"")
}

fn meaning(error: &(dyn DatabaseError + 'static)) -> Meaning {
    match error.code().as_deref() {
        Some("53100") => Meaning::Full,
        Some("XX001" | "XX002") => Meaning::Damaged,
        _ => Meaning::Other,
    }
}

fn failed(what: &str, name: &str) -> impl FnOnce(sqlx::Error) -> BackendError {
    let context = format!("cannot {what} {name}");
    move |error| sql::failed(context, error, meaning)
}

/// The statements, with the table's name in them.
struct Statements {
    create: Arc<str>,
    overwrite: Arc<str>,
    get: Arc<str>,
    range: Arc<str>,
    delete: Arc<str>,
    len: Arc<str>,
    list: Arc<str>,
    count: Arc<str>,
}

impl Statements {
    fn new(table: &str) -> Statements {
        let table = quoted(table);
        // The setting holds for the statement's own transaction, and is looked at when that commits.
        let put =
            format!("INSERT INTO {table} (name, value) SELECT $1, $2 FROM set_config('synchronous_commit', $3, true) ON CONFLICT (name)");
        Statements {
            create: format!("{put} DO NOTHING").into(),
            overwrite: format!("{put} DO UPDATE SET value = EXCLUDED.value").into(),
            get: format!("SELECT value FROM {table} WHERE name = $1").into(),
            range: format!("SELECT octet_length(value), substring(value FROM $2 FOR $3) FROM {table} WHERE name = $1").into(),
            delete: format!("DELETE FROM {table} USING set_config('synchronous_commit', 'off', true) WHERE name = $1").into(),
            len: format!("SELECT octet_length(value) FROM {table} WHERE name = $1").into(),
            list: format!("SELECT name FROM {table} WHERE name >= $1 AND name < $2 ORDER BY name LIMIT $3").into(),
            count: format!("SELECT count(*), coalesce(sum(octet_length(value)), 0)::bigint FROM {table}").into(),
        }
    }
}

impl PostgresDriver {
    /// Runs a statement that answers with one row at most.
    async fn row(
        &self,
        statement: &Arc<str>,
        arguments: PgArguments,
        moved: impl Fn(&PgRow) -> usize,
    ) -> Result<Option<PgRow>, sqlx::Error> {
        let mut lent = self.connections.lend().await?;
        let query = sqlx::query_with(AssertSqlSafe(statement.clone()), arguments);
        let result = timed(self.patience, query.fetch_optional(&mut lent.connection)).await;
        let moved = result.as_ref().ok().and_then(Option::as_ref).map_or(0, moved);
        lent.ended(result, moved)
    }

    /// Runs a statement that changes one row at most; says whether it did.
    async fn change(&self, statement: &Arc<str>, arguments: PgArguments, moved: usize) -> Result<bool, sqlx::Error> {
        let mut lent = self.connections.lend().await?;
        let query = sqlx::query_with(AssertSqlSafe(statement.clone()), arguments);
        let result = timed(self.patience, query.execute(&mut lent.connection)).await;
        lent.ended(result, moved).map(|done| done.rows_affected() > 0)
    }
}

/// The arguments of a statement about one name.
fn named(name: &str) -> Result<PgArguments, sqlx::Error> {
    let mut arguments = PgArguments::default();
    arguments.add(name.as_bytes()).map_err(sqlx::Error::Encode)?;
    Ok(arguments)
}

/// Bytes of a column, for the decision about buffers alone.
fn bytes_of(row: &PgRow, column: usize) -> usize {
    row.try_get::<&[u8], _>(column).map_or(0, <[u8]>::len)
}

#[async_trait]
impl Driver for PostgresDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value: MAX_VALUE,
            max_name: name::MAX_NAME,
            ranges: true,
            native_expiry: false,
            shared: true,
            logged_survives: Survives::ProcessCrash,
            durable_survives: self.durable_survives,
        }
    }

    async fn put(&self, name: &str, value: Payload, mode: PutMode, durability: Durability) -> Result<PutOutcome, BackendError> {
        let put = async {
            let moved = value.len() as usize;
            let mut arguments = PgArguments::default();
            arguments.reserve(3, moved + name.len() + 32);
            arguments.add(name.as_bytes()).map_err(sqlx::Error::Encode)?;
            arguments.add(Pieces(&value)).map_err(sqlx::Error::Encode)?;
            let commit = if durability == Durability::Durable { self.durable.as_str() } else { "off" };
            arguments.add(commit).map_err(sqlx::Error::Encode)?;
            let statement = if mode == PutMode::Create { &self.statements.create } else { &self.statements.overwrite };
            self.change(statement, arguments, moved).await
        };
        let written = put.await.map_err(failed("write", name))?;
        Ok(if written { PutOutcome::Written } else { PutOutcome::Exists })
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let failed = || failed("read", name);
        let Some(range) = range else {
            let arguments = named(name).map_err(failed())?;
            let row = self.row(&self.statements.get, arguments, |row| bytes_of(row, 0)).await.map_err(failed())?;
            return row.map(|row| kept(row, 0)).transpose().map_err(failed());
        };
        let arguments = || {
            let mut arguments = named(name)?;
            // What lies behind every value is as far behind the end of this one.
            arguments.add(range.start.min(MAX_VALUE) as i32 + 1).map_err(sqlx::Error::Encode)?;
            arguments.add(range.end.saturating_sub(range.start).min(MAX_VALUE) as i32).map_err(sqlx::Error::Encode)?;
            Ok(arguments)
        };
        let arguments = arguments().map_err(failed())?;
        let row = self.row(&self.statements.range, arguments, |row| bytes_of(row, 1)).await.map_err(failed())?;
        let Some(row) = row else { return Ok(None) };
        let len: i32 = row.try_get(0).map_err(failed())?;
        within(Some(range), len as u64)?;
        kept(row, 1).map(Some).map_err(failed())
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        let arguments = named(name).map_err(failed("delete", name))?;
        self.change(&self.statements.delete, arguments, 0).await.map_err(failed("delete", name))
    }

    async fn len(&self, name: &str) -> Result<Option<u64>, BackendError> {
        let failed = || failed("look for", name);
        let arguments = named(name).map_err(failed())?;
        let row = self.row(&self.statements.len, arguments, |_| 0).await.map_err(failed())?;
        row.map(|row| row.try_get::<i32, _>(0).map(|len| len as u64)).transpose().map_err(failed())
    }

    async fn list(&self, from: Vec<u8>, to: Vec<u8>, limit: i64) -> Result<Vec<String>, BackendError> {
        let list = async {
            let mut lent = self.connections.lend().await?;
            let query = sqlx::query(AssertSqlSafe(self.statements.list.clone())).bind(from).bind(to).bind(limit);
            let result = timed(self.patience, query.fetch_all(&mut lent.connection)).await;
            let rows = lent.ended(result, 0)?;
            rows.iter().map(|row| row.try_get::<&[u8], _>(0).map(sql::listed)).collect::<Result<Vec<_>, sqlx::Error>>()
        };
        list.await.map_err(failed("list", "names"))
    }

    async fn count(&self) -> Result<(u64, u64), BackendError> {
        // As long as it takes: it is asked for once, and reads every row.
        let count = async {
            let mut lent = self.connections.lend().await?;
            sqlx::raw_sql("SET statement_timeout TO 0").execute(&mut lent.connection).await?;
            let (values, bytes): (i64, i64) =
                sqlx::query_as(AssertSqlSafe(self.statements.count.clone())).fetch_one(&mut lent.connection).await?;
            // The connection is closed, and its setting with it.
            Ok::<_, sqlx::Error>((values as u64, bytes as u64))
        };
        count.await.map_err(failed("count", "values"))
    }

    async fn health(&self) -> Result<HealthStatus, BackendError> {
        let writable = async {
            let mut lent = self.connections.lend().await?;
            let query = sqlx::query_scalar::<_, String>("SELECT current_setting('transaction_read_only')");
            let result = timed(self.patience, query.fetch_one(&mut lent.connection)).await;
            lent.ended(result, 0)
        };
        Ok(match timed(sql::HEALTH_WAIT, writable).await {
            Ok(off) if off == "off" => HealthStatus::Healthy,
            Ok(_) => HealthStatus::Degraded("the database is read-only, as a standby is".into()),
            Err(error) => HealthStatus::Unhealthy(error.to_string()),
        })
    }
}
