//! Errors of a run and of its repeats, and exit codes.

use std::{io, process::ExitCode};

use cli::program;
use results::energy::SourceError;

use super::process::EncoderError;

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All repeats succeeded.
    Success,
    /// Some repeats failed; the results contain the others.
    Partial,
    /// The run was refused before anything was measured.
    Refused,
    /// Another run is active on this host.
    Busy,
    /// The results cannot be written.
    Unwritable,
    /// A flag, or a file that it names, is invalid.
    Usage,
    /// The run was stopped by a signal.
    Stopped,
}

impl Exit {
    /// Exit code of the program.
    #[must_use]
    pub fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Success => 0,
            Self::Partial => 1,
            Self::Refused => 3,
            Self::Busy => 4,
            Self::Unwritable => 5,
            Self::Usage => program::EX_USAGE,
            Self::Stopped => 130,
        })
    }
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RunError {
    /// How the run ends.
    pub exit: Exit,
    /// What failed, why, and what to do.
    pub message: String,
}

impl RunError {
    /// Creates an error.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<io::Error> for RunError {
    /// An error while the run writes its journal or results.
    fn from(error: io::Error) -> Self {
        Self::new(
            Exit::Unwritable,
            format!("cannot write the results: {error}. The journal contains all measurements up to now"),
        )
    }
}

/// Why a repeat failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RepeatError {
    #[error("{0}")]
    Encoder(#[from] EncoderError),
    #[error("the probe: {0}")]
    Probe(SourceError),
    #[error("{0}")]
    Other(String),
}

impl From<SourceError> for RepeatError {
    fn from(why: SourceError) -> Self {
        // A window that the probe cannot answer fails this repeat; a probe that does not respond
        // fails the run.
        if why.is_transient() { Self::Probe(why) } else { Self::Other(format!("the probe: {why}")) }
    }
}

impl From<io::Error> for RepeatError {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<String> for RepeatError {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}
