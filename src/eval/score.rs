//! What a model says: log-probabilities from logits, and whether its greedy answer is a given one.

use crate::backend::{Backend, MAX_STEP_TOKENS, Output, Want};
use crate::error::{Error, Result};
use crate::sampler::Sampling;
use crate::session::{Observer, Session};
use crate::tables::RowSource;
use crate::text::{TextStream, Tokenizer};

/// `logits` → log-probabilities, in place (source: log-softmax with the maximum taken out).
pub fn log_softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    let log_sum = sum.ln() as f32;
    logits.iter_mut().for_each(|l| *l = (*l - max) - log_sum);
}

/// The place of the largest value; of equal ones the first.
pub fn argmax<T: PartialOrd>(values: &[T]) -> usize {
    values.iter().enumerate().fold(0, |best, (i, v)| if *v > values[best] { i } else { best })
}

/// The log-probabilities after each of `tokens`, which follow what the session holds: `[n, vocab]`.
pub async fn log_probs<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokens: &[u32],
) -> Result<Vec<f32>> {
    match session.step(tokens, Want::Logits).await? {
        Output::Logits(mut logits) => {
            logits.chunks_exact_mut(session.config().vocab_size).for_each(log_softmax);
            Ok(logits)
        }
        other => Err(Error::Gpu(format!("the step gave {other:?}, not logits"))),
    }
}

/// The log-likelihood of each of `endings` after `prompt`, all as tokens: the sum over its tokens.
pub async fn endings<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    prompt: &[u32],
    endings: &[Vec<u32>],
) -> Result<Vec<f64>> {
    let vocab = session.config().vocab_size;
    let Some((last, before)) = prompt.split_last() else {
        return Err(Error::invalid("the prompt", "is empty"));
    };
    let mut sums = Vec::with_capacity(endings.len());
    // All but the last token stay in the cache.
    session.rewind(before);
    for chunk in before[session.cached()..].chunks(MAX_STEP_TOKENS) {
        session.step(chunk, Want::Nothing).await?;
    }
    for ending in endings {
        session.rewind(before);
        let inputs: Vec<u32> = std::iter::once(*last).chain(ending.iter().copied()).collect();
        let mut sum = 0.0;
        let mut at = 0;
        for chunk in inputs[..ending.len()].chunks(MAX_STEP_TOKENS) {
            for row in log_probs(session, chunk).await?.chunks_exact(vocab) {
                sum += f64::from(row[ending[at] as usize]);
                at += 1;
            }
        }
        sums.push(sum);
    }
    Ok(sums)
}

/// Whether the greedy continuation of `prompt` begins with `target`, spaces before either aside.
pub async fn says<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokenizer: &Tokenizer,
    prompt: &str,
    target: &str,
) -> Result<bool> {
    let target = target.trim();
    // The model may spell the target in more tokens than the tokenizer does, but hardly in many more.
    let greedy = Sampling::greedy(tokenizer.encode_more(target)?.len() + 4);
    let prompt = tokenizer.encode(prompt)?;
    let mut listener = Listener { stream: tokenizer.stream(), text: String::new(), target, failure: None };
    session.generate(&prompt, &greedy, &mut listener).await?;
    let Listener { stream, text, failure, .. } = listener;
    match failure {
        Some(error) => Err(error),
        None => Ok((text + &stream.finish()?).trim_start().starts_with(target)),
    }
}

/// Stops as soon as it is clear whether the text begins with the target.
struct Listener<'a> {
    stream: TextStream<'a>,
    text: String,
    target: &'a str,
    failure: Option<Error>,
}

impl Observer for Listener<'_> {
    fn token(&mut self, id: u32, _log_prob: f32) {
        match self.stream.push(id) {
            Ok(piece) => self.text += &piece,
            Err(error) => self.failure = Some(error),
        }
    }

    fn stopped(&self) -> bool {
        // While the target goes on where the text ends, nothing is decided.
        self.failure.is_some()
            || !self.target.starts_with(self.text.trim_start())
            || self.text.trim_start() == self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_sums_to_one() {
        let mut values = [1000.0, 1001.0, 998.5];
        log_softmax(&mut values);
        let sum: f32 = values.iter().map(|v| v.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5);
        assert!((values[1] - values[0] - 1.0).abs() < 1e-4);
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    }
}
