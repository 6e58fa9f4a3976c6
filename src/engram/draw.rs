//! Multipliers and table sizes, drawn as the published demonstration draws them: with NumPy's default generator.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::RngCore;

use super::config::{Engram, EngramLayer, is_prime};
use crate::error::Result;

/// What to draw for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// The layers, ascending.
    pub layers: Vec<usize>,
    /// Of each order from 2 on, the least size of a head's table.
    pub tables: Vec<u32>,
    /// Heads of each order.
    pub heads: usize,
    /// Values in a head's row.
    pub head_width: usize,
    /// Taps of the convolution.
    pub kernel: usize,
    /// Equal seeds give equal multipliers.
    pub seed: u64,
}

impl Sizes {
    /// The layers for a vocabulary of `compressed_vocab` compressed ids, `pad` among them.
    ///
    /// The multipliers of a layer are `2 r + 1` with `0 ≤ r < (i64::MAX / compressed_vocab) / 2` from NumPy's
    /// `default_rng(seed + 10007 · layer)`. Table sizes are the primes from the wanted size on, each used once.
    ///
    /// # Errors
    /// As [`Engram::validate`], apart from what depends on the model.
    pub fn draw(&self, compressed_vocab: usize, pad: u32) -> Result<Engram> {
        let half = (i64::MAX as u64 / (compressed_vocab as u64).max(1) / 2).max(1);
        let mut used = Vec::new();
        let layers = self.layers.iter().map(|layer| {
            let mut rng = default_rng(self.seed.wrapping_add(10_007 * *layer as u64));
            let multipliers = (0..=self.tables.len()).map(|_| 2 * below(&mut rng, half) + 1).collect();
            let primes = self.tables.iter().map(|size| self.primes(*size, &mut used)).collect();
            EngramLayer { layer: *layer, multipliers, primes }
        });
        let engram = Engram {
            layers: layers.collect(),
            head_width: self.head_width,
            kernel: self.kernel,
            compressed_vocab,
            pad,
            seed: self.seed,
        };
        engram.validate(usize::MAX, usize::MAX)?;
        Ok(engram)
    }

    /// The next unused primes from `size` on, one for each head.
    fn primes(&self, size: u32, used: &mut Vec<u32>) -> Vec<u32> {
        let mut found = Vec::with_capacity(self.heads);
        for candidate in size..=u32::MAX {
            if found.len() == self.heads {
                break;
            }
            if is_prime(candidate) && !used.contains(&candidate) {
                used.push(candidate);
                found.push(candidate);
            }
        }
        found
    }
}

/// The generator of NumPy's `default_rng(seed)`: PCG64, seeded by `SeedSequence` (source: NumPy's
/// `bit_generator.pyx` and `pcg64.c`).
fn default_rng(seed: u64) -> Pcg64 {
    let words = seed_sequence(seed);
    let [state, stream] = [0, 4].map(|at| {
        // Words of 64 bits, each low half first, the more significant one first.
        let half = |at: usize| u128::from(words[at]) | u128::from(words[at + 1]) << 32;
        half(at) << 64 | half(at + 2)
    });
    Pcg64::new(state, stream)
}

/// `SeedSequence(seed).generate_state(8)`.
fn seed_sequence(seed: u64) -> [u32; 8] {
    let mut constant = 0x43b0_d7e5u32;
    let mut hashed = |value: u32, factor: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(factor);
        let value = value.wrapping_mul(constant);
        value ^ value >> 16
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(|word| hashed(word, 0x931e_8875));
    for source in 0..4 {
        for target in 0..4 {
            if source != target {
                let other = hashed(pool[source], 0x931e_8875);
                let mixed =
                    pool[target].wrapping_mul(0xca01_f9dd).wrapping_sub(other.wrapping_mul(0x4973_f715));
                pool[target] = mixed ^ mixed >> 16;
            }
        }
    }
    constant = 0x8b51_f9dd;
    let mut hashed = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(constant);
        value ^ value >> 16
    };
    std::array::from_fn(|i| hashed(pool[i % 4]))
}

/// `rng.integers(0, end)` for an `end` above 2³²; below, NumPy draws words of 32 bits (source: arXiv 1805.10941, as
/// in NumPy's `distributions.c`).
fn below(rng: &mut Pcg64, end: u64) -> u64 {
    let mut product = || u128::from(rng.next_u64()) * u128::from(end);
    let mut wide = product();
    let threshold = end.wrapping_neg() % end;
    while (wide as u64) < threshold {
        wide = product();
    }
    (wide >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engram::Hasher;
    use crate::engram::vectors::{self, Case, Vectors};

    #[test]
    fn numbers_are_numpys() {
        for row in Vectors::load().generator {
            let mut rng = default_rng(row.seed);
            let found: Vec<u64> = row.values.iter().map(|_| below(&mut rng, row.end)).collect();
            assert_eq!(found, row.values, "{} {}", row.seed, row.end);
        }
    }

    #[test]
    fn multipliers_primes_and_hashes_are_those_of_the_definition() {
        let Vectors { ids, count, cases, .. } = Vectors::load();
        assert_eq!(cases.len(), 2);
        for case in cases {
            check(&case, &ids, count);
        }
    }

    fn check(case: &Case, ids: &[u32], count: usize) {
        let engram = vectors::draw(case, count, ids[case.pad_token]);
        assert_eq!(engram.layers, case.drawn);
        assert!(engram.layers.iter().flat_map(|l| &l.multipliers).all(|m| *m > 1 << 40));
        let hasher = Hasher::new(&engram, ids.to_vec()).unwrap();
        let records = hasher.records(&[], &case.tokens).unwrap();
        assert_eq!(records, vectors::records(case));
    }

    #[test]
    fn sizes_that_lead_nowhere_are_refused() {
        let sizes =
            Sizes { layers: vec![1], tables: vec![50, 50], heads: 2, head_width: 32, kernel: 4, seed: 0 };
        sizes.draw(300, 0).unwrap();
        assert!(Sizes { heads: 0, ..sizes.clone() }.draw(300, 0).is_err());
        assert!(Sizes { tables: vec![], ..sizes.clone() }.draw(300, 0).is_err());
        assert!(Sizes { tables: vec![50, u32::MAX], ..sizes.clone() }.draw(300, 0).is_err());
        assert!(Sizes { layers: vec![], ..sizes }.draw(300, 0).is_err());
    }
}
