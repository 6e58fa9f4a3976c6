//! From trained tensors to a recipe, as [`crate::convert::recipe`] describes it: matrices in eight bits, with a scale for
//! each row, or for each 32 columns where they take the place of the base's. Of the latter, those that a bundle stores in four
//! bits are in four bits here too, so that the bundle holds the very values that training multiplied with.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use faer::{Mat, MatRef};
use half::f16;
use safetensors::tensor::Dtype;

use super::files::{self, Stored};
use super::rounding::factors;
use super::start::{Start, first_changed};
use crate::bundle::quant::{self, quantize};
use crate::config::BLOCK;
use crate::convert::Base;
use crate::convert::engram;
use crate::convert::recipe::{BaseFile, FORMAT, Head, Matrix, VERSION, sha256};
use crate::error::{Error, Result};
use crate::replace::{remove, replace};

/// The least scale: that of a row which is zero.
const MIN_SCALE: f32 = 1e-7;

/// Writes the recipe of `tensors`, which have the names of [`Start::tensors`], as the folder `dir`; an older one there is
/// replaced once the new one is whole.
///
/// # Errors
/// [`Error::Io`] if it can't be written, [`Error::Invalid`] for a tensor that is missing or not finite.
pub fn write(
    base: &Base,
    start: &Start,
    tensors: &BTreeMap<String, Matrix>,
    name: &str,
    training: serde_json::Value,
    dir: &Path,
) -> Result<()> {
    let odd = tensors.iter().find(|(_, m)| !m.values.iter().all(|v| v.is_finite()));
    if let Some((name, _)) = odd {
        let reason = "holds numbers that are not finite; lower the rates, or set `clip`";
        return Err(Error::invalid(format!("the tensor `{name}`"), reason));
    }
    let beside = |suffix: &str| dir.with_extension(suffix);
    let new = beside("new");
    remove(&new)?;
    fs::create_dir_all(&new).map_err(|e| Error::io(&new, e))?;
    let c = &start.config;
    let mut groups = Vec::new();
    if !start.tokens.is_empty() {
        let bytes = start.tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let shape = vec![start.tokens.len()];
        groups.push(vec![Stored { name: "stem_tokens".into(), dtype: Dtype::I32, shape, bytes }]);
    }
    for layer in first_changed(c)..c.n_layers {
        self::layer(base, start, tensors, layer, &mut groups)?;
    }
    groups.push(plain("output_norm", get(tensors, "output_norm")?));
    if let Some(features) = tensors.get("stem_embd") {
        groups.push(quantised("stem_embd", features, features.width)?);
    }
    let files = files::write(&new, groups.into_iter().map(Ok))?;
    let engram = c.engram.as_ref().zip(start.compressed.as_ref());
    let checkpoint = base.gguf().bytes();
    let head = Head {
        format: FORMAT.into(),
        version: VERSION,
        name: name.into(),
        base: BaseFile { name: base.name(), bytes: checkpoint.len() as u64, sha256: sha256(checkpoint) },
        stem_layers: c.stem_layers.clone(),
        engram: engram.map(|(config, compressed)| engram::Head {
            config: config.clone(),
            ids_sha256: sha256(&compressed.to_bytes()),
        }),
        storage: start.storage.clone(),
        files,
        training,
    };
    let path = new.join("recipe.json");
    let json = serde_json::to_vec_pretty(&head).map_err(|e| Error::invalid("recipe.json", e.to_string()))?;
    fs::write(&path, json).map_err(|e| Error::io(&path, e))?;
    replace(&new, dir, &beside("old"))
}

/// How many rows of `width` values a recipe holds: those of a tensor lie in one file, with a scale each.
pub fn most_rows(width: usize) -> usize {
    (files::LIMIT - 2 * files::ENTRY) / (width + size_of::<f16>())
}

fn get<'a>(tensors: &'a BTreeMap<String, Matrix>, name: &str) -> Result<&'a Matrix> {
    tensors.get(name).ok_or_else(|| Error::invalid(format!("the tensor `{name}`"), "is missing"))
}

/// `rows` rows of a matrix, from `first` on.
fn part_of(matrix: &Matrix, first: usize, rows: usize) -> Matrix {
    let width = matrix.width;
    Matrix { rows, width, values: matrix.values[first * width..(first + rows) * width].to_vec() }
}

/// The tensors of one layer.
fn layer(
    base: &Base,
    start: &Start,
    tensors: &BTreeMap<String, Matrix>,
    layer: usize,
    groups: &mut Vec<Vec<Stored>>,
) -> Result<()> {
    let c = &start.config;
    let name = |part: &str| format!("blk.{layer}.{part}");
    for part in ["attn_norm", "ffn_norm"] {
        groups.push(plain(&name(part), get(tensors, &name(part))?));
    }
    for part in ["attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        let [a, b] = factors(&name(part)).map(|factor| tensors.get(&factor));
        let Some((a, b)) = a.zip(b) else { continue };
        if b.values.iter().all(|v| *v == 0.0) {
            continue;
        }
        let (a, b) = balanced(a, b)?;
        let mut row = 0;
        for (part, shape) in base.parts(&name(part)) {
            let stem = part.trim_end_matches(".weight");
            groups.push(quantised(&format!("{stem}.lora_a"), &a, a.width)?);
            let own = part_of(&b, row, shape[0]);
            groups.push(quantised(&format!("{stem}.lora_b"), &own, own.width)?);
            row += shape[0];
        }
    }
    if c.stem_index(layer).is_some() {
        if let Some(gate) = tensors.get(&name("ffn_gate")) {
            groups.push(whole(&name("ffn_gate"), gate, start)?);
        }
        groups.push(whole(&name("ffn_down"), get(tensors, &name("ffn_down"))?, start)?);
        let map = get(tensors, &name("stem_map"))?;
        groups.push(quantised(&name("stem_map"), map, map.width)?);
        if let Some(rows) = tensors.get(&name("stem_rows")) {
            groups.push(quantised(&name("stem_rows"), rows, rows.width)?);
        }
    }
    let Some(engram) = &c.engram else { return Ok(()) };
    let Some(own) = engram.layers.iter().find(|l| l.layer == layer) else { return Ok(()) };
    for part in ["key", "value"] {
        let name = name(&format!("engram_{part}"));
        groups.push(whole(&name, get(tensors, &name)?, start)?);
    }
    for part in ["query_norm", "key_norm", "conv_norm", "conv"] {
        let name = name(&format!("engram_{part}"));
        groups.push(plain(&name, get(tensors, &name)?));
    }
    let table = get(tensors, &name("engram_rows"))?;
    let mut row = 0;
    for (head, prime) in own.primes.iter().flatten().enumerate() {
        let rows = *prime as usize;
        let own = part_of(table, row, rows);
        groups.push(quantised(&name(&format!("engram_rows.{head}")), &own, own.width)?);
        row += rows;
    }
    Ok(())
}

/// A vector in single precision, under the name of the checkpoint's.
fn plain(name: &str, vector: &Matrix) -> Vec<Stored> {
    let bytes = vector.values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let shape = vec![vector.values.len()];
    vec![Stored { name: format!("{name}.weight"), dtype: Dtype::F32, shape, bytes }]
}

/// A matrix that takes the place of the base's, under the name of the checkpoint's.
fn whole(name: &str, matrix: &Matrix, start: &Start) -> Result<Vec<Stored>> {
    let weight = format!("{name}.weight");
    match start.stored(name) {
        quant::Dtype::Q4 => four_bits(&weight, matrix),
        _ => quantised(&weight, matrix, BLOCK),
    }
}

/// A matrix in blocks of four bits, as a bundle stores it, but with the values of a row in plain order.
fn four_bits(name: &str, matrix: &Matrix) -> Result<Vec<Stored>> {
    let largest = matrix.values.iter().fold(0f32, |m, v| m.max(v.abs()));
    if largest > f16::MAX.to_f32() {
        return Err(too_large(name, largest));
    }
    let planes = quantize(quant::Dtype::Q4, &matrix.values);
    let (blocks, halves) = planes.split_at(quant::Dtype::Q4.planes(matrix.values.len())[0]);
    let mut quants = Vec::with_capacity(blocks.len());
    for block in blocks.chunks_exact(BLOCK / 2) {
        let plain: Vec<u8> = block.iter().map(|b| b & 15).chain(block.iter().map(|b| b >> 4)).collect();
        quants.extend(plain.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4));
    }
    let (mut scales, mut minima) = (Vec::new(), Vec::new());
    for [d0, d1, m0, m1] in halves.as_chunks::<4>().0 {
        scales.extend([d0, d1]);
        minima.extend([m0, m1]);
    }
    let shape = vec![matrix.rows, matrix.width / 2];
    let groups = vec![matrix.rows, matrix.width / BLOCK];
    let half = |part: &str, bytes| {
        let name = format!("{name}.{part}");
        Stored { name, dtype: Dtype::F16, shape: groups.clone(), bytes }
    };
    let quants = Stored { name: name.to_owned(), dtype: Dtype::U8, shape, bytes: quants };
    Ok(vec![quants, half("scale", scales), half("least", minima)])
}

fn too_large(name: &str, largest: f32) -> Error {
    Error::invalid(
        format!("the tensor `{name}`"),
        format!("reaches {largest}, too much for a scale in half precision; lower the rates"),
    )
}

/// A matrix in eight bits, with a scale in half precision for each `group` columns of a row.
fn quantised(name: &str, matrix: &Matrix, group: usize) -> Result<Vec<Stored>> {
    let (mut quants, mut scales) = (Vec::with_capacity(matrix.values.len()), Vec::new());
    for part in matrix.values.chunks_exact(group) {
        let largest = part.iter().fold(0f32, |m, v| m.max(v.abs()));
        let scale = f16::from_f32((largest / 127.0).max(MIN_SCALE));
        if !scale.is_finite() {
            return Err(too_large(name, largest));
        }
        scales.extend(scale.to_le_bytes());
        quants.extend(
            part.iter().map(|v| (v / scale.to_f32()).round_ties_even().clamp(-127.0, 127.0) as i8 as u8),
        );
    }
    let shape = vec![matrix.rows, matrix.width];
    let groups = vec![matrix.rows, matrix.width / group];
    let scale = Stored { name: format!("{name}.scale"), dtype: Dtype::F16, shape: groups, bytes: scales };
    Ok(vec![Stored { name: name.to_owned(), dtype: Dtype::I8, shape, bytes: quants }, scale])
}

/// The same product `B A` of factors of like size, so that both can be rounded well: with the singular values S of
/// `B A = U S Vᵀ`, `A = √S Vᵀ` `[rank, in]` and `B = U √S` `[out, rank]`.
fn balanced(a: &Matrix, b: &Matrix) -> Result<(Matrix, Matrix)> {
    let rank = a.rows;
    let of = |m: &Matrix| Mat::from_fn(m.rows, m.width, |i, j| f64::from(m.values[i * m.width + j]));
    let factors = |q: MatRef<'_, f64>| (q.nrows(), q.ncols());
    // Aᵀ = Q R, so that B A = (B Rᵀ) Qᵀ, and the first is small enough to be decomposed.
    let qr = of(a).transpose().to_owned().qr();
    let (q, r) = (qr.compute_thin_Q(), qr.thin_R().to_owned());
    let inner = of(b) * r.transpose();
    let svd = inner.thin_svd().map_err(|e| Error::invalid("a low-rank change", format!("{e:?}")))?;
    let values = svd.S().column_vector();
    let right = q * svd.V();
    let left = svd.U();
    let (wide, kept) = factors(right.as_ref());
    // Where rank is more than the matrix has, the rest is zero.
    let root = |k: usize| if k < kept { values[k].max(0.0).sqrt() } else { 0.0 };
    let at = |m: MatRef<'_, f64>, i: usize, k: usize| if k < kept { m[(i, k)] * root(k) } else { 0.0 };
    let new_a = (0..rank).flat_map(|k| (0..wide).map(move |i| (i, k)));
    let new_a = new_a.map(|(i, k)| at(right.as_ref(), i, k) as f32).collect();
    let new_b = (0..b.rows).flat_map(|i| (0..rank).map(move |k| (i, k)));
    let new_b = new_b.map(|(i, k)| at(left, i, k) as f32).collect();
    Ok((Matrix { values: new_a, ..*a }, Matrix { values: new_b, ..*b }))
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{TensorView, serialize};

    use super::*;
    use crate::bundle::random::weights;
    use crate::convert::raw::Raw;

    fn random(name: &str, rows: usize, width: usize) -> Matrix {
        Matrix { rows, width, values: weights(name, &[rows, width], 4) }
    }

    #[test]
    fn balanced_factors_have_the_same_product() {
        for (out, rank, width) in [(40, 5, 30), (3, 5, 30), (40, 5, 4)] {
            let (mut a, b) = (random("a", rank, width), random("b", out, rank));
            a.values.iter_mut().for_each(|v| *v *= 1000.0);
            let (new_a, new_b) = balanced(&a, &b).unwrap();
            let product = |a: &Matrix, b: &Matrix, i: usize, j: usize| -> f32 {
                (0..rank).map(|k| b.values[i * rank + k] * a.values[k * width + j]).sum()
            };
            for (i, j) in (0..out).flat_map(|i| (0..width).map(move |j| (i, j))) {
                let (old, new) = (product(&a, &b, i, j), product(&new_a, &new_b, i, j));
                assert!((old - new).abs() < 1e-2, "{old} {new}");
            }
            let largest = |m: &Matrix| m.values.iter().fold(0f32, |m, v| m.max(v.abs()));
            let ratio = largest(&new_a) / largest(&new_b);
            assert!((0.1..10.0).contains(&ratio), "{ratio}");
        }
    }

    #[test]
    fn eight_bits_are_within_half_a_step() {
        let matrix = random("m", 3, 64);
        let stored = quantised("m", &matrix, 32).unwrap();
        let scales: Vec<f32> =
            stored[1].bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect();
        assert_eq!((scales.len(), stored[1].shape.as_slice()), (6, &[3, 2][..]));
        for (i, (value, quant)) in matrix.values.iter().zip(&stored[0].bytes).enumerate() {
            let scale = scales[i / 32];
            assert!((value - f32::from(*quant as i8) * scale).abs() <= 0.505 * scale);
        }
        let zero = Matrix { rows: 1, width: 32, values: vec![0.0; 32] };
        assert!(quantised("z", &zero, 32).unwrap()[0].bytes.iter().all(|b| *b == 0));
        let huge = Matrix { rows: 1, width: 32, values: vec![1e9; 32] };
        for error in [quantised("z", &huge, 32), four_bits("z", &huge)].map(Result::unwrap_err) {
            assert!(error.to_string().contains("`z`") && error.to_string().contains("1000000000"), "{error}");
        }
    }

    #[test]
    fn four_bits_are_the_values_that_training_rounded_to() {
        let mut matrix = random("m", 3, 64);
        let stored = four_bits("m", &matrix).unwrap();
        assert_eq!(stored.iter().map(|t| t.shape[1]).collect::<Vec<_>>(), [32, 2, 2]);
        let views = stored
            .iter()
            .map(|t| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        let mut raw = Raw::default();
        raw.add(Path::new("part-0"), &serialize(views, None).unwrap()).unwrap();
        quant::round_q4(&mut matrix.values);
        assert_eq!(raw.matrices["m"], matrix);
    }
}
