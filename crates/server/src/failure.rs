//! How a command fails: one line for a person, one number for a script.

use std::fmt;
use std::process::ExitCode;

use sira_client::{ClientError, Code};

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It went wrong: exit code 1.
    Failed(String),
    /// It was asked for something that makes no sense: exit code 2, as for a wrong flag.
    Usage(String),
    /// There is no such key: exit code 3.
    NotFound(String),
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::NotFound(_) => 3,
        })
    }

    /// A failure with what was being done before its reason.
    pub fn with(context: impl fmt::Display, error: impl fmt::Display) -> Failure {
        Failure::Failed(format!("{context}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Failed(reason) | Failure::Usage(reason) | Failure::NotFound(reason)) = self;
        f.write_str(reason)
    }
}

impl std::error::Error for Failure {}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error.code() {
            Some(Code::NotFound) => Failure::NotFound(error.to_string()),
            _ => Failure::Failed(error.to_string()),
        }
    }
}
