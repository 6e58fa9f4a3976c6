//! The plan's interpreter on the CPU, with the weights and the KV cache.

use super::kv::{KvCache, KvType};
use super::linear::Weight;
use super::{attention, engram, kernels, team};
use crate::backend::{Backend, Output, Step, Want, check, check_tokens};
use crate::bundle::manifest::Tensor;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::plan::{Op, Plan, Up};
use crate::trace::gauge::{EngramGauge, Gauge, Gauges};
use crate::trace::times::Times;

/// What a probe sees after an operation; buffers hold the values of the last operation that wrote them.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The residual stream, `[n, hidden]`.
    pub x: &'a [f32],
    /// The normalised input of the last projection, `[n, hidden]`; after [`Op::AttnOutput`] and [`Op::Down`] what they
    /// added to `x`.
    pub norm: &'a [f32],
    /// `[n, q + k + v]`.
    pub qkv: &'a [f32],
    /// `[n, q]`.
    pub attn: &'a [f32],
    /// `SiLU(W_g · norm)`, `[n, ffn]`.
    pub gate: &'a [f32],
    /// What the gate was multiplied with, `[n, ffn]`.
    pub up: &'a [f32],
    /// `gate ⊙ up`, `[n, ffn]`.
    pub h: &'a [f32],
    /// The head rows of an Engram layer, `[n, width]`.
    pub heads: &'a [f32],
    /// Its gate, `[n]`.
    pub engram_gate: &'a [f32],
}

/// Looks at intermediate values between operations.
pub trait Probe {
    /// Called after `op`, the `index`-th of the plan.
    fn after(&mut self, index: usize, op: &Op, view: View<'_>);

    /// Called once the candidates have been chosen.
    fn chosen(&mut self) {}
}

/// What is measured at every step, if anything.
#[derive(Debug, Default)]
struct Meters {
    gauges: Option<Gauges>,
    times: Option<Times>,
}

impl Meters {
    fn begin(&mut self, n: usize) {
        if let Some(gauges) = &mut self.gauges {
            gauges.begin(n);
        }
        if let Some(times) = &mut self.times {
            times.begin();
        }
    }

    fn resume(&mut self) {
        if let Some(times) = &mut self.times {
            times.resume();
        }
    }
}

impl Probe for Meters {
    fn after(&mut self, index: usize, op: &Op, view: View<'_>) {
        if let Some(times) = &mut self.times {
            times.after(index, op, view);
        }
        if let Some(gauges) = &mut self.gauges {
            gauges.after(index, op, view);
        }
    }

    fn chosen(&mut self) {
        if let Some(times) = &mut self.times {
            times.chosen();
        }
    }
}

#[derive(Debug, Default)]
struct Scratch {
    x: Vec<f32>,
    norm: Vec<f32>,
    qkv: Vec<f32>,
    attn: Vec<f32>,
    attn_parts: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    h: Vec<f32>,
    logits: Vec<f32>,
    // Of an Engram layer: head rows [n, width], keys and values [n, hidden].
    heads: Vec<f32>,
    engram_key: Vec<f32>,
    engram_value: Vec<f32>,
    // [n]
    engram_gate: Vec<f32>,
}

/// Runs the plan on the CPU.
#[derive(Debug)]
pub struct CpuBackend {
    plan: Plan,
    weights: Vec<Weight>,
    kv: KvCache,
    // Of each Engram layer what its convolution looks back at, `[positions, hidden]`, grown as positions come.
    engram: Vec<Vec<f32>>,
    capacity: usize,
    scratch: Scratch,
    // Position and tokens of a step whose first operations have been run.
    begun: Option<(usize, Vec<u32>)>,
    meters: Meters,
}

impl CpuBackend {
    /// A backend for the core's `tensors` with room for `capacity` positions (at most the model's context), which keeps their
    /// keys and values in single precision; weights are zero until written.
    pub fn new(tensors: &[Tensor], config: &Config, capacity: usize) -> Self {
        Self {
            plan: Plan::of_config(config),
            weights: tensors.iter().map(Weight::zeroed).collect(),
            kv: KvCache::new(KvType::F32, config),
            engram: vec![Vec::new(); config.engram.as_ref().map_or(0, |engram| engram.layers.len())],
            capacity: capacity.min(config.context_length),
            scratch: Scratch::default(),
            begun: None,
            meters: Meters::default(),
        }
    }

    /// Stores keys and values as `kind` from now on. Those of earlier steps are forgotten.
    pub fn set_kv_type(&mut self, kind: KvType) {
        self.kv = KvCache::new(kind, &self.plan.config);
        self.engram.iter_mut().for_each(Vec::clear);
        self.begun = None;
    }

    /// How keys and values are stored.
    pub fn kv_type(&self) -> KvType {
        self.kv.kind()
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.plan.config
    }

    /// The weights of tensor `id`.
    pub fn weight(&self, id: usize) -> &Weight {
        &self.weights[id]
    }

    /// [`Backend::forward`] with a look at every intermediate value.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::ContextFull`] for a step that can't be run.
    pub fn forward_probed(&mut self, step: Step<'_>, probe: &mut impl Probe) -> Result<Output> {
        self.begun = None;
        self.run_step(step, probe)
    }

    fn run_step(&mut self, step: Step<'_>, probe: &mut impl Probe) -> Result<Output> {
        check(&step, &self.plan.config, self.capacity)?;
        let begun = self.is_begun(&step);
        self.begun = None;
        if !begun {
            self.make_room(step.tokens, step.position)?;
        }
        let first = if begun { self.plan.before_rows() } else { 0 };
        for index in first..self.plan.ops.len() {
            let op = self.plan.ops[index];
            self.run(op, &step);
            probe.after(index, &op, self.scratch.view());
        }
        Ok(match step.want {
            Want::Nothing => Output::Nothing,
            Want::Candidates(penalty) => {
                kernels::penalize(&mut self.scratch.logits, penalty);
                let candidates = kernels::top_k(&self.scratch.logits);
                probe.chosen();
                Output::Candidates(candidates)
            }
            Want::Logits => Output::Logits(std::mem::take(&mut self.scratch.logits)),
        })
    }

    fn is_begun(&self, step: &Step<'_>) -> bool {
        self.begun.as_ref().is_some_and(|(at, tokens)| *at == step.position && tokens == step.tokens)
    }

    /// Room for a step in the cache and in the scratch.
    fn make_room(&mut self, tokens: &[u32], position: usize) -> Result<()> {
        let len = position + tokens.len();
        if self.kv.len() < position {
            return Err(Error::invalid(
                format!("a step at position {position}"),
                format!("the cache holds {} positions", self.kv.len()),
            ));
        }
        self.kv.grow(len);
        for cache in &mut self.engram {
            cache.resize(cache.len().max(len * self.plan.config.hidden_size), 0.0);
        }
        self.scratch.resize(&self.plan.config, tokens.len());
        Ok(())
    }

    fn run(&mut self, op: Op, step: &Step<'_>) {
        let Self { plan, weights, kv, engram: caches, scratch: s, .. } = self;
        let c = &plan.config;
        let n = step.tokens.len();
        match op {
            Op::Embed { weight } => {
                for (id, x) in step.tokens.iter().zip(s.x.chunks_exact_mut(c.hidden_size)) {
                    weights[weight].expand(*id as usize, x);
                }
            }
            Op::EngramProject { index, key, value } => {
                let width = c.engram.as_ref().map_or(0, |engram| engram.width());
                let at = c.stem_width() + index * width;
                for (heads, rows) in
                    s.heads.chunks_exact_mut(width).zip(step.rows.chunks_exact(c.row_width()))
                {
                    heads.copy_from_slice(&rows[at..at + width]);
                }
                weights[key].matmul(&s.heads, &mut s.engram_key);
                weights[value].matmul(&s.heads, &mut s.engram_value);
            }
            Op::EngramGate { index, query_norm, key_norm, conv_norm } => {
                let gains = [query_norm, key_norm].map(|id| weights[id].vector());
                let hidden = c.hidden_size;
                let tokens = s.x.chunks_exact(hidden).zip(s.engram_key.chunks_exact(hidden));
                let values = s.engram_value.chunks_exact_mut(hidden).zip(&mut s.engram_gate);
                for ((x, key), (value, gate)) in tokens.zip(values) {
                    *gate = engram::engram_gate(x, key, gains, c.rms_norm_eps, value);
                }
                let cache = &mut caches[index][step.position * hidden..][..n * hidden];
                kernels::rms_norm(&s.engram_value, weights[conv_norm].vector(), c.rms_norm_eps, cache);
            }
            Op::EngramConv { index, conv } => {
                let dilation = c.engram.as_ref().map_or(0, |engram| engram.order());
                let tokens =
                    s.x.chunks_exact_mut(c.hidden_size).zip(s.engram_value.chunks_exact(c.hidden_size));
                for (i, (x, value)) in tokens.enumerate() {
                    let taps = weights[conv].vector();
                    engram::engram_conv(&caches[index], step.position + i, taps, dilation, value, x);
                }
            }
            Op::NormQkv { norm, weight } => {
                kernels::rms_norm(&s.x, weights[norm].vector(), c.rms_norm_eps, &mut s.norm);
                weights[weight].matmul(&s.norm, &mut s.qkv);
            }
            Op::RopeStore { layer } => {
                for (i, qkv) in s.qkv.chunks_exact_mut(c.qkv_dim()).enumerate() {
                    let position = step.position + i;
                    let turn = kernels::rope_turn(position, c.rope_theta, c.head_dim);
                    let (qk, v) = qkv.split_at_mut(c.q_dim() + c.kv_dim());
                    kernels::rope(qk, &turn);
                    kv.store(layer, position, &qk[c.q_dim()..], v);
                }
            }
            Op::Attention { layer } => {
                attention::all_heads(c, layer, step.position, &s.qkv, kv, &mut s.attn, &mut s.attn_parts);
            }
            Op::AttnOutput { weight } => {
                weights[weight].matmul(&s.attn, &mut s.norm);
                add(&mut s.x, &s.norm);
            }
            Op::NormGate { norm, gate, up } => {
                kernels::rms_norm(&s.x, weights[norm].vector(), c.rms_norm_eps, &mut s.norm);
                weights[gate].matmul(&s.norm, &mut s.gate);
                match up {
                    Up::Dense(up) => weights[up].matmul(&s.norm, &mut s.up),
                    Up::Row(index) => {
                        let all = step.rows.chunks_exact(c.row_width());
                        for (up, rows) in s.up.chunks_exact_mut(c.intermediate_size).zip(all) {
                            up.copy_from_slice(&rows[index * c.intermediate_size..][..c.intermediate_size]);
                        }
                    }
                }
                kernels::silu_times(&mut s.gate, &s.up, &mut s.h);
            }
            Op::Down { weight } => {
                weights[weight].matmul(&s.h, &mut s.norm);
                add(&mut s.x, &s.norm);
            }
            Op::Head { norm, weight } => {
                let first = match step.want {
                    Want::Nothing => n,
                    Want::Candidates(_) => n - 1,
                    Want::Logits => 0,
                };
                let at = first * c.hidden_size..;
                let gain = weights[norm].vector();
                kernels::rms_norm(&s.x[at.clone()], gain, c.rms_norm_eps, &mut s.norm[at.clone()]);
                s.logits.clear();
                s.logits.resize((n - first) * c.vocab_size, 0.0);
                if first < n {
                    weights[weight].matmul(&s.norm[at], &mut s.logits);
                }
            }
        }
    }
}

impl Backend for CpuBackend {
    fn write(&mut self, tensor: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let count = self.weights.len();
        let weight = self
            .weights
            .get_mut(tensor)
            .ok_or_else(|| Error::invalid(format!("tensor {tensor}"), format!("the core has {count}")))?;
        weight.write(offset, bytes)
    }

    async fn begin(&mut self, tokens: &[u32], position: usize) -> Result<()> {
        self.begun = None;
        check_tokens(tokens, position, &self.plan.config, self.capacity)?;
        self.make_room(tokens, position)?;
        let step = Step { tokens, position, rows: &[], want: Want::Nothing };
        let mut meters = std::mem::take(&mut self.meters);
        meters.begin(tokens.len());
        for index in 0..self.plan.before_rows() {
            let op = self.plan.ops[index];
            self.run(op, &step);
            meters.after(index, &op, self.scratch.view());
        }
        self.meters = meters;
        self.begun = Some((position, tokens.to_vec()));
        Ok(())
    }

    async fn forward(&mut self, step: Step<'_>) -> Result<Output> {
        let mut meters = std::mem::take(&mut self.meters);
        if self.is_begun(&step) {
            meters.resume();
        } else {
            meters.begin(step.tokens.len());
        }
        let output = self.run_step(step, &mut meters);
        self.meters = meters;
        output
    }

    fn measure(&mut self, on: bool) {
        self.meters.gauges = on.then(|| Gauges::new(&self.plan.config));
    }

    fn gauges(&self) -> &[Gauge] {
        self.meters.gauges.as_ref().map_or(&[], Gauges::read)
    }

    fn time(&mut self, on: bool) {
        self.meters.times = on.then(|| Times::new(&self.plan));
    }

    fn times(&self) -> &[f64] {
        self.meters.times.as_ref().map_or(&[], Times::read)
    }

    fn engram_gauges(&self) -> &[EngramGauge] {
        self.meters.gauges.as_ref().map_or(&[], Gauges::read_engram)
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn describe(&self) -> (&'static str, String) {
        #[cfg(feature = "native")]
        let how = format!("{} threads, {}", team::threads(), std::env::consts::ARCH);
        #[cfg(not(feature = "native"))]
        let how = match team::threads() {
            1 => "WebAssembly SIMD, 1 thread".to_owned(),
            n => format!("WebAssembly SIMD, {n} threads"),
        };
        ("cpu", how)
    }

    fn bytes(&self) -> u64 {
        let engram = self.engram.iter().map(|cache| size_of_val(&cache[..]) as u64).sum::<u64>();
        self.weights.iter().map(Weight::bytes).sum::<u64>() + self.kv.bytes() + engram
    }
}

impl Scratch {
    fn resize(&mut self, c: &Config, n: usize) {
        self.x.resize(n * c.hidden_size, 0.0);
        self.norm.resize(n * c.hidden_size, 0.0);
        self.qkv.resize(n * c.qkv_dim(), 0.0);
        self.attn.resize(n * c.q_dim(), 0.0);
        self.gate.resize(n * c.intermediate_size, 0.0);
        self.up.resize(n * c.intermediate_size, 0.0);
        self.h.resize(n * c.intermediate_size, 0.0);
        if let Some(engram) = &c.engram {
            self.heads.resize(n * engram.width(), 0.0);
            self.engram_key.resize(n * c.hidden_size, 0.0);
            self.engram_value.resize(n * c.hidden_size, 0.0);
            self.engram_gate.resize(n, 0.0);
        }
    }

    fn view(&self) -> View<'_> {
        View {
            x: &self.x,
            norm: &self.norm,
            qkv: &self.qkv,
            attn: &self.attn,
            gate: &self.gate,
            up: &self.up,
            h: &self.h,
            heads: &self.heads,
            engram_gate: &self.engram_gate,
        }
    }
}

pub(super) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::backend::{Penalty, write_core};
    use crate::bundle::manifest::expected_tensors;
    use crate::bundle::quant::Dtype;
    use crate::bundle::random;
    use crate::config::tests::tiny;
    use crate::engram::config::tests::tiny_engram;

    pub(in crate::cpu) fn model(config: &Config) -> CpuBackend {
        model_in(config, |name| if name.contains("ffn") { Dtype::Q4 } else { Dtype::Q8 })
    }

    pub(in crate::cpu) fn model_in(config: &Config, dtype: impl Fn(&str) -> Dtype) -> CpuBackend {
        let core = random::core(config, 5, dtype);
        let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
        let mut backend = CpuBackend::new(&tensors, config, 100);
        for (id, (_, planes)) in core.iter().enumerate() {
            backend.write(id, 0, planes).unwrap();
        }
        backend
    }

    fn logits(backend: &mut CpuBackend, tokens: &[u32], position: usize) -> Vec<f32> {
        let config = backend.config().clone();
        let rows: Vec<f32> = tokens.iter().flat_map(|t| random::rows(&config, *t, 5)).collect();
        let step = Step { tokens, position, rows: &rows, want: Want::Logits };
        match pollster::block_on(backend.forward(step)).unwrap() {
            Output::Logits(logits) => logits,
            other => panic!("{other:?}"),
        }
    }

    fn engram() -> Config {
        Config { engram: Some(tiny_engram()), ..tiny() }
    }

    #[test]
    fn one_by_one_equals_all_at_once() {
        same_one_by_one(&tiny());
        same_one_by_one(&engram());
    }

    fn same_one_by_one(config: &Config) {
        let mut backend = model(config);
        let tokens: Vec<u32> = (0..13).map(|i| (i * i * 31 + 7) % 300).collect();
        let whole = logits(&mut backend, &tokens, 0);
        assert!(whole.iter().all(|l| l.is_finite()));
        let spread = whole.iter().fold(0f32, |m, l| m.max(l.abs()));
        let mut again = Vec::new();
        for (i, token) in tokens.iter().enumerate() {
            again.extend(logits(&mut backend, &[*token], i));
        }
        for (a, b) in whole.iter().zip(&again) {
            assert!((a - b).abs() < 1e-4 * spread, "{a} {b}");
        }
    }

    #[test]
    fn a_rewritten_suffix_forgets_the_old_one() {
        for config in [tiny(), engram()] {
            let mut backend = model(&config);
            logits(&mut backend, &[1, 2, 3, 4, 5], 0);
            let reused = logits(&mut backend, &[9, 8, 7, 6, 5], 2);
            let fresh = logits(&mut model(&config), &[1, 2, 9, 8, 7, 6, 5], 0);
            for (a, b) in reused.iter().zip(&fresh[2 * 300..]) {
                assert!((a - b).abs() < 1e-3, "{a} {b}");
            }
        }
    }

    /// Logits over more than a span, in steps of `sizes` (the last one again and again).
    fn in_steps(backend: &mut CpuBackend, tokens: &[u32], sizes: &[usize]) -> Vec<f32> {
        let mut all = Vec::new();
        let mut sizes = sizes.iter().chain(std::iter::repeat(&sizes[sizes.len() - 1]));
        let mut at = 0;
        while at < tokens.len() {
            let end = tokens.len().min(at + sizes.next().unwrap());
            all.extend(logits(backend, &tokens[at..end], at));
            at = end;
        }
        all
    }

    #[test]
    fn the_bits_depend_on_the_tokens_alone() {
        let tokens: Vec<u32> = (0..90).map(|i| (i * i * 31 + 7) % 300).collect();
        for config in [tiny(), engram()] {
            let new = |kind| {
                let mut backend = model(&config);
                backend.set_kv_type(kind);
                assert_eq!(backend.kv_type(), kind);
                backend
            };
            let spread = |logits: &[f32]| logits.iter().fold(0f32, |max, x| max.max(x.abs()));
            let exact = in_steps(&mut new(KvType::F32), &tokens, &[90]);
            for &kind in KvType::ALL {
                let whole = in_steps(&mut new(kind), &tokens, &[90]);
                let bound = if kind == KvType::F32 { 0.0 } else { 0.05 * spread(&exact) };
                assert!(whole.iter().zip(&exact).all(|(a, b)| (a - b).abs() <= bound), "{kind}");
                for sizes in [&[1][..], &[63, 2, 3, 1], &[13, 17]] {
                    let mut backend = new(kind);
                    assert!(in_steps(&mut backend, &tokens, sizes) == whole, "{kind} {sizes:?}");
                    // A prefix again, behind which something else stood.
                    logits(&mut backend, &[9, 8, 7], 70);
                    assert!(logits(&mut backend, &tokens[70..], 70) == whole[70 * 300..], "{kind} {sizes:?}");
                }
                // Work in work is done by one thread.
                let alone = std::sync::Mutex::new(Vec::new());
                team::run(2, &|i| {
                    if i == 0 {
                        *alone.lock().unwrap() = in_steps(&mut new(kind), &tokens, &[70, 1]);
                    }
                });
                assert!(alone.into_inner().unwrap() == whole, "{kind} on one thread");
            }
        }
    }

    #[test]
    fn a_step_that_was_begun_gives_the_same_bits() {
        for config in [tiny(), engram()] {
            let (mut whole, mut begun) = (model(&config), model(&config));
            for (position, tokens) in [(0, &[1, 2, 3][..]), (3, &[4]), (2, &[5, 6])] {
                // Only the last of these is followed.
                for other in [&[9, 9][..], &[9], tokens] {
                    pollster::block_on(begun.begin(other, position)).unwrap();
                }
                assert_eq!(logits(&mut begun, tokens, position), logits(&mut whole, tokens, position));
            }
            pollster::block_on(begun.begin(&[9], 1)).unwrap();
            assert_eq!(logits(&mut begun, &[7], 1), logits(&mut whole, &[7], 1));
            let begin = |backend: &mut CpuBackend, tokens, at| {
                pollster::block_on(backend.begin(tokens, at)).unwrap_err().to_string()
            };
            assert!(begin(&mut begun, &[300], 0).contains("token 300"));
            assert!(begin(&mut begun, &[1], 9).contains("holds 5 positions"));
        }
    }

    #[test]
    fn engram_layers_whose_values_are_zero_change_no_bit() {
        let tokens: Vec<u32> = (0..13).map(|i| (i * i * 31 + 7) % 300).collect();
        let plain = logits(&mut model(&tiny()), &tokens, 0);
        let config = engram();
        assert_ne!(logits(&mut model(&config), &tokens, 0), plain);

        // No W_V.
        let mut backend = model(&config);
        for layer in [0, 1] {
            let name = format!("blk.{layer}.engram_value");
            let id = expected_tensors(&config).iter().position(|(n, _)| *n == name).unwrap();
            let zeros = vec![0; backend.weight(id).planes().len()];
            backend.write(id, 0, &zeros).unwrap();
        }
        assert_eq!(logits(&mut backend, &tokens, 0), plain);

        // No rows.
        let mut backend = model(&config);
        let rows: Vec<f32> = tokens
            .iter()
            .flat_map(|t| {
                let mut rows = random::rows(&config, *t, 5);
                rows[config.stem_width()..].fill(0.0);
                rows
            })
            .collect();
        let step = Step { tokens: &tokens, position: 0, rows: &rows, want: Want::Logits };
        assert_eq!(backend.forward_probed(step, &mut Meters::default()).unwrap(), Output::Logits(plain));
    }

    #[test]
    fn wrong_steps_are_refused() {
        let config = tiny();
        let mut backend = model(&config);
        let rows = vec![0.0; config.row_width()];
        let mut refuse = |tokens: &[u32], position, rows: &[f32]| {
            let want = Want::Candidates(Penalty::default());
            backend
                .forward_probed(Step { tokens, position, rows, want }, &mut Meters::default())
                .unwrap_err()
                .to_string()
        };
        assert!(refuse(&[], 0, &rows).contains("0 tokens"));
        assert!(refuse(&[300], 0, &rows).contains("token 300"));
        assert!(refuse(&[1], 0, &rows[1..]).contains("row values"));
        assert!(refuse(&[1], 3, &rows).contains("holds 0 positions"));
        assert!(refuse(&[1], 100, &rows).contains("101 tokens"));
    }

    #[test]
    fn the_core_stream_may_come_in_any_pieces() {
        let config = tiny();
        let core = random::core(&config, 5, |_| Dtype::Q8);
        let stream: Vec<u8> = core.iter().flat_map(|(_, planes)| planes.clone()).collect();
        let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
        let mut backend = CpuBackend::new(&tensors, &config, 8);
        for (i, piece) in stream.chunks(1000).enumerate() {
            write_core(&mut backend, &tensors, i as u64 * 1000, piece).unwrap();
        }
        for (weight, (_, planes)) in backend.weights.iter().zip(&core) {
            assert_eq!(weight.planes(), *planes);
        }
    }
}
