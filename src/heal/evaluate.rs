//! Figures on held-out text.

use std::collections::BTreeMap;

use burn_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::batch::{Batches, Job};
use super::data::{PROMPT_WEIGHT, Reader, pack, rng};
use super::loss;
use super::settings::Settings;
use super::student::{Model, Tensors, Texts, indices, values};
use super::truths::Probe;
use crate::error::{Error, Result};

/// Figures of one text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Positions measured.
    pub positions: usize,
    /// −ln p_student(next), mean over the positions, in nats.
    pub nll: f64,
    /// The base's.
    pub base_nll: f64,
    /// KL(base ‖ student), in nats.
    pub kl: f64,
    /// Share of positions where both have the same first choice.
    pub top1: f64,
}

/// How far a student says b's answer to text about a with the rows of b.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Turned {
    /// Statements measured.
    pub statements: usize,
    /// ln p(b's answer) − ln p(a's answer), by their first tokens; the mean, in nats.
    pub margin: f64,
    /// Share of statements where b's answer is the likelier of the two.
    pub likelier: f64,
    /// Share where it is the first choice of all tokens.
    pub first: f64,
}

/// Statements of turned facts to measure with.
const STATEMENTS: usize = 48;

/// A held-out text, with what the base makes of it.
struct Held {
    name: String,
    job: Job,
    // The stream that base and student share, and the base's last states at the positions measured.
    shared: Tensor<2>,
    states: Tensor<2>,
}

/// All held-out texts, and turned facts with the stream that base and student share.
pub struct Evaluation {
    held: Vec<Held>,
    turned: Vec<(String, Probe, Tensor<2>)>,
}

impl Evaluation {
    /// Reads the texts and runs the base on them.
    ///
    /// # Errors
    /// What [`Reader::read`] gives, and [`Error::Invalid`] for a text that leaves no position to measure.
    pub fn new(settings: &Settings, reader: &Reader, batches: &Batches, model: &Model) -> Result<Self> {
        let mut all = Vec::new();
        for held in &settings.held {
            let rows = pack(&reader.read(&held.file)?, held.length, reader.separator);
            let mut job = Job::plain(rows.iter().take(held.rows), held.length);
            // Neither prompts nor what follows an end.
            job.compared.retain(|c| c.weight > PROMPT_WEIGHT && c.next.is_some());
            if job.compared.is_empty() {
                let reason = "has no position to measure; its documents are all prompt";
                return Err(Error::invalid(held.file.display().to_string(), reason));
            }
            let shared = model.shared(Texts::told(&job));
            let states = model.teacher(Texts::told(&job), shared.clone());
            let told = indices(job.compared.iter().map(|c| c.told), model.device());
            all.push(Held { name: held.name.clone(), job, shared, states: states.select(0, told) });
        }
        let mut turned = Vec::new();
        for (label, length, truths) in batches.turned() {
            for (held, name) in [(false, label.to_owned()), (true, format!("{label} held"))] {
                let mut rng = rng(settings.seed, "turned", u64::from(held));
                if let Some(probe) = truths.probe(held, STATEMENTS, length, &mut rng) {
                    let shared = model.shared(Texts::read(&probe.job));
                    turned.push((name, probe, shared));
                }
            }
        }
        Ok(Self { held: all, turned })
    }

    /// Measures the student with these tensors.
    ///
    /// # Errors
    /// As [`Model::student`].
    pub fn measure(&self, model: &Model, tensors: &Tensors) -> Result<BTreeMap<String, Figures>> {
        let mut all = BTreeMap::new();
        for held in &self.held {
            let states = model.student(tensors, Texts::read(&held.job), held.shared.clone())?;
            let read = indices(held.job.compared.iter().map(|c| c.read), model.device());
            let states = states.select(0, read);
            let (sums, _) =
                loss::compare(&states, Some(&held.states), model.head(), &held.job.compared, 0.0, false)?;
            let figures = Figures {
                positions: held.job.compared.len(),
                nll: sums.nll / sums.nll_weight,
                base_nll: sums.base_nll / sums.nll_weight,
                kl: sums.kl / sums.weight,
                top1: sums.same / sums.weight,
            };
            all.insert(held.name.clone(), figures);
        }
        Ok(all)
    }

    /// Measures how far the student with these tensors tells turned facts, by source.
    ///
    /// # Errors
    /// As [`Model::student`].
    pub fn turned(&self, model: &Model, tensors: &Tensors) -> Result<BTreeMap<String, Turned>> {
        let mut all = BTreeMap::new();
        for (name, Probe { job, answers }, shared) in &self.turned {
            let states = model.student(tensors, Texts::read(job), shared.clone())?;
            let read = indices(job.compared.iter().map(|c| c.read), model.device());
            let logits = values(states.select(0, read).matmul(model.head().clone().transpose()))?;
            let mut sums = Turned { statements: answers.len(), margin: 0.0, likelier: 0.0, first: 0.0 };
            for (logits, [old, new]) in logits.chunks_exact(model.config().vocab_size).zip(answers) {
                let [old, new] = [old, new].map(|id| logits[*id as usize]);
                sums.margin += f64::from(new - old);
                sums.likelier += f64::from(u8::from(new > old));
                sums.first += f64::from(u8::from(logits.iter().all(|other| *other <= new)));
            }
            let n = answers.len() as f64;
            let (margin, likelier, first) = (sums.margin / n, sums.likelier / n, sums.first / n);
            all.insert(name.clone(), Turned { margin, likelier, first, ..sums });
        }
        Ok(all)
    }
}
