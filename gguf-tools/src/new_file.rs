//! Files that are written: complete under their name, or not there at all.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::{Error, Result};

/// How the names of files end that are being written: what a process that is killed leaves behind.
pub const UNFINISHED: &str = ".unfinished";

/// What to do when the target exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Leave it alone, which is an error.
    Refuse,
    /// Put the new file in its place, once that is complete.
    Replace,
}

impl Overwrite {
    /// What an option to overwrite files means.
    pub fn if_forced(force: bool) -> Self {
        if force { Self::Replace } else { Self::Refuse }
    }

    /// Checks that a file may take the place of `target`.
    ///
    /// # Errors
    /// When `target` is a folder, a device or a pipe, exists and must not be replaced, or is a name
    /// that the operating system refuses, such as one that is too long.
    pub fn check(self, target: &Path) -> Result<()> {
        if let Ok(metadata) = target.metadata()
            && !metadata.is_file()
        {
            let what = if metadata.is_dir() {
                "a folder"
            } else {
                "not a regular file"
            };
            return Err(Error::invalid(format!(
                "cannot write `{}`: it is {what}",
                target.display()
            ))
            .with_hint("give another output"));
        }
        // Unlike `exists`, this sees a link that leads nowhere.
        match target.symlink_metadata() {
            Ok(_) if self == Self::Refuse => Err(exists_already(target)),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("write", target)(error))
            }
            _ => Ok(()),
        }
    }
}

/// A file that is written beside its target and renamed by [`NewFile::finish`]; until then the target is
/// untouched, and dropping it leaves nothing behind.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    keeping: Keeping,
    complete: CompleteFile,
}

/// What a file is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeping {
    /// Its user: it is on the disk before it has its name.
    Output,
    /// This program, on behalf of one user: what is damaged is noticed and made again.
    Cache,
}

impl NewFile {
    /// Begins a file that is to become `target`.
    ///
    /// # Errors
    /// Those of [`Overwrite::check`], and a folder that cannot be written to.
    pub fn create(target: &Path, overwrite: Overwrite) -> Result<Self> {
        overwrite.check(target)?;
        Self::start(None, target, overwrite, Keeping::Output)
    }

    /// As [`NewFile::create`], written in `dir` on the same disk, where whoever made that folder finds what
    /// a process that was killed left behind.
    ///
    /// # Errors
    /// As [`NewFile::create`].
    pub fn create_in(dir: &Path, target: &Path, overwrite: Overwrite) -> Result<Self> {
        overwrite.check(target)?;
        Self::start(Some(dir), target, overwrite, Keeping::Output)
    }

    /// Begins a file of a cache, which takes the place of an older one. It is its user's alone, and a crash
    /// of the system may damage it.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn in_cache(target: &Path) -> Result<Self> {
        Self::start(None, target, Overwrite::Replace, Keeping::Cache)
    }

    fn start(
        dir: Option<&Path>,
        target: &Path,
        overwrite: Overwrite,
        keeping: Keeping,
    ) -> Result<Self> {
        // A link stays, and what it leads to is replaced.
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        let beside = folder_of(&target);
        // Not tempfile's own way to create and write the file: its files are private, and its errors
        // name them.
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if keeping == Keeping::Cache {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        let made = tempfile::Builder::new()
            .suffix(UNFINISHED)
            .make_in(dir.unwrap_or(beside), |path| options.open(path));
        let (file, path) = made.map_err(Error::io("write", &target))?.into_parts();
        let complete = CompleteFile {
            path,
            target,
            overwrite,
        };
        Ok(Self {
            file,
            keeping,
            complete,
        })
    }

    /// What it becomes: of a link, the file that it leads to.
    pub fn target(&self) -> &Path {
        &self.complete.target
    }

    /// Writes all of the file and gives it its name.
    ///
    /// # Errors
    /// As [`NewFile::finish`].
    pub fn finish_with(mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(Error::io("write", self.target()))?;
        self.finish()
    }

    /// Puts the file in its target's place.
    ///
    /// # Errors
    /// When the disk is full, or the target has come into being meanwhile and must not be replaced.
    pub fn finish(self) -> Result<()> {
        self.complete()?.publish()
    }

    /// Makes sure that all is written; the file still has to be put in its target's place.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn complete(self) -> Result<CompleteFile> {
        if self.keeping == Keeping::Output {
            let synced = self.file.sync_all();
            synced.map_err(Error::io("write", self.target()))?;
        }
        Ok(self.complete)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// A file that is complete and not yet in its target's place; dropping it removes it.
#[derive(Debug)]
#[must_use]
pub struct CompleteFile {
    path: TempPath,
    target: PathBuf,
    overwrite: Overwrite,
}

impl CompleteFile {
    /// Puts the file in its target's place.
    ///
    /// # Errors
    /// When the target has come into being meanwhile and must not be replaced, and the operating
    /// system's.
    pub fn publish(self) -> Result<()> {
        let published = match self.overwrite {
            Overwrite::Replace => self.path.persist(&self.target),
            Overwrite::Refuse => self.path.persist_noclobber(&self.target),
        };
        published.map_err(|error| match error.error.kind() {
            ErrorKind::AlreadyExists => exists_already(&self.target),
            _ => Error::io("write", &self.target)(error.error),
        })
    }
}

/// The folder that a file or folder lies in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

pub(crate) fn exists_already(target: &Path) -> Error {
    let what = format!("cannot write `{}`: it already exists", target.display());
    Error::new(crate::ErrorKind::Exists, what).with_hint("give another output, or overwrite it")
}

/// Checks that `output` is none of the files that are read.
///
/// # Errors
/// When it is one of them.
pub fn check_is_no_input(output: &Path, mut inputs: impl Iterator<Item = PathBuf>) -> Result<()> {
    let Ok(found) = output.canonicalize() else {
        return Ok(());
    };
    if inputs.any(|input| input.canonicalize().is_ok_and(|input| input == found)) {
        return Err(Error::invalid(format!(
            "cannot write `{}`: it is an input",
            output.display()
        ))
        .with_hint("give another output"));
    }
    Ok(())
}
