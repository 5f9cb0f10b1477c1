//! `sira export`: all keys below a prefix, into an Avro file that appears whole or not at all.

mod copy;

use std::io;
use std::path::Path;

use serde_json::json;
use sira_client::{Client, ListRequest};

use self::copy::{Copier, Done};
use super::{Server, plural, print, print_line};
use crate::Failure;
use crate::cli::ExportArgs;
use crate::config::units::short_size;
use crate::formats::avro::{Codec, Resumed, Writer, partial_path};
use crate::progress::{self, Progress};

/// Entries asked for at once, and keys that are got in one stream.
const PAGE: usize = 1000;

/// `sira export`.
pub(crate) async fn export(server: Server<'_>, args: &ExportArgs) -> Result<(), Failure> {
    let client = server.connect().await?;
    let partial = partial_path(&args.file);
    let failed = |error: io::Error| Failure::with(partial.display(), error);
    let mut writer = match args.resume {
        true => Writer::resume(&args.file, args.codec, &args.prefix),
        false => Writer::create(&args.file, args.codec.unwrap_or(Codec::Null), &args.prefix),
    }
    .map_err(failed)?;
    let before = writer.resumed().clone();
    let mut done = Done::default();
    if let Err(failure) = copy_all(&client, args, &mut writer, &mut done).await {
        writer.keep().map_err(failed)?;
        if before.tensors + done.tensors == 0 {
            // Nothing to go on with, so nothing that should be in the way of the next try.
            std::fs::remove_file(&partial).map_err(failed)?;
            return Err(failure);
        }
        let hint = format!("{failure}; {} so far are in {}: go on with --resume", count(before.tensors + done.tensors), partial.display());
        return Err(match failure {
            Failure::NotFound(_) => Failure::NotFound(hint),
            _ => Failure::Failed(hint),
        });
    }
    let size = writer.finish().map_err(failed)?;
    match args.json {
        true => print_line(&json!({
            "file": args.file.display().to_string(),
            "tensors": before.tensors + done.tensors,
            "nbytes": before.nbytes + done.nbytes,
            "file_bytes": size,
            "resumed": before.tensors,
            "changed": done.changed,
            "vanished": done.vanished,
        })),
        false => print(&summary(&args.file, &before, &done, size)),
    }
}

/// Copies what comes after the last tensor that is there, page by page.
async fn copy_all(client: &Client, args: &ExportArgs, writer: &mut Writer, done: &mut Done) -> Result<(), Failure> {
    let mut after = writer.resumed().last_key.clone();
    let total = match !args.json && progress::is_watched() {
        true => Some(total(client, &args.prefix, after.clone()).await?),
        false => None,
    };
    let bar = Progress::bytes(total, !args.json);
    let mut copier = Copier::new(client, writer, done, &bar);
    loop {
        let request = ListRequest { prefix: args.prefix.clone(), after, limit: Some(PAGE), ..ListRequest::default() };
        let page = client.list(&request).await?;
        copier.copy(page.entries).await?;
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Bytes of the tensors that are to be copied.
async fn total(client: &Client, prefix: &str, mut after: Option<String>) -> Result<u64, Failure> {
    let mut total = 0;
    loop {
        let request = ListRequest { prefix: prefix.to_owned(), after, limit: Some(PAGE), ..ListRequest::default() };
        let page = client.list(&request).await?;
        total += page.entries.iter().map(|entry| entry.nbytes).sum::<u64>();
        after = page.next;
        if after.is_none() {
            return Ok(total);
        }
    }
}

fn count(tensors: u64) -> String {
    plural(tensors, "tensor")
}

fn summary(file: &Path, before: &Resumed, done: &Done, size: u64) -> String {
    let nbytes = short_size(before.nbytes + done.nbytes);
    let mut text = format!("{}: {}, {nbytes}, in {} of file", file.display(), count(before.tensors + done.tensors), short_size(size));
    if before.tensors > 0 {
        text.push_str(&format!("; {} of them were there already", before.tensors));
    }
    if done.changed > 0 {
        text.push_str(&format!("; {} changed meanwhile: their newer version was taken", done.changed));
    }
    if done.vanished > 0 {
        text.push_str(&format!("; {} vanished meanwhile", done.vanished));
    }
    text
}
