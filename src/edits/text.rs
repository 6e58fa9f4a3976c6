//! The text around a lookup.

/// The tokens of a step, and those before it.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub before: &'a [u32],
    pub tokens: &'a [u32],
}

impl Text<'_> {
    pub fn token(&self, at: usize) -> u32 {
        self.before.get(at).copied().unwrap_or_else(|| self.tokens[at - self.before.len()])
    }

    /// Whether the text up to and with position `at` ends with `phrase`.
    pub fn ends_with(&self, at: usize, phrase: &[u32]) -> bool {
        self.ends_with_by(at, phrase, |a, b| a == b)
    }

    /// As [`ends_with`](Self::ends_with), with tokens that are the `same`.
    pub fn ends_with_by(&self, at: usize, phrase: &[u32], same: impl Fn(u32, u32) -> bool) -> bool {
        (at + 1)
            .checked_sub(phrase.len())
            .is_some_and(|start| phrase.iter().zip(start..).all(|(id, at)| same(*id, self.token(at))))
    }
}
