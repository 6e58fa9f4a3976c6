//! The plan, compiled once into recorded dispatches: five a layer (and three an Engram layer), since RoPE and the cache's update are the end of
//! the q, k and v projection; behind a long context six, since attention then has parts. A weight that is split takes one for
//! each of its parts.

use super::backend::{KvType, Variant};
use super::device::Gpu;
use super::engram;
use super::shader::{Access, Binding, Dispatch, Groups, Shaders, Source, When, piece};
use super::step::{self, MAX_PARTS};
use super::weights::{Part, Weight};
use crate::backend::MAX_CANDIDATES;
use crate::bundle::quant::Dtype;
use crate::config::{BLOCK, Config};
use crate::plan::{Op, Plan, Up};

/// Words of a step's result: ln Σ exp, ids, logits.
pub const RESULT_WORDS: usize = 1 + 2 * MAX_CANDIDATES;
/// Tokens of a tile of `matmul.wgsl`; buffers have room for whole tiles.
pub const TILE: usize = 32;
/// Tokens of a thread of `serial.wgsl`.
const SERIAL_TILE: usize = 4;
/// Threads that share two rows in `matvec.wgsl` and `matvec_q4.wgsl`.
const LANES: usize = 32;
/// The same in `matvec_q4.wgsl` where rows have few blocks, so that most threads have work in every round.
const SHORT_LANES: usize = 16;
/// Uniform bindings begin at multiples of so many bytes.
pub const UNIFORM_STRIDE: u64 = 256;

/// Everything on the device but the weights.
#[derive(Debug)]
pub struct Buffers {
    /// See [`super::step`].
    pub upload: wgpu::Buffer,
    /// The residual stream, `[n, hidden]`.
    pub x: wgpu::Buffer,
    /// `[n, q]`, rotated.
    pub queries: wgpu::Buffer,
    /// `[n, q]`.
    pub attn: wgpu::Buffer,
    /// What parts of the positions give for attention, `[n, parts, heads, head_dim + 4]`: of each head the sum of weighted
    /// values, the largest score, the sum of weights, and two unused.
    pub parts: wgpu::Buffer,
    /// `[n, ffn]`.
    pub h: wgpu::Buffer,
    /// `[logit_rows, vocab]`.
    pub logits: wgpu::Buffer,
    /// [`RESULT_WORDS`].
    pub result: wgpu::Buffer,
    /// Of each layer keys and values, `[capacity, kv_dim]`, stored as the variant's [`KvType`] says.
    pub cache: Vec<[wgpu::Buffer; 2]>,
    /// One number for each STEM layer, [`UNIFORM_STRIDE`] apart.
    stem_index: wgpu::Buffer,
    /// Those of Engram layers, if there are any.
    pub engram: Option<engram::Buffers>,
}

impl Buffers {
    /// Buffers for steps of `tokens` tokens, `capacity` positions and the logits of `logit_rows` positions.
    pub fn new(
        gpu: &Gpu,
        config: &Config,
        kv: KvType,
        tokens: usize,
        capacity: usize,
        logit_rows: usize,
    ) -> Self {
        // Tiles read whole, also those of the head that begin in the middle.
        let rows = tokens.next_multiple_of(TILE) + TILE;
        let floats = |label: &str, count: usize| gpu.storage(label, count as u64 * 4);
        let cache = || gpu.storage("cache", (capacity * kv.bytes(config.kv_dim())) as u64);
        let stem_index = gpu.uniform("stem_index", config.stem_layers.len().max(1) as u64 * UNIFORM_STRIDE);
        for i in 0..config.stem_layers.len() {
            gpu.queue.write_buffer(&stem_index, i as u64 * UNIFORM_STRIDE, &(i as u32).to_le_bytes());
        }
        Self {
            upload: gpu.storage("upload", step::bytes(config, tokens)),
            x: floats("x", rows * config.hidden_size),
            queries: floats("queries", rows * config.q_dim()),
            attn: floats("attn", rows * config.q_dim()),
            parts: floats("parts", MAX_PARTS * config.n_heads * (config.head_dim + 4)),
            h: floats("h", rows * config.intermediate_size),
            logits: floats("logits", logit_rows * config.vocab_size),
            result: floats("result", RESULT_WORDS),
            cache: (0..config.n_layers).map(|_| [cache(), cache()]).collect(),
            stem_index,
            engram: config.engram.as_ref().map(|e| engram::Buffers::new(gpu, config, e, rows, capacity)),
        }
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        let hidden = [&self.x, &self.queries, &self.attn, &self.parts, &self.h];
        let others = [&self.upload, &self.logits, &self.result, &self.stem_index];
        let all = hidden.into_iter().chain(others).chain(self.cache.iter().flatten());
        all.map(wgpu::Buffer::size).sum::<u64>() + self.engram.as_ref().map_or(0, engram::Buffers::bytes)
    }
}

/// The dispatches of all layers.
#[derive(Debug, Default)]
pub struct Layers {
    pub dispatches: Vec<Dispatch>,
    /// How many of them read no rows and come before all that do.
    pub before_rows: usize,
}

/// The dispatches of a step.
#[derive(Debug)]
pub struct Program {
    /// All layers, for one token.
    pub one: Layers,
    /// All layers, for more tokens.
    pub many: Layers,
    /// The logits of one position.
    pub head_one: Vec<Dispatch>,
    /// The logits of more positions.
    pub head_many: Vec<Dispatch>,
    /// Penalty and candidates, of one position's logits.
    pub top_k: Dispatch,
}

/// Compiles the plan into kernels of `variant`; `buffers` were made for its cache.
pub fn compile(gpu: &Gpu, plan: &Plan, weights: &[Weight], buffers: &Buffers, variant: Variant) -> Program {
    let config = &plan.config;
    let mut compiler = Compiler { shaders: Shaders::new(gpu), config, weights, buffers, variant };
    let [mut one, mut many] = [(); 2].map(|()| Layers::default());
    let [mut head_one, mut head_many] = [(); 2].map(|()| Vec::new());
    for (layers, head, is_many) in [(&mut one, &mut head_one, false), (&mut many, &mut head_many, true)] {
        for (i, op) in plan.ops.iter().enumerate() {
            let list = if matches!(op, Op::Head { .. }) { &mut *head } else { &mut layers.dispatches };
            let first = list.len();
            compiler.op(&plan.ops[..i], *op, is_many, list);
            list[first..].iter_mut().for_each(|dispatch| dispatch.op = i);
            if i + 1 == plan.before_rows() {
                layers.before_rows = layers.dispatches.len();
            }
        }
    }
    let mut top_k = compiler.top_k();
    top_k.op = plan.ops.len();
    Program { one, many, head_one, head_many, top_k }
}

/// A projection `W · input` with what surrounds it.
pub(super) struct Projection<'a> {
    pub label: &'static str,
    /// `None` for the head rows of an Engram layer, which are in the upload.
    pub input: Option<&'a wgpu::Buffer>,
    /// The gain, where the input is normalised.
    pub norm: Option<&'a wgpu::Buffer>,
    pub weight: &'a Weight,
    /// A second projection of the same input.
    pub up: Option<&'a Weight>,
    /// What happens to the products, and where they go.
    pub store: &'a [&'a str],
    pub outputs: &'a [Binding<'a>],
    pub head: bool,
}

pub(super) struct Compiler<'a> {
    pub shaders: Shaders<'a>,
    pub config: &'a Config,
    pub weights: &'a [Weight],
    pub buffers: &'a Buffers,
    pub variant: Variant,
}

impl Compiler<'_> {
    /// Appends the dispatches of `op`, which comes after `before`.
    fn op(&mut self, before: &[Op], op: Op, many: bool, list: &mut Vec<Dispatch>) {
        let (b, weights) = (self.buffers, self.weights);
        let gain = |id: usize| Some(&weights[id].parts[0].quants);
        match op {
            Op::Embed { weight } => self.embed(&weights[weight], list),
            Op::EngramProject { index, key, value } => self.engram_project(index, [key, value], many, list),
            Op::EngramGate { index, query_norm, key_norm, conv_norm } => {
                self.engram_gate(index, [query_norm, key_norm, conv_norm], list);
            }
            Op::EngramConv { index, conv } => self.engram_conv(index, conv, list),
            // The end of the projection stores into the cache that the next operation names.
            Op::NormQkv { .. } => {}
            Op::RopeStore { layer } => {
                let Some(Op::NormQkv { norm, weight }) = before.last() else {
                    unreachable!("in every plan, RopeStore follows NormQkv");
                };
                let [keys, values] = &b.cache[layer];
                let projection = Projection {
                    label: "qkv",
                    input: Some(&b.x),
                    norm: gain(*norm),
                    weight: &weights[*weight],
                    up: None,
                    store: &[self.kv(), piece::STORE_ROPE],
                    outputs: &[
                        Binding::write(3, &b.queries),
                        Binding::write(4, keys),
                        Binding::write(5, values),
                    ],
                    head: false,
                };
                self.project(&projection, many, list);
            }
            Op::Attention { layer } => self.attention(layer, list),
            Op::AttnOutput { weight } | Op::Down { weight } => {
                let input = if matches!(op, Op::Down { .. }) { &b.h } else { &b.attn };
                let projection = Projection {
                    label: "output",
                    input: Some(input),
                    norm: None,
                    weight: &weights[weight],
                    up: None,
                    store: &[piece::STORE_ADD],
                    outputs: &[Binding::write(3, &b.x)],
                    head: false,
                };
                self.project(&projection, many, list);
            }
            Op::NormGate { norm, gate, up } => {
                let (up, store, index) = match up {
                    Up::Dense(id) => (Some(&weights[id]), piece::UP_DENSE, None),
                    Up::Row(index) => (None, piece::UP_ROW, Some(index)),
                };
                let mut outputs = vec![Binding::write(3, &b.h)];
                outputs.extend(index.map(|i| Binding {
                    at: 4,
                    access: Access::Uniform,
                    buffer: &b.stem_index,
                    offset: i as u64 * UNIFORM_STRIDE,
                }));
                let projection = Projection {
                    label: "gate",
                    input: Some(&b.x),
                    norm: gain(norm),
                    weight: &weights[gate],
                    up,
                    store: &[piece::STORE_GATE, store],
                    outputs: &outputs,
                    head: false,
                };
                self.project(&projection, many, list);
            }
            Op::Head { norm, weight } => {
                let projection = Projection {
                    label: "head",
                    input: Some(&b.x),
                    norm: gain(norm),
                    weight: &weights[weight],
                    up: None,
                    store: &[piece::STORE_LOGITS],
                    outputs: &[Binding::write(3, &b.logits)],
                    head: true,
                };
                self.project(&projection, many, list);
            }
        }
    }

    fn embed(&mut self, weight: &Weight, list: &mut Vec<Dispatch>) {
        for part in &weight.parts {
            let source = Source::new("embed", self.config)
                .constant("WIDTH", weight.width)
                .constant("FIRST", part.rows.start)
                .constant("END", part.rows.end)
                .piece(piece::UNIT)
                .weight("w", weight.dtype, 6, part.rows.start)
                .piece(piece::EMBED);
            let mut bindings =
                vec![Binding::read(0, &self.buffers.upload), Binding::write(3, &self.buffers.x)];
            bindings.extend(part.bindings(6));
            let groups = Groups { x: (weight.width / 8).div_ceil(64), tile: 1 };
            list.push(self.shaders.dispatch(source, &bindings, groups));
        }
    }

    /// A dispatch for each run of rows that lies in one part of the weight, and of `up` if there is one.
    pub(super) fn project(&mut self, p: &Projection<'_>, many: bool, list: &mut Vec<Dispatch>) {
        for part in &p.weight.parts {
            let Some(up) = p.up else {
                list.push(self.project_rows(p, part, None, many));
                continue;
            };
            for other in &up.parts {
                if part.rows.start < other.rows.end && other.rows.start < part.rows.end {
                    list.push(self.project_rows(p, part, Some((up.dtype, other)), many));
                }
            }
        }
    }

    fn project_rows(
        &mut self,
        p: &Projection<'_>,
        part: &Part,
        up: Option<(Dtype, &Part)>,
        many: bool,
    ) -> Dispatch {
        let overlap = up.map_or(0..usize::MAX, |(_, up)| up.rows.clone());
        let (first, end) = (part.rows.start.max(overlap.start), part.rows.end.min(overlap.end));
        // Weights of single precision need not fit into halves.
        let halves = p.weight.dtype != Dtype::F32 && up.is_none_or(|(dtype, _)| dtype != Dtype::F32);
        // With gains or a second weight there is so much else to load that whole blocks are slower.
        let blocks = p.weight.dtype == Dtype::Q4 && up.is_none() && p.norm.is_none();
        let lanes = if blocks && p.weight.width < 2 * LANES * BLOCK { SHORT_LANES } else { LANES };
        let (main, rows, tile) = match (self.variant.serial, many) {
            (true, false) => (piece::SERIAL, 2 * 16, 1),
            (true, true) => (piece::SERIAL, 2 * 16, SERIAL_TILE),
            (false, false) if blocks => (piece::MATVEC_Q4, 2 * 64 / lanes, 1),
            (false, false) => (piece::MATVEC, 2 * 64 / lanes, 1),
            (false, true) if self.variant.f16 && halves => (piece::MATMUL_F16, 32, TILE),
            (false, true) => (piece::MATMUL, 32, TILE),
        };
        let mut bindings = vec![Binding::read(0, &self.buffers.upload)];
        bindings.extend(p.input.map(|input| Binding::read(1, input)));
        bindings.extend(p.norm.map(|gain| Binding::read(2, gain)));
        bindings.extend_from_slice(p.outputs);
        bindings.extend(part.bindings(6));
        let mut source = Source::new(p.label, self.config);
        if main == piece::MATMUL_F16 {
            source = source.f16();
        }
        source = source
            .constant("WIDTH", p.weight.width)
            .constant("FIRST", first)
            .constant("END", end)
            .constant("TILE", tile)
            .constant("LANES", lanes)
            .flag("HAS_w", true)
            .flag("HAS_up", up.is_some())
            .piece(piece::UNIT);
        if main != piece::MATVEC_Q4 {
            source = source.weight("w", p.weight.dtype, 6, part.rows.start);
        }
        source = match up {
            None => source.piece(piece::NO_UP),
            Some((dtype, up)) => {
                bindings.extend(up.bindings(8));
                source.weight("up", dtype, 8, up.rows.start)
            }
        };
        source = source.piece(if p.head { piece::TOKENS_HEAD } else { piece::TOKENS_ALL }).piece(
            match (p.input, p.norm) {
                (None, _) => piece::INPUT_ENGRAM,
                (Some(_), Some(_)) => piece::INPUT_NORM,
                (Some(_), None) => piece::INPUT_PLAIN,
            },
        );
        for store in p.store {
            source = source.piece(store);
        }
        self.shaders.dispatch(source.piece(main), &bindings, Groups { x: (end - first).div_ceil(rows), tile })
    }

    fn attention(&mut self, layer: usize, list: &mut Vec<Dispatch>) {
        let b = self.buffers;
        let [keys, values] = &b.cache[layer];
        let bindings = |out| {
            [
                Binding::read(0, &b.upload),
                Binding::read(1, &b.queries),
                Binding::write(3, out),
                Binding::read(4, keys),
                Binding::read(5, values),
            ]
        };
        let c = self.config;
        let length = c.head_dim / 4;
        let source = Source::new("attention", c)
            .constant("LENGTH", length)
            .constant("GROUPS", 256 / length)
            .piece(self.kv());
        if self.variant.serial {
            let groups = Groups { x: c.n_heads.div_ceil(16), tile: 1 };
            let source = source.piece(piece::ATTENTION_SERIAL);
            return list.push(self.shaders.dispatch(source, &bindings(&b.attn), groups));
        }
        for (when, out) in [(When::Whole, &b.attn), (When::Parts, &b.parts)] {
            let source = source.clone().flag("IN_PARTS", when == When::Parts).piece(piece::ATTENTION);
            let dispatch = self.shaders.dispatch(source, &bindings(out), Groups { x: c.n_heads, tile: 1 });
            list.push(dispatch.only(when));
        }
        let source = Source::new("attention_merge", c).piece(piece::ATTENTION_MERGE);
        let bindings = [Binding::read(0, &b.upload), Binding::read(1, &b.parts), Binding::write(3, &b.attn)];
        let groups = Groups { x: (c.q_dim() / 4).div_ceil(64), tile: 1 };
        list.push(self.shaders.dispatch(source, &bindings, groups).only(When::Merge));
    }

    /// How the cache is read and written.
    fn kv(&self) -> &'static str {
        match self.variant.kv {
            KvType::F32 => piece::KV_F32,
            KvType::F16 => piece::KV_F16,
        }
    }

    fn top_k(&mut self) -> Dispatch {
        let b = self.buffers;
        let source = Source::new("top_k", self.config)
            .constant("K", MAX_CANDIDATES.min(self.config.vocab_size))
            .piece(piece::TOP_K);
        let bindings =
            [Binding::read(0, &b.upload), Binding::write(1, &b.logits), Binding::write(3, &b.result)];
        self.shaders.dispatch(source, &bindings, Groups { x: 1, tile: 1 })
    }
}
