//! How the time of a step grows with the positions before it.

use serde::Serialize;
use web_time::Instant;

use super::Spread;
use crate::backend::{Backend, MAX_STEP_TOKENS, Output, Penalty, Want};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::session::Session;
use crate::tables::RowSource;
use crate::trace::times::{Part, parts};

/// Steps at one position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Depth {
    /// Tokens in the cache before them.
    pub position: usize,
    /// Milliseconds of a step of one token.
    pub decode_ms: Spread,
    /// Attention's part of such steps, the median, in steps of their own; nothing where the backend can't measure.
    pub attention_ms: Option<f64>,
    /// Milliseconds a token while the last chunk of a prompt was read up to here; nothing at the beginning.
    pub prefill_ms: Option<f64>,
    /// What the backend holds.
    pub backend_bytes: u64,
}

/// Reads `text` and takes `steps` steps of one token at each of `depths`, which ascend. The session forgets what it holds.
///
/// # Errors
/// [`Error::Invalid`] if the text doesn't reach the last depth and one position more, or for no steps, and what a step gives.
pub async fn at<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    text: &[u32],
    depths: &[usize],
    steps: usize,
) -> Result<Vec<Depth>> {
    let deepest = depths.last().copied().unwrap_or_default();
    if depths.is_empty() {
        return Ok(Vec::new());
    }
    if steps == 0 || !depths.is_sorted() || text.len() <= deepest {
        return Err(Error::invalid(
            format!("{steps} steps at {depths:?}"),
            format!("one step or more at ascending positions below {} are possible", text.len()),
        ));
    }
    let places = parts(&Plan::of_config(session.config()));
    let attention = |ms: &[f64]| -> f64 {
        places.iter().zip(ms).filter(|((part, _), _)| *part == Part::Attention).map(|(_, ms)| ms).sum()
    };
    session.reset();
    let mut found = Vec::new();
    for depth in depths {
        let mut prefill_ms = None;
        while session.cached() < *depth {
            let end = (session.cached() + MAX_STEP_TOKENS).min(*depth);
            let chunk = &text[session.cached()..end];
            let began = Instant::now();
            session.step(chunk, Want::Nothing).await?;
            prefill_ms = Some(ms_since(began) / chunk.len() as f64);
        }
        let mut all = Vec::new();
        // The first one finds the caches of the machine as the prompt left them.
        for step in 0..=steps {
            let began = Instant::now();
            take(session, text, *depth).await?;
            all.extend((step > 0).then(|| ms_since(began)));
        }
        // To tell a GPU's operations apart makes a step slower, so these are others.
        session.backend_mut().time(true);
        let mut in_attention = Vec::new();
        for _ in 0..steps {
            take(session, text, *depth).await?;
            let times = session.report().times;
            in_attention.extend((!times.is_empty()).then(|| attention(times)));
        }
        session.backend_mut().time(false);
        session.rewind(&text[..*depth]);
        found.push(Depth {
            position: *depth,
            decode_ms: Spread::of(all).ok_or_else(|| Error::invalid("0 steps", "one is needed"))?,
            attention_ms: Spread::of(in_attention).map(|spread| spread.median),
            prefill_ms,
            backend_bytes: session.backend().bytes(),
        });
    }
    session.reset();
    Ok(found)
}

/// A step of one token behind the first `depth` of `text`.
async fn take<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    text: &[u32],
    depth: usize,
) -> Result<()> {
    session.rewind(&text[..depth]);
    match session.step(&text[depth..=depth], Want::Candidates(Penalty::default())).await? {
        Output::Candidates(_) => Ok(()),
        _ => Err(Error::Gpu("the step gave no candidates".into())),
    }
}

fn ms_since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}
