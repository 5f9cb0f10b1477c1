//! Private throwaway servers (`scripts/servers.sh`): each test binary that includes this file shares one of each kind among its tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// What can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Postgres,
    MariaDb,
    Redis,
    /// Redis as a cluster of six.
    Cluster,
    /// S3, in memory.
    Moto,
    /// S3, of Ceph.
    Ceph,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres",
            Kind::MariaDb => "mariadb",
            Kind::Redis => "redis",
            Kind::Cluster => "cluster",
            Kind::Moto => "moto",
            Kind::Ceph => "ceph",
        }
    }

    /// Beside the script's own settings.
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            // Beyond the values of 64 MiB that the conformance suite stores.
            Kind::MariaDb => &["--max-allowed-packet=256M", "--innodb-log-file-size=256M"],
            Kind::Postgres | Kind::Redis | Kind::Cluster | Kind::Moto | Kind::Ceph => &[],
        }
    }
}

/// A server of this process alone. It is removed when the last handle goes, and when the process dies, however that happens: the
/// script waits for the end of a pipe that only this process can write.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    url: String,
    folder: PathBuf,
    script: Mutex<Child>,
    _output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts one; panics, with what the script said on stderr, where it cannot be had.
    pub fn start(kind: Kind) -> Server {
        Server::with_settings(kind, kind.settings())
    }

    /// Starts one with these flags.
    pub fn with_settings(kind: Kind, settings: &[&str]) -> Server {
        let mut command = Command::new(script());
        command.args(["--hold", kind.name()]).args(settings).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().expect("scripts/servers.sh starts");
        let mut output = BufReader::new(script.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let Ok(said) = serde_json::from_str::<serde_json::Value>(&line) else {
            panic!("no {} server for this test: scripts/servers.sh ended with {:?}", kind.name(), script.wait());
        };
        let text = |name: &str| said[name].as_str().unwrap().to_owned();
        Server { kind, url: text("url"), folder: text("folder").into(), script: Mutex::new(script), _output: output }
    }

    /// The one that the tests of this process share, started if none is; it ends with the process.
    pub fn shared(kind: Kind) -> Arc<Server> {
        static SHARED: Mutex<BTreeMap<Kind, Arc<Server>>> = Mutex::new(BTreeMap::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.entry(kind).or_insert_with(|| Arc::new(Server::start(kind))).clone()
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it answers, with user and password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The password in the URL.
    pub fn password(&self) -> &str {
        let (_, rest) = self.url.split_once("://").unwrap();
        rest.split_once('@').unwrap().0.split_once(':').unwrap().1
    }

    /// `127.0.0.1` and its port.
    pub fn address(&self) -> &str {
        self.url.rsplit('@').next().unwrap().split('/').next().unwrap()
    }

    /// Its URL, by way of another address, such as a proxy's.
    pub fn url_by(&self, address: impl std::fmt::Display) -> String {
        self.url.replace(self.address(), &address.to_string())
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        std::fs::read_to_string(self.folder.join("pid")).unwrap().lines().next().unwrap().parse().unwrap()
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&self) {
        let pid = self.pid();
        // The shell's own kill: not every machine has the program.
        let kill = |signal: &str| Command::new("sh").args(["-c", &format!("kill -{signal} {pid} 2>&-")]).status().unwrap().success();
        assert!(kill("9"), "{} does not run", self.kind.name());
        // Until its port is free.
        while kill("0") && !zombie(pid) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Starts it again after [`Server::kill`], with what it held, at the same URL.
    pub fn again(&self) {
        let again = Command::new(script()).arg("again").arg(&self.folder).output().unwrap();
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    }
}

/// Whether the process ended and nobody asked about it.
fn zombie(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && line.contains('Z'))
}

fn script() -> PathBuf {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.map(|folder| folder.join("scripts/servers.sh")).find(|script| script.exists()).expect("scripts/servers.sh is in the checkout")
}

impl Drop for Server {
    fn drop(&mut self) {
        let script = self.script.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(script.stdin.take());
        let _ = script.wait();
    }
}
