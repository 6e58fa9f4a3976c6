//! The shape of a model: every size that the forward pass needs, and which layers are STEM.

use serde::{Deserialize, Serialize};

use crate::engram::Engram;
use crate::error::{Error, Result};

/// Weights of one quantisation block; every matrix's input dimension is a multiple of it.
pub const BLOCK: usize = 32;

/// Sizes and constants of a Llama-family model whose FFN layers may be STEM.
///
/// Matrices are `[out, in]`, row-major. Q and K rows are in GGUF's order: RoPE rotates the pairs `(2i, 2i + 1)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the FFN, which is also the width of a STEM row.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; `n_heads` is a multiple of it.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Positions the model was trained for.
    pub context_length: usize,
    /// RoPE base frequency.
    pub rope_theta: f32,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Whether the head is the token embedding itself.
    pub tied_head: bool,
    /// Token put before every text, if the model wants one.
    pub bos_token: Option<u32>,
    /// Tokens that end an answer.
    pub eos_tokens: Vec<u32>,
    /// The layers whose up-projection is a table of rows, ascending.
    pub stem_layers: Vec<usize>,
    /// The Engram layers, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engram: Option<Engram>,
}

impl Config {
    /// Width of the concatenated query heads.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of the concatenated key (or value) heads.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Width of the concatenated query, key and value heads.
    pub fn qkv_dim(&self) -> usize {
        self.q_dim() + 2 * self.kv_dim()
    }

    /// Where `layer` stands among the STEM layers, `None` for a dense layer.
    pub fn stem_index(&self, layer: usize) -> Option<usize> {
        self.stem_layers.binary_search(&layer).ok()
    }

    /// Floats of STEM rows that one token brings: `n_stem * intermediate_size`.
    pub fn stem_width(&self) -> usize {
        self.stem_layers.len() * self.intermediate_size
    }

    /// Floats of all rows that one token brings: STEM rows, then those of the Engram layers.
    pub fn row_width(&self) -> usize {
        self.stem_width() + self.engram.as_ref().map_or(0, Engram::row_width)
    }

    /// The token that stands between texts: the one that begins them, or else the first that ends one.
    #[cfg(feature = "native")]
    pub(crate) fn boundary(&self) -> u32 {
        self.bos_token.or(self.eos_tokens.iter().min().copied()).unwrap_or(0)
    }

    /// Checks every size, since a config comes with files from the network.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the first value that is out of range.
    pub fn validate(&self) -> Result<()> {
        let range = |name: &str, value: usize, max: usize| {
            if value == 0 || value > max {
                return Err(Error::invalid(format!("{name} = {value}"), format!("must be from 1 to {max}")));
            }
            Ok(())
        };
        range("vocab_size", self.vocab_size, 1 << 21)?;
        range("hidden_size", self.hidden_size, 1 << 15)?;
        range("intermediate_size", self.intermediate_size, 1 << 17)?;
        range("n_layers", self.n_layers, 1 << 10)?;
        range("n_heads", self.n_heads, 1 << 10)?;
        range("n_kv_heads", self.n_kv_heads, self.n_heads)?;
        range("head_dim", self.head_dim, 256)?;
        range("context_length", self.context_length, 1 << 20)?;
        for (name, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("n_heads * head_dim", self.q_dim()),
        ] {
            if !value.is_multiple_of(BLOCK) {
                return Err(Error::invalid(
                    format!("{name} = {value}"),
                    format!("must be a multiple of {BLOCK}"),
                ));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(Error::invalid(
                format!("n_heads = {}, n_kv_heads = {}", self.n_heads, self.n_kv_heads),
                "the first must be a multiple of the second",
            ));
        }
        if !self.head_dim.is_multiple_of(4) {
            return Err(Error::invalid(format!("head_dim = {}", self.head_dim), "must be a multiple of 4"));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(Error::invalid(format!("rope_theta = {}", self.rope_theta), "must be positive"));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(Error::invalid(
                format!("rms_norm_eps = {}", self.rms_norm_eps),
                "must not be negative",
            ));
        }
        let special = self.bos_token.iter().chain(&self.eos_tokens);
        if let Some(id) = special.into_iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(Error::invalid(format!("special token {id}"), "is outside the vocabulary"));
        }
        let ascending = self.stem_layers.windows(2).all(|w| w[0] < w[1]);
        if !ascending || self.stem_layers.last().is_some_and(|l| *l >= self.n_layers) {
            return Err(Error::invalid(
                format!("stem_layers = {:?}", self.stem_layers),
                format!("must ascend and lie below {}", self.n_layers),
            ));
        }
        if let Some(engram) = &self.engram {
            engram.validate(self.n_layers, self.vocab_size)?;
            if self.rms_norm_eps == 0.0 {
                // Where a table is zero, what is normalised is too.
                return Err(Error::invalid("rms_norm_eps = 0", "Engram layers need a positive one"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::engram::config::tests::tiny_engram;

    /// An awkwardly shaped model: no power of two anywhere, grouped heads, dense and STEM layers.
    pub(crate) fn tiny() -> Config {
        Config {
            vocab_size: 300,
            hidden_size: 96,
            intermediate_size: 160,
            n_layers: 3,
            n_heads: 6,
            n_kv_heads: 2,
            head_dim: 16,
            context_length: 200,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            tied_head: true,
            bos_token: None,
            eos_tokens: vec![2],
            stem_layers: vec![1],
            engram: None,
        }
    }

    #[test]
    fn wrong_sizes_are_named() {
        tiny().validate().unwrap();
        let message = |c: Config| c.validate().unwrap_err().to_string();
        assert!(message(Config { hidden_size: 100, ..tiny() }).contains("hidden_size = 100"));
        assert!(message(Config { n_kv_heads: 4, ..tiny() }).contains("n_kv_heads = 4"));
        assert!(message(Config { stem_layers: vec![3], ..tiny() }).contains("stem_layers = [3]"));
        assert!(message(Config { stem_layers: vec![2, 1], ..tiny() }).contains("ascend"));
        assert!(message(Config { eos_tokens: vec![300], ..tiny() }).contains("300"));
        assert!(message(Config { vocab_size: usize::MAX, ..tiny() }).contains("vocab_size"));
        let engram = Config { engram: Some(tiny_engram()), ..tiny() };
        engram.validate().unwrap();
        assert!(message(Config { rms_norm_eps: 0.0, ..engram.clone() }).contains("rms_norm_eps = 0"));
        assert!(message(Config { vocab_size: 280, ..engram }).contains("compressed_vocab = 290"));
    }

    #[test]
    fn a_model_without_engram_does_not_mention_it() {
        let json = serde_json::to_string(&tiny()).unwrap();
        assert!(!json.contains("engram"));
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), tiny());
        let engram = Config { engram: Some(tiny_engram()), ..tiny() };
        let json = serde_json::to_string(&engram).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), engram);
        assert_eq!((engram.stem_width(), engram.row_width()), (160, 160 + 192));
    }
}
