//! What a model costs, beside the dense model that it comes from.

use serde::Serialize;

use super::{Manifest, Tensor};

/// Parameters, weights read and operations for one token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Weights that every token uses.
    pub core: usize,
    /// Those of them in Engram layers, which the dense base lacks.
    pub engram: usize,
    /// Values in the tables.
    pub tables: usize,
    /// Values of the tables that one token brings.
    pub row_values_per_token: usize,
    /// Weights of the dense base.
    pub dense: usize,
    /// Bytes of the core.
    pub core_bytes: u64,
    /// Bytes of it that the step of one token reads: all but an embedding that is looked up only.
    pub read_bytes: u64,
    /// Bytes that the base would have, its up-projections stored like the gates of the same layers.
    pub dense_bytes: u64,
    /// Two operations for each weight that a token is multiplied with; attention over earlier positions comes on top.
    pub flops: usize,
    /// The same of the dense base.
    pub dense_flops: usize,
    /// Of one dense FFN.
    pub dense_ffn_flops: usize,
    /// Of one STEM FFN.
    pub stem_ffn_flops: usize,
}

impl Cost {
    /// The cost of a bundle.
    pub fn new(manifest: &Manifest) -> Self {
        let (c, tensors) = (&manifest.config, &manifest.core.tensors);
        let weights = |of: &dyn Fn(&Tensor) -> bool| -> usize {
            tensors.iter().filter(|t| of(t)).map(Tensor::elements).sum()
        };
        let in_engram = |t: &Tensor| t.name.contains(".engram_");
        let is_gain = |t: &Tensor| t.name.ends_with("_norm");
        let (core, engram) = (weights(&|_| true), weights(&in_engram));
        let up = c.hidden_size * c.intermediate_size;
        let dense = core - engram + up * c.stem_layers.len();
        // The embedding is looked up, not multiplied, unless it is the head too.
        let looked_up = if c.tied_head { 0 } else { c.vocab_size * c.hidden_size };
        let flops = |weights: usize, gains: usize| 2 * (weights - looked_up - gains);
        let gates = c.stem_layers.iter().filter_map(|l| manifest.tensor(&format!("blk.{l}.ffn_gate")));
        let core_bytes = manifest.core_bytes();
        let only_looked_up = |t: &&Tensor| t.name == "token_embd" && !c.tied_head;
        let embedding_bytes: u64 = tensors.iter().filter(only_looked_up).map(|t| t.bytes() as u64).sum();
        let engram_bytes: u64 = tensors.iter().filter(|t| in_engram(t)).map(|t| t.bytes() as u64).sum();
        Self {
            core,
            engram,
            tables: manifest.tables.iter().map(|t| t.records * t.rows_per_record * t.width).sum(),
            row_values_per_token: c.row_width(),
            dense,
            core_bytes,
            read_bytes: core_bytes - embedding_bytes,
            dense_bytes: core_bytes - engram_bytes + gates.map(|t| t.bytes() as u64).sum::<u64>(),
            flops: flops(core, weights(&is_gain)),
            dense_flops: flops(dense, weights(&|t| is_gain(t) && !in_engram(t))),
            dense_ffn_flops: 6 * up,
            stem_ffn_flops: 4 * up,
        }
    }
}
