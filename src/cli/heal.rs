//! `xylem heal`: distils the dense base into a student, and writes a recipe.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use xylem::convert::{Base, Progress};
use xylem::heal::checkpoint::Position;
use xylem::heal::{Entry, Hardware, Listener, Settings, Trainer, plot};

use super::convert::{Bars, calibration};
use super::interrupt;

/// Train a recipe: the student learns to say what its dense base says.
///
/// Goes on where it was when the folder has a checkpoint. Ctrl-C writes one and ends.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint: a GGUF file of the Llama architecture.
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// Settings in TOML.
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// Folder of the run: its checkpoint, its log and curve, and in the end its recipe.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Train so many steps, whatever the settings say.
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    steps: Option<u64>,
    /// Train so many minutes, whatever the settings say.
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,
    /// Begin with this recipe, whatever the settings say.
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,
    /// Where to compute. Unless given: on the GPU, in a build that can use it and where it is not software; else on the CPU.
    #[arg(long)]
    device: Option<Device>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Device {
    Cpu,
    Gpu,
}

/// What is computed on.
fn hardware(device: Option<Device>) -> Result<Hardware> {
    if let Some(Device::Cpu) = device {
        return Ok(Hardware::cpu());
    }
    match (Hardware::gpu(), device) {
        (Ok(Some(gpu)), _) => Ok(gpu),
        (Err(e), Some(_)) => Err(e.into()),
        (Ok(None), Some(_)) if cfg!(feature = "heal-gpu") => {
            bail!("there is no GPU but in software, and the CPU itself is faster")
        }
        (Ok(None), Some(_)) => {
            bail!("this build trains on the CPU alone; build it with `--features heal-gpu`")
        }
        (Err(e), None) => {
            eprintln!("The GPU is left alone: {e}");
            Ok(Hardware::cpu())
        }
        (Ok(None), None) => Ok(Hardware::cpu()),
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    let mut settings = Settings::read(&args.settings)?;
    if args.steps.is_some() || args.minutes.is_some() {
        (settings.run.steps, settings.run.minutes) = (args.steps, args.minutes);
    }
    if let Some(init) = &args.init {
        settings.init = Some(init.clone());
    }
    let base = Base::open(&args.base)?;
    let stop = interrupt::any()?;
    let hardware = hardware(args.device)?;
    eprintln!("Training on {}", hardware.name);
    let bars = Bars::new(Arc::clone(&stop));
    let text = settings.student.calibration.clone();
    let documents = || {
        calibration(text.as_deref(), &base).map_err(|e| xylem::Error::invalid("calibration", e.to_string()))
    };
    let mut trainer = Trainer::new(&base, settings, &args.out, &hardware, &documents, &bars)?;
    bars.clear();
    let shown = Shown::new()?;
    if trainer.position().step > 0 {
        shown.print(&format!("Going on after step {}.", trainer.position().step));
    }
    let outcome = trainer.run(&stop, &shown);
    shown.bar.finish_and_clear();
    let outcome = outcome?;
    let curve = args.out.join("curve.svg");
    let entries = xylem::heal::train::entries(&args.out)?;
    if !entries.is_empty() {
        plot::write(&entries, &curve)?;
    }
    let (step, tokens) = (outcome.position.step, HumanCount(outcome.position.tokens));
    Ok(super::print_line(match outcome.recipe {
        Some(recipe) => format!(
            "Wrote {} after {step} steps and {tokens} tokens, and the curve {}",
            recipe.display(),
            curve.display()
        ),
        None => format!("Stopped after step {step}; the same command goes on from the checkpoint"),
    })?)
}

/// What is seen of a run.
struct Shown {
    bar: ProgressBar,
}

impl Shown {
    fn new() -> Result<Self> {
        let style = ProgressStyle::with_template("Healing {wide_bar} {msg}")?;
        let bar = ProgressBar::new(1000).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(500));
        Ok(Self { bar })
    }

    /// A line above the bar, also where there is no terminal.
    fn print(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

impl Progress for Shown {
    fn update(&self, _stage: &'static str, _done: u64, _total: u64) -> xylem::Result<()> {
        Ok(())
    }
}

impl Listener for Shown {
    fn step(&self, position: &Position, done: f64, left: f64) {
        self.bar.set_position((1000.0 * done) as u64);
        let losses: Vec<String> = position.losses.iter().map(|(name, v)| format!("{name} {v:.3}")).collect();
        let (step, tokens) = (position.step, HumanCount(position.tokens));
        let left = HumanDuration(Duration::from_secs_f64(left.min(1e9)));
        self.bar.set_message(format!("step {step}, {tokens} tokens, {}, {left} left", losses.join(", ")));
    }

    fn entry(&self, e: &Entry) {
        let held = e.held.iter().map(|(name, f)| {
            format!(
                "; {name}: NLL {:.3} (base {:.3}), KL {:.3}, top-1 {:.3}",
                f.nll, f.base_nll, f.kl, f.top1
            )
        });
        let turned = e.turned.iter().map(|(name, t)| {
            format!("; {name}: margin {:.2}, likelier {:.2}, first {:.2}", t.margin, t.likelier, t.first)
        });
        let held: String = held.chain(turned).collect();
        self.print(&format!(
            "{:.1} min, step {}, {} tokens at {:.0}/s{held}",
            e.minutes,
            e.step,
            HumanCount(e.tokens),
            e.tokens_per_second
        ));
    }
}
