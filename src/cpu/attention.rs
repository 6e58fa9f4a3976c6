//! Attention, in spans of positions: so that a span's keys and values stay in the nearest cache while all the query heads
//! that share them look at them, and threads share the positions of one token.
//!
//! Each span has a softmax of its own, of which [`merge`] makes one (source: FlashAttention, arXiv 2205.14135, and
//! Flash-Decoding). Spans are merged in order: so the bits do not depend on who computed them.

use multiversion::multiversion;

use super::kernels::{dot_lanes, exp};
use super::team;
use crate::config::Config;

/// Positions of a span.
const SPAN: usize = 64;

/// What a span gives for a query head: a weighted sum of values `[head_dim]`, the largest score, and the sum of the weights.
const fn part_width(head_dim: usize) -> usize {
    head_dim + 2
}

/// A cache `[positions, kv_dim]` of keys and one of values, as one KV head sees them.
#[derive(Clone, Copy)]
struct Cache<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    kv_dim: usize,
    /// The head's first column.
    at: usize,
}

/// Causal attention of one query head over the positions `0..positions`.
///
/// `keys` and `values` are `[capacity, kv_dim]`, of which this head reads columns `at..at + query.len()`.
pub fn attention(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    kv_dim: usize,
    at: usize,
    positions: usize,
    out: &mut [f32],
) {
    let cache = Cache { keys, values, kv_dim, at };
    attend(query, query.len(), cache, positions, out);
}

/// The heads of all of a step's tokens, of which the first stands at `position`: `qkv` `[n, q + k + v]` (rotated), `attn`
/// `[n, q]`. `parts` is scratch.
pub fn all_heads(
    c: &Config,
    position: usize,
    qkv: &[f32],
    [keys, values]: [&[f32]; 2],
    attn: &mut [f32],
    parts: &mut Vec<f32>,
) {
    let group = c.n_heads / c.n_kv_heads * c.head_dim;
    let queries = |token: usize, head: usize| &qkv[token * c.qkv_dim() + head * group..][..group];
    let cache = |head: usize| Cache { keys, values, kv_dim: c.kv_dim(), at: head * c.head_dim };
    if attn.len() > c.q_dim() {
        return team::chunks(attn, group, &|i, out| {
            let (token, head) = (i / c.n_kv_heads, i % c.n_kv_heads);
            attend(queries(token, head), c.head_dim, cache(head), position + token + 1, out);
        });
    }
    // [spans, heads, part]
    let width = part_width(c.head_dim);
    let spans = (position + 1).div_ceil(SPAN);
    parts.resize(spans * c.n_heads * width, 0.0);
    team::chunks(parts, c.n_heads / c.n_kv_heads * width, &|i, part| {
        let (span, head) = (i / c.n_kv_heads, i % c.n_kv_heads);
        span_parts(queries(0, head), c.head_dim, cache(head), span * SPAN..position + 1, part);
    });
    let (sums, others) = parts.split_at_mut(c.n_heads * width);
    for span in others.chunks_exact(sums.len()) {
        for (sum, part) in sums.chunks_exact_mut(width).zip(span.chunks_exact(width)) {
            merge(sum, part);
        }
    }
    for (sum, out) in sums.chunks_exact(width).zip(attn.chunks_exact_mut(c.head_dim)) {
        finish(sum, out);
    }
}

/// The query heads `queries` of one KV head over the positions `0..positions`, into `out`.
fn attend(queries: &[f32], head_dim: usize, cache: Cache<'_>, positions: usize, out: &mut [f32]) {
    let width = part_width(head_dim);
    let mut sums = vec![0.0; queries.len() / head_dim * width];
    let mut parts = sums.clone();
    span_parts(queries, head_dim, cache, 0..positions, &mut sums);
    for first in (SPAN..positions).step_by(SPAN) {
        span_parts(queries, head_dim, cache, first..positions, &mut parts);
        for (sum, part) in sums.chunks_exact_mut(width).zip(parts.chunks_exact(width)) {
            merge(sum, part);
        }
    }
    for (sum, out) in sums.chunks_exact(width).zip(out.chunks_exact_mut(head_dim)) {
        finish(sum, out);
    }
}

/// The parts `[heads, part]` of the first [`SPAN`] of `positions`.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn span_parts(
    queries: &[f32],
    head_dim: usize,
    cache: Cache<'_>,
    positions: std::ops::Range<usize>,
    parts: &mut [f32],
) {
    let count = positions.len().min(SPAN);
    let rows = positions.start * cache.kv_dim..(positions.start + count) * cache.kv_dim;
    let (keys, values) = (&cache.keys[rows.clone()], &cache.values[rows]);
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (query, part) in queries.chunks_exact(head_dim).zip(parts.chunks_exact_mut(part_width(head_dim))) {
        let mut weights = [f32::NEG_INFINITY; SPAN];
        for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(cache.kv_dim)) {
            *weight = scale * dot_lanes(query, &key[cache.at..cache.at + head_dim]);
        }
        let max = weights.iter().fold(f32::NEG_INFINITY, |max, weight| max.max(*weight));
        for weight in &mut weights {
            *weight = exp(*weight - max);
        }
        let weights = &weights[..count];
        let (out, rest) = part.split_at_mut(head_dim);
        rest.copy_from_slice(&[max, weights.iter().sum()]);
        out.fill(0.0);
        // Four positions at a time, so that `out` is read and written a quarter as often.
        let (fours, others) = weights.as_chunks::<4>();
        let mut rows = values.chunks_exact(cache.kv_dim).map(|row| &row[cache.at..cache.at + head_dim]);
        for [a, b, c, d] in fours {
            let (Some(va), Some(vb), Some(vc), Some(vd)) =
                (rows.next(), rows.next(), rows.next(), rows.next())
            else {
                break;
            };
            for ((((o, va), vb), vc), vd) in out.iter_mut().zip(va).zip(vb).zip(vc).zip(vd) {
                *o = *o + a * va + b * vb + c * vc + d * vd;
            }
        }
        for (weight, row) in others.iter().zip(rows) {
            out.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v);
        }
    }
}

/// Adds a part to `sum`, another one.
fn merge(sum: &mut [f32], part: &[f32]) {
    let width = sum.len() - 2;
    let max = sum[width].max(part[width]);
    let (a, b) = (exp(sum[width] - max), exp(part[width] - max));
    for (sum, part) in sum.iter_mut().zip(part) {
        *sum = *sum * a + *part * b;
    }
    sum[width] = max;
}

/// The softmax's sum from a part of all positions.
fn finish(part: &[f32], out: &mut [f32]) {
    let total = part[out.len() + 1];
    for (out, sum) in out.iter_mut().zip(part) {
        *out = sum / total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::random;

    #[test]
    fn attention_weighs_by_softmax() {
        // Two positions, kv_dim 4, the head reads columns 2 and 3.
        let keys = [9.0, 9.0, 1.0, 0.0, 9.0, 9.0, 0.0, 1.0];
        let values = [9.0, 9.0, 1.0, 2.0, 9.0, 9.0, 3.0, 4.0];
        let mut out = [0.0; 2];
        attention(&[2f32.sqrt(), 0.0], &keys, &values, 4, 2, 2, &mut out);
        let p = 1f32.exp() / (1f32.exp() + 1.0);
        assert!((out[0] - (p + 3.0 * (1.0 - p))).abs() < 1e-6);
        assert!((out[1] - (2.0 * p + 4.0 * (1.0 - p))).abs() < 1e-6);
    }

    #[test]
    fn spans_make_one_softmax() {
        let (head_dim, kv_dim, at) = (20, 45, 7);
        for positions in [1, 63, 64, 65, 131, 300] {
            let [keys, values] =
                ["keys", "values"].map(|name| random::weights(name, &[positions, kv_dim], 1));
            let query: Vec<f32> =
                random::weights("query", &[1, head_dim], 1).iter().map(|q| 400.0 * q).collect();
            let mut out = vec![0.0; head_dim];
            attention(&query, &keys, &values, kv_dim, at, positions, &mut out);
            let score = |t: usize| {
                let key = &keys[t * kv_dim + at..][..head_dim];
                let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                dot / (head_dim as f64).sqrt()
            };
            let max = (0..positions).map(score).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = (0..positions).map(|t| (score(t) - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (i, out) in out.iter().enumerate() {
                let sum: f64 =
                    weights.iter().enumerate().map(|(t, w)| w * f64::from(values[t * kv_dim + at + i])).sum();
                assert!((f64::from(*out) - sum / total).abs() < 1e-5, "{positions} positions: {out}");
            }
        }
    }

    #[test]
    fn one_token_equals_the_last_of_several() {
        let c = crate::config::tests::tiny();
        let (position, n) = (130, 3);
        let keys = random::weights("keys", &[position + n, c.kv_dim()], 1);
        let values = random::weights("values", &[position + n, c.kv_dim()], 1);
        let qkv = random::weights("qkv", &[n, c.qkv_dim()], 1);
        let (mut all, mut one) = (vec![0.0; n * c.q_dim()], vec![0.0; c.q_dim()]);
        all_heads(&c, position, &qkv, [&keys, &values], &mut all, &mut Vec::new());
        let last = &qkv[(n - 1) * c.qkv_dim()..];
        all_heads(&c, position + n - 1, last, [&keys, &values], &mut one, &mut Vec::new());
        assert_eq!(one, all[(n - 1) * c.q_dim()..]);
    }
}
