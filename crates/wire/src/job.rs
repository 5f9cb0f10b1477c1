//! Jobs: long work on the server that is started, watched and stopped.

use serde::{Deserialize, Serialize};

use crate::WireError;
use crate::many::FailedKey;
use crate::options::refuse;
use crate::request::{Versioned, parse, versioned};

versioned!(MigrateRequest, CheckRequest, JobRequest);

/// Failures and findings that a job names; more are only counted.
pub const MAX_NAMED: usize = 200;

/// Bytes of a pattern or prefix, at most.
const MAX_PATTERN: usize = 1024;

/// The body of `migrate`: starts a job that moves tensors, or goes on with one of the same words that was stopped or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Version of the contract.
    pub v: u32,
    /// The backend that they leave.
    pub source: String,
    /// The backend that they go to.
    pub target: String,
    /// A glob over whole keys, in which `*` matches `/` too.
    pub pattern: String,
    /// Only count what would move.
    #[serde(default)]
    pub dry_run: bool,
}

/// The body of `check`: starts a job that reads every copy of tensors, and looks for those that are damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Version of the contract.
    pub v: u32,
    /// Keys that start with this; all when empty, and then chunks that no record names are looked for as well.
    #[serde(default)]
    pub prefix: String,
    /// Mend what can be: from another copy that is good, or by removing what nothing names.
    #[serde(default)]
    pub mend: bool,
}

/// The body of `job` and `job_stop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// Version of the contract.
    pub v: u32,
    /// The job's id.
    pub id: String,
}

impl MigrateRequest {
    /// Reads an action's body.
    pub fn parse(body: &[u8]) -> Result<MigrateRequest, WireError> {
        let request: MigrateRequest = parse("body", body)?;
        if request.source == request.target {
            return Err(refuse(format!("source and target are both {}; they must be two backends", request.source)));
        }
        if request.pattern.is_empty() || request.pattern.len() > MAX_PATTERN {
            return Err(refuse(format!("pattern has {} bytes; 1 to {MAX_PATTERN}, such as \"kv/*\"", request.pattern.len())));
        }
        Ok(request)
    }
}

impl CheckRequest {
    /// Reads an action's body.
    pub fn parse(body: &[u8]) -> Result<CheckRequest, WireError> {
        let request: CheckRequest = parse("body", body)?;
        match request.prefix.len() {
            0..=MAX_PATTERN => Ok(request),
            more => Err(refuse(format!("prefix has {more} bytes; up to {MAX_PATTERN}"))),
        }
    }
}

impl JobRequest {
    /// Reads an action's body: the job's id.
    pub fn parse(body: &[u8]) -> Result<String, WireError> {
        Ok(parse::<JobRequest>("body", body)?.id)
    }
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Work {
    /// Moves tensors from one backend to another.
    Migrate {
        /// The backend that they leave.
        source: String,
        /// The backend that they go to.
        target: String,
        /// A glob over whole keys.
        pattern: String,
        /// Only counts.
        dry_run: bool,
    },
    /// Holds copies against their records.
    Check {
        /// Keys that start with this.
        prefix: String,
        /// Mends what can be.
        mend: bool,
    },
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It is at work. After a restart of the server it goes on.
    Running,
    /// It was told to stop; started again, it goes on where it was.
    Stopped,
    /// It could not go on; started again, it goes on where it was.
    Failed,
    /// It has come to its end.
    Done,
}

/// A job: what it does, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// What it does.
    #[serde(flatten)]
    pub work: Work,
    /// How it stands.
    pub state: JobState,
    /// Milliseconds since 1970 at which it was started first.
    pub started_ms: u64,
    /// And ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// How often it went on after a stop, a failure or a restart of the server.
    #[serde(default)]
    pub resumed: u64,
    /// Tensors that it is for, as counted when it began.
    pub keys_total: u64,
    /// Their stored bytes.
    pub bytes_total: u64,
    /// Tensors moved or, of a check, looked at.
    pub keys: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Tensors that changed while they were moved: they are where their writer put them.
    #[serde(default)]
    pub changed: u64,
    /// Tensors that lie in their records, which do not move.
    #[serde(default)]
    pub inline: u64,
    /// Tensors that could not be moved, and stay where they were.
    #[serde(default)]
    pub failed: u64,
    /// Which, and why; the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailedKey>,
    /// Of a check: what is not as its record says.
    #[serde(default)]
    pub found: u64,
    /// How much of that is mended.
    #[serde(default)]
    pub mended: u64,
    /// What it is; the first of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Something that is not as a record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The tensor; empty where no record names what was found.
    #[serde(default)]
    pub key: String,
    /// The backend.
    pub backend: String,
    /// What is wrong.
    pub problem: Problem,
    /// In words.
    pub detail: String,
    /// Whether it is mended.
    pub mended: bool,
}

/// A kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Problem {
    /// A chunk that is named is not there.
    Missing,
    /// A chunk is not what was written.
    Damaged,
    /// The namespace wants a copy here, and the record names none.
    Lacking,
    /// Chunks here are named by no record.
    Orphan,
    /// The backend does not answer.
    Unreachable,
}

/// The answer of `jobs`: those that run, and the last ones that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsAnswer {
    /// In the order in which they were started.
    pub jobs: Vec<Job>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_checked() {
        let request = MigrateRequest::parse(br#"{"v":1,"source":"a","target":"b","pattern":"kv/*"}"#).unwrap();
        assert_eq!((request.pattern.as_str(), request.dry_run), ("kv/*", false));
        for bad in [
            &br#"{"v":1,"source":"a","target":"a","pattern":"kv/*"}"#[..],
            br#"{"v":1,"source":"a","target":"b","pattern":""}"#,
            br#"{"v":1,"source":"a","target":"b"}"#,
            br#"{"v":2,"source":"a","target":"b","pattern":"*"}"#,
        ] {
            assert!(MigrateRequest::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(CheckRequest::parse(br#"{"v":1,"mend":true}"#).unwrap().mend);
        assert!(CheckRequest::parse(format!(r#"{{"v":1,"prefix":"{}"}}"#, "x".repeat(2000)).as_bytes()).is_err());
        assert_eq!(JobRequest::parse(br#"{"v":1,"id":"x"}"#).unwrap(), "x");
    }
}
