//! A process that stays warm: paths, pictures or texts in, a line each, and a record batch out for each, in Arrow's stream
//! format. Whoever asks may wait for an answer before the next line, or not.

use std::io::{BufRead, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, new_null_array};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::lines::{Line, json_reason, next_line, path_of};
use super::list::{Class, given, item_of, item_of_text};
use super::settings::Settings;
use super::sidecar::ScannedSaes;
use super::table::{RowBuilder, rows_of};
use crate::study::pictures::{Item, ItemFeatures, Scan, features_of, for_many_items};
use crate::{Error, HookedModel, Result, SaeSet, Session, llama};

/// Bytes of the longest line: a picture of 192 MiB in base64.
const MAX_LINE_BYTES: usize = 256 << 20;

/// Answers each line of `questions` with a record batch in `answers`, in their order, each written out at once.
///
/// A line is a path, which begins at `scan.dir` if it is relative, or a JSON object with `path`, and if wanted
/// `class`, and `data`, the picture itself in base64, or `text`, to which `path` is then only its name. A batch has the
/// rows of a scan's table for that item, none if no feature is active, with a column `input` in front, the line's number from
/// 0, and a column `error` behind. What cannot be answered gives one row that says why, with nulls in place of a
/// feature. The stream's schema comes once the model is loaded, with the scan's settings in its metadata.
///
/// # Errors
/// What stops all items: a model that cannot be opened, a failure of llama.cpp, a cancellation; questions that
/// cannot be read, answers that cannot be written.
pub fn answer(scan: &Scan<'_>, questions: &mut dyn BufRead, answers: &mut dyn Write) -> Result<()> {
    let saes = scan.files.open_saes()?;
    let settings = Settings::new(scan.files, &saes, scan.options, scan.reading, scan.cancel)?;
    let model = HookedModel::open(scan.files, for_many_items(scan.options))?;
    let mut session = Session::new(model);
    let mut answers = Answers::new(saes, &settings, scan, answers)?;
    let mut line = Vec::new();
    loop {
        let read = next_line(questions, b'\n', MAX_LINE_BYTES, &mut line);
        let question = match read.map_err(Error::io("read", Path::new("the questions")))? {
            Line::End => return answers.finish(),
            Line::TooLong => Err(Error::invalid(format!(
                "the line is longer than {MAX_LINE_BYTES} bytes"
            ))),
            Line::Whole => question(&line),
        };
        let item = match question {
            Ok(item) => item,
            Err(error) => {
                answers.refuse(None, &error)?;
                continue;
            }
        };
        let read = features_of(&mut session, &item, scan);
        // Items differ in size, so a prompt that does not fit is no reason to end either.
        match read.unwrap_or_else(Err) {
            Ok(features) => answers.write(&item, &features)?,
            Err(error) if error.is_of_input() => answers.refuse(Some(&item), &error)?,
            Err(error) => return Err(error),
        }
    }
}

/// A line of JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    path: String,
    #[serde(default, deserialize_with = "given")]
    class: Option<Option<String>>,
    data: Option<String>,
    text: Option<String>,
}

/// What a line asks for.
fn question(line: &[u8]) -> Result<Item> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if !line.starts_with(b"{") {
        return item_of(&path_of(line)?, Class::OfFolder);
    }
    let fields: Fields = serde_json::from_slice(line).map_err(|error| {
        let reason = json_reason(&error);
        Error::invalid(format!("the line cannot be read: {reason}"))
    })?;
    let class = Class::from(&fields.class);
    match (fields.data, fields.text) {
        (None, None) => item_of(Path::new(&fields.path), class),
        (None, Some(text)) => item_of_text(&fields.path, class, text),
        (Some(data), None) => {
            let item = item_of(Path::new(&fields.path), class)?;
            let data = BASE64_STANDARD.decode(data);
            let not_base64 = |error| Error::invalid(format!("`data` is not base64: {error}"));
            Ok(item.with_picture(data.map_err(not_base64)?))
        }
        (Some(_), Some(_)) => Err(Error::invalid("the line has both `data` and `text`")),
    }
}

/// The stream of answers.
struct Answers<'a> {
    saes: SaeSet,
    rows: RowBuilder,
    schema: SchemaRef,
    stream: StreamWriter<BufWriter<&'a mut dyn Write>>,
    n_written: i64,
}

impl<'a> Answers<'a> {
    fn new(
        saes: SaeSet,
        settings: &Settings,
        scan: &Scan<'_>,
        answers: &'a mut dyn Write,
    ) -> Result<Self> {
        let rows = RowBuilder::new(&ScannedSaes::new(&saes), scan.reading.kind());
        let fields = rows.schema().fields().iter();
        let fields = fields.map(|field| field.as_ref().clone().with_nullable(true));
        let mut all = vec![Field::new("input", DataType::Int64, false)];
        all.extend(fields);
        all.push(Field::new("error", DataType::Utf8, true));
        let settings = serde_json::to_string(settings).expect("plain data");
        let computed_by = llama::computed_by(scan.options.gpu_layers != 0);
        let metadata = [("settings", settings), ("computed_by", computed_by)];
        let metadata = metadata.map(|(name, value)| (name.to_owned(), value));
        let schema = Arc::new(Schema::new_with_metadata(all, metadata.into()));
        let stream = StreamWriter::try_new_buffered(answers, &schema);
        let mut answers = Self {
            saes,
            rows,
            stream: stream.map_err(write_error)?,
            schema,
            n_written: 0,
        };
        answers.stream.flush().map_err(write_error)?;
        Ok(answers)
    }

    /// Writes an item's rows.
    fn write(&mut self, item: &Item, features: &ItemFeatures) -> Result<()> {
        let class = item.class.as_deref();
        for row in rows_of(&self.saes, &item.name, class, features) {
            self.rows.push(&row)?;
        }
        let rows = self.rows.finish();
        let error = new_null_array(&DataType::Utf8, rows.num_rows());
        self.write_batch(rows.columns().to_vec(), error)
    }

    /// Writes why there is no other answer.
    fn refuse(&mut self, item: Option<&Item>, error: &Error) -> Result<()> {
        let fields = self.rows.schema().fields().iter();
        let columns = fields.map(|field| match (&**field.name(), item) {
            ("path", Some(item)) => Arc::new(StringArray::from(vec![&*item.name])) as ArrayRef,
            ("class", Some(item)) => Arc::new(StringArray::from(vec![item.class.as_deref()])),
            _ => new_null_array(field.data_type(), 1),
        });
        let columns = columns.collect();
        let error = StringArray::from(vec![error.to_string()]);
        self.write_batch(columns, Arc::new(error))
    }

    fn write_batch(&mut self, columns: Vec<ArrayRef>, error: ArrayRef) -> Result<()> {
        let input = Int64Array::from(vec![self.n_written; error.len()]);
        let mut all: Vec<ArrayRef> = vec![Arc::new(input)];
        all.extend(columns);
        all.push(error);
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), all);
        let batch = batch.expect("columns of one length");
        self.n_written += 1;
        let written = self.stream.write(&batch);
        written
            .and_then(|()| self.stream.flush())
            .map_err(write_error)
    }

    fn finish(mut self) -> Result<()> {
        let finished = self.stream.finish();
        finished
            .and_then(|()| self.stream.flush())
            .map_err(write_error)
    }
}

fn write_error(error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, source) => Error::io("write", Path::new("the answers"))(source),
        other => Error::invalid(format!("cannot write the answers: {other}")),
    }
}
