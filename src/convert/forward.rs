//! One layer at a time over all calibration tokens: the plan's operations on whole sequences, so that a layer can
//! be refitted before the next one runs.
//!
//! The operations and their order are those of [`Plan`](crate::plan::Plan); a test compares with the CPU backend.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use multiversion::multiversion;
use rayon::prelude::*;

use super::regression::project;
use crate::config::Config;
use crate::cpu::kernels;
use crate::error::Result;

/// Work is cut into pieces of about so many tokens, one thread each.
const PIECE: usize = 384;
/// Queries whose scores are held at once.
const QUERIES: usize = 128;

/// The weights of one dense layer, `[out, in]`.
#[derive(Debug)]
pub struct Layer {
    /// `[hidden]`
    pub attn_norm: Vec<f32>,
    /// `[q + k + v, hidden]`
    pub attn_qkv: Vec<f32>,
    /// `[hidden, q]`
    pub attn_output: Vec<f32>,
    /// `[hidden]`
    pub ffn_norm: Vec<f32>,
    /// `[ffn, hidden]`
    pub ffn_gate: Vec<f32>,
    /// `[ffn, hidden]`
    pub ffn_up: Vec<f32>,
    /// `[hidden, ffn]`
    pub ffn_down: Vec<f32>,
}

impl Layer {
    /// Reads layer `layer`; `tensor` gives the values of a bundle's tensor by its name.
    ///
    /// # Errors
    /// What `tensor` gives.
    pub fn read(tensor: &dyn Fn(&str) -> Result<Vec<f32>>, layer: usize) -> Result<Self> {
        let read = |name: &str| tensor(&format!("blk.{layer}.{name}"));
        Ok(Self {
            attn_norm: read("attn_norm")?,
            attn_qkv: read("attn_qkv")?,
            attn_output: read("attn_output")?,
            ffn_norm: read("ffn_norm")?,
            ffn_gate: read("ffn_gate")?,
            ffn_up: read("ffn_up")?,
            ffn_down: read("ffn_down")?,
        })
    }
}

/// Sequences end to end, all of which continue the same prefix.
#[derive(Debug)]
pub struct Batch {
    /// The prefix, then the sequences.
    pub tokens: Vec<u32>,
    prefix: usize,
    // Pieces of whole sequences: the lengths of each one's.
    pieces: Vec<Vec<usize>>,
}

impl Batch {
    /// A batch of `sequences`, each of which continues `prefix`.
    pub fn new<'a>(prefix: &[u32], sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut tokens = prefix.to_vec();
        let mut pieces: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for sequence in sequences {
            tokens.extend_from_slice(sequence);
            match pieces.last_mut() {
                Some(piece) if room >= sequence.len() => {
                    piece.push(sequence.len());
                    room -= sequence.len();
                }
                _ => {
                    pieces.push(vec![sequence.len()]);
                    room = PIECE.saturating_sub(sequence.len());
                }
            }
        }
        Self { tokens, prefix: prefix.len(), pieces }
    }

    /// `x = E[token]` for `embedding` `[vocab, hidden]`: the residual stream `[n, hidden]`.
    pub fn embed(&self, embedding: &[f32], hidden: usize) -> Vec<f32> {
        self.tokens.iter().flat_map(|t| &embedding[*t as usize * hidden..][..hidden]).copied().collect()
    }

    /// The attention block: `x += W_o · attention(W_qkv · RMSNorm(x))`, `x` `[n, hidden]`.
    pub fn attend(&self, c: &Config, layer: &Layer, x: &mut [f32]) {
        let (prefix, mut rest) = x.split_at_mut(self.prefix * c.hidden_size);
        let past = match self.prefix {
            0 => Past::default(),
            length => attend(c, layer, &[length], &Past::default(), prefix),
        };
        let mut work = Vec::new();
        for piece in &self.pieces {
            let (x, after) = rest.split_at_mut(piece.iter().sum::<usize>() * c.hidden_size);
            rest = after;
            work.push((piece, x));
        }
        work.into_par_iter().for_each(|(piece, x)| {
            attend(c, layer, piece, &past, x);
        });
    }
}

/// Keys and values of some positions, `[n, kv]`.
#[derive(Debug, Default, Clone)]
struct Past {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// The attention block on a few sequences of these `lengths` after a common past. Returns the past with the last
/// of them.
fn attend(c: &Config, layer: &Layer, lengths: &[usize], past: &Past, x: &mut [f32]) -> Past {
    let before = past.keys.len() / c.kv_dim();
    let mut norm = vec![0.0; x.len()];
    kernels::rms_norm(x, &layer.attn_norm, c.rms_norm_eps, &mut norm);
    let mut qkv = vec![0.0; x.len() / c.hidden_size * c.qkv_dim()];
    project(&norm, &layer.attn_qkv, c.hidden_size, &mut qkv);
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let turn = |i: usize| kernels::rope_turn(before + i, c.rope_theta, c.head_dim);
    let turns: Vec<_> = (0..longest).map(turn).collect();
    let mut attn = vec![0.0; x.len() / c.hidden_size * c.q_dim()];
    let mut all = Past::default();
    let mut at = 0;
    for length in lengths {
        let qkv = &mut qkv[at * c.qkv_dim()..(at + length) * c.qkv_dim()];
        all.clone_from(past);
        for (qkv, turn) in qkv.chunks_exact_mut(c.qkv_dim()).zip(&turns) {
            let (qk, v) = qkv.split_at_mut(c.q_dim() + c.kv_dim());
            kernels::rope(qk, turn);
            all.keys.extend_from_slice(&qk[c.q_dim()..]);
            all.values.extend_from_slice(v);
        }
        attention(c, qkv, &all, &mut attn[at * c.q_dim()..(at + length) * c.q_dim()]);
        at += length;
    }
    project(&attn, &layer.attn_output, c.q_dim(), &mut norm);
    add(x, &norm);
    all
}

/// Causal attention of one sequence: `qkv` `[n, q + k + v]` (rotated) are the last `n` positions of `all`; `attn`
/// `[n, q]`. The CPU backend's kernel as matrix products.
fn attention(c: &Config, qkv: &[f32], all: &Past, attn: &mut [f32]) {
    let (n, positions) = (attn.len() / c.q_dim(), all.keys.len() / c.kv_dim());
    let before = positions - n;
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    let queries = MatRef::from_row_major_slice(qkv, n, c.qkv_dim());
    let keys = MatRef::from_row_major_slice(&all.keys, positions, c.kv_dim());
    let values = MatRef::from_row_major_slice(&all.values, positions, c.kv_dim());
    let mut attn = MatMut::from_row_major_slice_mut(attn, n, c.q_dim());
    let mut scores = vec![0f32; n.min(QUERIES) * positions];
    for first in (0..n).step_by(QUERIES) {
        let count = QUERIES.min(n - first);
        let seen = before + first + count;
        let scores = &mut scores[..count * seen]; // [count, seen]
        for head in 0..c.n_heads {
            let (own, shared) = (head * c.head_dim, head / (c.n_heads / c.n_kv_heads) * c.head_dim);
            matmul(
                MatMut::from_row_major_slice_mut(scores, count, seen),
                Accum::Replace,
                queries.submatrix(first, own, count, c.head_dim),
                keys.submatrix(0, shared, seen, c.head_dim).transpose(),
                scale,
                Par::Seq,
            );
            for (i, scores) in scores.chunks_exact_mut(seen).enumerate() {
                let (past, future) = scores.split_at_mut(before + first + i + 1);
                softmax(past);
                future.fill(0.0);
            }
            matmul(
                attn.rb_mut().submatrix_mut(first, own, count, c.head_dim),
                Accum::Replace,
                MatRef::from_row_major_slice(scores, count, seen),
                values.submatrix(0, shared, seen, c.head_dim),
                1.0,
                Par::Seq,
            );
        }
    }
}

/// `gate = SiLU(W_g · RMSNorm(x))`, `[n, ffn]`, for `x` `[n, hidden]`.
pub fn gates(c: &Config, layer: &Layer, x: &[f32], gate: &mut [f32]) {
    let pieces = x.par_chunks(PIECE * c.hidden_size).zip(gate.par_chunks_mut(PIECE * c.intermediate_size));
    pieces.for_each(|(x, gate)| {
        let mut norm = vec![0.0; x.len()];
        kernels::rms_norm(x, &layer.ffn_norm, c.rms_norm_eps, &mut norm);
        project(&norm, &layer.ffn_gate, c.hidden_size, gate);
        silu(gate);
    });
}

/// The dense FFN: `h = SiLU(W_g · RMSNorm(x)) ⊙ (W_u · RMSNorm(x))`, then `x += W_d · h`, for `x` `[n, hidden]`.
pub fn dense_ffn(c: &Config, layer: &Layer, x: &mut [f32]) {
    x.par_chunks_mut(PIECE * c.hidden_size).for_each(|x| {
        dense_piece(c, layer, x, &mut vec![0.0; x.len() / c.hidden_size * c.intermediate_size]);
    });
}

/// [`dense_ffn`] that leaves h in `h` `[n, ffn]`.
pub fn dense_ffn_seen(c: &Config, layer: &Layer, x: &mut [f32], h: &mut [f32]) {
    let pieces = x.par_chunks_mut(PIECE * c.hidden_size).zip(h.par_chunks_mut(PIECE * c.intermediate_size));
    pieces.for_each(|(x, h)| dense_piece(c, layer, x, h));
}

fn dense_piece(c: &Config, layer: &Layer, x: &mut [f32], h: &mut [f32]) {
    let mut norm = vec![0.0; x.len()];
    kernels::rms_norm(x, &layer.ffn_norm, c.rms_norm_eps, &mut norm);
    let mut gate = vec![0.0; h.len()];
    project(&norm, &layer.ffn_gate, c.hidden_size, &mut gate);
    project(&norm, &layer.ffn_up, c.hidden_size, h);
    silu(&mut gate);
    multiply(h, &gate);
    project(h, &layer.ffn_down, c.intermediate_size, &mut norm);
    add(x, &norm);
}

/// `x += W · h` for `h` `[n, inputs]`, `w` `[outputs, inputs]` and `x` `[n, outputs]`.
pub fn add_projection(h: &[f32], w: &[f32], inputs: usize, x: &mut [f32]) {
    let outputs = w.len() / inputs;
    x.par_chunks_mut(PIECE * outputs).zip(h.par_chunks(PIECE * inputs)).for_each(|(x, h)| {
        let mut product = vec![0.0; x.len()];
        project(h, w, inputs, &mut product);
        add(x, &product);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn multiply(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x *= y;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn silu(x: &mut [f32]) {
    for x in x {
        *x = kernels::silu(*x);
    }
}

/// `scores = exp(scores) / Σ exp(scores)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = kernels::exp(*score - max);
    }
    let scale = 1.0 / scores.iter().sum::<f32>();
    for score in scores {
        *score *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Output, Step, Want};
    use crate::bundle::quant::{Dtype, quantize};
    use crate::bundle::random;
    use crate::config::tests::tiny;
    use crate::cpu::{CpuBackend, Probe, View};
    use crate::plan::Op;

    #[test]
    fn layers_equal_those_of_the_cpu_backend() {
        struct LastStream(Vec<f32>);
        impl Probe for LastStream {
            fn after(&mut self, _: usize, op: &Op, view: View<'_>) {
                if matches!(op, Op::Down { .. }) {
                    self.0 = view.x.to_vec();
                }
            }
        }
        let config = Config { stem_layers: vec![], ..tiny() };
        let core = random::core(&config, 5, |_| Dtype::F32);
        let values = |name: &str| {
            let (tensor, _) = core.iter().find(|(t, _)| t.name == name).unwrap();
            Ok(random::weights(name, &tensor.shape, 5))
        };
        let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
        let mut backend = CpuBackend::new(&tensors, &config, 200);
        for (id, (tensor, _)) in core.iter().enumerate() {
            let planes = quantize(Dtype::F32, &random::weights(&tensor.name, &tensor.shape, 5));
            backend.write(id, 0, &planes).unwrap();
        }
        // Sequences longer than the queries held at once, shorter ones, and a prefix.
        let tokens: Vec<u32> = (0..180).map(|i| (i * i * 31 + 7) % 300).collect();
        let (prefix, rest) = tokens.split_at(3);
        let sequences = [&rest[..140], &rest[140..141], &rest[141..]];
        let batch = Batch::new(prefix, sequences);
        let mut x = batch.embed(&values("token_embd").unwrap(), config.hidden_size);
        for index in 0..config.n_layers {
            let layer = Layer::read(&values, index).unwrap();
            batch.attend(&config, &layer, &mut x);
            dense_ffn(&config, &layer, &mut x);
        }
        let mut at = prefix.len() * config.hidden_size;
        for sequence in sequences {
            for (i, piece) in [prefix, sequence].concat().chunks(100).enumerate() {
                let mut probe = LastStream(Vec::new());
                let step = Step { tokens: piece, position: i * 100, rows: &[], want: Want::Nothing };
                assert_eq!(backend.forward_probed(step, &mut probe).unwrap(), Output::Nothing);
                let skip = if i == 0 { prefix.len() * config.hidden_size } else { 0 };
                for (expected, found) in probe.0[skip..].iter().zip(&x[at..]) {
                    assert!((expected - found).abs() < 1e-3, "{found} for {expected}");
                }
                at += probe.0.len() - skip;
            }
        }
        assert_eq!(at, x.len());
    }
}
