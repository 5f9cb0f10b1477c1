//! The process that writes until it is stopped, and what it said.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::subjects::{Subject, open};

/// Environment of the writer: where to write, what, and with which seed.
pub const FOLDER: &str = "SIRA_POWER_WRITER";
const SUBJECT: &str = "SIRA_POWER_WRITES";
const SEED: &str = "SIRA_POWER_SEED";

/// Tasks that write at once, each keys of its own.
const TASKS: u64 = 4;
/// Keys of a task: enough that some are written once, and most again and again.
const KEYS: u64 = 25;

/// Says on standard output, a line each, what was acknowledged.
pub fn run(folder: &Path) {
    let subject = std::env::var(SUBJECT).unwrap();
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let subject = open(&subject, folder).await.unwrap();
        let tasks = (0..TASKS).map(|task| tokio::spawn(write(subject.clone(), task, StdRng::seed_from_u64(seed * TASKS + task))));
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}

async fn write(subject: Arc<dyn Subject>, task: u64, mut rng: StdRng) {
    for version in 1.. {
        let slot = rng.random_range(0..KEYS);
        let key = format!("f{}/{task}-{slot}", slot % 5);
        let len = match rng.random_range(0..20) {
            0 => rng.random_range(100_000..400_000),
            1..5 => rng.random_range(20_000..90_000),
            _ => rng.random_range(16..4000),
        };
        if let Err(error) = subject.put(&key, value_of(&key, version, len)).await {
            // The disk may fill up: then there is no more to acknowledge.
            eprintln!("{key}: {error}");
            std::future::pending::<()>().await;
        }
        // One write of a whole line: other tasks' never come between.
        std::io::stdout().lock().write_all(format!("{key} {version}\n").as_bytes()).unwrap();
    }
}

/// Bytes that tell their version, and of which each depends on key, version and place.
fn value_of(key: &str, version: u64, len: usize) -> Vec<u8> {
    let mut value = version.to_le_bytes().to_vec();
    value.extend((len as u64).to_le_bytes());
    let mut bytes = vec![0; len - value.len()];
    let seed = key.bytes().fold(version, |seed, byte| seed.wrapping_mul(257).wrapping_add(byte.into()));
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    value.extend(bytes);
    value
}

/// The version of a value that was read; `None` where it is not whole.
pub fn version_of(key: &str, value: &[u8]) -> Option<u64> {
    let version = u64::from_le_bytes(value.get(..8)?.try_into().ok()?);
    let len = u64::from_le_bytes(value.get(8..16)?.try_into().ok()?);
    (len == value.len() as u64 && value == value_of(key, version, value.len())).then_some(version)
}

/// The last write of each key that was acknowledged.
pub struct Acknowledged {
    versions: BTreeMap<String, u64>,
    pub count: usize,
}

impl Acknowledged {
    /// Every key there may be, with its last acknowledged write.
    pub fn keys(&self) -> impl Iterator<Item = (String, Option<u64>)> {
        (0..TASKS).flat_map(|task| (0..KEYS).map(move |slot| format!("f{}/{task}-{slot}", slot % 5))).map(|key| {
            let told = self.versions.get(&key).copied();
            (key, told)
        })
    }
}

/// A running writer.
pub struct Writer {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    acknowledged: Acknowledged,
    rng: StdRng,
}

impl Writer {
    pub fn start(subject: &str, folder: &Path, seed: u64) -> Writer {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(FOLDER, folder).env(SUBJECT, subject).env(SEED, seed.to_string()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let acknowledged = Acknowledged { versions: BTreeMap::new(), count: 0 };
        Writer { child, lines, acknowledged, rng: StdRng::seed_from_u64(seed) }
    }

    fn take_line(&mut self) -> bool {
        let mut line = String::new();
        // The last line may be cut off: then it said nothing.
        if self.lines.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
            return false;
        }
        let (key, version) = line.trim_end().split_once(' ').unwrap();
        self.acknowledged.versions.insert(key.to_owned(), version.parse().unwrap());
        self.acknowledged.count += 1;
        true
    }

    /// Waits for so many acknowledgements as the seed says, and a moment more.
    pub fn wait(&mut self) {
        for _ in 0..self.rng.random_range(1..300) {
            assert!(self.take_line(), "the writer ended by itself");
        }
        std::thread::sleep(std::time::Duration::from_micros(self.rng.random_range(0..3000)));
    }

    /// Stops it where it is: what it said until now was acknowledged before the cut.
    pub fn stop(&self) {
        let stopped = Command::new("kill").args(["-STOP", &self.child.id().to_string()]).status().unwrap();
        assert!(stopped.success(), "the writer cannot be stopped");
        // The signal reaches each of its threads, not all at once.
        let tasks = format!("/proc/{}/task", self.child.id());
        while !std::fs::read_dir(&tasks).unwrap().all(|task| is_stopped(&task.unwrap().path())) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Ends it for good, and gives what it said.
    pub fn kill(mut self) -> Acknowledged {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        while self.take_line() {}
        self.acknowledged
    }
}

/// Whether a thread is stopped, or has ended since it was listed.
fn is_stopped(task: &Path) -> bool {
    let Ok(stat) = std::fs::read_to_string(task.join("stat")) else { return true };
    stat.rsplit(')').next().is_some_and(|state| state.trim_start().starts_with('T'))
}
