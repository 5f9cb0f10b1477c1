//! Errors as gRPC has them.

use sira_store::StoreError;
use sira_wire::{Code, WireError};
use tonic::Status;

/// The gRPC status of a refusal; the message begins with the stable code.
pub(crate) fn of_wire(error: &WireError) -> Status {
    let message = error.to_string();
    match error.code {
        Code::BadKey | Code::BadRequest | Code::BadTensor | Code::Incomplete | Code::UnknownCodec => Status::invalid_argument(message),
        Code::NotFound => Status::not_found(message),
        Code::Exists => Status::already_exists(message),
        Code::Stale | Code::HasParts | Code::UnknownKvSpec => Status::failed_precondition(message),
        Code::ReadOnly => Status::permission_denied(message),
        Code::OutOfSpace => Status::resource_exhausted(message),
        Code::Busy | Code::ShuttingDown | Code::Backend => Status::unavailable(message),
        Code::Corrupt => Status::data_loss(message),
        Code::Unsupported => Status::unimplemented(message),
        Code::Internal => Status::internal(message),
        Code::Unauthenticated => Status::unauthenticated(message),
    }
}

pub(crate) fn of_store(error: StoreError) -> Status {
    let wire = error.to_wire();
    if matches!(wire.code, Code::Internal | Code::Corrupt | Code::Backend) {
        tracing::error!(error = %wire.message, code = %wire.code);
    }
    of_wire(&wire)
}

pub(crate) fn refuse(code: Code, message: impl Into<String>) -> Status {
    of_wire(&WireError::new(code, message))
}

pub(crate) fn unsupported(message: &str) -> Status {
    refuse(Code::Unsupported, message)
}

/// How a request ended, as it is counted.
pub(crate) fn outcome<T>(answer: &Result<T, Status>) -> Result<(), Code> {
    answer.as_ref().map_or_else(|status| Err(Code::of_message(status.message()).unwrap_or(Code::Internal)), |_| Ok(()))
}
