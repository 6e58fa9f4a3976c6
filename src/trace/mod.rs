//! What the layers did with each token of a text, measured while it runs: for the page's view of lookups, and for
//! whoever would otherwise write a script.
//!
//! [`gauge`] is cheap enough for every step; [`times`] says how long each operation took, for measurements; [`parts`] keeps what each half of each layer added to the residual
//! stream; [`run`] makes a [`Trace`] of a text with it ([`record`]: what that says, and what is allowed in a file),
//! [`card`] everything about one cell, with [`ngrams`] where that has Engram rows. All of it hangs on one probe of the CPU backend; the kernels know nothing of it.
//! `docs/trace.md` describes the file for its readers.

pub mod card;
pub mod gauge;
mod head;
pub mod ngrams;
pub mod parts;
pub mod record;
pub mod run;
#[cfg(all(test, feature = "native"))]
mod tests;
pub mod times;

pub use card::Card;
pub use gauge::{EngramGauge, Gauge, Gauges};
pub use record::{Trace, TracedToken};
pub use run::{Text, trace};
pub use times::Times;
