//! Redis, and what speaks like it: values in another machine's memory, shared between nodes, a round trip away.
//!
//! ```text
//! {PREFIX:SHARD}/v/NAME    a value: a string
//! {PREFIX:SHARD}/names     the names of this shard: a sorted set with one score for all, which Redis keeps in the order of bytes
//! {PREFIX:SHARD}/t/ID      in a cluster: marks a try of a create, for some minutes
//! {PREFIX:00}/format       what wrote this, and into how many shards
//! ```
//!
//! A value and its name are written, and deleted, in one transaction (`MULTI`), so that a listing misses nothing. The braces put both into one
//! hash slot. A cluster has 64 shards, to spread over its nodes; a single server has one. A name whose value expired by itself is left out of listings, and
//! dropped from the set by the first one that meets it.
//!
//! There is no script around values: a transaction stores the buffer that came from the network, where a script would copy it.
//!
//! What an acknowledged write survives is what the server's own settings keep, as found when the backend is opened: nothing without an append-only file,
//! power loss only with `appendfsync always` and no replicas, which take over without the last writes. A server that evicts is refused.

mod listing;
mod pool;
mod promise;

use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, ErrorKind, RedisError, RedisResult, RedisWrite, ToRedisArgs, Value};

use self::pool::Pool;
use crate::ledger::{check_size, within};
use crate::{
    BackendError, BatchOperation, BatchResult, Capabilities, HealthStatus, Payload, PutMode, PutOptions, PutOutcome, StorageBackend,
    StorageStats, Survives, batch, name,
};

/// Half of what a server takes. A value is copied into a command on its way, and again into what is sent.
const MAX_VALUE: u64 = 256 << 20;

/// Shards of a cluster.
const CLUSTER_SHARDS: usize = 64;

/// How long a cluster knows which tries of creates it has seen: longer than its client goes on trying.
const MARK_LASTS: Duration = Duration::from_secs(300);

/// Operations of a batch under way at once.
const BATCH: usize = 32;

/// How to open a [`RedisBackend`].
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// What all keys begin with: 1 to 64 bytes of `a-z A-Z 0-9 . _ -`.
    pub prefix: String,
    /// Whether the servers are a cluster.
    pub cluster: bool,
    /// Connections to the server, or to each node of a cluster; calls share them.
    pub connections: usize,
    /// How long connecting may take.
    pub connect_timeout: Duration,
}

impl Default for RedisOptions {
    fn default() -> RedisOptions {
        RedisOptions { prefix: "sira".into(), cluster: false, connections: 4, connect_timeout: Duration::from_secs(5) }
    }
}

/// Values in a Redis server or cluster.
#[derive(Clone)]
pub struct RedisBackend {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    keys: Keys,
    cluster: bool,
    max_value: u64,
    survives: Survives,
}

impl fmt::Debug for RedisBackend {
    /// Without the addresses, which come with a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend").field("keys", &self.inner.keys).field("cluster", &self.inner.cluster).finish_non_exhaustive()
    }
}

impl RedisBackend {
    /// Connects to `redis://[USER][:PASSWORD@]HOST[:PORT][/DATABASE]` (`rediss://` with TLS), or to a cluster by one or more of its nodes, with
    /// commas between. Finds out what the servers can promise, and refuses those that cannot keep values: replicas, and those that evict.
    ///
    /// # Errors
    /// [`BackendError::Config`] for what only a person can mend, [`BackendError::Unavailable`] where no server answers. Neither shows a
    /// password.
    pub async fn open(url: &str, options: RedisOptions) -> Result<RedisBackend, BackendError> {
        let bad = |reason: String| BackendError::Config(format!("cannot open Redis: {reason}"));
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !(1..=64).contains(&options.prefix.len()) || !options.prefix.bytes().all(allowed) {
            return Err(bad(format!("the prefix {:?} is not 1 to 64 of the characters a-z A-Z 0-9 . _ -", options.prefix)));
        }
        let urls: Vec<&str> = url.split(',').map(str::trim).collect();
        if urls.len() > 1 && !options.cluster {
            return Err(bad("several addresses are those of a cluster: write `cluster = true`".into()));
        }
        let pool = Pool::new(&urls, options.cluster, options.connections, options.connect_timeout);
        let pool = pool.map_err(|error| bad(format!("an address is not right: {error}")))?;
        let servers = promise::ask(&pool).await.map_err(not_opened)?;
        promise::check(&servers, options.cluster)?;
        let pool = pool.with_all_nodes().await.map_err(not_opened)?;
        let (survives, why) = promise::weakest(&servers);
        if !why.is_empty() {
            tracing::info!(?survives, why, "what Redis acknowledges does not survive everything");
        }
        let keys = Keys { prefix: options.prefix, shards: if options.cluster { CLUSTER_SHARDS } else { 1 } };
        let max_value = promise::longest(&servers).map_or(MAX_VALUE, |longest| longest.min(MAX_VALUE));
        let inner = Inner { pool, keys, cluster: options.cluster, max_value, survives };
        inner.claim().await?;
        Ok(RedisBackend { inner: Arc::new(inner) })
    }
}

/// Where things lie.
#[derive(Debug)]
struct Keys {
    prefix: String,
    shards: usize,
}

impl Keys {
    /// The shard of a name; part of the format. (FNV-1a.)
    fn shard(&self, name: &str) -> usize {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        (hash % self.shards as u64) as usize
    }

    /// What the values' keys of a shard begin with.
    fn values(&self, shard: usize) -> String {
        format!("{{{}:{shard:02}}}/v/", self.prefix)
    }

    fn value(&self, name: &str) -> String {
        self.values(self.shard(name)) + name
    }

    fn names(&self, shard: usize) -> String {
        format!("{{{}:{shard:02}}}/names", self.prefix)
    }

    /// A mark of one try, in the same slot.
    fn mark(&self, shard: usize, id: u128) -> String {
        format!("{{{}:{shard:02}}}/t/{id:032x}", self.prefix)
    }

    fn format(&self) -> String {
        format!("{{{}:00}}/format", self.prefix)
    }
}

/// A payload as one argument, piece by piece.
struct Pieces<'a>(&'a Payload);

impl ToRedisArgs for Pieces<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.reserve_space_for_args([usize::try_from(self.0.len()).unwrap_or(0)]);
        let mut writer = out.writer_for_next_arg();
        for piece in self.0.pieces() {
            // Into memory: it cannot fail.
            let _ = writer.write_all(piece);
        }
    }
}

/// What an error means, by what the server said.
fn failed(context: &str, error: RedisError) -> BackendError {
    let full = |text: &str| text.contains("OOM") || text.contains("No space left");
    let said = error.clone().into_server_errors();
    if said.is_some_and(|errors| errors.iter().any(|(_, error)| error.code() == "OOM" || error.details().is_some_and(full))) {
        return BackendError::OutOfSpace(format!("{context}: {error}"));
    }
    BackendError::Unavailable { context: context.to_owned(), source: error.into() }
}

/// What an error at the start means: whether waiting may help, or a person must.
fn not_opened(error: RedisError) -> BackendError {
    let refused = ["NOAUTH", "WRONGPASS", "NOPERM"].iter().any(|code| error.code() == Some(code));
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => BackendError::Config(format!("cannot open Redis: {error}")),
        _ if refused => BackendError::Config(format!("cannot open Redis: {error}")),
        _ => failed("cannot open Redis", error),
    }
}

/// A nil, or bytes.
fn value_of(value: Value) -> RedisResult<Option<Bytes>> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes.into())),
        _ => Err((ErrorKind::UnexpectedReturnType, "the server answered with something else than bytes").into()),
    }
}

impl Inner {
    /// Marks the prefix as this backend's, or checks that it is.
    async fn claim(&self) -> Result<(), BackendError> {
        let (key, ours) = (self.keys.format(), format!("sira-values-1 {}", self.keys.shards));
        let claimed: Option<String> = self.pool.command(redis::cmd("SET").arg(&key).arg(&ours).arg("NX")).await.map_err(not_opened)?;
        if claimed.is_some() {
            return Ok(());
        }
        let found = self.pool.command(redis::cmd("GET").arg(&key)).await.and_then(value_of).map_err(not_opened)?;
        match found.as_deref() {
            Some(found) if found == ours.as_bytes() => Ok(()),
            found => {
                let found = found.unwrap_or_default().escape_ascii();
                Err(BackendError::Config(format!(
                    "cannot open Redis: under the prefix {:?} lies the format \"{found}\", not \"{ours}\": another version, or a cluster's and a single server's",
                    self.keys.prefix
                )))
            }
        }
    }

    async fn put(&self, name: &str, value: &Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        let key = self.keys.value(name);
        let mut set = Cmd::with_capacity(6, key.len() + value.len() as usize + 64);
        set.arg("SET").arg(&key).arg(Pieces(value));
        if options.mode == PutMode::Create {
            set.arg("NX");
        }
        if let Some(after) = options.expires_in {
            set.arg("PX").arg(u64::try_from(after.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 2));
        }
        let mut commands = redis::pipe();
        commands.atomic().add_command(set).cmd("ZADD").arg(self.keys.names(self.keys.shard(name))).arg(0).arg(name);
        let failed = |error| failed(&format!("cannot write {name}"), error);
        // A cluster's client repeats by itself what a broken connection lost; a mark, made by the first try, tells.
        let marked = self.cluster && options.mode == PutMode::Create;
        if marked {
            let mark = self.keys.mark(self.keys.shard(name), rand::random());
            commands.cmd("SET").arg(mark).arg(1).arg("NX").arg("PX").arg(MARK_LASTS.as_millis() as u64);
        }
        let mut answers = self.pool.transaction::<Vec<Option<String>>>(&key, &commands).await.map_err(failed)?.into_iter();
        let (set, first) = (answers.next().flatten(), answers.nth(1).flatten());
        match set {
            Some(_) => Ok(PutOutcome::Written),
            None if marked && first.is_none() => {
                let found = self.pool.command(redis::cmd("GET").arg(&key)).await.and_then(value_of).map_err(failed)?;
                let ours = found.is_some_and(|found| value.clone().into_bytes() == found);
                Ok(if ours { PutOutcome::Written } else { PutOutcome::Exists })
            }
            None => Ok(PutOutcome::Exists),
        }
    }

    async fn get(&self, name: &str, range: Range<u64>) -> RedisResult<(bool, u64, Bytes)> {
        let key = self.keys.value(name);
        let mut commands = redis::pipe();
        commands.atomic().cmd("EXISTS").arg(&key).cmd("STRLEN").arg(&key);
        // An empty range cannot be said, and what ends behind the longest value ends behind this one.
        if range.start >= range.end || range.end > MAX_VALUE * 2 {
            let (there, len) = self.pool.transaction(&key, &commands).await?;
            return Ok((there, len, Bytes::new()));
        }
        commands.cmd("GETRANGE").arg(&key).arg(range.start).arg(range.end - 1);
        let (there, len, read): (bool, u64, Value) = self.pool.transaction(&key, &commands).await?;
        Ok((there, len, value_of(read)?.unwrap_or_default()))
    }

    async fn delete(&self, name: &str) -> RedisResult<bool> {
        let key = self.keys.value(name);
        let mut commands = redis::pipe();
        commands.atomic().cmd("DEL").arg(&key).cmd("ZREM").arg(self.keys.names(self.keys.shard(name))).arg(name);
        let (deleted, _): (bool, u64) = self.pool.transaction(&key, &commands).await?;
        Ok(deleted)
    }

    async fn stats(&self) -> RedisResult<StorageStats> {
        let counts = (0..self.keys.shards).map(async |shard| {
            let count: u64 = self.pool.command(redis::cmd("ZCARD").arg(self.keys.names(shard))).await?;
            Ok::<u64, RedisError>(count)
        });
        let values = futures::future::try_join_all(counts).await?.into_iter().sum();
        let servers = promise::info(&self.pool).await?;
        let room: Option<Vec<u64>> = servers.iter().map(promise::Server::room).collect();
        let available_bytes = room.map(|room| room.into_iter().sum());
        Ok(StorageStats { values: Some(values), available_bytes, ..StorageStats::default() })
    }
}

#[async_trait]
impl StorageBackend for RedisBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_value: self.inner.max_value,
            max_name: name::MAX_NAME,
            ranges: true,
            native_expiry: true,
            shared: true,
            logged_survives: self.inner.survives,
            durable_survives: self.inner.survives,
        }
    }

    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError> {
        name::check(name)?;
        check_size(value.len(), self.inner.max_value)?;
        self.inner.put(name, &value, options).await
    }

    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        name::check(name)?;
        let failed = |error| failed(&format!("cannot read {name}"), error);
        let Some(range) = range else {
            let key = self.inner.keys.value(name);
            return self.inner.pool.command(redis::cmd("GET").arg(key)).await.and_then(value_of).map_err(failed);
        };
        let (there, len, read) = self.inner.get(name, range.clone()).await.map_err(failed)?;
        if !there {
            return Ok(None);
        }
        let range = within(Some(range), len)?;
        if read.len() as u64 != range.end - range.start {
            let source = format!("the server gave {} bytes for the range {range:?}", read.len()).into();
            return Err(BackendError::Unavailable { context: format!("cannot read {name}"), source });
        }
        Ok(Some(read))
    }

    async fn delete(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        self.inner.delete(name).await.map_err(|error| failed(&format!("cannot delete {name}"), error))
    }

    async fn exists(&self, name: &str) -> Result<bool, BackendError> {
        name::check(name)?;
        let there = self.inner.pool.command(redis::cmd("EXISTS").arg(self.inner.keys.value(name))).await;
        there.map_err(|error| failed(&format!("cannot look for {name}"), error))
    }

    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError> {
        listing::page(&self.inner.pool, &self.inner.keys, prefix, after, limit)
            .await
            .map_err(|error| failed(&format!("cannot list {prefix}"), error))
    }

    async fn stats(&self) -> Result<StorageStats, BackendError> {
        self.inner.stats().await.map_err(|error| failed("cannot count", error))
    }

    async fn batch(&self, operations: Vec<BatchOperation>) -> Result<Vec<BatchResult>, BackendError> {
        batch::by_waves(self, operations, BATCH).await
    }

    async fn health_check(&self) -> Result<HealthStatus, BackendError> {
        Ok(match promise::ask(&self.inner.pool).await {
            Ok(servers) => promise::trouble(&servers, self.inner.survives).map_or(HealthStatus::Healthy, HealthStatus::Degraded),
            Err(error) => HealthStatus::Unhealthy(error.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_where_they_always_did() {
        let keys = |shards| Keys { prefix: "sira".into(), shards };
        assert_eq!(keys(1).value("r/ns/k"), "{sira:00}/v/r/ns/k");
        let cluster = keys(CLUSTER_SHARDS);
        let shards = ["a", "r/ns/k", "c/00112233/0/17"].map(|name| cluster.shard(name));
        assert_eq!(
            (shards, cluster.names(shards[0]), cluster.format()),
            ([12, 27, 9], "{sira:12}/names".into(), "{sira:00}/format".into())
        );
    }

    #[test]
    fn a_payload_is_one_argument() {
        let value: Payload = ["several ", "pieces"].into_iter().map(Bytes::from).collect();
        let mut command = redis::cmd("SET");
        command.arg("k").arg(Pieces(&value)).arg(Pieces(&Payload::default())).arg("NX");
        let packed = command.get_packed_command();
        assert_eq!(packed, b"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$14\r\nseveral pieces\r\n$0\r\n\r\n$2\r\nNX\r\n");
    }

    #[tokio::test]
    async fn what_cannot_work_is_refused_without_telling_the_password() {
        let options = |prefix: &str| RedisOptions { prefix: prefix.into(), ..RedisOptions::default() };
        for (url, options) in [
            ("redis://:geheim@127.0.0.1:1", options("")),
            ("redis://:geheim@127.0.0.1:1", options("a{b}")),
            ("redis://:geheim@127.0.0.1:1,redis://:geheim@127.0.0.1:2", options("a")),
            ("http://:geheim@127.0.0.1:1", options("a")),
            ("redis://:geheim@127.0.0.1:1/x", options("a")),
        ] {
            let error = RedisBackend::open(url, options).await.unwrap_err();
            assert!(matches!(error, BackendError::Config(_)), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("geheim"), "{error:?}");
        }
        let error = RedisBackend::open("redis://:geheim@127.0.0.1:1", options("a")).await.unwrap_err();
        assert!(matches!(error, BackendError::Unavailable { .. }) && !format!("{error} {error:?}").contains("geheim"), "{error}");
    }
}
