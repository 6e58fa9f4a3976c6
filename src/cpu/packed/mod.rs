//! Weights of 4 and 8 bits, and their products with integer activations.
//!
//! Rows lie in groups of eight (of four in wasm), word by word side by side, so that each lane of a vector works for a row of its own:
//! scales and sums need no shuffles, and one broadcast of two activations serves eight rows.
//!
//! A block of 32 activations becomes 16-bit integers with one scale ([`input`]), which costs less precision than f32 sums
//! in another order do, and lets one instruction do sixteen products (eight in wasm). The products of a block are
//! summed exactly, blocks are added in order, each operation rounded by itself: so the bits of a product depend neither on
//! the instruction set, nor on the number of threads, nor on how many tokens are multiplied at once.

mod input;
mod lanes;
mod product;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(not(target_arch = "wasm32"))]
mod portable;
#[cfg(target_arch = "wasm32")]
mod wasm;

use bytemuck::{Pod, Zeroable};

use self::input::Input;
use super::memory::Memory;
use super::team;
use crate::bundle::quant::{Dtype, dequantize};
use crate::config::BLOCK;

/// Rows side by side: as many as a vector has lanes.
const GROUP: usize = if cfg!(target_arch = "wasm32") { 4 } else { 8 };

/// Pieces of work for each thread: a few, so that one that was interrupted holds up the others little.
const PIECES: usize = 4;

/// A word of each row of a group: eight quants of `q4`, or four of `q8`.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(16))]
#[cfg_attr(not(target_arch = "wasm32"), repr(align(32)))]
pub struct Words(pub [u32; GROUP]);

/// A half float of each row of a group.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(8))]
#[cfg_attr(not(target_arch = "wasm32"), repr(align(16)))]
pub struct Halves(pub [u16; GROUP]);

/// How a block is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Dtype::Q4`].
    Q4,
    /// [`Dtype::Q8`]; the bytes at even places have their sign bit flipped, so that a mask unpacks them.
    Q8,
}

impl Kind {
    fn dtype(self) -> Dtype {
        match self {
            Self::Q4 => Dtype::Q4,
            Self::Q8 => Dtype::Q8,
        }
    }

    /// Words of quants, and halves of scales, of a block.
    fn sizes(self) -> (usize, usize) {
        match self {
            Self::Q4 => (BLOCK / 8, 2),
            Self::Q8 => (BLOCK / 4, 1),
        }
    }

    /// What is flipped of a word of quants.
    fn flip(self) -> u32 {
        match self {
            Self::Q4 => 0,
            Self::Q8 => 0x0080_0080,
        }
    }
}

/// A matrix `[rows, width]`.
#[derive(Debug)]
pub struct Packed {
    kind: Kind,
    rows: usize,
    /// Words and halves of a row.
    sizes: (usize, usize),
    // [groups, words of a row]
    quants: Memory<Words>,
    // [groups, halves of a row]
    scales: Memory<Halves>,
}

impl Packed {
    /// Zeros.
    pub fn zeroed(kind: Kind, rows: usize, width: usize) -> Self {
        let (groups, blocks) = (rows.div_ceil(GROUP), width / BLOCK);
        let (words, halves) = kind.sizes();
        let sizes = (words * blocks, halves * blocks);
        Self {
            kind,
            rows,
            sizes,
            // What is flipped does not matter: the scales are zero.
            quants: Memory::zeroed(groups * sizes.0),
            scales: Memory::zeroed(groups * sizes.1),
        }
    }

    /// Takes a part of the planes that [`crate::bundle::quant`] describes, from byte `offset` on, which lies inside.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let quant_bytes = self.rows * self.sizes.0 * 4;
        let (quants, scales) = bytes.split_at(quant_bytes.saturating_sub(offset).min(bytes.len()));
        let (width, flip) = (self.sizes.0, self.kind.flip());
        let mut place = Place::new(offset / 4, width);
        let all = &mut self.quants[..];
        for word in quants.as_chunks::<4>().0 {
            all[place.at()].0[place.row % GROUP] = u32::from_le_bytes(*word) ^ flip;
            place.step();
        }
        let mut place = Place::new(offset.saturating_sub(quant_bytes) / 2, self.sizes.1);
        let all = &mut self.scales[..];
        for half in scales.as_chunks::<2>().0 {
            if place.row == self.rows {
                // Here the plane is padded to four bytes.
                break;
            }
            all[place.at()].0[place.row % GROUP] = u16::from_le_bytes(*half);
            place.step();
        }
    }

    /// The planes of one row, as they came.
    fn row(&self, row: usize, quants: &mut Vec<u8>, scales: &mut Vec<u8>) {
        let (group, lane) = (row / GROUP, row % GROUP);
        let (words, halves) = self.sizes;
        quants.clear();
        scales.clear();
        let words = &self.quants[group * words..(group + 1) * words];
        quants.extend(words.iter().flat_map(|w| (w.0[lane] ^ self.kind.flip()).to_le_bytes()));
        let halves = &self.scales[group * halves..(group + 1) * halves];
        scales.extend(halves.iter().flat_map(|h| h.0[lane].to_le_bytes()));
    }

    /// The planes as they came.
    #[cfg(test)]
    pub fn planes(&self) -> Vec<u8> {
        let (mut all, mut all_scales) = (Vec::new(), Vec::new());
        let (mut quants, mut scales) = (Vec::new(), Vec::new());
        for row in 0..self.rows {
            self.row(row, &mut quants, &mut scales);
            all.extend_from_slice(&quants);
            all_scales.extend_from_slice(&scales);
        }
        all.extend(all_scales);
        all.resize(all.len().next_multiple_of(4), 0);
        all
    }

    /// Expands rows `first..` into `out` `[rows, width]`.
    pub fn expand(&self, first: usize, out: &mut [f32]) {
        let (mut quants, mut scales) = (Vec::new(), Vec::new());
        for (row, out) in out.chunks_exact_mut(self.width()).enumerate() {
            self.row(first + row, &mut quants, &mut scales);
            dequantize(self.kind.dtype(), &quants, &scales, 0, out);
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.quants[..]) + size_of_val(&self.scales[..])
    }

    fn width(&self) -> usize {
        self.sizes.0 / self.kind.sizes().0 * BLOCK
    }

    /// `out = x · Wᵀ` for `x` `[n, width]` and `out` `[n, rows]`.
    pub fn matmul(&self, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len() / self.width(), out.len() / self.rows);
        let input = Input::new(x);
        let groups = self.rows.div_ceil(GROUP);
        let size = groups.div_ceil(PIECES * team::threads());
        let out = product::Out::new(out, self.rows);
        team::run(groups.div_ceil(size), &|piece| {
            let groups = piece * size..((piece + 1) * size).min(groups);
            // SAFETY: no two pieces share a group.
            unsafe { product::multiply(self, groups, &input, &out) };
        });
    }
}

/// A place in a plane whose rows have `width` parts.
struct Place {
    row: usize,
    part: usize,
    width: usize,
}

impl Place {
    fn new(index: usize, width: usize) -> Self {
        Self { row: index / width, part: index % width, width }
    }

    fn at(&self) -> usize {
        self.row / GROUP * self.width + self.part
    }

    fn step(&mut self) {
        self.part += 1;
        if self.part == self.width {
            (self.row, self.part) = (self.row + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::quant::quantize;
    use crate::bundle::random;

    fn packed(kind: Kind, rows: usize, width: usize) -> (Packed, Vec<u8>) {
        let stored = quantize(kind.dtype(), &random::weights("w", &[rows, width], 1));
        let mut packed = Packed::zeroed(kind, rows, width);
        packed.write(0, &stored);
        (packed, stored)
    }

    /// A product in plain Rust.
    fn portable(packed: &Packed, x: &[f32]) -> Vec<f32> {
        let mut values = vec![0.0; x.len() / packed.width() * packed.rows];
        let out = product::Out::new(&mut values, packed.rows);
        // SAFETY: one thread does it all.
        unsafe { product::multiply_portable(packed, 0..packed.rows.div_ceil(GROUP), &Input::new(x), &out) };
        values
    }

    #[test]
    fn planes_come_back_as_they_came() {
        for kind in [Kind::Q4, Kind::Q8] {
            for (rows, width) in [(1, 32), (7, 96), (16, 64), (101, 160)] {
                let (whole, stored) = packed(kind, rows, width);
                assert_eq!(whole.planes(), stored);
                let mut pieces = Packed::zeroed(kind, rows, width);
                let mut zeros = vec![9.0; width];
                pieces.expand(rows - 1, &mut zeros);
                assert!(zeros.iter().all(|z| *z == 0.0));
                for (i, piece) in stored.chunks(52).enumerate().rev() {
                    pieces.write(i * 52, piece);
                }
                assert_eq!(pieces.planes(), stored);
            }
        }
    }

    #[test]
    fn products_are_those_of_the_integers() {
        for kind in [Kind::Q4, Kind::Q8] {
            for (rows, width) in [(1, 32), (7, 96), (101, 160), (300, 576)] {
                let (packed, _) = packed(kind, rows, width);
                let mut weights = vec![0.0; rows * width];
                packed.expand(0, &mut weights);
                for n in [1, 3, 4, 6, 33] {
                    let x = random::weights("x", &[n, width], n as u64);
                    let seen = Input::new(&x).values();
                    let mut out = vec![f32::NAN; n * rows];
                    packed.matmul(&x, &mut out);
                    for (i, found) in out.iter().enumerate() {
                        let w = &weights[i % rows * width..][..width];
                        let products = seen[i / rows * width..][..width].iter().zip(w);
                        let (sum, size) = products.fold((0f64, 0f64), |(sum, size), (x, w)| {
                            let product = f64::from(*x) * f64::from(*w);
                            (sum + product, size + product.abs())
                        });
                        assert!(
                            (f64::from(*found) - sum).abs() < 1e-6 * size,
                            "{kind:?} {rows}x{width} n={n}: {found} for {sum}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn extreme_integers_do_not_overflow() {
        let width = 64;
        for kind in [Kind::Q4, Kind::Q8] {
            for (quant, x) in [(0xff, 1.0), (0xff, -1.0), (0x80, 1.0), (0x7f, -1.0), (0x7f, 1.0)] {
                let mut stored = quantize(kind.dtype(), &vec![1.0; 8 * width]);
                let quant_bytes = kind.dtype().planes(8 * width)[0];
                stored[..quant_bytes].fill(quant);
                let mut packed = Packed::zeroed(kind, 8, width);
                packed.write(0, &stored);
                let mut weights = vec![0.0; width];
                packed.expand(0, &mut weights);
                for n in [1, 4] {
                    let input = vec![x; n * width];
                    let mut out = vec![0.0; n * 8];
                    packed.matmul(&input, &mut out);
                    assert_eq!(out, portable(&packed, &input));
                    let expected: f32 = weights.iter().map(|w| w * x).sum();
                    assert!(
                        out.iter().all(|o| (o - expected).abs() <= 1e-5 * expected.abs()),
                        "{kind:?} {out:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn bits_depend_neither_on_the_instructions_nor_on_the_tokens_beside() {
        for kind in [Kind::Q4, Kind::Q8] {
            let (rows, width, n) = (61, 224, 7);
            let (packed, _) = packed(kind, rows, width);
            let x = random::weights("x", &[n, width], 9);
            let mut together = vec![0.0; n * rows];
            packed.matmul(&x, &mut together);
            let mut alone = vec![0.0; n * rows];
            for (x, out) in x.chunks_exact(width).zip(alone.chunks_exact_mut(rows)) {
                packed.matmul(x, out);
            }
            assert_eq!(together, alone);
            assert_eq!(together, portable(&packed, &x));
            // One token goes another way.
            assert_eq!(together[..rows], portable(&packed, &x[..width]));
        }
    }
}
