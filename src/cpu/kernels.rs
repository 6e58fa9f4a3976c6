//! Everything that is not a matrix product, one plain function each; the WGSL kernels have the same names.

use crate::backend::{Candidates, MAX_CANDIDATES, Penalty};

/// `out = x / √(mean(x²) + eps) ⊙ gain`, for each row of `x` `[n, hidden]`.
///
/// Source: RMSNorm, arXiv 1910.07467.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let width = gain.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean_square = x.iter().map(|v| v * v).sum::<f32>() / width as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for ((o, v), g) in out.iter_mut().zip(x).zip(gain) {
            *o = v * scale * g;
        }
    }
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

/// Causal attention of one query head over the positions `0..=position`.
///
/// `keys` and `values` are `[capacity, kv_dim]`, of which this head reads columns `at..at + query.len()`.
/// `scores` is scratch.
pub fn attention(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    kv_dim: usize,
    at: usize,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    let mut max = f32::NEG_INFINITY;
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(kv_dim)) {
        *score = scale * dot(query, &key[at..at + query.len()]);
        max = max.max(*score);
    }
    out.fill(0.0);
    let mut sum = 0.0;
    for (score, value) in scores.iter().zip(values.chunks_exact(kv_dim)) {
        let p = exp(score - max);
        sum += p;
        for (o, v) in out.iter_mut().zip(&value[at..at + query.len()]) {
            *o += p * v;
        }
    }
    for o in out {
        *o /= sum;
    }
}

/// Dot product, in lanes so that it vectorises.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
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

/// Applies a repetition penalty to `logits` `[vocab]`.
pub fn penalize(logits: &mut [f32], penalty: Penalty<'_>) {
    for id in penalty.tokens {
        let logit = &mut logits[*id as usize];
        *logit = if *logit > 0.0 { *logit / penalty.factor } else { *logit * penalty.factor };
    }
}

/// The best candidates of `logits` `[vocab]`, and the logarithm of the whole sum.
pub fn top_k(logits: &[f32]) -> Candidates {
    let mut top: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
    let best_first = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if top.len() > MAX_CANDIDATES {
        top.select_nth_unstable_by(MAX_CANDIDATES - 1, best_first);
        top.truncate(MAX_CANDIDATES);
    }
    top.sort_unstable_by(best_first);
    let max = top.first().map_or(0.0, |(_, logit)| *logit);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    Candidates { top, log_sum_exp: max + sum.ln() as f32 }
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
    fn attention_weighs_by_softmax() {
        // Two positions, kv_dim 4, the head reads columns 2 and 3.
        let keys = [9.0, 9.0, 1.0, 0.0, 9.0, 9.0, 0.0, 1.0];
        let values = [9.0, 9.0, 1.0, 2.0, 9.0, 9.0, 3.0, 4.0];
        let mut out = [0.0; 2];
        attention(&[2f32.sqrt(), 0.0], &keys, &values, 4, 2, &mut [0.0; 2], &mut out);
        let p = 1f32.exp() / (1f32.exp() + 1.0);
        assert!((out[0] - (p + 3.0 * (1.0 - p))).abs() < 1e-6);
        assert!((out[1] - (2.0 * p + 4.0 * (1.0 - p))).abs() < 1e-6);
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
    fn penalty_lowers_both_signs() {
        let mut logits = [2.0, -2.0, 2.0];
        penalize(&mut logits, Penalty { tokens: &[0, 1], factor: 2.0 });
        assert_eq!(logits, [1.0, -4.0, 2.0]);
    }
}
