//! Reads GGUF headers, and tensors as f32.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use super::format::{DEFAULT_ALIGNMENT, MAX_DIMS};
use super::source::{Source, TensorInfo};
use super::tensor_type::TensorType;
use super::value::Value;
use crate::{Error, Result, input_file};

/// What a pair takes in memory beside its texts: itself, and its place in the set that finds twins.
const PAIR_MEMORY_BYTES: u64 = size_of::<(String, Value)>() as u64 + 40;

/// What a tensor takes in memory beside its name: itself, its dims, and its place in the set.
const TENSOR_MEMORY_BYTES: u64 = size_of::<TensorInfo>() as u64 + 8 * MAX_DIMS as u64 + 40;

/// A GGUF file, or a model of several, whose header has been read and checked; the tensors' data
/// stays in the file.
#[derive(Debug)]
pub struct Gguf {
    paths: Vec<PathBuf>, // one, or those of all shards
    version: u32,
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
    alignment: u64,
}

impl Gguf {
    /// Reads the header of the file at `path` (GGUF 2 or 3, little-endian) and checks it as strictly
    /// as llama.cpp does, and that every tensor lies inside the file.
    ///
    /// # Errors
    /// When the file cannot be read, is not a GGUF file, or is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let mut source = Source::open(path)?;
        let version = source.preamble()?;
        // A tensor takes at least its name's length, dims' count, type and offset.
        let n_tensors = source.length(8 + 4 + 4 + 8, TENSOR_MEMORY_BYTES)?;
        // A pair takes at least its key's length, type and one byte.
        let n_pairs = source.length(8 + 4 + 1, PAIR_MEMORY_BYTES)?;

        let mut metadata = Vec::with_capacity(n_pairs);
        for _ in 0..n_pairs {
            metadata.push((source.string()?, Value::decode(&mut source)?));
        }
        if metadata.iter().any(|(key, _)| key.is_empty()) {
            return Err(source.malformed("a key is empty"));
        }
        if let Some(key) = first_twin(metadata.iter().map(|(key, _)| key)) {
            return Err(source.malformed(format!("key `{key}` is present twice")));
        }
        let alignment = match metadata.iter().find(|(key, _)| key == "general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some((_, Value::U32(n_bytes))) if n_bytes.is_power_of_two() => u64::from(*n_bytes),
            Some((_, other)) => {
                return Err(source.malformed(format!(
                    "`general.alignment` must be a power of two of type u32, got {}",
                    match other {
                        Value::U32(number) => number.to_string(),
                        other => other.type_name().to_owned(),
                    }
                )));
            }
        };

        let mut tensors = Vec::with_capacity(n_tensors);
        for _ in 0..n_tensors {
            tensors.push(source.tensor_info()?);
        }
        if let Some(name) = first_twin(tensors.iter().map(|tensor| &tensor.name)) {
            return Err(source.malformed(format!("tensor `{name}` is present twice")));
        }
        place_tensors(&mut tensors, &source, alignment)?;

        Ok(Self {
            paths: vec![path.to_owned()],
            version,
            metadata,
            tensors,
            alignment,
        })
    }

    /// The file's path, as it was opened; of a model in shards the first one's.
    pub fn path(&self) -> &Path {
        &self.paths[0]
    }

    /// The paths of all shards, the first of which has the metadata: one, unless it was opened with
    /// [`Gguf::open_with_shards`].
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Takes the tensors of another shard.
    pub(super) fn add_shard(&mut self, shard: Self) {
        let shard_idx = self.paths.len();
        self.paths.extend(shard.paths);
        self.alignment = self.alignment.min(shard.alignment);
        let tensors = shard.tensors.into_iter();
        self.tensors.extend(tensors.map(|tensor| TensorInfo {
            shard_idx,
            ..tensor
        }));
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All keys and values, in the file's order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// What the tensors' offsets are multiples of, counted from the start of the data, in bytes; of a
    /// model in shards the least.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The value of `key`, if it is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let (_, value) = self.metadata.iter().find(|(name, _)| name == key)?;
        Some(value)
    }

    /// The text at `key`, if there is one.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The text at `key`.
    ///
    /// # Errors
    /// When the key is missing or not a string.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        let text = self.str(key);
        text.ok_or_else(|| self.wrong_value(key, "string", self.get(key)))
    }

    /// The number at `key`.
    ///
    /// # Errors
    /// When the key is missing or not a u32.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        match self.get(key) {
            Some(Value::U32(number)) => Ok(*number),
            other => Err(self.wrong_value(key, "u32", other)),
        }
    }

    /// The number at `key`.
    ///
    /// # Errors
    /// When the key is missing or not a f32.
    pub fn require_f32(&self, key: &str) -> Result<f32> {
        match self.get(key) {
            Some(Value::F32(number)) => Ok(*number),
            other => Err(self.wrong_value(key, "f32", other)),
        }
    }

    /// The truth value at `key`.
    ///
    /// # Errors
    /// When the key is missing or not a bool.
    pub fn require_bool(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            Some(Value::Bool(truth)) => Ok(*truth),
            other => Err(self.wrong_value(key, "bool", other)),
        }
    }

    /// The error for a key that is missing or of the wrong type.
    pub(crate) fn wrong_value(&self, key: &str, expected: &str, got: Option<&Value>) -> Error {
        let path = self.path().display();
        match got {
            None => Error::invalid(format!("`{path}` has no key `{key}`")),
            Some(value) => Error::invalid(format!(
                "`{path}`: key `{key}` must be of type {expected}, but is of type {}",
                value.type_name()
            )),
        }
    }

    /// The tensor of that name, if it is there.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The tensor of that name, which must have these dims.
    ///
    /// # Errors
    /// When it is missing, or has another shape.
    pub fn require_tensor(&self, name: &str, dims: &[u64]) -> Result<&TensorInfo> {
        let tensor = self.tensor(name).ok_or_else(|| {
            Error::invalid(format!(
                "`{}` has no tensor `{name}`",
                self.path().display()
            ))
        })?;
        if tensor.dims != dims {
            let path = self.path_of(tensor).display();
            return Err(Error::invalid(format!(
                "`{path}`: tensor `{name}` must have the dims {dims:?}, but has {:?}",
                tensor.dims
            )));
        }
        Ok(tensor)
    }

    fn path_of(&self, tensor: &TensorInfo) -> &Path {
        &self.paths[tensor.shard_idx]
    }

    /// All values of a tensor of this file.
    ///
    /// # Errors
    /// When the file cannot be read, or the tensor's type has no conversion here.
    pub fn read_f32(&self, tensor: &TensorInfo) -> Result<Vec<f32>> {
        let n_values = size(tensor.dims.iter().product());
        let mut values = vec![0.0; n_values];
        self.read_into(tensor, 0, &mut values)?;
        Ok(values)
    }

    /// Row `row_idx` of a tensor of this file, into `out` of the row's length.
    ///
    /// # Errors
    /// When the file cannot be read, or the tensor's type has no conversion here.
    ///
    /// # Panics
    /// When the tensor has no such row, or `out` has another length.
    pub fn read_row_f32(&self, tensor: &TensorInfo, row_idx: usize, out: &mut [f32]) -> Result<()> {
        assert_eq!(
            out.len(),
            size(tensor.dims[0]),
            "one row of `{}`",
            tensor.name
        );
        self.read_into(tensor, row_idx, out)
    }

    /// Hands out a tensor's bytes as they lie in the file, block by block.
    ///
    /// # Errors
    /// When the file cannot be read, and those of `take`.
    pub(crate) fn for_each_block(
        &self,
        tensor: &TensorInfo,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        const BLOCK_BYTES: usize = 1 << 20;
        let path = self.path_of(tensor);
        let mut file = input_file::open(path)?;
        file.seek(SeekFrom::Start(tensor.offset))
            .map_err(Error::io("read", path))?;
        let mut n_left = size(tensor.n_bytes);
        let mut block = vec![0; BLOCK_BYTES.min(n_left)];
        while n_left > 0 {
            let block = &mut block[..BLOCK_BYTES.min(n_left)];
            file.read_exact(block).map_err(Error::io("read", path))?;
            take(block)?;
            n_left -= block.len();
        }
        Ok(())
    }

    /// Reads rows from `first_row` on, as many as `out` holds.
    fn read_into(&self, tensor: &TensorInfo, first_row: usize, out: &mut [f32]) -> Result<()> {
        let n_columns = size(tensor.dims[0]);
        let mut rows = self.rows(tensor, first_row, out.len() / n_columns)?;
        for row in out.chunks_exact_mut(n_columns) {
            let (_, values) = rows.next()?.expect("rows of the tensor");
            row.copy_from_slice(values);
        }
        Ok(())
    }

    /// Starts to read `n_rows` rows of a tensor of this file, from `first_row` on.
    ///
    /// # Errors
    /// When the file cannot be read, or the tensor's type has no conversion here.
    ///
    /// # Panics
    /// When the tensor does not have these rows.
    pub(crate) fn rows(
        &self,
        tensor: &TensorInfo,
        first_row: usize,
        n_rows: usize,
    ) -> Result<Rows<'_>> {
        let path = self.path_of(tensor);
        if !tensor.tensor_type.is_convertible() {
            return Err(Error::invalid(format!(
                "`{}`: tensor `{}` has the type {}, whose numbers cannot be read here",
                path.display(),
                tensor.name,
                tensor.tensor_type.name()
            )));
        }
        let n_columns = size(tensor.dims[0]);
        let row_bytes = tensor.tensor_type.row_bytes(n_columns);
        let row_bytes = row_bytes.expect("checked by `open`");
        let start = (first_row * row_bytes) as u64;
        let length = (n_rows * row_bytes) as u64;
        assert!(
            start + length <= tensor.n_bytes,
            "rows of `{}`",
            tensor.name
        );
        let mut file = input_file::open(path)?;
        file.seek(SeekFrom::Start(tensor.offset + start))
            .map_err(Error::io("read", path))?;
        Ok(Rows {
            file: BufReader::with_capacity(1 << 20, file.take(length)),
            path,
            tensor_type: tensor.tensor_type,
            bytes: vec![0; row_bytes],
            values: vec![0.0; n_columns],
            n_left: n_rows,
        })
    }
}

/// Rows of a tensor that are being read.
pub(crate) struct Rows<'a> {
    file: BufReader<Take<File>>,
    path: &'a Path,
    tensor_type: TensorType,
    bytes: Vec<u8>,   // of one row, reused
    values: Vec<f32>, // of one row, reused
    n_left: usize,
}

impl Rows<'_> {
    /// The next row as it lies in the file and as f32, and `None` after the last.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn next(&mut self) -> Result<Option<(&[u8], &[f32])>> {
        if self.n_left == 0 {
            return Ok(None);
        }
        self.n_left -= 1;
        self.file
            .read_exact(&mut self.bytes)
            .map_err(Error::io("read", self.path))?;
        self.tensor_type.dequantize(&self.bytes, &mut self.values);
        Ok(Some((&self.bytes, &self.values)))
    }
}

/// The first name that is present twice.
pub(super) fn first_twin<'a>(
    names: impl ExactSizeIterator<Item = &'a String>,
) -> Option<&'a String> {
    let mut seen = HashSet::with_capacity(names.len());
    names.into_iter().find(|&name| !seen.insert(name))
}

/// A size that fits in the address space, since it was checked against a file's length.
fn size(n: u64) -> usize {
    usize::try_from(n).expect("no larger than the file")
}

/// Turns offsets into the data into offsets into the file. As llama.cpp demands, each tensor follows
/// on the one before, padded to the alignment.
fn place_tensors(tensors: &mut [TensorInfo], source: &Source, alignment: u64) -> Result<()> {
    let data_start = source.position.next_multiple_of(alignment);
    let mut expected: u64 = 0;
    for tensor in tensors {
        if tensor.offset != expected {
            return Err(source.malformed(format!(
                "tensor `{}` is at offset {} of the data, expected {expected}",
                tensor.name, tensor.offset
            )));
        }
        tensor.offset = data_start + expected;
        let end = tensor.offset.checked_add(tensor.n_bytes);
        if end.is_none_or(|end| end > source.n_bytes) {
            return Err(source
                .malformed(format!(
                    "it ends within tensor `{}`, which needs {} bytes from byte {} on, but the file has {}",
                    tensor.name, tensor.n_bytes, tensor.offset, source.n_bytes
                ))
                .with_hint("the file is incomplete: download or convert it again"));
        }
        expected += tensor.n_bytes.next_multiple_of(alignment);
    }
    Ok(())
}
