//! Xylem: a language model whose feed-forward knowledge is a table of rows, one for each token.
//!
//! The crate is both the native command `xylem` and the engine of the browser page.

pub mod backend;
pub mod bench;
pub mod bundle;
pub mod config;
#[cfg(feature = "native")]
pub mod convert;
pub mod cpu;
pub mod device;
pub mod edits;
pub mod engram;
pub mod error;
pub mod eval;
#[cfg(feature = "native")]
pub mod gguf;
pub mod gpu;
#[cfg(feature = "heal")]
pub mod heal;
pub mod plan;
#[cfg(feature = "native")]
mod replace;
pub mod sampler;
pub mod session;
pub mod tables;
pub mod text;
pub mod trace;
#[cfg(target_arch = "wasm32")]
pub mod web;

pub use config::Config;
pub use error::{Error, Result};
