//! The loop: jobs, gradients, steps, and now and then a measurement or a checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn_tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::batch::{Batches, Job};
use super::checkpoint::{self, Position};
use super::data::{NO_TEMPLATE, Reader, Separator};
use super::device::{Hardware, on_cpu};
use super::evaluate::{Evaluation, Figures, Turned};
use super::export;
use super::loss;
use super::optimiser::{self, Parameters, course};
use super::settings::Settings;
use super::start::{Start, start};
use super::student::{Model, Tensors, Texts, download, indices, values};
use crate::convert::{Base, Progress};
use crate::error::{Error, Result};
use crate::text::{Template, Tokenizer};

/// How much of a running mean is old.
const MEMORY: f64 = 0.95;
/// The log within a run's folder.
pub const LOG: &str = "log.jsonl";

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Minutes of training, those before an interruption included.
    pub minutes: f64,
    /// Steps taken.
    pub step: u64,
    /// Tokens that the student has read.
    pub tokens: u64,
    /// What computed it.
    #[serde(default)]
    pub device: String,
    /// Tokens per second of steps, since the run was begun or taken up.
    pub tokens_per_second: f64,
    /// The rates' share of their peaks.
    pub rate: f64,
    /// Running means of the losses, by source.
    pub losses: BTreeMap<String, f64>,
    /// Figures on held-out text.
    pub held: BTreeMap<String, Figures>,
    /// How far turned facts are told, by source; with ` held` behind it, of names that are never turned in training.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub turned: BTreeMap<String, Turned>,
}

/// Hears how a run goes.
pub trait Listener: Progress {
    /// After each step: how far the run is, its share that is done, and seconds left.
    fn step(&self, position: &Position, done: f64, left: f64);
    /// After each measurement.
    fn entry(&self, entry: &Entry);
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Where it stands.
    pub position: Position,
    /// Whether it was stopped before its end.
    pub stopped: bool,
    /// The recipe, if it wasn't.
    pub recipe: Option<PathBuf>,
}

/// A run, ready to go on.
pub struct Trainer<'a> {
    base: &'a Base,
    settings: Settings,
    run: PathBuf,
    start: Start,
    model: Model,
    parameters: Parameters,
    batches: Batches,
    evaluation: Evaluation,
    position: Position,
    // The device's name.
    hardware: String,
}

impl<'a> Trainer<'a> {
    /// Reads the data, and the checkpoint in the folder `run` or else what the settings begin with. `calibration` gives the
    /// documents of a start in closed form.
    ///
    /// # Errors
    /// [`Error::Io`] for missing files, [`Error::Invalid`] saying which setting or file doesn't fit.
    pub fn new(
        base: &'a Base,
        settings: Settings,
        run: &Path,
        hardware: &Hardware,
        calibration: &dyn Fn() -> Result<Vec<Vec<u32>>>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        settings.check_model(base.config())?;
        let device = &hardware.device;
        let config = base.config();
        let tokenizer = Tokenizer::new(base.tokenizer_json(), config.bos_token)?;
        let template = base.chat_template().ok_or(NO_TEMPLATE.to_owned()).and_then(|source| {
            Template::for_model(source, &tokenizer, config)
                .map_err(|e| format!("the base's chat template can't be used: {e}"))
        });
        let reader =
            Reader { tokenizer, template, vocab: config.vocab_size, separator: Separator::of(config) };
        let mut batches = Batches::new(&settings, &reader, &BTreeMap::new())?;
        let documents = if settings.init.is_none() { calibration()? } else { Vec::new() };
        let start = start(base, &settings, batches.counts(), &batches.names(), &documents, progress)?;
        let (parameters, position) = match checkpoint::read(run, &start, device)? {
            Some((parameters, position)) => {
                batches = Batches::new(&settings, &reader, &position.taken)?;
                (parameters, position)
            }
            None => (Parameters::new(&start.tensors, device), Position::default()),
        };
        let model = Model::new(&start, &|name| base.tensor(name), device)?;
        let evaluation = Evaluation::new(&settings, &reader, &batches, &model)?;
        fs::create_dir_all(run).map_err(|e| Error::io(run, e))?;
        let run = run.to_owned();
        let hardware = hardware.name.clone();
        Ok(Self { base, settings, run, start, model, parameters, batches, evaluation, position, hardware })
    }

    /// Where the run stands.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// What the student begins with; its tensors are not those of a run that has gone on.
    pub fn start(&self) -> &Start {
        &self.start
    }

    /// The student's logits on `tokens`, `[n, vocab]`.
    ///
    /// # Errors
    /// As [`Model::student`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let texts = Texts { ids: tokens, looked_up: tokens, mixes: &[], length: tokens.len() };
        let shared = self.model.shared(texts);
        let states = self.model.student(&self.multiplied()?, texts, shared)?;
        values(states.matmul(self.model.head().clone().transpose()))
    }

    /// What the student multiplies with.
    fn multiplied(&self) -> Result<Tensors> {
        self.model.rounding().apply(self.parameters.values())
    }

    /// Trains until the run is over or `stop` is set; then writes a checkpoint and, if it is over, the recipe.
    ///
    /// # Errors
    /// [`Error::Io`] if results can't be written, [`Error::Invalid`] if the loss is no longer a number.
    pub fn run(&mut self, stop: &AtomicBool, listener: &dyn Listener) -> Result<Outcome> {
        let begin = Instant::now();
        let before = self.position.seconds;
        let (first_step, first_tokens) = (self.position.step, self.position.tokens);
        // Seconds within steps: neither measurements nor checkpoints.
        let mut training = 0f64;
        let (mut evaluated, mut saved) = (f64::MIN, before);
        let run = self.settings.run;
        loop {
            self.position.seconds = before + begin.elapsed().as_secs_f64();
            let done = match (run.steps, run.minutes) {
                (Some(steps), _) => self.position.step as f64 / (steps as f64).max(f64::MIN_POSITIVE),
                (None, minutes) => {
                    self.position.seconds / (60.0 * minutes.unwrap_or(0.0)).max(f64::MIN_POSITIVE)
                }
            };
            // A run of no steps is over.
            let over = done >= 1.0 || run.steps == Some(0);
            let stopped = stop.load(Ordering::Relaxed) && !over;
            let share = course(&self.settings.optimiser, self.position.step, done.min(1.0));
            if over || (!stopped && self.position.seconds - evaluated >= 60.0 * run.evaluate_minutes) {
                evaluated = self.position.seconds;
                let tokens = (self.position.tokens - first_tokens) as f64;
                let rate = if training > 0.0 { tokens / training } else { 0.0 };
                let entry = self.entry(rate, share)?;
                self.log(&entry)?;
                listener.entry(&entry);
            }
            if over || stopped || self.position.seconds - saved >= 60.0 * run.checkpoint_minutes {
                self.position.seconds = before + begin.elapsed().as_secs_f64();
                saved = self.position.seconds;
                self.save()?;
            }
            if over || stopped {
                let recipe = if over { Some(self.export()?) } else { None };
                return Ok(Outcome { position: self.position.clone(), stopped, recipe });
            }
            let began = Instant::now();
            self.step(share)?;
            training += began.elapsed().as_secs_f64();
            self.position.seconds = before + begin.elapsed().as_secs_f64();
            let left = match (run.steps, run.minutes) {
                (Some(steps), _) => {
                    let taken = (self.position.step - first_step) as f64;
                    (steps as f64 - self.position.step as f64) * training / taken
                }
                (None, minutes) => 60.0 * minutes.unwrap_or(0.0) - self.position.seconds,
            };
            listener.step(&self.position, done.min(1.0), left.max(0.0));
        }
    }

    /// One step at `share` of the peak rates.
    fn step(&mut self, share: f64) -> Result<()> {
        let jobs = self.batches.step(self.position.step)?;
        let (tensors, multiplied) = (self.parameters.values(), self.multiplied()?);
        let work = |job: &Job| gradients(&self.model, &tensors, &multiplied, job);
        // Much of a job has no parallel form on a CPU: jobs run side by side there. A GPU takes one after the other.
        let results: Vec<_> = if on_cpu(self.model.device()) {
            jobs.par_iter().map(work).collect()
        } else {
            jobs.iter().map(work).collect()
        };
        // The optimiser need not copy what nobody else holds.
        drop((tensors, multiplied));
        let mut total = Tensors::new();
        for (job, result) in jobs.iter().zip(results) {
            let (loss, gradients) = result?;
            if !loss.is_finite() {
                return Err(Error::invalid(
                    format!("the loss of `{}` in step {}", job.label, self.position.step),
                    "is no longer a number; go on from the last checkpoint with lower rates, or set `clip`",
                ));
            }
            let mean = self.position.losses.entry(job.label.clone()).or_insert(loss);
            *mean = MEMORY * *mean + (1.0 - MEMORY) * loss;
            self.position.tokens += job.tokens() as u64;
            for (name, gradient) in gradients {
                let sum = match total.remove(&name) {
                    Some(sum) => sum + gradient,
                    None => gradient,
                };
                total.insert(name, sum);
            }
        }
        let (settings, step) = (&self.settings, self.position.step);
        optimiser::step(&mut self.parameters, total, &settings.optimiser, &settings.rates, step, share)?;
        self.position.step += 1;
        Ok(())
    }

    fn entry(&self, rate: f64, share: f64) -> Result<Entry> {
        let tensors = self.multiplied()?;
        let held = self.evaluation.measure(&self.model, &tensors)?;
        let turned = self.evaluation.turned(&self.model, &tensors)?;
        let round = |v: f64| (v * 1e4).round() / 1e4;
        let held = held.into_iter().map(|(name, f)| {
            let (nll, base_nll, kl, top1) = (round(f.nll), round(f.base_nll), round(f.kl), round(f.top1));
            (name, Figures { nll, base_nll, kl, top1, ..f })
        });
        Ok(Entry {
            minutes: round(self.position.seconds / 60.0),
            step: self.position.step,
            tokens: self.position.tokens,
            device: self.hardware.clone(),
            tokens_per_second: round(rate),
            rate: round(share),
            losses: self.position.losses.iter().map(|(name, v)| (name.clone(), round(*v))).collect(),
            held: held.collect(),
            turned: turned
                .into_iter()
                .map(|(name, t)| {
                    let (margin, likelier, first) = (round(t.margin), round(t.likelier), round(t.first));
                    (name, Turned { margin, likelier, first, ..t })
                })
                .collect(),
        })
    }

    fn log(&self, entry: &Entry) -> Result<()> {
        let path = self.run.join(LOG);
        let io = |e| Error::io(&path, e);
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(io)?;
        let json = serde_json::to_string(entry).map_err(|e| Error::invalid(LOG, e.to_string()))?;
        writeln!(file, "{json}").map_err(io)
    }

    fn save(&mut self) -> Result<()> {
        self.position.taken = self.batches.taken();
        checkpoint::write(&self.run, &self.start, &self.parameters, &self.position)
    }

    /// Writes the recipe of the student as it is.
    fn export(&self) -> Result<PathBuf> {
        let dir = self.run.join("recipe");
        let tensors = self.parameters.values();
        let tensors = tensors.iter().map(|(name, tensor)| Ok((name.clone(), download(tensor)?)));
        let tensors = tensors.collect::<Result<_>>()?;
        let log = entries(&self.run)?;
        let p = &self.position;
        let training = serde_json::json!({
            "method": "xylem heal: KL(base || student) on full distributions, counterfactual swaps, facts, AdamW",
            "steps": p.step, "tokens": p.tokens, "minutes": (p.seconds / 6.0).round() / 10.0,
            "seed": self.settings.seed,
            "start": log.first(), "end": log.last(),
        });
        export::write(self.base, &self.start, &tensors, &self.settings.name, training, &dir)?;
        Ok(dir)
    }
}

/// The entries of the log of `run`, none if it was stopped before its first; lines that are none are left out.
///
/// # Errors
/// [`Error::Io`] if it can't be read.
pub fn entries(run: &Path) -> Result<Vec<Entry>> {
    let path = run.join(LOG);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Error::io(&path, e)),
    };
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The loss of a job, and the gradients of its weighted mean in the `tensors` that are trained, of which
/// [`Rounding::apply`](super::rounding::Rounding::apply) makes what is `multiplied`.
///
/// # Errors
/// As [`Model::student`].
pub fn gradients(
    model: &Model,
    tensors: &Tensors,
    multiplied: &Tensors,
    job: &Job,
) -> Result<(f64, Tensors)> {
    let leaf = |tensor: &Tensor<2>| Tensor::from_inner(tensor.clone()).require_grad();
    let leaves: Tensors = multiplied.iter().map(|(name, tensor)| (name.clone(), leaf(tensor))).collect();
    let device = model.device().clone();
    let (told, read) = (Texts::told(job), Texts::read(job));
    let stream = model.shared(read);
    let base = (!job.taught).then(|| {
        let stream = if job.told == job.read { stream.clone() } else { model.shared(told) };
        let there = indices(job.compared.iter().map(|c| c.told), &device);
        model.teacher(told, stream).select(0, there)
    });
    let here = indices(job.compared.iter().map(|c| c.read), &device);
    let states = model.student(&leaves, read, stream)?.select(0, here);
    let c = job.cross_entropy;
    let (sums, slope) =
        loss::compare(&states.clone().inner(), base.as_ref(), model.head(), &job.compared, c as f32, true)?;
    let Some(slope) = slope else { return Ok((sums.loss(c), Tensors::new())) };
    // Its gradient in the states is the slope: so the head takes no part in what is recorded.
    let surrogate: Tensor<1> = (states * slope).sum().mul_scalar(job.weight as f32);
    let mut found = surrogate.backward();
    let gradients = leaves.iter().filter_map(|(name, leaf)| {
        leaf.grad_remove(&mut found).map(|gradient| (name.clone(), gradient.inner()))
    });
    Ok((sums.loss(c), model.rounding().gradients(tensors, gradients.collect())))
}
