//! How long each operation of a step took.

use serde::Serialize;
use web_time::Instant;

use crate::cpu::{Probe, View};
use crate::plan::{Op, Plan, Up};

/// What an operation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The embedding of the input token.
    Embed,
    /// An Engram layer.
    Engram,
    /// Attention with its projections and its norm.
    Attention,
    /// The FFN of a dense layer.
    DenseFfn,
    /// The FFN of a STEM layer.
    StemFfn,
    /// The last norm and the logits.
    Head,
    /// Penalty and candidates.
    Candidates,
}

/// The part that each operation of `plan` belongs to, with its layer, and after them what chooses the candidates:
/// `[ops + 1]`. What comes before and after the layers counts to the first one, and to one past the last.
pub fn parts(plan: &Plan) -> Vec<(Part, usize)> {
    let (mut ffn, mut layer) = (Part::DenseFfn, 0);
    let part = |op: &Op| {
        let at = layer;
        let part = match op {
            Op::Embed { .. } => Part::Embed,
            Op::EngramProject { .. } | Op::EngramGate { .. } | Op::EngramConv { .. } => Part::Engram,
            Op::NormQkv { .. } | Op::RopeStore { .. } | Op::Attention { .. } | Op::AttnOutput { .. } => {
                Part::Attention
            }
            Op::NormGate { up, .. } => {
                ffn = if matches!(up, Up::Row(_)) { Part::StemFfn } else { Part::DenseFfn };
                ffn
            }
            Op::Down { .. } => {
                layer += 1;
                ffn
            }
            Op::Head { .. } => Part::Head,
        };
        (part, at)
    };
    let mut parts: Vec<_> = plan.ops.iter().map(part).collect();
    parts.push((Part::Candidates, plan.config.n_layers));
    parts
}

/// A clock that is read after every operation on the CPU; a GPU writes what its own clock said.
#[derive(Debug)]
pub struct Times {
    // [ops + 1] as `parts` says.
    ms: Vec<f64>,
    last: Instant,
}

impl Times {
    /// Times of `plan`.
    pub fn new(plan: &Plan) -> Self {
        Self { ms: vec![0.0; plan.ops.len() + 1], last: Instant::now() }
    }

    /// Gets ready for a step.
    pub fn begin(&mut self) {
        self.ms.fill(0.0);
        self.resume();
    }

    /// Goes on with a step that has waited.
    pub fn resume(&mut self) {
        self.last = Instant::now();
    }

    /// Adds to the time of operation `index`; one past the last is the choice of candidates.
    pub fn add(&mut self, index: usize, ms: f64) {
        self.ms[index] += ms;
    }

    /// `[ops + 1]`, milliseconds of the last step.
    pub fn read(&self) -> &[f64] {
        &self.ms
    }

    fn note(&mut self, index: usize) {
        let now = Instant::now();
        self.add(index, (now - self.last).as_secs_f64() * 1e3);
        self.last = now;
    }
}

impl Probe for Times {
    fn after(&mut self, index: usize, _op: &Op, _view: View<'_>) {
        self.note(index);
    }

    fn chosen(&mut self) {
        self.note(self.ms.len() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    #[test]
    fn every_operation_has_its_part() {
        let parts = parts(&Plan::of_config(&tiny()));
        let count = |part| parts.iter().filter(|(p, _)| *p == part).count();
        assert_eq!((count(Part::Embed), count(Part::Head), count(Part::Candidates)), (1, 1, 1));
        // Three layers, of which the second is STEM.
        assert_eq!((count(Part::Attention), count(Part::DenseFfn), count(Part::StemFfn)), (12, 4, 2));
        assert_eq!(parts[1 + 6 + 4..][..2], [(Part::StemFfn, 1); 2]);
        assert_eq!(parts.last(), Some(&(Part::Candidates, 3)));
    }
}
