//! What layers compute, on tensors of the training library: the teacher's and the student's forward pass, tracked for
//! gradients or not. Equal to the CPU backend's kernels, which a test checks.
//!
//! Streams are `[texts * length, width]`.

use burn_tensor::{Device, Tensor, TensorData, activation};

use crate::config::Config;

/// RMSNorm (source: arXiv 1910.07467): `x / √(mean(x²) + eps) · gain`, with `gain` `[1, width]`.
pub fn rms_norm(x: Tensor<2>, gain: Tensor<2>, eps: f32) -> Tensor<2> {
    let root = x.clone().square().mean_dim(1).add_scalar(eps).sqrt();
    x / root * gain
}

/// `x Wᵀ`, with `w` `[out, in]`.
pub fn linear(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    x.matmul(w.transpose())
}

/// `x (W + B A)ᵀ` (source: LoRA, arXiv 2106.09685); `change` is A `[rank, in]` and B `[out, rank]`.
pub fn changed(x: Tensor<2>, w: Tensor<2>, change: Option<(Tensor<2>, Tensor<2>)>) -> Tensor<2> {
    match change {
        None => linear(x, w),
        Some((a, b)) => linear(linear(x.clone(), a), b) + linear(x, w),
    }
}

/// `SiLU(gate) ⊙ up`: of a dense FFN, and of a STEM layer with rows for `up`.
pub fn gated(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    activation::silu(gate) * up
}

/// What attention needs to know of `texts` texts of `length` tokens each.
#[derive(Debug, Clone)]
pub struct Positions {
    /// Texts side by side.
    pub texts: usize,
    /// Tokens of each.
    pub length: usize,
    // Cosines and sines [1, length, 1, head_dim / 2, 1].
    cos: Tensor<5>,
    sin: Tensor<5>,
    // [1, 1, length, length]: 0 where a query (row) may look, else far below.
    mask: Tensor<4>,
}

/// Added to the score of a position that a query may not see: nothing is left of it after the exponential.
const UNSEEN: f32 = -1e30;

impl Positions {
    /// The rotations (source: RoPE, arXiv 2104.09864) and the causal mask, on `device`.
    pub fn new(config: &Config, texts: usize, length: usize, device: &Device) -> Self {
        let half = config.head_dim / 2;
        let angles: Vec<f64> = (0..length)
            .flat_map(|position| {
                (0..half).map(move |i| {
                    let exponent = -2.0 * i as f64 / config.head_dim as f64;
                    position as f64 * f64::from(config.rope_theta).powf(exponent)
                })
            })
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|a| f(*a) as f32).collect();
            Tensor::<5>::from_data(TensorData::new(values, [1, length, 1, half, 1]), device)
        };
        let mask: Vec<f32> =
            (0..length * length).map(|i| if i % length > i / length { UNSEEN } else { 0.0 }).collect();
        Self {
            texts,
            length,
            cos: table(f64::cos),
            sin: table(f64::sin),
            mask: Tensor::from_data(TensorData::new(mask, [1, 1, length, length]), device),
        }
    }

    /// Rotates the pairs (2i, 2i + 1) of `x` `[texts, length, heads, head_dim]`.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [texts, length, heads, width] = x.dims();
        let pairs = x.reshape([texts, length, heads, width / 2, 2]);
        let (a, b) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let first = a.clone() * cos.clone() - b.clone() * sin.clone();
        Tensor::cat(vec![first, a * sin + b * cos], 4).reshape([texts, length, heads, width])
    }
}

/// Causal grouped-query attention: `qkv` `[texts * length, q + k + v]` to `[texts * length, q]`.
pub fn attention(c: &Config, qkv: Tensor<2>, at: &Positions) -> Tensor<2> {
    let (texts, length, width) = (at.texts, at.length, c.head_dim);
    let (heads, kv) = (c.n_heads, c.n_kv_heads);
    let group = heads / kv;
    let qkv = qkv.reshape([texts, length, heads + 2 * kv, width]);
    let qk = at.rotate(qkv.clone().narrow(2, 0, heads + kv));
    // The queries that share a key and value head lie one below the other.
    let q = qk.clone().narrow(2, 0, heads).swap_dims(1, 2).reshape([texts * kv, group * length, width]);
    let k = qk.narrow(2, heads, kv).swap_dims(1, 2).reshape([texts * kv, length, width]);
    let v = qkv.narrow(2, heads + kv, kv).swap_dims(1, 2).reshape([texts * kv, length, width]);
    let scores = q.matmul(k.transpose()).mul_scalar((width as f32).powf(-0.5));
    let scores = scores.reshape([texts * kv, group, length, length]) + at.mask.clone();
    let shares = activation::softmax(scores, 3).reshape([texts * kv, group * length, length]);
    let mixed = shares.matmul(v).reshape([texts, heads, length, width]);
    mixed.swap_dims(1, 2).reshape([texts * length, heads * width])
}

/// The tensors of an Engram layer.
pub struct EngramLayer {
    /// `W_K` `[hidden, width]`.
    pub key: Tensor<2>,
    /// `W_V` `[hidden, width]`.
    pub value: Tensor<2>,
    /// Gain of the stream's norm `[1, hidden]`.
    pub query_norm: Tensor<2>,
    /// Gain of the key's norm `[1, hidden]`.
    pub key_norm: Tensor<2>,
    /// Gain of the norm before the convolution `[1, hidden]`.
    pub conv_norm: Tensor<2>,
    /// Taps `[taps, hidden]`, of which the last belongs to the position itself.
    pub conv: Tensor<2>,
}

/// What an Engram layer adds to the stream `x`, given the head rows `e` `[texts * length, width]` (source: arXiv
/// 2601.07372, section 2.3; [`crate::cpu::engram`] has the operations one by one). Taps lie `dilation` positions apart.
pub fn engram(
    x: &Tensor<2>,
    e: Tensor<2>,
    layer: &EngramLayer,
    dilation: usize,
    eps: f32,
    at: &Positions,
) -> Tensor<2> {
    let [_, hidden] = x.dims();
    let key = linear(e.clone(), layer.key.clone());
    let query = rms_norm(x.clone(), layer.query_norm.clone(), eps);
    let score = (query * rms_norm(key, layer.key_norm.clone(), eps)).sum_dim(1);
    let score = score.mul_scalar((hidden as f32).powf(-0.5));
    let root = score.clone().abs().clamp_min(1e-6).sqrt();
    let value = linear(e, layer.value.clone()) * activation::sigmoid(score.sign() * root);
    let normed = rms_norm(value.clone(), layer.conv_norm.clone(), eps);
    let [taps, _] = layer.conv.dims();
    let reach = (taps - 1) * dilation;
    let normed = normed.reshape([at.texts, at.length, hidden]);
    let before = Tensor::zeros([at.texts, reach, hidden], &normed.device());
    let padded = Tensor::cat(vec![before, normed], 1);
    let mut sum: Option<Tensor<3>> = None;
    for tap in 0..taps {
        let weights = layer.conv.clone().narrow(0, tap, 1).reshape([1, 1, hidden]);
        let part = padded.clone().narrow(1, tap * dilation, at.length) * weights;
        sum = Some(match sum {
            None => part,
            Some(sum) => sum + part,
        });
    }
    match sum {
        None => value,
        Some(sum) => value + activation::silu(sum).reshape([at.texts * at.length, hidden]),
    }
}
