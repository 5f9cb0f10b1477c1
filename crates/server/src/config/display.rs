//! The effective configuration as TOML that reads back as the same.

use std::fmt::{self, Display};

use super::units::{exact_duration, exact_size};
use super::{AdminListen, Backend, Config, ObjectPlace, namespaces, routing};

/// A TOML string.
fn quote(text: impl Display) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn size(bytes: u64) -> String {
    quote(exact_size(bytes))
}

impl Config {
    /// The line of `admin.listen`; a comment where nobody chose, since an address that is written must be free.
    fn admin_listen(&self) -> String {
        match (self.admin.listen, self.admin.listen.address(self.server.listen)) {
            (AdminListen::Beside, Some(address)) => format!("# listen = {}: the default, if that port is free\n", quote(address)),
            (_, Some(address)) => format!("listen = {}\n", quote(address)),
            (AdminListen::Beside, None) => "# listen: no port is left above the server's\n".to_owned(),
            (_, None) => "listen = \"off\"\n".to_owned(),
        }
    }
}

impl Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let duration = |value| quote(exact_duration(value));
        writeln!(f, "[server]")?;
        writeln!(f, "listen = {}", quote(self.server.listen))?;
        if let Some(path) = &self.server.unix_socket {
            writeln!(f, "unix_socket = {}", quote(path.display()))?;
        }
        writeln!(f, "data_dir = {}", quote(self.server.data_dir.display()))?;
        writeln!(f, "drain_timeout = {}", duration(self.server.drain_timeout))?;
        writeln!(f, "max_connections = {}", self.server.max_connections)?;
        writeln!(f, "insecure = {}", self.server.insecure)?;
        if let Some(tls) = &self.server.tls {
            writeln!(f, "\n[server.tls]")?;
            for (name, path) in [("cert", Some(&tls.cert)), ("key", Some(&tls.key)), ("client_ca", tls.client_ca.as_ref())] {
                if let Some(path) = path {
                    writeln!(f, "{name} = {}", quote(path.display()))?;
                }
            }
        }
        if let Some(path) = &self.auth.token_file {
            writeln!(f, "\n[auth]\ntoken_file = {}", quote(path.display()))?;
        }
        write!(f, "\n[admin]\n{}", self.admin_listen())?;
        writeln!(f, "\n[memory]\nlimit = {}", size(self.memory.limit))?;
        let storage = &self.storage;
        writeln!(f, "\n[storage]")?;
        writeln!(f, "default_backend = {}", quote(&storage.default_backend))?;
        writeln!(f, "record_backend = {}", quote(&storage.record_backend))?;
        writeln!(f, "enable_caching = {}", storage.enable_caching)?;
        if let Some(ttl) = storage.cache_ttl {
            writeln!(f, "cache_ttl_default = {}", duration(ttl))?;
        }
        writeln!(f, "consistency = {}", quote(storage.consistency))?;
        if let Some(ttl) = storage.ttl {
            writeln!(f, "ttl_default = {}", duration(ttl))?;
        }
        for (name, backend) in &storage.backends {
            writeln!(f, "\n[storage.backends.{name}]")?;
            backend.fmt(f)?;
        }
        routing::write(f, &storage.routing)?;
        writeln!(f, "\n[storage.compression]\ndefault_algorithm = {}", quote(storage.codec.to_string()))?;
        if let Some(interval) = storage.metrics_interval {
            writeln!(f, "\n[storage.monitoring]\nmetrics_collection_interval = {}", duration(interval))?;
        }
        let maintenance = &storage.maintenance;
        writeln!(f, "\n[storage.maintenance]")?;
        writeln!(f, "scrub_interval = {}", duration(maintenance.scrub_interval))?;
        writeln!(f, "reap_interval = {}", duration(maintenance.reap_interval))?;
        writeln!(f, "tombstone_grace = {}", duration(maintenance.tombstone_grace))?;
        writeln!(f, "orphan_age = {}", duration(maintenance.orphan_age))?;
        let tiers = &storage.tiers;
        writeln!(f, "\n[storage.tiers]")?;
        if let Some(named) = &tiers.tiers {
            writeln!(f, "warm = {}\ncold = {}", quote(&named.warm), quote(&named.cold))?;
        }
        writeln!(f, "high_watermark = {}\nlow_watermark = {}", tiers.high_watermark, tiers.low_watermark)?;
        writeln!(f, "promote_after = {}\nmove_rate = {}", tiers.promote_after, size(tiers.move_rate))?;
        self.namespaces.iter().try_for_each(|(name, policy)| namespaces::write(f, name, policy))
    }
}

impl Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kind = \"{}\"", self.kind())?;
        if let Some(path) = self.folder() {
            writeln!(f, "path = {}", quote(path.display()))?;
        }
        if let Backend::Object { place: ObjectPlace::Url(url), .. } = self {
            writeln!(f, "url = {}", quote(url))?;
        }
        if let Some(bytes) = self.limit() {
            writeln!(f, "max_size = {}", size(bytes))?;
        }
        match self {
            Backend::RocksDb { compression, cache_size, write_buffer_size, .. } => {
                writeln!(f, "compression = \"{}\"\ncache_size = {}", compression.name(), size(*cache_size))?;
                writeln!(f, "write_buffer_size = {}", size(*write_buffer_size))?;
            }
            Backend::Object { options, .. } if !options.is_empty() => {
                let pairs: Vec<String> = options.iter().map(|(key, value)| format!("{} = {}", quote(key), quote(value))).collect();
                writeln!(f, "options = {{ {} }}", pairs.join(", "))?;
            }
            Backend::Redis { url, prefix, cluster, connections, .. } => {
                writeln!(f, "url = {}\nprefix = {}", quote(url), quote(prefix))?;
                writeln!(f, "cluster = {cluster}\nconnection_pool_size = {connections}")?;
            }
            Backend::Postgres(database) | Backend::MySql(database) => {
                writeln!(f, "url = {}\ntable_name = {}", quote(&database.url), quote(&database.table))?;
                writeln!(f, "max_connections = {}", database.max_connections)?;
                writeln!(f, "statement_timeout = {}", quote(exact_duration(database.statement_timeout)))?;
            }
            Backend::Sled { cache_size, .. } => writeln!(f, "cache_size = {}", size(*cache_size))?,
            _ => {}
        }
        let Some(guard) = self.guard() else { return Ok(()) };
        let duration = |value| quote(exact_duration(value));
        writeln!(
            f,
            "guard = {{ timeout = {}, retries = {}, in_flight = {}, break_after = {}, break_for = {} }}",
            duration(guard.timeout),
            guard.retries,
            guard.in_flight,
            guard.break_after,
            duration(guard.break_for)
        )
    }
}
