//! `xylem eval`: measure a model.

use std::borrow::Cow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use indicatif::ProgressBar;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use xylem::device::Device;
use xylem::edits::Swap;
use xylem::eval::{self, choice, cloze, edits, needle, nll, reach, read_rows};
use xylem::text::Tokenizer;

use super::convert::CALIBRATION;
use super::model::{self, Kind, Model};
use super::{edit, progress};

/// Measure a bundle, or the dense base, on a suite.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR", required_unless_present = "base")]
    bundle: Option<PathBuf>,
    /// The dense checkpoint (GGUF): measured instead of a bundle or, but for `choice` and `cloze`, beside it. Beside it also
    /// the folder of a bundle without STEM layers, which is faster but rounds activations.
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// What to measure.
    #[arg(long, value_enum)]
    suite: Suite,
    /// The suite's data: text for `nll` and `rows`, one JSON object for `reach` (a built-in one unless given), rows of JSON for the
    /// others.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Only so many rows, documents or facts, from the first on.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Documents of `nll` and `rows` are cut to so many tokens.
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,
    /// For `nll`: loss also by how frequent tokens are in the text that is built in for `convert`.
    #[arg(long)]
    by_frequency: bool,
    /// The same with the tokens of this text counted, whose documents are separated as those of `nll`.
    #[arg(long, value_name = "FILE")]
    counts: Option<PathBuf>,
    /// For `edits` and `reach`: how to edit.
    #[arg(long, value_enum, value_name = "WAYS", value_delimiter = ',', default_value = "swap")]
    by: Vec<Way>,
    #[command(flatten)]
    edits: edit::How,
    /// For `edits`: swaps at these strengths too, each a row of `grid`.
    #[arg(long, value_name = "A", value_delimiter = ',')]
    alphas: Vec<f32>,
    /// For `edits`: swaps by these methods too, where they fit the numbers of tokens.
    #[arg(long, value_enum, value_name = "METHODS", value_delimiter = ',')]
    methods: Vec<edit::MethodArg>,
    /// For `edits`: swaps in the first so many STEM layers too, and in the last so many.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    layer_counts: Vec<usize>,
    /// With --by teach: at most so many steps.
    #[arg(long, value_name = "N", default_value_t = 40)]
    steps: usize,
    /// For `reach` with --by teach: only so many facts are taught, of the known ones the first.
    #[arg(long, value_name = "N")]
    teach_limit: Option<usize>,
    #[command(flatten)]
    kv: model::Kv,
    #[command(flatten)]
    out: model::Out,
    /// What computes the bundle; the dense base always runs on the CPU.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Kind,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// A kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Loss on text whose documents are separated by a line `<|endoftext|>`; with --bundle and --base also their
    /// divergence.
    Nll,
    /// How alike rows are: the 95th percentile of |cos| between those of the text's first 512 distinct tokens, by STEM layer;
    /// with --base also between the outputs of the dense up-projections.
    Rows,
    /// Rows {context, question, choices, label}: is the right choice the likeliest?
    Choice,
    /// Rows {prompt, target, choices, label}: that, and does greedy text begin with the target?
    Cloze,
    /// Rows {context, cloze_prompt, answers}: does greedy text after context, line break and prompt begin with an answer?
    Needle,
    /// Rows {relation, subject, subject_new, prompt, paraphrase_prompts, target_true, target_new, locality_prompts}: do
    /// edits change the fact (es, ps, exact), and what else (ns, kl_unrelated, kl_subject, collateral)? With --base also by what the
    /// base knows. The options of `xylem edit swap` say how to swap; both spellings of a name are swapped.
    Edits,
    /// How far edits reach: the same facts in other words, under other spellings, in other languages, and where they follow
    /// from two facts. With --base of facts that the base knows, else of those that the model knows.
    Reach,
}

/// A way to edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// The subject gets the rows of the new one.
    Swap,
    /// The prompt is taught with its new end; takes a while for each row.
    Teach,
}

/// Positions that rows of questions may need.
const ROW_CONTEXT: usize = 4096;
/// Positions that the texts of `needle` may need.
const NEEDLE_CONTEXT: usize = 8192 + 128;

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let (name, text) = data(args)?;
    let context = match args.suite {
        Suite::Nll | Suite::Rows => args.context,
        Suite::Needle => NEEDLE_CONTEXT,
        _ => ROW_CONTEXT,
    };
    let mut model = match (&args.bundle, &args.base) {
        (Some(dir), _) => Model::bundle(dir, args.backend, context)?,
        (None, Some(path)) => Model::base(path, context)?,
        (None, None) => unreachable!("clap wants one of the two"),
    };
    args.kv.apply(model.session.backend_mut())?;
    args.out.apply(&mut model)?;
    let mut base = match args.suite {
        Suite::Choice | Suite::Cloze => None,
        _ => base(args, model.session.config().vocab_size, context)?,
    };
    let base = base.as_mut().map(|model| &mut model.session);
    let bar = progress::count("Measuring", 0);
    let mut update = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let limit = args.limit.unwrap_or(usize::MAX);
    let Model { session, tokenizer, hash, .. } = &mut model;
    let model = hash.as_deref();
    match args.suite {
        Suite::Nll => {
            let documents = documents(&name, &text, tokenizer, context, limit)?;
            let counts = counts(args, tokenizer)?;
            let run = nll::run(session, base, &documents, &counts, &mut update);
            print(&OfModel { model, report: pollster::block_on(run)? }, &bar, args.json)
        }
        Suite::Rows => {
            let documents = documents(&name, &text, tokenizer, context, limit)?;
            let run = eval::rows::run(session, base, &documents, &mut update);
            print(&OfModel { model, report: pollster::block_on(run)? }, &bar, args.json)
        }
        Suite::Choice => {
            let rows: Vec<choice::Row> = rows(&name, &text, limit)?;
            let run = choice::run(session, tokenizer, &rows, &mut update);
            print(&OfModel { model, report: pollster::block_on(run)? }, &bar, args.json)
        }
        Suite::Cloze => {
            let rows: Vec<cloze::Row> = rows(&name, &text, limit)?;
            let run = cloze::run(session, tokenizer, &rows, &mut update);
            print(&OfModel { model, report: pollster::block_on(run)? }, &bar, args.json)
        }
        Suite::Needle => {
            let rows: Vec<needle::Row> = rows(&name, &text, limit)?;
            let run = needle::run(session, base, tokenizer, &rows, &mut update);
            print(&OfModel { model, report: pollster::block_on(run)? }, &bar, args.json)
        }
        Suite::Edits => {
            let rows: Vec<edits::Row> = rows(&name, &text, limit)?;
            let ways = ways(args, &session.config().stem_layers)?;
            let run = edits::run(session, base, tokenizer, &rows, &ways, &mut update);
            print(&OfModel { model, report: pollster::block_on(run)? }, &bar, args.json)
        }
        Suite::Reach => {
            let suite = reach::Suite::parse(&name, &text)?;
            let ways = ways(args, &session.config().stem_layers)?;
            let run = reach::run(
                session,
                base,
                tokenizer,
                &suite,
                (limit, args.teach_limit.unwrap_or(limit)),
                &ways,
                &mut update,
            );
            print(&OfModel { model, report: pollster::block_on(run)? }, &bar, args.json)
        }
    }
}

/// A report, and the hash of the bundle that it is about; none for a dense checkpoint.
#[derive(Serialize)]
struct OfModel<'a, T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(flatten)]
    report: T,
}

/// The swaps to compare with `swap`: each differs from it in one thing.
fn grid(args: &Args, swap: &Swap, stem_layers: &[usize]) -> Result<Vec<Swap>> {
    let alphas = args.alphas.iter().map(|alpha| Swap { strength: *alpha, ..swap.clone() });
    let methods = args.methods.iter().map(|m| Swap { method: Some((*m).into()), ..swap.clone() });
    let mut all: Vec<Swap> = alphas.chain(methods).collect();
    for count in &args.layer_counts {
        let n = stem_layers.len();
        if !(1..=n).contains(count) {
            bail!("{count} layers; the model has {n} STEM layers");
        }
        let first = Swap { layers: Some(stem_layers[..*count].to_vec()), ..swap.clone() };
        let last = Swap { layers: Some(stem_layers[n - count..].to_vec()), ..swap.clone() };
        all.push(first);
        if *count < n {
            all.push(last);
        }
    }
    Ok(all)
}

/// The suite's data and its name.
fn data(args: &Args) -> Result<(String, String)> {
    match (&args.data, args.suite) {
        (Some(path), _) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
            Ok((name, text))
        }
        (None, Suite::Reach) => Ok(("the built-in suite".into(), reach::COUNTRIES.into())),
        (None, _) => bail!("this suite wants --data FILE"),
    }
}

/// The documents of a text, `limit` at most.
fn documents(
    name: &str,
    text: &str,
    tokenizer: &Tokenizer,
    context: usize,
    limit: usize,
) -> Result<Vec<Vec<u32>>> {
    let mut documents = xylem::text::documents(text, tokenizer, context)?;
    documents.truncate(limit);
    if documents.is_empty() {
        bail!("{name}: there is no document of two tokens or more");
    }
    Ok(documents)
}

/// How often each token occurs in the text that is to be counted; empty if none is.
fn counts(args: &Args, tokenizer: &Tokenizer) -> Result<Vec<u64>> {
    let text = match (&args.counts, args.by_frequency) {
        (Some(path), _) => {
            Cow::Owned(std::fs::read_to_string(path).with_context(|| path.display().to_string())?)
        }
        (None, true) => Cow::Borrowed(CALIBRATION),
        (None, false) => return Ok(Vec::new()),
    };
    let documents = xylem::text::documents(&text, tokenizer, usize::MAX)?;
    Ok(nll::count(&documents, tokenizer.vocab_size()))
}

/// How to edit.
fn ways(args: &Args, stem_layers: &[usize]) -> Result<edits::Ways<Device>> {
    let swap = args.edits.swap(true);
    let teach = edits::Teach { layers: swap.layers.clone(), steps: args.steps, cpu: Device::cpu };
    let grid = grid(args, &swap, stem_layers)?;
    Ok(edits::Ways {
        swap: Some(swap).filter(|_| args.by.contains(&Way::Swap)),
        grid,
        teach: Some(teach).filter(|_| args.by.contains(&Way::Teach)),
    })
}

/// The dense base beside a bundle of `vocab` tokens, if one was given.
fn base(args: &Args, vocab: usize, context: usize) -> Result<Option<Model>> {
    let Some(path) = args.base.as_deref().filter(|_| args.bundle.is_some()) else { return Ok(None) };
    let base = match path.is_dir() {
        true => Model::bundle(path, args.backend, context)?,
        false => Model::base(path, context)?,
    };
    let found = base.session.config().vocab_size;
    if found != vocab {
        bail!("{}: {found} tokens, the bundle has {vocab}; it is not its base", path.display());
    }
    Ok(Some(base))
}

fn rows<T: DeserializeOwned>(name: &str, text: &str, limit: usize) -> Result<Vec<T>> {
    let mut rows = read_rows(name, text)?;
    rows.truncate(limit);
    if rows.is_empty() {
        bail!("{name}: there are no rows");
    }
    Ok(rows)
}

/// Prints the report in place of the `bar`, as JSON or with a line for each figure.
fn print(report: &impl Serialize, bar: &ProgressBar, json: bool) -> Result<()> {
    bar.finish_and_clear();
    if json {
        return super::print_json(report);
    }
    print_value("", &serde_json::to_value(report)?)
}

/// A line for each figure in `value`, whose own name is `name`.
fn print_value(name: &str, value: &Value) -> Result<()> {
    match value {
        Value::Object(values) => values.iter().try_for_each(|(key, value)| {
            let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            print_value(&name, value)
        }),
        Value::Array(values) if values.iter().all(Value::is_object) => {
            values.iter().enumerate().try_for_each(|(i, value)| print_value(&format!("{name}.{i}"), value))
        }
        Value::Number(number) if number.is_f64() => {
            Ok(super::print_line(format!("{name:16} {:.4}", number.as_f64().unwrap_or_default()))?)
        }
        _ => Ok(super::print_line(format!("{name:16} {value}"))?),
    }
}
