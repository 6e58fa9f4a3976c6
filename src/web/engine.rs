//! The class `Engine` of `pkg/xylem.js`; `www/src/protocol.ts` describes its values.

use std::cell::RefCell;
use std::rc::Rc;

use futures::lock::{Mutex, MutexGuard};
use js_sys::{Function, Math};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use super::archive::{Archive, EngramPages};
use super::control::{Control, Event, to_js};
use super::http::Host;
use super::load::{Choice, Model, Progress, load, on_cpu, warm};
use super::look::{Look, Source, part};
use super::rows::{PageSession, Rows};
use crate::backend::Backend;
use crate::bundle::{Cost, Manifest};
use crate::config::Config;
use crate::device::Device;
use crate::edits::{Edited, Edits, Instead, KnockOut, Knocked, Overlay};
use crate::engram::{Hasher, WithEngram};
use crate::error::{Error, Result};
use crate::sampler::Sampling;
use crate::session::{Finish, Observer, Parked, Session, StepReport};
use crate::tables::{RowSource, Stats, Store, Tables};
use crate::text::{Message, Template, TextStream, Tokenizer, chat};
use crate::trace::TracedToken;
use crate::trace::record::TracedModel;

/// Prompt tokens that the CPU reads at a time: between two steps a stop is heard.
const CPU_CHUNK: usize = 32;

/// A loaded model. It writes one answer at a time.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Engine {
    pub(super) session: Mutex<PageSession>,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<Template>,
    pub(super) config: Config,
    tables: Option<Rc<Tables<Host, Archive>>>,
    engram: Option<Rc<Tables<Host, EngramPages>>>,
    hasher: Option<Hasher>,
    pub(super) control: Rc<Control>,
    look: Look,
    manifest: Manifest,
    manifest_url: String,
    archive: Archive,
    /// Of a model on the GPU its copy on the CPU, once one was wanted. Taken before the session.
    on_cpu: Mutex<Option<Parked<Device>>>,
    /// What is knocked out of the session's rows.
    out: RefCell<Option<Out>>,
    pub(super) facts: Facts,
}

/// What does not change.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Facts {
    model: String,
    /// The manifest's hash: edits are made for this very model.
    pub model_hash: String,
    licence: String,
    backend: &'static str,
    adapter: String,
    notice: Option<String>,
    pub context_length: usize,
    n_layers: usize,
    stem_layers: Vec<usize>,
    engram_layers: Vec<usize>,
    hidden_size: usize,
    vocab_size: usize,
    core_bytes: u64,
    table_bytes: u64,
    table_pages: usize,
    gpu_bytes: u64,
    cost: Cost,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info<'a> {
    #[serde(flatten)]
    facts: &'a Facts,
    wasm_bytes: u32,
    rows: Option<RowStats>,
    engram: Option<RowStats>,
}

/// [`Stats`] in the page's spelling.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RowStats {
    looked_up: u64,
    memory: u64,
    stored: u64,
    fetched: u64,
    requests: u64,
    bytes_fetched: u64,
    stall_ms: f64,
    bytes_held: u64,
    record_bytes: usize,
    table_bytes: u64,
}

impl RowStats {
    fn of<S: Store>(tables: &Rc<Tables<Host, S>>) -> Self {
        let (table, stats) = (tables.layout().table(), tables.stats());
        let Stats { rows: looked_up, hot: memory, stored, fetched, .. } = stats;
        let Stats { requests, bytes_fetched, stall_ms, hot_bytes: bytes_held, .. } = stats;
        let (record_bytes, table_bytes) = (table.record_bytes(), table.bytes());
        Self {
            looked_up,
            memory,
            stored,
            fetched,
            requests,
            bytes_fetched,
            stall_ms,
            bytes_held,
            record_bytes,
            table_bytes,
        }
    }
}

#[derive(Deserialize)]
struct Options {
    backend: Choice,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    repetition_penalty: f32,
    max_tokens: usize,
    seed: Option<u64>,
}

/// Rows to knock out: of these layers, of all unless given.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Out {
    instead: Instead,
    layers: Option<Vec<usize>>,
}

/// What a text is run with in place of the model's own rows: edits, and what is knocked out.
#[derive(Debug, Default)]
pub(super) struct Changes {
    overlay: Overlay,
    out: Option<Out>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    text: String,
    tokens: Vec<u32>,
    finish: Finish,
    prompt_tokens: usize,
    reused_tokens: usize,
    generated_tokens: usize,
    time_to_first_token_ms: f64,
    tokens_per_second: f64,
    dropped_turns: usize,
    seed: u64,
}

#[wasm_bindgen(start)]
fn start() {
    console_error_panic_hook::set_once();
}

#[wasm_bindgen]
impl Engine {
    /// Loads the bundle whose manifest is at `manifest_url`, as far as possible from `archive`.
    ///
    /// # Errors
    /// Anything that makes the bundle unusable, in words for the reader of the page.
    pub async fn load(
        manifest_url: String,
        options: JsValue,
        on_progress: Function,
        archive: Archive,
    ) -> Result<Self, JsError> {
        let options: Options = from_js("the options", options)?;
        let Model { manifest, tokenizer, template, device, tables, engram, notice } =
            load(&manifest_url, options.backend, archive.clone(), &Progress::new(Some(on_progress))).await?;
        let config = manifest.config.clone();
        let (backend, adapter) = device.describe();
        let (chunk, gpu_bytes) = match &device {
            Device::Cpu(_) => (CPU_CHUNK, 0),
            Device::Gpu(backend) => (backend.chunk(), backend.bytes()),
        };
        let look = Look::new(TracedModel::new(&manifest));
        let facts = Facts {
            cost: Cost::new(&manifest),
            core_bytes: manifest.core_bytes(),
            table_bytes: manifest.tables.iter().map(|table| table.bytes()).sum(),
            table_pages: manifest.tables.iter().map(|table| table.pages()).sum(),
            model_hash: manifest.hash(),
            model: manifest.name.clone(),
            licence: manifest.source.licence.clone(),
            backend,
            adapter,
            notice,
            context_length: device.capacity(),
            n_layers: config.n_layers,
            stem_layers: config.stem_layers.clone(),
            engram_layers: config.engram.iter().flat_map(|e| &e.layers).map(|l| l.layer).collect(),
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            gpu_bytes,
        };
        let control = Rc::new(Control::new()?);
        let stem = Rows { tables: tables.clone(), control: control.clone() };
        let (hasher, engram) = engram.unzip();
        tables.iter().for_each(warm);
        let heads = Rows { tables: engram.clone(), control: control.clone() };
        let rows = WithEngram::new(stem, config.stem_width(), hasher.clone().map(|hasher| (hasher, heads)));
        let session =
            Mutex::new(Session::new(device, Edited::new(Knocked::new(rows)), config.clone(), chunk));
        Ok(Self {
            session,
            tokenizer,
            template,
            config,
            tables,
            engram,
            hasher,
            control,
            look,
            manifest,
            manifest_url,
            archive,
            on_cpu: Mutex::default(),
            out: RefCell::default(),
            facts,
        })
    }

    /// What is loaded, and what it takes.
    ///
    /// # Errors
    /// None in practice: the values are plain.
    pub fn info(&self) -> Result<JsValue, JsError> {
        let memory = wasm_bindgen::memory().unchecked_into::<js_sys::WebAssembly::Memory>();
        let wasm_bytes = memory.buffer().unchecked_into::<js_sys::ArrayBuffer>().byte_length();
        let rows = self.tables.as_ref().map(RowStats::of);
        let engram = self.engram.as_ref().map(RowStats::of);
        Ok(to_js(&Info { facts: &self.facts, wasm_bytes, rows, engram })?)
    }

    /// Answers the last of `messages`, with the rows edited as the file `edits` says, if there is one, and without those that
    /// `knock_out` takes away.
    ///
    /// # Errors
    /// Messages, settings, edits or a knock-out that can't be used, rows that can't be had, a GPU that fails; in words for the reader.
    pub async fn chat(
        &self,
        messages: JsValue,
        settings: JsValue,
        edits: Option<String>,
        knock_out: JsValue,
        on_event: Function,
    ) -> Result<JsValue, JsError> {
        let messages: Vec<Message> = from_js("the messages", messages)?;
        let settings: Settings = from_js("the settings", settings)?;
        let overlay = self.overlay(edits.as_deref())?;
        let changes = Changes { overlay, out: from_js("the knock-out", knock_out)? };
        let session = self.take("the question").await?;
        self.control.listen(on_event);
        let answer = self.answer(session, &messages, &settings, changes).await;
        self.control.end();
        Ok(to_js(&answer?)?)
    }

    /// Brings these pages of the tables (ascending, distinct; those of the Engram table are numbered behind those of
    /// the STEM table) to this device.
    ///
    /// # Errors
    /// Pages that can't be had, in words for the reader.
    pub async fn download(&self, pages: Vec<u32>) -> Result<(), JsError> {
        let first = self.tables.as_ref().map_or(0, |tables| tables.layout().table().pages()) as u32;
        let (stem, engram) = pages.split_at(pages.partition_point(|page| *page < first));
        if let Some(tables) = &self.tables {
            tables.download(stem).await?;
        }
        if let Some(tables) = &self.engram {
            let pages: Vec<u32> = engram.iter().map(|page| page - first).collect();
            tables.download(&pages).await?;
        }
        Ok(())
    }

    /// Brings the rows of `text`, which may soon be sent, into memory. What fails is told when it is sent.
    pub fn prefetch(&self, text: &str) {
        if let Ok(tokens) = self.tokenizer.encode_more(text) {
            let rows = Rows { tables: self.tables.clone(), control: self.control.clone() };
            rows.prefetch(&tokens);
        }
    }

    /// Whether the page is told of each step of an answer.
    pub fn watch(&self, on: bool) {
        self.look.watching.set(on);
    }

    /// Runs the text of the last answer again with a look at every layer; `on_part` gets some tokens at a time. An answer that
    /// is asked for meanwhile ends it. Gives the trace (`docs/trace.md`) without its tokens. A model on the GPU gets a copy
    /// on the CPU for this, which stays.
    ///
    /// # Errors
    /// Files and rows that can't be had, in words for the reader.
    pub async fn trace(&self, on_part: Function) -> Result<JsValue, JsError> {
        self.look.allow();
        let mut on_cpu = self.on_cpu.lock().await;
        if self.facts.backend == "gpu" && on_cpu.is_none() {
            // The GPU is free for an answer meanwhile.
            let device = self::on_cpu(&self.manifest_url, self.archive.clone(), &self.manifest).await?;
            *on_cpu = Some(Parked::new(device));
        }
        let mut session = self.session.lock().await;
        let _looking = self.look.hold();
        self.control.resume();
        self.change(&mut session, &self.look.changes()).await?;
        let each = |position: usize, tokens: &[TracedToken]| {
            if let Ok(part) = part(position, tokens) {
                // A listener that throws is no reason to end the trace.
                let _ = on_part.call1(&JsValue::UNDEFINED, &part);
            }
        };
        let mut take_turns = |session: &mut PageSession| {
            on_cpu.iter_mut().for_each(|other| session.exchange(other));
        };
        take_turns(&mut session);
        let head = self.look.trace(&mut session, self.source(), &self.control, each).await;
        take_turns(&mut session);
        Ok(to_js(&head?)?)
    }

    /// Everything about the token at `position` of the last answer's text in layer `layer`. What a model on the GPU computed is
    /// seen once there is a copy on the CPU, see [`trace`](Self::trace).
    ///
    /// # Errors
    /// A cell that there is not, and rows that can't be had, in words for the reader.
    pub async fn card(&self, position: usize, layer: usize) -> Result<JsValue, JsError> {
        // While a trace loads the copy, there is none.
        let mut on_cpu = self.on_cpu.try_lock();
        let mut session = self.session.lock().await;
        let _looking = self.look.hold();
        self.control.resume();
        self.change(&mut session, &self.look.changes()).await?;
        let mut take_turns = |session: &mut PageSession| {
            on_cpu.iter_mut().flat_map(|on_cpu| on_cpu.iter_mut()).for_each(|other| session.exchange(other));
        };
        take_turns(&mut session);
        let card = self.look.card(&mut session, self.source(), (position, layer)).await;
        take_turns(&mut session);
        Ok(to_js(&card?)?)
    }

    /// Ends the answer under way after the token it is at.
    pub fn stop(&self) {
        self.control.stop();
    }
}

impl Engine {
    fn source(&self) -> Source<'_> {
        let engram = self.hasher.as_ref().zip(self.engram.as_deref());
        Source { tokenizer: &self.tokenizer, tables: self.tables.as_deref(), engram }
    }

    /// The session, for `what`; a look at the last answer gives way. From then on a stop counts.
    ///
    /// # Errors
    /// [`Error::Invalid`] while something else is under way.
    pub(super) async fn take(&self, what: &str) -> Result<MutexGuard<'_, PageSession>> {
        let free = self.session.try_lock();
        if free.is_none() && !self.look.interrupt() {
            return Err(Error::invalid(
                what,
                "came while something else was under way; wait for its end, or stop it",
            ));
        }
        self.control.resume();
        match free {
            Some(session) => Ok(session),
            None => Ok(self.session.lock().await),
        }
    }

    /// As [`take`](Self::take), with nothing knocked out, as it may have been from an answer that was only to be compared.
    pub(super) async fn take_whole(&self, what: &str) -> Result<MutexGuard<'_, PageSession>> {
        let mut session = self.take(what).await?;
        self.knock_out(&mut session, None).await?;
        Ok(session)
    }

    /// Lays `changes` over the session's rows in place of those that lie there.
    async fn change(&self, session: &mut PageSession, changes: &Changes) -> Result<()> {
        // To change the rows makes the cache forget, so that those that are the same must stay; likewise below.
        if *session.rows().overlay() != changes.overlay {
            session.rows_mut().set_overlay(changes.overlay.clone());
        }
        self.knock_out(session, changes.out.as_ref()).await
    }

    /// Knocks out `out` and nothing else.
    async fn knock_out(&self, session: &mut PageSession, out: Option<&Out>) -> Result<()> {
        if self.out.borrow().as_ref() != out {
            let knock_out = match out {
                Some(Out { instead, layers }) => {
                    let rows = session.rows().inner().inner();
                    Some(KnockOut::new(*instead, layers.as_deref(), &self.config, rows).await?)
                }
                None => None,
            };
            session.rows_mut().inner_mut().set(knock_out);
            self.out.replace(out.cloned());
        }
        Ok(())
    }

    async fn answer(
        &self,
        mut session: MutexGuard<'_, PageSession>,
        messages: &[Message],
        settings: &Settings,
        changes: Changes,
    ) -> Result<Answer> {
        let template = self.template()?;
        self.change(&mut session, &changes).await?;
        let seed = settings.seed.unwrap_or_else(|| (Math::random() * f64::from(u32::MAX)) as u64);
        let sampling = Sampling {
            temperature: settings.temperature,
            top_k: settings.top_k,
            top_p: settings.top_p,
            repetition_penalty: settings.repetition_penalty,
            max_tokens: settings.max_tokens,
            seed,
            ignore_eos: false,
        };
        let context = session.backend().capacity();
        let prompt = chat::prompt(&self.tokenizer, template, messages, context, sampling.max_tokens)?;
        self.look.begin(&prompt.tokens, changes);
        session.backend_mut().measure(self.look.watching.get());
        let mut listener = Listener {
            config: session.config().clone(),
            look: &self.look,
            tokenizer: &self.tokenizer,
            stream: self.tokenizer.stream(),
            text: String::new(),
            failure: None,
            control: &self.control,
        };
        let generation = session.generate(&prompt.tokens, &sampling, &mut listener).await?;
        self.look.end(&generation.tokens);
        Ok(Answer {
            text: listener.finish()?,
            finish: generation.finish,
            prompt_tokens: generation.prompt_tokens,
            reused_tokens: generation.reused_tokens,
            generated_tokens: generation.tokens.len(),
            tokens: generation.tokens,
            time_to_first_token_ms: generation.first_token_ms,
            tokens_per_second: generation.tokens_per_second,
            dropped_turns: prompt.dropped_turns,
            seed,
        })
    }

    pub(super) fn template(&self) -> Result<&Template> {
        let none = || Error::Template("this model brings none, so it can't chat".into());
        self.template.as_ref().ok_or_else(none)
    }

    /// The edits in the file `json`, for this model; none without a file.
    pub(super) fn overlay(&self, json: Option<&str>) -> Result<Overlay> {
        let Some(json) = json else { return Ok(Overlay::default()) };
        Edits::parse(json.as_bytes())?.overlay(&self.facts.model_hash, &self.config)
    }
}

/// Turns what the session says into events for the page.
struct Listener<'a> {
    config: Config,
    look: &'a Look,
    tokenizer: &'a Tokenizer,
    stream: TextStream<'a>,
    text: String,
    failure: Option<Error>,
    control: &'a Control,
}

impl Listener<'_> {
    fn finish(mut self) -> Result<String> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        self.text += &self.stream.finish()?;
        Ok(self.text)
    }
}

impl Observer for Listener<'_> {
    fn prefill(&mut self, done: usize, total: usize) {
        self.control.emit(&Event::Prefill { done, total });
    }

    fn stepped(&mut self, report: &StepReport<'_>) {
        self.look.tell(report, &self.config, self.tokenizer, self.control);
    }

    fn token(&mut self, id: u32, log_prob: f32) {
        match self.stream.push(id) {
            Ok(text) => {
                self.control.emit(&Event::Token { id, log_prob, text: &text });
                self.text += &text;
            }
            Err(error) => self.failure = Some(error),
        }
    }

    fn stopped(&self) -> bool {
        self.failure.is_some() || self.control.is_stopped()
    }

    async fn breathe(&mut self) {
        self.control.breathe().await;
    }
}

pub(super) fn from_js<T: DeserializeOwned>(what: &str, value: JsValue) -> Result<T> {
    serde_wasm_bindgen::from_value(value).map_err(|e| Error::invalid(what, e.to_string()))
}
