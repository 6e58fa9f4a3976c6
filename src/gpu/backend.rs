//! The engine: weights, cache and recorded dispatches of one model on one device.

use std::cell::RefCell;
use std::mem::take;
use std::ops::Range;

use bytemuck::cast_slice;

use super::clock::{Clock, Work};
use super::compile::{Buffers, Layers, Program, RESULT_WORDS, compile};
use super::device::Gpu;
use super::shader::Size;
use super::weights::Weight;
use super::{self_test, step};
use crate::backend::{
    Backend, Candidates, MAX_CANDIDATES, MAX_STEP_TOKENS, Output, Penalty, Step, Want, check, check_tokens,
};
use crate::bundle::Tensor;
use crate::bundle::manifest::expected_tensors;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::plan::Plan;

/// Written weights are handed to the device at the latest after so many bytes, since they are staged until then.
const FLUSH_BYTES: usize = 16 << 20;
/// Logits that are read back at once take at most so many bytes (but at least one position).
const LOGITS_BYTES: usize = 16 << 20;

/// Which kernels to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// Those that suit the adapter.
    #[default]
    Auto,
    /// Those whose threads never wait for each other, for adapters that are CPUs.
    Serial,
    /// Those whose threads share work, for real GPUs.
    Parallel,
}

/// How the KV cache is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Single precision.
    F32,
    /// Half precision, which every adapter can pack: half of the bytes that attention reads.
    #[default]
    F16,
}

impl KvType {
    /// Bytes of `count` values, an even number.
    pub fn bytes(self, count: usize) -> usize {
        match self {
            Self::F32 => count * 4,
            Self::F16 => count * 2,
        }
    }
}

/// Which of several kernels that compute the same are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variant {
    /// Those whose threads never wait for each other.
    pub serial: bool,
    /// Where tokens are many, those whose products are f16; needs the adapter's feature.
    pub f16: bool,
    /// Those for such a cache.
    pub kv: KvType,
}

impl Variant {
    /// Those that `options` want on this device, best first: what comes later is for devices that compute the earlier ones
    /// wrongly.
    pub fn all(gpu: &Gpu, options: GpuOptions) -> Vec<Self> {
        let serial = match options.kernels {
            Kernels::Auto => gpu.software,
            kernels => kernels == Kernels::Serial,
        };
        // Serial kernels compute on the CPU's own f32.
        let f16 = options.f16 && gpu.f16 && !serial;
        let best = Self { serial, f16, kv: options.kv };
        let mut all = vec![best, Self { f16: false, ..best }, Self { f16: false, kv: KvType::F32, ..best }];
        all.dedup();
        all
    }
}

/// How to set a backend up.
#[derive(Debug, Clone, Copy)]
pub struct GpuOptions {
    /// Positions of the KV cache; fewer if the model's context, or a binding, can't hold as many.
    pub capacity: usize,
    /// Which kernels to run.
    pub kernels: Kernels,
    /// How the KV cache is stored.
    pub kv: KvType,
    /// Whether kernels may compute in f16 where the adapter has it.
    pub f16: bool,
    /// Whether to refuse an adapter that is really the CPU, before anything is built for it.
    pub hardware_only: bool,
    /// No binding is larger than so many bytes, even if the adapter could.
    pub binding_limit: Option<u64>,
}

impl GpuOptions {
    /// The best for the adapter, with `capacity` positions.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            kernels: Kernels::Auto,
            kv: KvType::default(),
            f16: true,
            hardware_only: false,
            binding_limit: None,
        }
    }
}

/// A device that nothing was built on yet.
#[derive(Debug)]
pub struct Opened<'a> {
    gpu: Gpu,
    tensors: &'a [Tensor],
    config: &'a Config,
    options: GpuOptions,
}

impl Opened<'_> {
    /// The device. In a browser what was made on it is freed once JavaScript's garbage is collected, unless it is destroyed.
    pub fn device(&self) -> wgpu::Device {
        self.gpu.device.clone()
    }

    /// Finds the kernels that compute rightly, compiles them, and makes room.
    ///
    /// # Errors
    /// As [`GpuBackend::new`].
    pub async fn build(self) -> Result<GpuBackend> {
        let Self { gpu, tensors, config, options } = self;
        let variant = self_test::choose(&gpu, tensors, config, options).await?;
        GpuBackend::on(gpu, tensors, config, options, variant).await
    }
}

/// Runs the plan on a GPU.
#[derive(Debug)]
pub struct GpuBackend {
    pub(super) gpu: Gpu,
    pub(super) config: Config,
    weights: Vec<Weight>,
    buffers: Buffers,
    pub(super) program: Program,
    variant: Variant,
    readback: wgpu::Buffer,
    /// Only evaluation needs it.
    logits_readback: Option<wgpu::Buffer>,
    capacity: usize,
    /// Positions that the cache holds.
    filled: usize,
    /// Tokens that go through the device at once.
    step_tokens: usize,
    /// Positions of a part in attention; tests make it small.
    pub(super) part: usize,
    /// Positions whose logits fit into the buffer.
    logit_rows: usize,
    /// Bytes of weights since the last flush.
    staged: usize,
    /// Position of a step whose first dispatches have been submitted, and its tokens.
    begun: Option<usize>,
    begun_tokens: Vec<u32>,
    /// Kept from step to step, so that none makes new ones: what goes to the device, and what comes back.
    pub(super) upload: Vec<u32>,
    pub(super) words: Vec<u32>,
    clock: Option<Clock>,
    /// The commands of a step of one token whose attention has so many parts, recorded while the device was busy with the one
    /// before: steps differ in what is uploaded alone.
    ahead: RefCell<Option<(usize, wgpu::CommandBuffer)>>,
}

impl GpuBackend {
    /// Opens the best adapter, checks that it computes rightly, and makes room for the core's `tensors`; weights
    /// are zero until written.
    ///
    /// # Errors
    /// [`Error::Gpu`] if there is no adapter, if it refuses or runs out of memory, or if it computes wrongly;
    /// [`Error::Invalid`] if the tensors are not those of `config`.
    pub async fn new(tensors: &[Tensor], config: &Config, options: GpuOptions) -> Result<Self> {
        Self::open(tensors, config, options).await?.build().await
    }

    /// The first part of [`new`](Self::new), which is quick: a device for such a model.
    ///
    /// # Errors
    /// [`Error::Gpu`] if there is no adapter, or none as wanted.
    pub async fn open<'a>(
        tensors: &'a [Tensor],
        config: &'a Config,
        options: GpuOptions,
    ) -> Result<Opened<'a>> {
        let planes = tensors.iter().flat_map(|t| t.dtype.planes(t.elements()));
        let cache = options.capacity.min(config.context_length) * position_bytes(config, options.kv);
        let wanted = planes.chain([cache]).max().unwrap_or(0) as u64;
        let gpu = Gpu::open(wanted.max(step::bytes(config, MAX_STEP_TOKENS))).await?;
        if options.hardware_only && gpu.software {
            return Err(Error::Gpu(format!("{} is software, the CPU itself is faster", gpu.name)));
        }
        Ok(Opened { gpu, tensors, config, options })
    }

    /// A backend on an open device, untested.
    pub(super) async fn on(
        gpu: Gpu,
        tensors: &[Tensor],
        config: &Config,
        options: GpuOptions,
        variant: Variant,
    ) -> Result<Self> {
        config.validate()?;
        check_tensors(tensors, config)?;
        let limit = options.binding_limit.unwrap_or(u64::MAX).min(gpu.binding_limit);
        let step_tokens = (1..=MAX_STEP_TOKENS).rev().find(|n| step::bytes(config, *n) <= limit);
        let position_bytes = position_bytes(config, variant.kv) as u64;
        let capacity = options.capacity.min(config.context_length).min((limit / position_bytes) as usize);
        let (Some(step_tokens), true) = (step_tokens, capacity > 0) else {
            return Err(Error::Gpu(format!("{}: bindings of {limit} bytes are too small", gpu.name)));
        };
        let logit_bytes = config.vocab_size * 4;
        let logit_rows = (LOGITS_BYTES.min(limit as usize) / logit_bytes).clamp(1, MAX_STEP_TOKENS);
        let device = gpu.clone();
        let (made, errors) = gpu.guarded(|| {
            let gpu = &device;
            let weights: Vec<_> =
                tensors.iter().map(|t| Weight::zeroed(gpu, t, limit)).collect::<Result<_>>()?;
            let buffers = Buffers::new(gpu, config, variant.kv, step_tokens, capacity, logit_rows);
            let program = compile(gpu, &Plan::of_config(config), &weights, &buffers, variant);
            let readback = gpu.readback(RESULT_WORDS as u64 * 4);
            Ok((weights, buffers, program, readback))
        });
        errors.await?;
        let (weights, buffers, program, readback) = made?;
        gpu.check()?;
        Ok(Self {
            gpu,
            config: config.clone(),
            weights,
            buffers,
            program,
            variant,
            readback,
            logits_readback: None,
            capacity,
            filled: 0,
            step_tokens,
            part: step::PART,
            logit_rows,
            staged: 0,
            begun: None,
            begun_tokens: Vec::new(),
            upload: Vec::new(),
            words: Vec::new(),
            clock: None,
            ahead: RefCell::default(),
        })
    }

    /// How many tokens of a prompt to give it at once, so that it is filled and still stops soon.
    pub fn chunk(&self) -> usize {
        if self.gpu.software { MAX_STEP_TOKENS / 2 } else { MAX_STEP_TOKENS }
    }

    /// Whether the adapter is really the CPU, so that the CPU backend is faster.
    pub fn is_software(&self) -> bool {
        self.gpu.software
    }

    fn is_begun(&self, step: &Step<'_>) -> bool {
        self.begun == Some(step.position) && self.begun_tokens == step.tokens
    }

    /// Of a step of `n` tokens from `position` on; kernels that are serial know no parts.
    fn size(&self, n: usize, position: usize) -> Size {
        let parts = if self.variant.serial { 1 } else { step::parts(n, position, self.part) };
        Size { tokens: n, parts }
    }

    fn layers(&self, n: usize) -> &Layers {
        if n == 1 { &self.program.one } else { &self.program.many }
    }

    fn check_position(&self, position: usize) -> Result<()> {
        if position > self.filled {
            return Err(Error::invalid(
                format!("a step at position {position}"),
                format!("the cache holds {} positions", self.filled),
            ));
        }
        Ok(())
    }

    /// Runs a step that the buffers hold whole; logits are appended to `logits`.
    async fn run(&mut self, step: Step<'_>, logits: &mut Vec<f32>) -> Result<Output> {
        let n = step.tokens.len();
        let begun = self.is_begun(&step);
        self.begun = None;
        let head = if matches!(step.want, Want::Candidates(_)) { n - 1..n } else { 0..0 };
        let (mut upload, mut words) = (take(&mut self.upload), take(&mut self.words));
        let size = self.size(n, step.position);
        step::upload(&mut upload, &step, &self.config, size.parts, head);
        let layers = self.layers(n);
        let layers = &layers.dispatches[if begun { layers.before_rows } else { 0 }..];
        let output = match step.want {
            Want::Nothing => {
                self.submit(&upload, &[(layers, size)], None, None).await?;
                Output::Nothing
            }
            Want::Candidates(_) => {
                let top_k = std::slice::from_ref(&self.program.top_k);
                let one = Size { tokens: 1, ..size };
                let work = [(layers, size), (&self.program.head_one, one), (top_k, one)];
                let result = (&self.buffers.result, &self.readback, &mut words);
                // A token is likely followed by another.
                let again = (n == 1 && !begun && self.clock.is_none()).then_some(size.parts);
                self.submit(&upload, &work, Some(result), again).await?;
                let candidates = candidates(&words, self.config.vocab_size).ok_or_else(|| {
                    Error::Gpu(format!("{}: the logits are no finite numbers", self.gpu.name))
                })?;
                Output::Candidates(candidates)
            }
            Want::Logits => {
                self.submit(&upload, &[(layers, size)], None, None).await?;
                for first in (0..n).step_by(self.logit_rows) {
                    let head = first..n.min(first + self.logit_rows);
                    logits.extend(self.logits(n, step.position, head).await?);
                }
                Output::Nothing
            }
        };
        (self.upload, self.words) = (upload, words);
        Ok(output)
    }

    /// The logits of the positions `head` of a step of `n` tokens whose layers were just run.
    async fn logits(&mut self, n: usize, position: usize, head: Range<usize>) -> Result<Vec<f32>> {
        let count = head.len();
        let dispatches = if count == 1 { &self.program.head_one } else { &self.program.head_many };
        let bytes = self.buffers.logits.size();
        let readback = self.logits_readback.get_or_insert_with(|| self.gpu.readback(bytes)).clone();
        let header = step::header(self.size(n, position), position, head, Penalty::default());
        let size = Size { tokens: count, parts: 1 };
        let mut words = Vec::new();
        let result = (&self.buffers.logits, &readback, &mut words);
        self.submit(&header, &[(dispatches, size)], Some(result), None).await?;
        Ok(words[..count * self.config.vocab_size].iter().map(|w| f32::from_bits(*w)).collect())
    }

    /// Uploads, runs each list of dispatches for such a size in one pass, and reads the first buffer of
    /// `result` back through the second one into its words. If the step is to come `again`, of one token in so many parts, it is
    /// recorded for that time meanwhile.
    async fn submit(
        &self,
        upload: &[u32],
        work: &Work<'_>,
        result: Option<(&wgpu::Buffer, &wgpu::Buffer, &mut Vec<u32>)>,
        again: Option<usize>,
    ) -> Result<()> {
        let copied = result.as_ref().map(|(source, target, _)| (*source, *target));
        let ((), errors) = self.gpu.guarded(|| {
            self.gpu.queue.write_buffer(&self.buffers.upload, 0, cast_slice(upload));
            let ahead = again.and_then(|parts| self.ahead.take().filter(|(of, _)| *of == parts));
            self.gpu.submit(ahead.map_or_else(|| self.record(work, copied), |(_, commands)| commands));
            if let Some(parts) = again {
                self.ahead.replace(Some((parts, self.record(work, copied))));
            }
        });
        if let Some((_, target, words)) = result {
            self.gpu.read_into(target, words).await?;
        }
        if let Err(error) = errors.await {
            // Perhaps it was these commands that failed.
            self.ahead.take();
            return Err(error);
        }
        if let Some(clock) = &self.clock {
            clock.read(&self.gpu, work).await?;
        }
        self.gpu.check()
    }

    /// The commands that run `work` and copy the first of two buffers to the second.
    fn record(&self, work: &Work<'_>, copied: Option<(&wgpu::Buffer, &wgpu::Buffer)>) -> wgpu::CommandBuffer {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        if let Some(clock) = &self.clock {
            clock.record(&mut encoder, work);
        } else {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for (dispatches, size) in work {
                for dispatch in *dispatches {
                    dispatch.record(&mut pass, *size);
                }
            }
        }
        if let Some((source, target)) = copied {
            encoder.copy_buffer_to_buffer(source, 0, target, 0, source.size());
        }
        encoder.finish()
    }
}

impl Backend for GpuBackend {
    fn write(&mut self, tensor: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let count = self.weights.len();
        let weight = self
            .weights
            .get(tensor)
            .ok_or_else(|| Error::invalid(format!("tensor {tensor}"), format!("the core has {count}")))?;
        weight.write(&self.gpu.queue, offset, bytes)?;
        self.staged += bytes.len();
        if self.staged >= FLUSH_BYTES {
            self.staged = 0;
            self.gpu.queue.submit([]);
            self.gpu.poll()?;
        }
        self.gpu.check()
    }

    async fn begin(&mut self, tokens: &[u32], position: usize) -> Result<()> {
        self.begun = None;
        self.gpu.check()?;
        check_tokens(tokens, position, &self.config, self.capacity)?;
        self.check_position(position)?;
        let n = tokens.len();
        if n > self.step_tokens {
            return Ok(()); // such a step goes through the device in parts
        }
        self.filled = position;
        if let Some(clock) = &mut self.clock {
            clock.begin();
        }
        let step = Step { tokens, position, rows: &[], want: Want::Nothing };
        let mut upload = take(&mut self.upload);
        let size = self.size(n, position);
        step::upload(&mut upload, &step, &self.config, size.parts, 0..0);
        let layers = self.layers(n);
        self.submit(&upload, &[(&layers.dispatches[..layers.before_rows], size)], None, None).await?;
        self.upload = upload;
        self.begun = Some(position);
        self.begun_tokens.clear();
        self.begun_tokens.extend_from_slice(tokens);
        Ok(())
    }

    async fn forward(&mut self, step: Step<'_>) -> Result<Output> {
        self.gpu.check()?;
        check(&step, &self.config, self.capacity)?;
        self.check_position(step.position)?;
        let n = step.tokens.len();
        let width = self.config.row_width();
        let mut logits = Vec::new();
        let mut output = Output::Nothing;
        let begun = self.is_begun(&step);
        if let Some(clock) = self.clock.as_mut().filter(|_| !begun) {
            clock.begin();
        }
        for first in (0..n).step_by(self.step_tokens) {
            let end = n.min(first + self.step_tokens);
            let want = match step.want {
                Want::Candidates(_) if end < n => Want::Nothing,
                want => want,
            };
            let (tokens, rows) = (&step.tokens[first..end], &step.rows[first * width..end * width]);
            // A failure leaves these positions unknown.
            self.filled = step.position + first;
            output =
                self.run(Step { tokens, position: step.position + first, rows, want }, &mut logits).await?;
            self.filled = step.position + end;
        }
        if let Some(clock) = &mut self.clock {
            clock.collect();
        }
        Ok(if matches!(step.want, Want::Logits) { Output::Logits(logits) } else { output })
    }

    fn time(&mut self, on: bool) {
        self.clock = if on { Clock::new(&self.gpu, &Plan::of_config(&self.config)) } else { None };
    }

    fn times(&self) -> &[f64] {
        self.clock.as_ref().map_or(&[], Clock::times)
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn describe(&self) -> (&'static str, String) {
        let f16 = if self.variant.f16 { ", f16" } else { "" };
        ("gpu", format!("{}{f16}", self.gpu.name))
    }

    fn bytes(&self) -> u64 {
        let readbacks = [Some(&self.readback), self.logits_readback.as_ref()];
        self.weights.iter().map(Weight::bytes).sum::<u64>()
            + self.buffers.bytes()
            + readbacks.into_iter().flatten().map(wgpu::Buffer::size).sum::<u64>()
    }
}

/// Bytes of a position in the widest cache.
fn position_bytes(config: &Config, kv: KvType) -> usize {
    let engram = if config.engram.is_some() { KvType::F32.bytes(config.hidden_size) } else { 0 };
    kv.bytes(config.kv_dim()).max(engram)
}

fn check_tensors(tensors: &[Tensor], config: &Config) -> Result<()> {
    let expected = expected_tensors(config);
    let same = |(t, (name, shape)): (&Tensor, &(String, Vec<usize>))| t.name == *name && t.shape == *shape;
    if tensors.len() != expected.len() || !tensors.iter().zip(&expected).all(same) {
        return Err(Error::invalid(
            format!("{} tensors", tensors.len()),
            format!("the model needs {}, of certain names and shapes", expected.len()),
        ));
    }
    Ok(())
}

/// Reads the layout of `top_k.wgsl`'s result; `None` if no logits were compared, but NaN.
fn candidates(words: &[u32], vocab: usize) -> Option<Candidates> {
    let (ids, logits) = words[1..].split_at(MAX_CANDIDATES);
    let pairs = ids.iter().zip(logits).map(|(id, logit)| (*id, f32::from_bits(*logit)));
    let top: Vec<_> = pairs.take(vocab).collect();
    let log_sum_exp = f32::from_bits(words[0]);
    let numbers = log_sum_exp.is_finite() && top.iter().all(|(id, _)| (*id as usize) < vocab);
    numbers.then_some(Candidates { top, log_sum_exp })
}
