//! Why a call failed.

use std::io;
use std::time::Duration;

use sira_tensor::TensorError;
use sira_wire::{Code, WireError};

/// Why a call failed. [`ClientError::code`] gives the wire's stable code where there is one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Refused by the server, or by this client with the words that the server would have used.
    #[error(transparent)]
    Refused(#[from] WireError),
    /// The description of the tensor is wrong.
    #[error("SIRA_BAD_TENSOR: {0}")]
    BadTensor(#[from] TensorError),
    /// The URL is not one of a server.
    #[error("bad URL {url:?}: {reason}")]
    BadUrl {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A token, certificate or key that cannot be used.
    #[error("bad credentials: {0}")]
    BadCredentials(String),
    /// No connection, or it broke.
    #[error("{context}: {reason}")]
    Transport {
        /// What was being done.
        context: String,
        /// What the system said.
        reason: String,
    },
    /// A lookup had no answer in time. For a namespace that is known as a cache it would have been a miss.
    #[error("no answer to {call} within {} ms", .deadline.as_millis())]
    DeadlineExceeded {
        /// What was asked.
        call: String,
        /// The time it had.
        deadline: Duration,
    },
    /// The source of a put failed or held another number of bytes than its spec says; nothing was committed.
    #[error("nothing was stored: {0}")]
    Source(#[source] io::Error),
    /// The server's answer is not what the contract says.
    #[error("the server's answer is not understood: {0}")]
    Protocol(String),
}

impl ClientError {
    /// The wire's stable code, where there is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            ClientError::Refused(error) => Some(error.code),
            ClientError::BadTensor(_) => Some(Code::BadTensor),
            _ => None,
        }
    }

    pub(crate) fn protocol(reason: impl ToString) -> ClientError {
        ClientError::Protocol(reason.to_string())
    }
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> ClientError {
        match coded(status.message()) {
            Some(error) => ClientError::Refused(error),
            None => ClientError::Transport { context: format!("the server answered {:?}", status.code()), reason: innermost(&status) },
        }
    }
}

/// A refusal in words of the wire: a stable code, a colon, the reason.
fn coded(text: &str) -> Option<WireError> {
    let reason = text.split_once(':')?.1;
    Some(WireError::new(Code::of_message(text)?, reason.trim_start()))
}

/// What a server says of one key among many. A code that this client does not know yet is kept as part of the reason.
pub(crate) fn refusal(text: &str) -> WireError {
    coded(text).unwrap_or_else(|| WireError::new(Code::Internal, text))
}

impl From<tonic::transport::Error> for ClientError {
    fn from(error: tonic::transport::Error) -> ClientError {
        ClientError::Transport { context: "no connection".into(), reason: innermost(&error) }
    }
}

/// The last cause, which is what the system said: tonic's own words are `transport error`.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    match (cause.to_string(), error.to_string()) {
        (inner, _) if !inner.is_empty() => inner,
        (_, outer) => outer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_with_a_code_keeps_it_and_its_text() {
        let error = ClientError::from(tonic::Status::not_found("SIRA_NOT_FOUND: ns/k: no such key"));
        assert_eq!(error.code(), Some(Code::NotFound));
        assert_eq!(error.to_string(), "SIRA_NOT_FOUND: ns/k: no such key");
        let error = ClientError::from(tonic::Status::unavailable("tcp connect error"));
        assert_eq!(error.code(), None);
        assert_eq!(refusal("SIRA_STALE: it is 4"), WireError::new(Code::Stale, "it is 4"));
        assert_eq!(refusal("SIRA_NEW: what"), WireError::new(Code::Internal, "SIRA_NEW: what"));
    }
}
