//! From tokens to the records of the Engram table.

use super::config::{Engram, EngramLayer};
use crate::error::{Error, Result};

/// Hashes the n-grams of a text (source: arXiv 2601.07372, section 2.2, and the published demonstration).
#[derive(Debug, Clone, PartialEq)]
pub struct Hasher {
    engram: Engram,
    // Of each token its compressed id.
    ids: Vec<u32>,
    // Of each head its first record, by layer, order and head.
    offsets: Vec<u32>,
}

impl Hasher {
    /// A hasher for (validated) layers, with the compressed id of each token.
    ///
    /// # Errors
    /// [`Error::Invalid`] if an id is not among the compressed ones.
    pub fn new(engram: &Engram, ids: Vec<u32>) -> Result<Self> {
        let count = engram.compressed_vocab;
        if let Some(id) = ids.iter().find(|id| **id as usize >= count) {
            return Err(Error::invalid(format!("the compressed id {id}"), format!("there are {count}")));
        }
        let mut offsets = Vec::new();
        engram.primes().fold(0, |start, prime| {
            offsets.push(start);
            start + prime
        });
        Ok(Self { engram: engram.clone(), ids, offsets })
    }

    /// The layers.
    pub fn engram(&self) -> &Engram {
        &self.engram
    }

    /// The compressed id of `token`, `None` outside the vocabulary.
    pub fn compressed(&self, token: u32) -> Option<u32> {
        self.ids.get(token as usize).copied()
    }

    /// The records of `tokens`, which follow `before` from the beginning of their text on: `[n, n_layers, heads]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a token outside the vocabulary.
    pub fn records(&self, before: &[u32], tokens: &[u32]) -> Result<Vec<u32>> {
        let order = self.engram.order();
        let compressed = |token: u32| {
            self.compressed(token).ok_or_else(|| {
                Error::invalid(format!("token {token}"), format!("the vocabulary has {}", self.ids.len()))
            })
        };
        // Newest first.
        let mut window = vec![self.engram.pad; order];
        for (slot, token) in window.iter_mut().zip(before.iter().rev()) {
            *slot = compressed(*token)?;
        }
        let mut records = Vec::with_capacity(tokens.len() * self.offsets.len());
        for token in tokens {
            window.rotate_right(1);
            window[0] = compressed(*token)?;
            let start = records.len();
            self.engram.layers.iter().for_each(|layer| hash(layer, &window, &mut records));
            records[start..].iter_mut().zip(&self.offsets).for_each(|(record, first)| *record += first);
        }
        Ok(records)
    }

    /// The hashes of `tokens`, as [`records`](Self::records) has them: each head's row in its own table.
    ///
    /// # Errors
    /// As [`records`](Self::records).
    pub fn hashes(&self, before: &[u32], tokens: &[u32]) -> Result<Vec<u32>> {
        let mut records = self.records(before, tokens)?;
        for (record, first) in records.iter_mut().zip(self.offsets.iter().cycle()) {
            *record -= first;
        }
        Ok(records)
    }
}

/// Appends the hash of each head: `window` has the compressed ids of the last tokens, newest first.
///
/// For order n: `mix = XOR_k (window[k] · m_k)` over k < n, and each head takes `mix mod prime`.
fn hash(layer: &EngramLayer, window: &[u32], out: &mut Vec<u32>) {
    let mut products = window.iter().zip(&layer.multipliers).map(|(id, m)| u64::from(*id).wrapping_mul(*m));
    let mut mix = products.next().unwrap_or(0);
    for (product, primes) in products.zip(&layer.primes) {
        mix ^= product;
        out.extend(primes.iter().map(|prime| (mix % u64::from(*prime)) as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engram::config::tests::tiny_engram;

    fn hasher() -> Hasher {
        Hasher::new(&tiny_engram(), (0..300).map(|t| t * 7 % 290).collect()).unwrap()
    }

    #[test]
    fn any_pieces_give_the_same_records() {
        let hasher = hasher();
        let tokens: Vec<u32> = (0..40).map(|i| (i * i * 31 + 7) % 300).collect();
        let whole = hasher.records(&[], &tokens).unwrap();
        assert_eq!(whole.len(), 40 * 8);
        for size in [1, 2, 3, 7] {
            let pieces: Vec<u32> = tokens
                .chunks(size)
                .enumerate()
                .flat_map(|(i, chunk)| hasher.records(&tokens[..i * size], chunk).unwrap())
                .collect();
            assert_eq!(pieces, whole, "{size}");
        }
    }

    #[test]
    fn each_head_has_its_own_records() {
        let (hasher, engram) = (hasher(), tiny_engram());
        let tokens: Vec<u32> = (0..300).collect();
        let mut first = 0;
        let bounds: Vec<_> = engram
            .primes()
            .map(|p| {
                first += p;
                first - p..first
            })
            .collect();
        let mut seen = vec![false; engram.records()];
        for records in hasher.records(&[], &tokens).unwrap().chunks(bounds.len()) {
            for (record, bounds) in records.iter().zip(&bounds) {
                assert!(bounds.contains(record));
                seen[*record as usize] = true;
            }
        }
        // 300 hashes into so many buckets leave few of the small tables empty.
        assert!(seen[..101].iter().filter(|s| **s).count() > 80);
    }

    #[test]
    fn the_orders_look_so_far_back() {
        let hasher = hasher();
        let at = |before: &[u32]| hasher.records(before, &[5]).unwrap();
        let (a, b) = (at(&[1, 2, 3]), at(&[9, 2, 3]));
        assert_eq!(a, b);
        // Another token two places back changes triples alone: heads 2 and 3 of each layer.
        let c = at(&[1, 9, 3]);
        let same: Vec<bool> = a.iter().zip(&c).map(|(a, c)| a == c).collect();
        assert_eq!(same, [true, true, false, false, true, true, false, false]);
        assert_ne!(at(&[]), at(&[0]));
    }

    #[test]
    fn what_is_outside_is_refused() {
        assert!(hasher().records(&[], &[300]).unwrap_err().to_string().contains("token 300"));
        assert!(hasher().records(&[300], &[3]).unwrap_err().to_string().contains("token 300"));
        let error = Hasher::new(&tiny_engram(), vec![0, 290]).unwrap_err();
        assert!(error.to_string().contains("compressed id 290"));
    }
}
