//! What tells a file from any other, whatever it is called.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{CancelFlag, Error, Result};

/// A file's length and hash.
pub(super) fn identity(path: &Path, cancel: &CancelFlag) -> Result<String> {
    let read_error = || Error::io("read", path);
    let mut file = File::open(path).map_err(read_error())?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        if cancel.is_cancelled() {
            return Err(Error::interrupted());
        }
        match file.read(&mut buffer).map_err(read_error())? {
            0 => break,
            n_read => hasher.update(&buffer[..n_read]),
        };
    }
    let hash = hasher.finalize().to_hex();
    Ok(format!("{} bytes, blake3 {hash}", hasher.count()))
}
