//! What a step computes: jobs, drawn from the settings' sources.

use std::collections::BTreeMap;
use std::path::Path;

use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::seq::SliceRandom;

use super::data::{Document, Order, Reader, Row, pack, rng};
use super::settings::{Batch, Settings, Source};
use super::swaps::Swaps;
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
    /// Whose rows the student looks up.
    pub looked_up: Vec<u32>,
    /// The positions that count.
    pub compared: Vec<Compared>,
}

impl Job {
    /// A job without text.
    pub fn empty(rows: usize, length: usize) -> Self {
        let (label, told, read, looked_up, compared) = Default::default();
        Self { label, weight: 1.0, cross_entropy: 0.0, rows, length, told, read, looked_up, compared }
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
    /// What [`Reader::read`] and [`Swaps::new`] give.
    pub fn new(settings: &Settings, reader: &Reader, taken: &BTreeMap<String, u64>) -> Result<Self> {
        let seed = settings.seed;
        let mut files = BTreeMap::<&Path, Vec<Document>>::new();
        let mut counts = BTreeMap::new();
        let mut kinds = Vec::new();
        for (kind, batch) in settings.batch.iter().enumerate() {
            let mut sources = Vec::new();
            for source in &batch.source {
                if !files.contains_key(source.file.as_path()) {
                    let read = reader.read(&source.file)?;
                    read.iter().flat_map(|d| &d.ids).for_each(|id| *counts.entry(*id).or_default() += 1);
                    files.insert(&source.file, read);
                }
                let documents = &files[source.file.as_path()];
                let label = source.label();
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

    /// How many rows of each source have been taken; [`new`](Self::new) goes on from there.
    pub fn taken(&self) -> BTreeMap<String, u64> {
        let all = self.kinds.iter().enumerate().flat_map(|(kind, (_, _, sources))| {
            sources.iter().filter_map(move |source| match &source.text {
                Text::Rows(_, order) => Some((format!("{kind} {}", source.label), order.taken())),
                Text::Swaps(_) => None,
            })
        });
        all.collect()
    }

    /// The jobs of step number `step`, one for each kind of batch.
    ///
    /// # Errors
    /// As [`Swaps::take`].
    pub fn step(&mut self, step: u64) -> Result<Vec<Job>> {
        let mut rng = rng(self.seed, "step", step);
        let mut jobs = Vec::new();
        for (batch, chances, sources) in &mut self.kinds {
            let source = &mut sources[chances.sample(&mut rng)];
            let job = match &mut source.text {
                Text::Rows(rows, order) => {
                    let taken: Vec<usize> = (0..batch.rows).map(|_| order.take()).collect();
                    Job::plain(taken.iter().map(|at| &rows[*at]), batch.length)
                }
                Text::Swaps(swaps) => swaps.take(batch.rows, batch.length, &mut rng)?,
            };
            jobs.push(Job {
                label: source.label.clone(),
                weight: source.settings.weight,
                cross_entropy: source.settings.cross_entropy,
                ..job
            });
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

    fn reader() -> Reader {
        let vectors = Vectors::load();
        Reader { tokenizer: vectors.tokenizer(), template: None, vocab: vectors.ids.len(), separator: 0 }
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
