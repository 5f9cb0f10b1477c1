//! The program as a person runs it: a server process, and commands against it.

#![allow(clippy::unwrap_used)] // clippy.toml allows it within #[test] functions, not in their helpers

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use sira_client::{Client, Code, Consistency, DType, GetOptions, PutOptions, TensorSpec};

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use common::{Server, said, sira};

/// A server with `more` arguments, whose standard error is kept.
fn start(data: &Path, more: &[&str]) -> Server {
    Server::start(data, |command| {
        command.args(more).stderr(Stdio::piped());
    })
}

impl Server {
    /// Asks the server to stop: exit code, and what it wrote to standard error.
    fn stop(mut self) -> (i32, String) {
        self.signal("TERM");
        let mut stderr = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.process.wait().unwrap().code().unwrap_or(-1), stderr)
    }
}

/// A .npy file, with the header as numpy writes it.
fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let mut dict = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    dict.push_str(&" ".repeat(127 - 10 - dict.len()));
    dict.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(dict.len() as u16).to_le_bytes());
    file.extend_from_slice(dict.as_bytes());
    file.extend_from_slice(data);
    file
}

#[test]
fn tensors_go_in_and_come_out_and_outlive_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let data = at.join("data");
    let server = start(&data, &[]);
    let row_major: Vec<u8> = (0..1000 * 300u32).flat_map(|i| i.to_le_bytes()).collect();
    std::fs::write(at.join("a.npy"), npy("<u4", false, "(1000, 300)", &row_major)).unwrap();
    // The same tensor, column-major and big-endian: element (i, j) is 300 i + j.
    let columns = (0..300u32).flat_map(|j| (0..1000u32).map(move |i| 300 * i + j));
    std::fs::write(at.join("f.npy"), npy(">u4", true, "(1000, 300)", &columns.flat_map(u32::to_be_bytes).collect::<Vec<_>>())).unwrap();

    let put =
        ["put", "a.npy", "t/a", "--axes", "token,dim", "--codec", "planes+zstd", "--ttl", "1h", "--attr", "model=m", "--if", "absent"];
    assert_eq!(server.ok(at, &put), "t/a: version 1, created, 1.1 MiB\n");
    let (code, _, stderr) = server.run(at, &put);
    assert!(code == 1 && stderr.starts_with("sira: SIRA_EXISTS: ") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(server.ok(at, &["put", "f.npy", "t/f", "--consistency", "strong"]), "t/f: version 1, created, 1.1 MiB\n");
    for key in ["t/a", "t/f"] {
        server.ok(at, &["get", key, "back.npy"]);
        assert!(std::fs::read(at.join("back.npy")).unwrap().ends_with(&row_major), "{key}");
    }
    server.ok(at, &["get", "t/a", "part.safetensors", "--slice", "token=10:20", "--slice", "1=0:300"]);
    let file = std::fs::read(at.join("part.safetensors")).unwrap();
    let part = SafeTensors::deserialize(&file).unwrap();
    let view = part.tensor("tensor").unwrap();
    assert_eq!((view.shape(), view.data()), (&[10, 300][..], &row_major[10 * 1200..20 * 1200]));
    assert_eq!(server.ok(at, &["put", "part.safetensors", "t/p"]), "t/p: version 1, created, 11.7 KiB\n");

    let info: serde_json::Value = serde_json::from_str(&server.ok(at, &["info", "t/a"])).unwrap();
    assert_eq!((&info["axes"][0], &info["attributes"]["model"], &info["codec"]), (&"token".into(), &"m".into(), &"planes+zstd".into()));
    let table = server.ok(at, &["ls", "t/"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["KEY", "SHAPE", "DTYPE", "SIZE", "WHERE"]);
    assert_eq!(lines[1][..5], ["t/a", "1000x300", "uint32", "1.1", "MiB"]);
    assert_eq!(lines.len(), 4);
    assert_eq!(server.ok(at, &["ls", "t/", "--limit", "1"]).lines().count(), 2);
    assert!(server.ok(at, &["stats"]).starts_with("3 puts of 2.3 MiB, "));
    let stats: serde_json::Value = serde_json::from_str(&server.ok(at, &["stats", "--json"])).unwrap();
    assert_eq!(stats["operations"]["puts"], 3);

    let (code, stderr) = server.stop();
    assert_eq!(code, 0, "{stderr}");
    let server = start(&data, &[]);
    server.ok(at, &["get", "t/f", "again.npy"]);
    assert!(std::fs::read(at.join("again.npy")).unwrap().ends_with(&row_major));
    let (code, _, stderr) = server.run(at, &["rm", "t/none", "t/a", "t/f"]);
    assert_eq!((code, stderr.as_str()), (3, "sira: SIRA_NOT_FOUND: no such key: t/none\n"));
    assert_eq!(server.ok(at, &["ls", "--limit", "5"]).lines().count(), 2, "what is there is removed all the same");
    let left: Vec<_> = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".sira-")), "{left:?}");
}

#[test]
fn failures_are_one_line_and_a_number() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let server = start(&at.join("data"), &[]);
    std::fs::write(at.join("short.npy"), npy("<f4", false, "(10,)", &[0; 39])).unwrap();
    std::fs::write(at.join("long.npy"), npy("<f4", false, "(10,)", &[0; 41])).unwrap();
    std::fs::write(at.join("zip.npy"), b"PK\x03\x04").unwrap();
    let two = r#"{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}"#;
    let two = [&(two.len() as u64).to_le_bytes()[..], two.as_bytes(), &[1, 2, 3, 4, 5]].concat();
    std::fs::write(at.join("two.safetensors"), two).unwrap();
    server.ok(at, &["put", "two.safetensors", "t/bf16", "--tensor", "a"]);

    let cases: &[(i32, &[&str], &str)] = &[
        (3, &["info", "t/none"], "SIRA_NOT_FOUND"),
        (3, &["get", "t/none", "x.npy"], "SIRA_NOT_FOUND"),
        (1, &["info", "nokey"], "SIRA_BAD_KEY"),
        (1, &["put", "none.npy", "t/x"], "none.npy: No such file"),
        (1, &["put", "short.npy", "t/x"], "the header says 40 bytes of tensor, the file holds 39"),
        (1, &["put", "long.npy", "t/x"], "the file holds 41"),
        (1, &["put", "zip.npy", "t/x"], "zip.npy: not a .npy file"),
        (2, &["put", "two.safetensors", "t/x"], "choose one with --tensor"),
        (2, &["put", "two.safetensors", "t/x", "--tensor", "c"], "no tensor \"c\""),
        (2, &["put", "two.txt", "t/x"], "must end in .npy or .safetensors"),
        (1, &["put", "two.safetensors", "t/x", "--tensor", "a", "--codec", "zippy"], "SIRA_UNKNOWN_CODEC"),
        (2, &["put", "two.safetensors", "t/x", "--tensor", "a", "--axes", "x,y"], "2 names for 1 axes"),
        (2, &["get", "t/bf16", "x.npy"], "numpy has no bfloat16: write x.safetensors instead"),
        (1, &["get", "t/bf16", "none/x.safetensors"], "none/x.safetensors: "),
        (1, &["get", "t/bf16", "x.safetensors", "--slice", "0=0:3"], "SIRA_BAD"),
        (1, &["--url", "grpc://127.0.0.1:1", "ls"], "no connection to grpc://127.0.0.1:1"),
        (1, &["--url", &format!("grpc+tls://{}", server.url.trim_start_matches("grpc://")), "ls"], "no connection to grpc+tls://"),
        (2, &["--token-file", "none", "ls"], "none: No such file"),
        (2, &["--cert", "zip.npy", "ls"], "a certificate and its key go together"),
    ];
    for (code, arguments, part) in cases {
        let (found, stdout, stderr) = server.run(at, arguments);
        assert_eq!((found, stdout.as_str()), (*code, ""), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("sira: ") && stderr.contains(part) && stderr.lines().count() == 1, "{arguments:?}: {stderr}");
    }
    assert_eq!(server.run(at, &["get", "t/bf16", "x.safetensors", "--slice", "token"]).0, 2);
    assert!(!at.join("x.safetensors").exists() && !at.join("x.npy").exists());
    assert_eq!(server.ok(at, &["ls"]).lines().count(), 2, "nothing of what failed is there");

    let (code, _, stderr) = said(&sira().args(["serve", "--listen", "127.0.0.1:0", "--data", "data"]).current_dir(at).output().unwrap());
    assert!(code == 1 && stderr.contains(&format!("in use by another server (process {})", server.process.id())), "{stderr}");
    let (code, _, stderr) = said(&sira().args(["serve", "--listen", "0.0.0.0:0"]).current_dir(at).output().unwrap());
    assert!(code == 1 && stderr.starts_with("--listen: 0.0.0.0:0 is not a loopback address"), "{stderr}");
}

#[test]
fn a_damaged_catalog_is_rebuilt_and_a_damaged_backend_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let data = at.join("data");
    let server = start(&data, &[]);
    std::fs::write(at.join("a.npy"), npy("<u4", false, "(2,)", &[7; 8])).unwrap();
    server.ok(at, &["put", "a.npy", "t/a"]);
    assert_eq!(server.stop().0, 0);

    std::fs::write(data.join("catalog/CURRENT"), "MANIFEST-nonsense\n").unwrap();
    let server = start(&data, &[]);
    server.ok(at, &["get", "t/a", "back.npy"]);
    assert_eq!(std::fs::read(at.join("back.npy")).unwrap(), std::fs::read(at.join("a.npy")).unwrap());
    assert_eq!(server.stop().0, 0);

    for file in std::fs::read_dir(data.join("rocksdb")).unwrap().map(|entry| entry.unwrap().path()) {
        if file.file_name().unwrap().to_string_lossy().starts_with("MANIFEST-") {
            std::fs::write(file, [0x55; 4096]).unwrap();
        }
    }
    let (code, _, stderr) = said(&sira().args(["serve", "--listen", "127.0.0.1:0", "--data", "data"]).current_dir(at).output().unwrap());
    let last = stderr.lines().last().unwrap();
    assert!(code == 1 && last.starts_with("sira: backend rocksdb: ") && last.contains("orrupt"), "{stderr}");
    assert!(!stderr.contains("bad configuration"), "{stderr}");
}

#[test]
fn config_check_reports_as_compilers_do() {
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        std::fs::write(folder.path().join("sira.toml"), text).unwrap();
        said(&sira().args(["config", "check", "sira.toml"]).current_dir(folder.path()).output().unwrap())
    };
    let (code, stdout, stderr) = check("[memory]\n\nlimt = 1\n[storage.encryption]\nenabled = true\n");
    assert_eq!((code, stdout.as_str()), (1, ""));
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines[0].starts_with("sira.toml:3: unknown key `limt` in [memory]; did you mean `limit`?"), "{stderr}");
    assert!(lines[1].starts_with("sira.toml:5: encryption at rest is not part of this version"), "{stderr}");
    assert_eq!(lines[2], "sira: the configuration has 2 errors");
    let (code, stdout, stderr) = check("[memory]\nlimit = \"1 GiB\"\n");
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("limit = \"1 GiB\"") && stdout.contains("[storage.backends.rocksdb]"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_writes_what_is_in_memory_and_cuts_off_what_does_not_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sira.toml");
    std::fs::write(&file, "[server]\ndrain_timeout = \"1s\"\n[storage.monitoring]\nmetrics_collection_interval = \"100ms\"\n").unwrap();
    let server = start(&folder.path().join("data"), &["--config", file.to_str().unwrap()]);
    let client = Client::connect(&server.url).await.unwrap();
    let spec = TensorSpec::new(DType::UInt8, vec![8]).unwrap();
    client.put("t/whole", &spec, vec![1; 8], PutOptions::default()).await.unwrap();
    // Acknowledged in memory only: the drain owes it, whatever the other clients do.
    let weak = || PutOptions { consistency: Some(Consistency::Weak), ..PutOptions::default() };
    client.put("t/first", &spec, vec![3; 8], weak()).await.unwrap();
    // A get of far more than fits the windows of a connection, which nobody reads.
    let large = TensorSpec::new(DType::UInt8, vec![32 << 20]).unwrap();
    client.put("t/large", &large, vec![4; 32 << 20], PutOptions::default()).await.unwrap();
    let reader = Client::connect(&server.url).await.unwrap();
    let unread = reader.get("t/large", &GetOptions::default()).await.unwrap();
    let (stuck, spec_of_stuck) = (client.clone(), spec.clone());
    let put =
        tokio::spawn(async move { stuck.put_stream("t/stuck", &spec_of_stuck, futures::stream::pending(), PutOptions::default()).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    let (code, stderr) = tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
    assert!(code == 0 && stderr.contains("calls were still running after 1 s; they are cut off"), "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(stderr.contains("sira::statistics: {\"operations\":{\"puts\":3"), "{stderr}");
    assert!(put.await.unwrap().is_err());
    assert!(unread.into_bytes().await.is_err(), "a get that is cut off does not look whole");

    let server = start(&folder.path().join("data"), &[]);
    let client = Client::connect(&server.url).await.unwrap();
    assert_eq!(client.exists("t/whole").await.unwrap(), Some(1));
    let first = client.get("t/first", &GetOptions::default()).await.unwrap().into_bytes().await.unwrap();
    assert_eq!(first, vec![3; 8]);
    let health = client.health().await.unwrap();
    assert_eq!((health.status.as_str(), health.backends.len()), ("healthy", 2), "{health:?}");
    let stale = GetOptions { version: Some(7), ..GetOptions::default() };
    assert_eq!(client.get("t/whole", &stale).await.unwrap_err().code(), Some(Code::Stale));
    assert_eq!(client.delete("t/whole", Some(7)).await.unwrap_err().code(), Some(Code::Stale));
    assert_eq!(client.info("t/stuck").await.unwrap_err().code(), Some(Code::NotFound));
    // What was acknowledged in memory only is written by the drain, and a client that stays connected does not hold it up.
    client.put("t/weak", &spec, vec![2; 8], weak()).await.unwrap();
    let (code, stderr) = tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
    assert_eq!(code, 0, "{stderr}");
    let server = start(&folder.path().join("data"), &[]);
    let client = Client::connect(&server.url).await.unwrap();
    let back = client.get("t/weak", &GetOptions::default()).await.unwrap().into_bytes().await.unwrap();
    assert_eq!(back, vec![2; 8]);
}
