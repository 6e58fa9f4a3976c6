//! A small known model, run at start-up on the device and on the CPU: drivers that compute wrongly exist.

use super::backend::{GpuBackend, GpuOptions, KvType, Variant};
use super::device::Gpu;
use super::step::PART;
use crate::backend::{Backend, Candidates, Output, Penalty, Step, Want};
use crate::bundle::manifest::Tensor;
use crate::bundle::quant::Dtype;
use crate::bundle::random;
use crate::config::{BLOCK, Config};
use crate::cpu::CpuBackend;
use crate::engram::{Engram, EngramLayer};
use crate::error::{Error, Result};

/// Largest difference of two logits, relative to their spread; f32 sums in another order differ by far less.
const TOLERANCE: f32 = 1e-3;
/// The same where halves are computed with or cached.
const HALF_TOLERANCE: f32 = 1e-2;
const SEED: u64 = 7;

/// The best kernels that compute rightly what a model with these `tensors` needs.
///
/// # Errors
/// [`Error::Gpu`] if the device fails, or results of all of them differ from the CPU's.
pub async fn choose(gpu: &Gpu, tensors: &[Tensor], config: &Config, options: GpuOptions) -> Result<Variant> {
    first_right(&Variant::all(gpu, options), async |variant| run(gpu, tensors, config, variant).await).await
}

/// The first of `variants` that passes `test`; if none does, what the last one failed with.
async fn first_right(variants: &[Variant], test: impl AsyncFn(Variant) -> Result<()>) -> Result<Variant> {
    let mut last = Error::Gpu("there are no kernels".into());
    for variant in variants {
        match test(*variant).await {
            Ok(()) => return Ok(*variant),
            Err(error) => {
                log::warn!("{variant:?}: {error}");
                last = error;
            }
        }
    }
    Err(last)
}

/// Runs the kernels of `variant`.
async fn run(gpu: &Gpu, tensors: &[Tensor], config: &Config, variant: Variant) -> Result<()> {
    let small = small(config);
    // Each matrix as the model's first of that kind.
    let dtype = |name: &str| {
        let kind = name.rsplit('.').next().unwrap_or(name);
        let alike = tensors.iter().find(|t| t.name.rsplit('.').next() == Some(kind));
        alike.map_or(Dtype::F32, |t| t.dtype)
    };
    let core = random::core(&small, SEED, dtype);
    let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
    let capacity = small.context_length;
    let options = GpuOptions::new(capacity);
    let mut tested = GpuBackend::on(gpu.clone(), &tensors, &small, options, variant).await?;
    let mut trusted = CpuBackend::new(&tensors, &small, capacity);
    for (id, (_, planes)) in core.iter().enumerate() {
        tested.write(id, 0, planes)?;
        trusted.write(id, 0, planes)?;
    }
    let mut position = 0;
    // The last token's attention has four parts, in kernels that know any.
    for (tokens, part) in [(&[5, 250, 17, 3, 99][..], PART), (&[41], PART), (&[8], 2)] {
        tested.part = part;
        let rows: Vec<f32> = tokens.iter().flat_map(|t| random::rows(&small, *t, SEED)).collect();
        let want = Want::Candidates(Penalty { tokens: &[7, 30], factor: 1.3 });
        let step = Step { tokens, position, rows: &rows, want };
        let (found, expected) = (tested.forward(step).await?, trusted.forward(step).await?);
        let (Output::Candidates(found), Output::Candidates(expected)) = (found, expected) else {
            unreachable!("candidates were asked for");
        };
        let halves = variant.f16 || variant.kv == KvType::F16;
        let tolerance = if halves { HALF_TOLERANCE } else { TOLERANCE };
        compare(&found, &expected, tolerance).map_err(|difference| {
            Error::Gpu(format!("the adapter {} computes a small model wrongly: {difference}", gpu.name))
        })?;
        position += tokens.len();
    }
    Ok(())
}

/// A small model with the traits of `config` that kernels depend on; all its tokens are candidates.
fn small(config: &Config) -> Config {
    let dense_and_stem = !config.stem_layers.is_empty();
    Config {
        vocab_size: 256,
        hidden_size: 64,
        intermediate_size: 96,
        n_layers: 2,
        n_heads: 8,
        n_kv_heads: if config.n_kv_heads < config.n_heads { 4 } else { 8 },
        // Whatever its width, the heads together are whole blocks.
        head_dim: config.head_dim,
        context_length: 8,
        stem_layers: if dense_and_stem { vec![1] } else { Vec::new() },
        engram: config.engram.as_ref().map(small_engram),
        bos_token: None,
        eos_tokens: Vec::new(),
        ..config.clone()
    }
}

/// One layer with one head of each order.
fn small_engram(engram: &Engram) -> Engram {
    let order = engram.order();
    let layer = EngramLayer { layer: 0, multipliers: vec![1; order], primes: vec![vec![2]; order - 1] };
    Engram { layers: vec![layer], head_width: BLOCK, compressed_vocab: 1, pad: 0, ..engram.clone() }
}

/// Says what differs, if anything.
fn compare(found: &Candidates, expected: &Candidates, tolerance: f32) -> Result<(), String> {
    let by_id = |c: &Candidates| {
        let mut top = c.top.clone();
        top.sort_unstable_by_key(|(id, _)| *id);
        top
    };
    if found.top.len() != expected.top.len() {
        return Err(format!("{} candidates, not {}", found.top.len(), expected.top.len()));
    }
    let (found_logits, expected_logits) = (by_id(found), by_id(expected));
    let spread = match &expected.top[..] {
        [(_, best), .., (_, worst)] => best - worst,
        _ => 1.0,
    };
    // Written so that NaN is a difference.
    let close = |a: f32, b: f32| (a - b).abs() <= tolerance * spread;
    for ((id, found), (wanted_id, expected)) in found_logits.iter().zip(&expected_logits) {
        if id != wanted_id || !close(*found, *expected) {
            return Err(format!("token {id} has logit {found}; {expected} of {wanted_id} was expected"));
        }
    }
    if found.top.windows(2).any(|w| w[0].1 < w[1].1) {
        return Err("the candidates are out of order".into());
    }
    if !close(found.log_sum_exp, expected.log_sum_exp) {
        return Err(format!("ln Σ exp is {}, not {}", found.log_sum_exp, expected.log_sum_exp));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Kernels;

    #[test]
    fn kernels_that_fail_give_way_to_the_next() {
        let best = Variant { serial: false, f16: true, kv: KvType::F16 };
        let all = [best, Variant { f16: false, ..best }, Variant { f16: false, kv: KvType::F32, ..best }];
        let choose = |right: fn(Variant) -> bool| {
            pollster::block_on(first_right(&all, async |variant| match right(variant) {
                true => Ok(()),
                false => Err(Error::Gpu(format!("{variant:?} is wrong"))),
            }))
        };
        assert_eq!(choose(|_| true).unwrap(), all[0]);
        assert_eq!(choose(|variant| !variant.f16).unwrap(), all[1]);
        assert_eq!(choose(|variant| variant.kv == KvType::F32).unwrap(), all[2]);
        let error = choose(|_| false).unwrap_err().to_string();
        assert!(error.contains("F32"), "{error}");
    }

    #[test]
    fn what_is_tried_depends_on_the_adapter_and_the_options() {
        let mut gpu = pollster::block_on(Gpu::open(0)).unwrap();
        let options = GpuOptions { kernels: Kernels::Parallel, ..GpuOptions::new(10) };
        let mut kinds = |f16, options| {
            gpu.f16 = f16;
            let all = Variant::all(&gpu, options);
            all.iter().map(|variant| (variant.f16, variant.kv)).collect::<Vec<_>>()
        };
        let without = [(false, KvType::F16), (false, KvType::F32)];
        assert_eq!(kinds(true, options), [&[(true, KvType::F16)][..], &without].concat());
        assert_eq!(kinds(false, options), without);
        assert_eq!(kinds(true, GpuOptions { f16: false, ..options }), without);
        assert_eq!(kinds(true, GpuOptions { kernels: Kernels::Serial, ..options }), without);
        let single = GpuOptions { kv: KvType::F32, ..options };
        assert_eq!(kinds(true, single), [(true, KvType::F32), (false, KvType::F32)]);
        assert_eq!(kinds(false, single), [(false, KvType::F32)]);
    }

    #[test]
    fn wrong_results_are_noticed() {
        let top: Vec<_> = (0..256).map(|i| (i * 7 % 256, 5.0 - i as f32 / 50.0)).collect();
        let right = Candidates { top, log_sum_exp: 9.0 };
        compare(&right, &right, TOLERANCE).unwrap();
        let wrong = |change: fn(&mut Candidates)| {
            let mut found = right.clone();
            change(&mut found);
            compare(&found, &right, TOLERANCE).unwrap_err()
        };
        assert!(wrong(|c| c.top[100].1 += 0.1).contains("has logit"));
        assert!(wrong(|c| c.top[100].1 = f32::NAN).contains("NaN"));
        assert!(wrong(|c| c.top[3].0 = c.top[4].0).contains("expected"));
        assert!(wrong(|c| c.top.swap(3, 200)).contains("order"));
        assert!(wrong(|c| c.log_sum_exp = f32::NAN).contains("ln Σ exp"));
        assert!(wrong(|c| c.top.clear()).contains("0 candidates"));
    }
}
