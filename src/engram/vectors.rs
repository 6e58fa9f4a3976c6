//! What `tests/engram/vectors.py` computed from the published definition.

use serde::Deserialize;

use super::config::{Engram, EngramLayer};
use super::draw::Sizes;
use crate::text::Tokenizer;
use crate::text::json::{Added, Split, Vocabulary, byte_level};

#[derive(Debug, Deserialize)]
pub struct Vectors {
    /// Tokens as a vocabulary has them, and whether each is a special one.
    pub tokens: Vec<(String, bool)>,
    pub ids: Vec<u32>,
    pub count: usize,
    pub generator: Vec<Numbers>,
    pub cases: Vec<Case>,
    pub forward: Forward,
}

/// One layer of hidden size 32: x and e `[n, 32]`, its weights, and what becomes of x.
#[derive(Debug, Deserialize)]
pub struct Forward {
    pub dilation: usize,
    pub x: Vec<f32>,
    pub e: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub query_norm: Vec<f32>,
    pub key_norm: Vec<f32>,
    pub conv_norm: Vec<f32>,
    pub conv: Vec<f32>,
    pub out: Vec<f32>,
}

/// `default_rng(seed).integers(0, end)`, several times.
#[derive(Debug, Deserialize)]
pub struct Numbers {
    pub seed: u64,
    pub end: u64,
    pub values: Vec<u64>,
}

#[derive(Debug, Deserialize)]
pub struct Case {
    pub layers: Vec<usize>,
    pub tables: Vec<u32>,
    pub heads: usize,
    pub seed: u64,
    pub pad_token: usize,
    pub drawn: Vec<EngramLayer>,
    pub tokens: Vec<u32>,
    /// `[n_layers, n, heads]`.
    pub hashes: Vec<Vec<Vec<u32>>>,
}

impl Vectors {
    pub fn load() -> Self {
        serde_json::from_str(include_str!("../../tests/engram/vectors.json")).unwrap()
    }

    /// Byte-level BPE with these tokens.
    pub fn tokenizer(&self) -> Tokenizer {
        let kind = |special: bool| if special { Added::Special } else { Added::No };
        let tokens: Vec<_> = self.tokens.iter().map(|(t, special)| (t.clone(), kind(*special))).collect();
        let vocabulary = Vocabulary { tokens: &tokens, merges: &[] };
        Tokenizer::new(&byte_level(&vocabulary, Split::Gpt2, false), None).unwrap()
    }
}

/// The layers of a case, drawn anew.
pub fn draw(case: &Case, count: usize, pad: u32) -> Engram {
    let sizes = Sizes {
        layers: case.layers.clone(),
        tables: case.tables.clone(),
        heads: case.heads,
        head_width: 32,
        kernel: 4,
        seed: case.seed,
    };
    sizes.draw(count, pad).unwrap()
}

/// The hashes of a case as records: `[n, n_layers, heads]`, each head's after those of the heads before it.
pub fn records(case: &Case) -> Vec<u32> {
    let mut all = Vec::new();
    for t in 0..case.tokens.len() {
        let mut first = 0;
        for (layer, hashes) in case.drawn.iter().zip(&case.hashes) {
            for (prime, hash) in layer.primes.iter().flatten().zip(&hashes[t]) {
                all.push(first + hash);
                first += prime;
            }
        }
    }
    all
}
