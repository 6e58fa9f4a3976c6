//! What a trace says. `docs/trace.md` describes its JSON form.

use serde::{Deserialize, Serialize};

use crate::bundle::Manifest;
use crate::engram::Engram;
use crate::error::{Error, Result};
use crate::tables::Tier;
use crate::tables::layout::Address;

/// The version of the form that this crate writes and reads.
pub const VERSION: u32 = 1;
/// Candidates that are kept of each position.
pub const CANDIDATES: usize = 10;
const FORMAT: &str = "xylem-trace";

/// A trace of one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    format: String,
    version: u32,
    /// What ran.
    pub model: TracedModel,
    /// What computed.
    pub backend: String,
    /// So many tokens are the prompt's, the others the model's own.
    pub prompt_tokens: usize,
    /// The text.
    pub tokens: Vec<TracedToken>,
}

/// The model of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracedModel {
    /// Its name.
    pub name: String,
    /// [`Manifest::hash`].
    pub hash: String,
    /// Layers.
    pub n_layers: usize,
    /// Those with rows.
    pub stem_layers: Vec<usize>,
    /// Those with a memory of n-grams.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engram_layers: Vec<usize>,
    /// Tokens of their longest n-grams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engram_order: Option<usize>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the FFN and of a row.
    pub intermediate_size: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
}

/// One token of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracedToken {
    /// Its id.
    pub id: u32,
    /// Its text; bytes that are no whole character are U+FFFD.
    pub text: String,
    /// Where its record lies, for a model with a table.
    pub record: Option<Address>,
    /// How its record was found.
    pub lookup: Option<Lookup>,
    /// The layers in which an edit changed its row.
    pub edited: Vec<usize>,
    /// `[n_stem]`: norms of its rows, edits included.
    pub row_norm: Vec<f32>,
    /// `[n_layers]`: see [`Gauge::contribution`](super::Gauge::contribution).
    pub contribution: Vec<f32>,
    /// `[n_layers]`: see [`Gauge::gate_open`](super::Gauge::gate_open).
    pub gate_open: Vec<f32>,
    /// The compressed id by which n-grams know it, for a model with Engram layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed: Option<u32>,
    /// `[n_engram]`: what the memory of each Engram layer did with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engram: Vec<TracedEngram>,
    /// What was expected to follow, and what did.
    pub next: Next,
}

/// How a record was found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// Where it was.
    pub tier: Tier,
    /// Milliseconds that the lookup waited for it.
    pub ms: f64,
}

/// What the memory of one Engram layer did with a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracedEngram {
    /// `[heads]`: the hash of each head, those of pairs first: the row's number in the head's table.
    pub hashes: Vec<u32>,
    /// How its records were found: the farthest of all heads.
    pub lookup: Option<Lookup>,
    /// Whether an edit changed one of the rows.
    pub edited: bool,
    /// The norm of the rows of all heads together, edits included.
    pub row_norm: f32,
    /// See [`EngramGauge::contribution`](super::EngramGauge::contribution).
    pub contribution: f32,
    /// See [`EngramGauge::gate`](super::EngramGauge::gate).
    pub gate: f32,
}

/// The prediction after a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Next {
    /// The token that follows; after the last one the likeliest.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its logit.
    pub logit: f32,
    /// Its probability at temperature 1, without penalty.
    pub probability: f32,
    /// The mean logit of the vocabulary.
    pub mean_logit: f32,
    /// Direct logit attribution. With the scale of the last norm held fixed, what the embedding adds to `logit − mean_logit`.
    pub embedding: f32,
    /// `[n_layers]`: what each layer's attention adds.
    pub attention: Vec<f32>,
    /// `[n_layers]`: what each layer's FFN adds.
    pub ffn: Vec<f32>,
    /// `[n_engram]`: what each Engram layer's memory adds before its attention. All of them together make
    /// `logit − mean_logit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engram: Vec<f32>,
    /// The likeliest tokens, best first.
    pub top: Vec<Candidate>,
}

/// A token that might follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its probability.
    pub probability: f32,
}

impl Trace {
    /// A trace of the current version.
    pub fn new(model: TracedModel, backend: String, prompt_tokens: usize, tokens: Vec<TracedToken>) -> Self {
        Self { format: FORMAT.into(), version: VERSION, model, backend, prompt_tokens, tokens }
    }

    /// Reads and checks the JSON form.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first thing that is wrong.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let wrong = |reason: String| Error::invalid("the trace", reason);
        let trace: Self = serde_json::from_slice(json).map_err(|e| wrong(e.to_string()))?;
        if trace.format != FORMAT || trace.version != VERSION {
            return Err(wrong(format!(
                "format `{}` {}, expected `{FORMAT}` {VERSION}",
                trace.format, trace.version
            )));
        }
        if trace.prompt_tokens > trace.tokens.len() {
            return Err(wrong(format!("{} of {} tokens", trace.prompt_tokens, trace.tokens.len())));
        }
        let (layers, stem) = (trace.model.n_layers, trace.model.stem_layers.len());
        let engram = trace.model.engram_layers.len();
        for (i, token) in trace.tokens.iter().enumerate() {
            let next = &token.next;
            let by_layer = [&token.contribution, &token.gate_open, &next.attention, &next.ffn];
            let complete = by_layer.iter().all(|values| values.len() == layers);
            if !complete || token.row_norm.len() != stem || next.engram.len() != engram {
                return Err(wrong(format!("token {i} does not have the values of {layers} layers")));
            }
            // Traces of older versions of the program lack them.
            if !token.engram.is_empty() && token.engram.len() != engram {
                return Err(wrong(format!("token {i} does not have the values of {engram} Engram layers")));
            }
        }
        Ok(trace)
    }
}

impl TracedModel {
    /// The model of a manifest.
    pub fn new(manifest: &Manifest) -> Self {
        let c = &manifest.config;
        Self {
            name: manifest.name.clone(),
            hash: manifest.hash(),
            n_layers: c.n_layers,
            stem_layers: c.stem_layers.clone(),
            engram_layers: c.engram.iter().flat_map(|e| &e.layers).map(|l| l.layer).collect(),
            engram_order: c.engram.as_ref().map(Engram::order),
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            vocab_size: c.vocab_size,
        }
    }
}
