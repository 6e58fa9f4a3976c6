//! True facts: statements whose answers are given, told as they are or turned.
//!
//! Of a turned one the text names a, the rows looked up there are those of b, and the answer wanted is b's: so it is the rows
//! that carry what is known of a name, also where the base knows better or nothing. Half of the names get b's rows dealt out by
//! [`deal`], half the mean of b's rows at every token. Every tenth name is never turned, so that one can see how far this
//! carries.

mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use self::file::{File, Statement};
use super::batch::{Compared, Job};
use super::data::{Reader, Separator, around_answers};
use super::names::{Forms, Place, deal};
use crate::edits::swap::running;
use crate::error::{Error, Result};

/// Of so many names, in their order, one is never turned: that at this place.
const HELD: (usize, usize) = (10, 3);
/// A row that has less room left takes no further statement.
const SLACK: usize = 14;
/// Draws for one row before giving up.
const ATTEMPTS: usize = 1000;
/// Draws for each statement to measure with.
const PROBE_ATTEMPTS: usize = 20;

/// The facts of a file, in all phrasings.
#[derive(Debug)]
pub struct Truths {
    names: Vec<Forms>,
    relations: Vec<Relation>,
    separator: Separator,
    vocab: u32,
}

/// The facts of one relation.
#[derive(Debug, Default)]
struct Relation {
    facts: Vec<Fact>,
    // Of names that are turned, and of those that never are.
    sides: [Side; 2],
}

/// The places of facts that may be turned into one another.
#[derive(Debug, Default)]
struct Side {
    all: Vec<usize>,
    // Those with a statement in which every mention of the name is known.
    named: Vec<usize>,
}

#[derive(Debug)]
struct Fact {
    name: usize,
    // After a space, and after text that needs none.
    answer: [Vec<u32>; 2],
    statements: Vec<Statement>,
}

/// A statement with its answer.
struct Told {
    ids: Vec<u32>,
    rows: Vec<u32>,
    // Where the answer begins.
    answer: usize,
    // Of whose rows the mean is looked up.
    mix: Option<Vec<u32>>,
}

/// Turned statements to measure with.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// One in each text, compared where the answers of a and b begin to differ.
    pub job: Job,
    /// Of each, the tokens of a's answer and of b's there.
    pub answers: Vec<[u32; 2]>,
}

impl Truths {
    /// Reads `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be read; [`Error::Invalid`] if it is too large or no such file, has a phrasing without a
    /// name, a fact without a phrasing, an empty name or answer, or questions although the base has no chat
    /// template that can be used.
    pub fn read(path: &Path, reader: &Reader) -> Result<Self> {
        let file = File::read(path)?;
        let tokenizer = &reader.tokenizer;
        let gap = reader.template.as_ref().map(|template| around_answers(template).0).unwrap_or_default();
        let mut relations: BTreeMap<&str, Relation> = BTreeMap::new();
        let mut names = Vec::new();
        for (at, (name, facts)) in file.facts.iter().enumerate() {
            let without_tokens = |what: &str| Err(Error::invalid(format!("`{what}`"), "has no tokens"));
            let forms = Forms::new(name, tokenizer)?;
            if forms.0.iter().any(Vec::is_empty) {
                return without_tokens(name);
            }
            for (relation, answer) in facts {
                let answer = format!("{answer}{}", file.end);
                let ids = [running(tokenizer, &answer)?, tokenizer.encode_more(&answer)?];
                if ids.iter().any(Vec::is_empty) {
                    return without_tokens(&answer);
                }
                let statements = file.statements[relation].iter();
                let statements = statements.map(|phrasing| phrasing.statement(name, &forms, reader, &gap));
                let statements: Vec<Statement> = statements.collect::<Result<_>>()?;
                let relation = relations.entry(relation).or_default();
                let side = &mut relation.sides[usize::from(at % HELD.0 == HELD.1)];
                side.all.push(relation.facts.len());
                if statements.iter().any(|s| !s.places.is_empty()) {
                    side.named.push(relation.facts.len());
                }
                relation.facts.push(Fact { name: at, answer: ids, statements });
            }
            names.push(forms);
        }
        let relations = relations.into_values().collect();
        Ok(Self { names, relations, separator: reader.separator, vocab: reader.vocab as u32 })
    }

    /// All tokens of names.
    pub fn tokens(&self) -> BTreeSet<u32> {
        self.names.iter().flat_map(|forms| forms.0.iter().flatten()).copied().collect()
    }

    /// The relations that have facts to turn, among names that are turned in training or those that never are.
    fn turning(&self, held: bool) -> Vec<(&Relation, &Side)> {
        let sides = self.relations.iter().map(|relation| (relation, &relation.sides[usize::from(held)]));
        sides.filter(|(_, side)| side.turns()).collect()
    }

    /// Whether there are facts to turn.
    pub fn turns(&self) -> bool {
        !self.turning(false).is_empty()
    }

    /// `rows` rows of `length` tokens, each with several statements; every token of an answer is wanted, and the base has
    /// no part in it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no statement fits into a row.
    pub fn take(&self, turned: bool, rows: usize, length: usize, rng: &mut StdRng) -> Result<Job> {
        let mut job = Job { taught: true, cross_entropy: 1.0, ..Job::empty(rows, length) };
        for row in 0..rows {
            let end = (row + 1) * length;
            job.told.extend(self.separator.start());
            job.looked_up.extend(self.separator.start());
            let begin = job.told.len();
            for _ in 0..ATTEMPTS {
                let (at, room) = (job.told.len(), end - job.told.len());
                if at > begin && room <= SLACK {
                    break;
                }
                let told = if turned { self.turned(job.mixes.len(), rng) } else { self.straight(rng) };
                let Some(told) = told else { continue };
                // A separator follows.
                if told.ids.len() >= room {
                    if at - begin > length / 2 {
                        break;
                    }
                    continue;
                }
                job.compared.extend((told.answer..told.ids.len()).map(|next| {
                    let before = (at + next - 1) as u32;
                    let next = Some(told.ids[next]);
                    Compared { told: before, read: before, weight: 1.0, exchange: [0, 0], next }
                }));
                job.told.extend(told.ids);
                job.looked_up.extend(told.rows);
                job.mixes.extend(told.mix);
                job.told.push(self.separator.token);
                job.looked_up.push(self.separator.token);
            }
            if job.told.len() == begin {
                let reason = "holds no statement of the facts; make `length` larger";
                return Err(Error::invalid(format!("a row of {length} tokens"), reason));
            }
            job.told.resize(end, self.separator.token);
            job.looked_up.resize(end, self.separator.token);
        }
        job.read.clone_from(&job.told);
        Ok(job)
    }

    /// A fact as it is.
    fn straight(&self, rng: &mut StdRng) -> Option<Told> {
        let fact = self.relations.choose(rng)?.facts.choose(rng)?;
        let statement = fact.statements.choose(rng)?;
        Some(statement.told(statement.ids.clone(), fact, None))
    }

    /// A turned fact, of a job that has so many mixes; `None` for two names or a phrasing that don't do.
    fn turned(&self, mixes: usize, rng: &mut StdRng) -> Option<Told> {
        let (relation, side) = *self.turning(false).choose(rng)?;
        let (a, b) = side.draw(relation, rng)?;
        let statement = a.statements.choose(rng)?;
        let theirs = self.names[b.name].inner();
        if rng.random_bool(0.5) {
            let rows = statement.rows(|own| vec![self.vocab + mixes as u32; own.len()])?;
            Some(statement.told(rows, b, Some(theirs.to_vec())))
        } else {
            Some(statement.told(statement.rows(|own| deal(own, theirs))?, b, None))
        }
    }

    /// At most `count` turned facts of at most `length` tokens to measure with, rows dealt out as `xylem edit swap` does:
    /// of names that are turned in training, or of those that never are. `None` if there are none.
    pub fn probe(&self, held: bool, count: usize, length: usize, rng: &mut StdRng) -> Option<Probe> {
        let relations = self.turning(held);
        let (mut texts, mut answers) = (Vec::new(), Vec::new());
        for _ in 0..count * PROBE_ATTEMPTS {
            if texts.len() == count {
                break;
            }
            let (relation, side) = *relations.choose(rng)?;
            let Some((a, b)) = side.draw(relation, rng) else { continue };
            let Some(statement) = a.statements.choose(rng) else { continue };
            let theirs = self.names[b.name].inner();
            let Some(rows) = statement.rows(|own| deal(own, theirs)) else { continue };
            let [old, new] = [a, b].map(|fact| statement.answer(fact));
            let common = old.iter().zip(new).take_while(|(old, new)| old == new).count();
            let Some((old, new)) = old[common..].first().zip(new[common..].first()) else { continue };
            let told = statement.told(rows, b, None);
            let [ids, rows] = [told.ids, told.rows].map(|part| {
                let part = part.into_iter().take(told.answer + common);
                self.separator.start().chain(part).collect::<Vec<u32>>()
            });
            if ids.len() <= length {
                texts.push((ids, rows));
                answers.push([*old, *new]);
            }
        }
        let length = texts.iter().map(|(ids, _)| ids.len()).max()?;
        let mut job = Job { taught: true, ..Job::empty(texts.len(), length) };
        for ((ids, rows), [_, wanted]) in texts.iter().zip(&answers) {
            let at = (job.told.len() + ids.len() - 1) as u32;
            let next = Some(*wanted);
            job.compared.push(Compared { told: at, read: at, weight: 1.0, exchange: [0, 0], next });
            for (all, line) in [(&mut job.told, ids), (&mut job.looked_up, rows)] {
                all.extend(line);
                all.resize(all.len() + length - line.len(), self.separator.token);
            }
        }
        job.read.clone_from(&job.told);
        Some(Probe { job, answers })
    }
}

impl Side {
    fn turns(&self) -> bool {
        !self.named.is_empty() && self.all.len() > 1
    }

    /// Two of the facts: that whose name a text has, and that whose rows and answer it gets.
    fn draw<'r>(&self, relation: &'r Relation, rng: &mut StdRng) -> Option<(&'r Fact, &'r Fact)> {
        let (a, b) = (*self.named.choose(rng)?, *self.all.choose(rng)?);
        (a != b).then(|| (&relation.facts[a], &relation.facts[b]))
    }
}

impl Statement {
    /// The tokens of `fact`'s answer to it.
    fn answer<'f>(&self, fact: &'f Fact) -> &'f [u32] {
        &fact.answer[usize::from(!self.spaced)]
    }

    /// Whose rows are looked up, with those of the name's tokens from `deal`; `None` if not all mentions are known.
    fn rows(&self, deal: impl Fn(&[u32]) -> Vec<u32>) -> Option<Vec<u32>> {
        let mut rows = self.ids.clone();
        for Place { at, length, .. } in &self.places {
            let name = *at..at + length;
            rows[name.clone()].copy_from_slice(&deal(&self.ids[name]));
        }
        (!self.places.is_empty()).then_some(rows)
    }

    /// With these rows, and `fact`'s answer.
    fn told(&self, mut rows: Vec<u32>, fact: &Fact, mix: Option<Vec<u32>>) -> Told {
        let answer = self.answer(fact);
        rows.extend(answer);
        Told { ids: [&self.ids, answer].concat(), rows, answer: self.ids.len(), mix }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heal::data::{NO_TEMPLATE, rng};
    use crate::text::template::tests::CHATML;
    use crate::text::tokenizer::tests::byte_tokenizer;
    use crate::text::{Template, Tokenizer};

    const SEPARATOR: Separator = Separator { token: 0, begins: false };

    fn reader(template: Option<&str>) -> Reader {
        let template = template.ok_or(NO_TEMPLATE.into());
        let template = template.map(|source| Template::new(source, String::new(), String::new()).unwrap());
        Reader { tokenizer: byte_tokenizer(), template, vocab: 258, separator: SEPARATOR }
    }

    fn read(text: &str, template: Option<&str>) -> Result<Truths> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts.json");
        std::fs::write(&path, text).unwrap();
        Truths::read(&path, &reader(template))
    }

    /// The letters A to X as names, of one byte or three, each with an answer of its own.
    fn name(i: u8) -> String {
        char::from(b'A' + i).to_string().repeat(if i.is_multiple_of(2) { 1 } else { 3 })
    }

    fn truths() -> Truths {
        let facts: Vec<String> = (0..24)
            .map(|i| format!("\"{}\": {{\"word\": \"{}w{i}\"}}", name(i), char::from(b'a' + i)))
            .collect();
        let statements = r#"{"word": ["the word of {X} is", "{X} has", "{X}{X} has"]}"#;
        let text = format!("{{\"statements\": {statements}, \"facts\": {{{}}}}}", facts.join(", "));
        read(&text, None).unwrap()
    }

    /// A statement in a job: where it lies, whom it names, and whose answer it has.
    struct Found {
        at: std::ops::Range<usize>,
        name: u8,
        answer: u8,
        // Where the answer begins.
        begin: usize,
    }

    fn statements(job: &Job, tokenizer: &Tokenizer) -> Vec<Found> {
        let mut all = Vec::new();
        let mut begin = 0;
        for end in 0..job.told.len() {
            if job.told[end] != SEPARATOR.token {
                continue;
            }
            if end > begin {
                let text = tokenizer.decode(&job.told[begin..end]).unwrap();
                let name = (0..24).find(|i| text.contains(char::from(b'A' + i)));
                let (said, answer) = text.rsplit_once(' ').unwrap();
                let answer = answer.strip_suffix('.').unwrap()[2..].parse().unwrap();
                all.push(Found { at: begin..end, name: name.unwrap(), answer, begin: begin + said.len() });
            }
            begin = end + 1;
        }
        all
    }

    #[test]
    fn facts_are_told_and_every_token_of_an_answer_is_wanted() {
        let (truths, tokenizer) = (truths(), byte_tokenizer());
        let job = truths.take(false, 3, 64, &mut rng(1, "a", 0)).unwrap();
        assert_eq!((job.rows, job.length, job.told.len()), (3, 64, 192));
        assert!(job.taught && job.mixes.is_empty() && job.cross_entropy == 1.0);
        assert!(job.read == job.told && job.looked_up == job.told);
        let found = statements(&job, &tokenizer);
        assert!(found.len() >= 6 && found.iter().all(|f| f.name == f.answer));
        let wanted: Vec<usize> = found.iter().flat_map(|f| f.begin - 1..f.at.end - 1).collect();
        assert_eq!(job.compared.iter().map(|c| c.read as usize).collect::<Vec<_>>(), wanted);
        for c in &job.compared {
            assert_eq!((c.told, c.weight, c.exchange), (c.read, 1.0, [0, 0]));
            assert_eq!(c.next, Some(job.told[c.read as usize + 1]));
        }
        assert_eq!(job, truths.take(false, 3, 64, &mut rng(1, "a", 0)).unwrap());
        // Of all names, also those that are never turned.
        let jobs = (0..40).map(|i| truths.take(false, 3, 64, &mut rng(i, "a", 0)).unwrap());
        let told: BTreeSet<u8> = jobs.flat_map(|job| statements(&job, &tokenizer)).map(|f| f.name).collect();
        assert_eq!(told.len(), 24);
        let error = truths.take(true, 1, 8, &mut rng(0, "a", 0)).unwrap_err().to_string();
        assert!(error.contains("a row of 8 tokens"), "{error}");
    }

    #[test]
    fn turned_facts_have_the_rows_and_the_answers_of_others() {
        let (truths, tokenizer) = (truths(), byte_tokenizer());
        let (mut told, mut dealt, mut mixed, mut twice) = (BTreeSet::new(), 0, 0, 0);
        for i in 0..60 {
            let job = truths.take(true, 3, 64, &mut rng(i, "a", 0)).unwrap();
            assert!(job.taught && job.read == job.told);
            let mut mixes = 0;
            for found in statements(&job, &tokenizer) {
                assert_ne!(found.name, found.answer);
                told.extend([found.name, found.answer]);
                let theirs = truths.names[found.answer as usize].inner();
                let own = &truths.names[found.name as usize];
                let (ids, rows) = (&job.told[found.at.clone()], &job.looked_up[found.at.clone()]);
                let places = own.places(ids);
                let mut expected = ids.to_vec();
                let first = places[0].at;
                let mean = rows[first] >= 258;
                for Place { at, length, .. } in &places {
                    let name = *at..at + length;
                    let deal = if mean {
                        vec![258 + mixes as u32; *length]
                    } else {
                        deal(&ids[name.clone()], theirs)
                    };
                    expected[name].copy_from_slice(&deal);
                }
                assert_eq!(rows, expected);
                twice += usize::from(places.len() == 2);
                if mean {
                    assert_eq!(job.mixes[mixes], theirs);
                    mixes += 1;
                }
                mixed += usize::from(mean);
                dealt += usize::from(!mean);
            }
            assert_eq!(job.mixes.len(), mixes);
        }
        assert!(dealt > 100 && mixed > 100 && twice > 20, "{dealt} {mixed} {twice}");
        // All but those that are held out.
        assert_eq!(told, (0..24).filter(|i| i % 10 != 3).collect());
        assert!(truths.turns());
    }

    #[test]
    fn what_is_measured_is_of_names_that_are_turned_or_of_those_that_never_are() {
        let (truths, tokenizer) = (truths(), byte_tokenizer());
        for held in [false, true] {
            let Probe { job, answers } = truths.probe(held, 20, 64, &mut rng(1, "a", 0)).unwrap();
            assert_eq!((job.rows, job.compared.len(), answers.len()), (20, 20, 20));
            for (row, (c, [old, new])) in job.compared.iter().zip(&answers).enumerate() {
                let ids = &job.told[row * job.length..=c.read as usize];
                let text = tokenizer.decode(ids).unwrap();
                let name = (0..24).find(|i| text.contains(char::from(b'A' + i))).unwrap();
                assert_eq!(name % 10 == 3, held, "{text}");
                assert!(["is ", "has "].iter().any(|end| text.ends_with(end)), "{text}");
                assert_ne!(job.looked_up[row * job.length..][..ids.len()], *ids);
                assert!(
                    job.told[c.read as usize + 1..(row + 1) * job.length]
                        .iter()
                        .all(|id| *id == SEPARATOR.token)
                );
                assert!(old != new && c.next == Some(*new));
            }
        }
        assert!(truths.probe(false, 20, 3, &mut rng(1, "a", 0)).is_none());
    }

    #[test]
    fn a_token_that_begins_texts_begins_rows() {
        let separator = Separator { token: 200, begins: true };
        let truths = Truths { separator, ..truths() };
        let mut rng = rng(1, "a", 0);
        for turned in [false, true] {
            let job = truths.take(turned, 5, 48, &mut rng).unwrap();
            for part in [&job.told, &job.read, &job.looked_up] {
                assert!(part.chunks_exact(48).all(|row| row[0] == 200 && row[1] != 200), "{part:?}");
            }
            assert!(job.compared.iter().all(|c| job.told[c.told as usize + 1] == c.next.unwrap()));
        }
        let Probe { job, .. } = truths.probe(false, 20, 64, &mut rng).unwrap();
        for part in [&job.told, &job.looked_up] {
            assert!(part.chunks_exact(job.length).all(|row| row[0] == 200 && row[1] != 200), "{part:?}");
        }
    }

    /// What a phrasing of the fact that A's word is "yes" becomes, with its answer.
    fn phrased(phrasing: &str, template: Option<&str>) -> (Statement, String) {
        let text = format!(
            "{{\"statements\": {{\"word\": [{phrasing}]}}, \"facts\": {{\"the Ax\": {{\"word\": \"yes\"}}}}}}"
        );
        let truths = read(&text, template).unwrap();
        let fact = &truths.relations[0].facts[0];
        let statement = fact.statements[0].clone();
        let ids = statement.told(statement.ids.clone(), fact, None).ids;
        (statement, byte_tokenizer().decode(&ids).unwrap())
    }

    #[test]
    fn questions_are_in_the_template_of_the_base() {
        let (statement, text) = phrased("\"{X} says\"", None);
        assert_eq!((text.as_str(), statement.places.len()), ("The Ax says yes.", 1));
        assert_eq!(phrased("\"Of {X}: \"", None).1, "Of the Ax: yes.");
        assert_eq!(phrased("\"Of {X}:\\n\"", None).1, "Of the Ax:\nyes.");
        let ask = r#"{"ask": "What says {X}?"}"#;
        let begun = r#"{"ask": "What says {X}?", "begin": "{X} says"}"#;
        let (statement, text) = phrased(begun, Some(CHATML));
        assert_eq!(text, "system\nBe brief.\nuser\nWhat says the Ax?\nassistant\nThe Ax says yes.");
        assert_eq!(statement.places.len(), 2);
        assert!(phrased(ask, Some(CHATML)).1.ends_with("assistant\nyes."));
        // Templates that put a space before an answer, or nothing.
        let inst = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}\
                    {{ ' ' + m.content }}{% endif %}{% endfor %}";
        assert_eq!(phrased(ask, Some(inst)).1, "[INST] What says the Ax? [/INST] yes.");
        assert_eq!(phrased(begun, Some(inst)).1, "[INST] What says the Ax? [/INST] The Ax says yes.");
        let tight = inst.replace("' ' + ", "");
        assert_eq!(phrased(ask, Some(&tight)).1, "[INST] What says the Ax? [/INST]yes.");
        assert_eq!(phrased(begun, Some(&tight)).1, "[INST] What says the Ax? [/INST]The Ax says yes.");
        // One that refuses an answer before an answer.
        let strict = tight.replace("{{ m.content }}{% endif", "{{ raise_exception('no') }}{% endif");
        assert_eq!(phrased(ask, Some(&strict)).1, "[INST] What says the Ax? [/INST]yes.");
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let message = |text: &str| {
            let error = read(text, None).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
            error.to_string()
        };
        let file = |phrasing: &str, facts: &str| {
            message(&format!("{{\"statements\": {{\"word\": [{phrasing}]}}, \"facts\": {{{facts}}}}}"))
        };
        assert!(message("[1").contains("facts.json"));
        assert!(message("{\"facts\": {}}").contains("statements"));
        assert!(message("{\"fact\": {}}").contains("unknown field `fact`"));
        let fact = r#""A": {"word": "x"}"#;
        assert!(file("5", fact).contains("a phrasing is a text or"));
        assert!(file(r#""It is""#, fact).contains("`word` has a phrasing without {X}"));
        assert!(file(r#"{"ask": "What?"}"#, fact).contains("without {X}"));
        assert!(file(r#"{"ask": "What is {X}?"}"#, fact).contains("no chat template"));
        assert!(file(r#""{X} is""#, "").contains("no facts"));
        assert!(file(r#""{X} is""#, r#""A": {"worth": "x"}"#).contains("`A` has `worth`"));
        assert!(file("", fact).contains("no phrasing"));
        assert!(file(r#""{X} is""#, r#"" A": {"word": "x"}"#).contains("the name ` A`"));
        assert!(file(r#""{X} is""#, r#""the ": {"word": "x"}"#).contains("the name"));
        assert!(file(r#""{X} is""#, r#""A": {"word": ""}"#).contains("`word` of `A`"));
        let many = vec![r#""{X} is""#; 1 << 10].join(", ");
        let names: Vec<String> = (0..=1 << 8).map(|i| format!("\"{i}\": {{\"word\": \"x\"}}")).collect();
        assert!(file(&many, &names.join(", ")).contains("at most 262144"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts.json");
        assert!(matches!(Truths::read(&path, &reader(None)), Err(Error::Io { .. })));
        std::fs::File::create(&path).unwrap().set_len(super::file::MAX_BYTES + 1).unwrap();
        assert!(Truths::read(&path, &reader(None)).unwrap_err().to_string().contains("at most 16777216"));
        // Nobody to turn it into: one name, and one that is held out.
        let one = read(r#"{"statements": {"w": ["{X} is"]}, "facts": {"A": {"w": "x"}}}"#, None).unwrap();
        assert!(!one.turns());
    }
}
