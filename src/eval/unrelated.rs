//! What edits do to text that they are not about.

use super::score::log_probs;
use crate::backend::{Backend, MAX_STEP_TOKENS};
use crate::edits::{Edited, Overlay};
use crate::error::Result;
use crate::session::Session;
use crate::tables::RowSource;
use crate::text::Tokenizer;

/// Text that no edit of the suite is about. Such words as names of countries are made of ("united", "south",
/// "saint", "and") are in it.
pub const TEXTS: [&str; 6] = [
    "The recipe is simple: melt the butter, stir in the flour and the sugar, and bake the dough until it is golden.",
    "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there.",
    "She put the new lamp beside the window, sat down with a cup of tea, and read until the north wind had died down.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)",
    "The united team played in the south stand that evening, and Saint Peter's bells rang over the coast and the islands.",
    "<|im_start|>user\nCan you give me three tips for a good night's sleep?<|im_end|>\n<|im_start|>assistant\n1. Go to bed \
     at the same time every day.\n2. Keep the room dark and cool.\n3. Put your phone away an hour before.",
];

/// What the model says after each token of a text.
#[derive(Debug, Clone)]
pub struct Said {
    /// The text.
    pub tokens: Vec<u32>,
    // [n, vocab]: log-probabilities.
    log_probs: Vec<f32>,
}

impl Said {
    /// Asks the model, from the beginning of the text on.
    ///
    /// # Errors
    /// What a step gives.
    pub async fn of<B: Backend, R: RowSource>(session: &mut Session<B, R>, tokens: Vec<u32>) -> Result<Self> {
        session.reset();
        let mut all = Vec::with_capacity(tokens.len() * session.config().vocab_size);
        for chunk in tokens.chunks(MAX_STEP_TOKENS) {
            all.extend(log_probs(session, chunk).await?);
        }
        Ok(Self { tokens, log_probs: all })
    }

    /// The sum over positions of KL(this ‖ other), in nats, for the same text.
    pub fn divergence(&self, other: &Self) -> f64 {
        let pairs = self.log_probs.iter().zip(&other.log_probs);
        pairs.map(|(q, p)| f64::from(q.exp() * (q - p))).sum()
    }
}

/// What the model says of all [`TEXTS`].
///
/// # Errors
/// What the tokenizer or a step gives.
pub async fn said<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Said>> {
    let mut all = Vec::with_capacity(TEXTS.len());
    for text in TEXTS {
        all.push(Said::of(session, tokenizer.encode(text)?).await?);
    }
    Ok(all)
}

/// KL(unedited ‖ edited) a token of `text`, in nats, or `None` where `overlay` changes no row that the text looks up:
/// then every bit stays. Afterwards the session has no edits.
///
/// # Errors
/// What the tokenizer or a step gives.
pub async fn moved<B: Backend, R: RowSource>(
    session: &mut Session<B, Edited<R>>,
    tokenizer: &Tokenizer,
    overlay: &Overlay,
    text: &str,
) -> Result<Option<f64>> {
    let tokens = tokenizer.encode(text)?;
    if !overlay.touches(&tokens, session.rows()) {
        return Ok(None);
    }
    session.rows_mut().set_overlay(overlay.clone());
    let edited = Said::of(session, tokens.clone()).await;
    session.rows_mut().set_overlay(Overlay::default());
    let unedited = Said::of(session, tokens).await?;
    Ok(Some(unedited.divergence(&edited?) / unedited.tokens.len() as f64))
}
