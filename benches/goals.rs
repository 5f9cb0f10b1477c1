//! The goals of batches, measured on the program itself (`bin/sira`, or SIRA_BIN) from this process:
//! a lookup of 8,192 keys, and 2,048 tensors of 256 KiB beside tensors of 16 MiB in the same run. Prints; asserts nothing.

#![allow(clippy::print_stdout, reason = "its output is the result")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::stream;
use sira_benches::{Failure, quartiles};
use sira_client::{Client, DType, GetManyOptions, GetOptions, LookupOptions, PutEntry, PutOptions, TensorSpec};

const KEYS: usize = 8192;
const LOOKUPS: usize = 500;
const SMALL: usize = 256 << 10;
const MANY: usize = 2048;
const LARGE: usize = 16 << 20;
const ROUNDS: usize = 9;

/// The program, killed at the end.
struct Server {
    child: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Server {
    fn start() -> Result<Server, Failure> {
        let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bin/sira");
        let program = std::env::var_os("SIRA_BIN").map_or(built, PathBuf::from);
        let data = tempfile::tempdir()?;
        let mut child = Command::new(&program)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .env("SIRA_MEMORY__LIMIT", "3 GiB")
            .env("SIRA_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}; make build makes it", program.display()))?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        for line in BufReader::new(stdout).lines() {
            if let Some(url) = line?.strip_prefix("sira: listening on ") {
                return Ok(Server { child, url: url.to_owned(), _data: data });
            }
        }
        Err("the server ended before it listened".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn lookups(client: &Client) -> Result<(), Failure> {
    let spec = TensorSpec::new(DType::UInt8, vec![64])?;
    let key = |i: usize| format!("lookup/{i:064x}");
    let entries: Vec<_> = (0..KEYS / 2).map(|i| PutEntry::new(key(2 * i), spec.clone(), vec![1u8; 64])).collect();
    client.put_many(stream::iter(entries)).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
    for (name, step) in [("all there", 2), ("every other one there", 1)] {
        let keys: Vec<String> = (0..KEYS).map(|i| key(i * step % KEYS)).collect();
        let options = LookupOptions { deadline: sira_client::Deadline::Never, ..LookupOptions::default() };
        let mut took = Vec::with_capacity(LOOKUPS);
        for _ in 0..LOOKUPS {
            let begun = Instant::now();
            let found = client.exists_many(&keys, &options).await?;
            took.push(begun.elapsed());
            if found.exists.len() != KEYS {
                return Err("a lookup that does not answer all keys".into());
            }
        }
        let first = took[0];
        took.sort();
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let (p50, p99) = (ms(took[LOOKUPS / 2]), ms(took[LOOKUPS * 99 / 100]));
        println!("exists_many of {KEYS} keys, {name}: first {:.2} ms, p50 {p50:.2} ms, p99 {p99:.2} ms (goal: p99 under 5 ms)", ms(first));
    }
    Ok(())
}

async fn batches(client: &Client) -> Result<(), Failure> {
    let raw = sira_benches::kv_cache(LARGE)?;
    let (small, large) =
        (TensorSpec::new(DType::BFloat16, vec![SMALL as u64 / 2])?, TensorSpec::new(DType::BFloat16, vec![LARGE as u64 / 2])?);
    let keys: Vec<String> = (0..MANY).map(|i| format!("batch/{i}")).collect();
    let piece = bytes::Bytes::from(raw.clone());
    let entries: Vec<_> =
        (0..MANY).map(|i| PutEntry::new(keys[i].clone(), small.clone(), piece.slice(i % 64 * SMALL..(i % 64 + 1) * SMALL))).collect();
    let begun = Instant::now();
    client.put_many(stream::iter(entries)).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
    let gb = (MANY * SMALL) as f64 / 1e9;
    println!("put_many of {MANY} x 256 KiB: {:.2} GB/s", gb / begun.elapsed().as_secs_f64());
    let count = MANY * SMALL / LARGE;
    for i in 0..count {
        client.put(&format!("large/{i}"), &large, raw.clone(), PutOptions::default()).await?;
    }
    let mut buffers = vec![vec![0u8; SMALL]; MANY];
    let mut whole = vec![0u8; LARGE];
    let (mut many, mut single, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    // One round warms memory on both sides.
    for round in 0..=ROUNDS {
        let begun = Instant::now();
        let stream = client.get_many(&keys, &GetManyOptions::default()).await?;
        stream.read_into(&mut buffers).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
        let batch = gb / begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        for i in 0..count {
            let mut tensor = client.get(&format!("large/{i}"), &GetOptions::default()).await?;
            let mut at = 0;
            while let Some(piece) = tensor.next().await? {
                whole[at..at + piece.len()].copy_from_slice(&piece);
                at += piece.len();
            }
        }
        let one = gb / begun.elapsed().as_secs_f64();
        if round > 0 {
            many.push(batch);
            single.push(one);
            ratios.push(batch / one);
        }
    }
    let shown = |name: &str, values: Vec<f64>, unit: &str| {
        let (low, median, high) = quartiles(values);
        println!("{name}: median {median:.2}{unit} (quartiles {low:.2} to {high:.2})");
    };
    shown("get_many of 2,048 x 256 KiB", many, " GB/s");
    shown("get of 16 MiB, one after another", single, " GB/s");
    shown("ratio of the two, round by round (goal: at least 0.9)", ratios, "");
    Ok(())
}

fn main() -> Result<(), Failure> {
    // cargo test runs benches without --bench; there is nothing to test here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let server = Server::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::connect(&server.url).await?;
        lookups(&client).await?;
        batches(&client).await
    })
}
