//! The shape of a model's Engram layers, whole enough that hashes need nothing else.

use serde::{Deserialize, Serialize};

use crate::config::BLOCK;
use crate::error::{Error, Result};

/// No n-gram is longer.
pub const MAX_ORDER: usize = 8;
/// No convolution has more taps.
pub const MAX_KERNEL: usize = 16;
/// A table of all heads has at most so many records: its index has 4 bytes for each, and 16 MB.
pub const MAX_RECORDS: usize = 1 << 22;

/// The Engram layers of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engram {
    /// The layers, ascending.
    pub layers: Vec<EngramLayer>,
    /// Values in a head's row.
    pub head_width: usize,
    /// Taps of the convolution.
    pub kernel: usize,
    /// Number of compressed ids.
    pub compressed_vocab: usize,
    /// The compressed id that stands before the beginning of a text.
    pub pad: u32,
    /// The seed that the multipliers came of.
    pub seed: u64,
}

/// What hashes n-grams for one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngramLayer {
    /// The layer's number in the model.
    pub layer: usize,
    /// Odd multipliers: of the last token, the one before it, and so on, as many as the longest n-gram has tokens.
    pub multipliers: Vec<u64>,
    /// The sizes of the tables, primes: of the heads of pairs, then of triples, and so on.
    pub primes: Vec<Vec<u32>>,
}

impl Engram {
    /// Tokens of the longest n-gram, which is also the distance of the convolution's taps.
    pub fn order(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.multipliers.len())
    }

    /// Heads of a layer, of all orders.
    pub fn heads(&self) -> usize {
        self.layers.first().map_or(0, EngramLayer::heads)
    }

    /// Values of all heads of a layer: the width of e.
    pub fn width(&self) -> usize {
        self.heads() * self.head_width
    }

    /// Values that one token brings: `n_layers * width`.
    pub fn row_width(&self) -> usize {
        self.layers.len() * self.width()
    }

    /// Records of all tables of all layers.
    pub fn records(&self) -> usize {
        self.primes().map(|p| p as usize).sum()
    }

    /// Where `layer` stands among the Engram layers, `None` for another layer.
    pub fn index(&self, layer: usize) -> Option<usize> {
        self.layers.iter().position(|l| l.layer == layer)
    }

    /// Sizes of the tables in the order of their records: by layer, then order, then head.
    pub fn primes(&self) -> impl Iterator<Item = u32> {
        self.layers.iter().flat_map(|l| &l.primes).flatten().copied()
    }

    /// Checks every value, for a model of `n_layers` layers and `vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the first value that is out of range.
    pub fn validate(&self, n_layers: usize, vocab: usize) -> Result<()> {
        let fail = |what: String, reason: String| Err(Error::invalid(format!("engram {what}"), reason));
        let layers: Vec<usize> = self.layers.iter().map(|l| l.layer).collect();
        let ascending = layers.windows(2).all(|w| w[0] < w[1]);
        if !ascending || layers.last().is_none_or(|l| *l >= n_layers) {
            let reason = format!("must not be empty, ascend, and lie below {n_layers}");
            return fail(format!("layers = {layers:?}"), reason);
        }
        for (name, value, max) in [
            ("head_width", self.head_width, 1 << 12),
            ("kernel", self.kernel, MAX_KERNEL),
            ("compressed_vocab", self.compressed_vocab, vocab),
        ] {
            if value == 0 || value > max {
                return fail(format!("{name} = {value}"), format!("must be from 1 to {max}"));
            }
        }
        if self.pad as usize >= self.compressed_vocab {
            return fail(format!("pad = {}", self.pad), format!("must lie below {}", self.compressed_vocab));
        }
        let (order, heads) = (self.order(), self.layers[0].primes.first().map_or(0, Vec::len));
        if !(2..=MAX_ORDER).contains(&order) || heads == 0 {
            let what = format!("order = {order}, heads = {heads}");
            return fail(what, format!("the order must be from 2 to {MAX_ORDER}, with a head for each"));
        }
        // First, since it also bounds how long the search for divisors takes.
        let records: u64 = self.primes().map(u64::from).sum();
        if records > MAX_RECORDS as u64 {
            return fail(
                format!("tables of {records} records"),
                format!("at most {MAX_RECORDS} are possible"),
            );
        }
        for layer in &self.layers {
            layer.validate(order, heads, self.compressed_vocab)?;
        }
        let width = self.width();
        if !width.is_multiple_of(BLOCK) || width > 1 << 15 {
            let reason = format!("must be a multiple of {BLOCK}, at most {}", 1 << 15);
            return fail(format!("heads * head_width = {width}"), reason);
        }
        Ok(())
    }
}

impl EngramLayer {
    /// Heads of all orders.
    pub fn heads(&self) -> usize {
        self.primes.iter().map(Vec::len).sum()
    }

    fn validate(&self, order: usize, heads: usize, compressed_vocab: usize) -> Result<()> {
        let fail = |what: String, reason: String| {
            Err(Error::invalid(format!("engram layer {}: {what}", self.layer), reason))
        };
        // So no product overflows a signed word, and the mix is the same number, signed or not.
        let largest = i64::MAX as u64 / compressed_vocab as u64;
        let usable = |m: &u64| m % 2 == 1 && *m <= largest;
        if self.multipliers.len() != order || !self.multipliers.iter().all(usable) {
            let reason = format!("must be {order} odd numbers up to {largest}");
            return fail(format!("multipliers = {:?}", self.multipliers), reason);
        }
        if self.primes.len() != order - 1 || self.primes.iter().any(|p| p.len() != heads) || heads > 64 {
            let sizes: Vec<usize> = self.primes.iter().map(Vec::len).collect();
            return fail(
                format!("heads = {sizes:?}"),
                format!("must be {heads}, at most 64, {} times", order - 1),
            );
        }
        match self.primes.iter().flatten().find(|p| !is_prime(**p)) {
            Some(other) => fail(format!("a table of {other}"), "sizes must be primes".into()),
            None => Ok(()),
        }
    }
}

/// Whether `n` is a prime number, by trial.
pub fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= u64::from(n)).all(|d| u64::from(n) % d != 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two layers, orders 2 and 3, two heads each of 24 values, for 300 tokens: e has 96 values.
    pub(crate) fn tiny_engram() -> Engram {
        let layer = |layer, multipliers: [u64; 3], primes: [[u32; 2]; 2]| EngramLayer {
            layer,
            multipliers: multipliers.into(),
            primes: primes.map(Vec::from).into(),
        };
        Engram {
            layers: vec![
                layer(0, [0x0012_3456_789a_bcd1, 77_777_777_777, 3], [[101, 103], [211, 223]]),
                layer(1, [999_999_999_989, 0x0007_eef0_1234_5679, 12_345_678_901], [[107, 109], [227, 229]]),
            ],
            head_width: 24,
            kernel: 4,
            compressed_vocab: 290,
            pad: 7,
            seed: 0,
        }
    }

    #[test]
    fn sizes_are_sums() {
        let engram = tiny_engram();
        engram.validate(3, 300).unwrap();
        assert_eq!((engram.order(), engram.heads(), engram.width(), engram.row_width()), (3, 4, 96, 192));
        assert_eq!(engram.records(), 101 + 103 + 211 + 223 + 107 + 109 + 227 + 229);
        assert_eq!([0, 1, 2].map(|l| engram.index(l)), [Some(0), Some(1), None]);
    }

    #[test]
    fn wrong_values_are_named() {
        let says = |change: fn(&mut Engram)| {
            let mut engram = tiny_engram();
            change(&mut engram);
            engram.validate(3, 300).unwrap_err().to_string()
        };
        assert!(says(|e| e.layers[1].layer = 3).contains("[0, 3]"));
        assert!(says(|e| e.layers.clear()).contains("layers = []"));
        assert!(says(|e| e.layers[1].multipliers[0] = 4).contains("odd"));
        assert!(says(|e| e.layers[1].multipliers[0] = u64::MAX).contains("odd"));
        assert!(says(|e| e.layers[0].multipliers.clear()).contains("order = 0"));
        assert!(says(|e| e.layers[1].primes[0][1] = 111).contains("a table of 111"));
        assert!(says(|e| e.layers[1].primes[0].clear()).contains("heads = [0, 2]"));
        assert!(says(|e| e.layers[0].primes[0][0] = 4_194_319).contains("records"));
        assert!(says(|e| e.head_width = 20).contains("= 80"));
        assert!(says(|e| e.compressed_vocab = 301).contains("301"));
        assert!(says(|e| e.pad = 290).contains("pad = 290"));
        assert!(says(|e| e.kernel = 0).contains("kernel = 0"));
    }

    #[test]
    fn primes() {
        let found: Vec<u32> = (0..40).filter(|n| is_prime(*n)).collect();
        assert_eq!(found, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]);
        assert!(is_prime(4_294_967_291) && !is_prime(4_294_967_295) && !is_prime(65_521 * 65_521));
    }
}
