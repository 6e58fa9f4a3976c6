//! How fast the machine reads its memory, which bounds a step that reads every weight once; and what the process holds.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

/// No cache holds as many bytes.
const BYTES: usize = 512 << 20;
const ROUNDS: usize = 6;

/// Bytes a second that all threads of the pool together read, the best of a few rounds.
pub fn read_bytes_per_second() -> f64 {
    let words = vec![1u64; BYTES / size_of::<u64>()];
    let piece = words.len().div_ceil(rayon::current_num_threads());
    let round = || {
        let began = Instant::now();
        let sum: u64 = words.par_chunks(piece).map(sum).sum();
        assert_eq!(black_box(sum), words.len() as u64);
        began.elapsed().as_secs_f64()
    };
    let best = (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min);
    BYTES as f64 / best
}

/// In lanes, so that it waits for memory alone.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 16];
    let (chunks, rest) = words.as_chunks::<16>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane += word;
        }
    }
    lanes.iter().chain(rest).sum()
}

/// Bytes of the process in memory, where the system tells.
pub fn resident_bytes() -> Option<u64> {
    memory_stats::memory_stats().map(|stats| stats.physical_mem as u64)
}
