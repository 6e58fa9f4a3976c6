//! Edits of the Engram rows of chosen n-grams: made, dealt out, and laid over a lookup.
//!
//! An n-gram of a text finds the rows of several heads; an edit answers them with those of another n-gram, or scales
//! them. It acts where the n-gram stands, not on the rows themselves: another n-gram that hashes to one of them keeps
//! it. N-grams are told apart as the hash tells them, by compressed ids, so that all spellings with the same rows are
//! meant.

use serde::Serialize;

use super::file::{Edit, NgramTarget, Scope, Target};
use super::overlay::mix;
use super::swap::running;
use super::text::Text;
use crate::config::Config;
use crate::engram::Engram;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// An n-gram within an edit's source, and what answers for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NgramPair {
    /// Its tokens.
    pub from: Vec<u32>,
    /// The n-gram whose rows it gets, or the factor of its own.
    pub gets: NgramTarget,
}

/// How to edit an n-gram's rows.
#[derive(Debug, Clone, PartialEq)]
pub struct NgramSwap {
    /// Where the edit applies.
    pub scope: Scope,
    /// α.
    pub strength: f32,
    /// The Engram layers, ascending; all unless given.
    pub layers: Option<Vec<usize>>,
}

/// What answers for an n-gram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Answer<'a> {
    /// The rows of the n-grams of this text.
    Text(&'a str),
    /// Its own rows times this factor.
    Factor(f32),
}

impl NgramSwap {
    /// The edit of all n-grams within `subject`, as it stands within a sentence.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a text of less than two tokens, [`Error::Tokenizer`] if the library fails.
    pub fn edit(&self, tokenizer: &Tokenizer, subject: &str, answer: Answer<'_>) -> Result<Edit> {
        let subject = subject.trim();
        let tokens = |text: &str| {
            let ids = running(tokenizer, text)?;
            match ids.len() {
                0 | 1 => Err(Error::invalid(
                    format!("{text:?}"),
                    "is one token or none; an n-gram has two or more, such as a name of two words",
                )),
                _ => Ok(ids),
            }
        };
        let source = tokens(subject)?;
        let (label, target) = match answer {
            Answer::Text(with) => {
                let with = with.trim();
                (format!("{subject} as {with}, n-grams"), NgramTarget::Ids(tokens(with)?))
            }
            Answer::Factor(factor) => {
                (format!("{subject}, n-grams times {factor}"), NgramTarget::Factor(factor))
            }
        };
        Ok(Edit {
            on: true,
            label,
            scope: self.scope.clone(),
            source,
            target: Target::Ngrams(target),
            strength: self.strength,
            layers: self.layers.clone(),
        })
    }
}

impl Edit {
    /// The n-grams of up to `order` tokens within the source, with what answers for each; nothing for other edits. The
    /// target's are counted from its end: an n-gram that ends k tokens before the source's end gets the rows of the one
    /// of the same length that ends k tokens before the target's end, and where there is none, keeps its own.
    pub fn ngrams(&self, order: usize) -> Vec<NgramPair> {
        let Target::Ngrams(target) = &self.target else { return Vec::new() };
        let within = |end: usize| (2..=order.min(end + 1)).map(move |n| (end, n));
        let pair = |(end, n): (usize, usize)| {
            let gets = match target {
                NgramTarget::Ids(ids) => {
                    let end = counterpart(self.source.len(), ids.len(), end)?;
                    NgramTarget::Ids(ids[(end + 1).checked_sub(n)?..=end].to_vec())
                }
                factor @ NgramTarget::Factor(_) => factor.clone(),
            };
            Some(NgramPair { from: self.source[end + 1 - n..=end].to_vec(), gets })
        };
        (0..self.source.len()).flat_map(within).filter_map(pair).collect()
    }
}

/// The place in a target of `targets` tokens that is as far from its end as `place` from the end of `sources`.
fn counterpart(sources: usize, targets: usize, place: usize) -> Option<usize> {
    (place + targets).checked_sub(sources)
}

/// An edit of n-grams that is switched on, checked and laid out for a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ActiveNgrams {
    scope: Scope,
    source: Vec<u32>,
    target: NgramTarget,
    /// The layers, by their place among the Engram layers.
    pub layers: Vec<usize>,
    strength: f32,
    engram: Engram,
    stem_width: usize,
}

/// An n-gram of a step whose rows an edit changes.
#[derive(Debug)]
pub(super) struct NgramHit<'a> {
    /// The place in the step of the token at which it ends.
    pub token: usize,
    /// The edit.
    pub edit: &'a ActiveNgrams,
    /// The place in the edit's source at which it ends.
    place: usize,
    order: usize,
}

impl ActiveNgrams {
    /// The edit `edit`, whose target is `target`, for a model of these sizes, or what is wrong with it.
    pub fn new(edit: &Edit, target: &NgramTarget, config: &Config) -> std::result::Result<Self, String> {
        let engram = config.engram.as_ref().ok_or("the model has no Engram layers")?;
        let known: Vec<usize> = engram.layers.iter().map(|l| l.layer).collect();
        let index = |layer: &usize| {
            engram.index(*layer).ok_or_else(|| {
                format!("layer {layer} has no n-grams; the model's Engram layers are {known:?}")
            })
        };
        let layers = edit.layers.as_ref().unwrap_or(&known).iter().map(index);
        let ids: &[u32] = match target {
            NgramTarget::Ids(ids) => ids,
            NgramTarget::Factor(_) => &[],
        };
        if let Some(id) = edit.source.iter().chain(ids).find(|id| **id as usize >= config.vocab_size) {
            return Err(format!("token {id}; the vocabulary has {}", config.vocab_size));
        }
        Ok(Self {
            scope: edit.scope.clone(),
            source: edit.source.clone(),
            target: target.clone(),
            layers: layers.collect::<std::result::Result<_, _>>()?,
            strength: edit.strength,
            engram: engram.clone(),
            stem_width: config.stem_width(),
        })
    }

    /// The n-grams that end at position `at` of `text`, the `token`-th of its step, and that the edit changes; `id` gives
    /// the compressed id of a token.
    pub fn hits<'a>(
        &'a self,
        text: &Text<'_>,
        at: usize,
        token: usize,
        id: &impl Fn(u32) -> u32,
    ) -> Vec<NgramHit<'a>> {
        let ends = |end: usize, n: usize| {
            end + 1 >= n && text.ends_with_by(at, &self.source[end + 1 - n..=end], |a, b| id(a) == id(b))
        };
        let place = |n: usize| match &self.scope {
            Scope::Row => (0..self.source.len()).rev().find(|end| ends(*end, n)),
            Scope::Phrase => (0..self.source.len()).rev().find(|end| *end + 1 >= n && ends(*end, end + 1)),
            Scope::Position(starts) => starts.iter().find_map(|start| {
                let end = at.checked_sub(*start).filter(|end| *end < self.source.len() && *end + 1 >= n)?;
                ends(end, end + 1).then_some(end)
            }),
        };
        (2..=self.engram.order())
            .filter_map(|n| place(n).map(|place| NgramHit { token, edit: self, place, order: n }))
            .filter(|hit| hit.changes())
            .collect()
    }
}

impl<'a> NgramHit<'a> {
    /// Whether the target has an n-gram for it.
    fn changes(&self) -> bool {
        match &self.edit.target {
            NgramTarget::Factor(_) => true,
            NgramTarget::Ids(ids) => counterpart(self.edit.source.len(), ids.len(), self.place)
                .is_some_and(|end| end + 1 >= self.order),
        }
    }

    /// The tokens of the target up to where the n-gram ends whose rows it gets; none if it gets its own.
    pub fn target(&self) -> Option<&'a [u32]> {
        let NgramTarget::Ids(ids) = &self.edit.target else { return None };
        counterpart(self.edit.source.len(), ids.len(), self.place).map(|end| &ids[..=end])
    }

    /// Changes `row` `[row_width]`, all values of the token; `target` are those at the end of [`target`](Self::target).
    pub fn apply(&self, row: &mut [f32], target: Option<&[f32]>) {
        let ActiveNgrams { engram, layers, strength, stem_width, .. } = self.edit;
        // Each order has as many heads as any other.
        let width = engram.width() / (engram.order() - 1);
        for layer in layers {
            let first = stem_width + layer * engram.width() + (self.order - 2) * width;
            let span = first..first + width;
            match (&self.edit.target, target) {
                (NgramTarget::Ids(_), Some(target)) => mix(&mut row[span.clone()], &target[span], *strength),
                (NgramTarget::Factor(factor), _) => {
                    let target: Vec<f32> = row[span.clone()].iter().map(|u| u * factor).collect();
                    mix(&mut row[span], &target, *strength);
                }
                (NgramTarget::Ids(_), None) => {}
            }
        }
    }
}
