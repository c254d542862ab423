//! NumPy's `.npz`: a zip of `.npy` arrays, stored or deflated.
//!
//! Stored arrays are read where they lie; deflated ones are unpacked into a temporary folder first.

mod npy;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tempfile::{NamedTempFile, TempDir};
use zip::read::{Config, ZipFile};
use zip::result::ZipError;
use zip::unstable::read::ZipIterable;
use zip::{CompressionMethod, ZipReadOptions};

use self::npy::{Header, Order};
use crate::weights::StoredTensor;
use crate::{Error, Result, input_file};

/// How far weights may shrink in a zip, besides a megabyte of zeros: random numbers hardly do, and
/// what shrinks more is no SAE.
const MAX_RATIO: u64 = 32;
const FREE_BYTES: u64 = 1 << 20;

/// Most files in a zip; an SAE has five arrays.
const MAX_FILES: usize = 64;

/// The arrays of the file at `path` by their names, and the folder that holds those that were
/// unpacked, which has to outlive them.
///
/// # Errors
/// A file that cannot be read, is not a zip or is damaged; an array that is not of floats in C order, or
/// has another length than its header says.
pub(super) fn read(path: &Path) -> Result<(BTreeMap<String, StoredTensor>, Option<TempDir>)> {
    let broken = |error: ZipError| damaged(path, &error.to_string());
    let file = input_file::open(path)?;
    let n_file_bytes = file.metadata().map_err(Error::io("read", path))?.len();
    // Unlike `ZipArchive`, it reserves no memory for as many files as a directory claims to have.
    let mut zip = ZipIterable::try_new(file, Config::default()).map_err(broken)?;
    if zip.len() > MAX_FILES {
        let what = format!(
            "it holds {} files, which is more than an SAE has",
            zip.len()
        );
        return Err(refused(path, &what));
    }
    let contents = input_file::open(path)?;
    let mut files = zip
        .files_with_reader(contents, ZipReadOptions::default())
        .map_err(broken)?;
    let mut tensors = BTreeMap::new();
    let mut unpacked = None;
    let mut n_left = n_file_bytes;
    while let Some(file) = files.next() {
        let mut file = file.map_err(broken)?;
        // So that what is unpacked is bounded by the file.
        n_left = n_left
            .checked_sub(file.compressed_size())
            .ok_or_else(|| damaged(path, "its arrays overlap"))?;
        let file_name = file.name().map_err(broken)?.into_owned();
        let Some(name) = file_name.strip_suffix(".npy") else {
            let what = format!("`{file_name}` in it is not an `.npy` array");
            return Err(refused(path, &what));
        };
        let array = match file.compression() {
            CompressionMethod::Stored => stored(&file, name, path, n_file_bytes)?,
            _ => unpack(&mut file, name, path, &mut unpacked)?,
        };
        let tensor = array.tensor(name, path)?;
        if tensors.insert(name.to_owned(), tensor).is_some() {
            return Err(refused(path, &format!("it holds `{name}` twice")));
        }
    }
    Ok((tensors, unpacked))
}

fn refused(path: &Path, what: &str) -> Error {
    Error::invalid(format!("cannot read `{}` as npz: {what}", path.display()))
}

fn damaged(path: &Path, what: &str) -> Error {
    refused(path, what).with_hint("the file is truncated or damaged: download it again")
}

/// Where an array's bytes are.
struct Array {
    path: PathBuf,
    start: u64,
    n_bytes: u64,
}

/// An array that is read where it lies.
fn stored(file: &ZipFile<File>, name: &str, path: &Path, n_file_bytes: u64) -> Result<Array> {
    let n_bytes = file.size();
    let start = file.data_start();
    let end = start.and_then(|start| start.checked_add(n_bytes));
    match (start, end) {
        (Some(start), Some(end)) if end <= n_file_bytes && n_bytes == file.compressed_size() => {
            Ok(Array {
                path: path.to_owned(),
                start,
                n_bytes,
            })
        }
        _ => Err(damaged(
            path,
            &format!("`{name}` claims {n_bytes} bytes, more than the file has"),
        )),
    }
}

fn unpack(
    packed: &mut ZipFile<File>,
    name: &str,
    path: &Path,
    unpacked: &mut Option<TempDir>,
) -> Result<Array> {
    let (n_bytes, n_packed) = (packed.size(), packed.compressed_size());
    if n_bytes.saturating_sub(FREE_BYTES) / MAX_RATIO > n_packed {
        let what = format!(
            "{n_packed} bytes of `{name}` unpack to {n_bytes}, which is more than weights do"
        );
        return Err(refused(path, &what));
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
    // A zip may hold more than it says; its checksum is looked at where it ends.
    let n_copied = io::copy(&mut packed.take(n_bytes + 1), &mut file)
        .map_err(|error| damaged(path, &format!("`{name}`: {error}")))?;
    if n_copied != n_bytes {
        let what = format!("`{name}` differs from the {n_bytes} bytes that were packed");
        return Err(damaged(path, &what));
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
        file.seek(SeekFrom::Start(self.start))
            .map_err(Error::io("read", &self.path))?;
        let header = npy::read(&mut file.take(self.n_bytes)).map_err(malformed)?;
        let dtype = dtype(&header, &described)?;
        let n_data = header
            .shape
            .iter()
            .try_fold((dtype.bitsize() / 8) as u64, |product, &size| {
                product.checked_mul(u64::try_from(size).ok()?)
            });
        if n_data.and_then(|n_data| n_data.checked_add(header.n_bytes)) != Some(self.n_bytes) {
            return Err(malformed(format!(
                "its shape is {:?}, and it has {} bytes",
                header.shape, self.n_bytes
            )));
        }
        Ok(StoredTensor::at(
            self.path,
            format!("{name} of {}", npz.display()),
            dtype,
            header.shape,
            self.start + header.n_bytes,
        ))
    }
}

/// The number type of an array in C order.
fn dtype(header: &Header, described: &str) -> Result<Dtype> {
    let dtype = match header.descr.as_str() {
        "<f8" => Some(Dtype::F64),
        "<f4" => Some(Dtype::F32),
        "<f2" => Some(Dtype::F16),
        _ => None,
    };
    let is_in_order = header.order == Order::C || header.shape.len() <= 1;
    dtype.filter(|_| is_in_order).ok_or_else(|| {
        Error::invalid(format!(
            "{described} is `{}` in {:?} order, expected `<f8`, `<f4` or `<f2` in C order",
            header.descr, header.order
        ))
        .with_hint("save it again with `numpy.ascontiguousarray(array, dtype=numpy.float32)`")
    })
}
