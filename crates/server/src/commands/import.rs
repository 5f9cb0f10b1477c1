//! `sira import`: the keys of an Avro file into a server, each whole and verified or not at all.

mod batch;
mod job;
mod source;
mod state;

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::TryStreamExt;
use serde_json::json;
use sira_client::{Client, ClientError, Code};

use self::batch::{Batch, Small};
use self::job::Job;
use self::source::Source;
use self::state::State;
use super::{Server, plural, print, print_line};
use crate::Failure;
use crate::cli::ImportArgs;
use crate::config::units::short_size;
use crate::formats::avro::{Header, KvSpec, Place, is_artefact};
use crate::progress::Progress;

/// How often the state file is written; after an interruption, what it does not know yet is imported again, to the same content.
const SAVE_EVERY: Duration = Duration::from_millis(200);
/// Hashes of registered KV specs that are remembered; a store has few.
const SPECS: usize = 4096;

/// What an import did.
#[derive(Default)]
struct Done {
    tensors: u64,
    nbytes: u64,
    /// Keys that were there, with `--if-absent`.
    present: u64,
    /// Expired since the export.
    expired: u64,
}

/// An import under way.
struct Import<'a> {
    client: Client,
    args: &'a ImportArgs,
    source: Source,
    state: State,
    saved: Instant,
    /// Small tensors that were read, and are not stored yet.
    batch: Batch,
    /// Tensors that were read, those of earlier runs among them, and where the last of them ends.
    read: (u64, Place),
    /// KV specs that this run registered.
    specs: HashSet<String>,
    done: Done,
}

/// `sira import`.
pub(crate) async fn import(server: Server<'_>, args: &ImportArgs) -> Result<(), Failure> {
    let client = server.connect().await?;
    let mut state = State::new(args)?;
    let source = Source::open(&args.file, &mut state)?;
    let (before, read) = (state.tensors, (state.tensors, state.place));
    let (batch, specs, done, saved) = (Batch::default(), HashSet::new(), Done::default(), Instant::now());
    let mut import = Import { client, args, source, state, saved, batch, read, specs, done };
    if let Err(failure) = import.run().await {
        let saved = if import.state.save() { ": go on with --resume" } else { "" };
        let count = plural(before + import.done.tensors, "tensor");
        return Err(Failure::Failed(format!("{}: {failure}; {count} before it imported{saved}", args.file.display())));
    }
    import.state.remove();
    let done = import.done;
    match args.json {
        true => print_line(&json!({
            "file": args.file.display().to_string(),
            "tensors": done.tensors,
            "nbytes": done.nbytes,
            "resumed": before,
            "present": done.present,
            "expired": done.expired,
        })),
        false => print(&summary(args, before, &done)),
    }
}

fn summary(args: &ImportArgs, before: u64, done: &Done) -> String {
    let mut text = format!("{}: {}, {}", args.file.display(), plural(done.tensors, "tensor"), short_size(done.nbytes));
    if before > 0 {
        text.push_str(&format!("; {before} were imported before"));
    }
    if done.present > 0 {
        text.push_str(&format!("; {} were there already", done.present));
    }
    if done.expired > 0 {
        text.push_str(&format!("; {} have expired since the export", done.expired));
    }
    text
}

/// The file is to blame.
fn nothing_stored(error: io::Error) -> Failure {
    Failure::with("nothing of it was stored", error)
}

impl Import<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        let read = self.read_all().await;
        // What was read before something went wrong is whole and right. After a failure to store there is nothing left of it.
        self.flush().await?;
        read
    }

    async fn read_all(&mut self) -> Result<(), Failure> {
        let bar = Progress::bytes(Some(self.source.length), !self.args.json);
        while let Some(header) = self.source.header().await? {
            bar.set(self.source.at());
            bar.message(&header.key);
            let of_tensor = |failure| Failure::with(format!("tensor {}", header.key), failure);
            match Job::new(&header, &self.source.prefix, self.args).map_err(of_tensor)? {
                None => {
                    self.source_ends().await?;
                    self.done.expired += 1;
                }
                // What others need is there before they are put.
                Some(job) if Batch::takes(&job) && !is_artefact(&header.key) => {
                    if !self.batch.has_room(&job) {
                        self.flush().await?;
                    }
                    self.collect(&header, job).await.map_err(of_tensor)?;
                }
                Some(job) => {
                    self.flush().await?;
                    self.put(&header, job).await.map_err(of_tensor)?;
                    self.source_ends().await?;
                }
            }
            if self.batch.is_empty() {
                self.is_done(self.read);
            }
        }
        Ok(())
    }

    /// Reads what is left of the tensor.
    async fn source_ends(&mut self) -> Result<(), Failure> {
        self.read = (self.read.0 + 1, self.source.finish().await?);
        Ok(())
    }

    /// Reads a small tensor whole, to be put with others.
    async fn collect(&mut self, header: &Header, job: Job) -> Result<(), Failure> {
        self.register(header).await?;
        // Of a small tensor, which it is, the file's word is enough to allocate by.
        let room = BytesMut::with_capacity(usize::try_from(job.nbytes()).unwrap_or(0));
        let bytes = self.source.pieces().try_fold(room, |mut bytes, piece| async move {
            bytes.extend_from_slice(&piece);
            Ok(bytes)
        });
        let bytes = bytes.await.map_err(nothing_stored)?.freeze();
        self.source_ends().await?;
        self.batch.push(Small { key: header.key.clone(), nbytes: job.nbytes(), read: self.read }, job, bytes);
        Ok(())
    }

    /// Puts a tensor while it is read.
    async fn put(&mut self, header: &Header, job: Job) -> Result<(), Failure> {
        self.register(header).await?;
        let nbytes = job.nbytes();
        if nbytes == 0 {
            // With no last byte to hold back, the server would commit before the end was seen.
            self.source.finish().await?;
        }
        match job.put(&self.client, self.source.pieces()).await {
            Ok(_) => {
                self.done.tensors += 1;
                self.done.nbytes += nbytes;
                Ok(())
            }
            Err(error) if error.code() == Some(Code::Exists) => {
                self.done.present += 1;
                Ok(())
            }
            Err(ClientError::Source(error)) => Err(nothing_stored(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the small tensors that were read. Where one cannot be stored, that is as far as the import is, though others behind it may be stored.
    async fn flush(&mut self) -> Result<(), Failure> {
        let (tensors, entries) = self.batch.take();
        if tensors.is_empty() {
            return Ok(());
        }
        let results = self.client.put_many(futures::stream::iter(entries)).await?;
        for (small, result) in tensors.into_iter().zip(results) {
            match result {
                Ok(_) => {
                    self.done.tensors += 1;
                    self.done.nbytes += small.nbytes;
                }
                Err(error) if error.code == Code::Exists => self.done.present += 1,
                Err(error) => return Err(Failure::with(format!("tensor {}", small.key), error)),
            }
            self.is_done(small.read);
        }
        // Behind them there may be tensors that had expired.
        self.is_done(self.read);
        Ok(())
    }

    /// Everything up to there is stored.
    fn is_done(&mut self, read: (u64, Place)) {
        (self.state.tensors, self.state.place) = read;
        if self.saved.elapsed() >= SAVE_EVERY {
            self.state.save();
            self.saved = Instant::now();
        }
    }

    /// Registers the KV spec that a key names, once it is sure that it is the one of that hash.
    async fn register(&mut self, header: &Header) -> Result<(), Failure> {
        let Some(KvSpec { hash, json }) = &header.kv_spec else { return Ok(()) };
        if self.specs.contains(hash) {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| Failure::with("its KV spec", error);
        let spec = sira_client::KvSpec::from_json(json.as_bytes()).map_err(|error| failed(&error))?;
        if spec.hash() != *hash {
            let said: String = hash.chars().take(100).collect();
            return Err(failed(&format!("the header says that its hash is {said:?}, and it is {}", spec.hash())));
        }
        let registered = self.client.put_kv_spec(&spec).await.map_err(|error| failed(&error))?.hash;
        if registered != *hash {
            return Err(failed(&format!("the server gave it another hash, {registered:?}")));
        }
        if self.specs.len() == SPECS {
            self.specs.clear();
        }
        self.specs.insert(registered);
        Ok(())
    }
}
