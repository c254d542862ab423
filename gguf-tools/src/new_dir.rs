//! Folders that are written: whole under their name, or not there at all.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::new_file::{Overwrite, UNFINISHED, exists_already, folder_of};
use crate::{Error, Result};

/// A folder that is made beside its target and renamed by [`NewDir::finish`]; until then the target is untouched, and
/// dropping it leaves nothing behind.
#[derive(Debug)]
pub struct NewDir {
    dir: TempDir,
    target: PathBuf,
    overwrite: Overwrite,
    contents: &'static [&'static str],
}

impl NewDir {
    /// Begins a folder that is to become `target`, and in which nothing but `contents` will be. Of folders that are
    /// there already, only those may be replaced in which there is nothing else.
    ///
    /// # Errors
    /// A target that exists and must not be replaced, or holds something else; a folder that cannot be written to.
    pub fn create(
        target: &Path,
        overwrite: Overwrite,
        contents: &'static [&'static str],
    ) -> Result<Self> {
        // A link stays, and what it leads to is replaced.
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        check(&target, overwrite, contents)?;
        Ok(Self {
            dir: beside(&target)?,
            target,
            overwrite,
            contents,
        })
    }

    /// Where it is while it is written.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Puts the folder in its target's place.
    ///
    /// # Errors
    /// When the target has come into being meanwhile and must not be replaced, and the operating system's.
    pub fn finish(self) -> Result<()> {
        check(&self.target, self.overwrite, self.contents)?;
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(Error::io("write", to));
        if !self.target.exists() {
            return rename(self.path(), &self.target);
        }
        let aside = beside(&self.target)?;
        let replaced = aside.path().join("replaced");
        rename(&self.target, &replaced)?;
        rename(self.path(), &self.target).inspect_err(|_| {
            let _ = fs::rename(&replaced, &self.target);
        })
    }
}

/// A new folder beside `target`, which goes when it is dropped.
fn beside(target: &Path) -> Result<TempDir> {
    let name = target.file_name().ok_or_else(|| {
        let what = format!("cannot write `{}`: it has no name", target.display());
        Error::invalid(what).with_hint("give another output")
    })?;
    let parent = folder_of(target);
    let mut prefix = name.to_owned();
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(UNFINISHED);
    // As others are, and not its user's alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let dir = builder.tempdir_in(parent);
    dir.map_err(Error::io("write", target))
}

/// Checks that a folder of these contents may take the place of `target`.
fn check(target: &Path, overwrite: Overwrite, contents: &[&str]) -> Result<()> {
    let Ok(metadata) = target.symlink_metadata() else {
        return Ok(());
    };
    let shown = target.display();
    if !metadata.is_dir() {
        let what = format!("cannot write `{shown}`: it is not a folder");
        return Err(Error::invalid(what).with_hint("give another output"));
    }
    if overwrite == Overwrite::Refuse {
        return Err(exists_already(target));
    }
    for entry in fs::read_dir(target).map_err(Error::io("read", target))? {
        let name = entry.map_err(Error::io("read", target))?.file_name();
        if !contents.iter().any(|ours| name == **ours) {
            let name = name.to_string_lossy();
            let what = format!("cannot replace `{shown}`: there is something else in it, `{name}`");
            return Err(Error::invalid(what).with_hint("give another output"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const CONTENTS: &[&str] = &["index.html", "pages"];

    fn write(target: &Path, overwrite: Overwrite, text: &str) -> Result<()> {
        let dir = NewDir::create(target, overwrite, CONTENTS)?;
        fs::write(dir.path().join("index.html"), text).expect("a folder of our own");
        dir.finish()
    }

    #[test]
    fn a_folder_is_whole_or_not_there() {
        let parent = tempfile::tempdir().expect("a folder of our own");
        let target = parent.path().join("out");
        let index = target.join("index.html");
        let names = || {
            let entries = fs::read_dir(parent.path()).expect("our own folder");
            let mut names: Vec<_> = entries
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            names.sort();
            names
        };
        drop(NewDir::create(&target, Overwrite::Refuse, CONTENTS).expect("nothing is there"));
        assert!(names().is_empty());
        write(&target, Overwrite::Refuse, "first").expect("nothing is there");
        let refused = write(&target, Overwrite::Refuse, "second").expect_err("it exists");
        assert_eq!(refused.kind(), ErrorKind::Exists);
        fs::create_dir(target.join("pages")).expect("our own folder");
        write(&target, Overwrite::Replace, "second").expect("it is ours");
        assert_eq!(fs::read_to_string(&index).expect("written"), "second");
        assert!(!target.join("pages").exists(), "all of the old one is gone");
        fs::write(target.join("notes.txt"), "a user's").expect("our own folder");
        let refused = write(&target, Overwrite::Replace, "third").expect_err("not all is ours");
        assert!(refused.to_string().contains("`notes.txt`"), "{refused}");
        let refused = write(&index, Overwrite::Replace, "third").expect_err("a file");
        assert!(refused.to_string().contains("not a folder"), "{refused}");
        assert_eq!(fs::read_to_string(&index).expect("kept"), "second");
        assert_eq!(names(), ["out"]);
    }

    /// Who may read it is decided as for any other folder.
    #[cfg(unix)]
    #[test]
    fn a_folder_is_not_its_users_alone() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().expect("a folder of our own");
        let (target, plain) = (parent.path().join("out"), parent.path().join("plain"));
        write(&target, Overwrite::Refuse, "").expect("nothing is there");
        fs::create_dir(&plain).expect("a folder of our own");
        let mode = |path: &Path| path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode(&target), mode(&plain));
    }
}
