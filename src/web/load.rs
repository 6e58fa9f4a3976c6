//! From the address of a manifest to a model that can answer.

use std::cell::Cell;
use std::rc::Rc;

use futures::stream::{self, TryStreamExt};
use futures::try_join;
#[cfg(feature = "threads")]
use gloo_timers::future::TimeoutFuture;
use js_sys::Function;
use serde::{Deserialize, Serialize};
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::spawn_local;
use web_sys::RequestCache;

use super::archive::{Archive, EngramPages};
use super::control::to_js;
use super::http::Host;
use crate::backend::{Backend, MAX_STEP_TOKENS, Penalty, Step, Want, write_core};
use crate::bundle::{FileRef, Manifest};
use crate::config::Config;
#[cfg(feature = "threads")]
use crate::cpu::team;
use crate::cpu::{CpuBackend, KvType};
use crate::device::Device;
use crate::engram::Hasher;
use crate::error::{Error, Result};
use crate::gpu::{self, GpuBackend, GpuOptions};
use crate::tables::lookup::DEFAULT_BUDGET;
use crate::tables::{Store, Tables};
use crate::text::{Template, Tokenizer};

/// Shards that come at a time; each is held whole until its hash is known.
const SHARDS_AT_ONCE: usize = 3;
/// What the KV cache may take at its longest: 4,096 positions of a model like SmolLM2-135M in single precision.
const CACHE_BYTES: usize = 180 << 20;
/// So many bytes of a table's beginning, where the frequent tokens are, come without being asked for, but at most
/// one part in [`HOT_SHARE`] of it.
const HOT_BYTES: u64 = 8 << 20;
const HOT_SHARE: u64 = 64;
/// So many bytes at a time: other requests find a connection free.
const HOT_AT_ONCE: u64 = 256 << 10;
/// An Engram table of at most so many bytes comes whole, beside the core: hashes scatter its rows, so that an answer or two
/// would ask for most of it, in hundreds of requests, and the first one would wait for them.
const SMALL_TABLE: u64 = 8 << 20;
const SMALL_AT_ONCE: u64 = 1 << 20;
/// So often it is looked whether another thread has built the tokenizer, and after so many looks this one does it, if none has begun.
#[cfg(feature = "threads")]
const LOOK_EVERY_MS: u32 = 4;
#[cfg(feature = "threads")]
const LATE_LOOKS: u32 = 250;

/// What the page wants to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// A GPU if there is a real one that works, the CPU if not.
    Auto,
    /// WebGPU, be it in software.
    Gpu,
    /// WebAssembly.
    Cpu,
}

/// What a loaded model consists of.
#[derive(Debug)]
pub struct Model {
    pub manifest: Manifest,
    pub tokenizer: Tokenizer,
    pub template: Option<Template>,
    pub device: Device,
    pub tables: Option<Rc<Tables<Host, Archive>>>,
    pub engram: Option<(Hasher, Rc<Tables<Host, EngramPages>>)>,
    /// Why the CPU computes although a GPU was wanted.
    pub notice: Option<String>,
}

/// How far loading has come, told to a listener.
#[derive(Debug)]
pub struct Progress {
    listener: Option<Function>,
    stage: Cell<&'static str>,
    loaded: Cell<i64>,
    total: Cell<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    stage: &'static str,
    loaded_bytes: i64,
    total_bytes: u64,
}

impl Progress {
    /// For a listener, or for nobody.
    pub fn new(listener: Option<Function>) -> Self {
        Self { listener, stage: Cell::new("manifest"), loaded: Cell::new(0), total: Cell::new(0) }
    }

    fn stage(&self, stage: &'static str) {
        self.stage.set(stage);
        self.tell();
    }

    fn received(&self, bytes: i64) {
        self.loaded.set(self.loaded.get() + bytes);
        self.tell();
    }

    fn tell(&self) {
        let Some(listener) = &self.listener else { return };
        let (loaded_bytes, total_bytes) = (self.loaded.get(), self.total.get());
        if let Ok(report) = to_js(&Report { stage: self.stage.get(), loaded_bytes, total_bytes }) {
            // A listener that throws is no reason to end the loading.
            let _ = listener.call1(&JsValue::UNDEFINED, &report);
        }
    }
}

/// Where files come from: the device if it kept them, the host if not.
struct Source<'a> {
    host: Host,
    archive: Archive,
    progress: &'a Progress,
    /// What it told `progress` of.
    counted: Cell<i64>,
}

/// What a model has beside its weights.
struct Small {
    tokenizer: Tokenizer,
    template: Option<Template>,
    tables: Option<Rc<Tables<Host, Archive>>>,
    engram: Option<(Hasher, Rc<Tables<Host, EngramPages>>)>,
}

/// Loads the bundle whose manifest is at `manifest_url`.
pub async fn load(
    manifest_url: &str,
    choice: Choice,
    archive: Archive,
    progress: &Progress,
) -> Result<Model> {
    progress.stage("manifest");
    let source = Source::new(manifest_url, archive, progress);
    let bytes = match source.host.manifest().await {
        // Without the network, the model of the last visit.
        Err(error @ Error::Network { .. }) => {
            source.archive.last_manifest(manifest_url).await.ok_or(error)?
        }
        bytes => bytes?,
    };
    let manifest = Manifest::parse(&bytes)?;
    source.archive.open(manifest_url, &bytes, &manifest).await;
    let small_bytes: u64 = small_files(&manifest).iter().flatten().map(|f| f.bytes).sum();
    progress.total.set(small_bytes + manifest.core_bytes());

    // To build the tokenizer takes a while, in which the core's first shards are on their way.
    let core = Source::new(manifest_url, source.archive.clone(), progress);
    let ((device, notice), small) = try_join!(device(&core, &manifest, choice), small(&source, &manifest))?;
    progress.stage("ready");
    let Small { tokenizer, template, tables, engram } = small;
    Ok(Model { manifest, tokenizer, template, device, tables, engram, notice })
}

/// The tokenizer, the chat template, the tables' indices, and the compressed ids.
fn small_files(manifest: &Manifest) -> [Option<&FileRef>; 5] {
    [
        Some(&manifest.tokenizer),
        manifest.chat_template.as_ref(),
        manifest.stem_table().map(|t| &t.index),
        manifest.engram_table().map(|t| &t.index),
        manifest.engram_ids.as_ref(),
    ]
}

async fn small(source: &Source<'_>, manifest: &Manifest) -> Result<Small> {
    let config = &manifest.config;
    let optional = async |file: Option<&FileRef>| match file {
        Some(file) => source.fetch(file).await.map(Some),
        None => Ok(None),
    };
    let [_, template, index, engram_index, ids] = small_files(manifest);
    let (tokenizer, template, index, engram_index, ids) = try_join!(
        source.fetch(&manifest.tokenizer),
        optional(template),
        optional(index),
        optional(engram_index),
        optional(ids)
    )?;
    let tokenizer = build_tokenizer(tokenizer, config.bos_token).await?;
    let template = template.map(|source| {
        let source = String::from_utf8(source).map_err(|_| Error::Template("is not UTF-8".into()))?;
        Template::for_model(&source, &tokenizer, config)
    });
    let tables = manifest.stem_table().zip(index).map(|(table, index)| {
        let (host, archive) = (source.host.clone(), source.archive.clone());
        Tables::new(table, &index, host, archive, DEFAULT_BUDGET)
    });
    let hasher = manifest.hasher(&ids.unwrap_or_default())?;
    let engram = match (hasher, manifest.engram_table(), engram_index) {
        (Some(hasher), Some(table), Some(index)) => {
            let pages = EngramPages::new(source.archive.clone(), manifest);
            let tables = Rc::new(Tables::new(table, &index, source.host.clone(), pages, DEFAULT_BUDGET)?);
            if table.bytes() <= SMALL_TABLE {
                spawn_local(warm_first(tables.clone(), table.bytes(), SMALL_AT_ONCE));
            }
            Some((hasher, tables))
        }
        _ => None,
    };
    let tables = tables.transpose()?.map(Rc::new);
    Ok(Small { tokenizer, template: template.transpose()?, tables, engram })
}

/// The tokenizer, whose tables take a while to build: on another thread where there is one, while this one reads the core.
#[cfg(feature = "threads")]
async fn build_tokenizer(json: Vec<u8>, bos: Option<u32>) -> Result<Tokenizer> {
    let building = team::aside(move || Tokenizer::new(&json, bos));
    let mut looks = 0;
    loop {
        if let Some(built) = building.take() {
            return built;
        }
        looks += 1;
        // Threads that haven't come by now may never come.
        if looks == LATE_LOOKS {
            building.hurry();
        } else {
            TimeoutFuture::new(LOOK_EVERY_MS).await;
        }
    }
}

#[cfg(not(feature = "threads"))]
async fn build_tokenizer(json: Vec<u8>, bos: Option<u32>) -> Result<Tokenizer> {
    Tokenizer::new(&json, bos)
}

/// The device with the core, and why it is not the GPU that was wanted.
async fn device(
    source: &Source<'_>,
    manifest: &Manifest,
    choice: Choice,
) -> Result<(Device, Option<String>)> {
    match choice {
        Choice::Cpu => Ok((cpu(source, manifest).await?, None)),
        Choice::Gpu => Ok((gpu(source, manifest, false).await?, None)),
        Choice::Auto => match gpu(source, manifest, true).await {
            Ok(device) => Ok((device, None)),
            Err(Error::Gpu(reason)) => {
                source.received(-source.counted.get());
                Ok((cpu(source, manifest).await?, Some(reason)))
            }
            Err(error) => Err(error),
        },
    }
}

/// The core once more, on the CPU: what shows the layers of a model that runs on the GPU.
pub async fn on_cpu(manifest_url: &str, archive: Archive, manifest: &Manifest) -> Result<Device> {
    cpu(&Source::new(manifest_url, archive, &Progress::new(None)), manifest).await
}

/// Brings the beginning of the STEM table into memory, beside other work.
pub fn warm(tables: &Rc<Tables<Host, Archive>>) {
    let bytes = HOT_BYTES.min(tables.layout().table().bytes() / HOT_SHARE);
    spawn_local(warm_first(tables.clone(), bytes, HOT_AT_ONCE));
}

/// Brings so many bytes of a table's beginning into memory.
async fn warm_first<S: Store>(tables: Rc<Tables<Host, S>>, bytes: u64, at_once: u64) {
    let table = tables.layout().table();
    let page = (table.bytes() / table.pages() as u64).max(1);
    let pages: Vec<u32> = (0..(bytes / page).min(table.pages() as u64) as u32).collect();
    for pages in pages.chunks((at_once / page).max(1) as usize) {
        // A lookup that needs these pages tells of the failure.
        if tables.warm_pages(pages).await.is_err() {
            return;
        }
    }
}

async fn cpu(source: &Source<'_>, manifest: &Manifest) -> Result<Device> {
    let kind = KvType::default();
    let room = capacity(&manifest.config, kind.position_bytes(&manifest.config));
    let mut backend = CpuBackend::new(&manifest.core.tensors, &manifest.config, room);
    backend.set_kv_type(kind);
    let device = Device::Cpu(Box::new(backend));
    let mut device = core(source, manifest, async { Ok(device) }).await?;
    first_steps(&mut device, &manifest.config, source.progress).await?;
    Ok(device)
}

async fn gpu(source: &Source<'_>, manifest: &Manifest, hardware_only: bool) -> Result<Device> {
    source.progress.stage("compile");
    let config = &manifest.config;
    let position = gpu::KvType::default().bytes(2 * config.n_layers * config.kv_dim());
    let options = GpuOptions { hardware_only, ..GpuOptions::new(capacity(config, position)) };
    let opened = GpuBackend::open(&manifest.core.tensors, config, options).await?;
    let on = opened.device();
    let loaded = async {
        let build = async { Ok(Device::Gpu(Box::new(opened.build().await?))) };
        let mut device = core(source, manifest, build).await?;
        first_steps(&mut device, config, source.progress).await?;
        Ok(device)
    };
    // The CPU may be tried next, and on many devices its memory is the GPU's.
    loaded.await.inspect_err(|_| on.destroy())
}

/// Runs what answers will run: the browser translates a kernel well, a driver finishes its work, and memory turns out
/// not to be there, only once it is used.
async fn first_steps(device: &mut Device, config: &Config, progress: &Progress) -> Result<()> {
    progress.stage("compile");
    let mut position = 0;
    for tokens in [&[0; 5][..], &[0]] {
        let rows = vec![0.0; tokens.len() * config.row_width()];
        let want = Want::Candidates(Penalty::default());
        device.forward(Step { tokens, position, rows: &rows, want }).await?;
        position += tokens.len();
    }
    Ok(())
}

/// Positions for which there is room, where keys and values of one take `position` bytes.
fn capacity(config: &Config, position: usize) -> usize {
    let engram = config.engram.as_ref().map_or(0, |engram| engram.layers.len() * config.hidden_size);
    let position = position + engram * size_of::<f32>();
    (CACHE_BYTES / position).max(MAX_STEP_TOKENS).min(config.context_length)
}

/// The device that `build` gives, with the core written to it shard by shard: besides it, only the shards under way are
/// held. The first ones come while it is built.
async fn core(
    source: &Source<'_>,
    manifest: &Manifest,
    build: impl Future<Output = Result<Device>>,
) -> Result<Device> {
    source.progress.stage("core");
    let shards = manifest.core.shards.iter().scan(0, |end, shard| {
        let start = *end;
        *end += shard.bytes;
        Some(Ok((start, shard)))
    });
    // Several shards come side by side, one at a time is written, none before there is a device.
    let device = futures::lock::Mutex::new(None);
    let mut built = device.lock().await;
    let build = async move {
        *built = Some(build.await?);
        Ok(())
    };
    let write = stream::iter(shards).try_for_each_concurrent(SHARDS_AT_ONCE, async |(start, shard)| {
        let bytes = source.fetch(shard).await?;
        match &mut *device.lock().await {
            Some(device) => write_core(device, &manifest.core.tensors, start, &bytes),
            None => Err(no_device()),
        }
    });
    try_join!(build, write)?;
    device.into_inner().ok_or_else(no_device)
}

fn no_device() -> Error {
    Error::Gpu("the device was not built".into())
}

impl<'a> Source<'a> {
    fn new(manifest_url: &str, archive: Archive, progress: &'a Progress) -> Self {
        Self { host: Host::new(manifest_url), archive, progress, counted: Cell::new(0) }
    }

    fn received(&self, bytes: i64) {
        self.counted.set(self.counted.get() + bytes);
        self.progress.received(bytes);
    }

    /// A whole file with the right hash.
    async fn fetch(&self, file: &FileRef) -> Result<Vec<u8>> {
        let received = |bytes| self.received(bytes);
        if let Some(bytes) = self.archive.get(file).await {
            received(bytes.len() as i64);
            return Ok(bytes);
        }
        let mut bytes = self.host.whole(file, RequestCache::Default, &received).await?.to_vec();
        if file.verify(&bytes).is_err() {
            // The browser may have kept an older bundle's file of this name.
            received(-(file.bytes as i64));
            drop(bytes);
            bytes = self.host.whole(file, RequestCache::Reload, &received).await?.to_vec();
            file.verify(&bytes)?;
        }
        self.archive.keep(file, &bytes);
        Ok(bytes)
    }
}
