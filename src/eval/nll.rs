//! Loss on text, and how far a model has moved from its base; over all of the text, and by how frequent its tokens are.

use serde::Serialize;

use super::Progress;
use super::score::{argmax, log_probs};
use crate::backend::{Backend, MAX_STEP_TOKENS};
use crate::error::Result;
use crate::session::Session;
use crate::tables::RowSource;

/// Bins of frequency begin at so many occurrences in the counted text.
pub const BINS: [u64; 4] = [0, 1, 10, 100];

/// Means over all predicted tokens, in nats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Those over all of them.
    #[serde(flatten)]
    pub all: Means,
    /// Documents that had any.
    pub documents: u64,
    /// The same by the frequency of the token at a position, whose rows are looked up there. Only where something was
    /// counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_input: Vec<Bin>,
    /// The same by the frequency of the token that follows, which is to be predicted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_target: Vec<Bin>,
}

/// Means over some predicted tokens, in nats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Means {
    /// Negative log-likelihood.
    pub nll: f64,
    /// Tokens predicted: of a document all but the first.
    pub tokens: u64,
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

/// Means over the tokens of some frequency.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bin {
    /// The tokens occur at least so often in the counted text…
    pub from: u64,
    /// …and at most so often; the last bin has no end.
    pub to: Option<u64>,
    /// Nothing where no token is so frequent.
    #[serde(flatten)]
    pub means: Option<Means>,
}

/// How often each of `vocab` tokens occurs in `documents`.
pub fn count(documents: &[Vec<u32>], vocab: usize) -> Vec<u64> {
    let mut counts = vec![0; vocab];
    for token in documents.iter().flatten() {
        if let Some(count) = counts.get_mut(*token as usize) {
            *count += 1;
        }
    }
    counts
}

/// Sums over predicted tokens.
#[derive(Debug, Clone, Default)]
struct Sums {
    tokens: u64,
    nll: f64,
    base_nll: f64,
    kl: f64,
    agreed: u64,
}

impl Sums {
    fn add(&mut self, one: &Self) {
        self.tokens += one.tokens;
        self.nll += one.nll;
        self.base_nll += one.base_nll;
        self.kl += one.kl;
        self.agreed += one.agreed;
    }

    fn means(&self, with_base: bool) -> Means {
        let mean = |sum: f64| sum / (self.tokens as f64).max(1.0);
        let against = with_base.then(|| Against {
            base_nll: mean(self.base_nll),
            kl: mean(self.kl),
            top1_agreement: mean(self.agreed as f64),
        });
        Means { nll: mean(self.nll), tokens: self.tokens, against }
    }
}

/// Sums for each of [`BINS`].
#[derive(Debug, Default)]
struct Binned([Sums; BINS.len()]);

impl Binned {
    fn add(&mut self, count: u64, one: &Sums) {
        // The first begins at 0, so each count has its bin.
        self.0[BINS.partition_point(|from| *from <= count) - 1].add(one);
    }

    fn bins(&self, with_base: bool) -> Vec<Bin> {
        let to = BINS[1..].iter().map(|next| Some(next - 1)).chain([None]);
        let bins = self.0.iter().zip(BINS).zip(to);
        bins.map(|((sums, from), to)| Bin {
            from,
            to,
            means: (sums.tokens > 0).then(|| sums.means(with_base)),
        })
        .collect()
    }
}

/// Runs `session`, and `base` beside it if there is one, over the documents. `counts` `[vocab]`, how often each token
/// occurs in some text, makes bins of frequency; none are made if it is empty.
///
/// # Errors
/// What a step gives.
pub async fn run<B: Backend, R: RowSource, C: Backend, S: RowSource>(
    session: &mut Session<B, R>,
    mut base: Option<&mut Session<C, S>>,
    documents: &[Vec<u32>],
    counts: &[u64],
    progress: Progress<'_>,
) -> Result<Report> {
    let vocab = session.config().vocab_size;
    let total = documents.iter().map(|d| d.len() as u64 - 1).sum();
    let with_base = base.is_some();
    let (mut all, mut by_input, mut by_target) = (Sums::default(), Binned::default(), Binned::default());
    for document in documents {
        session.reset();
        if let Some(base) = &mut base {
            base.reset();
        }
        let inputs = document[..document.len() - 1].chunks(MAX_STEP_TOKENS);
        for (inputs, targets) in inputs.zip(document[1..].chunks(MAX_STEP_TOKENS)) {
            let found = log_probs(session, inputs).await?;
            let wanted = match &mut base {
                Some(base) => log_probs(base, inputs).await?,
                None => Vec::new(),
            };
            let mut wanted = wanted.chunks_exact(vocab);
            for ((p, input), target) in found.chunks_exact(vocab).zip(inputs).zip(targets) {
                let at = *target as usize;
                let mut one = Sums { tokens: 1, nll: -f64::from(p[at]), ..Sums::default() };
                if let Some(q) = wanted.next() {
                    one.base_nll = -f64::from(q[at]);
                    one.kl = q.iter().zip(p).map(|(q, p)| f64::from(q.exp() * (q - p))).sum::<f64>();
                    one.agreed = u64::from(argmax(p) == argmax(q));
                }
                all.add(&one);
                if let (Some(input), Some(target)) = (counts.get(*input as usize), counts.get(at)) {
                    by_input.add(*input, &one);
                    by_target.add(*target, &one);
                }
            }
            progress(all.tokens, total);
        }
    }
    let bins = |binned: &Binned| if counts.is_empty() { Vec::new() } else { binned.bins(with_base) };
    Ok(Report {
        all: all.means(with_base),
        documents: documents.len() as u64,
        by_input: bins(&by_input),
        by_target: bins(&by_target),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_fall_into_bins_by_their_count() {
        assert_eq!(count(&[vec![1, 2, 1], vec![1, 9]], 3), [0, 3, 1]);
        let one = |nll| Sums { tokens: 1, nll, base_nll: 1.0, kl: 0.5, agreed: 1 };
        let mut binned = Binned::default();
        for (count, nll) in [(0, 4.0), (1, 2.0), (9, 3.0), (100, 1.0), (5000, 2.0)] {
            binned.add(count, &one(nll));
        }
        let bins = binned.bins(true);
        let ends: Vec<_> = bins.iter().map(|b| (b.from, b.to)).collect();
        assert_eq!(ends, [(0, Some(0)), (1, Some(9)), (10, Some(99)), (100, None)]);
        let nll = |i: usize| bins[i].means.as_ref().map(|m| (m.nll, m.tokens));
        assert_eq!([nll(0), nll(1), nll(2), nll(3)], [Some((4.0, 1)), Some((2.5, 2)), None, Some((1.5, 2))]);
        assert_eq!(bins[0].means.as_ref().unwrap().against.as_ref().unwrap().kl, 0.5);
    }
}
