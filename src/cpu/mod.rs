//! The CPU backend: the reference that the GPU is compared with, and the engine where there is no GPU.
//!
//! [`kernels`] and [`engram`] hold one plain function for each small operation, [`linear`] the quantised matrix products
//! (threads natively, `simd128` in wasm), [`backend`] the weights, the KV cache and the plan's interpreter,
//! [`gradient`] the way back from logits to rows.
//! Activations are f32 throughout. Nothing here knows where weights or rows come from.

pub mod backend;
pub mod engram;
pub mod gradient;
pub mod kernels;
pub mod linear;
#[cfg(target_arch = "wasm32")]
mod simd;

pub use backend::{CpuBackend, Probe, View};
