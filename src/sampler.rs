//! Choosing the next token from the candidates of a step.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::backend::{Candidates, MAX_CANDIDATES};
use crate::error::{Error, Result};

/// How to choose. Choices are made among the [`MAX_CANDIDATES`] best tokens at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sampling {
    /// Divides the logits; 0 takes the best token always.
    pub temperature: f32,
    /// Keep so many of the best tokens; 0 keeps all.
    pub top_k: usize,
    /// Of those, keep the fewest whose probabilities sum to this.
    pub top_p: f32,
    /// Makes recent tokens less likely; 1 does nothing. See [`Penalty`](crate::backend::Penalty).
    pub repetition_penalty: f32,
    /// Stop after so many tokens.
    pub max_tokens: usize,
    /// Equal seeds give equal texts on the same backend.
    pub seed: u64,
    /// Go on behind a token that ends an answer: for measurements, which want so many tokens and no fewer.
    pub ignore_eos: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.3,
            top_k: 40,
            top_p: 0.9,
            repetition_penalty: 1.1,
            max_tokens: 512,
            seed: 0,
            ignore_eos: false,
        }
    }
}

impl Sampling {
    /// The best token always, with no penalty.
    pub fn greedy(max_tokens: usize) -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            max_tokens,
            ..Self::default()
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the first value that is out of range.
    pub fn validate(&self) -> Result<()> {
        let range = |name: &str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(format!("{name} = {value}"), format!("must be from {low} to {high}")))
        };
        range("temperature", self.temperature, 0.0, 10.0)?;
        range("top-p", self.top_p, 0.0, 1.0)?;
        range("repetition penalty", self.repetition_penalty, 0.1, 10.0)
    }
}

/// Draws tokens, with its own random numbers.
#[derive(Debug)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    rng: StdRng,
}

impl Sampler {
    /// A sampler at the beginning of `sampling`'s seed.
    pub fn new(sampling: &Sampling) -> Self {
        Self {
            temperature: sampling.temperature,
            top_k: if sampling.top_k == 0 { MAX_CANDIDATES } else { sampling.top_k },
            top_p: sampling.top_p,
            rng: StdRng::seed_from_u64(sampling.seed),
        }
    }

    /// One token.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the logits are not finite: weights, rows or edits are too large to compute with.
    pub fn sample(&mut self, candidates: &Candidates) -> Result<u32> {
        let best = match candidates.top.first() {
            Some((id, logit)) if logit.is_finite() => (*id, *logit),
            other => {
                let best = other.map_or("none".into(), |(id, logit)| format!("{logit} for token {id}"));
                let reason = "are not finite: the model's weights or rows, or an edit, are beyond what it can compute with";
                return Err(Error::invalid(format!("the logits (best: {best})"), reason));
            }
        };
        if self.temperature == 0.0 {
            return Ok(best.0);
        }
        let top = &candidates.top[..self.top_k.min(candidates.top.len())];
        let mut weights: Vec<f32> =
            top.iter().map(|(_, logit)| ((logit - best.1) / self.temperature).exp()).collect();
        let total: f32 = weights.iter().sum();
        let mut kept = 0.0;
        let nucleus = weights.iter().position(|w| {
            kept += w;
            kept >= self.top_p * total
        });
        weights.truncate(nucleus.map_or(weights.len(), |last| last + 1));
        let mut left = self.rng.random::<f32>() * weights.iter().sum::<f32>();
        let drawn = weights.iter().position(|w| {
            left -= w;
            left <= 0.0
        });
        Ok(top[drawn.unwrap_or(weights.len() - 1)].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(logits: &[f32]) -> Candidates {
        crate::cpu::kernels::top_k(logits)
    }

    fn draw(sampling: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(&sampling);
        let candidates = candidates(logits);
        (0..n).map(|_| sampler.sample(&candidates).unwrap()).collect()
    }

    #[test]
    fn follows_the_distribution() {
        let all = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, ..Sampling::default() };
        let logits = [0.7f32.ln(), 0.2f32.ln(), 0.1f32.ln()];
        let drawn = draw(all.clone(), &logits, 20_000);
        for (id, p) in [(0, 0.7), (1, 0.2), (2, 0.1)] {
            let share = drawn.iter().filter(|d| **d == id).count() as f64 / 20_000.0;
            assert!((share - p).abs() < 0.015, "{id}: {share} for {p}");
        }
        assert_eq!(drawn, draw(all, &logits, 20_000));
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let sampling = Sampling { temperature: 1.0, top_k: 2, top_p: 1.0, ..Sampling::default() };
        assert!(draw(sampling.clone(), &logits, 1000).iter().all(|id| *id < 2));
        let sampling = Sampling { top_k: 0, top_p: 0.79, ..sampling };
        assert!(draw(sampling.clone(), &logits, 1000).contains(&1));
        let sampling = Sampling { top_p: 0.0, ..sampling };
        assert!(draw(sampling, &logits, 1000).iter().all(|id| *id == 0));
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut sampler = Sampler::new(&Sampling::greedy(1));
        assert!(sampler.sample(&Candidates { top: vec![], log_sum_exp: 0.0 }).is_err());
        assert!(sampler.sample(&Candidates { top: vec![(3, f32::NAN)], log_sum_exp: 0.0 }).is_err());
        assert!(Sampling { temperature: f32::NAN, ..Sampling::default() }.validate().is_err());
        assert!(Sampling { top_p: 1.5, ..Sampling::default() }.validate().is_err());
    }
}
