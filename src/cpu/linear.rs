//! Matrix products with stored weights. Natively: dot products on the packed blocks for one token, expanded panels
//! and a GEMM for many. In wasm: see `simd`.

#[cfg(not(target_arch = "wasm32"))]
use gemm::{Parallelism, gemm};
#[cfg(not(target_arch = "wasm32"))]
use half::f16;
use multiversion::multiversion;
#[cfg(feature = "native")]
use rayon::prelude::*;

#[cfg(target_arch = "wasm32")]
use super::simd;
use crate::bundle::manifest::Tensor;
use crate::bundle::quant::{Dtype, dequantize};
#[cfg(not(target_arch = "wasm32"))]
use crate::config::BLOCK;
use crate::error::{Error, Result};

/// From so many tokens on, expanding a panel of weights pays.
#[cfg(not(target_arch = "wasm32"))]
const GEMM_FROM: usize = 4;
/// Output rows that are expanded and multiplied at once.
#[cfg(not(target_arch = "wasm32"))]
const PANEL: usize = 96;

/// A tensor in memory, in the planes it is stored in.
#[derive(Debug)]
pub struct Weight {
    dtype: Dtype,
    /// Output rows; 1 for a vector.
    rows: usize,
    /// Input width.
    width: usize,
    // u32 for the alignment of its planes.
    data: Vec<u32>,
    quant_bytes: usize,
}

impl Weight {
    /// Room for `tensor`, all zeros.
    pub fn zeroed(tensor: &Tensor) -> Self {
        let [quant_bytes, _] = tensor.dtype.planes(tensor.elements());
        let width = tensor.shape.last().copied().unwrap_or(0);
        Self {
            dtype: tensor.dtype,
            rows: tensor.elements().checked_div(width).unwrap_or(0),
            width,
            data: vec![0; tensor.bytes() / 4],
            quant_bytes,
        }
    }

    /// Puts `bytes` at `offset` of the planes.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they lie outside.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut self.data);
        let len = all.len();
        let target = offset.checked_add(bytes.len()).and_then(|end| all.get_mut(offset..end));
        let Some(target) = target else {
            return Err(Error::invalid(
                format!("{} bytes at {offset} of a tensor", bytes.len()),
                format!("it has {len}"),
            ));
        };
        target.copy_from_slice(bytes);
        Ok(())
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        self.data.len() as u64 * 4
    }

    /// The two planes as stored.
    pub fn planes(&self) -> (&[u8], &[u8]) {
        bytemuck::cast_slice::<u32, u8>(&self.data).split_at(self.quant_bytes)
    }

    /// Expands rows `first..` into `out` `[rows, width]`.
    pub fn expand(&self, first: usize, out: &mut [f32]) {
        let (quants, scales) = self.planes();
        dequantize(self.dtype, quants, scales, first * self.width, out);
    }

    /// The values of a vector stored as `f32`.
    pub fn vector(&self) -> &[f32] {
        bytemuck::cast_slice(&self.data)
    }

    /// `out = x · Wᵀ` for `x` `[n, in]` and `out` `[n, rows]`.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn matmul(&self, x: &[f32], out: &mut [f32]) {
        debug_assert_eq!(x.len() / self.width, out.len() / self.rows);
        if x.len() < GEMM_FROM * self.width {
            for (x, out) in x.chunks_exact(self.width).zip(out.chunks_exact_mut(self.rows)) {
                self.matvec(x, out);
            }
        } else {
            self.matmul_panels(x, out);
        }
    }

    /// `out = x · Wᵀ` for `x` `[n, in]` and `out` `[n, rows]`.
    #[cfg(target_arch = "wasm32")]
    pub fn matmul(&self, x: &[f32], out: &mut [f32]) {
        let (quants, scales) = self.planes();
        let input = || simd::Input::new(x, self.width);
        match self.dtype {
            Dtype::F32 => {
                for (x, out) in x.chunks_exact(self.width).zip(out.chunks_exact_mut(self.rows)) {
                    matvec_f32(bytemuck::cast_slice(quants), x, out);
                }
            }
            Dtype::Q8 => simd::matmul::<simd::Q8>(quants, scales, &input(), self.rows, out),
            Dtype::Q4 => simd::matmul::<simd::Q4>(quants, scales, &input(), self.rows, out),
        }
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn matvec(&self, x: &[f32], out: &mut [f32]) {
        // [in / 32]: what a block's minimum is multiplied with.
        let sums: Vec<f32> = x.chunks(BLOCK).map(|b| b.iter().sum()).collect();
        let (quants, scales) = self.planes();
        let (row_quants, row_scales) = (quants.len() / self.rows, self.width / BLOCK * 2);
        let rows = |first: usize, out: &mut [f32]| {
            let count = out.len();
            let quants = &quants[first * row_quants..(first + count) * row_quants];
            match self.dtype {
                Dtype::F32 => matvec_f32(bytemuck::cast_slice(quants), x, out),
                Dtype::Q8 => {
                    let scales = &scales[first * row_scales..(first + count) * row_scales];
                    matvec_q8(bytemuck::cast_slice(quants), bytemuck::cast_slice(scales), x, out);
                }
                Dtype::Q4 => {
                    let scales = &scales[first * row_scales * 2..(first + count) * row_scales * 2];
                    matvec_q4(quants, bytemuck::cast_slice(scales), x, &sums, out);
                }
            }
        };
        #[cfg(feature = "native")]
        {
            // One piece a thread: the rows are alike.
            let piece = self.rows.div_ceil(rayon::current_num_threads()).max(32);
            out.par_chunks_mut(piece).enumerate().for_each(|(i, out)| rows(i * piece, out));
        }
        #[cfg(not(feature = "native"))]
        rows(0, out);
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn matmul_panels(&self, x: &[f32], out: &mut [f32]) {
        let n = x.len() / self.width;
        // [panels][n, rows of the panel]
        let mut products = vec![0f32; n * self.rows];
        let panel = |i: usize, product: &mut [f32]| {
            let rows = product.len() / n;
            let mut weights = vec![0f32; rows * self.width];
            self.expand(i * PANEL, &mut weights);
            gemm_xwt(x, &weights, n, rows, self.width, product);
        };
        #[cfg(feature = "native")]
        products.par_chunks_mut(n * PANEL).enumerate().for_each(|(i, p)| panel(i, p));
        #[cfg(not(feature = "native"))]
        products.chunks_mut(n * PANEL).enumerate().for_each(|(i, p)| panel(i, p));
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

#[cfg(not(target_arch = "wasm32"))]
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn matvec_q8(quants: &[i8], scales: &[f16], x: &[f32], out: &mut [f32]) {
    let (x, _) = x.as_chunks::<BLOCK>();
    let rows = quants.as_chunks::<BLOCK>().0.chunks_exact(x.len()).zip(scales.chunks_exact(x.len()));
    for ((row, scales), out) in rows.zip(out) {
        let mut lanes = [0f32; 16];
        for ((q, d), x) in row.iter().zip(scales).zip(x) {
            let d = d.to_f32_const();
            for i in 0..16 {
                lanes[i] += d * (f32::from(q[i]) * x[i] + f32::from(q[i + 16]) * x[i + 16]);
            }
        }
        *out = lanes.iter().sum();
    }
}

#[cfg(not(target_arch = "wasm32"))]
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn matvec_q4(quants: &[u8], scales: &[f16], x: &[f32], sums: &[f32], out: &mut [f32]) {
    let (x, _) = x.as_chunks::<BLOCK>();
    let (quants, _) = quants.as_chunks::<{ BLOCK / 2 }>();
    let (scales, _) = scales.as_chunks::<2>();
    let rows = quants.chunks_exact(x.len()).zip(scales.chunks_exact(x.len()));
    for ((row, scales), out) in rows.zip(out) {
        let mut lanes = [0f32; 16];
        let mut minima = 0f32;
        for (((q, [d, m]), x), sum) in row.iter().zip(scales).zip(x).zip(sums) {
            let d = d.to_f32_const();
            minima += m.to_f32_const() * sum;
            for i in 0..16 {
                lanes[i] += d * (f32::from(q[i] & 15) * x[i] + f32::from(q[i] >> 4) * x[i + 16]);
            }
        }
        *out = lanes.iter().sum::<f32>() + minima;
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
                        assert!(error < 1e-5, "{dtype:?} {rows}x{width} n={n}: {found} for {expected}");
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
