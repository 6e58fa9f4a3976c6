//! Multiple choice by likelihood.

use serde::{Deserialize, Serialize};

use super::score::{argmax, endings};
use super::{Progress, check_label};
use crate::backend::Backend;
use crate::error::Result;
use crate::session::Session;
use crate::tables::RowSource;
use crate::text::Tokenizer;

/// A question.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// What goes before the question; may be empty.
    #[serde(default)]
    pub context: String,
    /// The question, or the beginning of a sentence that the choices end.
    pub question: String,
    /// The choices.
    pub choices: Vec<String>,
    /// Which one is right.
    pub label: usize,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Share of rows whose right choice is the likeliest.
    pub accuracy: f64,
    /// What guessing would give.
    pub chance: f64,
    /// Rows.
    pub n: u64,
}

impl Row {
    /// What the choices follow: context and question, and `Answer:` after a question that ends with a mark.
    fn prompt(&self) -> String {
        let mut prompt = [self.context.trim(), self.question.trim()].join(" ").trim().to_owned();
        if prompt.ends_with('?') {
            prompt += "\nAnswer:";
        }
        prompt
    }
}

/// The likeliest of `choices` after `prompt`, by log-likelihood a byte (source: `acc_norm` of the lm-evaluation-harness).
///
/// # Errors
/// What a step or the tokenizer gives.
pub async fn likeliest<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokenizer: &Tokenizer,
    prompt: &str,
    choices: &[String],
) -> Result<usize> {
    let prompt = tokenizer.encode(prompt)?;
    let spaced = choices.iter().map(|c| format!(" {}", c.trim()));
    let tokens = spaced.clone().map(|c| tokenizer.encode_more(&c)).collect::<Result<Vec<_>>>()?;
    let sums = endings(session, &prompt, &tokens).await?;
    let scores: Vec<f64> = sums.iter().zip(spaced).map(|(sum, c)| sum / c.len() as f64).collect();
    Ok(argmax(&scores))
}

/// Runs the suite.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a row without a right choice, and what a step gives.
pub async fn run<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokenizer: &Tokenizer,
    rows: &[Row],
    progress: Progress<'_>,
) -> Result<Report> {
    let (mut right, mut chance) = (0u64, 0.0);
    for (done, row) in rows.iter().enumerate() {
        check_label(row.label, &row.choices)?;
        right += u64::from(likeliest(session, tokenizer, &row.prompt(), &row.choices).await? == row.label);
        chance += 1.0 / row.choices.len() as f64;
        progress(done as u64 + 1, rows.len() as u64);
    }
    let n = rows.len() as u64;
    let mean = |sum: f64| sum / (n as f64).max(1.0);
    Ok(Report { accuracy: mean(right as f64), chance: mean(chance), n })
}
