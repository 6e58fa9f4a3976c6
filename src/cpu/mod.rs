//! The CPU backend: the reference that the GPU is compared with, and the engine where there is no GPU.
//!
//! [`kernels`], [`attention`] and [`engram`] hold one function for each small operation, [`linear`] the matrix products (on packed
//! weights in `packed`, on several threads by `team`), [`kv`] the cache of keys and values, [`backend`] the weights and the plan's
//! interpreter, [`gradient`] the way back from logits to rows.
//! Between operations activations are f32. Nothing here knows where weights or rows come from.

pub mod attention;
pub mod backend;
pub mod engram;
pub mod gradient;
pub mod kernels;
pub mod kv;
pub mod linear;
mod memory;
mod packed;
pub mod team;

pub use backend::{CpuBackend, Probe, View};
pub use kv::KvType;
