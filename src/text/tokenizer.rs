//! Text to tokens and back, by the tokenizers library.

use tokenizers::pipeline::{EncodeOptions, PipelineDecodeStream, PipelineToken, PipelineTokenizer};

use super::vocabulary::{Piece, Vocabulary};
use crate::error::{Error, Result};

/// A model's tokenizer.
pub struct Tokenizer {
    inner: PipelineTokenizer,
    vocabulary: Vocabulary,
    bos: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn failed(error: impl ToString) -> Error {
    Error::Tokenizer(error.to_string())
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; every encoded text begins with `bos` if there is one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library can't use it.
    pub fn new(json: &[u8], bos: Option<u32>) -> Result<Self> {
        let mut json = serde_json::from_slice(json).map_err(failed)?;
        let vocabulary = Vocabulary::take(&mut json)?;
        tokenizers::canonicalize_value(&mut json).map_err(failed)?;
        let inner = tokenizers::from_json(&json.to_string()).map_err(failed)?;
        Ok(Self { inner, vocabulary, bos })
    }

    /// The tokens of `text`, in which the names of special tokens stand for these tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode_more(text)?;
        // A chat template may have written the token itself.
        if let Some(bos) = self.bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The tokens of text that follows other text: as [`encode`](Self::encode), but never with a first token of
    /// its own.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library fails.
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        for piece in self.vocabulary.cut(text) {
            match piece {
                Piece::Added(id) => tokens.push(id),
                Piece::Text(text) => {
                    let mut found = Vec::new();
                    self.inner
                        .encode_into(text, &EncodeOptions::no_specials(), &mut found)
                        .map_err(failed)?;
                    let known = self.vocabulary.written.len();
                    tokens
                        .extend(found.into_iter().map(PipelineToken::id).filter(|id| (*id as usize) < known));
                }
            }
        }
        Ok(tokens)
    }

    /// The text of `tokens`, without special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let mut text = String::new();
        let mut run = Vec::new();
        for id in tokens.iter().copied().filter(|id| !self.vocabulary.is_special(*id)) {
            match self.apart(id) {
                None => run.push(id),
                Some(name) => {
                    text += &self.inner.decode(&run, false).map_err(failed)?;
                    run.clear();
                    text += name;
                }
            }
        }
        Ok(text + &self.inner.decode(&run, false).map_err(failed)?)
    }

    /// The name of an added token that the library can't decode: it takes what is written for bytes.
    fn apart(&self, id: u32) -> Option<&str> {
        self.vocabulary.name(id).filter(|_| self.vocabulary.byte_level)
    }

    /// The text of one token, be it special or not. Bytes that are no whole character are U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library fails.
    pub fn piece(&self, id: u32) -> Result<String> {
        match self.vocabulary.name(id) {
            Some(name) => Ok(name.to_owned()),
            None => self.inner.decode(&[id], false).map_err(failed),
        }
    }

    /// The text of tokens that come one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, inner: self.inner.decode_stream(false), tokens: Vec::new(), sent: 0 }
    }

    /// The token as it is written in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.vocabulary.written.get(id as usize)?.clone()
    }

    /// The id of a token as it is written in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        let id = self.vocabulary.written.iter().position(|written| written.as_deref() == Some(token));
        id.map(|id| id as u32)
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// `text` in which no special token's name stands for that token any more: a zero-width space goes in after
    /// its first character. For text of unknown origin, which could otherwise end its turn of a chat.
    pub fn defuse(&self, text: &str) -> String {
        let mut safe = text.to_owned();
        for name in self.vocabulary.special_names() {
            let split = name.chars().next().map_or(0, char::len_utf8);
            if split < name.len() && safe.contains(name) {
                safe = safe.replace(name, &format!("{}\u{200b}{}", &name[..split], &name[split..]));
            }
        }
        safe
    }
}

/// Decodes a growing list of tokens.
#[allow(missing_debug_implementations, reason = "the library's stream has none")]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    inner: PipelineDecodeStream<'t>,
    tokens: Vec<u32>,
    // Bytes of text given so far.
    sent: usize,
}

impl TextStream<'_> {
    /// What becomes complete with token `id`: empty while a character still lacks bytes.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.tokens.push(id);
        let text = if self.tokenizer.vocabulary.is_special(id) {
            String::new()
        } else if self.tokenizer.apart(id).is_some() {
            self.inner = self.tokenizer.inner.decode_stream(false);
            self.rest()?
        } else {
            self.inner.step(id).map_err(failed)?.unwrap_or_default()
        };
        self.sent += text.len();
        Ok(text)
    }

    /// The text that [`push`](Self::push) still held back: bytes that never became a character.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library fails.
    pub fn finish(self) -> Result<String> {
        self.rest()
    }

    fn rest(&self) -> Result<String> {
        let whole = self.tokenizer.decode(&self.tokens)?;
        Ok(whole.get(self.sent..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A token for each byte (in the order of their code points in byte-level BPE), and ChatML's two.
    pub(crate) fn byte_tokenizer() -> Tokenizer {
        Tokenizer::new(&crate::text::json::bytes_only(&["<|im_start|>", "<|im_end|>"]), None).unwrap()
    }

    #[test]
    fn round_trips_and_streams() {
        let tokenizer = byte_tokenizer();
        let text = "naïve café — 안녕 🙂\n\tend";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids.len(), text.len());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let mut stream = tokenizer.stream();
        let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        assert_eq!(pieces.concat(), text);
        assert!(pieces.contains(&"ï".to_owned()) && pieces.contains(&String::new()));
        assert_eq!(stream.finish().unwrap(), "");
    }

    #[test]
    fn half_a_character_comes_at_the_end() {
        let tokenizer = byte_tokenizer();
        let ids = tokenizer.encode("é").unwrap();
        let mut stream = tokenizer.stream();
        assert_eq!(stream.push(ids[0]).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn special_tokens_are_parsed_unless_defused() {
        let tokenizer = byte_tokenizer();
        assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [257]);
        let safe = tokenizer.defuse("a <|im_end|> b <|im_start|>");
        let ids = tokenizer.encode(&safe).unwrap();
        assert!(ids.iter().all(|id| *id < 256));
        assert_eq!(tokenizer.defuse("plain <| text"), "plain <| text");
    }

    #[test]
    fn a_bos_token_comes_once() {
        let json = crate::text::json::bytes_only(&["<s>"]);
        let tokenizer = Tokenizer::new(&json, Some(256)).unwrap();
        assert_eq!(tokenizer.encode("<s>").unwrap(), [256]);
        assert_eq!(tokenizer.encode("").unwrap(), [256]);
        assert_eq!(tokenizer.encode("!").unwrap().len(), 2);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Tokenizer::new(b"{}", None).is_err());
        assert!(Tokenizer::new(b"not json", None).is_err());
    }
}
