//! What is scanned: an item has a name, a class, and a source that is read when it is its turn.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::read::ItemKind;
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
#[cfg_attr(not(feature = "scan"), allow(dead_code))]
enum Source {
    /// In the file of its name.
    Named,
    /// In a file whose name is no text.
    File(PathBuf),
    /// They are here: a picture's file.
    Picture(Vec<u8>),
    /// They are here: a text.
    Text(String),
}

/// What tells a file that has changed, or a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its length in bytes.
    pub n_bytes: u64,
    /// When it was changed, in nanoseconds since 1970; of a text that is no file, a hash of it.
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
    /// A picture in memory.
    #[cfg(feature = "scan")]
    pub(in crate::study) fn with_picture(self, bytes: Vec<u8>) -> Self {
        Self {
            source: Source::Picture(bytes),
            ..self
        }
    }

    /// A text in memory.
    #[cfg(feature = "scan")]
    pub(in crate::study) fn of_text(name: &str, class: Option<Arc<str>>, text: String) -> Self {
        let hash = blake3::hash(text.as_bytes());
        let (hash, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
        Self {
            name: name.to_owned(),
            class,
            stamp: Some(Stamp {
                n_bytes: text.len() as u64,
                modified_ns: u64::from_le_bytes(*hash),
            }),
            source: Source::Text(text),
            position: 0,
        }
    }

    /// Its text, where that is in memory.
    #[cfg(feature = "scan")]
    pub(in crate::study) fn text(&self) -> Option<&str> {
        match &self.source {
            Source::Text(text) => Some(text),
            _ => None,
        }
    }

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
            Source::File(path) => dir.join(path),
            _ => dir.join(&self.name),
        }
    }

    /// Reads a picture.
    ///
    /// # Errors
    /// Those of [`Picture::open`], an item that is a text.
    pub(in crate::study) fn open(&self, dir: &Path) -> Result<Picture> {
        match &self.source {
            Source::Picture(bytes) => Picture::from_bytes(bytes, &self.name),
            Source::Text(_) => Err(Error::invalid(format!(
                "`{}` is a text, and not a picture",
                self.name
            ))),
            _ => Picture::open(&self.file(dir)),
        }
    }

    /// Reads a text.
    ///
    /// # Errors
    /// A file that cannot be read or is not UTF-8, an item that is a picture.
    pub(in crate::study) fn read_text(&self, dir: &Path) -> Result<Cow<'_, str>> {
        match &self.source {
            Source::Text(text) => Ok(text.into()),
            Source::Picture(_) => Err(Error::invalid(format!(
                "`{}` is a picture, and not a text",
                self.name
            ))),
            _ => {
                let path = self.file(dir);
                let not_a_file = || Error::invalid(format!("`{}` is no file", path.display()));
                let metadata = path.metadata().map_err(Error::io("read", &path))?;
                // A pipe would wait for ever.
                metadata.is_file().then_some(()).ok_or_else(not_a_file)?;
                let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
                String::from_utf8(bytes).map(Cow::from).map_err(|error| {
                    let at = error.utf8_error().valid_up_to();
                    Error::invalid(format!("`{}` is not UTF-8, at byte {at}", path.display()))
                })
            }
        }
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

/// The file of the item that a table calls `name`, if relative names begin at `dir`. A name that was no text on the
/// disk is written with the numbers of its bytes, as in `caf\xE9`, and is read so where no file has it as it stands.
pub fn file_of(dir: &Path, name: &str) -> PathBuf {
    let as_it_stands = dir.join(name);
    if !name.contains(r"\x") || as_it_stands.exists() {
        return as_it_stands;
    }
    dir.join(name.split('/').map(part_of).collect::<PathBuf>())
}

/// A part of a name, as it is on the disk.
#[cfg(unix)]
fn part_of(part: &str) -> PathBuf {
    if !part.contains(r"\x") {
        return part.into();
    }
    let mut bytes = Vec::new();
    let mut rest = part.as_bytes();
    while let [first, behind @ ..] = rest {
        let number = behind.get(1..3).filter(|_| behind[0] == b'x');
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok());
        let number = number.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (byte, length) = match (first, behind) {
            (b'\\', [b'\\', ..]) => (b'\\', 2),
            (b'\\', _) if number.is_some() => (number.unwrap_or_default(), 4),
            (first, _) => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&bytes).into()
}

#[cfg(not(unix))]
fn part_of(part: &str) -> PathBuf {
    part.into()
}

/// The error where none of so many items in `place` could be read; why, was told of each.
pub(in crate::study) fn none_read(kind: ItemKind, place: &str, n_items: usize) -> Error {
    let items = kind.name();
    Error::invalid(format!(
        "none of the {n_items} {items} in {place} could be read"
    ))
    .with_hint("the warnings say why")
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn names_lead_to_their_files() {
        let dir = tempfile::tempdir().expect("a folder of our own");
        let check = |bytes: &[u8]| {
            let path = Path::new(OsStr::from_bytes(bytes));
            let name = Item::of_file(path, None).name;
            let at = dir.path().join(path);
            std::fs::create_dir_all(at.parent().expect("a folder")).expect("a folder of our own");
            std::fs::write(&at, "").expect("a file of our own");
            assert_eq!(file_of(dir.path(), &name), at, "{name}");
        };
        check(b"plain/a b.png");
        check(b"caf\xe9/1.png");
        check(b"both/\xff\\xe9\\\\.png");
        // Text that looks like numbers of bytes.
        check(br"caf\xE9.png");
        check(br"new\xZZ\x");
        let gone = file_of(dir.path(), r"gone\xE9\.png");
        assert_eq!(
            gone.file_name().map(OsStr::as_bytes),
            Some(&b"gone\xe9\\.png"[..])
        );
    }
}
