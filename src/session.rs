//! Generating: prompt in, tokens out, with the KV cache of a common prefix kept from one prompt to the next.

mod parked;

pub use parked::Parked;

use std::ops::Range;
use std::pin::pin;
use std::task::Poll;

use futures::poll;
use web_time::Instant;

use crate::backend::{Backend, Output, Penalty, Step, Want};
use crate::config::Config;
use crate::cpu::Probe;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::sampler::{Sampler, Sampling};
use crate::tables::{Origin, RowSource};
use crate::trace::{EngramGauge, Gauge};

/// The repetition penalty looks back over so many tokens.
const PENALTY_WINDOW: usize = 128;

/// Hears what happens while a session works, and may end it.
#[allow(async_fn_in_trait, reason = "used with static dispatch only")]
pub trait Observer {
    /// `done` of `total` prompt tokens have been read.
    fn prefill(&mut self, _done: usize, _total: usize) {}

    /// A step of the prompt, or of the token chosen before, has been run.
    fn stepped(&mut self, _report: &StepReport<'_>) {}

    /// A token was chosen; its probability before the choice is `exp(log_prob)`.
    fn token(&mut self, _id: u32, _log_prob: f32) {}

    /// Whether to stop.
    fn stopped(&self) -> bool {
        false
    }

    /// Called after each step, so that a single-threaded host can attend to other things.
    async fn breathe(&mut self) {}
}

impl Observer for () {}

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub struct StepReport<'a> {
    /// The position of its first token.
    pub position: usize,
    /// Its tokens.
    pub tokens: &'a [u32],
    /// Where the rows of each of them came from; nothing for a model without rows.
    pub origins: &'a [Origin],
    /// `[n, n_layers]`: see [`Backend::gauges`].
    pub gauges: &'a [Gauge],
    /// `[n, n_engram]`: see [`Backend::engram_gauges`].
    pub engram_gauges: &'a [EngramGauge],
    /// `[ops + 1]`: see [`Backend::times`].
    pub times: &'a [f64],
    /// Milliseconds that the rows took.
    pub rows_ms: f64,
    /// Milliseconds that the backend took.
    pub forward_ms: f64,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended its answer.
    Stop,
    /// `max_tokens` were reached.
    Length,
    /// The observer stopped it.
    Stopped,
    /// The context is full.
    Context,
}

/// What a generation gave.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The new tokens, without the one that ended the answer.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of those were still in the cache.
    pub reused_tokens: usize,
    /// Milliseconds until the first new token.
    pub first_token_ms: f64,
    /// New tokens a second, after the first.
    pub tokens_per_second: f64,
}

/// A backend, its rows, and what the KV cache holds.
#[derive(Debug)]
pub struct Session<B, R> {
    backend: B,
    rows: R,
    config: Config,
    // The tokens whose keys and values are in the cache.
    cached: Vec<u32>,
    // [n, n_stem, ffn] of the step.
    step_rows: Vec<f32>,
    // What the last step did: where its rows came from, its positions, and what rows and backend took.
    origins: Vec<Origin>,
    span: Range<usize>,
    times_ms: [f64; 2],
    chunk: usize,
    // How often the rows were changed.
    rows_version: u64,
}

impl<B: Backend, R: RowSource> Session<B, R> {
    /// A session with an empty cache, which reads prompts `chunk` tokens at a time.
    pub fn new(backend: B, rows: R, config: Config, chunk: usize) -> Self {
        Self {
            backend,
            rows,
            config,
            cached: Vec::new(),
            step_rows: Vec::new(),
            origins: Vec::new(),
            span: 0..0,
            times_ms: [0.0; 2],
            chunk,
            rows_version: 0,
        }
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The device, to change what it measures.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The tables.
    pub fn rows(&self) -> &R {
        &self.rows
    }

    /// The tables, to change what they give; the cache, which was made with other rows, is forgotten.
    pub fn rows_mut(&mut self) -> &mut R {
        self.reset();
        self.rows_version += 1;
        &mut self.rows
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Forgets the cache; needed when rows have changed.
    pub fn reset(&mut self) {
        self.cached.clear();
    }

    /// Positions in the cache.
    pub fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Cuts the cache to what it shares with `tokens`.
    pub fn rewind(&mut self, tokens: &[u32]) {
        let common = self.cached.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.cached.truncate(common);
    }

    /// Runs `tokens` after those in the cache.
    ///
    /// # Errors
    /// What the tables or the backend give; the cache then holds what it held before.
    pub async fn step(&mut self, tokens: &[u32], want: Want<'_>) -> Result<Output> {
        let [rows_ms, begin_ms] = self.gather(self.cached.len(), tokens).await?;
        let began = Instant::now();
        let step = Step { tokens, position: self.cached.len(), rows: &self.step_rows, want };
        let output = self.backend.forward(step).await?;
        self.times_ms = [rows_ms, begin_ms + ms_since(began)];
        self.cached.extend_from_slice(tokens);
        Ok(output)
    }

    /// What the last step did.
    pub fn report(&self) -> StepReport<'_> {
        StepReport {
            position: self.span.start,
            tokens: self.cached.get(self.span.clone()).unwrap_or_default(),
            origins: &self.origins,
            gauges: self.backend.gauges(),
            engram_gauges: self.backend.engram_gauges(),
            times: self.backend.times(),
            rows_ms: self.times_ms[0],
            forward_ms: self.times_ms[1],
        }
    }

    /// Brings the rows of `tokens` that stand at `position`. Gives the milliseconds that the step had to wait for them,
    /// and those in which it began meanwhile.
    async fn gather(&mut self, position: usize, tokens: &[u32]) -> Result<[f64; 2]> {
        let began = Instant::now();
        let mut begin_ms = 0.0;
        self.step_rows.clear();
        self.origins.clear();
        self.span = position..position + tokens.len();
        if self.config.row_width() > 0 {
            let before = &self.cached[..position];
            let (rows, origins) = (&mut self.step_rows, &mut self.origins);
            let mut gather = pin!(self.rows.gather_traced(before, tokens, rows, origins));
            match poll!(&mut gather) {
                Poll::Ready(gathered) => gathered?,
                // The request is under way now.
                Poll::Pending => {
                    let began = Instant::now();
                    self.backend.begin(tokens, position).await?;
                    begin_ms = ms_since(began);
                    gather.await?;
                }
            }
        }
        Ok([ms_since(began) - begin_ms, begin_ms])
    }

    /// Continues `prompt`. Rows or a backend that fail with [`Error::Stopped`] end it like the observer does.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if the prompt leaves no room for a token, [`Error::Invalid`] for an empty prompt or
    /// settings out of range, and whatever a step gives.
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &Sampling,
        observer: &mut impl Observer,
    ) -> Result<Generation> {
        sampling.validate()?;
        let capacity = self.backend.capacity();
        if prompt.is_empty() {
            return Err(Error::invalid("the prompt", "is empty"));
        }
        if prompt.len() >= capacity {
            return Err(Error::ContextFull { tokens: prompt.len(), context: capacity });
        }
        let began = Instant::now();
        let mut sampler = Sampler::new(sampling);
        let mut history = prompt.to_vec();
        // The last token is always run: its logits choose the first new one.
        self.rewind(&prompt[..prompt.len() - 1]);
        let mut result = Generation {
            tokens: Vec::new(),
            finish: Finish::Length,
            prompt_tokens: prompt.len(),
            reused_tokens: self.cached.len(),
            first_token_ms: 0.0,
            tokens_per_second: 0.0,
        };
        if sampling.max_tokens == 0 {
            return Ok(result);
        }
        let (cached, new) = prompt.split_at(self.cached.len());
        self.rows.prefetch_at(cached, new);
        let mut penalized = penalized(&history, &self.config);
        let mut output = Output::Nothing;
        while self.cached.len() < prompt.len() {
            if observer.stopped() {
                result.finish = Finish::Stopped;
                return Ok(result);
            }
            let end = (self.cached.len() + self.chunk).min(prompt.len());
            let last = end == prompt.len();
            let penalty = Penalty { tokens: &penalized, factor: sampling.repetition_penalty };
            let want = if last { Want::Candidates(penalty) } else { Want::Nothing };
            output = match self.step(&prompt[self.cached.len()..end], want).await {
                Err(Error::Stopped) => {
                    result.finish = Finish::Stopped;
                    return Ok(result);
                }
                output => output?,
            };
            observer.prefill(end, prompt.len());
            observer.stepped(&self.report());
            observer.breathe().await;
        }
        let mut first_token = None;
        loop {
            let Output::Candidates(candidates) = &output else {
                return Err(Error::Gpu("the step gave no candidates".into()));
            };
            let id = sampler.sample(candidates)?;
            first_token.get_or_insert_with(Instant::now);
            if self.config.eos_tokens.contains(&id) && !sampling.ignore_eos {
                result.finish = Finish::Stop;
                break;
            }
            self.rows.prefetch_at(&history, &[id]);
            result.tokens.push(id);
            history.push(id);
            let logit = candidates.top.iter().find(|(c, _)| *c == id).map_or(f32::NEG_INFINITY, |(_, l)| *l);
            observer.token(id, logit - candidates.log_sum_exp);
            observer.breathe().await;
            if observer.stopped() {
                result.finish = Finish::Stopped;
                break;
            }
            if result.tokens.len() == sampling.max_tokens {
                break;
            }
            if self.cached.len() == capacity {
                result.finish = Finish::Context;
                break;
            }
            penalized = self::penalized(&history, &self.config);
            let penalty = Penalty { tokens: &penalized, factor: sampling.repetition_penalty };
            output = match self.step(&[id], Want::Candidates(penalty)).await {
                Err(Error::Stopped) => {
                    result.finish = Finish::Stopped;
                    break;
                }
                output => output?,
            };
            observer.stepped(&self.report());
        }
        let first_token = first_token.unwrap_or(began);
        result.first_token_ms = (first_token - began).as_secs_f64() * 1e3;
        let after = first_token.elapsed().as_secs_f64();
        if result.tokens.len() > 1 && after > 0.0 {
            result.tokens_per_second = (result.tokens.len() - 1) as f64 / after;
        }
        Ok(result)
    }
}

impl<R: RowSource> Session<Device, R> {
    /// Runs `tokens` at `position` with a look at every value; the cache holds at least the positions before. What it holds
    /// of these and later positions stays if the tokens are the same.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a GPU, [`Error::Invalid`] for a position that the cache doesn't reach, and what
    /// [`step`](Self::step) gives.
    pub async fn probe(
        &mut self,
        position: usize,
        tokens: &[u32],
        want: Want<'_>,
        probe: &mut impl Probe,
    ) -> Result<Output> {
        if position > self.cached.len() {
            return Err(Error::invalid(
                format!("a step at position {position}"),
                format!("the cache holds {} positions", self.cached.len()),
            ));
        }
        if self.backend.cpu().is_none() {
            return Err(Error::Unsupported {
                what: "a look into the layers on a GPU".into(),
                supported: "the CPU backend".into(),
            });
        }
        let known = self.cached[position..].iter().zip(tokens).take_while(|(a, b)| a == b).count();
        if known < tokens.len() {
            self.cached.truncate(position + known);
        }
        self.gather(position, tokens).await?;
        let step = Step { tokens, position, rows: &self.step_rows, want };
        let backend = self.backend.cpu_mut().expect("it is the CPU, as was just seen");
        let output = backend.forward_probed(step, probe)?;
        self.cached.extend_from_slice(&tokens[known..]);
        Ok(output)
    }
}

fn ms_since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// The distinct tokens that the penalty applies to; never those that end an answer.
fn penalized(history: &[u32], config: &Config) -> Vec<u32> {
    let mut recent: Vec<u32> = history[history.len().saturating_sub(PENALTY_WINDOW)..].to_vec();
    recent.retain(|id| !config.eos_tokens.contains(id));
    recent.sort_unstable();
    recent.dedup();
    recent
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;

    use super::*;
    use crate::bundle::quant::Dtype;
    use crate::bundle::random;
    use crate::config::tests::tiny;
    use crate::cpu::{CpuBackend, KvType};
    use crate::edits::{Edit, Edited, Method, Overlay, Recipe, Scope, Target};
    use crate::tables::MemoryRows;

    pub(super) fn session(capacity: usize) -> Session<CpuBackend, MemoryRows> {
        let config = tiny();
        let core = random::core(&config, 5, |_| Dtype::Q8);
        let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
        let mut backend = CpuBackend::new(&tensors, &config, capacity);
        for (id, (_, planes)) in core.iter().enumerate() {
            backend.write(id, 0, planes).unwrap();
        }
        let rows = (0..config.vocab_size as u32).flat_map(|t| random::rows(&config, t, 5)).collect();
        let rows = MemoryRows { rows, row_width: config.row_width() };
        Session::new(backend, rows, config, 4)
    }

    pub(super) fn run(
        s: &mut Session<CpuBackend, MemoryRows>,
        prompt: &[u32],
        sampling: &Sampling,
    ) -> Generation {
        pollster::block_on(s.generate(prompt, sampling, &mut ())).unwrap()
    }

    #[test]
    fn a_reused_prefix_changes_nothing() {
        let sampling = Sampling { temperature: 1.0, max_tokens: 12, ..Sampling::default() };
        for &kind in KvType::ALL {
            let new = || {
                let mut session = session(100);
                session.backend.set_kv_type(kind);
                session
            };
            let mut s = new();
            let first = run(&mut s, &[5, 6, 7, 8, 9, 10], &sampling);
            assert_eq!((first.reused_tokens, first.tokens.len()), (0, 12));
            let mut longer = [&[5, 6, 7, 8, 9, 10], &first.tokens[..]].concat();
            longer.extend([20, 21]);
            let second = run(&mut s, &longer, &sampling);
            assert_eq!(second.reused_tokens, 17);
            assert_eq!(second.tokens, run(&mut new(), &longer, &sampling).tokens, "{kind}");
            let again = run(&mut s, &[5, 6, 7, 8, 9, 10], &sampling);
            assert_eq!((again.reused_tokens, again.tokens), (5, first.tokens), "{kind}");
        }
    }

    #[test]
    fn an_edit_that_is_off_again_leaves_no_bit() {
        let edit = Edit {
            on: true,
            label: String::new(),
            scope: Scope::Row,
            source: vec![6],
            target: Target::Tokens(Recipe { ids: vec![20], method: Method::OneToOne, pad: None }),
            strength: 1.0,
            layers: None,
        };
        let tokens: Vec<u32> = (0..80).map(|i| i % 11 + 5).collect();
        for &kind in KvType::ALL {
            let Session { mut backend, rows, config, chunk, .. } = session(100);
            backend.set_kv_type(kind);
            let overlay = Overlay::new(std::slice::from_ref(&edit), &config).unwrap();
            let mut s = Session::new(backend, Edited::new(rows), config, chunk);
            let logits = |s: &mut Session<CpuBackend, Edited<MemoryRows>>| {
                s.reset();
                pollster::block_on(s.step(&tokens, Want::Logits)).unwrap()
            };
            let plain = logits(&mut s);
            s.rows_mut().set_overlay(overlay);
            assert!(logits(&mut s) != plain, "{kind}");
            s.rows_mut().set_overlay(Overlay::default());
            assert!(logits(&mut s) == plain, "{kind}");
        }
    }

    #[test]
    fn what_is_not_finite_makes_an_error() {
        let says = |mut s: Session<CpuBackend, MemoryRows>| {
            let run = pollster::block_on(s.generate(&[5, 6, 7], &Sampling::greedy(4), &mut ()));
            run.unwrap_err().to_string()
        };
        // A gain of the last norm is NaN; then a row is.
        let (mut gain, mut row) = (session(100), session(100));
        let last_norm = crate::bundle::manifest::expected_tensors(&tiny()).len() - 1;
        gain.backend.write(last_norm, 4, &f32::NAN.to_le_bytes()).unwrap();
        row.rows.rows[6 * row.rows.row_width + 3] = f32::NAN;
        for session in [gain, row] {
            assert!(says(session).contains("not finite"));
        }
    }

    #[test]
    fn rows_that_come_late_change_nothing() {
        struct Late(MemoryRows);
        impl RowSource for Late {
            async fn gather_traced(
                &self,
                _: &[u32],
                tokens: &[u32],
                out: &mut Vec<f32>,
                _: &mut Vec<Origin>,
            ) -> Result<()> {
                let mut asked = false;
                poll_fn(|context| {
                    context.waker().wake_by_ref();
                    if std::mem::replace(&mut asked, true) { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                self.0.gather(tokens, out).await
            }
        }
        let Session { backend, rows, config, chunk, .. } = session(100);
        let mut late = Session::new(backend, Late(rows), config, chunk);
        let (prompt, sampling) = ([5, 6, 7, 8, 9, 10], Sampling::greedy(12));
        let generation = pollster::block_on(late.generate(&prompt, &sampling, &mut ())).unwrap();
        assert_eq!(generation.tokens, run(&mut session(100), &prompt, &sampling).tokens);
    }

    #[test]
    fn a_full_context_is_said() {
        let greedy = Sampling::greedy(1000);
        let full = run(&mut session(20), &[5, 6, 7], &greedy);
        assert_eq!((full.finish, full.tokens.len()), (Finish::Context, 18));
        let error = pollster::block_on(session(20).generate(&[1; 20], &greedy, &mut ())).unwrap_err();
        assert!(matches!(error, Error::ContextFull { tokens: 20, context: 20 }));
        assert!(pollster::block_on(session(20).generate(&[], &greedy, &mut ())).is_err());
    }

    #[test]
    fn an_observer_can_stop() {
        struct StopAfter(usize);
        impl Observer for StopAfter {
            fn token(&mut self, _: u32, log_prob: f32) {
                assert!(log_prob <= 1e-4);
                self.0 -= 1;
            }
            fn stopped(&self) -> bool {
                self.0 == 0
            }
        }
        let mut s = session(100);
        let g = pollster::block_on(s.generate(&[5, 6], &Sampling::greedy(50), &mut StopAfter(3))).unwrap();
        assert_eq!((g.finish, g.tokens.len()), (Finish::Stopped, 3));
    }

    #[test]
    fn rows_can_stop_it_too() {
        struct Until(MemoryRows, Cell<usize>);
        impl RowSource for Until {
            async fn gather_traced(
                &self,
                _: &[u32],
                tokens: &[u32],
                out: &mut Vec<f32>,
                _: &mut Vec<Origin>,
            ) -> Result<()> {
                let left = self.1.get().checked_sub(1).ok_or(Error::Stopped)?;
                self.1.set(left);
                self.0.gather(tokens, out).await
            }
        }
        // Two lookups for the prompt, then one a token.
        for (lookups, tokens) in [(0, 0), (1, 0), (2, 1), (4, 3)] {
            let Session { backend, rows, config, chunk, .. } = session(100);
            let mut s = Session::new(backend, Until(rows, Cell::new(lookups)), config, chunk);
            let sampling = Sampling::greedy(50);
            let g = pollster::block_on(s.generate(&[5, 6, 7, 8, 9], &sampling, &mut ())).unwrap();
            assert_eq!((g.finish, g.tokens.len()), (Finish::Stopped, tokens));
        }
    }
}
