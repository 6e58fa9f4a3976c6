//! Reading GGUF checkpoints: the header ([`reader`]) and the quantised blocks ([`dequant`]).
//!
//! Everything here treats the file as untrusted: counts, lengths and offsets are checked before use.
//! What a tensor means to a model is not decided here.

pub mod dequant;
pub mod reader;

pub use dequant::GgmlType;
pub use reader::{Gguf, TensorInfo, Value};
