//! Values at the `StorageBackend` trait beside the native client called directly: the same servers, settings, tables, names, durability and
//! number of calls at once. Prints; asserts nothing. Without `--bench`, as `cargo test` runs it, one short round of each.

#![allow(clippy::print_stdout, reason = "its output is the result")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, AsyncConnectionConfig};
use sira_backend::mysql::MySqlBackend;
use sira_backend::postgres::PostgresBackend;
use sira_backend::redis::{RedisBackend, RedisOptions};
use sira_backend::sled::{SledBackend, SledOptions};
use sira_backend::sqlite::SqliteBackend;
use sira_backend::{DatabaseOptions, Durability, PutMode, PutOptions, StorageBackend};
use sira_benches::{Failure, quartiles};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, MySqlConnection, PgConnection, Row, SqliteConnection};

#[path = "../crates/backend/tests/support/servers.rs"]
mod servers;

use servers::{Kind, Server};

const ROUNDS: usize = 9;

/// A connection that is used as its driver's documentation shows.
#[async_trait]
trait Direct: Send {
    async fn put(&mut self, name: &str, value: &[u8]) -> Result<(), Failure>;
    async fn get(&mut self, name: &str) -> Result<Vec<u8>, Failure>;
}

#[async_trait]
impl Direct for PgConnection {
    async fn put(&mut self, name: &str, value: &[u8]) -> Result<(), Failure> {
        let put = "INSERT INTO direct (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value";
        Ok(sqlx::query(put).bind(name.as_bytes()).bind(value).execute(self).await.map(drop)?)
    }

    async fn get(&mut self, name: &str) -> Result<Vec<u8>, Failure> {
        Ok(sqlx::query("SELECT value FROM direct WHERE name = $1").bind(name.as_bytes()).fetch_one(self).await?.try_get(0)?)
    }
}

#[async_trait]
impl Direct for MySqlConnection {
    async fn put(&mut self, name: &str, value: &[u8]) -> Result<(), Failure> {
        let put =
            "INSERT INTO direct (name, size, value) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE size = VALUES(size), value = VALUES(value)";
        Ok(sqlx::query(put).bind(name.as_bytes()).bind(value.len() as u64).bind(value).execute(self).await.map(drop)?)
    }

    async fn get(&mut self, name: &str) -> Result<Vec<u8>, Failure> {
        Ok(sqlx::query("SELECT value FROM direct WHERE name = ?").bind(name.as_bytes()).fetch_one(self).await?.try_get(0)?)
    }
}

#[async_trait]
impl Direct for SqliteConnection {
    async fn put(&mut self, name: &str, value: &[u8]) -> Result<(), Failure> {
        let put = "INSERT INTO items (name, size, value) VALUES (?, ?, ?) \
                   ON CONFLICT (name) DO UPDATE SET size = excluded.size, value = excluded.value";
        Ok(sqlx::query(put).bind(name.as_bytes()).bind(value.len() as i64).bind(value).execute(self).await.map(drop)?)
    }

    async fn get(&mut self, name: &str) -> Result<Vec<u8>, Failure> {
        Ok(sqlx::query("SELECT value FROM items WHERE name = ?").bind(name.as_bytes()).fetch_one(self).await?.try_get(0)?)
    }
}

#[async_trait]
impl Direct for MultiplexedConnection {
    async fn put(&mut self, name: &str, value: &[u8]) -> Result<(), Failure> {
        Ok(self.set(format!("direct/{name}"), value).await?)
    }

    async fn get(&mut self, name: &str) -> Result<Vec<u8>, Failure> {
        let value: Option<Vec<u8>> = AsyncCommands::get(self, format!("direct/{name}")).await?;
        value.ok_or_else(|| "it is gone".into())
    }
}

/// A tree of sled, and its folder.
struct InSled(sled::Db, PathBuf);

#[async_trait]
impl Direct for InSled {
    async fn put(&mut self, name: &str, value: &[u8]) -> Result<(), Failure> {
        tokio::task::block_in_place(|| {
            self.0.insert(name, value)?;
            self.0.flush()?;
            // Without it, sled keeps no large value.
            Ok(rustix::fs::syncfs(std::fs::File::open(&self.1)?)?)
        })
    }

    async fn get(&mut self, name: &str) -> Result<Vec<u8>, Failure> {
        tokio::task::block_in_place(|| Ok(self.0.get(name)?.ok_or("it is gone")?.to_vec()))
    }
}

/// A backend, and as many connections to the same database.
struct Pair {
    backend: Arc<dyn StorageBackend>,
    direct: Vec<Box<dyn Direct>>,
}

/// The backends make both tables, so that they are alike.
async fn in_server(server: &Server, at_once: usize) -> Result<Pair, Failure> {
    let table = DatabaseOptions { table: "direct".into(), ..DatabaseOptions::new(server.url()) };
    let mut direct: Vec<Box<dyn Direct>> = Vec::new();
    let backend: Arc<dyn StorageBackend> = match server.kind() {
        Kind::Postgres => {
            drop(PostgresBackend::open(&table).await?);
            for _ in 0..at_once {
                direct.push(Box::new(PgConnection::connect(server.url()).await?));
            }
            Arc::new(PostgresBackend::open(&DatabaseOptions::new(server.url())).await?)
        }
        Kind::MariaDb => {
            drop(MySqlBackend::open(&table).await?);
            for _ in 0..at_once {
                direct.push(Box::new(MySqlConnection::connect(server.url()).await?));
            }
            Arc::new(MySqlBackend::open(&DatabaseOptions::new(server.url())).await?)
        }
        _ => {
            for _ in 0..at_once {
                // By itself it waits half a second for an answer.
                let config = AsyncConnectionConfig::new().set_response_timeout(None);
                direct.push(Box::new(redis::Client::open(server.url())?.get_multiplexed_async_connection_with_config(&config).await?));
            }
            Arc::new(RedisBackend::open(server.url(), RedisOptions::default()).await?)
        }
    };
    Ok(Pair { backend, direct })
}

async fn in_sqlite(folder: &Path) -> Result<Pair, Failure> {
    drop(SqliteBackend::open(folder.join("direct"), None).await?);
    let options = SqliteConnectOptions::new()
        .filename(folder.join("direct/values.sqlite"))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "4096")
        .pragma("journal_size_limit", (128 << 20).to_string())
        .pragma("cache_size", "-4096");
    let direct: Vec<Box<dyn Direct>> = vec![Box::new(SqliteConnection::connect_with(&options).await?)];
    Ok(Pair { backend: Arc::new(SqliteBackend::open(folder.join("trait"), None).await?), direct })
}

fn in_sled(folder: &Path, at_once: usize) -> Result<Pair, Failure> {
    let options = SledOptions::default();
    let db = sled::Config::new().path(folder.join("direct")).cache_capacity(options.cache_bytes).flush_every_ms(None).open()?;
    let one = || Box::new(InSled(db.clone(), folder.to_owned())) as Box<dyn Direct>;
    let direct = std::iter::repeat_with(one).take(at_once).collect();
    Ok(Pair { backend: Arc::new(SledBackend::open(folder.join("trait"), options)?), direct })
}

fn name(n: usize) -> String {
    format!("chunk/{n:08}")
}

/// Seconds of one round through the trait.
async fn by_trait(backend: &Arc<dyn StorageBackend>, at_once: usize, calls: usize, value: Option<&Bytes>) -> Result<f64, Failure> {
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..at_once {
        let (backend, value) = (backend.clone(), value.cloned());
        tasks.spawn(async move {
            for n in (first..calls).step_by(at_once) {
                match &value {
                    Some(value) => {
                        let options = PutOptions { mode: PutMode::Overwrite, durability: Durability::Durable, expires_in: None };
                        backend.put(&name(n), value.clone().into(), options).await?;
                    }
                    None => drop(std::hint::black_box(backend.get(&name(n), None).await?.ok_or("it is gone")?)),
                }
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Seconds of the same calls of the driver.
async fn directly(direct: &mut Vec<Box<dyn Direct>>, calls: usize, value: Option<&Bytes>) -> Result<f64, Failure> {
    let (at_once, begun) = (direct.len(), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for (first, mut connection) in direct.drain(..).enumerate() {
        let value = value.cloned();
        tasks.spawn(async move {
            for n in (first..calls).step_by(at_once) {
                match &value {
                    Some(value) => connection.put(&name(n), value).await?,
                    None => drop(std::hint::black_box(connection.get(&name(n)).await?)),
                }
            }
            Ok::<_, Failure>(connection)
        });
    }
    while let Some(done) = tasks.join_next().await {
        direct.push(done??);
    }
    Ok(begun.elapsed().as_secs_f64())
}

async fn measure(database: &str, pair: &mut Pair, rounds: usize, size: usize, calls: usize) -> Result<(), Failure> {
    let at_once = pair.direct.len();
    let value = Bytes::from(sira_benches::kv_cache(size)?);
    for (what, value) in [("put", Some(&value)), ("get", None)] {
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            // Each begins every other round: what one leaves to write must not always fall on the same other.
            let (by_trait, directly) = if round % 2 == 0 {
                let by_trait = by_trait(&pair.backend, at_once, calls, value).await?;
                (by_trait, directly(&mut pair.direct, calls, value).await?)
            } else {
                let directly = directly(&mut pair.direct, calls, value).await?;
                (by_trait(&pair.backend, at_once, calls, value).await?, directly)
            };
            if round > 0 {
                ratios.push(directly / by_trait);
                rates.push((calls * size) as f64 / by_trait / 1e6);
            }
        }
        let ((low, middle, high), (_, rate, _)) = (quartiles(ratios), quartiles(rates));
        println!(
            "{database}: {what} of {} KiB, {at_once} at once: {rate:.0} MB/s, {middle:.2} of its client directly (quartiles {low:.2} to {high:.2})",
            size >> 10
        );
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let long = std::env::args().any(|argument| argument == "--bench");
    let (rounds, sizes) =
        if long { (ROUNDS, [(64 << 10, 96), (1 << 20, 24), (16 << 20, 4)]) } else { (1, [(64 << 10, 8), (1 << 20, 4), (16 << 20, 4)]) };
    let at_once = if long { &[1, 4][..] } else { &[4] };
    for kind in [Kind::Postgres, Kind::MariaDb, Kind::Redis] {
        let settings = if kind == Kind::Redis { &["--appendfsync", "always"] } else { kind.settings() };
        let server = Server::with_settings(kind, settings);
        for at_once in at_once {
            let mut pair = in_server(&server, *at_once).await?;
            for (size, calls) in sizes {
                measure(&format!("{kind:?}"), &mut pair, rounds, size, calls).await?;
            }
        }
    }
    let folder = tempfile::tempdir()?;
    for at_once in at_once {
        let mut pair = in_sled(&folder.path().join(format!("sled{at_once}")), *at_once)?;
        for (size, calls) in sizes {
            measure("Sled", &mut pair, rounds, size, calls).await?;
        }
    }
    let mut pair = in_sqlite(folder.path()).await?;
    for (size, calls) in sizes {
        measure("Sqlite", &mut pair, rounds, size, calls).await?;
    }
    Ok(())
}
