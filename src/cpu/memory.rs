//! Memory for weights and caches: zeros, on large pages where the system has them.
//!
//! All weights are read for each token, in order. With pages of 4 KiB a core that reads so waits for the page table; pages of
//! 2 MiB gave a quarter more tokens a second on one thread.

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
#[cfg(all(feature = "native", target_os = "linux"))]
use bytemuck::{cast_slice, cast_slice_mut};
#[cfg(all(feature = "native", target_os = "linux"))]
use memmap2::{Advice, MmapMut};

/// Less is not worth a mapping of its own.
#[cfg(all(feature = "native", target_os = "linux"))]
const LARGE: usize = 1 << 16;

/// Values in memory.
#[derive(Debug)]
pub enum Memory<T> {
    /// Where the allocator puts them.
    Heap(Vec<T>),
    /// In a mapping; neighbours make one large area, which is filled after all are there.
    #[cfg(all(feature = "native", target_os = "linux"))]
    Mapped(MmapMut),
}

impl<T: Pod> Memory<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        #[cfg(all(feature = "native", target_os = "linux"))]
        if len * size_of::<T>() >= LARGE
            && let Ok(map) = MmapMut::map_anon(len * size_of::<T>())
        {
            // A system without large pages refuses; then they are small.
            let _ = map.advise(Advice::HugePage);
            return Self::Mapped(map);
        }
        Self::Heap(vec![T::zeroed(); len])
    }
}

impl<T: Pod> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Heap(values) => values,
            #[cfg(all(feature = "native", target_os = "linux"))]
            Self::Mapped(map) => cast_slice(map),
        }
    }
}

impl<T: Pod> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Heap(values) => values,
            #[cfg(all(feature = "native", target_os = "linux"))]
            Self::Mapped(map) => cast_slice_mut(map),
        }
    }
}
