//! Whole sessions with Engram layers: however a text comes to the model, its n-grams are the same.

use pollster::block_on;

use super::config::tests::tiny_engram;
use super::vectors::Vectors;
use super::{Engram, EngramLayer, Hasher, WithEngram};
use crate::backend::{Backend, Output, Penalty, Step, Want};
use crate::bundle::quant::Dtype;
use crate::bundle::{Tensor, random};
use crate::config::Config;
use crate::config::tests::tiny;
use crate::cpu::{CpuBackend, Probe, View};
use crate::edits::{Edited, Instead, KnockOut, Knocked, Method, Overlay, file::tests::swap};
use crate::plan::Op;
use crate::sampler::Sampling;
use crate::session::Session;
use crate::tables::{MemoryRows, RowSource};

type Rows = WithEngram<MemoryRows, MemoryRows>;

pub(crate) fn config() -> Config {
    Config { engram: Some(tiny_engram()), ..tiny() }
}

pub(crate) fn rows() -> Rows {
    let (config, engram) = (config(), tiny_engram());
    let stem = (0..300).flat_map(|t| random::rows(&tiny(), t, 5)).collect();
    let heads = (0..engram.records() as u32).flat_map(|r| random::engram_row(&engram, r, 5)).collect();
    let hasher = Hasher::new(&engram, (0..300).map(|t| t % 290).collect()).unwrap();
    WithEngram::new(
        MemoryRows { rows: stem, row_width: config.stem_width() },
        config.stem_width(),
        Some((hasher, MemoryRows { rows: heads, row_width: engram.head_width })),
    )
}

fn session<R: RowSource>(rows: R, chunk: usize) -> Session<CpuBackend, R> {
    let config = config();
    Session::new(loaded(&config, |tensors| CpuBackend::new(tensors, &config, 100)), rows, config, chunk)
}

/// A backend with the weights of the random model: those that two models share are the same.
fn loaded<B: Backend>(config: &Config, new: impl Fn(&[Tensor]) -> B) -> B {
    let core = random::core(config, 5, |_| Dtype::Q8);
    let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
    let mut backend = new(&tensors);
    for (id, (_, planes)) in core.iter().enumerate() {
        backend.write(id, 0, planes).unwrap();
    }
    backend
}

fn text() -> Vec<u32> {
    (0..23).map(|i| (i * i * 31 + 7) % 300).collect()
}

/// The logits of the last token of `tokens`, which a session reads on top of what it has.
fn read<B: Backend, R: RowSource>(session: &mut Session<B, R>, tokens: &[u32]) -> Vec<f32> {
    match block_on(session.step(tokens, Want::Logits)).unwrap() {
        Output::Logits(logits) => logits[logits.len() - 300..].to_vec(),
        other => panic!("{other:?}"),
    }
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    let spread = expected.iter().fold(0f32, |m, l| m.max(l.abs()));
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 1e-4 * spread, "{what}: {f} for {e}");
    }
}

/// The residual stream after the first Engram layer.
struct AfterEngram(Vec<f32>);

impl Probe for AfterEngram {
    fn after(&mut self, _: usize, op: &Op, view: View<'_>) {
        if matches!(op, Op::EngramConv { .. }) {
            self.0.extend_from_slice(view.x);
        }
    }
}

#[test]
fn a_layer_computes_what_the_definition_says() {
    let v = Vectors::load().forward;
    // The order is that of the vectors' dilation, with one head of 16 values each for pairs and triples.
    let layer = EngramLayer { layer: 0, multipliers: vec![1; v.dilation], primes: vec![vec![2]; 2] };
    let engram = Engram { layers: vec![layer], head_width: 16, kernel: v.conv.len() / 32, ..tiny_engram() };
    let config = Config { hidden_size: 32, n_layers: 1, engram: Some(engram), ..tiny() };
    let tensors: Vec<_> = random::core(&config, 5, |_| Dtype::F32).into_iter().map(|(t, _)| t).collect();
    let mut backend = CpuBackend::new(&tensors, &config, 50);
    let mut write = |name: &str, values: &[f32]| {
        let id = tensors.iter().position(|t| t.name == name).unwrap();
        backend.write(id, 0, bytemuck::cast_slice(values)).unwrap();
    };
    // Token t's embedding is row t of x.
    write("token_embd", &v.x);
    for (name, values) in [
        ("key", &v.key),
        ("value", &v.value),
        ("query_norm", &v.query_norm),
        ("key_norm", &v.key_norm),
        ("conv_norm", &v.conv_norm),
        ("conv", &v.conv),
    ] {
        write(&format!("blk.0.engram_{name}"), values);
    }
    let tokens: Vec<u32> = (0..v.x.len() as u32 / 32).collect();
    let rows: Vec<f32> =
        v.e.chunks(32).flat_map(|e| [vec![0.0; config.stem_width()], e.to_vec()].concat()).collect();
    let mut found = AfterEngram(Vec::new());
    let width = config.row_width();
    for (first, end) in [(0, 5), (5, 6), (6, tokens.len())] {
        let (tokens, rows) = (&tokens[first..end], &rows[first * width..end * width]);
        let step = Step { tokens, position: first, rows, want: Want::Nothing };
        backend.forward_probed(step, &mut found).unwrap();
    }
    assert_eq!(found.0.len(), v.out.len());
    for (i, (f, e)) in found.0.iter().zip(&v.out).enumerate() {
        assert!(
            (f - e).abs() < 1e-5 * e.abs().max(1.0),
            "position {}, channel {}: {f} for {e}",
            i / 32,
            i % 32
        );
    }
}

#[test]
fn chunks_single_tokens_and_reuse_give_the_same() {
    let (text, mut whole) = (text(), session(rows(), 128));
    let expected = read(&mut whole, &text);
    for size in [1, 2, 5, 16] {
        let mut pieces = session(rows(), 128);
        let last = text.chunks(size).map(|chunk| read(&mut pieces, chunk)).last().unwrap();
        assert_close(&last, &expected, &format!("in pieces of {size}"));
    }
    // The end is taken back and another one read, then the first one again.
    for keep in [1, 2, 3, 11, 20] {
        whole.rewind(&text[..keep]);
        assert_eq!(whole.cached(), keep);
        let other: Vec<u32> = text[..keep].iter().copied().chain([4, 5, 6, 7]).collect();
        let found = read(&mut whole, &other[keep..]);
        assert_close(
            &found,
            &read(&mut session(rows(), 128), &other),
            &format!("another end from {keep} on"),
        );
        whole.rewind(&text);
        let common = whole.cached();
        assert_close(&read(&mut whole, &text[common..]), &expected, &format!("undone from {keep} on"));
    }
    // Another conversation, in which nothing of the old one counts.
    whole.reset();
    assert_close(&read(&mut whole, &text[9..]), &read(&mut session(rows(), 128), &text[9..]), "a new one");
}

#[test]
fn the_text_before_counts() {
    let mut found = Vec::new();
    // The same last token, 0 to 3 tokens after another one.
    for back in 0..4 {
        let mut tokens = vec![9; 4];
        tokens[3 - back] = 200;
        tokens.push(17);
        let records = Hasher::new(&tiny_engram(), (0..300).map(|t| t % 290).collect()).unwrap();
        found.push(records.records(&tokens[..4], &tokens[4..]).unwrap());
    }
    assert_ne!(found[0], found[1]);
    assert_ne!(found[1], found[2]);
    assert_eq!(found[2], found[3], "three tokens back no n-gram reaches");
}

#[test]
fn answers_do_not_depend_on_what_is_reused() {
    let sampling = Sampling { temperature: 1.0, max_tokens: 12, ..Sampling::default() };
    let run = |s: &mut Session<CpuBackend, Rows>, prompt: &[u32]| {
        block_on(s.generate(prompt, &sampling, &mut ())).unwrap()
    };
    let mut s = session(rows(), 4);
    let first = run(&mut s, &text()[..6]);
    assert_eq!((first.reused_tokens, first.tokens.len()), (0, 12));
    let longer = [&text()[..6], &first.tokens[..], &[20, 21]].concat();
    let second = run(&mut s, &longer);
    assert_eq!(second.reused_tokens, 17);
    assert_eq!(second.tokens, run(&mut session(rows(), 7), &longer).tokens);
    let again = run(&mut s, &text()[..6]);
    assert_eq!((again.reused_tokens, again.tokens), (5, first.tokens));
}

#[test]
fn edits_of_stem_rows_leave_n_grams_alone() {
    let tokens = [5, 17, 5, 9];
    let gather = |rows: &Edited<Rows>| {
        let mut out = Vec::new();
        block_on(rows.gather_at(&[1], &tokens, &mut out)).unwrap();
        out
    };
    let mut edited = Edited::new(rows());
    let plain = gather(&edited);
    edited.set_overlay(Overlay::new(&[swap(&[5], &[200], Method::OneToOne)], &config()).unwrap());
    let (found, width, stem) = (gather(&edited), config().row_width(), config().stem_width());
    let mut target = Vec::new();
    block_on(rows().gather_alone(&[200], &mut target)).unwrap();
    for (i, token) in tokens.iter().enumerate() {
        let (f, p) = (&found[i * width..][..width], &plain[i * width..][..width]);
        assert_eq!(f[stem..], p[stem..]);
        assert_eq!(&f[..stem], if *token == 5 { &target[..stem] } else { &p[..stem] });
    }
    let candidates = block_on(session(edited, 128).step(&tokens, Want::Candidates(Penalty::default())));
    assert!(matches!(candidates.unwrap(), Output::Candidates(c) if c.log_sum_exp.is_finite()));
}

/// With its Engram layers off a model gives, bit by bit, the logits of the same model without any.
pub(crate) fn off_is_the_model_without<B: Backend>(new: impl Fn(&Config, &[Tensor]) -> B) {
    let with = config();
    let backend = loaded(&with, |tensors| new(&with, tensors));
    let mut whole = Session::new(backend, Knocked::new(rows()), with.clone(), 128);
    let plain = block_on(whole.step(&text()[..9], Want::Logits)).unwrap();
    let off = block_on(KnockOut::new(Instead::EngramOff, None, &with, &rows())).unwrap();
    whole.rows_mut().set(Some(off));
    let backend = loaded(&tiny(), |tensors| new(&tiny(), tensors));
    let stem = (0..300).flat_map(|t| random::rows(&tiny(), t, 5)).collect();
    let stem = MemoryRows { rows: stem, row_width: tiny().row_width() };
    let mut without = Session::new(backend, stem, tiny(), 128);
    for (first, end) in [(0, 9), (9, 10), (10, 11), (11, 23)] {
        let tokens = &text()[first..end];
        let [Output::Logits(found), Output::Logits(expected)] =
            [block_on(whole.step(tokens, Want::Logits)), block_on(without.step(tokens, Want::Logits))]
                .map(Result::unwrap)
        else {
            panic!("logits were wanted")
        };
        assert!(found.iter().zip(&expected).all(|(f, e)| f.to_bits() == e.to_bits()), "from {first} on");
        assert_ne!(plain, Output::Logits(found));
    }
    // On again it is as before.
    whole.rows_mut().set(None);
    assert_eq!(block_on(whole.step(&text()[..9], Want::Logits)).unwrap(), plain);
}

#[test]
fn off_it_is_the_model_without() {
    off_is_the_model_without(|config, tensors| CpuBackend::new(tensors, config, 100));
}
