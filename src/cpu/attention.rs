//! Attention, in spans of positions: so that a span's keys and values stay in the nearest cache while all the query heads
//! that share them look at them, and threads share the positions of one token.
//!
//! Each span has a softmax of its own, of which [`merge`] makes one (source: FlashAttention, arXiv 2205.14135, and
//! Flash-Decoding). Spans are merged in order, and what a span gives for a query head is computed in one way, whichever heads
//! and tokens are at work beside: so the bits depend neither on the number of threads nor on how many tokens a step has.

use std::ops::Range;

use multiversion::multiversion;

use super::kernels::exp;
use super::kv::{KvCache, LANES, SPAN, Spans, Stored, Tile, of_any, value_width};
use super::team::{self, Shared};
use crate::config::Config;

/// Tokens that look at a span's keys and values together, once these have been made floats.
const TOKENS: usize = 8;

/// What a span gives for a query head: a weighted sum of values `[head_dim]`, the largest score, and the sum of the weights.
const fn part_width(head_dim: usize) -> usize {
    head_dim + 2
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
    let head_dim = query.len();
    let mut spans = Spans::<f32>::of_head(head_dim);
    spans.grow(positions);
    for (i, (key, value)) in
        keys.chunks_exact(kv_dim).zip(values.chunks_exact(kv_dim)).take(positions).enumerate()
    {
        spans.store(0, i, &key[at..at + head_dim], &value[at..at + head_dim]);
    }
    let head = Head { layer: 0, head: 0, head_dim, heads: 1 };
    let out = Shared::new(out);
    attend(&spans, head, positions - 1, 0..1, &|_| query, &|_| {
        // SAFETY: there is one token.
        unsafe { out.slice(0, head_dim) }
    });
}

/// A KV head and its query heads.
#[derive(Debug, Clone, Copy)]
struct Head {
    layer: usize,
    head: usize,
    head_dim: usize,
    /// Query heads.
    heads: usize,
}

/// The heads of all of a step's tokens, of which the first stands at `position`: `qkv` `[n, q + k + v]` (rotated), `attn`
/// `[n, q]`. `parts` is scratch.
pub fn all_heads(
    c: &Config,
    layer: usize,
    position: usize,
    qkv: &[f32],
    cache: &KvCache,
    attn: &mut [f32],
    parts: &mut Vec<f32>,
) {
    of_any!(cache, spans => all_heads_in(c, layer, position, qkv, spans, attn, parts));
}

fn all_heads_in<T: Stored>(
    c: &Config,
    layer: usize,
    position: usize,
    qkv: &[f32],
    spans: &Spans<T>,
    attn: &mut [f32],
    parts: &mut Vec<f32>,
) {
    let heads = c.n_heads / c.n_kv_heads;
    let group = heads * c.head_dim;
    let queries = |token: usize, head: usize| &qkv[token * c.qkv_dim() + head * group..][..group];
    let head = |head: usize| Head { layer, head, head_dim: c.head_dim, heads };
    let n = attn.len() / c.q_dim();
    if n > 1 {
        let attn = Shared::new(attn);
        return team::run(n.div_ceil(TOKENS) * c.n_kv_heads, &|i| {
            let (first, h) = (i / c.n_kv_heads * TOKENS, i % c.n_kv_heads);
            let tokens = first..(first + TOKENS).min(n);
            attend(spans, head(h), position, tokens, &|token| queries(token, h), &|token| {
                // SAFETY: each piece has tokens or a head of its own, and asks once for each token.
                unsafe { attn.slice(token * c.q_dim() + h * group, group) }
            });
        });
    }
    // [spans, heads, part]
    let width = part_width(c.head_dim);
    parts.resize((position + 1).div_ceil(SPAN) * c.n_heads * width, 0.0);
    team::chunks(parts, heads * width, &|i, part| {
        let (span, h) = (i / c.n_kv_heads, i % c.n_kv_heads);
        let tile = spans.tile(layer, h, span);
        span_parts(queries(0, h), c.head_dim, tile, position + 1 - span * SPAN, part);
    });
    let (sums, others) = parts.split_at_mut(c.n_heads * width);
    for span in others.chunks_exact(sums.len()) {
        merge_all(sums, span, width);
    }
    for (sum, out) in sums.chunks_exact(width).zip(attn.chunks_exact_mut(c.head_dim)) {
        finish(sum, out);
    }
}

/// The query heads of one KV head, at `tokens` of a step whose first stands at `position`. `queries` and `out` give those of
/// a token, `[heads, head_dim]`.
fn attend<'a, T: Stored>(
    spans: &Spans<T>,
    head: Head,
    position: usize,
    tokens: Range<usize>,
    queries: &dyn Fn(usize) -> &'a [f32],
    out: &dyn Fn(usize) -> &'a mut [f32],
) {
    let d = head.head_dim;
    let width = part_width(d);
    // [tokens, heads, part]
    let mut sums = vec![0.0; tokens.len() * head.heads * width];
    let mut parts = vec![0.0; head.heads * width];
    let mut floats = vec![0.0; SPAN * (d + value_width(d))];
    for span in 0..(position + tokens.end).div_ceil(SPAN) {
        let tile = spans.tile(head.layer, head.head, span);
        let (keys, values) = floats.split_at_mut(SPAN * d);
        widen_all(tile.keys, keys);
        widen_all(tile.values, values);
        let tile = Tile { keys: &*keys, values: &*values, scales: tile.scales };
        for (token, sums) in tokens.clone().zip(sums.chunks_exact_mut(parts.len())) {
            let positions = position + token + 1;
            if positions <= span * SPAN {
                continue;
            }
            let count = positions - span * SPAN;
            if span == 0 {
                span_parts(queries(token), d, tile, count, sums);
            } else {
                span_parts(queries(token), d, tile, count, &mut parts);
                merge_all(sums, &parts, width);
            }
        }
    }
    for (token, sums) in tokens.zip(sums.chunks_exact(parts.len())) {
        for (sum, out) in sums.chunks_exact(width).zip(out(token).chunks_exact_mut(d)) {
            finish(sum, out);
        }
    }
}

/// A tile's values as floats.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn widen_all<T: Stored>(stored: &[T], out: &mut [f32]) {
    for (stored, out) in stored.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        *out = T::widen(stored);
    }
}

/// The parts `[heads, part]` of `queries` `[heads, head_dim]` for the first `count` positions of a tile.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn span_parts<T: Stored>(
    queries: &[f32],
    head_dim: usize,
    tile: Tile<'_, T>,
    count: usize,
    parts: &mut [f32],
) {
    let count = count.min(SPAN);
    let mut rest = (queries, parts);
    while !rest.0.is_empty() {
        // So many heads share what is loaded.
        let heads = (rest.0.len() / head_dim).min(3);
        let (queries, more_queries) = rest.0.split_at(heads * head_dim);
        let (parts, more_parts) = rest.1.split_at_mut(heads * part_width(head_dim));
        match heads {
            1 => heads_parts::<T, 1>(queries, head_dim, tile, count, parts),
            2 => heads_parts::<T, 2>(queries, head_dim, tile, count, parts),
            _ => heads_parts::<T, 3>(queries, head_dim, tile, count, parts),
        }
        rest = (more_queries, more_parts);
    }
}

/// [`span_parts`] of `N` heads.
#[inline(always)]
fn heads_parts<T: Stored, const N: usize>(
    queries: &[f32],
    head_dim: usize,
    tile: Tile<'_, T>,
    count: usize,
    parts: &mut [f32],
) {
    let mut weights = [[0f32; SPAN]; N];
    let heads: [&[f32]; N] = std::array::from_fn(|i| &queries[i * head_dim..][..head_dim]);
    for first in (0..count).step_by(LANES) {
        let sums = weighted(tile.keys, SPAN, first, heads.map(|head| &head[..head_dim]));
        for (weights, sums) in weights.iter_mut().zip(sums) {
            weights[first..first + LANES].copy_from_slice(&sums);
        }
    }
    for (weights, part) in weights.iter_mut().zip(parts.chunks_exact_mut(part_width(head_dim))) {
        part[head_dim..].copy_from_slice(&soften(weights, tile.scales, head_dim, count));
    }
    for first in (0..head_dim).step_by(LANES) {
        let weights = weights.each_ref().map(|weights| &weights[..count]);
        let sums = weighted(tile.values, value_width(head_dim), first, weights);
        let last = head_dim.min(first + LANES);
        for (part, sums) in parts.chunks_exact_mut(part_width(head_dim)).zip(sums) {
            part[first..last].copy_from_slice(&sums[..last - first]);
        }
    }
}

/// Makes the products of a query and the keys of a tile, of which `count` count, the weights of its values; the largest score and
/// the sum of weights. A function of its own, so that it is there once and not for each type and number of heads.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn soften(weights: &mut [f32; SPAN], scales: &[f32], head_dim: usize, count: usize) -> [f32; 2] {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let scales = scales.split_at_checked(SPAN);
    match scales {
        Some((scales, _)) => weights.iter_mut().zip(scales).for_each(|(w, s)| *w *= scale * s),
        None => weights.iter_mut().for_each(|w| *w *= scale),
    }
    weights[count..].fill(f32::NEG_INFINITY);
    let max = in_lanes(weights, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    weights.iter_mut().for_each(|w| *w = exp(*w - max));
    weights[count..].fill(0.0);
    let sum = in_lanes(weights, 0.0, |a, b| a + b);
    if let Some((_, scales)) = scales {
        weights.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
    }
    [max, sum]
}

/// Columns `first..first + LANES` of the sum of `rows` `[_, width]`, each times its factor, for several sets of factors, which have
/// one length.
#[inline(always)]
fn weighted<T: Stored, const N: usize>(
    rows: &[T],
    width: usize,
    first: usize,
    factors: [&[f32]; N],
) -> [[f32; LANES]; N] {
    let mut sums = [[0f32; LANES]; N];
    for (i, row) in rows.chunks_exact(width).take(factors[0].len()).enumerate() {
        let row = T::widen(row[first..].first_chunk().expect("tiles are as wide as lanes"));
        for (sums, factors) in sums.iter_mut().zip(factors) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += factors[i] * x);
        }
    }
    sums
}

/// All of `values` by `op`, of which the order is free to choose; it is the same everywhere.
#[inline(always)]
fn in_lanes(values: &[f32; SPAN], start: f32, op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 8];
    for eight in values.as_chunks::<8>().0 {
        lanes.iter_mut().zip(eight).for_each(|(lane, x)| *lane = op(*lane, *x));
    }
    lanes.into_iter().fold(start, op)
}

/// [`merge`] for several heads.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn merge_all(sums: &mut [f32], parts: &[f32], width: usize) {
    for (sum, part) in sums.chunks_exact_mut(width).zip(parts.chunks_exact(width)) {
        merge(sum, part);
    }
}

/// Adds a part to `sum`, another one.
#[inline(always)]
pub(crate) fn merge(sum: &mut [f32], part: &[f32]) {
    let width = sum.len() - 2;
    let max = sum[width].max(part[width]);
    let (a, b) = (exp(sum[width] - max), exp(part[width] - max));
    for (sum, part) in sum.iter_mut().zip(part) {
        *sum = *sum * a + *part * b;
    }
    sum[width] = max;
}

/// The softmax's sum from a part of all positions.
pub(crate) fn finish(part: &[f32], out: &mut [f32]) {
    let total = part[out.len() + 1];
    for (out, sum) in out.iter_mut().zip(part) {
        *out = sum / total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::random;
    use crate::cpu::kv::KvType;

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
        for &kind in KvType::ALL {
            let mut cache = KvCache::new(kind, &c);
            cache.grow(position + n);
            let both = keys.chunks_exact(c.kv_dim()).zip(values.chunks_exact(c.kv_dim()));
            both.enumerate().for_each(|(i, (key, value))| cache.store(1, i, key, value));
            all_heads(&c, 1, position, &qkv, &cache, &mut all, &mut Vec::new());
            let last = &qkv[(n - 1) * c.qkv_dim()..];
            all_heads(&c, 1, position + n - 1, last, &cache, &mut one, &mut Vec::new());
            assert_eq!(one, all[(n - 1) * c.q_dim()..], "{kind}");
        }
    }
}
