//! The engine: weights, cache and recorded dispatches of one model on one device.

use std::ops::Range;

use bytemuck::cast_slice;

use super::clock::Clock;
use super::compile::{Buffers, Layers, Program, RESULT_WORDS, compile};
use super::device::Gpu;
use super::shader::Dispatch;
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

/// How to set a backend up.
#[derive(Debug, Clone, Copy)]
pub struct GpuOptions {
    /// Positions of the KV cache; fewer if the model's context, or a binding, can't hold as many.
    pub capacity: usize,
    /// Which kernels to run.
    pub kernels: Kernels,
    /// Whether to refuse an adapter that is really the CPU, before anything is built for it.
    pub hardware_only: bool,
    /// No binding is larger than so many bytes, even if the adapter could.
    pub binding_limit: Option<u64>,
}

impl GpuOptions {
    /// The best for the adapter, with `capacity` positions.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, kernels: Kernels::Auto, hardware_only: false, binding_limit: None }
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
    readback: wgpu::Buffer,
    /// Only evaluation needs it.
    logits_readback: Option<wgpu::Buffer>,
    capacity: usize,
    /// Positions that the cache holds.
    filled: usize,
    /// Tokens that go through the device at once.
    step_tokens: usize,
    /// Positions whose logits fit into the buffer.
    logit_rows: usize,
    /// Bytes of weights since the last flush.
    staged: usize,
    /// Position and tokens of a step whose first dispatches have been submitted.
    begun: Option<(usize, Vec<u32>)>,
    clock: Option<Clock>,
}

impl GpuBackend {
    /// Opens the best adapter, checks that it computes rightly, and makes room for the core's `tensors`; weights
    /// are zero until written.
    ///
    /// # Errors
    /// [`Error::Gpu`] if there is no adapter, if it refuses or runs out of memory, or if it computes wrongly;
    /// [`Error::Invalid`] if the tensors are not those of `config`.
    pub async fn new(tensors: &[Tensor], config: &Config, options: GpuOptions) -> Result<Self> {
        let planes = tensors.iter().flat_map(|t| t.dtype.planes(t.elements()));
        let cache = options.capacity.min(config.context_length) * position_width(config) * 4;
        let wanted = planes.chain([cache]).max().unwrap_or(0) as u64;
        let gpu = Gpu::open(wanted.max(step::bytes(config, MAX_STEP_TOKENS))).await?;
        if options.hardware_only && gpu.software {
            return Err(Error::Gpu(format!("{} is software, the CPU itself is faster", gpu.name)));
        }
        self_test::run(&gpu, tensors, config, options.kernels).await?;
        Self::on(gpu, tensors, config, options).await
    }

    /// A backend on an open device, untested.
    pub(super) async fn on(
        gpu: Gpu,
        tensors: &[Tensor],
        config: &Config,
        options: GpuOptions,
    ) -> Result<Self> {
        config.validate()?;
        check_tensors(tensors, config)?;
        let limit = options.binding_limit.unwrap_or(u64::MAX).min(gpu.binding_limit);
        let step_tokens = (1..=MAX_STEP_TOKENS).rev().find(|n| step::bytes(config, *n) <= limit);
        let position_bytes = position_width(config) as u64 * 4;
        let capacity = options.capacity.min(config.context_length).min((limit / position_bytes) as usize);
        let (Some(step_tokens), true) = (step_tokens, capacity > 0) else {
            return Err(Error::Gpu(format!("{}: bindings of {limit} bytes are too small", gpu.name)));
        };
        let logit_bytes = config.vocab_size * 4;
        let logit_rows = (LOGITS_BYTES.min(limit as usize) / logit_bytes).clamp(1, MAX_STEP_TOKENS);
        let serial = match options.kernels {
            Kernels::Auto => gpu.software,
            kernels => kernels == Kernels::Serial,
        };
        let device = gpu.clone();
        let (made, errors) = gpu.guarded(|| {
            let gpu = &device;
            let weights: Vec<_> =
                tensors.iter().map(|t| Weight::zeroed(gpu, t, limit)).collect::<Result<_>>()?;
            let buffers = Buffers::new(gpu, config, step_tokens, capacity, logit_rows);
            let program = compile(gpu, &Plan::of_config(config), &weights, &buffers, serial);
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
            readback,
            logits_readback: None,
            capacity,
            filled: 0,
            step_tokens,
            logit_rows,
            staged: 0,
            begun: None,
            clock: None,
        })
    }

    /// Whether the adapter is really the CPU, so that the CPU backend is faster.
    pub fn is_software(&self) -> bool {
        self.gpu.software
    }

    fn is_begun(&self, step: &Step<'_>) -> bool {
        self.begun.as_ref().is_some_and(|(at, tokens)| *at == step.position && tokens == step.tokens)
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
        let layers = self.layers(n);
        let layers = &layers.dispatches[if begun { layers.before_rows } else { 0 }..];
        match step.want {
            Want::Nothing => {
                let upload = step::upload(&step, &self.config, 0..0);
                self.submit(&upload, &[(layers, n)], None).await?;
                Ok(Output::Nothing)
            }
            Want::Candidates(_) => {
                let upload = step::upload(&step, &self.config, n - 1..n);
                let top_k = std::slice::from_ref(&self.program.top_k);
                let work = [(layers, n), (&self.program.head_one, 1), (top_k, 1)];
                let result =
                    self.submit(&upload, &work, Some((&self.buffers.result, &self.readback))).await?;
                let candidates = candidates(&result, self.config.vocab_size).ok_or_else(|| {
                    Error::Gpu(format!("{}: the logits are no finite numbers", self.gpu.name))
                })?;
                Ok(Output::Candidates(candidates))
            }
            Want::Logits => {
                let upload = step::upload(&step, &self.config, 0..0);
                self.submit(&upload, &[(layers, n)], None).await?;
                for first in (0..n).step_by(self.logit_rows) {
                    let head = first..n.min(first + self.logit_rows);
                    logits.extend(self.logits(n, step.position, head).await?);
                }
                Ok(Output::Nothing)
            }
        }
    }

    /// The logits of the positions `head` of a step of `n` tokens whose layers were just run.
    async fn logits(&mut self, n: usize, position: usize, head: Range<usize>) -> Result<Vec<f32>> {
        let count = head.len();
        let dispatches = if count == 1 { &self.program.head_one } else { &self.program.head_many };
        let bytes = self.buffers.logits.size();
        let readback = self.logits_readback.get_or_insert_with(|| self.gpu.readback(bytes)).clone();
        let header = step::header(n, position, head, Penalty::default());
        let words =
            self.submit(&header, &[(dispatches, count)], Some((&self.buffers.logits, &readback))).await?;
        Ok(words[..count * self.config.vocab_size].iter().map(|w| f32::from_bits(*w)).collect())
    }

    /// Uploads, runs each list of dispatches for so many tokens in one pass, and reads the first buffer of
    /// `result` back through the second one.
    async fn submit(
        &self,
        upload: &[u32],
        work: &[(&[Dispatch], usize)],
        result: Option<(&wgpu::Buffer, &wgpu::Buffer)>,
    ) -> Result<Vec<u32>> {
        let ((), errors) = self.gpu.guarded(|| {
            self.gpu.queue.write_buffer(&self.buffers.upload, 0, cast_slice(upload));
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            if let Some(clock) = &self.clock {
                clock.record(&mut encoder, work);
            } else {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for (dispatches, tokens) in work {
                    for dispatch in *dispatches {
                        dispatch.record(&mut pass, *tokens);
                    }
                }
            }
            if let Some((source, target)) = result {
                encoder.copy_buffer_to_buffer(source, 0, target, 0, source.size());
            }
            self.gpu.queue.submit([encoder.finish()]);
        });
        let words = match result {
            Some((_, target)) => self.gpu.read(target).await?,
            None => Vec::new(),
        };
        errors.await?;
        if let Some(clock) = &self.clock {
            clock.read(&self.gpu, work).await?;
        }
        self.gpu.check()?;
        Ok(words)
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
        let upload = step::upload(&step, &self.config, 0..0);
        let layers = self.layers(n);
        self.submit(&upload, &[(&layers.dispatches[..layers.before_rows], n)], None).await?;
        self.begun = Some((position, tokens.to_vec()));
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
        ("gpu", self.gpu.name.clone())
    }

    fn bytes(&self) -> u64 {
        let readbacks = [Some(&self.readback), self.logits_readback.as_ref()];
        self.weights.iter().map(Weight::bytes).sum::<u64>()
            + self.buffers.bytes()
            + readbacks.into_iter().flatten().map(wgpu::Buffer::size).sum::<u64>()
    }
}

/// Floats of a position in the widest cache.
fn position_width(config: &Config) -> usize {
    config.kv_dim().max(if config.engram.is_some() { config.hidden_size } else { 0 })
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
