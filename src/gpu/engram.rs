//! Buffers and dispatches of Engram layers: three a layer.

use super::compile::{Compiler, Projection, UNIFORM_STRIDE};
use super::device::Gpu;
use super::shader::{Access, Binding, Dispatch, Groups, Source, piece};
use crate::config::Config;
use crate::engram::Engram;

/// Threads that share a token's gate, where threads may wait for each other.
const GATE_THREADS: usize = 64;

/// What Engram layers need on the device.
#[derive(Debug)]
pub struct Buffers {
    /// `[n, hidden]`.
    pub key: wgpu::Buffer,
    /// `[n, hidden]`.
    pub value: wgpu::Buffer,
    /// Of each layer what its convolution looks back at, `[capacity, hidden]`.
    pub cache: Vec<wgpu::Buffer>,
    /// One number for each layer, [`UNIFORM_STRIDE`] apart.
    index: wgpu::Buffer,
}

impl Buffers {
    /// Buffers for steps of `rows` tokens, and `capacity` positions.
    pub fn new(gpu: &Gpu, config: &Config, engram: &Engram, rows: usize, capacity: usize) -> Self {
        let floats = |label: &str, count: usize| gpu.storage(label, (count * config.hidden_size) as u64 * 4);
        let index = gpu.uniform("engram_index", engram.layers.len() as u64 * UNIFORM_STRIDE);
        for i in 0..engram.layers.len() {
            gpu.queue.write_buffer(&index, i as u64 * UNIFORM_STRIDE, &(i as u32).to_le_bytes());
        }
        Self {
            key: floats("engram_key", rows),
            value: floats("engram_value", rows),
            cache: engram.layers.iter().map(|_| floats("engram_cache", capacity)).collect(),
            index,
        }
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        let all = [&self.key, &self.value, &self.index].into_iter().chain(&self.cache);
        all.map(wgpu::Buffer::size).sum()
    }
}

/// A model that has Engram operations has their buffers.
const BUFFERS: &str = "the plan has Engram layers only where the config does";

impl Compiler<'_> {
    /// `k = W_K e` and `v = W_V e`: two projections of one input, as in a dense FFN.
    pub(super) fn engram_project(
        &mut self,
        index: usize,
        [key, value]: [usize; 2],
        many: bool,
        list: &mut Vec<Dispatch>,
    ) {
        let b = self.buffers.engram.as_ref().expect(BUFFERS);
        let projection = Projection {
            label: "engram_project",
            input: None,
            norm: None,
            weight: &self.weights[key],
            up: Some(&self.weights[value]),
            store: &[piece::STORE_PAIR],
            outputs: &[
                Binding::write(3, &b.key),
                Binding::write(4, &b.value),
                Binding {
                    at: 5,
                    access: Access::Uniform,
                    buffer: &b.index,
                    offset: index as u64 * UNIFORM_STRIDE,
                },
            ],
            head: false,
        };
        self.project(&projection, many, list);
    }

    pub(super) fn engram_gate(&mut self, index: usize, norms: [usize; 3], list: &mut Vec<Dispatch>) {
        let b = self.buffers.engram.as_ref().expect(BUFFERS);
        let [query, key, conv] = norms.map(|id| &self.weights[id].parts[0].quants);
        let bindings = [
            Binding::read(0, &self.buffers.upload),
            Binding::read(1, &self.buffers.x),
            Binding::read(2, query),
            Binding::write(3, &b.value),
            Binding::read(4, &b.key),
            Binding::write(5, &b.cache[index]),
            Binding::read(6, key),
            Binding::read(7, conv),
        ];
        let threads = if self.variant.serial { 1 } else { GATE_THREADS };
        let source =
            Source::new("engram_gate", self.config).constant("THREADS", threads).piece(piece::ENGRAM_GATE);
        list.push(self.shaders.dispatch(source, &bindings, Groups { x: 1, tile: 1 }));
    }

    pub(super) fn engram_conv(&mut self, index: usize, conv: usize, list: &mut Vec<Dispatch>) {
        let b = self.buffers.engram.as_ref().expect(BUFFERS);
        let engram = self.config.engram.as_ref().expect(BUFFERS);
        let bindings = [
            Binding::read(0, &self.buffers.upload),
            Binding::read(1, &b.value),
            Binding::read(2, &self.weights[conv].parts[0].quants),
            Binding::write(3, &self.buffers.x),
            Binding::read(4, &b.cache[index]),
        ];
        let source = Source::new("engram_conv", self.config)
            .constant("TAPS", engram.kernel)
            .constant("DILATION", engram.order())
            .piece(piece::ENGRAM_CONV);
        let groups = Groups { x: (self.config.hidden_size / 4).div_ceil(64), tile: 1 };
        list.push(self.shaders.dispatch(source, &bindings, groups));
    }
}
