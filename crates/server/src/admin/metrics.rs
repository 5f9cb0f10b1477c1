//! `/metrics`: what was measured, in the OpenMetrics text format. docs/metrics.md lists all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use sira_store::observe::{BUCKETS, BackendMeasurements, CodecMeasurements, Latency, Measured};
use sira_store::{BackendStats, Measurements, StoreStats};

use super::State;
use super::process::Process;

/// What Prometheus takes the answer for.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names and values of labels.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// All metrics as they are now. Before the store is open, those of the process alone.
pub(super) async fn text(state: &Arc<State>) -> Result<String, fmt::Error> {
    let snapshot = Snapshot {
        process: Process::read(),
        phase: state.phase(),
        store: state.stats().await.map(|(store, stats)| (store.measurements(), stats)),
        tiers: state.tiers.backends.clone(),
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Everything at one moment.
#[derive(Debug)]
struct Snapshot {
    process: Option<Process>,
    phase: &'static str,
    store: Option<(Measurements, StoreStats)>,
    tiers: BTreeMap<String, (&'static str, Option<u64>)>,
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        out.info("sira_build", "The version that runs", &vec![("version", env!("CARGO_PKG_VERSION"))])?;
        let ready = u64::from(self.phase == "serving");
        out.gauge("sira_serving", "1 while it takes puts: not while it starts or drains", None, [(vec![], ready as f64)])?;
        if let Some(process) = &self.process {
            process_metrics(&mut out, process)?;
        }
        if let Some((measured, stats)) = &self.store {
            requests(&mut out, measured, stats)?;
            backends(&mut out, measured)?;
            codecs(&mut out, measured, stats)?;
            self.tiers(&mut out, stats)?;
            placement(&mut out, stats)?;
            store(&mut out, stats)?;
            moves(&mut out, stats)?;
        }
        Ok(())
    }
}

fn process_metrics(out: &mut Out<'_>, process: &Process) -> fmt::Result {
    out.counter("process_cpu", "Processor time", Some(Unit::Seconds), [(vec![], process.cpu_seconds)])?;
    out.gauge("process_resident_memory", "Resident memory", Some(Unit::Bytes), [(vec![], process.resident_bytes as f64)])?;
    out.gauge("process_open_fds", "Open file descriptors", None, [(vec![], process.open_fds as f64)])?;
    out.gauge("process_max_fds", "Limit of open file descriptors", None, process.max_fds.map(|limit| (vec![], limit as f64)))?;
    out.gauge("process_threads", "Threads", None, [(vec![], process.threads as f64)])
}

fn requests(out: &mut Out<'_>, measured: &Measurements, stats: &StoreStats) -> fmt::Result {
    let labels = |row: &Measured| vec![("operation", row.operation), ("outcome", row.outcome)];
    let counts = measured.requests.iter().map(|row| (labels(row), row.latency.count()));
    out.counter("sira_requests", "Requests of clients that have ended", None, counts)?;
    let times = measured.requests.iter().filter(|row| shown(row)).map(|row| (labels(row), row.latency));
    out.histogram("sira_request", "Time to the answer; of a get, to its first bytes", times)?;
    let bytes = [("put", stats.operations.put_bytes), ("get", stats.operations.get_bytes)];
    let bytes = bytes.map(|(operation, bytes)| (vec![("operation", operation)], bytes));
    out.counter("sira_request", "Raw bytes of tensors put, and of gets", Some(Unit::Bytes), bytes)
}

/// Failures have a histogram once there is one.
fn shown(row: &Measured) -> bool {
    row.outcome == "ok" || row.latency.count() > 0
}

fn backends(out: &mut Out<'_>, measured: &Measurements) -> fmt::Result {
    let rows = || measured.backends.iter().flat_map(|(name, backend)| backend.calls.iter().map(move |row| (name.as_str(), row)));
    let labels = |name, row: &Measured| vec![("backend", name), ("operation", row.operation), ("outcome", row.outcome)];
    let counts = rows().map(|(name, row)| (labels(name, row), row.latency.count()));
    out.counter("sira_backend_operations", "Calls of backends that have ended", None, counts)?;
    let times = rows().filter(|(_, row)| shown(row)).map(|(name, row)| (labels(name, row), row.latency));
    out.histogram("sira_backend_operation", "Time that backends took", times)?;
    let of = |count: fn(&BackendMeasurements) -> u64| {
        measured.backends.iter().map(move |(name, backend)| (vec![("backend", name.as_str())], count(backend))).collect::<Vec<_>>()
    };
    let bytes = measured.backends.iter().flat_map(|(name, backend)| {
        [("in", backend.bytes_in), ("out", backend.bytes_out)]
            .map(|(way, bytes)| (vec![("backend", name.as_str()), ("direction", way)], bytes))
    });
    out.counter("sira_backend", "Bytes of values put into backends and got from them", Some(Unit::Bytes), bytes)?;
    out.counter("sira_chunk_raw", "Bytes of chunks before they were encoded", Some(Unit::Bytes), of(|backend| backend.raw_bytes))?;
    out.counter("sira_chunk_stored", "Bytes of the same chunks as stored", Some(Unit::Bytes), of(|backend| backend.stored_bytes))?;
    out.counter("sira_hot_hits", "Gets answered from memory, by the home of their tensors", None, of(|backend| backend.hits))?;
    out.counter("sira_hot_misses", "Gets that read the home of their tensors", None, of(|backend| backend.misses))
}

/// Chunks through codecs, and those that wait for a processor.
fn codecs(out: &mut Out<'_>, measured: &Measurements, stats: &StoreStats) -> fmt::Result {
    let ways = |codec: &CodecMeasurements| {
        [("encode", codec.encode, [codec.raw_in, codec.stored_out]), ("decode", codec.decode, [codec.raw_out, codec.stored_in])]
    };
    let rows = || measured.codecs.iter().flat_map(move |(family, codec)| ways(codec).map(|way| (family.as_str(), way)));
    let times = rows().filter(|(_, (_, latency, _))| latency.count() > 0);
    let times = times.map(|(family, (way, latency, _))| (vec![("codec", family), ("direction", way)], latency));
    out.histogram("sira_codec", "Time of a processor for one chunk", times)?;
    for (at, name, help) in [
        (0, "sira_codec_raw", "Bytes of chunks as they are read, that were encoded or decoded"),
        (1, "sira_codec_stored", "Bytes of the same chunks as they are stored"),
    ] {
        let bytes = rows().map(|(family, (way, _, bytes))| (vec![("codec", family), ("direction", way)], bytes[at]));
        out.counter(name, help, Some(Unit::Bytes), bytes)?;
    }
    out.gauge("sira_codec_waiting", "Chunks that wait for a processor", None, [(vec![], stats.coding.waiting as f64)])?;
    out.gauge("sira_codec_limit", "Chunks that are coded at once, at most", None, [(vec![], stats.coding.limit as f64)])?;
    let ratios = stats.backends.iter().filter_map(|(name, backend)| Some((vec![("backend", name.as_str())], backend.compression_ratio?)));
    out.gauge("sira_backend_compression_ratio", "Bytes of a backend's chunks before they were encoded, for one stored", None, ratios)
}

impl Snapshot {
    /// Bytes and limits of the hot tier and of each backend. The kind tells the hot tier from a backend that is named `memory` too.
    fn tiers(&self, out: &mut Out<'_>, stats: &StoreStats) -> fmt::Result {
        let memory = &stats.memory;
        let mut used = vec![("memory", "hot", Some(memory.hot_bytes))];
        let mut limit = vec![("memory", "hot", Some(memory.hot_limit))];
        let mut available = vec![("memory", "hot", Some(memory.hot_limit.saturating_sub(memory.hot_bytes)))];
        for (name, backend) in &stats.backends {
            let (kind, max) = self.tiers.get(name).copied().unwrap_or(("other", None));
            used.push((name, kind, backend.used_bytes));
            limit.push((name, kind, max));
            available.push((name, kind, backend.available_bytes));
        }
        for (name, help, rows) in [
            ("sira_tier_used", "Bytes that lie in a tier", used),
            ("sira_tier_limit", "Bytes that may lie in a tier by configuration", limit),
            ("sira_tier_available", "Bytes that may still be written: of the limit, or of the disk", available),
        ] {
            let known = rows.into_iter().filter_map(|(tier, kind, bytes)| Some((vec![("tier", tier), ("kind", kind)], bytes? as f64)));
            out.gauge(name, help, Some(Unit::Bytes), known)?;
        }
        Ok(())
    }
}

/// What routing goes by, and what a byte costs the disks.
fn placement(out: &mut Out<'_>, stats: &StoreStats) -> fmt::Result {
    let of = |value: fn(&BackendStats) -> Option<f64>| {
        let rows = stats.backends.iter().filter_map(move |(name, backend)| Some((vec![("backend", name.as_str())], value(backend)?)));
        rows.collect::<Vec<_>>()
    };
    let fit = of(|backend| Some(f64::from(u8::from(!backend.out))));
    out.gauge("sira_backend_fit", "1 while a backend gets new tensors; 0 while it does not, where another can take them", None, fit)?;
    let rates = stats.backends.iter().flat_map(|(name, backend)| {
        let ways = [("in", backend.bytes_in_per_second), ("out", backend.bytes_out_per_second)];
        ways.map(|(way, rate)| (vec![("backend", name.as_str()), ("direction", way)], rate))
    });
    let help = "Bytes of values in a second; what is a minute old counts half";
    out.gauge("sira_backend_throughput_bytes_per_second", help, None, rates)?;
    let hits = of(|backend| backend.hit_ratio);
    out.gauge("sira_backend_hit_ratio", "Share of gets of a backend's tensors answered from memory since the start", None, hits)?;
    let written = stats.backends.iter().filter_map(|(name, backend)| Some((vec![("backend", name.as_str())], backend.device_bytes?)));
    out.counter("sira_backend_device_written", "Bytes that a backend wrote to disks of this machine", Some(Unit::Bytes), written)?;
    let help = "Bytes that a backend wrote to disks for one byte of values put, since it was opened";
    out.gauge("sira_backend_write_amplification", help, None, of(|backend| backend.device_bytes_per_byte_in))
}

fn store(out: &mut Out<'_>, stats: &StoreStats) -> fmt::Result {
    let memory = &stats.memory;
    for (name, help, bytes) in [
        ("sira_memory_ledger_used", "Memory set aside for tensors right now", memory.used),
        ("sira_memory_ledger_limit", "Memory that may be set aside", memory.limit),
        ("sira_memory_unwritten", "Bytes acknowledged in memory only", memory.unwritten_bytes),
    ] {
        out.gauge(name, help, Some(Unit::Bytes), [(vec![], bytes as f64)])?;
    }
    let alone = |value: Option<f64>| value.map(|value| (vec![], value));
    out.gauge("sira_hit_ratio", "Share of gets answered from memory since the start", None, alone(stats.hit_ratio))?;
    let help = "Bytes of chunks before they were encoded, for one byte stored, since the start";
    out.gauge("sira_compression_ratio", help, None, alone(stats.compression_ratio))?;
    let written = stats.device.written_bytes.map(|bytes| (vec![], bytes));
    out.counter(
        "sira_device_written",
        "Bytes that the whole process wrote to disks, as the system counts them",
        Some(Unit::Bytes),
        written,
    )?;
    out.counter("sira_corrupt", "Chunks that failed their checksum", None, [(vec![], stats.operations.corrupt)])?;
    out.counter("sira_expired", "Keys that have expired", None, [(vec![], stats.operations.expired)])
}

/// Tensors that changed their place.
fn moves(out: &mut Out<'_>, stats: &StoreStats) -> fmt::Result {
    let moves = &stats.moves;
    let flows = [("demote", moves.demoted), ("promote", moves.promoted), ("migrate", moves.migrated), ("copy", moves.copied)];
    let tensors = flows.map(|(reason, flow)| (vec![("reason", reason)], flow.tensors));
    out.counter("sira_moved_tensors", "Tensors that were moved or copied to another backend", None, tensors)?;
    let bytes = flows.map(|(reason, flow)| (vec![("reason", reason)], flow.bytes));
    out.counter("sira_moved", "Stored bytes of them", Some(Unit::Bytes), bytes)?;
    let help = "Parts that got another codec when they moved";
    out.counter("sira_moves_recoded_parts", help, None, [(vec![], moves.recoded.tensors)])?;
    let help = "Stored bytes of them, in the new codec";
    out.counter("sira_moves_recoded", help, Some(Unit::Bytes), [(vec![], moves.recoded.bytes)])?;
    out.counter("sira_moves_failed", "Moves that failed; their tensors stayed where they were", None, [(vec![], moves.failed)])?;
    let help = "Time that moves waited to keep to their rate";
    out.counter("sira_moves_throttled", help, Some(Unit::Seconds), [(vec![], moves.waited_seconds)])?;
    let rate = moves.rate.map(|rate| (vec![], rate as f64));
    out.gauge("sira_moves_rate_limit", "Bytes a second that moves may take which nobody waits for", Some(Unit::Bytes), rate)
}

/// Families of metrics, one after the other. Names are without their unit and `_total`, which the encoder appends.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn info(&mut self, name: &str, help: &str, labels: &Labels<'_>) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }

    fn counter<'l, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        rows: impl IntoIterator<Item = (Labels<'l>, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        rows.into_iter().try_for_each(|(labels, value)| {
            labelled(&mut family, &labels, |metric| metric.encode_counter::<NoLabelSet, _, f64>(&value, None))
        })
    }

    fn gauge<'l>(&mut self, name: &str, help: &str, unit: Option<Unit>, rows: impl IntoIterator<Item = (Labels<'l>, f64)>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        rows.into_iter().try_for_each(|(labels, value)| labelled(&mut family, &labels, |metric| metric.encode_gauge(&value)))
    }

    /// Of seconds.
    fn histogram<'l>(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels<'l>, Latency)>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        rows.into_iter().try_for_each(|(labels, latency)| {
            let buckets: [(f64, u64); BUCKETS] = std::array::from_fn(|bucket| (Latency::bound(bucket), latency.buckets[bucket]));
            labelled(&mut family, &labels, |metric| metric.encode_histogram::<NoLabelSet>(latency.seconds, latency.count(), &buckets, None))
        })
    }
}

fn labelled(family: &mut MetricEncoder<'_>, labels: &Labels<'_>, write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result) -> fmt::Result {
    // An empty set would be written as `{}`.
    if labels.is_empty() { write(family) } else { write(&mut family.encode_family(labels)?) }
}
