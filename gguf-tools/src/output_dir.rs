//! The folder that a conversion writes to.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The folders that were made for a conversion, innermost first. They go when the value is dropped,
/// where they are empty: after a failure. So it must outlive the files being written.
#[derive(Debug)]
#[must_use]
pub struct OutputDir(Vec<PathBuf>);

impl OutputDir {
    /// Makes the folder `dir`, and those above it, if need be.
    ///
    /// # Errors
    /// The operating system's.
    pub fn create(dir: &Path) -> Result<Self> {
        let missing = dir.ancestors().take_while(|dir| !dir.exists());
        let made = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        Ok(made)
    }
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        for dir in &self.0 {
            // The system refuses where the folder has something in it.
            let _ = fs::remove_dir(dir);
        }
    }
}
