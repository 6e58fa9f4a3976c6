//! Matrix products and ridge regression on many rows, with every core.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};

use crate::error::{Error, Result};

/// Rows that are best added at once: so many are summed in f32 before they are added to the f64 totals.
pub const BLOCK_ROWS: usize = 4096;

/// `out = x · Wᵀ` on this thread: `x` `[n, width]`, `w` `[m, width]`, `out` `[n, m]`, all row-major.
pub fn project(x: &[f32], w: &[f32], width: usize, out: &mut [f32]) {
    let (n, m) = (x.len() / width, w.len() / width);
    matmul(
        MatMut::from_row_major_slice_mut(out, n, m),
        Accum::Replace,
        MatRef::from_row_major_slice(x, n, width),
        MatRef::from_row_major_slice(w, m, width).transpose(),
        1.0,
        Par::Seq,
    );
    leave_vector_state();
}

/// faer's AVX-512 kernels return with the upper halves of the vector registers in use, which makes the SSE code that
/// follows on this thread many times slower.
fn leave_vector_state() {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX, as just checked; compiled code expects nothing in the upper halves here.
        unsafe { std::arch::x86_64::_mm256_zeroupper() }
    }
}

/// The normal equations of a linear regression, summed over blocks of rows.
///
/// With inputs h and targets r it minimises `Σ ‖r − W h‖² + λ ‖(W − W₀) D‖²` for `W` `[outputs, inputs]`, where
/// `D² = diag(Σ h hᵀ)`: the ridge is relative to each input's own size, and pulls toward `W₀` instead of 0.
/// (Source: Hoerl & Kennard, "Ridge Regression", Technometrics 12, 1970.)
#[derive(Debug)]
pub struct Regression {
    // Lower triangle of Σ h hᵀ, [inputs, inputs].
    gram: Mat<f64>,
    // Σ h rᵀ, [inputs, outputs].
    cross: Mat<f64>,
}

impl Regression {
    /// An empty sum.
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self { gram: Mat::zeros(inputs, inputs), cross: Mat::zeros(inputs, outputs) }
    }

    /// Adds rows: `inputs` `[n, inputs]` and `targets` `[n, outputs]`. A row's weight is the square of what both
    /// were multiplied with.
    pub fn add(&mut self, inputs: &[f32], targets: &[f32]) {
        let (h, r) = (self.gram.nrows(), self.cross.ncols());
        let mut gram = Mat::<f32>::zeros(h, h);
        let mut cross = Mat::<f32>::zeros(h, r);
        for (inputs, targets) in inputs.chunks(BLOCK_ROWS * h).zip(targets.chunks(BLOCK_ROWS * r)) {
            let n = inputs.len() / h;
            let inputs = MatRef::from_row_major_slice(inputs, n, h);
            let targets = MatRef::from_row_major_slice(targets, n, r);
            triangular::matmul(
                &mut gram,
                BlockStructure::TriangularLower,
                Accum::Replace,
                inputs.transpose(),
                BlockStructure::Rectangular,
                inputs,
                BlockStructure::Rectangular,
                1.0,
                Par::rayon(0),
            );
            matmul(&mut cross, Accum::Replace, inputs.transpose(), targets, 1.0, Par::rayon(0));
            add(&mut self.gram, &gram);
            add(&mut self.cross, &cross);
        }
    }

    /// The best `W` `[outputs, inputs]`, row-major; `prior` is `W₀`, zeros if `None`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the rows hold values that are not finite, or `ridge` is not positive.
    pub fn solve(&self, ridge: f64, prior: Option<&[f32]>) -> Result<Vec<f32>> {
        let (h, r) = (self.gram.nrows(), self.cross.ncols());
        let mean = (0..h).map(|i| self.gram[(i, i)]).sum::<f64>() / h as f64;
        // An input that is always zero still needs a ridge.
        let pull: Vec<f64> = (0..h).map(|i| ridge * self.gram[(i, i)].max(1e-6 * mean).max(1e-30)).collect();
        let mut gram = self.gram.clone();
        let mut solution = self.cross.clone();
        for (i, pull) in pull.iter().enumerate() {
            gram[(i, i)] += pull;
            if let Some(prior) = prior {
                for o in 0..r {
                    solution[(i, o)] += pull * f64::from(prior[o * h + i]);
                }
            }
        }
        let unsolvable = || {
            Error::invalid(
                format!("a regression on {h} inputs with ridge {ridge}"),
                "has no solution; are the weights finite and the ridge positive?",
            )
        };
        let factor = gram.llt(Side::Lower).map_err(|_| unsolvable())?;
        factor.solve_in_place(&mut solution);
        leave_vector_state();
        let solution: Vec<f32> =
            (0..r).flat_map(|o| (0..h).map(move |i| (i, o))).map(|at| solution[at] as f32).collect();
        if solution.iter().any(|w| !w.is_finite()) {
            return Err(unsolvable());
        }
        Ok(solution)
    }
}

fn add(total: &mut Mat<f64>, block: &Mat<f32>) {
    for (total, block) in total.col_iter_mut().zip(block.col_iter()) {
        for (total, block) in total.iter_mut().zip(block.iter()) {
            *total += f64::from(*block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::random::weights;

    #[test]
    fn the_solution_has_no_gradient() {
        let (n, inputs, outputs, ridge) = (70, 6, 4, 0.3);
        let x = weights("x", &[n, inputs], 1);
        let y = weights("y", &[n, outputs], 2);
        let prior = weights("prior", &[outputs, inputs], 3);
        for prior in [None, Some(prior.as_slice())] {
            let mut regression = Regression::new(inputs, outputs);
            let middle = 33;
            regression.add(&x[..middle * inputs], &y[..middle * outputs]);
            regression.add(&x[middle * inputs..], &y[middle * outputs..]);
            let w = regression.solve(ridge, prior).unwrap();
            for o in 0..outputs {
                for i in 0..inputs {
                    let size: f32 = (0..n).map(|p| x[p * inputs + i].powi(2)).sum();
                    let mut gradient =
                        ridge as f32 * size * (w[o * inputs + i] - prior.map_or(0.0, |p| p[o * inputs + i]));
                    for p in 0..n {
                        let x = &x[p * inputs..][..inputs];
                        let found: f32 = x.iter().zip(&w[o * inputs..]).map(|(x, w)| x * w).sum();
                        gradient += (found - y[p * outputs + o]) * x[i];
                    }
                    assert!(gradient.abs() < 1e-3, "{gradient}");
                }
            }
        }
    }

    #[test]
    fn what_has_no_solution_is_an_error() {
        let mut regression = Regression::new(2, 1);
        regression.add(&[0.0, 0.0], &[1.0]);
        assert_eq!(regression.solve(0.1, None).unwrap(), [0.0, 0.0]);
        regression.add(&[f32::NAN, 1.0], &[1.0]);
        assert!(regression.solve(0.1, None).is_err());
    }
}
