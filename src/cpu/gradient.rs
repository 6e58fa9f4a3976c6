//! The gradient of a loss with respect to STEM rows, through the frozen model, for several short texts at once.
//!
//! [`Tape::record`] runs the plan and keeps what the way back needs; [`Tape::rows_gradient`] goes back from the
//! logits to the rows by the chain rule. Weights get no gradient. `dy` is the gradient of the loss with respect to
//! `y`; a product `y = x · Wᵀ` gives `dx = dy · W`.

use std::ops::Range;

use super::backend::{CpuBackend, add};
use super::{engram, kernels};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::plan::{Op, Plan, Up};

/// Texts side by side, each from position 0 on.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    tokens: Vec<u32>,
    ranges: Vec<Range<usize>>,
}

impl Texts {
    /// Adds a text; the place of its first token among all.
    pub fn push(&mut self, text: &[u32]) -> usize {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(text);
        self.ranges.push(start..self.tokens.len());
        start
    }

    /// All tokens, text after text.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Where each text lies among them.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Rotates the queries and keys in `qkv` `[n, q + k + v]` by their positions, or back.
    fn rotate(&self, c: &Config, qkv: &mut [f32], back: bool) {
        for range in &self.ranges {
            for (position, place) in range.clone().enumerate() {
                let mut turn = kernels::rope_turn(position, c.rope_theta, c.head_dim);
                if back {
                    turn.iter_mut().for_each(|(_, sin)| *sin = -*sin);
                }
                kernels::rope(&mut qkv[place * c.qkv_dim()..][..c.q_dim() + c.kv_dim()], &turn);
            }
        }
    }
}

/// What the way back needs of a layer.
#[derive(Debug, Default)]
struct Saved {
    // [n, hidden]: the residual stream before attention, and before the FFN.
    before_attention: Vec<f32>,
    before_ffn: Vec<f32>,
    // [n, q + k + v], rotated.
    qkv: Vec<f32>,
    // [n, ffn]: W_g · norm, and what its SiLU is multiplied with.
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// A run of the plan, with what is needed to go back.
#[derive(Debug)]
pub struct Tape<'m> {
    model: &'m CpuBackend,
    texts: &'m Texts,
    plan: Plan,
    layers: Vec<Saved>,
    // [n, hidden]: the residual stream at the end.
    x: Vec<f32>,
}

impl<'m> Tape<'m> {
    /// Runs `texts` with the STEM rows `rows` `[n, n_stem, ffn]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no tokens, unknown ones, or the wrong number of row values.
    pub fn record(model: &'m CpuBackend, texts: &'m Texts, rows: &[f32]) -> Result<Self> {
        let plan = Plan::of_config(model.config());
        let c = &plan.config;
        let n = texts.tokens.len();
        if n == 0 || texts.tokens.iter().any(|id| *id as usize >= c.vocab_size) {
            return Err(Error::invalid("the texts", "are empty, or hold tokens outside the vocabulary"));
        }
        if rows.len() != n * c.row_width() {
            let needed = n * c.row_width();
            return Err(Error::invalid(format!("{} row values", rows.len()), format!("{needed} are needed")));
        }
        if let Some(late) = c.engram.as_ref().and_then(|engram| {
            engram
                .layers
                .iter()
                .map(|l| l.layer)
                .find(|l| c.stem_layers.first().is_some_and(|first| l > first))
        }) {
            return Err(Error::Unsupported {
                what: format!("a gradient through the Engram layer {late}"),
                supported: format!("Engram layers up to the first STEM layer, {:?}", c.stem_layers.first()),
            });
        }
        let mut x = vec![0.0; n * c.hidden_size];
        // Of an Engram layer [n, hidden]: keys and values.
        let (mut key, mut value) = (x.clone(), x.clone());
        let mut norm = x.clone();
        let mut attn = vec![0.0; n * c.q_dim()];
        let mut h = vec![0.0; n * c.intermediate_size];
        let mut layers = Vec::with_capacity(c.n_layers);
        let mut saved = Saved::default();
        for op in &plan.ops {
            match *op {
                Op::Embed { weight } => {
                    for (id, x) in texts.tokens.iter().zip(x.chunks_exact_mut(c.hidden_size)) {
                        model.weight(weight).expand(*id as usize, x);
                    }
                }
                Op::EngramProject { index, key: key_weight, value: value_weight } => {
                    let width = c.engram.as_ref().map_or(0, |engram| engram.width());
                    let at = c.stem_width() + index * width;
                    let all = rows.chunks_exact(c.row_width());
                    let heads: Vec<f32> = all.flat_map(|rows| &rows[at..at + width]).copied().collect();
                    model.weight(key_weight).matmul(&heads, &mut key);
                    model.weight(value_weight).matmul(&heads, &mut value);
                }
                Op::EngramGate { query_norm, key_norm, conv_norm, .. } => {
                    let gains = [query_norm, key_norm].map(|id| model.weight(id).vector());
                    let tokens = x.chunks_exact(c.hidden_size).zip(key.chunks_exact(c.hidden_size));
                    for ((x, key), value) in tokens.zip(value.chunks_exact_mut(c.hidden_size)) {
                        engram::engram_gate(x, key, gains, c.rms_norm_eps, value);
                    }
                    kernels::rms_norm(&value, model.weight(conv_norm).vector(), c.rms_norm_eps, &mut norm);
                }
                Op::EngramConv { conv, .. } => {
                    let dilation = c.engram.as_ref().map_or(0, |engram| engram.order());
                    let taps = model.weight(conv).vector();
                    for range in &texts.ranges {
                        let cache = &norm[range.start * c.hidden_size..range.end * c.hidden_size];
                        for (position, place) in range.clone().enumerate() {
                            let at = place * c.hidden_size..(place + 1) * c.hidden_size;
                            engram::engram_conv(
                                cache,
                                position,
                                taps,
                                dilation,
                                &value[at.clone()],
                                &mut x[at],
                            );
                        }
                    }
                }
                Op::NormQkv { norm: gain, weight } => {
                    saved.before_attention.clone_from(&x);
                    kernels::rms_norm(&x, model.weight(gain).vector(), c.rms_norm_eps, &mut norm);
                    saved.qkv.resize(n * c.qkv_dim(), 0.0);
                    model.weight(weight).matmul(&norm, &mut saved.qkv);
                }
                Op::RopeStore { .. } => texts.rotate(c, &mut saved.qkv, false),
                Op::Attention { .. } => attend(c, texts, &saved.qkv, &mut attn),
                Op::AttnOutput { weight } => {
                    model.weight(weight).matmul(&attn, &mut norm);
                    add(&mut x, &norm);
                }
                Op::NormGate { norm: gain, gate, up } => {
                    saved.before_ffn.clone_from(&x);
                    kernels::rms_norm(&x, model.weight(gain).vector(), c.rms_norm_eps, &mut norm);
                    saved.gate.resize(h.len(), 0.0);
                    model.weight(gate).matmul(&norm, &mut saved.gate);
                    saved.up.resize(h.len(), 0.0);
                    match up {
                        Up::Dense(weight) => model.weight(weight).matmul(&norm, &mut saved.up),
                        Up::Row(index) => {
                            let ffn = c.intermediate_size;
                            let all = rows.chunks_exact(c.row_width());
                            for (up, rows) in saved.up.chunks_exact_mut(ffn).zip(all) {
                                up.copy_from_slice(&rows[index * ffn..][..ffn]);
                            }
                        }
                    }
                    for ((h, g), u) in h.iter_mut().zip(&saved.gate).zip(&saved.up) {
                        *h = kernels::silu(*g) * u;
                    }
                }
                Op::Down { weight } => {
                    model.weight(weight).matmul(&h, &mut norm);
                    add(&mut x, &norm);
                    layers.push(std::mem::take(&mut saved));
                }
                Op::Head { .. } => {}
            }
        }
        Ok(Self { model, texts, plan, layers, x })
    }

    /// The logits after the tokens at `places`: `[m, vocab]`.
    pub fn logits(&self, places: &[usize]) -> Vec<f32> {
        let c = &self.plan.config;
        let (gain, weight) = self.head();
        let x = self.ends(places);
        let mut norm = vec![0.0; x.len()];
        kernels::rms_norm(&x, self.model.weight(gain).vector(), c.rms_norm_eps, &mut norm);
        let mut logits = vec![0.0; places.len() * c.vocab_size];
        self.model.weight(weight).matmul(&norm, &mut logits);
        logits
    }

    /// The gradient with respect to the rows, `[n, n_stem, ffn]`, of a loss with the gradient `d_logits`
    /// `[m, vocab]` with respect to the logits at `places`, which are distinct.
    pub fn rows_gradient(&self, places: &[usize], d_logits: &[f32]) -> Vec<f32> {
        let c = &self.plan.config;
        let (model, n, ffn) = (self.model, self.texts.tokens.len(), c.intermediate_size);
        let norm_back = |gain: usize, x: &[f32], dy: &[f32], dx: &mut [f32]| {
            rms_norm_back(x, model.weight(gain).vector(), c.rms_norm_eps, dy, dx);
        };
        let mut d_rows = vec![0.0; n * c.row_width()];
        // [n, hidden]: with respect to the residual stream.
        let mut dx = vec![0.0; n * c.hidden_size];
        // With respect to what the operation behind wrote: [n, hidden], [n, ffn], [n, ffn], [n, q], [n, q + k + v].
        let mut d_norm = dx.clone();
        let (mut d_gate, mut d_up) = (vec![0.0; n * ffn], vec![0.0; n * ffn]);
        let (mut d_attn, mut d_qkv) = (vec![0.0; n * c.q_dim()], vec![0.0; n * c.qkv_dim()]);
        let mut layer = self.layers.len();
        for op in self.plan.ops.iter().rev() {
            match *op {
                Op::Head { norm: gain, weight } => {
                    let mut d_norm = vec![0.0; places.len() * c.hidden_size];
                    model.weight(weight).matmul_back(d_logits, &mut d_norm);
                    let mut d_ends = vec![0.0; d_norm.len()];
                    norm_back(gain, &self.ends(places), &d_norm, &mut d_ends);
                    for (place, d) in places.iter().zip(d_ends.chunks_exact(c.hidden_size)) {
                        add(&mut dx[place * c.hidden_size..][..c.hidden_size], d);
                    }
                }
                Op::Down { weight } => {
                    layer -= 1;
                    d_up.fill(0.0);
                    model.weight(weight).matmul_back(&dx, &mut d_up);
                }
                Op::NormGate { norm: gain, gate, up } => {
                    let saved = &self.layers[layer];
                    for i in 0..d_up.len() {
                        let (dh, g) = (d_up[i], saved.gate[i]);
                        // SiLU'(g) = σ(g) (1 + g (1 − σ(g))).
                        let sigmoid = 1.0 / (1.0 + kernels::exp(-g));
                        d_up[i] = dh * g * sigmoid;
                        d_gate[i] = dh * saved.up[i] * sigmoid * (1.0 + g * (1.0 - sigmoid));
                    }
                    d_norm.fill(0.0);
                    model.weight(gate).matmul_back(&d_gate, &mut d_norm);
                    match up {
                        Up::Dense(weight) => model.weight(weight).matmul_back(&d_up, &mut d_norm),
                        Up::Row(index) => {
                            let all = d_rows.chunks_exact_mut(c.row_width());
                            for (d_row, d_up) in all.zip(d_up.chunks_exact(ffn)) {
                                d_row[index * ffn..][..ffn].copy_from_slice(d_up);
                            }
                            if index == 0 {
                                // No rows lie before the first STEM layer.
                                break;
                            }
                        }
                    }
                    norm_back(gain, &saved.before_ffn, &d_norm, &mut dx);
                }
                Op::AttnOutput { weight } => {
                    d_attn.fill(0.0);
                    model.weight(weight).matmul_back(&dx, &mut d_attn);
                }
                Op::Attention { .. } => {
                    d_qkv.fill(0.0);
                    attend_back(c, self.texts, &self.layers[layer].qkv, &d_attn, &mut d_qkv);
                }
                Op::RopeStore { .. } => self.texts.rotate(c, &mut d_qkv, true),
                Op::NormQkv { norm: gain, weight } => {
                    d_norm.fill(0.0);
                    model.weight(weight).matmul_back(&d_qkv, &mut d_norm);
                    norm_back(gain, &self.layers[layer].before_attention, &d_norm, &mut dx);
                }
                // No STEM row lies before them.
                Op::Embed { .. }
                | Op::EngramProject { .. }
                | Op::EngramGate { .. }
                | Op::EngramConv { .. } => {}
            }
        }
        d_rows
    }

    /// Gain and weight of the head.
    fn head(&self) -> (usize, usize) {
        let head = self.plan.ops.iter().find_map(|op| match *op {
            Op::Head { norm, weight } => Some((norm, weight)),
            _ => None,
        });
        head.expect("every plan ends with a head")
    }

    /// The residual stream at `places`, `[m, hidden]`.
    fn ends(&self, places: &[usize]) -> Vec<f32> {
        let hidden = self.plan.config.hidden_size;
        places.iter().flat_map(|place| &self.x[place * hidden..][..hidden]).copied().collect()
    }
}

/// Adds to `dx` what `dy` means for the input of `y = x s ⊙ gain`, `s = 1 / √(mean(x²) + eps)`:
/// `dx = s (gain ⊙ dy) − x s³ mean(x ⊙ gain ⊙ dy)`.
fn rms_norm_back(x: &[f32], gain: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let width = gain.len();
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, dy), dx) in rows {
        let scale = 1.0 / (kernels::dot(x, x) / width as f32 + eps).sqrt();
        let along: f32 = x.iter().zip(gain).zip(dy).map(|((x, g), dy)| x * g * dy).sum();
        let along = along * scale.powi(3) / width as f32;
        for (((dx, x), g), dy) in dx.iter_mut().zip(x).zip(gain).zip(dy) {
            *dx += scale * g * dy - along * x;
        }
    }
}

/// One head at one token.
struct Head<'a> {
    c: &'a Config,
    qkv: &'a [f32],
    /// The first token of the text.
    start: usize,
    token: usize,
    head: usize,
}

impl Head<'_> {
    /// Where the query lies in `qkv`.
    fn query(&self) -> Range<usize> {
        let at = self.token * self.c.qkv_dim() + self.head * self.c.head_dim;
        at..at + self.c.head_dim
    }

    /// Where the key of token `token` lies in `qkv`.
    fn key(&self, token: usize) -> Range<usize> {
        let group = self.c.n_heads / self.c.n_kv_heads;
        let at = token * self.c.qkv_dim() + self.c.q_dim() + self.head / group * self.c.head_dim;
        at..at + self.c.head_dim
    }

    /// Where the value of token `token` lies in `qkv`.
    fn value(&self, token: usize) -> Range<usize> {
        let key = self.key(token);
        key.start + self.c.kv_dim()..key.end + self.c.kv_dim()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.c.head_dim as f32).sqrt()
    }

    /// softmax(q · K / √head_dim) over the tokens from `start` to `token`.
    fn probabilities(&self) -> Vec<f32> {
        let query = &self.qkv[self.query()];
        let score = |token| self.scale() * kernels::dot(query, &self.qkv[self.key(token)]);
        let mut all: Vec<f32> = (self.start..=self.token).map(score).collect();
        let max = all.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        all.iter_mut().for_each(|p| *p = (*p - max).exp());
        let sum: f32 = all.iter().sum();
        all.iter_mut().for_each(|p| *p /= sum);
        all
    }
}

/// All heads at all tokens, with where their output lies in `[n, q]`.
fn heads<'a>(
    c: &'a Config,
    texts: &'a Texts,
    qkv: &'a [f32],
) -> impl Iterator<Item = (Head<'a>, Range<usize>)> {
    let tokens = texts.ranges.iter().flat_map(|range| range.clone().map(|token| (range.start, token)));
    tokens.flat_map(move |(start, token)| {
        (0..c.n_heads).map(move |head| {
            let at = token * c.q_dim() + head * c.head_dim;
            (Head { c, qkv, start, token, head }, at..at + c.head_dim)
        })
    })
}

/// Causal attention within each text: `qkv` `[n, q + k + v]`, `attn` `[n, q]`.
fn attend(c: &Config, texts: &Texts, qkv: &[f32], attn: &mut [f32]) {
    for (head, at) in heads(c, texts, qkv) {
        let out = &mut attn[at];
        out.fill(0.0);
        for (p, token) in head.probabilities().iter().zip(head.start..) {
            out.iter_mut().zip(&qkv[head.value(token)]).for_each(|(o, v)| *o += p * v);
        }
    }
}

/// Adds to `d_qkv` what `d_attn` means for it. With the probabilities p and `dp_j = do · v_j`:
/// `dv_j = p_j do`, `ds_j = p_j (dp_j − Σ p dp) / √head_dim`, `dq = Σ ds_j k_j`, `dk_j = ds_j q`.
fn attend_back(c: &Config, texts: &Texts, qkv: &[f32], d_attn: &[f32], d_qkv: &mut [f32]) {
    let add_scaled = |out: &mut [f32], scale: f32, x: &[f32]| {
        out.iter_mut().zip(x).for_each(|(o, x)| *o += scale * x);
    };
    for (head, at) in heads(c, texts, qkv) {
        let d_out = &d_attn[at];
        let p = head.probabilities();
        let dp: Vec<f32> =
            (head.start..=head.token).map(|token| kernels::dot(d_out, &qkv[head.value(token)])).collect();
        let mean = kernels::dot(&p, &dp);
        for ((p, dp), token) in p.iter().zip(&dp).zip(head.start..) {
            let ds = p * (dp - mean) * head.scale();
            add_scaled(&mut d_qkv[head.value(token)], *p, d_out);
            add_scaled(&mut d_qkv[head.query()], ds, &qkv[head.key(token)]);
            add_scaled(&mut d_qkv[head.key(token)], ds, &qkv[head.query()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Output, Step, Want};
    use crate::bundle::quant::Dtype;
    use crate::bundle::random;
    use crate::config::tests::tiny;
    use crate::cpu::backend::tests::{model, model_in};
    use crate::engram::config::tests::tiny_engram;

    /// Dense layers before, between and behind the STEM layers.
    fn config() -> Config {
        Config { n_layers: 5, stem_layers: vec![1, 3], ..tiny() }
    }

    /// Without Engram layers and with them, before the STEM layers and in the first one.
    fn configs() -> [Config; 2] {
        [config(), Config { engram: Some(tiny_engram()), ..config() }]
    }

    fn texts() -> Texts {
        let mut texts = Texts::default();
        assert_eq!(texts.push(&[5, 9, 17, 200, 3, 8]), 0);
        assert_eq!(texts.push(&[7, 17, 100]), 6);
        texts
    }

    fn rows(config: &Config, texts: &Texts) -> Vec<f32> {
        texts.tokens().iter().flat_map(|t| random::rows(config, *t, 5)).collect()
    }

    #[test]
    fn texts_side_by_side_equal_texts_alone() {
        for config in configs() {
            same_side_by_side(&config);
        }
    }

    fn same_side_by_side(config: &Config) {
        let texts = texts();
        let mut model = model(config);
        let rows = rows(config, &texts);
        let all: Vec<usize> = (0..texts.tokens().len()).collect();
        let found = Tape::record(&model, &texts, &rows).unwrap().logits(&all);
        for range in texts.ranges() {
            let of = |width: usize| range.start * width..range.end * width;
            let step = Step {
                tokens: &texts.tokens()[range.clone()],
                position: 0,
                rows: &rows[of(config.row_width())],
                want: Want::Logits,
            };
            let Output::Logits(expected) = pollster::block_on(model.forward(step)).unwrap() else {
                panic!("no logits")
            };
            let spread = expected.iter().fold(0f32, |m, l| m.max(l.abs()));
            for (f, e) in found[of(config.vocab_size)].iter().zip(&expected) {
                assert!((f - e).abs() < 1e-4 * spread, "{f} for {e}");
            }
        }
    }

    #[test]
    fn the_gradient_is_the_slope() {
        for config in configs() {
            slope_is_gradient(&config);
        }
    }

    fn slope_is_gradient(config: &Config) {
        let texts = texts();
        // Products with packed weights round their input, which hides small slopes.
        let model = model_in(config, |_| Dtype::F32);
        let rows = rows(config, &texts);
        let places = [3, 5, 8];
        // The loss: logits with random weights.
        let weights = random::weights("loss", &[places.len(), config.vocab_size], 1);
        let loss = |rows: &[f32]| {
            let logits = Tape::record(&model, &texts, rows).unwrap().logits(&places);
            logits.iter().zip(&weights).map(|(l, w)| f64::from(*l) * f64::from(*w)).sum::<f64>()
        };
        let gradient = Tape::record(&model, &texts, &rows).unwrap().rows_gradient(&places, &weights);
        let ffn = config.intermediate_size;
        let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
        for block in 0..texts.tokens().len() * 2 {
            // One token's row in one layer, along a random direction.
            let start = block / 2 * config.row_width() + block % 2 * ffn;
            let at = start..start + ffn;
            let direction = random::weights(&format!("direction {block}"), &[1, ffn], 1);
            let moved = |step: f32| {
                let mut rows = rows.clone();
                rows[at.clone()].iter_mut().zip(&direction).for_each(|(r, d)| *r += step * d);
                loss(&rows)
            };
            let step = 0.02;
            let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            let along: f64 = gradient[at.clone()].iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            let error = (slope - along).abs();
            assert!(error < 0.01 * along.abs() + 1e-3 * f64::from(largest), "{block}: {along} for {slope}");
        }
    }

    #[test]
    fn later_tokens_do_not_matter() {
        let (config, texts) = (config(), texts());
        let model = model(&config);
        let tape = Tape::record(&model, &texts, &rows(&config, &texts)).unwrap();
        let gradient = tape.rows_gradient(&[2], &random::weights("loss", &[1, config.vocab_size], 1));
        let width = config.row_width();
        assert!(gradient[..3 * width].iter().any(|g| *g != 0.0));
        assert!(gradient[3 * width..].iter().all(|g| *g == 0.0), "tokens behind, and the other text");
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let config = config();
        let model = model(&config);
        let mut texts = Texts::default();
        assert!(Tape::record(&model, &texts, &[]).is_err());
        texts.push(&[1]);
        assert!(Tape::record(&model, &texts, &[0.0]).unwrap_err().to_string().contains("row values"));
        texts.push(&[300]);
        assert!(Tape::record(&model, &texts, &vec![0.0; 2 * config.row_width()]).is_err());

        let late = Config { engram: Some(tiny_engram()), stem_layers: vec![0, 3], ..config };
        let mut texts = Texts::default();
        texts.push(&[1]);
        let error =
            Tape::record(&super::tests::model(&late), &texts, &vec![0.0; late.row_width()]).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("layer 1")), "{error}");
    }
}
