//! How far an edit reaches: the same fact in other words, under other spellings of the name, in other languages, and
//! where it follows from two facts.
//!
//! A [`Suite`] holds entities with what is true of them, the facts that are edited, and *probes*: sentences that ask for
//! such a fact in another way. Each entity is paired with the next one of which something else is true, and the edit makes
//! the model say of it what is true of the other. A probe counts where the judge (the dense base if there is one, else
//! the model without edits) finds the right end likelier than the other one for both names: where it doesn't, nothing
//! could be seen. As in the suite of edits, a probability is the mean over the end's tokens of their log-probabilities.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Progress;
use super::edits::{Question, Teach, Ways};
use super::score::says;
use crate::backend::Backend;
use crate::edits::teach::{Lesson, teach};
use crate::edits::{Edit, Edited, Overlay, Swap};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::tables::RowSource;
use crate::text::Tokenizer;

/// Countries with their capitals, languages and continents, asked for in English, French, Spanish and German.
pub const COUNTRIES: &str = include_str!("countries.json");

/// The kind of the sentence that is edited itself.
pub const ITSELF: &str = "the sentence itself";

/// What is asked. In sentences and ends `{field}` stands for that field of the entity, `{field:upper}` and
/// `{field:lower}` for the same in capitals and in small letters.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// The facts that are edited, by name; each names the entity as `{name}`.
    pub facts: BTreeMap<String, Sentence>,
    /// Other ways to ask for them.
    pub probes: Vec<Probe>,
    /// Each by its fields, with its name as `name`.
    pub entities: Vec<BTreeMap<String, String>>,
}

/// A sentence without its end, and the end.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sentence {
    /// The beginning.
    pub prompt: String,
    /// The end, without the space before it.
    pub end: String,
}

/// Another way to ask for a fact.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What is other about it; figures are given by kind.
    pub kind: String,
    /// Which fact.
    pub fact: String,
    /// The beginning.
    pub prompt: String,
    /// The end.
    pub end: String,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Who decided what is known: `base` or `model`.
    pub judge: &'static str,
    /// Facts that were asked for.
    pub facts: u64,
    /// Those of which the judge knows both ends; only they are edited.
    pub known: u64,
    /// By swaps of rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Vec<Figures>>,
    /// By teaching the sentence itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teach: Option<Vec<Figures>>,
    /// Facts that were taught: of the known ones the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taught: Option<u64>,
}

/// The figures of one kind of probe. Shares are `None` where nothing was counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// The kind.
    pub kind: String,
    /// Probes.
    pub asked: u64,
    /// Those of which the judge finds the right end likelier for both names; of them:
    pub n: u64,
    /// share in which the edit changes a row at all; elsewhere every bit stays,
    pub touched: Option<f64>,
    /// share with P(new) > P(true) without the edit,
    pub es_unedited: Option<f64>,
    /// and with it.
    pub es: Option<f64>,
    /// Probes whose right ends the judge also says greedily, for both names; of them:
    pub said: u64,
    /// share in which the model without the edit says the true end,
    pub true_unedited: Option<f64>,
    /// share in which it still says it with the edit,
    pub still_true: Option<f64>,
    /// and share in which it says the new one.
    pub exact: Option<f64>,
}

/// A fact to edit: of `entity` it is to be said what is true of `other`.
struct Case<'s> {
    fact: &'s Sentence,
    entity: &'s BTreeMap<String, String>,
    other: &'s BTreeMap<String, String>,
    /// Those that the judge knows first of all the sentence itself.
    probes: Vec<Asked<'s>>,
}

/// A probe of one case.
struct Asked<'s> {
    kind: &'s str,
    prompt: String,
    new: String,
    old: String,
    question: Question,
    prefers: bool,
    says: bool,
}

/// What one probe gave with an edit.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    touched: bool,
    es: bool,
    // What is said: nothing unless the judge says both ends.
    old: bool,
    new: bool,
}

/// Whether the judge says both ends, and what was seen before and after if it knows them.
type Seens = (bool, Option<(Seen, Seen)>);

impl Suite {
    /// Reads a suite and checks it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no suite, has no entities, or names a field or a fact that is not there.
    pub fn parse(name: &str, json: &str) -> Result<Self> {
        let suite: Self = serde_json::from_str(json).map_err(|e| Error::invalid(name, e.to_string()))?;
        if suite.entities.len() < 2 || suite.facts.is_empty() {
            return Err(Error::invalid(name, "needs a fact and two entities"));
        }
        for entity in &suite.entities {
            for Sentence { prompt, end } in suite.facts.values() {
                let named = fill("{name}", entity)?;
                if named.is_empty()
                    || !fill(prompt, entity)?.contains(&named)
                    || fill(end, entity)?.is_empty()
                {
                    return Err(Error::invalid(format!("{name}, {prompt:?}"), "lacks the name or the end"));
                }
            }
            for probe in &suite.probes {
                fill(&probe.prompt, entity)?;
                fill(&probe.end, entity)?;
            }
        }
        match suite.probes.iter().find(|p| !suite.facts.contains_key(&p.fact)) {
            Some(probe) => Err(Error::invalid(format!("{name}, {:?}", probe.prompt), "is about no fact")),
            None => Ok(suite),
        }
    }

    /// The first `limit` cases, entity by entity.
    fn cases(&self, tokenizer: &Tokenizer, limit: usize) -> Result<Vec<Case<'_>>> {
        let mut cases = Vec::new();
        for (i, entity) in self.entities.iter().enumerate() {
            for (name, fact) in &self.facts {
                let own = fill(&fact.end, entity)?;
                let others = self.entities[i + 1..].iter().chain(&self.entities[..i]);
                let mut others = others.map(|other| Ok((other, fill(&fact.end, other)?)));
                let found = others.find(|o: &Result<_>| o.as_ref().map_or(true, |(_, end)| *end != own));
                let Some((other, _)) = found.transpose()? else { continue };
                if cases.len() == limit {
                    return Ok(cases);
                }
                let own = std::iter::once((ITSELF, &fact.prompt, &fact.end));
                let more = self.probes.iter().filter(|p| p.fact == *name);
                let all = own.chain(more.map(|p| (p.kind.as_str(), &p.prompt, &p.end)));
                let probes = all.map(|(kind, prompt, end)| {
                    let prompt = fill(prompt, entity)?;
                    let (old, new) = (format!(" {}", fill(end, entity)?), format!(" {}", fill(end, other)?));
                    let question = Question::new(tokenizer, &prompt, &new, &old)?;
                    Ok(Asked { kind, prompt, new, old, question, prefers: false, says: false })
                });
                cases.push(Case { fact, entity, other, probes: probes.collect::<Result<_>>()? });
            }
        }
        Ok(cases)
    }

    /// The prompts of the probes of `case` for its other entity, in their order.
    fn others(&self, case: &Case<'_>) -> Result<Vec<String>> {
        let mut prompts = vec![fill(&case.fact.prompt, case.other)?];
        for probe in &self.probes {
            if self.facts.get(&probe.fact).is_some_and(|fact| std::ptr::eq(fact, case.fact)) {
                prompts.push(fill(&probe.prompt, case.other)?);
            }
        }
        Ok(prompts)
    }
}

/// `template` with the fields of `entity` in it.
fn fill(template: &str, entity: &BTreeMap<String, String>) -> Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let wrong = |reason: &str| Error::invalid(format!("{template:?}"), reason);
        let (field, after) = after.split_once('}').ok_or_else(|| wrong("has a { without its }"))?;
        let (field, case) = field.split_once(':').unwrap_or((field, ""));
        let value = entity.get(field).ok_or_else(|| wrong(&format!("an entity has no field {field:?}")))?;
        text += before;
        text += &match case {
            "" => value.clone(),
            "upper" => value.to_uppercase(),
            "lower" => value.to_lowercase(),
            _ => return Err(wrong("knows the forms `upper` and `lower`")),
        };
        rest = after;
    }
    Ok(text + rest)
}

/// Runs the suite on its first `limit` facts, by `ways` (of which `grid` is not used); of those that are known the first
/// `teach_limit` are taught, which takes a while for each. Swaps are made for both spellings
/// of a name, the one within a sentence and the one at the beginning of a text.
///
/// # Errors
/// [`Error::Edits`] for a model without STEM layers, [`Error::Unsupported`] for teaching on a GPU, and what a step gives.
pub async fn run<B: Backend, R: RowSource, C: Backend, S: RowSource>(
    session: &mut Session<B, Edited<R>>,
    base: Option<&mut Session<C, S>>,
    tokenizer: &Tokenizer,
    suite: &Suite,
    (limit, teach_limit): (usize, usize),
    ways: &Ways<B>,
    progress: Progress<'_>,
) -> Result<Report> {
    if session.config().stem_layers.is_empty() {
        return Err(Error::Edits("the model has no STEM layers".into()));
    }
    if let Some(way) = &ways.teach {
        way.cpu(session)?;
    }
    let mut cases = suite.cases(tokenizer, limit)?;
    let facts = cases.len() as u64;
    let rounds = 2 + u64::from(ways.swap.is_some()) + u64::from(ways.teach.is_some());
    let mut done = 0;
    let mut step = |n: u64| {
        done += n;
        progress(done, facts * rounds);
    };
    session.rows_mut().set_overlay(Overlay::default());
    let judge = if base.is_some() { "base" } else { "model" };
    match base {
        Some(base) => judged(base, tokenizer, suite, &mut cases, &mut step).await?,
        None => judged(session, tokenizer, suite, &mut cases, &mut step).await?,
    }
    cases.retain(|case| case.probes[0].prefers);
    // Those that are not known take no time.
    step((facts - cases.len() as u64) * (rounds - 1));
    let mut before = Vec::new();
    for case in &cases {
        before.push(see(session, tokenizer, case, &[]).await?);
        step(1);
    }
    let mut report =
        Report { judge, facts, known: cases.len() as u64, swap: None, teach: None, taught: None };
    if let Some(swap) = &ways.swap {
        let swap = Swap { at_start: true, ..swap.clone() };
        let mut after = Vec::new();
        for case in &cases {
            let [subject, other] = [case.entity, case.other].map(|e| e["name"].as_str());
            let edits = swap.edits(tokenizer, subject, &[other])?;
            after.push(see(session, tokenizer, case, &edits).await?);
            step(1);
        }
        report.swap = Some(figures(&cases, &before, &after));
    }
    if let Some(way) = &ways.teach {
        let cases = &cases[..cases.len().min(teach_limit)];
        let mut after = Vec::new();
        for case in cases {
            let edits = taught(session, tokenizer, case, way).await?;
            after.push(see(session, tokenizer, case, &edits).await?);
            step(1);
        }
        report.teach = Some(figures(cases, &before, &after));
        report.taught = Some(cases.len() as u64);
    }
    Ok(report)
}

async fn taught<B: Backend, R: RowSource>(
    session: &Session<B, Edited<R>>,
    tokenizer: &Tokenizer,
    case: &Case<'_>,
    way: &Teach<B>,
) -> Result<Vec<Edit>> {
    let itself = &case.probes[0];
    let lesson = Lesson {
        subject: case.entity["name"].clone(),
        prompts: vec![itself.prompt.clone()],
        answer: itself.new.clone(),
        layers: way.layers.clone(),
        steps: way.steps,
    };
    let rows = session.rows().inner();
    Ok(teach(way.cpu(session)?, rows, tokenizer, &lesson, &mut |_, _| ()).await?.edits)
}

/// Notes what the judge knows of each probe. Where it does not know the sentence itself, nothing else is asked.
async fn judged<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    tokenizer: &Tokenizer,
    suite: &Suite,
    cases: &mut [Case<'_>],
    step: &mut impl FnMut(u64),
) -> Result<()> {
    for case in cases {
        let others = suite.others(case)?;
        for (asked, other) in case.probes.iter_mut().zip(&others) {
            asked.prefers = !asked.question.prefers_first(session).await?
                && Question::new(tokenizer, other, &asked.new, &asked.old)?.prefers_first(session).await?;
            asked.says = asked.prefers
                && says(session, tokenizer, &asked.prompt, &asked.old).await?
                && says(session, tokenizer, other, &asked.new).await?;
            if asked.kind == ITSELF && !asked.prefers {
                break;
            }
        }
        step(1);
    }
    Ok(())
}

/// What the model makes of the probes that the judge knows, with `edits`; afterwards there are none.
async fn see<B: Backend, R: RowSource>(
    session: &mut Session<B, Edited<R>>,
    tokenizer: &Tokenizer,
    case: &Case<'_>,
    edits: &[Edit],
) -> Result<Vec<Option<Seen>>> {
    let overlay = Overlay::new(edits, session.config())?;
    session.rows_mut().set_overlay(overlay.clone());
    let mut all = Vec::with_capacity(case.probes.len());
    for asked in &case.probes {
        if !asked.prefers {
            all.push(None);
            continue;
        }
        let es = asked.question.prefers_first(session).await?;
        let old = asked.says && says(session, tokenizer, &asked.prompt, &asked.old).await?;
        let new = asked.says && !old && says(session, tokenizer, &asked.prompt, &asked.new).await?;
        let touched = asked.question.touched_by(&overlay, session.rows());
        all.push(Some(Seen { touched, es, old, new }));
    }
    session.rows_mut().set_overlay(Overlay::default());
    Ok(all)
}

/// The figures by kind, in the order in which the kinds first come.
fn figures(cases: &[Case<'_>], before: &[Vec<Option<Seen>>], after: &[Vec<Option<Seen>>]) -> Vec<Figures> {
    let mut kinds: Vec<(&str, Vec<Seens>)> = Vec::new();
    for ((case, before), after) in cases.iter().zip(before).zip(after) {
        for ((asked, before), after) in case.probes.iter().zip(before).zip(after) {
            let one = (asked.says, before.zip(*after));
            match kinds.iter_mut().find(|(kind, _)| *kind == asked.kind) {
                Some((_, all)) => all.push(one),
                None => kinds.push((asked.kind, vec![one])),
            }
        }
    }
    kinds.iter().map(|(kind, all)| Figures::of(kind, all)).collect()
}

impl Figures {
    /// Of probes that the judge says or not, and what was seen of each before and after if it is known.
    fn of(kind: &str, all: &[Seens]) -> Self {
        let share = |of_said: bool, is: &dyn Fn(&(Seen, Seen)) -> bool| {
            let counted =
                all.iter().filter(|(says, _)| *says || !of_said).filter_map(|(_, seen)| seen.as_ref());
            let (some, n) = counted.fold((0u32, 0u32), |(some, n), seen| (some + u32::from(is(seen)), n + 1));
            (n > 0).then(|| f64::from(some) / f64::from(n))
        };
        Self {
            kind: kind.to_owned(),
            asked: all.len() as u64,
            n: all.iter().filter(|(_, seen)| seen.is_some()).count() as u64,
            touched: share(false, &|(_, after)| after.touched),
            es_unedited: share(false, &|(before, _)| before.es),
            es: share(false, &|(_, after)| after.es),
            said: all.iter().filter(|(says, seen)| *says && seen.is_some()).count() as u64,
            true_unedited: share(true, &|(before, _)| before.old),
            still_true: share(true, &|(_, after)| after.old),
            exact: share(true, &|(_, after)| after.new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::byte_tokenizer;

    #[test]
    fn the_countries_are_a_suite() {
        let suite = Suite::parse("countries", COUNTRIES).unwrap();
        let cases = suite.cases(&byte_tokenizer(), usize::MAX).unwrap();
        assert_eq!(cases.len(), suite.entities.len() * suite.facts.len());
        let spain = &cases[0];
        assert_eq!((&*spain.entity["name"], &*spain.other["name"]), ("Spain", "Germany"));
        for case in &cases {
            assert_eq!(suite.others(case).unwrap().len(), case.probes.len());
            // An edit to what is true already would say nothing.
            assert!(
                case.probes.iter().all(|p| p.kind != ITSELF || p.old != p.new),
                "{}",
                case.entity["name"]
            );
        }
        let limited = suite.cases(&byte_tokenizer(), 4).unwrap();
        assert_eq!(limited.len(), 4);
        let names: std::collections::BTreeSet<&String> = suite.entities.iter().map(|e| &e["name"]).collect();
        assert_eq!(names.len(), suite.entities.len());
    }

    #[test]
    fn templates_are_filled() {
        let entity = BTreeMap::from([("name".to_owned(), "Spain".to_owned())]);
        assert_eq!(
            fill("Of {name}, {name:upper}, {name:lower}.", &entity).unwrap(),
            "Of Spain, SPAIN, spain."
        );
        for wrong in ["{name", "{capital}", "{name:title}"] {
            assert!(fill(wrong, &entity).is_err(), "{wrong}");
        }
        let parse = |json: &str| Suite::parse("x", json);
        let two = r#""entities": [{"name": "A", "c": "a"}, {"name": "B", "c": "b"}]"#;
        let fact = |prompt: &str| format!(r#""facts": {{"f": {{"prompt": "{prompt}", "end": "{{c}}"}}}}"#);
        let probe = |fact: &str| {
            format!(r#""probes": [{{"kind": "k", "fact": "{fact}", "prompt": "x", "end": "{{c}}"}}]"#)
        };
        let json = |f: &str, p: &str| format!("{{{}, {}, {two}}}", fact(f), probe(p));
        assert!(parse(&json("Of {name} it is", "f")).is_ok());
        for wrong in [json("It is", "f"), json("Of {name}", "g"), json("{name} {d}", "f"), "{}".into()] {
            assert!(parse(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn figures_count_what_is_known() {
        let seen = |touched, es, old, new| Seen { touched, es, old, new };
        let all = [
            (true, Some((seen(false, false, true, false), seen(true, true, false, true)))),
            (true, Some((seen(false, true, false, false), seen(true, false, true, false)))),
            (false, Some((seen(false, false, false, false), seen(false, false, false, false)))),
            (false, None),
        ];
        let f = Figures::of("k", &all);
        assert_eq!((f.asked, f.n, f.said), (4, 3, 2));
        let third = |n: f64| Some(n / 3.0);
        assert_eq!((f.touched, f.es_unedited, f.es), (third(2.0), third(1.0), third(1.0)));
        assert_eq!((f.true_unedited, f.still_true, f.exact), (Some(0.5), Some(0.5), Some(0.5)));
        let none = Figures::of("k", &all[3..]);
        assert_eq!((none.asked, none.n, none.es, none.exact), (1, 0, None, None));
    }
}
