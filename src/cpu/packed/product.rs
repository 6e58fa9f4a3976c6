//! Products of groups of rows with the blocks of a few tokens.

use std::ops::Range;

#[cfg(not(target_arch = "wasm32"))]
use multiversion::multiversion;

#[cfg(target_arch = "x86_64")]
use super::avx2::{self, Avx2};
use super::input::{Block, Input};
use super::lanes::Lanes;
#[cfg(not(target_arch = "wasm32"))]
use super::portable::Portable;
#[cfg(target_arch = "wasm32")]
use super::wasm::Simd128;
use super::{GROUP, Halves, Kind, Packed, Words};
use crate::cpu::team::Shared;

/// Tokens that share the unpacking of a word.
const TOKENS: usize = 4;

/// `[n, rows]`, which several threads fill.
pub struct Out<'a> {
    values: Shared<'a>,
    tokens: usize,
    rows: usize,
}

impl<'a> Out<'a> {
    pub fn new(out: &'a mut [f32], rows: usize) -> Self {
        Self { tokens: out.len() / rows, rows, values: Shared::new(out) }
    }

    /// # Safety
    /// No other thread writes to this group.
    #[inline(always)]
    unsafe fn write(&self, token: usize, group: usize, values: [f32; GROUP]) {
        let count = GROUP.min(self.rows - group * GROUP);
        // SAFETY: no other thread does.
        let out = unsafe { self.values.slice(token * self.rows + group * GROUP, count) };
        out.copy_from_slice(&values[..count]);
    }
}

/// The products of `groups` with all tokens.
///
/// # Safety
/// No other thread writes to these groups of `out`.
pub unsafe fn multiply(weight: &Packed, groups: Range<usize>, input: &Input, out: &Out<'_>) {
    #[cfg(target_arch = "x86_64")]
    if avx2::is_here() {
        // SAFETY: the features are there; the groups are the caller's.
        return unsafe { multiply_avx2(weight, groups, input, out) };
    }
    // SAFETY: the groups are the caller's.
    #[cfg(target_arch = "wasm32")]
    unsafe {
        multiply_with::<Simd128>(weight, groups, input, out);
    }
    // SAFETY: the groups are the caller's.
    #[cfg(not(target_arch = "wasm32"))]
    unsafe {
        multiply_portable(weight, groups, input, out);
    }
}

/// # Safety
/// As [`multiply`]; and this machine has the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
unsafe fn multiply_avx2(weight: &Packed, groups: Range<usize>, input: &Input, out: &Out<'_>) {
    // SAFETY: the groups are the caller's.
    unsafe { multiply_with::<Avx2>(weight, groups, input, out) };
}

/// # Safety
/// As [`multiply`].
#[cfg(not(target_arch = "wasm32"))]
#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
pub unsafe fn multiply_portable(weight: &Packed, groups: Range<usize>, input: &Input, out: &Out<'_>) {
    // SAFETY: the groups are the caller's.
    unsafe { multiply_with::<Portable>(weight, groups, input, out) };
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_with<L: Lanes>(weight: &Packed, groups: Range<usize>, input: &Input, out: &Out<'_>) {
    let (words, halves) = weight.sizes;
    let blocks = input.0.len() / out.tokens;
    assert_eq!((words, halves), (weight.kind.sizes().0 * blocks, weight.kind.sizes().1 * blocks));
    let (all_quants, all_scales) = (&weight.quants[..], &weight.scales[..]);
    for group in groups {
        let quants = all_quants[group * words..(group + 1) * words].as_ptr();
        let scales = all_scales[group * halves..(group + 1) * halves].as_ptr();
        let operands = |token: usize, count: usize| {
            (quants, scales, input.0[token * blocks..][..count * blocks].as_ptr())
        };
        let mut t = 0;
        while t + TOKENS <= out.tokens {
            // SAFETY: the slices just made have so many blocks.
            let products = unsafe { products::<L, TOKENS>(weight.kind, operands(t, TOKENS), blocks) };
            for (i, product) in products.into_iter().enumerate() {
                // SAFETY: the group is the caller's.
                unsafe { out.write(t + i, group, L::store(product)) };
            }
            t += TOKENS;
        }
        while t < out.tokens {
            // SAFETY: the slices just made have so many blocks, and the group is the caller's.
            unsafe {
                let [product] = products::<L, 1>(weight.kind, operands(t, 1), blocks);
                out.write(t, group, L::store(product));
            }
            t += 1;
        }
    }
}

/// Words and scales of a group, and blocks of the input. Pointers, with all places in a block at fixed distances from them:
/// with slices a browser's compiler keeps an address for each of these, and runs out of registers.
type Operands = (*const Words, *const Halves, *const Block);

/// # Safety
/// There are `blocks` blocks of a group, and `N` times as many of the input.
#[inline(always)]
unsafe fn products<L: Lanes, const N: usize>(kind: Kind, operands: Operands, blocks: usize) -> [L::Float; N] {
    // SAFETY: so says the caller.
    unsafe {
        match kind {
            Kind::Q4 => q4::<L, N>(operands, blocks),
            Kind::Q8 => q8::<L, N>(operands, blocks),
        }
    }
}

/// `sum + dots · d · scale`.
#[inline(always)]
fn scaled<L: Lanes>(sum: L::Float, dots: L::Int, d: L::Float, scale: f32) -> L::Float {
    L::plus(sum, L::times(L::float(dots), L::times(d, L::splat_float(scale))))
}

/// # Safety
/// As [`products`].
#[cfg_attr(not(target_arch = "wasm32"), inline(always))]
#[cfg_attr(target_arch = "wasm32", inline(never))]
unsafe fn q4<L: Lanes, const N: usize>(operands: Operands, blocks: usize) -> [L::Float; N] {
    let (mut words, mut scales, mut x) = operands;
    let mut sums = [L::splat_float(0.0); N];
    let widening = L::widening();
    let [first, second, third] = [0x000f_000f, 0x00f0_00f0, 0x0f00_0f00].map(L::constant);
    for _ in 0..blocks {
        // SAFETY: here is a block of the group, and one of each token.
        unsafe {
            let x_of = |t: usize| x.add(t * blocks);
            let mut dots = [L::splat(0); N];
            // Of nibbles that stay 4 and 8 bits up: at most 8 · (15 · 2⁸) · (2¹⁵ − 1), less than 2³⁰.
            let (mut dots_4, mut dots_8) = (L::splat(0), L::splat(0));
            for i in 0..4 {
                let word = L::load(words.add(i));
                let pair = |t: usize, i: usize| L::splat(*pairs(x_of(t)).add(i));
                if N == 1 && L::SHIFTS_SUMS {
                    // Of more tokens there would be more sums than registers.
                    let dot = |sum, weights, i| L::add(sum, L::dot(weights, pair(0, i)));
                    dots[0] = dot(dots[0], L::and(word, first), 2 * i);
                    dots_8 = dot(dots_8, L::and(word, third), 2 * i + 1);
                    dots_4 = dot(dots_4, L::and(word, second), 2 * i + 8);
                    dots[0] = dot(dots[0], L::shift_u16::<12>(word), 2 * i + 9);
                    continue;
                }
                let (a, b) = (L::and(word, first), L::and(L::shift_u16::<8>(word), first));
                let (c, d) = (L::and(L::shift_u16::<4>(word), first), L::shift_u16::<12>(word));
                for (t, dots) in dots.iter_mut().enumerate() {
                    let mut dot = |weights, i| *dots = L::add(*dots, L::dot(weights, pair(t, i)));
                    dot(a, 2 * i);
                    dot(b, 2 * i + 1);
                    dot(c, 2 * i + 8);
                    dot(d, 2 * i + 9);
                }
            }
            if N == 1 && L::SHIFTS_SUMS {
                dots[0] = L::add(dots[0], L::add(L::shift_i32::<4>(dots_4), L::shift_i32::<8>(dots_8)));
            }
            let (d, m) = (L::halves(scales, widening), L::halves(scales.add(1), widening));
            for t in 0..N {
                sums[t] = scaled::<L>(sums[t], dots[t], d, (*x_of(t)).scale);
                sums[t] = L::plus(sums[t], L::times(m, L::splat_float((*x_of(t)).sum)));
            }
            (words, scales, x) = (words.add(4), scales.add(2), x.add(1));
        }
    }
    sums
}

/// # Safety
/// As [`products`].
#[cfg_attr(not(target_arch = "wasm32"), inline(always))]
#[cfg_attr(target_arch = "wasm32", inline(never))]
unsafe fn q8<L: Lanes, const N: usize>(operands: Operands, blocks: usize) -> [L::Float; N] {
    let (mut words, mut scales, mut x) = operands;
    let mut sums = [L::splat_float(0.0); N];
    let widening = L::widening();
    let byte = L::constant(0x00ff_00ff);
    for _ in 0..blocks {
        // SAFETY: here is a block of the group, and one of each token.
        unsafe {
            let x_of = |t: usize| x.add(t * blocks);
            let mut dots: [L::Int; N] = std::array::from_fn(|t| L::splat((*x_of(t)).even as u32));
            for i in 0..8 {
                let word = L::load(words.add(i));
                let (even, odd) = (L::and(word, byte), L::shift_i16::<8>(word));
                for (t, dot) in dots.iter_mut().enumerate() {
                    let pair = |i: usize| L::splat(*pairs(x_of(t)).add(i));
                    *dot = L::add(*dot, L::dot(even, pair(2 * i)));
                    *dot = L::add(*dot, L::dot(odd, pair(2 * i + 1)));
                }
            }
            let d = L::halves(scales, widening);
            for t in 0..N {
                sums[t] = scaled::<L>(sums[t], dots[t], d, (*x_of(t)).scale);
            }
            (words, scales, x) = (words.add(8), scales.add(1), x.add(1));
        }
    }
    sums
}

/// # Safety
/// There is a block.
#[inline(always)]
unsafe fn pairs(block: *const Block) -> *const u32 {
    // SAFETY: there is one.
    unsafe { (&raw const (*block).pairs).cast() }
}
