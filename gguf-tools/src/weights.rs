//! Weights in safetensors files: where each tensor lies, and its values as f32, some at a time.
//!
//! Only headers are held in memory, so that no checkpoint is too large for the machine that converts
//! it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::gguf::TensorType;
use crate::input_file::{LFS_POINTER_START, lfs_pointer_error};
use crate::{Error, Result, input_file, json_file};

/// Numbers read from a file at once, at most, unless one row has more.
const BLOCK_VALUES: usize = 1 << 20;

/// Largest header that is read. The format allows 100 MB, but names are held several times, and those
/// of models take a megabyte at most.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// A tensor in a safetensors file.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    path: PathBuf,
    name: String,
    dtype: Dtype,
    /// Row-major: the last dimension is contiguous.
    shape: Vec<usize>,
    /// From the start of the file, in bytes.
    offset: u64,
}

/// Reads and checks the header of the safetensors file at `path`: its tensors by their names.
///
/// # Errors
/// A file that cannot be read, is not safetensors, or is damaged.
pub(crate) fn read_header(path: &Path) -> Result<BTreeMap<String, StoredTensor>> {
    let malformed = |what: String| {
        Error::invalid(format!(
            "cannot read `{}` as safetensors: {what}",
            path.display()
        ))
    };
    let mut file = input_file::open(path)?;
    let n_file_bytes = file.metadata().map_err(Error::io("read", path))?.len();
    let mut length = [0; 8];
    if n_file_bytes < length.len() as u64 {
        return Err(malformed(format!("it has only {n_file_bytes} bytes")));
    }
    file.read_exact(&mut length)
        .map_err(Error::io("read", path))?;
    if length == LFS_POINTER_START {
        return Err(lfs_pointer_error(path));
    }
    let n_header_bytes = u64::from_le_bytes(length);
    if n_header_bytes > MAX_HEADER_BYTES.min(n_file_bytes - 8) {
        return Err(malformed(format!(
            "its header claims {n_header_bytes} bytes, the file has {n_file_bytes}"
        )));
    }
    let mut header = vec![0; n_header_bytes as usize];
    file.read_exact(&mut header)
        .map_err(Error::io("read", path))?;
    let metadata: Metadata = json_file::parse(&header)
        .map_err(|error| malformed(format!("its header is malformed: {error}")))?;

    let start = 8 + n_header_bytes;
    // `Metadata` has checked that the data's bits can be counted in 64 bits: this cannot overflow.
    let n_expected_bytes = start + metadata.data_len() as u64;
    if n_file_bytes != n_expected_bytes {
        return Err(malformed(format!(
            "its header describes {n_expected_bytes} bytes, the file has {n_file_bytes}"
        ))
        .with_hint("the file is truncated or damaged: download it again"));
    }
    Ok(metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let tensor = StoredTensor {
                path: path.to_path_buf(),
                name: name.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: start + info.data_offsets.0 as u64,
            };
            (name, tensor)
        })
        .collect())
}

impl StoredTensor {
    /// A tensor that lies in a file of another format, from the byte `offset` on; errors name it
    /// `name`.
    pub(crate) fn at(
        path: PathBuf,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        offset: u64,
    ) -> Self {
        Self {
            path,
            name,
            dtype,
            shape,
            offset,
        }
    }

    /// Names the tensor and its file in an error: `` tensor `W_enc` of `file` ``.
    pub(crate) fn describe(&self) -> String {
        format!("tensor `{}` of `{}`", self.name, self.path.display())
    }

    /// The number type, if GGUF has it too.
    pub(crate) fn tensor_type(&self) -> Option<TensorType> {
        match self.dtype {
            Dtype::F32 => Some(TensorType::F32),
            Dtype::F16 => Some(TensorType::F16),
            Dtype::BF16 => Some(TensorType::Bf16),
            _ => None,
        }
    }

    /// The file that holds it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// As the file spells it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Row-major: the last dimension is contiguous.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Checks that this is a floating-point tensor of `shape`.
    ///
    /// # Errors
    /// Another shape or number type.
    pub(crate) fn check(&self, shape: &[usize]) -> Result<()> {
        if self.shape != shape {
            return Err(Error::invalid(format!(
                "{} has shape {:?}, expected {shape:?}",
                self.describe(),
                self.shape
            )));
        }
        if !matches!(
            self.dtype,
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16
        ) {
            return Err(Error::invalid(format!(
                "{} has number type {:?}, expected F64, F32, F16 or BF16",
                self.describe(),
                self.dtype
            ))
            .with_hint("quantised weights are not read: convert the original ones"));
        }
        Ok(())
    }

    /// Bytes in the file.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.bytes_of(self.shape.iter().product())
    }

    fn bytes_of(&self, n_values: usize) -> u64 {
        (n_values * self.dtype.bitsize() / 8) as u64
    }

    /// Opens a tensor that passed [`StoredTensor::check`].
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn open(&self) -> Result<OpenTensor<'_>> {
        Ok(OpenTensor {
            tensor: self,
            file: input_file::open(&self.path)?,
            bytes: Vec::new(),
        })
    }

    /// All values of a tensor that passed [`StoredTensor::check`], of which there are few.
    ///
    /// # Errors
    /// The operating system's, and a value that is NaN or infinite.
    pub(crate) fn read_all(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.shape.iter().product()];
        self.open()?.read_at(0, &mut values)?;
        self.check_finite(&values, 0)?;
        Ok(values)
    }

    /// Checks values that were read from `first_idx` on.
    ///
    /// # Errors
    /// A value that is NaN or infinite.
    pub(crate) fn check_finite(&self, values: &[f32], first_idx: usize) -> Result<()> {
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(idx) => Err(self.not_finite(values[idx], &format!("index {}", first_idx + idx))),
        }
    }

    /// The error for a `value` that is NaN or infinite.
    pub(crate) fn not_finite(&self, value: f32, place: &str) -> Error {
        Error::invalid(format!(
            "{} holds {value} at {place}, expected finite numbers",
            self.describe()
        ))
        .with_hint("the file is damaged, or its training diverged")
    }

    /// Opens a tensor that passed [`StoredTensor::check`], to be read from its start in blocks of
    /// whole rows of the last dimension.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn blocks(&self) -> Result<Blocks<'_>> {
        let row_values = self.shape.last().copied().unwrap_or(1);
        Ok(Blocks {
            open: self.open()?,
            n_done: 0,
            n_values: self.shape.iter().product(),
            block_values: row_values * (BLOCK_VALUES / row_values.max(1)).max(1),
            values: Vec::new(),
        })
    }
}

/// A tensor whose values are being read.
#[derive(Debug)]
pub(crate) struct OpenTensor<'a> {
    tensor: &'a StoredTensor,
    file: File,
    bytes: Vec<u8>, // of one read, reused
}

impl OpenTensor<'_> {
    /// Fills `values` with those from `first_idx` on, in the file's order, and returns how many bytes
    /// they take in the file.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn read_at(&mut self, first_idx: usize, values: &mut [f32]) -> Result<u64> {
        let tensor = self.tensor;
        let n_bytes = tensor.bytes_of(values.len());
        self.bytes.resize(n_bytes as usize, 0);
        self.file
            .seek(SeekFrom::Start(tensor.offset + tensor.bytes_of(first_idx)))
            .and_then(|_| self.file.read_exact(&mut self.bytes))
            .map_err(Error::io("read", &tensor.path))?;
        match tensor.dtype {
            Dtype::F64 => decode(&self.bytes, values, |bytes| {
                f64::from_le_bytes(bytes) as f32
            }),
            Dtype::F32 => decode(&self.bytes, values, f32::from_le_bytes),
            Dtype::F16 => decode(&self.bytes, values, |bytes| {
                f16::from_le_bytes(bytes).to_f32()
            }),
            Dtype::BF16 => decode(&self.bytes, values, |bytes| {
                bf16::from_le_bytes(bytes).to_f32()
            }),
            other => unreachable!("`check` lets no {other:?} pass"),
        }
        Ok(n_bytes)
    }
}

/// The values of a tensor in the file's order, some megabytes at a time.
pub(crate) struct Blocks<'a> {
    open: OpenTensor<'a>,
    /// Values that are read already.
    n_done: usize,
    n_values: usize,
    /// Whole rows of the last dimension.
    block_values: usize,
    values: Vec<f32>, // of one block, reused
}

impl Blocks<'_> {
    /// The next rows as f32, with the bytes they take in the file, and `None` after the last. The
    /// caller may change the values in place.
    ///
    /// # Errors
    /// The operating system's, and a value that is NaN or infinite.
    pub(crate) fn next(&mut self) -> Result<Option<(&mut [f32], u64)>> {
        let n_values = self.block_values.min(self.n_values - self.n_done);
        if n_values == 0 {
            return Ok(None);
        }
        self.values.resize(n_values, 0.0);
        let first_idx = self.n_done;
        let n_bytes = self.open.read_at(first_idx, &mut self.values)?;
        self.n_done += n_values;
        self.open.tensor.check_finite(&self.values, first_idx)?;
        Ok(Some((&mut self.values, n_bytes)))
    }
}

fn decode<const N: usize>(bytes: &[u8], values: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<N>();
    for (value, bytes) in values.iter_mut().zip(numbers) {
        *value = number(*bytes);
    }
}
