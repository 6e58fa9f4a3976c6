//! A bundle's files from a static host: whole or by one range, tried again where that may help.

use std::cell::Cell;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use futures::future::{Either, select};
use gloo_net::http::{Request, RequestBuilder, Response};
use gloo_timers::future::TimeoutFuture;
use js_sys::{Reflect, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{AbortController, ReadableStreamDefaultReader, RequestCache, Url};

use crate::bundle::FileRef;
use crate::bundle::manifest::MAX_MANIFEST_BYTES;
use crate::error::{Error, Result};
use crate::tables::Transport;

/// Times that a request is made before it has failed.
const ATTEMPTS: u32 = 4;
/// Milliseconds before the second attempt; twice as many before each further one.
const FIRST_PAUSE_MS: u32 = 400;
/// Milliseconds without a byte after which an attempt has failed.
const STALL_MS: u32 = 15_000;

/// The folder on a host that holds a bundle.
#[derive(Debug, Clone)]
pub struct Host {
    manifest_url: Rc<str>,
}

impl Host {
    /// The folder in which the file at `manifest_url` lies.
    pub fn new(manifest_url: &str) -> Self {
        Self { manifest_url: manifest_url.into() }
    }

    /// The manifest's bytes, as the host has them now.
    pub async fn manifest(&self) -> Result<Vec<u8>> {
        let url = &*self.manifest_url;
        let ask = || Request::get(url).cache(RequestCache::NoCache);
        let bytes = retry(url, async || {
            let response = send(ask()).await?;
            Body::of(&response)?.read(MAX_MANIFEST_BYTES, &|_| ()).await
        });
        Ok(bytes.await?.to_vec())
    }

    /// All of `file`, with its length checked. `received` hears of bytes as they come, and of those that came in vain
    /// as of a negative number.
    pub async fn whole(
        &self,
        file: &FileRef,
        cache: RequestCache,
        received: &impl Fn(i64),
    ) -> Result<Uint8Array> {
        let url = self.url(&file.file)?;
        let bytes = retry(&url, async || {
            let response = send(Request::get(&url).cache(cache)).await?;
            let came = Cell::new(0);
            let note = |bytes: i64| {
                came.set(came.get() + bytes);
                received(bytes);
            };
            let bytes = Body::of(&response)?.read(file.bytes, &note).await;
            let bytes = bytes.and_then(|bytes| complete(bytes, file.bytes));
            if bytes.is_err() {
                received(-came.get());
            }
            bytes
        });
        bytes.await
    }

    fn url(&self, file: &str) -> Result<String> {
        let url = Url::new_with_base(file, &self.manifest_url);
        url.map(|url| url.href()).map_err(|_| network(&self.manifest_url, "is not the address of a manifest"))
    }
}

impl Transport for Host {
    /// Browsers let only one request at a time fill a file's place in their cache, so ranges pass by it always.
    async fn range(&self, file: &FileRef, range: Range<u64>, _fresh: bool) -> Result<Option<Vec<u8>>> {
        let url = self.url(&file.file)?;
        let (first, last, len) = (range.start, range.end - 1, range.end - range.start);
        let ask = || Request::get(&url).cache(RequestCache::NoStore);
        let bytes = retry(&url, async || {
            let response = match send(ask().header("Range", &format!("bytes={first}-{last}"))).await {
                Err(Failure { status: Some(416), .. }) => return Ok(None),
                response => response?,
            };
            let body = Body::of(&response)?;
            // A host of another origin need not let the header be seen.
            let place = response.headers().get("Content-Range");
            let right = place.is_none_or(|p| p.starts_with(&format!("bytes {first}-{last}/")));
            if response.status() != 206 || !right {
                return Ok(None);
            }
            let bytes = body.read(len, &|_| ()).await?;
            complete(bytes, len).map(Some)
        });
        Ok(bytes.await?.map(|bytes| bytes.to_vec()))
    }

    async fn whole(&self, file: &FileRef, fresh: bool) -> Result<Vec<u8>> {
        let cache = if fresh { RequestCache::Reload } else { RequestCache::Default };
        Ok(self.whole(file, cache, &|_| ()).await?.to_vec())
    }
}

/// Why an attempt failed.
struct Failure {
    reason: String,
    status: Option<u16>,
    /// Whether another attempt may succeed.
    may_pass: bool,
}

impl Failure {
    fn passing(reason: String) -> Self {
        Self { reason, status: None, may_pass: true }
    }

    fn lasting(reason: String) -> Self {
        Self { reason, status: None, may_pass: false }
    }

    fn status(status: u16) -> Self {
        let (reason, may_pass) = match status {
            404 | 410 => ("not found; the address is wrong, or the host lacks a part of the bundle", false),
            408 | 425 | 429 | 500.. => ("the host cannot answer now; try again later", true),
            _ => ("the host refuses to give it", false),
        };
        Self { reason: format!("HTTP {status}: {reason}"), status: Some(status), may_pass }
    }
}

fn network(url: &str, reason: impl Into<String>) -> Error {
    Error::Network { url: url.into(), reason: reason.into() }
}

async fn retry<T>(url: &str, attempt: impl AsyncFn() -> Result<T, Failure>) -> Result<T> {
    let mut pause = FIRST_PAUSE_MS;
    for _ in 1..ATTEMPTS {
        match attempt().await {
            Err(failure) if failure.may_pass => TimeoutFuture::new(pause).await,
            done => return done.map_err(|failure| network(url, failure.reason)),
        }
        pause *= 2;
    }
    attempt().await.map_err(|failure| network(url, failure.reason))
}

/// A response that is no error.
async fn send(request: RequestBuilder) -> Result<Response, Failure> {
    let mut ending = Ending::new()?;
    let request = request.abort_signal(ending.0.as_ref().map(AbortController::signal).as_ref());
    // The browser tells the page no more than that it failed.
    let unreachable = |_| {
        Failure::passing(
            "the host does not answer, or does not let pages of other sites read it; check the connection"
                .into(),
        )
    };
    let response = in_time(request.send()).await?.map_err(unreachable)?;
    ending.0 = None; // from here on it is for the body to end
    if response.ok() { Ok(response) } else { Err(Failure::status(response.status())) }
}

/// A request without an answer yet. Dropped, it is ended, so that its connection is free for another.
struct Ending(Option<AbortController>);

impl Ending {
    fn new() -> Result<Self, Failure> {
        let lasting = |_| Failure::lasting("the browser cannot end requests".into());
        Ok(Self(Some(AbortController::new().map_err(lasting)?)))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(request) = &self.0 {
            request.abort();
        }
    }
}

/// What `work` gives, unless it stalls.
async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    match select(pin!(work), TimeoutFuture::new(STALL_MS)).await {
        Either::Left((done, _)) => Ok(done),
        Either::Right(_) => {
            let seconds = STALL_MS / 1000;
            Err(Failure::passing(format!(
                "nothing came for {seconds} seconds; check the connection, and try again"
            )))
        }
    }
}

fn complete(bytes: Uint8Array, expected: u64) -> Result<Uint8Array, Failure> {
    match u64::from(bytes.length()) {
        len if len == expected => Ok(bytes),
        len => Err(Failure::passing(format!("broke off after {len} of {expected} bytes; try again"))),
    }
}

/// A response's body. Dropped, it ends the transfer.
struct Body(ReadableStreamDefaultReader);

impl Body {
    fn of(response: &Response) -> Result<Self, Failure> {
        let body = response.body().ok_or_else(|| Failure::passing("the answer is empty".into()))?;
        let reader = body.get_reader().dyn_into();
        reader.map(Self).map_err(|_| Failure::lasting("the browser gives no reader for it".into()))
    }

    /// What comes, into JavaScript's memory: at most `limit` bytes.
    async fn read(self, limit: u64, received: &impl Fn(i64)) -> Result<Uint8Array, Failure> {
        let all = Uint8Array::new_with_length(limit as u32);
        let mut len = 0;
        loop {
            let piece = in_time(JsFuture::from(self.0.read())).await?;
            let piece =
                piece.map_err(|_| Failure::passing(format!("broke off after {len} bytes; try again")))?;
            let value = Reflect::get(&piece, &JsValue::from_str("value")).ok();
            let Some(piece) = value.and_then(|value| value.dyn_into::<Uint8Array>().ok()) else {
                return Ok(all.subarray(0, len));
            };
            if u64::from(len) + u64::from(piece.length()) > limit {
                return Err(Failure::lasting(format!(
                    "is longer than {limit} bytes; it is not the file expected"
                )));
            }
            all.set(&piece, len);
            len += piece.length();
            received(i64::from(piece.length()));
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let end = JsFuture::from(self.0.cancel());
        spawn_local(async {
            // It fails where the transfer had failed already.
            let _ = end.await;
        });
    }
}
