//! What a model costs, beside the dense model that it comes from.

use serde::Serialize;

use super::Manifest;

/// Parameters, weights read and operations for one token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Weights that every token uses.
    pub core: usize,
    /// Values in the tables.
    pub tables: usize,
    /// Values of the tables that one token brings.
    pub row_values_per_token: usize,
    /// Weights of the dense base.
    pub dense: usize,
    /// Bytes of the core.
    pub core_bytes: u64,
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
        let core: usize = tensors.iter().map(|t| t.elements()).sum();
        let up = c.hidden_size * c.intermediate_size;
        let dense = core + up * c.stem_layers.len();
        // The embedding is looked up, not multiplied, unless it is the head too.
        let looked_up = if c.tied_head { 0 } else { c.vocab_size * c.hidden_size };
        let vectors: usize = tensors.iter().filter(|t| t.shape.len() == 1).map(|t| t.elements()).sum();
        let flops = |weights: usize| 2 * (weights - looked_up - vectors);
        let gates = c.stem_layers.iter().filter_map(|l| manifest.tensor(&format!("blk.{l}.ffn_gate")));
        let core_bytes = manifest.core_bytes();
        Self {
            core,
            tables: manifest.tables.iter().map(|t| t.records * t.rows_per_record * t.width).sum(),
            row_values_per_token: c.row_width(),
            dense,
            core_bytes,
            dense_bytes: core_bytes + gates.map(|t| t.bytes() as u64).sum::<u64>(),
            flops: flops(core),
            dense_flops: flops(dense),
            dense_ffn_flops: 6 * up,
            stem_ffn_flops: 4 * up,
        }
    }
}
