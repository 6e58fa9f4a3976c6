//! Two numbers for each token and layer, cheap enough to be taken at every step.

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

/// A probe that takes a [`Gauge`] of each token in each layer.
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
        }
    }

    /// Gets ready for a step of `n` tokens.
    pub fn begin(&mut self, n: usize) {
        self.layer = 0;
        self.values.clear();
        self.values.resize(n * self.n_layers, Gauge::default());
        self.norms.resize(n, 0.0);
    }

    /// `[n, n_layers]` of the last step.
    pub fn read(&self) -> &[Gauge] {
        &self.values
    }
}

impl Probe for Gauges {
    fn after(&mut self, _index: usize, op: &Op, view: View<'_>) {
        let layer = self.layer;
        let gauges = self.values.chunks_exact_mut(self.n_layers).map(|layers| &mut layers[layer]);
        match op {
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
