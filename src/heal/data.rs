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

/// What stands between documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Separator {
    /// The token that begins a text, or else the first that ends one.
    pub token: u32,
    /// Whether it begins texts. Then every row begins with it too, as every text does that the model is given.
    pub begins: bool,
}

impl Separator {
    /// That of a model.
    pub fn of(config: &Config) -> Self {
        Self { token: config.boundary(), begins: config.bos_token.is_some() }
    }

    /// What a row begins with.
    pub fn start(self) -> impl Iterator<Item = u32> {
        std::iter::repeat_n(self.token, usize::from(self.begins))
    }

    /// `ids` without what a row begins with: a chat template may have written it.
    pub fn bare(self, mut ids: Vec<u32>) -> Vec<u32> {
        if self.begins && ids.first() == Some(&self.token) {
            ids.remove(0);
        }
        ids
    }
}

/// A document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its tokens, without a separator before or after them.
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
    /// The base's, or why there is none: text that asks nothing can do without.
    pub template: std::result::Result<Template, String>,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// The base's.
    pub separator: Separator,
}

/// Why there is no template where the checkpoint brings none.
pub const NO_TEMPLATE: &str = "the base has no chat template";

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
        if ids.last() == Some(&self.separator.token) {
            ids.pop();
        }
        let whole = ids.len();
        let ids = self.separator.bare(ids);
        let prompt = line.prompt.unwrap_or(1).saturating_sub(whole - ids.len()).clamp(1, ids.len().max(1));
        Ok(Document { ids, prompt, kind: line.kind, name: line.name, title: line.title })
    }

    /// `documents` that have a title, as answers to one of the questions `ask`, which end as the template ends an answer.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the base has no chat template that can be used, or what the template gives.
    pub fn answers(
        &self,
        documents: Vec<Document>,
        ask: &[String],
        rng: &mut StdRng,
    ) -> Result<Vec<Document>> {
        let template = self
            .template
            .as_ref()
            .map_err(|reason| Error::invalid("ask", format!("{reason}; leave `ask` out")))?;
        let end = self.tokenizer.encode_more(around_answers(template).1.trim_end())?;
        let mut answers = Vec::new();
        for document in documents {
            let Some((title, ask)) = document.title.as_ref().zip(ask.choose(rng)) else { continue };
            let question = Message { role: Role::User, content: ask.replace("{title}", title) };
            let mut ids = self.separator.bare(self.tokenizer.encode_more(&template.render(&[question])?)?);
            // A document's first token counts as prompt where nothing predicts it; here the question does.
            let own = if document.prompt > 1 { document.prompt } else { 0 };
            let prompt = (ids.len() + own).max(1);
            ids.extend(document.ids.iter().chain(&end));
            answers.push(Document { ids, prompt, ..document });
        }
        Ok(answers)
    }
}

/// What a template writes between the head of an answer and the answer, which is only spaces, and after it.
pub fn around_answers(template: &Template) -> (String, String) {
    const ANSWER: &str = "It is.";
    let message = |role, content: &str| Message { role, content: content.into() };
    let (question, answer) = (message(Role::User, "Is it?"), message(Role::Assistant, ANSWER));
    let head = template.render(std::slice::from_ref(&question)).unwrap_or_default();
    let whole = template.conversation(&[question, answer]).unwrap_or_default();
    let rest = whole.strip_prefix(&head).unwrap_or_default();
    let begun = rest.trim_start();
    let gap = rest[..rest.len() - begun.len()].to_owned();
    (gap, begun.strip_prefix(ANSWER).unwrap_or_default().to_owned())
}

/// A row of text: as many ids as weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Of each position, the weight of what comes next.
    pub weights: Vec<f32>,
}

/// Rows of `length` tokens, each of which begins where a document does, after what `separator` begins it with; a document
/// that doesn't fit is cut, and a rest too short for a row given up, unless it is all there is.
pub fn pack(documents: &[Document], length: usize, separator: Separator) -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for document in documents {
        if ids.is_empty() {
            ids.extend(separator.start());
            weights.extend(ids.iter().map(|_| END_WEIGHT));
        }
        ids.extend(&document.ids);
        ids.push(separator.token);
        let told = document.ids.len() - document.prompt;
        weights.extend(std::iter::repeat_n(PROMPT_WEIGHT, document.prompt - 1));
        weights.extend(std::iter::repeat_n(1.0, told + 1));
        // The last token of the document has the separator next, and the separator anything.
        weights.push(END_WEIGHT);
        if ids.len() + SLACK > length {
            ids.resize(length, separator.token);
            weights.resize(length, 0.0);
            rows.push(Row { ids: std::mem::take(&mut ids), weights: std::mem::take(&mut weights) });
        }
    }
    if !ids.is_empty() && rows.is_empty() {
        ids.resize(length, separator.token);
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
    use crate::text::template::tests::CHATML;
    use crate::text::tokenizer::tests::byte_tokenizer;

    pub(crate) fn document(ids: &[u32], prompt: usize) -> Document {
        Document { ids: ids.into(), prompt, kind: None, name: None, title: None }
    }

    #[test]
    fn rows_begin_where_a_document_does() {
        let documents = [document(&[5; 10], 4), document(&[6; 30], 1), document(&[7; 3], 1)];
        let separator = Separator { token: 0, begins: false };
        let rows = pack(&documents, 24, separator);
        // What is too little for a row is given up, unless it is all there is.
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].ids, [&[5; 10][..], &[0], &[6; 13]].concat());
        let expected = [&[0.25; 3][..], &[1.0; 7], &[0.1], &[1.0; 13]].concat();
        assert_eq!(rows[0].weights, expected);
        assert_eq!(pack(&documents[2..], 24, separator).len(), 1);
        assert_eq!(pack(&documents[2..], 24, separator)[0].weights[3..], [&[0.1][..], &[0.0; 20]].concat());
        // A token that begins texts begins rows.
        let rows = pack(&documents, 24, Separator { token: 0, begins: true });
        assert_eq!(rows[0].ids, [&[0][..], &[5; 10], &[0], &[6; 12]].concat());
        assert_eq!(rows[0].weights, [&[0.1][..], &[0.25; 3], &[1.0; 7], &[0.1], &[1.0; 12]].concat());
    }

    #[test]
    fn answers_begin_behind_a_question_and_end_their_turn() {
        let template = |source: &str| Template::new(source, "<s>".into(), String::new()).unwrap();
        let reader = Reader {
            tokenizer: byte_tokenizer(),
            template: Ok(template(CHATML)),
            vocab: 258,
            separator: Separator { token: 0, begins: false },
        };
        let title = |prompt| Document { title: Some("Tin".into()), ..document(&[5, 6, 7], prompt) };
        let answers = |prompt| {
            let ask = ["What is {title}?".to_owned()];
            reader.answers(vec![title(prompt), document(&[8, 9], 1)], &ask, &mut rng(0, "a", 0)).unwrap()
        };
        let question = Message { role: Role::User, content: "What is Tin?".into() };
        let head = reader.template.as_ref().unwrap().render(&[question]).unwrap();
        let head = reader.tokenizer.encode_more(&head).unwrap();
        let end = reader.tokenizer.encode_more("<|im_end|>").unwrap();
        let found = answers(1);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].ids, [&head[..], &[5, 6, 7], &end].concat());
        assert_eq!(found[0].prompt, head.len());
        assert_eq!(answers(2)[0].prompt, head.len() + 2);

        let around = |source: &str| around_answers(&template(source));
        assert_eq!(around(CHATML), (String::new(), "<|im_end|>\n".into()));
        let spaced = "{% for m in messages %}[{{ m.role }}] {{ m.content }};{% endfor %}\
                      {% if add_generation_prompt %}[assistant]{% endif %}";
        assert_eq!(around(spaced), (" ".into(), ";".into()));
        assert_eq!(around("{{ raise_exception('no') }}"), (String::new(), String::new()));
    }

    #[test]
    fn what_begins_a_row_is_not_told_twice() {
        let separator = Separator { token: 3, begins: true };
        assert_eq!(separator.bare(vec![3, 3, 4]), [3, 4]);
        assert_eq!(separator.start().collect::<Vec<_>>(), [3]);
        let reader =
            Reader { tokenizer: byte_tokenizer(), template: Err(NO_TEMPLATE.into()), vocab: 258, separator };
        let read = |line: &str| reader.document(line).unwrap();
        assert_eq!(read("{\"ids\": [3, 5, 6, 7, 3], \"prompt\": 3}"), document(&[5, 6, 7], 2));
        assert_eq!(read("{\"ids\": [5, 6, 7], \"prompt\": 3}"), document(&[5, 6, 7], 3));
        assert_eq!(read("{\"ids\": [3]}"), document(&[], 1));
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
        let separator = Separator { token: 0, begins: false };
        let reader = Reader {
            tokenizer: vectors.tokenizer(),
            template: Err(NO_TEMPLATE.into()),
            vocab: vectors.ids.len(),
            separator,
        };
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
