//! The operations of Engram layers (source: arXiv 2601.07372, section 2.3, and the published demonstration); the
//! WGSL kernels have the same names.

use super::kernels::{exp, silu};

/// `g · value`, in place, for one token; gives g: `g = σ(sign(s) √max(|s|, 1e-6))`,
/// `s = RMSNorm(x)·RMSNorm(key) / √hidden`. All are `[hidden]`; the gains are those of x and of the key.
pub fn engram_gate(x: &[f32], key: &[f32], gains: [&[f32]; 2], eps: f32, value: &mut [f32]) -> f32 {
    let width = x.len() as f32;
    let (mut xx, mut kk, mut xk) = (0f32, 0f32, 0f32);
    for (((x, k), gx), gk) in x.iter().zip(key).zip(gains[0]).zip(gains[1]) {
        xx += x * x;
        kk += k * k;
        xk += (x * gx) * (k * gk);
    }
    let score = xk / ((xx / width + eps).sqrt() * (kk / width + eps).sqrt() * width.sqrt());
    let gate = gate(score);
    value.iter_mut().for_each(|v| *v *= gate);
    gate
}

/// `σ(sign(s) √max(|s|, 1e-6))`, where the sign of 0 is 0.
fn gate(score: f32) -> f32 {
    // f32::max would hide NaN.
    let magnitude = if score.abs() < 1e-6 { 1e-6 } else { score.abs() };
    // f32::signum knows no 0.
    let signed = if score == 0.0 { 0.0 } else { magnitude.sqrt().copysign(score) };
    1.0 / (1.0 + exp(-signed))
}

/// `x += value + SiLU(conv)` for one token at `position`: `x` and `value` are `[hidden]`.
///
/// `cache` is `[positions, hidden]`. The taps, `[n_taps, hidden]`, lie `dilation` positions apart; the last one belongs
/// to the position itself, as in a convolution of PyTorch's. Positions before the first one count as zero.
pub fn engram_conv(
    cache: &[f32],
    position: usize,
    taps: &[f32],
    dilation: usize,
    value: &[f32],
    x: &mut [f32],
) {
    let hidden = x.len();
    let mut sum = vec![0f32; hidden];
    for (back, tap) in taps.chunks_exact(hidden).rev().enumerate() {
        let Some(at) = position.checked_sub(back * dilation) else { break };
        for ((sum, w), c) in sum.iter_mut().zip(tap).zip(&cache[at * hidden..]) {
            *sum += w * c;
        }
    }
    for ((x, v), sum) in x.iter_mut().zip(value).zip(&sum) {
        *x += v + silu(*sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_a_signed_root() {
        for (score, expected) in
            [(0.0, 0.5), (4.0, 0.880_797), (-4.0, 0.119_203), (1e-12, 0.500_25), (-1e-12, 0.499_75)]
        {
            assert!((gate(score) - expected).abs() < 1e-6, "{} for {score}", gate(score));
        }
        assert!(gate(f32::NAN).is_nan());
    }

    #[test]
    fn the_score_is_that_of_two_normalised_vectors() {
        // RMSNorm(x) = (1.2, 1.6)/√2, RMSNorm(key) = (0, √2): with gains (2, 3) and (1, 0.5).
        let mut value = [1.0, -2.0];
        let found = engram_gate(&[3.0, 4.0], &[0.0, 5.0], [&[2.0, 3.0], &[1.0, 0.5]], 0.0, &mut value);
        let rms_x = (25f32 / 2.0).sqrt();
        let score = (4.0 / rms_x * 3.0) * (2f32.sqrt() * 0.5) / 2f32.sqrt();
        let g = 1.0 / (1.0 + (-score.sqrt()).exp());
        assert!((found - g).abs() < 1e-6);
        assert!((value[0] - g).abs() < 1e-6 && (value[1] + 2.0 * g).abs() < 1e-6, "{value:?} for {g}");
        let mut zero = [0.0, 0.0];
        let half = engram_gate(&[3.0, 4.0], &[0.0, 0.0], [&[2.0, 3.0], &[1.0, 0.5]], 1e-5, &mut zero);
        assert_eq!((half, zero), (0.5, [0.0, 0.0]));
    }

    #[test]
    fn the_last_tap_is_the_position_itself() {
        // Eight positions of two channels; the second channel is ten times the first one.
        let cache: Vec<f32> = (0..8).flat_map(|p| [p as f32 + 1.0, 10.0 * (p as f32 + 1.0)]).collect();
        let taps = [0.5, 0.0, 0.25, 0.0, 1.0, 0.1];
        let mut x = [1.0, 2.0];
        engram_conv(&cache, 7, &taps, 3, &[0.5, 0.25], &mut x);
        // Positions 1, 4 and 7.
        let sum = [0.5 * 2.0 + 0.25 * 5.0 + 8.0, 8.0];
        assert!((x[0] - (1.5 + silu(sum[0]))).abs() < 1e-6);
        assert!((x[1] - (2.25 + silu(sum[1]))).abs() < 1e-6);
        let mut x = [0.0, 0.0];
        engram_conv(&cache, 2, &taps, 3, &[0.0, 0.0], &mut x);
        assert_eq!(x, [silu(3.0), silu(3.0)]);
    }
}
