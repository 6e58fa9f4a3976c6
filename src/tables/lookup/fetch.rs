//! Pages that are not in memory: who fetches them, from the store or over the network, and what is believed of what comes.

use std::collections::HashMap;

use futures::channel::oneshot;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Found, State, Store, Tables, Transport};
use crate::error::{Error, Result};
use crate::tables::Tier;
use crate::tables::cache::Held;
use crate::tables::layout::Span;

/// Requests of one lookup that are under way at a time; browsers keep six connections a host over HTTP/1.1.
const REQUESTS: usize = 6;

/// A page that somebody is fetching.
#[derive(Debug)]
pub(super) struct Pending {
    claim: u64,
    waiting: Vec<oneshot::Sender<Arrival>>,
}

impl State {
    /// A page's entry; `claim` takes the page on itself if nobody fetches it.
    fn pending<T: Transport, S: Store>(&mut self, page: u32, claim: &mut Claim<'_, T, S>) -> &mut Pending {
        self.pending.entry(page).or_insert_with(|| {
            claim.pages.push(page);
            Pending { claim: claim.id, waiting: Vec::new() }
        })
    }

    /// Whether ranges of this shard are not worth asking for.
    fn gets_whole(&self, shard: usize) -> bool {
        self.ranges == Ranges::Refused || self.spoilt.contains(&shard)
    }

    /// What a range of this shard that can't be had means: nothing for the others if the host served one before, unless
    /// it spoilt two.
    fn give_ranges_up(&mut self, shard: usize) {
        self.spoilt.insert(shard);
        if self.ranges != Ranges::Served || self.spoilt.len() > 1 {
            self.ranges = Ranges::Refused;
        }
    }
}

impl Pending {
    fn wait(&mut self) -> oneshot::Receiver<Arrival> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.push(sender);
        receiver
    }
}

pub(super) type Arrival = (Held, Tier);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ranges {
    Unknown,
    Served,
    Refused,
}

impl<T: Transport, S: Store> Tables<T, S> {
    /// Takes what is in memory, and queues for the rest; pages that nobody else fetches are claimed.
    #[allow(clippy::type_complexity, reason = "the pairs are named at once by the one caller")]
    pub(super) fn claim(
        &self,
        wanted: &[u32],
        have: &mut HashMap<u32, Found>,
    ) -> (Claim<'_, T, S>, Vec<(u32, oneshot::Receiver<Arrival>)>) {
        let mut state = self.state();
        let mut claim = Claim { tables: self, id: state.next_claim, pages: Vec::new() };
        state.next_claim += 1;
        let mut waits = Vec::new();
        for page in wanted {
            if have.contains_key(page) {
                continue;
            }
            if let Some(held) = state.cache.get(*page) {
                have.insert(*page, Found { held, tier: Tier::Memory, ms: 0.0 });
                continue;
            }
            waits.push((*page, state.pending(*page, &mut claim).wait()));
        }
        (claim, waits)
    }

    /// Claims those of `pages` that nobody fetches, be they in memory or not, and queues for the others only.
    pub(super) fn claim_unasked(&self, pages: &[u32]) -> (Claim<'_, T, S>, Vec<oneshot::Receiver<Arrival>>) {
        let mut state = self.state();
        let mut claim = Claim { tables: self, id: state.next_claim, pages: Vec::new() };
        state.next_claim += 1;
        let mut waits = Vec::new();
        for page in pages {
            let pending = state.pending(*page, &mut claim);
            if pending.claim != claim.id {
                waits.push(pending.wait());
            }
        }
        (claim, waits)
    }

    /// Delivers all of `pages`, which ascend, or fails.
    pub(super) async fn fetch(&self, pages: &[u32]) -> Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        for (page, bytes) in self.store.load(pages).await {
            if !self.accept(page, &bytes, Tier::Stored) {
                self.store.forget(page);
            }
        }
        let missing: Vec<u32> = {
            let state = self.state();
            pages.iter().copied().filter(|p| state.pending.contains_key(p)).collect()
        };
        let spans = stream::iter(self.layout.spans(&missing)).map(Ok);
        spans.try_for_each_concurrent(REQUESTS, |span| self.fetch_span(span)).await
    }

    /// Delivers the pending pages of `span`.
    async fn fetch_span(&self, span: Span) -> Result<()> {
        let mut probe = None;
        if self.state().ranges == Ranges::Unknown {
            probe = Some(self.probe.lock().await);
        }
        if self.state().ranges == Ranges::Served {
            probe = None;
        }
        let file = &self.layout.table().shards[span.shard];
        for fresh in [false, true] {
            if self.state().gets_whole(span.shard) {
                break;
            }
            self.state().stats.requests += 1;
            let bytes = match self.transport.range(file, span.bytes.clone(), fresh).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    self.state().give_ranges_up(span.shard);
                    break;
                }
                // Browsers fail where a host compresses ranges. If the whole shard can't be had either, it is gone.
                Err(Error::Network { .. }) if self.state().ranges != Ranges::Served => break,
                Err(error) => return Err(error),
            };
            self.state().stats.bytes_fetched += bytes.len() as u64;
            if self.accept_span(&span, &bytes) {
                self.state().ranges = Ranges::Served;
                return Ok(());
            }
        }
        // Where it is still not known, the shard will tell.
        let _probe = probe.filter(|_| self.state().ranges == Ranges::Unknown);
        self.fetch_shard(&span).await
    }

    /// Delivers the pending pages of `span` from its whole shard.
    async fn fetch_shard(&self, span: &Span) -> Result<()> {
        let _one_at_a_time = self.whole.lock().await;
        if !self.is_pending(span) {
            return Ok(());
        }
        let file = &self.layout.table().shards[span.shard];
        let mut verdict = Ok(());
        for fresh in [false, true] {
            self.state().stats.requests += 1;
            let bytes = self.transport.whole(file, fresh).await?;
            self.state().stats.bytes_fetched += bytes.len() as u64;
            verdict = file.verify(&bytes);
            if verdict.is_err() {
                continue;
            }
            // Either the host said that it serves no ranges, or it served wrong ones twice.
            self.state().give_ranges_up(span.shard);
            if self.accept_span(&self.layout.shard(span.shard), &bytes) {
                return Ok(());
            }
            return Err(Error::bundle(
                &file.file,
                "does not match the table's index; convert the model again",
            ));
        }
        verdict
    }

    fn is_pending(&self, span: &Span) -> bool {
        let state = self.state();
        span.pages.clone().any(|p| state.pending.contains_key(&p))
    }

    /// Takes the good pages among the `bytes` of `span`; whether no pending one was bad.
    fn accept_span(&self, span: &Span, bytes: &[u8]) -> bool {
        for (page, range) in self.layout.pages(span) {
            let bytes = bytes.get(range).unwrap_or_default();
            if self.accept(page, bytes, Tier::Fetched) {
                self.store.save(page, bytes);
            }
        }
        !self.is_pending(span)
    }

    /// Checks a page and hands it to those who wait for it.
    fn accept(&self, page: u32, bytes: &[u8], tier: Tier) -> bool {
        let good = self.layout.is_page(page, bytes);
        let mut guard = self.state();
        let state = &mut *guard;
        if !good {
            state.stats.damaged_pages += 1;
            return false;
        }
        let waiting = state.pending.remove(&page).map_or_else(Vec::new, |pending| pending.waiting);
        if waiting.is_empty() {
            state.cache.insert_idle(page, bytes);
            return true;
        }
        let held = Held::new(bytes);
        for waiting in waiting {
            let _ = waiting.send((held.clone(), tier)); // its lookup was dropped
        }
        state.cache.insert(page, held);
        true
    }
}

/// Pages that one lookup or download has taken on itself to fetch. Dropped, it leaves those not delivered to others.
pub(super) struct Claim<'a, T: Transport, S: Store> {
    tables: &'a Tables<T, S>,
    id: u64,
    pub(super) pages: Vec<u32>,
}

impl<T: Transport, S: Store> Drop for Claim<'_, T, S> {
    fn drop(&mut self) {
        let mut state = self.tables.state();
        for page in &self.pages {
            if state.pending.get(page).is_some_and(|p| p.claim == self.id) {
                state.pending.remove(page);
            }
        }
    }
}
