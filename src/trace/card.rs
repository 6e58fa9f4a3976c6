//! Everything about one cell: one token in one layer.

use serde::Serialize;

use super::gauge::Gauge;
use super::head::Head;
use super::ngrams::{Memory, MemoryInside, ngrams};
use super::parts::Parts;
use super::run::Text;
use crate::backend::{Backend, MAX_STEP_TOKENS, Want};
use crate::bundle::quant::{dequantize_row, row_bytes};
use crate::config::Config;
use crate::cpu::CpuBackend;
use crate::cpu::kernels::dot;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::plan::{Op, Plan};
use crate::session::Session;
use crate::tables::layout::Address;
use crate::tables::{RowSource, Store, Tables, Transport};
use crate::text::Tokenizer;

/// Length of the card's lists.
const LISTED: usize = 8;
/// Rows of `W_d` that are expanded at once.
const PANEL: usize = 64;

/// What a layer did with a token, and the token's rows.
#[derive(Debug, Clone, Serialize)]
pub struct Card {
    /// Position of the token in the text.
    pub position: usize,
    /// The layer.
    pub layer: usize,
    /// The token.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Whether the layer reads a row.
    pub stem: bool,
    /// Where the token's record lies, for a model with a table.
    pub record: Option<Address>,
    /// What the layer computed; none on a GPU.
    pub inside: Option<Inside>,
    /// The rows most like the token's row in this layer, for a STEM layer.
    pub nearest: Option<Nearest>,
    /// The token's rows in all STEM layers.
    pub rows: Vec<Row>,
    /// What the layer's memory of n-grams did before it, for an Engram layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engram: Option<Memory>,
}

/// What the FFN of a layer did with a token.
#[derive(Debug, Clone, Serialize)]
pub struct Inside {
    /// Its gauge.
    #[serde(flatten)]
    pub gauge: Gauge,
    /// Tokens whose logits it raised most, with the scale of the last norm held fixed, relative to the mean logit.
    pub up: Vec<Push>,
    /// Tokens whose logits it lowered most.
    pub down: Vec<Push>,
    /// The units that added most.
    pub units: Vec<Unit>,
}

/// What a part of the stream adds to a token's logit.
#[derive(Debug, Clone, Serialize)]
pub struct Push {
    /// The token.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// What is added to its logit beyond the mean.
    pub logit: f32,
}

/// A unit of the FFN.
#[derive(Debug, Clone, Serialize)]
pub struct Unit {
    /// Its number.
    pub unit: usize,
    /// SiLU(W_g x) there.
    pub gate: f32,
    /// What the gate was multiplied with: the row's value, or the dense projection's.
    pub up: f32,
    /// |gate · up| · ‖column of W_d‖: the norm of what it added.
    pub added: f32,
}

/// Rows like a given one.
#[derive(Debug, Clone, Serialize)]
pub struct Nearest {
    /// So many records were compared: those in memory, or all.
    pub compared: usize,
    /// So many the table has.
    pub records: usize,
    /// The most alike, best first, without the token itself.
    pub rows: Vec<Near>,
}

/// A row like a given one.
#[derive(Debug, Clone, Serialize)]
pub struct Near {
    /// Its token.
    pub id: u32,
    /// The token's text.
    pub text: String,
    /// The cosine of the two rows.
    pub cosine: f32,
}

/// The token's row in one STEM layer.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The layer.
    pub layer: usize,
    /// Its norm.
    pub norm: f32,
    /// Whether an edit changed it.
    pub edited: bool,
    /// The row most like it.
    pub nearest: Option<Near>,
}

/// Looks at layer `cell.1` for the token at position `cell.0` of `text`. `tables` are the ones that the session's rows come
/// from; with `all` every record is compared, wherever it has to be fetched from, else those in memory.
///
/// # Errors
/// [`Error::Invalid`] for a cell that the text or model does not have, and what a step or a lookup gives.
pub async fn card<R: RowSource, T: Transport, S: Store>(
    session: &mut Session<Device, R>,
    tables: Option<&Tables<T, S>>,
    text: Text<'_>,
    (position, layer): (usize, usize),
    all: bool,
) -> Result<Card> {
    let config = session.config().clone();
    let Some((before, id)) = text.tokens.get(..=position).and_then(<[u32]>::split_last).map(|(t, b)| (b, *t))
    else {
        let reason = format!("the text has {} tokens", text.tokens.len());
        return Err(Error::invalid(format!("position {position}"), reason));
    };
    let capacity = session.backend().capacity();
    if position >= capacity {
        let reason = format!("was written last and not read: the context of {capacity} tokens was full");
        return Err(Error::invalid(format!("the token at position {position}"), reason));
    }
    if layer >= config.n_layers {
        let reason = format!("the model has {} layers", config.n_layers);
        return Err(Error::invalid(format!("layer {layer}"), reason));
    }
    let (mut own, mut origins) = (Vec::new(), Vec::new());
    if config.row_width() > 0 {
        session.rows().gather_traced(before, &[id], &mut own, &mut origins).await?;
    }
    let (inside, memory) = if session.backend().cpu().is_some() {
        let (inside, memory) = inside(session, text, position, layer).await?;
        (Some(inside), memory)
    } else {
        (None, None)
    };

    let mut search = Search::new(&own, &config, layer);
    if let Some(tables) = tables {
        let visit = |record: u32, bytes: &[u8]| search.visit(record, bytes, id);
        if all { tables.visit_all(visit).await? } else { tables.visit_memory(visit) }
    }
    let near = |(cosine, id): (f32, u32)| Ok(Near { id, text: text.tokenizer.piece(id)?, cosine });
    let stem = config.stem_index(layer);
    let nearest = stem.zip(tables).map(|(stem, tables)| {
        let rows = search.layers[stem].best.iter().copied().map(near).collect::<Result<_>>()?;
        Ok(Nearest { compared: search.compared, records: tables.layout().table().records, rows })
    });
    let origin = origins.first();
    let edited = origin.map_or(&[][..], |o| &o.edited);
    let index = config.engram.as_ref().and_then(|engram| engram.index(layer).map(|index| (index, engram)));
    let engram = index.zip(text.engram).map(|((index, engram), source)| {
        let own = &own[config.stem_width() + index * engram.width()..][..engram.width()];
        Ok(Memory {
            norm: dot(own, own).sqrt(),
            edited: origin.is_some_and(|o| o.engram.get(index).is_some_and(|o| o.edited)),
            ngrams: ngrams(text, source, position, index, own)?,
            inside: memory,
        })
    });
    let rows = config.stem_layers.iter().zip(&search.layers).enumerate().map(|(place, (layer, row))| {
        Ok(Row {
            layer: *layer,
            norm: row.norm,
            edited: edited.contains(&place),
            nearest: row.best.first().copied().map(near).transpose()?,
        })
    });
    Ok(Card {
        position,
        layer,
        id,
        text: text.tokenizer.piece(id)?,
        stem: stem.is_some(),
        record: text.layout.map(|layout| layout.address(id)).transpose()?,
        inside,
        nearest: nearest.transpose()?,
        rows: rows.collect::<Result<_>>()?,
        engram: engram.transpose()?,
    })
}

/// What the FFN of a layer did with a token and, in an Engram layer, its memory.
async fn inside<R: RowSource>(
    session: &mut Session<Device, R>,
    text: Text<'_>,
    position: usize,
    layer: usize,
) -> Result<(Inside, Option<MemoryInside>)> {
    let config = session.config().clone();
    session.rewind(text.tokens);
    while session.cached() < position {
        let end = (session.cached() + MAX_STEP_TOKENS).min(position);
        session.step(&text.tokens[session.cached()..end], Want::Nothing).await?;
    }
    let mut parts = Parts::new(&config, layer);
    session.probe(position, &text.tokens[position..=position], Want::Nothing, &mut parts).await?;
    let backend = session.backend().cpu().expect("only the CPU gives what was just seen");
    let head = Head::new(backend, &config);
    let scale = head.scale(parts.stream(0));
    let [up, down] = pushes(&head, parts.ffn(0, layer), scale, text.tokenizer)?;
    let units = units(backend, &config, layer, parts.units(0));
    let ffn = Inside { gauge: parts.gauges(0)[layer], up, down, units };
    let index = config.engram.as_ref().and_then(|engram| engram.index(layer));
    let memory = index.zip(parts.engram(0).nth(index.unwrap_or_default())).map(|(index, part)| {
        let [up, down] = pushes(&head, part, scale, text.tokenizer)?;
        Ok(MemoryInside { gauge: parts.engram_gauges(0)[index], up, down })
    });
    Ok((ffn, memory.transpose()?))
}

/// The tokens that `part` of a stream with this `scale` raises and lowers most.
fn pushes(head: &Head<'_>, part: &[f32], scale: f32, tokenizer: &Tokenizer) -> Result<[Vec<Push>; 2]> {
    let logits = head.logits(part, scale);
    let mean = logits.iter().sum::<f32>() / logits.len() as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_unstable_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let push =
        |id: &u32| Ok(Push { id: *id, text: tokenizer.piece(*id)?, logit: logits[*id as usize] - mean });
    Ok([
        order.iter().take(LISTED).map(push).collect::<Result<_>>()?,
        order.iter().rev().take(LISTED).map(push).collect::<Result<_>>()?,
    ])
}

/// The units of `layer` that added most, from the gate and what it was multiplied with, `[ffn]` each.
fn units(backend: &CpuBackend, config: &Config, layer: usize, (gate, up): (&[f32], &[f32])) -> Vec<Unit> {
    let ops = Plan::of_config(config).ops;
    let mut downs = ops.iter().filter_map(|op| match op {
        Op::Down { weight } => Some(backend.weight(*weight)),
        _ => None,
    });
    let Some(down) = downs.nth(layer) else { return Vec::new() };
    let ffn = config.intermediate_size;
    let mut squares = vec![0f32; ffn];
    let mut panel = Vec::new();
    for first in (0..config.hidden_size).step_by(PANEL) {
        panel.resize(PANEL.min(config.hidden_size - first) * ffn, 0.0);
        down.expand(first, &mut panel);
        for row in panel.chunks_exact(ffn) {
            squares.iter_mut().zip(row).for_each(|(s, w)| *s += w * w);
        }
    }
    let all = gate.iter().zip(up).zip(&squares).enumerate();
    let mut units: Vec<Unit> = all
        .map(|(unit, ((gate, up), square))| Unit {
            unit,
            gate: *gate,
            up: *up,
            added: (gate * up).abs() * square.sqrt(),
        })
        .collect();
    units.sort_unstable_by(|a, b| b.added.total_cmp(&a.added));
    units.truncate(LISTED);
    units
}

/// The search for rows like those of one token.
struct Search {
    layers: Vec<Like>,
    ffn: usize,
    row: Vec<f32>,
    compared: usize,
}

/// The best rows so far in one STEM layer.
struct Like {
    own: Vec<f32>,
    norm: f32,
    wanted: usize,
    // Cosine and token, best first.
    best: Vec<(f32, u32)>,
}

impl Search {
    /// For the rows `own` `[n_stem, ffn]`, several in layer `layer` and one in the others.
    fn new(own: &[f32], config: &Config, layer: usize) -> Self {
        let layers = own.chunks_exact(config.intermediate_size).zip(&config.stem_layers);
        let layers = layers.map(|(own, stem)| Like {
            own: own.to_vec(),
            norm: dot(own, own).sqrt(),
            wanted: if *stem == layer { LISTED } else { 1 },
            best: Vec::new(),
        });
        let ffn = config.intermediate_size;
        Self { layers: layers.collect(), ffn, row: vec![0.0; ffn], compared: 0 }
    }

    /// Compares a record as it is stored; that of the token `id` itself is counted, not listed.
    fn visit(&mut self, record: u32, bytes: &[u8], id: u32) {
        self.compared += 1;
        if record == id {
            return;
        }
        for (like, bytes) in self.layers.iter_mut().zip(bytes.chunks_exact(row_bytes(self.ffn))) {
            dequantize_row(bytes, &mut self.row);
            like.take(record, &self.row);
        }
    }
}

impl Like {
    fn take(&mut self, record: u32, row: &[f32]) {
        let cosine = dot(&self.own, row) / (self.norm * dot(row, row).sqrt());
        let worst = self.best.last().map_or(f32::NEG_INFINITY, |(c, _)| *c);
        if !cosine.is_finite() || (self.best.len() == self.wanted && cosine <= worst) {
            return;
        }
        let place = self.best.partition_point(|(c, _)| *c >= cosine);
        self.best.insert(place, (cosine, record));
        self.best.truncate(self.wanted);
    }
}
