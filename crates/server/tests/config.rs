//! The configuration: the seed's example, the sample of the documentation, precedence, and every way to be wrong.

#![allow(clippy::unwrap_used, clippy::panic)] // clippy.toml allows them within #[test] functions, not in their helpers

use std::path::Path;
use std::time::Duration;

use sira::config::{
    AdminListen, Backend, Choice, Choose, Config, ConfigError, Database, Flags, ObjectPlace, RocksCompression, SecretUrl, Sources,
};
use sira_backend::guard::GuardOptions;
use sira_wire::Consistency;
use sira_wire::namespace::{Mode, Tiers};

const SEED: &str = include_str!("seed.toml");
const SAMPLE: &str = include_str!("../../../docs/sira.example.toml");
const GIB: u64 = 1 << 30;

fn load(text: &str) -> Result<Config, ConfigError> {
    load_with(text, &[])
}

fn load_with(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(&Sources {
        file: Some(("sira.toml", text)),
        environment: environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        machine_memory: Some(8 * GIB),
        ..Sources::default()
    })
}

/// The lines of what is wrong with a text; panics if nothing is.
fn wrong(text: &str) -> Vec<String> {
    load(text).unwrap_err().lines().collect()
}

/// Asserts that each expectation is one line of the errors, by its place and a part of what it says, and that there are no more.
fn assert_lines(lines: &[String], expected: &[(&str, &str)]) {
    let shown = lines.join("\n");
    for (place, part) in expected {
        let hit = lines.iter().any(|line| line.starts_with(&format!("{place}: ")) && line.contains(part));
        assert!(hit, "no line {place} with {part:?} in:\n{shown}");
    }
    assert_eq!(lines.len(), expected.len(), "{shown}");
}

#[test]
fn the_seeds_example_is_refused_by_name_and_line_where_it_asks_for_what_is_not_built() {
    let expected = [
        ("sira.toml:33", "encryption at rest is not part of this version"),
        ("sira.toml:39", "`storage.monitoring.alert_on_high_latency` is not part of this version"),
        ("sira.toml:40", "`storage.monitoring.alert_on_storage_full` is not part of this version"),
    ];
    assert_lines(&wrong(SEED), &expected);
}

/// The seed's example without what the errors above name, and nothing else changed.
fn seed_changed() -> String {
    SEED.replace("enabled = true", "enabled = false")
        .replace("alert_on_high_latency = true", "alert_on_high_latency = false")
        .replace("alert_on_storage_full = true", "alert_on_storage_full = false")
}

#[test]
fn the_seeds_example_loads_when_changed_only_there() {
    let config = load(&seed_changed()).unwrap();
    let storage = &config.storage;
    assert_eq!((storage.default_backend.as_str(), storage.record_backend.as_str()), ("redis", "redis"));
    let redis = Backend::Redis {
        url: SecretUrl::new("redis://localhost:6379"),
        prefix: "sira".into(),
        cluster: false,
        connections: 10,
        guard: GuardOptions::default(),
    };
    assert_eq!(storage.backends["redis"], redis);
    assert!(storage.enable_caching);
    assert_eq!(storage.codec, "zstd:3".parse().unwrap());
    assert_eq!(storage.metrics_interval, Some(Duration::from_secs(60)));
    // Memory takes part only where it is asked to.
    assert_eq!(
        storage.routing.last,
        Some(Choice { backends: ["postgres", "redis", "rocksdb"].map(String::from).to_vec(), choose: Choose::Fastest })
    );
    assert_eq!(storage.routing.rebalance_interval, Duration::from_secs(300));
    assert_eq!(storage.consistency, Consistency::Eventual);
    assert_eq!(storage.backends.keys().collect::<Vec<_>>(), ["memory", "postgres", "redis", "rocksdb"]);
    let postgres = Database {
        url: SecretUrl::new("postgres://user:pass@localhost/sira"),
        table: "storage_items".into(),
        max_size: None,
        max_connections: 20,
        statement_timeout: Duration::from_secs(30),
        guard: GuardOptions::default(),
    };
    assert_eq!(storage.backends["postgres"], Backend::Postgres(postgres));
    assert_eq!(storage.backends["memory"], Backend::Memory { max_size: GIB });
    let rocksdb = Backend::RocksDb {
        path: "./data/rocksdb".into(),
        max_size: None,
        compression: RocksCompression::Lz4,
        cache_size: 512 << 20,
        write_buffer_size: 64 << 20,
    };
    assert_eq!(storage.backends["rocksdb"], rocksdb);
    assert_eq!(config.memory.limit, 4 * GIB);
}

#[test]
fn namespaces_are_read_and_held_against_the_backends() {
    let config = load(
        "[namespaces.kv]\nmode = \"cache\"\nttl = \"1h\"\nlimits = { memory = \"1 GiB\", object = 1000 }\n[namespaces.\"a b\"]\nread_only = true\ncodecs = { rocksdb = \"zstd:3\" }",
    )
    .unwrap();
    let kv = &config.namespaces["kv"];
    assert_eq!((kv.mode, kv.ttl, kv.limits["memory"], kv.limits["object"]), (Mode::Cache, Some(3600), GIB, 1000));
    assert!(config.namespaces["a b"].read_only && config.namespaces["a b"].codecs["rocksdb"] == "zstd");
    assert_eq!(load(&config.to_string()).unwrap(), config);
    let unknown = "[storage]\ndefault_backend = \"disk\"\n[storage.backends.disk]\npath = \"d\"";
    assert_lines(
        &wrong(unknown),
        &[("sira.toml:2", "names backend `disk`, whose kind is not known"), ("sira.toml:3", "needs a `kind`: one of `memory`")],
    );
    let exact = "[namespaces.x]\nexact = true\ncodecs = { object = \"int8\" }";
    assert_lines(&wrong(exact), &[("sira.toml:3", "int8 is lossy, and the namespace is to be exact")]);
    let text = "[namespaces.\"a/b\"]\n[namespaces.x]\nmode = \"cash\"\nlimit = 5\nlimits = { objekt = 5, memory = \"much\" }\ncodecs = { memory = \"none\", object = \"zst\" }";
    let expected = [
        ("sira.toml:1", "is no namespace"),
        ("sira.toml:3", "one of `store`, `cache`"),
        ("sira.toml:4", "unknown key `limit`"),
        ("sira.toml:5", "did you mean `object`?"),
        ("sira.toml:5", "must be a size"),
        ("sira.toml:6", "`namespaces.x.codecs.memory`: there is no such tier"),
        ("sira.toml:6", "`namespaces.x.codecs.object`"),
    ];
    assert_lines(&wrong(text), &expected);
}

#[test]
fn routing_is_read_whole_and_reads_back() {
    let text = "\
[storage.routing]
strategy = \"cost\"
backends = [\"object\", \"rocksdb\"]
rebalance_interval = \"1m\"
health_check_interval = \"2s\"
recovery_delay = \"5s\"
expected_life = \"7d\"
costs.object = { puts = 5, gets = 0.4, gib_month = 0.023 }
costs.rocksdb = { gib_month = 0.1 }
[[storage.routing.rules]]
pattern = \"kv/*\"
min_size = \"1 MiB\"
dtypes = [\"BF16\", \"float16\"]
axes = [\"token\", \"head\"]
kv_model = \"meta-llama/*\"
backends = [\"rocksdb\", \"object\"]
choose = \"fastest\"
";
    let config = load(text).unwrap();
    let routing = &config.storage.routing;
    assert_eq!((routing.last.as_ref().unwrap().choose, routing.expected_life), (Choose::Cheapest, Duration::from_secs(7 * 86_400)));
    assert_eq!((routing.costs["object"].gets, routing.costs["rocksdb"].puts, routing.costs["rocksdb"].gib_month), (0.4, 0.0, 0.1));
    assert_eq!((routing.health_check_interval, routing.recovery_delay), (Duration::from_secs(2), Duration::from_secs(5)));
    let rule = &routing.rules[0];
    assert_eq!(rule.dtypes.iter().map(|dtype| dtype.name()).collect::<Vec<_>>(), ["bfloat16", "float16"]);
    assert_eq!(
        (rule.axes.len(), rule.choice.choose, rule.choice.backends.as_slice()),
        (2, Choose::Fastest, &["rocksdb".into(), "object".into()][..])
    );
    let shown = config.to_string();
    assert_eq!(load(&shown).unwrap_or_else(|error| panic!("{error}\n{shown}")), config, "{shown}");
    // In the environment, too.
    let environment = [("SIRA_STORAGE__ROUTING__STRATEGY", "performance"), ("SIRA_STORAGE__ROUTING__BACKENDS", "['object']")];
    assert_eq!(load_with("", &environment).unwrap().storage.routing.last.unwrap().backends, ["object"]);
    assert_eq!(load_with("", &[("SIRA_STORAGE__ROUTING__COSTS__OBJECT__GETS", "0.5")]).unwrap().storage.routing.costs["object"].gets, 0.5);
}

#[test]
fn tiers_and_copies_are_read_and_held_against_the_backends() {
    let text = "[storage]\ncache_ttl_default = \"5m\"\n[storage.tiers]\nwarm = \"rocksdb\"\ncold = \"object\"\nhigh_watermark = 95\npromote_after = 0\nmove_rate = \"1 GiB\"\n\
                [namespaces.a]\ntiers = { warm = \"object\", cold = \"rocksdb\" }\n[namespaces.b]\ncopies = [\"rocksdb\", \"object\"]";
    let config = load(text).unwrap();
    let tiers = &config.storage.tiers;
    assert_eq!(tiers.tiers, Some(Tiers { warm: "rocksdb".into(), cold: "object".into() }));
    assert_eq!((tiers.high_watermark, tiers.low_watermark, tiers.promote_after, tiers.move_rate), (95, 85, 0, GIB));
    assert_eq!(config.storage.cache_ttl, Some(Duration::from_secs(300)));
    assert_eq!(config.namespaces["a"].tiers.as_ref().unwrap().warm, "object");
    assert_eq!(config.namespaces["b"].copies, ["rocksdb", "object"]);
    assert_eq!(load(&config.to_string()).unwrap(), config);
    let defaults = load("").unwrap().storage.tiers;
    assert_eq!((defaults.tiers, defaults.high_watermark, defaults.low_watermark, defaults.promote_after), (None, 90, 80, 2));
    let text = "[storage.tiers]\nwarm = \"rocksdb\"\ncold = \"objekt\"\nhigh_watermark = 50\nlow_watermark = 60\npromote_after = -1\n\
                [namespaces.x]\ntiers = { warm = \"rocksdb\" }\n[namespaces.y]\ncopies = [\"rocksdb\"]\n[namespaces.z]\ncopies = [\"rocksdb\", \"bucket\"]\n\
                [namespaces.w]\ntiers = { warm = \"object\", cold = \"object\" }";
    let expected = [
        ("sira.toml:3", "did you mean `object`?"),
        ("sira.toml:5", "is above"),
        ("sira.toml:6", "from 0 to 1000000"),
        ("sira.toml:8", "`namespaces.x.tiers.warm` and `namespaces.x.tiers.cold` go together"),
        ("sira.toml:9", "copies: two to 8 backends"),
        ("sira.toml:12", "`namespaces.z.copies` names no backend: `bucket`"),
        ("sira.toml:14", "must be two backends"),
    ];
    assert_lines(&wrong(text), &expected);
}

#[test]
fn without_anything_the_defaults_work() {
    let config = Config::load(&Sources { machine_memory: Some(3 * GIB), ..Sources::default() }).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:9095");
    assert_eq!(config.server.data_dir, Path::new("./data"));
    assert_eq!(config.memory.limit, 3 * GIB / 2);
    assert_eq!(config.storage.default_backend, "rocksdb");
    assert_eq!(config.storage.backends["rocksdb"].folder(), Some(Path::new("./data/rocksdb")));
    assert_eq!(config.storage.backends["object"].folder(), Some(Path::new("./data/object")));
    let [rule] = &config.storage.routing.rules[..] else { panic!("{:?}", config.storage.routing) };
    assert_eq!((rule.min_size, rule.choice.backends.concat().as_str()), (Some(8 << 20), "object"));
    // A file that says nothing of backends keeps the built-in ones.
    assert_eq!(load("[storage]\ndefault_backend = \"object\"").unwrap().storage.backends, config_of_8_gib().storage.backends);
}

fn config_of_8_gib() -> Config {
    load("").unwrap()
}

#[test]
fn the_sample_loads_and_what_is_shown_reads_back_as_the_same() {
    let sample = load(SAMPLE).unwrap();
    let url = ObjectPlace::Url("s3://tensors/sira".into());
    assert!(matches!(&sample.storage.backends["bucket"], Backend::Object { place, options, .. } if *place == url && options.len() == 3));
    assert!(sample.storage.routing.rules[0].pattern.as_ref().unwrap().compile_matcher().is_match("scratch/a/b"));
    for config in [sample, load(&seed_changed()).unwrap(), config_of_8_gib()] {
        let shown = config.to_string();
        // All but a password.
        let whole = shown.replace("user:***@", "user:pass@");
        assert_eq!(load(&whole).unwrap_or_else(|error| panic!("{error}\n{shown}")), config, "{shown}");
    }
}

#[test]
fn a_password_is_not_shown() {
    let text = "[storage.backends.redis]\nurl = \"redis://me:geheim@localhost:1,redis://me:geheim@localhost:2\"\ncluster = true\nguard = { timeout = \"2s\" }";
    let config = load(text).unwrap();
    let shown = format!("{config} {config:?}");
    assert!(!shown.contains("geheim") && shown.contains("redis://me:***@localhost:1,redis://me:***@localhost:2"), "{shown}");
    let Backend::Redis { url, guard, .. } = &config.storage.backends["redis"] else { panic!("{shown}") };
    assert!(url.expose().contains("geheim"));
    assert_eq!(*guard, GuardOptions { timeout: Duration::from_secs(2), ..GuardOptions::default() });
    let config = load("[storage.backends.postgres]\nurl = \"postgres://me:geheim@localhost/db\"").unwrap();
    let shown = format!("{config} {config:?}");
    assert!(!shown.contains("geheim") && shown.contains("postgres://me:***@localhost/db"), "{shown}");
    // A wrong URL is not shown either.
    let lines = wrong("[storage.backends.postgres]\nurl = \"postgres://me:geheim@localhost/db?password=geheim\"").join(" ");
    assert!(!lines.contains("geheim"), "{lines}");
    let lines = wrong("[storage.backends.redis]\nurl = \"http://me:geheim@localhost\"").join(" ");
    assert!(!lines.contains("geheim"), "{lines}");
}

#[test]
fn the_environment_is_over_the_file_and_flags_are_over_both() {
    let text = "[server]\nlisten = \"127.0.0.1:1\"\ndata_dir = \"a\"\n[memory]\nlimit = 1_000_000_000";
    let environment = [
        ("SIRA_SERVER__LISTEN", "127.0.0.1:2"),
        ("SIRA_SERVER__DATA_DIR", "b"),
        ("SIRA_MEMORY__LIMIT", "512MiB"),
        ("SIRA_STORAGE__ENABLE_CACHING", "false"),
        ("SIRA_STORAGE__COMPRESSION__LEVEL", "9"),
        ("SIRA_STORAGE__BACKENDS__OBJECT__URL", "s3://bucket"),
        ("SIRA_STORAGE__ROUTING__RULES", "[{ pattern = 'cache:*', backend = 'rocksdb' }]"),
        ("SIRA_URL", "grpc://elsewhere"),
        ("SIRA_LOG", "debug"),
        ("OTHER__THING", "1"),
    ];
    let sources = Sources {
        file: Some(("sira.toml", text)),
        environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        flags: Flags { listen: Some("localhost:3".into()), admin: Some("off".into()), ..Flags::default() },
        machine_memory: None,
    };
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:3");
    assert_eq!(config.admin.listen, AdminListen::Off);
    assert_eq!(config.server.data_dir, Path::new("b"));
    assert_eq!(config.memory.limit, 512 << 20);
    assert!(!config.storage.enable_caching);
    assert_eq!(config.storage.codec.to_string(), "planes+zstd:9");
    assert!(matches!(&config.storage.backends["object"], Backend::Object { place: ObjectPlace::Url(_), .. }));
    assert_eq!(config.storage.backends["rocksdb"].folder(), Some(Path::new("b/rocksdb")));
    let [rule] = &config.storage.routing.rules[..] else { panic!("{:?}", config.storage.routing) };
    let glob = rule.pattern.as_ref().unwrap().compile_matcher();
    assert!(glob.is_match("cache:ns/a/b") && !glob.is_match("data:ns/a"));
}

#[test]
fn the_admin_port_follows_the_servers_unless_it_is_chosen() {
    let admin = |text: &str| {
        let config = load(text).unwrap();
        assert_eq!(load(&config.to_string()).unwrap(), config, "it reads back as the same");
        (config.admin.listen, config.admin.listen.address(config.server.listen).map(|address| address.to_string()))
    };
    let beside = |address: &str| (AdminListen::Beside, Some(address.to_owned()));
    assert_eq!(admin(""), beside("127.0.0.1:9096"));
    assert_eq!(admin("[server]\nlisten = \"[::1]:7000\""), beside("127.0.0.1:7001"));
    assert_eq!(admin("[server]\nlisten = \"127.0.0.1:0\""), beside("127.0.0.1:0"));
    assert_eq!(admin("[server]\nlisten = \"127.0.0.1:65535\"").1, None);
    let (listen, address) = admin("[admin]\nlisten = \"localhost:1\"");
    assert_eq!((listen, address.as_deref()), (AdminListen::At("127.0.0.1:1".parse().unwrap()), Some("127.0.0.1:1")));
    assert_eq!(admin("[admin]\nlisten = \"off\""), (AdminListen::Off, None));
}

/// The paths of all values in a TOML table.
fn leaves(table: &toml::Table, prefix: &[&str]) -> Vec<Vec<String>> {
    let leaf = |(key, value): (&String, &toml::Value)| {
        let path = [prefix, &[key.as_str()]].concat();
        match value {
            toml::Value::Table(inner) if key != "options" => leaves(inner, &path),
            _ => vec![path.into_iter().map(str::to_owned).collect()],
        }
    };
    table.iter().flat_map(leaf).collect()
}

#[test]
fn variables_with_one_underscore_where_two_belong_are_refused() {
    let settings = leaves(&SAMPLE.parse().unwrap(), &[]);
    assert!(settings.len() > 30, "{settings:?}");
    for path in settings {
        let (given, meant) = (path.join("_").to_ascii_uppercase(), path.join("__").to_ascii_uppercase());
        let (given, meant) = (format!("SIRA_{given}"), format!("did you mean SIRA_{meant}?"));
        let lines: Vec<String> = load_with("", &[(given.as_str(), "1")]).unwrap_err().lines().collect();
        assert_lines(&lines, &[(given.as_str(), meant.as_str())]);
    }
    let others = [("SIRA_URL", "x"), ("SIRA_BIN", "x"), ("SIRA_MEMORY", "x"), ("SIRA_STORAGE_BACKENDS", "x"), ("MEMORY_LIMIT", "x")];
    assert_eq!(load_with("", &others).unwrap(), config_of_8_gib());
}

#[test]
fn wrong_variables_and_flags_are_named() {
    let lines = |environment: &[(&str, &str)]| load_with("", environment).unwrap_err().lines().collect::<Vec<_>>();
    assert_lines(&lines(&[("SIRA_MEMORY__LIMT", "1GiB")]), &[("SIRA_MEMORY__LIMT", "did you mean `limit`?")]);
    assert_lines(&lines(&[("SIRA_MEMORY__LIMIT", "lots")]), &[("SIRA_MEMORY__LIMIT", "must be a size")]);
    assert_lines(&lines(&[("SIRA_STORAGE__ENABLE_CACHING", "yes")]), &[("SIRA_STORAGE__ENABLE_CACHING", "true or false")]);
    assert_lines(&lines(&[("SIRA_STORAGE__ROUTING__RULES", "[{")]), &[("SIRA_STORAGE__ROUTING__RULES", "not TOML")]);
    let flags = Flags { listen: Some("0.0.0.0:9095".into()), ..Flags::default() };
    let error = Config::load(&Sources { flags, ..Sources::default() }).unwrap_err();
    assert_lines(&error.lines().collect::<Vec<_>>(), &[("--listen", "not a loopback address")]);
}

#[test]
fn beyond_loopback_both_tls_and_a_way_to_know_the_caller_are_needed() {
    const TLS: &str = "[server.tls]\ncert = \"c\"\nkey = \"k\"\n";
    const TOKENS: &str = "[auth]\ntoken_file = \"t\"\n";
    let open = "[server]\nlisten = \"0.0.0.0:9095\"\n";
    let refused = [
        (open.to_owned(), "without TLS, everybody on the way"),
        (format!("{open}{TOKENS}"), "without TLS, everybody on the way"),
        (format!("{open}{TLS}"), "without a token file or a client_ca, everybody"),
        (format!("{open}insecure = false\n"), "to go without all the same: --insecure"),
    ];
    for (text, part) in refused {
        assert_lines(&wrong(&text), &[("sira.toml:2", part)]);
        // Said aloud, it goes; and that it does is known.
        let config = load(&text.replace("insecure = false\n", "").replace(open, &format!("{open}insecure = true\n"))).unwrap();
        assert!(config.server.insecure && config.server.exposure(&config.auth).is_some(), "{text}");
        assert_eq!(load(&config.to_string()).unwrap(), config);
    }
    for text in [format!("{open}{TLS}{TOKENS}"), format!("{open}{TLS}client_ca = \"ca\"\n"), TOKENS.to_owned(), TLS.to_owned()] {
        let config = load(&text).unwrap();
        assert_eq!(config.server.exposure(&config.auth), None, "{text}");
        assert_eq!(load(&config.to_string()).unwrap(), config);
    }
    let flag = |name: &str| Some(name.to_owned());
    let flags = Flags { listen: flag("[::]:1"), tls_cert: flag("c"), tls_key: flag("k"), token_file: flag("t"), ..Flags::default() };
    let config = Config::load(&Sources { flags: flags.clone(), ..Sources::default() }).unwrap();
    assert_eq!(config.server.tls.as_ref().unwrap().key, Path::new("k"));
    assert_eq!(config.auth.token_file.as_deref(), Some(Path::new("t")));
    let flags = Flags { insecure: true, tls_key: None, tls_cert: None, ..flags };
    assert!(Config::load(&Sources { flags, ..Sources::default() }).unwrap().server.insecure);
}

#[test]
fn whatever_is_wrong_is_refused_with_its_line_and_what_would_be_right() {
    let cases: &[(&str, &str, &str)] = &[
        ("[memory]\nlimt = 1", "2", "unknown key `limt` in [memory]; did you mean `limit`? known here: `limit`"),
        ("[memroy]\nlimit = 1", "1", "unknown key `memroy` at the top; did you mean `memory`?"),
        ("[memory]\nlimit = -1", "2", "must be a size"),
        ("[memory]\nlimit = 0", "2", "must be a size"),
        ("[memory]\nlimit = \"2 GiBs\"", "2", "must be a size"),
        (
            "[memory]\nlimit = 1.5",
            "2",
            "must be a size: bytes above 0, or text such as \"512 MiB\" (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB), not a fraction",
        ),
        ("[memory]\nlimit = \"10 MiB\"", "2", "must be left for the rest"),
        ("[server]\ndrain_timeout = \"-5s\"", "2", "must be a duration"),
        ("[server]\nlisten = \"9095\"", "2", "not an address with a port"),
        ("[server]\nlisten = \"192.168.0.1:9095\"", "2", "is not a loopback address: without TLS"),
        ("[server]\nmax_connections = 0", "2", "a whole number from 1"),
        ("[server]\ninsecure = \"yes\"", "2", "must be true or false"),
        ("[server]\nlisten = 9095", "2", "must be a text"),
        ("[admin]\nlisten = \"9096\"", "2", "not an address with a port"),
        ("[admin]\nlisten = \"0.0.0.0:9096\"", "2", "not a loopback address"),
        ("[admin]\nlisten = \"of\"", "2", "\"off\" turns the admin port off"),
        ("[admin]\nport = 1", "2", "unknown key `port` in [admin]; known here: `listen`"),
        ("[server.tls]\ncert = \"x\"", "2", "`server.tls` needs both `cert` and `key`"),
        ("[server.tls]\nclient_ca = \"x\"", "2", "`server.tls` needs both `cert` and `key`"),
        ("[server.tls]\ncertificate = \"x\"", "2", "unknown key `certificate` in [server.tls]"),
        ("[auth]\ntokens = \"x\"", "2", "unknown key `tokens` in [auth]"),
        ("[storage]\nenable_caching = \"yes\"", "2", "must be true or false, not \"yes\""),
        ("[storage]\nconsistency = \"strnog\"", "2", "did you mean `strong`?"),
        ("[storage]\ndefault_backend = \"rocsdb\"", "2", "did you mean `rocksdb`?; configured: `object`, `rocksdb`"),
        ("[storage]\nrecord_backend = \"mysql\"", "2", "names no backend: `mysql`"),
        ("[storage]\nttl_default = \"1500ms\"", "2", "whole seconds"),
        ("[storage]\n\nttl_defualt = 5", "3", "did you mean `ttl_default`?"),
        ("[storage.backends.fast]\nmax_size = 1", "1", "backend `fast` needs a `kind`: one of `memory`, `file`, `rocksdb`, `object`, "),
        ("[storage.backends.fast]\nkind = \"memroy\"", "2", "did you mean `memory`?"),
        ("[storage.backends.fast]\nkind = \"mariadb\"", "2", "write kind = \"mysql\""),
        ("[storage.backends.fast]\nkind = \"postgresql\"", "2", "did you mean `postgres`?"),
        ("[storage.backends.postgres]", "1", "the URL must be such as postgres://user@host/database"),
        ("[storage.backends.postgres]\nurl = \"mysql://h/d\"", "2", "the URL must be such as postgres://user@host/database"),
        ("[storage.backends.mysql]\nurl = \"mysql://h/d?sslmod=x\"", "2", "the URL's setting \"sslmod\" is not one of"),
        ("[storage.backends.mysql]\nurl = \"mysql://h/d\"\ntable_name = \"a b\"", "3", "\"a b\" is no table name"),
        ("[storage.backends.sqlite]\nurl = \"x\"", "2", "unknown key `url`"),
        ("[storage.backends.redis]", "1", "must name a Redis server, such as \"redis://HOST:6379\""),
        ("[storage.backends.redis]\nurl = \"http://x\"", "2", "must name a Redis server"),
        ("[storage.backends.redis]\nurl = \"redis://x,redis://y\"", "2", "write `cluster = true`"),
        ("[storage.backends.redis]\nurl = \"redis://x\"\nprefix = \"a{b}\"", "3", "up to 64 of a-z A-Z 0-9 . _ -"),
        ("[storage.backends.redis]\nurl = \"redis://x\"\nmax_size = 5", "3", "unknown key `max_size`"),
        ("[storage.backends.redis]\nurl = \"redis://x\"\nguard = { timeut = 5 }", "3", "did you mean `timeout`?"),
        ("[storage.backends.object]\nguard = { retries = 5 }", "2", "unknown key `guard`"),
        ("[storage.backends.s3]\nurl = \"s3://x\"", "1", "write kind = \"object\""),
        ("[storage.backends.rocksdb]\ncompresion = \"lz4\"", "2", "did you mean `compression`?"),
        ("[storage.backends.rocksdb]\ncompression = \"brotli\"", "2", "one of `none`, `lz4`, `zstd`"),
        ("[storage.backends.Fast]\nkind = \"file\"", "1", "backend name \"Fast\""),
        ("[storage.backends.object]\nurl = \"ftp://x\"", "2", "must name a bucket"),
        ("[storage.backends.object]\nurl = \"s3://x\"\npath = \"y\"", "2", "write one of the two"),
        (
            "[storage.backends.object]\nurl = \"s3://x\"\n[storage.backends.object.options]\nsecret_access_key = \"x\"",
            "4",
            "credentials come from the environment",
        ),
        (
            "[storage.backends.a]\nkind = \"file\"\npath = \"x\"\n[storage.backends.b]\nkind = \"file\"\npath = \"./x/y\"\n[storage]\ndefault_backend = \"a\"",
            "4",
            "share the folder",
        ),
        ("[storage.backends.file]\npath = \"./data\"", "1", "holds Sira's own files"),
        ("[storage.backends.rocksdb]\n[storage.backends.file]\n[storage]\nttl_default = 1", "3", "`storage.default_backend` is needed"),
        ("[storage.backends]", "1", "names no backend"),
        ("[storage.routing]\nstrategy = \"random\"", "2", "must be one of `rules`, `performance`, `intelligent`, `cost`, `load_balanced`"),
        ("[storage.routing]\nstrategy = \"performence\"", "2", "did you mean `performance`?"),
        ("[storage.routing]\nbackends = [\"object\"]", "2", "needs a `strategy` that chooses among them"),
        ("[storage.routing]\nstrategy = \"cost\"", "2", "what do `object`, `rocksdb` cost? Each needs a [storage.routing.costs.NAME]"),
        ("[storage.routing]\nstrategy = \"performance\"\nbackends = [\"rocksdb\", \"objct\"]", "3", "did you mean `object`?"),
        ("[storage.routing]\nstrategy = \"performance\"\nbackends = [\"rocksdb\", \"rocksdb\"]", "3", "names `rocksdb` twice"),
        ("[storage.routing]\nstrategy = \"performance\"\nbackends = []", "3", "names 0 backends"),
        ("[storage.routing]\nstrategy = \"performance\"\nbackends = \"rocksdb\"", "3", "must be a list of texts"),
        ("[storage.routing]\nrebalance_interval = 0", "2", "must be a duration"),
        ("[storage.routing.costs.rocksdb]\nputs = -1.5", "2", "must be a number from 0"),
        ("[storage.routing.costs.rocksdb]\nputs = nan", "2", "must be a number from 0"),
        ("[storage.routing.costs.rocksdb]\nputs = \"5\"", "2", "must be a number from 0"),
        ("[storage.routing.costs.rocksdb]\nput = 5", "2", "did you mean `puts`?"),
        ("[storage.routing.costs.rocksbd]\nputs = 5", "1", "did you mean `rocksdb`?"),
        (
            "[[storage.routing.rules]]\npattern = \"a*\"\nbackends = [\"object\", \"rocksdb\"]\nchoose = \"cheapest\"",
            "3",
            "what do `object`, `rocksdb` cost?",
        ),
        (
            "[[storage.routing.rules]]\npattern = \"a*\"\nbackends = [\"object\"]\nchoose = \"fast\"",
            "4",
            "one of `first`, `key`, `least_loaded`",
        ),
        ("[[storage.routing.rules]]\npattern = \"a*\"\nbackend = \"object\"\nbackends = [\"object\"]", "4", "write one of the two"),
        ("[[storage.routing.rules]]\npattern = \"a*\"\nbackend = \"object\"\nchoose = \"key\"", "4", "of which there is one"),
        (
            "[[storage.routing.rules]]\ndtypes = [\"bfloat17\"]\nbackend = \"object\"",
            "2",
            "\"bfloat17\" is no element type; there are `bool`",
        ),
        ("[[storage.routing.rules]]\nkv_model = \"a{b\"\nbackend = \"object\"", "2", "`storage.routing.rules[0].kv_model` is not a glob"),
        ("[[storage.routing.rules]]\naxes = [1]\nbackend = \"object\"", "2", "must be a list of texts"),
        ("[storage.routing]\nrules = [{ pattern = \"a{b\", backend = \"object\" }]", "2", "is not a glob"),
        ("[storage.routing]\nrules = [{ pattern = \"a*\" }]", "2", "needs a `backend`"),
        ("[storage.routing]\nrules = [{ backend = \"object\" }]", "2", "needs a `pattern`, a `min_size` or a `max_size`"),
        ("[storage.routing]\n[[storage.routing.rules]]\nmin_size = 9\nmax_size = 8\nbackend = \"object\"", "3", "matches nothing"),
        ("[storage.routing]\nrules = [\n  { pattern = \"a*\", backend = \"objct\" },\n]", "3", "did you mean `object`?"),
        ("[storage.routing]\nrules = \"cache:*\"", "2", "must be a list of sections"),
        ("[storage.routing]\ndefault = \"object\"", "2", "`storage.default_backend`"),
        ("[storage.compression]\ndefault_algorithm = \"zst\"", "2", "unknown codec \"zst\"; known: none, planes"),
        ("[storage.compression]\ndefault_algorithm = \"lz4\"\nlevel = 3", "3", "codec lz4 takes"),
        ("[storage.compression]\ndefault_algorithm = \"zstd:3\"\nlevel = 3", "3", "already has a level"),
        ("[storage.compression]\ndefault_algorithm = \"gzip\"\nlevel = 12", "3", "codec gzip takes"),
        ("[storage.compression]\ndefault_algorithm = \"auto\"\nlevel = 3", "3", "`auto` takes no level"),
        ("[storage.compression]\nlevel = 0", "2", "a whole number from 1 to 22"),
        ("[storage.encryption]\nalgorithm = \"aes256gcm\"", "2", "nothing would be encrypted"),
        ("[storage.encryption]\nenabled = false\nalgorithm = \"rot13\"", "3", "one of `aes256gcm`, `chacha20poly1305`"),
        ("[cluster]\nnodes = 3", "1", "`cluster` is not part of this version"),
        ("[memory]\nlimit = 1\nlimit = 2", "3", "duplicate key"),
        ("[memory\nlimit = 1", "1", ""),
    ];
    for (text, line, part) in cases {
        let lines = wrong(text);
        let hit = lines.iter().any(|found| found.starts_with(&format!("sira.toml:{line}: ")) && found.contains(part));
        assert!(hit, "no line {line} with {part:?} for\n{text}\nin\n{}", lines.join("\n"));
    }
}
