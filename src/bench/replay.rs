//! The lookups of a text, without the model.
//!
//! A visit is one opening of the page: it begins with empty memory and reads all documents one after another, so that
//! what one document brought is there for the next. Nothing is kept from one visit to the next here: the store is left
//! out, and what memory lacks is fetched.

use std::collections::HashSet;

use serde::Serialize;

use crate::error::Result;
use crate::tables::layout::Layout;
use crate::tables::{Policy, RowSource, Tables, Transport};

/// Which records a text needs, whatever is kept where.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TextRecords {
    /// Documents.
    pub documents: u64,
    /// Tokens of all documents.
    pub tokens: u64,
    /// Distinct records among them.
    pub records: u64,
    /// `records / tokens`: records that a visit with room for all fetches for each token.
    pub records_per_token: f64,
    /// Bytes of the distinct records for each token.
    pub bytes_per_token: f64,
    /// Bytes of the distinct records, as a share of the table's.
    pub table_share: f64,
    /// Distinct records among the first tokens.
    pub growth: Vec<Growth>,
    /// Means over documents, each for itself.
    pub a_document: OneDocument,
}

/// How many distinct records the first tokens of a text have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// Tokens from the beginning of the text on.
    pub tokens: u64,
    /// Distinct records among them.
    pub records: u64,
}

/// Means over documents, each as if it were a visit by itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OneDocument {
    /// Tokens.
    pub tokens: f64,
    /// Distinct records.
    pub records: f64,
    /// Bytes of these, as a share of the table's.
    pub table_share: f64,
}

impl TextRecords {
    /// Of `documents`, whose tokens are records of `layout`'s table.
    pub fn of(layout: &Layout, documents: &[Vec<u32>]) -> Self {
        let record_bytes = layout.table().record_bytes() as f64;
        let share = |records: f64| records * record_bytes / layout.table().bytes() as f64;
        let (mut seen, mut tokens, mut growth) = (HashSet::new(), 0, Vec::new());
        for token in documents.iter().flatten() {
            seen.insert(*token);
            tokens += 1;
            if is_mark(tokens) {
                growth.push(Growth { tokens, records: seen.len() as u64 });
            }
        }
        let records = seen.len() as u64;
        if growth.last().is_none_or(|last| last.tokens < tokens) {
            growth.push(Growth { tokens, records });
        }
        let own: usize = documents.iter().map(|d| d.iter().collect::<HashSet<_>>().len()).sum();
        let mean = |sum: f64| sum / (documents.len() as f64).max(1.0);
        let per_token = records as f64 / (tokens as f64).max(1.0);
        Self {
            documents: documents.len() as u64,
            tokens,
            records,
            records_per_token: per_token,
            bytes_per_token: per_token * record_bytes,
            table_share: share(records as f64),
            growth,
            a_document: OneDocument {
                tokens: mean(tokens as f64),
                records: mean(own as f64),
                table_share: share(mean(own as f64)),
            },
        }
    }
}

/// 100, 200, 500, 1,000 and so on.
fn is_mark(tokens: u64) -> bool {
    let power = 10u64.pow(tokens.max(1).ilog10());
    tokens >= 100 && [1, 2, 5].map(|n| n * power).contains(&tokens)
}

/// What a visit's lookups found with one kind of memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replayed {
    /// Which pages make room.
    pub policy: Policy,
    /// What pages in memory may take, in bytes.
    pub budget: u64,
    /// Records looked up.
    pub rows: u64,
    /// Those, duplicates within a lookup not counted; the sum of the next two.
    pub unique_rows: u64,
    /// Unique records found in memory.
    pub memory: u64,
    /// Unique records that were fetched.
    pub fetched: u64,
    /// `memory / unique_rows`.
    pub hit_rate: f64,
    /// Requests.
    pub requests: u64,
    /// Bytes fetched, those between wanted pages included.
    pub bytes_fetched: u64,
    /// `bytes_fetched / rows`.
    pub bytes_per_token: f64,
}

/// Looks the tokens of `documents` up, `step` at a time, as one visit. `tables` are new ones, without a store; of pages
/// in memory they hold at most `budget` bytes, and drop them by `policy`.
///
/// # Errors
/// As [`RowSource::gather`].
pub async fn replay<T: Transport>(
    tables: &Tables<T>,
    policy: Policy,
    budget: usize,
    documents: &[Vec<u32>],
    step: usize,
) -> Result<Replayed> {
    tables.set_policy(policy);
    tables.set_budget(budget);
    let mut out = Vec::new();
    for document in documents {
        for tokens in document.chunks(step.max(1)) {
            out.clear();
            tables.gather(tokens, &mut out).await?;
        }
    }
    let stats = tables.stats();
    Ok(Replayed {
        policy,
        budget: budget as u64,
        rows: stats.rows,
        unique_rows: stats.unique_rows,
        memory: stats.hot,
        fetched: stats.fetched,
        hit_rate: stats.hot as f64 / (stats.unique_rows as f64).max(1.0),
        requests: stats.requests,
        bytes_fetched: stats.bytes_fetched,
        bytes_per_token: stats.bytes_fetched as f64 / (stats.rows as f64).max(1.0),
    })
}
