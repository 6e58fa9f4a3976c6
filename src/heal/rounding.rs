//! Matrices that a bundle will store in four bits are rounded so while they are trained: in every step the student
//! multiplies with what the bundle would hold. The gradient in a rounded matrix is taken for the gradient in the matrix
//! itself (source of this straight-through estimate: Bengio et al., arXiv 1308.3432).
//!
//! Eight bits are not rounded here: they move a weight by at most 1/254 of the largest in its block.

use burn_tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::start::Start;
use super::student::{Tensors, download};
use crate::bundle::manifest::expected_tensors;
use crate::bundle::quant::{Dtype, round_q4};
use crate::config::BLOCK;
use crate::convert::recipe::{Matrix, add_product};
use crate::convert::store;
use crate::error::Result;

/// Weights that one thread rounds at once.
const CHUNK: usize = 256 * BLOCK;

/// The matrices that are rounded: those that change and are stored in four bits.
pub struct Rounding {
    device: Device,
    // By name, with the base's own matrix where the change is one of low rank.
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
            let trained = store::part(&name).and_then(|part| start.storage.get(part)).copied();
            if store::changed(&name, &start.config, trained) != Dtype::Q4 {
                return None;
            }
            if start.tensors.contains_key(&name) {
                return Some((name, None));
            }
            let changed = factors(&name).iter().all(|factor| start.tensors.contains_key(factor));
            let own = changed.then(|| own(&name)).flatten()?;
            Some((name, Some(own)))
        });
        Self { device: device.clone(), matrices: matrices.collect() }
    }

    /// What the student multiplies with, given the tensors that are trained: matrices that are rounded take the place of
    /// their change's factors, all else stays.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) if the device fails.
    pub fn apply(&self, mut tensors: Tensors) -> Result<Tensors> {
        let rounded = self.matrices.par_iter().map(|(name, own)| {
            let whole = match own {
                None => rounded(download(&tensors[name])?),
                Some(own) => {
                    let [a, b] = factors(name).map(|factor| download(&tensors[&factor]));
                    let (a, b, mut whole) = (a?, b?, download(own)?);
                    if b.values.iter().all(|v| *v == 0.0) {
                        // Nothing has changed: a recipe leaves it out, and a bundle keeps the base's numbers.
                        whole
                    } else {
                        // By the operations that make a recipe's matrix, for the same bits.
                        add_product(&mut whole.values, &a, &b);
                        rounded(whole)
                    }
                }
            };
            let data = TensorData::new(whole.values, [whole.rows, whole.width]);
            Ok(Tensor::from_data(data, &self.device))
        });
        let rounded: Vec<Tensor<2>> = rounded.collect::<Result<_>>()?;
        for ((name, own), rounded) in self.matrices.iter().zip(rounded) {
            if own.is_some() {
                factors(name).iter().for_each(|factor| drop(tensors.remove(factor)));
            }
            tensors.insert(name.clone(), rounded);
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
