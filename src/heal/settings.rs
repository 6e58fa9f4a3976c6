//! What to train, and how: a TOML file. `tools/heal/heal.toml` is an example that explains every key.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::Config;
use crate::error::{Error, Result};

/// The settings of a run. Paths are relative to the file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Equal seeds draw equal batches and equal first values.
    #[serde(default)]
    pub seed: u64,
    /// The folder of a recipe to go on from; without one the start is computed in closed form.
    #[serde(default)]
    pub init: Option<PathBuf>,
    /// What to call the result.
    #[serde(default = "default_name")]
    pub name: String,
    /// How long to train.
    #[serde(default)]
    pub run: Run,
    /// What of the student is trained.
    #[serde(default)]
    pub student: Student,
    /// Engram layers to add; a recipe that has some keeps its own.
    #[serde(default)]
    pub engram: Option<Engram>,
    /// Peak learning rates.
    #[serde(default)]
    pub rates: Rates,
    /// The optimiser.
    #[serde(default)]
    pub optimiser: Optimiser,
    /// A step takes one batch of each.
    pub batch: Vec<Batch>,
    /// Text that is never trained on, to measure with.
    #[serde(default)]
    pub held: Vec<Held>,
}

/// How long to train, and what happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// So many steps; this or `minutes`.
    pub steps: Option<u64>,
    /// So many minutes of training, by the clock.
    pub minutes: Option<f64>,
    /// Minutes between measurements on held-out text.
    pub evaluate_minutes: f64,
    /// Minutes between checkpoints.
    pub checkpoint_minutes: f64,
}

impl Default for Run {
    fn default() -> Self {
        Self { steps: None, minutes: None, evaluate_minutes: 5.0, checkpoint_minutes: 7.0 }
    }
}

/// What of the student is trained.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Student {
    /// STEM layers of a start in closed form; a recipe has its own.
    pub stem_layers: Option<Vec<usize>>,
    /// The text that a start in closed form is computed from, documents between lines `<|endoftext|>`.
    pub calibration: Option<PathBuf>,
    /// Tokens with a residual row, the most frequent ones of the batches' text; a recipe has its own.
    pub residual_rows: usize,
    /// Rank of the change of Q, K and V, which share a factor; 0 for none. A recipe's own ranks stay.
    pub qkv_rank: usize,
    /// Rank of the change of the attention's output.
    pub output_rank: usize,
    /// Rank of the change of a STEM layer's gate, unless a recipe brings it whole.
    pub gate_rank: usize,
    /// Rank of the changes of a dense FFN's gate, up and down, from the first STEM or Engram layer on.
    pub ffn_rank: usize,
}

impl Default for Student {
    fn default() -> Self {
        Self {
            stem_layers: None,
            calibration: None,
            residual_rows: 1024,
            qkv_rank: 48,
            output_rank: 32,
            gate_rank: 48,
            ffn_rank: 0,
        }
    }
}

/// Sizes of new Engram layers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engram {
    /// The layers, ascending.
    pub layers: Vec<usize>,
    /// Of pairs, triples and so on: the least size of a head's table.
    #[serde(default = "default_tables")]
    pub tables: Vec<u32>,
    /// Heads of each order.
    #[serde(default = "default_heads")]
    pub heads: usize,
    /// Values in a head's row.
    #[serde(default = "default_head_width")]
    pub head_width: usize,
}

/// Peak learning rates, by what is trained.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// Low-rank changes of attention and FFNs.
    pub core: f64,
    /// Gains of RMSNorm.
    pub norms: f64,
    /// Matrices of STEM layers that are trained whole: down-projections, and gates that a recipe brings so.
    pub down: f64,
    /// Maps from embeddings to rows.
    pub maps: f64,
    /// Residual rows, and features of tokens.
    pub rows: f64,
    /// Projections, gains and convolutions of Engram layers.
    pub engram: f64,
    /// Tables of Engram layers.
    pub engram_tables: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            core: 8e-4,
            norms: 1e-4,
            down: 1e-4,
            maps: 1e-4,
            rows: 2e-3,
            engram: 6e-4,
            engram_tables: 3e-3,
        }
    }
}

/// AdamW with a clipped gradient, and the course of its rates.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimiser {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub epsilon: f64,
    /// Decoupled weight decay of low-rank changes; what replaces a tensor or is a row has none.
    pub weight_decay: f64,
    /// The gradient is scaled to this norm when it is longer; 0 leaves it.
    pub clip: f64,
    /// Steps in which the rates rise.
    pub warm_up: u64,
    /// The share of the run after which the rates fall, linearly to 0.
    pub flat: f64,
}

impl Default for Optimiser {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.0, clip: 0.0, warm_up: 20, flat: 0.33 }
    }
}

/// One kind of batch.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Texts side by side.
    pub rows: usize,
    /// Tokens of each.
    pub length: usize,
    /// Where it takes its text from.
    pub source: Vec<Source>,
}

/// A JSONL file of documents, and how it is read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// What the log calls it; the file's name unless given.
    #[serde(default)]
    pub name: Option<String>,
    /// The file: lines `{"ids": [...]}` or `{"text": "..."}`, with `prompt`, `title`, `kind` and `name` as needed.
    pub file: PathBuf,
    /// How often it is drawn, relative to the batch's other sources.
    #[serde(default = "one")]
    pub chance: f64,
    /// Weight of its loss.
    #[serde(default = "one")]
    pub weight: f64,
    /// Weight of the cross-entropy of the text itself, beside the divergence from the base.
    #[serde(default)]
    pub cross_entropy: f64,
    /// Documents with a `title` become answers, in the chat template, to one of these, where `{title}` is put in.
    #[serde(default)]
    pub ask: Vec<String>,
    /// Documents to pass over at the beginning, after shuffling.
    #[serde(default)]
    pub skip: usize,
    /// At most so many documents.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Makes the batches counterfactual: groups of `kind`s. Names of the documents of a group's kinds are swapped
    /// with one another.
    #[serde(default)]
    pub swap: Vec<Vec<String>>,
    /// The file is one of facts, as [`super::truths`] reads it; their answers are taught.
    #[serde(default)]
    pub facts: Option<Facts>,
}

/// How the facts of a file are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Facts {
    /// As they are.
    Straight,
    /// Counterfactual: the text names one, the rows and the answer are another's.
    Turned,
}

/// Text to measure with.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// What the log calls it.
    pub name: String,
    /// A file as [`Source::file`].
    pub file: PathBuf,
    /// Texts side by side, all of which are measured at once.
    #[serde(default = "default_held_rows")]
    pub rows: usize,
    /// Tokens of each.
    #[serde(default = "default_length")]
    pub length: usize,
}

fn default_name() -> String {
    "healed".into()
}
fn default_tables() -> Vec<u32> {
    vec![12_289, 12_289]
}
fn default_heads() -> usize {
    8
}
fn default_head_width() -> usize {
    32
}
fn default_held_rows() -> usize {
    9
}
fn default_length() -> usize {
    320
}
fn one() -> f64 {
    1.0
}

/// The first name that has come before.
fn twice(mut names: impl Iterator<Item = String>) -> Option<String> {
    let mut seen = BTreeSet::new();
    names.find(|name| !seen.insert(name.clone()))
}

impl Source {
    /// What the log calls it.
    pub fn label(&self) -> String {
        let stem = || self.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.name.clone().unwrap_or_else(stem)
    }
}

impl Settings {
    /// Reads `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be read, [`Error::Invalid`] naming the line or the value that is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let mut settings: Self = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            Error::invalid(format!("{}:{line}", path.display()), e.message().trim().replace('\n', " "))
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let sources = settings.batch.iter_mut().flat_map(|b| &mut b.source).map(|s| &mut s.file);
        let held = settings.held.iter_mut().map(|h| &mut h.file);
        let own = settings.init.iter_mut().chain(&mut settings.student.calibration);
        for file in sources.chain(held).chain(own) {
            *file = folder.join(&*file);
        }
        settings
            .check()
            .map_err(|(key, reason)| Error::invalid(format!("{}: {key}", path.display()), reason))?;
        Ok(settings)
    }

    /// The first key that is out of range, and why.
    fn check(&self) -> Result<(), (String, String)> {
        let fail = |key: String, reason: &str| Err((key, reason.to_owned()));
        match (self.run.steps, self.run.minutes) {
            (Some(_), Some(_)) => return fail("run".into(), "has both `steps` and `minutes`; leave one out"),
            (None, None) => return fail("run".into(), "needs `steps` or `minutes`"),
            _ => {}
        }
        let o = &self.optimiser;
        let r = &self.rates;
        for (key, value, most) in [
            ("run.minutes", self.run.minutes.unwrap_or(1.0), 1e6),
            ("run.evaluate_minutes", self.run.evaluate_minutes, 1e6),
            ("run.checkpoint_minutes", self.run.checkpoint_minutes, 1e6),
            ("rates.core", r.core, 1.0),
            ("rates.norms", r.norms, 1.0),
            ("rates.down", r.down, 1.0),
            ("rates.maps", r.maps, 1.0),
            ("rates.rows", r.rows, 1.0),
            ("rates.engram", r.engram, 1.0),
            ("rates.engram_tables", r.engram_tables, 1.0),
            ("optimiser.beta1", o.beta1, 0.99999),
            ("optimiser.beta2", o.beta2, 0.99999),
            ("optimiser.epsilon", o.epsilon, 1.0),
            ("optimiser.weight_decay", o.weight_decay, 10.0),
            ("optimiser.clip", o.clip, f64::MAX),
            ("optimiser.flat", o.flat, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return fail(format!("{key} = {value}"), &format!("must be from 0 to {most}"));
            }
        }
        if self.batch.is_empty() {
            return fail("batch".into(), "at least one [[batch]] is needed");
        }
        for (i, batch) in self.batch.iter().enumerate() {
            let key = |what: String| format!("batch {}: {what}", i + 1);
            if batch.rows == 0 || batch.length < 2 {
                let what = key(format!("rows = {}, length = {}", batch.rows, batch.length));
                return fail(what, "at least 1 row of 2 tokens is needed");
            }
            if batch.source.is_empty() {
                return fail(key("source".into()), "at least one [[batch.source]] is needed");
            }
            // A run that goes on finds its place in a source by this name.
            if let Some(twice) = twice(batch.source.iter().map(Source::label)) {
                return fail(key(format!("`{twice}`")), "two sources have this name; give one a `name`");
            }
            for source in &batch.source {
                let positive = |v: f64| v > 0.0 && v.is_finite();
                let fits = positive(source.chance) && positive(source.weight);
                if !fits || !(0.0..1e6).contains(&source.cross_entropy) {
                    let (c, w, e) = (source.chance, source.weight, source.cross_entropy);
                    let what = format!("chance = {c}, weight = {w}, cross_entropy = {e}");
                    return fail(
                        key(format!("`{}`: {what}", source.label())),
                        "the first two must be positive, the third at least 0",
                    );
                }
                let plain = source.cross_entropy == 0.0 && source.skip == 0 && source.limit.is_none();
                let plain = plain && source.ask.is_empty() && source.swap.is_empty();
                if source.facts.is_some() && !plain {
                    return fail(
                        key(format!("`{}`: facts", source.label())),
                        "goes with neither `cross_entropy`, `ask`, `skip`, `limit` nor `swap`; leave them out",
                    );
                }
            }
        }
        if let Some(twice) = twice(self.held.iter().map(|held| held.name.clone())) {
            return fail(format!("held `{twice}`"), "two texts have this name; give one a `name` of its own");
        }
        match self.held.iter().find(|h| h.rows == 0 || h.length < 2) {
            Some(held) => fail(format!("held `{}`", held.name), "at least 1 row of 2 tokens is needed"),
            None => Ok(()),
        }
    }

    /// Checks what depends on the model.
    ///
    /// # Errors
    /// [`Error::Invalid`] for texts that are longer than the context.
    pub fn check_model(&self, config: &Config) -> Result<()> {
        let lengths = self.batch.iter().map(|b| b.length).chain(self.held.iter().map(|h| h.length));
        match lengths.max() {
            Some(length) if length > config.context_length => Err(Error::invalid(
                format!("length = {length}"),
                format!("the base has a context of {}", config.context_length),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heal.toml");
        std::fs::write(&path, text).unwrap();
        Settings::read(&path)
    }

    const BATCH: &str = "[[batch]]\nrows = 2\nlength = 8\n[[batch.source]]\nfile = \"a.jsonl\"\n";

    #[test]
    fn wrong_settings_say_what_is_wrong() {
        let message = |text: &str| read(text).unwrap_err().to_string();
        let wrong = message("name = \"x\"\nseed = true");
        assert!(
            wrong.contains("heal.toml:2") && wrong.contains("boolean") && !wrong.contains('\n'),
            "{wrong}"
        );
        assert!(message(&format!("sed = 1\n[run]\nsteps = 1\n{BATCH}")).contains("sed"));
        assert!(message(BATCH).contains("`steps` or `minutes`"));
        assert!(message(&format!("[run]\nsteps = 1\nminutes = 2\n{BATCH}")).contains("leave one out"));
        assert!(message("batch = []\n[run]\nsteps = 1").contains("[[batch]]"));
        let run = "[run]\nsteps = 1\n";
        assert!(message(&format!("{run}[rates]\nrows = -1\n{BATCH}")).contains("rates.rows = -1"));
        assert!(message(&format!("{run}{BATCH}chance = 0\n")).contains("`a`: chance = 0"));
        assert!(message(&format!("{run}{}", BATCH.replace('8', "1"))).contains("length = 1"));
        assert!(message(&format!("{run}{BATCH}facts = \"bent\"\n")).contains("`straight` or `turned`"));
        assert!(message(&format!("{run}{BATCH}facts = \"turned\"\nskip = 1\n")).contains("leave them out"));
        let again = "[[batch.source]]\nfile = \"b/a.jsonl\"\n";
        let says = message(&format!("{run}{BATCH}{again}"));
        assert!(says.contains("batch 1: `a`") && says.contains("give one a `name`"), "{says}");
        assert!(read(&format!("{run}{BATCH}{again}name = \"b\"\n{BATCH}")).is_ok());
        let held = "[[held]]\nname = \"h\"\nfile = \"h.jsonl\"\n";
        assert!(message(&format!("{run}{BATCH}{held}{held}")).contains("held `h`: two texts"));
        let missing = Settings::read(Path::new("/nowhere/heal.toml")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }), "{missing}");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heal.toml");
        std::fs::write(&path, format!("init = \"r\"\n[run]\nsteps = 1\n{BATCH}")).unwrap();
        let settings = Settings::read(&path).unwrap();
        assert_eq!(settings.batch[0].source[0].file, dir.path().join("a.jsonl"));
        assert_eq!(settings.init, Some(dir.path().join("r")));
        assert_eq!(settings.batch[0].source[0].label(), "a");
    }

    #[test]
    fn the_example_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/heal/heal.toml");
        let settings = Settings::read(&path).unwrap();
        assert_eq!(settings.batch.len(), 4);
        assert_eq!(settings.batch[3].source[0].facts, Some(Facts::Turned));
        assert_eq!(settings.held.len(), 2);
    }
}
