//! What a step consists of on the device, and what the adapter can do at best: whether steps wait for memory, for
//! dispatches or for the way there and back.

use serde::Serialize;
use web_time::Instant;
use wgpu::BufferUsages;

use super::backend::GpuBackend;
use super::compile::RESULT_WORDS;
use super::shader::{Binding, Dispatch, Groups, Shaders, Size, Source};
use super::step;
use crate::error::Result;

/// Bytes that are copied at once; no cache holds as many.
const COPY_BYTES: u64 = 128 << 20;
const COPIES: usize = 8;
const DISPATCHES: usize = 256;
const ROUNDS: usize = 5;
/// A kernel that depends on the one before it, as those of a step do, and does next to nothing.
const NEXT: &str = "@group(0) @binding(3) var<storage, read_write> count: array<u32>;
@compute @workgroup_size(1) fn main() { count[0] += 1u; }";

/// The step of one new token, where attention has its positions in one part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Work {
    /// Dispatches in all, head and candidates included.
    pub dispatches: usize,
    /// Dispatches of the layers, a layer.
    pub dispatches_per_layer: f64,
    /// Bytes that go to the device.
    pub upload_bytes: u64,
    /// Bytes that come back.
    pub readback_bytes: u64,
}

/// What the adapter can do at best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// Bytes read and written a second when one large buffer is copied to another.
    pub copy_bytes_per_second: f64,
    /// Microseconds of a dispatch that does next to nothing but wait for the one before it.
    pub dispatch_us: f64,
    /// Milliseconds from a submission without work to its result.
    pub round_trip_ms: f64,
}

impl GpuBackend {
    /// What the step of one token consists of.
    pub fn work(&self) -> Work {
        let program = &self.program;
        let all: Vec<&Dispatch> = program.one.dispatches.iter().filter(|dispatch| dispatch.runs(1)).collect();
        // The first operation is the embedding.
        let layers = all.iter().filter(|dispatch| dispatch.op > 0).count();
        Work {
            dispatches: all.len() + program.head_one.len() + 1,
            dispatches_per_layer: layers as f64 / self.config.n_layers as f64,
            upload_bytes: step::bytes(&self.config, 1),
            readback_bytes: RESULT_WORDS as u64 * 4,
        }
    }

    /// Measures the adapter, for a second or so.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) if the device fails.
    pub async fn limits(&self) -> Result<Limits> {
        let gpu = &self.gpu;
        let size = COPY_BYTES.min(gpu.binding_limit) / 4 * 4;
        let ((from, to, count, readback), errors) = gpu.guarded(|| {
            let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
            let [from, to] = ["from", "to"].map(|label| gpu.buffer(label, size, usage));
            (from, to, gpu.storage("count", 4), gpu.readback(4))
        });
        errors.await?;
        let (next, errors) = gpu.guarded(|| {
            let source = Source::new("next", &self.config).piece(NEXT);
            Shaders::new(gpu).dispatch(source, &[Binding::write(3, &count)], Groups { x: 1, tile: 1 })
        });
        errors.await?;

        let run = async |work: &dyn Fn(&mut wgpu::CommandEncoder)| {
            let mut best = f64::INFINITY;
            for _ in 0..=ROUNDS {
                let began = Instant::now();
                let ((), errors) = gpu.guarded(|| {
                    let mut encoder = gpu.device.create_command_encoder(&Default::default());
                    work(&mut encoder);
                    encoder.copy_buffer_to_buffer(&count, 0, &readback, 0, 4);
                    gpu.submit(encoder.finish());
                });
                gpu.read(&readback).await?;
                errors.await?;
                best = began.elapsed().as_secs_f64().min(best);
            }
            crate::Result::Ok(best)
        };
        let nothing = run(&|_| {}).await?;
        let copies = run(&|encoder| {
            for _ in 0..COPIES {
                encoder.copy_buffer_to_buffer(&from, 0, &to, 0, size);
            }
        })
        .await?;
        let dispatches = run(&|encoder| {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for _ in 0..DISPATCHES {
                next.record(&mut pass, Size { tokens: 1, parts: 1 });
            }
        })
        .await?;
        from.destroy();
        to.destroy();
        let beyond = |seconds: f64| (seconds - nothing).max(f64::MIN_POSITIVE);
        Ok(Limits {
            copy_bytes_per_second: (2 * size) as f64 * COPIES as f64 / beyond(copies),
            dispatch_us: beyond(dispatches) / DISPATCHES as f64 * 1e6,
            round_trip_ms: nothing * 1e3,
        })
    }
}
