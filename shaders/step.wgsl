// What the step brought, in one upload; `src/gpu/step.rs` writes it:
// [n, position, first and count of the positions that the head serves, penalised tokens, factor, parts, 0]
// tokens [MAX_TOKENS], penalised [MAX_PENALIZED], turns [n, HEAD_DIM / 2, 2], rows [n, ROW_WIDTH].
@group(0) @binding(0) var<storage, read> upload: array<u32>;

const TOKENS_AT: u32 = 8u;
const PENALIZED_AT: u32 = TOKENS_AT + MAX_TOKENS;
const TURNS_AT: u32 = PENALIZED_AT + MAX_PENALIZED;

fn step_tokens() -> u32 { return upload[0]; }
fn step_position() -> u32 { return upload[1]; }
fn head_first() -> u32 { return upload[2]; }
fn head_count() -> u32 { return upload[3]; }
// Parts of the positions before a token, for attention.
fn step_parts() -> u32 { return upload[6]; }
// Where the rows of token t begin: STEM rows [N_STEM, FFN], then those of Engram layers.
fn rows_at(t: u32) -> u32 { return TURNS_AT + step_tokens() * HEAD_DIM + t * ROW_WIDTH; }
