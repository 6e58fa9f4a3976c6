//! Measurements. [`speed`]: how fast a model reads and writes, on any backend, and where the time goes; [`depth`]: the same
//! at several positions; [`memory`]: how fast the machine reads. `docs/performance.md` says what was found.
//!
//! Of lookups, natively only: those of a text replayed without computing ([`replay`]), and answers of a model with rows
//! that are resident, streamed from a folder, or streamed over a simulated [`link`] ([`answer`]).
//! `docs/tables.md` says what was found.

#[cfg(feature = "native")]
pub mod answer;
pub mod depth;
#[cfg(feature = "native")]
pub mod link;
#[cfg(feature = "native")]
pub mod memory;
#[cfg(feature = "native")]
pub mod replay;
pub mod speed;
#[cfg(all(test, feature = "native"))]
mod tests;

#[cfg(feature = "native")]
pub use answer::{Bench, OverLink, Streamed};
pub use depth::Depth;
#[cfg(feature = "native")]
pub use link::{Link, Linked};
#[cfg(feature = "native")]
pub use replay::{Replayed, TextRecords};
pub use speed::{Speed, Task};

use serde::Serialize;

/// Several runs of one measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of `values`; none if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let below = values[(values.len() - 1) / 2];
        Some(Self { median: (below + values[middle]) / 2.0, min, max })
    }
}
