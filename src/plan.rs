//! The forward pass, defined once: a list of operations as plain data, which every backend runs in order.
//!
//! An operation is as large as a good GPU dispatch at batch 1 (six a layer), so that backends differ in how
//! they compute one, never in which ones there are or in what order.

use crate::bundle::Manifest;
use crate::bundle::manifest::expected_tensors;
use crate::config::Config;

/// Position of a tensor in the manifest's list, and so in the core's stream.
pub type TensorId = usize;

/// What multiplies the gate in an FFN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Up {
    /// A dense up-projection `[ffn, hidden]` of the same normalised input.
    Dense(TensorId),
    /// The STEM row of the input token: the `n`-th of the rows that the step brought for it.
    Row(usize),
}

/// One operation on the step's `n` tokens. `x` is the residual stream `[n, hidden]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// `x = E[token]`.
    Embed {
        /// `token_embd`.
        weight: TensorId,
    },
    /// `k = W_K · e` and `v = W_V · e`, `[n, hidden]` each, where e are the head rows that the step brought for the
    /// `index`-th Engram layer.
    EngramProject {
        /// Its place among the Engram layers.
        index: usize,
        /// `engram_key`.
        key: TensorId,
        /// `engram_value`.
        value: TensorId,
    },
    /// `v *= σ(sign(s) √max(|s|, 1e-6))` with `s = RMSNorm(x)·RMSNorm(k) / √hidden`; `RMSNorm(v)` goes into the cache
    /// at the step's positions.
    EngramGate {
        /// Its place among the Engram layers, and so whose cache.
        index: usize,
        /// The gain of x.
        query_norm: TensorId,
        /// The gain of k.
        key_norm: TensorId,
        /// The gain of v.
        conv_norm: TensorId,
    },
    /// `x += v + SiLU(conv)`, the causal convolution of the cache with a kernel for each channel.
    EngramConv {
        /// Its place among the Engram layers, and so whose cache.
        index: usize,
        /// `engram_conv`.
        conv: TensorId,
    },
    /// `qkv = W · RMSNorm(x)`, `[n, q + k + v]`.
    NormQkv {
        /// The norm's gain.
        norm: TensorId,
        /// `attn_qkv`.
        weight: TensorId,
    },
    /// Rotates q in place and k into the cache, and copies v into the cache, at the step's positions.
    RopeStore {
        /// Whose cache.
        layer: usize,
    },
    /// `attn = softmax(q·K / √head_dim) · V`, causal, `[n, q]`.
    Attention {
        /// Whose cache.
        layer: usize,
    },
    /// `x += W · attn`.
    AttnOutput {
        /// `attn_output`.
        weight: TensorId,
    },
    /// `h = SiLU(W_g · RMSNorm(x)) ⊙ up`, `[n, ffn]`.
    NormGate {
        /// The norm's gain.
        norm: TensorId,
        /// `ffn_gate`.
        gate: TensorId,
        /// What multiplies the gate.
        up: Up,
    },
    /// `x += W_d · h`.
    Down {
        /// `ffn_down`.
        weight: TensorId,
    },
    /// `logits = W · RMSNorm(x)`, for the positions that the step asks for.
    Head {
        /// The last norm's gain.
        norm: TensorId,
        /// `output`, or `token_embd` where the head is tied.
        weight: TensorId,
    },
}

/// The operations of one forward step of a model.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The model's sizes.
    pub config: Config,
    /// What to run, in order.
    pub ops: Vec<Op>,
}

impl Plan {
    /// The plan of a (validated) bundle.
    pub fn new(manifest: &Manifest) -> Self {
        Self::of_config(&manifest.config)
    }

    /// How many operations come before the first one that reads rows: what can run while these are on their way.
    /// All but the head in a model without tables.
    pub fn before_rows(&self) -> usize {
        let reads_rows = |op: &Op| {
            matches!(op, Op::EngramProject { .. } | Op::NormGate { up: Up::Row(_), .. } | Op::Head { .. })
        };
        self.ops.iter().position(reads_rows).unwrap_or(self.ops.len())
    }

    /// The plan of a model of these sizes.
    pub fn of_config(config: &Config) -> Self {
        let names: Vec<_> = expected_tensors(config).into_iter().map(|(name, _)| name).collect();
        let id = |name: &str| {
            names.iter().position(|n| n == name).expect("the plan names only tensors of expected_tensors")
        };
        let mut ops = vec![Op::Embed { weight: id("token_embd") }];
        for layer in 0..config.n_layers {
            let in_layer = |name: &str| id(&format!("blk.{layer}.{name}"));
            if let Some(index) = config.engram.as_ref().and_then(|engram| engram.index(layer)) {
                let [query_norm, key_norm, conv_norm] =
                    ["engram_query_norm", "engram_key_norm", "engram_conv_norm"].map(in_layer);
                ops.extend([
                    Op::EngramProject { index, key: in_layer("engram_key"), value: in_layer("engram_value") },
                    Op::EngramGate { index, query_norm, key_norm, conv_norm },
                    Op::EngramConv { index, conv: in_layer("engram_conv") },
                ]);
            }
            let up = match config.stem_index(layer) {
                Some(n) => Up::Row(n),
                None => Up::Dense(in_layer("ffn_up")),
            };
            ops.extend([
                Op::NormQkv { norm: in_layer("attn_norm"), weight: in_layer("attn_qkv") },
                Op::RopeStore { layer },
                Op::Attention { layer },
                Op::AttnOutput { weight: in_layer("attn_output") },
                Op::NormGate { norm: in_layer("ffn_norm"), gate: in_layer("ffn_gate"), up },
                Op::Down { weight: in_layer("ffn_down") },
            ]);
        }
        let head = if config.tied_head { "token_embd" } else { "output" };
        ops.push(Op::Head { norm: id("output_norm"), weight: id(head) });
        Self { config: config.clone(), ops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    #[test]
    fn six_operations_a_layer_and_rows_only_in_stem_layers() {
        let plan = Plan::of_config(&tiny());
        assert_eq!(plan.ops.len(), 2 + 6 * 3);
        let ups: Vec<_> = plan
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::NormGate { up, .. } => Some(matches!(up, Up::Row(0))),
                _ => None,
            })
            .collect();
        assert_eq!(ups, [false, true, false]);
        // The embedding, the whole first layer, and attention of the second.
        assert_eq!(plan.before_rows(), 1 + 6 + 4);
        assert_eq!(Plan::of_config(&Config { stem_layers: vec![], ..tiny() }).before_rows(), 1 + 6 * 3);
    }
}
