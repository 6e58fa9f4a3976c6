//! How each tensor of the core is stored: as the checkpoint has it where the bundle can say the same.

use std::collections::{BTreeMap, BTreeSet};

use super::Base;
use crate::bundle::manifest::expected_tensors;
use crate::bundle::quant::{Dtype, quantize};
use crate::config::{BLOCK, Config};
use crate::error::Result;
use crate::gguf::GgmlType;
use crate::gguf::dequant::four_bit_planes;

/// Which storage to use for matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The checkpoint's own numbers where they are in blocks of four bits or `Q8_0`, else eight bits: also for `F16`, `BF16` and
    /// `F32`.
    #[default]
    Keep,
    /// This type for all matrices.
    All(Dtype),
}

/// Dtype and planes of the base's tensor `name`.
///
/// # Errors
/// As [`Base::tensor`].
pub fn stored(base: &Base, name: &str, precision: Precision) -> Result<(Dtype, Vec<u8>)> {
    let parts = base.parts(name);
    let parts: Vec<_> =
        parts.iter().map(|(part, shape)| base.gguf().stored(part, shape)).collect::<Result<_>>()?;
    let kept = parts.iter().map(|(kind, _)| kept(*kind)).max_by_key(|d| d.bytes(BLOCK)).unwrap_or(Dtype::F32);
    let dtype = match precision {
        _ if is_vector(name) => Dtype::F32,
        Precision::All(dtype) => dtype,
        Precision::Keep => kept,
    };
    // Blocks of four bits are taken over as they are. For other types the values decide, and `Q8_0` comes out as
    // it went in, since the largest quant of its blocks is 127.
    if dtype == Dtype::Q4 {
        let (mut quants, mut scales) = (Vec::new(), Vec::new());
        if parts.iter().all(|(kind, bytes)| four_bit_planes(*kind, bytes, &mut quants, &mut scales)) {
            quants.extend_from_slice(bytemuck::cast_slice(&scales));
            return Ok((dtype, quants));
        }
    }
    Ok((dtype, quantize(dtype, &base.tensor(name)?)))
}

/// Dtype and planes of changed `values` of the tensor `name`, as [`changed`] says.
pub fn store(
    name: &str,
    values: &[f32],
    config: &Config,
    precision: Precision,
    trained: Option<Dtype>,
) -> (Dtype, Vec<u8>) {
    let dtype = match precision {
        Precision::All(dtype) if !is_vector(name) => dtype,
        _ => changed(name, config, trained),
    };
    (dtype, quantize(dtype, values))
}

/// The type that a changed tensor `name` is stored in, unless all are wanted in another.
///
/// Rounding to four bits costs a changed matrix more than it cost the base, whose training may have known of it. So
/// attention and the FFNs of the STEM layers get eight bits, which leaves the core of a healed SmolLM2-135M below
/// 110 MB; dense FFNs, half of the weights, stay at four. Training had better round what is stored so, as `xylem heal`
/// does; where it rounded other matrices, or none, `trained` takes the place of that rule.
pub fn changed(name: &str, config: &Config, trained: Option<Dtype>) -> Dtype {
    let stem_ffn = config.stem_layers.iter().any(|layer| name.starts_with(&format!("blk.{layer}.ffn_")));
    match trained {
        _ if is_vector(name) => Dtype::F32,
        Some(dtype) => dtype,
        None if name.contains(".ffn_") && !stem_ffn => Dtype::Q4,
        None => Dtype::Q8,
    }
}

/// Which part of a layer the bundle's tensor `name` is: `ffn_down` of `blk.3.ffn_down`, none outside of layers.
pub fn part(name: &str) -> Option<&str> {
    name.strip_prefix("blk.")?.split_once('.').map(|(_, part)| part)
}

/// Every name in `storage` must be that of a layer's matrix.
///
/// # Errors
/// Which one isn't, and what there is.
pub fn check(storage: &BTreeMap<String, Dtype>, config: &Config) -> Result<(), String> {
    let tensors = expected_tensors(config);
    let known = tensors.iter().filter_map(|(name, _)| part(name).filter(|_| !is_vector(name)));
    let known: BTreeSet<&str> = known.collect();
    match storage.keys().find(|name| !known.contains(name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let known: Vec<_> = known.into_iter().collect();
            Err(format!("`storage` names `{name}`; layers have the matrices {}", known.join(", ")))
        }
    }
}

/// Whether the bundle's tensor `name` is a vector, which is stored in single precision.
pub fn is_vector(name: &str) -> bool {
    name.ends_with("_norm") || name.ends_with("_conv")
}

/// The bundle's type for a checkpoint's.
fn kept(kind: GgmlType) -> Dtype {
    match kind {
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q4K => Dtype::Q4,
        _ => Dtype::Q8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::quant::dequantize;
    use crate::bundle::random;
    use crate::config::tests::tiny;

    #[test]
    fn storage_takes_the_place_of_the_usual_types() {
        // Layer 1 is STEM.
        let stored = |name: &str, precision, trained| store(name, &[0.5; 32], &tiny(), precision, trained).0;
        for (name, usual) in [
            ("blk.1.ffn_down", Dtype::Q8),
            ("blk.0.ffn_down", Dtype::Q4),
            ("blk.0.attn_qkv", Dtype::Q8),
            ("token_embd", Dtype::Q8),
        ] {
            assert_eq!(stored(name, Precision::Keep, None), usual, "{name}");
            for dtype in [Dtype::Q4, Dtype::Q8, Dtype::F32] {
                assert_eq!(stored(name, Precision::Keep, Some(dtype)), dtype, "{name}");
                assert_eq!(stored(name, Precision::All(Dtype::Q8), Some(dtype)), Dtype::Q8, "{name}");
            }
        }
        assert_eq!(stored("blk.0.attn_norm", Precision::Keep, Some(Dtype::Q4)), Dtype::F32);
    }

    #[test]
    fn what_is_rounded_is_stored_as_it_is() {
        let expand = |(dtype, planes): (Dtype, Vec<u8>)| {
            let mut values = vec![0f32; 4096];
            let (quants, scales) = planes.split_at(dtype.planes(values.len())[0]);
            dequantize(dtype, quants, scales, 0, &mut values);
            values
        };
        let weights = random::weights("blk.1.ffn_gate", &[64, 64], 3);
        for dtype in [Dtype::Q4, Dtype::Q8] {
            let store =
                |values: &[f32]| store("blk.1.ffn_gate", values, &tiny(), Precision::Keep, Some(dtype));
            let rounded = expand(store(&weights));
            assert_ne!(rounded, weights);
            assert_eq!(expand(store(&rounded)), rounded, "{dtype:?}");
        }
    }

    #[test]
    fn storage_names_matrices_of_layers() {
        let check = |names: &[&str]| {
            check(&names.iter().map(|name| ((*name).to_owned(), Dtype::Q4)).collect(), &tiny())
        };
        check(&[]).unwrap();
        check(&["attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]).unwrap();
        for name in ["attn_q", "attn_norm", "blk.1.ffn_gate", "output_norm", "token_embd", "engram_key", ""] {
            let says = check(&["ffn_gate", name]).unwrap_err();
            assert!(says.contains(&format!("`{name}`")) && says.contains("attn_qkv, ffn_down"), "{says}");
        }
        assert_eq!((part("blk.12.ffn_down"), part("output_norm")), (Some("ffn_down"), None));
    }
}
