//! Manifests: tables with a column `path` and, if they want, a column `class`.

use std::collections::HashMap;
use std::io::BufReader;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast;
use arrow_schema::DataType;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::lines::{Line, json_reason, next_line};
use super::list::{Class, ListReader, given};
use super::table_file::{for_each_batch, open_regular, read_metadata};
use crate::{Error, Result};

pub(super) const PATH: &str = "path";
pub(super) const CLASS: &str = "class";
/// Bytes of the longest line of JSON.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Reads the manifest `path` into `list`.
pub(super) fn read(path: &Path, list: &mut ListReader) -> Result<()> {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    match &*extension.to_lowercase() {
        "parquet" => read_parquet(path, list),
        "csv" => read_csv(path, list),
        "jsonl" | "ndjson" | "json" => read_json_lines(path, list),
        _ => {
            let what = format!(
                "`{}` is of no type of manifest that is read",
                path.display()
            );
            Err(Error::invalid(what).with_hint(
                "give a Parquet file, CSV or JSON lines, and end its name in `.parquet`, `.csv` or `.jsonl`",
            ))
        }
    }
}

/// The error of a table without a column.
pub(super) fn no_column<'a>(
    path: &Path,
    missing: &str,
    columns: impl Iterator<Item = &'a str>,
) -> Error {
    let columns: Vec<_> = columns.map(|name| format!("`{name}`")).collect();
    Error::invalid(format!("`{}` has no column `{missing}`", path.display()))
        .with_hint(format!("its columns are {}", columns.join(", ")))
}

fn read_parquet(path: &Path, list: &mut ListReader) -> Result<()> {
    let file = open_regular(path)?;
    let metadata = read_metadata(&file, path)
        .map_err(|error| error.with_hint("give a Parquet file, or name it by its type"))?;
    let fields = metadata.schema().fields();
    let names = fields.iter().map(|field| &**field.name());
    if !names.clone().any(|name| name == PATH) {
        return Err(no_column(path, PATH, names));
    }
    names
        .filter(|name| ![PATH, CLASS].contains(name))
        .for_each(|name| list.ignore(name));
    for_each_batch(path, &file, &metadata, &[PATH, CLASS], &mut |batch| {
        let paths = text_column(path, batch, PATH)?.expect("it is there, as was seen");
        let classes = text_column(path, batch, CLASS)?;
        let paths = paths.as_string::<i32>();
        let classes = classes.as_ref().map(|column| column.as_string::<i32>());
        for i in 0..batch.num_rows() {
            if paths.is_null(i) {
                return Err(list.error("there is no path"));
            }
            let class = classes.map(|column| column.is_valid(i).then(|| column.value(i)));
            let class = class.map_or(Class::OfFolder, Class::Given);
            list.add(Path::new(paths.value(i)), class)?;
        }
        Ok(())
    })
}

/// A column of text, whatever its width.
pub(super) fn text_column(
    path: &Path,
    batch: &RecordBatch,
    name: &str,
) -> Result<Option<ArrayRef>> {
    let Some(column) = batch.column_by_name(name) else {
        return Ok(None);
    };
    let mut data_type = column.data_type();
    if let DataType::Dictionary(_, values) = data_type {
        data_type = values;
    }
    let is_text = matches!(
        data_type,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null
    );
    if !is_text {
        let what = format!(
            "the column `{name}` of `{}` is of type {data_type}, and not text",
            path.display()
        );
        return Err(Error::invalid(what).with_hint("write it as text"));
    }
    cast(column, &DataType::Utf8)
        .map(Some)
        .map_err(|error| Error::invalid(format!("`{}`, column `{name}`: {error}", path.display())))
}

fn read_csv(path: &Path, list: &mut ListReader) -> Result<()> {
    let csv_error = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(error) => Error::io("read", path)(error),
        csv::ErrorKind::UnequalLengths {
            pos,
            expected_len,
            len,
        } => {
            let line = pos.map_or(0, |pos| pos.line());
            let what = format!("{len} values, and not {expected_len} as the columns above them");
            Error::invalid(format!("`{}`, line {line}: {what}", path.display()))
                .with_hint("put values that hold a comma in double quotes")
        }
        csv::ErrorKind::Utf8 { pos, .. } => {
            let line = pos.map_or(0, |pos| pos.line());
            Error::invalid(format!("`{}`, line {line}: not UTF-8", path.display()))
        }
        other => Error::invalid(format!("cannot read `{}`: {other:?}", path.display())),
    };
    let mut reader = csv::Reader::from_reader(open_regular(path)?);
    let headers = reader.headers().map_err(csv_error)?.clone();
    let place = |name: &str| headers.iter().position(|column| column == name);
    let Some(path_at) = place(PATH) else {
        return Err(no_column(path, PATH, headers.iter()));
    };
    let class_at = place(CLASS);
    for (at, name) in headers.iter().enumerate() {
        if at != path_at && Some(at) != class_at {
            list.ignore(name);
        }
    }
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(csv_error)? {
        let class = class_at.map_or(Class::OfFolder, |at| Class::Given(record.get(at)));
        list.add(Path::new(&record[path_at]), class)?;
    }
    Ok(())
}

/// A line of JSON.
#[derive(Deserialize)]
struct Entry {
    path: String,
    #[serde(default, deserialize_with = "given")]
    class: Option<Option<String>>,
    #[serde(flatten)]
    others: HashMap<String, IgnoredAny>,
}

fn read_json_lines(path: &Path, list: &mut ListReader) -> Result<()> {
    let mut file = BufReader::new(open_regular(path)?);
    let mut line = Vec::new();
    loop {
        let read = next_line(&mut file, b'\n', MAX_LINE_BYTES, &mut line);
        match read.map_err(Error::io("read", path))? {
            Line::End => return Ok(()),
            Line::TooLong => return Err(list.error("the line is too long")),
            Line::Whole if line.trim_ascii().is_empty() => continue,
            Line::Whole => {}
        }
        let entry: Entry = serde_json::from_slice(&line).map_err(|error| {
            let error = list.error(json_reason(&error));
            error.with_hint(r#"each line is an object such as {"path": "a.jpg", "class": "cat"}"#)
        })?;
        entry.others.keys().for_each(|name| list.ignore(name));
        list.add(Path::new(&entry.path), Class::from(&entry.class))?;
    }
}
