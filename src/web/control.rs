//! The line to the page while an answer is written: events out, a stop in, and turns for the event loop.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::Poll;

use futures::channel::oneshot;
use futures::task::AtomicWaker;
use js_sys::{Function, Promise};
use serde::Serialize;
use wasm_bindgen::{JsError, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{MessageChannel, MessagePort};

use super::look::Seen;

/// What the page hears.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event<'a> {
    /// So many tokens of the prompt have been read.
    Prefill { done: usize, total: usize },
    /// A token, and the text that became complete with it.
    Token { id: u32, log_prob: f32, text: &'a str },
    /// A step has been run: how the rows of its tokens were found, and what that and the layers took.
    Step { position: usize, tokens: Vec<Seen>, rows_ms: f64, forward_ms: f64 },
    /// Nothing moves, for this reason.
    Wait { reason: &'a str },
}

/// Shared by the engine and the one answer that may be under way.
#[derive(Debug)]
pub struct Control {
    stopped: Cell<bool>,
    waiting: AtomicWaker,
    /// Of work beside the answer; they are dropped at the next stop.
    beside: RefCell<Vec<oneshot::Sender<()>>>,
    listener: RefCell<Option<Function>>,
    turn: Turn,
}

impl Control {
    pub fn new() -> Result<Self, JsError> {
        Ok(Self {
            stopped: Cell::new(false),
            waiting: AtomicWaker::new(),
            beside: RefCell::default(),
            listener: RefCell::new(None),
            turn: Turn::new()?,
        })
    }

    /// Lets events go to `listener`.
    pub fn listen(&self, listener: Function) {
        self.listener.replace(Some(listener));
    }

    /// Forgets that an answer was to end.
    pub fn resume(&self) {
        self.stopped.set(false);
    }

    pub fn end(&self) {
        self.listener.replace(None);
    }

    pub fn stop(&self) {
        self.stopped.set(true);
        self.waiting.wake();
        self.beside.take();
    }

    /// Ends at the next stop: for work beside the answer, of which there may be several.
    pub fn next_stop(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut beside = self.beside.borrow_mut();
        beside.retain(|work| !work.is_canceled());
        beside.push(sender);
        receiver
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Ends when the answer is to end.
    pub async fn stopped(&self) {
        poll_fn(|context| {
            self.waiting.register(context.waker());
            if self.is_stopped() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    pub fn emit(&self, event: &impl Serialize) {
        let listener = self.listener.borrow().clone();
        if let (Some(listener), Ok(event)) = (listener, to_js(event)) {
            // A listener that throws is no reason to end the answer.
            let _ = listener.call1(&JsValue::UNDEFINED, &event);
        }
    }

    /// Lets the event loop attend to what has come in meanwhile.
    pub async fn breathe(&self) {
        self.turn.take().await;
    }
}

/// A value as JavaScript would write it: `null` for `None`, plain objects.
pub fn to_js(value: &impl Serialize) -> Result<JsValue, serde_wasm_bindgen::Error> {
    let form = serde_wasm_bindgen::Serializer::new();
    value.serialize(&form.serialize_missing_as_null(true).serialize_maps_as_objects(true))
}

/// A message to itself comes behind those already queued; timers would be throttled to 4 ms.
#[derive(Debug)]
struct Turn {
    sender: MessagePort,
    receiver: MessagePort,
}

impl Turn {
    fn new() -> Result<Self, JsError> {
        let channel = MessageChannel::new().map_err(|_| JsError::new("the browser has no MessageChannel"))?;
        Ok(Self { sender: channel.port1(), receiver: channel.port2() })
    }

    async fn take(&self) {
        let promise = Promise::new(&mut |resolve, _| {
            self.receiver.set_onmessage(Some(&resolve));
            if self.sender.post_message(&JsValue::NULL).is_err() {
                // No message will come, so there is nothing to wait for.
                let _ = resolve.call0(&JsValue::UNDEFINED);
            }
        });
        // The promise is never rejected.
        let _ = JsFuture::from(promise).await;
    }
}
