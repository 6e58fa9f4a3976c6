//! The tables of rows: where a row is found, fetched, checked, cached, edited and handed to a step.
//!
//! One module owns lookups, on native and on the web; storage and transport are small traits behind it.
//! Nothing here knows the forward pass, and nothing here touches the GPU.

pub mod cache;
#[cfg(feature = "native")]
pub mod files;
pub mod layout;
pub mod lookup;
pub mod origin;
#[cfg(all(test, feature = "native"))]
pub(crate) mod tests;

pub use cache::Policy;
#[cfg(feature = "native")]
pub use files::{FileTransport, open_dir, open_through};
pub use lookup::{Stats, Store, Tables, Transport};
pub use origin::{EngramOrigin, Origin, Tier};

use crate::error::{Error, Result};

/// Gives the STEM rows of tokens.
#[allow(async_fn_in_trait, reason = "used with static dispatch only")]
pub trait RowSource {
    /// Appends `[n, n_stem, ffn]` to `out`: the rows of each of the `n` tokens, duplicates included. For a model with
    /// [Engram layers](crate::engram), `[n, n_engram, width]` values of theirs stand behind, token by token. The tokens
    /// follow `before` from the beginning of their text on: rows may depend on what stands before them.
    ///
    /// Appends to `origins` where the rows of each token came from; a source that can't tell appends nothing.
    ///
    /// # Errors
    /// [`Error::Bundle`] or [`Error::Network`] if a row can't be had; `out` is then as it was.
    async fn gather_traced(
        &self,
        before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        origins: &mut Vec<Origin>,
    ) -> Result<()>;

    /// As [`gather_traced`](Self::gather_traced), for whom the origins are nothing.
    ///
    /// # Errors
    /// As [`gather_traced`](Self::gather_traced).
    async fn gather_at(&self, before: &[u32], tokens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        self.gather_traced(before, tokens, out, &mut Vec::new()).await
    }

    /// As [`gather_at`](Self::gather_at), at the beginning of a text.
    ///
    /// # Errors
    /// As [`gather_traced`](Self::gather_traced).
    async fn gather(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        self.gather_at(&[], tokens, out).await
    }

    /// As [`gather`](Self::gather), for tokens that stand in no text: rows that depend on their neighbours, which
    /// follow the STEM rows, may be anything.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    async fn gather_alone(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        self.gather(tokens, out).await
    }

    /// The id by which rows that depend on the tokens before know `token`: tokens that share it have the same rows there.
    fn compressed(&self, token: u32) -> u32 {
        token
    }

    /// Says that these tokens will be asked for soon, alone.
    fn prefetch(&self, _tokens: &[u32]) {}

    /// Says that these tokens will be asked for soon, after `before`.
    fn prefetch_at(&self, _before: &[u32], tokens: &[u32]) {
        self.prefetch(tokens);
    }
}

/// The rows of a model that may have none: `None` gathers nothing.
impl<R: RowSource> RowSource for Option<R> {
    async fn gather_traced(
        &self,
        before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        origins: &mut Vec<Origin>,
    ) -> Result<()> {
        match self {
            Some(rows) => rows.gather_traced(before, tokens, out, origins).await,
            None => Ok(()),
        }
    }

    async fn gather_alone(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        match self {
            Some(rows) => rows.gather_alone(tokens, out).await,
            None => Ok(()),
        }
    }

    fn prefetch(&self, tokens: &[u32]) {
        if let Some(rows) = self {
            rows.prefetch(tokens);
        }
    }

    fn prefetch_at(&self, before: &[u32], tokens: &[u32]) {
        if let Some(rows) = self {
            rows.prefetch_at(before, tokens);
        }
    }
}

/// Rows that are all in memory: `[vocab, n_stem, ffn]`. For tests and for models without STEM layers.
#[derive(Debug, Clone, Default)]
pub struct MemoryRows {
    /// The rows.
    pub rows: Vec<f32>,
    /// `n_stem * ffn`.
    pub row_width: usize,
}

impl RowSource for MemoryRows {
    async fn gather_traced(
        &self,
        _before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        _origins: &mut Vec<Origin>,
    ) -> Result<()> {
        let start = out.len();
        for id in tokens {
            let at = *id as usize * self.row_width;
            let Some(row) = self.rows.get(at..at + self.row_width) else {
                out.truncate(start);
                return Err(Error::invalid(format!("token {id}"), "is outside the table"));
            };
            out.extend_from_slice(row);
        }
        Ok(())
    }
}
