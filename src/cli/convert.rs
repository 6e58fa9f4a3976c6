//! `xylem convert`: from a dense checkpoint to a bundle.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use indicatif::{HumanBytes, ProgressBar};
use serde::Serialize;
use xylem::bundle::{Dtype, Manifest};
use xylem::convert::{Base, Changes, Dense, Precision, Progress, Recipe, Untrained, build, closed_form};
use xylem::engram::draw::Sizes;
use xylem::text::{Tokenizer, documents};

use super::layers::Layers;
use super::{interrupt, progress};

/// Chats, passages and statements that SmolLM2-135M-Instruct (Apache-2.0) wrote by itself: what its layers do on them is
/// right, what they say need not be.
pub(super) const CALIBRATION: &str = include_str!("../convert/calibration.txt");

/// Make a bundle from a dense checkpoint.
///
/// With a recipe the rows and the changes of the core are those that training found. Without one they are
/// estimated from a text, layer by layer, in closed form.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint: a GGUF file of the Llama architecture.
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// Folder to write; an older bundle there is replaced once the new one is whole.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Folder of a recipe.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["layers", "calibration"])]
    recipe: Option<PathBuf>,
    /// Layers to make STEM, from 0: `none`, or a list such as `3-12,15`. Unless given, a third of them, from
    /// the first tenth on.
    #[arg(long, value_name = "LAYERS", value_parser = Layers::or_none)]
    layers: Option<Layers>,
    /// The text to estimate rows from, documents separated by a line `<|endoftext|>`; a built-in one unless given.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Layers that get untrained Engram layers, as a list: they change nothing until they are trained.
    #[arg(long, value_name = "LAYERS", conflicts_with = "recipe")]
    engram_layers: Option<Layers>,
    /// The least sizes of an Engram head's table: for pairs, triples, and so on.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [12289, 12289])]
    engram_tables: Vec<u32>,
    /// Engram heads for each length of n-gram.
    #[arg(long, value_name = "N", default_value_t = 8)]
    engram_heads: usize,
    /// Width of an Engram head's row.
    #[arg(long, value_name = "N", default_value_t = 32)]
    engram_width: usize,
    /// How matrices are stored.
    #[arg(long, value_enum, default_value = "keep")]
    precision: Storage,
    /// The chat template: a file with Jinja, or `none`; the checkpoint's own unless given.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// What to call the model; as the checkpoint's file unless given.
    #[arg(long)]
    name: Option<String>,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// How matrices are stored.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Storage {
    /// Four bits where the checkpoint has four, else eight: also for F16, BF16 and F32. What changes gets what its recipe says,
    /// else four bits in dense FFNs and eight elsewhere.
    Keep,
    /// 4 bits, a scale and a minimum for 32 weights.
    Q4,
    /// 8 bits and a scale for 32 weights.
    Q8,
    /// 32 bits.
    F32,
}

impl From<Storage> for Precision {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::Keep => Self::Keep,
            Storage::Q4 => Self::All(Dtype::Q4),
            Storage::Q8 => Self::All(Dtype::Q8),
            Storage::F32 => Self::All(Dtype::F32),
        }
    }
}

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    name: String,
    rows: String,
    stem_layers: Vec<usize>,
    engram_layers: Vec<usize>,
    core_bytes: u64,
    table_bytes: u64,
    hash: String,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let mut base = Base::open(&args.base)?;
    match &args.chat_template {
        Some(path) if path.as_os_str() == "none" => base.set_chat_template(None),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            base.set_chat_template(Some(text));
        }
        None => {}
    }
    // Before minutes of work.
    base.check_chat_template()
        .context("the chat template can't be used; give another with --chat-template FILE or none")?;
    let bars = Bars::new(interrupt::any()?);
    let write = |changes: &dyn Changes| {
        let name = args.name.clone().unwrap_or_else(|| base.name());
        let Some(layers) = &args.engram_layers else {
            return build::write(&base, changes, args.precision.into(), &name, &args.out, &bars);
        };
        let sizes = Sizes {
            layers: layers.clone().into(),
            tables: args.engram_tables.clone(),
            heads: args.engram_heads,
            head_width: args.engram_width,
            kernel: 4,
            seed: 0,
        };
        let changes = Untrained::new(changes, &base, &sizes)?;
        build::write(&base, &changes, args.precision.into(), &name, &args.out, &bars)
    };
    let manifest = if let Some(dir) = &args.recipe {
        write(&Recipe::open(dir, &base)?)?
    } else {
        let n = base.config().n_layers;
        let stem_layers = match &args.layers {
            Some(layers) => layers.of(n)?,
            None => (n / 10..n / 10 + n / 3).collect(),
        };
        if stem_layers.is_empty() {
            write(&Dense(base.config().clone()))?
        } else {
            let documents = calibration(args.calibration.as_deref(), &base)?;
            let options = closed_form::Options::new(stem_layers);
            write(&closed_form::convert(&base, &documents, &options, &bars)?)?
        }
    };
    bars.clear();
    print(args, &manifest)
}

/// The documents to estimate rows from: the text of `path`, or else the built-in one.
pub fn calibration(path: Option<&Path>, base: &Base) -> Result<Vec<Vec<u32>>> {
    let text = match path {
        Some(path) => Cow::Owned(std::fs::read_to_string(path).with_context(|| path.display().to_string())?),
        None => Cow::Borrowed(CALIBRATION),
    };
    let tokenizer = Tokenizer::new(base.tokenizer_json(), base.config().bos_token)?;
    let documents = documents(&text, &tokenizer, base.config().context_length)?;
    if documents.is_empty() {
        bail!("the calibration text has no document of two tokens or more");
    }
    Ok(documents)
}

fn print(args: &Args, manifest: &Manifest) -> Result<()> {
    let report = Report {
        out: args.out.clone(),
        name: manifest.name.clone(),
        rows: manifest.source.rows.clone(),
        stem_layers: manifest.config.stem_layers.clone(),
        engram_layers: manifest.config.engram.iter().flat_map(|e| &e.layers).map(|l| l.layer).collect(),
        core_bytes: manifest.core_bytes(),
        table_bytes: manifest.tables.iter().map(xylem::bundle::Table::bytes).sum(),
        hash: manifest.hash(),
    };
    if args.json {
        return super::print_json(&report);
    }
    let engram = match &report.engram_layers[..] {
        [] => String::new(),
        layers => format!(", Engram layers {layers:?}"),
    };
    Ok(super::print_line(format!(
        "Wrote {}: {}, STEM layers {:?}{engram}, core {}, tables {}",
        report.out.display(),
        report.name,
        report.stem_layers,
        HumanBytes(report.core_bytes),
        HumanBytes(report.table_bytes)
    ))?)
}

/// A progress bar for each stage in turn.
pub struct Bars {
    current: Mutex<Option<(&'static str, ProgressBar)>>,
    stop: Arc<AtomicBool>,
}

impl Bars {
    /// The work ends once `stop` is set.
    pub fn new(stop: Arc<AtomicBool>) -> Self {
        Self { current: Mutex::default(), stop }
    }

    /// Takes the last one away.
    pub fn clear(&self) {
        if let Some((_, bar)) = self.lock().take() {
            bar.finish_and_clear();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(&'static str, ProgressBar)>> {
        self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Progress for Bars {
    fn update(&self, stage: &'static str, done: u64, total: u64) -> xylem::Result<()> {
        interrupt::check(&self.stop)?;
        let mut current = self.lock();
        if current.as_ref().is_none_or(|(name, _)| *name != stage) {
            if let Some((_, bar)) = current.take() {
                bar.finish_and_clear();
            }
            *current = Some((stage, progress::count(stage, total)));
        }
        if let Some((_, bar)) = current.as_ref() {
            bar.set_length(total);
            bar.set_position(done);
        }
        Ok(())
    }
}
