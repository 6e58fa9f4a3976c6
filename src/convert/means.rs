//! Weighted means of each token's occurrences, and the same without one of them.

use std::ops::Range;

use half::f16;
use multiversion::multiversion;
use rayon::prelude::*;

use crate::cpu::kernels;

/// Which positions hold which token.
#[derive(Debug)]
pub struct Occurrences {
    /// The distinct tokens with how many positions each has, ascending.
    pub tokens: Vec<(u32, usize)>,
    // Positions, those of one token together, and each token's range of them.
    positions: Vec<usize>,
    ranges: Vec<Range<usize>>,
    // Of each position, the index of its token.
    index: Vec<usize>,
}

impl Occurrences {
    /// The occurrences of each of `tokens`.
    pub fn new(tokens: &[u32]) -> Self {
        let mut positions: Vec<usize> = (0..tokens.len()).collect();
        positions.sort_by_key(|p| tokens[*p]);
        let mut index = vec![0; tokens.len()];
        let (mut distinct, mut ranges) = (Vec::new(), Vec::new());
        let mut start = 0;
        for same in positions.chunk_by(|a, b| tokens[*a] == tokens[*b]) {
            same.iter().for_each(|p| index[*p] = ranges.len());
            distinct.push((tokens[same[0]], same.len()));
            ranges.push(start..start + same.len());
            start += same.len();
        }
        Self { tokens: distinct, positions, ranges, index }
    }

    /// The sums of every distinct token.
    ///
    /// `gate` and `h` are `[n, ffn]`, what the student's rows are multiplied with and what should come out;
    /// `weights` `[n]`.
    pub fn sums(&self, gate: &[f32], h: &[f32], weights: &[f32], ffn: usize) -> Sums {
        let mut sums = vec![0f32; self.tokens.len() * 2 * ffn];
        sums.par_chunks_exact_mut(2 * ffn).zip(&self.ranges).for_each(|(sums, range)| {
            for p in &self.positions[range.clone()] {
                accumulate(sums, weights[*p], &gate[p * ffn..][..ffn], &h[p * ffn..][..ffn]);
            }
        });
        let total: f32 = weights.iter().sum();
        let mut mass = vec![0f32; ffn];
        for sums in sums.chunks_exact(2 * ffn) {
            mass.iter_mut().zip(&sums[ffn..]).for_each(|(m, d)| *m += d / total);
        }
        // A unit whose gate never opens has no mass, and any row serves it; its prior should.
        mass.iter_mut().for_each(|m| *m = m.max(1e-20));
        Sums { sums, mass }
    }

    /// For each unit what the squared error `Σ w (h − g u)²` is with the rows that `prior` and `sums` give, less the
    /// part that no row changes.
    pub fn errors<'a>(&self, sums: &Sums, prior: impl Fn(u32) -> &'a [f32] + Sync, count: f32) -> Vec<f64> {
        let ffn = sums.mass.len();
        let add = |mut errors: Vec<f64>, (index, (token, _)): (usize, &(u32, usize))| {
            let (gh, gg) = sums.of(index).split_at(ffn);
            let mut row = prior(*token).to_vec();
            sums.shrink(index, count, &mut row);
            for (((error, row), gh), gg) in errors.iter_mut().zip(&row).zip(gh).zip(gg) {
                *error += f64::from(row * (row * gg - 2.0 * gh));
            }
            errors
        };
        let none = || vec![0f64; ffn];
        self.tokens.par_iter().enumerate().with_min_len(256).fold(none, add).reduce(none, |mut a, b| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        })
    }

    /// What the weights of the gate of one `position` should follow, by Gauss and Newton: replaces the gate's input
    /// `z` `[ffn]` by `√w · slope · error`, and adds `w · slope²` to `curvature` `[ffn]`. Error is `h − g u` and slope
    /// the derivative of `g u` by z, for the row u without this position; `gate` and `h` `[ffn]` are its own.
    #[allow(clippy::too_many_arguments, reason = "what sums takes, and the prior")]
    pub fn gate_slope<'a>(
        &self,
        position: usize,
        sums: &Sums,
        gate: &[f32],
        h: &[f32],
        weight: f32,
        prior: impl Fn(u32) -> &'a [f32],
        count: f32,
        z: &mut [f32],
        curvature: &mut [f32],
    ) {
        let index = self.index[position];
        let prior = prior(self.tokens[index].0);
        slope(sums.of(index), &sums.mass, prior, count, weight, gate, h, z, curvature);
    }

    /// Replaces `h` (of [`sums`](Self::sums)) by what comes out of rows that were estimated without the position
    /// itself: `gate ⊙ row`, `[n, ffn]`.
    ///
    /// `prior` gives a token's prior row, which counts as `count` positions.
    #[allow(clippy::too_many_arguments, reason = "what sums takes, and the prior")]
    pub fn leave_one_out<'a>(
        &self,
        sums: &Sums,
        gate: &[f32],
        h: &mut [f32],
        weights: &[f32],
        prior: impl Fn(u32) -> &'a [f32] + Sync,
        count: f32,
    ) {
        let ffn = sums.mass.len();
        let positions = h.par_chunks_exact_mut(ffn).zip(gate.par_chunks_exact(ffn)).zip(weights);
        positions.zip(&self.index).for_each(|(((h, gate), weight), index)| {
            let prior = prior(self.tokens[*index].0);
            without(sums.of(*index), &sums.mass, prior, count, *weight, gate, h);
        });
    }
}

/// For each token and unit `Σ w g h` and `Σ w g²` over its positions.
///
/// The best row in the sense of `Σ w (h − g u)²` is their quotient, the mean of `h / g` weighted by `w g²`.
#[derive(Debug)]
pub struct Sums {
    // [distinct tokens, 2, ffn]
    sums: Vec<f32>,
    // [ffn]: Σ w g² of an average position.
    mass: Vec<f32>,
}

impl Sums {
    fn of(&self, index: usize) -> &[f32] {
        let width = 2 * self.mass.len();
        &self.sums[index * width..][..width]
    }

    /// The row of the token at `index`, given its prior row, which counts as `count` positions and is replaced.
    pub fn shrink(&self, index: usize, count: f32, row: &mut [f32]) {
        shrink(self.of(index), &self.mass, count, row);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn accumulate(sums: &mut [f32], weight: f32, gate: &[f32], h: &[f32]) {
    let (gh, gg) = sums.split_at_mut(gate.len());
    for (((gh, gg), g), h) in gh.iter_mut().zip(gg).zip(gate).zip(h) {
        *gh += weight * g * h;
        *gg += weight * g * g;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn shrink(sums: &[f32], mass: &[f32], count: f32, row: &mut [f32]) {
    let (gh, gg) = sums.split_at(row.len());
    for (((row, mass), gh), gg) in row.iter_mut().zip(mass).zip(gh).zip(gg) {
        *row = (gh + count * mass * *row) / (gg + count * mass);
    }
}

/// The row of a token without one position: Σ w g h and Σ w g² less what it has brought, and the prior.
#[inline(always)]
fn row_without(gh: f32, gg: f32, weight: f32, g: f32, h: f32, prior: f32, prior_mass: f32) -> f32 {
    // Rounding may leave less than nothing of the second.
    (gh - weight * g * h + prior_mass * prior) / ((gg - weight * g * g).max(0.0) + prior_mass)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn without(sums: &[f32], mass: &[f32], prior: &[f32], count: f32, weight: f32, gate: &[f32], h: &mut [f32]) {
    let (gh, gg) = sums.split_at(h.len());
    for (((((h, g), prior), mass), gh), gg) in h.iter_mut().zip(gate).zip(prior).zip(mass).zip(gh).zip(gg) {
        *h = g * row_without(*gh, *gg, weight, *g, *h, *prior, count * mass);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
#[allow(clippy::too_many_arguments, reason = "the arrays of one position")]
fn slope(
    sums: &[f32],
    mass: &[f32],
    prior: &[f32],
    count: f32,
    weight: f32,
    gate: &[f32],
    h: &[f32],
    z: &mut [f32],
    curvature: &mut [f32],
) {
    let (gh, gg) = sums.split_at(h.len());
    let rows = prior.iter().zip(mass).zip(gh.iter().zip(gg));
    for ((((g, h), z), curvature), ((prior, mass), (gh, gg))) in
        gate.iter().zip(h).zip(z).zip(curvature).zip(rows)
    {
        let row = row_without(*gh, *gg, weight, *g, *h, *prior, count * mass);
        let open = 1.0 / (1.0 + kernels::exp(-*z));
        let slope = row * open * (1.0 + *z * (1.0 - open));
        *z = weight.sqrt() * slope * (h - g * row);
        *curvature += weight * slope * slope;
    }
}

/// Rows of one layer for every token, `[vocab, ffn]`, in half precision: three significant digits, more than the
/// eight bits they are stored with.
pub fn halve(rows: &[f32]) -> Vec<f16> {
    let saturated = |v: &f32| f16::from_f32(v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
    rows.par_iter().map(saturated).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::random::weights;

    #[test]
    fn rows_equal_those_computed_one_by_one() {
        let (n, ffn, count) = (60, 7, 1.5);
        let tokens: Vec<u32> = (0..n as u32).map(|i| i * i % 11).collect();
        let gate = weights("gate", &[n, ffn], 1);
        let h = weights("h", &[n, ffn], 2);
        let prior = weights("prior", &[11, ffn], 3);
        let weight: Vec<f32> = weights("weight", &[n], 4);
        let occurrences = Occurrences::new(&tokens);
        let sums = occurrences.sums(&gate, &h, &weight, ffn);
        // The row of unit j from the positions that `keep` lets through.
        let row = |token: u32, j: usize, keep: &dyn Fn(usize) -> bool| {
            let mass = (0..n).map(|p| weight[p] * gate[p * ffn + j].powi(2)).sum::<f32>()
                / weight.iter().sum::<f32>();
            let (mut above, mut below) = (count * mass * prior[token as usize * ffn + j], count * mass);
            for p in (0..n).filter(|p| tokens[*p] == token && keep(*p)) {
                let (g, h) = (gate[p * ffn + j], h[p * ffn + j]);
                above += weight[p] * g * g * (h / g);
                below += weight[p] * g * g;
            }
            above / below
        };
        for (index, (token, _)) in occurrences.tokens.iter().enumerate() {
            let mut found = prior[*token as usize * ffn..][..ffn].to_vec();
            sums.shrink(index, count, &mut found);
            for (j, found) in found.iter().enumerate() {
                assert!((found - row(*token, j, &|_| true)).abs() < 1e-4);
            }
        }
        let mut out = h.clone();
        let prior_of = |token: u32| &prior[token as usize * ffn..][..ffn];
        occurrences.leave_one_out(&sums, &gate, &mut out, &weight, prior_of, count);
        for (p, token) in tokens.iter().enumerate() {
            for j in 0..ffn {
                let expected = gate[p * ffn + j] * row(*token, j, &|q| q != p);
                assert!((out[p * ffn + j] - expected).abs() < 1e-4);
            }
        }
        let errors = occurrences.errors(&sums, prior_of, count);
        for (j, found) in errors.iter().enumerate() {
            let expected: f32 = (0..n)
                .map(|p| {
                    let (g, h) = (gate[p * ffn + j], h[p * ffn + j]);
                    weight[p] * ((h - g * row(tokens[p], j, &|_| true)).powi(2) - h * h)
                })
                .sum();
            assert!((found - f64::from(expected)).abs() < 1e-3, "{found} for {expected}");
        }
    }

    #[test]
    fn the_slope_of_a_gate_is_its_derivative() {
        let (gh, gg, weight, count, mass, prior) = (0.4, 0.9, 0.7, 2.0, 0.3, 0.8);
        for z in [-3.0f32, -0.5, 0.0, 1.2, 4.0] {
            let (g, h) = (kernels::silu(z), 0.6);
            let row = row_without(gh, gg, weight, g, h, prior, count * mass);
            let error = |z: f32| h - kernels::silu(z) * row;
            let derivative = (error(z + 1e-2) - error(z - 1e-2)) / 2e-2;
            let (mut found, mut curvature) = ([z], [1.0]);
            slope(&[gh, gg], &[mass], &[prior], count, weight, &[g], &[h], &mut found, &mut curvature);
            assert!((found[0] + weight.sqrt() * derivative * error(z)).abs() < 1e-3);
            assert!((curvature[0] - 1.0 - weight * derivative.powi(2)).abs() < 1e-3);
        }
    }
}
