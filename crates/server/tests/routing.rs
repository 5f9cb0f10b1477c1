//! Routing by configuration, through the program: rules of all kinds, failover and return, explanations, and what is counted.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it within #[test] functions, not in their helpers")]

use std::path::Path;
use std::time::{Duration, Instant};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use common::Server;

/// A store of four backends, and a rule for each kind of choice.
const CONFIG: &str = r#"
[memory]
limit = "512 MiB"

[storage]
default_backend = "rocksdb"

[storage.backends.rocksdb]

[storage.backends.object]

[storage.backends.files]
kind = "file"

[storage.backends.scratch]
kind = "memory"
max_size = "64 MiB"

[storage.routing]
strategy = "performance"
backends = ["rocksdb", "files"]
health_check_interval = "100ms"
recovery_delay = "1s"
costs.object = { puts = 5.0, gets = 0.4, gib_month = 0.023 }
costs.files = { gib_month = 0.10 }

[[storage.routing.rules]]
pattern = "scratch/*"
backend = "scratch"

[[storage.routing.rules]]
pattern = "typed/*"
dtypes = ["BF16"]
backend = "files"

[[storage.routing.rules]]
pattern = "typed/*"
axes = ["token"]
backend = "object"

[[storage.routing.rules]]
pattern = "cheap/*"
backends = ["object", "files"]
choose = "cheapest"

[[storage.routing.rules]]
pattern = "spread/*"
backends = ["rocksdb", "files", "object"]
choose = "key"

[[storage.routing.rules]]
pattern = "pair/*"
backends = ["object", "files"]
"#;

/// Bytes that no codec makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn start() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("sira.toml");
        std::fs::write(&config, CONFIG).unwrap();
        let server = Server::start(&folder.path().join("data"), |command| {
            command.arg("--config").arg(&config);
        });
        for (name, dtype, shape) in [("bytes", Dtype::U8, [1, 1 << 20]), ("bf16", Dtype::BF16, [64, 8192])] {
            let bytes = noise(1 << 20);
            let view = TensorView::new(dtype, shape.to_vec(), &bytes).unwrap();
            std::fs::write(folder.path().join(format!("{name}.safetensors")), safetensors::serialize([("a", view)], None).unwrap())
                .unwrap();
        }
        Place { folder, server }
    }

    fn at(&self) -> &Path {
        self.folder.path()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.server.ok(self.at(), arguments)).unwrap()
    }

    /// Puts a file of 1 MiB: where it then lies.
    fn put(&self, file: &str, key: &str, more: &[&str]) -> String {
        self.server.ok(self.at(), &[&["put", file, key], more].concat());
        self.home(key)
    }

    fn home(&self, key: &str) -> String {
        self.json(&["info", key])["backend"].as_str().unwrap().to_owned()
    }

    fn route(&self, key: &str, more: &[&str]) -> Value {
        self.json(&[&["route", key, "--size", "1MiB", "--json"], more].concat())
    }

    /// Asks until a key is routed so, and fails if it never is.
    fn wait(&self, key: &str, backend: &str) {
        let begun = Instant::now();
        while self.route(key, &[])["backend"] != backend {
            let route = self.server.ok(self.at(), &["route", key, "--size", "1MiB"]);
            assert!(begun.elapsed() < Duration::from_secs(60), "{key} never goes to {backend}:\n{route}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn rules_of_all_kinds_place_tensors_as_they_say_beforehand() {
    let place = Place::start();
    // Key, file, what else the put says, what the question says, and the home.
    for (key, file, put, asked, home) in [
        ("scratch/a", "bytes", &[][..], &[][..], "scratch"),
        ("scratch/b", "bytes", &["--consistency", "strong"], &["--consistency", "strong"], "rocksdb|files"),
        ("typed/a", "bf16", &[], &["--dtype", "bfloat16"], "files"),
        ("typed/b", "bytes", &["--axes", "token,dim"], &["--axes", "token,dim"], "object"),
        ("cheap/a", "bytes", &["--ttl", "30d"], &["--ttl", "30d"], "object"),
        ("cheap/b", "bytes", &["--ttl", "1h"], &["--ttl", "1h"], "files"),
        ("pair/a", "bytes", &[], &[], "object"),
        ("else/a", "bytes", &[], &[], "rocksdb|files"),
    ] {
        let route = place.route(key, asked);
        let found = place.put(&format!("{file}.safetensors"), key, put);
        assert_eq!(route["backend"], found.as_str(), "{key}: {route:#}");
        assert!(home.split('|').any(|home| home == found), "{key}: {found}");
        place.server.ok(place.at(), &["get", key, "back.safetensors"]);
    }
    let homes: std::collections::BTreeSet<String> =
        (0..16).map(|i| place.put("bytes.safetensors", &format!("spread/{i}"), &["--if", "absent"])).collect();
    assert_eq!(homes.len(), 3, "each has its share of the keys: {homes:?}");
    let strong = place.server.ok(place.at(), &["route", "scratch/b", "--size", "1MiB", "--consistency", "strong"]);
    let line = |start: &str| strong.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    assert!(line("scratch ").ends_with("fit, but it cannot keep strong"), "{strong}");
    assert!(line("keys scratch/*: scratch").ends_with("scratch may not be chosen"), "{strong}");
    assert!(line("the fastest of rocksdb, files").contains("ms for a put"), "{strong}");
    let wrong = place.server.run(place.at(), &["route", "a/b", "--size", "3", "--dtype", "float32"]);
    assert!(wrong.0 == 1 && wrong.2.contains("3 bytes are no whole number of float32"), "{wrong:?}");
    assert_eq!(place.server.run(place.at(), &["route", "a/b", "--size", "3", "--dtype", "float33"]).0, 2);
}

#[test]
fn a_backend_that_is_unhealthy_is_replaced_until_it_is_well_again() {
    let place = Place::start();
    assert_eq!(place.put("bytes.safetensors", "pair/a", &[]), "object");
    // A file in the place of its folder: nobody reaches what lies there, not even root.
    let (object, away) = (place.at().join("data/object"), place.at().join("data/object.away"));
    std::fs::rename(&object, &away).unwrap();
    std::fs::write(&object, "not a folder").unwrap();
    place.wait("pair/b", "files");
    assert_eq!(place.put("bytes.safetensors", "pair/b", &[]), "files");
    let route = place.route("pair/b", &[]);
    let candidate = route["candidates"].as_array().unwrap().iter().find(|candidate| candidate["backend"] == "object").unwrap();
    assert!(candidate["state"].as_str().unwrap().starts_with("out: ") && candidate["against"] == "it is out", "{route:#}");
    let table = place.server.ok(place.at(), &["stats"]);
    assert!(table.lines().any(|line| line.starts_with("object ") && line.contains(" out ")), "{table}");
    assert!(table.lines().any(|line| line.starts_with("object: out: ")), "{table}");

    std::fs::remove_file(&object).unwrap();
    std::fs::rename(&away, &object).unwrap();
    place.wait("pair/c", "object");
    assert_eq!(place.put("bytes.safetensors", "pair/c", &[]), "object");
    for key in ["pair/a", "pair/b", "pair/c"] {
        place.server.ok(place.at(), &["get", key, "back.safetensors"]);
    }
}

#[test]
fn a_backend_whose_writes_fail_is_replaced_though_it_says_that_it_is_well() {
    let place = Place::start();
    assert_eq!(place.put("bf16.safetensors", "typed/a", &[]), "files");
    // Its folders are open, so that it looks well; but nothing can be made in them any more.
    std::fs::remove_dir_all(place.at().join("data/files")).unwrap();
    let begun = Instant::now();
    let failed = (0..100).take_while(|_| place.server.run(place.at(), &["put", "bf16.safetensors", "typed/b"]).0 == 1).count();
    assert!((1..=10).contains(&failed), "{failed} puts failed in {:?}", begun.elapsed());
    assert_ne!(place.home("typed/b"), "files");
}

#[test]
fn each_backend_is_measured_and_shown() {
    let place = Place::start();
    for (i, key) in ["scratch/a", "typed/b", "pair/c", "scratch/d"].into_iter().enumerate() {
        place.put(if i == 1 { "bf16.safetensors" } else { "bytes.safetensors" }, key, &["--codec", "none"]);
        place.server.ok(place.at(), &["get", key, "back.safetensors"]);
    }
    let stats = place.json(&["stats", "--json"]);
    let files = &stats["backends"]["files"];
    assert!(files["bytes_in_per_second"].as_f64().unwrap() > 0.0 && files["out"] == false && files["state"] == "fit", "{files:#}");
    // Files are written once, RocksDB's records and values at least to its log.
    assert_eq!(files["device_bytes_per_byte_in"], 1.0, "{files:#}");
    assert!(stats["backends"]["rocksdb"]["device_bytes_per_byte_in"].as_f64().unwrap() >= 1.0, "{stats:#}");
    assert_eq!(stats["backends"]["scratch"]["device_bytes"], Value::Null);
    assert!(stats["device"]["written_bytes"].is_u64(), "{stats:#}");
    let table = place.server.ok(place.at(), &["stats"]);
    assert!(table.starts_with("4 puts of 4.0 MiB, 4 gets of 4.0 MiB, 0 deletes; 0 expired, 0 corrupt\n"), "{table}");
    for (start, parts) in
        [("BACKEND  STATE", &["USED", "FREE", "IN/S", "OUT/S", "HITS", "RATIO", "DISK"][..]), ("files    put", &[" 1 ", " ms"])]
    {
        let line = table.lines().find(|line| line.starts_with(start)).unwrap_or_default();
        assert!(parts.iter().all(|part| line.contains(part)), "{start}: {table}");
    }
}
