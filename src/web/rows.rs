//! Table lookups of an answer: the page hears of long ones, and a stop ends them.

use std::future::pending;
use std::pin::pin;
use std::rc::Rc;

use futures::future::{Either, select};
use gloo_timers::future::TimeoutFuture;
use wasm_bindgen_futures::spawn_local;

use super::archive::{Archive, EngramPages};
use super::control::{Control, Event};
use super::http::Host;
use crate::device::Device;
use crate::edits::{Edited, Knocked};
use crate::engram::WithEngram;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::tables::{Origin, RowSource, Store, Tables};

/// A lookup is worth a word from so many milliseconds on.
const LONG_MS: u32 = 300;

/// All rows of a model.
type ModelRows = WithEngram<Rows, Rows<EngramPages>>;

/// What runs: rows that may be knocked out, and edits over them.
pub type PageSession = Session<Device, Edited<Knocked<ModelRows>>>;

/// The rows of one of the model's tables, if it has that one.
#[derive(Debug)]
pub struct Rows<S = Archive> {
    pub tables: Option<Rc<Tables<Host, S>>>,
    pub control: Rc<Control>,
}

impl<S: Store + 'static> RowSource for Rows<S> {
    async fn gather_traced(
        &self,
        before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        origins: &mut Vec<Origin>,
    ) -> Result<()> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let gather = pin!(tables.gather_traced(before, tokens, out, origins));
        let watch = pin!(async {
            TimeoutFuture::new(LONG_MS).await;
            self.control.emit(&Event::Wait { reason: "Waiting for rows of the table" });
            pending::<()>().await
        });
        let stopped = pin!(self.control.stopped());
        match select(gather, select(watch, stopped)).await {
            Either::Left((gathered, _)) => gathered,
            Either::Right(_) => Err(Error::Stopped),
        }
    }

    fn prefetch(&self, tokens: &[u32]) {
        let Some(tables) = self.tables.clone() else { return };
        let (tokens, stop) = (tokens.to_vec(), self.control.next_stop());
        spawn_local(async move {
            // The lookup itself tells of a failure.
            select(pin!(tables.warm(&tokens)), stop).await;
        });
    }
}
