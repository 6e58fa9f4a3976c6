//! `xylem edit`: make and show files of edits.

mod apply;
mod gallery;
mod ngram;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use xylem::bundle::Bundle;
use xylem::cpu::CpuBackend;
use xylem::edits::file::MAX_FILE_BYTES;
use xylem::edits::ngram::NgramPair;
use xylem::edits::preview::piece;
use xylem::edits::teach::{self, Lesson};
use xylem::edits::{Edit, Edits, Gets, Method, NgramTarget, Scope, Swap, Target};
use xylem::engram::Engram;
use xylem::text::Tokenizer;

use super::layers::Layers;
use super::progress;

/// Make and show edits: files that say which rows of which tokens are answered by which others.
///
/// `xylem generate --edits FILE` and `xylem chat --edits FILE` apply them. The tables themselves never change.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Swap(SwapArgs),
    Ngram(ngram::Args),
    Teach(TeachArgs),
    Apply(apply::Args),
    List(ListArgs),
    Gallery(gallery::Args),
}

/// Give an entity the rows of another: "Spain" those of "Germany".
///
/// What this reaches: text that writes the name with the very tokens of " Spain", as within a sentence (the space
/// belongs to the first token), in any context, in the prompt as in the answer. What it doesn't reach: other spellings
/// ("SPAIN", "España", "Spaniards"), and "Spain" without a space before it, as at the beginning of a text, unless
/// --at-start makes a second edit for that. What it reaches besides: other names that share its tokens. With the scope
/// `row`, and for the first token of a name with any, everything with that token is changed ("South Korea" changes
/// "South" everywhere); with `phrase` the other tokens are changed only after those before them.
#[derive(Debug, clap::Args)]
struct SwapArgs {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The entity whose rows are changed, for instance Spain.
    #[arg(long, value_name = "TEXT")]
    subject: String,
    /// The entity whose rows it gets, for instance Germany; may be given several times, for the mean of all their rows.
    #[arg(long, value_name = "TEXT", required = true)]
    with: Vec<String>,
    #[command(flatten)]
    how: How,
    /// A second edit for the name without a space before it.
    #[arg(long)]
    at_start: bool,
    /// Only the occurrences whose first token stands at these positions of the whole text, counted in tokens from 0
    /// (in a chat the template's tokens count too); instead of a scope.
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "scope")]
    at: Vec<usize>,
    /// The file to write; if it exists the edits are added to it.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// How rows are swapped.
#[derive(Debug, clap::Args)]
pub struct How {
    /// How far the rows go toward the others: 0 leaves them, 1 replaces them, more overshoots.
    #[arg(long, value_name = "A", default_value_t = 1.0)]
    strength: f32,
    /// The STEM layers to change, as a list such as 3-5,8; all unless given.
    #[arg(long, value_name = "LAYERS")]
    layers: Option<Layers>,
    /// Which token gets which row. Where the method does not fit the numbers of tokens, or unless given: one to one
    /// for equal numbers, padding for a longer subject, a subset for a shorter one.
    #[arg(long, value_enum)]
    method: Option<MethodArg>,
    /// Which occurrences are changed.
    #[arg(long, value_enum, default_value = "phrase")]
    scope: ScopeArg,
    /// The padding: the token with this id gives its rows to the subject's leading tokens, which keep their own
    /// unless this is given.
    #[arg(long, value_name = "ID")]
    pad: Option<u32>,
}

/// How rows are dealt out.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MethodArg {
    /// Each token the row of its counterpart.
    OneToOne,
    /// The subject's last tokens get the rows; those before are padding.
    Pad,
    /// Each row goes to several tokens in turn.
    Copy,
    /// The last of the rows.
    Subset,
    /// Every token the mean of the rows.
    Average,
}

impl From<MethodArg> for Method {
    fn from(method: MethodArg) -> Self {
        match method {
            MethodArg::OneToOne => Self::OneToOne,
            MethodArg::Pad => Self::Pad,
            MethodArg::Copy => Self::Copy,
            MethodArg::Subset => Self::Subset,
            MethodArg::Average => Self::Average,
        }
    }
}

/// Where an edit applies.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeArg {
    /// Every occurrence of each token, alone or within other names.
    Row,
    /// Each token where the name's tokens before it stand before it.
    Phrase,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::Row => Self::Row,
            ScopeArg::Phrase => Self::Phrase,
        }
    }
}

impl How {
    /// The library's form.
    pub fn swap(&self, at_start: bool) -> Swap {
        Swap {
            scope: self.scope.into(),
            strength: self.strength,
            layers: self.layers.clone().map(Vec::from),
            method: self.method.map(Method::from),
            pad: self.pad,
            at_start,
        }
    }
}

/// Teach a fact: find a small change of the subject's rows that makes a wanted answer come.
///
/// The rows of the last token of the subject's name go down the gradient of the answer, behind several beginnings, while
/// what the model otherwise says of the subject is held still. Reached is text that writes the name with the same tokens
/// as a prompt did; other prompts of the same meaning as far as the model takes them for the same. It takes a prompt of
/// ten tokens some seconds a step on the CPU.
#[derive(Debug, clap::Args)]
struct TeachArgs {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The entity that the fact is about, for instance Spain.
    #[arg(long, value_name = "TEXT")]
    subject: String,
    /// A sentence that names the subject, without its end ("The capital of Spain is"); may be given several times, for the
    /// same fact in other words.
    #[arg(long, value_name = "TEXT", required = true)]
    prompt: Vec<String>,
    /// How it is to end, for instance Berlin.
    #[arg(long, value_name = "TEXT")]
    answer: String,
    /// The STEM layers to change, as a list such as 3-5,8; all unless given.
    #[arg(long, value_name = "LAYERS")]
    layers: Option<Layers>,
    /// At most so many steps; it ends as soon as the answer is likely.
    #[arg(long, value_name = "N", default_value_t = 40)]
    steps: usize,
    /// The file to write; if it exists the edits are added to it.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Show the edits of a file: what is on, and which token gets which row.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// The file.
    #[arg(long, value_name = "FILE")]
    edits: PathBuf,
    /// Folder of the bundle that they were made for: checks that they fit, and shows tokens as text.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Swap(args) => swap(args),
        Command::Ngram(args) => ngram::run(args),
        Command::Teach(args) => teach(args),
        Command::Apply(args) => apply::run(args),
        Command::List(args) => list(args),
        Command::Gallery(args) => gallery::run(args),
    }
}

/// The edits in the file `path`.
pub fn read(path: &Path) -> Result<Edits> {
    let name = || path.display().to_string();
    let mut json = Vec::new();
    let file = File::open(path).with_context(name)?;
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut json).with_context(name)?;
    Edits::parse(&json).with_context(name)
}

fn swap(args: &SwapArgs) -> Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let tokenizer = bundle.tokenizer()?;
    let mut how = args.how.swap(args.at_start);
    if !args.at.is_empty() {
        how.scope = Scope::Position(args.at.clone());
    }
    let new = how.edits(&tokenizer, &args.subject, &args.with)?;
    add(&args.out, &bundle, new, &tokenizer)
}

fn teach(args: &TeachArgs) -> Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let (manifest, tokenizer) = (bundle.manifest(), bundle.tokenizer()?);
    let rows = bundle.rows()?;
    let mut model = CpuBackend::new(&manifest.core.tensors, &manifest.config, 0);
    let bar = progress::bytes("Loading", manifest.core_bytes());
    bundle.load_core(&mut model, |done, _| bar.set_position(done))?;
    bar.finish_and_clear();
    let lesson = Lesson {
        subject: args.subject.clone(),
        prompts: args.prompt.clone(),
        answer: args.answer.clone(),
        layers: args.layers.clone().map(Vec::from),
        steps: args.steps,
    };
    let bar = progress::count("Teaching", args.steps as u64);
    let mut update = |step, _| bar.set_position(step as u64);
    let taught = pollster::block_on(teach::teach(&model, &rows, &tokenizer, &lesson, &mut update))?;
    bar.finish_and_clear();
    super::print_line(format!(
        "{} steps; the answer's tokens went from a probability of {:.4} to {:.4}, the rows by {:.0}% of their length",
        taught.steps,
        taught.before,
        taught.after,
        100.0 * taught.change
    ))?;
    add(&args.out, &bundle, taught.edits, &tokenizer)
}

/// Adds edits to those in the file `path`, if there are any, and shows them.
fn add(path: &Path, bundle: &Bundle, new: Vec<Edit>, tokenizer: &Tokenizer) -> Result<()> {
    let (manifest, name) = (bundle.manifest(), || path.display().to_string());
    let mut all = match fs::exists(path).with_context(name)? {
        true => read(path)?,
        false => Edits::new(manifest.hash()),
    };
    let old = all.edits.len();
    all.edits.extend(new);
    all.overlay(&manifest.hash(), &manifest.config).with_context(name)?;
    write(path, &all.to_json())?;
    super::print_line(format!("Wrote {}: {} edits", path.display(), all.edits.len()))?;
    all.edits.iter().enumerate().skip(old).try_for_each(|(i, edit)| show(i, edit, Some(tokenizer)))
}

/// Writes the file whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| path.display().to_string())
}

#[derive(Serialize)]
struct Summary<'a> {
    on: bool,
    label: &'a str,
    scope: &'a Scope,
    strength: f32,
    layers: Option<&'a [usize]>,
    tokens: Vec<Pair>,
    /// Of an edit of n-grams: those within its tokens, and what they get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ngrams: Vec<NgramPair>,
}

/// A token and what it gets.
#[derive(Serialize)]
struct Pair {
    token: u32,
    text: Option<String>,
    gets: Gets,
}

impl<'a> Summary<'a> {
    /// With n-grams of up to `order` tokens.
    fn of(edit: &'a Edit, tokenizer: Option<&Tokenizer>, order: usize) -> Self {
        let pair =
            |(id, gets): (&u32, Gets)| Pair { token: *id, text: tokenizer.map(|t| piece(t, *id)), gets };
        Self {
            on: edit.on,
            label: &edit.label,
            scope: &edit.scope,
            strength: edit.strength,
            layers: edit.layers.as_deref(),
            tokens: edit.source.iter().zip(edit.preview()).map(pair).collect(),
            ngrams: edit.ngrams(order),
        }
    }
}

fn list(args: &ListArgs) -> Result<()> {
    let all = read(&args.edits)?;
    // Without the model it is not known how long its n-grams are.
    let mut order = usize::MAX;
    let tokenizer = match &args.bundle {
        None => None,
        Some(dir) => {
            let bundle = Bundle::open(dir)?;
            let manifest = bundle.manifest();
            all.overlay(&manifest.hash(), &manifest.config)
                .with_context(|| args.edits.display().to_string())?;
            order = manifest.config.engram.as_ref().map_or(0, Engram::order);
            Some(bundle.tokenizer()?)
        }
    };
    let tokenizer = tokenizer.as_ref();
    if args.json {
        let summaries = all.edits.iter().map(|edit| Summary::of(edit, tokenizer, order));
        return super::print_json(&summaries.collect::<Vec<_>>());
    }
    all.edits.iter().enumerate().try_for_each(|(i, edit)| show(i, edit, tokenizer))
}

/// Prints the edit, the `index`-th of its file.
fn show(index: usize, edit: &Edit, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let name = |id: u32| tokenizer.map_or_else(|| id.to_string(), |t| format!("{:?}", piece(t, id)));
    let names = |ids: &[u32]| ids.iter().map(|id| name(*id)).collect::<Vec<_>>().join(" ");
    let layers = edit.layers.as_ref().map_or_else(|| "all layers".into(), |l| format!("layers {l:?}"));
    let scope = match &edit.scope {
        Scope::Row => "every occurrence of each token".into(),
        Scope::Phrase => "each token after those before it".into(),
        Scope::Position(starts) => format!("where it begins at {starts:?}"),
    };
    let on = if edit.on { "on " } else { "off" };
    super::print_line(format!(
        "{:3} {on} {}: {scope}, strength {}, {layers}",
        index + 1,
        edit.label,
        edit.strength
    ))?;
    if let Target::Ngrams(target) = &edit.target {
        let gets = match target {
            NgramTarget::Ids(ids) => {
                format!("get the rows of those within {}, counted from the end", names(ids))
            }
            NgramTarget::Factor(factor) => format!("get {factor} times their own rows"),
        };
        super::print_line(format!("        the n-grams within {} {gets}", names(&edit.source)))?;
        return Ok(());
    }
    for (id, gets) in edit.source.iter().zip(edit.preview()) {
        let gets = match gets {
            Gets::Own => "keeps its rows".into(),
            Gets::Token(id) => format!("gets those of {}", name(id)),
            Gets::Mean(ids) => format!("gets the mean of those of {}", names(&ids)),
            Gets::Values(n) => format!("gets the file's own rows {n}"),
        };
        super::print_line(format!("        {} {gets}", name(*id)))?;
    }
    Ok(())
}
