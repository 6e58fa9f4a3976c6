//! Blocks that four bits hold exactly: 32 weights that are all `d·q + m` with q from 0 to 15, for some d and m in half
//! precision. Least squares may miss them by rounding, or where a block uses a part of the levels alone.

use half::f16;

use crate::config::BLOCK;

/// The highest level.
const MOST: usize = 15;
/// Scales that are tried on each side of the likeliest.
const NEAR: u16 = 64;

/// Scale and minimum of which `block` is made, if there are any.
///
/// All blocks of several levels are found whose sums `d·q + m` are exact in single precision, and nearly all others: sums are
/// rounded where the minimum is some ten thousand scales, or a small part of one. Constants are found but for some as far off.
pub fn exact(block: &[f32; BLOCK]) -> Option<(f16, f16)> {
    let mut levels = Vec::with_capacity(MOST + 1);
    for weight in block {
        if !levels.contains(weight) {
            if levels.len() > MOST {
                return None;
            }
            levels.push(*weight);
        }
    }
    levels.sort_unstable_by(f32::total_cmp);
    rising(&levels).or_else(|| {
        // With a scale below zero the largest weight has the lowest level.
        let turned: Vec<f32> = levels.iter().rev().map(|weight| -weight).collect();
        rising(&turned).map(|(d, m)| (-d, -m))
    })
}

/// The level of a weight, a whole number from 0 to 15, of two equally near ones the even one; `inverse` is that of the scale.
#[inline(always)]
pub fn level(weight: f32, minimum: f32, inverse: f32) -> f32 {
    ((weight - minimum) * inverse).round_ties_even().clamp(0.0, MOST as f32)
}

/// As [`exact`], of ascending `levels`, with a scale of at least zero.
fn rising(levels: &[f32]) -> Option<(f16, f16)> {
    let (least, most) = (*levels.first()?, *levels.last()?);
    if levels.len() == 1 {
        // Most constants are a minimum of their own; others are some steps from one nearby.
        let own = f16::from_f32(least).to_bits();
        let near = [own, own.wrapping_sub(1), own.wrapping_add(1)].map(f16::from_bits);
        let pairs = near.into_iter().flat_map(|m| (1..=MOST).map(move |steps| (m, steps)));
        let pairs = pairs.map(|(m, steps)| (f16::from_f32((least - m.to_f32()) / steps as f32), m));
        return pairs.into_iter().find(|(d, m)| made_of(levels, *d, *m));
    }
    // Both ends may have been rounded by half of this.
    let unit = least.abs().max(most.abs()) * f32::EPSILON;
    for steps in (levels.len() - 1..=MOST).rev() {
        let [scale, error] = [most - least, unit].map(|v| v / steps as f32);
        let bits = |d: f32| f16::from_f32(d.max(0.0)).to_bits();
        let likeliest = bits(scale);
        let from = bits(scale - error).max(likeliest.saturating_sub(NEAR));
        let to = bits(scale + error).min(likeliest.saturating_add(NEAR));
        let others = (from..=to).filter(|d| *d != likeliest);
        for d in std::iter::once(likeliest).chain(others).map(f16::from_bits) {
            let lowest = (0..=MOST - steps).map(|q| f16::from_f32(least - d.to_f32() * q as f32));
            if let Some(m) = lowest.into_iter().find(|m| made_of(levels, d, *m)) {
                return Some((d, m));
            }
        }
    }
    None
}

/// Whether all `levels` are of this scale and minimum.
fn made_of(levels: &[f32], d: f16, m: f16) -> bool {
    let (d, m) = (d.to_f32(), m.to_f32());
    let inverse = 1.0 / d;
    levels.iter().all(|weight| d * level(*weight, m, inverse) + m == *weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::quant::{Dtype, quantize, round_q4};
    use crate::bundle::random::weights;

    /// Blocks of weights that are near zero, far from it, tiny, with a few large ones, with few values, and constant.
    fn blocks(count: usize) -> Vec<f32> {
        let mut all = weights("blocks", &[count, BLOCK], 6);
        for (n, block) in all.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let size = (n / 8 % 13) as i32;
            match n % 8 {
                0 => {}
                1 => block.iter_mut().for_each(|w| *w = (*w + 1.0) * 0.1),
                2 => block.iter_mut().for_each(|w| *w += 2f32.powi(size - 4)),
                3 => block.iter_mut().for_each(|w| *w *= 2f32.powi(-2 * size)),
                4 => block.iter_mut().for_each(|w| *w = w.powi(9) * 2f32.powi(2 * size)),
                5 => (0..BLOCK).for_each(|i| block[i] = block[i * n % (1 + n / 8 % 5)]),
                6 => (0..BLOCK).for_each(|i| block[i] *= f32::from(u8::from((i * n) % 7 == 0))),
                _ => *block = [block[0]; BLOCK],
            }
        }
        all
    }

    #[test]
    fn what_is_rounded_once_stays() {
        let mut once = blocks(1 << 17);
        round_q4(&mut once);
        let mut twice = once.clone();
        round_q4(&mut twice);
        let pairs = once.as_chunks::<BLOCK>().0.iter().zip(twice.as_chunks::<BLOCK>().0);
        for (once, twice) in pairs {
            assert_eq!(once, twice);
        }
    }

    #[test]
    fn any_scale_minimum_and_levels_are_found() {
        for n in 0..4096usize {
            // Of minima up to some hundred scales all sums are exact.
            let d = f16::from_f32((n % 61 + 1) as f32 * 3e-4 * if n % 3 == 0 { -1.0 } else { 1.0 });
            let m = f16::from_f32((n * 7 % 101) as f32 * 2e-3 - 0.1);
            let (first, some) = (n % 11, n / 11 % 5 + 1);
            let block: [f32; BLOCK] = std::array::from_fn(|i| {
                let q = (first + i * i % some) as f32;
                d.to_f32() * q + m.to_f32()
            });
            let mut rounded = block;
            round_q4(&mut rounded);
            assert_eq!(rounded, block, "{d} {m} {first} {some}");
        }
    }

    #[test]
    fn no_other_block_is_one() {
        for block in weights("blocks", &[1000, BLOCK], 6).as_chunks::<BLOCK>().0 {
            assert_eq!(exact(block), None);
        }
        // Sixteen levels, one of which is off by a little.
        let mut block: [f32; BLOCK] = std::array::from_fn(|i| (i % 16) as f32 * 0.25 - 1.0);
        assert_eq!(exact(&block), Some((f16::from_f32(0.25), f16::from_f32(-1.0))));
        (block[5], block[21]) = (0.2501, 0.2501);
        assert_eq!(exact(&block), None);
        block[5] = f32::NAN;
        assert_eq!(exact(&block), None);
        assert_eq!(exact(&[f32::INFINITY; BLOCK]), None);
        assert_eq!(quantize(Dtype::Q4, &[0.0; BLOCK]), [0; 20]);
    }
}
