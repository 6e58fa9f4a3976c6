//! [`Lanes`] in wasm's `simd128`.

use core::arch::wasm32::*;
use core::hint::black_box;

use super::lanes::Lanes;
use super::{GROUP, Halves, Words};

#[cfg(not(target_feature = "simd128"))]
compile_error!("the engine of the page is built with RUSTFLAGS=-Ctarget-feature=+simd128, as `./x` does");

/// 128-bit vectors.
pub struct Simd128;

impl Lanes for Simd128 {
    const SHIFTS_SUMS: bool = true;

    type Int = v128;
    type Float = v128;
    /// A mask, and a factor.
    type Widening = (v128, v128);

    #[inline(always)]
    unsafe fn load(words: *const Words) -> v128 {
        // SAFETY: they can be read.
        unsafe { v128_load(words.cast()) }
    }
    #[inline(always)]
    fn splat(word: u32) -> v128 {
        u32x4_splat(word)
    }
    /// A browser's compiler makes a constant anew in every turn of a loop, so it must not see that this is one.
    #[inline(always)]
    fn constant(word: u32) -> v128 {
        black_box(u32x4_splat(word))
    }
    #[inline(always)]
    fn and(a: v128, b: v128) -> v128 {
        v128_and(a, b)
    }
    #[inline(always)]
    fn shift_u16<const BITS: i32>(a: v128) -> v128 {
        u16x8_shr(a, BITS as u32)
    }
    #[inline(always)]
    fn shift_i16<const BITS: i32>(a: v128) -> v128 {
        i16x8_shr(a, BITS as u32)
    }
    #[inline(always)]
    fn shift_i32<const BITS: i32>(a: v128) -> v128 {
        i32x4_shr(a, BITS as u32)
    }
    #[inline(always)]
    fn dot(a: v128, b: v128) -> v128 {
        i32x4_dot_i16x8(a, b)
    }
    #[inline(always)]
    fn add(a: v128, b: v128) -> v128 {
        i32x4_add(a, b)
    }
    #[inline(always)]
    fn float(a: v128) -> v128 {
        f32x4_convert_i32x4(a)
    }
    #[inline(always)]
    fn widening() -> (v128, v128) {
        // The sign stands in the upper four bits, and is wanted in the first of them.
        (Self::constant(0x8fff_ffff), Self::constant((127 + 112) << 23))
    }
    /// The exponents of half floats are 112 smaller. Exact, also for subnormal ones; infinities become large numbers.
    #[inline(always)]
    unsafe fn halves(halves: *const Halves, (mask, factor): (v128, v128)) -> v128 {
        // SAFETY: they can be read.
        let four = unsafe { v128_load64_zero(halves.cast()) };
        let wide = i32x4_shl(i32x4_extend_low_i16x8(four), 13);
        f32x4_mul(v128_and(wide, mask), factor)
    }
    #[inline(always)]
    fn splat_float(value: f32) -> v128 {
        f32x4_splat(value)
    }
    #[inline(always)]
    fn times(a: v128, b: v128) -> v128 {
        f32x4_mul(a, b)
    }
    #[inline(always)]
    fn plus(a: v128, b: v128) -> v128 {
        f32x4_add(a, b)
    }
    #[inline(always)]
    fn store(a: v128) -> [f32; GROUP] {
        // SAFETY: both are four floats.
        unsafe { core::mem::transmute(a) }
    }
}
