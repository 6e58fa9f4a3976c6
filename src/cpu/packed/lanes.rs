//! The few vector instructions that products need, for a group of rows at a time.

use super::{GROUP, Halves, Words};

/// A 32-bit lane for each row.
pub trait Lanes {
    /// 32-bit integers, or as many pairs of 16-bit ones.
    type Int: Copy;
    /// As many floats.
    type Float: Copy;
    /// Whether, for one token, nibbles are better left where they stand in a word, and their sums shifted.
    const SHIFTS_SUMS: bool;

    /// What half floats are made floats with.
    type Widening: Copy;

    /// Loads.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load(words: *const Words) -> Self::Int;
    /// One word in all lanes.
    fn splat(word: u32) -> Self::Int;
    /// The same for a word that a loop needs in every turn.
    fn constant(word: u32) -> Self::Int;
    /// Bit by bit.
    fn and(a: Self::Int, b: Self::Int) -> Self::Int;
    /// Unsigned 16-bit integers shifted right.
    fn shift_u16<const BITS: i32>(a: Self::Int) -> Self::Int;
    /// Signed 16-bit integers shifted right.
    fn shift_i16<const BITS: i32>(a: Self::Int) -> Self::Int;
    /// Signed 32-bit integers shifted right.
    fn shift_i32<const BITS: i32>(a: Self::Int) -> Self::Int;
    /// Products of signed 16-bit integers, summed in pairs.
    fn dot(a: Self::Int, b: Self::Int) -> Self::Int;
    /// 32-bit sums.
    fn add(a: Self::Int, b: Self::Int) -> Self::Int;
    /// To floats.
    fn float(a: Self::Int) -> Self::Float;

    /// What [`halves`](Self::halves) needs, made once before a loop.
    fn widening() -> Self::Widening;
    /// Half floats as floats.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn halves(halves: *const Halves, widening: Self::Widening) -> Self::Float;
    /// One float in all lanes.
    fn splat_float(value: f32) -> Self::Float;
    /// Products.
    fn times(a: Self::Float, b: Self::Float) -> Self::Float;
    /// Sums.
    fn plus(a: Self::Float, b: Self::Float) -> Self::Float;
    /// The floats.
    fn store(a: Self::Float) -> [f32; GROUP];
}
