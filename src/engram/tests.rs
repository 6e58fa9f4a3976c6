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
use crate::edits::file::tests::swap;
use crate::edits::{Edit, Edited, Instead, KnockOut, Knocked, Method, NgramTarget, Overlay, Scope, Target};
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

/// The values of one token in `rows` `[n, row_width]` that the heads of an order have in an Engram layer.
fn heads_of(rows: &[f32], token: usize, layer: usize, order: usize) -> &[f32] {
    let (config, engram) = (config(), tiny_engram());
    let width = 2 * engram.head_width;
    let first =
        token * config.row_width() + config.stem_width() + layer * engram.width() + (order - 2) * width;
    &rows[first..first + width]
}

/// An edit of n-grams within `source`.
fn ngrams(source: &[u32], target: NgramTarget) -> Edit {
    Edit { target: Target::Ngrams(target), ..swap(source, &[1], Method::Average) }
}

fn gather_edited(edits: &[Edit], before: &[u32], tokens: &[u32]) -> Vec<f32> {
    let mut edited = Edited::new(rows());
    edited.set_overlay(Overlay::new(edits, &config()).unwrap());
    let mut out = Vec::new();
    block_on(edited.gather_at(before, tokens, &mut out)).unwrap();
    out
}

#[test]
fn an_n_gram_gets_the_rows_of_another() {
    let text = [5, 17, 9, 30, 5, 17, 200, 17];
    let edit = ngrams(&[5, 17], NgramTarget::Ids(vec![40, 41]));
    let plain = gather_edited(&[], &[], &text);
    let found = gather_edited(std::slice::from_ref(&edit), &[], &text);
    let target = gather_edited(&[], &[40], &[41]);
    // Positions 1 and 5 end the pair; its triples, and what follows a pair, keep their rows.
    for token in 0..text.len() {
        for layer in 0..2 {
            let expected = if token == 1 || token == 5 {
                heads_of(&target, 0, layer, 2)
            } else {
                heads_of(&plain, token, layer, 2)
            };
            assert_eq!(heads_of(&found, token, layer, 2), expected, "token {token}");
            assert_eq!(heads_of(&found, token, layer, 3), heads_of(&plain, token, layer, 3));
        }
        let (width, stem) = (config().row_width(), config().stem_width());
        assert_eq!(found[token * width..][..stem], plain[token * width..][..stem]);
    }
    // In any pieces.
    let width = config().row_width();
    for cut in 1..text.len() {
        let (before, after) = text.split_at(cut);
        assert_eq!(gather_edited(std::slice::from_ref(&edit), before, after), found[cut * width..], "{cut}");
    }
    // 295 has the compressed id of 5, and so the same rows: no other spelling escapes.
    let other = gather_edited(std::slice::from_ref(&edit), &[], &[295, 17]);
    assert_eq!(heads_of(&other, 1, 0, 2), heads_of(&target, 0, 0, 2));
    let overlay = Overlay::new(&[edit], &config()).unwrap();
    assert!(overlay.touches(&[1, 295, 17], &rows()) && !overlay.touches(&[17, 5, 1, 17], &rows()));
}

#[test]
fn longer_texts_pair_their_n_grams_from_the_end() {
    let plain = |before: &[u32], token| gather_edited(&[], before, &[token]);
    let edit = ngrams(&[5, 6, 7], NgramTarget::Ids(vec![40, 41, 42]));
    let found = gather_edited(&[edit], &[], &[5, 6, 7]);
    assert_eq!(heads_of(&found, 1, 0, 2), heads_of(&plain(&[40], 41), 0, 0, 2));
    assert_eq!(heads_of(&found, 2, 0, 2), heads_of(&plain(&[41], 42), 0, 0, 2));
    assert_eq!(heads_of(&found, 2, 1, 3), heads_of(&plain(&[40, 41], 42), 0, 1, 3));
    // Two tokens for three: the triple, and the first pair, have no counterpart.
    let edit = ngrams(&[5, 6, 7], NgramTarget::Ids(vec![41, 42]));
    let own = gather_edited(&[], &[], &[5, 6, 7]);
    let found = gather_edited(std::slice::from_ref(&edit), &[], &[5, 6, 7]);
    assert_eq!(heads_of(&found, 1, 0, 2), heads_of(&own, 1, 0, 2));
    assert_eq!(heads_of(&found, 2, 0, 3), heads_of(&own, 2, 0, 3));
    assert_eq!(heads_of(&found, 2, 0, 2), heads_of(&plain(&[41], 42), 0, 0, 2));
    assert_eq!(edit.ngrams(3).len(), 1);
}

#[test]
fn scopes_strength_layers_and_factors_of_n_grams() {
    let text = [6, 7, 1, 5, 6, 7, 5, 6, 7];
    let edit = |scope| Edit { scope, ..ngrams(&[5, 6, 7], NgramTarget::Factor(0.0)) };
    let off = |edit: Edit, token: usize, order: usize| {
        let found = gather_edited(&[edit], &[], &text);
        [0, 1].map(|layer| heads_of(&found, token, layer, order).iter().all(|v| *v == 0.0))
    };
    // The pair 6 7 stands by itself at 1, within the whole at 5 and 8.
    assert_eq!([1, 5, 8].map(|t| off(edit(Scope::Row), t, 2)), [[true; 2]; 3]);
    assert_eq!([1, 5, 8].map(|t| off(edit(Scope::Phrase), t, 2)), [[false; 2], [true; 2], [true; 2]]);
    let at = || edit(Scope::Position(vec![6]));
    assert_eq!([1, 5, 8].map(|t| off(at(), t, 2)), [[false; 2], [false; 2], [true; 2]]);
    assert_eq!(off(at(), 8, 3), [true; 2]);
    let one = Edit { layers: Some(vec![1]), ..edit(Scope::Row) };
    assert_eq!(off(one, 5, 3), [false, true]);

    let plain = gather_edited(&[], &[], &text);
    let scaled = |factor, strength| {
        let edit = Edit { strength, ..ngrams(&[5, 6], NgramTarget::Factor(factor)) };
        gather_edited(&[edit], &[], &text)
    };
    for (factor, strength, expected) in [(2.0, 1.0, 2.0), (0.0, 0.5, 0.5), (3.0, 0.5, 2.0)] {
        let found = scaled(factor, strength);
        for (f, p) in heads_of(&found, 4, 1, 2).iter().zip(heads_of(&plain, 4, 1, 2)) {
            assert!((f - expected * p).abs() < 1e-5, "{f} for {expected} times {p}");
        }
        assert_eq!(heads_of(&found, 4, 1, 3), heads_of(&plain, 4, 1, 3));
    }
    // One edit after the other; switched off there is not a bit of them.
    let half = || Edit { strength: 0.5, ..ngrams(&[5, 6], NgramTarget::Factor(0.0)) };
    let twice = gather_edited(&[half(), half()], &[], &text);
    for (f, p) in heads_of(&twice, 4, 0, 2).iter().zip(heads_of(&plain, 4, 0, 2)) {
        assert!((f - p / 4.0).abs() < 1e-6);
    }
    let none = [Edit { on: false, ..half() }, Edit { strength: 0.0, ..half() }];
    assert!(Overlay::new(&none, &config()).unwrap().is_empty());
    assert_eq!(gather_edited(&none, &[], &text), plain);
}

#[test]
fn edits_of_n_grams_change_answers_and_leave_no_trace() {
    let mut session = session(Edited::new(rows()), 128);
    let before = read(&mut session, &text());
    let pair = &text()[3..5];
    let edit = ngrams(pair, NgramTarget::Ids(vec![40, 41]));
    session.rows_mut().set_overlay(Overlay::new(&[edit], &config()).unwrap());
    assert_ne!(read(&mut session, &text()), before);
    session.rows_mut().set_overlay(Overlay::default());
    let after = read(&mut session, &text());
    assert!(after.iter().zip(&before).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn edits_of_n_grams_that_the_model_lacks_are_refused() {
    let good = || ngrams(&[5, 6], NgramTarget::Ids(vec![40, 41]));
    let says = |edit: Edit, config: &Config| Overlay::new(&[edit], config).unwrap_err().to_string();
    assert!(says(good(), &tiny()).contains("no Engram layers"));
    let third = Edit { layers: Some(vec![0, 2]), ..good() };
    assert!(says(third, &config()).contains("layer 2 has no n-grams"));
    assert!(says(ngrams(&[5, 300], NgramTarget::Factor(0.0)), &config()).contains("token 300"));
    assert!(says(ngrams(&[5, 6], NgramTarget::Ids(vec![1, 301])), &config()).contains("token 301"));
    assert!(
        says(Edit { on: false, ..ngrams(&[5], NgramTarget::Factor(0.0)) }, &config()).contains("1 source")
    );
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
