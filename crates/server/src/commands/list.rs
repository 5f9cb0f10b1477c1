//! `sira ls`: a table, page by page.

use sira_client::{Entry, ListRequest};

use super::{Server, print};
use crate::Failure;
use crate::cli::ListArgs;
use crate::config::units::short_size;

/// Entries of a page: as many as are laid out together.
const PAGE: usize = 1000;

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
            print(&table(&page.entries, header))?;
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

/// The rows of a page: key, shape, dtype, size, and where it can be read from.
fn table(entries: &[Entry], header: bool) -> String {
    let mut rows: Vec<[String; 5]> = Vec::with_capacity(entries.len() + 1);
    if header {
        rows.push(["KEY", "SHAPE", "DTYPE", "SIZE", "WHERE"].map(String::from));
    }
    rows.extend(entries.iter().map(|entry| {
        let shape = entry.shape.iter().map(u64::to_string).collect::<Vec<_>>().join("x");
        let shape = if shape.is_empty() { "scalar".to_owned() } else { shape };
        [entry.key.clone(), shape, entry.dtype.clone(), short_size(entry.nbytes), entry.tiers.join(",")]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let line = |row: &[String; 5]| {
        let [key, shape, dtype, size, place] = row;
        let [a, b, c, d] = widths;
        format!("{key:a$}  {shape:b$}  {dtype:c$}  {size:>d$}  {place}")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let entry = |key: &str, shape: &[u64], nbytes: u64, tiers: &[&str]| Entry {
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
            consistency: Default::default(),
            created_ms: 0,
            expires_ms: None,
            attributes: Default::default(),
            kv_spec: None,
            parts: Vec::new(),
        };
        let entries = [entry("ns/a", &[], 2, &["memory"]), entry("ns/long", &[30, 2, 1536], 35_389_440, &["memory", "object"])];
        let expected = "KEY      SHAPE      DTYPE         SIZE  WHERE\n\
                        ns/a     scalar     bfloat16       2 B  memory\n\
                        ns/long  30x2x1536  bfloat16  33.8 MiB  memory,object";
        assert_eq!(table(&entries, true), expected);
    }
}
