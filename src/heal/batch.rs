//! What a step computes: jobs, drawn from the settings' sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::seq::SliceRandom;

use super::data::{Document, Order, Reader, Row, pack, rng};
use super::settings::{Batch, Facts, Settings, Source};
use super::swaps::Swaps;
use super::truths::Truths;
use crate::error::Result;

/// A position at which student and base are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    /// Where the base is, in [`Job::told`].
    pub told: u32,
    /// Where the student is, in [`Job::read`].
    pub read: u32,
    /// Its weight among the job's positions.
    pub weight: f32,
    /// Two tokens that are exchanged in the base's distribution; the same one twice for none.
    pub exchange: [u32; 2],
    /// What comes next in the text, where the text is given.
    pub next: Option<u32>,
}

/// Texts side by side, all `[rows, length]`, and what to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its source, for the log.
    pub label: String,
    /// Weight of its loss.
    pub weight: f64,
    /// Weight of the text's own cross-entropy.
    pub cross_entropy: f64,
    /// Texts side by side.
    pub rows: usize,
    /// Tokens of each.
    pub length: usize,
    /// What the base reads.
    pub told: Vec<u32>,
    /// What the student reads.
    pub read: Vec<u32>,
    /// Whose rows the student looks up; what lies beyond the vocabulary counts the mixes.
    pub looked_up: Vec<u32>,
    /// Tokens, the mean of whose rows is looked up.
    pub mixes: Vec<Vec<u32>>,
    /// Whether the text alone says what is wanted: the base is not asked.
    pub taught: bool,
    /// The positions that count.
    pub compared: Vec<Compared>,
}

impl Job {
    /// A job without text.
    pub fn empty(rows: usize, length: usize) -> Self {
        let (label, told, read, looked_up, mixes, compared) = Default::default();
        let (weight, cross_entropy, taught) = (1.0, 0.0, false);
        Self { label, weight, cross_entropy, rows, length, told, read, looked_up, mixes, taught, compared }
    }

    /// A job in which both read `rows`, each of `length` tokens.
    pub fn plain<'a>(rows: impl IntoIterator<Item = &'a Row>, length: usize) -> Self {
        let mut job = Self::empty(0, length);
        for row in rows {
            let start = job.told.len();
            let positions = row.weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
            job.compared.extend(positions.map(|(at, weight)| Compared {
                told: (start + at) as u32,
                read: (start + at) as u32,
                weight: *weight,
                exchange: [0, 0],
                next: row.ids.get(at + 1).copied(),
            }));
            job.told.extend(&row.ids);
            job.rows += 1;
        }
        job.read.clone_from(&job.told);
        job.looked_up.clone_from(&job.told);
        job
    }

    /// Tokens that the student reads.
    pub fn tokens(&self) -> usize {
        self.read.len()
    }
}

/// Where a source's text comes from.
enum Text {
    Rows(Vec<Row>, Order),
    Swaps(Swaps),
    Facts(Arc<Truths>, Facts),
}

/// A source that is ready to be drawn from.
struct Ready {
    settings: Source,
    label: String,
    text: Text,
}

/// All sources of all batches.
pub struct Batches {
    seed: u64,
    kinds: Vec<(Batch, WeightedIndex<f64>, Vec<Ready>)>,
    documents: BTreeMap<u32, u64>,
}

impl Batches {
    /// Reads all files. `taken` says how many rows of each source have been taken already, by label.
    ///
    /// # Errors
    /// What [`Reader::read`], [`Swaps::new`] and [`Truths::read`] give.
    pub fn new(settings: &Settings, reader: &Reader, taken: &BTreeMap<String, u64>) -> Result<Self> {
        let seed = settings.seed;
        let mut files = BTreeMap::<&Path, Vec<Document>>::new();
        let mut truths = BTreeMap::<&Path, Arc<Truths>>::new();
        let mut counts = BTreeMap::new();
        let mut kinds = Vec::new();
        for (kind, batch) in settings.batch.iter().enumerate() {
            let mut sources = Vec::new();
            for source in &batch.source {
                let label = source.label();
                if let Some(facts) = source.facts {
                    if !truths.contains_key(source.file.as_path()) {
                        truths.insert(&source.file, Arc::new(Truths::read(&source.file, reader)?));
                    }
                    let read = &truths[source.file.as_path()];
                    if facts == Facts::Turned && !read.turns() {
                        let reason = "has no two names of one relation to turn into one another";
                        return Err(crate::Error::invalid(format!("`{label}`"), reason));
                    }
                    let text = Text::Facts(Arc::clone(read), facts);
                    sources.push(Ready { settings: source.clone(), label, text });
                    continue;
                }
                if !files.contains_key(source.file.as_path()) {
                    let read = reader.read(&source.file)?;
                    read.iter().flat_map(|d| &d.ids).for_each(|id| *counts.entry(*id).or_default() += 1);
                    files.insert(&source.file, read);
                }
                let documents = &files[source.file.as_path()];
                // Two batches may read one source, each in an order of its own.
                let key = format!("{kind} {label}");
                let text = if source.swap.is_empty() {
                    let chosen = choose(source, reader, documents, seed)?;
                    let rows = pack(&chosen, batch.length, reader.separator);
                    if rows.is_empty() {
                        return Err(crate::Error::invalid(
                            format!("`{label}`, {} documents", chosen.len()),
                            "leaves no text; look at `skip`, `limit` and `ask`",
                        ));
                    }
                    let order =
                        Order::new(key.clone(), seed, rows.len(), taken.get(&key).copied().unwrap_or(0));
                    Text::Rows(rows, order)
                } else {
                    Text::Swaps(Swaps::new(documents, &source.swap, &reader.tokenizer, reader.separator)?)
                };
                sources.push(Ready { settings: source.clone(), label, text });
            }
            let chances = WeightedIndex::new(batch.source.iter().map(|s| s.chance)).map_err(|e| {
                crate::Error::invalid(format!("chances of batch {}", kind + 1), e.to_string())
            })?;
            kinds.push((batch.clone(), chances, sources));
        }
        Ok(Self { seed, kinds, documents: counts })
    }

    /// How often each token occurs in the files.
    pub fn counts(&self) -> &BTreeMap<u32, u64> {
        &self.documents
    }

    /// The facts that are turned, by source.
    pub fn turned(&self) -> impl Iterator<Item = (&str, usize, &Truths)> {
        let all = self.kinds.iter().flat_map(|(batch, _, sources)| sources.iter().map(move |s| (batch, s)));
        all.filter_map(|(batch, source)| match &source.text {
            Text::Facts(truths, Facts::Turned) => {
                Some((source.label.as_str(), batch.length, truths.as_ref()))
            }
            _ => None,
        })
    }

    /// The tokens of all names that facts are about.
    pub fn names(&self) -> BTreeSet<u32> {
        let sources = self.kinds.iter().flat_map(|(_, _, sources)| sources);
        let tokens = sources.filter_map(|source| match &source.text {
            Text::Facts(truths, _) => Some(truths.tokens()),
            _ => None,
        });
        tokens.flatten().collect()
    }

    /// How many rows of each source have been taken; [`new`](Self::new) goes on from there.
    pub fn taken(&self) -> BTreeMap<String, u64> {
        let all = self.kinds.iter().enumerate().flat_map(|(kind, (_, _, sources))| {
            sources.iter().filter_map(move |source| match &source.text {
                Text::Rows(_, order) => Some((format!("{kind} {}", source.label), order.taken())),
                Text::Swaps(_) | Text::Facts(..) => None,
            })
        });
        all.collect()
    }

    /// The jobs of step number `step`, one for each kind of batch.
    ///
    /// # Errors
    /// As [`Swaps::take`] and [`Truths::take`].
    pub fn step(&mut self, step: u64) -> Result<Vec<Job>> {
        let mut rng = rng(self.seed, "step", step);
        let mut jobs = Vec::new();
        for (batch, chances, sources) in &mut self.kinds {
            let source = &mut sources[chances.sample(&mut rng)];
            let job = match &mut source.text {
                Text::Rows(rows, order) => {
                    let taken: Vec<usize> = (0..batch.rows).map(|_| order.take()).collect();
                    let job = Job::plain(taken.iter().map(|at| &rows[*at]), batch.length);
                    Job { cross_entropy: source.settings.cross_entropy, ..job }
                }
                Text::Swaps(swaps) => swaps.take(batch.rows, batch.length, &mut rng)?,
                Text::Facts(truths, facts) => {
                    truths.take(*facts == Facts::Turned, batch.rows, batch.length, &mut rng)?
                }
            };
            jobs.push(Job { label: source.label.clone(), weight: source.settings.weight, ..job });
        }
        Ok(jobs)
    }
}

/// The documents of a source: shuffled, cut, and turned into answers where it says so.
fn choose(source: &Source, reader: &Reader, all: &[Document], seed: u64) -> Result<Vec<Document>> {
    let mut chosen = all.to_vec();
    // By the file, so that `skip` and `limit` of two sources part its documents.
    chosen.shuffle(&mut rng(seed, &source.file.file_name().unwrap_or_default().to_string_lossy(), 0));
    let chosen = chosen.into_iter().skip(source.skip).take(source.limit.unwrap_or(usize::MAX)).collect();
    if source.ask.is_empty() {
        return Ok(chosen);
    }
    reader.answers(chosen, &source.ask, &mut rng(seed, "ask", 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engram::vectors::Vectors;
    use crate::heal::data::{NO_TEMPLATE, Separator};
    use crate::text::tokenizer::tests::byte_tokenizer;

    const SEPARATOR: Separator = Separator { token: 0, begins: false };

    fn reader() -> Reader {
        let vectors = Vectors::load();
        Reader {
            tokenizer: vectors.tokenizer(),
            template: Err(NO_TEMPLATE.into()),
            vocab: vectors.ids.len(),
            separator: SEPARATOR,
        }
    }

    /// Settings with a file of 20 documents, read as text of two sources.
    fn settings(dir: &Path) -> Settings {
        let lines: String = (0..20).map(|i| format!("{{\"ids\": [{i}, 1, 2, 3, 4, 5, 6, 7]}}\n")).collect();
        std::fs::write(dir.join("a.jsonl"), lines).unwrap();
        let text = "[run]\nsteps = 1\n[[batch]]\nrows = 2\nlength = 8\n[[batch.source]]\nfile = \"a.jsonl\"\n\
                    limit = 9\n[[batch.source]]\nname = \"b\"\nfile = \"a.jsonl\"\nskip = 9\nchance = 0.5\n";
        std::fs::write(dir.join("heal.toml"), text).unwrap();
        Settings::read(&dir.join("heal.toml")).unwrap()
    }

    #[test]
    fn steps_are_the_same_after_an_interruption() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, reader) = (settings(dir.path()), reader());
        let mut batches = Batches::new(&settings, &reader, &BTreeMap::new()).unwrap();
        let all: Vec<Vec<Job>> = (0..30).map(|step| batches.step(step).unwrap()).collect();
        assert!(all.iter().flatten().any(|job| job.label == "a"));
        assert!(all.iter().flatten().any(|job| job.label == "b"));
        let mut first = Batches::new(&settings, &reader, &BTreeMap::new()).unwrap();
        (0..13).for_each(|step| assert_eq!(first.step(step).unwrap(), all[step as usize]));
        let mut second = Batches::new(&settings, &reader, &first.taken()).unwrap();
        (13..30).for_each(|step| assert_eq!(second.step(step).unwrap(), all[step as usize]));
    }

    #[test]
    fn skip_and_limit_part_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut batches = Batches::new(&settings(dir.path()), &reader(), &BTreeMap::new()).unwrap();
        let mut seen = BTreeMap::<u32, std::collections::BTreeSet<String>>::new();
        for step in 0..40 {
            for job in batches.step(step).unwrap() {
                for row in job.told.chunks(8) {
                    seen.entry(row[0]).or_default().insert(job.label.clone());
                }
                assert_eq!(job.compared.len(), 16);
                assert_eq!(job.compared[0].next, Some(1));
                assert_eq!(job.compared[7].next, None);
            }
        }
        assert_eq!(seen.len(), 20);
        assert!(seen.values().all(|labels| labels.len() == 1), "{seen:?}");
    }

    #[test]
    fn facts_are_a_source_like_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        let names: Vec<String> = ('a'..='p').map(|n| format!("\"{n}\": {{\"next\": \"{n}{n}\"}}")).collect();
        let facts = format!("{{{}}}", names.join(", "));
        let text = format!("{{\"statements\": {{\"next\": [\"of {{X}} is\"]}}, \"facts\": {facts}}}");
        std::fs::write(dir.path().join("facts.json"), text).unwrap();
        let source = &mut settings.batch[0].source[1];
        (source.file, source.facts, source.skip) = (dir.path().join("facts.json"), Some(Facts::Turned), 0);
        settings.batch[0].length = 48;
        let mut straight = settings.batch[0].clone();
        straight.source.remove(0);
        straight.source[0].facts = Some(Facts::Straight);
        settings.batch.push(straight);
        let reader = Reader {
            tokenizer: byte_tokenizer(),
            template: Err(NO_TEMPLATE.into()),
            vocab: 258,
            separator: SEPARATOR,
        };
        let mut batches = Batches::new(&settings, &reader, &BTreeMap::new()).unwrap();
        let steps: Vec<Vec<Job>> = (0..12).map(|step| batches.step(step).unwrap()).collect();
        for jobs in &steps {
            assert!(jobs[1].taught && jobs[1].cross_entropy == 1.0 && jobs[1].looked_up == jobs[1].told);
            assert_eq!(jobs[0].taught, jobs[0].label == "b");
            assert_eq!(jobs[0].taught, jobs[0].looked_up != jobs[0].told);
        }
        assert!(steps.iter().any(|jobs| jobs[0].taught) && steps.iter().any(|jobs| !jobs[0].taught));
        // They need no place of their own to go on from.
        let mut again = Batches::new(&settings, &reader, &batches.taken()).unwrap();
        assert_eq!(again.step(3).unwrap()[1], steps[3][1]);
        assert_eq!(
            batches.turned().map(|(label, length, _)| (label, length)).collect::<Vec<_>>(),
            [("b", 48)]
        );
        let tokens = |text: &str| reader.tokenizer.encode_more(text).unwrap();
        assert!(tokens(" abp").iter().all(|token| batches.names().contains(token)));
        assert!(!batches.names().contains(&tokens("q")[0]));
        std::fs::write(
            dir.path().join("facts.json"),
            r#"{"statements": {"w": ["{X}"]}, "facts": {"a": {"w": "b"}}}"#,
        )
        .unwrap();
        let error = Batches::new(&settings, &reader, &BTreeMap::new()).err().unwrap().to_string();
        assert!(error.contains("`b`") && error.contains("no two names"), "{error}");
    }

    #[test]
    fn a_source_without_text_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        settings.batch[0].source[1].skip = 20;
        let error = Batches::new(&settings, &reader(), &BTreeMap::new()).err().unwrap().to_string();
        assert!(error.contains("`b`, 0 documents"), "{error}");
        settings.batch[0].source[1].swap = vec![vec!["capital".into()]];
        let error = Batches::new(&settings, &reader(), &BTreeMap::new()).err().unwrap().to_string();
        assert!(error.contains("capital"), "{error}");
    }
}
