//! What the browser keeps from one visit to the next: whole files, and pages of the table.
//!
//! The database is the page's (`www/src/archive.ts`); what it gives is checked here like what the network gives.

use js_sys::{Array, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::bundle::{FileRef, Manifest};
use crate::tables::Store;

#[wasm_bindgen]
extern "C" {
    /// `Archive` of `www/src/protocol.ts`. None of its promises is rejected: where it fails, it keeps nothing.
    #[derive(Debug, Clone)]
    pub type Archive;

    #[wasm_bindgen(method)]
    async fn manifest(this: &Archive, url: &str) -> JsValue;

    #[wasm_bindgen(method)]
    async fn begin(this: &Archive, url: &str, manifest: Uint8Array, files: Array, table: &str);

    #[wasm_bindgen(method)]
    async fn file(this: &Archive, hash: &str) -> JsValue;

    #[wasm_bindgen(method, js_name = keepFile)]
    fn keep_file(this: &Archive, hash: &str, bytes: Uint8Array);

    #[wasm_bindgen(method)]
    async fn pages(this: &Archive, numbers: Vec<u32>) -> JsValue;

    #[wasm_bindgen(method, js_name = keepPage)]
    fn keep_page(this: &Archive, page: u32, bytes: Uint8Array);

    #[wasm_bindgen(method, js_name = forgetPage)]
    fn forget_page(this: &Archive, page: u32);
}

impl Archive {
    /// The manifest that was last seen at `url`, if it is kept.
    pub async fn last_manifest(&self, url: &str) -> Option<Vec<u8>> {
        bytes(self.manifest(url).await)
    }

    /// Says which bundle is in use; what belongs to an older one at the same address is removed.
    pub async fn open(&self, url: &str, bytes: &[u8], manifest: &Manifest) {
        let small = [Some(&manifest.tokenizer), manifest.chat_template.as_ref()];
        let small = small.into_iter().chain([manifest.engram_ids.as_ref()]).flatten();
        let tables = manifest.tables.iter().map(|table| &table.index);
        let files = small.chain(tables).chain(&manifest.core.shards);
        let files = files.map(|file| JsValue::from_str(&file.blake3)).collect();
        self.begin(url, bytes.into(), files, &pages_key(manifest)).await;
    }

    /// `file`, if it is kept and whole.
    pub async fn get(&self, file: &FileRef) -> Option<Vec<u8>> {
        bytes(self.file(&file.blake3).await).filter(|bytes| file.verify(bytes).is_ok())
    }

    /// Keeps `file`, whose hash has been checked.
    pub fn keep(&self, file: &FileRef, bytes: &[u8]) {
        self.keep_file(&file.blake3, bytes.into());
    }
}

impl Store for Archive {
    async fn load(&self, pages: &[u32]) -> Vec<(u32, Vec<u8>)> {
        let found: Array = self.pages(pages.to_vec()).await.dyn_into().unwrap_or_default();
        let found = pages.iter().zip(found.iter());
        found.filter_map(|(page, value)| Some((*page, bytes(value)?))).collect()
    }

    fn save(&self, page: u32, bytes: &[u8]) {
        self.keep_page(page, bytes.into());
    }

    fn forget(&self, page: u32) {
        self.forget_page(page);
    }
}

/// The pages of the Engram table, numbered behind those of the STEM table.
#[derive(Debug, Clone)]
pub struct EngramPages {
    archive: Archive,
    first: u32,
}

impl EngramPages {
    pub fn new(archive: Archive, manifest: &Manifest) -> Self {
        Self { archive, first: manifest.stem_table().map_or(0, |table| table.pages()) as u32 }
    }
}

impl Store for EngramPages {
    async fn load(&self, pages: &[u32]) -> Vec<(u32, Vec<u8>)> {
        let numbers: Vec<u32> = pages.iter().map(|page| page + self.first).collect();
        let found = self.archive.load(&numbers).await;
        found.into_iter().map(|(page, bytes)| (page - self.first, bytes)).collect()
    }

    fn save(&self, page: u32, bytes: &[u8]) {
        self.archive.save(page + self.first, bytes);
    }

    fn forget(&self, page: u32) {
        self.archive.forget(page + self.first);
    }
}

/// What tells the pages of one bundle's tables from those of another's: the index of its table, or of both.
fn pages_key(manifest: &Manifest) -> String {
    let tables = [manifest.stem_table(), manifest.engram_table()];
    let hashes: Vec<&str> = tables.into_iter().flatten().map(|table| table.index.blake3.as_str()).collect();
    match hashes[..] {
        [one] => one.to_owned(),
        [] => String::new(),
        _ => blake3::hash(hashes.concat().as_bytes()).to_hex().to_string(),
    }
}

fn bytes(value: JsValue) -> Option<Vec<u8>> {
    value.dyn_into::<Uint8Array>().ok().map(|bytes| bytes.to_vec())
}
