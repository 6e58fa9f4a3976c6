//! Facts to complete.

use serde::{Deserialize, Serialize};

use super::choice::likeliest;
use super::score::says;
use super::{Progress, check_label};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::tables::RowSource;
use crate::text::Tokenizer;

/// A sentence without its end.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// The beginning.
    pub prompt: String,
    /// How it ends.
    pub target: String,
    /// How it could end.
    pub choices: Vec<String>,
    /// Which of these is right.
    pub label: usize,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Share of rows whose right choice is the likeliest.
    pub accuracy: f64,
    /// Share of rows whose greedy continuation begins with the target.
    pub exact: f64,
    /// What guessing would give for `accuracy`.
    pub chance: f64,
    /// Rows.
    pub n: u64,
}

/// Runs the suite.
///
/// # Errors
/// [`Error::Invalid`] for a row without a right choice, and what a step gives.
pub async fn run<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokenizer: &Tokenizer,
    rows: &[Row],
    progress: Progress<'_>,
) -> Result<Report> {
    let (mut right, mut exact, mut chance) = (0u64, 0u64, 0.0);
    for (done, row) in rows.iter().enumerate() {
        check_label(row.label, &row.choices)?;
        let target = row.target.trim();
        if target.is_empty() {
            return Err(Error::invalid(format!("the target of {:?}", row.prompt), "is empty"));
        }
        right += u64::from(likeliest(session, tokenizer, &row.prompt, &row.choices).await? == row.label);
        exact += u64::from(says(session, tokenizer, &row.prompt, target).await?);
        chance += 1.0 / row.choices.len() as f64;
        progress(done as u64 + 1, rows.len() as u64);
    }
    let n = rows.len() as u64;
    let mean = |sum: f64| sum / (n as f64).max(1.0);
    Ok(Report { accuracy: mean(right as f64), exact: mean(exact as f64), chance: mean(chance), n })
}
