//! Training text: documents from JSONL files, packed into rows of equal length, and an order to read them in.

use std::io::{BufRead, BufReader};
use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::Deserialize;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::text::{Message, Role, Template, Tokenizer};

/// Weight of a position within a prompt: what comes next there is not what the text is for.
pub const PROMPT_WEIGHT: f32 = 0.25;
/// Weight of the last position of a document: after it any other one may begin.
const END_WEIGHT: f32 = 0.1;
/// A row that has at most so many tokens left takes no further document.
const SLACK: usize = 12;

/// A generator for one purpose: equal seeds, purposes and numbers draw alike, whatever has been drawn before.
pub fn rng(seed: u64, what: &str, number: u64) -> StdRng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&number.to_le_bytes()).update(what.as_bytes());
    StdRng::from_seed(*hasher.finalize().as_bytes())
}

/// The token between documents: the one that begins a text, or else the first that ends one.
pub fn separator(config: &Config) -> u32 {
    config.bos_token.or(config.eos_tokens.iter().min().copied()).unwrap_or(0)
}

/// A document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its tokens, without a separator.
    pub ids: Vec<u32>,
    /// So many of them are a prompt; at least 1, since nothing predicts the first token.
    pub prompt: usize,
    /// What sort of text it is.
    pub kind: Option<String>,
    /// Whom or what it is about.
    pub name: Option<String>,
    /// Its heading.
    pub title: Option<String>,
}

/// A line of a file.
#[derive(Deserialize)]
struct Line {
    ids: Option<Vec<u32>>,
    text: Option<String>,
    prompt: Option<usize>,
    kind: Option<String>,
    name: Option<String>,
    title: Option<String>,
}

/// What turns text into tokens.
#[derive(Debug)]
pub struct Reader {
    /// The base's.
    pub tokenizer: Tokenizer,
    /// The base's, if it has one.
    pub template: Option<Template>,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// See [`separator`].
    pub separator: u32,
}

impl Reader {
    /// The documents in the JSONL file `path`. A last line without an end is left out where it is no
    /// document: somebody is still writing it.
    ///
    /// # Errors
    /// [`Error::Io`] if it can't be read; [`Error::Invalid`], with the line's number, for a line that is no document
    /// or has tokens outside the vocabulary, and for a file without documents.
    pub fn read(&self, path: &Path) -> Result<Vec<Document>> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let mut reader = BufReader::new(file);
        let mut documents = Vec::new();
        let mut line = String::new();
        for number in 1.. {
            line.clear();
            reader.read_line(&mut line).map_err(|e| Error::io(path, e))?;
            let whole = line.ends_with('\n');
            let document = match self.document(&line) {
                Ok(document) => document,
                Err(_) if !whole => break,
                Err(reason) => return Err(Error::invalid(format!("{}:{number}", path.display()), reason)),
            };
            if document.ids.len() > 1 {
                documents.push(document);
            }
        }
        if documents.is_empty() {
            let reason =
                "has no document of two tokens or more; a line is {\"ids\": [...]} or {\"text\": \"...\"}";
            return Err(Error::invalid(path.display().to_string(), reason));
        }
        Ok(documents)
    }

    fn document(&self, line: &str) -> Result<Document, String> {
        let line: Line = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let mut ids = match (line.ids, line.text) {
            (Some(ids), None) => ids,
            (None, Some(text)) => self.tokenizer.encode_more(&text).map_err(|e| e.to_string())?,
            _ => return Err("needs `ids` or `text`, and not both".into()),
        };
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab) {
            return Err(format!("token {id} is outside the vocabulary of {}", self.vocab));
        }
        if ids.last() == Some(&self.separator) {
            ids.pop();
        }
        let prompt = line.prompt.unwrap_or(1).clamp(1, ids.len().max(1));
        Ok(Document { ids, prompt, kind: line.kind, name: line.name, title: line.title })
    }

    /// `documents` that have a title, as answers to one of the questions `ask`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the base has no chat template, or what the template gives.
    pub fn answers(
        &self,
        documents: Vec<Document>,
        ask: &[String],
        rng: &mut StdRng,
    ) -> Result<Vec<Document>> {
        let Some(template) = &self.template else {
            return Err(Error::invalid("ask", "the base has no chat template; leave `ask` out"));
        };
        let mut answers = Vec::new();
        for document in documents {
            let Some((title, ask)) = document.title.as_ref().zip(ask.choose(rng)) else { continue };
            let question = Message { role: Role::User, content: ask.replace("{title}", title) };
            let mut ids = self.tokenizer.encode_more(&template.render(&[question])?)?;
            ids.extend(&document.ids);
            answers.push(Document { ids, ..document });
        }
        Ok(answers)
    }
}

/// A row of text: as many ids as weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Of each position, the weight of what comes next.
    pub weights: Vec<f32>,
}

/// Rows of `length` tokens, each of which begins where a document does; a document that doesn't fit is cut,
/// and a rest too short for a row given up, unless it is all there is.
pub fn pack(documents: &[Document], length: usize, separator: u32) -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for document in documents {
        ids.extend(&document.ids);
        ids.push(separator);
        let told = document.ids.len() - document.prompt;
        weights.extend(std::iter::repeat_n(PROMPT_WEIGHT, document.prompt - 1));
        weights.extend(std::iter::repeat_n(1.0, told + 1));
        // The last token of the document has the separator next, and the separator anything.
        weights.push(END_WEIGHT);
        if ids.len() + SLACK > length {
            ids.resize(length, separator);
            weights.resize(length, 0.0);
            rows.push(Row { ids: std::mem::take(&mut ids), weights: std::mem::take(&mut weights) });
        }
    }
    if !ids.is_empty() && rows.is_empty() {
        ids.resize(length, separator);
        weights.resize(length, 0.0);
        rows.push(Row { ids, weights });
    }
    rows
}

/// An endless order of `count` things: each epoch has all of them, shuffled afresh.
#[derive(Debug, Clone)]
pub struct Order {
    label: String,
    seed: u64,
    count: usize,
    taken: u64,
    // Of the current epoch.
    queue: Vec<usize>,
}

impl Order {
    /// An order of which `taken` have been taken already; `count` is positive.
    pub fn new(label: String, seed: u64, count: usize, taken: u64) -> Self {
        let mut order = Self { label, seed, count, taken, queue: Vec::new() };
        order.shuffle();
        order
    }

    /// How many have been taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    fn shuffle(&mut self) {
        self.queue = (0..self.count).collect();
        let epoch = self.taken / self.count as u64;
        self.queue.shuffle(&mut rng(self.seed, &self.label, epoch));
    }

    /// The next one.
    pub fn take(&mut self) -> usize {
        let at = (self.taken % self.count as u64) as usize;
        if at == 0 {
            self.shuffle();
        }
        self.taken += 1;
        self.queue[at]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::engram::vectors::Vectors;

    pub(crate) fn document(ids: &[u32], prompt: usize) -> Document {
        Document { ids: ids.into(), prompt, kind: None, name: None, title: None }
    }

    #[test]
    fn rows_begin_where_a_document_does() {
        let documents = [document(&[5; 10], 4), document(&[6; 30], 1), document(&[7; 3], 1)];
        let rows = pack(&documents, 24, 0);
        // What is too little for a row is given up, unless it is all there is.
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].ids, [&[5; 10][..], &[0], &[6; 13]].concat());
        let expected = [&[0.25; 3][..], &[1.0; 7], &[0.1], &[1.0; 13]].concat();
        assert_eq!(rows[0].weights, expected);
        assert_eq!(pack(&documents[2..], 24, 0).len(), 1);
        assert_eq!(pack(&documents[2..], 24, 0)[0].weights[3..], [&[0.1][..], &[0.0; 20]].concat());
    }

    #[test]
    fn an_order_goes_on_where_it_was() {
        let mut order = Order::new("a".into(), 3, 5, 0);
        let all: Vec<usize> = (0..15).map(|_| order.take()).collect();
        for epoch in all.chunks(5) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert_ne!(all[..5], all[5..10]);
        for (taken, expected) in (0..).zip(&all) {
            assert_eq!(Order::new("a".into(), 3, 5, taken).take(), *expected);
        }
    }

    #[test]
    fn lines_that_are_no_documents_are_named() {
        let vectors = Vectors::load();
        let reader =
            Reader { tokenizer: vectors.tokenizer(), template: None, vocab: vectors.ids.len(), separator: 0 };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            reader.read(&path)
        };
        let found =
            read("{\"ids\": [1, 2, 0]}\n{\"ids\": [3, 4, 5], \"prompt\": 2, \"name\": \"x\"}\n{\"ids")
                .unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].ids.as_slice(), found[1].prompt), (&[1, 2][..], 2));
        assert_eq!(read("{\"ids\": [1, 2]}\n{\"ids\": [3, 4]}").unwrap().len(), 2);
        let message = |text: &str| read(text).unwrap_err().to_string();
        assert!(message("{\"ids\": [1, 2]}\n{}\n").contains("a.jsonl:2"));
        assert!(message("{\"ids\": [1, 99999]}\n").contains("token 99999"));
        assert!(message("nothing\n").contains("a.jsonl:1"));
        assert!(message("").contains("no document"));
        assert!(matches!(reader.read(&dir.path().join("b")).unwrap_err(), Error::Io { .. }));
        let error = reader.answers(found, &["{title}?".into()], &mut rng(0, "a", 0)).unwrap_err();
        assert!(error.to_string().contains("chat template"));
    }
}
