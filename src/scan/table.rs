//! The table: a row for each picture and active feature, in a sealed Parquet file. This is the one
//! place that knows the schema and the metadata.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, Int32Builder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};

use super::folder::FoundPicture;
use super::seal::{self, Seal};
use super::settings::Settings;
use crate::{Error, Result};

/// The metadata's key for what [`Contents`] says, as JSON.
const KEY: &str = "llava_sae_cpp.scan";
/// The version of the schema and the metadata.
const FORMAT: u32 = 1;
/// Rows that are encoded or decoded at once.
const BATCH_ROWS: usize = 8192;
/// Rows of a row group, which is what a writer and a reader hold in memory.
const ROW_GROUP_ROWS: usize = 1 << 20;

/// A feature that a picture fires.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActiveFeature {
    /// Its index.
    pub feature: usize,
    /// Its activations over the image's rows, summed.
    pub sum: f32,
    /// The largest of them.
    pub max: f32,
    /// The number of image rows on which it fires.
    pub count: usize,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row<'a> {
    /// The picture's path below the scanned folder, with `/` between its parts.
    pub path: &'a str,
    /// The name of the folder that it lies in; none directly in the scanned one.
    pub class: Option<&'a str>,
    /// The feature's label, where it has one.
    pub label: Option<&'a str>,
    /// What it fires.
    pub active: ActiveFeature,
}

/// How many pictures of a class could be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassSize {
    /// The class; none for pictures directly in the folder.
    pub class: Option<String>,
    /// Its pictures, those without an active feature too.
    pub n_images: u64,
}

/// What a file says about its rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Contents {
    format: u32,
    /// What the numbers depend on.
    pub settings: Settings,
    /// The SAE's number of features.
    pub d_sae: usize,
    /// The pictures that were read, by class.
    pub classes: Vec<ClassSize>,
    /// The number of pictures that could not be read.
    pub n_skipped: u64,
    /// The pictures of a part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pictures: Vec<CoveredPicture>,
}

/// A picture of a part, as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CoveredPicture {
    pub(super) path: String,
    pub(super) n_bytes: u64,
    pub(super) modified_ns: u64,
    pub(super) is_skipped: bool,
}

impl CoveredPicture {
    pub(super) fn is_still(&self, picture: &FoundPicture) -> bool {
        (&self.path, self.n_bytes, self.modified_ns)
            == (&picture.path, picture.n_bytes, picture.modified_ns)
    }
}

impl Contents {
    pub(super) fn new(settings: Settings, d_sae: usize) -> Self {
        Self {
            format: FORMAT,
            settings,
            d_sae,
            classes: Vec::new(),
            n_skipped: 0,
            pictures: Vec::new(),
        }
    }

    /// The number of pictures that were read.
    pub fn n_images(&self) -> u64 {
        self.classes.iter().map(|class| class.n_images).sum()
    }

    /// Counts pictures of a class that were read.
    pub(super) fn add_images(&mut self, class: Option<&str>, n_images: u64) {
        let at = self
            .classes
            .binary_search_by(|entry| entry.class.as_deref().cmp(&class));
        match at {
            Ok(at) => self.classes[at].n_images += n_images,
            Err(at) => {
                let class = class.map(str::to_owned);
                self.classes.insert(at, ClassSize { class, n_images });
            }
        }
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("class", DataType::Utf8, true),
        Field::new("feature", DataType::Int32, false),
        Field::new("label", DataType::Utf8, true),
        Field::new("sum", DataType::Float32, false),
        Field::new("max", DataType::Float32, false),
        Field::new("count", DataType::Int32, false),
    ]))
}

/// Writes a table. The bytes depend on the rows and the contents alone, not on how the rows came.
pub(super) struct TableWriter {
    file: File,
    shown: PathBuf,
    arrow: ArrowWriter<File>,
    path: StringBuilder,
    class: StringBuilder,
    feature: Int32Builder,
    label: StringBuilder,
    sum: Float32Builder,
    max: Float32Builder,
    count: Int32Builder,
}

impl TableWriter {
    /// Starts a table in `file`, empty and open for reading and writing; errors name `shown`.
    pub(super) fn new(file: File, shown: &Path) -> Result<Self> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_size(ROW_GROUP_ROWS)
            .set_created_by(concat!("llava-sae-cpp ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_skip_arrow_metadata(true);
        let copy = file
            .try_clone()
            .map_err(gguf_tools::Error::io("write", shown))?;
        let arrow = ArrowWriter::try_new_with_options(copy, schema(), options)
            .map_err(|error| parquet_error("write", shown, error))?;
        Ok(Self {
            file,
            shown: shown.to_owned(),
            arrow,
            path: StringBuilder::new(),
            class: StringBuilder::new(),
            feature: Int32Builder::new(),
            label: StringBuilder::new(),
            sum: Float32Builder::new(),
            max: Float32Builder::new(),
            count: Int32Builder::new(),
        })
    }

    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<()> {
        let int = |n: usize| i32::try_from(n).expect("features and tokens are counted in 31 bits");
        self.path.append_value(row.path);
        self.class.append_option(row.class);
        self.feature.append_value(int(row.active.feature));
        self.label.append_option(row.label);
        self.sum.append_value(row.active.sum);
        self.max.append_value(row.active.max);
        self.count.append_value(int(row.active.count));
        if arrow_array::builder::ArrayBuilder::len(&self.feature) == BATCH_ROWS {
            self.write_batch()?;
        }
        Ok(())
    }

    fn write_batch(&mut self) -> Result<()> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.path.finish()),
            Arc::new(self.class.finish()),
            Arc::new(self.feature.finish()),
            Arc::new(self.label.finish()),
            Arc::new(self.sum.finish()),
            Arc::new(self.max.finish()),
            Arc::new(self.count.finish()),
        ];
        let batch = RecordBatch::try_new(schema(), columns).expect("columns of one length");
        let written = self.arrow.write(&batch);
        written.map_err(|error| parquet_error("write", &self.shown, error))
    }

    /// Completes and seals the file.
    pub(super) fn finish(mut self, contents: &Contents) -> Result<()> {
        self.write_batch()?;
        let json = serde_json::to_string(contents).expect("plain data");
        let metadata = KeyValue::new(KEY.to_owned(), json);
        self.arrow.append_key_value_metadata(metadata);
        self.arrow.append_key_value_metadata(seal::placeholder());
        let closed = self.arrow.close();
        closed.map_err(|error| parquet_error("write", &self.shown, error))?;
        seal::seal(&mut self.file, &self.shown)
    }
}

/// A file that `scan` wrote, checked from end to end.
pub struct ScanFile {
    path: PathBuf,
    file: File,
    metadata: ArrowReaderMetadata,
    contents: Contents,
}

impl ScanFile {
    /// Opens a file and checks it against its checksum.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or was not written by a scan.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, seal) = open_and_check(path)?;
        let shown = path.display();
        let foreign = || {
            Error::invalid(format!("`{shown}` was not written by `llava-sae-cpp scan`"))
                .with_hint("make such a file with `llava-sae-cpp scan DIR -o FILE.parquet`")
        };
        match seal {
            Seal::Whole => {}
            Seal::None => return Err(foreign()),
            Seal::NoParquet => {
                let what = format!("`{shown}` is no Parquet file, or its end is missing");
                return Err(
                    Error::invalid(what).with_hint("make it with `llava-sae-cpp scan` once more")
                );
            }
            Seal::Damaged => {
                let what = format!("`{shown}` is damaged: its checksum is another");
                return Err(
                    Error::invalid(what).with_hint("make it with `llava-sae-cpp scan` once more")
                );
            }
        }
        let metadata = ArrowReaderMetadata::load(&file, Default::default())
            .map_err(|error| parquet_error("read", path, error))?;
        let entries = metadata.metadata().file_metadata().key_value_metadata();
        let json = entries
            .into_iter()
            .flatten()
            .find(|entry| entry.key == KEY)
            .and_then(|entry| entry.value.as_deref())
            .ok_or_else(foreign)?;
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let of_another_version = || {
            let what = format!("`{shown}` was written by another version of this program");
            Error::invalid(what).with_hint("scan the folder again with this one")
        };
        let version: Version = serde_json::from_str(json).map_err(|_| of_another_version())?;
        if version.format != FORMAT || metadata.schema().fields() != schema().fields() {
            return Err(of_another_version());
        }
        let contents = serde_json::from_str(json).map_err(|_| of_another_version())?;
        Ok(Self {
            path: path.to_owned(),
            file,
            metadata,
            contents,
        })
    }

    /// What the file says about its rows.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// As [`ScanFile::contents`], when the rows are not needed.
    pub(super) fn into_contents(self) -> Contents {
        self.contents
    }

    /// The number of rows.
    pub fn n_rows(&self) -> u64 {
        let n_rows = self.metadata.metadata().file_metadata().num_rows();
        u64::try_from(n_rows).unwrap_or(0)
    }

    /// Gives every row to `on_row`, in the file's order, with few of them in memory.
    ///
    /// # Errors
    /// A file that cannot be read, an error of `on_row`.
    pub fn for_each_row(&self, on_row: &mut dyn FnMut(Row<'_>) -> Result<()>) -> Result<()> {
        let file = self
            .file
            .try_clone()
            .map_err(gguf_tools::Error::io("read", &self.path))?;
        let batches =
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
                .with_batch_size(BATCH_ROWS)
                .build()
                .map_err(|error| parquet_error("read", &self.path, error))?;
        for batch in batches {
            let batch = batch.map_err(|error| parquet_error("read", &self.path, error.into()))?;
            self.rows_of(&batch, on_row)?;
        }
        Ok(())
    }

    fn rows_of(
        &self,
        batch: &RecordBatch,
        on_row: &mut dyn FnMut(Row<'_>) -> Result<()>,
    ) -> Result<()> {
        let text = |column: usize| batch.column(column).as_string::<i32>();
        let int = |column: usize| batch.column(column).as_primitive::<Int32Type>();
        let float = |column: usize| batch.column(column).as_primitive::<Float32Type>();
        let (paths, classes, features, labels) = (text(0), text(1), int(2), text(3));
        let (sums, maxima, counts) = (float(4), float(5), int(6));
        for i in 0..batch.num_rows() {
            let feature = usize::try_from(features.value(i)).unwrap_or(usize::MAX);
            if feature >= self.contents.d_sae {
                return Err(Error::invalid(format!(
                    "`{}` has a row of feature {}, and its SAE has {} features",
                    self.path.display(),
                    features.value(i),
                    self.contents.d_sae
                )));
            }
            on_row(Row {
                path: paths.value(i),
                class: classes.is_valid(i).then(|| classes.value(i)),
                label: labels.is_valid(i).then(|| labels.value(i)),
                active: ActiveFeature {
                    feature,
                    sum: sums.value(i),
                    max: maxima.value(i),
                    count: usize::try_from(counts.value(i)).unwrap_or(0),
                },
            })?;
        }
        Ok(())
    }
}

/// Opens a regular file and checks its seal.
pub(super) fn open_and_check(path: &Path) -> Result<(File, Seal)> {
    let read_error = || gguf_tools::Error::io("read", path);
    // A pipe would wait for ever.
    if !path.metadata().map_err(read_error())?.is_file() {
        let what = format!("cannot read `{}`: it is no regular file", path.display());
        return Err(Error::invalid(what));
    }
    let mut file = File::open(path).map_err(read_error())?;
    let seal = seal::check(&mut file, path)?;
    Ok((file, seal))
}

/// An error of the `parquet` crate; the system's own come through it.
fn parquet_error(action: &'static str, path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => gguf_tools::Error::io(action, path)(*source).into(),
            Err(other) => Error::invalid(format!("cannot {action} `{}`: {other}", path.display())),
        },
        other => Error::invalid(format!("cannot {action} `{}`: {other}", path.display())),
    }
}
