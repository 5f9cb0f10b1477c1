//! What the store counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use sira_backend::StorageStats;
use tokio::time::Instant;

use crate::StorageClient;
use crate::client::{Inner, Tier};
use crate::coding::Coders;
use crate::fitness::Standing;
use crate::hot::HotTier;
use crate::ledger::Ledger;
use crate::moves::{Flow, MoveCounters};
use crate::observe::{BackendMeasurements, CodecMeasurements, Direction, Latency, Measured, Requests};

/// Counters since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub puts: AtomicU64,
    pub put_bytes: AtomicU64,
    pub gets: AtomicU64,
    pub get_bytes: AtomicU64,
    pub deletes: AtomicU64,
    pub expired: AtomicU64,
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub corrupt: AtomicU64,
    pub requests: Requests,
}

/// The answer of `stats`.
#[derive(Clone, Debug, Serialize)]
pub struct StoreStats {
    /// Since the start.
    pub operations: OperationStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Share of the gets that were answered from memory, 0 to 1; `None` before the first.
    pub hit_ratio: Option<f64>,
    /// Bytes of chunks before they were encoded, for one byte stored; `None` before the first. Tensors in their record are left out.
    pub compression_ratio: Option<f64>,
    /// Each backend, by name.
    pub backends: BTreeMap<String, BackendStats>,
    /// Chunks through codecs, by chain without what its stages were given.
    pub codecs: BTreeMap<String, CodecStats>,
    /// Processors that code chunks.
    pub coding: CodingStats,
    /// What the whole process wrote to disks.
    pub device: DeviceStats,
    /// Tensors that changed their place, since the start.
    pub moves: MoveStats,
}

/// What the whole process wrote to disks: backends, catalog, logs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeviceStats {
    /// Bytes that the system counts for this process (`write_bytes` of `/proc/self/io`): pages that were written to, once each time they go to a
    /// disk. `None` where the system does not say.
    pub written_bytes: Option<u64>,
    /// These for one raw byte put; `None` before the first.
    pub written_per_byte_put: Option<f64>,
}

/// Tensors that changed their place.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct MoveStats {
    /// To the tier below, for the room.
    pub demoted: FlowStats,
    /// To the tier above, for being read.
    pub promoted: FlowStats,
    /// By a migration.
    pub migrated: FlowStats,
    /// To one more backend, where their namespace asks for copies.
    pub copied: FlowStats,
    /// Parts of those that got another codec with their place, and their bytes in it.
    pub recoded: FlowStats,
    /// Moves that failed; the tensors stayed where they were.
    pub failed: u64,
    /// Bytes a second that moves may take that nobody waits for; `None` without a limit.
    pub rate: Option<u64>,
    /// Seconds that they waited for that, all together.
    pub waited_seconds: f64,
}

/// Tensors, and their bytes as they are stored.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FlowStats {
    /// How many.
    pub tensors: u64,
    /// Bytes.
    pub bytes: u64,
}

impl FlowStats {
    fn of(flow: &Flow) -> FlowStats {
        FlowStats { tensors: flow.tensors.load(Ordering::Relaxed), bytes: flow.bytes.load(Ordering::Relaxed) }
    }
}

impl MoveStats {
    pub(crate) fn of(inner: &Inner) -> MoveStats {
        let MoveCounters { demoted, promoted, migrated, copied, recoded, failed } = &inner.moves;
        MoveStats {
            demoted: FlowStats::of(demoted),
            promoted: FlowStats::of(promoted),
            migrated: FlowStats::of(migrated),
            copied: FlowStats::of(copied),
            recoded: FlowStats::of(recoded),
            failed: failed.load(Ordering::Relaxed),
            rate: inner.throttle.rate(),
            waited_seconds: inner.throttle.waited(),
        }
    }
}

/// Processors that code chunks.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CodingStats {
    /// Chunks that are coded at once, at most.
    pub limit: u64,
    /// Chunks that wait for their turn.
    pub waiting: u64,
}

/// A family of codec chains.
#[derive(Clone, Debug, Serialize)]
pub struct CodecStats {
    /// Raw bytes of the chunks that were encoded, for one byte of what they became.
    pub ratio: Option<f64>,
    /// Chunks that were encoded, and measured where the codec is lossy.
    pub encode: CodingTimes,
    /// Chunks that were decoded.
    pub decode: CodingTimes,
}

/// Chunks that went one way through a codec.
#[derive(Clone, Debug, Serialize)]
pub struct CodingTimes {
    /// How many.
    pub chunks: u64,
    /// Their bytes as they are read.
    pub raw_bytes: u64,
    /// Their bytes as they are stored.
    pub stored_bytes: u64,
    /// Seconds of processors that all of them took.
    pub seconds: f64,
    /// Milliseconds that 95 of 100 did not exceed.
    pub p95_ms: Option<f64>,
    /// Raw bytes that one processor codes in a second.
    pub bytes_per_second: Option<f64>,
}

impl CodingTimes {
    fn of(latency: &Latency, raw_bytes: u64, stored_bytes: u64) -> CodingTimes {
        let seconds = (latency.seconds * 1e6).round() / 1e6;
        CodingTimes {
            chunks: latency.count(),
            raw_bytes,
            stored_bytes,
            seconds,
            p95_ms: milliseconds(latency.quantile(0.95)),
            bytes_per_second: (latency.seconds > 0.0).then(|| (raw_bytes as f64 / latency.seconds).round()),
        }
    }
}

impl CodecStats {
    fn of(measured: &CodecMeasurements) -> CodecStats {
        CodecStats {
            ratio: ratio(measured.raw_in, measured.stored_out),
            encode: CodingTimes::of(&measured.encode, measured.raw_in, measured.stored_out),
            decode: CodingTimes::of(&measured.decode, measured.raw_out, measured.stored_in),
        }
    }
}

/// Operations since the start.
#[derive(Clone, Debug, Serialize)]
pub struct OperationStats {
    /// Puts committed.
    pub puts: u64,
    /// Raw bytes of them.
    pub put_bytes: u64,
    /// Gets begun.
    pub gets: u64,
    /// Raw bytes read.
    pub get_bytes: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Keys expired.
    pub expired: u64,
    /// Chunks that failed their checksum.
    pub corrupt: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryStats {
    /// Of the ledger.
    pub limit: u64,
    /// Set aside right now.
    pub used: u64,
    /// Of the hot tier.
    pub hot_limit: u64,
    /// In the hot tier.
    pub hot_bytes: u64,
    /// Of weak puts that are not written yet.
    pub unwritten_bytes: u64,
    /// Gets answered from memory.
    pub hits: u64,
    /// Gets that went to a backend.
    pub misses: u64,
}

/// One backend: what it knows of itself, and what was measured of it since the start.
#[derive(Clone, Debug, Serialize)]
pub struct BackendStats {
    /// Values stored.
    pub values: Option<u64>,
    /// Bytes they take.
    pub used_bytes: Option<u64>,
    /// Bytes that may still be written.
    pub available_bytes: Option<u64>,
    /// Why the backend could not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// All calls together, but those that only ask the backend how it is: `stats` and `health_check`.
    pub total: CallStats,
    /// Each kind of call; kinds that were never called are left out.
    pub operations: BTreeMap<&'static str, CallStats>,
    /// Bytes of values put.
    pub bytes_in: u64,
    /// Bytes of values got.
    pub bytes_out: u64,
    /// Share of the gets of tensors whose home this is that were answered from memory.
    pub hit_ratio: Option<f64>,
    /// Bytes of chunks before they were encoded, for one byte stored here.
    pub compression_ratio: Option<f64>,
    /// Bytes of values put in a second; what is a minute old counts half.
    pub bytes_in_per_second: f64,
    /// Bytes of values got in a second, likewise.
    pub bytes_out_per_second: f64,
    /// Bytes that it wrote to disks of this machine since it was opened, where it counts them.
    pub device_bytes: Option<u64>,
    /// These for one byte of values put: what logs and tidying up cost.
    pub device_bytes_per_byte_in: Option<f64>,
    /// Whether it gets new tensors: `fit`, or why it is degraded or out.
    pub state: String,
    /// Whether it gets none while another can take them.
    pub out: bool,
    #[serde(skip)]
    raw_bytes: u64,
    #[serde(skip)]
    stored_bytes: u64,
}

/// Calls of one kind. Latencies are of those that went well; `None` where none did. Quantiles are as exact as the buckets they are read from.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CallStats {
    /// How many went well.
    pub ok: u64,
    /// How many failed, or were given up by their caller.
    pub failed: u64,
    /// Milliseconds on average.
    pub mean_ms: Option<f64>,
    /// Milliseconds that 95 of 100 did not exceed.
    pub p95_ms: Option<f64>,
    /// Milliseconds that 99 of 100 did not exceed.
    pub p99_ms: Option<f64>,
}

impl DeviceStats {
    fn now(put_bytes: u64) -> DeviceStats {
        let io = std::fs::read_to_string("/proc/self/io").ok();
        let written_bytes = io.and_then(|io| io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok()));
        DeviceStats { written_bytes, written_per_byte_put: written_bytes.and_then(|written| ratio(written, put_bytes)) }
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// To the microsecond.
fn milliseconds(seconds: Option<f64>) -> Option<f64> {
    seconds.map(|seconds| (seconds * 1e6).round() / 1e3)
}

impl CallStats {
    fn of<'a>(rows: impl Iterator<Item = &'a Measured>) -> CallStats {
        let (mut ok, mut failed) = (Latency::default(), 0);
        for row in rows {
            match row.outcome {
                "ok" => ok.add(&row.latency),
                _ => failed += row.latency.count(),
            }
        }
        CallStats {
            ok: ok.count(),
            failed,
            mean_ms: milliseconds(ok.mean()),
            p95_ms: milliseconds(ok.quantile(0.95)),
            p99_ms: milliseconds(ok.quantile(0.99)),
        }
    }
}

fn calls(measured: &[Measured]) -> BTreeMap<&'static str, CallStats> {
    let called = measured.iter().filter(|row| row.latency.count() > 0).map(|row| row.operation);
    called.map(|kind| (kind, CallStats::of(measured.iter().filter(|row| row.operation == kind)))).collect()
}

impl BackendStats {
    pub(crate) fn of(tier: &Tier, stats: Result<StorageStats, String>) -> BackendStats {
        let (measured, now) = (tier.meter.read(), Instant::now());
        let rate = |direction| (tier.meter.speeds.rate(direction, now) * 10.0).round() / 10.0;
        let device_bytes = tier.backend.device_bytes_written();
        let error = stats.as_ref().err().cloned();
        let stats = stats.unwrap_or_default();
        BackendStats {
            values: stats.values,
            used_bytes: stats.used_bytes,
            available_bytes: stats.available_bytes,
            error,
            total: CallStats::of(measured.calls.iter().filter(|row| !matches!(row.operation, "stats" | "health_check"))),
            operations: calls(&measured.calls),
            bytes_in: measured.bytes_in,
            bytes_out: measured.bytes_out,
            hit_ratio: ratio(measured.hits, measured.hits + measured.misses),
            compression_ratio: ratio(measured.raw_bytes, measured.stored_bytes),
            bytes_in_per_second: rate(Direction::Put),
            bytes_out_per_second: rate(Direction::Get),
            device_bytes,
            device_bytes_per_byte_in: device_bytes.and_then(|written| ratio(written, measured.bytes_in)),
            state: tier.meter.fitness.describe(now),
            out: tier.meter.fitness.standing() == Standing::Out,
            raw_bytes: measured.raw_bytes,
            stored_bytes: measured.stored_bytes,
        }
    }
}

/// Everything that was measured, with its histograms.
#[derive(Clone, Debug)]
pub struct Measurements {
    /// Requests of clients.
    pub requests: Vec<Measured>,
    /// Calls of each backend, by its name.
    pub backends: BTreeMap<String, BackendMeasurements>,
    /// Chunks through codecs, by chain without what its stages were given.
    pub codecs: BTreeMap<String, CodecMeasurements>,
}

impl StorageClient {
    /// Everything that was measured; asks no backend.
    pub fn measurements(&self) -> Measurements {
        let tiers = self.inner.all_tiers();
        let backends = tiers.iter().map(|tier| (tier.name.clone(), tier.meter.read())).collect();
        Measurements { requests: self.inner.counters.requests.read(), backends, codecs: self.inner.coders.read() }
    }
}

impl Inner {
    /// Counts a get that found its tensor in memory, or goes to its home: a backend, or the record backend where the record names none.
    pub fn looked_up(&self, home: Option<&str>, hit: bool) {
        if hit { &self.counters.hits } else { &self.counters.misses }.fetch_add(1, Ordering::Relaxed);
        if let Ok(tier) = self.tier(home.unwrap_or(&self.options.record_backend)) {
            tier.meter.looked_up(hit);
        }
    }
}

impl Counters {
    pub fn snapshot(
        &self,
        ledger: &Ledger,
        coders: &Coders,
        hot: &[Arc<HotTier>],
        unwritten_bytes: u64,
        backends: BTreeMap<String, BackendStats>,
    ) -> StoreStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let all = |bytes: fn(&BackendStats) -> u64| backends.values().map(bytes).sum();
        StoreStats {
            operations: OperationStats {
                puts: of(&self.puts),
                put_bytes: of(&self.put_bytes),
                gets: of(&self.gets),
                get_bytes: of(&self.get_bytes),
                deletes: of(&self.deletes),
                expired: of(&self.expired),
                corrupt: of(&self.corrupt),
            },
            memory: MemoryStats {
                limit: ledger.limit(),
                used: ledger.used(),
                hot_limit: hot[0].limit(),
                hot_bytes: hot.iter().map(|hot| hot.bytes()).sum(),
                unwritten_bytes,
                hits: of(&self.hits),
                misses: of(&self.misses),
            },
            hit_ratio: ratio(of(&self.hits), of(&self.hits) + of(&self.misses)),
            compression_ratio: ratio(all(|stats| stats.raw_bytes), all(|stats| stats.stored_bytes)),
            backends,
            codecs: coders.read().iter().map(|(family, measured)| (family.clone(), CodecStats::of(measured))).collect(),
            coding: CodingStats { limit: coders.count() as u64, waiting: coders.waiting() },
            device: DeviceStats::now(of(&self.put_bytes)),
            moves: MoveStats::default(),
        }
    }
}
