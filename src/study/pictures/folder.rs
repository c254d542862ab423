//! The pictures in a folder and the folders below it, or the texts, and what else is there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use image::ImageFormat;

use super::item::{Item, Stamp, folder_of};
use super::read::ItemKind;
use crate::picture::content::{self, START_BYTES};
use crate::{Error, Result};

/// How the names of pictures end, in upper or lower case. What has another name is a picture if it
/// begins like one.
pub const PICTURE_EXTENSIONS: [&str; 8] =
    ["png", "jpg", "jpeg", "gif", "webp", "bmp", "tif", "tiff"];

/// How the names of texts end, in upper or lower case.
pub const TEXT_EXTENSION: &str = "txt";

/// What systems and programs keep for themselves beside pictures, hidden names apart.
const SYSTEM_NAMES: [&str; 14] = [
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@__thumb",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@sharesnap",
    "@tmp",
    "__macosx",
    "desktop.ini",
    "lost+found",
    "system volume information",
    "thumbs.db",
];

/// What is in a folder and the folders below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    /// The pictures, or the texts, by path.
    pub items: Vec<Item>,
    /// Pictures of types that are not read, by type.
    pub unread_pictures: BTreeMap<String, usize>,
    /// Other files, by how their names end.
    pub other_files: BTreeMap<String, usize>,
    /// Files and folders that are hidden, or that a system or a program keeps for itself.
    pub n_hidden: usize,
    /// Folders and links that could not be read, and why.
    pub failures: Vec<String>,
}

impl Folder {
    /// Looks for items of a kind in `dir` and what is below. Links are followed, but not in circles.
    ///
    /// # Errors
    /// When `dir` itself cannot be read.
    pub fn read(dir: &Path, kind: ItemKind) -> Result<Self> {
        let mut folder = Self::default();
        folder
            .walk(dir, Path::new(""), kind, &mut Vec::new())
            .map_err(Error::io("read", dir))?;
        let Self {
            items, failures, ..
        } = &mut folder;
        items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        items.dedup_by(|next, last| {
            let is_same = next.name == last.name;
            if is_same {
                failures.push(format!("two files have the path `{}`", last.name));
            }
            is_same
        });
        Ok(folder)
    }

    /// Adds what is in `dir`, which is `below` the folder; `ancestors` are the folders above it.
    fn walk(
        &mut self,
        dir: &Path,
        below: &Path,
        kind: ItemKind,
        ancestors: &mut Vec<PathBuf>,
    ) -> io::Result<()> {
        let canonical = dir.canonicalize()?;
        if ancestors.contains(&canonical) {
            return Ok(());
        }
        ancestors.push(canonical);
        let result = self.walk_entries(dir, below, kind, ancestors);
        ancestors.pop();
        result
    }

    fn walk_entries(
        &mut self,
        dir: &Path,
        below: &Path,
        kind: ItemKind,
        ancestors: &mut Vec<PathBuf>,
    ) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let (name, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
            if is_hidden(&name) {
                self.n_hidden += 1;
                continue;
            }
            let below = below.join(&name);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => {
                    if let Err(error) = self.walk(&path, &below, kind, ancestors) {
                        self.note_failure(&path, &error);
                    }
                }
                // Its name says what it is, and reading it will say what is wrong.
                metadata if has_name_of(kind, &below) => {
                    self.add_item(&below, metadata.ok().as_ref());
                }
                Ok(_) if kind == ItemKind::Texts => self.add_other(&below),
                Ok(metadata) => self.add_by_content(&path, &below, &metadata),
                Err(error) => self.note_failure(&path, &error),
            }
        }
        Ok(())
    }

    /// Adds a file whose name does not tell what it is.
    fn add_by_content(&mut self, path: &Path, below: &Path, metadata: &Metadata) {
        // A pipe would wait for ever.
        let start = if metadata.is_file() {
            start_of(path).unwrap_or_default()
        } else {
            Vec::new()
        };
        let extension = below.extension().map(|name| name.to_string_lossy());
        let raw = extension.as_ref().map(|name| name.to_uppercase());
        let (counts, name) = match (content::format(&start), content::foreign(&start), raw) {
            // A camera's own format is a TIFF file too, of a preview.
            (Some(ImageFormat::Tiff), _, Some(raw)) => (&mut self.unread_pictures, raw),
            (Some(_), ..) => {
                self.add_item(below, Some(metadata));
                return;
            }
            (None, Some(foreign), _) if foreign.is_picture => {
                (&mut self.unread_pictures, foreign.name.to_owned())
            }
            _ => return self.add_other(below),
        };
        *counts.entry(name).or_default() += 1;
    }

    /// Counts a file that is none of the items.
    fn add_other(&mut self, below: &Path) {
        let extension = below.extension().map(|name| name.to_string_lossy());
        let name = extension.map(|name| format!(".{}", name.to_lowercase()));
        let name = name.unwrap_or_else(|| "without an extension".to_owned());
        *self.other_files.entry(name).or_default() += 1;
    }

    fn add_item(&mut self, below: &Path, metadata: Option<&Metadata>) {
        let mut item = Item::of_file(below, folder_of(below));
        item.stamp = Some(Stamp::new(metadata));
        self.items.push(item);
    }

    fn note_failure(&mut self, path: &Path, error: &io::Error) {
        self.failures
            .push(format!("cannot read `{}`: {error}", path.display()));
    }
}

fn is_hidden(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_lowercase();
    name.starts_with('.') || SYSTEM_NAMES.contains(&&*name)
}

fn has_name_of(kind: ItemKind, path: &Path) -> bool {
    let known = match kind {
        ItemKind::Pictures => &PICTURE_EXTENSIONS[..],
        ItemKind::Texts => &[TEXT_EXTENSION],
    };
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| {
        known
            .iter()
            .any(|known| known.eq_ignore_ascii_case(extension))
    })
}

fn start_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    let mut file = File::open(path)?.take(START_BYTES as u64);
    file.read_to_end(&mut start)?;
    Ok(start)
}
