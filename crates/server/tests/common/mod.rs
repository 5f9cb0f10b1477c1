//! The program and a server of it, for the tests that run it.

#![allow(clippy::unwrap_used)] // clippy.toml allows it within #[test] functions, not in their helpers

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// The program, without the settings of whoever runs the tests.
pub fn sira() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sira"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SIRA_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A running server; killed when dropped.
pub struct Server {
    pub process: Child,
    pub url: String,
    /// What it has said on standard output before it listened.
    pub said: Vec<String>,
    /// A data folder that goes with it.
    own: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts it on a free port; `more` adds to the command. Where its standard error is a pipe, it is read by whoever made it one.
    pub fn start(data: &Path, more: impl FnOnce(&mut Command)) -> Server {
        let mut command = sira();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        more(&mut command);
        let mut process = command.spawn().unwrap();
        let mut said = Vec::new();
        for line in BufReader::new(process.stdout.as_mut().unwrap()).lines().map(Result::unwrap) {
            if let Some(url) = line.strip_prefix("sira: listening on ") {
                let url = url.to_owned();
                return Server { process, url, said, own: None };
            }
            said.push(line);
        }
        let mut stderr = String::new();
        if let Some(mut pipe) = process.stderr.take() {
            pipe.read_to_string(&mut stderr).unwrap();
        }
        process.wait().unwrap();
        unreachable!("no server: {said:?}\n{stderr}")
    }

    /// The same, with a data folder that goes with it.
    pub fn alone() -> Server {
        let data = tempfile::tempdir().unwrap();
        let mut server = Server::start(data.path(), |_| {});
        server.own = Some(data);
        server
    }

    /// Runs a client command: exit code, output, errors.
    pub fn run(&self, folder: &Path, arguments: &[&str]) -> (i32, String, String) {
        said(&sira().args(arguments).env("SIRA_URL", &self.url).current_dir(folder).output().unwrap())
    }

    /// As [`Server::run`], of a command that must succeed and have nothing to complain of.
    pub fn ok(&self, folder: &Path, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(folder, arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        stdout
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        // The shell's own kill: not every machine has the program.
        assert!(Command::new("sh").args(["-c", &format!("kill -{name} {}", self.process.id())]).status().unwrap().success());
    }
}

/// Exit code, output, errors.
pub fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
