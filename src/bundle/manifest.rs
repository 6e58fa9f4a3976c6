//! `manifest.json`: what a bundle holds, with every size and hash, so that nothing else need be believed.
//!
//! # Layout of a bundle, version 1
//!
//! All numbers are little-endian. Hashes are BLAKE3, in lower-case hex; page hashes are its first 16 bytes.
//!
//! - **Core**: the dense weights. The `core.shards` laid end to end are one stream; tensor `t` begins at byte
//!   `t.offset` of it (a multiple of 4) and holds its planes as [`quant`](super::quant) says. Tensors may
//!   cross shards. Shape `[out, in]`, row-major. Names, with `N` from 0:
//!   `token_embd` \[vocab, hidden], `blk.N.attn_norm` \[hidden], `blk.N.attn_qkv` \[q + k + v, hidden],
//!   `blk.N.attn_output` \[hidden, q], `blk.N.ffn_norm` \[hidden], `blk.N.ffn_gate` \[ffn, hidden],
//!   `blk.N.ffn_up` \[ffn, hidden] (dense layers only), `blk.N.ffn_down` \[hidden, ffn], `output_norm`
//!   \[hidden], `output` \[vocab, hidden] (unless the head is tied). Engram layers have, before `attn_norm`,
//!   `blk.N.engram_key` and `blk.N.engram_value` \[hidden, heads * width of a head], the gains
//!   `blk.N.engram_query_norm`, `blk.N.engram_key_norm`, `blk.N.engram_conv_norm` \[hidden], and
//!   `blk.N.engram_conv` \[taps * hidden], tap by tap, of which the last one belongs to the position itself.
//! - **Tables**: equal records, laid end to end in slots. A record holds `rows_per_record` rows of `width`
//!   values, each row stored as [`quant::row_bytes`](super::quant::row_bytes) says; a STEM table has one record
//!   a token, with the rows of all STEM layers in ascending order; an Engram table has one record for each entry of
//!   each head, by layer, order and head as the config has their primes. Shard `i` holds the slots from
//!   `i * records_per_shard` on, so that no record crosses shards. Hot tokens have low slots.
//! - **Table index**: `slot_of` (`records` × u32, a permutation: record → slot), then one 16-byte hash for each
//!   page of `records_per_page` consecutive slots (the last page may be short; `records_per_shard` is a
//!   multiple, so that no page crosses shards).
//! - **Compressed ids** (with Engram layers): of each token its compressed id, u32.
//! - **Tokenizer** (`tokenizer.json` of the tokenizers library) and **chat template** (Jinja).

use serde::{Deserialize, Serialize};

use super::quant::{Dtype, row_bytes};
use crate::config::Config;
use crate::engram::Hasher;
use crate::error::{Error, Result};

/// The version of the layout that this crate writes and reads.
pub const VERSION: u32 = 1;
/// No file of a bundle is larger, so that every static host takes it.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// Bytes of a page's hash.
pub const PAGE_HASH_BYTES: usize = 16;
/// A manifest larger than this is not read.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
const FORMAT: &str = "xylem-bundle";

/// A file of the bundle, beside the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileRef {
    /// Plain file name, no folders.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3 hash in hex.
    pub blake3: String,
}

impl FileRef {
    /// A reference to `bytes` under the name `file`.
    pub fn of(file: impl Into<String>, bytes: &[u8]) -> Self {
        Self {
            file: file.into(),
            bytes: bytes.len() as u64,
            blake3: blake3::hash(bytes).to_hex().to_string(),
        }
    }

    /// Checks that `bytes` are this file.
    ///
    /// # Errors
    /// [`Error::Bundle`] if the length or the hash differs.
    pub fn verify(&self, bytes: &[u8]) -> Result<()> {
        let wrong = |found: String, expected: &dyn std::fmt::Display| {
            let advice = "if the model was updated on its host, load it again";
            Err(Error::bundle(&self.file, format!("{found}, the manifest says {expected}; {advice}")))
        };
        if bytes.len() as u64 != self.bytes {
            return wrong(format!("{} bytes", bytes.len()), &self.bytes);
        }
        let found = blake3::hash(bytes).to_hex();
        if found.as_str() != self.blake3 {
            return wrong(format!("hash {found}"), &self.blake3);
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let plain = !self.file.is_empty()
            && !self.file.starts_with('.')
            && self.file.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain {
            return Err(Error::bundle("manifest.json", format!("`{}` is no plain file name", self.file)));
        }
        if self.bytes > MAX_FILE_BYTES {
            return Err(Error::bundle(&self.file, format!("{} bytes, at most {MAX_FILE_BYTES}", self.bytes)));
        }
        Ok(())
    }
}

/// A tensor of the core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name, see the module's documentation.
    pub name: String,
    /// How its weights are stored.
    pub dtype: Dtype,
    /// `[out, in]`, or `[n]` for a vector.
    pub shape: Vec<usize>,
    /// Where it begins in the core's stream.
    pub offset: u64,
}

impl Tensor {
    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of all its planes.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.elements())
    }
}

/// The dense weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Core {
    /// The files that, laid end to end, are the stream.
    pub shards: Vec<FileRef>,
    /// What the stream holds.
    pub tensors: Vec<Tensor>,
}

/// What the rows of a table are for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum TableKind {
    /// One record a token: its rows in all STEM layers.
    Stem,
    /// One record for each entry of each head of all Engram layers.
    Engram,
}

/// A table of rows that stays outside the GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Its name, unique in the bundle, for instance `stem`.
    pub name: String,
    /// What its rows are for.
    #[serde(flatten)]
    pub kind: TableKind,
    /// Number of records.
    pub records: usize,
    /// Rows in a record.
    pub rows_per_record: usize,
    /// Values in a row.
    pub width: usize,
    /// Slots that share a hash.
    pub records_per_page: usize,
    /// Slots in every shard but the last.
    pub records_per_shard: usize,
    /// The files that hold the slots in order.
    pub shards: Vec<FileRef>,
    /// `slot_of` and the page hashes.
    pub index: FileRef,
}

impl Table {
    /// Bytes of a record.
    pub fn record_bytes(&self) -> usize {
        self.rows_per_record * row_bytes(self.width)
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.records.div_ceil(self.records_per_page)
    }

    /// Bytes of all records.
    pub fn bytes(&self) -> u64 {
        self.records as u64 * self.record_bytes() as u64
    }

    fn check(&self) -> Result<()> {
        let fail =
            |reason: String| Err(Error::bundle("manifest.json", format!("table {}: {reason}", self.name)));
        let sizes =
            [self.records, self.rows_per_record, self.width, self.records_per_page, self.records_per_shard];
        if sizes.iter().any(|s| *s == 0 || *s > 1 << 26) {
            return fail(format!("a size is zero or absurd: {sizes:?}"));
        }
        // In 64 bits, since a browser's own are 32. Pages and shards are parts of files, or whole ones.
        let record = self.rows_per_record as u64 * row_bytes(self.width) as u64;
        if record.saturating_mul(self.records_per_page as u64) > MAX_FILE_BYTES {
            let page = format!("pages of {} records of {record} bytes", self.records_per_page);
            return fail(format!("{page}, at most {MAX_FILE_BYTES} bytes"));
        }
        if !self.records_per_shard.is_multiple_of(self.records_per_page) {
            return fail("a page crosses shards".into());
        }
        if self.shards.len() != self.records.div_ceil(self.records_per_shard) {
            return fail(format!("{} shards for {} records", self.shards.len(), self.records));
        }
        for (i, shard) in self.shards.iter().enumerate() {
            shard.check()?;
            let records = self.records_per_shard.min(self.records - i * self.records_per_shard);
            let expected = records as u64 * self.record_bytes() as u64;
            if shard.bytes != expected {
                return fail(format!("{} has {} bytes, expected {expected}", shard.file, shard.bytes));
            }
        }
        self.index.check()?;
        let expected = index_bytes(self.records, self.pages());
        if self.index.bytes != expected {
            return fail(format!("the index has {} bytes, expected {expected}", self.index.bytes));
        }
        Ok(())
    }
}

/// Bytes of a table's index: the slot of each record, then the hash of each page.
pub(crate) fn index_bytes(records: usize, pages: usize) -> u64 {
    (records * size_of::<u32>() + pages * PAGE_HASH_BYTES) as u64
}

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The base checkpoint's own name.
    pub base: String,
    /// Its licence.
    pub licence: String,
    /// How the rows were made: `none`, `closed-form`, or the recipe's name.
    pub rows: String,
}

/// The manifest of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// What to call the model.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
    /// Its sizes.
    pub config: Config,
    /// The dense weights.
    pub core: Core,
    /// The tables.
    pub tables: Vec<Table>,
    /// `tokenizer.json`.
    pub tokenizer: FileRef,
    /// The Jinja chat template, if the model has one.
    pub chat_template: Option<FileRef>,
    /// The compressed id of each token, if there are Engram layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engram_ids: Option<FileRef>,
}

impl Manifest {
    /// A manifest of the current version.
    #[allow(clippy::too_many_arguments, reason = "each is a field of the format")]
    pub fn new(
        name: String,
        source: Source,
        config: Config,
        core: Core,
        tables: Vec<Table>,
        tokenizer: FileRef,
        chat_template: Option<FileRef>,
    ) -> Self {
        Self {
            format: FORMAT.into(),
            version: VERSION,
            name,
            source,
            config,
            core,
            tables,
            tokenizer,
            chat_template,
            engram_ids: None,
        }
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`Error::Bundle`] or [`Error::Invalid`] with the first thing that is wrong.
    pub fn parse(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let wrong = |e: serde_json::Error| Error::bundle("manifest.json", format!("not a manifest: {e}"));
        let head: Head = serde_json::from_slice(json).map_err(wrong)?;
        if head.format != FORMAT {
            return Err(Error::bundle("manifest.json", format!("format `{}`, not `{FORMAT}`", head.format)));
        }
        if head.version != VERSION {
            return Err(Error::bundle(
                "manifest.json",
                format!(
                    "version {}, this program reads version {VERSION}; convert the model again",
                    head.version
                ),
            ));
        }
        let manifest: Self = serde_json::from_slice(json).map_err(wrong)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// The JSON form.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest holds nothing that JSON cannot")
    }

    /// BLAKE3 of the JSON form in hex: the identity of the model's exact version.
    pub fn hash(&self) -> String {
        blake3::hash(&self.to_json()).to_hex().to_string()
    }

    /// Bytes of the core's shards.
    pub fn core_bytes(&self) -> u64 {
        self.core.shards.iter().map(|s| s.bytes).sum()
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.core.tensors.iter().find(|t| t.name == name)
    }

    /// The STEM table, if the model has STEM layers.
    pub fn stem_table(&self) -> Option<&Table> {
        self.tables.iter().find(|t| t.kind == TableKind::Stem)
    }

    /// The Engram table, if the model has Engram layers.
    pub fn engram_table(&self) -> Option<&Table> {
        self.tables.iter().find(|t| t.kind == TableKind::Engram)
    }

    /// What hashes n-grams, from the bytes of [`engram_ids`](Self::engram_ids); `None` without Engram layers.
    ///
    /// # Errors
    /// [`Error::Bundle`] if these are other ids than the model was made with: all its n-grams would be others.
    pub fn hasher(&self, ids: &[u8]) -> Result<Option<Hasher>> {
        let (Some(engram), Some(file)) = (&self.config.engram, &self.engram_ids) else { return Ok(None) };
        file.verify(ids)?;
        let ids: Vec<u32> = ids.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        Hasher::new(engram, ids).map(Some).map_err(|e| Error::bundle(&file.file, e.to_string()))
    }

    fn validate(&self) -> Result<()> {
        self.config.validate()?;
        let fail = |reason: String| Err(Error::bundle("manifest.json", reason));
        self.tokenizer.check()?;
        if let Some(template) = &self.chat_template {
            template.check()?;
        }
        for shard in &self.core.shards {
            shard.check()?;
        }
        let expected = expected_tensors(&self.config);
        if self.core.tensors.len() != expected.len() {
            return fail(format!("{} tensors, expected {}", self.core.tensors.len(), expected.len()));
        }
        let mut end = 0u64;
        for (tensor, (name, shape)) in self.core.tensors.iter().zip(&expected) {
            if tensor.name != *name || tensor.shape != *shape {
                return fail(format!(
                    "tensor `{}` {:?}, expected `{name}` {shape:?}",
                    tensor.name, tensor.shape
                ));
            }
            if tensor.shape.len() == 1 && tensor.dtype != Dtype::F32 {
                return fail(format!("the vector `{name}` is not stored as f32"));
            }
            let elements = shape.iter().fold(1u64, |n, side| n.saturating_mul(*side as u64));
            if usize::try_from(elements.saturating_mul(4)).is_err() {
                return fail(format!("the tensor `{name}` {shape:?} is too large for this machine"));
            }
            if tensor.offset != end {
                return fail(format!("tensor `{name}` at byte {}, expected {end}", tensor.offset));
            }
            end += tensor.bytes() as u64;
        }
        if end != self.core_bytes() {
            return fail(format!("the tensors have {end} bytes, the core's shards {}", self.core_bytes()));
        }
        for table in &self.tables {
            table.check()?;
        }
        match (self.config.stem_layers.len(), self.stem_table()) {
            (0, None) => {}
            (n, Some(t))
                if t.rows_per_record == n
                    && t.width == self.config.intermediate_size
                    && t.records == self.config.vocab_size => {}
            (n, table) => return fail(format!("{n} STEM layers do not match the table {table:?}")),
        }
        match (&self.config.engram, self.engram_table(), &self.engram_ids) {
            (None, None, None) => {}
            (Some(engram), Some(t), Some(ids))
                if t.rows_per_record == 1
                    && t.width == engram.head_width
                    && t.records == engram.records()
                    && ids.bytes == 4 * self.config.vocab_size as u64 =>
            {
                ids.check()?;
            }
            (_, table, ids) => {
                return fail(format!(
                    "the Engram layers do not match the table {table:?} and the compressed ids {ids:?}"
                ));
            }
        }
        let known = self.stem_table().into_iter().chain(self.engram_table()).count();
        if self.tables.len() != known {
            return fail(format!("{} tables, of which {known} are used", self.tables.len()));
        }
        Ok(())
    }
}

/// Name and shape of every tensor of the core, in the order of the stream.
pub fn expected_tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let c = config;
    let mut all = vec![("token_embd".to_owned(), vec![c.vocab_size, c.hidden_size])];
    for layer in 0..c.n_layers {
        let mut add = |name: &str, shape: Vec<usize>| all.push((format!("blk.{layer}.{name}"), shape));
        if let Some(engram) = c.engram.as_ref().filter(|engram| engram.index(layer).is_some()) {
            add("engram_key", vec![c.hidden_size, engram.width()]);
            add("engram_value", vec![c.hidden_size, engram.width()]);
            add("engram_query_norm", vec![c.hidden_size]);
            add("engram_key_norm", vec![c.hidden_size]);
            add("engram_conv_norm", vec![c.hidden_size]);
            add("engram_conv", vec![engram.kernel * c.hidden_size]);
        }
        add("attn_norm", vec![c.hidden_size]);
        add("attn_qkv", vec![c.qkv_dim(), c.hidden_size]);
        add("attn_output", vec![c.hidden_size, c.q_dim()]);
        add("ffn_norm", vec![c.hidden_size]);
        add("ffn_gate", vec![c.intermediate_size, c.hidden_size]);
        if c.stem_index(layer).is_none() {
            add("ffn_up", vec![c.intermediate_size, c.hidden_size]);
        }
        add("ffn_down", vec![c.hidden_size, c.intermediate_size]);
    }
    all.push(("output_norm".into(), vec![c.hidden_size]));
    if !c.tied_head {
        all.push(("output".into(), vec![c.vocab_size, c.hidden_size]));
    }
    all
}
