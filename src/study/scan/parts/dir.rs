//! The folder of a scan's parts: locked while the scan runs, and gone when it is empty.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use fs4::fs_std::FileExt;
use gguf_tools::new_file::{CompleteFile, NewFile, Overwrite, UNFINISHED};

use crate::study::scan::sidecar::Sidecar;
use crate::{Error, Result};

const PREFIX: &str = "part-";
const SUFFIX: &str = ".parquet";
/// Locked while a scan runs.
const LOCK: &str = "lock";

/// The folder beside a scan's target.
pub(super) struct PartsDir {
    path: PathBuf,
    lock: Option<File>,
}

impl PartsDir {
    /// Makes the folder beside `target` and locks it, removes what an earlier scan did not finish, and
    /// lists the parts that it did, by their numbers.
    pub(super) fn open(target: &Path) -> Result<(Self, Vec<(usize, PathBuf)>)> {
        let mut path = target.to_owned().into_os_string();
        path.push(".parts");
        let path = PathBuf::from(path);
        let lock = lock(&path)?;
        let dir = Self { path, lock };
        let mut parts = Vec::new();
        for name in dir.names()? {
            let path = dir.path.join(&name);
            if let Some(part_idx) = part_idx(&name) {
                parts.push((part_idx, path));
            } else if name.ends_with(UNFINISHED) || dir.is_sidecar_alone(&name) {
                remove(&path)?;
            }
        }
        parts.sort_unstable();
        Ok((dir, parts))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a part is.
    pub(super) fn part(&self, part_idx: usize) -> PathBuf {
        self.path.join(format!("{PREFIX}{part_idx:06}{SUFFIX}"))
    }

    /// Begins a file that is to become `target`, here or beside the folder.
    pub(super) fn new_file(&self, target: &Path, overwrite: Overwrite) -> Result<NewFile> {
        NewFile::create_in(&self.path, target, overwrite)
    }

    /// Gives a table and its sidecar their names, here or beside the folder.
    pub(super) fn publish(
        &self,
        table: CompleteFile,
        sidecar: &Sidecar,
        target: &Path,
    ) -> Result<()> {
        let file = self.new_file(&Sidecar::path_of(target), Overwrite::Replace)?;
        sidecar.publish(file, table)
    }

    /// The names in the folder.
    fn names(&self) -> Result<Vec<String>> {
        let read_error = || Error::io("read", &self.path);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(read_error())? {
            let name = entry.map_err(read_error())?.file_name();
            names.extend(name.into_string().ok());
        }
        Ok(names)
    }

    /// Whether it is the sidecar of a part that is not there.
    fn is_sidecar_alone(&self, name: &str) -> bool {
        let table = name.strip_suffix(".json");
        table.is_some_and(|table| part_idx(table).is_some() && !self.path.join(table).exists())
    }
}

impl Drop for PartsDir {
    fn drop(&mut self) {
        // They stay where another scan has them, or where there is something in the folder.
        if let Some(lock) = self.lock.take() {
            let _ = fs::remove_file(self.path.join(LOCK));
            drop(lock);
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Makes the folder and locks it, as far as its file system can.
fn lock(dir: &Path) -> Result<Option<File>> {
    let path = dir.join(LOCK);
    loop {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", dir)(error));
            }
            _ => {}
        }
        let file = match File::create(&path) {
            // Another scan has ended meanwhile, here and below, and removed its folder.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(Error::io("write", &path))?,
        };
        match file.try_lock_exclusive() {
            Ok(false) => {
                return Err(Error::invalid(format!(
                    "another scan is writing to `{}`",
                    dir.display()
                ))
                .with_hint("wait until it ends, or give another output"));
            }
            Ok(true) => {}
            Err(error) => log::debug!("`{}` cannot be locked: {error}", path.display()),
        }
        if path.exists() {
            return Ok(Some(file));
        }
    }
}

fn part_idx(name: &str) -> Option<usize> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    digits.parse().ok()
}

/// Removes a table and its sidecar.
pub(super) fn remove_part(path: &Path) -> Result<()> {
    remove(path)?;
    remove(&Sidecar::path_of(path))
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
