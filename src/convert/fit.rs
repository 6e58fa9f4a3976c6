//! The fit of one STEM layer after the other: its rows, its gate, its down-projection. What is fitted, and why, is
//! said in [`closed_form`](super::closed_form).

use half::f16;
use rayon::prelude::*;

use super::closed_form::Options;
use super::forward::{self, Layer};
use super::means::{Occurrences, Sums, halve};
use super::regression::{BLOCK_ROWS, Regression, project};
use crate::config::Config;
use crate::cpu::kernels;
use crate::error::Result;

/// Tokens or positions that one thread takes at once.
const PIECE: usize = 256;
/// How much of a Gauss-Newton step on the gates is taken: units share the inputs' correlations, weighted alike for
/// all of them, so that a whole step would be too long for some.
const GATE_RATE: f32 = 0.4;

/// The fit of one layer after the other.
#[derive(Debug)]
pub struct Fit<'a> {
    config: &'a Config,
    options: &'a Options,
    occurrences: Occurrences,
    // [vocab, hidden], rows of mean square 1.
    embedding: Vec<f32>,
    // [n, ffn]: the student's gates.
    gate: Vec<f32>,
    // [n, ffn]: the teacher's gate ⊙ up, then the student's.
    h: Vec<f32>,
}

impl<'a> Fit<'a> {
    /// A fit on `tokens` `[n]`, given the `embedding` `[vocab, hidden]` of the base.
    pub fn new(config: &'a Config, options: &'a Options, tokens: &[u32], embedding: &[f32]) -> Self {
        let mut rows = vec![0.0; embedding.len()];
        kernels::rms_norm(embedding, &vec![1.0; config.hidden_size], 1e-12, &mut rows);
        let room = tokens.len() * config.intermediate_size;
        Self {
            config,
            options,
            occurrences: Occurrences::new(tokens),
            embedding: rows,
            gate: vec![0.0; room],
            h: vec![0.0; room],
        }
    }

    /// Makes the FFN of `layer` STEM: changes its gate and down-projection, takes both residual streams `[n, hidden]`
    /// through it, and returns its rows `[vocab, ffn]`.
    ///
    /// `swept` `[vocab, hidden]` is the FFN's normalised input in the sweep.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if a regression has no solution.
    pub fn layer(
        &mut self,
        layer: &mut Layer,
        teacher: &mut [f32],
        student: &mut [f32],
        swept: &[f32],
    ) -> Result<Vec<f16>> {
        forward::gates(self.config, layer, student, &mut self.gate);
        forward::dense_ffn_seen(self.config, layer, teacher, &mut self.h);
        let weights = position_weights(teacher, self.config.hidden_size, self.options.massive);
        let rows = self.rows(layer, student, swept, &weights)?;
        layer.ffn_down = self.down(layer, teacher, student, &weights)?;
        forward::add_projection(&self.h, &layer.ffn_down, self.config.intermediate_size, student);
        Ok(rows)
    }

    /// The tokens of the text, the most frequent one first.
    pub fn hot(mut self) -> Vec<u32> {
        self.occurrences.tokens.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        self.occurrences.tokens.into_iter().map(|(token, _)| token).collect()
    }

    /// The layer's table, and its new gate in `layer`; leaves in `h` what the student's FFN makes of rows without the
    /// position itself.
    ///
    /// `student` `[n, hidden]`, `swept` `[vocab, hidden]`, `weights` `[n]`.
    fn rows(
        &mut self,
        layer: &mut Layer,
        student: &[f32],
        swept: &[f32],
        weights: &[f32],
    ) -> Result<Vec<f16>> {
        let ffn = self.config.intermediate_size;
        let sums = self.occurrences.sums(&self.gate, &self.h, weights, ffn);
        let mut rows = self.priors(layer, swept, &sums)?; // [vocab, ffn]
        let sums = self.gates(layer, student, &rows, weights, sums)?;
        let count = self.options.prior_count;
        let prior = |token: u32| &rows[token as usize * ffn..][..ffn];
        self.occurrences.leave_one_out(&sums, &self.gate, &mut self.h, weights, prior, count);
        for (index, (token, _)) in self.occurrences.tokens.iter().enumerate() {
            sums.shrink(index, count, &mut rows[*token as usize * ffn..][..ffn]);
        }
        Ok(halve(&rows))
    }

    /// Improves the gate of `layer`, given the `prior` `[vocab, ffn]` and the sums; leaves the new gates in `gate` and
    /// returns their sums.
    fn gates(
        &mut self,
        layer: &mut Layer,
        student: &[f32],
        prior: &[f32],
        weights: &[f32],
        mut sums: Sums,
    ) -> Result<Sums> {
        if self.options.gate_steps == 0 {
            return Ok(sums);
        }
        let Config { hidden_size: hidden, intermediate_size: ffn, .. } = *self.config;
        let count = self.options.prior_count;
        let prior_of = |token: u32| &prior[token as usize * ffn..][..ffn];
        let mut best = layer.ffn_gate.clone();
        let mut least = self.occurrences.errors(&sums, prior_of, count);
        let mut rates = vec![GATE_RATE; ffn];
        // Units whose gates are computed with their best weights.
        let mut settled = vec![true; ffn];
        for _ in 0..self.options.gate_steps {
            let steps = self.gate_steps(layer, student, prior, weights, &sums)?;
            layer.ffn_gate.copy_from_slice(&best);
            let units = layer.ffn_gate.chunks_exact_mut(hidden).zip(steps.chunks_exact(hidden));
            for ((w, step), (rate, settled)) in units.zip(rates.iter().zip(&settled)) {
                if *settled {
                    w.iter_mut().zip(step).for_each(|(w, s)| *w += rate * s);
                }
            }
            forward::gates(self.config, layer, student, &mut self.gate);
            sums = self.occurrences.sums(&self.gate, &self.h, weights, ffn);
            let errors = self.occurrences.errors(&sums, prior_of, count);
            for (j, error) in errors.iter().enumerate() {
                settled[j] = *error <= least[j];
                if settled[j] {
                    least[j] = *error;
                    best[j * hidden..][..hidden].copy_from_slice(&layer.ffn_gate[j * hidden..][..hidden]);
                } else {
                    rates[j] *= 0.25;
                }
            }
        }
        layer.ffn_gate = best;
        forward::gates(self.config, layer, student, &mut self.gate);
        Ok(self.occurrences.sums(&self.gate, &self.h, weights, ffn))
    }

    /// A Gauss-Newton step of each unit's gate, `[ffn, hidden]`.
    fn gate_steps(
        &self,
        layer: &Layer,
        student: &[f32],
        prior: &[f32],
        weights: &[f32],
        sums: &Sums,
    ) -> Result<Vec<f32>> {
        let Config { hidden_size: hidden, intermediate_size: ffn, .. } = *self.config;
        let prior_of = |token: u32| &prior[token as usize * ffn..][..ffn];
        let mut regression = Regression::new(hidden, ffn);
        let mut curvature = vec![0f32; ffn];
        let rows = BLOCK_ROWS.min(weights.len());
        let (mut inputs, mut targets) = (vec![0f32; rows * hidden], vec![0f32; rows * ffn]);
        for (i, block) in student.chunks(BLOCK_ROWS * hidden).enumerate() {
            let rows = block.len() / hidden;
            let (inputs, targets) = (&mut inputs[..rows * hidden], &mut targets[..rows * ffn]);
            let pieces = block.par_chunks(PIECE * hidden).zip(inputs.par_chunks_mut(PIECE * hidden));
            let pieces = pieces.zip(targets.par_chunks_mut(PIECE * ffn)).enumerate();
            let curvatures: Vec<Vec<f32>> = pieces
                .map(|(j, ((x, inputs), z))| {
                    kernels::rms_norm(x, &layer.ffn_norm, self.config.rms_norm_eps, inputs);
                    project(inputs, &layer.ffn_gate, hidden, z);
                    let mut curvature = vec![0f32; ffn];
                    let positions = inputs.chunks_exact_mut(hidden).zip(z.chunks_exact_mut(ffn));
                    for (p, (input, z)) in (i * BLOCK_ROWS + j * PIECE..).zip(positions) {
                        let (at, weight) = (p * ffn..(p + 1) * ffn, weights[p]);
                        let (gate, h) = (&self.gate[at.clone()], &self.h[at]);
                        let count = self.options.prior_count;
                        self.occurrences.gate_slope(
                            p,
                            sums,
                            gate,
                            h,
                            weight,
                            prior_of,
                            count,
                            z,
                            &mut curvature,
                        );
                        input.iter_mut().for_each(|x| *x *= weight.sqrt());
                    }
                    curvature
                })
                .collect();
            regression.add(inputs, targets);
            for piece in curvatures {
                curvature.iter_mut().zip(piece).for_each(|(c, p)| *c += p);
            }
        }
        let mut steps = regression.solve(self.options.gate_ridge, None)?;
        let total: f32 = weights.iter().sum();
        for (step, curvature) in steps.chunks_exact_mut(hidden).zip(&curvature) {
            // A unit without slope has no error either, and its step is nothing.
            let scale = total / curvature.max(1e-12 * total);
            step.iter_mut().for_each(|s| *s *= scale);
        }
        Ok(steps)
    }

    /// The prior rows of all tokens, `[vocab, ffn]`.
    fn priors(&self, layer: &Layer, swept: &[f32], sums: &Sums) -> Result<Vec<f32>> {
        let Config { vocab_size, hidden_size: hidden, intermediate_size: ffn, .. } = *self.config;
        // The row that the sweep alone gives: W_u x, [vocab, ffn].
        let mut rows = vec![0f32; vocab_size * ffn];
        rows.par_chunks_mut(PIECE * ffn)
            .zip(swept.par_chunks(PIECE * hidden))
            .for_each(|(rows, x)| project(x, &layer.ffn_up, hidden, rows));
        let width = 2 * hidden + 1;
        let features = |token: usize| {
            let own = &self.embedding[token * hidden..][..hidden];
            own.iter().chain(&swept[token * hidden..][..hidden]).copied().chain([1.0])
        };
        let mut regression = Regression::new(width, ffn);
        for (i, tokens) in self.occurrences.tokens.chunks(BLOCK_ROWS).enumerate() {
            let mut inputs = vec![0f32; tokens.len() * width];
            let mut targets = vec![0f32; tokens.len() * ffn];
            let pairs = inputs.par_chunks_exact_mut(width).zip(targets.par_chunks_exact_mut(ffn));
            pairs.zip(tokens).enumerate().for_each(|(j, ((input, target), (token, count)))| {
                let token = *token as usize;
                target.copy_from_slice(&rows[token * ffn..][..ffn]);
                // Where a unit's gate is all but closed, the sweep says more than the quotient of two zeros.
                sums.shrink(i * BLOCK_ROWS + j, 0.5, target);
                let scale = (*count as f32 / (*count as f32 + self.options.prior_count)).sqrt();
                input.iter_mut().zip(features(token)).for_each(|(i, f)| *i = scale * f);
                target.iter_mut().for_each(|t| *t *= scale);
            });
            regression.add(&inputs, &targets);
        }
        let map = regression.solve(self.options.prior_ridge, None)?; // [ffn, width]
        rows.par_chunks_mut(PIECE * ffn).enumerate().for_each(|(i, rows)| {
            let tokens = i * PIECE..i * PIECE + rows.len() / ffn;
            let inputs: Vec<f32> = tokens.flat_map(features).collect();
            project(&inputs, &map, width, rows);
        });
        Ok(rows)
    }

    /// The down-projection that takes `h` to what the `student` lacks of the `teacher` (both `[n, hidden]`).
    fn down(&self, layer: &Layer, teacher: &[f32], student: &[f32], weights: &[f32]) -> Result<Vec<f32>> {
        let Config { hidden_size: hidden, intermediate_size: ffn, .. } = *self.config;
        let mut regression = Regression::new(ffn, hidden);
        let mut inputs = vec![0f32; BLOCK_ROWS.min(weights.len()) * ffn];
        let mut targets = vec![0f32; BLOCK_ROWS.min(weights.len()) * hidden];
        for (i, weights) in weights.chunks(BLOCK_ROWS).enumerate() {
            let (inputs, targets) =
                (&mut inputs[..weights.len() * ffn], &mut targets[..weights.len() * hidden]);
            let at = i * BLOCK_ROWS;
            let pairs = inputs.par_chunks_exact_mut(ffn).zip(targets.par_chunks_exact_mut(hidden));
            pairs.zip(weights).enumerate().for_each(|(j, ((input, target), weight))| {
                let scale = weight.sqrt();
                let h = &self.h[(at + j) * ffn..][..ffn];
                input.iter_mut().zip(h).for_each(|(i, h)| *i = scale * h);
                let wanted = teacher[(at + j) * hidden..].iter().zip(&student[(at + j) * hidden..]);
                target.iter_mut().zip(wanted).for_each(|(r, (t, s))| *r = scale * (t - s));
            });
            regression.add(inputs, targets);
        }
        regression.solve(self.options.down_ridge, Some(&layer.ffn_down))
    }
}

/// The weight of each position of `x` `[n, hidden]`: the inverse square of its size, for what is larger than
/// `massive` medians, else 1.
fn position_weights(x: &[f32], hidden: usize, massive: f32) -> Vec<f32> {
    let sizes: Vec<f32> = x.par_chunks_exact(hidden).map(|x| kernels::dot(x, x).sqrt()).collect();
    let mut sorted = sizes.clone();
    sorted.sort_by(f32::total_cmp);
    let limit = massive * sorted[sorted.len() / 2];
    sizes.iter().map(|size| (limit / size.max(limit)).powi(2)).collect()
}
