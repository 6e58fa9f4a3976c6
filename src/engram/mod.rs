//! Engram layers: a memory of n-grams, whose rows are found by hashing the last tokens of the text.
//!
//! Source: "Conditional Memory via Scalable Lookup" (arXiv 2601.07372) and the published demonstration. Tokens are
//! first mapped to compressed ids (`compress`), so that spellings of one word share an id; the ids of the last n
//! tokens are mixed by multiplication and exclusive or, and each head takes the mix modulo a prime of its own
//! ([`hash`]). The rows of all heads together, e, say what is added to the residual stream before attention:
//!
//! ```text
//! k = W_K e    v = W_V e    s = RMSNorm(x)·RMSNorm(k) / √d    g = σ(sign(s) √max(|s|, 1e-6))
//! u = g v      x += u + SiLU(conv(RMSNorm(u)))
//! ```
//!
//! with a causal convolution of each channel by itself, over positions as far apart as the longest n-gram is long.
//! The operations are in [`crate::plan`] and the kernels in `crate::cpu::engram`; here is what comes before them.
//! There is one residual stream, the projections have no bias, and all norms have the model's epsilon, unlike in the
//! demonstration.

pub mod compress;
pub mod config;
#[cfg(feature = "native")]
pub mod draw;
pub mod hash;
pub mod rows;
#[cfg(all(test, feature = "native"))]
pub(crate) mod tests;
#[cfg(all(test, feature = "native"))]
pub(crate) mod vectors;

pub use config::{Engram, EngramLayer};
pub use hash::Hasher;
pub use rows::WithEngram;
