//! Files that commands write: complete under their name, or not at all.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::Overwrite;
use llava_sae_cpp::{Error, Result};
use tempfile::TempPath;

/// A file that is written beside its target and renamed by [`NewFile::finish`]; until then the
/// target is untouched, and dropping it leaves nothing behind.
pub(super) struct NewFile {
    file: File,
    temporary: TempPath,
    target: PathBuf,
    overwrite: Overwrite,
}

impl NewFile {
    /// Checks that `target` may be written, and starts the file.
    pub(super) fn create(target: &Path, overwrite: Overwrite) -> Result<Self> {
        overwrite.check(target)?;
        // A link stays, and what it leads to is replaced.
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        let dir = match target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        // Not tempfile's own way to create the file: its files are private.
        let file = tempfile::Builder::new().make_in(dir, |path| File::create_new(path));
        let (file, temporary) = file.map_err(Error::io("write", &target))?.into_parts();
        Ok(Self {
            file,
            temporary,
            target,
            overwrite,
        })
    }

    /// Writes all of the file and gives it its name.
    pub(super) fn finish(mut self, bytes: &[u8]) -> Result<()> {
        let io = |error| Error::io("write", &self.target)(error);
        self.file.write_all(bytes).map_err(io)?;
        let persisted = match self.overwrite {
            Overwrite::Refuse => self.temporary.persist_noclobber(&self.target),
            Overwrite::Replace => self.temporary.persist(&self.target),
        };
        persisted.map_err(|error| io(error.error))?;
        Ok(())
    }
}

/// What `--force` means.
pub(super) fn overwrite(force: bool) -> Overwrite {
    if force {
        Overwrite::Replace
    } else {
        Overwrite::Refuse
    }
}

/// Checks that `output` is none of the files that are read.
pub(super) fn check_is_no_input(
    output: &Path,
    mut inputs: impl Iterator<Item = PathBuf>,
) -> Result<()> {
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
