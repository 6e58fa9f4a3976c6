//! The tensors in a recipe's files, in single precision.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::recipe::{Matrix, wrong};
use crate::config::BLOCK;
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
            if name.ends_with(".scale") || name.ends_with(".least") {
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
            let [scale, least] = ["scale", "least"].map(|part| file.tensor(&format!("{name}.{part}")).ok());
            let matrix = if view.dtype() == Dtype::U8 {
                four_bits(&name, &view, scale.as_ref(), least.as_ref())
                    .map_err(|reason| wrong(path, reason))?
            } else {
                matrix(&view, scale.as_ref())
                    .filter(|_| least.is_none())
                    .ok_or_else(|| wrong(path, format!("`{name}` is stored in a way that isn't known")))?
            };
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

/// A matrix of blocks of four bits, or what is wrong with it.
fn four_bits(
    name: &str,
    view: &TensorView<'_>,
    scale: Option<&TensorView<'_>>,
    least: Option<&TensorView<'_>>,
) -> Result<Matrix, String> {
    let [rows, bytes] = *view.shape() else {
        return Err(format!(
            "`{name}` has four bits and the shape {:?}, [rows, bytes] was expected",
            view.shape()
        ));
    };
    let width = 2 * bytes;
    if !width.is_multiple_of(BLOCK) {
        return Err(format!("`{name}` has four bits and {width} values a row, no multiple of {BLOCK}"));
    }
    let expected = [rows, width / BLOCK];
    let halves = |part: &str, view: Option<&TensorView<'_>>| {
        let Some(view) = view else {
            return Err(format!("`{name}` has four bits, but there is no `{name}.{part}`"));
        };
        if view.dtype() != Dtype::F16 || view.shape() != expected {
            let (dtype, shape) = (view.dtype(), view.shape());
            return Err(format!("`{name}.{part}` is {dtype:?} {shape:?}, expected F16 {expected:?}"));
        }
        let halves = view.data().as_chunks::<2>().0.iter();
        Ok(halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect::<Vec<_>>())
    };
    let scales = halves("scale", scale)?.into_iter().zip(halves("least", least)?);
    let blocks = view.data().as_chunks::<{ BLOCK / 2 }>().0.iter();
    let blocks = blocks.zip(scales).flat_map(|(bytes, (d, m))| {
        bytes.iter().flat_map(|b| [b & 15, b >> 4]).map(move |q| d * f32::from(q) + m)
    });
    Ok(Matrix { rows, width, values: blocks.collect() })
}

fn floats<'a>(view: &TensorView<'a>) -> Option<Cow<'a, [f32]>> {
    let data = view.data();
    Some(match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use safetensors::serialize;

    use super::*;
    use crate::error::Error;

    type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

    fn halves(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
    }

    /// Two rows of two blocks.
    fn stored() -> Vec<Stored> {
        vec![
            ("x", Dtype::U8, vec![2, 32], (0..64).map(|i| (i * 37 % 256) as u8).collect()),
            ("x.scale", Dtype::F16, vec![2, 2], halves(&[0.5, 0.25, -0.125, 0.0])),
            ("x.least", Dtype::F16, vec![2, 2], halves(&[-4.0, 1.5, 3.0, 0.75])),
        ]
    }

    fn read(tensors: &[Stored]) -> Result<BTreeMap<String, Matrix>> {
        let views = tensors.iter().map(|(n, t, s, b)| (*n, TensorView::new(*t, s.clone(), b).unwrap()));
        let mut raw = Raw::default();
        raw.add(Path::new("part-0"), &serialize(views, None).unwrap())?;
        Ok(raw.matrices)
    }

    #[test]
    fn four_bits_are_read_in_plain_order() {
        let all = read(&stored()).unwrap();
        assert_eq!(all.len(), 1);
        let x = &all["x"];
        assert_eq!((x.rows, x.width), (2, 64));
        let (d, m) = ([0.5, 0.25, -0.125, 0.0], [-4.0, 1.5, 3.0, 0.75]);
        for (i, value) in x.values.iter().enumerate() {
            let byte = (i / 2 * 37 % 256) as u8;
            let q = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
            assert_eq!(*value, d[i / 32] * f32::from(q) + m[i / 32], "{i}");
        }
    }

    #[test]
    fn four_bits_that_do_not_fit_are_refused() {
        let refused = |change: &dyn Fn(&mut Vec<Stored>), what: &str| {
            let mut tensors = stored();
            change(&mut tensors);
            let error = read(&tensors).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
            assert!(error.to_string().contains(what), "{error}");
        };
        refused(&|t| drop(t.remove(1)), "there is no `x.scale`");
        refused(&|t| drop(t.remove(2)), "there is no `x.least`");
        refused(&|t| t[1].2 = vec![4, 1], "`x.scale` is F16 [4, 1], expected F16 [2, 2]");
        refused(&|t| t[2].2 = vec![4], "`x.least` is F16 [4], expected F16 [2, 2]");
        refused(&|t| (t[2].1, t[2].3) = (Dtype::F32, vec![0; 16]), "`x.least` is F32");
        refused(&|t| t[0].2 = vec![8, 8], "16 values a row, no multiple of 32");
        refused(&|t| t[0].2 = vec![64], "the shape [64]");
        refused(&|t| t[0].1 = Dtype::I8, "isn't known");
        refused(&|t| t[1].3 = halves(&[f32::INFINITY; 4]), "not finite");
    }
}
