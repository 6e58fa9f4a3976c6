//! Activations as integers.

use crate::config::BLOCK;
use crate::cpu::kernels::largest;

/// A block of activations.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Of every four integers a, b, c, d the pairs (a, c) and (b, d), lower half first: so bytes and nibbles of a word come
    /// apart by masks.
    pub pairs: [u32; BLOCK / 2],
    /// What the integers are multiplied with.
    pub scale: f32,
    /// The sum of the integers, times the scale.
    pub sum: f32,
    /// −128 times the sum of the integers at even places: see [`super::Kind::Q8`].
    pub even: i32,
}

/// The input of a product, `[n, blocks]`.
#[derive(Debug)]
pub struct Input(pub Vec<Block>);

impl Input {
    /// Takes in whole blocks.
    pub fn new(x: &[f32]) -> Self {
        Self(x.as_chunks::<BLOCK>().0.iter().map(Block::new).collect())
    }

    /// What the integers stand for.
    #[cfg(test)]
    pub fn values(&self) -> Vec<f32> {
        let value = |block: &Block, i: usize| {
            let pair = block.pairs[i / 4 * 2 + i % 2];
            let integer = if i % 4 < 2 { pair as i16 } else { (pair >> 16) as i16 };
            f32::from(integer) * block.scale
        };
        self.0.iter().flat_map(|block| (0..BLOCK).map(move |i| value(block, i))).collect()
    }
}

impl Block {
    #[inline]
    fn new(x: &[f32; BLOCK]) -> Self {
        let max = largest(x);
        if !max.is_finite() {
            // No integer stands for it: all that is made of this block is NaN.
            return Self { pairs: [0; BLOCK / 2], scale: f32::NAN, sum: f32::NAN, even: 0 };
        }
        let scale = max / f32::from(i16::MAX);
        let inverse = if max > 0.0 { f32::from(i16::MAX) / max } else { 0.0 };
        let mut integers = [0i32; BLOCK];
        for (integer, x) in integers.iter_mut().zip(x) {
            *integer = round(x * inverse);
        }
        let mut pairs = [0u32; BLOCK / 2];
        let (mut even, mut odd) = (0, 0);
        for (pair, [a, b, c, d]) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(integers.as_chunks::<4>().0) {
            *pair = [(a & 0xffff | c << 16) as u32, (b & 0xffff | d << 16) as u32];
            even += a + c;
            odd += b + d;
        }
        Self { pairs, scale, sum: scale * (even + odd) as f32, even: -128 * even }
    }
}

/// The nearest integer, the even one of two; for `|x| < 2²²`. The library's function does not vectorise everywhere.
#[inline(always)]
fn round(x: f32) -> i32 {
    // Adding this leaves the integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::random;

    #[test]
    fn integers_are_within_half_a_step() {
        let x = random::weights("x", &[5, 96], 3);
        let input = Input::new(&x);
        for (values, x) in input.values().chunks(BLOCK).zip(x.chunks(BLOCK)) {
            let max = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (value, x) in values.iter().zip(x) {
                assert!((value - x).abs() <= max / 65_000.0, "{value} for {x}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random::weights("x", &[2, 32], 3);
            x[37] = wrong;
            let input = Input::new(&x);
            assert!(
                input.0[0].scale.is_finite() && input.values()[32..].iter().all(|v| v.is_nan()),
                "{wrong}"
            );
            assert!(input.0[1].sum.is_nan());
        }
    }

    #[test]
    fn sums_are_those_of_the_integers() {
        let x: Vec<f32> = (0..32u8).map(|i| if i % 2 == 0 { 1.0 } else { -0.5 }).collect();
        let [block] = Input::new(&x).0[..] else { panic!("one block") };
        assert_eq!(block.even, -128 * 16 * 32_767);
        assert!((block.sum - 8.0).abs() < 1e-3);
        let [zero] = Input::new(&[0.0; 32]).0[..] else { panic!("one block") };
        assert_eq!((zero.scale, zero.sum, zero.even, zero.pairs), (0.0, 0.0, 0, [0; 16]));
    }
}
