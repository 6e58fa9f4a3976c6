//! A text run once more, with a look at everything.

use super::head::Head;
use super::parts::Parts;
use super::record::{CANDIDATES, Candidate, Lookup, Next, TracedEngram, TracedToken};
use crate::backend::{Backend, Candidates, Output, Want};
use crate::cpu::kernels;
use crate::device::Device;
use crate::engram::Hasher;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::tables::layout::Layout;
use crate::tables::{Origin, RowSource};
use crate::text::Tokenizer;

/// A text, with what is needed to name its tokens and their records.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    /// Its tokens.
    pub tokens: &'a [u32],
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The layout of the model's table, if it has one.
    pub layout: Option<&'a Layout>,
    /// What finds the records of its n-grams, and the layout of their table, for a model with Engram layers.
    pub engram: Option<(&'a Hasher, &'a Layout)>,
}

/// Runs `text` from its beginning, `chunk` tokens at a time, and hands the records of each chunk to `each`, with the
/// position of the first; `each` ends it by giving false. Only the CPU backend can do this.
///
/// What the session's cache holds of the same text stays. A token that the context has no room for has no record.
///
/// # Errors
/// [`Error::Unsupported`] on a GPU, and what a step gives.
pub async fn trace<R: RowSource>(
    session: &mut Session<Device, R>,
    text: Text<'_>,
    chunk: usize,
    mut each: impl AsyncFnMut(usize, Vec<TracedToken>) -> bool,
) -> Result<()> {
    let config = session.config().clone();
    let mut parts = Parts::new(&config, 0);
    let mut mean = None;
    let mut position = 0;
    // The token with which an answer filled the context was written, but not read.
    let read = text.tokens.len().min(session.backend().capacity());
    for tokens in text.tokens[..read].chunks(chunk.max(1)) {
        let Output::Logits(logits) = session.probe(position, tokens, Want::Logits, &mut parts).await? else {
            return Err(Error::Gpu("the step gave no logits".into()));
        };
        let backend = session.backend().cpu().expect("only the CPU gives what was just seen");
        let head = Head::new(backend, &config);
        let mean = mean.get_or_insert_with(|| head.mean());
        let origins = session.report().origins;
        let hashes = match text.engram {
            Some((hasher, _)) => hasher.hashes(&text.tokens[..position], tokens)?,
            None => Vec::new(),
        };
        let heads = config.engram.as_ref().map_or(0, |engram| engram.heads());
        let mut records = Vec::with_capacity(tokens.len());
        for (i, logits) in logits.chunks_exact(config.vocab_size).enumerate() {
            let best = kernels::top_k(logits);
            let follows = text.tokens.get(position + i + 1).copied();
            let id = follows.unwrap_or_else(|| best.top.first().map_or(0, |(id, _)| *id));
            let next = next(text.tokenizer, &head, mean, &parts, i, id, logits[id as usize], &best);
            let origin = origins.get(i);
            let gauges = parts.gauges(i);
            records.push(TracedToken {
                id: tokens[i],
                text: text.tokenizer.piece(tokens[i])?,
                record: text.layout.map(|layout| layout.address(tokens[i])).transpose()?,
                lookup: origin.and_then(|o| Some(Lookup { tier: o.tier?, ms: o.ms })),
                edited: origin.map_or_else(Vec::new, |o| {
                    o.edited.iter().map(|place| config.stem_layers[*place]).collect()
                }),
                row_norm: parts.row_norms(i),
                contribution: gauges.iter().map(|g| g.contribution).collect(),
                gate_open: gauges.iter().map(|g| g.gate_open).collect(),
                compressed: text.engram.and_then(|(hasher, _)| hasher.compressed(tokens[i])),
                engram: engram(&parts, i, &hashes, heads, origin),
                next: next?,
            });
        }
        let at = position;
        position += tokens.len();
        if !each(at, records).await {
            break;
        }
    }
    Ok(())
}

/// What the Engram layers did with the step's token `i`; `hashes` are `[n, n_engram, heads]`.
fn engram(
    parts: &Parts,
    i: usize,
    hashes: &[u32],
    heads: usize,
    origin: Option<&Origin>,
) -> Vec<TracedEngram> {
    let gauges = parts.engram_gauges(i);
    let of_layer = |layer: usize| {
        let at = (i * gauges.len() + layer) * heads;
        let origin = origin.and_then(|o| o.engram.get(layer));
        TracedEngram {
            hashes: hashes.get(at..at + heads).unwrap_or_default().to_vec(),
            lookup: origin.map(|o| Lookup { tier: o.tier, ms: o.ms }),
            edited: origin.is_some_and(|o| o.edited),
            row_norm: parts.engram_norms(i)[layer],
            contribution: gauges[layer].contribution,
            gate: gauges[layer].gate,
        }
    };
    (0..gauges.len()).map(of_layer).collect()
}

/// The prediction after the step's token `i`, attributed to `id`, whose logit is `logit`.
#[allow(clippy::too_many_arguments, reason = "it is one part of one loop")]
fn next(
    tokenizer: &Tokenizer,
    head: &Head<'_>,
    mean: &[f32],
    parts: &Parts,
    i: usize,
    id: u32,
    logit: f32,
    best: &Candidates,
) -> Result<Next> {
    let x = parts.stream(i);
    let scale = head.scale(x);
    let direction = head.direction(id, mean);
    let share = |part: &[f32]| scale * kernels::dot(&direction, part);
    let shares: Vec<f32> = parts.of(i).map(share).collect();
    let layers = shares[1..].chunks_exact(2);
    let probability = |logit: f32| (logit - best.log_sum_exp).exp();
    let top = best.top.iter().take(CANDIDATES).map(|(id, logit)| {
        Ok(Candidate { id: *id, text: tokenizer.piece(*id)?, probability: probability(*logit) })
    });
    Ok(Next {
        id,
        text: tokenizer.piece(id)?,
        logit,
        probability: probability(logit),
        mean_logit: head.mean_logit(x, scale, mean),
        embedding: shares[0],
        attention: layers.clone().map(|pair| pair[0]).collect(),
        ffn: layers.map(|pair| pair[1]).collect(),
        engram: parts.engram(i).map(share).collect(),
        top: top.collect::<Result<_>>()?,
    })
}
