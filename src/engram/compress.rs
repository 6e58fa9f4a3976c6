//! Compressed token ids: tokens that differ in case, accents or width only share one.

#[cfg(feature = "native")]
use std::collections::HashMap;

#[cfg(not(target_arch = "wasm32"))]
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

use crate::error::Result;
use crate::text::Tokenizer;

/// The compressed id of each token.
#[cfg(feature = "native")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compressed {
    /// By token.
    pub ids: Vec<u32>,
    /// How many there are.
    pub count: usize,
}

#[cfg(feature = "native")]
impl Compressed {
    /// The compressed ids of a vocabulary of `vocab` tokens (source: the demonstration to arXiv 2601.07372): equal
    /// [forms](form) share an id, and ids are given in the order of the tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library fails.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        let mut known: HashMap<String, u32> = HashMap::new();
        let mut ids = Vec::with_capacity(vocab);
        for token in 0..vocab as u32 {
            let next = known.len() as u32;
            ids.push(*known.entry(form(tokenizer, token)?).or_insert(next));
        }
        Ok(Self { ids, count: known.len() })
    }

    /// The file that a bundle stores: the ids, each a little-endian u32.
    pub fn to_bytes(&self) -> Vec<u8> {
        bytemuck::pod_collect_to_vec(&self.ids)
    }
}

/// The compressed form of a token: what its text is known by, or the piece itself if it is only a part of a character.
///
/// # Errors
/// [`Error::Tokenizer`] if the library fails.
pub fn form(tokenizer: &Tokenizer, token: u32) -> Result<String> {
    match tokenizer.piece(token)? {
        text if text.contains('\u{fffd}') => Ok(tokenizer.token(token).unwrap_or(text)),
        text => Ok(key(&text)),
    }
}

/// What a token's `text` is known by: NFKC, then NFD without its marks, in lower case, each run of spaces, tabs and
/// line ends one space, none at the ends unless it is all there is. What this leaves empty stays as it was.
fn key(text: &str) -> String {
    // A single space passes through the trimming as this character, which the demonstration chose.
    const SPACE: char = '\u{e000}';
    let mut collapsed = String::with_capacity(text.len());
    for c in without_marks(text).chars().flat_map(char::to_lowercase) {
        match c {
            ' ' | '\t' | '\r' | '\n' if collapsed.ends_with(' ') => {}
            ' ' | '\t' | '\r' | '\n' => collapsed.push(' '),
            c => collapsed.push(c),
        }
    }
    let trimmed = if collapsed == " " { " ".into() } else { collapsed.trim().replace(SPACE, " ") };
    if trimmed.is_empty() { text.to_owned() } else { trimmed }
}

/// NFKC, then NFD without its marks.
#[cfg(not(target_arch = "wasm32"))]
fn without_marks(text: &str) -> String {
    text.nfkc().nfd().filter(|c| !is_combining_mark(*c)).collect()
}

/// The same from the browser, which has the tables. Ids stand in the bundle: the page only shows what tokens are known by.
#[cfg(target_arch = "wasm32")]
fn without_marks(text: &str) -> String {
    let marks = js_sys::RegExp::new(r"\p{M}", "gu");
    js_sys::JsString::from(text).normalize("NFKD").replace_by_pattern(&marks, "").into()
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use super::*;
    use crate::engram::vectors::Vectors;

    #[test]
    fn ids_are_those_of_the_definition() {
        let vectors = Vectors::load();
        let tokenizer = vectors.tokenizer();
        let found = Compressed::new(&tokenizer, vectors.ids.len()).unwrap();
        for (token, (found, expected)) in found.ids.iter().zip(&vectors.ids).enumerate() {
            assert_eq!(found, expected, "{token}: {:?}", vectors.tokens[token]);
        }
        assert_eq!(found.count, vectors.count);
        assert_eq!(found.to_bytes().len(), 4 * vectors.ids.len());
    }

    #[test]
    fn keys() {
        for (text, expected) in [
            ("  The\r\n ÉTÉ ", "the ete"),
            ("ﬁ", "fi"),
            (" \t\n", " "),
            ("\u{3000}", " "),
            ("\u{b}", "\u{b}"),
            ("\u{301}", "\u{301}"),
            ("ΑΣ", "ασ"),
        ] {
            assert_eq!(key(text), expected, "{text:?}");
        }
    }
}
