//! The GGUF container, versions 2 and 3 (little-endian): metadata, tensor directory, tensor data.
//!
//! Source of the format: the GGUF specification in ggml's `docs/gguf.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::dequant::{GgmlType, dequantize};
use crate::error::{Error, Result};

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMS: u32 = 4;
/// An array nested deeper than this is nobody's checkpoint.
const MAX_DEPTH: u32 = 4;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer type.
    Uint(u64),
    /// Any signed integer type.
    Int(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A UTF-8 string.
    String(String),
    /// An array of values of one type.
    Array(Vec<Value>),
}

/// One entry of the tensor directory.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Dimensions with the contiguous one first, as GGUF stores them: a `[rows, cols]` matrix is `[cols, rows]`.
    pub dims: Vec<usize>,
    /// How the elements are stored.
    pub dtype: GgmlType,
    offset: usize,
    byte_len: usize,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// An open GGUF file, memory-mapped.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Opens `path` and reads its directory; tensor data is read only when asked for.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be mapped, [`Error::Gguf`] if it is foreign, damaged or truncated,
    /// [`Error::Unsupported`] for a tensor type this crate cannot read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = std::fs::File::open(&path).map_err(|e| Error::io(&path, e))?;
        let len = file.metadata().map_err(|e| Error::io(&path, e))?.len();
        if len == 0 {
            return Err(Error::Gguf { path, reason: "the file is empty".into() });
        }
        // SAFETY: the map is private and read-only; as with every mapped file, another process that
        // truncates it while we read would be at fault.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(&path, e))?;
        let (metadata, tensors) = parse(&map).map_err(|e| match e {
            ParseError::Malformed(reason) => Error::Gguf { path: path.clone(), reason },
            ParseError::Other(e) => e,
        })?;
        Ok(Self { path, map, metadata, tensors })
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The metadata value of `key`, if there is one.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The metadata value of `key` as an unsigned integer.
    ///
    /// # Errors
    /// [`Error::Gguf`] if it is missing or no such integer.
    pub fn uint(&self, key: &str) -> Result<u64> {
        match self.get(key) {
            Some(Value::Uint(v)) => Ok(*v),
            Some(Value::Int(v)) if *v >= 0 => Ok(*v as u64),
            other => Err(self.bad_key(key, "an unsigned integer", other)),
        }
    }

    /// The metadata value of `key` as a float.
    ///
    /// # Errors
    /// [`Error::Gguf`] if it is missing or not a float.
    pub fn float(&self, key: &str) -> Result<f64> {
        match self.get(key) {
            Some(Value::Float(v)) => Ok(*v),
            other => Err(self.bad_key(key, "a float", other)),
        }
    }

    /// The metadata value of `key` as a string.
    ///
    /// # Errors
    /// [`Error::Gguf`] if it is missing or not a string.
    pub fn string(&self, key: &str) -> Result<&str> {
        match self.get(key) {
            Some(Value::String(v)) => Ok(v),
            other => Err(self.bad_key(key, "a string", other)),
        }
    }

    /// The metadata value of `key` as an array.
    ///
    /// # Errors
    /// [`Error::Gguf`] if it is missing or not an array.
    pub fn array(&self, key: &str) -> Result<&[Value]> {
        match self.get(key) {
            Some(Value::Array(v)) => Ok(v),
            other => Err(self.bad_key(key, "an array", other)),
        }
    }

    fn bad_key(&self, key: &str, wanted: &str, found: Option<&Value>) -> Error {
        let reason = match found {
            None => format!("the metadata key `{key}` is missing ({wanted} was expected)"),
            Some(_) => format!("the metadata key `{key}` is not {wanted}"),
        };
        Error::Gguf { path: self.path.clone(), reason }
    }

    /// The tensor `name` as f32, after checking that its dimensions are `shape` (row-major, so a weight
    /// matrix is `[out, in]`).
    ///
    /// # Errors
    /// [`Error::Gguf`] if it is missing or has other dimensions.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (dtype, bytes) = self.stored(name, shape)?;
        Ok(dequantize(dtype, bytes, shape.iter().product()))
    }

    /// The tensor `name` as it is stored, after the same check as [`Gguf::tensor`] makes.
    ///
    /// # Errors
    /// As [`Gguf::tensor`].
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<(GgmlType, &[u8])> {
        let Some(info) = self.tensors.get(name) else {
            return Err(Error::Gguf {
                path: self.path.clone(),
                reason: format!("the tensor `{name}` is missing"),
            });
        };
        if !info.dims.iter().rev().eq(shape.iter()) {
            let found: Vec<_> = info.dims.iter().rev().collect();
            return Err(Error::Gguf {
                path: self.path.clone(),
                reason: format!("the tensor `{name}` has shape {found:?}, expected {shape:?}"),
            });
        }
        Ok((info.dtype, &self.map[info.offset..info.offset + info.byte_len]))
    }
}

enum ParseError {
    Malformed(String),
    Other(Error),
}

impl From<String> for ParseError {
    fn from(reason: String) -> Self {
        Self::Malformed(reason)
    }
}

type Directory = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

fn parse(bytes: &[u8]) -> Result<Directory, ParseError> {
    let mut cursor = Cursor { bytes, at: 0 };
    let magic = cursor.take(4)?;
    if magic != MAGIC {
        return Err(format!("it begins with {magic:?}, not with the magic \"GGUF\"").into());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version} (2 and 3 are known)").into());
    }
    let n_tensors = cursor.u64()?;
    let n_metadata = cursor.u64()?;
    let mut metadata = BTreeMap::new();
    for _ in 0..n_metadata {
        let key = cursor.string()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0)?;
        metadata.insert(key, value);
    }
    let mut entries = Vec::new();
    for _ in 0..n_tensors {
        entries.push(cursor.tensor_entry()?);
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Uint(a)) if a.is_power_of_two() && *a <= 1 << 20 => *a,
        Some(other) => return Err(format!("`general.alignment` is {other:?}, not a power of two").into()),
    };
    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, dims, dtype, offset) in entries {
        let (block_elems, block_bytes) = dtype.block();
        let elements = dims
            .iter()
            .try_fold(1usize, |n, d| n.checked_mul(*d))
            .ok_or_else(|| format!("the tensor `{name}` has impossible dimensions {dims:?}"))?;
        if dims.first().is_none_or(|d| d % block_elems != 0) {
            return Err(format!("the rows of `{name}` {dims:?} are no multiple of {block_elems}").into());
        }
        let byte_len = (elements / block_elems)
            .checked_mul(block_bytes)
            .ok_or_else(|| format!("the tensor `{name}` has impossible dimensions {dims:?}"))?;
        let end = data_start
            .checked_add(offset)
            .and_then(|start| start.checked_add(byte_len as u64))
            .ok_or_else(|| format!("the tensor `{name}` has an impossible offset {offset}"))?;
        if end > bytes.len() as u64 {
            return Err(format!(
                "truncated: the tensor `{name}` ends at byte {end}, the file at byte {}",
                bytes.len()
            )
            .into());
        }
        let offset = (data_start + offset) as usize;
        tensors.insert(name, TensorInfo { dims, dtype, offset, byte_len });
    }
    Ok((metadata, tensors))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        if n > rest.len() {
            return Err(format!("truncated: {n} bytes wanted at byte {}, {} left", self.at, rest.len()));
        }
        self.at += n;
        Ok(&rest[..n])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("take returns as many bytes as asked for"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<String, String> {
        let len = usize::try_from(self.u64()?).map_err(|e| e.to_string())?;
        let at = self.at;
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("the string at byte {at} is not UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Uint(self.array::<1>()?[0].into()),
            1 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Uint(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Uint(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::String(self.string()?),
            9 if depth < MAX_DEPTH => {
                let inner = self.u32()?;
                let len = self.u64()?;
                // No capacity from `len`: it is untrusted, and a lie runs into the end of the file.
                let mut items = Vec::new();
                for _ in 0..len {
                    items.push(self.value(inner, depth + 1)?);
                }
                Value::Array(items)
            }
            10 => Value::Uint(self.u64()?),
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("unknown metadata type {other} at byte {}", self.at)),
        })
    }

    fn tensor_entry(&mut self) -> Result<(String, Vec<usize>, GgmlType, u64), ParseError> {
        let name = self.string()?;
        let n_dims = self.u32()?;
        if n_dims > MAX_DIMS {
            return Err(format!("the tensor `{name}` has {n_dims} dimensions (at most {MAX_DIMS})").into());
        }
        let mut dims = Vec::new();
        for _ in 0..n_dims {
            dims.push(usize::try_from(self.u64()?).map_err(|e| e.to_string())?);
        }
        let dtype = self.u32()?;
        let dtype = GgmlType::from_id(dtype).ok_or_else(|| {
            ParseError::Other(Error::Unsupported {
                what: format!("the type {} of the tensor `{name}`", GgmlType::unreadable(dtype)),
                supported: GgmlType::ALL.map(|t| format!("{t:?}")).join(", "),
            })
        })?;
        Ok((name, dims, dtype, self.u64()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minimal file: one string, one F32 tensor of two by three.
    fn tiny() -> Vec<u8> {
        let mut f = Vec::new();
        let string = |f: &mut Vec<u8>, s: &str| {
            f.extend((s.len() as u64).to_le_bytes());
            f.extend(s.as_bytes());
        };
        f.extend(MAGIC);
        f.extend(3u32.to_le_bytes());
        f.extend(1u64.to_le_bytes());
        f.extend(1u64.to_le_bytes());
        string(&mut f, "general.architecture");
        f.extend(8u32.to_le_bytes());
        string(&mut f, "llama");
        string(&mut f, "w");
        f.extend(2u32.to_le_bytes());
        f.extend(3u64.to_le_bytes());
        f.extend(2u64.to_le_bytes());
        f.extend(0u32.to_le_bytes());
        f.extend(0u64.to_le_bytes());
        f.resize(f.len().next_multiple_of(32), 0);
        for i in 0..6 {
            f.extend((i as f32 * 0.5 - 1.0).to_le_bytes());
        }
        f
    }

    fn open(bytes: &[u8]) -> Result<Gguf> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Gguf::open(file.path())
    }

    #[test]
    fn reads_metadata_and_tensors() {
        let gguf = open(&tiny()).unwrap();
        assert_eq!(gguf.string("general.architecture").unwrap(), "llama");
        assert_eq!(gguf.tensor("w", &[2, 3]).unwrap(), [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5]);
        assert!(gguf.tensor("w", &[3, 2]).unwrap_err().to_string().contains("expected [3, 2]"));
        assert!(gguf.uint("general.architecture").is_err());
    }

    #[test]
    fn types_that_cannot_be_read_are_named() {
        for (id, name) in
            [(10, "the type Q2_K of"), (20, "the type IQ4_NL of"), (99, "the type number 99 of")]
        {
            let mut file = tiny();
            // Behind the name and two dimensions of the tensor `w`.
            let name_at = file.windows(9).position(|w| w == [1, 0, 0, 0, 0, 0, 0, 0, b'w']).unwrap();
            file[name_at + 9 + 4 + 16] = id;
            let says = open(&file).unwrap_err().to_string();
            assert!(says.contains(name) && says.contains("supported: F32"), "{says}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = tiny();
        for len in 0..whole.len() {
            assert!(open(&whole[..len]).is_err(), "accepted {len} of {} bytes", whole.len());
        }
    }

    #[test]
    fn a_damaged_byte_never_panics() {
        let whole = tiny();
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                if let Ok(gguf) = open(&damaged) {
                    for (name, info) in gguf.tensors() {
                        let shape: Vec<_> = info.dims.iter().rev().copied().collect();
                        gguf.tensor(name, &shape).unwrap();
                    }
                }
            }
        }
    }
}
