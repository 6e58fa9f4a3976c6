//! Answers of a model, with rows from different places: how fast, and how long the steps waited for their rows.

use std::rc::Rc;

use serde::Serialize;

use super::Spread;
use super::link::{Link, Linked};
use crate::backend::{Backend, MAX_STEP_TOKENS};
use crate::bundle::Bundle;
use crate::bundle::reader::RowsThrough;
use crate::error::{Error, Result};
use crate::sampler::Sampling;
use crate::session::{Observer, Session, StepReport};
use crate::tables::{FileTransport, Origin, RowSource, Transport};

type Streams = RowsThrough<Linked<FileTransport>>;

/// Where the rows of a run come from.
#[derive(Debug)]
pub enum Source {
    /// All of them as numbers in memory.
    Resident(Resident),
    /// The bundle's tables.
    Tables(Rc<Streams>),
}

/// The rows of one text, `[n, row_width]`: nothing is looked up or decoded, only copied.
#[derive(Debug)]
pub struct Resident {
    tokens: Vec<u32>,
    rows: Vec<f32>,
    row_width: usize,
}

impl RowSource for Source {
    async fn gather_traced(
        &self,
        before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        origins: &mut Vec<Origin>,
    ) -> Result<()> {
        match self {
            Self::Resident(resident) => resident.copy(before, tokens, out),
            Self::Tables(tables) => tables.gather_traced(before, tokens, out, origins).await,
        }
    }
}

impl Resident {
    fn copy(&self, before: &[u32], tokens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let positions = before.len()..before.len() + tokens.len();
        if self.tokens.get(positions.clone()) != Some(tokens) {
            return Err(Error::invalid(
                format!("tokens {tokens:?} at position {}", positions.start),
                "are not those of the answer with streamed rows",
            ));
        }
        out.extend_from_slice(&self.rows[positions.start * self.row_width..positions.end * self.row_width]);
        Ok(())
    }
}

/// Requests and bytes so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Requests sent.
    pub requests: u64,
    /// Bytes that came.
    pub bytes: u64,
}

impl Traffic {
    /// Of a bundle's tables so far.
    pub fn of<T: Transport>(tables: &RowsThrough<T>) -> Self {
        let all = tables.stem().iter().chain(tables.engram()).map(|table| table.stats());
        all.fold(Self::default(), |sum, stats| Self {
            requests: sum.requests + stats.requests,
            bytes: sum.bytes + stats.bytes_fetched,
        })
    }

    /// What came after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { requests: self.requests - earlier.requests, bytes: self.bytes - earlier.bytes }
    }
}

/// The step of one new token.
#[derive(Debug, Clone, Copy)]
struct StepCost {
    wait_ms: f64,
    forward_ms: f64,
    traffic: Traffic,
}

/// One answer.
#[derive(Debug)]
struct Run {
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    tokens_per_second: f64,
    first_token_ms: f64,
    first_token: Traffic,
    steps: Vec<StepCost>,
}

/// Notes what each step took.
#[derive(Debug, Default)]
struct Watch {
    tables: Option<Rc<Streams>>,
    start: Traffic,
    last: Traffic,
    first_token: Option<Traffic>,
    log_probs: Vec<f32>,
    steps: Vec<StepCost>,
}

impl Watch {
    fn new(source: &Source) -> Self {
        let tables = match source {
            Source::Resident(_) => None,
            Source::Tables(tables) => Some(Rc::clone(tables)),
        };
        let mut watch = Self { tables, ..Self::default() };
        watch.start = watch.traffic();
        watch
    }

    fn traffic(&self) -> Traffic {
        self.tables.as_ref().map_or_else(Traffic::default, |tables| Traffic::of(tables))
    }
}

impl Observer for Watch {
    fn stepped(&mut self, report: &StepReport<'_>) {
        let now = self.traffic();
        if self.first_token.is_some() {
            self.steps.push(StepCost {
                wait_ms: report.rows_ms,
                forward_ms: report.forward_ms,
                traffic: now.since(self.last),
            });
        }
        self.last = now;
    }

    fn token(&mut self, _id: u32, log_prob: f32) {
        let before_it = self.traffic().since(self.start);
        self.first_token.get_or_insert(before_it);
        self.log_probs.push(log_prob);
    }
}

/// Several runs with rows from one place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Arm {
    /// New tokens a second, after the first.
    pub tokens_per_second: Spread,
    /// Milliseconds until the first new token.
    pub first_token_ms: Spread,
    /// What was fetched before the first new token, in the first run.
    pub first_token: FirstToken,
    /// The steps of all new tokens but the first, of all runs.
    pub a_token: NewToken,
}

/// What was fetched before the first new token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FirstToken {
    /// Requests and bytes.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// The bytes as a share of the tables'.
    pub table_share: f64,
}

/// What the step of a new token took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NewToken {
    /// Steps.
    pub steps: u64,
    /// Mean milliseconds that a step waited for its rows, looking up and decoding included, work that it did meanwhile
    /// taken off.
    pub wait_ms: f64,
    /// The longest wait.
    pub wait_ms_max: f64,
    /// The waits' share of the time of the steps.
    pub wait_share: f64,
    /// Share of the steps that asked for something.
    pub asked: f64,
    /// Mean milliseconds that those waited; 0 if there were none.
    pub asked_wait_ms: f64,
    /// Requests, mean.
    pub requests: f64,
    /// The most requests of a step.
    pub requests_max: u64,
    /// Bytes fetched, mean.
    pub bytes: f64,
}

impl Arm {
    fn of(runs: &[Run], table_bytes: u64) -> Result<Self> {
        let spread = |value: fn(&Run) -> f64| {
            Spread::of(runs.iter().map(value))
                .ok_or_else(|| Error::invalid("0 runs", "at least one is needed"))
        };
        let steps: Vec<StepCost> = runs.iter().flat_map(|run| run.steps.iter().copied()).collect();
        let sum = |value: fn(&StepCost) -> f64| steps.iter().map(value).sum::<f64>();
        let n = (steps.len() as f64).max(1.0);
        let asked = steps.iter().filter(|s| s.traffic.requests > 0).count() as f64;
        let asked_waited = sum(|s| if s.traffic.requests > 0 { s.wait_ms } else { 0.0 });
        let (waited, computed) = (sum(|s| s.wait_ms), sum(|s| s.forward_ms));
        let traffic = runs.first().map(|run| run.first_token).unwrap_or_default();
        Ok(Self {
            tokens_per_second: spread(|run| run.tokens_per_second)?,
            first_token_ms: spread(|run| run.first_token_ms)?,
            first_token: FirstToken { traffic, table_share: traffic.bytes as f64 / table_bytes as f64 },
            a_token: NewToken {
                steps: steps.len() as u64,
                wait_ms: waited / n,
                wait_ms_max: steps.iter().fold(0.0, |max, s| s.wait_ms.max(max)),
                wait_share: waited / (waited + computed).max(f64::MIN_POSITIVE),
                asked: asked / n,
                asked_wait_ms: asked_waited / asked.max(1.0),
                requests: sum(|s| s.traffic.requests as f64) / n,
                requests_max: steps.iter().map(|s| s.traffic.requests).max().unwrap_or_default(),
                bytes: sum(|s| s.traffic.bytes as f64) / n,
            },
        })
    }
}

/// Resident and streamed rows side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Streamed {
    /// Whether all runs gave the same tokens, each with the same log-probability bit by bit.
    pub identical: bool,
    /// All rows as numbers in memory.
    pub resident: Arm,
    /// Tables with empty memory, read from the folder; the system may still hold its files.
    pub cold: Arm,
    /// The same tables, the second time.
    pub warm: Arm,
    /// Tokens a second, warm over resident, run by run.
    pub warm_to_resident: Spread,
    /// Tokens a second, cold over resident, run by run.
    pub cold_to_resident: Spread,
}

/// Rows that come over a link.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OverLink {
    /// The link.
    #[serde(flatten)]
    pub link: Link,
    /// As in [`Streamed`].
    pub identical: bool,
    /// Tables with empty memory.
    pub cold: Arm,
    /// The waits of new tokens with empty memory; nothing for a link without round trips.
    pub cold_round_trips: Option<RoundTrips>,
    /// The same tables, the second time.
    pub second: Arm,
}

/// Waits of new tokens in round trips of the link; the time that the bytes take on it is part of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RoundTrips {
    /// Mean.
    pub mean: f64,
    /// Mean of those that asked for something.
    pub asked: f64,
    /// The longest.
    pub max: f64,
}

/// A model that answers one prompt again and again, greedily.
#[derive(Debug)]
pub struct Bench<'a, B> {
    bundle: &'a Bundle,
    session: Session<B, Source>,
    prompt: Vec<u32>,
    sampling: Sampling,
    table_bytes: u64,
    // The answer, and its log-probabilities.
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    // [prompt and answer, row_width]
    rows: Vec<f32>,
}

impl<'a, B: Backend> Bench<'a, B> {
    /// `backend` holds the bundle's core. Answers once, with `max_tokens` new tokens at most, to learn what the answer
    /// is and which rows it needs.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an answer of less than two tokens or a bundle without tables, and what a generation gives.
    pub async fn new(bundle: &'a Bundle, backend: B, prompt: &[u32], max_tokens: usize) -> Result<Self> {
        let table_bytes = bundle.manifest().tables.iter().map(crate::bundle::Table::bytes).sum();
        if table_bytes == 0 {
            return Err(Error::invalid("a model without tables", "has no lookups to measure"));
        }
        let config = bundle.manifest().config.clone();
        let tables = Rc::new(bundle.rows_through(&Linked::new(FileTransport::new(bundle.dir()), None))?);
        let session = Session::new(backend, Source::Tables(Rc::clone(&tables)), config, MAX_STEP_TOKENS);
        let mut bench = Self {
            bundle,
            session,
            prompt: prompt.to_vec(),
            sampling: Sampling::greedy(max_tokens),
            table_bytes,
            tokens: Vec::new(),
            log_probs: Vec::new(),
            rows: Vec::new(),
        };
        let run = bench.answer(Source::Tables(Rc::clone(&tables))).await?;
        if run.tokens.len() < 2 {
            return Err(Error::invalid(
                format!("an answer of {} tokens", run.tokens.len()),
                "is too short to be timed; ask something else",
            ));
        }
        tables.gather_at(&[], &[prompt, &run.tokens].concat(), &mut bench.rows).await?;
        (bench.tokens, bench.log_probs) = (run.tokens, run.log_probs);
        Ok(bench)
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt.len()
    }

    /// The answer.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The device, in words.
    pub fn backend(&self) -> &B {
        self.session.backend()
    }

    /// Answers `runs` times with resident rows, with tables new to the process, and with these tables again; in turns, so
    /// that what else the machine does meets all of them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no runs, and what a generation gives.
    pub async fn streamed(&mut self, runs: usize) -> Result<Streamed> {
        let (mut resident, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..runs {
            let tables = self.tables(None)?;
            cold.push(self.answer(Source::Tables(Rc::clone(&tables))).await?);
            let own = self.resident();
            // Neither is always the first of the two.
            if run % 2 == 0 {
                resident.push(self.answer(own).await?);
                warm.push(self.answer(Source::Tables(tables)).await?);
            } else {
                warm.push(self.answer(Source::Tables(tables)).await?);
                resident.push(self.answer(own).await?);
            }
        }
        let ratio = |runs: &[Run]| {
            let ratios = runs.iter().zip(&resident).map(|(a, b)| a.tokens_per_second / b.tokens_per_second);
            Spread::of(ratios).ok_or_else(|| Error::invalid("0 runs", "at least one is needed"))
        };
        Ok(Streamed {
            identical: self.identical([&resident, &cold, &warm]),
            warm_to_resident: ratio(&warm)?,
            cold_to_resident: ratio(&cold)?,
            resident: Arm::of(&resident, self.table_bytes)?,
            cold: Arm::of(&cold, self.table_bytes)?,
            warm: Arm::of(&warm, self.table_bytes)?,
        })
    }

    /// Answers `runs` times over `link`, each time with tables new to the process and then with these tables again.
    /// Needs a tokio runtime with timers.
    ///
    /// # Errors
    /// As [`streamed`](Self::streamed).
    pub async fn over(&mut self, link: Link, runs: usize) -> Result<OverLink> {
        let (mut cold, mut second) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let tables = self.tables(Some(link))?;
            cold.push(self.answer(Source::Tables(Rc::clone(&tables))).await?);
            second.push(self.answer(Source::Tables(tables)).await?);
        }
        let identical = self.identical([&cold, &second]);
        let (cold, second) = (Arm::of(&cold, self.table_bytes)?, Arm::of(&second, self.table_bytes)?);
        let round_trips = |ms: f64| ms / link.round_trip_ms;
        let token = &cold.a_token;
        let cold_round_trips = (link.round_trip_ms > 0.0).then(|| RoundTrips {
            mean: round_trips(token.wait_ms),
            asked: round_trips(token.asked_wait_ms),
            max: round_trips(token.wait_ms_max),
        });
        Ok(OverLink { link, identical, cold_round_trips, cold, second })
    }

    fn tables(&self, link: Option<Link>) -> Result<Rc<Streams>> {
        let transport = Linked::new(FileTransport::new(self.bundle.dir()), link);
        self.bundle.rows_through(&transport).map(Rc::new)
    }

    pub(super) fn resident(&self) -> Source {
        Source::Resident(Resident {
            tokens: [self.prompt.as_slice(), &self.tokens].concat(),
            rows: self.rows.clone(),
            row_width: self.session.config().row_width(),
        })
    }

    fn identical<const N: usize>(&self, arms: [&[Run]; N]) -> bool {
        let bits = |log_probs: &[f32]| log_probs.iter().map(|p| p.to_bits()).collect::<Vec<_>>();
        let mut runs = arms.into_iter().flatten();
        runs.all(|run| run.tokens == self.tokens && bits(&run.log_probs) == bits(&self.log_probs))
    }

    /// The whole prompt and its answer.
    async fn answer(&mut self, source: Source) -> Result<Run> {
        let mut watch = Watch::new(&source);
        *self.session.rows_mut() = source;
        let generation = self.session.generate(&self.prompt, &self.sampling, &mut watch).await?;
        Ok(Run {
            tokens: generation.tokens,
            log_probs: watch.log_probs,
            tokens_per_second: generation.tokens_per_second,
            first_token_ms: generation.first_token_ms,
            first_token: watch.first_token.unwrap_or_default(),
            steps: watch.steps,
        })
    }
}
