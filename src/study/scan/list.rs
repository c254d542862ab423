//! Items that a list names or holds: the rows of a manifest or a corpus, or names one after another.

use std::collections::{BTreeSet, HashSet};
use std::io::BufRead;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use super::lines::{Line, next_line, path_of};
use super::manifest;
use crate::study::pictures::{Item, folder_of};
use crate::{Error, Result};

/// Bytes of the longest path.
const MAX_PATH_BYTES: usize = 1 << 16;

/// What a list names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemList {
    /// The items, in the order of their names.
    pub items: Vec<Item>,
    /// The file's columns that are not read.
    pub other_columns: BTreeSet<String>,
}

/// What ends each name of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separator {
    /// A newline, with or without a carriage return before it.
    Newline,
    /// A zero byte, for names with newlines.
    Nul,
}

impl ItemList {
    /// Reads a manifest, by the end of its name Parquet (`.parquet`), CSV (`.csv`) or JSON lines (`.jsonl`,
    /// `.ndjson`, `.json`): a column `path`, and a column `class`, in which a picture may have none. Without that
    /// column the class is the name of the folder in the path.
    ///
    /// # Errors
    /// A file that cannot be read or is of another type, no column `path`, a value that is no text, an empty path, a
    /// path that is there twice.
    pub fn read_manifest(path: &Path) -> Result<Self> {
        let mut list = ListReader::new(format!("`{}`", path.display()));
        manifest::read(path, &mut list)?;
        list.finish()
    }

    /// A single file, called by its name without its folder.
    ///
    /// # Errors
    /// A path without a name.
    pub fn of_file(path: &Path) -> Result<Self> {
        let mut list = ListReader::new(format!("`{}`", path.display()));
        list.add(
            Path::new(path.file_name().unwrap_or_default()),
            Class::Given(None),
        )?;
        list.finish()
    }

    /// Reads paths. The class of each is the name of the folder in it.
    ///
    /// # Errors
    /// Those of `names`, a path that is too long or there twice.
    pub fn read_names(names: &mut dyn BufRead, separator: Separator) -> Result<Self> {
        let mut list = ListReader::new("the list of names".to_owned());
        let byte = match separator {
            Separator::Newline => b'\n',
            Separator::Nul => 0,
        };
        let mut line = Vec::new();
        loop {
            let read = next_line(names, byte, MAX_PATH_BYTES, &mut line);
            match read.map_err(Error::io("read", Path::new("the list of names")))? {
                Line::End => return list.finish(),
                Line::TooLong => return Err(list.error("the path is too long")),
                Line::Whole => {}
            }
            if separator == Separator::Newline {
                line.pop_if(|last| *last == b'\r');
            }
            if !line.is_empty() {
                let path = path_of(&line).map_err(|error| list.error(error))?;
                list.add(&path, Class::OfFolder)?;
            }
        }
    }
}

/// Where an entry's class comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class<'a> {
    /// From the name of the folder in its path.
    OfFolder,
    /// It is said, or said to have none.
    Given(Option<&'a str>),
}

impl Class<'_> {
    /// The class of an entry of this path.
    fn of(self, path: &Path) -> Option<Arc<str>> {
        match self {
            Self::OfFolder => folder_of(path),
            Self::Given(class) => class.filter(|class| !class.is_empty()).map(Arc::from),
        }
    }
}

impl<'a> From<&'a Option<Option<String>>> for Class<'a> {
    /// None where nothing is said; a class that is null is none.
    fn from(class: &'a Option<Option<String>>) -> Self {
        let given = class.as_ref();
        given.map_or(Self::OfFolder, |class| Self::Given(class.as_deref()))
    }
}

/// Tells a class that is null from one that is not there.
pub(super) fn given<'de, D: Deserializer<'de>>(
    class: D,
) -> std::result::Result<Option<Option<String>>, D::Error> {
    Deserialize::deserialize(class).map(Some)
}

/// The item of a path, which is without `.` and doubled separators in its name.
///
/// # Errors
/// An empty path.
pub(super) fn item_of(path: &Path, class: Class<'_>) -> Result<Item> {
    let parts = path.components();
    let path: PathBuf = parts.filter(|part| *part != Component::CurDir).collect();
    if path.as_os_str().is_empty() {
        return Err(Error::invalid("the path is empty"));
    }
    let class = class.of(&path);
    Ok(Item::of_file(&path, class))
}

/// The item of a text.
///
/// # Errors
/// An empty name.
pub(super) fn item_of_text(name: &str, class: Class<'_>, text: String) -> Result<Item> {
    if name.is_empty() {
        return Err(Error::invalid("the name is empty"));
    }
    Ok(Item::of_text(name, class.of(Path::new(name)), text))
}

/// A list while it is read.
pub(super) struct ListReader {
    shown: String,
    list: ItemList,
    classes: HashSet<Arc<str>>,
}

impl ListReader {
    pub(super) fn new(shown: String) -> Self {
        Self {
            shown,
            list: ItemList::default(),
            classes: HashSet::new(),
        }
    }

    /// Adds an entry.
    pub(super) fn add(&mut self, path: &Path, class: Class<'_>) -> Result<()> {
        self.add_item(item_of(path, class))
    }

    /// Adds a text.
    pub(super) fn add_text(&mut self, name: &str, class: Class<'_>, text: String) -> Result<()> {
        self.add_item(item_of_text(name, class, text))
    }

    fn add_item(&mut self, item: Result<Item>) -> Result<()> {
        let mut item = item.map_err(|error| self.error(error))?;
        item.class = item.class.map(|class| self.shared(class));
        item.position = self.list.items.len();
        self.list.items.push(item);
        Ok(())
    }

    /// How many there are so far.
    pub(super) fn n_items(&self) -> usize {
        self.list.items.len()
    }

    /// Notes a column that is not read.
    pub(super) fn ignore(&mut self, column: &str) {
        if !self.list.other_columns.contains(column) {
            self.list.other_columns.insert(column.to_owned());
        }
    }

    /// What is wrong with the entry that would come next.
    pub(super) fn error(&self, what: impl std::fmt::Display) -> Error {
        let entry = self.list.items.len() + 1;
        Error::invalid(format!("{}, entry {entry}: {what}", self.shown))
    }

    /// One copy of each class.
    fn shared(&mut self, class: Arc<str>) -> Arc<str> {
        match self.classes.get(&class) {
            Some(known) => Arc::clone(known),
            None => {
                self.classes.insert(Arc::clone(&class));
                class
            }
        }
    }

    pub(super) fn finish(mut self) -> Result<ItemList> {
        let items = &mut self.list.items;
        items.sort_unstable_by(|a, b| (&a.name, a.position).cmp(&(&b.name, b.position)));
        let mut pairs = items.windows(2);
        if let Some([a, b]) = pairs.find(|pair| pair[0].name == pair[1].name) {
            let what = format!(
                "{} has `{}` twice, in its entries {} and {}",
                self.shown,
                a.name,
                a.position + 1,
                b.position + 1
            );
            return Err(Error::invalid(what).with_hint("name each once"));
        }
        Ok(self.list)
    }
}
