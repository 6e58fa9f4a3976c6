//! [`Lanes`] in AVX2.
//!
//! Its functions may be called, and are inlined, only where `avx2` and `f16c` are switched on.

use core::arch::x86_64::*;

use super::lanes::Lanes;
use super::{GROUP, Halves, Words};

/// Whether this machine has what [`Avx2`] needs.
pub fn is_here() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// 256-bit vectors.
pub struct Avx2;

/// The value of an intrinsic that does no more than compute.
macro_rules! compute {
    ($e:expr) => {
        // SAFETY: the module's functions are called only where the features are there.
        unsafe { $e }
    };
}

impl Lanes for Avx2 {
    const SHIFTS_SUMS: bool = false;

    type Int = __m256i;
    type Float = __m256;
    type Widening = ();

    #[inline(always)]
    unsafe fn load(words: *const Words) -> __m256i {
        // SAFETY: they can be read, are aligned, and the features are there.
        unsafe { _mm256_load_si256(words.cast()) }
    }
    #[inline(always)]
    fn splat(word: u32) -> __m256i {
        compute!(_mm256_set1_epi32(word as i32))
    }
    #[inline(always)]
    fn constant(word: u32) -> __m256i {
        Self::splat(word)
    }
    #[inline(always)]
    fn and(a: __m256i, b: __m256i) -> __m256i {
        compute!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn shift_u16<const BITS: i32>(a: __m256i) -> __m256i {
        compute!(_mm256_srli_epi16::<BITS>(a))
    }
    #[inline(always)]
    fn shift_i16<const BITS: i32>(a: __m256i) -> __m256i {
        compute!(_mm256_srai_epi16::<BITS>(a))
    }
    #[inline(always)]
    fn shift_i32<const BITS: i32>(a: __m256i) -> __m256i {
        compute!(_mm256_srai_epi32::<BITS>(a))
    }
    #[inline(always)]
    fn dot(a: __m256i, b: __m256i) -> __m256i {
        compute!(_mm256_madd_epi16(a, b))
    }
    #[inline(always)]
    fn add(a: __m256i, b: __m256i) -> __m256i {
        compute!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn float(a: __m256i) -> __m256 {
        compute!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn widening() {}
    #[inline(always)]
    unsafe fn halves(halves: *const Halves, (): ()) -> __m256 {
        // SAFETY: they can be read, are aligned, and the features are there.
        unsafe { _mm256_cvtph_ps(_mm_load_si128(halves.cast())) }
    }
    #[inline(always)]
    fn splat_float(value: f32) -> __m256 {
        compute!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn times(a: __m256, b: __m256) -> __m256 {
        compute!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn plus(a: __m256, b: __m256) -> __m256 {
        compute!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn store(a: __m256) -> [f32; GROUP] {
        bytemuck::cast(a)
    }
}
