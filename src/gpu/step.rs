//! The one upload of a step; `shaders/step.wgsl` reads it.

use std::ops::Range;

use bytemuck::cast_slice;

use super::shader::Size;
use crate::backend::{MAX_PENALIZED, MAX_STEP_TOKENS, Penalty, Step, Want};
use crate::config::Config;
use crate::cpu::kernels::rope_turn;

/// Words before the tokens.
const HEADER: usize = 8;
/// Words before the turns of the first position.
const FIXED: usize = HEADER + MAX_STEP_TOKENS + MAX_PENALIZED;

/// Positions that one workgroup of attention passes without need of others.
pub const PART: usize = 256;
/// Parts of a step's tokens together: 32 for one token, four each for eight.
pub const MAX_PARTS: usize = 32;

/// Into how many parts attention divides the positions before each of `n` tokens from `position` on, of about `part`
/// positions each. Where they are few, or the tokens many, there is one: dividing takes a dispatch more, and heads and tokens are
/// workgroups enough.
pub fn parts(n: usize, position: usize, part: usize) -> usize {
    (position + n).div_ceil(part).min(MAX_PARTS / n).max(1)
}

/// Bytes of the upload for `n` tokens.
pub fn bytes(config: &Config, n: usize) -> u64 {
    (FIXED + n * (config.head_dim + config.row_width())) as u64 * 4
}

/// The header alone: tokens of such a `size` from `position` on, of which the head serves `head`.
pub fn header(size: Size, position: usize, head: Range<usize>, penalty: Penalty<'_>) -> [u32; HEADER] {
    let counts = [size.tokens, position, head.start, head.len(), penalty.tokens.len(), size.parts];
    let [n, position, first, count, penalized, parts] = counts.map(|v| v as u32);
    [n, position, first, count, penalized, penalty.factor.to_bits(), parts, 0]
}

/// Makes `words` the whole upload of a (checked) step, its positions in `parts`, whose head serves the positions `head`.
pub fn upload(words: &mut Vec<u32>, step: &Step<'_>, config: &Config, parts: usize, head: Range<usize>) {
    let n = step.tokens.len();
    let penalty = match step.want {
        Want::Candidates(penalty) => penalty,
        Want::Nothing | Want::Logits => Penalty::default(),
    };
    words.clear();
    words.reserve(bytes(config, n) as usize / 4);
    words.extend(header(Size { tokens: n, parts }, step.position, head, penalty));
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
