//! `sira route`: where a tensor would be kept, and why.

use sira_client::RouteAnswer;

use super::table::{self, Column};
use super::{Server, print, print_line};
use crate::Failure;
use crate::cli::RouteArgs;
use crate::config::units::short_size;

/// `sira route`.
pub(crate) async fn route(server: Server<'_>, args: &RouteArgs) -> Result<(), Failure> {
    let answer = server.connect().await?.route(&args.key, args.size, args.consistency).await?;
    if args.json { print_line(&answer) } else { print(&text(&args.key, args.size, &answer)) }
}

/// What was asked of whom, and what comes of it.
fn text(key: &str, size: u64, answer: &RouteAnswer) -> String {
    let row = |step: &sira_client::RouteStep| vec![step.strategy.clone(), step.backend.clone().unwrap_or_else(|| "-".into())];
    let rows: Vec<Vec<String>> = answer.steps.iter().map(row).collect();
    let steps = table::lay_out(&[Column("STRATEGY", false), Column("ANSWER", false)], &rows, true);
    let mut place = answer.backend.clone();
    if answer.inline {
        place.push_str(", in its record");
    }
    let memory = if answer.memory { "and in memory, room permitting" } else { "not in memory" };
    let size = short_size(size);
    format!("{steps}\n\n{key} of {size}: {place}, {memory}; codec {}, {}", answer.codec, answer.consistency)
}

#[cfg(test)]
mod tests {
    use sira_client::{Consistency, RouteStep};

    use super::*;

    #[test]
    fn every_step_is_shown_and_the_decision() {
        let step = |strategy: &str, backend: Option<&str>| RouteStep { strategy: strategy.into(), backend: backend.map(String::from) };
        let answer = RouteAnswer {
            backend: "rocksdb".into(),
            steps: vec![step("8388608 bytes and more", None), step("default", Some("rocksdb"))],
            inline: true,
            memory: true,
            codec: "planes+zstd".into(),
            consistency: Consistency::Strong,
        };
        let expected = "STRATEGY                ANSWER\n8388608 bytes and more  -\ndefault                 rocksdb\n\n\
                        kv/a of 2.0 KiB: rocksdb, in its record, and in memory, room permitting; codec planes+zstd, strong";
        assert_eq!(text("kv/a", 2048, &answer), expected);
    }
}
