//! NumPy's `.npz`: a zip of `.npy` arrays, stored or deflated.
//!
//! Stored arrays are read where they lie; deflated ones are unpacked into a temporary folder first.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use npyz::{NpyHeader, Order, TypeStr};
use tempfile::{NamedTempFile, TempDir};
use zip::read::ZipFile;
use zip::{CompressionMethod, ZipArchive};

use crate::weights::StoredTensor;
use crate::{Error, Result, input_file};

/// Largest header of an array; NumPy writes fewer than 200 bytes.
const MAX_HEADER_BYTES: u32 = 1 << 16;

/// How far weights may shrink in a zip, besides a megabyte of zeros: random numbers hardly do, and
/// what shrinks more is no SAE.
const MAX_RATIO: u64 = 32;
const FREE_BYTES: u64 = 1 << 20;

/// The arrays of the file at `path` by their names, and the folder that holds those that were
/// unpacked, which has to outlive them.
///
/// # Errors
/// A file that cannot be read, is no zip or is damaged; an array that is not of 32-bit floats in C
/// order, or has another length than its header says.
pub(super) fn read(path: &Path) -> Result<(BTreeMap<String, StoredTensor>, Option<TempDir>)> {
    let malformed = |error: zip::result::ZipError| {
        Error::invalid(format!("cannot read `{}` as npz: {error}", path.display()))
            .with_hint("the file is truncated or damaged: download it again")
    };
    let mut archive =
        ZipArchive::new(BufReader::new(input_file::open(path)?)).map_err(malformed)?;
    let mut tensors = BTreeMap::new();
    let mut unpacked = None;
    for idx in 0..archive.len() {
        let entry = archive.by_index(idx).map_err(malformed)?;
        let file_name = entry.name().map_err(malformed)?.into_owned();
        let Some(name) = file_name.strip_suffix(".npy") else {
            return Err(Error::invalid(format!(
                "cannot read `{}` as npz: `{file_name}` in it is no `.npy` array",
                path.display(),
            )));
        };
        let array = match entry.compression() {
            CompressionMethod::Stored => Array {
                path: path.to_owned(),
                start: entry.data_start().ok_or_else(|| {
                    malformed(zip::result::ZipError::InvalidArchive("no data".into()))
                })?,
                n_bytes: entry.size(),
            },
            _ => unpack(entry, name, path, &mut unpacked)?,
        };
        let tensor = array.tensor(name, path)?;
        if tensors.insert(name.to_owned(), tensor).is_some() {
            return Err(Error::invalid(format!(
                "cannot read `{}` as npz: it holds `{name}` twice",
                path.display()
            )));
        }
    }
    Ok((tensors, unpacked))
}

/// Where an array's bytes are.
struct Array {
    path: PathBuf,
    start: u64,
    n_bytes: u64,
}

fn unpack<R: Read>(
    mut entry: ZipFile<'_, R>,
    name: &str,
    path: &Path,
    unpacked: &mut Option<TempDir>,
) -> Result<Array> {
    let (n_bytes, n_packed) = (entry.size(), entry.compressed_size());
    if n_bytes.saturating_sub(FREE_BYTES) / MAX_RATIO > n_packed {
        return Err(Error::invalid(format!(
            "cannot read `{}` as npz: {n_packed} bytes of `{name}` unpack to {n_bytes}, which is more than weights do",
            path.display(),
        )));
    }
    if unpacked.is_none() {
        *unpacked = Some(TempDir::new().map_err(Error::io("unpack", path))?);
    }
    let dir = unpacked.as_ref().expect("made above").path();
    let file = NamedTempFile::new_in(dir).map_err(Error::io("unpack", path))?;
    let kept = file
        .keep()
        .map_err(|error| Error::io("unpack", path)(error.error));
    let (mut file, target) = kept?;
    // A zip may hold more than it says.
    let n_copied = io::copy(&mut entry.by_ref().take(n_bytes), &mut file)
        .map_err(Error::io("unpack", path))?;
    if n_copied != n_bytes {
        return Err(Error::invalid(format!(
            "cannot read `{}` as npz: `{name}` has {n_copied} bytes, and its entry says {n_bytes}",
            path.display(),
        )));
    }
    Ok(Array {
        path: target,
        start: 0,
        n_bytes,
    })
}

impl Array {
    /// Reads the array's header.
    fn tensor(self, name: &str, npz: &Path) -> Result<StoredTensor> {
        let described = format!("array `{name}` of `{}`", npz.display());
        let malformed = |what: String| {
            Error::invalid(format!("cannot read {described}: {what}"))
                .with_hint("the file is truncated or damaged: download it again")
        };
        let mut file = input_file::open(&self.path)?;
        // `\x93NUMPY`, the version, and the length of the header that follows.
        let mut start = [0; 12];
        file.seek(SeekFrom::Start(self.start))
            .and_then(|_| file.read_exact(&mut start))
            .map_err(|error| malformed(error.to_string()))?;
        let length = match start[6] {
            1 => u32::from(u16::from_le_bytes([start[8], start[9]])),
            _ => u32::from_le_bytes([start[8], start[9], start[10], start[11]]),
        };
        if length > MAX_HEADER_BYTES {
            return Err(malformed(format!("its header claims {length} bytes")));
        }
        file.seek(SeekFrom::Start(self.start))
            .map_err(|error| malformed(error.to_string()))?;
        let mut reader = file.take(self.n_bytes);
        let header =
            NpyHeader::from_reader(&mut reader).map_err(|error| malformed(error.to_string()))?;
        let n_header_bytes = self.n_bytes - reader.limit();
        check_type(&header, &described)?;
        let shape: Vec<usize> = header
            .shape()
            .iter()
            .map(|&size| usize::try_from(size).ok())
            .collect::<Option<_>>()
            .ok_or_else(|| malformed("its shape is too large".to_owned()))?;
        let n_values = shape.iter().try_fold(4_u64, |product, &size| {
            product.checked_mul(u64::try_from(size).ok()?)
        });
        if n_values.and_then(|n_data| n_data.checked_add(n_header_bytes)) != Some(self.n_bytes) {
            return Err(malformed(format!(
                "its shape is {shape:?}, and it has {} bytes",
                self.n_bytes
            )));
        }
        Ok(StoredTensor::f32_at(
            self.path,
            format!("{name} of {}", npz.display()),
            shape,
            self.start + n_header_bytes,
        ))
    }
}

fn check_type(header: &NpyHeader, described: &str) -> Result<()> {
    let float32: TypeStr = "<f4".parse().expect("NumPy's word for it");
    let is_float32 = matches!(header.dtype(), npyz::DType::Plain(found) if found == float32);
    let n_dims = header.shape().len();
    if !is_float32 || (header.order() == Order::Fortran && n_dims > 1) {
        return Err(Error::invalid(format!(
            "{described} is {} in {:?} order, expected `<f4` in C order",
            header.dtype().descr(),
            header.order()
        ))
        .with_hint("save it again with `numpy.ascontiguousarray(array, dtype=numpy.float32)`"));
    }
    Ok(())
}
