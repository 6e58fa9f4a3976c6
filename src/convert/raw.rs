//! The tensors in a recipe's files, in single precision.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::recipe::{Matrix, wrong};
use crate::error::Result;

/// The tensors of all files, scales applied.
#[derive(Default)]
pub struct Raw {
    /// By name.
    pub matrices: BTreeMap<String, Matrix>,
    /// `stem_tokens`.
    pub tokens: Vec<u32>,
}

impl Raw {
    /// Adds those of the file `path`.
    pub fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(path, e))?;
        for (name, view) in file.tensors() {
            if name.ends_with(".scale") {
                continue;
            }
            if name == "stem_tokens" {
                if view.dtype() != Dtype::I32 {
                    return Err(wrong(path, "stem_tokens is not of type I32"));
                }
                let ids = view.data().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
                self.tokens = ids.collect();
                continue;
            }
            let scale = file.tensor(&format!("{name}.scale")).ok();
            let matrix = matrix(&view, scale.as_ref())
                .ok_or_else(|| wrong(path, format!("`{name}` is stored in a way that isn't known")))?;
            if !matrix.values.iter().all(|v| v.is_finite()) {
                return Err(wrong(path, format!("`{name}` holds numbers that are not finite")));
            }
            self.matrices.insert(name, matrix);
        }
        Ok(())
    }
}

fn matrix(view: &TensorView<'_>, scale: Option<&TensorView<'_>>) -> Option<Matrix> {
    let (rows, width) = match view.shape() {
        [width] => (1, *width),
        [rows, width] => (*rows, *width),
        _ => return None,
    };
    let values = match (view.dtype(), scale) {
        _ if width == 0 => Vec::new(),
        (Dtype::I8, Some(scale)) => {
            let [scale_rows, groups] = *scale.shape() else { return None };
            if scale_rows != rows || groups == 0 || !width.is_multiple_of(groups) {
                return None;
            }
            let scales = floats(scale)?;
            let quants = view.data().chunks_exact(width / groups);
            quants
                .zip(scales.iter())
                .flat_map(|(q, s)| q.iter().map(move |q| f32::from(*q as i8) * s))
                .collect()
        }
        (_, None) => floats(view)?.into_owned(),
        _ => return None,
    };
    Some(Matrix { rows, width, values })
}

fn floats<'a>(view: &TensorView<'a>) -> Option<Cow<'a, [f32]>> {
    let data = view.data();
    Some(match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => return None,
    })
}
