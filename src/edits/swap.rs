//! Edits that give an entity the rows of another, from the names of the two.

use super::file::{Edit, Method, Recipe, Scope, Target};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// How to swap.
#[derive(Debug, Clone, PartialEq)]
pub struct Swap {
    /// Where the edits apply.
    pub scope: Scope,
    /// α.
    pub strength: f32,
    /// The STEM layers, ascending; all unless given.
    pub layers: Option<Vec<usize>>,
    /// The method where it fits the lengths; where it doesn't, or unless given, the usual one ([`Method::choose`]).
    pub method: Option<Method>,
    /// The token whose rows are the padding, if it isn't the source's own.
    pub pad: Option<u32>,
    /// Whether to make another edit for the spelling at the beginning of a text, which has other tokens.
    pub at_start: bool,
}

impl Swap {
    /// The edits that give `subject` the rows of `with`, or of a mix: of several entities it gets the mean of the
    /// rows of all their tokens. One edit, or two with [`at_start`](Self::at_start).
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty name, [`Error::Tokenizer`] if the library fails.
    pub fn edits<S: AsRef<str>>(
        &self,
        tokenizer: &Tokenizer,
        subject: &str,
        with: &[S],
    ) -> Result<Vec<Edit>> {
        let subject = subject.trim();
        let with: Vec<&str> = with.iter().map(|name| name.as_ref().trim()).collect();
        if subject.is_empty() || with.is_empty() || with.contains(&"") {
            return Err(Error::invalid("the name of an entity", "is empty"));
        }
        let source = running(tokenizer, subject)?;
        // Text knows an entity far more often by its name within a sentence, so that is where its knowledge is.
        let ids: Vec<Vec<u32>> = with.iter().map(|name| running(tokenizer, name)).collect::<Result<_>>()?;
        let ids = ids.concat();
        let wanted = if with.len() > 1 { Some(Method::Average) } else { self.method };
        let label = format!("{subject} as {}", with.join(" + "));
        let edit = |source: Vec<u32>, label: String| {
            let method = Method::choose(wanted, source.len(), ids.len());
            Edit {
                on: true,
                label,
                scope: self.scope.clone(),
                source,
                target: Target::Tokens(Recipe { ids: ids.clone(), method, pad: self.pad }),
                strength: self.strength,
                layers: self.layers.clone(),
            }
        };
        let start = if self.at_start { tokenizer.encode_more(subject)? } else { source.clone() };
        // First, so that the other one counts where both names end.
        let first = (start != source).then(|| edit(start, format!("{label}, at the beginning of a text")));
        Ok(first.into_iter().chain([edit(source, label)]).collect())
    }
}

/// The tokens of `name` after other text, with the space between them.
pub fn running(tokenizer: &Tokenizer, name: &str) -> Result<Vec<u32>> {
    let before = tokenizer.encode_more("a")?;
    let whole = tokenizer.encode_more(&format!("a {name}"))?;
    match whole.strip_prefix(before.as_slice()) {
        Some(tokens) => Ok(tokens.to_vec()),
        None => tokenizer.encode_more(&format!(" {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::byte_tokenizer;

    #[test]
    fn names_become_tokens_with_their_space() {
        let tokenizer = byte_tokenizer();
        let tokens = |text: &str| tokenizer.encode_more(text).unwrap();
        let swap = Swap {
            scope: Scope::Phrase,
            strength: 0.5,
            layers: Some(vec![1]),
            method: Some(Method::OneToOne),
            pad: None,
            at_start: true,
        };
        let edits = swap.edits(&tokenizer, " Spain", &["Italy "]).unwrap();
        let [start, running] = edits.as_slice() else { panic!("{edits:?}") };
        assert_eq!((&running.source, running.label.as_str()), (&tokens(" Spain"), "Spain as Italy"));
        assert_eq!(start.source, tokens("Spain"));
        let recipe = |method| Target::Tokens(Recipe { ids: tokens(" Italy"), method, pad: None });
        assert_eq!(running.target, recipe(Method::OneToOne));
        // Five tokens cannot be paired with six.
        assert_eq!(start.target, recipe(Method::Subset));
        assert_eq!((start.strength, start.layers.as_deref()), (0.5, Some([1].as_slice())));

        let one = Swap { at_start: false, ..swap.clone() };
        assert_eq!(one.edits(&tokenizer, "Spain", &["Italy"]).unwrap(), edits[1..]);
        for (subject, with) in [(" ", ["Italy"].as_slice()), ("Spain", &["Italy", " "]), ("Spain", &[])] {
            assert!(matches!(swap.edits(&tokenizer, subject, with), Err(Error::Invalid { .. })));
        }

        let mix = one.edits(&tokenizer, "Spain", &["Italy", "Peru"]).unwrap();
        let [mix] = mix.as_slice() else { panic!("{mix:?}") };
        let ids = [tokens(" Italy"), tokens(" Peru")].concat();
        assert_eq!(mix.target, Target::Tokens(Recipe { ids, method: Method::Average, pad: None }));
        assert_eq!(mix.label, "Spain as Italy + Peru");
    }
}
