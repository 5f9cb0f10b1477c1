//! `sira put FILE.safetensors ns/prefix/`: a key for each tensor of a file, in the order of the file.

use std::sync::Arc;

use futures::{StreamExt, stream};
use serde_json::json;
use sira_client::{Client, ClientError, PutAnswer, PutEntry, TensorSpec, WireError};
use sira_wire::Key;

use super::put::{attributes_of, done};
use super::{Server, note, plural, print, print_line};
use crate::Failure;
use crate::cli::PutArgs;
use crate::config::units::short_size;
use crate::formats::TensorFile;
use crate::formats::safetensors::Tensor;
use crate::progress::Progress;

/// A tensor of more bytes is streamed alone: it would be most of a batch.
const SMALL: u64 = 4 << 20;
/// Bytes of tensors that are sent together, and so are in memory.
const BATCH: u64 = 32 << 20;
/// Tensors that are sent together.
const BATCH_KEYS: usize = 1024;

/// A tensor of the file, and what it is to be put as.
struct Item {
    tensor: Tensor,
    key: String,
    spec: TensorSpec,
}

/// Puts every tensor of a file. What the server refuses is said at the end; what breaks the file or the connection ends it at once.
pub(super) async fn put_each(server: Server<'_>, args: PutArgs) -> Result<(), Failure> {
    let (file, contents) = TensorFile::open(&args.file).await?;
    let attributes = attributes_of(&args.file, &contents.metadata);
    let mut items = Vec::with_capacity(contents.tensors.len());
    for tensor in contents.tensors {
        let wrong = |error: String| Failure::Usage(format!("{}: tensor {:?}: {error}", args.file.display(), tensor.name));
        let key = format!("{}{}", args.key, tensor.name);
        key.parse::<Key>().map_err(|error| wrong(error.to_string()))?;
        let spec = args.describe(tensor.spec.clone(), &contents.metadata, attributes.clone()).map_err(|error| wrong(error.to_string()))?;
        items.push(Item { tensor, key, spec });
    }
    let client = server.connect().await?;
    let mut report = Report { json: args.json, ..Report::default() };
    let progress = Arc::new(Progress::bytes(Some(items.iter().map(|item| item.spec.nbytes()).sum()), !args.json));
    let mut rest = items.as_slice();
    while let Some(first) = rest.first() {
        let count = batch_len(rest.iter().map(|item| item.spec.nbytes()));
        let (now, later) = rest.split_at(count);
        rest = later;
        let sent = if count == 1 && first.spec.nbytes() > SMALL {
            put_large(&client, &file, first, &args, &progress).await.map(|result| vec![result])
        } else {
            put_batch(&client, &file, now, &args, &progress).await
        };
        let results = sent.map_err(|failure| Failure::with(report.so_far(items.len()), failure))?;
        for (item, result) in now.iter().zip(results) {
            report.add(item, result)?;
        }
    }
    drop(progress);
    report.end(&args.key, items.len())
}

/// How many of the first tensors go together: one large one alone, else as many small ones as a batch takes.
fn batch_len(sizes: impl Iterator<Item = u64>) -> usize {
    let mut bytes = 0u64;
    let small = sizes.take(BATCH_KEYS).take_while(|&size| {
        bytes = bytes.saturating_add(size);
        size <= SMALL && bytes <= BATCH
    });
    small.count().max(1)
}

async fn put_large(
    client: &Client,
    file: &TensorFile,
    item: &Item,
    args: &PutArgs,
    progress: &Arc<Progress>,
) -> Result<Result<PutAnswer, WireError>, Failure> {
    let meter = progress.clone();
    let pieces = file.pieces(&item.tensor).inspect(move |piece| meter.advance(piece.as_ref().map_or(0, |piece| piece.len() as u64)));
    match client.put_stream(&item.key, &item.spec, pieces, args.options()).await {
        Ok(answer) => Ok(Ok(answer)),
        Err(ClientError::Refused(error)) => Ok(Err(error)),
        Err(error) => Err(error.into()),
    }
}

async fn put_batch(
    client: &Client,
    file: &TensorFile,
    items: &[Item],
    args: &PutArgs,
    progress: &Arc<Progress>,
) -> Result<Vec<Result<PutAnswer, WireError>>, Failure> {
    let mut entries = Vec::with_capacity(items.len());
    for item in items {
        let options = args.options();
        let mut entry = PutEntry::new(&item.key, item.spec.clone(), file.read(&item.tensor).await?);
        entry.parts.iter_mut().for_each(|part| part.codec = options.codec.clone());
        entries.push(PutEntry {
            ttl: options.ttl,
            consistency: options.consistency,
            condition: options.condition,
            kv_spec: options.kv_spec,
            derived_from_lossy: options.derived_from_lossy,
            ..entry
        });
    }
    let results = client.put_many(stream::iter(entries)).await?;
    progress.advance(items.iter().map(|item| item.spec.nbytes()).sum());
    Ok(results)
}

/// What became of the tensors.
#[derive(Default)]
struct Report {
    json: bool,
    stored: usize,
    bytes: u64,
    failed: Vec<String>,
}

impl Report {
    fn add(&mut self, item: &Item, result: Result<PutAnswer, WireError>) -> Result<(), Failure> {
        let line = match result {
            Ok(answer) => {
                self.stored += 1;
                self.bytes += item.spec.nbytes();
                done(&answer, item.spec.nbytes())
            }
            Err(error) => {
                self.failed.push(format!("{}: {error}", item.key));
                json!({ "key": item.key, "error": error.to_string() })
            }
        };
        if self.json { print_line(&line) } else { Ok(()) }
    }

    fn so_far(&self, count: usize) -> String {
        format!("{} of {count} tensors are stored", self.stored)
    }

    fn end(self, prefix: &str, count: usize) -> Result<(), Failure> {
        if !self.json {
            print(&format!("{prefix}: {}, {}", plural(self.stored as u64, "tensor"), short_size(self.bytes)))?;
        }
        if self.failed.is_empty() {
            return Ok(());
        }
        if !self.json {
            self.failed.iter().for_each(|line| note(line));
        }
        Err(Failure::Failed(format!("{} of {count} tensors are not stored", self.failed.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tensors_go_together_and_large_ones_alone() {
        let of = |sizes: &[u64]| batch_len(sizes.iter().copied());
        assert_eq!(of(&[1, 2, 3]), 3);
        assert_eq!(of(&[1, SMALL, SMALL + 1, 5]), 2);
        assert_eq!(of(&[SMALL + 1, 1]), 1);
        assert_eq!(of(&[SMALL; 9]), 8);
        assert_eq!(of(&vec![0; 3000]), BATCH_KEYS);
    }
}
