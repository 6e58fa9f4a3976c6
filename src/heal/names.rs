//! Names in text: their tokens, where a text mentions them, and whose rows they get when they are swapped.

use crate::edits::swap::running;
use crate::error::Result;
use crate::text::Tokenizer;

/// The tokens of a name: within a sentence, after a space, and at the beginning of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Forms(pub [Vec<u32>; 2]);

/// A mention of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its first token.
    pub at: usize,
    /// How many there are.
    pub length: usize,
    /// Whether it is within a sentence.
    pub inner: bool,
}

impl Forms {
    /// Those of `name`, without an article.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the library fails.
    pub fn new(name: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let bare = name.strip_prefix("the ").unwrap_or(name);
        Ok(Self([running(tokenizer, bare)?, tokenizer.encode_more(bare)?]))
    }

    /// Within a sentence: text knows what is named far more often so.
    pub fn inner(&self) -> &[u32] {
        &self.0[0]
    }

    /// Whether it is one token within a sentence.
    pub fn single(&self) -> bool {
        self.inner().len() == 1
    }

    /// Where `ids` mention the name, ascending; no two of them overlap.
    pub fn places(&self, ids: &[u32]) -> Vec<Place> {
        let [inner, bare] = &self.0;
        let mut found = Vec::new();
        let mut at = 0;
        while at < ids.len() {
            let length = if !inner.is_empty() && ids[at..].starts_with(inner) {
                found.push(Place { at, length: inner.len(), inner: true });
                inner.len()
            // A single token without its space may be a part of any word.
            } else if !bare.is_empty() && ids[at..].starts_with(bare) && (at == 0 || bare.len() > 1) {
                found.push(Place { at, length: bare.len(), inner: false });
                bare.len()
            } else {
                1
            };
            at += length;
        }
        found
    }
}

/// The tokens whose rows a name of tokens `own` gets from one of `theirs`, as `xylem edit swap` deals them out: aligned at the
/// last token; what it has more of keeps its own, what the other has more of is left out.
pub fn deal(own: &[u32], theirs: &[u32]) -> Vec<u32> {
    let kept = own.len().saturating_sub(theirs.len());
    let given = &theirs[theirs.len() - (own.len() - kept)..];
    [&own[..kept], given].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::byte_tokenizer;

    #[test]
    fn names_are_found_where_they_stand() {
        let place = |at, length, inner| Place { at, length, inner };
        let forms = Forms([vec![50, 51], vec![150, 51]]);
        assert_eq!(
            forms.places(&[150, 51, 7, 50, 51, 150, 51]),
            [place(0, 2, false), place(3, 2, true), place(5, 2, false)]
        );
        let single = Forms([vec![50], vec![150]]);
        assert!(single.single() && !forms.single());
        // Within a text the bare token may be a part of a word.
        assert_eq!(single.places(&[150, 150, 50]), [place(0, 1, false), place(2, 1, true)]);
        assert_eq!(Forms([vec![5, 5], vec![6]]).places(&[5, 5, 5]), [place(0, 2, true)]);
        let tokenizer = byte_tokenizer();
        let forms = Forms::new("the Bahamas", &tokenizer).unwrap();
        assert_eq!(forms.inner(), tokenizer.encode_more(" Bahamas").unwrap());
        assert_eq!(forms.places(&tokenizer.encode_more("The Bahamas, Bahamas").unwrap()).len(), 2);
    }

    #[test]
    fn rows_are_aligned_at_the_last_token() {
        assert_eq!(deal(&[1], &[7]), [7]);
        assert_eq!(deal(&[1, 2, 3], &[7, 8]), [1, 7, 8]);
        assert_eq!(deal(&[1, 2], &[7, 8, 9]), [8, 9]);
    }
}
