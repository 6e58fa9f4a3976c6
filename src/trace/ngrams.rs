//! The part of a card that an Engram layer has: the n-grams that end at a token, the rows that they hash to, and what
//! else hashes there.

use std::collections::BTreeMap;

use serde::Serialize;

use super::card::Push;
use super::gauge::EngramGauge;
use super::run::Text;
use crate::cpu::kernels::dot;
use crate::engram::Hasher;
use crate::engram::compress::form;
use crate::error::Result;
use crate::tables::layout::{Address, Layout};
use crate::text::Tokenizer;

/// Other n-grams that are listed of a row.
const LISTED: usize = 8;

/// What an Engram layer looked up for a token, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// The norm of the rows of all heads together, edits included.
    pub norm: f32,
    /// Whether an edit changed one of them.
    pub edited: bool,
    /// The n-grams that end at the token, the shortest first.
    pub ngrams: Vec<Ngram>,
    /// What the layer computed; none on a GPU.
    pub inside: Option<MemoryInside>,
}

/// What the memory of a layer did with a token.
#[derive(Debug, Clone, Serialize)]
pub struct MemoryInside {
    /// Its gauge.
    #[serde(flatten)]
    pub gauge: EngramGauge,
    /// Tokens whose logits it raised most, as in [`Inside`](super::card::Inside).
    pub up: Vec<Push>,
    /// Tokens whose logits it lowered most.
    pub down: Vec<Push>,
}

/// An n-gram of the text.
#[derive(Debug, Clone, Serialize)]
pub struct Ngram {
    /// Its tokens, in the order of the text.
    pub tokens: Vec<Member>,
    /// Other positions of the text where it ends, in compressed form: the rows there are the same.
    pub again: Vec<usize>,
    /// What each head looked up for it.
    pub heads: Vec<HeadRow>,
}

/// A token of an n-gram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// The token; none before the beginning of the text.
    pub id: Option<u32>,
    /// Its text.
    pub text: String,
    /// Its compressed id.
    pub compressed: u32,
    /// What the compressed id stands for.
    pub form: String,
}

/// The row of one head.
#[derive(Debug, Clone, Serialize)]
pub struct HeadRow {
    /// The hash: the row's number in the head's table.
    pub hash: u32,
    /// Rows of the head's table, a prime.
    pub rows: u32,
    /// Where the record lies.
    pub record: Address,
    /// The row's norm, edits included.
    pub norm: f32,
    /// So many other n-grams of the text have the same row.
    pub others: usize,
    /// The first of them.
    pub collisions: Vec<Collision>,
}

/// Another n-gram with the same row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Collision {
    /// Where it ends first.
    pub position: usize,
    /// Its text.
    pub text: String,
}

/// The n-grams of `text` that end at `position`, as the `index`-th Engram layer looks them up; `own` `[width]` are the
/// rows that it got.
pub(super) fn ngrams(
    text: Text<'_>,
    (hasher, layout): (&Hasher, &Layout),
    position: usize,
    index: usize,
    own: &[f32],
) -> Result<Vec<Ngram>> {
    let engram = hasher.engram();
    let (all, heads) = (engram.layers.len() * engram.heads(), engram.heads());
    let records = hasher.records(&[], text.tokens)?;
    let hashes = hasher.hashes(&[], text.tokens)?;
    let of_layer =
        |values: &[u32], position: usize, head: usize| values[position * all + index * heads + head];
    let mut norms = own.chunks_exact(engram.head_width).map(|row| dot(row, row).sqrt());
    let mut first = 0;
    let mut ngrams = Vec::new();
    for (primes, order) in engram.layers[index].primes.iter().zip(2..) {
        let key = |position: usize| key(text.tokens, hasher, position, order);
        let own = key(position);
        let again = (0..text.tokens.len()).filter(|at| *at != position && key(*at) == own);
        let head = |(rows, head): (&u32, usize)| {
            let record = of_layer(&records, position, head);
            let mut others: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
            for at in 0..text.tokens.len() {
                if of_layer(&records, at, head) == record && key(at) != own {
                    others.entry(key(at)).or_insert(at);
                }
            }
            let count = others.len();
            let mut places: Vec<usize> = others.into_values().collect();
            places.sort_unstable();
            let collision = |at: usize| {
                let text = words(text.tokens, text.tokenizer, at, order)?;
                Ok(Collision { position: at, text })
            };
            Ok(HeadRow {
                hash: of_layer(&hashes, position, head),
                rows: *rows,
                record: layout.address(record)?,
                norm: norms.next().unwrap_or_default(),
                others: count,
                collisions: places.into_iter().take(LISTED).map(collision).collect::<Result<_>>()?,
            })
        };
        let tokens = (0..order).rev().map(|back| member(text, hasher, position.checked_sub(back)));
        ngrams.push(Ngram {
            tokens: tokens.collect::<Result<_>>()?,
            again: again.collect(),
            heads: primes.iter().zip(first..).map(head).collect::<Result<_>>()?,
        });
        first += primes.len();
    }
    Ok(ngrams)
}

/// The compressed ids of the last `order` tokens up to `position`, newest first.
fn key(tokens: &[u32], hasher: &Hasher, position: usize, order: usize) -> Vec<u32> {
    let id = |back: usize| position.checked_sub(back).and_then(|at| hasher.compressed(tokens[at]));
    (0..order).map(|back| id(back).unwrap_or(hasher.engram().pad)).collect()
}

/// The text of the last `order` tokens up to `position`.
fn words(tokens: &[u32], tokenizer: &Tokenizer, position: usize, order: usize) -> Result<String> {
    tokens[(position + 1).saturating_sub(order)..=position].iter().map(|id| tokenizer.piece(*id)).collect()
}

/// The token at `at`; `None` stands before the beginning.
fn member(text: Text<'_>, hasher: &Hasher, at: Option<usize>) -> Result<Member> {
    let Some(id) = at.map(|at| text.tokens[at]) else {
        let compressed = hasher.engram().pad;
        return Ok(Member { id: None, text: String::new(), compressed, form: String::new() });
    };
    Ok(Member {
        id: Some(id),
        text: text.tokenizer.piece(id)?,
        compressed: hasher.compressed(id).unwrap_or(hasher.engram().pad),
        form: form(text.tokenizer, id)?,
    })
}
