//! What the tokenizers library can't be told of a vocabulary: tokens that text names, and bytes without a token.
//!
//! Its release candidate builds a perfect hash of the added tokens, which fails (and panics) for some small sets, and
//! refuses a byte-level vocabulary that lacks a byte, which SmolLM2's does. So added tokens are found here, and each
//! missing byte gets a token past the last, which encoding drops, as earlier versions of the library did.

use serde::Deserialize;
use serde_json::Value;

use super::json::byte_tokens;
use crate::error::{Error, Result};

/// Ids from here on are refused: the library keeps a slot for each id up to the highest.
const MAX_VOCAB: u32 = 1 << 22;

/// The tokens of a `tokenizer.json` as they are written there.
#[derive(Debug, Default)]
pub struct Vocabulary {
    /// By id.
    pub written: Vec<Option<String>>,
    /// Whether tokens are written in the characters that stand for bytes.
    pub byte_level: bool,
    // Tokens that text names: their names, longest first, and ids.
    added: Vec<(String, u32)>,
    // The same, ascending.
    added_ids: Vec<u32>,
    // Of these, the ones that decoded text leaves out.
    special: Vec<u32>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    special: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

impl Vocabulary {
    /// Reads the vocabulary of a parsed `tokenizer.json`, and takes out of the file what the library can't use.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if there is no vocabulary, an id is too high, or a token is found by rules not known here.
    pub fn take(json: &mut Value) -> Result<Self> {
        let failed = |e: &dyn std::fmt::Display| Error::Tokenizer(e.to_string());
        let tokens: Vec<AddedToken> = match json.get_mut("added_tokens").map(Value::take) {
            None | Some(Value::Null) => Vec::new(),
            Some(tokens) => serde_json::from_value(tokens).map_err(|e| failed(&e))?,
        };
        let byte_level = json.get("pre_tokenizer").is_some_and(has_byte_level);
        json["added_tokens"] = Value::Array(Vec::new());
        let vocab = json.pointer_mut("/model/vocab").and_then(Value::as_object_mut);
        let vocab = vocab.ok_or_else(|| Error::Tokenizer("it has no vocabulary".into()))?;

        let mut found = Self { byte_level, ..Self::default() };
        for (token, id) in vocab.iter() {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < MAX_VOCAB);
            let id = id.ok_or_else(|| {
                Error::Tokenizer(format!("the id of {token:?} is no number below {MAX_VOCAB}"))
            })?;
            found.write(id, token.clone());
        }
        for token in tokens {
            if token.normalized || token.single_word || token.lstrip || token.rstrip {
                return Err(Error::Tokenizer(format!(
                    "the added token {:?} is not to be found as it stands (normalized, single_word, lstrip or rstrip)",
                    token.content
                )));
            }
            if token.id >= MAX_VOCAB || token.content.is_empty() {
                return Err(Error::Tokenizer(format!(
                    "the added token {:?} has id {}",
                    token.content, token.id
                )));
            }
            if byte_level {
                vocab.remove(&token.content);
            }
            if token.special {
                found.special.push(token.id);
            }
            found.write(token.id, token.content.clone());
            found.added.push((token.content, token.id));
        }
        found.added.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        found.special.sort_unstable();
        found.added_ids = found.added.iter().map(|(_, id)| *id).collect();
        found.added_ids.sort_unstable();
        if byte_level {
            let missing: Vec<String> =
                byte_tokens().into_iter().filter(|byte| !vocab.contains_key(byte)).collect();
            vocab.extend(missing.into_iter().zip((found.written.len()..).map(Value::from)));
        }
        Ok(found)
    }

    fn write(&mut self, id: u32, token: String) {
        let id = id as usize;
        if self.written.len() <= id {
            self.written.resize(id + 1, None);
        }
        self.written[id] = Some(token);
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.written.iter().flatten().count()
    }

    /// The name of an added token, if `id` is one.
    pub fn name(&self, id: u32) -> Option<&str> {
        self.added_ids.binary_search(&id).ok()?;
        self.written.get(id as usize)?.as_deref()
    }

    /// The names of special tokens.
    pub fn special_names(&self) -> impl Iterator<Item = &str> {
        self.special.iter().filter_map(|id| self.name(*id))
    }

    /// Whether decoded text leaves `id` out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// Cuts `text` at the names of added tokens: the first in the text, and of those that begin there the longest.
    pub fn cut<'t>(&self, text: &'t str) -> Vec<Piece<'t>> {
        let mut pieces = Vec::new();
        let mut from = 0;
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            match self.added.iter().find(|(name, _)| text[at..].starts_with(name.as_str())) {
                None => at += c.len_utf8(),
                Some((name, id)) => {
                    pieces.extend((from < at).then(|| Piece::Text(&text[from..at])));
                    pieces.push(Piece::Added(*id));
                    at += name.len();
                    from = at;
                }
            }
        }
        pieces.extend((from < text.len()).then(|| Piece::Text(&text[from..])));
        pieces
    }
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'t> {
    /// Text without the name of a token.
    Text(&'t str),
    /// A token that was named.
    Added(u32),
}

/// Whether `pre_tokenizer`, or one of its parts, turns text into the characters that stand for bytes.
fn has_byte_level(pre_tokenizer: &Value) -> bool {
    pre_tokenizer["type"] == "ByteLevel"
        || pre_tokenizer["pretokenizers"].as_array().is_some_and(|parts| parts.iter().any(has_byte_level))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file() -> Value {
        let added =
            |id: u32, content: &str, special: bool| json!({"id": id, "content": content, "special": special});
        json!({
            "added_tokens": [added(2, "<a>", true), added(3, "<a><b>", false), added(4, "λ", false)],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]},
            "model": {"vocab": {"x": 0, "y": 1, "<a>": 2}},
        })
    }

    #[test]
    fn names_are_cut_out_of_text() {
        let vocabulary = Vocabulary::take(&mut file()).unwrap();
        let cut = |text| vocabulary.cut(text);
        use Piece::{Added, Text};
        assert_eq!(cut("x<a>λy"), [Text("x"), Added(2), Added(4), Text("y")]);
        assert_eq!(cut("<a><b><a"), [Added(3), Text("<a")]);
        assert_eq!(cut("plain"), [Text("plain")]);
        assert_eq!(cut(""), []);
        assert!(vocabulary.is_special(2) && !vocabulary.is_special(3));
        assert_eq!((vocabulary.name(3), vocabulary.name(0)), (Some("<a><b>"), None));
    }

    #[test]
    fn every_byte_has_a_token_for_the_library() {
        let mut json = file();
        let vocabulary = Vocabulary::take(&mut json).unwrap();
        let vocab = json["model"]["vocab"].as_object().unwrap();
        assert!(byte_tokens().iter().all(|byte| vocab.contains_key(byte)));
        assert_eq!((vocab["x"].as_u64(), vocab.contains_key("<a>")), (Some(0), false));
        let known = |token: &str| vocabulary.written.iter().flatten().any(|written| written == token);
        assert!(vocab.iter().all(|(token, id)| known(token) == (id.as_u64() < Some(5))));
        assert_eq!((vocabulary.len(), vocabulary.written.len()), (5, 5));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut json = file();
            change(&mut json);
            assert!(matches!(Vocabulary::take(&mut json), Err(Error::Tokenizer(_))), "{json}");
        };
        refused(&|json| json["added_tokens"][0]["lstrip"] = true.into());
        refused(&|json| json["added_tokens"][0]["content"] = "".into());
        refused(&|json| json["added_tokens"][0]["id"] = MAX_VOCAB.into());
        refused(&|json| json["model"]["vocab"]["x"] = (-1).into());
        refused(&|json| json["model"]["vocab"]["x"] = u64::MAX.into());
        refused(&|json| json["model"] = Value::Null);
    }
}
