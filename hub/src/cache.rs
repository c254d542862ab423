//! The hub's cache, as all of its clients lay it out.
//!
//! ```text
//! models--ORG--REPO/blobs/HASH                a file's contents; HASH.incomplete while they arrive
//! models--ORG--REPO/refs/main                 the commit that a branch is at
//! models--ORG--REPO/snapshots/COMMIT/PATH     links to blobs
//! .locks/models--ORG--REPO/HASH.lock          locked while a blob is written
//! ```
//!
//! Source: `file_download.py` of huggingface_hub 1.x.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use gguf_tools::new_file::{NewFile, Overwrite};
use gguf_tools::{Error, Result};

use crate::address::RepoId;
use crate::hash::Hash;
use crate::lock::lock_path;

/// A repository's folder in the cache.
pub(crate) struct RepoCache {
    dir: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(crate) fn new(cache: &Path, repo: &RepoId) -> Self {
        let name = format!("models--{}", repo.as_str().replace('/', "--"));
        Self {
            dir: cache.join(&name),
            locks: cache.join(".locks").join(name),
        }
    }

    pub(crate) fn blob(&self, hash: &Hash) -> PathBuf {
        self.dir.join("blobs").join(hash.hex())
    }

    /// What has arrived of a blob.
    pub(crate) fn incomplete(&self, hash: &Hash) -> PathBuf {
        self.dir
            .join("blobs")
            .join(format!("{}.incomplete", hash.hex()))
    }

    pub(crate) fn lock(&self, hash: &Hash) -> PathBuf {
        lock_path(&self.locks.join(hash.hex()))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The commit that a branch or a tag was at, when it was last asked for.
    pub(crate) fn read_ref(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned())
    }

    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if self.read_ref(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        create_dir_above(&path)?;
        NewFile::create(&path, Overwrite::Replace)?.finish_with(commit.as_bytes())
    }

    /// Gives a blob its name in a snapshot: a link, or, where the system knows none, another name or a copy.
    pub(crate) fn link(&self, commit: &str, path: &str, hash: &Hash) -> Result<()> {
        let pointer = self.snapshot(commit).join(path);
        let blob = self.blob(hash);
        create_dir_above(&pointer)?;
        if is_same_file(&pointer, &blob) {
            return Ok(());
        }
        if pointer.symlink_metadata().is_ok() {
            fs::remove_file(&pointer).map_err(Error::io("replace", &pointer))?;
        }
        let linked = symlink(&relative(path, hash), &pointer)
            .or_else(|_| fs::hard_link(&blob, &pointer))
            .or_else(|error| match error.kind() {
                // Another process was faster.
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => fs::copy(&blob, &pointer).map(|_| ()),
            });
        linked.map_err(Error::io("write", &pointer))
    }

    /// Removes a file from a snapshot, its blob and what had arrived of it; what is not there is no error.
    pub(crate) fn remove(&self, commit: &str, path: &str, hash: &Hash) -> Result<()> {
        let pointer = self.snapshot(commit).join(path);
        for path in [pointer, self.blob(hash), self.incomplete(hash)] {
            remove_if_there(&path)?;
        }
        Ok(())
    }
}

/// From a file of a snapshot to its blob.
fn relative(path: &str, hash: &Hash) -> PathBuf {
    // Out of the folders in the snapshot, the snapshot, and `snapshots`.
    let up = "../".repeat(path.split('/').count() + 1);
    PathBuf::from(format!("{up}blobs/{}", hash.hex()))
}

#[cfg(unix)]
fn symlink(to: &Path, from: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, from)
}

#[cfg(windows)]
fn symlink(to: &Path, from: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(to, from)
}

fn is_same_file(path: &Path, other: &Path) -> bool {
    match (path.canonicalize(), other.canonicalize()) {
        (Ok(path), Ok(other)) => path == other,
        _ => false,
    }
}

pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

pub(crate) fn create_dir_above(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(Error::io("create", dir))
}

/// Opens a file to read it, if it is there.
pub(crate) fn open_if_there(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}
