//! The library's one error type: each variant is a kind of failure and carries the values that were wrong.

use std::path::PathBuf;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while reading, building or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file in question.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A GGUF file is not one, is damaged, or ends too early.
    #[error("{path}: not a usable GGUF file: {reason}", path = path.display())]
    Gguf {
        /// The file in question.
        path: PathBuf,
        /// What was found, and what was expected instead.
        reason: String,
    },
    /// The input is well formed, but asks for something that Xylem does not support.
    #[error("{what} is not supported (supported: {supported})")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What could be asked for instead.
        supported: String,
    },
}

impl Error {
    /// An [`Error::Io`] on `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}
