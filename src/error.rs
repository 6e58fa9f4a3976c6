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
    /// A file of a bundle is missing, damaged, or does not match the manifest.
    #[error("bundle file `{file}`: {reason}")]
    Bundle {
        /// The file's name within the bundle.
        file: String,
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
    /// An argument lies outside its range.
    #[error("{what}: {reason}")]
    Invalid {
        /// What was given.
        what: String,
        /// Why it can't be used.
        reason: String,
    },
    /// The text does not fit into the model's context.
    #[error("the prompt has {tokens} tokens, the context holds {context}; shorten it or start a new chat")]
    ContextFull {
        /// Tokens that were to be held.
        tokens: usize,
        /// Tokens that the context can hold.
        context: usize,
    },
    /// The tokenizer file could not be used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template could not be used.
    #[error("chat template: {0}")]
    Template(String),
    /// A file of edits is none, is damaged, or doesn't fit the model.
    #[error("edits: {0}")]
    Edits(String),
    /// The GPU refused, ran out of memory, or was lost.
    #[error("GPU: {0}")]
    Gpu(String),
    /// The network, or the host behind it, failed.
    #[error("{url}: {reason}")]
    Network {
        /// What was asked for.
        url: String,
        /// What came back.
        reason: String,
    },
    /// The work was stopped by the caller.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// An [`Error::Io`] on `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Bundle`] on `file`.
    pub fn bundle(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Bundle { file: file.into(), reason: reason.into() }
    }

    /// An [`Error::Invalid`] for `what`.
    pub fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), reason: reason.into() }
    }
}
