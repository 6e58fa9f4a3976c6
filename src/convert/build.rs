//! Building a bundle: the base's tensors, changed or not, and the table of rows.

use std::path::Path;

use rayon::prelude::*;

use super::store::{Precision, store, stored};
use super::{Base, engram};
use crate::bundle::Manifest;
use crate::bundle::manifest::{Source, expected_tensors};
use crate::bundle::quant::{Dtype, quantize_row, row_bytes};
use crate::bundle::writer::{TableSpec, Writer};
use crate::config::Config;
use crate::engram::compress::Compressed;
use crate::error::Result;

/// Rows of so many tokens are computed at once.
const BATCH: usize = 256;

/// What a conversion changes of its base.
pub trait Changes: Sync {
    /// The base's sizes, with the STEM layers.
    fn config(&self) -> &Config;

    /// How the rows were made, for the manifest.
    fn describe(&self) -> String;

    /// The new values of the bundle's tensor `name`, or `None` if it stays as it is.
    ///
    /// # Errors
    /// What reading the base gives.
    fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>>;

    /// The rows of `tokens` into `out` `[n, n_stem, ffn]`.
    ///
    /// # Errors
    /// What reading the base gives.
    fn rows(&self, tokens: &[u32], out: &mut [f32]) -> Result<()>;

    /// The compressed id of each token, if there are Engram layers.
    fn compressed(&self) -> Option<&Compressed> {
        None
    }

    /// The row of a record of the Engram table, `[head_width]`.
    fn engram_row(&self, _record: u32) -> &[f32] {
        &[]
    }

    /// Tokens that are used often: their records come first in the table, in this order.
    fn hot(&self) -> &[u32];

    /// The type that the bundle's matrix `name` is stored in where it is changed, or `None` for the usual one.
    fn storage(&self, _name: &str) -> Option<Dtype> {
        None
    }
}

/// Changes nothing: the dense model.
#[derive(Debug)]
pub struct Dense(pub Config);

impl Changes for Dense {
    fn config(&self) -> &Config {
        &self.0
    }

    fn describe(&self) -> String {
        "none".into()
    }

    fn tensor(&self, _name: &str) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }

    fn rows(&self, _tokens: &[u32], _out: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn hot(&self) -> &[u32] {
        &[]
    }
}

/// Hears how far the work is: the stage, what is done of it, and how much it is in all.
pub trait Progress: Sync {
    /// Called often.
    ///
    /// # Errors
    /// Any ends the work: [`Error::Stopped`](crate::Error::Stopped) where somebody asked for that.
    fn update(&self, stage: &'static str, done: u64, total: u64) -> Result<()>;
}

impl Progress for () {
    fn update(&self, _stage: &'static str, _done: u64, _total: u64) -> Result<()> {
        Ok(())
    }
}

/// Writes the bundle of `base` with `changes` to the folder `out`.
///
/// # Errors
/// What reading the base, writing the bundle or `progress` gives; `out` is then as it was.
pub fn write(
    base: &Base,
    changes: &dyn Changes,
    precision: Precision,
    name: &str,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Manifest> {
    let config = changes.config();
    config.validate()?;
    // A bundle with one that is no template could not be opened.
    base.check_chat_template()?;
    let writer = Writer::create(out)?;
    let tensors = expected_tensors(config);
    let count = tensors.len() as u64;
    let core = writer.core(tensors.into_iter().enumerate().map(|(i, (name, shape))| {
        progress.update("Core", i as u64, count)?;
        let (dtype, planes) = match changes.tensor(&name)? {
            Some(values) => store(&name, &values, config, precision, changes.storage(&name)),
            None => stored(base, &name, precision)?,
        };
        Ok((name, dtype, shape, planes))
    }))?;
    let mut tables = Vec::new();
    if !config.stem_layers.is_empty() {
        let order = order(changes.hot(), config.vocab_size);
        let spec = TableSpec::stem(config, &order);
        let record_bytes = spec.rows_per_record * row_bytes(spec.width);
        let mut batch = Vec::new();
        let mut next = 0;
        tables.push(writer.table(&spec, |_, out| {
            // Records are asked for in the order of their slots.
            if next % BATCH == 0 {
                progress.update("Table", next as u64, order.len() as u64)?;
                batch = records(changes, &order[next..order.len().min(next + BATCH)])?;
            }
            out.extend_from_slice(&batch[next % BATCH * record_bytes..][..record_bytes]);
            next += 1;
            Ok(())
        })?);
    }
    if let Some(engram) = &config.engram {
        tables.push(engram::table(&writer, changes, engram, progress)?);
    }
    let ids = changes.compressed().map(|ids| writer.file("engram-ids.bin", &ids.to_bytes()));
    let template = base.chat_template();
    let mut manifest = Manifest::new(
        name.to_owned(),
        Source { base: base.name(), licence: base.licence(), rows: changes.describe() },
        config.clone(),
        core,
        tables,
        writer.file("tokenizer.json", base.tokenizer_json())?,
        template.map(|t| writer.file("chat_template.jinja", t.as_bytes())).transpose()?,
    );
    manifest.engram_ids = ids.transpose()?;
    writer.finish(&manifest)?;
    Ok(manifest)
}

/// The stored records of `tokens`, computed on all threads.
fn records(changes: &dyn Changes, tokens: &[u32]) -> Result<Vec<u8>> {
    let config = changes.config();
    let share = tokens.len().div_ceil(rayon::current_num_threads()).max(1);
    let parts = tokens.par_chunks(share).map(|tokens| {
        let mut rows = vec![0f32; tokens.len() * config.stem_width()];
        changes.rows(tokens, &mut rows)?;
        let mut stored = Vec::new();
        for row in rows.chunks_exact(config.intermediate_size) {
            quantize_row(row, &mut stored);
        }
        Ok(stored)
    });
    Ok(parts.collect::<Result<Vec<_>>>()?.concat())
}

/// All tokens: the hot ones, then the others by id, since byte-pair encoding learns frequent tokens first.
fn order(hot: &[u32], vocab: usize) -> Vec<u32> {
    let mut taken = vec![false; vocab];
    let all = hot.iter().copied().chain(0..vocab as u32);
    all.filter(|t| !std::mem::replace(&mut taken[*t as usize], true)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_tokens_come_first_and_all_come_once() {
        assert_eq!(order(&[3, 1, 3], 5), [3, 1, 0, 2, 4]);
    }
}
