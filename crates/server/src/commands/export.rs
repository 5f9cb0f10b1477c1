//! `sira export`: all tensors below a prefix, into an Avro file that appears whole or not at all.

use std::io;
use std::path::Path;
use std::time::Duration;

use sira_client::{Client, ClientError, Code, Entry, GetOptions, ListRequest};

use super::{Server, plural, print};
use crate::Failure;
use crate::cli::ExportArgs;
use crate::config::units::short_size;
use crate::formats::avro::{Codec, Header, Writer, partial_path};
use crate::progress::{self, Progress};

/// Entries asked for at once. What changes after its page was listed is noticed, and few pages are cheap.
const PAGE: usize = 1000;
/// How often a tensor is tried that changes while it is read, or that the server is too busy for.
const ATTEMPTS: u32 = 6;

/// What an export did, besides what its file says.
#[derive(Default)]
struct Done {
    tensors: u64,
    nbytes: u64,
    /// Exported at a newer version than listed.
    changed: u64,
    /// Listed, and gone when they were to be read.
    vanished: u64,
}

/// Why a tensor was not copied.
enum Stop {
    Client(ClientError),
    File(io::Error),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Stop {
        Stop::Client(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::File(error)
    }
}

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
    print(&summary(&args.file, &before, &done, size))
}

/// Copies what comes after the last tensor that is there, page by page.
async fn copy_all(client: &Client, args: &ExportArgs, writer: &mut Writer, done: &mut Done) -> Result<(), Failure> {
    let mut after = writer.resumed().last_key.clone();
    let total = match progress::is_watched() {
        true => Some(total(client, &args.prefix, after.clone()).await?),
        false => None,
    };
    let bar = Progress::bytes(total, true);
    loop {
        let request = ListRequest { prefix: args.prefix.clone(), after, limit: Some(PAGE), ..ListRequest::default() };
        let page = client.list(&request).await?;
        for entry in page.entries {
            bar.message(&entry.key);
            copy(client, entry, writer, done, &bar).await?;
        }
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

/// Copies a tensor at the version listed, or at a newer one if that is gone.
async fn copy(client: &Client, mut entry: Entry, writer: &mut Writer, done: &mut Done, bar: &Progress) -> Result<(), Failure> {
    let key = entry.key.clone();
    let mut changed = false;
    for attempt in 1.. {
        let stop = match copy_version(client, &entry, writer, bar).await {
            Ok(()) => {
                done.tensors += 1;
                done.nbytes += entry.nbytes;
                done.changed += u64::from(changed);
                return Ok(());
            }
            Err(stop) => stop,
        };
        writer.roll_back().map_err(|error| Failure::with(&key, error))?;
        let error = match stop {
            Stop::File(error) => return Err(Failure::with(&key, error)),
            Stop::Client(error) => error,
        };
        match error.code() {
            Some(Code::NotFound) => break,
            Some(Code::Stale) if attempt < ATTEMPTS => {
                changed = true;
                entry = match client.info(&key).await {
                    Err(error) if error.code() == Some(Code::NotFound) => break,
                    other => other?,
                };
            }
            Some(Code::Busy) if attempt < ATTEMPTS => tokio::time::sleep(Duration::from_millis(100 << attempt)).await,
            _ => return Err(Failure::with(&key, error)),
        }
    }
    done.vanished += 1;
    Ok(())
}

async fn copy_version(client: &Client, entry: &Entry, writer: &mut Writer, bar: &Progress) -> Result<(), Stop> {
    let options = GetOptions { version: Some(entry.version), ..GetOptions::default() };
    let mut tensor = client.get(&entry.key, &options).await?;
    let header = Header::of_entry(entry).map_err(ClientError::from)?;
    let listed = header.parts.first().map(|part| part.spec());
    if listed != Some(tensor.spec().clone().with_attributes(entry.attributes.clone()).map_err(|error| error.to_string())) {
        return Err(ClientError::Protocol(format!("{}: what is listed is not what comes", entry.key)).into());
    }
    writer.header(header)?;
    while let Some(piece) = tensor.next().await? {
        let len = piece.len() as u64;
        writer.data(piece)?;
        bar.advance(len);
    }
    Ok(writer.end()?)
}

fn count(tensors: u64) -> String {
    plural(tensors, "tensor")
}

fn summary(file: &Path, before: &crate::formats::avro::Resumed, done: &Done, size: u64) -> String {
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
