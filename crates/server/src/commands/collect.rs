//! `sira get ns/prefix/ FILE.safetensors`: many tensors in one file. What they are is known from a listing before the first byte is read, so that each has
//! its place in the file; a key that is not the version listed by then ends the command.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::TryStreamExt;
use serde_json::json;
use sira_client::{Client, Entry, GetManyOptions, ManyEvent, PartEntry, TensorSpec};

use super::output::Output;
use super::put::METADATA_PREFIX;
use super::{plural, print, print_line};
use crate::Failure;
use crate::cli::GetArgs;
use crate::config::units::short_size;
use crate::formats::safetensors;
use crate::progress::Progress;

/// Keys that are asked for together.
const BATCH_KEYS: usize = 4096;

/// A key to get, and its tensors in the order of its parts.
struct Wanted {
    key: String,
    version: u64,
    tensors: Vec<Tensor>,
}

/// A tensor, and what the file calls it.
struct Tensor {
    name: String,
    part: Option<String>,
    spec: TensorSpec,
}

/// Collects all keys that start with the prefix `args.key`: a key's tensor is called by the rest of the key, a part of several by that, `/` and its name.
pub(super) async fn prefix(client: &Client, args: &GetArgs) -> Result<(), Failure> {
    let entries: Vec<Entry> = client.list_all(&args.key).try_collect().await?;
    if entries.is_empty() {
        return Err(Failure::NotFound(format!("no keys under {}", args.key)));
    }
    let name = |entry: &Entry, part: Option<&str>| {
        let rest = entry.key.strip_prefix(&args.key).unwrap_or(&entry.key);
        part.map_or_else(|| rest.to_owned(), |part| format!("{rest}/{part}"))
    };
    write(client, &entries, name, args).await
}

/// Writes the parts of the key `args.key`, each called by its name.
pub(super) async fn parts(client: &Client, args: &GetArgs) -> Result<(), Failure> {
    let entry = client.info(&args.key).await?;
    let entry = Entry { version: args.version.unwrap_or(entry.version), ..entry };
    write(client, &[entry], |_, part| part.unwrap_or(sira_wire::many::DATA).to_owned(), args).await
}

async fn write(client: &Client, entries: &[Entry], name: impl Fn(&Entry, Option<&str>) -> String, args: &GetArgs) -> Result<(), Failure> {
    let wanted = entries.iter().map(|entry| wanted(entry, &name)).collect::<Result<Vec<_>, _>>()?;
    let tensors: Vec<(&str, &TensorSpec)> =
        wanted.iter().flat_map(|key| &key.tensors).map(|tensor| (tensor.name.as_str(), &tensor.spec)).collect();
    let (header, starts) = safetensors::lay_out(&tensors, &shared_metadata(entries))?;
    let nbytes = tensors.iter().map(|(_, spec)| spec.nbytes()).sum();
    let mut output = Output::create(&args.file)?;
    output.write(&header).await?;
    let progress = Progress::bytes(Some(nbytes), !args.json);
    let mut starts = starts.into_iter();
    for batch in wanted.chunks(BATCH_KEYS) {
        // In the order of the keys and their parts, as they come.
        let places = starts.by_ref().take(batch.iter().map(|key| key.tensors.len()).sum()).collect();
        fetch(client, args, batch, places, &mut output, &progress).await?;
    }
    output.finish().await?;
    drop(progress);
    if !args.json {
        return print(&format!("{}: {}, {}", args.file.display(), plural(tensors.len() as u64, "tensor"), short_size(nbytes)));
    }
    for key in &wanted {
        for Tensor { name, part, spec } in &key.tensors {
            let (dtype, shape, nbytes) = (spec.dtype().name(), spec.shape(), spec.nbytes());
            print_line(&json!({
                "key": key.key, "version": key.version, "part": part, "tensor": name, "dtype": dtype, "shape": shape, "nbytes": nbytes
            }))?;
        }
    }
    Ok(())
}

/// What is to come of a key.
fn wanted(entry: &Entry, name: &impl Fn(&Entry, Option<&str>) -> String) -> Result<Wanted, Failure> {
    let tensor = |part: Option<&PartEntry>, dtype: &str, shape: &[u64]| {
        let wrong = |error: String| Failure::with(format!("{}: not understood", entry.key), error);
        let dtype = dtype.parse().map_err(|error: sira_client::TensorError| wrong(error.to_string()))?;
        let spec = TensorSpec::new(dtype, shape.to_vec()).map_err(|error| wrong(error.to_string()))?;
        let part = part.map(|part| part.name.clone());
        Ok(Tensor { name: name(entry, part.as_deref()), part, spec })
    };
    let tensors = match entry.parts.as_slice() {
        [] => vec![tensor(None, &entry.dtype, &entry.shape)?],
        parts => parts.iter().map(|part| tensor(Some(part), &part.dtype, &part.shape)).collect::<Result<_, Failure>>()?,
    };
    Ok(Wanted { key: entry.key.clone(), version: entry.version, tensors })
}

/// The `__metadata__` of the file: what all tensors were put with.
fn shared_metadata(entries: &[Entry]) -> BTreeMap<String, String> {
    let mut all = entries.iter().flat_map(|entry| match entry.parts.as_slice() {
        [] => vec![&entry.attributes],
        parts => parts.iter().map(|part| &part.attributes).collect(),
    });
    let mut shared = all.next().cloned().unwrap_or_default();
    all.for_each(|attributes| shared.retain(|name, text| attributes.get(name) == Some(text)));
    shared.into_iter().filter_map(|(name, text)| Some((name.strip_prefix(METADATA_PREFIX)?.to_owned(), text))).collect()
}

/// Writes the bytes of some keys to their places in the file.
async fn fetch(
    client: &Client,
    args: &GetArgs,
    keys: &[Wanted],
    places: Vec<u64>,
    output: &mut Output,
    progress: &Progress,
) -> Result<(), Failure> {
    let options = GetManyOptions { kv_spec: args.spec.clone(), ..GetManyOptions::default() };
    let mut stream = client.get_many(keys.iter().map(|key| &key.key), &options).await?;
    let mut places = Places { keys, places: places.into_iter(), tensors: [].iter(), at: 0 };
    while let Some(event) = stream.next().await? {
        if let Some((at, bytes)) = places.of(event)? {
            output.write_at(at, &bytes).await?;
            progress.advance(bytes.len() as u64);
        }
    }
    Ok(())
}

/// Where in the file the bytes of some keys go. What comes is held against what was listed.
struct Places<'a> {
    keys: &'a [Wanted],
    /// Where each tensor begins, in the order of the keys and their parts.
    places: std::vec::IntoIter<u64>,
    /// Tensors of the present key that have not begun.
    tensors: std::slice::Iter<'a, Tensor>,
    at: u64,
}

impl Places<'_> {
    /// The bytes that an event brings, and where they go.
    fn of(&mut self, event: ManyEvent) -> Result<Option<(u64, Bytes)>, Failure> {
        match event {
            ManyEvent::Key { index, version, .. } => {
                let key = &self.keys[index];
                if version != key.version {
                    return Err(changed(key, &format!("it is version {version} now")));
                }
                self.tensors = key.tensors.iter();
            }
            ManyEvent::Part { index, name, spec } => {
                let same = |tensor: &Tensor| tensor.spec.dtype() == spec.dtype() && tensor.spec.shape() == spec.shape();
                self.at = match (self.tensors.next(), self.places.next()) {
                    (Some(tensor), Some(at)) if same(tensor) && tensor.part.as_ref().is_none_or(|part| *part == name) => at,
                    _ => return Err(changed(&self.keys[index], &format!("its part {name:?} is another one now"))),
                };
            }
            ManyEvent::Data { bytes, .. } => {
                let at = self.at;
                self.at += bytes.len() as u64;
                return Ok(Some((at, bytes)));
            }
            ManyEvent::End { index } if self.tensors.len() > 0 => return Err(changed(&self.keys[index], "a part of it has not come")),
            ManyEvent::End { .. } => {}
            ManyEvent::Failed { index, error } => return Err(changed(&self.keys[index], &error.to_string())),
        }
        Ok(None)
    }
}

fn changed(key: &Wanted, how: &str) -> Failure {
    Failure::Failed(format!("{}: version {} was listed, and then: {how}; nothing is written", key.key, key.version))
}

#[cfg(test)]
mod tests {
    use sira_client::{Code, DType, WireError};

    use super::*;

    fn spec(extent: u64) -> TensorSpec {
        TensorSpec::new(DType::UInt8, vec![extent]).unwrap()
    }

    fn tensor(part: Option<&str>, extent: u64) -> Tensor {
        Tensor { name: "n".into(), part: part.map(String::from), spec: spec(extent) }
    }

    fn key(index: usize, version: u64) -> ManyEvent {
        ManyEvent::Key { index, version, parts: 1, kv_spec: None }
    }

    fn part(index: usize, name: &str, extent: u64) -> ManyEvent {
        ManyEvent::Part { index, name: name.into(), spec: spec(extent) }
    }

    /// Where the bytes of these events go: of a key of one tensor, and of one of two parts.
    fn placed(events: Vec<ManyEvent>) -> Result<Vec<(u64, usize)>, String> {
        let one = Wanted { key: "ns/a".into(), version: 3, tensors: vec![tensor(None, 5)] };
        let two = Wanted { key: "ns/b".into(), version: 1, tensors: vec![tensor(Some("k"), 2), tensor(Some("v"), 0)] };
        let keys = [one, two];
        let mut places = Places { keys: &keys, places: vec![100, 10, 50].into_iter(), tensors: [].iter(), at: 0 };
        let bytes = |event| places.of(event).map_err(|failure| failure.to_string()).transpose();
        events.into_iter().filter_map(bytes).map(|placed| placed.map(|(at, bytes)| (at, bytes.len()))).collect()
    }

    #[test]
    fn bytes_go_where_their_tensor_lies() {
        let data = |index, len| ManyEvent::Data { index, bytes: vec![0; len].into() };
        let end = |index| ManyEvent::End { index };
        let all = [key(0, 3), part(0, "data", 5), data(0, 2), data(0, 3), end(0)];
        let more = [key(1, 1), part(1, "k", 2), data(1, 2), part(1, "v", 0), end(1)];
        assert_eq!(placed(all.into_iter().chain(more).collect()).unwrap(), [(100, 2), (102, 3), (10, 2)]);
    }

    #[test]
    fn what_is_not_as_listed_is_refused() {
        let gone = ManyEvent::Failed { index: 0, error: WireError::new(Code::NotFound, "no tensor ns/a") };
        for (events, reason) in [
            (vec![key(0, 4)], "ns/a: version 3 was listed, and then: it is version 4 now"),
            (vec![gone], "SIRA_NOT_FOUND: no tensor ns/a"),
            (vec![key(0, 3), part(0, "data", 6)], "its part \"data\" is another one"),
            (vec![key(0, 3), ManyEvent::End { index: 0 }], "has not come"),
            (vec![key(0, 3), part(0, "data", 5), part(0, "more", 5)], "its part \"more\""),
            (vec![key(1, 1), part(1, "v", 2)], "its part \"v\""),
        ] {
            let failure = placed(events).unwrap_err();
            assert!(failure.contains(reason) && failure.ends_with("nothing is written"), "{failure}");
        }
    }
}
