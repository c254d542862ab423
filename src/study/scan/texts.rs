//! Corpora: files with a text in each of their rows.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast;
use arrow_schema::DataType;
use serde_json::{Map, Value};

use super::lines::{Line, json_reason, next_line};
use super::list::{Class, ItemList, ListReader};
use super::manifest::{CLASS, PATH, no_column, text_column};
use super::table_file::{for_each_batch, open_regular, read_metadata};
use crate::{Error, Result};

/// The column of names that are no paths.
const ID: &str = "id";
/// Bytes of the longest line of JSON.
const MAX_LINE_BYTES: usize = 256 << 20;

impl ItemList {
    /// Reads a corpus, which stays in memory: a Parquet file (`.parquet`) or else JSON lines, with the texts in
    /// `column`. A text's name is its `path`, or else its `id`, a text or an integer, or else the corpus's name and
    /// its number there, from 1; `class` is its class, and without that column the folder in its `path`. Texts may be
    /// empty or null, and are found to be empty when it is their turn.
    ///
    /// # Errors
    /// A file that cannot be read, no such column, a value that is no text, a name that is there twice.
    pub fn read_corpus(path: &Path, column: &str) -> Result<Self> {
        let file = open_regular(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let shown = format!("`{}`", path.display());
        match is_parquet(path) {
            true => {
                let mut corpus = Corpus::new(&name, column, shown);
                corpus.read_parquet(path, &file)?;
                corpus.list.finish()
            }
            false => Self::read_json_lines(&mut BufReader::new(file), &name, shown, column),
        }
    }

    /// As [`ItemList::read_corpus`], JSON lines from elsewhere, whose texts are called after `name`.
    ///
    /// # Errors
    /// As there.
    pub fn read_text_lines(lines: &mut dyn BufRead, name: &str, column: &str) -> Result<Self> {
        Self::read_json_lines(lines, name, format!("`{name}`"), column)
    }

    fn read_json_lines(
        lines: &mut dyn BufRead,
        name: &str,
        shown: String,
        column: &str,
    ) -> Result<Self> {
        let mut corpus = Corpus::new(name, column, shown);
        corpus.read_json_lines(lines)?;
        corpus.list.finish()
    }

    /// Whether a file is a corpus, by the end of its name, and not a text.
    pub fn is_corpus(path: &Path) -> bool {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        ["parquet", "jsonl", "ndjson", "json"].contains(&&*extension.to_lowercase())
    }
}

fn is_parquet(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    extension.eq_ignore_ascii_case("parquet")
}

/// A corpus while it is read.
struct Corpus<'a> {
    name: &'a str,
    column: &'a str,
    list: ListReader,
}

impl<'a> Corpus<'a> {
    fn new(name: &'a str, column: &'a str, shown: String) -> Self {
        let list = ListReader::new(shown);
        Self { name, column, list }
    }

    /// Adds a text.
    fn add(
        &mut self,
        path: Option<&str>,
        id: Option<&str>,
        class: Option<Option<&str>>,
        text: String,
    ) -> Result<()> {
        let class = match (class, path) {
            (Some(class), _) => Class::Given(class),
            (None, Some(_)) => Class::OfFolder,
            (None, None) => Class::Given(None),
        };
        match path.or(id) {
            Some(name) => self.list.add_text(name, class, text),
            None => {
                let name = format!("{}:{}", self.name, self.list.n_items() + 1);
                self.list.add_text(&name, class, text)
            }
        }
    }

    fn ignore<'b>(&mut self, columns: impl Iterator<Item = &'b str>) {
        let used = [PATH, ID, CLASS, self.column];
        columns
            .filter(|name| !used.contains(name))
            .for_each(|name| self.list.ignore(name));
    }

    fn read_json_lines(&mut self, lines: &mut dyn BufRead) -> Result<()> {
        let mut line = Vec::new();
        loop {
            let read = next_line(lines, b'\n', MAX_LINE_BYTES, &mut line);
            match read.map_err(Error::io("read", Path::new(self.name)))? {
                Line::End => return Ok(()),
                Line::TooLong => return Err(self.list.error("the line is too long")),
                Line::Whole if line.trim_ascii().is_empty() => continue,
                Line::Whole => {}
            }
            let entry = serde_json::from_slice(&line).map_err(|error| {
                let error = self.list.error(json_reason(&error));
                error.with_hint(r#"each line is an object such as {"id": "a", "text": "A cat."}"#)
            })?;
            self.add_entry(entry)?;
        }
    }

    /// Adds the text of a line.
    fn add_entry(&mut self, mut entry: Map<String, Value>) -> Result<()> {
        let text = entry.remove(self.column);
        let names = entry.keys().map(String::as_str);
        let Some(text) = text else {
            let columns: Vec<_> = names.map(|name| format!("`{name}`")).collect();
            let error = self
                .list
                .error(format!("there is no column `{}`", self.column));
            return Err(error.with_hint(format!("its columns are {}", columns.join(", "))));
        };
        self.ignore(names);
        let text = self.text_of(self.column, text)?.unwrap_or_default();
        let path = entry.remove(PATH);
        let path = path.map(|value| self.text_of(PATH, value)).transpose()?;
        let id = match entry.remove(ID) {
            Some(Value::Number(number)) if !number.is_f64() => Some(number.to_string()),
            Some(value) => self.text_of(ID, value)?,
            None => None,
        };
        let class = entry.remove(CLASS);
        let class = class.map(|value| self.text_of(CLASS, value)).transpose()?;
        let class = class.as_ref().map(Option::as_deref);
        self.add(path.flatten().as_deref(), id.as_deref(), class, text)
    }

    /// A text, or none where it is null.
    fn text_of(&self, column: &str, value: Value) -> Result<Option<String>> {
        match value {
            Value::String(text) => Ok(Some(text)),
            Value::Null => Ok(None),
            _ => Err(self.list.error(format!("`{column}` is not text"))),
        }
    }

    fn read_parquet(&mut self, path: &Path, file: &File) -> Result<()> {
        let metadata = read_metadata(file, path)?;
        let fields = metadata.schema().fields();
        let names = fields.iter().map(|field| &**field.name());
        if !names.clone().any(|name| name == self.column) {
            return Err(no_column(path, self.column, names));
        }
        self.ignore(names);
        let columns = [PATH, ID, CLASS, self.column];
        for_each_batch(path, file, &metadata, &columns, &mut |batch| {
            let column = |name| text_column(path, batch, name);
            let (paths, classes) = (column(PATH)?, column(CLASS)?);
            let texts = column(self.column)?;
            let ids = id_column(path, batch)?;
            for i in 0..batch.num_rows() {
                let text = value(texts.as_ref(), i).flatten().unwrap_or_default();
                self.add(
                    value(paths.as_ref(), i).flatten(),
                    value(ids.as_ref(), i).flatten(),
                    value(classes.as_ref(), i),
                    text.to_owned(),
                )?;
            }
            Ok(())
        })
    }
}

/// A row's value in a column of text: none without the column, and none within where it is null.
fn value(column: Option<&ArrayRef>, i: usize) -> Option<Option<&str>> {
    let column = column?.as_string::<i32>();
    Some(column.is_valid(i).then(|| column.value(i)))
}

/// The column of names, which may be integers.
fn id_column(path: &Path, batch: &RecordBatch) -> Result<Option<ArrayRef>> {
    match batch.column_by_name(ID) {
        Some(column) if column.data_type().is_integer() => {
            cast(column, &DataType::Utf8).map(Some).map_err(|error| {
                Error::invalid(format!("`{}`, column `{ID}`: {error}", path.display()))
            })
        }
        _ => text_column(path, batch, ID),
    }
}
