//! Matrix products with stored weights: those of [`packed`](super::packed) where they are packed, f32 products where they
//! are not. Natively these are dot products for one token, and a GEMM for many.

use bytemuck::cast_slice_mut;
#[cfg(not(target_arch = "wasm32"))]
use gemm::{Parallelism, gemm};
use multiversion::multiversion;
#[cfg(feature = "native")]
use rayon::prelude::*;

use super::packed::{Kind, Packed};
use super::team;
use crate::bundle::manifest::Tensor;
use crate::bundle::quant::Dtype;
use crate::error::{Error, Result};

/// From so many tokens on a GEMM is faster.
#[cfg(not(target_arch = "wasm32"))]
const GEMM_FROM: usize = 4;
/// Output rows of one GEMM.
#[cfg(not(target_arch = "wasm32"))]
const PANEL: usize = 96;

/// A tensor in memory.
#[derive(Debug)]
pub struct Weight {
    /// Output rows; 1 for a vector.
    rows: usize,
    /// Input width.
    width: usize,
    /// Of its planes as they come.
    plane_bytes: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// `[rows, width]`.
    F32(Vec<f32>),
    Packed(Packed),
}

impl Weight {
    /// Room for `tensor`, all zeros.
    pub fn zeroed(tensor: &Tensor) -> Self {
        let width = tensor.shape.last().copied().unwrap_or(0);
        let rows = tensor.elements().checked_div(width).unwrap_or(0);
        let data = match tensor.dtype {
            Dtype::F32 => Data::F32(vec![0.0; rows * width]),
            Dtype::Q4 => Data::Packed(Packed::zeroed(Kind::Q4, rows, width)),
            Dtype::Q8 => Data::Packed(Packed::zeroed(Kind::Q8, rows, width)),
        };
        Self { rows, width, plane_bytes: tensor.bytes(), data }
    }

    /// Puts `bytes` at `offset` of the planes that [`crate::bundle::quant`] describes; both are multiples of four.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they lie outside, or are not such multiples.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let inside = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.plane_bytes);
        if !inside || !offset.is_multiple_of(4) || !bytes.len().is_multiple_of(4) {
            return Err(Error::invalid(
                format!("{} bytes at {offset} of a tensor", bytes.len()),
                format!("it has {}, to be written in words", self.plane_bytes),
            ));
        }
        match &mut self.data {
            Data::F32(values) => {
                cast_slice_mut::<f32, u8>(values)[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Data::Packed(packed) => packed.write(offset, bytes),
        }
        Ok(())
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        match &self.data {
            Data::F32(values) => values.len() as u64 * 4,
            Data::Packed(packed) => packed.bytes() as u64,
        }
    }

    /// The planes as they came.
    #[cfg(test)]
    pub fn planes(&self) -> Vec<u8> {
        match &self.data {
            Data::F32(values) => bytemuck::cast_slice(values).to_vec(),
            Data::Packed(packed) => packed.planes(),
        }
    }

    /// Expands rows `first..` into `out` `[rows, width]`.
    pub fn expand(&self, first: usize, out: &mut [f32]) {
        match &self.data {
            Data::F32(values) => out.copy_from_slice(&values[first * self.width..][..out.len()]),
            Data::Packed(packed) => packed.expand(first, out),
        }
    }

    /// The values of a vector stored as `f32`.
    ///
    /// # Panics
    /// For a packed matrix.
    pub fn vector(&self) -> &[f32] {
        match &self.data {
            Data::F32(values) => values,
            Data::Packed(_) => unreachable!("a manifest whose vectors are packed is refused"),
        }
    }

    /// `out = x · Wᵀ` for `x` `[n, in]` and `out` `[n, rows]`.
    pub fn matmul(&self, x: &[f32], out: &mut [f32]) {
        debug_assert_eq!(x.len() / self.width, out.len() / self.rows);
        match &self.data {
            Data::Packed(packed) => packed.matmul(x, out),
            #[cfg(not(target_arch = "wasm32"))]
            Data::F32(values) if x.len() >= GEMM_FROM * self.width => self.matmul_panels(values, x, out),
            Data::F32(values) => {
                let piece = self.rows.div_ceil(team::threads()).max(32);
                for (x, out) in x.chunks_exact(self.width).zip(out.chunks_exact_mut(self.rows)) {
                    team::chunks(out, piece, &|i, out| {
                        matvec_f32(&values[i * piece * self.width..][..out.len() * self.width], x, out);
                    });
                }
            }
        }
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn matmul_panels(&self, weights: &[f32], x: &[f32], out: &mut [f32]) {
        let n = x.len() / self.width;
        // [panels][n, rows of the panel]
        let mut products = vec![0f32; n * self.rows];
        team::chunks(&mut products, n * PANEL, &|i, product| {
            let rows = product.len() / n;
            let weights = &weights[i * PANEL * self.width..][..rows * self.width];
            gemm_xwt(x, weights, n, rows, self.width, product);
        });
        for (i, product) in products.chunks(n * PANEL).enumerate() {
            let rows = product.len() / n;
            for (product, out) in product.chunks_exact(rows).zip(out.chunks_exact_mut(self.rows)) {
                out[i * PANEL..i * PANEL + rows].copy_from_slice(product);
            }
        }
    }
}

#[cfg(not(feature = "native"))]
impl Weight {
    /// `dx += dy · W` for `dy` `[n, rows]` and `dx` `[n, in]`: the way back through [`matmul`](Self::matmul).
    pub fn matmul_back(&self, dy: &[f32], dx: &mut [f32]) {
        let mut weights = vec![0.0; STRIP * self.width];
        for first in (0..self.rows).step_by(STRIP) {
            let weights = &mut weights[..STRIP.min(self.rows - first) * self.width];
            self.expand(first, weights);
            back_strip(dy, self.rows, first, weights, dx);
        }
    }
}

/// Rows of weights that fit a small cache together.
#[cfg(any(test, not(feature = "native")))]
const STRIP: usize = 32;

/// `dx += dy[:, first..] · W` for the rows `weights` `[strip, in]` of W, with `dy` `[n, rows]` and `dx` `[n, in]`.
#[cfg(any(test, not(feature = "native")))]
fn back_strip(dy: &[f32], rows: usize, first: usize, weights: &[f32], dx: &mut [f32]) {
    let n = dy.len() / rows;
    let width = dx.len() / n;
    for (dy, dx) in dy.chunks_exact(rows).zip(dx.chunks_exact_mut(width)) {
        let dy = &dy[first..first + weights.len() / width];
        // Four rows at a time, so that dx is read and written a quarter as often.
        let fours = dy.chunks_exact(4).zip(weights.chunks_exact(4 * width));
        for (dy, weights) in fours {
            let (a, rest) = weights.split_at(width);
            let (b, rest) = rest.split_at(width);
            let (c, d) = rest.split_at(width);
            for ((((dx, a), b), c), d) in dx.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *dx += dy[0] * a + dy[1] * b + dy[2] * c + dy[3] * d;
            }
        }
        let done = dy.len() / 4 * 4;
        for (dy, weights) in dy[done..].iter().zip(weights[done * width..].chunks_exact(width)) {
            dx.iter_mut().zip(weights).for_each(|(dx, w)| *dx += dy * w);
        }
    }
}

#[cfg(feature = "native")]
impl Weight {
    /// `dx += dy · W` for `dy` `[n, rows]` and `dx` `[n, in]`: the way back through [`matmul`](Self::matmul).
    pub fn matmul_back(&self, dy: &[f32], dx: &mut [f32]) {
        // Rows that are expanded at once, and by one thread.
        const STRIP: usize = 1024;
        const PIECE: usize = 64;
        let (n, width) = (dy.len() / self.rows, self.width);
        assert!(dy.len() == n * self.rows && dx.len() == n * width);
        let mut weights = Vec::new();
        for first in (0..self.rows).step_by(STRIP) {
            let rows = STRIP.min(self.rows - first);
            weights.resize(rows * width, 0.0);
            let pieces = weights.par_chunks_mut(PIECE * width).enumerate();
            pieces.for_each(|(i, piece)| self.expand(first + i * PIECE, piece));
            // SAFETY: `dy` is read at columns `first..first + rows` of its rows, `weights` and `dx` are read and written
            // as long as was just checked; `dx` does not overlap the others.
            unsafe {
                gemm(
                    n,
                    width,
                    rows,
                    dx.as_mut_ptr(),
                    1,
                    width as isize,
                    true,
                    dy.as_ptr().add(first),
                    1,
                    self.rows as isize,
                    weights.as_ptr(),
                    1,
                    width as isize,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    Parallelism::Rayon(0),
                );
            }
        }
    }
}

/// `out = x · Wᵀ` on one thread: `x` `[n, k]`, `w` `[m, k]`, `out` `[n, m]`, all row-major.
#[cfg(not(target_arch = "wasm32"))]
pub fn gemm_xwt(x: &[f32], w: &[f32], n: usize, m: usize, k: usize, out: &mut [f32]) {
    assert!(x.len() == n * k && w.len() == m * k && out.len() == n * m);
    // SAFETY: the lengths, just checked, are those that the strides reach; `out` does not overlap the inputs.
    unsafe {
        gemm(
            n,
            m,
            k,
            out.as_mut_ptr(),
            1,
            m as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            w.as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn matvec_f32(w: &[f32], x: &[f32], out: &mut [f32]) {
    for (row, out) in w.chunks_exact(x.len()).zip(out) {
        let mut lanes = [0f32; 16];
        let (row16, row_rest) = row.as_chunks::<16>();
        let (x16, x_rest) = x.as_chunks::<16>();
        for (w, x) in row16.iter().zip(x16) {
            for i in 0..16 {
                lanes[i] += w[i] * x[i];
            }
        }
        let rest: f32 = row_rest.iter().zip(x_rest).map(|(w, x)| w * x).sum();
        *out = lanes.iter().sum::<f32>() + rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::quant::quantize;
    use crate::bundle::random;

    #[test]
    fn packed_products_equal_expanded_ones() {
        for (rows, width) in [(1, 32), (7, 96), (101, 160), (300, 576)] {
            for dtype in [Dtype::F32, Dtype::Q8, Dtype::Q4] {
                let tensor = Tensor { name: "w".into(), dtype, shape: vec![rows, width], offset: 0 };
                let mut weight = Weight::zeroed(&tensor);
                let stored = quantize(dtype, &random::weights("w", &[rows, width], 1));
                let middle = stored.len() / 8 * 4;
                weight.write(middle, &stored[middle..]).unwrap();
                weight.write(0, &stored[..middle]).unwrap();
                let mut expanded = vec![0.0; rows * width];
                weight.expand(0, &mut expanded);
                for n in [1, 3, 5, 33] {
                    let x = random::weights("x", &[n, width], n as u64);
                    let mut out = vec![f32::NAN; n * rows];
                    weight.matmul(&x, &mut out);
                    for (i, found) in out.iter().enumerate() {
                        let (x, w) =
                            (&x[i / rows * width..][..width], &expanded[i % rows * width..][..width]);
                        let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        let error = (f64::from(*found) - expected).abs();
                        assert!(error < 2e-5, "{dtype:?} {rows}x{width} n={n}: {found} for {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_way_back_is_the_transpose() {
        for (rows, width, n) in [(7, 96, 1), (1100, 32, 5)] {
            for dtype in [Dtype::F32, Dtype::Q4] {
                let tensor = Tensor { name: "w".into(), dtype, shape: vec![rows, width], offset: 0 };
                let mut weight = Weight::zeroed(&tensor);
                weight.write(0, &quantize(dtype, &random::weights("w", &[rows, width], 1))).unwrap();
                let (x, dy) = (random::weights("x", &[n, width], 2), random::weights("y", &[n, rows], 3));
                let mut y = vec![0.0; n * rows];
                weight.matmul(&x, &mut y);
                let mut dx = vec![0.5; n * width];
                weight.matmul_back(&dy, &mut dx);
                // (x Wᵀ) · dy = x · (dy W)
                let dot = |a: &[f32], b: &[f32]| {
                    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                };
                let (one, other) = (dot(&y, &dy), dot(&x, &dx) - 0.5 * dot(&x, &vec![1.0; x.len()]));
                assert!((one - other).abs() < 1e-3, "{dtype:?} {rows}x{width}: {one} {other}");
                // The way without threads.
                let mut plain = vec![0.5; n * width];
                for first in (0..rows).step_by(STRIP) {
                    let mut weights = vec![0.0; STRIP.min(rows - first) * width];
                    weight.expand(first, &mut weights);
                    back_strip(&dy, rows, first, &weights, &mut plain);
                }
                let spread = dx.iter().fold(0f32, |m, d| m.max(d.abs()));
                assert!(plain.iter().zip(&dx).all(|(a, b)| (a - b).abs() < 1e-4 * spread));
            }
        }
    }

    #[test]
    fn a_write_outside_is_refused() {
        let tensor = Tensor { name: "w".into(), dtype: Dtype::F32, shape: vec![4], offset: 0 };
        let mut weight = Weight::zeroed(&tensor);
        assert!(weight.write(8, &[0; 12]).is_err());
        assert!(weight.write(usize::MAX, &[0; 4]).is_err());
        weight.write(8, &[0; 8]).unwrap();
    }
}
