//! How each tensor of the core is stored: as the checkpoint has it where the bundle can say the same.

use super::Base;
use crate::bundle::quant::{Dtype, quantize};
use crate::config::{BLOCK, Config};
use crate::error::Result;
use crate::gguf::GgmlType;
use crate::gguf::dequant::four_bit_planes;

/// Which storage to use for matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The checkpoint's own numbers where the bundle has a type that holds them, else the nearest type that is
    /// not coarser.
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

/// Dtype and planes of changed `values` of the tensor `name`.
///
/// Rounding to four bits costs a changed matrix more than it cost the base, whose training may have known of it. So
/// attention and the FFNs of the STEM layers get eight bits, which leaves the core of a healed SmolLM2-135M below
/// 110 MB; dense FFNs, half of the weights, stay at four. A recipe had better not change them.
pub fn store(name: &str, values: &[f32], config: &Config, precision: Precision) -> (Dtype, Vec<u8>) {
    let stem_ffn = config.stem_layers.iter().any(|layer| name.starts_with(&format!("blk.{layer}.ffn_")));
    let dtype = match precision {
        _ if is_vector(name) => Dtype::F32,
        Precision::All(dtype) => dtype,
        Precision::Keep if name.contains(".ffn_") && !stem_ffn => Dtype::Q4,
        Precision::Keep => Dtype::Q8,
    };
    (dtype, quantize(dtype, values))
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
