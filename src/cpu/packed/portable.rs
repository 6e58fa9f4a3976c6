//! [`Lanes`] in plain Rust, which the compiler turns into what the machine has.

use std::array::from_fn;

use half::f16;

use super::lanes::Lanes;
use super::{GROUP, Halves, Words};

/// Arrays.
pub struct Portable;

/// The two 16-bit integers of a word.
#[inline(always)]
fn pair(word: u32) -> [i16; 2] {
    [word as i16, (word >> 16) as i16]
}

#[inline(always)]
fn word([low, high]: [i16; 2]) -> u32 {
    u32::from(low as u16) | u32::from(high as u16) << 16
}

impl Lanes for Portable {
    const SHIFTS_SUMS: bool = true;

    type Int = [u32; GROUP];
    type Float = [f32; GROUP];
    type Widening = ();

    #[inline(always)]
    unsafe fn load(words: *const Words) -> [u32; GROUP] {
        // SAFETY: they can be read.
        unsafe { (*words).0 }
    }
    #[inline(always)]
    fn splat(word: u32) -> [u32; GROUP] {
        [word; GROUP]
    }
    #[inline(always)]
    fn constant(word: u32) -> [u32; GROUP] {
        Self::splat(word)
    }
    #[inline(always)]
    fn and(a: [u32; GROUP], b: [u32; GROUP]) -> [u32; GROUP] {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn shift_u16<const BITS: i32>(a: [u32; GROUP]) -> [u32; GROUP] {
        a.map(|a| word(pair(a).map(|a| (a as u16 >> BITS) as i16)))
    }
    #[inline(always)]
    fn shift_i16<const BITS: i32>(a: [u32; GROUP]) -> [u32; GROUP] {
        a.map(|a| word(pair(a).map(|a| a >> BITS)))
    }
    #[inline(always)]
    fn shift_i32<const BITS: i32>(a: [u32; GROUP]) -> [u32; GROUP] {
        a.map(|a| (a as i32 >> BITS) as u32)
    }
    #[inline(always)]
    fn dot(a: [u32; GROUP], b: [u32; GROUP]) -> [u32; GROUP] {
        from_fn(|i| {
            let ([a, c], [b, d]) = (pair(a[i]), pair(b[i]));
            (i32::from(a) * i32::from(b) + i32::from(c) * i32::from(d)) as u32
        })
    }
    #[inline(always)]
    fn add(a: [u32; GROUP], b: [u32; GROUP]) -> [u32; GROUP] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn float(a: [u32; GROUP]) -> [f32; GROUP] {
        a.map(|a| a as i32 as f32)
    }
    #[inline(always)]
    fn widening() {}
    #[inline(always)]
    unsafe fn halves(halves: *const Halves, (): ()) -> [f32; GROUP] {
        // SAFETY: they can be read.
        unsafe { (*halves).0 }.map(|half| f16::from_bits(half).to_f32_const())
    }
    #[inline(always)]
    fn splat_float(value: f32) -> [f32; GROUP] {
        [value; GROUP]
    }
    #[inline(always)]
    fn times(a: [f32; GROUP], b: [f32; GROUP]) -> [f32; GROUP] {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn plus(a: [f32; GROUP], b: [f32; GROUP]) -> [f32; GROUP] {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn store(a: [f32; GROUP]) -> [f32; GROUP] {
        a
    }
}
