//! Opening input files, and reading those of a download that are read whole; weights are not.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// How the text begins that Git leaves in a file's place where Git LFS is not set up. No JSON, no
/// safetensors header and no SentencePiece model begins so.
pub(crate) const LFS_POINTER_START: [u8; 8] = *b"version ";

/// Opens a file for reading.
///
/// # Errors
/// A path that cannot be opened, or is not a regular file: a pipe would keep us waiting.
pub(crate) fn open(path: &Path) -> Result<File> {
    let metadata = path.metadata().map_err(Error::io("open", path))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() {
            "is a folder, not a file"
        } else {
            "is not a regular file"
        };
        return Err(Error::invalid(format!("`{}` {what}", path.display())));
    }
    File::open(path).map_err(Error::io("open", path))
}

/// Reads a file of at most `max_bytes`.
///
/// # Errors
/// A file that cannot be read, is larger, or is a Git LFS pointer.
pub(crate) fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let n_bytes = file.metadata().map_err(Error::io("read", path))?.len();
    if n_bytes > max_bytes {
        return Err(Error::invalid(format!(
            "cannot read `{}`: it has {n_bytes} bytes, expected at most {max_bytes}",
            path.display()
        )));
    }
    let mut bytes = Vec::with_capacity(n_bytes as usize);
    file.take(n_bytes)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.starts_with(&LFS_POINTER_START) {
        return Err(lfs_pointer_error(path));
    }
    Ok(bytes)
}

/// The error for a file that begins with [`LFS_POINTER_START`].
pub(crate) fn lfs_pointer_error(path: &Path) -> Error {
    Error::invalid(format!(
        "cannot read `{}`: it is a Git LFS pointer, not the file itself",
        path.display()
    ))
    .with_hint("fetch the file with `git lfs pull`")
}
