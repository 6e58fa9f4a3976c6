//! Pages held in memory within a budget: those used least make room.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

pub use held::Held;

/// Which page makes room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The least recently used.
    #[default]
    Lru,
    /// The least frequently used, of several the least recently used. Uses are counted while a page is held and
    /// forgotten when it goes.
    Lfu,
}

/// Pages by number.
#[derive(Debug, Default)]
pub struct Cache {
    pages: HashMap<u32, Slot>,
    // The first goes first. Times are distinct, so keys are too.
    by_key: BTreeMap<Key, u32>,
    policy: Policy,
    newest: i64,
    oldest: i64,
    bytes: usize,
    budget: usize,
}

/// A page with its number of uses and the time of the last. One that nobody asked for yet has no use and a negative time.
#[derive(Debug)]
struct Slot {
    uses: u64,
    time: i64,
    held: Held,
}

type Key = (u64, i64);

impl Policy {
    fn key(self, slot: &Slot) -> Key {
        match self {
            Self::Lru => (0, slot.time),
            Self::Lfu => (slot.uses, slot.time),
        }
    }
}

impl Cache {
    /// An empty cache for at most `budget` bytes of pages.
    pub fn new(budget: usize) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Bytes of the pages held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the budget and drops what no longer fits.
    pub fn set_budget(&mut self, budget: usize) {
        self.budget = budget;
        self.shrink(budget);
    }

    /// Changes which page makes room from now on; none goes.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.by_key = self.pages.iter().map(|(page, slot)| (policy.key(slot), *page)).collect();
    }

    /// The page, which counts as a use.
    pub fn get(&mut self, page: u32) -> Option<Held> {
        let slot = self.pages.get_mut(&page)?;
        self.by_key.remove(&self.policy.key(slot));
        self.newest += 1;
        slot.time = self.newest;
        slot.uses += 1;
        self.by_key.insert(self.policy.key(slot), page);
        Some(slot.held.clone())
    }

    /// All pages held, in no order; no use.
    pub fn held(&self) -> Vec<(u32, Held)> {
        self.pages.iter().map(|(page, slot)| (*page, slot.held.clone())).collect()
    }

    /// Whether the page is held; no use.
    pub fn contains(&self, page: u32) -> bool {
        self.pages.contains_key(&page)
    }

    /// Holds a page that was asked for; others make room. One larger than the budget is not held.
    pub fn insert(&mut self, page: u32, held: Held) {
        if held.len() <= self.budget && !self.contains(page) {
            self.shrink(self.budget - held.len());
            self.newest += 1;
            self.put(page, Slot { uses: 1, time: self.newest, held });
        }
    }

    /// Holds a page that came along unasked, if there is room, as the first to go.
    pub fn insert_idle(&mut self, page: u32, bytes: &[u8]) {
        if bytes.len() + self.bytes <= self.budget && !self.contains(page) {
            self.oldest -= 1;
            self.put(page, Slot { uses: 0, time: self.oldest, held: Held::new(bytes) });
        }
    }

    fn put(&mut self, page: u32, slot: Slot) {
        self.bytes += slot.held.len();
        self.by_key.insert(self.policy.key(&slot), page);
        self.pages.insert(page, slot);
    }

    fn shrink(&mut self, target: usize) {
        while self.bytes > target
            && let Some((_, page)) = self.by_key.pop_first()
            && let Some(slot) = self.pages.remove(&page)
        {
            self.bytes -= slot.held.len();
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod held {
    use std::sync::Arc;

    /// Shared bytes.
    #[derive(Debug, Clone)]
    pub struct Held(Arc<[u8]>);

    impl Held {
        /// A copy of `bytes`.
        pub fn new(bytes: &[u8]) -> Self {
            Self(bytes.into())
        }

        /// Number of bytes.
        #[allow(clippy::len_without_is_empty, reason = "never empty: a page has a record")]
        pub fn len(&self) -> usize {
            self.0.len()
        }

        /// Copies the bytes from `start` on into `out`; they must reach.
        pub fn read(&self, start: usize, out: &mut [u8]) {
            out.copy_from_slice(&self.0[start..start + out.len()]);
        }
    }
}

#[cfg(target_arch = "wasm32")]
mod held {
    use js_sys::Uint8Array;

    /// Shared bytes in JavaScript's memory: wasm's own never shrinks, and ends at 4 GB.
    #[derive(Debug, Clone)]
    pub struct Held(Uint8Array);

    impl Held {
        /// A copy of `bytes`.
        pub fn new(bytes: &[u8]) -> Self {
            Self(Uint8Array::from(bytes))
        }

        /// Number of bytes.
        #[allow(clippy::len_without_is_empty, reason = "never empty: a page has a record")]
        pub fn len(&self) -> usize {
            self.0.length() as usize
        }

        /// Copies the bytes from `start` on into `out`; they must reach.
        pub fn read(&self, start: usize, out: &mut [u8]) {
            self.0.subarray(start as u32, (start + out.len()) as u32).copy_to(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_used_makes_room() {
        let mut cache = Cache::new(30);
        for page in 0..3 {
            cache.insert(page, Held::new(&[page as u8; 10]));
        }
        assert!(cache.get(0).is_some());
        cache.insert(3, Held::new(&[3; 10]));
        assert_eq!([0, 1, 2, 3].map(|p| cache.contains(p)), [true, false, true, true]);
        assert_eq!(cache.bytes(), 30);
        let mut out = [0; 2];
        cache.get(3).unwrap().read(8, &mut out);
        assert_eq!(out, [3, 3]);
        cache.set_budget(25);
        assert_eq!([0, 2, 3].map(|p| cache.contains(p)), [true, false, true]);
        cache.insert(4, Held::new(&[4; 26]));
        assert_eq!((cache.contains(4), cache.bytes()), (false, 20));
    }

    #[test]
    fn the_least_frequently_used_makes_room() {
        let mut cache = Cache::new(30);
        cache.set_policy(Policy::Lfu);
        for page in 0..3 {
            cache.insert(page, Held::new(&[page as u8; 10]));
        }
        // Uses: 3, 2, 1; page 0 was used longest ago.
        for page in [0, 0, 1] {
            cache.get(page);
        }
        cache.insert(3, Held::new(&[3; 10]));
        assert_eq!([0, 1, 2, 3].map(|p| cache.contains(p)), [true, true, false, true]);
        // A page that comes back begins anew.
        cache.insert(2, Held::new(&[2; 10]));
        assert_eq!([0, 1, 2, 3].map(|p| cache.contains(p)), [true, true, true, false]);
        // Equally often used: the one used longest ago goes, which is page 1.
        cache.get(2);
        cache.insert(4, Held::new(&[4; 10]));
        assert_eq!([0, 1, 2, 4].map(|p| cache.contains(p)), [true, false, true, true]);
        // By recency page 0 would be the first to go; pages keep their times when the policy changes.
        cache.set_policy(Policy::Lru);
        cache.insert(5, Held::new(&[5; 10]));
        assert_eq!([0, 2, 4, 5].map(|p| cache.contains(p)), [false, true, true, true]);
        assert_eq!(cache.bytes(), 30);
    }

    #[test]
    fn idle_pages_go_first_by_frequency_too() {
        let mut cache = Cache::new(30);
        cache.set_policy(Policy::Lfu);
        cache.insert(0, Held::new(&[0; 10]));
        cache.insert_idle(1, &[1; 10]);
        cache.insert_idle(2, &[2; 10]);
        cache.insert(3, Held::new(&[3; 10]));
        assert_eq!([0, 1, 2, 3].map(|p| cache.contains(p)), [true, true, false, true]);
        cache.get(1);
        cache.get(1);
        cache.insert(4, Held::new(&[4; 10]));
        assert_eq!([0, 1, 3, 4].map(|p| cache.contains(p)), [false, true, true, true]);
    }

    #[test]
    fn idle_pages_push_nobody_out() {
        let mut cache = Cache::new(30);
        cache.insert(0, Held::new(&[0; 10]));
        cache.insert_idle(1, &[1; 10]);
        cache.insert_idle(2, &[2; 10]);
        cache.insert_idle(3, &[3; 10]);
        assert_eq!([0, 1, 2, 3].map(|p| cache.contains(p)), [true, true, true, false]);
        cache.insert(4, Held::new(&[4; 10]));
        assert_eq!([0, 1, 2, 4].map(|p| cache.contains(p)), [true, true, false, true]);
        cache.get(1);
        cache.insert(5, Held::new(&[5; 10]));
        assert_eq!([0, 1, 4, 5].map(|p| cache.contains(p)), [false, true, true, true]);
    }
}
