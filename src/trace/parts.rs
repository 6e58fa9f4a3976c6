//! What each half of each layer added to the residual stream, and what the gates and rows were.

use super::gauge::{EngramGauge, Gauge, Gauges};
use crate::config::Config;
use crate::cpu::kernels::dot;
use crate::cpu::{Probe, View};
use crate::plan::{Op, Up};

/// A probe that keeps the parts of the residual stream: the embedding, then of each layer what attention and the FFN
/// added, and of each Engram layer what its memory added. Their sum is the stream before the last norm.
#[derive(Debug)]
pub struct Parts {
    hidden: usize,
    ffn: usize,
    n: usize,
    gauges: Gauges,
    // [1 + 2 n_layers, n, hidden]
    parts: Vec<f32>,
    // [n_engram, n, hidden]
    engram: Vec<f32>,
    // [n, hidden], after all layers.
    x: Vec<f32>,
    // [n_stem, n]: norms of the rows as they were used.
    row_norms: Vec<f32>,
    // [n_engram, n]: norms of all heads' rows as they were used.
    engram_norms: Vec<f32>,
    watched: usize,
    // [n, ffn] each, of the watched layer.
    gate: Vec<f32>,
    up: Vec<f32>,
    layer: usize,
}

impl Parts {
    /// A probe for steps of a model of these sizes; gates and rows are kept of layer `watched` alone.
    pub fn new(config: &Config, watched: usize) -> Self {
        Self {
            hidden: config.hidden_size,
            ffn: config.intermediate_size,
            n: 0,
            gauges: Gauges::new(config),
            parts: Vec::new(),
            engram: Vec::new(),
            x: Vec::new(),
            row_norms: Vec::new(),
            engram_norms: Vec::new(),
            watched,
            gate: Vec::new(),
            up: Vec::new(),
            layer: 0,
        }
    }

    /// `[1 + 2 n_layers][hidden]`: the parts of the step's token `i`, in the order in which they were added.
    pub fn of(&self, i: usize) -> impl Iterator<Item = &[f32]> {
        self.parts.chunks_exact(self.n * self.hidden).map(move |part| &part[i * self.hidden..][..self.hidden])
    }

    /// `[n_engram][hidden]`: what the memory of each Engram layer added for the step's token `i`.
    pub fn engram(&self, i: usize) -> impl Iterator<Item = &[f32]> {
        self.engram
            .chunks_exact(self.n * self.hidden)
            .map(move |part| &part[i * self.hidden..][..self.hidden])
    }

    /// `[hidden]`: what the FFN of `layer` added for token `i`.
    pub fn ffn(&self, i: usize, layer: usize) -> &[f32] {
        &self.parts[((2 + 2 * layer) * self.n + i) * self.hidden..][..self.hidden]
    }

    /// `[hidden]`: the stream of token `i` before the last norm.
    pub fn stream(&self, i: usize) -> &[f32] {
        &self.x[i * self.hidden..][..self.hidden]
    }

    /// `[n_layers]`: the gauges of token `i`.
    pub fn gauges(&self, i: usize) -> &[Gauge] {
        let layers = self.gauges.read().len() / self.n;
        &self.gauges.read()[i * layers..][..layers]
    }

    /// `[n_stem]`: the norms of the rows of token `i`, edits included.
    pub fn row_norms(&self, i: usize) -> Vec<f32> {
        self.row_norms.chunks_exact(self.n).map(|layer| layer[i]).collect()
    }

    /// `[n_engram]`: the gauges of token `i` in Engram layers.
    pub fn engram_gauges(&self, i: usize) -> &[EngramGauge] {
        let layers = self.gauges.read_engram().len() / self.n;
        &self.gauges.read_engram()[i * layers..][..layers]
    }

    /// `[n_engram]`: the norms of the rows of all heads for token `i`, edits included.
    pub fn engram_norms(&self, i: usize) -> Vec<f32> {
        self.engram_norms.chunks_exact(self.n).map(|layer| layer[i]).collect()
    }

    /// `[ffn]` each: the gate of token `i` in the watched layer, and what it was multiplied with.
    pub fn units(&self, i: usize) -> (&[f32], &[f32]) {
        let at = i * self.ffn..(i + 1) * self.ffn;
        (&self.gate[at.clone()], &self.up[at])
    }
}

impl Probe for Parts {
    fn after(&mut self, index: usize, op: &Op, view: View<'_>) {
        match op {
            Op::Embed { .. } => {
                self.n = view.x.len() / self.hidden;
                self.layer = 0;
                self.gauges.begin(self.n);
                self.row_norms.clear();
                self.parts.clear();
                self.parts.extend_from_slice(view.x);
                self.engram.clear();
                self.engram_norms.clear();
            }
            Op::EngramProject { .. } => {
                let rows = view.heads.chunks_exact(view.heads.len() / self.n);
                self.engram_norms.extend(rows.map(|row| dot(row, row).sqrt()));
            }
            // The stream as it is before the memory's values are added to it.
            Op::EngramGate { .. } => self.engram.extend(view.x.iter().map(|x| -x)),
            Op::EngramConv { .. } => {
                let start = self.engram.len() - view.x.len();
                self.engram[start..].iter_mut().zip(view.x).for_each(|(added, x)| *added += x);
            }
            Op::AttnOutput { .. } => self.parts.extend_from_slice(view.norm),
            Op::NormGate { up, .. } => {
                if let Up::Row(_) = up {
                    self.row_norms.extend(view.up.chunks_exact(self.ffn).map(|row| dot(row, row).sqrt()));
                }
                if self.layer == self.watched {
                    self.gate.clear();
                    self.gate.extend_from_slice(view.gate);
                    self.up.clear();
                    self.up.extend_from_slice(view.up);
                }
            }
            Op::Down { .. } => {
                self.parts.extend_from_slice(view.norm);
                self.layer += 1;
            }
            Op::Head { .. } => {
                self.x.clear();
                self.x.extend_from_slice(view.x);
            }
            _ => {}
        }
        self.gauges.after(index, op, view);
    }
}
