//! Tables read from a bundle's folder.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::lookup::{DEFAULT_BUDGET, Tables, Transport};
use crate::bundle::{FileRef, Table};
use crate::error::{Error, Result};

/// Reads files of a folder. Its futures are ready at once: a read from disk blocks the caller.
#[derive(Debug, Clone)]
pub struct FileTransport {
    dir: PathBuf,
}

impl FileTransport {
    /// Reads files of the folder `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

impl Transport for FileTransport {
    async fn range(&self, file: &FileRef, range: Range<u64>, _fresh: bool) -> Result<Option<Vec<u8>>> {
        let path = self.dir.join(&file.file);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let mut open = File::open(&path).map_err(|e| Error::io(&path, e))?;
        open.seek(SeekFrom::Start(range.start)).map_err(|e| Error::io(&path, e))?;
        match open.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                Err(Error::bundle(&file.file, format!("ends before byte {} of {}", range.end, file.bytes)))
            }
            Err(e) => Err(Error::io(path, e)),
        }
    }

    async fn whole(&self, file: &FileRef, _fresh: bool) -> Result<Vec<u8>> {
        let path = self.dir.join(&file.file);
        fs::read(&path).map_err(|e| Error::io(path, e))
    }
}

/// A table of the bundle in folder `dir`, or `None` for none.
///
/// # Errors
/// [`Error::Io`] or [`Error::Bundle`] if the table's index is missing or damaged.
pub fn open_dir(dir: &Path, table: Option<&Table>) -> Result<Option<Tables<FileTransport>>> {
    open_through(dir, table, FileTransport::new(dir))
}

/// As [`open_dir`], with pages that come by `transport`; the index is read from the folder.
///
/// # Errors
/// As [`open_dir`].
pub fn open_through<T: Transport>(
    dir: &Path,
    table: Option<&Table>,
    transport: T,
) -> Result<Option<Tables<T>>> {
    let Some(table) = table else { return Ok(None) };
    let path = dir.join(&table.index.file);
    let index = fs::read(&path).map_err(|e| Error::io(path, e))?;
    Tables::new(table, &index, transport, (), DEFAULT_BUDGET).map(Some)
}
