//! Rows and down-projections from a text, without training: layer by layer, in closed form.
//!
//! Teacher (the dense base) and student (the same with STEM layers) run side by side over a calibration text. In
//! each STEM layer in turn:
//!
//! 1. **Rows.** The row of a token is the mean of the teacher's `W_u x` over the token's occurrences, for each FFN
//!    unit weighted with the square of its gate, so that it minimises the error of `gate ⊙ row` (see [`means`]).
//! 2. **Prior.** Most tokens never occur, and few occur often. Rows are shrunk toward what a linear map predicts
//!    from the token's embedding and from the FFN's input in a sweep, which runs every token of the vocabulary once,
//!    after one common token. The map is a ridge regression on the rows of the tokens that do occur.
//! 3. **Gate.** What a row can't say, since it depends on the context, the gate can in part: a few Gauss-Newton
//!    steps on `W_g` lessen the error of `gate ⊙ row` further, for each unit by itself.
//! 4. **Down-projection.** `W_d` is solved by ridge regression (toward the old one) such that the student's residual
//!    stream after the layer becomes the teacher's: each layer repairs what the layers before it lost. Its inputs
//!    are rows that were estimated *without the occurrence itself*, or else the student would look better on the
//!    calibration text than on any other.
//!
//! Positions whose residual stream is far larger than usual (massive activations, arXiv 2402.17762) count less, or
//! they would decide every fit.

use std::collections::BTreeMap;

use half::f16;

use super::fit::Fit;
use super::forward::{self, Batch, Layer};
use super::{Base, Changes, Progress};
use crate::config::Config;
use crate::cpu::kernels;
use crate::error::{Error, Result};

/// Longer documents are cut here: later positions teach little about rows, and attention costs the square.
const MAX_DOCUMENT: usize = 1024;

/// What to convert, and how strongly to regularise.
#[derive(Debug, Clone)]
pub struct Options {
    /// The layers to make STEM, ascending.
    pub stem_layers: Vec<usize>,
    /// The token before every other in the sweep; the model's first or else its last token of a text unless given.
    pub sweep_after: Option<u32>,
    /// Ridge of the down-projections, relative to each input's mean square.
    pub down_ridge: f64,
    /// Ridge of the map from a token to its prior row, likewise.
    pub prior_ridge: f64,
    /// As many occurrences the prior row counts for.
    pub prior_count: f32,
    /// Steps on the gates.
    pub gate_steps: usize,
    /// Ridge of such a step, relative to each input's mean square.
    pub gate_ridge: f64,
    /// A position whose root mean square is more than so many times the median counts less.
    pub massive: f32,
}

impl Options {
    /// Settings that do well on SmolLM2-135M, for these layers.
    pub fn new(stem_layers: Vec<usize>) -> Self {
        Self {
            stem_layers,
            sweep_after: None,
            down_ridge: 1e-3,
            prior_ridge: 3e-2,
            prior_count: 4.0,
            gate_steps: 2,
            gate_ridge: 1e-2,
            massive: 3.0,
        }
    }
}

/// A converted model: what differs from its base.
#[derive(Debug)]
pub struct ClosedForm {
    config: Config,
    // By name.
    tensors: BTreeMap<String, Vec<f32>>,
    // Of each STEM layer [vocab, ffn].
    tables: Vec<Vec<f16>>,
    hot: Vec<u32>,
}

impl Changes for ClosedForm {
    fn config(&self) -> &Config {
        &self.config
    }

    fn describe(&self) -> String {
        "closed-form".into()
    }

    fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>> {
        Ok(self.tensors.get(name).cloned())
    }

    fn rows(&self, tokens: &[u32], out: &mut [f32]) -> Result<()> {
        let ffn = self.config.intermediate_size;
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(self.config.row_width())) {
            for (table, out) in self.tables.iter().zip(out.chunks_exact_mut(ffn)) {
                let row = table.get(*token as usize * ffn..).unwrap_or_default();
                if row.len() < ffn {
                    return Err(Error::invalid(format!("token {token}"), "is outside the table"));
                }
                out.iter_mut().zip(row).for_each(|(o, v)| *o = v.to_f32());
            }
        }
        Ok(())
    }

    fn hot(&self) -> &[u32] {
        &self.hot
    }
}

/// Converts `base` by what its layers do on `documents`, each of them the tokens of a text from its beginning.
///
/// # Errors
/// [`Error::Invalid`] for layers or tokens that the base lacks and for a text without tokens, and what reading the
/// base gives.
pub fn convert(
    base: &Base,
    documents: &[Vec<u32>],
    options: &Options,
    progress: &dyn Progress,
) -> Result<ClosedForm> {
    estimate(base.config(), &|name| base.tensor(name), documents, options, progress)
}

/// The steps of a layer, for the progress.
const STEPS: u64 = 3;

/// [`convert`] for a dense model of this `config`; `tensor` gives its tensors.
fn estimate(
    config: &Config,
    tensor: &dyn Fn(&str) -> Result<Vec<f32>>,
    documents: &[Vec<u32>],
    options: &Options,
    progress: &dyn Progress,
) -> Result<ClosedForm> {
    let c = config;
    let hidden = c.hidden_size;
    let converted = Config { stem_layers: options.stem_layers.clone(), ..c.clone() };
    converted.validate()?;
    let Some(last) = options.stem_layers.last() else {
        return Err(Error::invalid("no layers", "at least one must become STEM"));
    };
    let documents: Vec<&[u32]> =
        documents.iter().flat_map(|d| d.chunks(MAX_DOCUMENT.min(c.context_length))).collect();
    let before = sweep_after(c, options);
    if let Some(id) =
        documents.iter().copied().flatten().chain([&before]).find(|t| **t as usize >= c.vocab_size)
    {
        return Err(Error::invalid(
            format!("token {id}"),
            format!("the vocabulary has {} tokens", c.vocab_size),
        ));
    }
    if documents.is_empty() {
        return Err(Error::invalid("the calibration text", "has no tokens"));
    }

    let batch = Batch::new(&[], documents);
    let vocabulary: Vec<u32> = (0..c.vocab_size as u32).collect();
    let sweep = Batch::new(&[before], vocabulary.chunks(1));
    let embedding = tensor("token_embd")?;
    // The residual streams, [n, hidden].
    let mut teacher = batch.embed(&embedding, hidden);
    let mut swept = sweep.embed(&embedding, hidden);
    let mut student: Option<Vec<f32>> = None;
    let mut fit = Fit::new(c, options, &batch.tokens, &embedding);
    drop(embedding);
    let mut tensors = BTreeMap::new();
    let mut tables = Vec::new();
    for index in 0..=*last {
        let step = |step: u64| {
            progress.update("Closed form", index as u64 * STEPS + step, (*last as u64 + 1) * STEPS)
        };
        step(0)?;
        let mut layer = Layer::read(tensor, index)?;
        let is_stem = converted.stem_index(index).is_some();
        batch.attend(c, &layer, &mut teacher);
        match &mut student {
            Some(student) => batch.attend(c, &layer, student),
            None if is_stem => student = Some(teacher.clone()),
            None => {}
        }
        step(1)?;
        sweep.attend(c, &layer, &mut swept);
        // [vocab, hidden]: the FFN's input in the sweep.
        let mut swept_norm = Vec::new();
        if is_stem {
            swept_norm = vec![0.0; c.vocab_size * hidden];
            kernels::rms_norm(&swept[hidden..], &layer.ffn_norm, c.rms_norm_eps, &mut swept_norm);
        }
        if index < *last {
            forward::dense_ffn(c, &layer, &mut swept);
        }
        step(2)?;
        match (&mut student, is_stem) {
            (Some(student), true) => {
                tables.push(fit.layer(&mut layer, &mut teacher, student, &swept_norm)?);
                if options.gate_steps > 0 {
                    tensors.insert(format!("blk.{index}.ffn_gate"), layer.ffn_gate);
                }
                tensors.insert(format!("blk.{index}.ffn_down"), layer.ffn_down);
            }
            (student, _) => {
                forward::dense_ffn(c, &layer, &mut teacher);
                if let Some(student) = student {
                    forward::dense_ffn(c, &layer, student);
                }
            }
        }
    }
    Ok(ClosedForm { config: converted, tensors, tables, hot: fit.hot() })
}

/// The token that comes first in the sweep.
fn sweep_after(c: &Config, options: &Options) -> u32 {
    options.sweep_after.unwrap_or_else(|| c.boundary())
}

#[cfg(test)]
mod tests {
    use super::super::regression::project;
    use super::*;
    use crate::bundle::manifest::expected_tensors;
    use crate::bundle::random;
    use crate::config::tests::tiny;

    fn dense() -> Config {
        Config { stem_layers: vec![], ..tiny() }
    }

    /// A random model whose attention adds nothing, so that all it computes depends on the token alone.
    fn context_free(name: &str) -> Result<Vec<f32>> {
        let (_, shape) = expected_tensors(&dense()).into_iter().find(|(n, _)| n == name).unwrap();
        let mut values = random::weights(name, &shape, 3);
        if name.ends_with("attn_output") {
            values.fill(0.0);
        }
        Ok(values)
    }

    /// Documents that hold every token from 10 on.
    fn documents() -> Vec<Vec<u32>> {
        (0..6).map(|d| (0..290).map(|i| 10 + (i * (2 * d + 1) * 7 + i / 50) % 290).collect()).collect()
    }

    #[test]
    fn what_depends_on_the_token_alone_is_kept() {
        let c = dense();
        let options =
            Options { down_ridge: 1e-6, prior_ridge: 1e-9, massive: 100.0, ..Options::new(vec![1, 2]) };
        let found = estimate(&c, &context_free, &documents(), &options, &()).unwrap();
        assert_eq!(found.config().stem_layers, [1, 2]);
        // What the dense model computes for each token of the vocabulary, seen or not.
        let vocabulary: Vec<u32> = (0..300).collect();
        let batch = Batch::new(&[], vocabulary.chunks(1));
        let mut x = batch.embed(&context_free("token_embd").unwrap(), c.hidden_size);
        for index in 0..c.n_layers {
            let layer = Layer::read(&context_free, index).unwrap();
            if let Some(stem) = found.config().stem_index(index) {
                let mut norm = vec![0.0; x.len()];
                kernels::rms_norm(&x, &layer.ffn_norm, c.rms_norm_eps, &mut norm);
                let mut up = vec![0.0; 300 * c.intermediate_size];
                project(&norm, &layer.ffn_up, c.hidden_size, &mut up);
                let mut rows = vec![0.0; 300 * found.config().row_width()];
                found.rows(&vocabulary, &mut rows).unwrap();
                let rows = rows.chunks_exact(c.intermediate_size).skip(stem).step_by(2).flatten();
                for (found, expected) in rows.zip(&up) {
                    assert!((found - expected).abs() < 0.02, "layer {index}: {found} for {expected}");
                }
                let down = found.tensor(&format!("blk.{index}.ffn_down")).unwrap().unwrap();
                for (found, expected) in down.iter().zip(&layer.ffn_down) {
                    assert!((found - expected).abs() < 0.01, "layer {index}: {found} for {expected}");
                }
            }
            forward::dense_ffn(&c, &layer, &mut x);
        }
        assert_eq!(found.hot().len(), 290);
        assert!(found.tensor("blk.0.ffn_down").unwrap().is_none());
        assert!(found.rows(&[300], &mut vec![0.0; found.config().row_width()]).is_err());
    }

    #[test]
    fn what_cannot_be_converted_is_refused() {
        let refuse = |layers: &[usize], documents: &[Vec<u32>]| {
            let options = Options::new(layers.to_vec());
            estimate(&dense(), &context_free, documents, &options, &()).unwrap_err().to_string()
        };
        assert!(refuse(&[], &documents()).contains("at least one"));
        assert!(refuse(&[3], &documents()).contains("stem_layers = [3]"));
        assert!(refuse(&[1], &[vec![]]).contains("no tokens"));
        assert!(refuse(&[1], &[vec![4, 300]]).contains("token 300"));
    }
}
