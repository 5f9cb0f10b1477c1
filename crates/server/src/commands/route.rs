//! `sira route`: where a tensor would be kept, and why.

use sira_client::{RouteAnswer, RouteCandidate, RouteOptions, RouteStep};

use super::table::{self, Column};
use super::{Server, print, print_line};
use crate::Failure;
use crate::cli::RouteArgs;
use crate::config::units::short_size;

/// `sira route`.
pub(crate) async fn route(server: Server<'_>, args: &RouteArgs) -> Result<(), Failure> {
    let options = RouteOptions {
        dtype: args.dtype,
        axes: args.axes.clone(),
        kv_spec: args.spec.clone(),
        ttl: args.ttl.map(|ttl| ttl.as_secs()),
        consistency: args.consistency,
    };
    let answer = server.connect().await?.route(&args.key, args.size, &options).await?;
    if args.json { print_line(&answer) } else { print(&text(&args.key, args.size, &answer)) }
}

/// The backends that there are, what was asked of which strategy, and what comes of it.
fn text(key: &str, size: u64, answer: &RouteAnswer) -> String {
    let mut place = answer.backend.clone();
    if answer.inline {
        place.push_str(", in its record");
    }
    let memory = if answer.memory { "and in memory, room permitting" } else { "not in memory" };
    let size = short_size(size);
    let (candidates, steps) = (candidates(&answer.candidates), steps(&answer.steps));
    format!("{candidates}{steps}\n\n{key} of {size}: {place}, {memory}; codec {}, {}", answer.codec, answer.consistency)
}

/// Nothing of an older server, which does not say.
fn candidates(candidates: &[RouteCandidate]) -> String {
    if candidates.is_empty() {
        return String::new();
    }
    let columns = [
        Column("BACKEND", false),
        Column("KEEPS", false),
        Column("PUT", true),
        Column("", true),
        Column("GET", true),
        Column("", true),
        Column("CALLS", true),
        Column("STATE", false),
    ];
    let millis = |millis: Option<f64>| millis.map_or_else(|| "-".to_owned(), |millis| format!("{millis:.2} ms"));
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", short_size(rate as u64)));
    let row = |of: &RouteCandidate| {
        let state = match &of.against {
            Some(against) if of.state.starts_with("fit") => format!("{}, but {against}", of.state),
            _ => of.state.clone(),
        };
        vec![
            of.backend.clone(),
            of.keeps.to_string(),
            millis(of.put_ms),
            rate(of.put_bytes_per_second),
            millis(of.get_ms),
            rate(of.get_bytes_per_second),
            of.calls_under_way.to_string(),
            state,
        ]
    };
    format!("{}\n\n", table::lay_out(&columns, &candidates.iter().map(row).collect::<Vec<_>>(), true))
}

fn steps(steps: &[RouteStep]) -> String {
    let columns = [Column("STRATEGY", false), Column("ANSWER", false), Column("WHY", false)];
    let row = |step: &RouteStep| vec![step.strategy.clone(), step.backend.clone().unwrap_or_else(|| "-".into()), step.reason.clone()];
    table::lay_out(&columns, &steps.iter().map(row).collect::<Vec<_>>(), true)
}

#[cfg(test)]
mod tests {
    use sira_client::Consistency;

    use super::*;

    #[test]
    fn every_step_is_shown_and_the_decision() {
        let step = |strategy: &str, backend: Option<&str>, reason: &str| RouteStep {
            strategy: strategy.into(),
            backend: backend.map(String::from),
            reason: reason.into(),
        };
        let candidate = |backend: &str, state: &str, put_ms: Option<f64>, against: Option<&str>| RouteCandidate {
            backend: backend.into(),
            state: state.into(),
            keeps: Consistency::Strong,
            against: against.map(String::from),
            put_ms,
            put_bytes_per_second: put_ms.map(|millis| 2048.0 / millis * 1e3),
            get_ms: None,
            get_bytes_per_second: None,
            calls_under_way: 2,
            put_bytes_under_way: 0,
        };
        let answer = RouteAnswer {
            backend: "rocksdb".into(),
            steps: vec![step("keys *: object", None, "object may not be chosen"), step("default", Some("rocksdb"), "")],
            candidates: vec![
                candidate("object", "out: no answer within 2 s", None, Some("it is out")),
                candidate("rocksdb", "fit", Some(0.5), None),
                candidate("scratch", "fit", Some(0.25), Some("it cannot keep strong")),
            ],
            inline: true,
            memory: true,
            codec: "planes+zstd".into(),
            consistency: Consistency::Strong,
        };
        let expected = "\
BACKEND  KEEPS       PUT             GET     CALLS  STATE
object   strong        -          -    -  -      2  out: no answer within 2 s
rocksdb  strong  0.50 ms  3.9 MiB/s    -  -      2  fit
scratch  strong  0.25 ms  7.8 MiB/s    -  -      2  fit, but it cannot keep strong

STRATEGY        ANSWER   WHY
keys *: object  -        object may not be chosen
default         rocksdb

kv/a of 2.0 KiB: rocksdb, in its record, and in memory, room permitting; codec planes+zstd, strong";
        assert_eq!(text("kv/a", 2048, &answer), expected);
        let older = RouteAnswer { candidates: Vec::new(), ..answer };
        assert!(text("kv/a", 2048, &older).starts_with("STRATEGY"));
    }
}
