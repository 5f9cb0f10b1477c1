//! What two looks at a server tell: rates, and what there is.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sira_client::NamespaceEntry;

use super::super::namespace::mode;
use super::super::plural;
use super::super::table::{self, Column};
use crate::config::units::short_size;

/// A server at one moment.
pub(super) struct Snapshot {
    pub at: Instant,
    pub stats: Stats,
    pub namespaces: Vec<NamespaceEntry>,
}

/// What is shown of the answer of `stats`. A server may say more, or less.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stats {
    operations: Operations,
    memory: Memory,
    backends: BTreeMap<String, Backend>,
    coding: Coding,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Coding {
    waiting: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Operations {
    puts: u64,
    put_bytes: u64,
    gets: u64,
    get_bytes: u64,
    deletes: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    limit: u64,
    used: u64,
    hot_limit: u64,
    hot_bytes: u64,
    unwritten_bytes: u64,
    #[serde(skip_serializing)]
    hits: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Backend {
    used_bytes: Option<u64>,
    available_bytes: Option<u64>,
    /// All calls but those that only ask the backend how it is.
    total: Option<Calls>,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    compression_ratio: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Calls {
    ok: u64,
    failed: u64,
}

impl Backend {
    fn calls(&self) -> Option<u64> {
        self.total.as_ref().map(|calls| calls.ok + calls.failed)
    }
}

/// What is shown. Rates are per second of the interval; none of the first look.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct View {
    /// Length of the interval.
    seconds: Option<f64>,
    puts: Rate,
    put_bytes: Rate,
    gets: Rate,
    get_bytes: Rate,
    deletes: Rate,
    memory: Memory,
    /// Chunks that wait for a processor that codes them.
    coding_waits: u64,
    tiers: Vec<Tier>,
    namespaces: Vec<Namespace>,
}

type Rate = Option<f64>;

/// A tier; what it does not count is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Tier {
    tier: String,
    used: Option<u64>,
    limit: Option<u64>,
    operations: Rate,
    bytes_in: Rate,
    bytes_out: Rate,
    /// Raw bytes of its chunks for one stored, since the server's start.
    ratio: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Namespace {
    namespace: String,
    mode: &'static str,
    keys: u64,
    nbytes: u64,
    puts: Rate,
    gets: Rate,
    bytes_in: Rate,
    bytes_out: Rate,
    /// Share of the interval's gets that memory answered; absent when there were none.
    hit_ratio: Option<f64>,
    misses: Rate,
    evictions: Rate,
}

impl View {
    /// What happened between two looks; of one alone, what there is.
    pub(super) fn of(before: Option<&Snapshot>, now: &Snapshot) -> View {
        let seconds = before.map(|before| now.at.duration_since(before.at).as_secs_f64()).filter(|seconds| *seconds > 0.0);
        // A server that began anew counts from 0: nothing is known of that interval.
        let rate = |old: Option<u64>, new: Option<u64>| Some(new?.checked_sub(old?)? as f64 / seconds?);
        let old = before.map(|before| &before.stats);
        let total = |of: fn(&Stats) -> u64| rate(old.map(of), Some(of(&now.stats)));
        let memory = &now.stats.memory;
        let mut tiers = vec![Tier {
            tier: "memory".into(),
            used: Some(memory.hot_bytes),
            limit: Some(memory.hot_limit),
            operations: total(|stats| stats.memory.hits),
            bytes_in: None,
            bytes_out: None,
            ratio: None,
        }];
        tiers.extend(now.stats.backends.iter().map(|(name, backend)| {
            let old = old.and_then(|stats| stats.backends.get(name));
            Tier {
                tier: name.clone(),
                used: backend.used_bytes.or_else(|| held(&now.namespaces, name)),
                limit: backend.used_bytes.zip(backend.available_bytes).map(|(used, available)| used.saturating_add(available)),
                operations: rate(old.and_then(Backend::calls), backend.calls()),
                bytes_in: rate(old.and_then(|old| old.bytes_in), backend.bytes_in),
                bytes_out: rate(old.and_then(|old| old.bytes_out), backend.bytes_out),
                ratio: backend.compression_ratio,
            }
        }));
        let namespaces = now.namespaces.iter().map(|entry| {
            let find = |before: &Snapshot| before.namespaces.iter().find(|old| old.namespace == entry.namespace).cloned();
            // A namespace that was not there at the first look has done all that it did since.
            let old = before.map(|before| find(before).map(|old| old.operations).unwrap_or_default());
            let done = |of: fn(&sira_client::NamespaceOperations) -> u64| rate(old.as_ref().map(of), Some(of(&entry.operations)));
            let gets = done(|done| done.gets);
            Namespace {
                namespace: entry.namespace.clone(),
                mode: mode(&entry.policy),
                keys: entry.keys,
                nbytes: entry.nbytes,
                puts: done(|done| done.puts),
                gets,
                bytes_in: done(|done| done.put_bytes),
                bytes_out: done(|done| done.get_bytes),
                hit_ratio: done(|done| done.hits).zip(gets).filter(|(_, gets)| *gets > 0.0).map(|(hits, gets)| hits / gets),
                misses: done(|done| done.misses),
                evictions: done(|done| done.evictions),
            }
        });
        View {
            seconds,
            puts: total(|stats| stats.operations.puts),
            put_bytes: total(|stats| stats.operations.put_bytes),
            gets: total(|stats| stats.operations.gets),
            get_bytes: total(|stats| stats.operations.get_bytes),
            deletes: total(|stats| stats.operations.deletes),
            memory: memory.clone(),
            coding_waits: now.stats.coding.waiting,
            tiers,
            namespaces: namespaces.collect(),
        }
    }

    /// The picture, in so many rows: where there are more namespaces, the busiest are shown.
    pub(super) fn lines(&self, url: &str, rows: usize) -> Vec<String> {
        let Memory { limit, used, unwritten_bytes, .. } = self.memory;
        let mut lines = vec![
            format!(
                "{url}  puts {}/s, {}/s  gets {}/s, {}/s  deletes {}/s",
                count(self.puts),
                bytes(self.put_bytes),
                count(self.gets),
                bytes(self.get_bytes),
                count(self.deletes)
            ),
            format!(
                "memory: {} of {} set aside, {} not yet written; {} to be coded",
                short_size(used),
                short_size(limit),
                short_size(unwritten_bytes),
                plural(self.coding_waits, "chunk")
            ),
            String::new(),
        ];
        lines.extend(self.tiers().lines().map(str::to_owned));
        if self.namespaces.is_empty() {
            return lines;
        }
        lines.push(String::new());
        // The names of the columns, and where not all fit a line that says so.
        let room = rows.saturating_sub(lines.len() + 1);
        let shown = if self.namespaces.len() > room { room.saturating_sub(1) } else { room };
        let mut namespaces: Vec<&Namespace> = self.namespaces.iter().collect();
        if shown < namespaces.len() {
            let activity = |row: &Namespace| [row.bytes_in, row.bytes_out, row.puts, row.gets].iter().flatten().sum::<f64>();
            namespaces.sort_by(|a, b| activity(b).total_cmp(&activity(a)));
        }
        lines.extend(table_of(namespaces.iter().take(shown).copied()).lines().map(str::to_owned));
        if let Some(hidden) = self.namespaces.len().checked_sub(shown).filter(|hidden| *hidden > 0) {
            lines.push(format!("and {hidden} more"));
        }
        lines
    }

    fn tiers(&self) -> String {
        let columns = [
            Column("TIER", false),
            Column("USED", true),
            Column("LIMIT", true),
            Column("OPS/S", true),
            Column("IN/S", true),
            Column("OUT/S", true),
            Column("RATIO", true),
        ];
        let size = |bytes: Option<u64>| bytes.map_or_else(none, short_size);
        let row = |tier: &Tier| {
            let ratio = tier.ratio.map_or_else(none, |ratio| format!("{ratio:.2}"));
            let rates = [count(tier.operations), bytes(tier.bytes_in), bytes(tier.bytes_out), ratio];
            [tier.tier.clone(), size(tier.used), size(tier.limit)].into_iter().chain(rates).collect()
        };
        table::lay_out(&columns, &self.tiers.iter().map(row).collect::<Vec<_>>(), true)
    }
}

/// What the namespaces have in a tier, where the tier itself does not know.
fn held(namespaces: &[NamespaceEntry], tier: &str) -> Option<u64> {
    namespaces.iter().filter_map(|entry| entry.bytes.get(tier)).copied().reduce(u64::saturating_add)
}

/// A size of seven characters at most, so that a row of a namespace fits a terminal of 80 columns.
fn narrow(bytes: u64) -> String {
    short_size(bytes).replace(" ", "").replace("iB", "")
}

/// Rates are per second here too: the columns are too narrow to say so.
fn table_of<'a>(namespaces: impl Iterator<Item = &'a Namespace>) -> String {
    let columns = [
        Column("NAMESPACE", false),
        Column("KEYS", true),
        Column("SIZE", true),
        Column("PUTS", true),
        Column("GETS", true),
        Column("IN", true),
        Column("OUT", true),
        Column("HITS", true),
        Column("MISSES", true),
        Column("EVICTED", true),
    ];
    let row = |row: &Namespace| {
        vec![
            row.namespace.clone(),
            row.keys.to_string(),
            narrow(row.nbytes),
            count(row.puts),
            count(row.gets),
            row.bytes_in.map_or_else(none, |bytes| narrow(bytes as u64)),
            row.bytes_out.map_or_else(none, |bytes| narrow(bytes as u64)),
            row.hit_ratio.map_or_else(none, |ratio| format!("{:.0}%", ratio * 100.0)),
            count(row.misses),
            count(row.evictions),
        ]
    };
    table::lay_out(&columns, &namespaces.map(row).collect::<Vec<_>>(), true)
}

fn none() -> String {
    "-".to_owned()
}

fn count(rate: Rate) -> String {
    rate.map_or_else(none, |rate| format!("{rate:.1}"))
}

fn bytes(rate: Rate) -> String {
    rate.map_or_else(none, |rate| short_size(rate as u64))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn namespace(name: &str, puts: u64, gets: u64, hits: u64) -> NamespaceEntry {
        let operations = json!({ "puts": puts, "put_bytes": puts * 1024, "gets": gets, "get_bytes": gets * 1024, "hits": hits,
            "misses": 0, "deletes": 0, "evictions": 0 });
        let entry = json!({ "namespace": name, "policy": { "mode": "cache" }, "origin": "action", "keys": puts, "nbytes": puts * 1024,
            "bytes": { "rocksdb": 100 }, "operations": operations });
        serde_json::from_value(entry).unwrap()
    }

    fn snapshot(at: Instant, puts: u64, backend: serde_json::Value, namespaces: Vec<NamespaceEntry>) -> Snapshot {
        let stats = json!({ "operations": { "puts": puts, "put_bytes": puts * 1024, "gets": 0, "get_bytes": 0, "deletes": 0, "expired": 0 },
            "memory": { "limit": 1 << 30, "used": 1 << 20, "hot_limit": 1 << 29, "hot_bytes": 1 << 19, "hits": 0, "misses": 0 },
            "backends": { "rocksdb": backend } });
        Snapshot { at, stats: serde_json::from_value(stats).unwrap(), namespaces }
    }

    #[test]
    fn rates_are_per_second_and_what_is_not_counted_is_absent() {
        let (begun, calls) = (Instant::now(), |ok: u64| json!({ "ok": ok, "failed": 1, "mean_ms": null }));
        let backend = |put: u64| json!({ "compression_ratio": 1.5, "used_bytes": 100, "available_bytes": 28, "total": calls(put), "bytes_in": put * 10 });
        let before = snapshot(begun, 10, backend(5), vec![namespace("kv", 10, 0, 0)]);
        let now = snapshot(begun + Duration::from_secs(2), 30, backend(9), vec![namespace("kv", 30, 8, 6), namespace("new", 4, 0, 0)]);
        let view = View::of(Some(&before), &now);
        assert_eq!((view.puts, view.put_bytes, view.gets), (Some(10.0), Some(10240.0), Some(0.0)));
        let tier = &view.tiers[1];
        assert_eq!((tier.used, tier.limit, tier.operations), (Some(100), Some(128), Some(2.0)));
        assert_eq!((tier.bytes_in, tier.bytes_out, tier.ratio), (Some(20.0), None, Some(1.5)));
        let [kv, new] = &view.namespaces[..] else { unreachable!("two namespaces") };
        assert_eq!((kv.puts, kv.gets, kv.hit_ratio), (Some(10.0), Some(4.0), Some(0.75)));
        assert_eq!((new.puts, new.hit_ratio), (Some(2.0), None));
        // The first look, a server that says less, and one that began anew.
        assert_eq!(View::of(None, &now).puts, None);
        let less = snapshot(begun + Duration::from_secs(3), 0, json!({ "values": 3, "used_bytes": null, "available_bytes": 7 }), vec![]);
        let view = View::of(Some(&now), &less);
        assert_eq!((view.puts, view.tiers[1].operations, view.tiers[1].limit), (None, None, None));
        assert_eq!((view.tiers[1].used, held(&now.namespaces, "rocksdb"), held(&now.namespaces, "object")), (None, Some(200), None));
        assert!(serde_json::to_value(&view).unwrap()["memory"]["hot_bytes"].is_u64());
    }

    #[test]
    fn the_busiest_namespaces_are_shown_where_not_all_fit() {
        let begun = Instant::now();
        let names = |puts: fn(u64) -> u64| (0..9).map(|i| namespace(&format!("n{i}"), puts(i), 0, 0)).collect::<Vec<_>>();
        let view = View::of(
            Some(&snapshot(begun, 0, json!({}), names(|_| 0))),
            &snapshot(begun + Duration::from_secs(1), 0, json!({}), names(|i| i)),
        );
        let all = view.lines("grpc://x", usize::MAX);
        assert!(all[0].starts_with("grpc://x  puts 0.0/s, 0 B/s  gets"), "{all:?}");
        assert_eq!(all[1], "memory: 1.0 MiB of 1.0 GiB set aside, 0 B not yet written; 0 chunks to be coded");
        assert!(all[8].starts_with("n0 ") && all.len() == 17, "{all:?}");
        let some = view.lines("grpc://x", 12);
        assert_eq!(some.len(), 12);
        assert!(some[8].starts_with("n8 ") && some[11] == "and 6 more", "{some:?}");
        assert_eq!(view.lines("grpc://x", 17).len(), 17);
        let busy = [1 << 30, 1023 << 20, 1023 << 40].map(narrow);
        assert_eq!(busy, ["1.0G", "1023.0M", "1023.0T"]);
        assert!(all.iter().all(|line| line.chars().count() <= 80), "{all:?}");
    }
}
