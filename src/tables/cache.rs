//! Pages held in memory within a budget: the least recently used make room.

use std::collections::{BTreeMap, HashMap};

pub use held::Held;

/// Pages by number.
#[derive(Debug, Default)]
pub struct Cache {
    pages: HashMap<u32, (i64, Held)>,
    // Time of last use → page. Times are distinct; pages that nobody asked for yet have negative ones.
    by_use: BTreeMap<i64, u32>,
    newest: i64,
    oldest: i64,
    bytes: usize,
    budget: usize,
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

    /// The page, which counts as a use.
    pub fn get(&mut self, page: u32) -> Option<Held> {
        let (used, held) = self.pages.get_mut(&page)?;
        self.by_use.remove(used);
        self.newest += 1;
        *used = self.newest;
        self.by_use.insert(*used, page);
        Some(held.clone())
    }

    /// All pages held, in no order; no use.
    pub fn held(&self) -> Vec<(u32, Held)> {
        self.pages.iter().map(|(page, (_, held))| (*page, held.clone())).collect()
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
            self.put(self.newest, page, held);
        }
    }

    /// Holds a page that came along unasked, if there is room, as the first to go.
    pub fn insert_idle(&mut self, page: u32, bytes: &[u8]) {
        if bytes.len() + self.bytes <= self.budget && !self.contains(page) {
            self.oldest -= 1;
            self.put(self.oldest, page, Held::new(bytes));
        }
    }

    fn put(&mut self, used: i64, page: u32, held: Held) {
        self.bytes += held.len();
        self.by_use.insert(used, page);
        self.pages.insert(page, (used, held));
    }

    fn shrink(&mut self, target: usize) {
        while self.bytes > target
            && let Some((_, page)) = self.by_use.pop_first()
            && let Some((_, held)) = self.pages.remove(&page)
        {
            self.bytes -= held.len();
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
