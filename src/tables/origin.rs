//! What a lookup tells of itself: where the rows of each token came from.

use serde::{Deserialize, Serialize};

/// Where a record was when it was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Where its record was.
    pub tier: Tier,
    /// Milliseconds from the beginning of the lookup until its page was there; 0 from memory.
    pub ms: f64,
    /// The layers in which an edit changed the row, by their place among the STEM layers, ascending.
    pub edited: Vec<usize>,
}
