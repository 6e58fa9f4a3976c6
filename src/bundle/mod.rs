//! The bundle: what a converted model looks like on disk and on a static host.
//!
//! Here live its manifest ([`manifest`]), the storage of weights and rows ([`quant`]), the native reader and
//! writer, and random models for tests. Everything read is untrusted and checked. Where the browser's bytes come
//! from is not decided here.

pub mod cost;
mod levels;
pub mod manifest;
pub mod quant;
pub mod random;
#[cfg(feature = "native")]
pub mod reader;
#[cfg(feature = "native")]
pub mod writer;

pub use cost::Cost;
pub use manifest::{FileRef, Manifest, Table, TableKind, Tensor};
pub use quant::Dtype;
#[cfg(feature = "native")]
pub use reader::Bundle;
