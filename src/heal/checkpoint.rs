//! A run as it was: parameters, the optimiser's means, and how far the data has been read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn_tensor::Device;
use serde::{Deserialize, Serialize};

use super::files;
use super::optimiser::{Parameter, Parameters};
use super::start::Start;
use super::student::{download, upload};
use crate::bundle::quant::Dtype;
use crate::config::Config;
use crate::convert::recipe::{File, Matrix};
use crate::error::{Error, Result};
use crate::replace::{remove, replace};

const FORMAT: &str = "xylem-heal";
const VERSION: u32 = 1;
const HEAD: &str = "checkpoint.json";

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Steps taken.
    pub step: u64,
    /// Tokens that the student has read.
    pub tokens: u64,
    /// Seconds of training, measurements included.
    pub seconds: f64,
    /// Rows taken of each source.
    pub taken: BTreeMap<String, u64>,
    /// Running means of the losses, by source.
    pub losses: BTreeMap<String, f64>,
}

/// `checkpoint.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    config: Config,
    stem_tokens: Vec<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    storage: BTreeMap<String, Dtype>,
    position: Position,
    files: Vec<File>,
}

/// Where a run keeps its checkpoint.
pub fn folder(run: &Path) -> PathBuf {
    run.join("checkpoint")
}

/// The folder of the older one, while a newer one takes its place.
fn older(run: &Path) -> PathBuf {
    run.join("checkpoint.old")
}

/// Writes a checkpoint; an older one is there until the new one is whole.
///
/// # Errors
/// [`Error::Io`] if it can't be written.
pub fn write(run: &Path, start: &Start, parameters: &Parameters, position: &Position) -> Result<()> {
    let (dir, new, old) = (folder(run), run.join("checkpoint.new"), older(run));
    remove(&new)?;
    fs::create_dir_all(&new).map_err(|e| Error::io(&new, e))?;
    let groups = parameters.0.iter().flat_map(|(name, p)| {
        let parts = [("value", &p.value), ("first", &p.first), ("second", &p.second)];
        parts.into_iter().flat_map(move |(part, tensor)| match download(tensor) {
            Ok(matrix) => files::whole(&format!("{part}/{name}"), &matrix).into_iter().map(Ok).collect(),
            Err(e) => vec![Err(e)],
        })
    });
    let files = files::write(&new, groups)?;
    let head = Head {
        format: FORMAT.into(),
        version: VERSION,
        config: start.config.clone(),
        stem_tokens: start.tokens.clone(),
        storage: start.storage.clone(),
        position: position.clone(),
        files,
    };
    let path = new.join(HEAD);
    let json = serde_json::to_vec_pretty(&head).map_err(|e| Error::invalid(HEAD, e.to_string()))?;
    fs::write(&path, json).map_err(|e| Error::io(&path, e))?;
    replace(&new, &dir, &old)
}

/// The checkpoint of `run`, `None` if there is none. It must be of a student with the layers of `start`.
///
/// # Errors
/// [`Error::Io`] if it can't be read, [`Error::Invalid`] if it is damaged or of another student.
pub fn read(run: &Path, start: &Start, device: &Device) -> Result<Option<(Parameters, Position)>> {
    let Some(dir) = [folder(run), older(run)].into_iter().find(|dir| dir.exists()) else { return Ok(None) };
    let path = dir.join(HEAD);
    let wrong = |reason: String| Error::invalid(path.display().to_string(), reason);
    let head = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let head: Head = serde_json::from_slice(&head).map_err(|e| wrong(e.to_string()))?;
    if head.format != FORMAT || head.version != VERSION {
        let found = format!("format `{}`, version {}", head.format, head.version);
        return Err(wrong(format!("{found}; `{FORMAT}`, version {VERSION} is known")));
    }
    let same = head.config == start.config && head.storage == start.storage;
    if !same || head.stem_tokens != start.tokens {
        let reason =
            "is of another student; go on with the settings that it was made with, or choose another folder";
        return Err(wrong(reason.into()));
    }
    let mut tensors = files::read(&path, &head.files)?;
    let mut parameters = Parameters::default();
    for (name, first) in &start.tensors {
        let mut take = |part: &str| -> Result<_> {
            let name = format!("{part}/{name}");
            let matrix = tensors.remove(&name).ok_or_else(|| wrong(format!("lacks `{name}`")))?;
            let (found, expected) = (shape(&matrix), shape(first));
            if found != expected {
                let reason = format!("`{name}` is {found:?}, the settings make it {expected:?}");
                return Err(wrong(reason));
            }
            Ok(upload(&matrix, device))
        };
        let parameter = Parameter { value: take("value")?, first: take("first")?, second: take("second")? };
        parameters.0.insert(name.clone(), parameter);
    }
    if let Some(name) = tensors.keys().next() {
        return Err(wrong(format!("has `{name}`, which the settings don't ask for")));
    }
    Ok(Some((parameters, head.position)))
}

fn shape(matrix: &Matrix) -> [usize; 2] {
    [matrix.rows, matrix.width]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    #[test]
    fn a_checkpoint_comes_back_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let matrix = |rows, width| Matrix { rows, width, values: vec![0.5; rows * width] };
        let mut start = Start {
            config: tiny(),
            tokens: vec![3, 5],
            compressed: None,
            tensors: [("a".to_owned(), matrix(2, 3)), ("b".to_owned(), matrix(1, 4))].into(),
            storage: [("ffn_down".to_owned(), Dtype::Q4)].into(),
        };
        let device = Device::flex();
        assert!(read(dir.path(), &start, &device).unwrap().is_none());
        let mut parameters = Parameters::new(&start.tensors, &device);
        parameters.0.get_mut("a").unwrap().second = upload(&matrix(2, 3), &device);
        let position = Position { step: 7, taken: [("x".to_owned(), 9)].into(), ..Position::default() };
        for _ in 0..2 {
            write(dir.path(), &start, &parameters, &position).unwrap();
            let (found, at) = read(dir.path(), &start, &device).unwrap().unwrap();
            assert_eq!(at, position);
            assert_eq!(download(&found.0["a"].second).unwrap(), matrix(2, 3));
            assert_eq!(download(&found.0["b"].second).unwrap().values, [0.0; 4]);
        }
        // As if the machine had stopped between the two renames.
        fs::rename(folder(dir.path()), older(dir.path())).unwrap();
        assert!(read(dir.path(), &start, &device).unwrap().is_some());
        let message = |start: &Start| read(dir.path(), start, &device).unwrap_err().to_string();
        let rank = start.tensors.insert("a".into(), matrix(4, 3)).unwrap();
        assert!(message(&start).contains("[2, 3], the settings make it [4, 3]"));
        start.tensors.insert("a".into(), rank);
        start.tensors.insert("c".into(), matrix(1, 1));
        assert!(message(&start).contains("lacks `value/c`"));
        let storage = std::mem::take(&mut start.storage);
        assert!(message(&start).contains("another student"));
        start.storage = storage;
        start.tokens.pop();
        assert!(message(&start).contains("another student"));
        fs::write(older(dir.path()).join(HEAD), "{").unwrap();
        assert!(message(&start).contains(HEAD));
    }
}
