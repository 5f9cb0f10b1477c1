//! What each backend promises and passes, as `docs/backends.md` shows it: every test of a backend checks the two rows that are about it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
#![allow(dead_code, reason = "one test binary checks that it is complete")]

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sira_backend::Survives;
use sira_backend::conformance::{CASES, Report};

/// The rows, in their order, and what each was run on.
const BACKENDS: [(&str, &str); 15] = [
    ("memory", "this process"),
    ("file", "a folder"),
    ("rocksdb", "a folder"),
    ("rocksdb, little memory", "a folder; all goes through its files"),
    ("object, folder", "a folder"),
    ("object, memory", "the way of remote stores, without one"),
    ("object, moto", "moto, an S3 in memory"),
    ("object, ceph", "Ceph's S3 gateway (`make test-servers`)"),
    ("redis", "Redis, `appendonly yes`"),
    ("redis, cluster", "a cluster of six (`make test-servers`)"),
    ("postgres", "PostgreSQL"),
    ("mysql", "MariaDB"),
    ("sqlite", "a folder"),
    ("sled", "a folder"),
    ("your own", "the example of the crate's documentation"),
];

const RENEW: &str = "SIRA_WRITE_GOLDEN=1 cargo test -p sira-backend --tests; with what `make test-servers` starts: -- --include-ignored";

/// Checks that the page says of `backend` what the suite found.
pub fn holds(backend: &str, report: &Report) {
    let (_, on) = BACKENDS.iter().find(|(name, _)| *name == backend).unwrap_or_else(|| panic!("no row for {backend}"));
    let found = [promises(backend, on, report), cases(backend, report)];
    let page = std::fs::read_to_string(page()).unwrap();
    if std::env::var_os("SIRA_WRITE_GOLDEN").is_some() {
        return renew(backend, &found);
    }
    for row in found {
        assert!(page.lines().any(|line| line == row), "docs/backends.md is out of date: it lacks\n{row}\nRenew it by {RENEW}");
    }
}

/// Checks that the page's tables have a row for each backend, and no more.
pub fn complete() {
    if std::env::var_os("SIRA_WRITE_GOLDEN").is_some() {
        return;
    }
    let page = std::fs::read_to_string(page()).unwrap();
    let tables = [promises_head(), cases_head()];
    for head in tables {
        let rows = page.split_once(&head).unwrap_or_else(|| panic!("docs/backends.md lacks the table\n{head}")).1;
        let names: Vec<&str> = rows.lines().take_while(|line| line.starts_with("| ")).filter_map(name).collect();
        assert_eq!(names, BACKENDS.map(|(name, _)| name), "docs/backends.md: renew it by {RENEW}");
    }
    for (case, what) in CASES {
        let line = format!("- **{case}**: {what}");
        assert!(page.lines().any(|found| found == line), "docs/backends.md lacks the line\n{line}");
    }
}

fn promises_head() -> String {
    "| backend | run on | `eventual` survives | `strong` survives | largest value | range reads move | expires by itself | other nodes see it |\n|---|---|---|---|---|---|---|---|\n".into()
}

fn promises(backend: &str, on: &str, report: &Report) -> String {
    let capabilities = &report.capabilities;
    let survives = |survives| match survives {
        Survives::Nothing => "nothing",
        Survives::ProcessCrash => "a crash",
        Survives::PowerLoss => "power loss",
    };
    let yes = |yes| if yes { "yes" } else { "no" };
    format!(
        "| {backend} | {on} | {} | {} | {} | {} | {} | {} |",
        survives(capabilities.logged_survives),
        survives(capabilities.durable_survives),
        size(capabilities.max_value),
        if capabilities.ranges { "the range" } else { "the value" },
        yes(capabilities.native_expiry),
        yes(capabilities.shared)
    )
}

fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mib if mib < 1 << 12 => format!("{mib} MiB"),
        mib if mib < 1 << 30 => format!("{} GiB", mib >> 10),
        _ => "as memory lasts".into(),
    }
}

fn cases_head() -> String {
    let names: Vec<&str> = CASES.iter().map(|(name, _)| *name).collect();
    format!("| | {} |\n|---|{}\n", names.join(" | "), ":-:|".repeat(CASES.len()))
}

fn cases(backend: &str, report: &Report) -> String {
    let cells: Vec<&str> = report.passed.iter().map(|passed| if *passed { "✓" } else { "–" }).collect();
    format!("| {backend} | {} |", cells.join(" | "))
}

/// The first cell of a row.
fn name(row: &str) -> Option<&str> {
    row.strip_prefix("| ")?.split(" |").next()
}

/// Puts the rows of a backend in the place of those that are there, or where they belong.
fn renew(backend: &str, found: &[String; 2]) {
    // Tests of one process run side by side; test binaries run one after another.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut text = std::fs::read_to_string(page()).unwrap();
    for (head, row) in [promises_head(), cases_head()].into_iter().zip(found) {
        let (before, rest) = text.split_once(&head).unwrap_or_else(|| panic!("docs/backends.md lacks the table\n{head}"));
        let len = rest.lines().take_while(|line| line.starts_with("| ")).map(|line| line.len() + 1).sum::<usize>().min(rest.len());
        let (rows, after) = rest.split_at(len);
        let place = |row: &str| BACKENDS.iter().position(|(known, _)| Some(*known) == name(row));
        let mut rows: Vec<&str> =
            rows.lines().filter(|row| place(row).is_some() && name(row) != Some(backend)).chain([row.as_str()]).collect();
        rows.sort_by_key(|row| place(row));
        text = format!("{before}{head}{}\n{after}", rows.join("\n"));
    }
    std::fs::write(page(), text).unwrap();
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/backends.md")
}
