//! Matrix products whose every bit is defined: a recipe gives the same bundle, with the same hashes, on any processor.
//!
//! A GEMM adds up in an order that follows the processor's caches and vectors, and may fuse its multiplications and additions. Here
//! products are added one after the other in the order of the inner dimension, each operation rounded by itself.

use multiversion::multiversion;

/// Columns of the result that are computed side by side, in the lanes of vector registers.
const LANES: usize = 16;
/// Rows of the result that share what is loaded for the lanes.
const ROWS: usize = 4;

/// `out = x · wᵀ` on one thread: `x` `[n, k]`, `w` `[m, k]`, `out` `[n, m]`, all row-major.
///
/// An element is `((0 + x₀w₀) + x₁w₁) + …`, with `f32` rounded to nearest after each operation.
///
/// # Panics
/// If a slice has another length.
pub(crate) fn product(x: &[f32], w: &[f32], [n, m, k]: [usize; 3], out: &mut [f32]) {
    assert!(x.len() == n * k && w.len() == m * k && out.len() == n * m);
    let mut panel = vec![[0f32; LANES]; k];
    for first in (0..m).step_by(LANES) {
        let columns = LANES.min(m - first);
        for (lane, row) in w[first * k..].chunks_exact(k.max(1)).take(columns).enumerate() {
            panel.iter_mut().zip(row).for_each(|(lanes, w)| lanes[lane] = *w);
        }
        columns_of(x, &panel, out, m, first..first + columns);
    }
}

/// The `columns` of `out` `[n, m]`, of which `panel` `[k, LANES]` holds the rows of `w`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn columns_of(x: &[f32], panel: &[[f32; LANES]], out: &mut [f32], m: usize, columns: std::ops::Range<usize>) {
    let k = panel.len();
    let n = out.len() / m;
    for first in (0..n).step_by(ROWS) {
        // At the end some rows are computed twice.
        let rows: [usize; ROWS] = std::array::from_fn(|r| (first + r).min(n - 1));
        let x = rows.map(|row| &x[row * k..][..k]);
        let mut sums = [[0f32; LANES]; ROWS];
        for (i, w) in panel.iter().enumerate() {
            for r in 0..ROWS {
                let x = x[r][i];
                for l in 0..LANES {
                    sums[r][l] += x * w[l];
                }
            }
        }
        for (row, sums) in rows.iter().zip(&sums) {
            out[row * m..][columns.clone()].copy_from_slice(&sums[..columns.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::random;

    #[test]
    fn every_bit_is_that_of_a_plain_loop() {
        for [n, m, k] in
            [[1, 1, 1], [5, 17, 33], [4, 16, 64], [3, 40, 832], [130, 31, 7], [2, 3, 0], [0, 3, 2]]
        {
            let (x, w) = (random::weights("x", &[n, k], 3), random::weights("w", &[m, k], 4));
            let mut out = vec![f32::NAN; n * m];
            product(&x, &w, [n, m, k], &mut out);
            for (i, found) in out.iter().enumerate() {
                let mut sum = 0f32;
                for j in 0..k {
                    sum += x[i / m * k + j] * w[i % m * k + j];
                }
                assert_eq!(found.to_bits(), sum.to_bits(), "{n}x{m}x{k}, element {i}");
            }
        }
    }
}
