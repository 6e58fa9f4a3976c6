//! What the page shows of lookups and layers: told while an answer is written, and asked for afterwards.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use serde::Serialize;
use wasm_bindgen::JsValue;

use super::archive::{Archive, EngramPages};
use super::control::{Control, Event, to_js};
use super::engine::Changes;
use super::http::Host;
use crate::backend::Backend;
use crate::config::Config;
use crate::device::Device;
use crate::engram::Hasher;
use crate::error::Result;
use crate::session::{Session, StepReport};
use crate::tables::{RowSource, Tables, Tier};
use crate::text::Tokenizer;
use crate::trace::record::TracedModel;
use crate::trace::{Card, Text, Trace, TracedToken, card, trace};

/// Tokens that a trace looks at at a time: between two chunks a question is heard.
const CHUNK: usize = 16;

/// A token of a step, and how its row was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    id: u32,
    text: String,
    tier: Option<Tier>,
    ms: f64,
    /// The layers in which an edit changed its row.
    edited: Vec<usize>,
    /// One a layer; none where the backend can't measure.
    contribution: Option<Vec<f32>>,
    gate_open: Option<Vec<f32>>,
    /// One an Engram layer.
    engram: Vec<SeenEngram>,
}

/// What the memory of an Engram layer did with a token, and how its rows were found.
#[derive(Debug, Serialize)]
struct SeenEngram {
    tier: Option<Tier>,
    ms: f64,
    edited: bool,
    /// None where the backend can't measure.
    contribution: Option<f32>,
    gate: Option<f32>,
}

/// What names tokens, rows and records.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub tokenizer: &'a Tokenizer,
    pub tables: Option<&'a Tables<Host, Archive>>,
    pub engram: Option<(&'a Hasher, &'a Tables<Host, EngramPages>)>,
}

impl<'a> Source<'a> {
    fn text(&self, tokens: &'a [u32]) -> Text<'a> {
        Text {
            tokens,
            tokenizer: self.tokenizer,
            layout: self.tables.map(Tables::layout),
            engram: self.engram.map(|(hasher, tables)| (hasher, tables.layout())),
        }
    }
}

/// The look at one model's texts.
#[derive(Debug)]
pub struct Look {
    model: TracedModel,
    /// Whether steps are told.
    pub watching: Cell<bool>,
    /// The text of the last answer, how much of it was the prompt, and what it was run with.
    last: RefCell<Vec<u32>>,
    prompt_tokens: Cell<usize>,
    changes: RefCell<Rc<Changes>>,
    looking: Cell<bool>,
    interrupted: Cell<bool>,
}

/// As long as it lives the session is held for a look, which gives way to an answer.
#[derive(Debug)]
pub struct Looking<'a>(&'a Cell<bool>);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Look {
    pub fn new(model: TracedModel) -> Self {
        Self {
            model,
            watching: Cell::new(false),
            last: RefCell::default(),
            prompt_tokens: Cell::new(0),
            changes: RefCell::default(),
            looking: Cell::new(false),
            interrupted: Cell::new(false),
        }
    }

    /// Notes the text that is being written.
    pub fn begin(&self, prompt: &[u32], changes: Changes) {
        self.last.replace(prompt.to_vec());
        self.prompt_tokens.set(prompt.len());
        self.changes.replace(Rc::new(changes));
    }

    /// What the last text was run with.
    pub fn changes(&self) -> Rc<Changes> {
        self.changes.borrow().clone()
    }

    /// Lets the next trace run until it is [interrupted](Self::interrupt), which may be before it begins.
    pub fn allow(&self) {
        self.interrupted.set(false);
    }

    /// Notes what was written.
    pub fn end(&self, answer: &[u32]) {
        self.last.borrow_mut().extend_from_slice(answer);
    }

    /// Marks that the session is held for a trace or a card.
    pub fn hold(&self) -> Looking<'_> {
        self.looking.set(true);
        Looking(&self.looking)
    }

    /// Ends a trace that is under way; whether one was, or a card.
    pub fn interrupt(&self) -> bool {
        self.interrupted.set(true);
        self.looking.get()
    }

    /// Tells the page of a step.
    pub fn tell(&self, report: &StepReport<'_>, config: &Config, tokenizer: &Tokenizer, control: &Control) {
        if !self.watching.get() {
            return;
        }
        let n_engram = config.engram.as_ref().map_or(0, |engram| engram.layers.len());
        let seen = report.tokens.iter().enumerate().map(|(i, id)| {
            let origin = report.origins.get(i);
            let gauges = report.gauges.get(i * config.n_layers..(i + 1) * config.n_layers);
            Seen {
                id: *id,
                text: tokenizer.piece(*id).unwrap_or_default(),
                tier: origin.and_then(|o| o.tier),
                ms: origin.map_or(0.0, |o| o.ms),
                edited: origin.map_or_else(Vec::new, |o| {
                    o.edited.iter().map(|place| config.stem_layers[*place]).collect()
                }),
                contribution: gauges.map(|g| g.iter().map(|g| g.contribution).collect()),
                gate_open: gauges.map(|g| g.iter().map(|g| g.gate_open).collect()),
                engram: (0..n_engram)
                    .map(|layer| {
                        let origin = origin.and_then(|o| o.engram.get(layer));
                        let gauge = report.engram_gauges.get(i * n_engram + layer);
                        SeenEngram {
                            tier: origin.map(|o| o.tier),
                            ms: origin.map_or(0.0, |o| o.ms),
                            edited: origin.is_some_and(|o| o.edited),
                            contribution: gauge.map(|g| g.contribution),
                            gate: gauge.map(|g| g.gate),
                        }
                    })
                    .collect(),
            }
        });
        control.emit(&Event::Step {
            position: report.position,
            tokens: seen.collect(),
            rows_ms: report.rows_ms,
            forward_ms: report.forward_ms,
        });
    }

    /// Traces the last text; `each` gets the position of the first of some tokens, and these. Gives the trace without its
    /// tokens.
    pub async fn trace<R: RowSource>(
        &self,
        session: &mut Session<Device, R>,
        source: Source<'_>,
        control: &Control,
        each: impl Fn(usize, &[TracedToken]),
    ) -> Result<Trace> {
        let (kind, adapter) = session.backend().describe();
        let head = Trace::new(
            self.model.clone(),
            format!("{kind}: {adapter}"),
            self.prompt_tokens.get(),
            Vec::new(),
        );
        let tokens = self.last.borrow().clone();
        let text = source.text(&tokens);
        let hand = async |position: usize, records: Vec<TracedToken>| {
            each(position, &records);
            control.breathe().await;
            !self.interrupted.get()
        };
        trace(session, text, CHUNK, hand).await?;
        Ok(head)
    }

    /// Everything about one cell of the last text.
    pub async fn card<R: RowSource>(
        &self,
        session: &mut Session<Device, R>,
        source: Source<'_>,
        cell: (usize, usize),
    ) -> Result<Card> {
        let tokens = self.last.borrow().clone();
        let text = source.text(&tokens);
        card::card(session, source.tables, text, cell, false).await
    }
}

/// Some tokens of a trace for the page.
pub fn part(
    position: usize,
    tokens: &[TracedToken],
) -> std::result::Result<JsValue, serde_wasm_bindgen::Error> {
    #[derive(Serialize)]
    struct Part<'a> {
        position: usize,
        tokens: &'a [TracedToken],
    }
    to_js(&Part { position, tokens })
}
