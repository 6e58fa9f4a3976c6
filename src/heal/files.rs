//! Tensors in safetensors files of at most 16 MB, so that results can be carried in pieces.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::convert::recipe::{File, Matrix, sha256};
use crate::error::{Error, Result};

/// Bytes of tensors in a file; the rest is for its head.
pub(super) const LIMIT: usize = 15_900_000;
/// What a tensor's entry in the head takes, at most.
pub(super) const ENTRY: usize = 200;
/// Rows of a large tensor are stored under its name, this, and the number of the first one.
const PART: char = '@';

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// The type of its values.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub bytes: Vec<u8>,
}

/// Writes `part-0.safetensors` and so on into `dir`; the tensors of a group share a file.
///
/// # Errors
/// [`Error::Io`], or [`Error::Invalid`] for a group that is too large.
pub fn write(dir: &Path, groups: impl IntoIterator<Item = Result<Vec<Stored>>>) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let (mut part, mut size) = (Vec::new(), 0);
    for group in groups {
        let group = group?;
        let need: usize = group.iter().map(|t| t.bytes.len() + ENTRY).sum();
        if need > LIMIT {
            let name = group.first().map_or("", |t| &t.name);
            let reason = format!("{need} bytes, a file has at most {LIMIT}");
            return Err(Error::invalid(format!("the tensor `{name}`"), reason));
        }
        if size + need > LIMIT {
            files.push(finish(dir, files.len(), &std::mem::take(&mut part))?);
            size = 0;
        }
        part.extend(group);
        size += need;
    }
    if !part.is_empty() {
        files.push(finish(dir, files.len(), &part)?);
    }
    Ok(files)
}

fn finish(dir: &Path, number: usize, tensors: &[Stored]) -> Result<File> {
    let file = format!("part-{number}.safetensors");
    let path = dir.join(&file);
    let invalid = |e: safetensors::SafeTensorError| Error::invalid(path.display().to_string(), e.to_string());
    let views = tensors.iter().map(|t| {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.bytes).map_err(invalid)?;
        Ok((t.name.as_str(), view))
    });
    let bytes = serialize(views.collect::<Result<Vec<_>>>()?, None).map_err(invalid)?;
    fs::write(&path, &bytes).map_err(|e| Error::io(&path, e))?;
    Ok(File { file, bytes: bytes.len() as u64, sha256: sha256(&bytes) })
}

/// A matrix of any size in single precision: a group for each part that fits into a file.
pub fn whole(name: &str, matrix: &Matrix) -> Vec<Vec<Stored>> {
    let rows = ((LIMIT - ENTRY) / (4 * matrix.width.max(1))).max(1);
    let stored = |name: String, rows: usize, values: &[f32]| {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        vec![Stored { name, dtype: Dtype::F32, shape: vec![rows, matrix.width], bytes }]
    };
    if matrix.rows <= rows {
        return vec![stored(name.to_owned(), matrix.rows, &matrix.values)];
    }
    let parts = matrix.values.chunks(rows * matrix.width).enumerate();
    parts.map(|(i, v)| stored(format!("{name}{PART}{}", i * rows), v.len() / matrix.width, v)).collect()
}

/// Reads what [`whole`] has stored in `files`, each checked; they lie beside `list`, which names them.
///
/// # Errors
/// [`Error::Io`] for a missing file, [`Error::Invalid`] for one that is damaged.
pub fn read(list: &Path, files: &[File]) -> Result<BTreeMap<String, Matrix>> {
    // By tensor, its parts by first row.
    let mut parts = BTreeMap::<String, BTreeMap<usize, Matrix>>::new();
    for file in files {
        let bytes = file.read(list)?;
        let path = list.with_file_name(&file.file);
        let damaged = |reason: String| Error::invalid(path.display().to_string(), reason);
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
        for (name, view) in tensors.tensors() {
            let [rows, width] = *view.shape() else {
                return Err(damaged(format!("`{name}` is no matrix")));
            };
            if view.dtype() != Dtype::F32 {
                return Err(damaged(format!("`{name}` is of type {:?}", view.dtype())));
            }
            let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let (name, first) = match name.split_once(PART) {
                None => (name.as_str(), 0),
                Some((name, first)) => {
                    let first = first.parse().map_err(|_| damaged(format!("`{name}` has an odd part")))?;
                    (name, first)
                }
            };
            parts.entry(name.to_owned()).or_default().insert(first, Matrix { rows, width, values });
        }
    }
    let mut all = BTreeMap::new();
    for (name, parts) in parts {
        let width = parts.values().next().map_or(0, |m| m.width);
        let mut whole = Matrix { rows: 0, width, values: Vec::new() };
        for (first, part) in parts {
            if first != whole.rows || part.width != width {
                return Err(Error::invalid(list.display().to_string(), format!("`{name}` lacks rows")));
            }
            whole.rows += part.rows;
            whole.values.extend(part.values);
        }
        all.insert(name, whole);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tensors_come_back_from_several_files() {
        let dir = tempfile::tempdir().unwrap();
        let matrix = |rows: usize, width: usize| Matrix {
            rows,
            width,
            values: (0..rows * width).map(|i| (i as f32).sin()).collect(),
        };
        let all = [
            ("a".to_owned(), matrix(3, 2)),
            ("b".to_owned(), matrix(50_000, 100)),
            ("c".to_owned(), matrix(1, 5)),
        ];
        let groups = all.iter().flat_map(|(name, m)| whole(name, m)).map(Ok);
        let files = write(dir.path(), groups).unwrap();
        assert!(files.len() > 1 && files.iter().all(|f| f.bytes <= 16_000_000));
        assert_eq!(read(&dir.path().join("list.json"), &files).unwrap(), all.into());
        let path = dir.path().join(&files[0].file);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(read(&dir.path().join("list.json"), &files).unwrap_err().to_string().contains("SHA-256"));
        fs::remove_file(&path).unwrap();
        assert!(matches!(read(&dir.path().join("list.json"), &files).unwrap_err(), Error::Io { .. }));
        let large = Stored { name: "x".into(), dtype: Dtype::I8, shape: vec![LIMIT], bytes: vec![0; LIMIT] };
        assert!(write(dir.path(), [Ok(vec![large])]).unwrap_err().to_string().contains("`x`"));
    }
}
