//! A recipe: all that training changed, small enough to keep in a repository, from which a bundle is built.
//!
//! # Layout, version 1
//!
//! A folder with `recipe.json` ([`Head`]) and safetensors files, whose tensors have the names of the checkpoint's
//! (GGUF's, for Llama), `N` from 0; matrices are `[out, in]`:
//!
//! - `NAME.weight` takes the place of the base's tensor;
//! - `NAME.lora_a` \[r, in] and `NAME.lora_b` \[out, r] change it to `W + lora_b · lora_a`
//!   (source: LoRA, arXiv 2106.09685);
//! - `blk.N.stem_map` \[ffn, hidden] is `A` of a STEM layer, `stem_tokens` \[n] (i32) are the tokens that have a
//!   residual row and the first records of the table, and `blk.N.stem_rows` \[n, ffn] are these: the row of token `t` is
//!   `A · token_embd[t] + R[t]`, with `R` zero for all other tokens;
//! - `stem_embd` \[vocab, r], with r from 1 to hidden, may hold learned features of every token, which all STEM layers
//!   share. Then each `blk.N.stem_map` is \[ffn, hidden + r], and the row of token `t` is
//!   `A · [token_embd[t]; stem_embd[t]] + R[t]`.
//!
//! - A recipe with [Engram layers](crate::engram) has, for each, `blk.N.engram_key.weight` and the other tensors of its own
//!   in a bundle's core ([`crate::bundle::manifest`]), and `blk.N.engram_rows.H` \[prime, head_width], the rows of head
//!   `H`, counted from 0 through all orders.
//!
//! Values are f32, f16, i8 or four bits; an i8 tensor `X` comes with `X.scale` \[rows, groups] (f32 or f16), one scale for
//! each `in / groups` consecutive values of a row. Any matrix may also be in blocks of four bits, 32 values of a row each, with
//! the numbers of a bundle's [`Dtype::Q4`]: `X` is u8 \[rows, in / 2], whose byte k of a row holds value 2k in its low and
//! value 2k + 1 in its high bits; `X.scale` and `X.least` (f16) \[rows, in / 32] are d and m of a block, and a value is
//! d·q + m. A bundle that stores the matrix as `q4` holds these very values, unless a low-rank change is added.
//!
//! `recipe.json` may say in which type a bundle stores changed matrices, where training rounded them so:
//! `"storage": {"ffn_gate": "q4", "ffn_down": "q4"}`. Names are those of the bundle's core after `blk.N.`
//! ([`expected_tensors`]), so that Q, K and V are one, `attn_qkv`; each stands for the matrices of all layers, STEM or
//! not. Types are those of [`Dtype`]. What isn't named is stored as [`store::store`] says.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::build::Changes;
use super::product::product;
use super::raw::Raw;
use super::{Base, engram, store};
use crate::bundle::manifest::expected_tensors;
use crate::bundle::quant::Dtype;
use crate::config::Config;
use crate::engram::compress::Compressed;
use crate::error::{Error, Result};

/// No file of a recipe is larger.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// The head of a recipe may not be larger.
const MAX_HEAD_BYTES: u64 = 1 << 20;
pub(crate) const FORMAT: &str = "xylem-recipe";
pub(crate) const VERSION: u32 = 1;

/// `recipe.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Head {
    pub(crate) format: String,
    pub(crate) version: u32,
    /// What to call the result.
    pub name: String,
    /// The checkpoint that it was trained from.
    pub base: BaseFile,
    /// The layers whose up-projection is a table.
    pub stem_layers: Vec<usize>,
    /// The Engram layers, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engram: Option<engram::Head>,
    /// The types that changed matrices are stored in, by their names after `blk.N.`, where they aren't the usual ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub storage: BTreeMap<String, Dtype>,
    /// The safetensors files.
    pub files: Vec<File>,
    /// How it was trained, in whatever words.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub training: serde_json::Value,
}

/// The checkpoint that a recipe belongs to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BaseFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

/// A file of a recipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct File {
    /// Plain name within the folder.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

impl File {
    /// Its bytes, checked; `list` is the file beside it that names it.
    pub(crate) fn read(&self, list: &Path) -> Result<Vec<u8>> {
        if self.file.contains(['/', '\\']) || self.bytes > MAX_FILE_BYTES {
            return Err(wrong(list, format!("names the file {self:?}")));
        }
        let path = list.with_file_name(&self.file);
        let bytes = read(&path, self.bytes)?;
        if bytes.len() as u64 != self.bytes || sha256(&bytes) != self.sha256 {
            let list = list.file_name().unwrap_or_default().display();
            return Err(wrong(&path, format!("length or SHA-256 differs from {list}")));
        }
        Ok(bytes)
    }
}

/// A matrix in memory, or a vector as one of a single row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Its outputs.
    pub rows: usize,
    /// Its inputs.
    pub width: usize,
    /// `[rows, width]`.
    pub values: Vec<f32>,
}

/// A recipe whose every tensor has been checked against its base.
#[derive(Debug)]
pub struct Recipe<'a> {
    base: &'a Base,
    head: Head,
    config: Config,
    tensors: BTreeMap<String, Matrix>,
    /// Place of a token's residual row.
    residual: HashMap<u32, usize>,
    hot: Vec<u32>,
    // [vocab, hidden]
    embedding: Vec<f32>,
    // Values of a token in `stem_embd`, 0 without it.
    features: usize,
    engram: Option<engram::Rows>,
}

impl<'a> Recipe<'a> {
    /// Reads the recipe in `dir`, which must belong to `base`.
    ///
    /// # Errors
    /// [`Error::Io`] if a file is missing, [`Error::Invalid`] if one is damaged or doesn't fit the base.
    pub fn open(dir: &Path, base: &'a Base) -> Result<Self> {
        let path = dir.join("recipe.json");
        let head: Head =
            serde_json::from_slice(&read(&path, MAX_HEAD_BYTES)?).map_err(|e| wrong(&path, e))?;
        if head.format != FORMAT || head.version != VERSION {
            let found = format!("format `{}`, version {}", head.format, head.version);
            return Err(wrong(&path, format!("{found}; `{FORMAT}`, version {VERSION} is known")));
        }
        let checkpoint = base.gguf().bytes();
        if checkpoint.len() as u64 != head.base.bytes || sha256(checkpoint) != head.base.sha256 {
            return Err(wrong(
                &path,
                format!("belongs to {}, not to {}", head.base.name, base.gguf().path().display()),
            ));
        }
        let layers = head.engram.as_ref().map(|engram| engram.config.clone());
        let config =
            Config { stem_layers: head.stem_layers.clone(), engram: layers, ..base.config().clone() };
        config.validate()?;
        store::check(&head.storage, &config).map_err(|reason| wrong(&path, reason))?;
        let compressed = head.engram.as_ref().map(|engram| engram.compressed(base));
        let compressed = compressed.transpose().map_err(|reason| wrong(&path, reason))?;
        let mut all = Raw::default();
        for file in &head.files {
            all.add(&dir.join(&file.file), &file.read(&path)?)?;
        }
        let Raw { mut matrices, tokens } = all;
        let features = features(&matrices, config.hidden_size).map_err(|reason| wrong(dir, reason))?;
        let mut recipe = Self {
            base,
            features,
            tensors: BTreeMap::new(),
            residual: tokens.iter().enumerate().map(|(i, t)| (*t, i)).collect(),
            embedding: base.tensor("token_embd")?,
            hot: tokens,
            engram: None,
            config,
            head,
        };
        recipe.check_tokens().map_err(|reason| wrong(dir, reason))?;
        for (name, [rows, width]) in recipe.expected() {
            if let Some(matrix) = matrices.remove(&name) {
                let fits = |found: usize, expected: usize| expected == 0 || found == expected;
                if !fits(matrix.rows, rows) || !fits(matrix.width, width) {
                    let found = [matrix.rows, matrix.width];
                    return Err(wrong(dir, format!("`{name}` is {found:?}, expected [{rows}, {width}]")));
                }
                recipe.tensors.insert(name, matrix);
            }
        }
        if let Some(name) = matrices.keys().next() {
            return Err(wrong(dir, format!("the tensor `{name}` is unknown")));
        }
        recipe.check_pairs().map_err(|reason| wrong(dir, reason))?;
        if let Some((engram, compressed)) = recipe.config.engram.as_ref().zip(compressed) {
            let heads = engram::tensors(engram).map(|(name, _)| recipe.tensors.remove(&name));
            let heads = heads.collect::<Option<_>>().expect("check_pairs found all");
            recipe.engram = Some(engram::Rows::new(compressed, heads));
        }
        Ok(recipe)
    }

    /// What it says of itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The names of its tensors, without scales and minima, the list of tokens and the rows of Engram heads.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Its tensor `name`, scales applied.
    pub fn matrix(&self, name: &str) -> Option<&Matrix> {
        self.tensors.get(name)
    }

    /// Names and shapes of all tensors that there may be; 0 stands for a rank that is free.
    fn expected(&self) -> Vec<(String, [usize; 2])> {
        let c = &self.config;
        let mut all = Vec::new();
        for (name, _) in expected_tensors(c) {
            for (part, shape) in self.parts(&name) {
                let stem = part.trim_end_matches(".weight");
                if let [rows, width] = shape[..] {
                    if engram::is_engram(&name) {
                        all.push((part, [rows, width]));
                        continue;
                    }
                    all.push((format!("{stem}.lora_a"), [0, width]));
                    all.push((format!("{stem}.lora_b"), [rows, 0]));
                    all.push((part, [rows, width]));
                } else {
                    all.push((part, [1, shape[0]]));
                }
            }
        }
        all.extend(c.engram.iter().flat_map(engram::tensors));
        if self.features > 0 && !c.stem_layers.is_empty() {
            all.push(("stem_embd".into(), [c.vocab_size, self.features]));
        }
        for layer in &c.stem_layers {
            let width = c.hidden_size + self.features;
            all.push((format!("blk.{layer}.stem_map"), [c.intermediate_size, width]));
            all.push((format!("blk.{layer}.stem_rows"), [self.hot.len(), c.intermediate_size]));
        }
        all
    }

    /// As [`Base::parts`]; an Engram layer's tensors are in no checkpoint, and each is one part.
    fn parts(&self, name: &str) -> Vec<(String, Vec<usize>)> {
        if !engram::is_engram(name) {
            return self.base.parts(name);
        }
        let all = expected_tensors(&self.config).into_iter();
        all.filter(|(n, _)| n == name).map(|(n, shape)| (format!("{n}.weight"), shape)).collect()
    }

    fn check_tokens(&self) -> Result<(), String> {
        let vocab = self.config.vocab_size;
        match self.hot.iter().find(|t| **t as usize >= vocab) {
            Some(token) => Err(format!("stem_tokens names token {token} of {vocab}")),
            None if self.residual.len() != self.hot.len() => Err("stem_tokens names a token twice".into()),
            None => Ok(()),
        }
    }

    fn check_pairs(&self) -> Result<(), String> {
        for (name, a) in &self.tensors {
            let Some(stem) = name.strip_suffix(".lora_a") else { continue };
            match self.tensors.get(&format!("{stem}.lora_b")) {
                Some(b) if b.width == a.rows => {}
                _ => return Err(format!("`{name}` has no lora_b of rank {}", a.rows)),
            }
        }
        if let Some(b) = self.tensors.keys().find(|n| {
            n.strip_suffix(".lora_b")
                .is_some_and(|stem| !self.tensors.contains_key(&format!("{stem}.lora_a")))
        }) {
            return Err(format!("`{b}` has no lora_a"));
        }
        let core = expected_tensors(&self.config).into_iter().map(|(name, _)| format!("{name}.weight"));
        let rows = self.config.engram.iter().flat_map(engram::tensors).map(|(name, _)| name);
        for name in core.filter(|name| engram::is_engram(name)).chain(rows) {
            if !self.tensors.contains_key(&name) {
                return Err(format!("the tensor `{name}` is missing"));
            }
        }
        for layer in &self.config.stem_layers {
            for part in ["stem_map", "stem_rows"] {
                let name = format!("blk.{layer}.{part}");
                let optional = part == "stem_rows" && self.hot.is_empty();
                if !optional && !self.tensors.contains_key(&name) {
                    return Err(format!("the tensor `{name}` is missing"));
                }
            }
        }
        Ok(())
    }

    /// The checkpoint's tensor `part` (`….weight`) as the recipe changes it; `None` if it doesn't.
    fn part(&self, part: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        let stem = part.trim_end_matches(".weight");
        let replaced = self.tensors.get(part).map(|m| m.values.clone());
        let (Some(a), Some(b)) =
            (self.tensors.get(&format!("{stem}.lora_a")), self.tensors.get(&format!("{stem}.lora_b")))
        else {
            return Ok(replaced);
        };
        let mut values = match replaced {
            Some(values) => values,
            None => self.base.gguf().tensor(part, shape)?,
        };
        add_product(&mut values, a, b);
        Ok(Some(values))
    }
}

impl Changes for Recipe<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn describe(&self) -> String {
        self.head.name.clone()
    }

    fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let mut changed = false;
        let mut parts = Vec::new();
        for (part, shape) in self.parts(name) {
            let values = self.part(&part, &shape)?;
            changed |= values.is_some();
            parts.push((part, shape, values));
        }
        if !changed {
            return Ok(None);
        }
        let mut all = Vec::new();
        for (part, shape, values) in parts {
            all.extend(match values {
                Some(values) => values,
                None => self.base.gguf().tensor(&part, &shape)?,
            });
        }
        Ok(Some(all))
    }

    fn rows(&self, tokens: &[u32], out: &mut [f32]) -> Result<()> {
        let c = &self.config;
        let (hidden, ffn, n) = (c.hidden_size, c.intermediate_size, tokens.len());
        let width = hidden + self.features;
        let own = self.tensors.get("stem_embd"); // [vocab, features]
        let mut x = Vec::with_capacity(n * width); // [n, hidden + features]
        for token in tokens {
            let token = *token as usize;
            x.extend_from_slice(&self.embedding[token * hidden..][..hidden]);
            if let Some(own) = own {
                x.extend_from_slice(&own.values[token * own.width..][..own.width]);
            }
        }
        let mut mapped = vec![0f32; n * ffn]; // [n, ffn]
        for (i, layer) in c.stem_layers.iter().enumerate() {
            let map = &self.tensors[&format!("blk.{layer}.stem_map")].values;
            product(&x, map, [n, ffn, width], &mut mapped);
            let residual = self.tensors.get(&format!("blk.{layer}.stem_rows"));
            let records = out.chunks_exact_mut(c.stem_width()).zip(mapped.chunks_exact(ffn));
            for (token, (record, mapped)) in tokens.iter().zip(records) {
                let row = &mut record[i * ffn..(i + 1) * ffn];
                row.copy_from_slice(mapped);
                if let (Some(residual), Some(at)) = (residual, self.residual.get(token)) {
                    let residual = &residual.values[at * ffn..(at + 1) * ffn];
                    row.iter_mut().zip(residual).for_each(|(v, r)| *v += r);
                }
            }
        }
        Ok(())
    }

    fn compressed(&self) -> Option<&Compressed> {
        self.engram.as_ref().map(|rows| &rows.compressed)
    }

    fn engram_row(&self, record: u32) -> &[f32] {
        self.engram.as_ref().map_or(&[], |rows| rows.row(record))
    }

    fn hot(&self) -> &[u32] {
        &self.hot
    }

    fn storage(&self, name: &str) -> Option<Dtype> {
        self.head.storage.get(store::part(name)?).copied()
    }
}

/// Adds `b · a` to `values` `[out, in]`; `a` is `[r, in]`, `b` is `[out, r]`.
pub(crate) fn add_product(values: &mut [f32], a: &Matrix, b: &Matrix) {
    let (rows, width, rank) = (b.rows, a.width, a.rows);
    // `product` takes the second factor transposed: [in, r].
    let mut transposed = vec![0f32; a.values.len()];
    for (r, row) in a.values.chunks_exact(width).enumerate() {
        for (i, value) in row.iter().enumerate() {
            transposed[i * rank + r] = *value;
        }
    }
    let mut change = vec![0f32; rows * width];
    product(&b.values, &transposed, [rows, width, rank], &mut change);
    values.iter_mut().zip(&change).for_each(|(v, c)| *v += c);
}

/// The width of `stem_embd`, 0 if there is none.
fn features(matrices: &BTreeMap<String, Matrix>, most: usize) -> Result<usize, String> {
    match matrices.get("stem_embd") {
        None => Ok(0),
        Some(Matrix { width, .. }) if (1..=most).contains(width) => Ok(*width),
        Some(Matrix { width, .. }) => {
            Err(format!("`stem_embd` has {width} features a token, from 1 to {most} were expected"))
        }
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let bytes = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if bytes > limit {
        return Err(wrong(path, format!("{bytes} bytes, at most {limit} were expected")));
    }
    fs::read(path).map_err(|e| Error::io(path, e))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn wrong(path: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Error {
    Error::invalid(path.into().display().to_string(), reason.to_string())
}
