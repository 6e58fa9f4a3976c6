//! Engram layers in a conversion: untrained ones, what a recipe says of trained ones, and their table in the bundle.

use serde::{Deserialize, Serialize};

use super::Base;
use super::build::{Changes, Progress};
use super::recipe::{Matrix, sha256};
use crate::bundle::manifest::expected_tensors;
use crate::bundle::quant::{Dtype, quantize_row};
use crate::bundle::writer::{TableSpec, Writer};
use crate::bundle::{Table, random};
use crate::config::Config;
use crate::engram::Engram;
use crate::engram::compress::Compressed;
use crate::engram::draw::Sizes;
use crate::error::Result;
use crate::text::Tokenizer;

/// Adds layers that are not trained: their tables are zero, so that they change no logit, but all is there to train.
pub struct Untrained<'a> {
    inner: &'a dyn Changes,
    config: Config,
    compressed: Compressed,
    seed: u64,
    row: Vec<f32>,
}

impl<'a> Untrained<'a> {
    /// `inner` with layers of these sizes.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for sizes that don't fit the model, or what the tokenizer gives.
    pub fn new(inner: &'a dyn Changes, base: &Base, sizes: &Sizes) -> Result<Self> {
        let config = inner.config();
        let compressed = Compressed::new(&Tokenizer::new(base.tokenizer_json(), None)?, config.vocab_size)?;
        let pad = config.eos_tokens.first().map_or(0, |token| compressed.ids[*token as usize]);
        let engram = sizes.draw(compressed.count, pad)?;
        let config = Config { engram: Some(engram), ..config.clone() };
        Ok(Self { inner, config, compressed, seed: sizes.seed, row: vec![0.0; sizes.head_width] })
    }
}

impl Changes for Untrained<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn describe(&self) -> String {
        format!("{}, Engram untrained", self.inner.describe())
    }

    fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if !is_engram(name) {
            return self.inner.tensor(name);
        }
        let shape = expected_tensors(&self.config).into_iter().find(|(n, _)| n == name).map(|(_, s)| s);
        Ok(shape.map(|shape| match shape[..] {
            [_, _] => random::weights(name, &shape, self.seed),
            _ if name.ends_with("_norm") => vec![1.0; self.config.hidden_size],
            _ => vec![0.0; shape.iter().product()],
        }))
    }

    fn rows(&self, tokens: &[u32], out: &mut [f32]) -> Result<()> {
        self.inner.rows(tokens, out)
    }

    fn compressed(&self) -> Option<&Compressed> {
        Some(&self.compressed)
    }

    fn engram_row(&self, _record: u32) -> &[f32] {
        &self.row
    }

    fn hot(&self) -> &[u32] {
        self.inner.hot()
    }

    fn storage(&self, name: &str) -> Option<Dtype> {
        self.inner.storage(name)
    }
}

/// Whether the bundle's tensor `name` belongs to an Engram layer.
pub fn is_engram(name: &str) -> bool {
    name.contains(".engram_")
}

/// `engram` in `recipe.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
            progress.update("N-grams", u64::from(record), order.len() as u64)?;
        }
        quantize_row(changes.engram_row(record), out);
        Ok(())
    })
}
