//! Products with packed weights in wasm's `simd128`: integers times integers, on the blocks as they are stored.
//!
//! A block of the input becomes 16-bit integers with one scale, which costs less precision than f32 sums in another
//! order do, and lets one instruction (`i32x4.dot_i16x8_s`) do eight products.

use core::arch::wasm32::*;
use core::marker::PhantomData;

use bytemuck::cast_slice;

use crate::config::BLOCK;

#[cfg(not(target_feature = "simd128"))]
compile_error!("the engine of the page is built with RUSTFLAGS=-Ctarget-feature=+simd128, as `./x` does");

/// Rows that are multiplied with one token's input side by side, or tokens with one row.
const SIDE: usize = 4;

/// The input of a product, `[n, in]`, as integers.
pub struct Input {
    /// `[n, in / 32]` blocks of 32 integers: of the first sixteen the even ones, then the odd ones, and of the others
    /// likewise. Pairs of bytes, or of nibbles, come apart most cheaply so.
    quants: Vec<[v128; 4]>,
    /// `[n, in / 32]`: what the integers are multiplied with, and the block's sum.
    scales: Vec<[f32; 2]>,
    blocks: usize,
}

impl Input {
    /// Takes in `x` `[n, width]`.
    pub fn new(x: &[f32], width: usize) -> Self {
        let (blocks, _) = x.as_chunks::<BLOCK>();
        let (quants, scales) = blocks.iter().map(quantize).unzip();
        Self { quants, scales, blocks: width / BLOCK }
    }

    fn token(&self, t: usize) -> Token<'_> {
        let range = t * self.blocks..(t + 1) * self.blocks;
        Token { quants: &self.quants[range.clone()], scales: &self.scales[range] }
    }
}

/// The input of one token.
#[derive(Clone, Copy)]
struct Token<'a> {
    quants: &'a [[v128; 4]],
    scales: &'a [[f32; 2]],
}

fn quantize(x: &[f32; BLOCK]) -> ([v128; 4], [f32; 2]) {
    let (fours, _) = cast_slice::<f32, u8>(x).as_chunks::<16>();
    let (mut max, mut sum) = (f32x4_splat(0.0), f32x4_splat(0.0));
    for four in fours {
        let four = load(four);
        max = f32x4_pmax(max, f32x4_abs(four));
        sum = f32x4_add(sum, four);
    }
    max = f32x4_pmax(max, i32x4_shuffle::<2, 3, 0, 1>(max, max));
    max = f32x4_pmax(max, i32x4_shuffle::<1, 0, 3, 2>(max, max));
    let scale = f32x4_extract_lane::<0>(max) / f32::from(i16::MAX);
    let inverse = f32x4_splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
    let four = |i: usize| i32x4_trunc_sat_f32x4(f32x4_nearest(f32x4_mul(load(&fours[i]), inverse)));
    let eight = |i: usize| i16x8_narrow_i32x4(four(i), four(i + 1));
    let (a, b, c, d) = (eight(0), eight(2), eight(4), eight(6));
    (
        [
            i16x8_shuffle::<0, 2, 4, 6, 8, 10, 12, 14>(a, b),
            i16x8_shuffle::<1, 3, 5, 7, 9, 11, 13, 15>(a, b),
            i16x8_shuffle::<0, 2, 4, 6, 8, 10, 12, 14>(c, d),
            i16x8_shuffle::<1, 3, 5, 7, 9, 11, 13, 15>(c, d),
        ],
        [scale, total(sum)],
    )
}

/// How a packed block becomes integers, and its scales floats.
pub trait Packed {
    /// Bytes of a block's quants.
    const QUANTS: usize;
    /// Bytes of a block's scales.
    const SCALES: usize;

    /// The block's 32 integers.
    fn unpack(quants: &[u8]) -> [v128; 4];
    /// Scale and minimum of two blocks in turn.
    fn two_scales(scales: &[u8]) -> v128;
    /// Scale and minimum of one block, and zeros.
    fn one_scale(scales: &[u8]) -> v128;
}

/// `Dtype::Q8`.
pub struct Q8;

impl Packed for Q8 {
    const QUANTS: usize = BLOCK;
    const SCALES: usize = 2;

    #[inline(always)]
    fn unpack(quants: &[u8]) -> [v128; 4] {
        let (first, second) = (load(array(quants)), load(array(&quants[16..])));
        let even = |bytes| i16x8_shr(i16x8_shl(bytes, 8), 8);
        let odd = |bytes| i16x8_shr(bytes, 8);
        [even(first), odd(first), even(second), odd(second)]
    }

    #[inline(always)]
    fn two_scales(scales: &[u8]) -> v128 {
        let two = u64::from(u32::from_le_bytes(*array(scales)));
        halves(two & 0xffff | two >> 16 << 32)
    }

    #[inline(always)]
    fn one_scale(scales: &[u8]) -> v128 {
        halves(u16::from_le_bytes(*array(scales)).into())
    }
}

/// `Dtype::Q4`.
pub struct Q4;

impl Packed for Q4 {
    const QUANTS: usize = BLOCK / 2;
    const SCALES: usize = 4;

    #[inline(always)]
    fn unpack(quants: &[u8]) -> [v128; 4] {
        let nibbles = load(array(quants));
        let low = |nibbles| v128_and(nibbles, u16x8_splat(15));
        [low(nibbles), low(u16x8_shr(nibbles, 8)), low(u16x8_shr(nibbles, 4)), u16x8_shr(nibbles, 12)]
    }

    #[inline(always)]
    fn two_scales(scales: &[u8]) -> v128 {
        halves(u64::from_le_bytes(*array(scales)))
    }

    #[inline(always)]
    fn one_scale(scales: &[u8]) -> v128 {
        halves(u32::from_le_bytes(*array(scales)).into())
    }
}

/// `out = x · Wᵀ` for `W` `[rows, in]` in two planes, and `out` `[n, rows]`.
pub fn matmul<P: Packed>(quants: &[u8], scales: &[u8], input: &Input, rows: usize, out: &mut [f32]) {
    let n = out.len() / rows;
    let row = |r: usize| Row::<P>::new(quants, scales, r, input.blocks);
    let tokens = n / SIDE * SIDE;
    for r in 0..if tokens > 0 { rows } else { 0 } {
        for t in (0..tokens).step_by(SIDE) {
            let x = [input.token(t), input.token(t + 1), input.token(t + 2), input.token(t + 3)];
            let products = row(r).times_four(x);
            products.iter().enumerate().for_each(|(i, product)| out[(t + i) * rows + r] = *product);
        }
    }
    for (t, out) in out.chunks_exact_mut(rows).enumerate().skip(tokens) {
        let x = input.token(t);
        let (fours, rest) = out.as_chunks_mut::<SIDE>();
        let first_of_rest = fours.len() * SIDE;
        for (i, four) in fours.iter_mut().enumerate() {
            let r = i * SIDE;
            *four = four_times([row(r), row(r + 1), row(r + 2), row(r + 3)], x);
        }
        for (i, product) in rest.iter_mut().enumerate() {
            *product = row(first_of_rest + i).times(x);
        }
    }
}

/// A row of the weights.
struct Row<'a, P> {
    quants: &'a [u8],
    scales: &'a [u8],
    packed: PhantomData<P>,
}

// Loops over rows or tokens are written out: the compiler would keep the sums in memory otherwise.
impl<'a, P: Packed> Row<'a, P> {
    fn new(quants: &'a [u8], scales: &'a [u8], r: usize, blocks: usize) -> Self {
        let (q, s) = (P::QUANTS * blocks, P::SCALES * blocks);
        Self { quants: &quants[r * q..(r + 1) * q], scales: &scales[r * s..(r + 1) * s], packed: PhantomData }
    }

    #[inline(always)]
    fn block(&self, block: usize) -> [v128; 4] {
        P::unpack(&self.quants[block * P::QUANTS..][..P::QUANTS])
    }

    #[inline(always)]
    fn scales(&self, pair: usize) -> v128 {
        P::two_scales(&self.scales[pair * 2 * P::SCALES..][..2 * P::SCALES])
    }

    /// The product of the last block, where blocks make no pairs.
    fn odd_block(&self, x: Token<'_>) -> f32 {
        if x.quants.len().is_multiple_of(2) {
            return 0.0;
        }
        let block = x.quants.len() - 1;
        let [scale, sum] = x.scales[block];
        let scales = f32x4_mul(P::one_scale(&self.scales[block * P::SCALES..]), f32x4(scale, sum, 0.0, 0.0));
        let products = f32x4_mul(dot(self.block(block), x.quants[block]), first(scales));
        total(f32x4_add(products, minima(scales)))
    }

    fn times(&self, x: Token<'_>) -> f32 {
        let mut sum = f32x4_splat(0.0);
        for pair in 0..x.quants.len() / 2 {
            let scales = f32x4_mul(self.scales(pair), x.scales(pair));
            sum = add(sum, self.block(2 * pair), x.quants[2 * pair], first(scales));
            sum = add(sum, self.block(2 * pair + 1), x.quants[2 * pair + 1], third(scales));
            sum = f32x4_add(sum, minima(scales));
        }
        total(sum) + self.odd_block(x)
    }

    fn times_four(&self, x: [Token<'_>; SIDE]) -> [f32; SIDE] {
        let [mut a, mut b, mut c, mut d] = [f32x4_splat(0.0); SIDE];
        let [xa, xb, xc, xd] = x;
        for pair in 0..xa.quants.len() / 2 {
            let scales = self.scales(pair);
            let (sa, sb) = (f32x4_mul(scales, xa.scales(pair)), f32x4_mul(scales, xb.scales(pair)));
            let (sc, sd) = (f32x4_mul(scales, xc.scales(pair)), f32x4_mul(scales, xd.scales(pair)));
            let block = 2 * pair;
            let weights = self.block(block);
            a = add(a, weights, xa.quants[block], first(sa));
            b = add(b, weights, xb.quants[block], first(sb));
            c = add(c, weights, xc.quants[block], first(sc));
            d = add(d, weights, xd.quants[block], first(sd));
            let weights = self.block(block + 1);
            a = f32x4_add(add(a, weights, xa.quants[block + 1], third(sa)), minima(sa));
            b = f32x4_add(add(b, weights, xb.quants[block + 1], third(sb)), minima(sb));
            c = f32x4_add(add(c, weights, xc.quants[block + 1], third(sc)), minima(sc));
            d = f32x4_add(add(d, weights, xd.quants[block + 1], third(sd)), minima(sd));
        }
        let odd = |x| self.odd_block(x);
        [total(a) + odd(xa), total(b) + odd(xb), total(c) + odd(xc), total(d) + odd(xd)]
    }
}

/// The products of four rows with one token's input.
fn four_times<P: Packed>([ra, rb, rc, rd]: [Row<'_, P>; SIDE], x: Token<'_>) -> [f32; SIDE] {
    let [mut a, mut b, mut c, mut d] = [f32x4_splat(0.0); SIDE];
    for pair in 0..x.quants.len() / 2 {
        let scales = x.scales(pair);
        let (sa, sb) = (f32x4_mul(ra.scales(pair), scales), f32x4_mul(rb.scales(pair), scales));
        let (sc, sd) = (f32x4_mul(rc.scales(pair), scales), f32x4_mul(rd.scales(pair), scales));
        let block = 2 * pair;
        let quants = x.quants[block];
        a = add(a, ra.block(block), quants, first(sa));
        b = add(b, rb.block(block), quants, first(sb));
        c = add(c, rc.block(block), quants, first(sc));
        d = add(d, rd.block(block), quants, first(sd));
        let quants = x.quants[block + 1];
        a = f32x4_add(add(a, ra.block(block + 1), quants, third(sa)), minima(sa));
        b = f32x4_add(add(b, rb.block(block + 1), quants, third(sb)), minima(sb));
        c = f32x4_add(add(c, rc.block(block + 1), quants, third(sc)), minima(sc));
        d = f32x4_add(add(d, rd.block(block + 1), quants, third(sd)), minima(sd));
    }
    [
        total(a) + ra.odd_block(x),
        total(b) + rb.odd_block(x),
        total(c) + rc.odd_block(x),
        total(d) + rd.odd_block(x),
    ]
}

impl Token<'_> {
    /// Scale and sum of two blocks in turn.
    #[inline(always)]
    fn scales(&self, pair: usize) -> v128 {
        load(array(cast_slice(&self.scales[2 * pair..2 * pair + 2])))
    }
}

/// `sum + w · x · scale`, in four parts. The integers stay far below 2³¹: 32 · 128 · 32,767.
#[inline(always)]
fn add(sum: v128, w: [v128; 4], x: [v128; 4], scale: v128) -> v128 {
    f32x4_add(sum, f32x4_mul(dot(w, x), scale))
}

#[inline(always)]
fn dot(w: [v128; 4], x: [v128; 4]) -> v128 {
    let (a, b) = (i32x4_dot_i16x8(w[0], x[0]), i32x4_dot_i16x8(w[1], x[1]));
    let (c, d) = (i32x4_dot_i16x8(w[2], x[2]), i32x4_dot_i16x8(w[3], x[3]));
    f32x4_convert_i32x4(i32x4_add(i32x4_add(a, b), i32x4_add(c, d)))
}

#[inline(always)]
fn first(v: v128) -> v128 {
    i32x4_shuffle::<0, 0, 0, 0>(v, v)
}

#[inline(always)]
fn third(v: v128) -> v128 {
    i32x4_shuffle::<2, 2, 2, 2>(v, v)
}

/// Lanes 1 and 3: of scales, minima times sums.
#[inline(always)]
fn minima(v: v128) -> v128 {
    v128_and(v, u64x2_splat(0xffff_ffff_0000_0000))
}

fn total(v: v128) -> f32 {
    let halves = f32x4_add(v, i32x4_shuffle::<2, 3, 0, 1>(v, v));
    f32x4_extract_lane::<0>(halves) + f32x4_extract_lane::<1>(halves)
}

/// Four half floats as floats, whose exponents are 112 larger. Exact, also for subnormal ones; infinities become
/// large numbers.
#[inline(always)]
fn halves(four: u64) -> v128 {
    let wide = i32x4_shl(i32x4_extend_low_i16x8(u64x2(four, 0)), 13);
    // The sign stands in the upper four bits, and is wanted in the first of them.
    let float = v128_and(wide, u32x4_splat(0x8fff_ffff));
    f32x4_mul(float, f32x4_splat(f32::from_bits((127 + 112) << 23)))
}

#[inline(always)]
fn load(bytes: &[u8; 16]) -> v128 {
    // SAFETY: sixteen bytes may be read there, and the instruction asks for no alignment.
    unsafe { v128_load(bytes.as_ptr().cast()) }
}

/// The first bytes of a slice that has as many.
#[inline(always)]
fn array<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.first_chunk().expect("planes hold whole blocks")
}
