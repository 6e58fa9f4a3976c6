//! The last norm and the head, as a linear map of one stream's parts.

use crate::config::Config;
use crate::cpu::CpuBackend;
use crate::cpu::kernels::dot;
use crate::cpu::linear::Weight;
use crate::plan::{Op, Plan};

/// Head rows that are expanded at once.
const PANEL: usize = 512;

/// The last norm's gain and the head, of a CPU backend.
pub struct Head<'a> {
    gain: &'a [f32],
    weight: &'a Weight,
    vocab: usize,
    eps: f32,
}

impl<'a> Head<'a> {
    pub fn new(backend: &'a CpuBackend, config: &Config) -> Self {
        let Some(Op::Head { norm, weight }) = Plan::of_config(config).ops.last().copied() else {
            unreachable!("a plan ends with the head")
        };
        Self {
            gain: backend.weight(norm).vector(),
            weight: backend.weight(weight),
            vocab: config.vocab_size,
            eps: config.rms_norm_eps,
        }
    }

    /// `1 / √(mean(x²) + eps)` for the stream `x` `[hidden]`: with it held fixed, the last norm is linear.
    pub fn scale(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }

    /// `[hidden]`: the mean of the head's rows.
    pub fn mean(&self) -> Vec<f32> {
        let hidden = self.gain.len();
        let (mut sum, mut panel) = (vec![0f64; hidden], Vec::new());
        for first in (0..self.vocab).step_by(PANEL) {
            panel.resize(PANEL.min(self.vocab - first) * hidden, 0.0);
            self.weight.expand(first, &mut panel);
            for row in panel.chunks_exact(hidden) {
                sum.iter_mut().zip(row).for_each(|(s, w)| *s += f64::from(*w));
            }
        }
        sum.into_iter().map(|s| (s / self.vocab as f64) as f32).collect()
    }

    /// `[hidden]`: the direction whose product with a part, times the scale, is what that part adds to the logit of token
    /// `id` beyond what it adds to the mean logit. `mean` is the mean row.
    pub fn direction(&self, id: u32, mean: &[f32]) -> Vec<f32> {
        let mut row = vec![0.0; self.gain.len()];
        self.weight.expand(id as usize, &mut row);
        row.iter_mut().zip(mean).zip(self.gain).for_each(|((w, m), g)| *w = (*w - m) * g);
        row
    }

    /// What a stream with this `scale` and the sum `x` adds to the mean logit.
    pub fn mean_logit(&self, x: &[f32], scale: f32, mean: &[f32]) -> f32 {
        x.iter().zip(mean).zip(self.gain).map(|((x, m), g)| x * m * g).sum::<f32>() * scale
    }

    /// `[vocab]`: what `part` `[hidden]` of a stream with this `scale` adds to each logit.
    pub fn logits(&self, part: &[f32], scale: f32) -> Vec<f32> {
        let scaled: Vec<f32> = part.iter().zip(self.gain).map(|(x, g)| x * g * scale).collect();
        let mut logits = vec![0.0; self.vocab];
        self.weight.matmul(&scaled, &mut logits);
        logits
    }
}
