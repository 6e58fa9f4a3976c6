//! The file of facts, and how a phrasing of it becomes tokens.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::heal::data::Reader;
use crate::heal::names::{Forms, Place};
use crate::text::{Message, Role};

/// Where a phrasing puts the name.
const NAME: &str = "{X}";
/// A larger file is none of facts.
pub const MAX_BYTES: u64 = 16 << 20;
/// At most so many statements are kept: every phrasing of every fact.
const MAX_STATEMENTS: usize = 1 << 18;
/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// By relation.
    pub statements: BTreeMap<String, Vec<Phrasing>>,
    /// By name, answers by relation.
    pub facts: BTreeMap<String, BTreeMap<String, String>>,
    /// What follows an answer.
    #[serde(default = "full_stop")]
    pub end: String,
}

fn full_stop() -> String {
    ".".into()
}

/// How a fact is put, up to its answer.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a phrasing is a text or {\"ask\": \"...\", \"begin\": \"...\"}")]
pub enum Phrasing {
    Text(String),
    Chat(Chat),
}

/// A question in the base's chat template, and how its answer begins.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    ask: String,
    #[serde(default)]
    begin: String,
}

/// A phrasing with its name.
#[derive(Debug, Clone)]
pub struct Statement {
    /// Its tokens, up to the answer.
    pub ids: Vec<u32>,
    /// Every mention of the name; none if not all are known.
    pub places: Vec<Place>,
    /// Whether the answer stands after a space.
    pub spaced: bool,
}

impl File {
    /// Reads `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be read; [`Error::Invalid`] if it is too large or no such file, has a phrasing without a
    /// name, a fact without a phrasing, or an empty name or answer.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::invalid(path.display().to_string(), reason);
        let io = |e| Error::io(path, e);
        let bytes = std::fs::metadata(path).map_err(io)?.len();
        if bytes > MAX_BYTES {
            return Err(wrong(format!("{bytes} bytes, a file of facts has at most {MAX_BYTES}")));
        }
        let file = serde_json::from_slice(&std::fs::read(path).map_err(io)?);
        let file: Self = file.map_err(|e| wrong(e.to_string()))?;
        check(&file).map_err(wrong)?;
        Ok(file)
    }
}

impl Phrasing {
    /// How often it has the name.
    fn mentions(&self) -> usize {
        let count = |text: &str| text.matches(NAME).count();
        match self {
            Self::Text(text) => count(text),
            Self::Chat(chat) => count(&chat.ask) + count(&chat.begin),
        }
    }

    /// With `name`. `gap`: as [`around_answers`](crate::heal::data::around_answers) says.
    pub fn statement(&self, name: &str, forms: &Forms, reader: &Reader, gap: &str) -> Result<Statement> {
        // The head of an answer, if it is all there is.
        let mut bare = false;
        let text = match self {
            Self::Text(text) => put(text, name),
            Self::Chat(chat) => {
                let template = reader.template.as_ref().map_err(|reason| {
                    Error::invalid("`ask`", format!("{reason}; leave phrasings with `ask` out"))
                })?;
                let question = Message { role: Role::User, content: put(&chat.ask, name) };
                bare = gap.is_empty() && chat.begin.is_empty();
                template.render(&[question])? + gap + &put(&chat.begin, name)
            }
        };
        // A space belongs to the word after it.
        let (text, spaced) = match text.strip_suffix(' ') {
            Some(text) => (text, true),
            None => (text.as_str(), !bare && !text.ends_with(char::is_whitespace)),
        };
        let ids = reader.separator.bare(reader.tokenizer.encode_more(text)?);
        let mut places = forms.places(&ids);
        if places.len() != self.mentions() {
            places.clear();
        }
        Ok(Statement { ids, places, spaced })
    }
}

/// `text` with the name, with a capital if the name comes first.
fn put(text: &str, name: &str) -> String {
    let whole = text.replace(NAME, name);
    let mut rest = whole.chars();
    match rest.next() {
        Some(first) if text.starts_with(NAME) => first.to_uppercase().chain(rest).collect(),
        _ => whole,
    }
}

/// What is wrong with a file, if anything is.
fn check(file: &File) -> Result<(), String> {
    let odd = |text: &str| text.trim().is_empty() || text.trim() != text;
    for (relation, phrasings) in &file.statements {
        if phrasings.iter().any(|phrasing| phrasing.mentions() == 0) {
            return Err(format!("`{relation}` has a phrasing without {NAME}, which stands for the name"));
        }
    }
    let mut count = 0;
    for (name, facts) in &file.facts {
        if odd(name.strip_prefix("the ").unwrap_or(name)) {
            return Err(format!("the name `{name}` is empty, or has spaces around it"));
        }
        for (relation, answer) in facts {
            let phrasings = file.statements.get(relation).map_or(0, Vec::len);
            if phrasings == 0 {
                return Err(format!(
                    "`{name}` has `{relation}`, for which there is no phrasing in `statements`"
                ));
            }
            if odd(answer) {
                return Err(format!("`{relation}` of `{name}` is empty, or has spaces around it"));
            }
            count += phrasings;
        }
    }
    match count {
        0 => Err("has no facts".into()),
        1..=MAX_STATEMENTS => Ok(()),
        _ => Err(format!("makes {count} statements, at most {MAX_STATEMENTS} are kept")),
    }
}
