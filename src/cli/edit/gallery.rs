//! `xylem edit gallery`: swaps that work, found by measurement.

use std::path::PathBuf;

use anyhow::{Context, Result};
use xylem::eval::gallery::{Search, find};
use xylem::eval::{edits, read_rows};

use crate::cli::model::{Kind, Model};
use crate::cli::progress;

/// Look for swaps that work, and write those that the page offers.
///
/// Facts that the model says, in running text and in a chat, are paired within their relation; a swap works if the other
/// answer comes greedily behind the prompt, is preferred behind three of four other wordings, and stands in the answer of the chat,
/// where the old one does not. Of those that work the surest are kept, two of a relation at most; of those that fail, the
/// one that keeps the old answer most surely.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Facts, as rows of `xylem eval --suite edits`.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Only so many rows.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Swaps to keep.
    #[arg(long, value_name = "N", default_value_t = 6)]
    keep: usize,
    /// Each entity is tried with so many others.
    #[arg(long, value_name = "N", default_value_t = 3)]
    partners: usize,
    /// A pair such as Spain=Germany that is kept if it works; may be given several times.
    #[arg(long, value_name = "NAME=NAME", value_parser = pair)]
    first: Vec<(String, String)>,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Kind,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Positions that a chat about a fact needs at most.
const CONTEXT: usize = 1024;

fn pair(text: &str) -> Result<(String, String), String> {
    let (one, other) = text.split_once('=').ok_or("it wants two names, as in Spain=Germany")?;
    Ok((one.trim().to_owned(), other.trim().to_owned()))
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let name = args.data.display().to_string();
    let text = std::fs::read_to_string(&args.data).with_context(|| name.clone())?;
    let mut rows: Vec<edits::Row> = read_rows(&name, &text)?;
    rows.truncate(args.limit.unwrap_or(usize::MAX));
    let mut model = Model::bundle(&args.bundle, args.backend, CONTEXT)?;
    let hash = model.hash.clone().context("a bundle has a hash")?;
    let template = model.template.take().context("this model brings no chat template")?;
    let search = Search { wanted: args.keep, partners: args.partners, first: args.first.clone() };
    let bar = progress::count("Trying", 0);
    let mut update = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let Model { session, tokenizer, .. } = &mut model;
    let found = find(session, tokenizer, &template, &rows, &search, hash, &mut update);
    let gallery = pollster::block_on(found)?;
    bar.finish_and_clear();
    let mut json = serde_json::to_vec_pretty(&gallery)?;
    json.push(b'\n');
    super::write(&args.out, &json)?;
    crate::cli::print_line(format!(
        "{} of {} facts are known; {} of {} swaps work",
        gallery.known, gallery.asked, gallery.worked, gallery.tried
    ))?;
    for shown in gallery.works.iter().chain(gallery.fails.iter().map(|f| &f.shown)) {
        crate::cli::print_line(format!(
            "{} as {}: {} {:.3} → {:.3}, {} {:.3} → {:.3}",
            shown.subject,
            shown.with,
            shown.old,
            shown.before[0],
            shown.after[0],
            shown.new,
            shown.before[1],
            shown.after[1]
        ))?;
    }
    Ok(())
}
