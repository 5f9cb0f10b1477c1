//! Clients in Rust, told by their standard input what to do.
//!
//! A line is `put|get SIZE warm|fresh START SECONDS`: go on from now until SECONDS after START, a time of the monotonic clock; count what begins
//! at START and later. The answer is a line of JSON: `{"took": [seconds of each], "moved": bytes, those before START among them, "cpu": seconds}`, or
//! `{"error": why}`. `check SIZE` puts a pattern and gets it back.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use sira_benches::Failure;
use sira_client::{Client, Consistency, DType, GetOptions, PutOptions, TensorSpec};
use tokio::runtime::Runtime;

/// Bytes in a row of the tensors.
const ROW: usize = 1024;

/// Up to so many bytes, copying is cheaper than another system call.
const SMALL: usize = 128 << 10;

/// Bytes that a client which gets into new memory keeps before it gives them back.
const KEPT: usize = 128 << 20;

/// A connection that carries one tensor in and out.
trait Peer {
    fn put(&mut self, tensor: &Bytes) -> Result<(), Failure>;
    /// Fills `into`, which is as long as the tensor that was put last.
    fn get(&mut self, into: &mut [u8]) -> Result<(), Failure>;
}

/// Does what standard input says until it ends.
pub fn run(peer: &str, address: &str, key: &str) -> Result<(), Failure> {
    let mut peer: Box<dyn Peer> = match peer {
        "sira" => Box::new(Sira::connect(address, key)?),
        "raw" => Box::new(Raw::connect(address)?),
        "redis" => Box::new(Redis::connect(address, key)?),
        _ => return Err(format!("no client of {peer}").into()),
    };
    let mut buffers = Buffers::default();
    for line in std::io::stdin().lock().lines() {
        let answer = obey(peer.as_mut(), &mut buffers, &line?).unwrap_or_else(|e| serde_json::json!({ "error": e.to_string() }));
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// What is put, and where a get into warm memory goes.
#[derive(Default)]
struct Buffers {
    tensor: Bytes,
    warm: Vec<u8>,
}

impl Buffers {
    fn resize(&mut self, size: usize) {
        if self.tensor.len() != size {
            self.tensor = pattern(size);
            self.warm = vec![1; size];
        }
    }
}

fn pattern(size: usize) -> Bytes {
    (0..size).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<u8>>().into()
}

fn obey(peer: &mut dyn Peer, buffers: &mut Buffers, line: &str) -> Result<serde_json::Value, Failure> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["check", size] => {
            buffers.resize(size.parse()?);
            peer.put(&buffers.tensor)?;
            let mut back = vec![0; buffers.tensor.len()];
            peer.get(&mut back)?;
            if back != buffers.tensor {
                return Err("other bytes came back than were put".into());
            }
            Ok(serde_json::json!({}))
        }
        [operation @ ("put" | "get"), size, memory @ ("warm" | "fresh"), start, seconds] => {
            buffers.resize(size.parse()?);
            timed(peer, buffers, operation == "put", memory == "fresh", start.parse()?, seconds.parse()?)
        }
        _ => Err(format!("not understood: {line}").into()),
    }
}

/// Seconds of a clock; of `Monotonic`, as Python's time.monotonic() has them.
fn seconds_of(clock: ClockId) -> f64 {
    let now = clock_gettime(clock);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn timed(
    peer: &mut dyn Peer,
    buffers: &mut Buffers,
    put: bool,
    fresh: bool,
    start: f64,
    seconds: f64,
) -> Result<serde_json::Value, Failure> {
    let (mut took, mut moved, mut counts) = (Vec::new(), 0, false);
    let (cpu, mut kept) = (seconds_of(ClockId::ProcessCPUTime), Vec::new());
    loop {
        let now = seconds_of(ClockId::Monotonic);
        if now >= start + seconds && !took.is_empty() {
            break;
        }
        counts |= moved > 0 && now >= start;
        // Filling the source is not what is measured.
        let source = if put && fresh { Bytes::from(buffers.tensor.to_vec()) } else { buffers.tensor.clone() };
        let begun = Instant::now();
        if put {
            peer.put(&source)?;
        } else if fresh {
            let mut new = vec![0; buffers.tensor.len()];
            peer.get(&mut new)?;
            kept.push(new);
        } else {
            peer.get(&mut buffers.warm)?;
        }
        moved += buffers.tensor.len();
        if counts {
            took.push(begun.elapsed().as_secs_f64());
        }
        // What is given back at once is not new the next time.
        if kept.len() * buffers.tensor.len() >= KEPT {
            kept.clear();
        }
    }
    let cpu = seconds_of(ClockId::ProcessCPUTime) - cpu;
    Ok(serde_json::json!({ "took": took, "moved": moved, "cpu": cpu }))
}

struct Sira {
    runtime: Runtime,
    client: Client,
    key: String,
}

impl Sira {
    fn connect(url: &str, key: &str) -> Result<Sira, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(Client::connect(url))?;
        Ok(Sira { runtime, client, key: key.to_owned() })
    }
}

impl Peer for Sira {
    fn put(&mut self, tensor: &Bytes) -> Result<(), Failure> {
        let spec = TensorSpec::new(DType::UInt16, vec![(tensor.len() / ROW) as u64, ROW as u64 / 2])?;
        let options = PutOptions { consistency: Some(Consistency::Weak), ..PutOptions::default() };
        self.runtime.block_on(self.client.put_from(&self.key, &spec, tensor, options))?;
        Ok(())
    }

    fn get(&mut self, into: &mut [u8]) -> Result<(), Failure> {
        self.runtime.block_on(self.client.get_into(&self.key, &GetOptions::default(), into))?;
        Ok(())
    }
}

/// Sends pieces one after another; in one packet where they are small.
fn send(stream: &mut TcpStream, pieces: &[&[u8]]) -> std::io::Result<()> {
    if pieces.iter().map(|piece| piece.len()).sum::<usize>() <= SMALL {
        return stream.write_all(&pieces.concat());
    }
    pieces.iter().try_for_each(|piece| stream.write_all(piece))
}

struct Raw(TcpStream);

impl Raw {
    fn connect(address: &str) -> Result<Raw, Failure> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Raw(stream))
    }
}

/// What raw.rs understands.
fn raw_head(what: u8, length: usize) -> [u8; 9] {
    let mut head = [what; 9];
    head[1..].copy_from_slice(&(length as u64).to_le_bytes());
    head
}

impl Peer for Raw {
    fn put(&mut self, tensor: &Bytes) -> Result<(), Failure> {
        send(&mut self.0, &[&raw_head(b'P', tensor.len()), tensor])?;
        Ok(self.0.read_exact(&mut [0])?)
    }

    fn get(&mut self, into: &mut [u8]) -> Result<(), Failure> {
        self.0.write_all(&raw_head(b'G', into.len()))?;
        Ok(self.0.read_exact(into)?)
    }
}

/// SET and GET in RESP, the value received straight into its place.
struct Redis {
    stream: TcpStream,
    key: String,
}

impl Redis {
    fn connect(address: &str, key: &str) -> Result<Redis, Failure> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Redis { stream, key: key.to_owned() })
    }
}

impl Peer for Redis {
    fn put(&mut self, tensor: &Bytes) -> Result<(), Failure> {
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{}\r\n${}\r\n", self.key.len(), self.key, tensor.len());
        send(&mut self.stream, &[head.as_bytes(), tensor, b"\r\n"])?;
        let mut answer = [0; 5];
        self.stream.read_exact(&mut answer)?;
        if &answer == b"+OK\r\n" { Ok(()) } else { Err(format!("SET: {}", String::from_utf8_lossy(&answer)).into()) }
    }

    fn get(&mut self, into: &mut [u8]) -> Result<(), Failure> {
        self.stream.write_all(format!("*2\r\n$3\r\nGET\r\n${}\r\n{}\r\n", self.key.len(), self.key).as_bytes())?;
        let expected = format!("${}\r\n", into.len());
        let mut head = vec![0; expected.len()];
        self.stream.read_exact(&mut head)?;
        if head != expected.as_bytes() {
            return Err(format!("GET: {}", String::from_utf8_lossy(&head)).into());
        }
        self.stream.read_exact(into)?;
        Ok(self.stream.read_exact(&mut [0; 2])?)
    }
}
