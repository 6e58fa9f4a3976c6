//! A link with a round trip and a rate, before any transport.

use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::bundle::FileRef;
use crate::error::{Error, Result};
use crate::tables::Transport;

/// A link: an answer's first byte comes a round trip after the request, and the bytes of all answers pass it one after
/// the other, in the order of their requests. Losses, TCP's slow start and the bytes of headers are not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Link {
    /// Rate in 10⁶ bits a second.
    pub mbit: f64,
    /// Round trip in milliseconds.
    pub round_trip_ms: f64,
}

impl Link {
    /// When the last of `bytes` bytes is there that are asked for at `now`, on a link that is taken until `free`.
    fn arrival(&self, now: Instant, free: Instant, bytes: u64) -> Instant {
        let first = now + Duration::from_secs_f64(self.round_trip_ms / 1e3);
        first.max(free) + Duration::from_secs_f64(bytes as f64 * 8.0 / (self.mbit * 1e6))
    }
}

impl FromStr for Link {
    type Err = Error;

    /// `MBIT,MS`, as `20,50`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(
                format!("link `{text}`"),
                "must be Mbit/s from 0.01 to 100000 and ms from 0 to 10000, as 20,50",
            )
        };
        let (mbit, ms) = text.split_once(',').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<f64>().map_err(|_| wrong());
        let (mbit, round_trip_ms) = (number(mbit)?, number(ms)?);
        if !(0.01..=1e5).contains(&mbit) || !(0.0..=1e4).contains(&round_trip_ms) {
            return Err(wrong());
        }
        Ok(Self { mbit, round_trip_ms })
    }
}

/// A transport behind a link, or as it is without one. Clones share the link.
///
/// With a link its futures need a tokio runtime with timers.
#[derive(Debug, Clone)]
pub struct Linked<T> {
    inner: T,
    link: Option<Link>,
    // Until when requests so far take the link; a request given up keeps its place, as its bytes are on their way.
    taken: Arc<Mutex<Instant>>,
}

impl<T> Linked<T> {
    /// `inner` behind `link`.
    pub fn new(inner: T, link: Option<Link>) -> Self {
        Self { inner, link, taken: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Waits until `bytes` bytes that are asked for now have come.
    async fn pass(&self, bytes: u64) {
        let Some(link) = self.link else { return };
        let arrival = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            *taken = link.arrival(Instant::now(), *taken, bytes);
            *taken
        };
        sleep_until(arrival).await;
    }
}

impl<T: Transport> Transport for Linked<T> {
    async fn range(&self, file: &FileRef, range: Range<u64>, fresh: bool) -> Result<Option<Vec<u8>>> {
        self.pass(range.end - range.start).await;
        self.inner.range(file, range, fresh).await
    }

    async fn whole(&self, file: &FileRef, fresh: bool) -> Result<Vec<u8>> {
        self.pass(file.bytes).await;
        self.inner.whole(file, fresh).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_share_the_rate_and_not_the_round_trip() {
        let link: Link = "20, 50".parse().unwrap();
        assert_eq!(link, Link { mbit: 20.0, round_trip_ms: 50.0 });
        let now = Instant::now();
        let ms = |at: Instant| (at - now).as_secs_f64() * 1e3;
        // 2,500 bytes are one millisecond at 20 Mbit/s.
        let first = link.arrival(now, now, 25_000);
        assert!((ms(first) - 60.0).abs() < 1e-3);
        // Asked for at the same time: its bytes follow those of the first.
        let second = link.arrival(now, first, 5_000);
        assert!((ms(second) - 62.0).abs() < 1e-3);
        // Asked for once the link is idle: a round trip again.
        let late = now + Duration::from_millis(100);
        assert!((ms(link.arrival(late, second, 2_500)) - 151.0).abs() < 1e-3);
    }

    #[test]
    fn a_link_that_cannot_be_is_refused() {
        for text in ["", "20", "0,50", "20,-1", "x,50", "nan,50", "20,inf", "20,50,1"] {
            let error = text.parse::<Link>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
