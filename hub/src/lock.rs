//! Locks between processes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs4::fs_std::FileExt;
use gguf_tools::{Error, Result};

use crate::hub::Hub;

/// How often a lock that somebody else has is tried.
const TICK: Duration = Duration::from_millis(100);

/// A file that one process has at a time; it is free again when this is dropped, or the process ends.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    _file: File,
}

impl Hub {
    /// Locks the file at `path`, which is made if need be and stays. While another process has it, this
    /// waits; `on_wait` is called once before.
    ///
    /// # Errors
    /// The operating system's; when asked to stop.
    pub fn lock(&self, path: &Path, on_wait: impl FnOnce()) -> Result<Lock> {
        let refused = || Error::io("lock", path);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).open(path);
        let file = file.map_err(refused())?;
        let mut on_wait = Some(on_wait);
        while !file.try_lock_exclusive().map_err(refused())? {
            if let Some(on_wait) = on_wait.take() {
                on_wait();
            }
            self.client.check_cancelled()?;
            std::thread::sleep(TICK);
        }
        Ok(Lock { _file: file })
    }
}

/// The path with `.lock` behind its name.
pub(crate) fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}
