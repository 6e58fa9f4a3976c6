//! How fast a model reads a prompt and writes, and where the time of its steps goes.

use serde::Serialize;

use super::Spread;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::sampler::Sampling;
use crate::session::{Generation, Observer, Session, StepReport};
use crate::tables::RowSource;
use crate::trace::times::{Part, parts};

/// What is run again and again: a prompt read from the beginning, then new tokens, the likeliest each time.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Tokens.
    pub prompt: &'a [u32],
    /// So many new tokens, even behind the end of an answer.
    pub new_tokens: usize,
    /// So many runs, after a first one that warms up.
    pub runs: usize,
    /// So many more, whose operations are timed one by one: the others aren't burdened with that.
    pub timed_runs: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// New tokens of a run.
    pub new_tokens: usize,
    /// Runs that the spreads are of.
    pub runs: usize,
    /// The first run, with rows that no run has looked up before.
    pub warm_up: Run,
    /// Tokens of the prompt a second, until the first new token is chosen.
    pub prefill_tokens_per_second: Spread,
    /// Milliseconds until the first new token.
    pub first_token_ms: Spread,
    /// New tokens a second, after the first.
    pub decode_tokens_per_second: Spread,
    /// What was written, for comparisons.
    pub tokens: Vec<u32>,
    /// Where the time goes while the prompt is read; nothing where the backend can't measure.
    pub prefill: Option<PartTimes>,
    /// Where the time goes while new tokens are written.
    pub decode: Option<PartTimes>,
}

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Run {
    /// As in [`Speed`].
    pub first_token_ms: f64,
    /// As in [`Speed`].
    pub decode_tokens_per_second: f64,
}

/// Milliseconds a token, on average over all steps of the timed runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartTimes {
    /// Tokens that went through these steps.
    pub tokens: usize,
    /// From one step to the next.
    pub all_ms: f64,
    /// Looking up the rows.
    pub rows_ms: f64,
    /// The token's embedding.
    pub embed_ms: f64,
    /// Attention with its projections, in all layers.
    pub attention_ms: f64,
    /// The FFNs of all dense layers.
    pub dense_ffn_ms: f64,
    /// The FFNs of all STEM layers.
    pub stem_ffn_ms: f64,
    /// All Engram layers.
    pub engram_ms: f64,
    /// The last norm and the logits.
    pub head_ms: f64,
    /// Penalty and candidates.
    pub candidates_ms: f64,
    /// What is left: choosing among the candidates, and on a GPU the way there and back.
    pub other_ms: f64,
    /// Of one dense FFN; nothing in a model without any.
    pub a_dense_ffn_ms: Option<f64>,
    /// Of one STEM FFN.
    pub a_stem_ffn_ms: Option<f64>,
    /// The second over the first.
    pub stem_to_dense_ffn: Option<f64>,
    /// The same with the row's lookup as part of a STEM FFN.
    pub stem_with_rows_to_dense_ffn: Option<f64>,
    /// One by one.
    pub layers: Vec<Layer>,
}

/// Milliseconds a token of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Layer {
    /// Whether its FFN is a STEM one.
    pub stem: bool,
    /// Attention with its projections.
    pub attention_ms: f64,
    /// The FFN.
    pub ffn_ms: f64,
}

/// Runs `task` on a session, which forgets what it holds. `observer` may end it, and hears of every run.
///
/// # Errors
/// [`Error::Invalid`] for no runs or less than two new tokens, [`Error::Stopped`] if the observer ended it, and what a
/// generation gives.
pub async fn speed<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    task: Task<'_>,
    observer: &mut impl Observer,
) -> Result<Speed> {
    if task.runs == 0 || task.new_tokens < 2 {
        let what = format!("{} runs with {} new tokens", task.runs, task.new_tokens);
        return Err(Error::invalid(what, "at least one run with two tokens is needed"));
    }
    let mut watch = Watch { inner: observer, tally: None, written: 0 };
    session.backend_mut().time(false);
    let first = run(session, task, &mut watch).await?;
    let mut runs = Vec::new();
    for _ in 0..task.runs {
        runs.push(run(session, task, &mut watch).await?);
    }
    session.backend_mut().time(true);
    watch.tally = Some(Tally::new(session));
    let mut timed = Vec::new();
    for _ in 0..task.timed_runs {
        let result = run(session, task, &mut watch).await;
        if result.is_err() {
            session.backend_mut().time(false);
        }
        timed.push(result?);
    }
    session.backend_mut().time(false);
    let tally = watch.tally.take().filter(|tally| tally.measured);
    let mean = |value: fn(&Generation) -> f64| timed.iter().map(value).sum::<f64>() / timed.len() as f64;
    let prefill_ms = mean(|g| g.first_token_ms / g.prompt_tokens as f64);
    let decode_ms = mean(|g| 1e3 / g.tokens_per_second);
    let (prefill, decode) = tally.map(|t| t.times([prefill_ms, decode_ms])).unzip();

    let spread = |value: fn(&Generation) -> f64| {
        Spread::of(runs.iter().map(value)).ok_or_else(|| Error::invalid("0 runs", "at least one is needed"))
    };
    Ok(Speed {
        prompt_tokens: task.prompt.len(),
        new_tokens: first.tokens.len(),
        runs: task.runs,
        warm_up: Run {
            first_token_ms: first.first_token_ms,
            decode_tokens_per_second: first.tokens_per_second,
        },
        prefill_tokens_per_second: spread(|g| g.prompt_tokens as f64 / g.first_token_ms * 1e3)?,
        first_token_ms: spread(|g| g.first_token_ms)?,
        decode_tokens_per_second: spread(|g| g.tokens_per_second)?,
        tokens: first.tokens,
        prefill,
        decode,
    })
}

async fn run<B: Backend, R: RowSource>(
    session: &mut Session<B, R>,
    task: Task<'_>,
    watch: &mut Watch<'_, impl Observer>,
) -> Result<Generation> {
    session.reset();
    watch.written = 0;
    let sampling = Sampling { ignore_eos: true, ..Sampling::greedy(task.new_tokens) };
    let generation = session.generate(task.prompt, &sampling, watch).await?;
    match generation.tokens.len() {
        _ if watch.stopped() => Err(Error::Stopped),
        n if n < task.new_tokens => Err(Error::ContextFull {
            tokens: task.prompt.len() + task.new_tokens,
            context: session.backend().capacity(),
        }),
        _ => Ok(generation),
    }
}

/// Sums of the operations' times, while the prompt is read and while tokens are written.
#[derive(Debug)]
struct Tally {
    parts: Vec<(Part, usize)>,
    n_layers: usize,
    phases: [Phase; 2],
    measured: bool,
}

#[derive(Debug, Clone, Default)]
struct Phase {
    tokens: usize,
    rows_ms: f64,
    // [ops + 1]
    ms: Vec<f64>,
}

impl Tally {
    fn new<B: Backend, R: RowSource>(session: &Session<B, R>) -> Self {
        let config = session.config();
        let parts = parts(&Plan::of_config(config));
        let phase = Phase { ms: vec![0.0; parts.len()], ..Phase::default() };
        Self { parts, n_layers: config.n_layers, phases: [phase.clone(), phase], measured: false }
    }

    fn add(&mut self, report: &StepReport<'_>, writing: bool) {
        let phase = &mut self.phases[usize::from(writing)];
        phase.tokens += report.tokens.len();
        phase.rows_ms += report.rows_ms;
        phase.ms.iter_mut().zip(report.times).for_each(|(sum, ms)| *sum += ms);
        self.measured |= !report.times.is_empty();
    }

    /// Of both phases; `all_ms` is what a token took in all.
    fn times(&self, all_ms: [f64; 2]) -> (PartTimes, PartTimes) {
        let [prefill, decode] = [0, 1].map(|i| self.phase(&self.phases[i], all_ms[i]));
        (prefill, decode)
    }

    fn phase(&self, phase: &Phase, all_ms: f64) -> PartTimes {
        let tokens = phase.tokens.max(1) as f64;
        let sum = |of: &dyn Fn(Part, usize) -> bool| {
            let ops = self.parts.iter().zip(&phase.ms);
            ops.filter(|((part, layer), _)| of(*part, *layer)).map(|(_, ms)| ms).sum::<f64>() / tokens
        };
        let part = |wanted| sum(&|part, _| part == wanted);
        let stem = |layer| self.parts.contains(&(Part::StemFfn, layer));
        let layers: Vec<_> = (0..self.n_layers)
            .map(|layer| Layer {
                stem: stem(layer),
                attention_ms: sum(&|part, at| part == Part::Attention && at == layer),
                ffn_ms: sum(&|part, at| matches!(part, Part::DenseFfn | Part::StemFfn) && at == layer),
            })
            .collect();
        let n_stem = layers.iter().filter(|layer| layer.stem).count();
        let one = |ms: f64, n: usize| (n > 0).then(|| ms / n as f64);
        let a_dense = one(part(Part::DenseFfn), self.n_layers - n_stem);
        let a_stem = one(part(Part::StemFfn), n_stem);
        let ratio = |more: f64| a_stem.zip(a_dense).map(|(stem, dense)| (stem + more) / dense);
        let rows_ms = phase.rows_ms / tokens;
        PartTimes {
            tokens: phase.tokens,
            all_ms,
            rows_ms,
            embed_ms: part(Part::Embed),
            attention_ms: part(Part::Attention),
            dense_ffn_ms: part(Part::DenseFfn),
            stem_ffn_ms: part(Part::StemFfn),
            engram_ms: part(Part::Engram),
            head_ms: part(Part::Head),
            candidates_ms: part(Part::Candidates),
            other_ms: all_ms - rows_ms - sum(&|_, _| true),
            a_dense_ffn_ms: a_dense,
            a_stem_ffn_ms: a_stem,
            stem_to_dense_ffn: ratio(0.0),
            stem_with_rows_to_dense_ffn: ratio(rows_ms / n_stem.max(1) as f64),
            layers,
        }
    }
}

/// Keeps the tally, and passes on what it hears.
struct Watch<'a, O> {
    inner: &'a mut O,
    tally: Option<Tally>,
    written: usize,
}

impl<O: Observer> Observer for Watch<'_, O> {
    fn prefill(&mut self, done: usize, total: usize) {
        self.inner.prefill(done, total);
    }

    fn stepped(&mut self, report: &StepReport<'_>) {
        if let Some(tally) = &mut self.tally {
            tally.add(report, self.written > 0);
        }
        self.inner.stepped(report);
    }

    fn token(&mut self, id: u32, log_prob: f32) {
        self.written += 1;
        self.inner.token(id, log_prob);
    }

    fn stopped(&self) -> bool {
        self.inner.stopped()
    }

    async fn breathe(&mut self) {
        self.inner.breathe().await;
    }
}

/// `n` tokens of `text`, over and over.
pub fn tokens(text: &[u32], n: usize) -> Vec<u32> {
    text.iter().copied().cycle().take(n).collect()
}
