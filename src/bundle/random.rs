//! Random models: for tests, and for timing shapes that no checkpoint at hand has.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
#[cfg(feature = "native")]
use rayon::prelude::*;

use super::manifest::{Tensor, expected_tensors};
use super::quant::{Dtype, quantize};
use crate::config::Config;
use crate::engram::Engram;

/// Weights of a random tensor, scaled so that activations keep their size. Norm gains are near 1.
pub fn weights(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let hash = blake3::hash(name.as_bytes());
    let salt = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes"));
    let mut rng = StdRng::seed_from_u64(seed ^ salt);
    let elements = shape.iter().product();
    if let [_, inputs] = shape {
        let scale = (3.0 / *inputs as f32).sqrt();
        (0..elements).map(|_| rng.random_range(-scale..scale)).collect()
    } else if name.ends_with("_conv") {
        (0..elements).map(|_| rng.random_range(-0.5..0.5)).collect()
    } else {
        (0..elements).map(|_| rng.random_range(0.5..1.5)).collect()
    }
}

/// All tensors of a random core with their planes, matrices stored as `dtype` says by name. Natively all cores work on it.
pub fn core(config: &Config, seed: u64, dtype: impl Fn(&str) -> Dtype) -> Vec<(Tensor, Vec<u8>)> {
    let mut offset = 0;
    let place = |(name, shape): (String, Vec<usize>)| {
        let dtype = if shape.len() == 1 { Dtype::F32 } else { dtype(&name) };
        let tensor = Tensor { name, dtype, shape, offset };
        offset += dtype.bytes(tensor.shape.iter().product()) as u64;
        tensor
    };
    let tensors: Vec<_> = expected_tensors(config).into_iter().map(place).collect();
    let fill = |tensor: Tensor| {
        let planes = quantize(tensor.dtype, &weights(&tensor.name, &tensor.shape, seed));
        (tensor, planes)
    };
    #[cfg(feature = "native")]
    let tensors = tensors.into_par_iter();
    #[cfg(not(feature = "native"))]
    let tensors = tensors.into_iter();
    tensors.map(fill).collect()
}

/// The random row of `record` of the Engram table, `[head_width]`.
pub fn engram_row(engram: &Engram, record: u32, seed: u64) -> Vec<f32> {
    weights(&format!("engram row {record}"), &[engram.head_width, 3], seed)
        .chunks_exact(3)
        .map(|c| c[0])
        .collect()
}

/// The random rows of `token`, `[n_stem, ffn]`, and as many values as the Engram layers take (which would in truth
/// depend on the tokens before it).
pub fn rows(config: &Config, token: u32, seed: u64) -> Vec<f32> {
    weights(&format!("stem row {token}"), &[config.row_width(), 3], seed)
        .chunks_exact(3)
        .map(|c| c[0])
        .collect()
}
