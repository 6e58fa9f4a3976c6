//! Two devices that take turns in one session: the one that answers, and one that can show its layers.

use super::Session;
use crate::backend::Backend;
use crate::tables::RowSource;

/// A device that stands aside, with what its cache holds.
#[derive(Debug)]
pub struct Parked<B> {
    backend: B,
    cached: Vec<u32>,
    // Of the rows that the cache was made with.
    rows_version: u64,
}

impl<B> Parked<B> {
    /// A device with an empty cache, of the same model as the session's that it will be exchanged with.
    pub fn new(backend: B) -> Self {
        Self { backend, cached: Vec::new(), rows_version: 0 }
    }
}

impl<B: Backend, R: RowSource> Session<B, R> {
    /// Exchanges the device with `other`: each keeps its cache, unless the rows have changed since it was made.
    pub fn exchange(&mut self, other: &mut Parked<B>) {
        std::mem::swap(&mut self.backend, &mut other.backend);
        std::mem::swap(&mut self.cached, &mut other.cached);
        if std::mem::replace(&mut other.rows_version, self.rows_version) != self.rows_version {
            self.reset();
        }
    }
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use super::*;
    use crate::sampler::Sampling;
    use crate::session::tests::{run, session};

    #[test]
    fn devices_take_turns_with_their_caches() {
        let prompt = [5, 6, 7, 8, 9, 10];
        let (mut s, Session { backend, .. }) = (session(100), session(100));
        let mut other = Parked::new(backend);
        let first = run(&mut s, &prompt, &Sampling::greedy(6));
        s.exchange(&mut other);
        assert_eq!(s.cached(), 0);
        assert_eq!(run(&mut s, &prompt[..4], &Sampling::greedy(2)).reused_tokens, 0);
        s.exchange(&mut other);
        let longer = [&prompt[..], &first.tokens].concat();
        let second = run(&mut s, &longer, &Sampling::greedy(6));
        assert_eq!(second.reused_tokens, longer.len() - 1);
        assert_eq!(second.tokens, run(&mut session(100), &longer, &Sampling::greedy(6)).tokens);
        s.exchange(&mut other);
        assert_eq!(run(&mut s, &prompt[..4], &Sampling::greedy(2)).reused_tokens, 3);
        // With other rows neither cache is right any more.
        s.rows_mut();
        s.exchange(&mut other);
        assert_eq!(s.cached(), 0);
        s.exchange(&mut other);
        assert_eq!(s.cached(), 0);
    }
}
