//! `sira rm`: keys by name, or all that start with a text.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::json;
use sira_client::{Client, Code, DeletePrefixAnswer, PrefixRequest};
use sira_wire::VERSION;

use super::{Server, note, plural, print, print_line};
use crate::Failure;
use crate::cli::RemoveArgs;
use crate::config::units::short_size;
use crate::progress::{Progress, is_watched};

/// `sira rm`.
pub(crate) async fn remove(server: Server<'_>, args: &RemoveArgs) -> Result<(), Failure> {
    let client = server.connect().await?;
    if !args.recursive {
        return remove_keys(&client, args).await;
    }
    let asks = !args.dry_run && !args.yes;
    if asks && !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "rm -r asks before it deletes, and there is no terminal: give --yes, or --dry-run to see what would go".into(),
        ));
    }
    for prefix in &args.keys {
        remove_prefix(&client, prefix, asks, args).await?;
    }
    Ok(())
}

/// Tries every key, then says which were not there.
async fn remove_keys(client: &Client, args: &RemoveArgs) -> Result<(), Failure> {
    let mut absent = Vec::new();
    for key in &args.keys {
        let deleted = client.delete(key, None).await?;
        if args.json {
            print_line(&json!({ "key": key, "deleted": deleted }))?;
        }
        if !deleted {
            absent.push(key.as_str());
        }
    }
    if absent.is_empty() {
        return Ok(());
    }
    Err(Failure::NotFound(format!("{}: no such key: {}", Code::NotFound, absent.join(", "))))
}

async fn remove_prefix(client: &Client, prefix: &str, asks: bool, args: &RemoveArgs) -> Result<(), Failure> {
    // Counting costs a look at every key: only where somebody wants to know.
    let counted = match args.dry_run || asks || (is_watched() && !args.json) {
        true => Some(all_pages(client, prefix, true, &Progress::bytes(None, !args.json)).await?),
        false => None,
    };
    let place = if prefix.ends_with('/') { format!("under {prefix}") } else { format!("whose keys start with {prefix}") };
    match counted {
        Some(counted) if args.dry_run => return say(prefix, &place, &counted, args),
        Some(counted) if asks && counted.keys > 0 && !confirmed(&counted, &place)? => {
            return Err(Failure::Failed("nothing is deleted".into()));
        }
        _ => {}
    }
    let progress = Progress::bytes(counted.map(|counted| counted.bytes), !args.json);
    let deleted = all_pages(client, prefix, false, &progress).await?;
    drop(progress);
    say(prefix, &place, &deleted, args)?;
    if deleted.failed.is_empty() {
        return Ok(());
    }
    deleted.failed.iter().for_each(|failed| note(&format!("{}: {}", failed.key, failed.error)));
    Err(Failure::Failed(format!("{} {place} could not be deleted", plural(deleted.failed.len() as u64, "tensor"))))
}

async fn all_pages(client: &Client, prefix: &str, dry_run: bool, progress: &Progress) -> Result<DeletePrefixAnswer, Failure> {
    let mut request = PrefixRequest { v: VERSION, prefix: prefix.to_owned(), after: None, dry_run };
    let mut sum = DeletePrefixAnswer::default();
    loop {
        let page = client.delete_prefix_page(&request).await?;
        sum.keys = sum.keys.saturating_add(page.keys);
        sum.bytes = sum.bytes.saturating_add(page.bytes);
        sum.failed.extend(page.failed);
        progress.advance(page.bytes);
        progress.message(&plural(sum.keys, "tensor"));
        if page.next.is_none() {
            return Ok(sum);
        }
        if page.next <= request.after {
            return Err(Failure::Failed(format!("the server goes on at {:?} after {:?}", page.next, request.after)));
        }
        request.after = page.next;
    }
}

fn confirmed(counted: &DeletePrefixAnswer, place: &str) -> Result<bool, Failure> {
    let failed = |error: io::Error| Failure::with("standard input", error);
    let question = format!("delete {} ({}) {place}? [y/N] ", plural(counted.keys, "tensor"), short_size(counted.bytes));
    let mut stderr = io::stderr();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn say(prefix: &str, place: &str, done: &DeletePrefixAnswer, args: &RemoveArgs) -> Result<(), Failure> {
    if args.json {
        return print_line(&json!({
            "prefix": prefix, "dry_run": args.dry_run, "keys": done.keys, "bytes": done.bytes, "failed": done.failed
        }));
    }
    let verb = if args.dry_run { "would delete" } else { "deleted" };
    print(&format!("{verb} {} ({}) {place}", plural(done.keys, "tensor"), short_size(done.bytes)))
}
