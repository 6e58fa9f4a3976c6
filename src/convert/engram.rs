//! What a recipe says of Engram layers, and their table in the bundle.

use serde::Deserialize;

use super::Base;
use super::build::{Changes, Progress};
use super::recipe::{Matrix, sha256};
use crate::bundle::Table;
use crate::bundle::quant::quantize_row;
use crate::bundle::writer::{TableSpec, Writer};
use crate::engram::Engram;
use crate::engram::compress::Compressed;
use crate::error::Result;
use crate::text::Tokenizer;

/// `engram` in `recipe.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Head {
    /// The layers, with the multipliers and primes that they were trained with.
    pub config: Engram,
    /// SHA-256, in hex, of the compressed id of each token as a little-endian u32: with other ids, each n-gram would
    /// find another's rows.
    pub ids_sha256: String,
}

impl Head {
    /// The compressed ids of the base's tokens.
    pub fn compressed(&self, base: &Base) -> Result<Compressed, String> {
        let tokenizer = Tokenizer::new(base.tokenizer_json(), None).map_err(|e| e.to_string())?;
        let compressed = Compressed::new(&tokenizer, base.config().vocab_size).map_err(|e| e.to_string())?;
        let found = sha256(&compressed.to_bytes());
        if found != self.ids_sha256 || compressed.count != self.config.compressed_vocab {
            return Err(format!(
                "was trained with {} compressed ids of SHA-256 {}, these tokens give {} of {found}",
                self.config.compressed_vocab, self.ids_sha256, compressed.count
            ));
        }
        Ok(compressed)
    }
}

/// The rows of each head in turn.
#[derive(Debug)]
pub struct Rows {
    pub compressed: Compressed,
    // Where each head's records begin.
    firsts: Vec<usize>,
    heads: Vec<Matrix>,
}

impl Rows {
    /// Rows of the heads `[prime, head_width]`, by layer, order and head.
    pub fn new(compressed: Compressed, heads: Vec<Matrix>) -> Self {
        let firsts = heads.iter().scan(0, |next, head| {
            *next += head.rows;
            Some(*next - head.rows)
        });
        Self { firsts: firsts.collect(), heads, compressed }
    }

    /// The row of `record`, which is in the table.
    pub fn row(&self, record: u32) -> &[f32] {
        let head = self.firsts.partition_point(|first| *first <= record as usize) - 1;
        let Matrix { width, values, .. } = &self.heads[head];
        &values[(record as usize - self.firsts[head]) * width..][..*width]
    }
}

/// Name and shape of each head's rows in a recipe, by layer, order and head.
pub fn tensors(engram: &Engram) -> impl Iterator<Item = (String, [usize; 2])> {
    engram.layers.iter().flat_map(|layer| {
        let primes = layer.primes.iter().flatten().enumerate();
        primes.map(|(head, prime)| {
            (format!("blk.{}.engram_rows.{head}", layer.layer), [*prime as usize, engram.head_width])
        })
    })
}

/// Writes the table.
pub fn table(
    writer: &Writer,
    changes: &dyn Changes,
    engram: &Engram,
    progress: &dyn Progress,
) -> Result<Table> {
    let order: Vec<u32> = (0..engram.records() as u32).collect();
    writer.table(&TableSpec::engram(engram, &order), |record, out| {
        if record.is_multiple_of(4096) {
            progress.update("N-grams", u64::from(record), order.len() as u64);
        }
        quantize_row(changes.engram_row(record), out);
        Ok(())
    })
}
