//! The GPU backend, on wgpu: Vulkan, Metal and Direct3D 12 natively, WebGPU in browsers.
//!
//! [`device`] opens an adapter, [`weights`] holds the planes as stored, [`shader`] puts kernels together from
//! `shaders/*.wgsl`, [`compile`] turns the plan into recorded dispatches, [`backend`] runs them,
//! [`clock`] times them, [`limits`] measures what the adapter can do at best. STEM tables never
//! come here, only the rows of a step's tokens. Nothing panics: what a device refuses is an `Error::Gpu`.

pub mod backend;
mod clock;
mod compile;
mod device;
mod engram;
pub mod limits;
mod self_test;
mod shader;
mod step;
mod weights;

#[cfg(test)]
mod tests;

pub use backend::{GpuBackend, GpuOptions, Kernels, KvType, Opened};
#[cfg(feature = "heal-gpu")]
pub(crate) use device::is_software;
