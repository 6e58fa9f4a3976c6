//! The one upload of a step; `shaders/step.wgsl` reads it.

use std::ops::Range;

use bytemuck::cast_slice;

use crate::backend::{MAX_PENALIZED, MAX_STEP_TOKENS, Penalty, Step, Want};
use crate::config::Config;
use crate::cpu::kernels::rope_turn;

/// Words before the tokens.
const HEADER: usize = 8;
/// Words before the turns of the first position.
const FIXED: usize = HEADER + MAX_STEP_TOKENS + MAX_PENALIZED;

/// Bytes of the upload for `n` tokens.
pub fn bytes(config: &Config, n: usize) -> u64 {
    (FIXED + n * (config.head_dim + config.row_width())) as u64 * 4
}

/// The header alone: `n` tokens from `position` on, of which the head serves `head`.
pub fn header(n: usize, position: usize, head: Range<usize>, penalty: Penalty<'_>) -> [u32; HEADER] {
    let counts = [n, position, head.start, head.len(), penalty.tokens.len()].map(|v| v as u32);
    let [n, position, first, count, penalized] = counts;
    [n, position, first, count, penalized, penalty.factor.to_bits(), 0, 0]
}

/// Makes `words` the whole upload of a (checked) step whose head serves the positions `head`.
pub fn upload(words: &mut Vec<u32>, step: &Step<'_>, config: &Config, head: Range<usize>) {
    let n = step.tokens.len();
    let penalty = match step.want {
        Want::Candidates(penalty) => penalty,
        Want::Nothing | Want::Logits => Penalty::default(),
    };
    words.clear();
    words.reserve(bytes(config, n) as usize / 4);
    words.extend(header(n, step.position, head, penalty));
    words.extend_from_slice(step.tokens);
    words.resize(HEADER + MAX_STEP_TOKENS, 0);
    words.extend_from_slice(penalty.tokens);
    words.resize(FIXED, 0);
    for i in 0..n {
        let turn = rope_turn(step.position + i, config.rope_theta, config.head_dim);
        words.extend(turn.iter().flat_map(|(cos, sin)| [cos.to_bits(), sin.to_bits()]));
    }
    words.extend_from_slice(cast_slice(step.rows));
}
