//! Loss on text, and how far a model has moved from its base.

use serde::Serialize;

use super::Progress;
use super::score::{argmax, log_probs};
use crate::backend::{Backend, MAX_STEP_TOKENS};
use crate::error::Result;
use crate::session::Session;
use crate::tables::RowSource;

/// Means over all predicted tokens, in nats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Negative log-likelihood.
    pub nll: f64,
    /// Tokens predicted: all but the first of each document.
    pub tokens: u64,
    /// Documents that had any.
    pub documents: u64,
    /// What the base is, where there was one to compare with.
    #[serde(flatten)]
    pub against: Option<Against>,
}

/// A model beside its base.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Against {
    /// Negative log-likelihood of the base.
    pub base_nll: f64,
    /// KL(base ‖ model).
    pub kl: f64,
    /// Share of positions at which both find the same token most likely.
    pub top1_agreement: f64,
}

/// Runs `session`, and `base` beside it if there is one, over the documents.
///
/// # Errors
/// What a step gives.
pub async fn run<B: Backend, R: RowSource, C: Backend, S: RowSource>(
    session: &mut Session<B, R>,
    mut base: Option<&mut Session<C, S>>,
    documents: &[Vec<u32>],
    progress: Progress<'_>,
) -> Result<Report> {
    let vocab = session.config().vocab_size;
    let total = documents.iter().map(|d| d.len() as u64 - 1).sum();
    let (mut tokens, mut nll, mut base_nll, mut kl, mut agreed) = (0u64, 0.0, 0.0, 0.0, 0u64);
    for document in documents {
        session.reset();
        if let Some(base) = &mut base {
            base.reset();
        }
        let inputs = document[..document.len() - 1].chunks(MAX_STEP_TOKENS);
        for (inputs, targets) in inputs.zip(document[1..].chunks(MAX_STEP_TOKENS)) {
            let found = log_probs(session, inputs).await?;
            for (row, target) in found.chunks_exact(vocab).zip(targets) {
                nll -= f64::from(row[*target as usize]);
            }
            if let Some(base) = &mut base {
                let wanted = log_probs(base, inputs).await?;
                let rows = found.chunks_exact(vocab).zip(wanted.chunks_exact(vocab));
                for ((p, q), target) in rows.zip(targets) {
                    base_nll -= f64::from(q[*target as usize]);
                    kl += q.iter().zip(p).map(|(q, p)| f64::from(q.exp() * (q - p))).sum::<f64>();
                    agreed += u64::from(argmax(p) == argmax(q));
                }
            }
            tokens += targets.len() as u64;
            progress(tokens, total);
        }
    }
    let mean = |sum: f64| sum / (tokens as f64).max(1.0);
    let against =
        base.map(|_| Against { base_nll: mean(base_nll), kl: mean(kl), top1_agreement: mean(agreed as f64) });
    Ok(Report { nll: mean(nll), tokens, documents: documents.len() as u64, against })
}
