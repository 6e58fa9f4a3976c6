//! How well edits work, and what else they move.
//!
//! The figures are MEMIT's (arXiv 2210.07229, section 5.2; as there, a probability is the mean over the ending's
//! tokens of their log-probabilities), for an edit that makes the model say of `subject` what is true of
//! `subject_new`. With them come the exact greedy answer, KL(unedited ‖ edited) on unrelated text and on other text
//! about the subject, and how many other facts about the subject, which the model had right, are lost.

mod figures;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::{Deserialize, Serialize};

use super::Progress;
use super::score::{endings, says};
use super::unrelated::{self, Said};
use crate::backend::Backend;
use crate::cpu::CpuBackend;
use crate::edits::teach::{Lesson, teach};
use crate::edits::{Edit, Edited, Overlay, Swap, swap};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::tables::RowSource;
use crate::text::Tokenizer;
pub use figures::{Figures, Group, Measured};
use figures::{Item, Share};

/// A fact, and the one to say instead.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// What kind of fact it is.
    pub relation: String,
    /// The entity that it is about.
    pub subject: String,
    /// The entity of which `target_new` is true.
    pub subject_new: String,
    /// A sentence about the subject without its end.
    pub prompt: String,
    /// Other beginnings with the same ends.
    pub paraphrase_prompts: Vec<String>,
    /// How it truly ends.
    pub target_true: String,
    /// How it is to end.
    pub target_new: String,
    /// The same relation of other entities.
    pub locality_prompts: Vec<Neighbour>,
    /// Text about the subject that has nothing to do with the fact.
    #[serde(default)]
    pub generation_prompts: Vec<String>,
}

/// A fact that an edit should leave alone.
#[derive(Debug, Clone, Deserialize)]
pub struct Neighbour {
    /// A sentence without its end.
    pub prompt: String,
    /// Its end.
    pub target: String,
}

/// How to edit.
#[derive(Debug)]
pub struct Ways<B> {
    /// The subject gets the rows of the new one.
    pub swap: Option<Swap>,
    /// Other ways to swap, to compare.
    pub grid: Vec<Swap>,
    /// The row's prompt, and no paraphrase, is taught.
    pub teach: Option<Teach<B>>,
}

/// How to teach.
#[derive(Debug)]
pub struct Teach<B> {
    /// The layers to change; all unless given.
    pub layers: Option<Vec<usize>>,
    /// At most so many steps.
    pub steps: usize,
    /// The CPU backend in the session's one, if there is one: the gradient needs it.
    pub cpu: fn(&B) -> Option<&CpuBackend>,
}

impl<B: Backend> Teach<B> {
    pub(super) fn cpu<'s, R: RowSource>(&self, session: &'s Session<B, R>) -> Result<&'s CpuBackend> {
        (self.cpu)(session.backend()).ok_or_else(|| Error::Unsupported {
            what: "teaching on this backend".into(),
            supported: "the CPU".into(),
        })
    }
}

/// What came out: an object for each way to edit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// For swaps of rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Measured>,
    /// For the other ways to swap.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grid: Vec<Measured>,
    /// For taught facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teach: Option<Measured>,
}

/// Runs the suite for each of the `ways`; swaps are made for both spellings of a name. `base` only says what it knows.
///
/// # Errors
/// [`Error::Invalid`] for a row without an end or without its subject, [`Error::Edits`] for edits that the model
/// can't take, [`Error::Unsupported`] for teaching on a GPU, and what a step gives.
pub async fn run<B: Backend, R: RowSource, C: Backend, S: RowSource>(
    session: &mut Session<B, Edited<R>>,
    base: Option<&mut Session<C, S>>,
    tokenizer: &Tokenizer,
    rows: &[Row],
    ways: &Ways<B>,
    progress: Progress<'_>,
) -> Result<Report> {
    rows.iter().try_for_each(check)?;
    if session.config().stem_layers.is_empty() {
        return Err(Error::Edits("the model has no STEM layers".into()));
    }
    if let Some(way) = &ways.teach {
        way.cpu(session)?;
    }
    let rounds = [true, base.is_some(), ways.swap.is_some(), ways.teach.is_some()];
    let rounds = rounds.iter().filter(|round| **round).count() + ways.grid.len();
    let total = (rows.len() * rounds) as u64;
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, total);
    };
    session.rows_mut().set_overlay(Overlay::default());
    let unedited = Unedited {
        bundle_says: known(session, tokenizer, rows, &mut step).await?,
        base_says: match base {
            Some(base) => Some(known(base, tokenizer, rows, &mut step).await?),
            None => None,
        },
        unrelated: unrelated::said(session, tokenizer).await?,
    };
    let all_layers = session.config().stem_layers.clone();
    let with_base = unedited.base_says.is_some();
    let mut report = Report { swap: None, grid: Vec::new(), teach: None };
    for (i, swap) in ways.swap.iter().chain(&ways.grid).enumerate() {
        let swap = Swap { at_start: true, ..swap.clone() };
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            let edits = swap.edits(tokenizer, &row.subject, &[&row.subject_new])?;
            items.push(measure(session, tokenizer, row, rows, &edits, &unedited).await?);
            step();
        }
        let layers = swap.layers.unwrap_or_else(|| all_layers.clone());
        let measured = Measured {
            strength: Some(swap.strength),
            method: swap.method,
            scope: Some(swap.scope),
            ..Measured::of(rows, &items, layers, with_base)?
        };
        if i == 0 && ways.swap.is_some() {
            report.swap = Some(measured);
        } else {
            report.grid.push(measured);
        }
    }
    if let Some(way) = &ways.teach {
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            let lesson = Lesson {
                subject: row.subject.clone(),
                prompts: vec![row.prompt.clone()],
                answer: row.target_new.clone(),
                layers: way.layers.clone(),
                steps: way.steps,
            };
            let taught =
                teach(way.cpu(session)?, session.rows().inner(), tokenizer, &lesson, &mut |_, _| ()).await?;
            items.push(measure(session, tokenizer, row, rows, &taught.edits, &unedited).await?);
            step();
        }
        let layers = way.layers.clone().unwrap_or(all_layers);
        report.teach = Some(Measured::of(rows, &items, layers, with_base)?);
    }
    Ok(report)
}

/// What is known before anything is edited.
struct Unedited {
    bundle_says: Facts,
    base_says: Option<Facts>,
    unrelated: Vec<Said>,
}

fn check(row: &Row) -> Result<()> {
    let at = || format!("the row about {:?} ({:?})", row.subject, row.prompt);
    let ends = [&row.target_true, &row.target_new].into_iter();
    let mut ends = ends.chain(row.locality_prompts.iter().map(|n| &n.target));
    if ends.any(|end| end.trim().is_empty()) {
        return Err(Error::invalid(at(), "has an empty target"));
    }
    if row.subject.is_empty() || !row.prompt.contains(&row.subject) {
        return Err(Error::invalid(at(), "does not name its subject"));
    }
    Ok(())
}

/// Prompt and target → whether the model says so.
#[derive(Default)]
struct Facts(HashMap<(String, String), bool>);

impl Facts {
    fn says(&self, prompt: &str, target: &str) -> bool {
        self.0.get(&(prompt.to_owned(), target.to_owned())).is_some_and(|said| *said)
    }
}

/// What the model says of the facts of `rows`: those to be changed, and those that they are changed to.
async fn known<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokenizer: &Tokenizer,
    rows: &[Row],
    step: &mut impl FnMut(),
) -> Result<Facts> {
    let mut facts = Facts::default();
    for row in rows {
        let old = (row.prompt.clone(), row.target_true.clone());
        let new = (new_prompt(row, rows), row.target_new.clone());
        for fact in [old, new] {
            if let Entry::Vacant(fact) = facts.0.entry(fact) {
                let (prompt, target) = fact.key();
                let said = says(session, tokenizer, prompt, target).await?;
                fact.insert(said);
            }
        }
        step();
    }
    Ok(facts)
}

/// The prompt that `target_new` truly ends: the one of another row if there is one, else this row's with the names
/// exchanged, without an article that belonged to the old one.
fn new_prompt(row: &Row, rows: &[Row]) -> String {
    let same = |r: &&Row| r.relation == row.relation && r.subject == row.subject_new;
    if let Some(other) = rows.iter().find(same) {
        return other.prompt.clone();
    }
    let (subject, new) = (&row.subject, &row.subject_new);
    let bare =
        row.prompt.replace(&format!("the {subject}"), subject).replace(&format!("The {subject}"), subject);
    bare.replace(subject.as_str(), new)
}

/// Measures `edits` on `row`, one of `rows`; afterwards there are none.
async fn measure<B: Backend, R: RowSource>(
    session: &mut Session<B, Edited<R>>,
    tokenizer: &Tokenizer,
    row: &Row,
    rows: &[Row],
    edits: &[Edit],
    unedited: &Unedited,
) -> Result<Item> {
    let overlay = Overlay::new(edits, session.config())?;
    session.rows_mut().set_overlay(overlay.clone());
    let ask = |prompt: &str, end: &str, other: &str| Question::new(tokenizer, prompt, end, other);
    let question = ask(&row.prompt, &row.target_new, &row.target_true)?;
    let margin = question.margin(session).await?;
    let exact = says(session, tokenizer, &row.prompt, &row.target_new).await?;
    let mut ps = Share::default();
    for prompt in &row.paraphrase_prompts {
        ps.count(ask(prompt, &row.target_new, &row.target_true)?.prefers_first(session).await?);
    }
    // A neighbour of which the new target is true says nothing.
    let neighbours = row.locality_prompts.iter().filter(|n| n.target.trim() != row.target_new.trim());
    let (mut ns, mut ns_unedited, mut touched) = (Share::default(), Share::default(), Vec::new());
    for neighbour in neighbours {
        let question = ask(&neighbour.prompt, &neighbour.target, &row.target_new)?;
        let kept = question.prefers_first(session).await?;
        ns.count(kept);
        if question.touched_by(&overlay, session.rows()) {
            touched.push(question);
        } else {
            ns_unedited.count(kept);
        }
    }
    let (mut kl, mut positions) = (0.0, 0);
    for before in &unedited.unrelated {
        positions += before.tokens.len();
        if overlay.touches(&before.tokens, session.rows()) {
            kl += before.divergence(&Said::of(session, before.tokens.clone()).await?);
        }
    }
    let mut lost = Share::default();
    for other in rows.iter().filter(|r| r.subject == row.subject && r.relation != row.relation) {
        if unedited.bundle_says.says(&other.prompt, &other.target_true) {
            lost.count(!says(session, tokenizer, &other.prompt, &other.target_true).await?);
        }
    }
    let mut about = Vec::new();
    for text in &row.generation_prompts {
        about.push(Said::of(session, tokenizer.encode(text)?).await?);
    }
    session.rows_mut().set_overlay(Overlay::default());
    let margin_unedited = question.margin(session).await?;
    for question in touched {
        ns_unedited.count(question.prefers_first(session).await?);
    }
    let (mut kl_subject, mut about_positions) = (0.0, 0);
    for after in about {
        about_positions += after.tokens.len();
        kl_subject += Said::of(session, after.tokens.clone()).await?.divergence(&after);
    }
    let new_prompt = new_prompt(row, rows);
    let both =
        |facts: &Facts| facts.says(&row.prompt, &row.target_true) && facts.says(&new_prompt, &row.target_new);
    let several = |name: &str| Ok::<_, Error>(swap::running(tokenizer, name)?.len() > 1);
    Ok(Item {
        es: margin > 0.0,
        shift: margin - margin_unedited,
        ps,
        ns,
        ns_unedited,
        exact,
        kl: kl / positions as f64,
        kl_subject: (about_positions > 0).then(|| kl_subject / about_positions as f64),
        lost,
        several_tokens: several(&row.subject)? || several(&row.subject_new)?,
        bundle_knows: both(&unedited.bundle_says),
        base_knows: unedited.base_says.as_ref().is_some_and(both),
    })
}

/// `end` as it follows `prompt`: with one space before it, unless the prompt has one already.
fn ending(prompt: &str, end: &str) -> String {
    let space = if prompt.ends_with(char::is_whitespace) { "" } else { " " };
    format!("{space}{}", end.trim())
}

/// A prompt with two ends, as tokens.
#[derive(Debug)]
pub(super) struct Question {
    prompt: Vec<u32>,
    ends: [Vec<u32>; 2],
}

impl Question {
    pub(super) fn new(tokenizer: &Tokenizer, prompt: &str, one: &str, other: &str) -> Result<Self> {
        let ends = [ending(prompt, one), ending(prompt, other)];
        let ends = [tokenizer.encode_more(&ends[0])?, tokenizer.encode_more(&ends[1])?];
        Ok(Self { prompt: tokenizer.encode(prompt)?, ends })
    }

    /// By how many nats a token the first end is the likelier.
    async fn margin<B: Backend, R: RowSource>(&self, session: &mut Session<B, R>) -> Result<f64> {
        let sums = endings(session, &self.prompt, &self.ends).await?;
        let mean = |i: usize| sums[i] / self.ends[i].len() as f64;
        Ok(mean(0) - mean(1))
    }

    /// Whether the first end is the likelier, by the mean over its tokens.
    pub(super) async fn prefers_first<B: Backend, R: RowSource>(
        &self,
        session: &mut Session<B, R>,
    ) -> Result<bool> {
        Ok(self.margin(session).await? > 0.0)
    }

    pub(super) fn touched_by(&self, overlay: &Overlay, rows: &impl RowSource) -> bool {
        self.ends.iter().any(|end| overlay.touches(&[&self.prompt, end.as_slice()].concat(), rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(relation: &str, subject: &str, subject_new: &str, prompt: &str) -> Row {
        Row {
            relation: relation.into(),
            subject: subject.into(),
            subject_new: subject_new.into(),
            prompt: prompt.into(),
            paraphrase_prompts: vec![],
            target_true: " a".into(),
            target_new: " b".into(),
            locality_prompts: vec![],
            generation_prompts: vec![],
        }
    }

    #[test]
    fn an_end_has_one_space_before_it() {
        assert_eq!([" b", "b", "b "].map(|end| ending("It is", end)), [" b"; 3]);
        assert_eq!([" b", "b"].map(|end| ending("It is:\n", end)), ["b"; 2]);
    }

    #[test]
    fn the_new_fact_has_a_prompt() {
        let rows = [
            row("capitals", "Gambia", "Chad", "The capital of the Gambia is"),
            row("continents", "Chad", "Peru", "Chad lies in"),
            row("capitals", "Chad", "Bahamas", "The capital of Chad is"),
            row("capitals", "Togo", "Gambia", "The capital of Togo is"),
        ];
        assert_eq!(new_prompt(&rows[0], &rows), "The capital of Chad is");
        assert_eq!(new_prompt(&rows[0], &rows[..2]), "The capital of Chad is");
        assert_eq!(new_prompt(&rows[1], &rows), "Peru lies in");
        assert_eq!(new_prompt(&rows[3], &rows), "The capital of the Gambia is");
        assert!(check(&rows[0]).is_ok());
        assert!(check(&row("r", "Spain", "Italy", "The capital is")).is_err());
    }
}
