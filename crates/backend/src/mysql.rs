//! MySQL 8 and MariaDB 10.5, or newer: values that several nodes share, in a table of InnoDB.
//!
//! ```text
//! TABLE         name VARBINARY(1024) PRIMARY KEY, size INT UNSIGNED, value LONGBLOB
//! TABLE_schema  version: of the tables, which a newer version of Sira migrates
//! ```
//!
//! `size` answers what asks for lengths, so that no value is read for it. A put is one statement; what a create finds is decided by
//! the primary key. When a commit is flushed is a setting of the server (`innodb_flush_log_at_trx_commit`, and `sync_binlog` where
//! there is a binary log), not of a statement: [`Durability::Logged`] is as [`Durability::Durable`], and that promises what the
//! server's settings were at the start. The largest value is what `max_allowed_packet` leaves for one.
//!
//! The driver is built without RSA, which a server asks for to take a password of `caching_sha2_password` over a connection without
//! TLS: such users need `ssl-mode=REQUIRED` or better.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySqlArguments, MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlRow};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, MySql, Row};

use crate::ledger::within;
use crate::sql::{self, Connections, Driver, Meaning, Pieces, Prepare, SqlBackend, kept, timed};
use crate::{BackendError, Capabilities, DatabaseOptions, Durability, HealthStatus, Payload, PutMode, PutOutcome, Survives, name};

/// What a packet holds beside a value: the name, lengths and types.
const PACKET_OVERHEAD: u64 = 4096;

/// What `max_allowed_packet` can be at most.
const MAX_PACKET: u64 = 1 << 30;

/// Below it, chunks of tensors would be refused one by one.
const MIN_PACKET: u64 = 8 << 20;

/// What may be set behind the `?` of a URL.
const URL_SETTINGS: [&str; 9] = ["ssl-mode", "sslmode", "ssl-ca", "sslca", "ssl-cert", "sslcert", "ssl-key", "sslkey", "socket"];

/// Tries of a statement that InnoDB gave up to end a deadlock: nothing of it was done.
const DEADLOCK_TRIES: usize = 10;

/// What makes version 1 of version 0, and so on; `TABLE` is the quoted name. Each commits by itself and may be repeated: MySQL takes
/// back no change of a table.
const MIGRATIONS: [&str; 1] =
    ["CREATE TABLE IF NOT EXISTS TABLE (name VARBINARY(1024) NOT NULL PRIMARY KEY, size INT UNSIGNED NOT NULL, value LONGBLOB NOT NULL) \
     ENGINE = InnoDB ROW_FORMAT = DYNAMIC"];

/// Values in a table of MySQL or MariaDB.
pub type MySqlBackend = SqlBackend<MySqlDriver>;

/// What is MySQL's own.
pub struct MySqlDriver {
    connections: Connections<MySql>,
    statements: Statements,
    patience: Duration,
    max_value: u64,
    survives: Survives,
}

impl MySqlBackend {
    /// Connects, makes or migrates the tables, and, where there is a limit, counts what is in them.
    pub async fn open(options: &DatabaseOptions) -> Result<MySqlBackend, BackendError> {
        let connect = connect_options(options)?;
        let mut first = timed(options.connect_timeout, MySqlConnection::connect_with(&connect)).await.map_err(sql::not_opened)?;
        timed(options.patience(), migrate(&mut first, options)).await.map_err(sql::not_opened)??;
        let (packet, survives) = timed(options.patience(), promises(&mut first)).await.map_err(sql::not_opened)?;
        // Nothing is lost with it.
        let _ = first.close().await;
        if packet < MIN_PACKET {
            let reason = format!("its max_allowed_packet is {packet} bytes; Sira needs {MIN_PACKET}, and 64 MiB are well spent");
            return Err(BackendError::Config(reason));
        }
        let lock_wait = options.statement_timeout.as_secs().max(1);
        let driver = MySqlDriver {
            connections: Connections::new(options, connect, session(lock_wait)),
            statements: Statements::new(&options.table),
            patience: options.patience(),
            max_value: packet.min(MAX_PACKET).saturating_sub(PACKET_OVERHEAD),
            survives,
        };
        match options.max_bytes {
            Some(_) => SqlBackend::counted(driver, options.max_bytes).await,
            None => Ok(SqlBackend::uncounted(driver)),
        }
    }
}

/// Makes the settings of a new connection.
fn session(lock_wait: u64) -> Prepare<MySql> {
    Box::new(move |connection| {
        Box::pin(async move {
            // Statements that stand alone need no more than READ COMMITTED, and lock less by it.
            let session =
                format!("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; SET SESSION innodb_lock_wait_timeout = {lock_wait}");
            sqlx::raw_sql(AssertSqlSafe(session)).execute(connection).await.map(drop)
        })
    })
}

/// Checks options as far as that goes without the database.
pub fn check(options: &DatabaseOptions) -> Result<(), BackendError> {
    connect_options(options).map(drop)
}

fn connect_options(options: &DatabaseOptions) -> Result<MySqlConnectOptions, BackendError> {
    let url = options.check(&["mysql", "mariadb"], &URL_SETTINGS)?;
    let connect = MySqlConnectOptions::from_url(&url).map_err(|error| BackendError::Config(format!("the URL: {error}")))?;
    Ok(connect.disable_statement_logging())
}

/// Makes or migrates the tables, one node at a time.
async fn migrate(connection: &mut MySqlConnection, options: &DatabaseOptions) -> Result<Result<(), BackendError>, sqlx::Error> {
    let (values, schema) = (quoted(&options.table), quoted(&format!("{}_schema", options.table)));
    let busy = || BackendError::Config("another node migrates its tables, and does not come to an end".into());
    let seconds = options.statement_timeout.as_secs().max(1);
    // The lock ends with the connection.
    let lock = sqlx::query_scalar::<_, Option<i64>>("SELECT CAST(GET_LOCK(CONCAT(DATABASE(), '.sira'), ?) AS SIGNED)").bind(seconds);
    if lock.fetch_one(&mut *connection).await? != Some(1) {
        return Ok(Err(busy()));
    }
    let version = match exists(connection, &format!("{}_schema", options.table)).await? {
        true => {
            let read = format!("SELECT CAST(version AS SIGNED) FROM {schema}");
            sqlx::query_scalar::<_, i64>(AssertSqlSafe(read)).fetch_optional(&mut *connection).await?.unwrap_or(0)
        }
        false => {
            if exists(connection, &options.table).await? {
                let reason = format!("the table {} is there, but Sira did not make it; choose another name", options.table);
                return Ok(Err(BackendError::Config(reason)));
            }
            let make = format!("CREATE TABLE {schema} (id INT NOT NULL PRIMARY KEY, version INT NOT NULL) ENGINE = InnoDB");
            sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut *connection).await?;
            0
        }
    };
    let version = match sql::check_version(version, MIGRATIONS.len()) {
        Ok(version) => version,
        Err(newer) => return Ok(Err(newer)),
    };
    for (step, text) in MIGRATIONS.iter().enumerate().skip(version) {
        let text = text.replace(" TABLE (", &format!(" {values} ("));
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *connection).await?;
        let write = format!("REPLACE INTO {schema} VALUES (1, {})", step + 1);
        sqlx::raw_sql(AssertSqlSafe(write)).execute(&mut *connection).await?;
    }
    Ok(Ok(()))
}

async fn exists(connection: &mut MySqlConnection, table: &str) -> Result<bool, sqlx::Error> {
    let query = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?";
    sqlx::query_scalar::<_, i64>(query).bind(table).fetch_one(connection).await.map(|tables| tables > 0)
}

/// The largest packet, and what a commit survives.
async fn promises(connection: &mut MySqlConnection) -> Result<(u64, Survives), sqlx::Error> {
    let read = "SELECT CAST(@@max_allowed_packet AS SIGNED), CAST(@@innodb_flush_log_at_trx_commit AS SIGNED), CAST(@@log_bin AS SIGNED), \
                CAST(@@sync_binlog AS SIGNED), CAST(@@innodb_doublewrite AS CHAR)";
    let (packet, flush, binlog, sync, doublewrite): (i64, i64, i64, i64, String) = sqlx::query_as(read).fetch_one(connection).await?;
    // A start after a crash rolls back what the binary log does not have.
    let logged = flush == 1 && (binlog == 0 || sync == 1);
    // Without it, power loss may leave half a page.
    let whole = !matches!(doublewrite.to_ascii_uppercase().as_str(), "0" | "OFF");
    Ok((packet.unsigned_abs(), if logged && whole { Survives::PowerLoss } else { Survives::ProcessCrash }))
}

/// The alphabet of table names has nothing to escape.
fn quoted(table: &str) -> String {
    format!("`{table}`")
}

fn number(error: &sqlx::Error) -> Option<u16> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

fn meaning(error: &(dyn DatabaseError + 'static)) -> Meaning {
    match error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number) {
        // A full disk, a full table.
        Some(1021 | 1114) => Meaning::Full,
        // A write that failed, for the reason in its text.
        Some(3 | 1026) if error.message().contains("No space left") => Meaning::Full,
        // A damaged index, page or table.
        Some(1034 | 1712 | 1877) => Meaning::Damaged,
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
        let put = format!("INSERT INTO {table} (name, size, value) VALUES (?, ?, ?)");
        Statements {
            overwrite: format!("{put} ON DUPLICATE KEY UPDATE size = VALUES(size), value = VALUES(value)").into(),
            create: put.into(),
            get: format!("SELECT value FROM {table} WHERE name = ?").into(),
            range: format!("SELECT size, SUBSTRING(value, ?, ?) FROM {table} WHERE name = ?").into(),
            delete: format!("DELETE FROM {table} WHERE name = ?").into(),
            len: format!("SELECT size FROM {table} WHERE name = ?").into(),
            list: format!("SELECT name FROM {table} WHERE name >= ? AND name < ? ORDER BY name LIMIT ?").into(),
            count: format!("SELECT COUNT(*), CAST(COALESCE(SUM(size), 0) AS SIGNED) FROM {table}").into(),
        }
    }
}

impl MySqlDriver {
    /// Runs a statement that answers with one row at most.
    async fn row(
        &self,
        statement: &Arc<str>,
        arguments: MySqlArguments,
        moved: impl Fn(&MySqlRow) -> usize,
    ) -> Result<Option<MySqlRow>, sqlx::Error> {
        let mut lent = self.connections.lend().await?;
        let query = sqlx::query_with(AssertSqlSafe(statement.clone()), arguments);
        let result = timed(self.patience, query.fetch_optional(&mut lent.connection)).await;
        let moved = result.as_ref().ok().and_then(Option::as_ref).map_or(0, moved);
        lent.ended(result, moved)
    }

    /// Runs a statement that changes one row at most; says whether it did.
    async fn change(
        &self,
        statement: &Arc<str>,
        arguments: impl Fn() -> Result<MySqlArguments, sqlx::Error>,
        moved: usize,
    ) -> Result<bool, sqlx::Error> {
        let mut tries = 1;
        loop {
            let mut lent = self.connections.lend().await?;
            let query = sqlx::query_with(AssertSqlSafe(statement.clone()), arguments()?);
            let result = timed(self.patience, query.execute(&mut lent.connection)).await;
            match lent.ended(result, moved) {
                Err(error) if number(&error) == Some(1213) && tries < DEADLOCK_TRIES => tries += 1,
                result => return result.map(|done| done.rows_affected() > 0),
            }
        }
    }
}

/// The arguments of a statement about one name.
fn named(name: &str) -> Result<MySqlArguments, sqlx::Error> {
    let mut arguments = MySqlArguments::default();
    arguments.add(name.as_bytes()).map_err(sqlx::Error::Encode)?;
    Ok(arguments)
}

fn put_arguments(name: &str, value: &Payload) -> Result<MySqlArguments, sqlx::Error> {
    let mut arguments = MySqlArguments::default();
    arguments.reserve(3, value.len() as usize + name.len() + 32);
    arguments.add(name.as_bytes()).map_err(sqlx::Error::Encode)?;
    arguments.add(value.len()).map_err(sqlx::Error::Encode)?;
    arguments.add(Pieces(value)).map_err(sqlx::Error::Encode)?;
    Ok(arguments)
}

fn range_arguments(name: &str, range: &Range<u64>) -> Result<MySqlArguments, sqlx::Error> {
    let mut arguments = MySqlArguments::default();
    // What lies behind every value is as far behind the end of this one.
    arguments.add(range.start.min(MAX_PACKET) + 1).map_err(sqlx::Error::Encode)?;
    arguments.add(range.end.saturating_sub(range.start).min(MAX_PACKET)).map_err(sqlx::Error::Encode)?;
    arguments.add(name.as_bytes()).map_err(sqlx::Error::Encode)?;
    Ok(arguments)
}

/// Bytes of a column, for the decision about buffers alone.
fn bytes_of(row: &MySqlRow, column: usize) -> usize {
    row.try_get::<&[u8], _>(column).map_or(0, <[u8]>::len)
}

#[async_trait]
impl Driver for MySqlDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value: self.max_value,
            max_name: name::MAX_NAME,
            ranges: true,
            native_expiry: false,
            shared: true,
            logged_survives: self.survives,
            durable_survives: self.survives,
        }
    }

    async fn put(&self, name: &str, value: Payload, mode: PutMode, _: Durability) -> Result<PutOutcome, BackendError> {
        let statement = if mode == PutMode::Create { &self.statements.create } else { &self.statements.overwrite };
        let result = self.change(statement, || put_arguments(name, &value), value.len() as usize).await;
        match result {
            Ok(_) => Ok(PutOutcome::Written),
            Err(error) if mode == PutMode::Create && error.as_database_error().is_some_and(|error| error.is_unique_violation()) => {
                Ok(PutOutcome::Exists)
            }
            Err(error) => Err(failed("write", name)(error)),
        }
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let failed = || failed("read", name);
        let Some(range) = range else {
            let arguments = named(name).map_err(failed())?;
            let row = self.row(&self.statements.get, arguments, |row| bytes_of(row, 0)).await.map_err(failed())?;
            return row.map(|row| kept(row, 0)).transpose().map_err(failed());
        };
        let arguments = range_arguments(name, &range).map_err(failed())?;
        let row = self.row(&self.statements.range, arguments, |row| bytes_of(row, 1)).await.map_err(failed())?;
        let Some(row) = row else { return Ok(None) };
        let len: u32 = row.try_get(0).map_err(failed())?;
        within(Some(range), len.into())?;
        kept(row, 1).map(Some).map_err(failed())
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.change(&self.statements.delete, || named(name), 0).await.map_err(failed("delete", name))
    }

    async fn len(&self, name: &str) -> Result<Option<u64>, BackendError> {
        let failed = || failed("look for", name);
        let arguments = named(name).map_err(failed())?;
        let row = self.row(&self.statements.len, arguments, |_| 0).await.map_err(failed())?;
        row.map(|row| row.try_get::<u32, _>(0).map(u64::from)).transpose().map_err(failed())
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
        // As long as it takes: it is asked for once, and reads every row, though no value.
        let count = async {
            let mut lent = self.connections.lend().await?;
            let query = sqlx::query_as(AssertSqlSafe(self.statements.count.clone()));
            let result = query.fetch_one(&mut lent.connection).await;
            let (values, bytes): (i64, i64) = lent.ended(result, 0)?;
            Ok::<_, sqlx::Error>((values.unsigned_abs(), bytes.unsigned_abs()))
        };
        count.await.map_err(failed("count", "values"))
    }

    async fn health(&self) -> Result<HealthStatus, BackendError> {
        let writable = async {
            let mut lent = self.connections.lend().await?;
            let query = sqlx::query_scalar::<_, String>("SELECT CAST(@@global.read_only AS CHAR)");
            let result = timed(self.patience, query.fetch_one(&mut lent.connection)).await;
            lent.ended(result, 0)
        };
        Ok(match timed(sql::HEALTH_WAIT, writable).await {
            Ok(off) if matches!(off.as_str(), "0" | "OFF") => HealthStatus::Healthy,
            Ok(_) => HealthStatus::Degraded("the database is read-only, as a replica is".into()),
            Err(error) => HealthStatus::Unhealthy(error.to_string()),
        })
    }
}
