//! What is scanned: an item has a name, a class, and a source that is read when it is its turn.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::{Error, Picture, Result};

/// Something to scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name in the table: its path below the scanned folder, or as a list has it, with `/` between its
    /// parts. Bytes of a name that are not UTF-8 are shown by their numbers, as in `caf\xE9`, and backslashes
    /// of such a name are doubled.
    pub name: String,
    /// Its class, where it has one.
    pub class: Option<Arc<str>>,
    source: Source,
    /// How its file was when the list was made, where that is known.
    pub stamp: Option<Stamp>,
    /// Its place among all items; before these are sorted, its place in their list.
    pub position: usize,
}

/// Where an item's contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// In the file of its name.
    Named,
    /// In a file whose name is no text.
    File(PathBuf),
}

/// What tells a file that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its length in bytes.
    pub n_bytes: u64,
    /// When it was changed, in nanoseconds since 1970.
    pub modified_ns: u64,
}

impl Stamp {
    /// Of a file; zeros where nothing is known of it.
    pub(super) fn new(metadata: Option<&Metadata>) -> Self {
        let modified = metadata.and_then(|metadata| {
            let time = metadata.modified().ok()?;
            let since = time.duration_since(UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok()
        });
        Self {
            n_bytes: metadata.map_or(0, Metadata::len),
            modified_ns: modified.unwrap_or(0),
        }
    }
}

impl Item {
    /// The item of a file, by its path below the folder that is scanned, or by any other.
    pub(in crate::study) fn of_file(path: &Path, class: Option<Arc<str>>) -> Self {
        let parts = path.components().map(|part| match part {
            Component::RootDir => "".into(),
            part => shown_name(part.as_os_str()),
        });
        Self {
            name: parts.collect::<Vec<_>>().join("/"),
            class,
            source: match path.to_str() {
                Some(_) => Source::Named,
                None => Source::File(path.to_owned()),
            },
            stamp: None,
            position: 0,
        }
    }

    /// Where its file is, if what is relative begins at `dir`.
    pub fn file(&self, dir: &Path) -> PathBuf {
        match &self.source {
            Source::Named => dir.join(&self.name),
            Source::File(path) => dir.join(path),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// Those of [`Picture::open`].
    pub(in crate::study) fn open(&self, dir: &Path) -> Result<Picture> {
        Picture::open(&self.file(dir))
    }

    /// Looks how its file is now, if nobody has.
    pub fn look(&mut self, dir: &Path) {
        if self.stamp.is_none() {
            let metadata = self.file(dir).metadata();
            self.stamp = Some(Stamp::new(metadata.ok().as_ref()));
        }
    }
}

/// The class of a file where nothing else says it: the name of the folder that it lies in, if that is part of its
/// path.
pub(in crate::study) fn folder_of(path: &Path) -> Option<Arc<str>> {
    let folder = path.parent()?.file_name()?;
    Some(shown_name(folder).into())
}

/// A name as text, no two alike but by design.
fn shown_name(name: &OsStr) -> Cow<'_, str> {
    if let Some(name) = name.to_str() {
        return name.into();
    }
    let mut shown = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        shown.push_str(&chunk.valid().replace('\\', r"\\"));
        for byte in chunk.invalid() {
            shown.push_str(&format!(r"\x{byte:02X}"));
        }
    }
    shown.into()
}

/// The error where none of so many pictures in `place` could be read; why, was told of each.
pub(in crate::study) fn none_read(place: &str, n_pictures: usize) -> Error {
    Error::invalid(format!(
        "none of the {n_pictures} pictures in {place} could be read"
    ))
    .with_hint("the warnings say why")
}
