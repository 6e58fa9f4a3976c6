//! How alike the rows of a STEM layer are, beside what the dense up-projection of that layer gives.
//!
//! Rows that point in directions of their own can be changed one by one; rows that share a direction say the same of every
//! token. The figure is the 95th percentile of |cos| over all pairs of tokens (arXiv 2601.10639 reports it for trained
//! rows and for outputs of dense up-projections).

use serde::Serialize;

use super::Progress;
use crate::backend::{MAX_STEP_TOKENS, Want};
use crate::cpu::{Probe, View};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::plan::Op;
use crate::session::Session;
use crate::tables::RowSource;

/// So many distinct tokens are compared, the first ones of the text.
pub const TOKENS: usize = 512;
/// The share of pairs that are less alike than the figure says.
const PERCENTILE: f64 = 0.95;

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Distinct tokens that were compared.
    pub tokens: usize,
    /// Means over the STEM layers.
    #[serde(flatten)]
    pub all: Figures,
    /// By layer.
    pub layers: Vec<Layer>,
}

/// 95th percentiles of |cos|.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Between rows.
    pub rows: f64,
    /// The same once the mean of all of them is taken off, which every token shares.
    pub rows_centred: f64,
    /// Between outputs of the base's up-projection, each at the first place of its token in the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense: Option<f64>,
    /// The same once their mean is taken off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense_centred: Option<f64>,
}

/// The same of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layer {
    /// Its number in the model.
    pub layer: usize,
    /// Its own.
    #[serde(flatten)]
    pub figures: Figures,
}

impl Figures {
    /// Means over `layers`, of which there is one at least.
    fn mean(layers: &[Layer]) -> Self {
        let n = layers.len() as f64;
        let mean = |of: fn(&Self) -> f64| layers.iter().map(|l| of(&l.figures)).sum::<f64>() / n;
        let mean_dense = |of: fn(&Self) -> Option<f64>| {
            layers.iter().map(|l| of(&l.figures)).sum::<Option<f64>>().map(|sum| sum / n)
        };
        Self {
            rows: mean(|f| f.rows),
            rows_centred: mean(|f| f.rows_centred),
            dense: mean_dense(|f| f.dense),
            dense_centred: mean_dense(|f| f.dense_centred),
        }
    }
}

/// Compares the first [`TOKENS`] distinct tokens of the documents.
///
/// # Errors
/// [`Error::Invalid`] for a model without STEM layers or a text of fewer than two distinct tokens, [`Error::Unsupported`]
/// on a GPU, and what a step gives.
pub async fn run<R: RowSource, S: RowSource>(
    session: &mut Session<Device, R>,
    base: Option<&mut Session<Device, S>>,
    documents: &[Vec<u32>],
    progress: Progress<'_>,
) -> Result<Report> {
    let layers = session.config().stem_layers.clone();
    if layers.is_empty() {
        return Err(Error::invalid("the model", "has no STEM layers, so no rows to compare"));
    }
    let rounds = 1 + u64::from(base.is_some());
    let rows = ups(session, &layers, documents).await?;
    progress(1, rounds);
    if rows.tokens.len() < 2 {
        return Err(Error::invalid("the text", "has fewer than two distinct tokens"));
    }
    let dense = match base {
        Some(base) => Some(ups(base, &layers, documents).await?),
        None => None,
    };
    progress(rounds, rounds);
    let width = session.config().intermediate_size;
    let layers: Vec<Layer> = layers
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            let dense = dense.as_ref().map(|dense| &dense.values[i]);
            let figures = Figures {
                rows: alike(&rows.values[i], width),
                rows_centred: alike(&centred(&rows.values[i], width), width),
                dense: dense.map(|dense| alike(dense, width)),
                dense_centred: dense.map(|dense| alike(&centred(dense, width), width)),
            };
            Layer { layer: *layer, figures }
        })
        .collect();
    Ok(Report { tokens: rows.tokens.len(), all: Figures::mean(&layers), layers })
}

/// What the gate is multiplied with in some layers, for the first [`TOKENS`] distinct tokens.
struct Ups {
    tokens: Vec<u32>,
    // Of each layer [n, ffn].
    values: Vec<Vec<f32>>,
}

async fn ups<R: RowSource>(
    session: &mut Session<Device, R>,
    layers: &[usize],
    documents: &[Vec<u32>],
) -> Result<Ups> {
    let ffn = session.config().intermediate_size;
    let mut found = Ups { tokens: Vec::new(), values: vec![Vec::new(); layers.len()] };
    for document in documents {
        session.reset();
        for (i, chunk) in document.chunks(MAX_STEP_TOKENS).enumerate() {
            if found.tokens.len() >= TOKENS {
                return Ok(found);
            }
            let mut new = Vec::new();
            for (at, token) in chunk.iter().enumerate() {
                if found.tokens.len() < TOKENS && !found.tokens.contains(token) {
                    found.tokens.push(*token);
                    new.push(at);
                }
            }
            let mut probe = Taker { new: &new, layers, layer: 0, ffn, values: &mut found.values };
            session.probe(i * MAX_STEP_TOKENS, chunk, Want::Nothing, &mut probe).await?;
        }
    }
    Ok(found)
}

/// Takes what the gate is multiplied with at some places of a step.
struct Taker<'a> {
    new: &'a [usize],
    layers: &'a [usize],
    // The one under way.
    layer: usize,
    ffn: usize,
    values: &'a mut [Vec<f32>],
}

impl Probe for Taker<'_> {
    fn after(&mut self, _index: usize, op: &Op, view: View<'_>) {
        match op {
            Op::NormGate { .. } => {
                if let Some(place) = self.layers.iter().position(|layer| *layer == self.layer) {
                    for at in self.new {
                        self.values[place].extend_from_slice(&view.up[at * self.ffn..][..self.ffn]);
                    }
                }
            }
            Op::Down { .. } => self.layer += 1,
            _ => {}
        }
    }
}

/// `vectors` `[n, width]` less their mean.
fn centred(vectors: &[f32], width: usize) -> Vec<f32> {
    let n = (vectors.len() / width) as f32;
    let mut mean = vec![0f32; width];
    for v in vectors.chunks_exact(width) {
        mean.iter_mut().zip(v).for_each(|(m, x)| *m += x / n);
    }
    vectors.chunks_exact(width).flat_map(|v| v.iter().zip(&mean).map(|(x, m)| x - m)).collect()
}

/// The percentile of |cos| over all pairs of `vectors` `[n, width]`, of which there are two or more. A vector of zeros is
/// like no other.
fn alike(vectors: &[f32], width: usize) -> f64 {
    let units: Vec<Vec<f32>> = vectors
        .chunks_exact(width)
        .map(|v| {
            let length = v.iter().map(|x| x * x).sum::<f32>().sqrt();
            v.iter().map(|x| if length > 0.0 { x / length } else { 0.0 }).collect()
        })
        .collect();
    let mut all = Vec::with_capacity(units.len() * units.len() / 2);
    for (i, a) in units.iter().enumerate() {
        for b in &units[..i] {
            all.push(a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>().abs());
        }
    }
    // Nearest rank.
    let rank = (PERCENTILE * all.len() as f64).ceil() as usize;
    let (_, value, _) = all.select_nth_unstable_by(rank.max(1) - 1, f32::total_cmp);
    f64::from(*value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_that_of_the_pairs() {
        let at = |i: usize| (i as f32 * 9.0).to_radians();
        let all: Vec<f32> = (0..20).flat_map(|i| [at(i).sin(), 2.0 * at(i).cos()]).collect();
        let same = [3.0, 4.0, 0.3, 0.4, -6.0, -8.0];
        assert!((alike(&same, 2) - 1.0).abs() < 1e-6);
        assert!(alike(&[1.0, 0.0, 0.0, 1.0, 0.0, 0.0], 2).abs() < 1e-9);
        // What all share makes all alike, until it is taken off.
        let shifted: Vec<f32> = all.chunks_exact(2).flat_map(|v| [v[0] + 50.0, v[1] - 20.0]).collect();
        assert!(alike(&shifted, 2) > 0.99);
        let (without, plain) = (alike(&centred(&shifted, 2), 2), alike(&centred(&all, 2), 2));
        assert!((without - plain).abs() < 1e-3, "{without}, {plain}");
        let mut cosines = Vec::new();
        for i in 0..20 {
            for j in 0..i {
                let (a, b) = (&all[2 * i..2 * i + 2], &all[2 * j..2 * j + 2]);
                let dot = |a: &[f32], b: &[f32]| f64::from(a[0] * b[0] + a[1] * b[1]);
                cosines.push((dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).abs());
            }
        }
        cosines.sort_by(f64::total_cmp);
        // 190 pairs: the 181st is the first that 95 of 100 do not exceed.
        assert!((alike(&all, 2) - cosines[180]).abs() < 1e-5);
    }
}
