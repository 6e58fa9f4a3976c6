//! A trace of a random model against the same quantities taken another way.

use pollster::block_on;

use super::head::Head;
use super::parts::Parts;
use super::record::TracedModel;
use super::*;
use crate::backend::{Backend, Output, Want};
use crate::bundle::quant::Dtype;
use crate::bundle::random;
use crate::config::Config;
use crate::config::tests::tiny;
use crate::cpu::{CpuBackend, Probe, View};
use crate::device::Device;
use crate::edits::file::tests::swap;
use crate::edits::{Edited, Method, Overlay};
use crate::engram::config::tests::tiny_engram;
use crate::plan::Op;
use crate::sampler::Sampling;
use crate::session::Session;
use crate::tables::MemoryRows;
use crate::text::tokenizer::tests::byte_tokenizer;

type Small = Session<Device, Edited<MemoryRows>>;

const TOKENS: [u32; 11] = [7, 38, 131, 7, 250, 90, 91, 92, 7, 38, 2];

fn config() -> Config {
    Config { stem_layers: vec![0, 2], ..tiny() }
}

fn with_engram() -> Config {
    Config { engram: Some(tiny_engram()), ..config() }
}

fn session() -> Small {
    session_of(config())
}

fn session_of(config: Config) -> Small {
    session_with_room(config, 100)
}

fn session_with_room(config: Config, positions: usize) -> Small {
    let core = random::core(&config, 5, |_| Dtype::Q8);
    let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
    let mut backend = CpuBackend::new(&tensors, &config, positions);
    for (id, (_, planes)) in core.iter().enumerate() {
        backend.write(id, 0, planes).unwrap();
    }
    let rows = (0..config.vocab_size as u32).flat_map(|t| random::rows(&config, t, 5)).collect();
    let rows = Edited::new(MemoryRows { rows, row_width: config.row_width() });
    Session::new(Device::Cpu(Box::new(backend)), rows, config, 4)
}

fn traced(session: &mut Small, chunk: usize) -> Vec<TracedToken> {
    let tokenizer = byte_tokenizer();
    let text = Text { tokens: &TOKENS, tokenizer: &tokenizer, layout: None, engram: None };
    let mut all = Vec::new();
    let each = async |position: usize, records: Vec<TracedToken>| {
        assert_eq!(position, all.len());
        all.extend(records);
        true
    };
    block_on(trace(session, text, chunk, each)).unwrap();
    all
}

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt() as f32
}

/// The stream after each of the operations that change it, `[1 + 2 n_layers][n, hidden]`.
#[derive(Default)]
struct Streams(Vec<Vec<f32>>);

impl Probe for Streams {
    fn after(&mut self, _: usize, op: &Op, view: View<'_>) {
        if matches!(op, Op::Embed { .. } | Op::AttnOutput { .. } | Op::Down { .. }) {
            self.0.push(view.x.to_vec());
        }
    }
}

#[test]
fn attributions_and_the_mean_make_the_logit() {
    for (config, chunk) in
        [(config(), 1), (config(), 4), (config(), 64), (with_engram(), 1), (with_engram(), 64)]
    {
        let mut plain = session_of(config.clone());
        let Output::Logits(logits) = block_on(plain.step(&TOKENS, Want::Logits)).unwrap() else { panic!() };
        let all = traced(&mut session_of(config.clone()), chunk);
        assert_eq!(all.iter().map(|t| t.id).collect::<Vec<_>>(), TOKENS);
        for (i, token) in all.iter().enumerate() {
            let logits = &logits[i * 300..][..300];
            let next = &token.next;
            let spread = logits.iter().fold(0f32, |m, l| m.max(l.abs()));
            assert!((next.logit - logits[next.id as usize]).abs() < 1e-3 * spread);
            match TOKENS.get(i + 1) {
                Some(id) => assert_eq!(next.id, *id),
                None => assert_eq!(next.id, next.top[0].id),
            }
            let mean = logits.iter().sum::<f32>() / 300.0;
            assert!((next.mean_logit - mean).abs() < 1e-3 * spread, "{} {mean}", next.mean_logit);
            assert_eq!(next.engram.len(), config.engram.as_ref().map_or(0, |engram| engram.layers.len()));
            let layers = next.attention.iter().chain(&next.ffn).chain(&next.engram);
            let parts = next.embedding + layers.sum::<f32>();
            let whole = next.logit - next.mean_logit;
            assert!((parts - whole).abs() < 1e-3 * spread, "{parts} for {whole}");
            // The parts are no trifles that would sum to anything.
            assert!(next.attention.iter().chain(&next.ffn).any(|a| a.abs() > 0.05 * spread));
            assert!(next.engram.is_empty() || next.engram.iter().any(|a| a.abs() > 0.01 * spread));
            let sum: f32 = logits.iter().map(|l| l.exp()).sum();
            assert!((next.probability - next.logit.exp() / sum).abs() < 1e-4);
            assert!(next.top.windows(2).all(|w| w[0].probability >= w[1].probability));
        }
    }
}

#[test]
fn a_contribution_is_the_difference_of_streams() {
    let mut streams = Streams::default();
    block_on(session().probe(0, &TOKENS, Want::Nothing, &mut streams)).unwrap();
    let (mut other, mut parts) = (session(), Parts::new(&config(), 1));
    block_on(other.probe(0, &TOKENS, Want::Nothing, &mut parts)).unwrap();
    let all = traced(&mut session(), 64);
    for (i, token) in all.iter().enumerate() {
        let at = |stream: &Vec<f32>| stream[i * 96..][..96].to_vec();
        for layer in 0..3 {
            let (before, after) = (at(&streams.0[1 + 2 * layer]), at(&streams.0[2 + 2 * layer]));
            let difference: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            let expected = norm(&difference) / norm(&before);
            assert!((token.contribution[layer] - expected).abs() < 1e-4 * expected);
            assert!(difference.iter().zip(parts.ffn(i, layer)).all(|(a, b)| (a - b).abs() < 1e-4));
        }
        assert_eq!(parts.of(i).count(), 7);
        let sum = parts
            .of(i)
            .fold(vec![0.0; 96], |sum: Vec<f32>, part| sum.iter().zip(part).map(|(s, p)| s + p).collect());
        assert!(sum.iter().zip(parts.stream(i)).all(|(a, b)| (a - b).abs() < 1e-4));
        // Of a dense layer the units' factors are the projection's, not a row's.
        let (gate, up) = parts.units(i);
        assert!(gate.iter().chain(up).all(|v| v.is_finite()) && norm(up) > 0.0);
    }
}

/// The stream around the memory of each Engram layer, `[n_engram][before and after][n, hidden]`.
#[derive(Default)]
struct AroundMemory(Vec<[Vec<f32>; 2]>);

impl Probe for AroundMemory {
    fn after(&mut self, _: usize, op: &Op, view: View<'_>) {
        match op {
            Op::EngramProject { .. } => self.0.push([view.x.to_vec(), Vec::new()]),
            Op::EngramConv { index, .. } => self.0[*index][1] = view.x.to_vec(),
            _ => {}
        }
    }
}

#[test]
fn the_memory_is_measured_in_a_trace_and_live() {
    let mut streams = AroundMemory::default();
    block_on(session_of(with_engram()).probe(0, &TOKENS, Want::Nothing, &mut streams)).unwrap();
    let all = traced(&mut session_of(with_engram()), 4);
    let mut live = session_of(with_engram());
    live.backend_mut().measure(true);
    let mut gauges = Vec::new();
    for tokens in TOKENS.chunks(3) {
        block_on(live.step(tokens, Want::Nothing)).unwrap();
        gauges.extend_from_slice(live.report().engram_gauges);
    }
    assert_eq!(gauges.len(), TOKENS.len() * 2);
    let (stem, width) = (with_engram().stem_width(), tiny_engram().width());
    for (i, token) in all.iter().enumerate() {
        assert_eq!(token.engram.len(), 2);
        let rows = random::rows(&with_engram(), token.id, 5);
        for (layer, memory) in token.engram.iter().enumerate() {
            let [before, after] = streams.0[layer].each_ref().map(|stream| &stream[i * 96..][..96]);
            let difference: Vec<f32> = after.iter().zip(before).map(|(a, b)| a - b).collect();
            let expected = norm(&difference) / norm(before);
            assert!((memory.contribution - expected).abs() < 1e-3 * expected);
            assert!(memory.gate > 0.0 && memory.gate < 1.0);
            let expected = norm(&rows[stem + layer * width..][..width]);
            assert!((memory.row_norm - expected).abs() < 1e-3);
            let live = gauges[i * 2 + layer];
            assert!((live.gate - memory.gate).abs() < 1e-4);
            assert!((live.contribution - memory.contribution).abs() < 1e-3 * expected);
        }
    }
    let gates: Vec<f32> = all.iter().flat_map(|t| &t.engram).map(|e| e.gate).collect();
    assert!(gates.iter().any(|g| (g - gates[0]).abs() > 0.01), "they depend on the text");
}

#[test]
fn gauges_are_those_of_the_trace_and_off_unless_asked_for() {
    let all = traced(&mut session(), 64);
    let mut live = session();
    block_on(live.step(&TOKENS[..3], Want::Nothing)).unwrap();
    assert!(live.report().gauges.is_empty());
    live.backend_mut().measure(true);
    let mut position = 3;
    for tokens in TOKENS[3..].chunks(3) {
        block_on(live.step(tokens, Want::Nothing)).unwrap();
        let report = live.report();
        assert_eq!((report.position, report.tokens), (position, tokens));
        for (gauges, token) in report.gauges.chunks_exact(3).zip(&all[position..]) {
            for (layer, gauge) in gauges.iter().enumerate() {
                assert!((gauge.contribution - token.contribution[layer]).abs() < 1e-4);
                assert!((gauge.gate_open - token.gate_open[layer]).abs() < 1e-4);
                assert!(gauge.gate_open > 1.0 / 160.0 && gauge.gate_open < 1.0);
            }
        }
        position += tokens.len();
    }
    live.backend_mut().measure(false);
    block_on(live.step(&[1], Want::Nothing)).unwrap();
    assert!(live.report().gauges.is_empty());
}

#[test]
fn a_look_back_leaves_the_cache_as_it_was() {
    let prompt = &TOKENS[..6];
    let greedy = Sampling::greedy(12);
    let expected = block_on(session().generate(prompt, &greedy, &mut ())).unwrap().tokens;
    let longer = [prompt, &expected].concat();
    let again = block_on(session().generate(&longer, &greedy, &mut ())).unwrap().tokens;

    let mut looked = session();
    block_on(looked.generate(prompt, &greedy, &mut ())).unwrap();
    let cached = looked.cached();
    let tokenizer = byte_tokenizer();
    let text = Text { tokens: &longer, tokenizer: &tokenizer, layout: None, engram: None };
    let card = block_on(card::card(&mut looked, None::<&NoTables>, text, (3, 2), false)).unwrap();
    assert_eq!((card.id, card.stem, card.rows.len(), card.nearest.is_none()), (7, true, 2, true));
    assert_eq!(looked.cached(), cached);
    let answer = block_on(looked.generate(&longer, &greedy, &mut ())).unwrap();
    assert_eq!((answer.reused_tokens, answer.tokens), (cached, again));

    // Other tokens at the same place are not taken for these.
    block_on(looked.probe(2, &[99], Want::Nothing, &mut Streams::default())).unwrap();
    assert_eq!(looked.cached(), 3);
    assert!(block_on(looked.probe(5, &[99], Want::Nothing, &mut Streams::default())).is_err());
}

type NoTables = crate::tables::Tables<crate::tables::FileTransport>;

#[test]
fn a_text_that_filled_the_context_is_traced_as_far_as_it_was_read() {
    let whole = traced(&mut session(), 4);
    for chunk in [1, 4, 10, 16] {
        let read = traced(&mut session_with_room(config(), TOKENS.len() - 1), chunk);
        assert_eq!(read.len(), TOKENS.len() - 1);
        // The token after the last one is known all the same.
        assert_eq!(read.last().unwrap().next.id, TOKENS[TOKENS.len() - 1]);
        assert_eq!(read[..8], whole[..8], "{chunk}");
    }
    let tokenizer = byte_tokenizer();
    let text = Text { tokens: &TOKENS, tokenizer: &tokenizer, layout: None, engram: None };
    let mut session = session_with_room(config(), TOKENS.len() - 1);
    let tables = None::<&NoTables>;
    let last = block_on(card::card(&mut session, tables, text, (TOKENS.len() - 1, 0), false));
    assert!(last.unwrap_err().to_string().contains("was full"));
}

#[test]
fn a_card_agrees_with_the_trace() {
    let (mut session, tokenizer) = (session(), byte_tokenizer());
    let all = traced(&mut session, 64);
    let text = Text { tokens: &TOKENS, tokenizer: &tokenizer, layout: None, engram: None };
    for (position, layer) in [(0, 0), (4, 1), (10, 2)] {
        let mut one = |cell| block_on(card::card(&mut session, None::<&NoTables>, text, cell, false));
        let card = one((position, layer)).unwrap();
        let inside = card.inside.unwrap();
        assert!((inside.gauge.contribution - all[position].contribution[layer]).abs() < 1e-4);
        assert!((inside.gauge.gate_open - all[position].gate_open[layer]).abs() < 1e-4);
        let norms: Vec<f32> = card.rows.iter().map(|r| r.norm).collect();
        assert!(norms.iter().zip(&all[position].row_norm).all(|(a, b)| (a - b).abs() < 1e-3 * b));
        assert_eq!(inside.units.len(), 8);
        assert!(inside.units.windows(2).all(|w| w[0].added >= w[1].added));

        // What it raises most, by the attribution's own way.
        let mut parts = Parts::new(&config(), layer);
        block_on(session.probe(0, &TOKENS, Want::Nothing, &mut parts)).unwrap();
        let head = Head::new(session.backend().cpu().unwrap(), session.config());
        let scale = head.scale(parts.stream(position));
        for push in inside.up.iter().chain(&inside.down) {
            let direction = head.direction(push.id, &head.mean());
            let expected: f32 =
                direction.iter().zip(parts.ffn(position, layer)).map(|(d, p)| d * p * scale).sum();
            assert!((push.logit - expected).abs() < 1e-3, "{} for {expected}", push.logit);
        }
        assert!(inside.up[0].logit > 0.0 && inside.down[0].logit < 0.0);
        // A unit's column and value make what it added.
        let (gate, up) = parts.units(position);
        let unit = &inside.units[0];
        assert!((gate[unit.unit] - unit.gate).abs() < 1e-4 && (up[unit.unit] - unit.up).abs() < 1e-4);
    }
    let says = |session: &mut Small, cell| {
        block_on(card::card(session, None::<&NoTables>, text, cell, false)).unwrap_err().to_string()
    };
    assert!(says(&mut session, (11, 0)).contains("position 11"));
    assert!(says(&mut session, (0, 3)).contains("layer 3"));
}

#[test]
fn edited_rows_are_the_ones_measured() {
    let mut session = session();
    let edit = crate::edits::Edit { layers: Some(vec![2]), ..swap(&[38], &[40], Method::OneToOne) };
    let before = traced(&mut session, 64);
    session.rows_mut().set_overlay(Overlay::new(&[edit], &config()).unwrap());
    let after = traced(&mut session, 64);
    for (b, a) in before.iter().zip(&after) {
        assert_eq!(a.row_norm[0], b.row_norm[0]);
        assert_eq!(a.row_norm[1] != b.row_norm[1], a.id == 38);
    }
}

#[test]
fn the_json_form_is_checked() {
    let config = config();
    let model = TracedModel {
        name: "m".into(),
        hash: "h".into(),
        n_layers: config.n_layers,
        stem_layers: config.stem_layers.clone(),
        engram_layers: vec![],
        engram_order: None,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
    };
    let whole = Trace::new(model, "cpu".into(), 3, traced(&mut session(), 64));
    let json = serde_json::to_string(&whole).unwrap();
    assert_eq!(Trace::parse(json.as_bytes()).unwrap(), whole);
    let says = |from: &str, to: &str| {
        assert!(json.contains(from));
        Trace::parse(json.replacen(from, to, 1).as_bytes()).unwrap_err().to_string()
    };
    assert!(says("xylem-trace", "xylem-edits").contains("xylem-edits"));
    assert!(says("\"version\":1", "\"version\":9").contains('9'));
    assert!(says("\"prompt_tokens\":3", "\"prompt_tokens\":12").contains("12 of 11"));
    assert!(says("\"n_layers\":3", "\"n_layers\":4").contains("token 0"));
    assert!(says("\"name\"", "\"nom\"").contains("nom"));
}
