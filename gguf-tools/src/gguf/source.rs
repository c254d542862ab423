//! A GGUF file's header, read piece by piece: no count is believed that the file's length rules out.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::format::{MAGIC, MAX_DIMS, MAX_NAME_BYTES, tensor_bytes};
use super::tensor_type::TensorType;
use crate::{Error, Result, input_file};

/// What a header may take in memory beside as much as the file has bytes. Short texts take several
/// times their length, and those of an SAE are copied once: so the whole stays within twice the file
/// and 64 MiB.
const FREE_BYTES: u64 = 32 << 20;

/// A file that is read from its start, with its position and length known.
pub(super) struct Source {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes read.
    pub(super) position: u64,
    /// The file's length.
    pub(super) n_bytes: u64,
    /// What may still be allocated, in bytes.
    n_free: u64,
}

/// Where a tensor lies in its file, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique in the file.
    pub name: String,
    /// In ggml's order: the contiguous dimension first, so a row-major `[rows, columns]` matrix has
    /// the dims `[columns, rows]`.
    pub dims: Vec<u64>,
    /// The number format.
    pub tensor_type: TensorType,
    /// Which of [`Gguf::paths`](super::Gguf::paths) holds it.
    pub shard_idx: usize,
    /// From the start of its file, in bytes.
    pub offset: u64,
    /// The data's length.
    pub n_bytes: u64,
}

impl Source {
    /// Opens the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = input_file::open(path)?;
        let metadata = file.metadata().map_err(Error::io("read", path))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::new(file),
            position: 0,
            n_bytes: metadata.len(),
            n_free: metadata.len().saturating_add(FREE_BYTES),
        })
    }

    /// The error for a file that is not as GGUF should be.
    pub(super) fn malformed(&self, what: impl AsRef<str>) -> Error {
        Error::invalid(format!(
            "cannot read `{}` as GGUF: {}",
            self.path.display(),
            what.as_ref()
        ))
    }

    /// Checks magic and version, and returns the version.
    pub(super) fn preamble(&mut self) -> Result<u32> {
        if self.n_bytes == 0 {
            return Err(self.malformed("it is empty"));
        }
        let magic: [u8; 4] = self.bytes()?;
        if magic != MAGIC {
            return Err(self
                .malformed(format!(
                    "it starts with `{}`, not with `GGUF`",
                    magic.escape_ascii()
                ))
                .with_hint("convert the original with `llava-sae-cpp convert` first"));
        }
        match self.u32()? {
            version @ 2..=3 => Ok(version),
            version if version.swap_bytes() <= 3 => {
                Err(self.malformed("it is big-endian, which is not supported"))
            }
            version => Err(self.malformed(format!(
                "it has version {version}; versions 2 and 3 are supported"
            ))),
        }
    }

    /// The next `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let n_bytes = bytes.len() as u64;
        if n_bytes > self.n_bytes - self.position {
            return Err(self
                .malformed("it ends within its header")
                .with_hint("the file is incomplete: download or convert it again"));
        }
        self.file
            .read_exact(bytes)
            .map_err(Error::io("read", &self.path))?;
        self.position += n_bytes;
        Ok(())
    }

    /// A count of things that take at least `min_bytes` each in the file, so that it fits in the rest
    /// of that, and `memory_bytes` each in memory, so that they may be allocated at once.
    pub(super) fn length(&mut self, min_bytes: u64, memory_bytes: u64) -> Result<usize> {
        const HINT: &str = "the file is damaged or incomplete: download or convert it again";
        let length = self.u64()?;
        if length > (self.n_bytes - self.position) / min_bytes {
            let what = format!("a count of {length} goes beyond the end of the file");
            return Err(self.malformed(what).with_hint(HINT));
        }
        self.n_free = length
            .checked_mul(memory_bytes)
            .and_then(|n_needed| self.n_free.checked_sub(n_needed))
            .ok_or_else(|| {
                let what =
                    format!("a count of {length} takes too much memory for a file of this size");
                self.malformed(what).with_hint(HINT)
            })?;
        usize::try_from(length).map_err(|_| self.malformed("it does not fit the address space"))
    }

    /// A length and so many bytes of UTF-8.
    pub(super) fn string(&mut self) -> Result<String> {
        let mut bytes = vec![0; self.length(1, 1)?];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.malformed("a string is not valid UTF-8"))
    }

    /// A tensor whose offset still counts from the start of the data.
    pub(super) fn tensor_info(&mut self) -> Result<TensorInfo> {
        let name = self.string()?;
        if name.len() > MAX_NAME_BYTES {
            return Err(self.malformed(format!("the tensor name `{name}` is too long")));
        }
        let n_dims = self.u32()? as usize;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(self.malformed(format!(
                "tensor `{name}` has {n_dims} dimensions, expected 1 to 4"
            )));
        }
        let dims = (0..n_dims)
            .map(|_| self.u64())
            .collect::<Result<Vec<_>>>()?;
        let code = self.u32()?;
        let tensor_type = TensorType::from_code(code).ok_or_else(|| {
            let Some((removed, instead)) = TensorType::removed(code) else {
                return self.malformed(format!("tensor `{name}` has the unknown type {code}"));
            };
            self.malformed(format!(
                "tensor `{name}` has type {code}, `{removed}`, which llama.cpp no longer reads"
            ))
            .with_hint(format!("use a file of this model in `{instead}`"))
        })?;
        let n_bytes = tensor_bytes(tensor_type, &dims).ok_or_else(|| {
            self.malformed(format!(
                "tensor `{name}` has the impossible dims {dims:?} for type {}",
                tensor_type.name()
            ))
        })?;
        Ok(TensorInfo {
            name,
            dims,
            tensor_type,
            shard_idx: 0,
            offset: self.u64()?,
            n_bytes,
        })
    }
}
