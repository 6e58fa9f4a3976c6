//! Matrices that a bundle will store in four bits are rounded so while they are trained: in every step the student
//! multiplies with what the bundle would hold. The gradient in a rounded matrix is taken for the gradient in the matrix
//! itself (source of this straight-through estimate: Bengio et al., arXiv 1308.3432).
//!
//! Eight bits are not rounded here: they move a weight by at most 1/254 of the largest in its block.

use burn_tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::start::Start;
use super::student::{Tensors, download, download_all};
use crate::bundle::manifest::expected_tensors;
use crate::bundle::quant::{Dtype, round_q4};
use crate::config::BLOCK;
use crate::convert::recipe::{Matrix, add_product};
use crate::error::{Error, Result};

/// Weights that one thread rounds at once.
const CHUNK: usize = 256 * BLOCK;

/// The matrices that are rounded: those that change and are stored in four bits.
pub struct Rounding {
    device: Device,
    // By name, with the base's own matrix, in this process's memory, where the change is one of low rank.
    matrices: Vec<(String, Option<Tensor<2>>)>,
}

/// The matrix as four bits hold it.
fn rounded(mut matrix: Matrix) -> Matrix {
    matrix.values.par_chunks_mut(CHUNK).for_each(round_q4);
    matrix
}

/// The names of a low-rank change's factors.
pub fn factors(name: &str) -> [String; 2] {
    ["a", "b"].map(|factor| format!("{name}.lora_{factor}"))
}

impl Rounding {
    /// What is rounded of a student that begins as `start`; `own` gives a matrix of the base.
    pub fn new(start: &Start, own: impl Fn(&str) -> Option<Tensor<2>>, device: &Device) -> Self {
        let all = expected_tensors(&start.config).into_iter().map(|(name, _)| name);
        let matrices = all.filter_map(|name| {
            if start.stored(&name) != Dtype::Q4 {
                return None;
            }
            if start.tensors.contains_key(&name) {
                return Some((name, None));
            }
            let changed = factors(&name).iter().all(|factor| start.tensors.contains_key(factor));
            let own = changed.then(|| own(&name)).flatten()?;
            Some((name, Some(own.to_device(&Device::flex()))))
        });
        Self { device: device.clone(), matrices: matrices.collect() }
    }

    /// What the student multiplies with, given the tensors that are trained: matrices that are rounded take the place of
    /// their change's factors, all else stays.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) if the device fails.
    pub fn apply(&self, mut tensors: Tensors) -> Result<Tensors> {
        let parts = self.matrices.iter().flat_map(|(name, own)| match own {
            None => vec![name.clone()],
            Some(_) => factors(name).to_vec(),
        });
        let mut parts = download_all(parts.map(|part| tensors[&part].clone()))?.into_iter();
        let mut next =
            || parts.next().ok_or_else(|| Error::Gpu("gave fewer tensors than it was asked for".into()));
        let mut read = Vec::with_capacity(self.matrices.len());
        for (_, own) in &self.matrices {
            read.push((own, next()?, own.as_ref().map(|_| next()).transpose()?));
        }
        let rounded = read.into_par_iter().map(|(own, first, b)| {
            let Some((own, b)) = own.as_ref().zip(b) else { return Ok(rounded(first)) };
            let mut whole = download(own)?;
            // Where nothing has changed, a recipe leaves the change out, and a bundle keeps the base's numbers.
            if b.values.iter().all(|v| *v == 0.0) {
                return Ok(whole);
            }
            // By the operations that make a recipe's matrix, for the same bits.
            add_product(&mut whole.values, &first, &b);
            Ok(rounded(whole))
        });
        let rounded: Vec<Matrix> = rounded.collect::<Result<_>>()?;
        for ((name, own), rounded) in self.matrices.iter().zip(rounded) {
            if own.is_some() {
                factors(name).iter().for_each(|factor| drop(tensors.remove(factor)));
            }
            let data = TensorData::new(rounded.values, [rounded.rows, rounded.width]);
            tensors.insert(name.clone(), Tensor::from_data(data, &self.device));
        }
        Ok(tensors)
    }

    /// Gradients in the `tensors` that are trained, from those in what [`apply`](Self::apply) makes of them.
    pub fn gradients(&self, tensors: &Tensors, mut gradients: Tensors) -> Tensors {
        for (name, own) in &self.matrices {
            if own.is_none() {
                continue;
            }
            let Some(gradient) = gradients.remove(name) else { continue };
            let [a, b] = factors(name);
            let of_a = tensors[&b].clone().transpose().matmul(gradient.clone());
            let of_b = gradient.matmul(tensors[&a].clone().transpose());
            gradients.insert(a, of_a);
            gradients.insert(b, of_b);
        }
        gradients
    }
}
