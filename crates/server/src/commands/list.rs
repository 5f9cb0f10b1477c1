//! `sira ls`: a table, page by page.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sira_client::{Entry, ListRequest};

use super::table::{self, Column};
use super::{Server, print_open};
use crate::Failure;
use crate::cli::ListArgs;
use crate::config::units::{short_duration, short_size};

/// Entries of a page: as many as are laid out together.
const PAGE: usize = 1000;

const SHORT: [Column; 5] =
    [Column("KEY", false), Column("SHAPE", false), Column("DTYPE", false), Column("SIZE", true), Column("WHERE", false)];

const LONG: [Column; 14] = [
    Column("KEY", false),
    Column("VERSION", true),
    Column("SHAPE", false),
    Column("DTYPE", false),
    Column("SIZE", true),
    Column("STORED", true),
    Column("RATIO", true),
    Column("CODEC", false),
    Column("LEVEL", false),
    Column("AGE", true),
    Column("EXPIRES", true),
    Column("SPEC", false),
    Column("PARTS", false),
    Column("WHERE", false),
];

/// `sira ls`.
pub(crate) async fn list(server: Server<'_>, args: &ListArgs) -> Result<(), Failure> {
    let client = server.connect().await?;
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut after = None;
    let mut header = true;
    while left > 0 {
        let request = ListRequest { prefix: args.prefix.clone(), after, limit: Some(left.min(PAGE)), ..ListRequest::default() };
        let page = client.list(&request).await?;
        if !page.entries.is_empty() {
            let text = if args.json { lines(&page.entries)? } else { table(&page.entries, args.long, header) };
            // Whoever reads may have seen enough.
            if !print_open(&text)? {
                break;
            }
            header = false;
        }
        left = left.saturating_sub(page.entries.len());
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(())
}

/// A line of JSON for each entry of a page.
fn lines(entries: &[Entry]) -> Result<String, Failure> {
    let lines: Result<Vec<String>, _> = entries.iter().map(serde_json::to_string).collect();
    Ok(lines.map_err(|error| Failure::Failed(error.to_string()))?.join("\n"))
}

/// The rows of a page.
fn table(entries: &[Entry], long: bool, header: bool) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let rows: Vec<Vec<String>> = entries.iter().map(|entry| if long { long_row(entry, now) } else { short_row(entry).to_vec() }).collect();
    table::lay_out(if long { &LONG } else { &SHORT }, &rows, header)
}

fn short_row(entry: &Entry) -> [String; 5] {
    let shape = match (entry.parts.len(), entry.shape.as_slice()) {
        (1.., _) => "-".to_owned(),
        (0, []) => "scalar".to_owned(),
        (0, shape) => shape.iter().map(u64::to_string).collect::<Vec<_>>().join("x"),
    };
    [entry.key.clone(), shape, entry.dtype.clone(), short_size(entry.nbytes), entry.tiers.join(",")]
}

/// `now` is the time since 1970 by this machine's clock; the server's may differ by a little.
fn long_row(entry: &Entry, now: Duration) -> Vec<String> {
    let [key, shape, dtype, size, place] = short_row(entry);
    let none = || "-".to_owned();
    let ratio = if entry.stored_bytes > 0 { format!("{:.2}", entry.nbytes as f64 / entry.stored_bytes as f64) } else { none() };
    let age = now.saturating_sub(Duration::from_millis(entry.created_ms));
    let expires = entry.expires_ms.map(|at| short_duration(Duration::from_millis(at).saturating_sub(now)));
    let parts: Vec<&str> = entry.parts.iter().map(|part| part.name.as_str()).collect();
    vec![
        key,
        entry.version.to_string(),
        shape,
        dtype,
        size,
        short_size(entry.stored_bytes),
        ratio,
        entry.codec.clone(),
        entry.consistency.to_string(),
        short_duration(age),
        expires.unwrap_or_else(none),
        entry.kv_spec.as_ref().map_or_else(none, |hash| hash.chars().take(8).collect()),
        if parts.is_empty() { none() } else { parts.join(",") },
        place,
    ]
}

#[cfg(test)]
mod tests {
    use sira_client::PartEntry;

    use super::*;

    fn entry(key: &str, shape: &[u64], nbytes: u64, tiers: &[&str]) -> Entry {
        Entry {
            key: key.into(),
            version: 1,
            generation: 1,
            dtype: "bfloat16".into(),
            shape: shape.to_vec(),
            axes: vec![],
            nbytes,
            stored_bytes: nbytes,
            backend: "rocksdb".into(),
            tiers: tiers.iter().map(|tier| (*tier).to_owned()).collect(),
            codec: "none".into(),
            lossy: false,
            relative_rmse: Default::default(),
            derived_from_lossy: false,
            consistency: Default::default(),
            created_ms: 0,
            expires_ms: None,
            attributes: Default::default(),
            kv_spec: None,
            parts: Vec::new(),
        }
    }

    #[test]
    fn columns_line_up() {
        let entries = [entry("ns/a", &[], 2, &["memory"]), entry("ns/long", &[30, 2, 1536], 35_389_440, &["memory", "object"])];
        let expected = "KEY      SHAPE      DTYPE         SIZE  WHERE\n\
                        ns/a     scalar     bfloat16       2 B  memory\n\
                        ns/long  30x2x1536  bfloat16  33.8 MiB  memory,object";
        assert_eq!(table(&entries, false, true), expected);
    }

    #[test]
    fn the_long_row_has_all_there_is_to_say() {
        let part = |name: &str| PartEntry {
            name: name.into(),
            dtype: "bfloat16".into(),
            shape: vec![4],
            axes: vec![],
            nbytes: 8,
            stored_bytes: 4,
            codec: "none".into(),
            lossy: false,
            relative_rmse: Default::default(),
            attributes: Default::default(),
        };
        let entry = Entry {
            version: 7,
            dtype: "parts".into(),
            stored_bytes: 1000,
            created_ms: 1_000_000,
            expires_ms: Some(4_600_000),
            kv_spec: Some("5f3a".repeat(16)),
            parts: vec![part("k"), part("v")],
            ..entry("ns/b", &[], 1500, &["object"])
        };
        let row = long_row(&entry, Duration::from_secs(1_060));
        let expected =
            ["ns/b", "7", "-", "parts", "1.5 KiB", "1000 B", "1.50", "none", "eventual", "1m", "59m", "5f3a5f3a", "k,v", "object"];
        assert_eq!((row.as_slice(), row.len()), (&expected.map(String::from)[..], LONG.len()));
        // A clock that is behind the server's makes no negative age.
        assert_eq!(long_row(&entry, Duration::ZERO)[9], "0s");
    }
}
