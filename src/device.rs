//! The backend that is chosen at run time.

use crate::backend::{Backend, Output, Step};
use crate::cpu::CpuBackend;
use crate::error::Result;
use crate::gpu::GpuBackend;
use crate::trace::{EngramGauge, Gauge};

/// One of the backends.
#[derive(Debug)]
pub enum Device {
    /// The CPU.
    Cpu(Box<CpuBackend>),
    /// A GPU.
    Gpu(Box<GpuBackend>),
}

impl Device {
    /// The CPU backend, if it is that.
    pub fn cpu(&self) -> Option<&CpuBackend> {
        match self {
            Self::Cpu(backend) => Some(backend),
            Self::Gpu(_) => None,
        }
    }

    /// The CPU backend, if it is that.
    pub fn cpu_mut(&mut self) -> Option<&mut CpuBackend> {
        match self {
            Self::Cpu(backend) => Some(backend),
            Self::Gpu(_) => None,
        }
    }
}

impl Backend for Device {
    fn write(&mut self, tensor: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Cpu(backend) => backend.write(tensor, offset, bytes),
            Self::Gpu(backend) => backend.write(tensor, offset, bytes),
        }
    }

    async fn begin(&mut self, tokens: &[u32], position: usize) -> Result<()> {
        match self {
            Self::Cpu(backend) => backend.begin(tokens, position).await,
            Self::Gpu(backend) => backend.begin(tokens, position).await,
        }
    }

    async fn forward(&mut self, step: Step<'_>) -> Result<Output> {
        match self {
            Self::Cpu(backend) => backend.forward(step).await,
            Self::Gpu(backend) => backend.forward(step).await,
        }
    }

    fn measure(&mut self, on: bool) {
        match self {
            Self::Cpu(backend) => backend.measure(on),
            Self::Gpu(backend) => backend.measure(on),
        }
    }

    fn gauges(&self) -> &[Gauge] {
        match self {
            Self::Cpu(backend) => backend.gauges(),
            Self::Gpu(backend) => backend.gauges(),
        }
    }

    fn engram_gauges(&self) -> &[EngramGauge] {
        match self {
            Self::Cpu(backend) => backend.engram_gauges(),
            Self::Gpu(backend) => backend.engram_gauges(),
        }
    }

    fn time(&mut self, on: bool) {
        match self {
            Self::Cpu(backend) => backend.time(on),
            Self::Gpu(backend) => backend.time(on),
        }
    }

    fn times(&self) -> &[f64] {
        match self {
            Self::Cpu(backend) => backend.times(),
            Self::Gpu(backend) => backend.times(),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Cpu(backend) => backend.capacity(),
            Self::Gpu(backend) => backend.capacity(),
        }
    }

    fn describe(&self) -> (&'static str, String) {
        match self {
            Self::Cpu(backend) => backend.describe(),
            Self::Gpu(backend) => backend.describe(),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Cpu(backend) => backend.bytes(),
            Self::Gpu(backend) => backend.bytes(),
        }
    }
}
