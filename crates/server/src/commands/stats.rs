//! `sira stats`: what a server has done since its start, and how each of its backends does.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::table::{self, Column};
use super::{Server, plural, print, print_line};
use crate::Failure;
use crate::config::units::short_size;

/// `sira stats`.
pub(crate) async fn stats(server: Server<'_>, json: bool) -> Result<(), Failure> {
    let answer = server.connect().await?.stats().await?;
    if json {
        return print_line(&answer);
    }
    let stats: Stats = serde_json::from_value(answer).map_err(|error| Failure::with("the server's stats are not understood", error))?;
    print(&stats.text())
}

/// What is shown of the answer. A server may say more, or less.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stats {
    operations: Operations,
    memory: Memory,
    hit_ratio: Option<f64>,
    backends: BTreeMap<String, Backend>,
    device: Device,
    moves: Moves,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Operations {
    puts: u64,
    put_bytes: u64,
    gets: u64,
    get_bytes: u64,
    deletes: u64,
    expired: u64,
    corrupt: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    limit: u64,
    used: u64,
    hot_limit: u64,
    hot_bytes: u64,
    unwritten_bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Device {
    written_bytes: Option<u64>,
    written_per_byte_put: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Moves {
    demoted: Flow,
    promoted: Flow,
    migrated: Flow,
    copied: Flow,
    failed: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Flow {
    tensors: u64,
    bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Backend {
    used_bytes: Option<u64>,
    available_bytes: Option<u64>,
    error: Option<String>,
    operations: BTreeMap<String, Calls>,
    total: Calls,
    bytes_in_per_second: Option<f64>,
    bytes_out_per_second: Option<f64>,
    hit_ratio: Option<f64>,
    compression_ratio: Option<f64>,
    device_bytes_per_byte_in: Option<f64>,
    state: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Calls {
    ok: u64,
    failed: u64,
    mean_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
}

impl Moves {
    /// Nothing where nothing has moved.
    fn text(&self) -> Option<String> {
        let Moves { demoted, promoted, migrated, copied, failed } = self;
        let flows = [("demoted", demoted), ("promoted", promoted), ("migrated", migrated), ("copied", copied)];
        let flows = flows.into_iter().filter(|(_, flow)| flow.tensors > 0);
        let mut what: Vec<String> =
            flows.map(|(what, flow)| format!("{} {what} ({})", plural(flow.tensors, "tensor"), short_size(flow.bytes))).collect();
        if *failed > 0 {
            what.push(format!("{} failed", plural(*failed, "move")));
        }
        (!what.is_empty()).then(|| format!("moved: {}", what.join(", ")))
    }
}

impl Stats {
    fn text(&self) -> String {
        let Operations { puts, put_bytes, gets, get_bytes, deletes, expired, corrupt } = self.operations;
        let Memory { limit, used, hot_limit, hot_bytes, unwritten_bytes } = self.memory;
        let mut lines = vec![
            format!(
                "{puts} puts of {}, {gets} gets of {}, {deletes} deletes; {expired} expired, {corrupt} corrupt",
                short_size(put_bytes),
                short_size(get_bytes)
            ),
            format!(
                "memory: {} of {} set aside; {} of {} hold tensors, {} not yet written; {} of the gets answered from it",
                short_size(used),
                short_size(limit),
                short_size(hot_bytes),
                short_size(hot_limit),
                short_size(unwritten_bytes),
                share(self.hit_ratio)
            ),
            format!("written to disks: {}, {} for a byte put", size(self.device.written_bytes), ratio(self.device.written_per_byte_put)),
        ];
        lines.extend(self.moves.text());
        lines.extend([String::new(), self.backends()]);
        let calls = self.calls();
        if !calls.is_empty() {
            lines.extend([String::new(), calls]);
        }
        let troubles = self.troubles();
        if !troubles.is_empty() {
            lines.extend([String::new(), troubles]);
        }
        lines.join("\n")
    }

    /// A line a backend.
    fn backends(&self) -> String {
        let columns = [
            Column("BACKEND", false),
            Column("STATE", false),
            Column("USED", true),
            Column("FREE", true),
            Column("IN/S", true),
            Column("OUT/S", true),
            Column("HITS", true),
            Column("RATIO", true),
            Column("DISK", true),
        ];
        let row = |(name, backend): (&String, &Backend)| {
            // Why stands below the tables.
            let state = backend.state.as_deref().and_then(|state| state.split(':').next()).unwrap_or("-");
            vec![
                name.clone(),
                state.to_owned(),
                size(backend.used_bytes),
                size(backend.available_bytes),
                size(backend.bytes_in_per_second.map(|bytes| bytes as u64)),
                size(backend.bytes_out_per_second.map(|bytes| bytes as u64)),
                share(backend.hit_ratio),
                ratio(backend.compression_ratio),
                ratio(backend.device_bytes_per_byte_in),
            ]
        };
        table::lay_out(&columns, &self.backends.iter().map(row).collect::<Vec<_>>(), true)
    }

    /// A line for all calls of a backend, and one for each kind.
    fn calls(&self) -> String {
        let columns = [
            Column("BACKEND", false),
            Column("CALL", false),
            Column("OK", true),
            Column("FAILED", true),
            Column("MEAN", true),
            Column("P95", true),
            Column("P99", true),
        ];
        let row = |name: &str, kind: &str, calls: &Calls| {
            let counts = [calls.ok.to_string(), calls.failed.to_string()];
            let times = [calls.mean_ms, calls.p95_ms, calls.p99_ms].map(millis);
            [name.to_owned(), kind.to_owned()].into_iter().chain(counts).chain(times).collect()
        };
        let mut rows: Vec<Vec<String>> = Vec::new();
        for (name, backend) in self.backends.iter().filter(|(_, backend)| !backend.operations.is_empty()) {
            rows.push(row(name, "all", &backend.total));
            rows.extend(backend.operations.iter().map(|(kind, calls)| row(name, kind, calls)));
        }
        if rows.is_empty() { String::new() } else { table::lay_out(&columns, &rows, true) }
    }

    /// What is wrong with backends, in their own words.
    fn troubles(&self) -> String {
        let trouble = |(name, backend): (&String, &Backend)| {
            let state = backend.state.clone().filter(|state| state != "fit");
            state.into_iter().chain(backend.error.clone()).map(|trouble| format!("{name}: {trouble}")).collect::<Vec<_>>()
        };
        self.backends.iter().flat_map(trouble).collect::<Vec<_>>().join("\n")
    }
}

fn none() -> String {
    "-".to_owned()
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(none, short_size)
}

fn share(share: Option<f64>) -> String {
    share.map_or_else(none, |share| format!("{:.0}%", share * 100.0))
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(none, |ratio| format!("{ratio:.2}"))
}

fn millis(millis: Option<f64>) -> String {
    millis.map_or_else(none, |millis| format!("{millis:.2} ms"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_is_shown_in_tables_and_what_is_unknown_as_a_dash() {
        let calls = |ok: u64| json!({ "ok": ok, "failed": 1, "mean_ms": 0.414, "p95_ms": 1.5, "p99_ms": null });
        let answer = json!({
            "operations": { "puts": 3, "put_bytes": 3 << 20, "gets": 4, "get_bytes": 1024, "deletes": 0, "expired": 1, "corrupt": 0 },
            "memory": { "limit": 1 << 30, "used": 1 << 20, "hot_limit": 1 << 29, "hot_bytes": 1 << 19, "unwritten_bytes": 0, "hits": 3 },
            "hit_ratio": 0.75,
            "device": { "written_bytes": 7 << 20, "written_per_byte_put": 2.333 },
            "moves": { "demoted": { "tensors": 2, "bytes": 1 << 20 }, "promoted": { "tensors": 1, "bytes": 512 }, "failed": 1 },
            "backends": {
                "object": { "state": "out: no answer within 2 s", "error": "no answer within 2 s", "operations": {} },
                "rocksdb": { "state": "fit", "used_bytes": 2048, "available_bytes": 1u64 << 40, "bytes_in_per_second": 1536.4,
                    "bytes_out_per_second": 0.0, "hit_ratio": 1.0, "compression_ratio": 1.5, "device_bytes_per_byte_in": 2.01,
                    "total": calls(9), "operations": { "get": calls(4), "put": calls(5) } },
            },
        });
        let stats: Stats = serde_json::from_value(answer).unwrap();
        let expected = "\
3 puts of 3.0 MiB, 4 gets of 1.0 KiB, 0 deletes; 1 expired, 0 corrupt
memory: 1.0 MiB of 1.0 GiB set aside; 512.0 KiB of 512.0 MiB hold tensors, 0 B not yet written; 75% of the gets answered from it
written to disks: 7.0 MiB, 2.33 for a byte put
moved: 2 tensors demoted (1.0 MiB), 1 tensor promoted (512 B), 1 move failed

BACKEND  STATE     USED     FREE     IN/S  OUT/S  HITS  RATIO  DISK
object   out          -        -        -      -     -      -     -
rocksdb  fit    2.0 KiB  1.0 TiB  1.5 KiB    0 B  100%   1.50  2.01

BACKEND  CALL  OK  FAILED     MEAN      P95  P99
rocksdb  all    9       1  0.41 ms  1.50 ms    -
rocksdb  get    4       1  0.41 ms  1.50 ms    -
rocksdb  put    5       1  0.41 ms  1.50 ms    -

object: out: no answer within 2 s
object: no answer within 2 s";
        assert_eq!(stats.text(), expected);
        // A server that says nothing.
        assert!(serde_json::from_str::<Stats>("{}").unwrap().text().contains("written to disks: -, - for a byte put"));
    }
}
