//! Everything that is not a matrix product, one plain function each; the WGSL kernels have the same names.

use multiversion::multiversion;

use crate::backend::{Candidates, MAX_CANDIDATES, Penalty};

/// `out = x / √(mean(x²) + eps) ⊙ gain`, for each row of `x` `[n, hidden]`.
///
/// Source: RMSNorm, arXiv 1910.07467.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let width = gain.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean_square = dot_lanes(x, x) / width as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for ((o, v), g) in out.iter_mut().zip(x).zip(gain) {
            *o = v * scale * g;
        }
    }
}

/// The largest magnitude of `x`; NaN if there is one. Magnitudes of floats are in the order of their bits, NaN behind infinity.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |max, x| max.max(x.abs().to_bits())))
}

/// Rotates the pairs `(2i, 2i + 1)` of each head in `x` `[heads, head_dim]` by the angles of one position.
///
/// `turn` is `[head_dim / 2]` pairs of cosine and sine, see [`rope_turn`]. Source: RoFormer, arXiv 2104.09864.
pub fn rope(x: &mut [f32], turn: &[(f32, f32)]) {
    for head in x.chunks_exact_mut(2 * turn.len()) {
        for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turn) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}

/// Cosine and sine of `position · theta^(−2i / head_dim)` for each pair i; computed in f64, since angles grow
/// with the position.
pub fn rope_turn(position: usize, theta: f32, head_dim: usize) -> Vec<(f32, f32)> {
    let angle = |i: usize| position as f64 * f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64);
    (0..head_dim / 2).map(|i| (angle(i).cos() as f32, angle(i).sin() as f32)).collect()
}

/// Dot product.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_lanes(a, b)
}

/// [`dot`] in lanes, so that it vectorises, to be part of another kernel.
#[inline(always)]
pub(super) fn dot_lanes(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    // A sum in pairs would make the compiler take two lanes at a time.
    lanes.iter().sum::<f32>() + rest
}

/// `eˣ` for `|x| ≤ 87`, clamped beyond, to a few units in the last place; unlike the one of the C library it
/// vectorises. With `x = n ln 2 + r` it is `2ⁿ` times the Taylor series of `eʳ`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding this rounds to an integer and leaves it in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, so that n times the first is exact.
    const LN_2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let mut series = 1.0 / 720.0;
    for factor in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + factor;
    }
    series * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// `x / (1 + exp(−x))`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `gate = SiLU(gate)` and `h = gate ⊙ up`.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub fn silu_times(gate: &mut [f32], up: &[f32], h: &mut [f32]) {
    for ((h, g), u) in h.iter_mut().zip(gate).zip(up) {
        *g = silu(*g);
        *h = *g * u;
    }
}

/// Applies a repetition penalty to `logits` `[vocab]`.
pub fn penalize(logits: &mut [f32], penalty: Penalty<'_>) {
    for id in penalty.tokens {
        let logit = &mut logits[*id as usize];
        *logit = if *logit > 0.0 { *logit / penalty.factor } else { *logit * penalty.factor };
    }
}

/// Logits of which [`top_k`] first looks at the largest alone.
const RUN: usize = 64;

/// The best candidates of `logits` `[vocab]`, and the logarithm of the whole sum.
pub fn top_k(logits: &[f32]) -> Candidates {
    let keys = largest_of_runs(logits);
    // Where there are enough runs, as many logits as are wanted are at least as large as the largest of the last of the best
    // runs: others need no look.
    let least = if keys.len() > MAX_CANDIDATES {
        let mut best = keys.clone();
        *best.select_nth_unstable_by(MAX_CANDIDATES - 1, |a, b| b.cmp(a)).1
    } else {
        i32::MIN
    };
    let runs = (0u32..).step_by(RUN).zip(logits.chunks(RUN)).zip(&keys).filter(|(_, key)| **key >= least);
    let mut top: Vec<(u32, f32)> = runs
        .flat_map(|((first, run), _)| (first..).zip(run.iter().copied()))
        .filter(|(_, logit)| order(*logit) >= least)
        .collect();
    let best_first = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if top.len() > MAX_CANDIDATES {
        top.select_nth_unstable_by(MAX_CANDIDATES - 1, best_first);
        top.truncate(MAX_CANDIDATES);
    }
    top.sort_unstable_by(best_first);
    let max = top.first().map_or(0.0, |(_, logit)| *logit);
    Candidates { top, log_sum_exp: max + sum_exp(logits, max).ln() as f32 }
}

/// An integer for each float, in the order of [`f32::total_cmp`].
#[inline(always)]
fn order(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// The [`order`] of the largest logit of each run.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn largest_of_runs(logits: &[f32]) -> Vec<i32> {
    let largest = |run: &[f32]| run.iter().fold(i32::MIN, |max, x| max.max(order(*x)));
    logits.chunks(RUN).map(largest).collect()
}

/// Σ exp(logit − max), in lanes.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn sum_exp(logits: &[f32], max: f32) -> f64 {
    let mut sum = 0.0;
    for run in logits.chunks(1024) {
        let mut lanes = [0f32; 8];
        let (eights, rest) = run.as_chunks::<8>();
        for eight in eights {
            for (lane, x) in lanes.iter_mut().zip(eight) {
                *lane += exp(x - max);
            }
        }
        let rest: f32 = rest.iter().map(|x| exp(x - max)).sum();
        sum += f64::from(lanes.iter().sum::<f32>() + rest);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_turns_the_first_pair_by_the_position() {
        let mut x = vec![1.0, 0.0, 1.0, 0.0];
        rope(&mut x, &rope_turn(3, 10_000.0, 4));
        let expected = [3f32.cos(), 3f32.sin(), 0.03f32.cos(), 0.03f32.sin()];
        assert!(x.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{x:?}");
    }

    #[test]
    fn exp_is_close_to_the_exact_one() {
        for i in -87_000..=87_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 4e-7, "{} for {exact} at {x}", exp(x));
        }
        assert!(exp(-1e9) < 1e-37 && exp(1e9).is_finite() && silu(-1e9).abs() < 1e-27);
    }

    #[test]
    fn top_k_orders_ties_by_id() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 500) as f32 / 50.0).collect();
        let c = top_k(&logits);
        assert_eq!(c.top.len(), MAX_CANDIDATES);
        assert!(c.top.windows(2).all(|w| w[0].1 > w[1].1 || (w[0].1 == w[1].1 && w[0].0 < w[1].0)));
        let p: f32 = logits.iter().map(|l| (l - c.log_sum_exp).exp()).sum();
        assert!((p - 1.0).abs() < 1e-4);
    }

    #[test]
    fn top_k_finds_what_sorting_finds() {
        let mut seed = 7u32;
        for vocab in [1, 63, 256, 300, 20_000, 49_152] {
            let logits: Vec<f32> = (0..vocab)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Few values, so that many are equal.
                    (seed >> 20) as f32 / 100.0 - 20.0
                })
                .collect();
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            sorted.truncate(MAX_CANDIDATES);
            let found = top_k(&logits);
            assert_eq!(found.top, sorted);
            let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            assert!((f64::from(found.log_sum_exp) - sum.ln()).abs() < 1e-5, "{vocab}");
        }
    }

    #[test]
    fn nonsense_among_logits_comes_first() {
        let mut logits = vec![1.0; 49_152];
        logits[30_000] = f32::NAN;
        let c = top_k(&logits);
        assert!(c.top[0].0 == 30_000 && c.top[0].1.is_nan());
    }

    #[test]
    fn penalty_lowers_both_signs() {
        let mut logits = [2.0, -2.0, 2.0];
        penalize(&mut logits, Penalty { tokens: &[0, 1], factor: 2.0 });
        assert_eq!(logits, [1.0, -4.0, 2.0]);
    }
}
