//! The real checkpoint against an independent implementation: token ids, logits and greedy text.
//!
//! `data/dense_logits.json` holds what transformers gives for the same weights.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use xylem::backend::{Backend, Output, Step, Want};
use xylem::convert::Base;
use xylem::cpu::CpuBackend;
use xylem::engram::Hasher;
use xylem::engram::compress::Compressed;
use xylem::engram::draw::Sizes;
use xylem::gpu::{GpuBackend, GpuOptions};
use xylem::text::Tokenizer;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    token_ids: Vec<u32>,
    last_top20_ids: Vec<usize>,
    last_top20_logits: Vec<f32>,
    mean_nll: f64,
    greedy24: Vec<u32>,
    greedy24_text: String,
}

fn reference() -> Vec<Case> {
    let json = include_bytes!("data/dense_logits.json");
    serde_json::from_slice::<Reference>(json).unwrap().cases
}

fn base() -> Base {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/base/SmolLM2-135M-Instruct.Q4_1.gguf");
    Base::open(path).expect("the base weights; `./x build` brings them")
}

#[test]
fn token_ids_are_the_reference_s() {
    let base = base();
    let tokenizer = Tokenizer::new(base.tokenizer_json(), base.config().bos_token).unwrap();
    assert_eq!(tokenizer.vocab_size(), base.config().vocab_size);
    for case in reference() {
        assert_eq!(tokenizer.encode(&case.prompt).unwrap(), case.token_ids, "{:?}", case.prompt);
        let text = tokenizer.decode(&case.greedy24).unwrap();
        assert_eq!(text.trim_end(), case.greedy24_text.trim_end());
    }
}

/// `engram/vectors.json` holds what `engram/vectors.py` makes of the same vocabulary.
#[test]
fn compressed_ids_and_hashes_are_the_definition_s() {
    let vectors: Value = serde_json::from_str(include_str!("engram/vectors.json")).unwrap();
    let (vocabulary, case) = (&vectors["vocabulary"], &vectors["vocabulary"]["case"]);
    let base = base();
    let tokenizer = Tokenizer::new(base.tokenizer_json(), None).unwrap();
    let compressed = Compressed::new(&tokenizer, base.config().vocab_size).unwrap();
    assert_eq!(compressed.count, vocabulary["count"]);
    let hash: String = Sha256::digest(compressed.to_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hash, vocabulary["sha256"]);
    let sizes =
        Sizes { layers: vec![2, 15], tables: vec![98_561; 2], heads: 8, head_width: 32, kernel: 4, seed: 0 };
    let engram = sizes.draw(compressed.count, compressed.ids[2]).unwrap();
    assert_eq!(serde_json::to_value(&engram.layers).unwrap(), case["drawn"]);
    let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
    let hashes: Vec<Vec<Vec<u32>>> = serde_json::from_value(case["hashes"].clone()).unwrap();
    let hasher = Hasher::new(&engram, compressed.ids).unwrap();
    let firsts = engram.primes().scan(0, |next, prime| {
        *next += prime;
        Some(*next - prime)
    });
    let firsts: Vec<u32> = firsts.collect();
    let records = hasher.records(&[], &tokens).unwrap();
    for (t, records) in records.chunks(firsts.len()).enumerate() {
        let found: Vec<u32> = records.iter().zip(&firsts).map(|(r, first)| r - first).collect();
        assert_eq!(found, [hashes[0][t].as_slice(), hashes[1][t].as_slice()].concat(), "{t}");
    }
}

fn logits(backend: &mut impl Backend, tokens: &[u32], position: usize) -> Vec<f32> {
    let step = Step { tokens, position, rows: &[], want: Want::Logits };
    match pollster::block_on(backend.forward(step)).unwrap() {
        Output::Logits(logits) => logits,
        other => panic!("{other:?}"),
    }
}

/// Logits and loss of every case, and the greedy text of the first `greedy` ones.
fn agrees_with_the_reference(backend: &mut impl Backend, vocab: usize, greedy: usize) {
    for (at, case) in reference().into_iter().enumerate() {
        let all = logits(backend, &case.token_ids, 0);
        let last = &all[all.len() - vocab..];
        for (id, expected) in case.last_top20_ids.iter().zip(&case.last_top20_logits) {
            let found = last[*id];
            assert!(
                (found - expected).abs() < 2e-2,
                "{:?}: token {id}: {found}, not {expected}",
                case.prompt
            );
        }
        let nll = |(i, id): (usize, &u32)| {
            let row = &all[i * vocab..][..vocab];
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|l| f64::from(l - max).exp()).sum();
            sum.ln() - f64::from(row[*id as usize] - max)
        };
        let targets = &case.token_ids[1..];
        let mean = targets.iter().enumerate().map(nll).sum::<f64>() / targets.len() as f64;
        assert!((mean - case.mean_nll).abs() < 5e-3, "{:?}: NLL {mean}, not {}", case.prompt, case.mean_nll);
        if at >= greedy {
            continue;
        }
        let argmax = |row: &[f32]| (0..vocab).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32;
        let mut next = argmax(last);
        for (i, expected) in case.greedy24.iter().enumerate() {
            assert_eq!(next, *expected, "{:?}: greedy token {i}", case.prompt);
            next = argmax(&logits(backend, &[next], case.token_ids.len() + i));
        }
    }
}

#[test]
fn the_cpu_gives_the_reference_s_logits() {
    let base = base();
    let mut backend = CpuBackend::new(&base.tensors(), base.config(), 256);
    base.load(&mut backend).unwrap();
    agrees_with_the_reference(&mut backend, base.config().vocab_size, usize::MAX);
}

#[test]
fn the_gpu_gives_the_reference_s_logits() {
    let base = base();
    let tensors = base.tensors();
    let made = GpuBackend::new(&tensors, base.config(), GpuOptions::new(256));
    let mut backend = pollster::block_on(made).expect("an adapter; a software one will do");
    base.load(&mut backend).unwrap();
    // Greedy text takes long on a software adapter.
    agrees_with_the_reference(&mut backend, base.config().vocab_size, 2);
}
