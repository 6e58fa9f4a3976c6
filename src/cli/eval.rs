//! `xylem eval`: measure a model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use xylem::device::Device;
use xylem::edits::Swap;
use xylem::eval::{choice, cloze, edits, nll, read_rows};

use super::model::{self, Kind, Model};
use super::{edit, progress};

/// Measure a bundle, or the dense base, on a suite.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR", required_unless_present = "base")]
    bundle: Option<PathBuf>,
    /// The dense checkpoint (GGUF): measured instead of a bundle or, by `nll` and `edits`, beside it.
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// What to measure.
    #[arg(long, value_enum)]
    suite: Suite,
    /// The suite's data: text for `nll`, rows of JSON for the others.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Only so many rows or documents, from the first on.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Documents of `nll` are cut to so many tokens.
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,
    /// For `edits`: how to edit.
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
    /// Rows {context, question, choices, label}: is the right choice the likeliest?
    Choice,
    /// Rows {prompt, target, choices, label}: that, and does greedy text begin with the target?
    Cloze,
    /// Rows {relation, subject, subject_new, prompt, paraphrase_prompts, target_true, target_new, locality_prompts}: do
    /// edits change the fact (es, ps, exact), and what else (ns, kl_unrelated, kl_subject, collateral)? With --base also by what the
    /// base knows. The options of `xylem edit swap` say how to swap; both spellings of a name are swapped.
    Edits,
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

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let name = args.data.display().to_string();
    let text = std::fs::read_to_string(&args.data).with_context(|| name.clone())?;
    let context = if args.suite == Suite::Nll { args.context } else { ROW_CONTEXT };
    let mut model = match (&args.bundle, &args.base) {
        (Some(dir), _) => Model::bundle(dir, args.backend, context)?,
        (None, Some(path)) => Model::base(path, context)?,
        (None, None) => unreachable!("clap wants one of the two"),
    };
    args.kv.apply(model.session.backend_mut())?;
    args.out.apply(&mut model)?;
    let bar = progress::count("Measuring", 0);
    let mut update = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let limit = args.limit.unwrap_or(usize::MAX);
    let Model { session, tokenizer, .. } = &mut model;
    match args.suite {
        Suite::Nll => {
            let mut documents = xylem::text::documents(&text, tokenizer, context)?;
            documents.truncate(limit);
            if documents.is_empty() {
                bail!("{name}: there is no document of two tokens or more");
            }
            let base = args.base.as_deref().filter(|_| args.bundle.is_some());
            let mut base = base.map(|path| beside(path, session.config().vocab_size, context)).transpose()?;
            let base = base.as_mut().map(|model| &mut model.session);
            let report = pollster::block_on(nll::run(session, base, &documents, &mut update))?;
            bar.finish_and_clear();
            print(&report, args.json)
        }
        Suite::Choice => {
            let rows: Vec<choice::Row> = rows(&name, &text, limit)?;
            let report = pollster::block_on(choice::run(session, tokenizer, &rows, &mut update))?;
            bar.finish_and_clear();
            print(&report, args.json)
        }
        Suite::Cloze => {
            let rows: Vec<cloze::Row> = rows(&name, &text, limit)?;
            let report = pollster::block_on(cloze::run(session, tokenizer, &rows, &mut update))?;
            bar.finish_and_clear();
            print(&report, args.json)
        }
        Suite::Edits => {
            let rows: Vec<edits::Row> = rows(&name, &text, limit)?;
            let swap = args.edits.swap(true);
            let teach = edits::Teach { layers: swap.layers.clone(), steps: args.steps, cpu: Device::cpu };
            let grid = grid(args, &swap, &session.config().stem_layers)?;
            let ways = edits::Ways {
                swap: Some(swap).filter(|_| args.by.contains(&Way::Swap)),
                grid,
                teach: Some(teach).filter(|_| args.by.contains(&Way::Teach)),
            };
            let base = args.base.as_deref().filter(|_| args.bundle.is_some());
            let mut base = base.map(|path| beside(path, session.config().vocab_size, context)).transpose()?;
            let base = base.as_mut().map(|model| &mut model.session);
            let report = pollster::block_on(edits::run(session, base, tokenizer, &rows, &ways, &mut update))?;
            bar.finish_and_clear();
            print(&OfModel { model: model.hash.as_deref(), report }, args.json)
        }
    }
}

/// A report, and the hash of the bundle that it is about.
#[derive(Serialize)]
struct OfModel<'a, T> {
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

fn beside(path: &Path, vocab: usize, context: usize) -> Result<Model> {
    let base = Model::base(path, context)?;
    let found = base.session.config().vocab_size;
    if found != vocab {
        bail!("{}: {found} tokens, the bundle has {vocab}; it is not its base", path.display());
    }
    Ok(base)
}

fn rows<T: DeserializeOwned>(name: &str, text: &str, limit: usize) -> Result<Vec<T>> {
    let mut rows = read_rows(name, text)?;
    rows.truncate(limit);
    if rows.is_empty() {
        bail!("{name}: there are no rows");
    }
    Ok(rows)
}

/// As JSON, or a line for each figure.
fn print(report: &impl Serialize, json: bool) -> Result<()> {
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
        Value::Number(number) if number.is_f64() => {
            Ok(super::print_line(format!("{name:16} {:.4}", number.as_f64().unwrap_or_default()))?)
        }
        _ => Ok(super::print_line(format!("{name:16} {value}"))?),
    }
}
