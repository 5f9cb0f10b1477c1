//! The client commands as a person and as a script runs them, against a server of their own.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it within #[test] functions, not in their helpers")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use common::{Server, sira};

impl Server {
    /// As [`Server::ok`]: the lines of JSON that it writes.
    fn json(&self, folder: &Path, arguments: &[&str]) -> Vec<Value> {
        self.ok(folder, arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Bytes that do not repeat soon.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

type Tensors<'a> = &'a [(&'a str, Dtype, &'a [usize])];

/// A file written by the format's own library.
fn write(path: &Path, tensors: Tensors, metadata: &[(&str, &str)]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, dtype, shape)| noise(shape.iter().product::<usize>() * dtype.bitsize() / 8)).collect();
    let views =
        tensors.iter().zip(&bytes).map(|((name, dtype, shape), bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    let metadata = metadata.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// Name, element type, shape and bytes of a tensor.
type Held = (String, Dtype, Vec<usize>, Vec<u8>);

/// What a file holds, as the format's own library reads it: by name, so that files of another order compare.
fn read(path: &Path) -> (Vec<Held>, Vec<(String, String)>) {
    let file = std::fs::read(path).unwrap();
    let parsed = SafeTensors::deserialize(&file).unwrap();
    let tensors = parsed.tensors().into_iter().map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let mut metadata: Vec<_> = header.metadata().clone().unwrap_or_default().into_iter().collect();
    metadata.sort();
    (tensors, metadata)
}

/// A small model: many small tensors of all kinds, and some that are streamed alone.
const MODEL: Tensors = &[
    ("embed.weight", Dtype::BF16, &[3000, 1024]),
    ("layers.0.q.weight", Dtype::BF16, &[64, 64]),
    ("layers.0.norm", Dtype::F32, &[64]),
    ("layers.0/é \"x\"", Dtype::F8_E4M3, &[7, 3]),
    ("layers.1.q.weight", Dtype::BF16, &[64, 64]),
    ("lm_head", Dtype::F8_E5M2, &[5 << 20]),
    ("scale", Dtype::F64, &[]),
    ("none", Dtype::F32, &[0, 4]),
    ("packed", Dtype::F4, &[8]),
    ("mask", Dtype::I64, &[2, 3, 1]),
];

#[test]
fn a_file_of_many_tensors_comes_back_as_it_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let server = Server::start(&at.join("data"), |_| {});
    write(&at.join("model.safetensors"), MODEL, &[("format", "pt"), ("note", "grüße")]);

    assert_eq!(server.ok(at, &["put", "model.safetensors", "m/llama/"]), "m/llama/: 10 tensors, 10.9 MiB\n");
    assert_eq!(server.ok(at, &["get", "m/llama/", "back.safetensors"]), "back.safetensors: 10 tensors, 10.9 MiB\n");
    assert_eq!(read(&at.join("back.safetensors")), read(&at.join("model.safetensors")));
    server.ok(at, &["get", "m/llama/layers.0.norm", "norm.npy"]);

    // For scripts: a line for each key, and nothing else.
    let lines = server.json(at, &["put", "model.safetensors", "m/llama/", "--json", "--codec", "zstd", "--ttl", "1h", "--attr", "a=b"]);
    assert_eq!(lines.len(), MODEL.len());
    assert!(lines.iter().all(|line| line["version"] == 2 && line["created"] == false), "{lines:?}");
    let info: Value = serde_json::from_str(&server.ok(at, &["info", "m/llama/lm_head", "--json"])).unwrap();
    let attributes = serde_json::json!({ "a": "b", "safetensors.format": "pt", "safetensors.note": "grüße" });
    assert_eq!((&info["attributes"], &info["codec"]), (&attributes, &"zstd".into()));
    let small: Value = serde_json::from_str(&server.ok(at, &["info", "m/llama/scale"])).unwrap();
    assert_eq!((&small["attributes"], small["expires_ms"].is_u64()), (&attributes, true));
    let lines = server.json(at, &["get", "m/llama/", "again.safetensors", "--json"]);
    assert!(lines.len() == MODEL.len() && lines[0]["tensor"] == "embed.weight" && lines[0]["version"] == 2, "{lines:?}");
    assert_eq!(read(&at.join("again.safetensors")), read(&at.join("model.safetensors")));

    // What is refused of single tensors is said at the end, and does not stop the others.
    server.ok(at, &["rm", "m/llama/mask", "m/llama/embed.weight"]);
    let (code, stdout, stderr) = server.run(at, &["put", "model.safetensors", "m/llama/", "--if", "absent"]);
    assert_eq!((code, stdout.as_str()), (1, "m/llama/: 2 tensors, 5.9 MiB\n"), "{stderr}");
    assert!(stderr.contains("m/llama/lm_head: SIRA_EXISTS") && stderr.ends_with("sira: 8 of 10 tensors are not stored\n"), "{stderr}");
    let (code, stdout, _) = server.run(at, &["put", "model.safetensors", "m/llama/", "--if", "absent", "--json"]);
    let failed: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(code == 1 && failed.len() == 10 && failed.iter().all(|line| line["error"].as_str().unwrap().starts_with("SIRA_EXISTS")));
    let left: Vec<_> = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".sira-")), "{left:?}");
}

#[test]
fn nothing_is_sent_of_a_file_that_cannot_be_stored_whole() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let server = Server::start(&at.join("data"), |_| {});
    write(&at.join("good.safetensors"), &[("a", Dtype::U8, &[4]), ("b/c", Dtype::U8, &[4])], &[]);
    write(&at.join("bad.safetensors"), &[("a", Dtype::U8, &[4]), ("b/../c", Dtype::U8, &[4])], &[]);
    let good = std::fs::read(at.join("good.safetensors")).unwrap();
    std::fs::write(at.join("short.safetensors"), &good[..good.len() - 1]).unwrap();
    std::fs::write(at.join("x.npy"), b"\x93NUMPY").unwrap();
    let cases: &[(i32, &[&str], &str)] = &[
        (2, &["put", "bad.safetensors", "t/bad/"], "bad.safetensors: tensor \"b/../c\": SIRA_BAD_KEY"),
        (1, &["put", "short.safetensors", "t/short/"], "the file has"),
        (2, &["put", "x.npy", "t/x/"], "a .npy file holds one tensor"),
        (2, &["put", "good.safetensors", "t/x"], "choose one with --tensor, or put all"),
        (2, &["put", "good.safetensors", "t/x/", "--tensor", "a"], "--tensor takes one key"),
        (2, &["put", "good.safetensors", "t/x/", "--parts"], "--parts takes one key"),
        (2, &["put", "good.safetensors", "t/x", "--parts"], "tensor \"b/c\": "),
        (2, &["put", "good.safetensors", "t/x/", "--axes", "a,b"], "tensor \"a\": "),
        (2, &["get", "t/x/", "x.npy"], "a key that ends with / collects"),
        (2, &["get", "t/x/", "x.safetensors", "--part", "k"], "a key that ends with / collects"),
        (3, &["get", "t/x/", "x.safetensors"], "no keys under t/x/"),
    ];
    for (code, arguments, part) in cases {
        let (found, stdout, stderr) = server.run(at, arguments);
        assert_eq!((found, stdout.as_str()), (*code, ""), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("sira: ") && stderr.contains(part) && stderr.lines().count() == 1, "{arguments:?}: {stderr}");
    }
    assert_eq!(server.ok(at, &["ls"]), "");
    // Texts about the file that are too long to be kept with each tensor are left out, aloud.
    write(&at.join("long.safetensors"), &[("a", Dtype::U8, &[4])], &[("x", &"y".repeat(5000))]);
    let (code, stdout, stderr) = server.run(at, &["put", "long.safetensors", "t/long/"]);
    assert_eq!((code, stdout.as_str()), (0, "t/long/: 1 tensor, 4 B\n"));
    assert_eq!(stderr, "sira: long.safetensors: __metadata__ is not kept: 1 text, 5013 bytes\n");
}

#[test]
fn parts_go_in_together_and_come_out_alone_or_all() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let server = Server::start(&at.join("data"), |_| {});
    let parts: Tensors = &[("k", Dtype::F8_E4M3, &[16, 8, 128]), ("k_scale", Dtype::F32, &[8]), ("v", Dtype::BF16, &[16, 8, 128])];
    write(&at.join("kv.safetensors"), parts, &[("format", "pt")]);
    assert_eq!(server.ok(at, &["put", "kv.safetensors", "kv/b1", "--parts"]), "kv/b1: version 1, created, 48.0 KiB\n");
    server.ok(at, &["get", "kv/b1", "all.safetensors"]);
    assert_eq!(read(&at.join("all.safetensors")), read(&at.join("kv.safetensors")));
    server.ok(at, &["get", "kv/b1", "one.safetensors", "--part", "k_scale"]);
    let (one, _) = read(&at.join("one.safetensors"));
    assert_eq!(one, [read(&at.join("kv.safetensors")).0[1].clone()]);
    server.ok(at, &["get", "kv/b1", "half.npy", "--part", "k_scale", "--slice", "0=0:4"]);
    let (code, _, stderr) = server.run(at, &["get", "kv/b1", "k.npy"]);
    assert!(code == 2 && stderr.starts_with("sira: SIRA_HAS_PARTS: ") && stderr.ends_with("--part NAME chooses one\n"), "{stderr}");
    assert_eq!(server.run(at, &["get", "kv/b1", "x.safetensors", "--part", "none"]).0, 3);
    let (code, _, stderr) = server.run(at, &["get", "kv/b1", "x.safetensors", "--version", "9"]);
    assert!(code == 1 && stderr.contains("SIRA_STALE") && !at.join("x.safetensors").exists(), "{stderr}");
    // Below a prefix, parts are called by key and part.
    server.ok(at, &["put", "kv.safetensors", "kv/flat/"]);
    assert_eq!(server.ok(at, &["get", "kv/", "both.safetensors"]), "both.safetensors: 6 tensors, 96.1 KiB\n");
    let names: Vec<String> = read(&at.join("both.safetensors")).0.into_iter().map(|tensor| tensor.0).collect();
    assert_eq!(names, ["b1/k", "b1/k_scale", "b1/v", "flat/k", "flat/k_scale", "flat/v"]);
    // A key whose part would have the name of another key's tensor.
    server.ok(at, &["put", "one.safetensors", "kv/b1/k"]);
    let (code, _, stderr) = server.run(at, &["get", "kv/", "both.safetensors"]);
    assert!(code == 1 && stderr.contains("two tensors would be called \"b1/k\""), "{stderr}");

    let long = server.ok(at, &["ls", "-l", "kv/b1", "--limit", "1"]);
    let rows: Vec<Vec<&str>> = long.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..6], ["KEY", "VERSION", "SHAPE", "DTYPE", "SIZE", "STORED"]);
    assert_eq!(rows[1][..6], ["kv/b1", "1", "-", "parts", "48.0", "KiB"]);
    assert!(rows[1].contains(&"k_scale,v,k") && rows[1].contains(&"eventual"), "{long}");
    let entries = server.json(at, &["ls", "kv/", "--json"]);
    assert_eq!((entries.len(), &entries[0]["parts"][0]["name"]), (5, &"k_scale".into()));
}

#[test]
fn an_interrupted_get_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let server = Server::start(&at.join("data"), |_| {});
    write(&at.join("large.safetensors"), &[("a", Dtype::U8, &[64 << 20])], &[]);
    server.ok(at, &["put", "large.safetensors", "t/large", "--codec", "none"]);
    let signal = |process: u32, name: &str| {
        assert!(Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status().unwrap().success());
    };
    let begun = || std::fs::read_dir(at).unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(".sira-"));
    let get = ["get", "t/large", "out.safetensors"];
    let mut get =
        sira().args(get).env("SIRA_URL", &server.url).current_dir(at).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    while !begun() && get.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // The server says no more: the get cannot end by itself, unless it just has.
    signal(server.process.id(), "STOP");
    std::thread::sleep(std::time::Duration::from_millis(50));
    if get.try_wait().unwrap().is_none() {
        signal(get.id(), "TERM");
    }
    let code = get.wait().unwrap().code();
    signal(server.process.id(), "CONT");
    assert!(!begun(), "something is left");
    assert_eq!(code, Some(if at.join("out.safetensors").exists() { 0 } else { 1 }));
}

#[test]
fn prefixes_are_deleted_when_that_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let server = Server::start(&at.join("data"), |_| {});
    write(&at.join("model.safetensors"), &MODEL[1..5], &[]);
    for prefix in ["s/1/", "s/10/", "s/2/"] {
        server.ok(at, &["put", "model.safetensors", prefix]);
    }
    assert_eq!(server.ok(at, &["rm", "-r", "s/1/", "--dry-run"]), "would delete 4 tensors (16.3 KiB) under s/1/\n");
    let counted = server.json(at, &["rm", "-r", "s/", "--dry-run", "--json"]);
    assert_eq!((&counted[0]["keys"], &counted[0]["dry_run"]), (&12.into(), &true.into()));
    // Standard input is no terminal here: nobody can say yes.
    let (code, _, stderr) = server.run(at, &["rm", "-r", "s/1/"]);
    assert!(code == 2 && stderr.contains("--yes") && stderr.contains("--dry-run"), "{stderr}");
    assert_eq!(server.json(at, &["ls", "--json"]).len(), 12);
    assert_eq!(server.ok(at, &["rm", "-r", "s/1/", "s/2/", "--yes"]).lines().count(), 2);
    assert_eq!(server.json(at, &["ls", "--json"]).len(), 4, "s/10/ is not below s/1/");
    assert_eq!(server.ok(at, &["rm", "-r", "s/1", "-y"]), "deleted 4 tensors (16.3 KiB) whose keys start with s/1\n");
    assert_eq!(server.json(at, &["rm", "-r", "s/", "-y", "--json"])[0]["keys"], 0);
    assert_eq!(server.run(at, &["rm", "-r", "s", "-y"]).0, 1, "a whole namespace is s/");
    assert_eq!(server.run(at, &["rm", "--dry-run", "s/1"]).0, 2);
    let (code, stdout, _) = server.run(at, &["rm", "s/none", "--json"]);
    assert_eq!((code, stdout.as_str()), (3, "{\"deleted\":false,\"key\":\"s/none\"}\n"));
}

#[test]
fn a_server_is_looked_at_and_told_what_holds() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let server = Server::start(&at.join("data"), |_| {});
    write(&at.join("a.safetensors"), &[("a", Dtype::U8, &[1 << 20])], &[]);
    assert_eq!(server.ok(at, &["health"]), "healthy, version 0.1.0\nobject: healthy\nrocksdb: healthy\n");
    assert_eq!(server.json(at, &["health", "--json"])[0]["status"], "healthy");

    let route = server.ok(at, &["route", "kv/a", "--size", "16MiB", "--consistency", "strong"]);
    assert!(route.lines().last().unwrap().starts_with("kv/a of 16.0 MiB: object, ") && route.ends_with("strong\n"), "{route}");
    let small = server.json(at, &["route", "kv/a", "--size", "10", "--json"]);
    assert_eq!((&small[0]["backend"], &small[0]["inline"]), (&"rocksdb".into(), &true.into()));
    assert_eq!(server.run(at, &["route", "kv/a"]).0, 2);

    let set =
        ["ns", "set", "kv", "--mode", "cache", "--limit", "memory=1GiB", "--limit", "object=2GiB", "--codec", "object=zstd", "--ttl", "1h"];
    server.ok(at, &set);
    let set = server.json(at, &["ns", "set", "kv", "--read-only", "true", "--limit", "object=", "--json"]);
    let policy = serde_json::json!({ "mode": "cache", "read_only": true, "exact": false, "ttl": 3600, "limits": { "memory": 1 << 30 },
        "codecs": { "object": "zstd" } });
    assert_eq!(set[0]["policy"], policy);
    assert!(server.ok(at, &["ns", "show", "kv"]).contains("limits       memory=1 GiB\n"));
    let (code, _, stderr) = server.run(at, &["put", "a.safetensors", "kv/a"]);
    assert!(code == 1 && stderr.starts_with("sira: SIRA_READ_ONLY: "), "{stderr}");
    assert_eq!(server.json(at, &["ns", "reset", "kv", "--json"])[0]["origin"], "default");
    assert_eq!(server.run(at, &["ns", "show", "none"]).0, 3);
    assert_eq!(server.run(at, &["ns", "set", "kv"]).0, 2);
    assert_eq!(server.run(at, &["ns", "set", "kv", "--limit", "nowhere=1"]).0, 1);

    std::fs::write(at.join("spec.json"), r#"{"model":"m","block_tokens":16,"parts":[{"dtype":"BF16","axes":["token","dim"]}]}"#).unwrap();
    let hash = server.ok(at, &["spec", "put", "spec.json"]);
    let spec: Value = serde_json::from_str(&server.ok(at, &["spec", "get", hash.trim()])).unwrap();
    assert_eq!(spec["parts"][0]["dtype"], "bfloat16");
    std::fs::write(at.join("spec.json"), r#"{"model":"m"}"#).unwrap();
    assert!(server.run(at, &["spec", "put", "spec.json"]).2.starts_with("sira: spec.json: "));

    server.ok(at, &["put", "a.safetensors", "kv/a"]);
    server.ok(at, &["get", "kv/a", "b.safetensors"]);
    let top = server.ok(at, &["top", "--once", "--interval", "100ms"]);
    let lines: Vec<&str> = top.lines().collect();
    assert!(lines[0].starts_with(&server.url) && lines[1].starts_with("memory: "), "{top}");
    assert!(lines.iter().any(|line| line.starts_with("rocksdb ")) && lines.iter().any(|line| line.starts_with("kv ")), "{top}");
    assert!(!top.contains('\u{1b}'), "plain text where nobody looks at a terminal");
    let view = &server.json(at, &["top", "--once", "--interval", "100ms", "--json"])[0];
    assert_eq!(
        (&view["namespaces"][0]["namespace"], &view["namespaces"][0]["keys"], &view["puts"]),
        (&"kv".into(), &1.into(), &0.0.into())
    );
    // It ends with whoever reads it.
    let mut top = sira().args(["top", "--interval", "100ms"]).env("SIRA_URL", &server.url).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(top.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    assert!(top.wait().unwrap().success());
}

#[test]
fn without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = sira().args(["--url", "grpc://127.0.0.1:1"]).args(arguments).current_dir(folder.path()).output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(run(&["health"]), (1, String::new()));
    let (code, stdout) = run(&["health", "--json"]);
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert!(code == 1 && answer["status"].as_str().unwrap().starts_with("unreachable: no connection to grpc://127.0.0.1:1"), "{stdout}");
    assert_eq!(run(&["ns", "ls"]).0, 1);
    assert_eq!(run(&["top", "--interval", "1ms"]).0, 2);
    assert_eq!(run(&["completions", "csh"]).0, 2);
    for (shell, part) in [("bash", "_sira()"), ("zsh", "#compdef sira"), ("fish", "complete -c sira")] {
        let (code, script) = run(&["completions", shell]);
        assert!(code == 0 && script.contains(part) && script.contains("completions") && script.contains("dry-run"), "{shell}");
    }
    let (_, script) = run(&["completions", "bash"]);
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}
