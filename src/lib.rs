//! Xylem: a language model whose feed-forward knowledge is a table of rows, one for each token.
//!
//! The crate is both the native command `xylem` and the engine of the browser page.

pub mod error;
#[cfg(feature = "native")]
pub mod gguf;

pub use error::{Error, Result};
