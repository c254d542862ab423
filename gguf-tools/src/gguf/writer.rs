//! Writes GGUF files, tensor by tensor.

use std::collections::HashSet;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::Crc;

use super::format::{MAX_DIMS, MAX_NAME_BYTES, tensor_bytes};
use super::header::{Header, padding};
use super::tensor_type::TensorType;
use super::value::Value;
use crate::new_file::{CompleteFile, NewFile, Overwrite};
use crate::{Error, Result};

/// A GGUF file whose header is being put together.
///
/// The file is written beside its target and renamed by [`TensorWriter::finish`]; until then the
/// target is untouched, and dropping either writer leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    file: NewFile,
    metadata: Vec<(String, Value)>,
    /// The key that the checksum goes to, and what stands for the metadata in it.
    checksum: Option<(String, u32)>,
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
        Ok(Self {
            file: NewFile::create(target, overwrite)?,
            metadata: Vec::new(),
            checksum: None,
            tensors: Vec::new(),
        })
    }

    /// Adds a metadata value.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.push((key.to_owned(), value.into()));
    }

    /// Adds a u32 that becomes the [`checksum`] of `of_metadata` and the tensors once they are written.
    pub(crate) fn set_checksum(&mut self, key: &str, of_metadata: u32) {
        self.set(key, 0_u32);
        self.checksum = Some((key.to_owned(), of_metadata));
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
        let mut header = Header::new(self.tensors.len(), self.metadata.len());
        let mut keys = HashSet::new();
        let mut checksum = None;
        for (key, value) in &self.metadata {
            if key.is_empty() || !keys.insert(key.as_str()) {
                return Err(self.refused(format!("key `{key}` is empty or set twice")));
            }
            header.key(key, value);
            if let Some((_, of_metadata)) = self.checksum.as_ref().filter(|own| own.0 == *key) {
                checksum = Some(Checksum {
                    place: (header.len() - size_of::<u32>()) as u64,
                    crc: Crc::new(),
                    of_parts: vec![*of_metadata],
                });
            }
        }

        let mut names = HashSet::new();
        let mut planned = Vec::with_capacity(self.tensors.len());
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
            header.tensor(name, dims, *tensor_type, n_bytes);
            planned.push(Planned {
                name: name.clone(),
                tensor_type: *tensor_type,
                n_columns: dims[0] as usize,
                n_bytes,
            });
        }

        let mut writer = TensorWriter {
            file: BufWriter::with_capacity(1 << 20, self.file),
            tensors: planned,
            current_idx: 0,
            n_written: 0,
            checksum,
            row: Vec::new(),
        };
        writer.write(&header.finish())?;
        Ok(writer)
    }

    fn refused(&self, why: String) -> Error {
        let target = self.file.target().display();
        Error::invalid(format!("cannot write `{target}`: {why}"))
    }
}

/// A GGUF file whose header is written and whose tensors are being written.
#[derive(Debug)]
pub struct TensorWriter {
    file: BufWriter<NewFile>,
    tensors: Vec<Planned>,
    /// The tensor whose values come next.
    current_idx: usize,
    /// Bytes of the current tensor that are written.
    n_written: u64,
    checksum: Option<Checksum>,
    row: Vec<u8>, // one quantised row, reused
}

/// The checksum of what is written.
#[derive(Debug)]
struct Checksum {
    /// Where it goes, from the start of the file.
    place: u64,
    /// Of the current tensor.
    crc: Crc,
    of_parts: Vec<u32>,
}

/// The checksum of parts, metadata and tensors, whose bytes have these CRC-32s: the CRC-32 of those, four
/// bytes each, the lowest first.
pub(crate) fn checksum(of_parts: &[u32]) -> u32 {
    let mut crc = Crc::new();
    of_parts
        .iter()
        .for_each(|sum| crc.update(&sum.to_le_bytes()));
    crc.sum()
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

    /// Appends bytes that are already in the current tensor's type and for which there is room.
    pub(crate) fn write_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)?;
        self.n_written += bytes.len() as u64;
        if let Some(checksum) = &mut self.checksum {
            checksum.crc.update(bytes);
        }
        let n_bytes = self.current()?.n_bytes;
        if self.n_written == n_bytes {
            if let Some(checksum) = &mut self.checksum {
                checksum.of_parts.push(checksum.crc.sum());
                checksum.crc.reset();
            }
            self.write(padding(n_bytes))?;
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
    pub fn finish(self) -> Result<()> {
        self.complete()?.publish()
    }

    /// Completes the file, which still has to be put in its target's place.
    ///
    /// # Errors
    /// When values are missing, or the disk is full.
    pub(crate) fn complete(mut self) -> Result<CompleteFile> {
        if let Some(tensor) = self.tensors.get(self.current_idx) {
            return Err(self.refused(format!("tensor `{}` is incomplete", tensor.name)));
        }
        let checksum = self.checksum.as_ref();
        let checksum = checksum.map(|own| (own.place, self::checksum(&own.of_parts)));
        let mut end = || -> io::Result<()> {
            if let Some((place, sum)) = checksum {
                self.file.seek(SeekFrom::Start(place))?;
                self.file.write_all(&sum.to_le_bytes())?;
            }
            self.file.flush()
        };
        let ended = end();
        ended.map_err(Error::io("write", self.file.get_ref().target()))?;
        self.file.into_parts().0.complete()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(Error::io("write", self.file.get_ref().target()))
    }

    fn refused(&self, why: String) -> Error {
        let target = self.file.get_ref().target().display();
        Error::invalid(format!("cannot write `{target}`: {why}"))
    }
}
