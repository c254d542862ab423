//! The table: a row for each picture or text and each feature that it activates, in a Parquet file. `FIELDS` is its
//! schema.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{ArrayBuilder, Float32Builder, Int32Builder, StringBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use gguf_tools::new_file::{CompleteFile, NewFile};

use super::sidecar::{Checksum, ScannedSaes};
use crate::study::pictures::{ActiveFeature, InContext, ItemFeatures, ItemKind};
use crate::{Error, FeatureId, Result, SaeSet};

/// Rows that are encoded or decoded at once.
pub(super) const BATCH_ROWS: usize = 8192;
/// Rows of a row group, which is what a writer and a reader hold in memory.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// Begins the name of the program that wrote a table.
pub(super) const WRITER: &str = "llava-sae-cpp";

/// Name, type, and whether there may be nulls.
pub(super) type TableField = (&'static str, DataType, bool);
/// The columns of every table.
pub(super) const FIELDS: [TableField; 7] = [
    ("path", DataType::Utf8, false),
    ("class", DataType::Utf8, true),
    ("feature", DataType::Int32, false),
    ("label", DataType::Utf8, true),
    ("sum", DataType::Float32, false),
    ("max", DataType::Float32, false),
    ("count", DataType::Int32, false),
];
/// The column of tables of several SAEs alone.
pub(super) const SAE_FIELD: TableField = ("sae", DataType::Utf8, false);
/// The last columns of tables of texts.
pub(super) const TEXT_FIELDS: [TableField; 4] = [
    ("position", DataType::Int32, false),
    ("before", DataType::Utf8, false),
    ("token", DataType::Utf8, false),
    ("after", DataType::Utf8, false),
];
/// Where that of SAEs stands: in front of the feature.
const SAE_COLUMN: usize = 2;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row<'a> {
    /// The item's name: its path below the scanned folder, or as a list has it.
    pub path: &'a str,
    /// Its class, where it has one.
    pub class: Option<&'a str>,
    /// The SAE's name, in a table of several.
    pub sae: Option<&'a str>,
    /// The feature's label, where it has one.
    pub label: Option<&'a str>,
    /// What it activates.
    pub active: ActiveFeature,
    /// Of a text, the token that activates it most.
    pub token: Option<InContext<&'a str>>,
}

fn schema(saes: &ScannedSaes, kind: ItemKind) -> SchemaRef {
    let mut fields = FIELDS.to_vec();
    if saes.are_named() {
        fields.insert(SAE_COLUMN, SAE_FIELD);
    }
    if kind == ItemKind::Texts {
        fields.extend(TEXT_FIELDS);
    }
    let field = |(name, data_type, is_nullable)| Field::new(name, data_type, is_nullable);
    Arc::new(Schema::new(
        fields.into_iter().map(field).collect::<Vec<_>>(),
    ))
}

/// The rows of an item: for each SAE its active features.
pub(super) fn rows_of<'a>(
    saes: &'a SaeSet,
    path: &'a str,
    class: Option<&'a str>,
    features: &'a ItemFeatures,
) -> impl Iterator<Item = Row<'a>> {
    let of_saes = features.active.iter().enumerate();
    of_saes.flat_map(move |(sae, active)| {
        active.iter().enumerate().map(move |(i, &active)| Row {
            path,
            class,
            sae: saes.shown_id(sae),
            label: saes.label(FeatureId {
                sae,
                index: active.feature,
            }),
            active,
            token: features.text.as_ref().map(|text| text.strongest(sae, i)),
        })
    })
}

/// Rows that become a batch.
pub(super) struct RowBuilder {
    schema: SchemaRef,
    path: StringBuilder,
    class: StringBuilder,
    sae: Option<StringBuilder>,
    feature: Int32Builder,
    label: StringBuilder,
    sum: Float32Builder,
    max: Float32Builder,
    count: Int32Builder,
    token: Option<TokenBuilder>,
}

/// The columns of tables of texts.
#[derive(Default)]
struct TokenBuilder {
    position: Int32Builder,
    texts: [StringBuilder; 3], // before, token, after
}

impl RowBuilder {
    /// Of a table of the features of `saes` on items of a kind.
    pub(super) fn new(saes: &ScannedSaes, kind: ItemKind) -> Self {
        Self {
            schema: schema(saes, kind),
            path: StringBuilder::new(),
            class: StringBuilder::new(),
            sae: saes.are_named().then(StringBuilder::new),
            feature: Int32Builder::new(),
            label: StringBuilder::new(),
            sum: Float32Builder::new(),
            max: Float32Builder::new(),
            count: Int32Builder::new(),
            token: (kind == ItemKind::Texts).then(TokenBuilder::default),
        }
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Adds a row.
    ///
    /// # Errors
    /// A row that names no SAE in a table of several, or no token in one of texts.
    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<()> {
        let int = |n: usize| i32::try_from(n).expect("features and tokens are counted in 31 bits");
        if let Some(sae) = &mut self.sae {
            let id = row
                .sae
                .ok_or_else(|| Error::invalid("a row names no SAE"))?;
            sae.append_value(id);
        }
        if let Some(builder) = &mut self.token {
            let token = row.token;
            let token = token.ok_or_else(|| Error::invalid("a row names no token"))?;
            builder.position.append_value(int(token.position));
            let texts = [token.before, token.token, token.after];
            for (builder, text) in builder.texts.iter_mut().zip(texts) {
                builder.append_value(text);
            }
        }
        self.path.append_value(row.path);
        self.class.append_option(row.class);
        self.feature.append_value(int(row.active.feature));
        self.label.append_option(row.label);
        self.sum.append_value(row.active.sum);
        self.max.append_value(row.active.max);
        self.count.append_value(int(row.active.count));
        Ok(())
    }

    fn n_rows(&self) -> usize {
        self.feature.len()
    }

    /// The rows since the last batch.
    pub(super) fn finish(&mut self) -> RecordBatch {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.path.finish()),
            Arc::new(self.class.finish()),
            Arc::new(self.feature.finish()),
            Arc::new(self.label.finish()),
            Arc::new(self.sum.finish()),
            Arc::new(self.max.finish()),
            Arc::new(self.count.finish()),
        ];
        if let Some(sae) = &mut self.sae {
            columns.insert(SAE_COLUMN, Arc::new(sae.finish()));
        }
        if let Some(token) = &mut self.token {
            columns.push(Arc::new(token.position.finish()));
            let texts = token.texts.iter_mut();
            columns.extend(texts.map(|text| Arc::new(text.finish()) as ArrayRef));
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        batch.expect("columns of one length")
    }
}

/// Writes a table. The bytes depend on the rows alone, not on how the rows came.
pub(super) struct TableWriter {
    shown: PathBuf,
    rows: RowBuilder,
    arrow: ArrowWriter<HashedFile>,
}

impl TableWriter {
    /// Starts a table of the features of `saes` on items of a kind in `file`, which is empty.
    pub(super) fn new(file: NewFile, saes: &ScannedSaes, kind: ItemKind) -> Result<Self> {
        let shown = file.target().to_owned();
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_size(ROW_GROUP_ROWS)
            .set_created_by(format!("{WRITER} {}", env!("CARGO_PKG_VERSION")))
            .build();
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_skip_arrow_metadata(true);
        let file = HashedFile {
            file,
            hasher: blake3::Hasher::new(),
        };
        let rows = RowBuilder::new(saes, kind);
        let arrow = ArrowWriter::try_new_with_options(file, Arc::clone(rows.schema()), options)
            .map_err(|error| parquet_error("write", &shown, error))?;
        Ok(Self { shown, rows, arrow })
    }

    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<()> {
        self.rows.push(row)?;
        match self.rows.n_rows() {
            BATCH_ROWS => self.write_batch(),
            _ => Ok(()),
        }
    }

    fn write_batch(&mut self) -> Result<()> {
        let written = self.arrow.write(&self.rows.finish());
        written.map_err(|error| parquet_error("write", &self.shown, error))
    }

    /// Completes the file, which still has to be put in its target's place, and says what it holds.
    pub(super) fn finish(mut self) -> Result<(Checksum, CompleteFile)> {
        self.write_batch()?;
        let file = self.arrow.into_inner();
        let file = file.map_err(|error| parquet_error("write", &self.shown, error))?;
        Ok((Checksum::of(&file.hasher), file.file.complete()?))
    }
}

/// A file that is hashed while it is written.
struct HashedFile {
    file: NewFile,
    hasher: blake3::Hasher,
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n_written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n_written]);
        Ok(n_written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An error of the `parquet` crate; the system's own come through it.
pub(super) fn parquet_error(action: &'static str, path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => Error::io(action, path)(*source),
            Err(other) => Error::invalid(format!("cannot {action} `{}`: {other}", path.display())),
        },
        other => {
            let other = other.to_string();
            let error = Error::invalid(format!("cannot {action} `{}`: {other}", path.display()));
            match other.contains("Disabled feature") {
                true => error.with_hint("write the table uncompressed, or compressed with Snappy"),
                false => error,
            }
        }
    }
}
