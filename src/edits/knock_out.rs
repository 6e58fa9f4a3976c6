//! Knock-outs: what is left of a model when the rows of a layer, or of all, say nothing of their token, or when its
//! memory of n-grams is off.
//!
//! What a knocked-out model still does, the core does; what it no longer does came from the table.

use std::ops::Range;

use futures::future::try_join;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::tables::{Origin, RowSource};

/// The mean row is taken over so many tokens, evenly spaced in the vocabulary: the page need not fetch the whole table.
const SAMPLE: usize = 256;

/// What takes the place of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instead {
    /// Zeros: the layer's FFN gives nothing.
    Zero,
    /// The mean of the rows of 256 tokens evenly spaced in the vocabulary: the same row for every token.
    Mean,
    /// The rows of another token, the same for all layers: each row is as good as before, but in the wrong place.
    Shuffle,
    /// Zeros for the rows of Engram layers, whose keys and values are then zero: the layer adds nothing, and the model
    /// computes what it would without it, bit by bit. The STEM rows stay.
    EngramOff,
}

/// A knock-out, laid out for a model.
#[derive(Debug, Clone, PartialEq)]
pub struct KnockOut {
    instead: Instead,
    // Of a token's values those of each layer.
    spans: Vec<Range<usize>>,
    // [row_width] for `Mean`, else empty.
    mean: Vec<f32>,
    vocab: usize,
}

impl KnockOut {
    /// Knocks out the STEM layers `layers`, by their number in the model, or with [`Instead::EngramOff`] these Engram
    /// layers; all unless given.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a layer without such rows or a model without any; what `rows` gives.
    pub async fn new(
        instead: Instead,
        layers: Option<&[usize]>,
        config: &Config,
        rows: &impl RowSource,
    ) -> Result<Self> {
        let spans = Self::spans(instead, layers, config)?;
        let mut mean = Vec::new();
        if instead == Instead::Mean {
            let n = SAMPLE.min(config.vocab_size);
            let tokens: Vec<u32> = (0..n).map(|i| (i * config.vocab_size / n) as u32).collect();
            let mut all = Vec::new(); // [n, n_stem, ffn]
            rows.gather_alone(&tokens, &mut all).await?;
            mean = vec![0.0; config.row_width()];
            for row in all.chunks_exact(mean.len()) {
                mean.iter_mut().zip(row).for_each(|(m, u)| *m += u / n as f32);
            }
        }
        Ok(Self { instead, spans, mean, vocab: config.vocab_size })
    }

    /// Where the values of `layers` stand among those of a token.
    fn spans(instead: Instead, layers: Option<&[usize]>, config: &Config) -> Result<Vec<Range<usize>>> {
        let engram: Vec<usize> = config.engram.iter().flat_map(|e| &e.layers).map(|l| l.layer).collect();
        let engram_width = config.engram.as_ref().map_or(0, |engram| engram.width());
        let (kind, known, first, width) = match instead {
            Instead::EngramOff => ("Engram", &engram, config.stem_width(), engram_width),
            _ => ("STEM", &config.stem_layers, 0, config.intermediate_size),
        };
        if known.is_empty() {
            return Err(Error::invalid("a knock-out", format!("this model has no {kind} layers")));
        }
        let span = |layer: &usize| {
            let place = known.iter().position(|l| l == layer).ok_or_else(|| {
                Error::invalid(format!("layer {layer}"), format!("the {kind} layers are {known:?}"))
            })?;
            Ok(first + place * width..first + (place + 1) * width)
        };
        layers.unwrap_or(known).iter().map(span).collect()
    }

    /// The token whose rows `id` gets. A bijection without a fixed point for any vocabulary of two tokens or more,
    /// since the step is half of it; far from `id`, where neighbours are spelt and merged alike.
    fn other(&self, id: u32) -> u32 {
        ((id as usize + self.vocab / 2) % self.vocab) as u32
    }

    /// The rows that `tokens` get instead of their own, `[n, width]`; none but for `Shuffle`.
    async fn others(&self, tokens: &[u32], rows: &impl RowSource) -> Result<Vec<f32>> {
        let mut others = Vec::new();
        if self.instead == Instead::Shuffle {
            let ids: Vec<u32> = tokens.iter().map(|id| self.other(*id)).collect();
            rows.gather_alone(&ids, &mut others).await?;
        }
        Ok(others)
    }

    /// Knocks out of `rows`, which are those of `n` tokens, like `others`.
    fn apply(&self, rows: &mut [f32], n: usize, others: &[f32]) {
        let width = rows.len() / n.max(1);
        for (i, rows) in rows.chunks_exact_mut(width.max(1)).enumerate() {
            for span in self.spans.iter().cloned() {
                match self.instead {
                    Instead::Zero | Instead::EngramOff => rows[span].fill(0.0),
                    Instead::Mean => rows[span.clone()].copy_from_slice(&self.mean[span]),
                    Instead::Shuffle => rows[span.clone()].copy_from_slice(&others[i * width..][span]),
                }
            }
        }
    }
}

/// Rows of which some may be knocked out.
#[derive(Debug)]
pub struct Knocked<R> {
    inner: R,
    out: Option<KnockOut>,
}

impl<R> Knocked<R> {
    /// `inner`, whole.
    pub fn new(inner: R) -> Self {
        Self { inner, out: None }
    }

    /// The rows below.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// Knocks out `out` and nothing else. What a KV cache holds then comes of other rows.
    pub fn set(&mut self, out: Option<KnockOut>) {
        self.out = out;
    }
}

impl<R: RowSource> RowSource for Knocked<R> {
    async fn gather_traced(
        &self,
        before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        origins: &mut Vec<Origin>,
    ) -> Result<()> {
        let Some(knock) = &self.out else {
            return self.inner.gather_traced(before, tokens, out, origins).await;
        };
        let (start, first) = (out.len(), origins.len());
        let own = self.inner.gather_traced(before, tokens, out, origins);
        match try_join(own, knock.others(tokens, &self.inner)).await {
            Ok(((), others)) => knock.apply(&mut out[start..], tokens.len(), &others),
            Err(error) => {
                out.truncate(start);
                origins.truncate(first);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn gather_alone(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let Some(knock) = &self.out else { return self.inner.gather_alone(tokens, out).await };
        let start = out.len();
        match try_join(self.inner.gather_alone(tokens, out), knock.others(tokens, &self.inner)).await {
            Ok(((), others)) => knock.apply(&mut out[start..], tokens.len(), &others),
            Err(error) => {
                out.truncate(start);
                return Err(error);
            }
        }
        Ok(())
    }

    fn compressed(&self, token: u32) -> u32 {
        self.inner.compressed(token)
    }

    fn prefetch(&self, tokens: &[u32]) {
        self.inner.prefetch(tokens);
    }

    fn prefetch_at(&self, before: &[u32], tokens: &[u32]) {
        self.inner.prefetch_at(before, tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::engram::config::tests::tiny_engram;
    use crate::tables::MemoryRows;

    /// `tiny` with two STEM layers, and rows whose values are all different.
    fn model() -> (Config, Knocked<MemoryRows>) {
        let config = Config { stem_layers: vec![0, 2], ..tiny() };
        let values = config.vocab_size * config.row_width();
        let rows =
            MemoryRows { rows: (0..values).map(|v| v as f32).collect(), row_width: config.row_width() };
        (config, Knocked::new(rows))
    }

    fn gathered(rows: &impl RowSource, tokens: &[u32]) -> Vec<f32> {
        let mut out = vec![-1.0];
        pollster::block_on(rows.gather(tokens, &mut out)).unwrap();
        assert_eq!(out.remove(0), -1.0);
        out
    }

    fn knock(instead: Instead, layers: Option<&[usize]>) -> (Config, Knocked<MemoryRows>) {
        let (config, mut rows) = model();
        let out = pollster::block_on(KnockOut::new(instead, layers, &config, rows.inner())).unwrap();
        rows.set(Some(out));
        (config, rows)
    }

    #[test]
    fn only_the_layers_named_are_knocked_out() {
        let (config, whole) = model();
        let (ffn, width) = (config.intermediate_size, config.row_width());
        let tokens = [3, 0, 3];
        let plain = gathered(&whole, &tokens);
        for instead in [Instead::Zero, Instead::Mean, Instead::Shuffle] {
            let (_, rows) = knock(instead, Some(&[2]));
            let found = gathered(&rows, &tokens);
            assert_eq!(found.len(), plain.len());
            for (found, plain) in found.chunks_exact(width).zip(plain.chunks_exact(width)) {
                assert_eq!(found[..ffn], plain[..ffn], "{instead:?}");
                assert_ne!(found[ffn..], plain[ffn..], "{instead:?}");
            }
        }
    }

    #[test]
    fn zero_mean_and_shuffled_rows_are_what_they_say() {
        let (config, whole) = model();
        let (vocab, width) = (config.vocab_size, config.row_width());
        let all: Vec<u32> = (0..vocab as u32).collect();
        assert!(gathered(&knock(Instead::Zero, None).1, &all).iter().all(|u| *u == 0.0));

        let sample: Vec<u32> =
            (0..SAMPLE.min(vocab)).map(|i| (i * vocab / SAMPLE.min(vocab)) as u32).collect();
        let expected = gathered(&whole, &sample).chunks_exact(width).map(|r| f64::from(r[5])).sum::<f64>();
        let mean = gathered(&knock(Instead::Mean, None).1, &[1, 2]);
        assert!((f64::from(mean[5]) - expected / sample.len() as f64).abs() < 1e-2 * expected.abs());
        assert_eq!(mean[..width], mean[width..]);

        // Every row comes again, once, and in another place.
        let first = |rows: Vec<f32>| rows.chunks_exact(width).map(|r| r[0] as u64).collect::<Vec<_>>();
        let (plain, shuffled) =
            (first(gathered(&whole, &all)), first(gathered(&knock(Instead::Shuffle, None).1, &all)));
        assert!(plain.iter().zip(&shuffled).all(|(a, b)| a != b));
        let mut sorted = shuffled;
        sorted.sort_unstable();
        assert_eq!(sorted, plain);
    }

    #[test]
    fn layers_without_rows_are_refused() {
        let (config, rows) = model();
        let refused = |config: &Config, layers: Option<&[usize]>| {
            pollster::block_on(KnockOut::new(Instead::Zero, layers, config, rows.inner()))
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&config, Some(&[1])).contains("layer 1: the STEM layers are [0, 2]"));
        assert!(refused(&Config { stem_layers: vec![], ..config }, None).contains("no STEM layers"));
    }

    #[test]
    fn engram_layers_are_switched_off_alone() {
        let config = Config { engram: Some(tiny_engram()), ..model().0 };
        let rows = MemoryRows {
            rows: (0..4 * config.row_width()).map(|v| 1.0 + v as f32).collect(),
            row_width: config.row_width(),
        };
        let plain = gathered(&rows, &[3, 1]);
        let mut rows = Knocked::new(rows);
        let mut found = |layers: Option<&[usize]>| {
            let out = pollster::block_on(KnockOut::new(Instead::EngramOff, layers, &config, rows.inner()));
            rows.set(Some(out?));
            Ok::<_, Error>(gathered(&rows, &[3, 1]))
        };
        let (width, stem, engram) = (config.row_width(), config.stem_width(), tiny_engram().width());
        for (layers, off) in [(None, stem..width), (Some([1].as_slice()), stem + engram..width)] {
            for (found, plain) in found(layers).unwrap().chunks_exact(width).zip(plain.chunks_exact(width)) {
                for (i, (f, p)) in found.iter().zip(plain).enumerate() {
                    assert_eq!(*f, if off.contains(&i) { 0.0 } else { *p }, "value {i}, {layers:?}");
                }
            }
        }
        assert!(found(Some(&[2])).unwrap_err().to_string().contains("layer 2: the Engram layers are [0, 1]"));
        let (plain, rows) = model();
        let out = pollster::block_on(KnockOut::new(Instead::EngramOff, None, &plain, rows.inner()));
        assert!(out.unwrap_err().to_string().contains("no Engram layers"));
    }
}
