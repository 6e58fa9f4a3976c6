//! Figures on held-out text.

use std::collections::BTreeMap;

use burn_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::batch::Job;
use super::data::{PROMPT_WEIGHT, Reader, pack};
use super::loss;
use super::settings::Settings;
use super::student::{Model, Tensors, Texts, indices};
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

/// A held-out text, with what the base makes of it.
struct Held {
    name: String,
    job: Job,
    // The stream that base and student share, and the base's last states at the positions measured.
    shared: Tensor<2>,
    states: Tensor<2>,
}

/// All held-out texts.
pub struct Evaluation(Vec<Held>);

impl Evaluation {
    /// Reads the texts and runs the base on them.
    ///
    /// # Errors
    /// What [`Reader::read`] gives, and [`Error::Invalid`] for a text that leaves no position to measure.
    pub fn new(settings: &Settings, reader: &Reader, model: &Model) -> Result<Self> {
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
        Ok(Self(all))
    }

    /// Measures the student with these tensors.
    ///
    /// # Errors
    /// As [`Model::student`].
    pub fn measure(&self, model: &Model, tensors: &Tensors) -> Result<BTreeMap<String, Figures>> {
        let mut all = BTreeMap::new();
        for held in &self.0 {
            let states = model.student(tensors, Texts::read(&held.job), held.shared.clone())?;
            let read = indices(held.job.compared.iter().map(|c| c.read), model.device());
            let states = states.select(0, read);
            let (sums, _) =
                loss::compare(&states, &held.states, model.head(), &held.job.compared, 0.0, false)?;
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
}
