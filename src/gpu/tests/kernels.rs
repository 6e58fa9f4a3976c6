//! Each kernel against its CPU twin: on sizes that fill no tile, on data whose every value differs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use bytemuck::cast_slice;
use half::f16;

use super::{HALVES, PARALLEL, SERIAL, mixed, odd, variants};
use crate::backend::{MAX_STEP_TOKENS, Penalty, Step, Want};
use crate::bundle::manifest::Tensor;
use crate::bundle::quant::{Dtype, quantize};
use crate::bundle::random;
use crate::config::Config;
use crate::config::tests::tiny;
use crate::cpu::{attention, kernels, linear};
use crate::gpu::KvType;
use crate::gpu::backend::Variant;
use crate::gpu::compile::{Buffers, Program, compile};
use crate::gpu::device::Gpu;
use crate::gpu::shader::{Dispatch, Size};
use crate::gpu::step::{self, MAX_PARTS};
use crate::gpu::weights::Weight;
use crate::plan::{Op, Plan, Up};

pub(super) const CAPACITY: usize = 700;
const LOGIT_ROWS: usize = 5;
pub(super) const POSITION: usize = 530;

/// A model's weights on both sides, and buffers.
pub(super) struct Bench {
    gpu: Gpu,
    pub config: Config,
    weights: Vec<Weight>,
    pub twins: Vec<linear::Weight>,
    names: Vec<String>,
    pub buffers: Buffers,
    variant: Variant,
    /// By their operations: compiling takes a software adapter most of a test's time.
    programs: RefCell<HashMap<String, Rc<Program>>>,
}

impl Bench {
    /// `scale` multiplies every matrix.
    pub fn new(config: &Config, dtype: impl Fn(&str) -> Dtype, variant: Variant, scale: f32) -> Self {
        let gpu = pollster::block_on(Gpu::open(0)).unwrap();
        let (mut weights, mut twins, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (tensor, _) in random::core(config, 1, dtype) {
            let mut values = random::weights(&tensor.name, &tensor.shape, 2);
            if tensor.shape.len() == 2 {
                values.iter_mut().for_each(|v| *v *= scale);
            }
            let planes = quantize(tensor.dtype, &values);
            // So small a limit splits many of them.
            let weight = Weight::zeroed(&gpu, &tensor, 40_000).unwrap();
            weight.write(&gpu.queue, 0, &planes).unwrap();
            let mut twin = linear::Weight::zeroed(&tensor);
            twin.write(0, &planes).unwrap();
            weights.push(weight);
            twins.push(twin);
            names.push(tensor.name);
        }
        let buffers = Buffers::new(&gpu, config, variant.kv, MAX_STEP_TOKENS, CAPACITY, LOGIT_ROWS);
        Self {
            gpu,
            config: config.clone(),
            weights,
            twins,
            names,
            buffers,
            variant,
            programs: RefCell::default(),
        }
    }

    pub fn id(&self, name: &str) -> usize {
        self.names.iter().position(|n| n == name).unwrap()
    }

    pub fn compile(&self, ops: &[Op]) -> Rc<Program> {
        let make = || {
            let plan = Plan { config: self.config.clone(), ops: ops.to_vec() };
            let (program, errors) =
                self.gpu.guarded(|| compile(&self.gpu, &plan, &self.weights, &self.buffers, self.variant));
            pollster::block_on(errors).unwrap();
            Rc::new(program)
        };
        self.programs.borrow_mut().entry(format!("{ops:?}")).or_insert_with(make).clone()
    }

    /// Runs the dispatches of `ops` for `tokens` at [`POSITION`].
    pub fn run(&self, ops: &[Op], tokens: &[u32], rows: &[f32]) {
        self.run_at(POSITION, ops, tokens, rows);
    }

    pub fn run_at(&self, position: usize, ops: &[Op], tokens: &[u32], rows: &[f32]) {
        self.run_parts(1, position, ops, tokens, rows);
    }

    /// Runs the dispatches of `ops`, attention with so many parts.
    fn run_parts(&self, parts: usize, position: usize, ops: &[Op], tokens: &[u32], rows: &[f32]) {
        let step = Step { tokens, position, rows, want: Want::Nothing };
        let program = self.compile(ops);
        let dispatches = if tokens.len() == 1 { &program.one } else { &program.many };
        let dispatches = &dispatches.dispatches;
        let mut upload = Vec::new();
        step::upload(&mut upload, &step, &self.config, parts, 0..0);
        self.dispatch(&upload, dispatches, Size { tokens: tokens.len(), parts });
    }

    fn dispatch(&self, upload: &[u32], dispatches: &[Dispatch], size: Size) {
        assert!(!dispatches.is_empty());
        self.gpu.queue.write_buffer(&self.buffers.upload, 0, cast_slice(upload));
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        dispatches.iter().for_each(|d| d.record(&mut pass, size));
        drop(pass);
        self.gpu.queue.submit([encoder.finish()]);
    }

    pub fn write(&self, buffer: &wgpu::Buffer, values: &[f32]) {
        self.gpu.queue.write_buffer(buffer, 0, cast_slice(values));
    }

    /// Writes a cache of keys or values, and gives what it then holds.
    fn write_cache(&self, buffer: &wgpu::Buffer, values: &[f32]) -> Vec<f32> {
        match self.variant.kv {
            KvType::F32 => self.write(buffer, values),
            KvType::F16 => {
                let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
                self.gpu.queue.write_buffer(buffer, 0, cast_slice(&halves));
            }
        }
        self.read_cache(buffer)
    }

    /// A cache of keys or values.
    fn read_cache(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        let words = self.read(buffer);
        match self.variant.kv {
            KvType::F32 => floats(&words),
            KvType::F16 => cast_slice::<u32, f16>(&words).iter().map(|v| v.to_f32()).collect(),
        }
    }

    pub fn read(&self, buffer: &wgpu::Buffer) -> Vec<u32> {
        let readback = self.gpu.readback(buffer.size());
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &readback, 0, buffer.size());
        self.gpu.queue.submit([encoder.finish()]);
        pollster::block_on(self.gpu.read(&readback)).unwrap()
    }

    /// Checks the beginning of `buffer`.
    pub fn expect(&self, what: &str, buffer: &wgpu::Buffer, expected: &[f32]) {
        close(what, &floats(&self.read(buffer)), expected, self.tolerance());
    }
}

impl Bench {
    /// Largest difference from the twins, relative to the largest value.
    pub fn tolerance(&self) -> f32 {
        if self.variant.f16 { 1.5e-3 } else { 2e-5 }
    }
}

pub(super) fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|w| f32::from_bits(*w)).collect()
}

pub(super) fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0 && found.len() >= expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * largest, "{what}, value {i}: {f} for {e}");
    }
}

/// Values of very different sizes.
pub(super) fn values(name: &str, count: usize) -> Vec<f32> {
    let plain = random::weights(name, &[count, 3], 4);
    plain.chunks(3).map(|c| c[0] + 4.0 * c[1] * c[1] * c[2]).collect()
}

type Case = (&'static str, fn() -> Config, fn(&str) -> Dtype);

/// Both models, all ways of storing, both kinds of kernels, and numbers of tokens around a tile.
fn everywhere(test: impl Fn(&Bench, &[u32], &str)) {
    everywhere_with(|config| config, test);
}

/// The same with models that `change` has changed.
pub(super) fn everywhere_with(change: fn(Config) -> Config, test: impl Fn(&Bench, &[u32], &str)) {
    let cases: [Case; 4] = [
        ("tiny, f32", tiny, |_| Dtype::F32),
        ("tiny, q8", tiny, |_| Dtype::Q8),
        ("tiny, q4", tiny, |_| Dtype::Q4),
        ("odd, mixed", odd, mixed),
    ];
    for (what, config, dtype) in cases {
        for variant in variants() {
            let config = change(config());
            let bench = Bench::new(&config, dtype, variant, 1.0);
            for n in [1, 2, 33] {
                let last = config.vocab_size as u32 - 1;
                let tokens: Vec<u32> = (0..n).map(|i| last - i * i * 37 % (last + 1)).collect();
                test(&bench, &tokens, &format!("{what}, {variant:?}, {n} tokens"));
            }
        }
    }
}

impl Bench {
    /// What the CPU makes of `W · RMSNorm(x)`.
    fn normed(&self, x: &[f32], norm: usize, weight: usize) -> Vec<f32> {
        let mut normed = vec![0.0; x.len()];
        kernels::rms_norm(x, self.twins[norm].vector(), self.config.rms_norm_eps, &mut normed);
        self.product(&normed, weight)
    }

    /// `x · Wᵀ` with activations as they are: the CPU's own products round them to integers.
    pub fn product(&self, x: &[f32], weight: usize) -> Vec<f32> {
        let Weight { width, parts, .. } = &self.weights[weight];
        let rows = parts.last().unwrap().rows.end;
        let mut weights = vec![0.0; rows * width];
        self.twins[weight].expand(0, &mut weights);
        let mut out = vec![0.0; x.len() / width * rows];
        linear::gemm_xwt(x, &weights, x.len() / width, rows, *width, &mut out);
        out
    }
}

#[test]
fn embed() {
    everywhere(|b, tokens, what| {
        let weight = b.id("token_embd");
        b.run(&[Op::Embed { weight }], tokens, &[]);
        let mut x = vec![0.0; tokens.len() * b.config.hidden_size];
        for (id, x) in tokens.iter().zip(x.chunks_mut(b.config.hidden_size)) {
            b.twins[weight].expand(*id as usize, x);
        }
        b.expect(what, &b.buffers.x, &x);
    });
}

#[test]
fn qkv_with_norm_rope_and_cache() {
    everywhere(|b, tokens, what| {
        let (c, norm, weight) = (&b.config, b.id("blk.1.attn_norm"), b.id("blk.1.attn_qkv"));
        let x = values("x", tokens.len() * c.hidden_size);
        b.write(&b.buffers.x, &x);
        b.run(&[Op::NormQkv { norm, weight }, Op::RopeStore { layer: 1 }], tokens, &[]);
        let (mut queries, mut keys, mut cached) = (Vec::new(), Vec::new(), Vec::new());
        for (i, qkv) in b.normed(&x, norm, weight).chunks_mut(c.qkv_dim()).enumerate() {
            let (qk, v) = qkv.split_at_mut(c.q_dim() + c.kv_dim());
            kernels::rope(qk, &kernels::rope_turn(POSITION + i, c.rope_theta, c.head_dim));
            queries.extend_from_slice(&qk[..c.q_dim()]);
            keys.extend_from_slice(&qk[c.q_dim()..]);
            cached.extend_from_slice(v);
        }
        b.expect(what, &b.buffers.queries, &queries);
        for (buffer, expected) in b.buffers.cache[1].iter().zip([keys, cached]) {
            close(what, &b.read_cache(buffer)[POSITION * c.kv_dim()..], &expected, b.tolerance());
        }
    });
}

#[test]
fn attention() {
    let variants = [SERIAL, PARALLEL].map(|v| [KvType::F32, KvType::F16].map(|kv| Variant { kv, ..v }));
    let cases = [tiny(), odd()].map(|config| variants.concat().into_iter().map(move |v| (config.clone(), v)));
    for (config, variant) in cases.into_iter().flatten() {
        let c = &config;
        let b = Bench::new(c, |_| Dtype::Q4, variant, 1.0);
        let group = c.n_heads / c.n_kv_heads;
        let [keys, cached] = ["keys", "values"].map(|name| values(name, CAPACITY * c.kv_dim()));
        let keys = b.write_cache(&b.buffers.cache[2][0], &keys);
        let cached = b.write_cache(&b.buffers.cache[2][1], &cached);
        // With parts longer than a tile, of uneven lengths, of one position, and empty ones.
        let whole = [(1, POSITION, 1), (3, POSITION, 1)];
        let parts = [
            (1, POSITION, 2),
            (1, 643, MAX_PARTS),
            (1, 16, 16),
            (1, 3, 16),
            (3, POSITION, 5),
            (3, 7, 4),
            (8, 600, 2),
        ];
        let parts = parts.iter().filter(|_| !variant.serial);
        for (n, position, parts) in whole.iter().chain(parts).copied() {
            let queries = values("queries", n * c.q_dim());
            b.write(&b.buffers.queries, &queries);
            b.write(&b.buffers.attn, &vec![f32::NAN; queries.len()]);
            b.run_parts(parts, position, &[Op::Attention { layer: 2 }], &vec![0; n], &[]);
            let mut expected = vec![0.0; queries.len()];
            let heads = queries.chunks(c.head_dim).zip(expected.chunks_mut(c.head_dim));
            for (i, (query, out)) in heads.enumerate() {
                let at = i % c.n_heads / group * c.head_dim;
                let positions = position + i / c.n_heads + 1;
                attention::attention(query, &keys, &cached, c.kv_dim(), at, positions, out);
            }
            let what = format!("{variant:?}, {n} tokens at {position}, {parts} parts");
            b.expect(&what, &b.buffers.attn, &expected);
        }
    }
}

#[test]
fn attention_merge() {
    for c in [&tiny(), &odd()] {
        let b = Bench::new(c, |_| Dtype::Q4, PARALLEL, 1.0);
        let width = c.head_dim + 4;
        let program = b.compile(&[Op::Attention { layer: 2 }]);
        let merge = program.one.dispatches.last().unwrap();
        for (n, parts) in [(1, 2), (1, 7), (1, MAX_PARTS), (3, 5)] {
            // [n, parts, heads, head_dim + 4]
            let mut sums = values("parts", n * parts * c.n_heads * width);
            for (i, part) in sums.chunks_mut(width).enumerate() {
                // Scores around those of their neighbours, far from them, and of a part that is empty.
                let (largest, total) = (part[c.head_dim], 1.0 + part[c.head_dim + 1].abs());
                let score = [largest, 20.0 + largest, -900.0 * largest][i % 3];
                part[c.head_dim..].copy_from_slice(&[score, total, f32::NAN, f32::NAN]);
                if i / c.n_heads % parts == 1 {
                    part.fill(0.0);
                    part[c.head_dim] = -3.4e38;
                }
            }
            b.write(&b.buffers.parts, &sums);
            let size = Size { tokens: n, parts };
            let upload = step::header(size, POSITION, 0..0, Penalty::default());
            b.dispatch(&upload, std::slice::from_ref(merge), size);
            let mut expected = vec![0.0; n * c.q_dim()];
            for (i, out) in expected.chunks_mut(c.head_dim).enumerate() {
                let (t, head) = (i / c.n_heads, i % c.n_heads);
                let mut of_head = sums.chunks(width).skip(t * parts * c.n_heads + head).step_by(c.n_heads);
                let mut sum = of_head.next().unwrap()[..c.head_dim + 2].to_vec();
                of_head.take(parts - 1).for_each(|p| attention::merge(&mut sum, &p[..c.head_dim + 2]));
                attention::finish(&sum, out);
            }
            b.expect(&format!("{n} tokens, {parts} parts"), &b.buffers.attn, &expected);
        }
    }
}

#[test]
fn outputs_are_added_to_the_residual_stream() {
    everywhere(|b, tokens, what| {
        for (name, input, width) in [
            ("blk.0.attn_output", &b.buffers.attn, b.config.q_dim()),
            ("blk.0.ffn_down", &b.buffers.h, b.config.intermediate_size),
        ] {
            let weight = b.id(name);
            let (x, y) =
                (values("x", tokens.len() * b.config.hidden_size), values("y", tokens.len() * width));
            b.write(&b.buffers.x, &x);
            b.write(input, &y);
            let down = name.ends_with("down");
            b.run(&[if down { Op::Down { weight } } else { Op::AttnOutput { weight } }], tokens, &[]);
            let expected: Vec<f32> = x.iter().zip(b.product(&y, weight)).map(|(x, p)| x + p).collect();
            b.expect(&format!("{what}, {name}"), &b.buffers.x, &expected);
        }
    });
}

#[test]
fn rows_so_long_that_threads_pass_several_blocks() {
    // Of 65 blocks, two rounds of 32 threads and one left over; and of 48, three rounds of 16.
    let dtypes = [Dtype::Q4, Dtype::Q8].into_iter();
    let cases: Vec<_> = dtypes.flat_map(|d| variants().into_iter().map(move |v| (d, v))).collect();
    for intermediate_size in [65 * 32, 48 * 32] {
        let config = Config { intermediate_size, ..tiny() };
        for (dtype, variant) in cases.iter().copied() {
            let b = Bench::new(&config, |_| dtype, variant, 1.0);
            let weight = b.id("blk.0.ffn_down");
            // The largest step is all whole tiles.
            for n in [1, MAX_STEP_TOKENS] {
                let x = values("x", n * config.hidden_size);
                let y = values("y", n * intermediate_size);
                b.write(&b.buffers.x, &x);
                b.write(&b.buffers.h, &y);
                b.run(&[Op::Down { weight }], &vec![0; n], &[]);
                let expected: Vec<f32> = x.iter().zip(b.product(&y, weight)).map(|(x, p)| x + p).collect();
                b.expect(&format!("{variant:?}, {dtype:?}, {n} tokens"), &b.buffers.x, &expected);
            }
        }
    }
}

#[test]
fn gates_with_dense_projections_and_with_rows() {
    everywhere(|b, tokens, what| {
        let (c, ffn) = (&b.config, b.config.intermediate_size);
        let x = values("x", tokens.len() * c.hidden_size);
        let rows = values("rows", tokens.len() * c.row_width());
        for layer in [0, 1] {
            let id = |name: &str| b.id(&format!("blk.{layer}.{name}"));
            let (norm, gate) = (id("ffn_norm"), id("ffn_gate"));
            // The last of the STEM layers, so that the index matters.
            let index = c.stem_layers.len() - 1;
            let (up, factor) = if layer == 0 {
                (Up::Dense(id("ffn_up")), b.normed(&x, norm, id("ffn_up")))
            } else {
                let of = |token: &[f32]| token[index * ffn..][..ffn].to_vec();
                (Up::Row(index), rows.chunks(c.row_width()).flat_map(of).collect())
            };
            b.write(&b.buffers.x, &x);
            b.run(&[Op::NormGate { norm, gate, up }], tokens, &rows);
            let gate = b.normed(&x, norm, gate);
            let h: Vec<f32> = gate.iter().zip(factor).map(|(g, u)| kernels::silu(*g) * u).collect();
            b.expect(&format!("{what}, {up:?}"), &b.buffers.h, &h);
        }
    });
}

#[test]
fn heads_of_any_positions() {
    everywhere(|b, tokens, what| {
        let c = &b.config;
        let (norm, weight) = (b.id("output_norm"), b.id(if c.tied_head { "token_embd" } else { "output" }));
        let program = b.compile(&[Op::Head { norm, weight }]);
        let x = values("x", 40 * c.hidden_size);
        b.write(&b.buffers.x, &x);
        let count = tokens.len().min(LOGIT_ROWS);
        let head = 31..31 + count;
        let upload = step::header(Size { tokens: 40, parts: 1 }, 0, head.clone(), Penalty::default());
        let dispatches = if count == 1 { &program.head_one } else { &program.head_many };
        b.dispatch(&upload, dispatches, Size { tokens: count, parts: 1 });
        let x = &x[head.start * c.hidden_size..head.end * c.hidden_size];
        b.expect(what, &b.buffers.logits, &b.normed(x, norm, weight));
    });
}

#[test]
fn scales_that_are_subnormal_halves_count() {
    // The scales are around 1e-6: below 6e-5 a half has no leading one.
    let variants = variants();
    let cases = [Dtype::Q8, Dtype::Q4].into_iter().flat_map(|d| variants.iter().map(move |v| (d, *v)));
    for (dtype, variant) in cases {
        let b = Bench::new(&tiny(), |_| dtype, variant, 1e-4);
        let weight = b.id("blk.0.ffn_down");
        let y = values("y", 2 * b.config.intermediate_size);
        b.write(&b.buffers.h, &y);
        b.write(&b.buffers.x, &vec![0.0; 2 * b.config.hidden_size]);
        b.run(&[Op::Down { weight }], &[0, 0], &[]);
        b.expect("tiny weights", &b.buffers.x, &b.product(&y, weight));
    }
}

#[test]
fn silu_of_large_values() {
    // With a single weight of 1 in each row, and values that overflow exp.
    let config = Config { n_layers: 1, stem_layers: vec![0], ..tiny() };
    let b = Bench::new(&config, |_| Dtype::F32, SERIAL, 1000.0);
    let (norm, gate) = (b.id("blk.0.ffn_norm"), b.id("blk.0.ffn_gate"));
    let (x, rows) = (values("x", config.hidden_size), vec![1.0; config.row_width()]);
    b.write(&b.buffers.x, &x);
    b.run(&[Op::NormGate { norm, gate, up: Up::Row(0) }], &[0], &rows);
    let gates = b.normed(&x, norm, gate);
    assert!(gates.iter().any(|g| *g < -500.0) && gates.iter().any(|g| *g > 500.0));
    let h: Vec<f32> = gates.iter().map(|g| kernels::silu(*g)).collect();
    b.expect("large gates", &b.buffers.h, &h);
}

type LogitOf = fn(usize) -> f32;

#[test]
fn top_k() {
    let cases: [(&str, usize, LogitOf); 6] = [
        ("spread", 5003, |i| ((i * 7919) % 5003) as f32 / 100.0 - 30.0),
        ("many ties", 5003, |i| ((i * 37) % 50) as f32 / 5.0 - 4.0),
        ("all equal", 1031, |_| -3.5),
        ("all negative", 300, |i| -1e-3 - ((i * 101) % 300) as f32),
        ("few", 77, |i| ((i * 31) % 77) as f32 * 1e4 - 3e5),
        ("close together", 1031, |i| 10.0 + ((i * 33) % 1031) as f32 * 1e-6),
    ];
    for (what, vocab, logit) in cases {
        let config = Config { vocab_size: vocab, ..tiny() };
        let b = Bench::new(&config, |_| Dtype::Q4, SERIAL, 1.0);
        let mut logits: Vec<f32> = (0..vocab).map(logit).collect();
        b.write(&b.buffers.logits, &logits);
        let penalized: Vec<u32> = (0..60).map(|i| (i * 53 + 11) % vocab as u32).collect();
        let mut distinct = penalized.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let penalty = Penalty { tokens: &distinct, factor: 1.5 };
        let rows = vec![0.0; config.row_width()];
        let step = Step { tokens: &[0], position: 0, rows: &rows, want: Want::Candidates(penalty) };
        let program = b.compile(&[]);
        let mut upload = Vec::new();
        step::upload(&mut upload, &step, &config, 1, 0..1);
        let size = Size { tokens: 1, parts: 1 };
        b.dispatch(&upload, std::slice::from_ref(&program.top_k), size);
        let words = b.read(&b.buffers.result);
        assert!(words.len() * 4 <= 4096);

        kernels::penalize(&mut logits, penalty);
        let expected = kernels::top_k(&logits);
        let ids: Vec<u32> = expected.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(words[1..1 + ids.len()], ids, "{what}");
        let found = floats(&words[257..257 + ids.len()]);
        for (f, (_, e)) in found.iter().zip(&expected.top) {
            // A division need not be correctly rounded on a GPU.
            assert!((f - e).abs() <= 1e-6 * e.abs(), "{what}: {f} for {e}");
        }
        let sum = f32::from_bits(words[0]);
        assert!((sum - expected.log_sum_exp).abs() <= 1e-5 * sum.abs().max(1.0), "{what}: {sum}");
    }
}

#[test]
fn a_layer_takes_five_dispatches_and_six_where_attention_has_parts() {
    let gpu = pollster::block_on(Gpu::open(0)).unwrap();
    let c = odd();
    let tensors: Vec<Tensor> = random::core(&c, 1, mixed).into_iter().map(|(t, _)| t).collect();
    let weights: Vec<_> = tensors.iter().map(|t| Weight::zeroed(&gpu, t, 1 << 27).unwrap()).collect();
    let buffers = Buffers::new(&gpu, &c, KvType::F16, MAX_STEP_TOKENS, 10, 1);
    for variant in [Variant { kv: KvType::F16, ..SERIAL }, HALVES] {
        let program = compile(&gpu, &Plan::of_config(&c), &weights, &buffers, variant);
        for layers in [program.one, program.many] {
            // Serial kernels are not asked for parts.
            let sizes = [(1, 5), (2, 6), (MAX_PARTS, 6)];
            for (parts, a_layer) in sizes.into_iter().filter(|(parts, _)| *parts == 1 || !variant.serial) {
                let running = |all: &[Dispatch]| all.iter().filter(|d| d.runs(parts)).count();
                assert_eq!(running(&layers.dispatches), 1 + a_layer * c.n_layers);
                // The embedding, the first layer, and the second one's attention.
                assert_eq!(running(&layers.dispatches[..layers.before_rows]), 1 + a_layer + a_layer - 2);
            }
        }
        assert_eq!((program.head_one.len(), program.head_many.len()), (1, 1));
    }
    gpu.check().unwrap();
}

#[test]
fn positions_are_divided_where_they_are_many_and_tokens_few() {
    let parts = |n, position| step::parts(n, position, step::PART);
    assert_eq!([0, 255, 256, 1024, 4096, 1 << 20].map(|position| parts(1, position)), [1, 1, 2, 5, 17, 32]);
    assert_eq!([2, 3, 8, 17, MAX_STEP_TOKENS].map(|n| parts(n, 4000)), [16, 10, 4, 1, 1]);
    assert!((1..=MAX_STEP_TOKENS).all(|n| n * parts(n, 1 << 20) <= MAX_PARTS.max(n)));
}
