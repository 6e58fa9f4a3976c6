//! Looking rows up: memory, then the store, then the network; each page asked for once, checked before use.

mod fetch;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::future::{join, join_all, try_join};
use serde::Serialize;
use web_time::Instant;

use self::fetch::{Pending, Ranges};
use super::cache::{Cache, Held, Policy};
use super::layout::Layout;
use super::{Origin, RowSource, Tier};
use crate::bundle::quant::{dequantize_row, row_bytes};
use crate::bundle::{FileRef, Table};
use crate::error::Result;

/// What a table's pages in memory may take unless something else is asked for.
pub const DEFAULT_BUDGET: usize = 256 << 20;
/// Pages that a visit of all asks for at a time.
const VISITED_AT_ONCE: usize = 64;

/// Brings bytes of a bundle's files from where they are kept.
///
/// What it brings is not believed: [`Tables`] checks lengths and hashes. It retries what may pass by itself.
#[allow(async_fn_in_trait, reason = "used with static dispatch only")]
pub trait Transport {
    /// Bytes `range` of `file`, or `None` if the host can't serve parts of files. `fresh` passes by caches.
    ///
    /// # Errors
    /// [`Error::Network`](crate::Error::Network) or [`Error::Bundle`](crate::Error::Bundle) if they can't be had.
    async fn range(&self, file: &FileRef, range: Range<u64>, fresh: bool) -> Result<Option<Vec<u8>>>;

    /// All of `file`. `fresh` passes by caches.
    ///
    /// # Errors
    /// [`Error::Network`](crate::Error::Network) or [`Error::Bundle`](crate::Error::Bundle) if it can't be had.
    async fn whole(&self, file: &FileRef, fresh: bool) -> Result<Vec<u8>>;
}

/// Keeps pages from one visit to the next. It may lose any of them, and what it gives is checked again.
#[allow(async_fn_in_trait, reason = "used with static dispatch only")]
pub trait Store {
    /// Those of `pages` that are kept. A store that fails keeps nothing.
    async fn load(&self, pages: &[u32]) -> Vec<(u32, Vec<u8>)>;

    /// Keeps a checked page, at once or some time later.
    fn save(&self, page: u32, bytes: &[u8]);

    /// Removes a page that turned out to be damaged.
    fn forget(&self, page: u32);
}

/// Keeps nothing.
impl Store for () {
    async fn load(&self, _pages: &[u32]) -> Vec<(u32, Vec<u8>)> {
        Vec::new()
    }

    fn save(&self, _page: u32, _bytes: &[u8]) {}

    fn forget(&self, _page: u32) {}
}

/// What lookups did so far. Rows are counted as records: all layers of a token are one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Records looked up.
    pub rows: u64,
    /// Records looked up, duplicates within a lookup not counted; the sum of the next three.
    pub unique_rows: u64,
    /// Unique records found in memory.
    pub hot: u64,
    /// Unique records found in the store.
    pub stored: u64,
    /// Unique records that had to be fetched, or were still being fetched.
    pub fetched: u64,
    /// Requests sent, those of prefetches included.
    pub requests: u64,
    /// Bytes that came, those of prefetches included.
    pub bytes_fetched: u64,
    /// Pages that did not have their hash, fetched or stored.
    pub damaged_pages: u64,
    /// Milliseconds that lookups waited for pages that were not in memory.
    pub stall_ms: f64,
    /// Bytes of the pages now in memory.
    pub hot_bytes: u64,
}

/// The records of one table.
///
/// Futures of different lookups may run side by side; a page that two of them want is fetched once, and if the
/// one that fetches it is dropped, the other takes over.
#[derive(Debug)]
pub struct Tables<T, S = ()> {
    layout: Layout,
    transport: T,
    store: S,
    state: Mutex<State>,
    // Held while it is not yet known whether the host serves ranges, so that only one request finds out.
    probe: futures::lock::Mutex<()>,
    // Held while a whole shard comes: other lookups may find what they need in it.
    whole: futures::lock::Mutex<()>,
}

#[derive(Debug)]
struct State {
    cache: Cache,
    pending: HashMap<u32, Pending>,
    next_claim: u64,
    ranges: Ranges,
    // Shards whose ranges were wrong on a host that serves others rightly.
    spoilt: BTreeSet<usize>,
    stats: Stats,
}

/// A page that a lookup has, and the milliseconds it waited for it.
#[derive(Debug)]
struct Found {
    held: Held,
    tier: Tier,
    ms: f64,
}

impl<T: Transport, S: Store> Tables<T, S> {
    /// The table whose index file holds `index`, with at most `budget` bytes of pages in memory.
    ///
    /// # Errors
    /// [`Error::Bundle`](crate::Error::Bundle) if the index is damaged.
    pub fn new(table: &Table, index: &[u8], transport: T, store: S, budget: usize) -> Result<Self> {
        let state = State {
            cache: Cache::new(budget),
            pending: HashMap::new(),
            next_claim: 0,
            ranges: Ranges::Unknown,
            spoilt: BTreeSet::new(),
            stats: Stats::default(),
        };
        Ok(Self {
            layout: Layout::new(table, index)?,
            transport,
            store,
            state: Mutex::new(state),
            probe: futures::lock::Mutex::new(()),
            whole: futures::lock::Mutex::new(()),
        })
    }

    /// Where records lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where pages are kept from one visit to the next.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Where pages are fetched from.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// What lookups did so far.
    pub fn stats(&self) -> Stats {
        let state = self.state();
        Stats { hot_bytes: state.cache.bytes() as u64, ..state.stats }
    }

    /// Changes what the pages in memory may take, in bytes.
    pub fn set_budget(&self, budget: usize) {
        self.state().cache.set_budget(budget);
    }

    /// Changes which pages make room in memory.
    pub fn set_policy(&self, policy: Policy) {
        self.state().cache.set_policy(policy);
    }

    /// Calls `visit` with the number and the stored bytes of each record whose page is in memory, which counts as no use
    /// of it.
    pub fn visit_memory(&self, mut visit: impl FnMut(u32, &[u8])) {
        let held = self.state().cache.held();
        for (page, held) in held {
            self.visit_page(page, &held, &mut visit);
        }
    }

    /// As [`visit_memory`](Self::visit_memory), for all records, wherever they have to come from.
    ///
    /// # Errors
    /// As [`RowSource::gather`].
    pub async fn visit_all(&self, mut visit: impl FnMut(u32, &[u8])) -> Result<()> {
        let pages: Vec<u32> = (0..self.layout.table().pages() as u32).collect();
        for pages in pages.chunks(VISITED_AT_ONCE) {
            for (page, found) in self.pages(pages).await? {
                self.visit_page(page, &found.held, &mut visit);
            }
        }
        Ok(())
    }

    fn visit_page(&self, page: u32, held: &Held, visit: &mut impl FnMut(u32, &[u8])) {
        let mut bytes = vec![0; held.len()];
        held.read(0, &mut bytes);
        let records = bytes.chunks_exact(self.layout.table().record_bytes());
        for (record, bytes) in self.layout.records(page).iter().zip(records) {
            visit(*record, bytes);
        }
    }

    /// Brings the records of `tokens` into memory, as far as the budget goes.
    ///
    /// # Errors
    /// As [`RowSource::gather`].
    pub async fn warm(&self, tokens: &[u32]) -> Result<()> {
        let pages = tokens.iter().map(|t| Ok(self.layout.locate(*t)?.0));
        let pages: BTreeSet<u32> = pages.collect::<Result<_>>()?;
        self.pages(&pages.into_iter().collect::<Vec<_>>()).await?;
        Ok(())
    }

    /// Fetches those of `pages` (ascending, distinct) that are neither in memory nor stored.
    ///
    /// # Errors
    /// As [`RowSource::gather`].
    pub async fn warm_pages(&self, pages: &[u32]) -> Result<()> {
        self.pages(pages).await?;
        Ok(())
    }

    /// Brings `pages` (ascending, distinct) to the store, and into memory as far as there is room: no page that a lookup
    /// asked for makes way. Pages that a lookup fetches just now are left to it, and stay missing if it gives up.
    ///
    /// # Errors
    /// As [`RowSource::gather`].
    pub async fn download(&self, pages: &[u32]) -> Result<()> {
        let (claim, waits) = self.claim_unasked(pages);
        let fetch = async {
            let fetched = self.fetch(&claim.pages).await;
            drop(claim);
            fetched
        };
        join(fetch, join_all(waits)).await.0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No update of the state can stop half-way, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The given pages, which ascend and are distinct.
    async fn pages(&self, wanted: &[u32]) -> Result<HashMap<u32, Found>> {
        let began = Instant::now();
        let mut have = HashMap::with_capacity(wanted.len());
        // A second round is needed only if somebody gave up a page that this lookup waited for.
        loop {
            let (claim, waits) = self.claim(wanted, &mut have);
            if waits.is_empty() {
                return Ok(have);
            }
            let fetch = async {
                let fetched = self.fetch(&claim.pages).await;
                drop(claim);
                fetched
            };
            let arrivals = join_all(waits.into_iter().map(async |(page, wait)| {
                let (held, tier) = wait.await.ok()?;
                Some((page, Found { held, tier, ms: began.elapsed().as_secs_f64() * 1e3 }))
            }));
            let ((), arrivals) = try_join(fetch, async { Ok(arrivals.await) }).await?;
            have.extend(arrivals.into_iter().flatten());
        }
    }
}

impl<T: Transport, S: Store> RowSource for Tables<T, S> {
    async fn gather_traced(
        &self,
        _before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        origins: &mut Vec<Origin>,
    ) -> Result<()> {
        let places = tokens.iter().map(|t| self.layout.locate(*t));
        let places: Vec<(u32, usize)> = places.collect::<Result<_>>()?;
        let mut wanted: Vec<u32> = places.iter().map(|(page, _)| *page).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let pages = self.pages(&wanted).await?;
        let stall_ms = pages.values().fold(0.0, |longest: f64, page| longest.max(page.ms));

        let table = self.layout.table();
        let width = table.rows_per_record * table.width;
        let mut record = vec![0; table.record_bytes()];
        let mut found: HashMap<(u32, usize), usize> = HashMap::with_capacity(places.len());
        let mut tiers = [0; 3];
        out.reserve(tokens.len() * width);
        for place @ (page, start) in places {
            let at = out.len();
            let Found { held, tier, ms } = &pages[&page];
            origins.push(Origin { tier: Some(*tier), ms: *ms, ..Origin::default() });
            if let Some(first) = found.get(&place) {
                out.extend_from_within(*first..*first + width);
                continue;
            }
            found.insert(place, at);
            tiers[*tier as usize] += 1;
            held.read(start, &mut record);
            out.resize(at + width, 0.0);
            let rows = out[at..].chunks_exact_mut(table.width);
            for (row, bytes) in rows.zip(record.chunks_exact(row_bytes(table.width))) {
                dequantize_row(bytes, row);
            }
        }
        let stats = &mut self.state().stats;
        let [hot, stored, fetched] = tiers;
        stats.rows += tokens.len() as u64;
        stats.unique_rows += found.len() as u64;
        stats.hot += hot;
        stats.stored += stored;
        stats.fetched += fetched;
        stats.stall_ms += stall_ms;
        Ok(())
    }
}
