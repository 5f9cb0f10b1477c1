//! What can go wrong in the store, by the stable code a client sees.

use sira_backend::BackendError;
use sira_codec::CodecError;
use sira_tensor::TensorError;
use sira_wire::{Code, WireError};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A request that breaks the contract.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A description that is no tensor's.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The stream of a put ended before the tensor was whole, or went on after it.
    #[error("{0}")]
    Incomplete(String),
    /// No such key, or it has expired.
    #[error("{0}")]
    NotFound(String),
    /// `if=absent` and the key exists.
    #[error("{0}")]
    Exists(String),
    /// The key has another version than the caller demands.
    #[error("{0}")]
    Stale(String),
    /// No room; reads go on.
    #[error("{0}")]
    OutOfSpace(String),
    /// No memory became free in time.
    #[error("{0}")]
    Busy(String),
    /// Stored bytes are not what was stored.
    #[error("{0}")]
    Corrupt(String),
    /// Known, but not offered.
    #[error("{0}")]
    Unsupported(String),
    /// No codec of this name, or it cannot be used here.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The store is draining.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// A backend failed.
    #[error("backend {backend}: {source}")]
    Backend {
        /// The backend's name in the configuration, or `catalog`.
        backend: String,
        /// What it said.
        #[source]
        source: BackendError,
    },
    /// The key has several parts, and one was asked for without saying which.
    #[error("{0}")]
    HasParts(String),
    /// No such kv spec is registered.
    #[error("{0}")]
    UnknownKvSpec(String),
    /// A codec names a calibration artefact that is not there.
    #[error("{0}")]
    UnknownCalibration(String),
    /// It cannot go while others need it.
    #[error("{0}")]
    InUse(String),
    /// The namespace is read-only.
    #[error("{0}")]
    ReadOnly(String),
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// A defect.
    #[error("{0}")]
    Internal(String),
}

impl StoreError {
    /// The stable code of this error.
    pub fn code(&self) -> Code {
        match self {
            StoreError::Wire(e) => e.code,
            StoreError::Tensor(TensorError::BadSlice(_)) | StoreError::Config(_) => Code::BadRequest,
            StoreError::Tensor(_) => Code::BadTensor,
            StoreError::Incomplete(_) => Code::Incomplete,
            StoreError::NotFound(_) => Code::NotFound,
            StoreError::Exists(_) => Code::Exists,
            StoreError::Stale(_) => Code::Stale,
            StoreError::OutOfSpace(_) => Code::OutOfSpace,
            StoreError::Busy(_) => Code::Busy,
            StoreError::Corrupt(_) => Code::Corrupt,
            StoreError::Unsupported(_) => Code::Unsupported,
            StoreError::Codec(CodecError::Encode { .. }) => Code::Unsupported,
            StoreError::Codec(CodecError::NoCalibration { .. }) => Code::UnknownCalibration,
            StoreError::Codec(_) => Code::UnknownCodec,
            StoreError::HasParts(_) => Code::HasParts,
            StoreError::UnknownKvSpec(_) => Code::UnknownKvSpec,
            StoreError::UnknownCalibration(_) => Code::UnknownCalibration,
            StoreError::InUse(_) => Code::InUse,
            StoreError::ReadOnly(_) => Code::ReadOnly,
            StoreError::ShuttingDown => Code::ShuttingDown,
            StoreError::Backend { source: BackendError::OutOfSpace(_), .. } => Code::OutOfSpace,
            StoreError::Backend { source: BackendError::Corrupt(_), .. } => Code::Corrupt,
            StoreError::Backend { .. } => Code::Backend,
            StoreError::Internal(_) => Code::Internal,
        }
    }

    /// The error as the wire has it: the code, then the reason.
    pub fn to_wire(&self) -> WireError {
        match self {
            StoreError::Wire(e) => e.clone(),
            other => WireError::new(other.code(), other.to_string()),
        }
    }
}
