//! How weights and rows are stored: blocks of 32 weights along the input dimension, in separate planes.
//!
//! A `[out, in]` tensor is a first plane of quants and, where its [`Dtype`] has one, a second plane of
//! scales. Planes are little-endian, row-major, and padded to four bytes, so that a GPU can bind them as
//! they are and CPUs can load a block of quants as one vector.
//!
//! | dtype | quants of a block | scales of a block | weight |
//! |---|---|---|---|
//! | `f32` | 32 × f32 | – | itself |
//! | `q8` | 32 × i8 | f16 d | d·q |
//! | `q4` | 16 bytes: byte i holds weight i (low nibble) and i + 16 (high nibble) | f16 d, f16 m | d·q + m |
//!
//! `q8` and `q4` hold the same numbers as ggml's `Q8_0` and `Q4_1` (source: ggml's `ggml-common.h`), apart
//! from the split into planes, so weights of those types are taken over bit by bit.

use std::array::from_fn;

use bytemuck::{cast_slice, pod_collect_to_vec};
use half::f16;
use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::levels::{self, level};
use crate::config::BLOCK;

/// How the weights of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Single precision.
    F32,
    /// Eight bits and one scale a block.
    Q8,
    /// Four bits, one scale and one minimum a block.
    Q4,
}

impl Dtype {
    /// Bytes of the planes of `elements` weights, padded to four bytes: quants, then scales (0 if none).
    pub fn planes(self, elements: usize) -> [usize; 2] {
        let blocks = elements / BLOCK;
        match self {
            Self::F32 => [elements * 4, 0],
            Self::Q8 => [elements, (blocks * 2).next_multiple_of(4)],
            Self::Q4 => [elements / 2, blocks * 4],
        }
    }

    /// Bytes of `elements` weights, all planes.
    pub fn bytes(self, elements: usize) -> usize {
        self.planes(elements).iter().sum()
    }
}

/// Stores `weights` (whole blocks unless `f32`) as `dtype`: the planes one after the other.
///
/// `q8` takes a block's largest magnitude as its range; `q4` looks for the scale and minimum of least squared error,
/// and keeps what it has stored once already.
pub fn quantize(dtype: Dtype, weights: &[f32]) -> Vec<u8> {
    let [quant_bytes, scale_bytes] = dtype.planes(weights.len());
    let mut quants: Vec<u8> = Vec::with_capacity(quant_bytes + scale_bytes);
    let mut scales: Vec<f16> = Vec::new();
    match dtype {
        Dtype::F32 => quants.extend_from_slice(cast_slice(weights)),
        Dtype::Q8 => {
            for block in weights.chunks_exact(BLOCK) {
                let max = block.iter().fold(0f32, |m, w| m.max(w.abs()));
                let d = f16::from_f32(max / 127.0);
                let inverse = inverse(d.to_f32());
                scales.push(d);
                quants.extend(block.iter().map(|w| (w * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
            }
        }
        Dtype::Q4 => {
            for blocks in weights.as_chunks::<BLOCK>().0.chunks(LANES) {
                let fit = fit_q4(blocks);
                for lane in 0..blocks.len() {
                    scales.extend([fit.d[lane], fit.m[lane]]);
                    let q = |i: usize| fit.q[i][lane] as u8;
                    quants.extend((0..BLOCK / 2).map(|i| q(i) | q(i + BLOCK / 2) << 4));
                }
            }
        }
    }
    quants.extend_from_slice(cast_slice(&scales));
    quants.resize(quant_bytes + scale_bytes, 0);
    quants
}

/// Replaces `weights` (whole blocks) by what `q4` stores of them, which is [`quantize`] and [`dequantize`] in one.
pub fn round_q4(weights: &mut [f32]) {
    for blocks in weights.as_chunks_mut::<BLOCK>().0.chunks_mut(LANES) {
        let fit = fit_q4(blocks);
        for (lane, block) in blocks.iter_mut().enumerate() {
            let (d, m) = (fit.d[lane].to_f32(), fit.m[lane].to_f32());
            block.iter_mut().zip(&fit.q).for_each(|(w, q)| *w = d * q[lane] + m);
        }
    }
}

/// Blocks that are fitted side by side, one in each lane of a vector register.
const LANES: usize = 8;

/// A number for each of [`LANES`] blocks.
type Lanes = [f32; LANES];

/// What up to [`LANES`] blocks of four bits hold.
struct FitQ4 {
    d: [f16; LANES],
    m: [f16; LANES],
    // Whole numbers from 0 to 15.
    q: [Lanes; BLOCK],
}

/// Scales, minima and quants of up to [`LANES`] blocks of four bits.
///
/// For a few ranges about that from the least to the largest weight: round, solve scale and minimum by least
/// squares for these quants, and round again (the idea is ggml's, in `make_qkx2_quants`). A block that four bits hold exactly
/// is taken as it is. Halves go to the even level, as in training (`tools/heal/student.py`), which ends at weights that are good
/// as rounded so, and no better when rounded more finely.
#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn fit_q4(blocks: &[[f32; BLOCK]]) -> FitQ4 {
    const RANGES: [f32; 7] = [15.0, 14.5, 15.5, 14.0, 16.0, 13.5, 13.0];
    let mut w = [[0f32; LANES]; BLOCK];
    for (lane, block) in blocks.iter().enumerate() {
        w.iter_mut().zip(block).for_each(|(w, value)| w[lane] = *value);
    }
    let (mut min, mut max, mut sum_w) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0f32; LANES]);
    for w in &w {
        for i in 0..LANES {
            (min[i], max[i], sum_w[i]) = (min[i].min(w[i]), max[i].max(w[i]), sum_w[i] + w[i]);
        }
    }
    let mut least = [f32::INFINITY; LANES];
    let mut best = FitQ4 { d: [f16::ZERO; LANES], m: [f16::ZERO; LANES], q: [[0f32; LANES]; BLOCK] };
    for range in RANGES {
        let inverses: Lanes = from_fn(|i| inverse((max[i] - min[i]) / range));
        let (mut sum_q, mut sum_qq, mut sum_qw) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        for w in &w {
            for i in 0..LANES {
                let q = level(w[i], min[i], inverses[i]);
                (sum_q[i], sum_qq[i], sum_qw[i]) = (sum_q[i] + q, sum_qq[i] + q * q, sum_qw[i] + q * w[i]);
            }
        }
        let n = BLOCK as f32;
        let d: Lanes = from_fn(|i| {
            let determinant = n * sum_qq[i] - sum_q[i] * sum_q[i];
            if determinant > 0.0 { (n * sum_qw[i] - sum_q[i] * sum_w[i]) / determinant } else { 0.0 }
        });
        let d = d.map(f16::from_f32);
        let scale = d.map(f16::to_f32);
        let m: [f16; LANES] = from_fn(|i| f16::from_f32((sum_w[i] - scale[i] * sum_q[i]) / n));
        let minimum = m.map(f16::to_f32);
        let inverses = scale.map(inverse);
        let mut error = [0f32; LANES];
        let mut q = [[0f32; LANES]; BLOCK];
        for (w, q) in w.iter().zip(&mut q) {
            for i in 0..LANES {
                q[i] = level(w[i], minimum[i], inverses[i]);
                error[i] += (scale[i] * q[i] + minimum[i] - w[i]).powi(2);
            }
        }
        let better: [bool; LANES] = from_fn(|i| error[i] < least[i]);
        for i in (0..LANES).filter(|i| better[*i]) {
            (least[i], best.d[i], best.m[i]) = (error[i], d[i], m[i]);
        }
        for (best, q) in best.q.iter_mut().zip(&q) {
            for i in 0..LANES {
                best[i] = if better[i] { q[i] } else { best[i] };
            }
        }
    }
    let few = few_levels(&w);
    for (lane, block) in blocks.iter().enumerate().filter(|(lane, _)| least[*lane] > 0.0 && few[*lane]) {
        if let Some((d, m)) = levels::exact(block) {
            (best.d[lane], best.m[lane]) = (d, m);
            let (minimum, inverse) = (m.to_f32(), inverse(d.to_f32()));
            best.q.iter_mut().zip(block).for_each(|(q, w)| q[lane] = level(*w, minimum, inverse));
        }
    }
    best
}

/// Which blocks may have sixteen levels at most, by a hash of each weight: ordinary ones have more, and need no closer look.
#[inline(always)]
fn few_levels(w: &[Lanes; BLOCK]) -> [bool; LANES] {
    let mut hashes = [0u32; LANES];
    for w in w {
        for i in 0..LANES {
            // Zero has one hash, whatever its sign. The factor is 2³² over the golden ratio (source: Knuth, vol. 3, 6.4).
            let hash = (w[i] + 0.0).to_bits().wrapping_mul(0x9e37_79b1) >> 27;
            hashes[i] |= 1 << hash;
        }
    }
    hashes.map(|hashes| hashes.count_ones() <= 16)
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Expands weights `start..start + out.len()` (whole blocks) of a tensor's two planes into `out`.
pub fn dequantize(dtype: Dtype, quants: &[u8], scales: &[u8], start: usize, out: &mut [f32]) {
    let half = |at: usize| f16::from_le_bytes([scales[2 * at], scales[2 * at + 1]]).to_f32();
    let first = start / BLOCK;
    match dtype {
        Dtype::F32 => {
            let bytes = &quants[start * 4..(start + out.len()) * 4];
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        Dtype::Q8 => {
            for (b, block) in out.chunks_exact_mut(BLOCK).enumerate() {
                let d = half(first + b);
                let bytes = &quants[(first + b) * BLOCK..][..BLOCK];
                for (o, q) in block.iter_mut().zip(bytes) {
                    *o = d * f32::from(*q as i8);
                }
            }
        }
        Dtype::Q4 => {
            for (b, block) in out.chunks_exact_mut(BLOCK).enumerate() {
                let (d, m) = (half(2 * (first + b)), half(2 * (first + b) + 1));
                let bytes = &quants[(first + b) * BLOCK / 2..][..BLOCK / 2];
                let (low, high) = block.split_at_mut(BLOCK / 2);
                for ((l, h), q) in low.iter_mut().zip(high).zip(bytes) {
                    *l = d * f32::from(q & 15) + m;
                    *h = d * f32::from(q >> 4) + m;
                }
            }
        }
    }
}

/// Values that share one scale within a table row.
pub const ROW_GROUP: usize = 64;

/// Bytes of a stored table row of `width` values: i8 quants, then an f16 scale a group of [`ROW_GROUP`]
/// (the last group may be short), padded to four bytes.
pub fn row_bytes(width: usize) -> usize {
    (width + 2 * width.div_ceil(ROW_GROUP)).next_multiple_of(4)
}

/// Appends the stored form of one table row to `out`.
pub fn quantize_row(row: &[f32], out: &mut Vec<u8>) {
    let end = out.len() + row_bytes(row.len());
    let mut scales: Vec<f16> = Vec::with_capacity(row.len().div_ceil(ROW_GROUP));
    for group in row.chunks(ROW_GROUP) {
        let max = group.iter().fold(0f32, |m, v| m.max(v.abs()));
        let d = f16::from_f32(max / 127.0);
        let inverse = inverse(d.to_f32());
        scales.push(d);
        out.extend(group.iter().map(|v| (v * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
    }
    out.extend(pod_collect_to_vec::<f16, u8>(&scales));
    out.resize(end, 0);
}

/// Expands one stored row of [`row_bytes`]`(out.len())` bytes.
pub fn dequantize_row(bytes: &[u8], out: &mut [f32]) {
    let (quants, scales) = bytes.split_at(out.len());
    let scales = scales.as_chunks::<2>().0;
    for ((group, quants), d) in out.chunks_mut(ROW_GROUP).zip(quants.chunks(ROW_GROUP)).zip(scales) {
        let d = f16::from_le_bytes(*d).to_f32();
        for (o, q) in group.iter_mut().zip(quants) {
            *o = d * f32::from(*q as i8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 1000) as f32 / 500.0 - 0.7 + (i / 32) as f32 * 0.01).collect()
    }

    #[test]
    fn expands_to_within_half_a_step() {
        let w = weights(32 * 5);
        for (dtype, steps) in [(Dtype::F32, 0.0), (Dtype::Q8, 127.0), (Dtype::Q4, 7.5)] {
            let stored = quantize(dtype, &w);
            let [quants, scales] = dtype.planes(w.len());
            assert_eq!(stored.len(), quants + scales);
            assert_eq!(stored.len() % 4, 0);
            let mut out = vec![0.0; 64];
            dequantize(dtype, &stored[..quants], &stored[quants..], 64, &mut out);
            for (o, w) in out.iter().zip(&w[64..]) {
                let bound = if steps == 0.0 { 0.0 } else { 1.5 / steps * 0.51 };
                assert!((o - w).abs() <= bound, "{dtype:?}: {o} for {w}");
            }
        }
    }

    #[test]
    fn q4_keeps_ggml_nibble_order() {
        let mut block = vec![0.0; 32];
        block[3] = 15.0;
        block[19] = 7.0;
        assert_eq!(quantize(Dtype::Q4, &block)[3], 0x7f);
    }

    #[test]
    fn rows_of_any_width_round_trip() {
        for width in [1, 31, 33, 160, 1536] {
            let row = weights(width);
            let mut stored = vec![9u8; 3];
            quantize_row(&row, &mut stored);
            assert_eq!(stored.len(), 3 + row_bytes(width));
            let mut out = vec![0.0; width];
            dequantize_row(&stored[3..], &mut out);
            for (o, v) in out.iter().zip(&row) {
                assert!((o - v).abs() < 2.0 / 127.0 * 0.51, "{o} for {v}");
            }
        }
    }

    #[test]
    fn q4_is_better_than_the_plain_range() {
        let w: Vec<f32> =
            (0..3200).map(|i| ((i * 7919 + 13) % 1000) as f32 / 500.0 - 1.0).map(|v| v * v * v).collect();
        let stored = quantize(Dtype::Q4, &w);
        let mut found = vec![0.0; w.len()];
        let [q, _] = Dtype::Q4.planes(w.len());
        dequantize(Dtype::Q4, &stored[..q], &stored[q..], 0, &mut found);
        let square = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let plain: Vec<f32> = w
            .chunks(32)
            .flat_map(|block| {
                let min = block.iter().copied().fold(f32::INFINITY, f32::min);
                let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let d = (max - min) / 15.0;
                block.iter().map(move |w| ((w - min) / d).round() * d + min)
            })
            .collect();
        assert!(square(&found, &w) < 0.9 * square(&plain, &w));
    }

    /// Of one block alone, one operation after the other.
    fn fit_alone(block: &[f32; BLOCK]) -> (f16, f16, [f32; BLOCK]) {
        let min = block.iter().copied().fold(f32::INFINITY, f32::min);
        let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let round = |d: f32, m: f32| {
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            block.map(|w| ((w - m) * inverse).round_ties_even().clamp(0.0, 15.0))
        };
        let mut best = (f32::INFINITY, f16::ZERO, f16::ZERO, [0.0; BLOCK]);
        for range in [15.0, 14.5, 15.5, 14.0, 16.0, 13.5, 13.0] {
            let q = round((max - min) / range, min);
            let n = BLOCK as f32;
            let (sum_q, sum_w) = (q.iter().sum::<f32>(), block.iter().sum::<f32>());
            let sum_qq: f32 = q.iter().map(|q| q * q).sum();
            let sum_qw: f32 = q.iter().zip(block).map(|(q, w)| q * w).sum();
            let determinant = n * sum_qq - sum_q * sum_q;
            let d = if determinant > 0.0 { (n * sum_qw - sum_q * sum_w) / determinant } else { 0.0 };
            let d = f16::from_f32(d);
            let m = f16::from_f32((sum_w - d.to_f32() * sum_q) / n);
            let q = round(d.to_f32(), m.to_f32());
            let error = |(q, w): (&f32, &f32)| (d.to_f32() * q + m.to_f32() - w).powi(2);
            let error: f32 = q.iter().zip(block).map(error).sum();
            if error < best.0 {
                best = (error, d, m, q);
            }
        }
        if let Some((d, m)) = levels::exact(block).filter(|_| best.0 > 0.0) {
            return (d, m, round(d.to_f32(), m.to_f32()));
        }
        (best.1, best.2, best.3)
    }

    #[test]
    #[rustfmt::skip]
    fn halves_go_to_even_levels_as_in_training() {
        // With a range of 14.5 the largest weight lies between two levels; what `four_bit_parts` of tools/heal/student.py makes
        // of this block, in PyTorch, which rounds halves to even.
        let block = [
            -0.19294666, -0.0034021742, -0.025387414, 0.07130287, -0.22447814, 0.019103654, 0.14451984, 0.09013259,
            -0.027349167, 0.024702854, -0.2273851, 0.12281648, -0.009878216, 0.43281832, -0.041324176, 0.20406519,
            -0.14612593, 0.36302513, 0.08971219, 0.024385352, 0.16516739, -0.25644836, 0.2034026, 0.06886225,
            -0.10726958, -0.03415977, 0.33925945, -0.0067542214, 0.2353869, 0.20770222, 0.2670762, 0.055144995,
        ];
        let expected = [
            1, 5, 5, 7, 1, 6, 9, 8, 5, 6, 1, 8, 5, 15, 5, 10, 2, 13, 8, 6, 9, 0, 10, 7, 3, 5, 13, 5, 11, 10, 11, 7,
        ];
        let fit = fit_q4(&[block]);
        assert_eq!((fit.d[0].to_f32(), fit.m[0].to_f32()), (0.046_051_025, -0.256_591_8));
        assert_eq!(fit.q.map(|q| q[0]), expected.map(|q| q as f32));
    }

    #[test]
    fn blocks_side_by_side_are_fitted_as_each_alone() {
        for blocks in [1, 7, 8, 8 * 40 + 3] {
            let mut w: Vec<f32> = weights(BLOCK * blocks).iter().map(|v| v * v * v).collect();
            w[..BLOCK].fill(0.3);
            let expected: Vec<f32> = w
                .as_chunks::<BLOCK>()
                .0
                .iter()
                .flat_map(|block| {
                    let (d, m, q) = fit_alone(block);
                    q.map(|q| d.to_f32() * q + m.to_f32())
                })
                .collect();
            let stored = quantize(Dtype::Q4, &w);
            let (quants, scales) = stored.split_at(Dtype::Q4.planes(w.len())[0]);
            let mut found = vec![0.0; w.len()];
            dequantize(Dtype::Q4, quants, scales, 0, &mut found);
            assert_eq!(found, expected);
            round_q4(&mut w);
            assert_eq!(w, expected);
        }
    }

    #[test]
    fn zeros_stay_zero() {
        for dtype in [Dtype::Q8, Dtype::Q4] {
            let stored = quantize(dtype, &[0.0; 32]);
            let mut out = [1.0; 32];
            let [q, _] = dtype.planes(32);
            dequantize(dtype, &stored[..q], &stored[q..], 0, &mut out);
            assert_eq!(out, [0.0; 32]);
        }
    }
}
