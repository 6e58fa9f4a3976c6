//! `xylem trace`: what each layer did with each token.

use std::path::PathBuf;

use anyhow::{Result, bail};
use xylem::bundle::Bundle;
use xylem::session::{Observer, StepReport};
use xylem::tables::{Origin, Tables};
use xylem::trace::record::{Lookup, TracedModel};
use xylem::trace::{Text, Trace, TracedToken, card, trace};

use super::generate::{PromptArgs, SamplingArgs};
use super::model::{Kind, Model};

/// Tokens that are looked at at a time.
const CHUNK: usize = 64;

/// Continue a prompt, and say what each layer did with each token of prompt and answer. On the CPU.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    #[command(flatten)]
    prompt: PromptArgs,
    /// A file of edits (see `xylem edit`) to lay over the rows.
    #[arg(long, value_name = "FILE")]
    edits: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Positions to make room for: prompt and answer.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    context: usize,
    /// Look at one token (its position) in one layer instead, the row compared with all others.
    #[arg(long, value_name = "POSITION,LAYER", value_delimiter = ',')]
    card: Option<Vec<usize>>,
    /// Print JSON (docs/trace.md).
    #[arg(long)]
    json: bool,
}

/// Notes how the rows of the text were found when it was written.
#[derive(Default)]
struct Lookups(Vec<Origin>);

impl Observer for Lookups {
    fn stepped(&mut self, report: &StepReport<'_>) {
        self.0.truncate(report.position);
        self.0.extend_from_slice(report.origins);
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let sampling = args.sampling.sampling();
    sampling.validate()?;
    let bundle = Bundle::open(&args.bundle)?;
    let tables = bundle.tables()?;
    let engram = bundle.engram()?;
    let mut model = Model::bundle(&args.bundle, Kind::Cpu, args.context)?;
    if let Some(path) = &args.edits {
        model.edit(path)?;
    }
    let prompt = args.prompt.tokens(&model, args.context, sampling.max_tokens)?;
    let mut lookups = Lookups::default();
    let generation = pollster::block_on(model.session.generate(&prompt, &sampling, &mut lookups))?;
    let tokens = [prompt.as_slice(), &generation.tokens].concat();
    let backend = model.backend_name();
    let Model { session, tokenizer, .. } = &mut model;
    let text = Text {
        tokens: &tokens,
        tokenizer,
        layout: tables.as_ref().map(Tables::layout),
        engram: engram.as_ref().map(|(hasher, tables)| (hasher, tables.layout())),
    };
    if let Some(cell) = &args.card {
        let [position, layer] = cell[..] else { bail!("--card wants a position and a layer") };
        let card = pollster::block_on(card::card(session, tables.as_ref(), text, (position, layer), true))?;
        return super::print_json(&card);
    }
    let mut traced: Vec<TracedToken> = Vec::new();
    let each = async |_: usize, records: Vec<TracedToken>| {
        traced.extend(records);
        true
    };
    pollster::block_on(trace(session, text, CHUNK, each))?;
    // While it was traced, all of it was in memory.
    for (token, origin) in traced.iter_mut().zip(lookups.0) {
        token.lookup = origin.tier.map(|tier| Lookup { tier, ms: origin.ms });
        for (engram, origin) in token.engram.iter_mut().zip(origin.engram) {
            engram.lookup = Some(Lookup { tier: origin.tier, ms: origin.ms });
        }
    }
    if args.json {
        let model = TracedModel::new(bundle.manifest());
        return super::print_json(&Trace::new(model, backend, prompt.len(), traced));
    }
    for (position, token) in traced.iter().enumerate() {
        super::print_line(line(position, token))?;
    }
    Ok(())
}

/// A token, the layer whose FFN added most, what follows, and the part of a layer that spoke most for it.
fn line(position: usize, token: &TracedToken) -> String {
    let largest = |values: &[f32]| {
        values.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default()
    };
    let next = &token.next;
    let (layer, contribution) = largest(&token.contribution);
    let ((attention, a), (ffn, f)) = (largest(&next.attention), largest(&next.ffn));
    let decided = if a > f {
        format!("attention of layer {attention} {a:+.2}")
    } else {
        format!("FFN of layer {ffn} {f:+.2}")
    };
    let edited = if token.edited.is_empty() { "" } else { ", edited" };
    format!(
        "{position:>5} {:<18} FFN of layer {layer} {contribution:.2} of the stream{edited}; then {:?} {:.3}, {decided}",
        format!("{:?}", token.text),
        next.text,
        next.probability,
    )
}
