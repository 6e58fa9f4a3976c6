//! `xylem edit ngram`: edits of the Engram rows of chosen n-grams.

use std::path::PathBuf;

use anyhow::Result;
use xylem::bundle::Bundle;
use xylem::edits::Scope;
use xylem::edits::ngram::{Answer, NgramSwap};

use super::super::layers::Layers;
use super::{ScopeArg, add};

/// Give the n-grams of a text the Engram rows of those of another, or scale their own.
///
/// For models with Engram layers, which look the last two and three tokens up together. Changed are the lookups of all
/// n-grams within the text, such as the two words of a name, wherever they stand; the rows themselves stay, so that no
/// other n-gram that hashes to one of them is changed. Counted from the end, the last n-gram gets the rows of the last
/// one of the other text. Spellings that Engram layers take for the same (in case and accents) are changed alike.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The text whose n-grams are changed, for instance New York: two tokens or more.
    #[arg(long, value_name = "TEXT")]
    subject: String,
    /// The text whose n-grams give their rows, for instance Los Angeles.
    #[arg(long, value_name = "TEXT", conflicts_with = "factor", required_unless_present = "factor")]
    with: Option<String>,
    /// Instead, scale the subject's own rows: 0 takes them away, 2 doubles them.
    #[arg(long, value_name = "F")]
    factor: Option<f32>,
    /// How far the rows go there: 0 leaves them, 1 goes all the way, more overshoots.
    #[arg(long, value_name = "A", default_value_t = 1.0)]
    strength: f32,
    /// The Engram layers to change, as a list such as 1-3,7; all unless given.
    #[arg(long, value_name = "LAYERS")]
    layers: Option<Layers>,
    /// Which occurrences are changed: `row` those of each n-gram, `phrase` where the tokens before it stand too.
    #[arg(long, value_enum, default_value = "phrase")]
    scope: ScopeArg,
    /// Only the occurrences whose first token stands at these positions of the whole text, as in `edit swap`.
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "scope")]
    at: Vec<usize>,
    /// The file to write; if it exists the edit is added to it.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let tokenizer = bundle.tokenizer()?;
    let scope = if args.at.is_empty() { Scope::from(args.scope) } else { Scope::Position(args.at.clone()) };
    let swap = NgramSwap { scope, strength: args.strength, layers: args.layers.clone().map(Vec::from) };
    let answer = match &args.with {
        Some(with) => Answer::Text(with),
        None => Answer::Factor(args.factor.unwrap_or_default()),
    };
    add(&args.out, &bundle, vec![swap.edit(&tokenizer, &args.subject, answer)?], &tokenizer)
}
