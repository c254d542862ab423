//! Writes GGUF files, tensor by tensor.

use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::value::Scalar;
use super::{DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME_BYTES, TensorType, Value, tensor_bytes};
use crate::{Error, Result};

/// The version written.
const VERSION: u32 = 3;

/// What to do when the target exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Leave it alone, which is an error.
    Refuse,
    /// Put the new file in its place, once that is complete.
    Replace,
}

/// A GGUF file whose header is being put together.
///
/// The file is written beside its target and renamed by [`TensorWriter::finish`]; until then the
/// target is untouched, and dropping either writer leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    file: NamedTempFile,
    target: PathBuf,
    overwrite: Overwrite,
    metadata: Vec<(String, Value)>,
    tensors: Vec<Declared>,
}

/// A tensor to be written.
#[derive(Debug)]
struct Declared {
    name: String,
    dims: Vec<u64>,
    tensor_type: TensorType,
}

impl Writer {
    /// Begins a file that is to become `target`.
    ///
    /// # Errors
    /// When the target exists and must not be replaced, or its folder cannot be written to.
    pub fn create(target: &Path, overwrite: Overwrite) -> Result<Self> {
        if overwrite == Overwrite::Refuse && target.exists() {
            return Err(already_exists(target));
        }
        if target.is_dir() {
            return Err(Error::invalid(format!(
                "cannot write `{}`: it is a folder",
                target.display()
            )));
        }
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".gguf-tools-").suffix(".partial");
        // Temporary files are private by default, but this one becomes an ordinary file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder
            .tempfile_in(folder)
            .map_err(Error::io("create", target))?;
        Ok(Self {
            file,
            target: target.to_owned(),
            overwrite,
            metadata: Vec::new(),
            tensors: Vec::new(),
        })
    }

    /// Adds a metadata value.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.push((key.to_owned(), value.into()));
    }

    /// Adds a tensor, whose values follow in the order of declaration; dims are in ggml's order, the
    /// contiguous one first.
    pub fn declare(&mut self, name: &str, dims: &[u64], tensor_type: TensorType) {
        self.tensors.push(Declared {
            name: name.to_owned(),
            dims: dims.to_owned(),
            tensor_type,
        });
    }

    /// Writes the header.
    ///
    /// # Errors
    /// When keys or tensors are there twice or break one of ggml's limits, or the file cannot be
    /// written.
    pub fn begin(self) -> Result<TensorWriter> {
        let mut header = Vec::from(MAGIC);
        VERSION.encode(&mut header);
        (self.tensors.len() as u64).encode(&mut header);
        (self.metadata.len() as u64).encode(&mut header);

        let mut keys = HashSet::new();
        for (key, value) in &self.metadata {
            if key.is_empty() || !keys.insert(key.as_str()) {
                return Err(self.refused(format!("key `{key}` is empty or set twice")));
            }
            key.encode(&mut header);
            value.encode(&mut header);
        }

        let mut names = HashSet::new();
        let mut planned = Vec::with_capacity(self.tensors.len());
        let mut offset = 0;
        for Declared {
            name,
            dims,
            tensor_type,
        } in &self.tensors
        {
            if name.len() > MAX_NAME_BYTES || !names.insert(name.as_str()) {
                return Err(self.refused(format!(
                    "tensor name `{name}` is too long or declared twice"
                )));
            }
            let fits = (1..=MAX_DIMS).contains(&dims.len()) && tensor_type.is_convertible();
            let Some(n_bytes) = fits.then(|| tensor_bytes(*tensor_type, dims)).flatten() else {
                return Err(self.refused(format!(
                    "tensor `{name}` cannot have the dims {dims:?} with type {}",
                    tensor_type.name()
                )));
            };
            name.encode(&mut header);
            (dims.len() as u32).encode(&mut header);
            dims.iter().for_each(|dim| dim.encode(&mut header));
            tensor_type.code().encode(&mut header);
            u64::encode(&offset, &mut header);
            planned.push(Planned {
                name: name.clone(),
                tensor_type: *tensor_type,
                n_columns: dims[0] as usize,
                n_bytes,
            });
            offset += n_bytes.next_multiple_of(DEFAULT_ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);

        let mut writer = TensorWriter {
            file: BufWriter::with_capacity(1 << 20, self.file),
            target: self.target,
            overwrite: self.overwrite,
            tensors: planned,
            current_idx: 0,
            n_written: 0,
            row: Vec::new(),
        };
        writer.write(&header)?;
        Ok(writer)
    }

    fn refused(&self, why: String) -> Error {
        Error::invalid(format!("cannot write `{}`: {why}", self.target.display()))
    }
}

/// A GGUF file whose header stands and whose tensors are being written.
#[derive(Debug)]
pub struct TensorWriter {
    file: BufWriter<NamedTempFile>,
    target: PathBuf,
    overwrite: Overwrite,
    tensors: Vec<Planned>,
    /// The tensor whose values come next.
    current_idx: usize,
    /// Bytes of the current tensor that are written.
    n_written: u64,
    row: Vec<u8>, // one quantised row, reused
}

/// A tensor whose place in the file is fixed.
#[derive(Debug)]
struct Planned {
    name: String,
    tensor_type: TensorType,
    n_columns: usize,
    n_bytes: u64,
}

impl TensorWriter {
    /// Appends whole rows to the current tensor, converted to its type.
    ///
    /// # Errors
    /// When a value is not finite or not within the type's range, the values are not whole rows or
    /// too many for the current tensor, or the file cannot be written.
    pub fn write_f32(&mut self, values: &[f32]) -> Result<()> {
        let tensor = self.current()?;
        let (tensor_type, n_columns) = (tensor.tensor_type, tensor.n_columns);
        if !values.len().is_multiple_of(n_columns) {
            return Err(self.refused(format!(
                "tensor `{}` has rows of {n_columns} values, got {}",
                tensor.name,
                values.len()
            )));
        }
        if let Some(value) = values.iter().find(|value| !tensor_type.can_hold(**value)) {
            return Err(self
                .refused(format!(
                    "tensor `{}` has the value {value}, which type {} cannot hold",
                    tensor.name,
                    tensor_type.name()
                ))
                .with_hint("check the source, or use a type of wider range: f32"));
        }
        let row_bytes = tensor_type
            .row_bytes(n_columns)
            .expect("checked by `begin`");
        self.check_room(values.len() / n_columns * row_bytes)?;
        let mut row = std::mem::take(&mut self.row);
        for values in values.chunks_exact(n_columns) {
            row.clear();
            tensor_type.quantize(values, &mut row);
            self.write_raw(&row)?;
        }
        self.row = row;
        Ok(())
    }

    /// Appends bytes that are already in the current tensor's type.
    ///
    /// # Errors
    /// When they are too many for the current tensor, or the file cannot be written.
    pub fn write_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.check_room(bytes.len())?;
        self.write(bytes)?;
        self.n_written += bytes.len() as u64;
        let n_bytes = self.current()?.n_bytes;
        if self.n_written == n_bytes {
            let n_padding = n_bytes.next_multiple_of(DEFAULT_ALIGNMENT) - n_bytes;
            self.write(&[0; DEFAULT_ALIGNMENT as usize][..n_padding as usize])?;
            self.current_idx += 1;
            self.n_written = 0;
        }
        Ok(())
    }

    fn current(&self) -> Result<&Planned> {
        let tensor = self.tensors.get(self.current_idx);
        tensor.ok_or_else(|| self.refused("all declared tensors are complete".to_owned()))
    }

    fn check_room(&self, n_bytes: usize) -> Result<()> {
        let tensor = self.current()?;
        let n_missing = tensor.n_bytes - self.n_written;
        if n_bytes as u64 <= n_missing {
            return Ok(());
        }
        Err(self.refused(format!(
            "tensor `{}` lacks {n_missing} bytes, got {n_bytes}",
            tensor.name
        )))
    }

    /// Completes the file and puts it in its target's place.
    ///
    /// # Errors
    /// When values are missing, the disk is full, or the target has come into being meanwhile and
    /// must not be replaced.
    pub fn finish(mut self) -> Result<()> {
        if let Some(tensor) = self.tensors.get(self.current_idx) {
            return Err(self.refused(format!("tensor `{}` is incomplete", tensor.name)));
        }
        let failed = |source| Error::io("write", &self.target)(source);
        self.file.flush().map_err(failed)?;
        let file = self
            .file
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        let persisted = match self.overwrite {
            Overwrite::Replace => file.persist(&self.target),
            Overwrite::Refuse => file.persist_noclobber(&self.target),
        };
        match persisted {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(already_exists(&self.target))
            }
            Err(error) => Err(failed(error.error)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(Error::io("write", &self.target))
    }

    fn refused(&self, why: String) -> Error {
        Error::invalid(format!("cannot write `{}`: {why}", self.target.display()))
    }
}

fn already_exists(target: &Path) -> Error {
    Error::invalid(format!("`{}` exists already", target.display()))
        .with_hint("give another output, or `--force` to overwrite it")
}
