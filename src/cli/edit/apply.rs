//! `xylem edit apply`: files of edits put together, switched, and checked.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use xylem::bundle::Bundle;
use xylem::edits::{Edit, Edits};

/// Put files of edits together, switch edits on and off, and check the whole against a bundle.
///
/// The edits keep their order, file after file. Numbers are those that `xylem edit list` shows, counted through all files.
/// What comes out is one file for `--edits` of `generate` and `chat` and for the page; without --out the edits are only
/// checked and shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// A file of edits; may be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    edits: Vec<PathBuf>,
    /// Switch these off: numbers such as 1,3, or `all`.
    #[arg(long, value_name = "N")]
    off: Option<Which>,
    /// Switch these on, after --off: `--off all --on 2` leaves the second alone.
    #[arg(long, value_name = "N")]
    on: Option<Which>,
    /// Leave these out.
    #[arg(long, value_name = "N")]
    remove: Option<Which>,
    /// Give all edits this strength.
    #[arg(long, value_name = "A")]
    strength: Option<f32>,
    /// The file to write; one that exists is replaced.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Edits by their numbers, from 1 on.
#[derive(Debug, Clone)]
enum Which {
    All,
    These(Vec<usize>),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let number = |n: &str| match n.parse() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("{n:?} is no number of an edit; they count from 1 on, or say all")),
        };
        text.split(',').map(number).collect::<Result<_, _>>().map(Self::These)
    }
}

impl Which {
    /// For each of `edits` whether it is meant.
    fn among(&self, edits: &[Edit]) -> Result<Vec<bool>> {
        let Self::These(numbers) = self else { return Ok(vec![true; edits.len()]) };
        if let Some(number) = numbers.iter().find(|n| **n > edits.len()) {
            bail!("there is no edit {number}; the files have {}", edits.len());
        }
        Ok((1..=edits.len()).map(|n| numbers.contains(&n)).collect())
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let manifest = bundle.manifest();
    let hash = manifest.hash();
    let mut all = Edits::new(hash.clone());
    for path in &args.edits {
        let file = super::read(path)?;
        file.overlay(&hash, &manifest.config).with_context(|| path.display().to_string())?;
        all.edits.extend(file.edits);
    }
    for (which, on) in [(&args.off, false), (&args.on, true)] {
        if let Some(which) = which {
            let meant = which.among(&all.edits)?;
            all.edits.iter_mut().zip(meant).filter(|(_, meant)| *meant).for_each(|(e, _)| e.on = on);
        }
    }
    if let Some(strength) = args.strength {
        all.edits.iter_mut().for_each(|edit| edit.strength = strength);
    }
    if let Some(which) = &args.remove {
        let mut meant = which.among(&all.edits)?.into_iter();
        all.edits.retain(|_| !meant.next().unwrap_or_default());
    }
    // Together they may be too many, and a strength may be too large.
    all.overlay(&hash, &manifest.config)?;
    let tokenizer = bundle.tokenizer()?;
    if let Some(path) = &args.out {
        super::write(path, &all.to_json())?;
        crate::cli::print_line(format!("Wrote {}: {} edits", path.display(), all.edits.len()))?;
    }
    all.edits.iter().enumerate().try_for_each(|(i, edit)| super::show(i, edit, Some(&tokenizer)))
}
