//! The CPU backend: the reference that the GPU is compared with, and the engine where there is no GPU.
//!
//! [`kernels`], [`attention`] and [`engram`] hold one function for each small operation, [`linear`] the matrix products (on packed
//! weights in `packed`, on several threads by `team`), [`backend`] the weights, the KV cache and the plan's interpreter,
//! [`gradient`] the way back from logits to rows.
//! Between operations activations are f32. Nothing here knows where weights or rows come from.

pub mod attention;
pub mod backend;
pub mod engram;
pub mod gradient;
pub mod kernels;
pub mod linear;
mod packed;
pub mod team;

pub use backend::{CpuBackend, Probe, View};
