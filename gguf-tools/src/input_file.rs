//! Opening input files, and reading those of a download that are read whole; weights are not.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// How the text begins that Git leaves in a file's place where Git LFS is not set up. No JSON, no
/// safetensors header and no SentencePiece model begins so.
pub(crate) const LFS_POINTER_START: [u8; 8] = *b"version ";

/// Opens a file for reading.
///
/// # Errors
/// A path that cannot be opened, or is no regular file: a pipe would keep us waiting.
pub(crate) fn open(path: &Path) -> Result<File> {
    let metadata = path.metadata().map_err(Error::io("open", path))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() {
            "is a folder, not a file"
        } else {
            "is no regular file"
        };
        return Err(Error::invalid(format!("`{}` {what}", path.display())));
    }
    File::open(path).map_err(Error::io("open", path))
}

/// Reads a file.
///
/// # Errors
/// A file that cannot be read, or is a Git LFS pointer.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.starts_with(&LFS_POINTER_START) {
        return Err(lfs_pointer_error(path));
    }
    Ok(bytes)
}

/// Reads a JSON file.
///
/// # Errors
/// As [`read`], and a file that is not JSON of the expected form.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?)
        .map_err(|error| Error::invalid(format!("cannot read `{}`: {error}", path.display())))
}

/// As [`read_json`]; `None` if there is no such file.
///
/// # Errors
/// As [`read_json`].
pub(crate) fn read_optional_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if path.exists() {
        read_json(path).map(Some)
    } else {
        Ok(None)
    }
}

/// The error for a file that begins with [`LFS_POINTER_START`].
pub(crate) fn lfs_pointer_error(path: &Path) -> Error {
    Error::invalid(format!(
        "cannot read `{}`: it is a Git LFS pointer, not the file itself",
        path.display()
    ))
    .with_hint("fetch the file with `git lfs pull`")
}
