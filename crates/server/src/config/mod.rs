//! The configuration: built-in defaults, one TOML file over them, the environment over that, flags over everything.
//!
//! Whatever is wrong is reported at once, each with its place (`sira.toml:12`, `SIRA_MEMORY__LIMIT`, `--listen`) and with what would be
//! right. Options that are known but not built yet are refused aloud, never ignored.

mod backends;
mod databases;
mod display;
mod namespaces;
mod reader;
mod routing;
mod schema;
mod secret;
mod source;
pub mod units;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

pub use databases::Database;
pub use secret::SecretUrl;
use sira_backend::guard::GuardOptions;
use sira_codec::DefaultChain;
use sira_flight::TlsFiles;
use sira_wire::Consistency;
use sira_wire::namespace::{Policy, Tiers};

pub use routing::{Choice, Choose, Routing, Rule};
use source::{Origin, Problem};

/// Everything that the server is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[server]`.
    pub server: Server,
    /// `[auth]`.
    pub auth: Auth,
    /// `[admin]`.
    pub admin: Admin,
    /// `[memory]`.
    pub memory: Memory,
    /// `[storage]`.
    pub storage: Storage,
    /// `[namespaces.NAME]`: what holds for the keys of each.
    pub namespaces: BTreeMap<String, Policy>,
}

/// `[server]`: where and how it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// `listen`: address and port; port 0 takes a free one. Beyond loopback it needs TLS, and a token file or `client_ca`. Default:
    /// `127.0.0.1:9095`.
    pub listen: SocketAddr,
    /// `unix_socket`: path of a Unix socket besides, for the processes of its own user on this machine; `None` is none. Default: `None`.
    pub unix_socket: Option<PathBuf>,
    /// `data_dir`: the folder of the catalog, the lock and of backends without a path of their own. Default: `./data`.
    pub data_dir: PathBuf,
    /// `drain_timeout`: how long running calls may go on after a signal to stop, before they are cut off. Default: 30 s.
    pub drain_timeout: Duration,
    /// `max_connections`: how many may be open at once; beyond it, one without a running call is closed for a new one. Default: 1024.
    pub max_connections: usize,
    /// `insecure`: whether to listen beyond loopback without TLS, or without knowing who calls. Default: no.
    pub insecure: bool,
    /// `[server.tls]`; `None` is plaintext. Default: `None`.
    pub tls: Option<TlsFiles>,
}

impl Server {
    /// What is missing for an address that others can reach; `None` where nothing is, or where nobody else can reach it.
    pub fn exposure(&self, auth: &Auth) -> Option<&'static str> {
        if self.listen.ip().is_loopback() {
            return None;
        }
        match &self.tls {
            None => Some("without TLS, everybody on the way reads and changes what is sent, tokens included"),
            Some(tls) if auth.token_file.is_none() && tls.client_ca.is_none() => {
                Some("without a token file or a client_ca, everybody who reaches it may read, write and delete everything")
            }
            Some(_) => None,
        }
    }
}

/// `[auth]`: who may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    /// `token_file`: the tokens of which every call needs one, one a line; `None` asks for none. Default: `None`.
    pub token_file: Option<PathBuf>,
}

/// `[admin]`: health and metrics over HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// `listen`: where. Loopback only, unless `server.insecure`. Default: [`AdminListen::Beside`].
    pub listen: AdminListen,
}

/// Where the admin port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdminListen {
    /// Nobody chose: on 127.0.0.1, one above the server's port (any free one where that is 0), if nobody else has it.
    #[default]
    Beside,
    /// At this address, or the server does not start.
    At(SocketAddr),
    /// Nowhere: `"off"`.
    Off,
}

impl AdminListen {
    /// The address to try beside a server at `server`; `None` where there is none.
    pub fn address(self, server: SocketAddr) -> Option<SocketAddr> {
        let port = if server.port() == 0 { Some(0) } else { server.port().checked_add(1) };
        match self {
            AdminListen::Beside => port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            AdminListen::At(address) => Some(address),
            AdminListen::Off => None,
        }
    }
}

/// `[memory]`: the ledger that every tensor byte in memory is counted in.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// `limit`: bytes of hot tier, memory backends, RocksDB's cache, bodies in flight and codec buffers together. Default: half of what the
    /// machine or the container has, at most 4 GiB, at least 256 MiB. 96 MiB must be left of it by memory backends and RocksDB.
    pub limit: u64,
}

/// `[storage]`: where tensors go and how they are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// `default_backend`: for what no rule sends elsewhere.
    pub default_backend: String,
    /// `record_backend`: keeps the records, and decides create-if-absent. Default: the default backend.
    pub record_backend: String,
    /// `enable_caching`: whether memory keeps copies of what was written and read. Default: yes.
    pub enable_caching: bool,
    /// `cache_ttl_default`: how long memory keeps what nobody reads; `None` until the room is needed. Default: `None`.
    pub cache_ttl: Option<Duration>,
    /// `consistency`: of puts that do not say. Default: eventual.
    pub consistency: Consistency,
    /// `ttl_default`: expiry of puts that do not say; `None` is never. Default: `None`.
    pub ttl: Option<Duration>,
    /// `[storage.backends.NAME]`, by name; never empty.
    pub backends: BTreeMap<String, Backend>,
    /// `[storage.routing]`.
    pub routing: Routing,
    /// `[storage.compression]`: the codec chain of lower tiers with its level, such as `zstd:9`, or `auto`, by the element type: the default.
    pub codec: DefaultChain,
    /// `[storage.monitoring] metrics_collection_interval`: the period of the log line of statistics; `None` writes none. Default: `None`.
    pub metrics_interval: Option<Duration>,
    /// `[storage.maintenance]`.
    pub maintenance: Maintenance,
    /// `[storage.tiers]`.
    pub tiers: TierSettings,
}

/// `[storage.tiers]`: how tensors move between backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierSettings {
    /// `warm` and `cold`: the backends, for namespaces that name none; `None` moves nothing by itself. Default: `None`.
    pub tiers: Option<Tiers>,
    /// `high_watermark`: percent of a limit at which tensors begin to leave the warm tier. Default: 90.
    pub high_watermark: u8,
    /// `low_watermark`: percent at which that ends. Default: 80.
    pub low_watermark: u8,
    /// `promote_after`: gets from the cold tier after which a tensor moves to the warm one; 0 for never. Default: 2.
    pub promote_after: u32,
    /// `move_rate`: bytes a second of moves that nobody waits for. Default: 100 MiB.
    pub move_rate: u64,
}

/// A backend, by its `kind`.
#[derive(Clone, Debug, PartialEq)]
pub enum Backend {
    /// `memory`: gone with the process.
    Memory {
        /// `max_size`: bytes, part of `memory.limit`. Default: a quarter of it.
        max_size: u64,
    },
    /// `file`: one file a value.
    File {
        /// `path`: its folder. Default: the backend's name in the data folder.
        path: PathBuf,
        /// `max_size`: bytes; `None` is what the disk has. Default: `None`.
        max_size: Option<u64>,
    },
    /// `rocksdb`: one RocksDB.
    RocksDb {
        /// `path`: its folder. Default: the backend's name in the data folder.
        path: PathBuf,
        /// `max_size`: bytes; `None` is what the disk has. Default: `None`.
        max_size: Option<u64>,
        /// `compression`: RocksDB's own, of small values such as records. Default: lz4.
        compression: RocksCompression,
        /// `cache_size`: bytes of the block cache, part of `memory.limit`. Default: an eighth of it, at most 64 MiB.
        cache_size: u64,
        /// `write_buffer_size`: bytes of values that are logged but not yet in the tree, part of `memory.limit`. Default: as `cache_size`.
        write_buffer_size: u64,
    },
    /// `object`: S3, GCS, Azure, or a local folder laid out as one.
    Object {
        /// `url` or `path`. Default: the backend's name in the data folder.
        place: ObjectPlace,
        /// `max_size`: bytes; `None` is no limit. Default: `None`.
        max_size: Option<u64>,
        /// `[storage.backends.NAME.options]`: region, endpoint and so on, by the names of the `object_store` crate.
        options: BTreeMap<String, String>,
        /// Of a bucket. Default: [`OBJECT_GUARD`].
        guard: GuardOptions,
    },
    /// `redis`: a Redis server or cluster.
    Redis {
        /// `url`: `redis://` or `rediss://`; several nodes of a cluster with commas between.
        url: SecretUrl,
        /// `prefix`: what all its keys begin with. Default: `sira`.
        prefix: String,
        /// `cluster`: whether it is a cluster. Default: no.
        cluster: bool,
        /// `connection_pool_size`: connections, each shared by many calls. Default: 4.
        connections: usize,
        /// Default: that of [`GuardOptions`].
        guard: GuardOptions,
    },
    /// `sled`: one sled database.
    Sled {
        /// `path`: its folder. Default: the backend's name in the data folder.
        path: PathBuf,
        /// `max_size`: bytes; `None` is what the disk has. Default: `None`.
        max_size: Option<u64>,
        /// `cache_size`: bytes of the cache of pages, part of `memory.limit`. Default: an eighth of it, at most 64 MiB.
        cache_size: u64,
    },
    /// `postgres`: a table of PostgreSQL.
    Postgres(Database),
    /// `mysql`: a table of MySQL or MariaDB.
    MySql(Database),
    /// `sqlite`: one SQLite file.
    Sqlite {
        /// `path`: its folder. Default: the backend's name in the data folder.
        path: PathBuf,
        /// `max_size`: bytes; `None` is what the disk has. Default: `None`.
        max_size: Option<u64>,
    },
}

/// The guard of object stores. Their library tries again by itself, so a call has time for all its tries.
pub const OBJECT_GUARD: GuardOptions =
    GuardOptions { timeout: Duration::from_secs(90), retries: 0, in_flight: 64, break_after: 10, break_for: Duration::from_secs(1) };

impl Backend {
    /// Its kind, as written.
    pub fn kind(&self) -> &'static str {
        match self {
            Backend::Memory { .. } => "memory",
            Backend::File { .. } => "file",
            Backend::RocksDb { .. } => "rocksdb",
            Backend::Object { .. } => "object",
            Backend::Redis { .. } => "redis",
            Backend::Sled { .. } => "sled",
            Backend::Postgres(_) => "postgres",
            Backend::MySql(_) => "mysql",
            Backend::Sqlite { .. } => "sqlite",
        }
    }

    /// `max_size`: bytes that it may hold, where that is limited.
    pub fn limit(&self) -> Option<u64> {
        match self {
            Backend::Memory { max_size } => Some(*max_size),
            Backend::File { max_size, .. }
            | Backend::RocksDb { max_size, .. }
            | Backend::Object { max_size, .. }
            | Backend::Sled { max_size, .. }
            | Backend::Postgres(Database { max_size, .. })
            | Backend::MySql(Database { max_size, .. })
            | Backend::Sqlite { max_size, .. } => *max_size,
            Backend::Redis { .. } => None,
        }
    }

    /// Its folder on this machine, if it has one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Backend::File { path, .. } | Backend::RocksDb { path, .. } | Backend::Sled { path, .. } | Backend::Sqlite { path, .. } => {
                Some(path)
            }
            Backend::Object { place: ObjectPlace::Folder(path), .. } => Some(path),
            _ => None,
        }
    }

    /// How calls to it are guarded, if it is behind a network.
    pub fn guard(&self) -> Option<GuardOptions> {
        match self {
            Backend::Redis { guard, .. } | Backend::Object { place: ObjectPlace::Url(_), guard, .. } => Some(*guard),
            Backend::Postgres(database) | Backend::MySql(database) => Some(database.guard),
            _ => None,
        }
    }

    /// Bytes of memory it takes for itself out of `memory.limit`.
    pub fn reserved_memory(&self) -> u64 {
        match self {
            Backend::Memory { max_size } => *max_size,
            Backend::RocksDb { cache_size, write_buffer_size, .. } => cache_size.saturating_add(*write_buffer_size),
            Backend::Sled { cache_size, .. } => *cache_size,
            #[cfg(feature = "sqlite")]
            Backend::Sqlite { .. } => sira_backend::sqlite::SqliteBackend::MEMORY,
            _ => 0,
        }
    }
}

/// RocksDB's own compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RocksCompression {
    /// None.
    None,
    /// LZ4.
    #[default]
    Lz4,
    /// Zstandard.
    Zstd,
}

impl RocksCompression {
    /// Its name in configuration.
    pub fn name(self) -> &'static str {
        match self {
            RocksCompression::None => "none",
            RocksCompression::Lz4 => "lz4",
            RocksCompression::Zstd => "zstd",
        }
    }
}

/// Where an object backend's objects lie.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectPlace {
    /// A local folder.
    Folder(PathBuf),
    /// A bucket: `s3://bucket/prefix`, `gs://`, `az://`.
    Url(String),
}

/// `[storage.maintenance]`: what runs in the background.
#[derive(Clone, Debug, PartialEq)]
pub struct Maintenance {
    /// `scrub_interval`: how often every stored chunk is verified, and chunks that no record names are removed. Default: 1 day.
    pub scrub_interval: Duration,
    /// `reap_interval`: how often expired tensors and what deleted ones left are removed. Default: 1 minute.
    pub reap_interval: Duration,
    /// `tombstone_grace`: how long a deleted key is remembered, so that a slow writer cannot raise the dead. Default: 1 hour.
    pub tombstone_grace: Duration,
    /// `orphan_age`: the age at which a chunk that no record names is removed; longer than any put may last. Default: 1 day.
    pub orphan_age: Duration,
}

/// What was given on the command line.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--listen`.
    pub listen: Option<String>,
    /// `--unix-socket`.
    pub unix_socket: Option<String>,
    /// `--data`.
    pub data: Option<String>,
    /// `--admin`.
    pub admin: Option<String>,
    /// `--token-file`.
    pub token_file: Option<String>,
    /// `--tls-cert`.
    pub tls_cert: Option<String>,
    /// `--tls-key`.
    pub tls_key: Option<String>,
    /// `--tls-client-ca`.
    pub tls_client_ca: Option<String>,
    /// `--insecure`.
    pub insecure: bool,
}

impl Flags {
    /// Those that were given: flag, path of the setting, value.
    fn settings(&self) -> impl Iterator<Item = (&'static str, &'static [&'static str], source::Value)> {
        let texts: [(_, &'static [&'static str], _); 8] = [
            ("--listen", &["server", "listen"], &self.listen),
            ("--unix-socket", &["server", "unix_socket"], &self.unix_socket),
            ("--data", &["server", "data_dir"], &self.data),
            ("--admin", &["admin", "listen"], &self.admin),
            ("--token-file", &["auth", "token_file"], &self.token_file),
            ("--tls-cert", &["server", "tls", "cert"], &self.tls_cert),
            ("--tls-key", &["server", "tls", "key"], &self.tls_key),
            ("--tls-client-ca", &["server", "tls", "client_ca"], &self.tls_client_ca),
        ];
        let texts = texts.into_iter().filter_map(|(flag, path, text)| Some((flag, path, source::Value::Text(text.clone()?))));
        let insecure: &'static [&'static str] = &["server", "insecure"];
        texts.chain(self.insecure.then_some(("--insecure", insecure, source::Value::Boolean(true))))
    }
}

/// Where settings are read from.
#[derive(Clone, Debug, Default)]
pub struct Sources<'a> {
    /// Name (for messages) and text of the file.
    pub file: Option<(&'a str, &'a str)>,
    /// Environment variables; only `SIRA_A__B` are read, and `SIRA_A_B` is refused where `SIRA_A__B` is a setting.
    pub environment: Vec<(String, String)>,
    /// Flags.
    pub flags: Flags,
    /// Bytes of memory of the machine or the container, for the default of `memory.limit`.
    pub machine_memory: Option<u64>,
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    fn new(mut problems: Vec<Problem>) -> ConfigError {
        problems.sort();
        problems.dedup();
        ConfigError { problems }
    }

    /// The lines: place, colon, what is wrong and what would be right.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(|problem| format!("{}: {}", problem.origin, problem.message))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the sources, each over the one before.
    pub fn load(sources: &Sources<'_>) -> Result<Config, ConfigError> {
        let mut tree = match sources.file {
            Some((name, text)) => source::parse(name, text).map_err(ConfigError::new)?,
            None => source::Table::new(),
        };
        if source::section(&tree, &["storage", "backends"]).is_none() {
            schema::add_built_in_backends(&mut tree);
        }
        let mut problems = Vec::new();
        source::overlay_environment(&mut tree, sources.environment.iter().cloned(), &mut problems);
        for (flag, path, value) in sources.flags.settings() {
            let node = source::Node { origin: Origin::Flag(flag.into()), value };
            source::set(&mut tree, path, node, &mut problems);
        }
        let file = sources.file.map_or(Origin::BuiltIn, |(name, _)| Origin::File(name.into(), 0));
        schema::read(tree, file, problems, sources.machine_memory).map_err(ConfigError::new)
    }

    /// Reads a file if one is given, this process's environment and the flags.
    pub fn from_process(file: Option<&Path>, flags: Flags) -> Result<Config, ConfigError> {
        let name = file.map(|path| path.display().to_string()).unwrap_or_default();
        let text = file.map(std::fs::read_to_string).transpose().map_err(|error: io::Error| {
            let origin = Origin::File(name.as_str().into(), 0);
            ConfigError::new(vec![Problem { origin, message: format!("cannot be read: {error}") }])
        })?;
        let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Config::load(&Sources {
            file: text.as_deref().map(|text| (name.as_str(), text)),
            environment: environment.collect(),
            flags,
            machine_memory: machine_memory(),
        })
    }
}

/// Bytes that this process may use: the machine's, or the container's where that is less. `None` where the system does not say.
fn machine_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let physical = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)?;
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse::<u64>().ok());
    Some(container.map_or(physical, |limit| limit.min(physical)))
}
