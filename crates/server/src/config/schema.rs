//! Every section and key there is, and what each may hold.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use sira_codec::{Chain, CodecError, DefaultChain};
use sira_flight::{DEFAULT_CONNECTIONS, TlsFiles};
use sira_store::catalog::RocksKv;
use sira_wire::namespace::Tiers;
use sira_wire::{Consistency, DEFAULT_PORT as PORT};

use super::reader::{Located, Problems, Section, nearest, quoted};
use super::source::{Node, Origin, Problem, Table, Value, section};
use super::units::exact_size;
use super::{Admin, AdminListen, Auth, Backend, Config, Maintenance, Memory, Server, Storage, TierSettings};
use super::{backends, namespaces, routing};

/// What a level is of where no algorithm stands beside it.
const LEVELLED_CODEC: &str = "planes+zstd";
/// Tensors of this size and more go to the built-in object backend.
const BUILT_IN_RULE: u64 = 8 << 20;
/// What must be left of `memory.limit` for the catalog, bodies in flight and codecs.
const WORKING_MEMORY: u64 = (64 << 20) + RocksKv::MEMORY;

/// Every setting that has a fixed name, for [`meant`]; those of backends have the backend's name in them.
const SETTINGS: [&str; 43] = [
    "server.listen",
    "server.unix_socket",
    "server.data_dir",
    "server.drain_timeout",
    "server.max_connections",
    "server.insecure",
    "server.tls.cert",
    "server.tls.key",
    "server.tls.client_ca",
    "auth.token_file",
    "admin.listen",
    "memory.limit",
    "storage.default_backend",
    "storage.record_backend",
    "storage.enable_caching",
    "storage.cache_ttl_default",
    "storage.consistency",
    "storage.ttl_default",
    "storage.routing.strategy",
    "storage.routing.rules",
    "storage.routing.backends",
    "storage.routing.rebalance_interval",
    "storage.routing.health_check_interval",
    "storage.routing.recovery_delay",
    "storage.routing.expected_life",
    "storage.compression.default_algorithm",
    "storage.compression.level",
    "storage.encryption.enabled",
    "storage.encryption.algorithm",
    "storage.encryption.key_rotation_interval",
    "storage.monitoring.metrics_collection_interval",
    "storage.monitoring.alert_on_high_latency",
    "storage.monitoring.alert_on_storage_full",
    "storage.maintenance.scrub_interval",
    "storage.maintenance.reap_interval",
    "storage.maintenance.tombstone_grace",
    "storage.maintenance.orphan_age",
    "storage.tiers.warm",
    "storage.tiers.cold",
    "storage.tiers.high_watermark",
    "storage.tiers.low_watermark",
    "storage.tiers.promote_after",
    "storage.tiers.move_rate",
];

/// The path of the setting that a variable means whose parts have one underscore between them, such as `memory_limit`.
pub(super) fn meant(given: &str) -> Option<String> {
    if let Some(backend) = given.strip_prefix("storage_backends_") {
        let named = |key: &str| backend.strip_suffix(&key.replace('.', "_"))?.strip_suffix('_').filter(|name| !name.is_empty());
        return backends::SETTINGS.into_iter().find_map(|key| Some(format!("storage.backends.{}.{key}", named(key)?)));
    }
    if let Some(backend) = given.strip_prefix("storage_routing_costs_") {
        let named = |key: &str| backend.strip_suffix(key)?.strip_suffix('_').filter(|name| !name.is_empty());
        return routing::COSTS.into_iter().find_map(|key| Some(format!("storage.routing.costs.{}.{key}", named(key)?)));
    }
    if let Some(namespace) = given.strip_prefix("namespaces_") {
        return namespaces::meant(namespace);
    }
    SETTINGS.into_iter().find(|path| path.replace('.', "_") == given).map(str::to_owned)
}

/// The backends of a server that is told none: `rocksdb`, and `object` for large tensors. Laid under the environment, so that one variable
/// can change a part of them.
pub(super) fn add_built_in_backends(tree: &mut Table) {
    let node = |value| Node { origin: Origin::BuiltIn, value };
    let empty = || node(Value::Table(Table::new()));
    let names = Table::from([("rocksdb".to_owned(), empty()), ("object".to_owned(), empty())]);
    let storage = tree.entry("storage".to_owned()).or_insert_with(empty);
    let Value::Table(storage) = &mut storage.value else { return };
    if storage.contains_key("backends") {
        return;
    }
    storage.insert("backends".to_owned(), node(Value::Table(names)));
    storage.entry("default_backend".to_owned()).or_insert_with(|| node(Value::Text("rocksdb".to_owned())));
    let routing = storage.entry("routing".to_owned()).or_insert_with(empty);
    if let Value::Table(routing) = &mut routing.value {
        let rule = Table::from([
            ("min_size".to_owned(), node(Value::Integer(i128::from(BUILT_IN_RULE)))),
            ("backend".to_owned(), node(Value::Text("object".to_owned()))),
        ]);
        routing.entry("rules".to_owned()).or_insert_with(|| node(Value::Array(vec![node(Value::Table(rule))])));
    }
}

/// Turns the merged tree into a configuration, or into everything that is wrong with it.
pub(super) fn read(tree: Table, file: Origin, found: Vec<Problem>, machine_memory: Option<u64>) -> Result<Config, Vec<Problem>> {
    let has_file_backends = section(&tree, &["storage", "backends"]).is_none_or(|names| !names.is_empty());
    let problems = Problems::default();
    let mut root = Section::new("", file, tree, &problems);
    let (server, listen) = read_server(root.section("server"));
    let auth = read_auth(root.section("auth"));
    if let Some(missing) = server.exposure(&auth).filter(|_| !server.insecure) {
        problems.add(
            &listen,
            format!(
                "{} is not a loopback address: {missing}. It needs [server.tls] cert and key (--tls-cert, --tls-key), and [auth] token_file \
                 (--token-file) or [server.tls] client_ca (--tls-client-ca); to go without all the same: --insecure, or `server.insecure = true`",
                server.listen
            ),
        );
    }
    let admin = read_admin(root.section("admin"), server.insecure);
    let memory = read_memory(root.section("memory"), machine_memory);
    let storage = read_storage(root.section("storage"), &server, memory.value.limit, has_file_backends);
    let backends: Vec<&str> = storage.backends.keys().map(String::as_str).collect();
    let namespaces = namespaces::read(root.section("namespaces"), &backends);
    root.refuse("cluster", "one server is one node");
    root.finish();

    let reserved: u64 = storage.backends.values().map(Backend::reserved_memory).fold(0, u64::saturating_add);
    if reserved.saturating_add(WORKING_MEMORY) > memory.value.limit {
        problems.add(
            &memory.origin,
            format!(
                "`memory.limit` is {}, of which memory backends and RocksDB take {}; at least {} must be left for the rest",
                exact_size(memory.value.limit),
                exact_size(reserved),
                exact_size(WORKING_MEMORY)
            ),
        );
    }
    let mut all = found;
    all.extend(problems.into_inner());
    if all.is_empty() { Ok(Config { server, auth, admin, memory: memory.value, storage, namespaces }) } else { Err(all) }
}

/// Also gives the place where `listen` was written.
fn read_server(mut section: Section<'_>) -> (Server, Origin) {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let listen = section.text("listen");
    let origin = listen.as_ref().map_or_else(|| section.origin.clone(), |text| text.origin.clone());
    let listen = listen.map_or(default, |text| {
        parse_listen(&text.value).unwrap_or_else(|message| {
            section.problem(&text.origin, message);
            default
        })
    });
    let unix_socket = section.text("unix_socket").map(|text| PathBuf::from(text.value));
    let data_dir = section.text("data_dir").map_or_else(|| PathBuf::from("./data"), |text| PathBuf::from(text.value));
    let drain_timeout = section.duration("drain_timeout").map_or(Duration::from_secs(30), |duration| duration.value);
    let max_connections = section.integer("max_connections", 1..=1_000_000);
    let max_connections = max_connections.and_then(|number| usize::try_from(number.value).ok()).unwrap_or(DEFAULT_CONNECTIONS);
    let insecure = section.boolean("insecure").is_some_and(|yes| yes.value);
    let tls = read_tls(section.section("tls"));
    section.finish();
    (Server { listen, unix_socket, data_dir, drain_timeout, max_connections, insecure, tls }, origin)
}

fn read_tls(mut section: Section<'_>) -> Option<TlsFiles> {
    let [cert, key, client_ca] = ["cert", "key", "client_ca"].map(|name| section.text(name));
    let given = [&cert, &key, &client_ca].into_iter().flatten().next().map(|text| text.origin.clone());
    if let Some(origin) = given.filter(|_| cert.is_none() || key.is_none()) {
        section.problem(&origin, format!("`{0}` needs both `cert` and `key`, files in PEM (--tls-cert, --tls-key)", section.path));
    }
    section.finish();
    let path = |text: Located<String>| PathBuf::from(text.value);
    Some(TlsFiles { cert: path(cert?), key: path(key?), client_ca: client_ca.map(path) })
}

fn read_auth(mut section: Section<'_>) -> Auth {
    let token_file = section.text("token_file").map(|text| PathBuf::from(text.value));
    section.finish();
    Auth { token_file }
}

fn read_admin(mut section: Section<'_>, insecure: bool) -> Admin {
    let listen = section.text("listen").map_or(AdminListen::Beside, |text| match text.value.as_str() {
        "off" => AdminListen::Off,
        address => {
            let address = parse_listen(address).and_then(|address| match address.ip().is_loopback() || insecure {
                true => Ok(AdminListen::At(address)),
                false => {
                    Err(format!("{address} is not a loopback address, and this port asks for no password: only with `server.insecure`"))
                }
            });
            address.unwrap_or_else(|message| {
                section.problem(&text.origin, format!("{message}; \"off\" turns the admin port off"));
                AdminListen::Off
            })
        }
    });
    section.finish();
    Admin { listen }
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let address = numeric.as_deref().unwrap_or(text).parse();
    address.map_err(|_| format!("{text:?} is not an address with a port, such as \"127.0.0.1:{PORT}\""))
}

fn read_memory(mut section: Section<'_>, machine: Option<u64>) -> Located<Memory> {
    let default = machine.map_or(1 << 30, |bytes| bytes / 2).clamp(256 << 20, 4 << 30);
    let limit = section.size("limit").unwrap_or_else(|| Located { origin: section.origin.clone(), value: default });
    section.finish();
    Located { origin: limit.origin, value: Memory { limit: limit.value } }
}

fn read_storage(mut section: Section<'_>, server: &Server, memory_limit: u64, has_backends: bool) -> Storage {
    let default_backend = section.text("default_backend");
    let record_backend = section.text("record_backend");
    let enable_caching = section.boolean("enable_caching").is_none_or(|yes| yes.value);
    let cache_ttl = section.duration("cache_ttl_default").map(|duration| duration.value);
    let levels = [("strong", Consistency::Strong), ("eventual", Consistency::Eventual), ("weak", Consistency::Weak)];
    let consistency = section.choice("consistency", &levels).map_or(Consistency::default(), |level| level.value);
    let ttl = section.duration("ttl_default").map(|duration| {
        if duration.value.subsec_nanos() > 0 {
            section.problem(&duration.origin, "`storage.ttl_default` must be whole seconds");
        }
        duration.value
    });

    let names = section.section("backends");
    if !has_backends {
        section.problem(&names.origin, "[storage.backends] names no backend; leave it out for the built-in ones");
    }
    let (backends, refused) = backends::read(names, &server.data_dir, memory_limit);
    let known: Vec<&str> = backends.keys().map(String::as_str).collect();
    let check = |place: &Section<'_>, text: &Located<String>, key: &str| {
        if refused.contains(&text.value) {
            place.problem(&text.origin, format!("`{key}` names backend `{}`, whose kind is not known", text.value));
        } else if !backends.contains_key(&text.value) {
            let hint = nearest(&text.value, &known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let known = if known.is_empty() { "none".to_owned() } else { quoted(&known) };
            place.problem(&text.origin, format!("`{key}` names no backend: `{}`{hint}; configured: {known}", text.value));
        }
    };
    let default_backend = match default_backend {
        Some(text) => {
            check(&section, &text, "storage.default_backend");
            text.value
        }
        None if known.len() == 1 => known.concat(),
        None => {
            let message = format!("`storage.default_backend` is needed to choose among {}", quoted(&known));
            if known.len() > 1 {
                section.problem(&section.origin, message);
            }
            String::new()
        }
    };
    let record_backend = record_backend.map_or_else(
        || default_backend.clone(),
        |text| {
            check(&section, &text, "storage.record_backend");
            text.value
        },
    );
    let lasting: Vec<&str> = known.iter().copied().filter(|name| !matches!(backends[*name], Backend::Memory { .. })).collect();
    let routing = routing::read(section.section("routing"), &check, &lasting, &known);
    let codec = read_compression(section.section("compression"));
    read_encryption(section.section("encryption"));
    let metrics_interval = read_monitoring(section.section("monitoring"));
    let maintenance = read_maintenance(section.section("maintenance"));
    let tiers = read_tier_settings(section.section("tiers"), &check);
    section.finish();
    Storage {
        default_backend,
        record_backend,
        enable_caching,
        cache_ttl,
        consistency,
        ttl,
        backends,
        routing,
        codec,
        metrics_interval,
        maintenance,
        tiers,
    }
}

fn read_compression(mut section: Section<'_>) -> DefaultChain {
    let algorithm = section.text("default_algorithm");
    let level = section.integer("level", 1..=22);
    let default = if level.is_some() { LEVELLED_CODEC } else { DefaultChain::AUTO };
    let mut text = algorithm.as_ref().map_or(default, |text| text.value.trim()).to_owned();
    let mut origin = algorithm.map_or_else(|| section.origin.clone(), |text| text.origin);
    if let Some(level) = level {
        if text == DefaultChain::AUTO {
            section.problem(&level.origin, "`auto` takes no level; name an algorithm with it".to_owned());
        } else if text.contains(':') {
            section.problem(&level.origin, format!("`{text}` already has a level; write one of the two"));
        } else {
            text = format!("{text}:{}", level.value);
            origin = level.origin;
        }
    }
    let codec: DefaultChain = text.parse().unwrap_or_else(|error: CodecError| {
        section.problem(&origin, format!("`{}`: {error}", section.path));
        Chain::none().into()
    });
    if !codec.lossless() {
        let message = format!("`{codec}` is lossy: a put or `namespaces.NAME.codecs` may ask for it, nothing else");
        section.problem(&origin, message);
    }
    section.finish();
    codec
}

/// Encryption is refused whenever somebody could believe it is on.
fn read_encryption(mut section: Section<'_>) {
    let enabled = section.boolean("enabled");
    let details = [
        section.choice("algorithm", &[("aes256gcm", ()), ("chacha20poly1305", ())]).map(|found| found.origin),
        section.duration("key_rotation_interval").map(|found| found.origin),
    ];
    let why = "encryption at rest is not part of this version: nothing would be encrypted; set `storage.encryption.enabled = false` to go without";
    match enabled {
        Some(Located { value: true, origin }) => section.problem(&origin, why),
        Some(_) => {}
        None => details.iter().flatten().for_each(|origin| section.problem(origin, why)),
    }
    section.finish();
}

fn read_monitoring(mut section: Section<'_>) -> Option<Duration> {
    let interval = section.duration("metrics_collection_interval").map(|duration| duration.value);
    for alert in ["alert_on_high_latency", "alert_on_storage_full"] {
        section.refuse_if_on(alert, "no alerts are sent yet; `sira stats` and the health action show the state");
    }
    section.finish();
    interval
}

fn read_maintenance(mut section: Section<'_>) -> Maintenance {
    let mut duration = |key, default| section.duration(key).map_or(Duration::from_secs(default), |duration| duration.value);
    let maintenance = Maintenance {
        scrub_interval: duration("scrub_interval", 86_400),
        reap_interval: duration("reap_interval", 60),
        tombstone_grace: duration("tombstone_grace", 3600),
        orphan_age: duration("orphan_age", 86_400),
    };
    section.finish();
    maintenance
}

fn read_tier_settings(mut section: Section<'_>, check: &dyn Fn(&Section<'_>, &Located<String>, &str)) -> TierSettings {
    let tiers = read_tiers(&mut section, &|section, text, key| check(section, text, &format!("storage.tiers.{key}")));
    let high = section.integer("high_watermark", 1..=100);
    let low = section.integer("low_watermark", 1..=100);
    let percent = |number: &Option<Located<i128>>, default| number.as_ref().and_then(|n| u8::try_from(n.value).ok()).unwrap_or(default);
    let high_watermark = percent(&high, 90);
    let low_watermark = percent(&low, high_watermark.saturating_sub(10).max(1));
    if let Some(origin) = low.or(high).map(|number| number.origin).filter(|_| low_watermark > high_watermark) {
        section.problem(&origin, format!("`{0}.low_watermark` is above `{0}.high_watermark`", section.path));
    }
    let promote_after = section.integer("promote_after", 0..=1_000_000);
    let promote_after = promote_after.and_then(|number| u32::try_from(number.value).ok()).unwrap_or(2);
    let move_rate = section.size("move_rate").map_or(100 << 20, |size| size.value);
    section.finish();
    TierSettings { tiers, high_watermark, low_watermark, promote_after, move_rate }
}

/// `warm` and `cold`, which go together.
pub(super) fn read_tiers<'p>(section: &mut Section<'p>, check: &dyn Fn(&Section<'p>, &Located<String>, &str)) -> Option<Tiers> {
    let (warm, cold) = (section.text("warm"), section.text("cold"));
    for (key, text) in [("warm", &warm), ("cold", &cold)] {
        if let Some(text) = text {
            check(section, text, key);
        }
    }
    match (warm, cold) {
        (None, None) => None,
        (Some(warm), Some(cold)) => {
            let tiers = Tiers { warm: warm.value, cold: cold.value };
            if let Err(error) = tiers.check() {
                section.problem(&cold.origin, format!("`{}`: {}", section.path, error.message));
            }
            Some(tiers)
        }
        (Some(one), None) | (None, Some(one)) => {
            section.problem(&one.origin, format!("`{0}.warm` and `{0}.cold` go together", section.path));
            None
        }
    }
}

/// Names of refused backends, so that what refers to them is told the same.
pub(super) type Refused = BTreeSet<String>;
