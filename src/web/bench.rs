//! The engine's measurement of itself; `www/src/bench/protocol.ts` describes its values.

use js_sys::Function;
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

use super::control::{Control, Event, to_js};
use super::engine::{Engine, from_js};
use crate::bench::speed::{Speed, Task, speed, tokens};
use crate::device::Device;
use crate::gpu::limits::{Limits, Work};
use crate::session::Observer;

/// What is read unless another prompt is given.
const PROMPT: &str = include_str!("../bench/prompt.txt");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    /// Taken as it is; the built-in one unless given.
    prompt: Option<String>,
    /// Read so many tokens, the text over and over; the text once unless given.
    prompt_tokens: Option<usize>,
    new_tokens: usize,
    runs: usize,
    /// Runs whose operations are timed one by one.
    timed_runs: usize,
}

/// Named as in the JSON of `xylem bench speed`.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    speed: Speed,
    gpu: Option<Gpu>,
}

#[derive(Serialize)]
struct Gpu {
    #[serde(flatten)]
    work: Work,
    #[serde(flatten)]
    limits: Limits,
}

/// Tells of tokens, and hears a stop.
struct Listener<'a>(&'a Control);

impl Observer for Listener<'_> {
    fn token(&mut self, id: u32, log_prob: f32) {
        self.0.emit(&Event::Token { id, log_prob, text: "" });
    }

    fn stopped(&self) -> bool {
        self.0.is_stopped()
    }

    async fn breathe(&mut self) {
        self.0.breathe().await;
    }
}

#[wasm_bindgen]
impl Engine {
    /// Reads a prompt and writes, again and again; `on_event` hears of every token. A GPU is measured too.
    ///
    /// # Errors
    /// Options that can't be used, a stop, rows that can't be had, a GPU that fails; in words for the reader.
    pub async fn bench(&self, options: JsValue, on_event: Function) -> Result<JsValue, JsError> {
        let Options { prompt, prompt_tokens, new_tokens, runs, timed_runs } =
            from_js("the options", options)?;
        let text = self.tokenizer.encode(prompt.as_deref().unwrap_or(PROMPT).trim_end())?;
        let prompt = tokens(&text, prompt_tokens.unwrap_or(text.len()));
        let mut session = self.take_whole("the measurement").await?;
        self.control.listen(on_event);
        let task = Task { prompt: &prompt, new_tokens, runs, timed_runs };
        let speed = speed(&mut session, task, &mut Listener(&self.control)).await;
        self.control.end();
        let gpu = match session.backend() {
            Device::Cpu(_) => None,
            Device::Gpu(backend) => Some(Gpu { work: backend.work(), limits: backend.limits().await? }),
        };
        Ok(to_js(&Report { speed: speed?, gpu })?)
    }
}
