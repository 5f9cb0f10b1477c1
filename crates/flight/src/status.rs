//! Errors as gRPC has them.

use http::{HeaderMap, HeaderValue};
use sira_store::StoreError;
use sira_wire::{Code, WireError};
use tonic::Status;

/// Bytes of a message. gRPC carries it in a header, where clients take 8 KiB or less, with up to three bytes for each of these.
const MESSAGE_BYTES: usize = 2 << 10;

/// The gRPC status of a refusal; the message begins with the stable code.
pub(crate) fn of_wire(error: &WireError) -> Status {
    // Longer than a client would take, its code would be lost with it.
    let message = shortened(error.to_string(), MESSAGE_BYTES);
    match error.code {
        Code::BadKey | Code::BadRequest | Code::BadTensor | Code::Incomplete | Code::UnknownCodec => Status::invalid_argument(message),
        Code::NotFound => Status::not_found(message),
        Code::Exists => Status::already_exists(message),
        Code::Stale | Code::HasParts | Code::UnknownKvSpec | Code::UnknownCalibration | Code::InUse => Status::failed_precondition(message),
        Code::ReadOnly => Status::permission_denied(message),
        Code::OutOfSpace => Status::resource_exhausted(message),
        Code::Busy | Code::ShuttingDown | Code::Backend => Status::unavailable(message),
        Code::Corrupt => Status::data_loss(message),
        Code::Unsupported => Status::unimplemented(message),
        Code::Internal => Status::internal(message),
        Code::Unauthenticated => Status::unauthenticated(message),
    }
}

/// `message`, cut where it is longer than `most` bytes.
pub(crate) fn shortened(mut message: String, most: usize) -> String {
    if message.len() > most {
        message.truncate(message.floor_char_boundary(most - '…'.len_utf8()));
        message.push('…');
        message.shrink_to_fit();
    }
    message
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

/// The trailers of an answer that ends so.
pub(crate) fn trailers(end: Result<(), Status>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    let written = match end {
        Ok(()) => Ok(trailers.insert("grpc-status", HeaderValue::from_static("0"))),
        Err(status) => status.add_header(&mut trailers).map(|()| None),
    };
    if written.is_err() {
        trailers.insert("grpc-status", HeaderValue::from(tonic::Code::Internal as i32));
    }
    trailers
}

/// How a request ended, as it is counted.
pub(crate) fn outcome<T>(answer: &Result<T, Status>) -> Result<(), Code> {
    answer.as_ref().map_or_else(|status| Err(Code::of_message(status.message()).unwrap_or(Code::Internal)), |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_between_letters_and_keep_their_code() {
        let whole = refuse(Code::BadRequest, "x".repeat(1000));
        assert_eq!(whole.message().len(), "SIRA_BAD_REQUEST: ".len() + 1000);
        for letter in ["x", "é", "€", "😀"] {
            let status = refuse(Code::BadRequest, letter.repeat(5000));
            let message = status.message();
            assert!((MESSAGE_BYTES - 4..=MESSAGE_BYTES).contains(&message.len()), "{}", message.len());
            assert!(message.starts_with("SIRA_BAD_REQUEST: ") && message.ends_with(&format!("{letter}…")));
        }
    }
}
