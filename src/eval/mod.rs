//! Measuring a model: loss on text (`nll`), multiple choice (`choice`), facts to complete (`cloze`) and to find in a long
//! context (`needle`), how alike rows are (`rows`), edits of facts (`edits`), how far these reach (`reach`), and a choice of
//! them (`gallery`), all native; and what the page measures too: what is said with which probability ([`score`]), and what an
//! edit does to text that it is not about ([`unrelated`]).
//!
//! Every suite asks the session for log-probabilities and knows nothing of what computes them.

#[cfg(feature = "native")]
pub mod choice;
#[cfg(feature = "native")]
pub mod cloze;
#[cfg(feature = "native")]
pub mod edits;
#[cfg(feature = "native")]
pub mod gallery;
#[cfg(feature = "native")]
pub mod needle;
#[cfg(feature = "native")]
pub mod nll;
#[cfg(feature = "native")]
pub mod reach;
#[cfg(feature = "native")]
pub mod rows;
pub mod score;
pub mod unrelated;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Hears how far a suite has come, as (done, total).
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads rows of JSON, one a line; empty lines are passed over.
///
/// # Errors
/// [`Error::Invalid`] naming the first line that is no such row.
pub fn read_rows<T: DeserializeOwned>(name: &str, text: &str) -> Result<Vec<T>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let at = format!("{name}, line {}", i + 1);
            serde_json::from_str(line).map_err(|e| Error::invalid(at, e.to_string()))
        })
        .collect()
}

/// Checks that `label` is one of `choices`.
#[cfg(feature = "native")]
fn check_label(label: usize, choices: &[String]) -> Result<()> {
    if choices.len() < 2 || label >= choices.len() || choices.iter().any(String::is_empty) {
        return Err(Error::invalid(
            format!("label {label} with the choices {choices:?}"),
            "there must be two or more, none empty, and the label one of them",
        ));
    }
    Ok(())
}
