//! The engine's methods for edits: made, checked, put in words, and measured. `www/src/edits/protocol.ts` describes
//! their values; edits cross the line as the JSON of `docs/edits.md`.

use futures::lock::MutexGuard;
use js_sys::Function;
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use super::control::to_js;
use super::engine::{Engine, from_js};
use super::rows::PageSession;
use crate::backend::Backend;
use crate::edits::ngram::Answer;
use crate::edits::teach::{self, Teaching};
use crate::edits::{Edit, Edits, Method, NgramSwap, Overlay, Preview, Scope, Swap};
use crate::error::{Error, Result};
use crate::eval::score::endings;
use crate::eval::unrelated;
use crate::sampler::Sampling;
use crate::text::{Message, chat};

/// At most so many answers are weighed, for so many strengths.
const MAX_ANSWERS: usize = 8;
const MAX_STRENGTHS: usize = 64;
/// A longer beginning would be read for too long between two chances to stop.
const MAX_PROMPT_TOKENS: usize = 256;
/// Tokens of an end that is found.
const END_TOKENS: usize = 4;
/// Characters shown on either side of an occurrence.
const CONTEXT_CHARS: usize = 30;

/// How to swap: the options of `xylem edit swap`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    scope: Scope,
    strength: f32,
    layers: Option<Vec<usize>>,
    method: Option<Method>,
    at_start: bool,
}

/// A place where the source of an edit stands in a conversation.
#[derive(Serialize)]
struct Occurrence {
    position: usize,
    before: String,
    after: String,
}

/// What was taught.
#[derive(Serialize)]
struct Lesson {
    /// As a JSON array.
    edits: String,
    steps: usize,
    before: f64,
    after: f64,
    change: f64,
}

/// What the page hears while something is measured.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Heard<'a> {
    /// ln P of each answer at a strength.
    Point { strength: f32, log_probs: &'a [f64] },
    /// The two ends, where the engine was to find them.
    Answers { answers: &'a [String] },
    /// A step of teaching, after which the answer's tokens have this probability.
    Step { taken: usize, likely: f64 },
    /// KL(unedited ‖ edited) a token of a text, in nats; null where the edits touch none of its tokens.
    Text { text: &'a str, kl: Option<f64> },
}

#[wasm_bindgen]
impl Engine {
    /// The edits that give `subject` the rows of `with`, as a JSON array.
    ///
    /// # Errors
    /// Names and options that can't be used, in words for the reader.
    #[wasm_bindgen(js_name = makeEdits)]
    pub fn make_edits(&self, subject: &str, with: Vec<String>, options: JsValue) -> Result<String, JsError> {
        let Options { scope, strength, layers, method, at_start } = from_js("the options", options)?;
        let swap = Swap { scope, strength, layers, method, pad: None, at_start };
        let edits = swap.edits(&self.tokenizer, subject, &with)?;
        Overlay::new(&edits, &self.config)?;
        Ok(json(&edits))
    }

    /// The edit of the n-grams within `subject`, as a JSON array: they get the rows of those within `with`, or without that
    /// `factor` times their own.
    ///
    /// # Errors
    /// Texts and options that can't be used, in words for the reader.
    #[wasm_bindgen(js_name = makeNgramEdit)]
    pub fn make_ngram_edit(
        &self,
        subject: &str,
        with: Option<String>,
        factor: f32,
    ) -> Result<String, JsError> {
        let swap = NgramSwap { scope: Scope::Phrase, strength: 1.0, layers: None };
        let answer = with.as_deref().map_or(Answer::Factor(factor), Answer::Text);
        let edits = [swap.edit(&self.tokenizer, subject, answer)?];
        Overlay::new(&edits, &self.config)?;
        Ok(json(&edits))
    }

    /// What each edit of the file `edits` does.
    ///
    /// # Errors
    /// What is wrong with the file, in words for the reader.
    #[wasm_bindgen(js_name = previewEdits)]
    pub fn preview_edits(&self, edits: &str) -> Result<JsValue, JsError> {
        let edits = self.read(edits.as_bytes())?;
        Ok(to_js(&Preview::all(&edits.edits, &self.tokenizer, &self.config))?)
    }

    /// The edits of the file `file`, as a JSON array: checked whole, and made for this model.
    ///
    /// # Errors
    /// What is wrong with the file, in words for the reader.
    #[wasm_bindgen(js_name = checkEdits)]
    pub fn check_edits(&self, file: &[u8]) -> Result<String, JsError> {
        Ok(json(&self.read(file)?.edits))
    }

    /// Where the tokens `source` stand in the prompt that the conversation makes.
    ///
    /// # Errors
    /// Messages that make no prompt, in words for the reader.
    #[wasm_bindgen(js_name = findOccurrences)]
    pub fn find_occurrences(
        &self,
        messages: JsValue,
        max_tokens: usize,
        source: Vec<u32>,
    ) -> Result<JsValue, JsError> {
        let messages: Vec<Message> = from_js("the messages", messages)?;
        let context = self.facts.context_length;
        let prompt = chat::prompt(&self.tokenizer, self.template()?, &messages, context, max_tokens)?.tokens;
        let text = |tokens: &[u32]| self.tokenizer.decode(tokens);
        let mut found = Vec::new();
        for position in 0..prompt.len().saturating_sub(source.len().max(1) - 1) {
            let end = position + source.len();
            if prompt[position..end] != source {
                continue;
            }
            let before = text(&prompt[position.saturating_sub(CONTEXT_CHARS)..position])?;
            let skip = before.chars().count().saturating_sub(CONTEXT_CHARS);
            let after = text(&prompt[end..prompt.len().min(end + CONTEXT_CHARS)])?;
            found.push(Occurrence {
                position,
                before: before.chars().skip(skip).collect(),
                after: after.chars().take(CONTEXT_CHARS).collect(),
            });
        }
        Ok(to_js(&found)?)
    }

    /// Tells `on_event` the probability of each of `answers` behind `prompt`, for each of `strengths` of those edits of the
    /// file `edits` that `which` numbers; the others stay as they are. Without answers the two are taken that the model
    /// says itself at strengths 0 and 1.
    ///
    /// # Errors
    /// What can't be used, rows that can't be had, a stop; in words for the reader.
    #[wasm_bindgen(js_name = weighAnswers)]
    pub async fn weigh_answers(
        &self,
        prompt: &str,
        answers: Vec<String>,
        edits: &str,
        which: Vec<usize>,
        strengths: Vec<f32>,
        on_event: Function,
    ) -> Result<(), JsError> {
        let session = self.take_whole("the measurement").await?;
        self.control.listen(on_event);
        let weighed = self.weigh(session, prompt, &answers, edits, &which, &strengths).await;
        self.control.end();
        Ok(weighed?)
    }

    /// Tells `on_event` what the file `edits` does to each of the unrelated texts.
    ///
    /// # Errors
    /// What can't be used, rows that can't be had, a stop; in words for the reader.
    #[wasm_bindgen(js_name = measureReach)]
    pub async fn measure_reach(&self, edits: &str, on_event: Function) -> Result<(), JsError> {
        let session = self.take_whole("the measurement").await?;
        self.control.listen(on_event);
        let reached = self.reach(session, edits).await;
        self.control.end();
        Ok(reached?)
    }
}

#[wasm_bindgen]
impl Engine {
    /// Looks for rows of `subject` with which each of `prompts` ends with `answer`; tells `on_event` of each step.
    ///
    /// # Errors
    /// A model on the GPU, a lesson that can't be taught, rows that can't be had, a stop; in words for the reader.
    #[wasm_bindgen(js_name = teachFact)]
    pub async fn teach_fact(
        &self,
        subject: String,
        prompts: Vec<String>,
        answer: String,
        steps: usize,
        on_event: Function,
    ) -> Result<JsValue, JsError> {
        let lesson = teach::Lesson { subject, prompts, answer, layers: None, steps };
        let session = self.take_whole("the lesson").await?;
        self.control.listen(on_event);
        let taught = self.teach(session, &lesson).await;
        self.control.end();
        Ok(to_js(&taught?)?)
    }
}

/// `text` to where its first clause ends.
fn first_words(text: &str) -> String {
    let text = text.trim_start();
    let end = text.find([',', '.', ';', ':', '\n', '(', '"']).filter(|end| *end > 0).unwrap_or(text.len());
    text[..end].trim_end().to_owned()
}

fn json(edits: &[Edit]) -> String {
    serde_json::to_string(edits).expect("edits hold nothing that JSON cannot")
}

impl Engine {
    /// The file `file`, which must suit the model.
    fn read(&self, file: &[u8]) -> Result<Edits> {
        let edits = Edits::parse(file)?;
        edits.overlay(&self.facts.model_hash, &self.config)?;
        Ok(edits)
    }

    /// Lets the page in; an error if it wants an end.
    pub(super) async fn rest(&self) -> Result<()> {
        self.control.breathe().await;
        if self.control.is_stopped() { Err(Error::Stopped) } else { Ok(()) }
    }

    async fn weigh(
        &self,
        mut session: MutexGuard<'_, PageSession>,
        prompt: &str,
        answers: &[String],
        edits: &str,
        which: &[usize],
        strengths: &[f32],
    ) -> Result<()> {
        let mut edits = Edits::parse(edits.as_bytes())?;
        if answers.len() > MAX_ANSWERS || answers.iter().any(|a| a.trim().is_empty()) {
            let few = format!("at most {MAX_ANSWERS} are possible, and none is empty");
            return Err(Error::invalid("the answers", few));
        }
        if strengths.len() > MAX_STRENGTHS || which.iter().any(|i| *i >= edits.edits.len()) {
            let few = format!("at most {MAX_STRENGTHS} are possible, for edits of the list");
            return Err(Error::invalid("the strengths", few));
        }
        let prompt = self.tokenizer.encode(prompt)?;
        let mut set = |session: &mut PageSession, strength: f32| {
            for i in which {
                edits.edits[*i] = Edit { on: true, strength, ..edits.edits[*i].clone() };
            }
            let overlay = edits.overlay(&self.facts.model_hash, &self.config)?;
            session.rows_mut().set_overlay(overlay);
            Ok::<_, Error>(())
        };
        let mut answers = answers.to_vec();
        if answers.is_empty() {
            for strength in [0.0, 1.0] {
                set(&mut session, strength)?;
                let said = session.generate(&prompt, &Sampling::greedy(END_TOKENS), &mut ()).await?;
                answers.push(first_words(&self.tokenizer.decode(&said.tokens)?));
                self.rest().await?;
            }
            if answers[0] == answers[1] {
                let both = format!("with and without the edit the model says {:?} first", answers[0]);
                return Err(Error::invalid("the ends", format!("{both}; type two")));
            }
            self.control.emit(&Heard::Answers { answers: &answers });
        }
        let answers = answers.iter().map(|a| self.tokenizer.encode_more(&format!(" {}", a.trim())));
        let answers: Vec<Vec<u32>> = answers.collect::<Result<_>>()?;
        if prompt.len() > MAX_PROMPT_TOKENS {
            let count = format!("a beginning of {} tokens", prompt.len());
            return Err(Error::invalid(count, format!("at most {MAX_PROMPT_TOKENS} are possible")));
        }
        let longest = prompt.len() + answers.iter().map(Vec::len).max().unwrap_or_default();
        let capacity = session.backend().capacity();
        if longest > capacity {
            return Err(Error::ContextFull { tokens: longest, context: capacity });
        }
        for strength in strengths {
            set(&mut session, *strength)?;
            let log_probs = endings(&mut session, &prompt, &answers).await?;
            self.control.emit(&Heard::Point { strength: *strength, log_probs: &log_probs });
            self.rest().await?;
        }
        Ok(())
    }

    async fn reach(&self, mut session: MutexGuard<'_, PageSession>, edits: &str) -> Result<()> {
        let overlay = self.overlay(Some(edits))?;
        for text in unrelated::TEXTS {
            let kl = unrelated::moved(&mut session, &self.tokenizer, &overlay, text).await?;
            self.control.emit(&Heard::Text { text, kl });
            self.rest().await?;
        }
        Ok(())
    }

    async fn teach(&self, session: MutexGuard<'_, PageSession>, lesson: &teach::Lesson) -> Result<Lesson> {
        let Some(model) = session.backend().cpu() else {
            return Err(Error::Unsupported {
                what: "teaching on the GPU".into(),
                supported: "the CPU; it can be chosen under Model".into(),
            });
        };
        let rows = session.rows().inner();
        let mut teaching = Teaching::begin(model, rows, &self.tokenizer, lesson).await?;
        loop {
            self.control.emit(&Heard::Step { taken: teaching.taken(), likely: teaching.likely() });
            self.rest().await?;
            if !teaching.step()? {
                break;
            }
        }
        let teach::Taught { edits, steps, before, after, change } = teaching.finish()?;
        Ok(Lesson { edits: json(&edits), steps, before, after, change })
    }
}
