//! Where records lie in the shards of a table, whether their bytes are right, and which bytes to ask for.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::bundle::Table;
use crate::bundle::manifest::PAGE_HASH_BYTES;
use crate::error::{Error, Result};

/// Bytes between two wanted pages that are fetched along rather than paid for with a request of their own:
/// about what a link of 5 Mbit/s carries in a round trip of 50 ms.
const MAX_GAP_BYTES: u64 = 32 << 10;
/// A longer span is split, so that its parts travel side by side and a lost one costs little.
const MAX_SPAN_BYTES: u64 = 1 << 20;

/// A table's checked index.
#[derive(Debug, Clone)]
pub struct Layout {
    table: Table,
    slot_of: Vec<u32>,
    record_at: Vec<u32>,
    hashes: Vec<[u8; PAGE_HASH_BYTES]>,
}

/// Where a record lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The shard's file within the bundle.
    pub file: String,
    /// The page, numbered through all shards.
    pub page: u32,
    /// The slot, numbered through all shards; frequent tokens come first.
    pub slot: u32,
    /// The record's first byte within the shard.
    pub offset: u64,
    /// The record's length.
    pub bytes: usize,
}

/// Consecutive pages of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The shard's number.
    pub shard: usize,
    /// The pages, numbered through all shards.
    pub pages: Range<u32>,
    /// Their bytes within the shard.
    pub bytes: Range<u64>,
}

impl Layout {
    /// Reads the index file of `table`.
    ///
    /// # Errors
    /// [`Error::Bundle`] if the file is not the one of the manifest, or if its slots are no permutation.
    pub fn new(table: &Table, index: &[u8]) -> Result<Self> {
        table.index.verify(index)?;
        let wrong = |reason: String| Error::bundle(&table.index.file, reason);
        let (slots, hashes) = index
            .split_at_checked(table.records * 4)
            .ok_or_else(|| wrong(format!("{} bytes for {} records", index.len(), table.records)))?;
        let slot_of: Vec<u32> = slots.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let mut record_at = vec![u32::MAX; table.records];
        for (record, slot) in (0..).zip(&slot_of) {
            match record_at.get_mut(*slot as usize) {
                Some(free @ &mut u32::MAX) => *free = record,
                _ => {
                    return Err(wrong(format!("record {record} has slot {slot}, which is taken or outside")));
                }
            }
        }
        let hashes = hashes.as_chunks().0.to_vec();
        if hashes.len() != table.pages() {
            return Err(wrong(format!("{} page hashes for {} pages", hashes.len(), table.pages())));
        }
        Ok(Self { table: table.clone(), slot_of, record_at, hashes })
    }

    /// What the manifest says of the table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The page of `record`, and where in the page the record begins.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such record.
    pub fn locate(&self, record: u32) -> Result<(u32, usize)> {
        let slot = *self
            .slot_of
            .get(record as usize)
            .ok_or_else(|| Error::invalid(format!("token {record}"), "is outside the table"))?;
        let per_page = self.table.records_per_page;
        Ok(((slot as usize / per_page) as u32, slot as usize % per_page * self.table.record_bytes()))
    }

    /// The place of `record` among the bundle's files.
    ///
    /// # Errors
    /// As [`locate`](Self::locate).
    pub fn address(&self, record: u32) -> Result<Address> {
        let (page, start) = self.locate(record)?;
        let span = self.span(page..page + 1);
        Ok(Address {
            file: self.table.shards[span.shard].file.clone(),
            page,
            slot: self.slot_of[record as usize],
            offset: span.bytes.start + start as u64,
            bytes: self.table.record_bytes(),
        })
    }

    /// The records of `page`, in the order in which they lie there.
    pub fn records(&self, page: u32) -> &[u32] {
        self.record_at.chunks(self.table.records_per_page).nth(page as usize).unwrap_or_default()
    }

    /// Whether `bytes` are those of `page`.
    pub fn is_page(&self, page: u32, bytes: &[u8]) -> bool {
        let hash = blake3::hash(bytes);
        self.hashes.get(page as usize).is_some_and(|h| hash.as_bytes().starts_with(h))
    }

    /// All of shard `shard`.
    pub fn shard(&self, shard: usize) -> Span {
        let per_shard = self.pages_per_shard();
        let first = shard as u32 * per_shard;
        self.span(first..(first + per_shard).min(self.hashes.len() as u32))
    }

    /// The pages of `span` and where in its bytes each lies.
    pub fn pages(&self, span: &Span) -> impl Iterator<Item = (u32, Range<usize>)> {
        let (page_bytes, len) = (self.page_bytes() as usize, (span.bytes.end - span.bytes.start) as usize);
        span.pages.clone().enumerate().map(move |(i, p)| (p, i * page_bytes..len.min((i + 1) * page_bytes)))
    }

    /// The spans to fetch for `pages`, which ascend and are distinct.
    pub fn spans(&self, pages: &[u32]) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for page in pages {
            let next = self.span(*page..page + 1);
            if let Some(last) = spans.last_mut()
                && last.shard == next.shard
                && next.bytes.start - last.bytes.end <= MAX_GAP_BYTES
                && next.bytes.end - last.bytes.start <= MAX_SPAN_BYTES
            {
                *last = self.span(last.pages.start..next.pages.end);
            } else {
                spans.push(next);
            }
        }
        spans
    }

    // `pages` is not empty and lies within one shard.
    fn span(&self, pages: Range<u32>) -> Span {
        let shard = pages.start / self.pages_per_shard();
        let first = u64::from(shard * self.pages_per_shard());
        let end = self.table.shards[shard as usize].bytes;
        let at = |page: u32| ((u64::from(page) - first) * self.page_bytes()).min(end);
        Span { shard: shard as usize, bytes: at(pages.start)..at(pages.end), pages }
    }

    fn page_bytes(&self) -> u64 {
        (self.table.records_per_page * self.table.record_bytes()) as u64
    }

    fn pages_per_shard(&self) -> u32 {
        (self.table.records_per_shard / self.table.records_per_page) as u32
    }
}
