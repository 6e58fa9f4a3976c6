//! Facts that stand far back in the context.

use serde::{Deserialize, Serialize};

use super::Progress;
use super::score::says;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::tables::RowSource;
use crate::text::Tokenizer;

/// Bins of distance and of length end at so many tokens; what is longer has a bin of its own.
const BINS: [usize; 7] = [125, 250, 500, 1000, 2000, 4000, 8000];
/// Tokens that an answer may take.
const ANSWER_TOKENS: usize = 64;

/// A text with a fact in it, and a sentence that asks for it.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// The text.
    pub context: String,
    /// A sentence without its end.
    pub cloze_prompt: String,
    /// Its right ends.
    pub answers: Vec<String>,
}

/// What came out: a row is right where the greedy continuation of its context, a line break and its prompt begins with one
/// of its answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// All rows.
    #[serde(flatten)]
    pub all: Figures,
    /// Rows that do not fit into the context, and are not counted elsewhere.
    pub too_long: u64,
    /// By the tokens from the answer in the context to the end of the prompt: the last one behind the prompt's sentence, else
    /// the last one that is a word; rows whose context has no answer are in none.
    pub by_distance: Vec<Bin>,
    /// By the tokens of context and prompt.
    pub by_length: Vec<Bin>,
    /// Values in the STEM rows of one token, all layers together. Times the distinct tokens: how many of the table's parameters
    /// take part.
    pub row_values: usize,
}

/// Means over some rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Share that are right.
    pub accuracy: f64,
    /// The same of the base, where there was one beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_accuracy: Option<f64>,
    /// Distinct tokens of context and prompt.
    pub distinct_tokens: f64,
    /// Rows.
    pub n: u64,
}

/// Rows of some distance or length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bin {
    /// More tokens than these…
    pub over: usize,
    /// …and at most these; the last bin has no end.
    pub to: Option<usize>,
    /// Their figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// What one row gave.
#[derive(Debug, Clone, Copy)]
struct Seen {
    distance: Option<usize>,
    length: usize,
    distinct: usize,
    right: bool,
    base_right: Option<bool>,
}

impl Row {
    fn prompt(&self) -> String {
        format!("{}\n{}", self.context, self.cloze_prompt)
    }

    /// Tokens from the answer in the context to the end of the prompt, as [`Report::by_distance`] says.
    fn distance(&self, tokenizer: &Tokenizer) -> Result<Option<usize>> {
        let ends = |find: &dyn Fn(&str) -> Option<usize>| {
            self.answers.iter().filter_map(|answer| find(answer.trim())).max()
        };
        // Where the sentence itself stands, rather than where its answer is mentioned by chance.
        let told = ends(&|answer| {
            let sentence = format!("{} {answer}", self.cloze_prompt.trim_end());
            Some(self.context.rfind(&sentence)? + sentence.len())
        });
        let Some(end) = told.or_else(|| ends(&|answer| last_word(&self.context, answer))) else {
            return Ok(None);
        };
        Ok(Some(tokenizer.encode_more(&self.prompt()[end..])?.len()))
    }
}

/// Where the last `word` ends in `text` that is no part of a longer one.
fn last_word(text: &str, word: &str) -> Option<usize> {
    let places = text.rmatch_indices(word).map(|(at, _)| (at, at + word.len()));
    let apart = |side: Option<char>| side.is_none_or(|c| !c.is_alphanumeric());
    let mut whole = places
        .filter(|(at, end)| apart(text[..*at].chars().next_back()) && apart(text[*end..].chars().next()));
    whole.next().map(|(_, end)| end)
}

/// Runs the suite, with `base` beside if there is one.
///
/// # Errors
/// [`Error::Invalid`] for a row without answers, and what a step gives.
pub async fn run<B: Backend, R: RowSource, C: Backend, S: RowSource>(
    session: &mut Session<B, R>,
    mut base: Option<&mut Session<C, S>>,
    tokenizer: &Tokenizer,
    rows: &[Row],
    progress: Progress<'_>,
) -> Result<Report> {
    if let Some(row) =
        rows.iter().find(|r| r.answers.is_empty() || r.answers.iter().any(|a| a.trim().is_empty()))
    {
        return Err(Error::invalid(
            format!("the row {:?}", row.cloze_prompt),
            "has an empty answer, or none",
        ));
    }
    let room = session.backend().capacity().min(session.config().context_length);
    let (mut seen, mut too_long) = (Vec::new(), 0);
    for (done, row) in rows.iter().enumerate() {
        let mut ids = tokenizer.encode(&row.prompt())?;
        let length = ids.len();
        if length + ANSWER_TOKENS > room {
            too_long += 1;
        } else {
            let right = finds(session, tokenizer, row).await?;
            let base_right = match &mut base {
                Some(base) => Some(finds(base, tokenizer, row).await?),
                None => None,
            };
            ids.sort_unstable();
            ids.dedup();
            let (distance, distinct) = (row.distance(tokenizer)?, ids.len());
            seen.push(Seen { distance, length, distinct, right, base_right });
        }
        progress(done as u64 + 1, rows.len() as u64);
    }
    Ok(Report {
        all: Figures::of(&seen),
        too_long,
        by_distance: bins(&seen, |s| s.distance),
        by_length: bins(&seen, |s| Some(s.length)),
        row_values: session.config().stem_width(),
    })
}

async fn finds<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokenizer: &Tokenizer,
    row: &Row,
) -> Result<bool> {
    for answer in &row.answers {
        if says(session, tokenizer, &row.prompt(), answer).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Figures {
    fn of(seen: &[Seen]) -> Self {
        let share = |some: usize| some as f64 / seen.len().max(1) as f64;
        let base: Option<Vec<bool>> = seen.iter().map(|s| s.base_right).collect();
        Self {
            accuracy: share(seen.iter().filter(|s| s.right).count()),
            base_accuracy: base
                .filter(|base| !base.is_empty())
                .map(|base| share(base.iter().filter(|right| **right).count())),
            distinct_tokens: share(seen.iter().map(|s| s.distinct).sum()),
            n: seen.len() as u64,
        }
    }
}

/// Rows by what `of` gives, without empty bins.
fn bins(seen: &[Seen], of: impl Fn(&Seen) -> Option<usize>) -> Vec<Bin> {
    let overs = std::iter::once(0).chain(BINS);
    let tos = BINS.iter().copied().map(Some).chain([None]);
    let mut bins = Vec::new();
    for (over, to) in overs.zip(tos) {
        let inside = |n: usize| n > over && to.is_none_or(|to| n <= to);
        let here: Vec<Seen> = seen.iter().copied().filter(|s| of(s).is_some_and(inside)).collect();
        if !here.is_empty() {
            bins.push(Bin { over, to, figures: Figures::of(&here) });
        }
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::byte_tokenizer;

    #[test]
    fn distances_are_counted_from_the_last_place() {
        let row = |context: &str| Row {
            context: context.into(),
            cloze_prompt: "It is".into(),
            answers: vec![" red".into(), "blue".into()],
        };
        let distance = |context| row(context).distance(&byte_tokenizer()).unwrap();
        // A token is a byte here: those after the name, the line break, and the prompt.
        assert_eq!(distance("It was red, then blue. "), Some(2 + 1 + 5));
        assert_eq!(distance("It was blue, then red"), Some(1 + 5));
        assert_eq!(distance("It is green."), None);
        // A part of a word is no answer, and a mention behind the sentence none of it.
        assert_eq!(distance("A blue, a bored"), Some(9 + 1 + 5));
        assert_eq!(distance("bored"), None);
        assert_eq!(distance("It is red. A blue one"), Some(12 + 1 + 5));
        assert_eq!(row("a").prompt(), "a\nIt is");
    }

    #[test]
    fn rows_fall_into_bins() {
        let one =
            |distance, right, base_right| Seen { distance, length: 900, distinct: 300, right, base_right };
        let seen = [
            one(Some(125), true, Some(true)),
            one(Some(126), false, Some(true)),
            one(Some(9000), true, Some(false)),
            one(None, false, Some(false)),
        ];
        let found = bins(&seen, |s| s.distance);
        let ends: Vec<_> = found.iter().map(|b| (b.over, b.to, b.figures.accuracy, b.figures.n)).collect();
        assert_eq!(ends, [(0, Some(125), 1.0, 1), (125, Some(250), 0.0, 1), (8000, None, 1.0, 1)]);
        let all = Figures::of(&seen);
        assert_eq!((all.accuracy, all.base_accuracy, all.n), (0.5, Some(0.5), 4));
        assert_eq!(all.distinct_tokens, 300.0);
        assert_eq!(bins(&seen, |s| Some(s.length)).len(), 1);
        assert_eq!(Figures::of(&[one(None, true, None)]).base_accuracy, None);
        assert_eq!(Figures::of(&[]).n, 0);
    }
}
