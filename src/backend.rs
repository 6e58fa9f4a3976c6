//! What a backend does: hold the core's weights and a KV cache, and run the plan on a few tokens.

use crate::bundle::Tensor;
use crate::error::{Error, Result};
use crate::trace::{EngramGauge, Gauge};

/// At most so many candidates come back from a step: 256 ids and logits are 2 KB.
pub const MAX_CANDIDATES: usize = 256;
/// At most so many tokens in a step; longer prompts go in chunks.
pub const MAX_STEP_TOKENS: usize = 256;

/// One forward step.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The input tokens, at most [`MAX_STEP_TOKENS`].
    pub tokens: &'a [u32],
    /// Position of the first of them; the cache holds all positions before it.
    pub position: usize,
    /// `[n, n_stem, ffn]`: the STEM rows of each token, empty for a dense model.
    pub rows: &'a [f32],
    /// What to give back.
    pub want: Want<'a>,
}

/// What a step gives back.
#[derive(Debug, Clone, Copy)]
pub enum Want<'a> {
    /// Nothing: the step only fills the cache.
    Nothing,
    /// The most likely next tokens after the last position.
    Candidates(Penalty<'a>),
    /// The logits of all positions.
    Logits,
}

/// Repetition penalty (source: CTRL, arXiv 1909.05858): the logit of each listed token is divided by `factor`
/// if positive and multiplied by it otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct Penalty<'a> {
    /// Distinct tokens, at most [`MAX_PENALIZED`].
    pub tokens: &'a [u32],
    /// 1 changes nothing.
    pub factor: f32,
}

/// At most so many tokens are penalised.
pub const MAX_PENALIZED: usize = 512;

/// What a step gave back.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// For [`Want::Nothing`].
    Nothing,
    /// For [`Want::Candidates`].
    Candidates(Candidates),
    /// For [`Want::Logits`]: `[n, vocab]`.
    Logits(Vec<f32>),
}

/// The most likely next tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidates {
    /// Ids and (penalised) logits, best first; of equal logits the lower id comes first. There are
    /// `min(MAX_CANDIDATES, vocab)`.
    pub top: Vec<(u32, f32)>,
    /// ln Σ exp(logit) over the whole vocabulary, so that exp(logit − this) is the probability.
    pub log_sum_exp: f32,
}

/// A device that runs the plan. Weights arrive through [`Backend::write`] in any order and are then complete.
#[allow(async_fn_in_trait, reason = "used with static dispatch only")]
pub trait Backend {
    /// Takes `bytes` of tensor `tensor`, from byte `offset` of its planes on.
    ///
    /// Offset and length are multiples of four.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they lie outside the tensor.
    fn write(&mut self, tensor: usize, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Runs the operations of a step that need no rows, [`Plan::before_rows`](crate::plan::Plan::before_rows), while
    /// its rows are on their way; the same step's [`forward`](Self::forward) then runs the others. A step that was
    /// begun need not follow.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    async fn begin(&mut self, tokens: &[u32], position: usize) -> Result<()>;

    /// Runs one step.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a step that [`check`] refuses, [`Error::Gpu`] if the device fails.
    async fn forward(&mut self, step: Step<'_>) -> Result<Output>;

    /// Switches [`gauges`](Self::gauges) on or off. A device that can't measure takes no notice.
    fn measure(&mut self, _on: bool) {}

    /// `[n, n_layers]`: what was measured in each layer during the last step; nothing if that is off.
    fn gauges(&self) -> &[Gauge] {
        &[]
    }

    /// `[n, n_engram]`: the same of each Engram layer.
    fn engram_gauges(&self) -> &[EngramGauge] {
        &[]
    }

    /// Switches [`times`](Self::times) on or off. A device that can't measure takes no notice.
    fn time(&mut self, _on: bool) {}

    /// `[ops + 1]`: the milliseconds of each operation of the plan, and of choosing the candidates, in the last step; nothing if
    /// that is off.
    fn times(&self) -> &[f64] {
        &[]
    }

    /// Positions that the KV cache can hold.
    fn capacity(&self) -> usize;

    /// What runs: `cpu` or `gpu`, and the adapter in words.
    fn describe(&self) -> (&'static str, String);

    /// Bytes held by the device (weights, cache, scratch).
    fn bytes(&self) -> u64;
}

/// Checks a step against the model's sizes and the cache's capacity.
///
/// # Errors
/// [`Error::Invalid`] or [`Error::ContextFull`] with the values that were wrong.
pub fn check(step: &Step<'_>, config: &crate::Config, capacity: usize) -> Result<()> {
    check_tokens(step.tokens, step.position, config, capacity)?;
    let n = step.tokens.len();
    if step.rows.len() != n * config.row_width() {
        return Err(Error::invalid(
            format!("{} row values", step.rows.len()),
            format!("{n} tokens need {}", n * config.row_width()),
        ));
    }
    if let Want::Candidates(p) = step.want {
        let usable = p.tokens.len() <= MAX_PENALIZED
            && p.tokens.iter().all(|id| (*id as usize) < config.vocab_size)
            && p.factor.is_finite()
            && (p.factor > 0.0 || p.tokens.is_empty());
        if !usable {
            return Err(Error::invalid(
                format!("a repetition penalty of {} on {} tokens", p.factor, p.tokens.len()),
                format!("a positive factor and at most {MAX_PENALIZED} known tokens are possible"),
            ));
        }
    }
    Ok(())
}

/// Checks what is known of a step before its rows are there.
///
/// # Errors
/// As [`check`].
pub fn check_tokens(tokens: &[u32], position: usize, config: &crate::Config, capacity: usize) -> Result<()> {
    let n = tokens.len();
    if n == 0 || n > MAX_STEP_TOKENS {
        return Err(Error::invalid(
            format!("a step of {n} tokens"),
            format!("from 1 to {MAX_STEP_TOKENS} are possible"),
        ));
    }
    if position + n > capacity {
        return Err(Error::ContextFull { tokens: position + n, context: capacity });
    }
    if let Some(id) = tokens.iter().find(|id| **id as usize >= config.vocab_size) {
        return Err(Error::invalid(
            format!("token {id}"),
            format!("the vocabulary has {} tokens", config.vocab_size),
        ));
    }
    Ok(())
}

/// Feeds `bytes` of the core's stream, beginning at byte `start` of it (both multiples of four), to the
/// `tensors` they belong to.
///
/// # Errors
/// As [`Backend::write`].
pub fn write_core<B: Backend>(backend: &mut B, tensors: &[Tensor], start: u64, bytes: &[u8]) -> Result<()> {
    let end = start + bytes.len() as u64;
    for (id, tensor) in tensors.iter().enumerate() {
        let (first, last) = (tensor.offset.max(start), (tensor.offset + tensor.bytes() as u64).min(end));
        if first < last {
            let part = &bytes[(first - start) as usize..(last - start) as usize];
            backend.write(id, (first - tensor.offset) as usize, part)?;
        }
    }
    Ok(())
}
