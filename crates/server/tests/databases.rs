//! The program over databases: a store whose records and chunks lie in one, and a second server that finds them there.

#![allow(clippy::unwrap_used)] // clippy.toml allows it within #[test] functions, not in their helpers

use std::path::Path;
use std::process::Command;

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;
#[path = "../../backend/tests/support/servers.rs"]
mod databases;

use common::{Server, said, sira};
use databases::Kind;

/// A configuration with one backend, named `db`, which holds everything.
fn configure(command: &mut Command, folder: &Path, settings: &[(&str, &str)]) {
    let lines: String = settings.iter().map(|(name, value)| format!("{name} = {value:?}\n")).collect();
    let file = folder.join("sira.toml");
    std::fs::write(&file, format!("[storage.backends.db]\nmax_size = \"1 GiB\"\n{lines}")).unwrap();
    command.arg("--config").arg(file);
}

/// One array of small numbers as a .npy file.
fn npy(numbers: u32) -> Vec<u8> {
    let mut header = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({numbers},), }}");
    header.push_str(&" ".repeat(127 - 10 - header.len()));
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(header.len() as u16 + 1).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.push(b'\n');
    file.extend((0..numbers).flat_map(|number| (number % 1000).to_le_bytes()));
    file
}

/// Puts at each level and kills the server; the next one, at `second`, has them all.
fn puts_outlive_a_killed_server(backend: &[(&str, &str)], second: Option<&Path>) {
    let folder = tempfile::tempdir().unwrap();
    let (at, data) = (folder.path(), folder.path().join("data"));
    let server = Server::start(&data, |command| configure(command, at, backend));
    let sizes = [("small", 100), ("middle", 200_000), ("large", 3_000_000)];
    for (name, numbers) in sizes {
        std::fs::write(at.join("in.npy"), npy(numbers)).unwrap();
        for level in ["strong", "eventual"] {
            server.ok(at, &["put", "in.npy", &format!("t/{name}/{level}"), "--consistency", level, "--codec", "none"]);
        }
    }
    server.ok(at, &["rm", "t/small/eventual"]);
    server.signal("KILL");
    drop(server);
    let server = Server::start(second.unwrap_or(&data), |command| configure(command, at, backend));
    assert_eq!(server.ok(at, &["ls", "t/"]).lines().count(), 1 + 5);
    for (name, numbers) in &sizes[1..] {
        for level in ["strong", "eventual"] {
            server.ok(at, &["get", &format!("t/{name}/{level}"), "out.npy"]);
            let read = std::fs::read(at.join("out.npy")).unwrap();
            assert!(read.ends_with(&npy(*numbers)[128..]), "{name} {level}");
        }
    }
    server.ok(at, &["get", "t/large/strong", "out.npy", "--slice", "0=1000000:1000010"]);
    let read = std::fs::read(at.join("out.npy")).unwrap();
    assert!(read.ends_with(&(0..10_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()));
    assert!(server.ok(at, &["health"]).contains("db"));
}

/// Another node, whose data folder is empty, finds all in the database.
fn over_a_server(kind: Kind, name: &str) {
    let database = databases::Server::shared(kind);
    let second = tempfile::tempdir().unwrap();
    let backend = [("kind", name), ("url", database.url()), ("table_name", "tensors")];
    puts_outlive_a_killed_server(&backend, Some(&second.path().join("data")));
}

#[test]
fn postgresql_keeps_records_and_chunks() {
    over_a_server(Kind::Postgres, "postgres");
}

#[test]
fn mariadb_keeps_records_and_chunks() {
    over_a_server(Kind::MariaDb, "mysql");
}

#[test]
fn sqlite_keeps_records_and_chunks() {
    puts_outlive_a_killed_server(&[("kind", "sqlite")], None);
}

#[test]
fn sled_keeps_records_and_chunks() {
    puts_outlive_a_killed_server(&[("kind", "sled")], None);
}

/// Stopped under a server of Sira and started again: errors say so meanwhile, and then all is well, without a restart.
fn a_database_that_goes_away_and_comes_back(kind: Kind, name: &str) {
    let database = databases::Server::start(kind);
    let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = folder.path();
    let server = Server::start(data.path(), |command| configure(command, at, &[("kind", name), ("url", database.url())]));
    std::fs::write(at.join("in.npy"), npy(200_000)).unwrap();
    server.ok(at, &["put", "in.npy", "t/before", "--consistency", "strong"]);
    database.kill();
    let begun = std::time::Instant::now();
    let (code, _, stderr) = server.run(at, &["put", "in.npy", "t/during", "--consistency", "strong"]);
    assert!(code != 0 && stderr.contains("SIRA_BACKEND: backend db: "), "{stderr}");
    assert!(!stderr.contains(database.password()), "{stderr}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    let (_, health, stderr) = server.run(at, &["health"]);
    assert!(health.contains("unhealthy") || stderr.contains("unhealthy"), "{health}{stderr}");
    database.again();
    let begun = std::time::Instant::now();
    loop {
        let (code, _, stderr) = server.run(at, &["put", "in.npy", "t/after", "--consistency", "strong"]);
        if code == 0 {
            break;
        }
        assert!(stderr.contains("SIRA_BACKEND: backend db: ") && begun.elapsed() < std::time::Duration::from_secs(60), "{stderr}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    for key in ["t/before", "t/after"] {
        server.ok(at, &["get", key, "out.npy"]);
        assert!(std::fs::read(at.join("out.npy")).unwrap().ends_with(&npy(200_000)[128..]), "{key}");
    }
    assert!(!server.ok(at, &["health"]).contains("unhealthy"));
}

#[test]
fn postgresql_goes_away_and_comes_back() {
    a_database_that_goes_away_and_comes_back(Kind::Postgres, "postgres");
}

#[test]
fn mariadb_goes_away_and_comes_back() {
    a_database_that_goes_away_and_comes_back(Kind::MariaDb, "mysql");
}

#[test]
fn a_database_that_cannot_be_had_is_named_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = sira();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(folder.path().join("data"));
    configure(&mut command, folder.path(), &[("kind", "postgres"), ("url", "postgres://me:geheim@127.0.0.1:1/db?sslmode=disable")]);
    let (code, stdout, stderr) = said(&command.output().unwrap());
    let last = stderr.lines().last().unwrap_or_default();
    assert!(code == 1 && last.starts_with("sira: backend db: ") && last.contains("cannot connect"), "{stderr}");
    assert!(!stdout.contains("geheim") && !stderr.contains("geheim"), "{stderr}");
}
