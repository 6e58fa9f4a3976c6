//! Swaps that work, found by measurement: of pairs of entities whose facts the model says, those whose swap makes it say
//! the other's, in running text, in three of four other wordings, and in a chat; and one that fails.

use serde::{Deserialize, Serialize};

use super::Progress;
use super::edits::Row;
use super::score::{endings, says};
use super::unrelated;
use crate::backend::Backend;
use crate::edits::{Edited, Overlay, Scope, Swap};
use crate::error::{Error, Result};
use crate::sampler::Sampling;
use crate::session::Session;
use crate::tables::RowSource;
use crate::text::{Message, Role, Template, Tokenizer, chat};

/// Answers of the chat are cut after so many tokens.
const ANSWER_TOKENS: usize = 32;
/// An overshooting strength, tried on the swap that fails.
const OVERSHOOT: f32 = 1.5;
/// So many of one relation, unless others are too few.
const OF_A_RELATION: usize = 2;

/// How to look.
#[derive(Debug, Clone)]
pub struct Search {
    /// Swaps to show.
    pub wanted: usize,
    /// Each entity is paired with so many others that the same is known of.
    pub partners: usize,
    /// Pairs (subject, with) that come first if they work.
    pub first: Vec<(String, String)>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gallery {
    /// The hash of the model that it was measured with.
    pub model: String,
    /// Facts that the model says without edits, of so many asked.
    pub known: usize,
    /// Facts that it was asked for.
    pub asked: usize,
    /// Swaps that were tried.
    pub tried: usize,
    /// How many of them worked.
    pub worked: usize,
    /// Those to show, the surest first.
    pub works: Vec<Shown>,
    /// The one that failed most clearly.
    pub fails: Option<Failure>,
}

/// A swap with its figures. P of an answer is that of all its tokens behind `prompt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// What kind of fact it is.
    pub relation: String,
    /// Whose rows are changed.
    pub subject: String,
    /// Whose rows it gets.
    pub with: String,
    /// A sentence without its end.
    pub prompt: String,
    /// The same as a question.
    pub question: String,
    /// What truly ends the prompt.
    pub old: String,
    /// What is true of `with`.
    pub new: String,
    /// P(old), P(new) without the edit.
    pub before: [f64; 2],
    /// The same with it.
    pub after: [f64; 2],
    /// Greedy answers of the chat, without and with it.
    pub answers: [String; 2],
    /// Of so many other wordings…
    pub paraphrases: usize,
    /// …so many prefer the new answer with it.
    pub paraphrases_new: usize,
    /// The largest KL(unedited ‖ edited) a token of the unrelated texts, in nats.
    pub kl_unrelated: f64,
}

/// A swap that does not work, and what was measured to see why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The swap.
    #[serde(flatten)]
    pub shown: Shown,
    /// P(new) behind the prompt that names `with` itself: what the model knows.
    pub known_new: f64,
    /// P(old), P(new) with the swap at strength 1.5.
    pub overshot: [f64; 2],
}

/// A fact that the model says in running text and in a chat.
struct Fact<'r> {
    row: &'r Row,
    question: String,
    answer: String,
}

/// Looks for swaps among the facts of `rows`; their `subject_new` and `target_new` do not matter.
///
/// # Errors
/// [`Error::Invalid`] if no fact is known or the search wants nothing, and what a step gives.
pub async fn find<B: Backend, R: RowSource>(
    session: &mut Session<B, Edited<R>>,
    tokenizer: &Tokenizer,
    template: &Template,
    rows: &[Row],
    search: &Search,
    model: String,
    progress: Progress<'_>,
) -> Result<Gallery> {
    let mut gallery =
        Gallery { model, known: 0, asked: rows.len(), tried: 0, worked: 0, works: Vec::new(), fails: None };
    session.rows_mut().set_overlay(Overlay::default());
    let mut facts = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        progress(i as u64, rows.len() as u64);
        let Some(question) = question(row) else { continue };
        if !says(session, tokenizer, &row.prompt, &row.target_true).await? {
            continue;
        }
        let answer = answer(session, tokenizer, template, &question).await?;
        if names(&answer, &row.target_true) {
            facts.push(Fact { row, question, answer });
        }
    }
    gallery.known = facts.len();
    let pairs = pairs(&facts, search);
    if pairs.is_empty() {
        return Err(Error::invalid("the gallery", "has no two entities of which the model knows the same"));
    }
    gallery.tried = pairs.len();
    let (mut works, mut fails) = (Vec::new(), Vec::new());
    for (i, (one, other)) in pairs.iter().enumerate() {
        progress(i as u64, pairs.len() as u64);
        let (shown, worked) = try_swap(session, tokenizer, template, &facts[*one], &facts[*other]).await?;
        if worked {
            works.push(shown);
        } else {
            fails.push((shown, *one, *other));
        }
    }
    gallery.worked = works.len();
    gallery.works = choose(works, search);
    // Most clearly: the old answer is the surest.
    fails.sort_by(|(a, ..), (b, ..)| (b.after[0] - b.after[1]).total_cmp(&(a.after[0] - a.after[1])));
    if let Some((shown, one, other)) = fails.into_iter().next() {
        let [one, other] = [facts[one].row, facts[other].row];
        let ends = [tokenizer.encode_more(&one.target_true)?, tokenizer.encode_more(&other.target_true)?];
        let own = tokenizer.encode(&other.prompt)?;
        let known_new = endings(session, &own, &ends[1..]).await?[0].exp();
        let swap = Swap { strength: OVERSHOOT, ..whole() };
        let edits = swap.edits(tokenizer, &shown.subject, &[&shown.with])?;
        let overlay = Overlay::new(&edits, session.config())?;
        session.rows_mut().set_overlay(overlay);
        let prompt = tokenizer.encode(&shown.prompt)?;
        let overshot = weigh(session, &prompt, &ends).await?;
        session.rows_mut().set_overlay(Overlay::default());
        gallery.fails = Some(Failure { shown, known_new, overshot });
    }
    Ok(gallery)
}

/// All layers, at strength 1, both spellings.
fn whole() -> Swap {
    Swap { scope: Scope::Phrase, strength: 1.0, layers: None, method: None, pad: None, at_start: true }
}

/// The question among the wordings, as a person would type it.
fn question(row: &Row) -> Option<String> {
    let asked = row.paraphrase_prompts.iter().find_map(|p| p.strip_prefix("Q: "));
    asked.and_then(|text| text.split('\n').next()).map(str::to_owned)
}

/// Whether `answer` has `target`, without regard to case; an empty one is nowhere.
fn names(answer: &str, target: &str) -> bool {
    let target = target.trim().to_lowercase();
    !target.is_empty() && answer.to_lowercase().contains(&target)
}

/// Which facts are tried with which, each by its place: those that come first, then each with the next ones of its kind
/// whose answer is another.
fn pairs(facts: &[Fact<'_>], search: &Search) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    let fits = |a: &Fact<'_>, b: &Fact<'_>| {
        a.row.relation == b.row.relation && a.row.target_true.trim() != b.row.target_true.trim()
    };
    for (subject, with) in &search.first {
        for (i, one) in facts.iter().enumerate().filter(|(_, f)| f.row.subject == *subject) {
            let other = facts.iter().position(|f| f.row.subject == *with && fits(one, f));
            pairs.extend(other.map(|other| (i, other)));
        }
    }
    for (i, one) in facts.iter().enumerate() {
        let others = (1..facts.len()).map(|step| (i + step) % facts.len());
        let others = others.filter(|other| fits(one, &facts[*other])).take(search.partners);
        for other in others {
            if !pairs.contains(&(i, other)) {
                pairs.push((i, other));
            }
        }
    }
    pairs
}

async fn try_swap<B: Backend, R: RowSource>(
    session: &mut Session<B, Edited<R>>,
    tokenizer: &Tokenizer,
    template: &Template,
    one: &Fact<'_>,
    other: &Fact<'_>,
) -> Result<(Shown, bool)> {
    let (row, with) = (one.row, &other.row.subject);
    let (old, new) = (row.target_true.as_str(), other.row.target_true.as_str());
    let prompt = tokenizer.encode(&row.prompt)?;
    let ends = [tokenizer.encode_more(old)?, tokenizer.encode_more(new)?];
    let before = weigh(session, &prompt, &ends).await?;
    let overlay = Overlay::new(&whole().edits(tokenizer, &row.subject, &[with])?, session.config())?;
    session.rows_mut().set_overlay(overlay.clone());
    let after = weigh(session, &prompt, &ends).await?;
    let said = says(session, tokenizer, &row.prompt, new).await?;
    let mut paraphrases_new = 0;
    for paraphrase in &row.paraphrase_prompts {
        let [old, new] = weigh(session, &tokenizer.encode(paraphrase)?, &ends).await?;
        paraphrases_new += usize::from(new > old);
    }
    let edited = answer(session, tokenizer, template, &one.question).await?;
    session.rows_mut().set_overlay(Overlay::default());
    let mut kl_unrelated = 0f64;
    for text in unrelated::TEXTS {
        let moved = unrelated::moved(session, tokenizer, &overlay, text).await?;
        kl_unrelated = kl_unrelated.max(moved.unwrap_or_default());
    }
    let paraphrases = row.paraphrase_prompts.len();
    let in_most = 4 * paraphrases_new >= 3 * paraphrases;
    let worked = said && in_most && names(&edited, new) && !names(&edited, old);
    let shown = Shown {
        relation: row.relation.clone(),
        subject: row.subject.clone(),
        with: with.clone(),
        prompt: row.prompt.clone(),
        question: one.question.clone(),
        old: old.trim().to_owned(),
        new: new.trim().to_owned(),
        before,
        after,
        answers: [one.answer.clone(), edited],
        paraphrases,
        paraphrases_new,
        kl_unrelated,
    };
    Ok((shown, worked))
}

/// The probabilities of two ends.
async fn weigh<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    prompt: &[u32],
    ends: &[Vec<u32>; 2],
) -> Result<[f64; 2]> {
    let sums = endings(session, prompt, ends).await?;
    Ok([sums[0].exp(), sums[1].exp()])
}

/// The greedy answer to `question` in a new chat.
async fn answer<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokenizer: &Tokenizer,
    template: &Template,
    question: &str,
) -> Result<String> {
    let messages = [Message { role: Role::User, content: question.to_owned() }];
    let context = session.backend().capacity();
    let prompt = chat::prompt(tokenizer, template, &messages, context, ANSWER_TOKENS)?;
    let said = session.generate(&prompt.tokens, &Sampling::greedy(ANSWER_TOKENS), &mut ()).await?;
    Ok(tokenizer.decode(&said.tokens)?.trim().to_owned())
}

/// Those that come first, then the surest; a subject once, few of one relation.
fn choose(mut works: Vec<Shown>, search: &Search) -> Vec<Shown> {
    let first = |s: &Shown| search.first.iter().any(|(a, b)| *a == s.subject && *b == s.with);
    works.sort_by(|a, b| first(b).cmp(&first(a)).then(b.after[1].total_cmp(&a.after[1])));
    let mut chosen: Vec<Shown> = Vec::new();
    // More of one relation only where there are too few of others.
    for most in OF_A_RELATION..=search.wanted.max(OF_A_RELATION) {
        for shown in &works {
            let alike = chosen.iter().filter(|c| c.relation == shown.relation).count();
            let used = |name: &String| chosen.iter().any(|c| c.subject == *name || c.with == *name);
            if chosen.len() < search.wanted && alike < most && !used(&shown.subject) && !used(&shown.with) {
                chosen.push(shown.clone());
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(relation: &str, subject: &str, target: &str) -> Row {
        serde_json::from_value(serde_json::json!({
            "relation": relation, "subject": subject, "subject_new": "x", "prompt": format!("{subject}:"),
            "paraphrase_prompts": ["It is", format!("Q: What of {subject}?\nA:")],
            "target_true": target, "target_new": " x", "locality_prompts": [],
        }))
        .unwrap()
    }

    fn shown(relation: &str, subject: &str, with: &str, new: f64) -> Shown {
        Shown {
            relation: relation.into(),
            subject: subject.into(),
            with: with.into(),
            prompt: String::new(),
            question: String::new(),
            old: String::new(),
            new: String::new(),
            before: [0.0; 2],
            after: [0.0, new],
            answers: [String::new(), String::new()],
            paraphrases: 0,
            paraphrases_new: 0,
            kl_unrelated: 0.0,
        }
    }

    #[test]
    fn entities_are_paired_within_their_relation() {
        let rows = [row("c", "A", " 1"), row("c", "B", " 2"), row("d", "C", " 3"), row("c", "D", " 1")];
        let facts: Vec<Fact<'_>> = rows
            .iter()
            .map(|row| Fact { row, question: question(row).unwrap(), answer: String::new() })
            .collect();
        assert_eq!(facts[0].question, "What of A?");
        let mut search = Search { wanted: 2, partners: 1, first: vec![("D".into(), "B".into())] };
        // A and D have the same answer; C has nobody.
        assert_eq!(pairs(&facts, &search), [(3, 1), (0, 1), (1, 3)]);
        search.partners = 9;
        assert_eq!(pairs(&facts, &search), [(3, 1), (0, 1), (1, 3), (1, 0)]);
    }

    #[test]
    fn the_surest_are_chosen_of_several_kinds() {
        let mut search = Search { wanted: 3, partners: 1, first: vec![("S".into(), "G".into())] };
        let works = vec![
            shown("c", "A", "B", 0.9),
            shown("c", "S", "G", 0.5),
            shown("c", "H", "I", 0.8),
            shown("d", "A", "J", 0.7),
            shown("d", "K", "L", 0.1),
        ];
        let mut chosen = |wanted| {
            search.wanted = wanted;
            choose(works.clone(), &search).into_iter().map(|s| s.subject).collect::<Vec<_>>()
        };
        assert_eq!(chosen(3), ["S", "A", "K"]);
        assert_eq!(chosen(9), ["S", "A", "K", "H"]);
        assert!(names("It is madrid.", " Madrid") && !names("Rome", " Madrid"));
    }
}
