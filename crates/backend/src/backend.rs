//! The trait a backend implements.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BackendError, Payload};

/// A place for bytes under names.
///
/// # Contract
/// - **Names** are those [`crate::name::check`] accepts; any other is [`BackendError::BadName`]. No name given to one backend is a folder of another (`a` beside `a/b`).
/// - **put** is atomic: readers and a restart see the whole old value, the whole new one, or none. When it returns, every
///   later call sees the value, and it survives what [`Capabilities`] says for the asked [`Durability`]. With
///   [`PutMode::Create`] exactly one of any number of racing writers is told [`PutOutcome::Written`].
/// - A failed or dropped put leaves either the old state or the whole new value, never a part; a dropped one may land later.
/// - **delete** survives the death of the process; power loss may bring a value back.
/// - **get** of a range returns exactly those bytes; a range that leaves the value is [`BackendError::BadRange`].
/// - **list_keys** pages in the byte order of names: those that start with `prefix` and are greater than `after`.
/// - **No room** is [`BackendError::OutOfSpace`] to that writer; reads go on, and deleting makes room again.
/// - Calls are cheap to start and never block the async runtime.
#[async_trait]
pub trait StorageBackend: Send + Sync + 'static {
    /// What this backend can do and promises.
    fn capabilities(&self) -> Capabilities;

    /// Stores `value` under `name`.
    async fn put(&self, name: &str, value: Payload, options: PutOptions) -> Result<PutOutcome, BackendError>;

    /// The value under `name`, or the given bytes of it; `None` where there is none.
    async fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError>;

    /// Removes the value under `name`; says whether there was one.
    async fn delete(&self, name: &str) -> Result<bool, BackendError>;

    /// Whether there is a value under `name`.
    async fn exists(&self, name: &str) -> Result<bool, BackendError>;

    /// Up to `limit` names that start with `prefix` and come after `after`, in byte order.
    async fn list_keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, BackendError>;

    /// Bytes used and free, as far as the backend knows. Cheap: it counts and lists nothing, so it may be asked often.
    async fn stats(&self) -> Result<StorageStats, BackendError>;

    /// Runs operations in order and answers each; one that fails does not stop the rest. Not a transaction.
    async fn batch(&self, operations: Vec<BatchOperation>) -> Result<Vec<BatchResult>, BackendError> {
        let mut results = Vec::with_capacity(operations.len());
        for operation in operations {
            results.push(match operation {
                BatchOperation::Put { name, value, options } => BatchResult::Put(self.put(&name, value, options).await),
                BatchOperation::Get { name, range } => BatchResult::Get(self.get(&name, range).await),
                BatchOperation::Delete { name } => BatchResult::Delete(self.delete(&name).await),
            });
        }
        Ok(results)
    }

    /// Whether the backend works right now: a cheap round trip to the place where the bytes lie.
    async fn health_check(&self) -> Result<HealthStatus, BackendError>;

    /// Bytes that were written to disks of this machine since the backend was opened, for all that it did: values, logs, and what is written
    /// again when it tidies up. `None` where nobody counts them. Cheap: it reads counters.
    fn device_bytes_written(&self) -> Option<u64> {
        None
    }
}

/// When a put may answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Survives power loss.
    Durable,
    /// Survives the death of this process; where a backend has no log, as `Durable`.
    #[default]
    Logged,
}

/// What a put does with a value that is already there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PutMode {
    /// Replaces it.
    #[default]
    Overwrite,
    /// Leaves it and answers [`PutOutcome::Exists`].
    Create,
}

/// How to put.
#[derive(Clone, Copy, Debug, Default)]
pub struct PutOptions {
    /// Replace or create.
    pub mode: PutMode,
    /// When to answer.
    pub durability: Durability,
    /// The value may vanish after this time, where the backend expires by itself; only a backstop.
    pub expires_in: Option<Duration>,
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The value is stored.
    Written,
    /// With [`PutMode::Create`]: there was one already, which stays.
    Exists,
}

/// What an acknowledged put survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Survives {
    /// Nothing: the value goes with the process.
    Nothing,
    /// The death of the process.
    ProcessCrash,
    /// Power loss.
    PowerLoss,
}

/// What a backend can do and promises.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// Bytes of the largest value.
    pub max_value: u64,
    /// Bytes of the longest name.
    pub max_name: usize,
    /// Whether a range read moves only the range.
    pub ranges: bool,
    /// Whether values expire by themselves.
    pub native_expiry: bool,
    /// Whether other nodes see the same values.
    pub shared: bool,
    /// What a put with [`Durability::Logged`] survives.
    pub logged_survives: Survives,
    /// What a put with [`Durability::Durable`] survives.
    pub durable_survives: Survives,
}

/// Bytes and values of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageStats {
    /// Values stored, where the backend counts them.
    pub values: Option<u64>,
    /// Bytes used by values, where the backend counts them.
    pub used_bytes: Option<u64>,
    /// Bytes that may still be written: of the limit, or of the disk.
    pub available_bytes: Option<u64>,
    /// Free bytes of the file system that the values lie on, whatever the limit; `None` in memory and for a remote store.
    pub disk_free_bytes: Option<u64>,
    /// Size of that file system.
    pub disk_bytes: Option<u64>,
}

/// One operation of a batch.
#[derive(Clone, Debug)]
pub enum BatchOperation {
    /// As [`StorageBackend::put`].
    Put {
        /// Name of the value.
        name: String,
        /// The value.
        value: Payload,
        /// How to put.
        options: PutOptions,
    },
    /// As [`StorageBackend::get`].
    Get {
        /// Name of the value.
        name: String,
        /// Bytes of it, or all.
        range: Option<Range<u64>>,
    },
    /// As [`StorageBackend::delete`].
    Delete {
        /// Name of the value.
        name: String,
    },
}

impl BatchOperation {
    /// The name that it is about.
    pub fn name(&self) -> &str {
        match self {
            BatchOperation::Put { name, .. } | BatchOperation::Get { name, .. } | BatchOperation::Delete { name } => name,
        }
    }
}

/// The answer to one operation of a batch.
#[derive(Debug)]
pub enum BatchResult {
    /// Of a put.
    Put(Result<PutOutcome, BackendError>),
    /// Of a get.
    Get(Result<Option<Bytes>, BackendError>),
    /// Of a delete.
    Delete(Result<bool, BackendError>),
}

/// Whether a backend works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// It does.
    Healthy,
    /// It answers, but not as it should: the reason.
    Degraded(String),
    /// It does not: the reason.
    Unhealthy(String),
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealthStatus::Healthy => f.write_str("healthy"),
            HealthStatus::Degraded(reason) => write!(f, "degraded: {reason}"),
            HealthStatus::Unhealthy(reason) => write!(f, "unhealthy: {reason}"),
        }
    }
}
