//! Writing a bundle: into a folder beside the target, which takes the target's place only when whole.

use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{
    Core, FileRef, MAX_FILE_BYTES, Manifest, PAGE_HASH_BYTES, Table, TableKind, Tensor, index_bytes,
};
use super::quant::{Dtype, row_bytes};
use crate::config::Config;
use crate::engram::Engram;
use crate::error::{Error, Result};
use crate::replace::{remove, replace};

/// A page holds as many records as fit into this many bytes, and at least one.
const PAGE_BYTES: usize = 4096;

/// Writes the files of one bundle. Dropped before [`Writer::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    target: PathBuf,
    // Removed on drop, with whatever it holds.
    partial: Option<PathBuf>,
}

/// A table's records: what they hold, and where each one goes.
#[derive(Debug)]
pub struct TableSpec<'a> {
    /// The table's name, which also names its files.
    pub name: &'a str,
    /// What its rows are for.
    pub kind: TableKind,
    /// Rows in a record.
    pub rows_per_record: usize,
    /// Values in a row.
    pub width: usize,
    /// The records in the order of their slots, hot ones first: a permutation.
    pub order: &'a [u32],
}

impl<'a> TableSpec<'a> {
    /// The STEM table of a model: a record a token, a row for each STEM layer.
    pub fn stem(config: &Config, order: &'a [u32]) -> Self {
        Self {
            name: "stem",
            kind: TableKind::Stem,
            rows_per_record: config.stem_layers.len(),
            width: config.intermediate_size,
            order,
        }
    }

    /// The Engram table: a record for each entry of each head.
    pub fn engram(engram: &Engram, order: &'a [u32]) -> Self {
        Self { name: "engram", kind: TableKind::Engram, rows_per_record: 1, width: engram.head_width, order }
    }
}

impl Writer {
    /// Begins a bundle that will be at `target`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder beside it can't be made; [`Error::Invalid`] if `target` holds something
    /// other than a bundle.
    pub fn create(target: impl Into<PathBuf>) -> Result<Self> {
        let target = target.into();
        let occupied = target.exists() && !target.join("manifest.json").exists();
        if occupied && fs::read_dir(&target).map_err(|e| Error::io(&target, e))?.next().is_some() {
            return Err(Error::invalid(
                target.display().to_string(),
                "is not empty and holds no bundle; choose another --out",
            ));
        }
        let partial = sibling(&target, &format!("partial-{}", std::process::id()))?;
        remove(&partial)?; // of a process that had our id and was killed
        fs::create_dir_all(&partial).map_err(|e| Error::io(&partial, e))?;
        Ok(Self { target, partial: Some(partial) })
    }

    fn dir(&self) -> &Path {
        self.partial.as_deref().expect("taken only by finish, which consumes the writer")
    }

    /// Writes one file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<FileRef> {
        let path = self.dir().join(name);
        fs::write(&path, bytes).map_err(|e| Error::io(path, e))?;
        Ok(FileRef::of(name, bytes))
    }

    /// Writes the core from its tensors in the order of the stream: name, dtype, shape, planes.
    ///
    /// # Errors
    /// [`Error::Io`], or what the iterator gives.
    pub fn core(
        &self,
        tensors: impl Iterator<Item = Result<(String, Dtype, Vec<usize>, Vec<u8>)>>,
    ) -> Result<Core> {
        let mut core = Core { shards: Vec::new(), tensors: Vec::new() };
        let mut pending = Vec::new();
        let mut offset = 0;
        for tensor in tensors {
            let (name, dtype, shape, bytes) = tensor?;
            debug_assert_eq!(bytes.len(), dtype.bytes(shape.iter().product()));
            core.tensors.push(Tensor { name, dtype, shape, offset });
            offset += bytes.len() as u64;
            pending.extend(bytes);
            while pending.len() as u64 >= MAX_FILE_BYTES {
                let rest = pending.split_off(MAX_FILE_BYTES as usize);
                core.shards.push(self.file(&format!("core-{:03}.bin", core.shards.len()), &pending)?);
                pending = rest;
            }
        }
        if !pending.is_empty() {
            core.shards.push(self.file(&format!("core-{:03}.bin", core.shards.len()), &pending)?);
        }
        Ok(core)
    }

    /// Writes a table; `fill` appends the stored form of a record (by record number, not slot).
    ///
    /// # Errors
    /// [`Error::Io`], or what `fill` gives.
    pub fn table(
        &self,
        spec: &TableSpec<'_>,
        mut fill: impl FnMut(u32, &mut Vec<u8>) -> Result<()>,
    ) -> Result<Table> {
        let records = spec.order.len();
        let record_bytes = spec.rows_per_record * row_bytes(spec.width);
        let records_per_page = (PAGE_BYTES / record_bytes).max(1);
        let page_bytes = records_per_page * record_bytes;
        let records_per_shard = (MAX_FILE_BYTES as usize / page_bytes).max(1) * records_per_page;
        // Before hours of work: a manifest with such an index would be refused.
        let index_bytes = index_bytes(records, records.div_ceil(records_per_page));
        if index_bytes > MAX_FILE_BYTES {
            return Err(Error::invalid(
                format!("a table `{}` of {records} records", spec.name),
                format!("its index would have {index_bytes} bytes, a file has at most {MAX_FILE_BYTES}"),
            ));
        }
        let mut slot_of = vec![0u32; records];
        let mut hashes = Vec::with_capacity(records.div_ceil(records_per_page) * PAGE_HASH_BYTES);
        let mut shards = Vec::new();
        let mut shard = Vec::new();
        for (i, members) in spec.order.chunks(records_per_shard).enumerate() {
            shard.clear();
            for (j, record) in members.iter().enumerate() {
                slot_of[*record as usize] = (i * records_per_shard + j) as u32;
                fill(*record, &mut shard)?;
                debug_assert_eq!(shard.len(), (j + 1) * record_bytes);
            }
            for page in shard.chunks(page_bytes) {
                hashes.extend_from_slice(&blake3::hash(page).as_bytes()[..PAGE_HASH_BYTES]);
            }
            shards.push(self.file(&format!("{}-{i:03}.bin", spec.name), &shard)?);
        }
        let mut index = bytemuck::pod_collect_to_vec::<u32, u8>(&slot_of);
        index.extend(hashes);
        Ok(Table {
            name: spec.name.to_owned(),
            kind: spec.kind.clone(),
            records,
            rows_per_record: spec.rows_per_record,
            width: spec.width,
            records_per_page,
            records_per_shard,
            shards,
            index: self.file(&format!("{}-index.bin", spec.name), &index)?,
        })
    }

    /// Writes the manifest and puts the bundle in its place, over an older bundle if there is one.
    ///
    /// # Errors
    /// [`Error::Io`], or what reading the manifest back gives.
    pub fn finish(mut self, manifest: &Manifest) -> Result<()> {
        let json = manifest.to_json();
        Manifest::parse(&json)?;
        self.file("manifest.json", &json)?;
        let old = sibling(&self.target, &format!("old-{}", std::process::id()))?;
        replace(self.dir(), &self.target, &old)?;
        self.partial = None;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_dir_all(partial); // nothing more can be done about it here
        }
    }
}

fn sibling(target: &Path, suffix: &str) -> Result<PathBuf> {
    let name = target
        .file_name()
        .ok_or_else(|| Error::invalid(target.display().to_string(), "has no folder name"))?;
    Ok(target.with_file_name(format!(".{}.{suffix}", name.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_whose_index_no_file_holds_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::create(dir.path().join("bundle")).unwrap();
        let order = vec![0; 1 << 22];
        let kind = TableKind::Engram;
        let spec = TableSpec { name: "engram", kind, rows_per_record: 1, width: 32, order: &order };
        let error = writer.table(&spec, |record, _| panic!("record {record} is asked for")).unwrap_err();
        assert!(error.to_string().contains("at most 16777216"), "{error}");
    }
}
