//! Two numbers for each token and layer, and two for each Engram layer, cheap enough to be taken at every step.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::cpu::kernels::dot;
use crate::cpu::{Probe, View};
use crate::plan::Op;

/// What the FFN of a layer did with one token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Gauge {
    /// ‖W_d h‖ / ‖x‖: what the FFN added, relative to the residual stream that it was added to.
    pub contribution: f32,
    /// (Σ|gᵢ|)² / (ffn · Σ gᵢ²) for the gate g = SiLU(W_g x): the effective share of units that are open. 1 if all are
    /// equally open, 1/ffn if one is.
    ///
    /// Source: the participation ratio, an effective number of components (Bell and Dean, 1970), over the number of units.
    pub gate_open: f32,
}

/// What the memory of an Engram layer did with one token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct EngramGauge {
    /// ‖g v + SiLU(conv)‖ / ‖x‖: what the memory added, relative to the residual stream that it was added to.
    pub contribution: f32,
    /// g, from 0 to 1: how much of the looked-up value is let through.
    pub gate: f32,
}

/// A probe that takes a [`Gauge`] of each token in each layer, and an [`EngramGauge`] in each Engram layer.
#[derive(Debug)]
pub struct Gauges {
    hidden: usize,
    ffn: usize,
    n_layers: usize,
    layer: usize,
    // [n, n_layers]
    values: Vec<Gauge>,
    // [n]: of the stream before the FFN's contribution.
    norms: Vec<f32>,
    n_engram: usize,
    // [n, n_engram]
    engram: Vec<EngramGauge>,
    // [n, hidden]: the stream before the memory's contribution.
    before: Vec<f32>,
}

impl Gauges {
    /// Gauges for a model of these sizes.
    pub fn new(config: &Config) -> Self {
        Self {
            hidden: config.hidden_size,
            ffn: config.intermediate_size,
            n_layers: config.n_layers,
            layer: 0,
            values: Vec::new(),
            norms: Vec::new(),
            n_engram: config.engram.as_ref().map_or(0, |engram| engram.layers.len()),
            engram: Vec::new(),
            before: Vec::new(),
        }
    }

    /// Gets ready for a step of `n` tokens.
    pub fn begin(&mut self, n: usize) {
        self.layer = 0;
        self.values.clear();
        self.values.resize(n * self.n_layers, Gauge::default());
        self.norms.resize(n, 0.0);
        self.engram.clear();
        self.engram.resize(n * self.n_engram, EngramGauge::default());
    }

    /// `[n, n_layers]` of the last step.
    pub fn read(&self) -> &[Gauge] {
        &self.values
    }

    /// `[n, n_engram]` of the last step.
    pub fn read_engram(&self) -> &[EngramGauge] {
        &self.engram
    }
}

impl Probe for Gauges {
    fn after(&mut self, _index: usize, op: &Op, view: View<'_>) {
        let layer = self.layer;
        let gauges = self.values.chunks_exact_mut(self.n_layers).map(|layers| &mut layers[layer]);
        match op {
            Op::EngramGate { index, .. } => {
                self.before.clear();
                self.before.extend_from_slice(view.x);
                let gauges = self.engram.chunks_exact_mut(self.n_engram);
                for (gauges, gate) in gauges.zip(view.engram_gate) {
                    gauges[*index].gate = *gate;
                }
            }
            Op::EngramConv { index, .. } => {
                let gauges = self.engram.chunks_exact_mut(self.n_engram);
                let before = self.before.chunks_exact(self.hidden);
                for ((gauges, x), before) in gauges.zip(view.x.chunks_exact(self.hidden)).zip(before) {
                    let added = x.iter().zip(before).map(|(x, b)| (x - b) * (x - b)).sum::<f32>().sqrt();
                    gauges[*index].contribution = ratio(added, dot(before, before).sqrt());
                }
            }
            Op::NormGate { .. } => {
                let gates = view.gate.chunks_exact(self.ffn);
                for (((gauge, norm), x), gate) in
                    gauges.zip(&mut self.norms).zip(view.x.chunks_exact(self.hidden)).zip(gates)
                {
                    *norm = dot(x, x).sqrt();
                    gauge.gate_open = open_share(gate);
                }
            }
            Op::Down { .. } => {
                for ((gauge, norm), added) in gauges.zip(&self.norms).zip(view.norm.chunks_exact(self.hidden))
                {
                    gauge.contribution = ratio(dot(added, added).sqrt(), *norm);
                }
                self.layer += 1;
            }
            _ => {}
        }
    }
}

/// See [`Gauge::gate_open`].
fn open_share(gate: &[f32]) -> f32 {
    let sum: f32 = gate.iter().map(|g| g.abs()).sum();
    ratio(sum * sum, dot(gate, gate) * gate.len() as f32)
}

/// `a / b`, 0 where there is nothing to divide by.
fn ratio(a: f32, b: f32) -> f32 {
    if b > 0.0 { a / b } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_open_as_far_as_its_units_share() {
        assert_eq!(open_share(&[0.0, -2.0, 0.0, 0.0]), 0.25);
        assert_eq!(open_share(&[0.5, -0.5, 0.5, 0.5]), 1.0);
        assert_eq!(open_share(&[0.0; 4]), 0.0);
    }
}
