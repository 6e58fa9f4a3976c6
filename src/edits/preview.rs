//! Edits in words: which piece of text gets the rows of which, and which edits belong together.

use serde::Serialize;

use super::assign::Gets;
use super::file::{Edit, Method, NgramTarget, Target};
use crate::config::Config;
use crate::engram::Engram;
use crate::text::Tokenizer;

/// All methods, in the order in which they are explained.
const METHODS: [Method; 5] = [Method::OneToOne, Method::Pad, Method::Copy, Method::Subset, Method::Average];

/// What an edit does, token by token.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// Edits of one group change spellings of one name alike; groups are numbered from 0 on.
    pub group: usize,
    /// The name, without spaces around it.
    pub subject: String,
    /// The text whose rows it gets, or `None` for rows of the edit's own.
    pub with: Option<String>,
    /// Its tokens, and what each of them gets.
    pub tokens: Vec<Pair>,
    /// The methods that can deal the rows out.
    pub methods: Vec<Method>,
    /// Of an edit of n-grams, those whose rows are changed.
    pub ngrams: Vec<NgramShown>,
    /// The layers that are changed, STEM or Engram layers; in the others the rows stay.
    pub layers: Vec<usize>,
}

/// An n-gram and the rows that answer for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NgramShown {
    /// Its tokens.
    pub texts: Vec<String>,
    /// The tokens of the n-gram whose rows it gets; none if its own are scaled.
    pub gets: Option<Vec<String>>,
    /// What its own rows are scaled by, if they are.
    pub factor: Option<f32>,
}

/// A token and the rows that answer for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The token.
    pub text: String,
    /// Whose rows it gets.
    pub gets: Shown,
}

/// [`Gets`] in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Shown {
    /// Its own.
    Own,
    /// Those of this token.
    Token {
        /// The token.
        text: String,
    },
    /// The mean of those of these tokens.
    Mean {
        /// The tokens.
        texts: Vec<String>,
    },
    /// The `n`-th of the rows in the edit.
    Values {
        /// From 0 on.
        n: usize,
    },
}

impl Preview {
    /// The previews of `edits`, which belong to a model with these sizes.
    pub fn all(edits: &[Edit], tokenizer: &Tokenizer, config: &Config) -> Vec<Self> {
        // The group that may still grow, and where it began.
        let (mut group, mut first) = (0, 0);
        let mut all: Vec<Self> = Vec::with_capacity(edits.len());
        for (i, edit) in edits.iter().enumerate() {
            let mut preview = Self::of(edit, tokenizer, config);
            let same_name = all.last().is_none_or(|last| last.subject == preview.subject);
            if !(same_name && edits[first..i].iter().all(|other| edit.goes_with(other))) {
                (group, first) = (group + 1, i);
            }
            preview.group = group;
            all.push(preview);
        }
        all
    }

    fn of(edit: &Edit, tokenizer: &Tokenizer, config: &Config) -> Self {
        let text = |ids: &[u32]| {
            let text = tokenizer.decode(ids).unwrap_or_default().trim().to_owned();
            if text.is_empty() { ids.iter().map(|id| piece(tokenizer, *id)).collect() } else { text }
        };
        let pair = |(id, gets): (&u32, Gets)| {
            let gets = match gets {
                Gets::Own => Shown::Own,
                Gets::Token(id) => Shown::Token { text: piece(tokenizer, id) },
                Gets::Mean(ids) => {
                    Shown::Mean { texts: ids.iter().map(|id| piece(tokenizer, *id)).collect() }
                }
                Gets::Values(n) => Shown::Values { n },
            };
            Pair { text: piece(tokenizer, *id), gets }
        };
        let (with, methods) = match &edit.target {
            Target::Tokens(recipe) => {
                let fits = |m: &Method| m.fits(edit.source.len(), recipe.ids.len());
                (Some(text(&recipe.ids)), METHODS.into_iter().filter(fits).collect())
            }
            Target::Values(_) | Target::Ngrams(NgramTarget::Factor(_)) => (None, Vec::new()),
            Target::Ngrams(NgramTarget::Ids(ids)) => (Some(text(ids)), Vec::new()),
        };
        let engram = config.engram.as_ref();
        let layers = match (&edit.layers, &edit.target) {
            (Some(layers), _) => layers.clone(),
            (None, Target::Ngrams(_)) => engram.iter().flat_map(|e| &e.layers).map(|l| l.layer).collect(),
            (None, _) => config.stem_layers.clone(),
        };
        let texts = |ids: &[u32]| ids.iter().map(|id| piece(tokenizer, *id)).collect::<Vec<_>>();
        let ngrams = edit.ngrams(engram.map_or(0, Engram::order));
        let ngrams = ngrams.iter().map(|pair| NgramShown {
            texts: texts(&pair.from),
            gets: match &pair.gets {
                NgramTarget::Ids(ids) => Some(texts(ids)),
                NgramTarget::Factor(_) => None,
            },
            factor: match pair.gets {
                NgramTarget::Ids(_) => None,
                NgramTarget::Factor(factor) => Some(factor),
            },
        });
        Self {
            group: 0,
            subject: text(&edit.source),
            with,
            tokens: edit.source.iter().zip(edit.preview()).map(pair).collect(),
            methods,
            ngrams: ngrams.collect(),
            layers,
        }
    }
}

impl Edit {
    /// Whether it does the same as `other` to another spelling.
    fn goes_with(&self, other: &Self) -> bool {
        let same_target = match (&self.target, &other.target) {
            (Target::Tokens(a), Target::Tokens(b)) => a.ids == b.ids && a.pad == b.pad,
            (Target::Values(_), Target::Values(_)) => self.label == other.label,
            _ => false,
        };
        same_target
            && (self.on, self.strength, &self.layers) == (other.on, other.strength, &other.layers)
            && self.scope == other.scope
            && self.source != other.source
    }
}

/// The token `id` as text or, if it is none by itself, as the vocabulary writes it.
pub fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    let text = tokenizer.decode(&[id]).ok().filter(|t| !t.is_empty() && !t.contains('\u{fffd}'));
    text.or_else(|| tokenizer.token(id)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::edits::ngram::Answer;
    use crate::edits::{NgramSwap, Scope, Swap, ValueType, Values};
    use crate::engram::config::tests::tiny_engram;
    use crate::text::tokenizer::tests::byte_tokenizer;

    #[test]
    fn n_grams_are_shown_with_their_counterparts() {
        let tokenizer = byte_tokenizer();
        let config = Config { engram: Some(tiny_engram()), stem_layers: vec![2], ..tiny() };
        let swap = NgramSwap { scope: Scope::Phrase, strength: 1.0, layers: None };
        let edits = [
            swap.edit(&tokenizer, "ab", Answer::Text("xyz")).unwrap(),
            NgramSwap { layers: Some(vec![1]), ..swap }.edit(&tokenizer, "ab", Answer::Factor(0.5)).unwrap(),
        ];
        let all = Preview::all(&edits, &tokenizer, &config);
        assert_eq!(all.iter().map(|p| p.group).collect::<Vec<_>>(), [0, 1]);
        assert_eq!((all[0].subject.as_str(), all[0].with.as_deref()), ("ab", Some("xyz")));
        assert_eq!((&all[0].layers, &all[1].layers), (&vec![0, 1], &vec![1]));
        assert!(all[0].methods.is_empty() && all[0].tokens.iter().all(|pair| pair.gets == Shown::Own));
        let shown: Vec<_> =
            all[0].ngrams.iter().map(|n| (n.texts.concat(), n.gets.as_ref().unwrap().concat())).collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(shown, [pair(" a", "xy"), pair("ab", "yz"), pair(" ab", "xyz")]);
        assert!(all[1].ngrams.iter().all(|n| n.gets.is_none() && n.factor == Some(0.5)));
        assert_eq!(all[1].ngrams.len(), 3);
    }

    #[test]
    fn spellings_of_a_name_belong_together() {
        let tokenizer = byte_tokenizer();
        let swap = Swap {
            scope: Scope::Phrase,
            strength: 1.0,
            layers: None,
            method: None,
            pad: None,
            at_start: true,
        };
        let mut edits = swap.edits(&tokenizer, "ab", &["cd"]).unwrap();
        edits.extend(swap.edits(&tokenizer, "ab", &["xyz", "w"]).unwrap());
        let config = Config { stem_layers: vec![0, 2], ..tiny() };
        let all = Preview::all(&edits, &tokenizer, &config);
        assert_eq!(all.iter().map(|p| p.group).collect::<Vec<_>>(), [0, 0, 1, 1]);
        let first = &all[0];
        assert_eq!((first.subject.as_str(), first.with.as_deref()), ("ab", Some("cd")));
        assert_eq!(first.layers, [0, 2]);
        assert_eq!(first.methods, [Method::Subset, Method::Average]);
        let token = |text: &str| Shown::Token { text: text.into() };
        let gets: Vec<_> = first.tokens.iter().map(|p| (p.text.as_str(), p.gets.clone())).collect();
        assert_eq!(gets, [("a", token("c")), ("b", token("d"))]);
        assert_eq!((all[1].tokens.len(), &all[1].tokens[0].gets), (3, &token(" ")));
        assert!(matches!(&all[2].tokens[0].gets, Shown::Mean { texts } if texts.len() == 6));

        // The same name again is another group.
        let twice = [&edits[..2], &edits[..2]].concat();
        let groups: Vec<_> = Preview::all(&twice, &tokenizer, &config).iter().map(|p| p.group).collect();
        assert_eq!(groups, [0, 0, 1, 1]);

        // One that is switched off goes alone, and rows of its own have no methods.
        edits[1].on = false;
        edits[2].target = Target::Values(Values::new(ValueType::F32, 1, vec![]));
        let all = Preview::all(&edits, &tokenizer, &config);
        assert_eq!(all.iter().map(|p| p.group).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let values = &all[2];
        assert_eq!((values.with.as_deref(), values.methods.len()), (None, 0));
        assert_eq!(values.tokens[1].gets, Shown::Values { n: 0 });
    }
}
