//! What a lookup tells of itself: where the rows of each token came from.

use serde::{Deserialize, Serialize};

/// Where a record was when it was looked up, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// In memory; perhaps because it was fetched ahead a moment before.
    Memory,
    /// In the store that keeps pages from one visit to the next.
    Stored,
    /// With the host or in the folder of the bundle, or on its way from there.
    Fetched,
}

/// Where the rows of one token came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Origin {
    /// Where its record was; none for a model without a STEM table.
    pub tier: Option<Tier>,
    /// Milliseconds from the beginning of the lookup until its page was there; 0 from memory.
    pub ms: f64,
    /// The layers in which an edit changed the row, by their place among the STEM layers, ascending.
    pub edited: Vec<usize>,
    /// `[n_engram]`: where the rows of its n-grams came from, in each Engram layer; nothing where there are none.
    pub engram: Vec<EngramOrigin>,
}

/// Where the rows of all heads of an Engram layer came from, for one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngramOrigin {
    /// Where the farthest of their records was.
    pub tier: Tier,
    /// Milliseconds until all of them were there; 0 from memory.
    pub ms: f64,
    /// Whether an edit changed one of them.
    pub edited: bool,
}

impl EngramOrigin {
    /// Of heads whose records were found as `heads` say; none if that is not known of one.
    pub fn of(heads: &[Origin]) -> Option<Self> {
        let tiers: Option<Vec<Tier>> = heads.iter().map(|origin| origin.tier).collect();
        let ms = heads.iter().fold(0.0, |longest: f64, origin| longest.max(origin.ms));
        Some(Self { tier: tiers?.into_iter().max()?, ms, edited: false })
    }
}
