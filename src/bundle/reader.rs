//! Opening a bundle in a folder.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::manifest::{FileRef, MAX_MANIFEST_BYTES, Manifest};
use crate::backend::{Backend, write_core};
use crate::engram::{Hasher, WithEngram};
use crate::error::{Error, Result};
use crate::tables::{self, FileTransport, Tables, Transport};
use crate::text::{Template, Tokenizer};

/// The rows of a bundle.
pub type Rows = RowsThrough<FileTransport>;

/// The rows of a bundle whose tables are read through `T`.
pub type RowsThrough<T> = WithEngram<Option<Tables<T>>, Tables<T>>;

/// A bundle whose manifest has been read and checked.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens the bundle in `dir`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no manifest, [`Error::Bundle`] or [`Error::Invalid`] if it can't be used.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let json = read_limited(&dir.join("manifest.json"), MAX_MANIFEST_BYTES)?;
        Ok(Self { manifest: Manifest::parse(&json)?, dir })
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Bundle`] or [`Error::Tokenizer`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::new(&self.file(&self.manifest.tokenizer)?, self.manifest.config.bos_token)
    }

    /// The chat template, if the model has one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Bundle`] or [`Error::Template`].
    pub fn template(&self, tokenizer: &Tokenizer) -> Result<Option<Template>> {
        let Some(file) = &self.manifest.chat_template else { return Ok(None) };
        let source =
            String::from_utf8(self.file(file)?).map_err(|_| Error::bundle(&file.file, "is not UTF-8"))?;
        Template::for_model(&source, tokenizer, &self.manifest.config).map(Some)
    }

    /// Writes the core into `backend`, each shard checked before use; `progress` hears of bytes done and in all.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Bundle`] for a missing or damaged shard, or what the backend gives.
    pub fn load_core(&self, backend: &mut impl Backend, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        let (mut start, total) = (0, self.manifest.core_bytes());
        for shard in &self.manifest.core.shards {
            let bytes = self.file(shard)?;
            write_core(backend, &self.manifest.core.tensors, start, &bytes)?;
            start += shard.bytes;
            progress(start, total);
        }
        Ok(())
    }

    /// The STEM table, `None` for a model without one.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Bundle`] if its index is missing or damaged.
    pub fn tables(&self) -> Result<Option<Tables<FileTransport>>> {
        tables::open_dir(&self.dir, self.manifest.stem_table())
    }

    /// All rows: those of the STEM table, and of the Engram table where there is one.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Bundle`] if an index or the compressed ids are missing or damaged.
    pub fn rows(&self) -> Result<Rows> {
        self.rows_through(&FileTransport::new(&self.dir))
    }

    /// As [`rows`](Self::rows), with pages that come by `transport`.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn rows_through<T: Transport + Clone>(&self, transport: &T) -> Result<RowsThrough<T>> {
        let stem = tables::open_through(&self.dir, self.manifest.stem_table(), transport.clone())?;
        let engram = self.engram_through(transport.clone())?;
        Ok(WithEngram::new(stem, self.manifest.config.stem_width(), engram))
    }

    /// The Engram table and what finds its records, `None` for a model without Engram layers.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn engram(&self) -> Result<Option<(Hasher, Tables<FileTransport>)>> {
        self.engram_through(FileTransport::new(&self.dir))
    }

    fn engram_through<T: Transport>(&self, transport: T) -> Result<Option<(Hasher, Tables<T>)>> {
        let ids = self.manifest.engram_ids.as_ref().map(|file| self.file(file)).transpose()?;
        let hasher = self.manifest.hasher(&ids.unwrap_or_default())?;
        Ok(hasher.zip(tables::open_through(&self.dir, self.manifest.engram_table(), transport)?))
    }

    /// A whole file, checked.
    fn file(&self, file: &FileRef) -> Result<Vec<u8>> {
        let bytes = read_limited(&self.dir.join(&file.file), file.bytes)?;
        file.verify(&bytes)?;
        Ok(bytes)
    }
}

/// The file's bytes, but at most one more than `limit`: a larger file is wrong anyway.
fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// Bytes of all files in `dir`.
///
/// # Errors
/// [`Error::Io`].
pub fn folder_bytes(dir: &Path) -> Result<u64> {
    let entries = fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    entries.map(|e| Ok(e.and_then(|e| e.metadata()).map_err(|e| Error::io(dir, e))?.len())).sum()
}
