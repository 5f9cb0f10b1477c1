//! What can go wrong in a backend, by what the caller should do.

/// Why a backend call failed. The kind tells the caller what to do; `source` tells a person why.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// No room for the value; reads go on. Delete something or raise the limit.
    #[error("out of space: {0}")]
    OutOfSpace(String),
    /// The name is not one that [`crate::name::check`] accepts.
    #[error("bad name {name:?}: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The range leaves the value.
    #[error("range {start}..{end} leaves a value of {len} bytes")]
    BadRange {
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Bytes of the value.
        len: u64,
    },
    /// The value is larger than the backend takes.
    #[error("a value of {len} bytes is larger than the {limit} that this backend takes")]
    TooLarge {
        /// Bytes of the value.
        len: u64,
        /// Bytes of the largest value.
        limit: u64,
    },
    /// The backend failed in a way that may pass: try again later.
    #[error("{context}: {source}")]
    Unavailable {
        /// What was being done.
        context: String,
        /// What the library or the system said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The backend itself found that what it stored is damaged.
    #[error("damaged: {0}")]
    Corrupt(String),
    /// The configuration cannot work: say so to the person who wrote it.
    #[error("bad configuration: {0}")]
    Config(String),
}
