//! `sira import`: the tensors of an Avro file into a server, each whole and verified or not at all.

mod source;
mod state;

use std::time::{Duration, Instant, SystemTime};

use sira_client::{Client, ClientError, Code, Condition, PutOptions};
use sira_tensor::TensorSpec;

use self::source::Source;
use self::state::State;
use super::{Server, plural, print};
use crate::Failure;
use crate::cli::ImportArgs;
use crate::config::units::short_size;
use crate::formats::avro::Header;
use crate::progress::Progress;

/// How often the state file is written; after an interruption, what it does not know yet is imported again, to the same content.
const SAVE_EVERY: Duration = Duration::from_millis(200);

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

/// A tensor to be put.
struct Job {
    key: String,
    spec: TensorSpec,
    options: PutOptions,
}

/// `sira import`.
pub(crate) async fn import(server: Server<'_>, args: &ImportArgs) -> Result<(), Failure> {
    let client = server.connect().await?;
    let mut state = State::new(args)?;
    let mut source = Source::open(&args.file, &mut state)?;
    let before = state.tensors;
    let mut done = Done::default();
    let imported = put_all(&client, args, &mut source, &mut state, &mut done).await;
    if let Err(failure) = imported {
        let saved = if state.save() { ": go on with --resume" } else { "" };
        let reason = format!("{}: {failure}; {} before it imported{saved}", args.file.display(), plural(before + done.tensors, "tensor"));
        return Err(Failure::Failed(reason));
    }
    state.remove();
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
    print(&text)
}

async fn put_all(client: &Client, args: &ImportArgs, source: &mut Source, state: &mut State, done: &mut Done) -> Result<(), Failure> {
    let bar = Progress::bytes(Some(source.length), true);
    let mut saved = Instant::now();
    while let Some(header) = source.header().await? {
        bar.set(source.at());
        bar.message(&header.key);
        let key = renamed(&header.key, &source.prefix, args.prefix.as_deref())?;
        match job(&header, key, args.if_absent)? {
            None => done.expired += 1,
            Some(job) => {
                put(client, job, source, done).await.map_err(|failure| Failure::with(format!("tensor {}", header.key), failure))?
            }
        }
        state.place = source.finish().await?;
        state.tensors += 1;
        if saved.elapsed() >= SAVE_EVERY {
            state.save();
            saved = Instant::now();
        }
    }
    Ok(())
}

async fn put(client: &Client, job: Job, source: &Source, done: &mut Done) -> Result<(), Failure> {
    let nbytes = job.spec.nbytes();
    if nbytes == 0 {
        // With no last byte to hold back, the server would commit before the end was seen.
        source.finish().await?;
    }
    match client.put_stream(&job.key, &job.spec, source.pieces(), job.options).await {
        Ok(_) => {
            done.tensors += 1;
            done.nbytes += nbytes;
            Ok(())
        }
        Err(error) if error.code() == Some(Code::Exists) => {
            done.present += 1;
            Ok(())
        }
        Err(ClientError::Source(error)) => Err(Failure::Failed(format!("nothing of it was stored: {error}"))),
        Err(error) => Err(error.into()),
    }
}

/// What to put of a tensor; `None` when it has expired.
fn job(header: &Header, key: String, if_absent: bool) -> Result<Option<Job>, Failure> {
    let failed = |reason: String| Failure::Failed(format!("tensor {}: {reason}", header.key));
    let [part] = header.parts.as_slice() else {
        return Err(failed(format!("{} parts; this version imports keys of one part", header.parts.len())));
    };
    if part.name != "data" {
        return Err(failed(format!("its part is called {:?}; this version imports a part called data", part.name)));
    }
    if let Some(kv_spec) = &header.kv_spec {
        return Err(failed(format!("it names the KV layout {:?}, which this version cannot register", kv_spec.hash)));
    }
    let ttl = match header.expires_ms.map(remaining) {
        Some(None) => return Ok(None),
        Some(seconds) => seconds,
        None => None,
    };
    let options = PutOptions {
        codec: part.codec.clone(),
        ttl,
        consistency: Some(header.consistency),
        condition: if_absent.then_some(Condition::Absent),
        ..PutOptions::default()
    };
    Ok(Some(Job { key, spec: part.spec().map_err(failed)?, options }))
}

/// Whole seconds until a time, rounded up; `None` when it has passed.
fn remaining(expires_ms: i64) -> Option<u64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let left = u128::try_from(expires_ms).unwrap_or(0).saturating_sub(now);
    u64::try_from(left.div_ceil(1000)).ok().filter(|&seconds| seconds > 0)
}

/// The key with another prefix than it was exported by.
fn renamed(key: &str, from: &str, to: Option<&str>) -> Result<String, Failure> {
    let Some(to) = to else { return Ok(key.to_owned()) };
    let rest = key.strip_prefix(from);
    let rest =
        rest.ok_or_else(|| Failure::Failed(format!("tensor {key}: it does not begin with {from:?}, which the file says it exports")))?;
    Ok(format!("{to}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_get_another_prefix() {
        assert_eq!(renamed("a/b/c", "a/b", None).unwrap(), "a/b/c");
        assert_eq!(renamed("a/b/c", "a/b", Some("x/y")).unwrap(), "x/y/c");
        assert_eq!(renamed("a/b/c", "", Some("x/")).unwrap(), "x/a/b/c");
        assert!(renamed("a/b", "b/", Some("x/")).is_err());
    }

    #[test]
    fn what_has_expired_has_no_time_left() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
        assert_eq!(remaining(now - 1), None);
        assert_eq!(remaining(i64::MIN), None);
        assert_eq!(remaining(now + 59_500), Some(60));
    }
}
