//! Reading a table: as it was written, with what its sidecar says, or as another program has made it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::{CastOptions, cast_with_options};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};

use super::file::NoContents;
use super::sidecar::{Checksum, Contents, ScannedSae, ScannedSaes, Sidecar, no_sidecar};
use super::table::{
    BATCH_ROWS, FIELDS, Row, SAE_FIELD, TEXT_FIELDS, TableField, WRITER, parquet_error,
};
use crate::study::pictures::{ActiveFeature, InContext, ItemKind};
use crate::{Error, Result};

/// Ends a Parquet file, behind the length of its footer in 4 bytes.
const MAGIC: &[u8; 4] = b"PAR1";
/// Bytes of the largest footer that is read; one of a thousand row groups has a megabyte.
const MAX_FOOTER_BYTES: u64 = 16 << 20;

/// A table of `scan`, or what another program has made of one.
pub(super) struct TableFile {
    pub(super) path: PathBuf,
    file: File,
    metadata: ArrowReaderMetadata,
    /// What the scan says about its rows, where it is known.
    pub(super) contents: std::result::Result<Contents, NoContents>,
    /// The SAEs whose features the rows are: those of the scan, or, where that is not known, those that rows name.
    pub(super) saes: ScannedSaes,
    /// What was scanned, by the columns.
    pub(super) kind: ItemKind,
}

impl TableFile {
    /// Opens a file. If it is as a scan wrote it, it is checked from end to end; if another program has written
    /// it, the names of several SAEs are looked for in all its rows.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged, or that lacks one of a scan's columns.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let shown = path.display();
        let damaged = || {
            let sidecar = Sidecar::path_of(path);
            let sidecar = sidecar.display();
            Error::invalid(format!(
                "`{shown}` is damaged, or `{sidecar}` belongs to another file: the checksums differ"
            ))
            .with_hint("make it again with `llava-sae-cpp scan`")
        };
        let Some(sidecar) = Sidecar::read(path)? else {
            let metadata = read_metadata(&file, path)?;
            return Self::new(path, file, metadata, Err(NoContents::NoSidecar));
        };
        let checksum = Checksum::of_file(&file).map_err(Error::io("read", path))?;
        if checksum == sidecar.table {
            let metadata = read_metadata(&file, path)?;
            return Self::new(path, file, metadata, Ok(sidecar.contents));
        }
        // Damage seldom changes a file's length, and never the name of who wrote it to another's.
        if checksum.n_bytes == sidecar.table.n_bytes {
            return Err(damaged());
        }
        let metadata = read_metadata(&file, path).map_err(|_| damaged())?;
        let writer = metadata.metadata().file_metadata().created_by();
        if writer.is_none_or(|writer| writer.starts_with(WRITER)) {
            return Err(damaged());
        }
        Self::new(path, file, metadata, Err(NoContents::Rewritten))
    }

    /// Opens a file as a scan wrote it, and takes out what is said about its rows.
    ///
    /// # Errors
    /// As [`TableFile::open`], and a file without a sidecar of its own.
    pub(super) fn open_whole(path: &Path) -> Result<(Self, Contents)> {
        let file = Self::open(path)?;
        let contents = file.known_contents()?.clone();
        Ok((file, contents))
    }

    /// What the scan says about its rows.
    ///
    /// # Errors
    /// When nothing is known of them.
    pub(super) fn known_contents(&self) -> Result<&Contents> {
        let shown = self.path.display();
        self.contents.as_ref().map_err(|reason| match reason {
            NoContents::NoSidecar => no_sidecar(&self.path),
            NoContents::Rewritten => Error::invalid(format!(
                "another program has written `{shown}` since the scan that `{shown}.json` describes"
            ))
            .with_hint("take the file as the scan wrote it"),
        })
    }

    fn new(
        path: &Path,
        file: File,
        metadata: ArrowReaderMetadata,
        contents: std::result::Result<Contents, NoContents>,
    ) -> Result<Self> {
        let fields = metadata.schema().fields();
        let lacks = |name: &str| !fields.iter().any(|field| field.name() == name);
        let lacks_sae = lacks(SAE_FIELD.0);
        let kind = match TEXT_FIELDS.iter().any(|(name, ..)| lacks(name)) {
            true => ItemKind::Pictures,
            false => ItemKind::Texts,
        };
        let missing: Vec<_> = FIELDS
            .iter()
            .filter(|(name, ..)| lacks(name))
            .map(|(name, ..)| format!("`{name}`"))
            .collect();
        if !missing.is_empty() {
            let what = format!(
                "`{}` is not a table of `llava-sae-cpp scan`: it has no column {}",
                path.display(),
                missing.join(", ")
            );
            return Err(Error::invalid(what).with_hint(
                "make one with `llava-sae-cpp scan`, and keep its columns in what you make of it",
            ));
        }
        let mut scan = Self {
            path: path.to_owned(),
            file,
            metadata,
            saes: match &contents {
                Ok(contents) => contents.saes.clone(),
                Err(_) => ScannedSaes::One { d_sae: usize::MAX },
            },
            contents,
            kind,
        };
        if scan.contents.is_err() && !lacks_sae {
            scan.saes = scan.named_saes()?;
        }
        Ok(scan)
    }

    /// The SAEs that rows name, where nothing else is known of them.
    fn named_saes(&self) -> Result<ScannedSaes> {
        let mut ids = BTreeSet::new();
        self.for_each_batch(&[SAE_FIELD], &mut |batch| {
            let column = self.column(batch, &SAE_FIELD)?;
            let named = column.as_string::<i32>();
            ids.extend(named.iter().flatten().map(str::to_owned));
            Ok(())
        })?;
        let d_sae = usize::MAX;
        let saes = ids.into_iter().map(|id| ScannedSae { id, d_sae });
        Ok(ScannedSaes::Several {
            saes: saes.collect(),
        })
    }

    /// The number of rows.
    pub(super) fn n_rows(&self) -> u64 {
        let n_rows = self.metadata.metadata().file_metadata().num_rows();
        u64::try_from(n_rows).unwrap_or(0)
    }

    /// Gives every row to `on_row`, in the file's order, with few of them in memory.
    ///
    /// # Errors
    /// A file that cannot be read, an error of `on_row`.
    pub(super) fn for_each_row(&self, on_row: &mut dyn FnMut(Row<'_>) -> Result<()>) -> Result<()> {
        let mut fields = FIELDS.to_vec();
        fields.extend(self.saes.are_named().then_some(SAE_FIELD));
        if self.kind == ItemKind::Texts {
            fields.extend(TEXT_FIELDS);
        }
        self.for_each_batch(&fields, &mut |batch| self.rows_of(batch, on_row))
    }

    /// Gives every batch of rows to `on_batch`, with the columns of `fields`.
    fn for_each_batch(
        &self,
        fields: &[TableField],
        on_batch: &mut dyn FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let names: Vec<_> = fields.iter().map(|(name, ..)| *name).collect();
        for_each_batch(&self.path, &self.file, &self.metadata, &names, on_batch)
    }

    fn rows_of(
        &self,
        batch: &RecordBatch,
        on_row: &mut dyn FnMut(Row<'_>) -> Result<()>,
    ) -> Result<()> {
        let [paths, classes, features, labels, sums, maxima, counts] = self.columns(batch)?;
        let (paths, classes, labels) = (
            paths.as_string::<i32>(),
            classes.as_string::<i32>(),
            labels.as_string::<i32>(),
        );
        let (features, counts) = (
            features.as_primitive::<Int32Type>(),
            counts.as_primitive::<Int32Type>(),
        );
        let (sums, maxima) = (
            sums.as_primitive::<Float32Type>(),
            maxima.as_primitive::<Float32Type>(),
        );
        let saes = match self.saes.are_named() {
            true => Some(self.column(batch, &SAE_FIELD)?),
            false => None,
        };
        let saes = saes.as_ref().map(|column| column.as_string::<i32>());
        let tokens = match self.kind {
            ItemKind::Texts => TEXT_FIELDS
                .iter()
                .map(|field| self.column(batch, field))
                .collect::<Result<Vec<_>>>()?,
            ItemKind::Pictures => Vec::new(),
        };
        let token = |i| {
            let [positions, before, token, after] = &tokens[..] else {
                return None;
            };
            let [before, token, after] = [before, token, after].map(|text| text.as_string::<i32>());
            let position = positions.as_primitive::<Int32Type>().value(i);
            Some(InContext {
                position: usize::try_from(position).unwrap_or(0),
                before: before.value(i),
                token: token.value(i),
                after: after.value(i),
            })
        };
        for i in 0..batch.num_rows() {
            let sae = saes.map(|saes| saes.value(i));
            let mut known = self.saes.iter().filter(|(id, _)| *id == sae);
            let feature = usize::try_from(features.value(i)).ok();
            let feature = feature.filter(|&feature| known.any(|(_, d_sae)| feature < d_sae));
            let feature = feature.ok_or_else(|| {
                let name = match sae {
                    None => features.value(i).to_string(),
                    Some(sae) => format!("`{sae}/{}`", features.value(i)),
                };
                Error::invalid(format!(
                    "`{}` has a row of feature {name}, which its SAE does not have",
                    self.path.display(),
                ))
            })?;
            on_row(Row {
                path: paths.value(i),
                class: classes.is_valid(i).then(|| classes.value(i)),
                sae,
                label: labels.is_valid(i).then(|| labels.value(i)),
                active: ActiveFeature {
                    feature,
                    sum: sums.value(i),
                    max: maxima.value(i),
                    count: usize::try_from(counts.value(i)).unwrap_or(0),
                },
                token: token(i),
            })?;
        }
        Ok(())
    }

    /// The columns of `FIELDS`.
    fn columns(&self, batch: &RecordBatch) -> Result<[ArrayRef; FIELDS.len()]> {
        let columns = FIELDS.iter().map(|field| self.column(batch, field));
        let columns: Vec<_> = columns.collect::<Result<_>>()?;
        Ok(columns.try_into().expect("a column for each field"))
    }

    /// A column in its type: other programs choose other widths.
    fn column(&self, batch: &RecordBatch, field: &TableField) -> Result<ArrayRef> {
        const STRICT: CastOptions<'_> = CastOptions {
            safe: false,
            format_options: arrow_cast::display::FormatOptions::new(),
        };
        let (name, data_type, is_nullable) = field;
        let shown = self.path.display();
        let column = batch
            .column_by_name(name)
            .ok_or_else(|| Error::invalid(format!("`{shown}` lost its column `{name}`")))?;
        let column = cast_with_options(column, data_type, &STRICT)
            .map_err(|error| Error::invalid(format!("`{shown}`, column `{name}`: {error}")))?;
        if column.null_count() > 0 && !is_nullable {
            let what = format!("`{shown}` has rows without `{name}`");
            return Err(Error::invalid(what).with_hint("leave such rows out"));
        }
        Ok(column)
    }
}

/// Opens a regular file.
pub(super) fn open_regular(path: &Path) -> Result<File> {
    let read_error = || Error::io("read", path);
    // A pipe would wait for ever.
    if !path.metadata().map_err(read_error())?.is_file() {
        let what = format!("cannot read `{}`: it is not a regular file", path.display());
        return Err(Error::invalid(what));
    }
    File::open(path).map_err(read_error())
}

/// Reads the end of a Parquet file.
pub(super) fn read_metadata(mut file: &File, path: &Path) -> Result<ArrowReaderMetadata> {
    let read_error = || Error::io("read", path);
    let n_bytes = file.seek(SeekFrom::End(0)).map_err(read_error())?;
    let mut end = [0; 8];
    if n_bytes >= 12 {
        file.seek(SeekFrom::Start(n_bytes - 8))
            .and_then(|_| file.read_exact(&mut end))
            .map_err(read_error())?;
    }
    let (length, magic) = end.split_at(4);
    let footer_bytes = u64::from(u32::from_le_bytes(length.try_into().expect("four bytes")));
    if magic != MAGIC || footer_bytes > (n_bytes - 12).min(MAX_FOOTER_BYTES) {
        let what = format!(
            "`{}` is not a Parquet file, or its end is missing",
            path.display()
        );
        return Err(Error::invalid(what).with_hint("make it again with `llava-sae-cpp scan`"));
    }
    // Arrow's own schema in the metadata would choose types by the program that wrote the file.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    catch_panic(path, || {
        ArrowReaderMetadata::load(file, options).map_err(|error| parquet_error("read", path, error))
    })
}

/// Gives every batch of rows of a Parquet file to `on_batch`, with those of the columns `names` that it has.
pub(super) fn for_each_batch(
    path: &Path,
    file: &File,
    metadata: &ArrowReaderMetadata,
    names: &[&str],
    on_batch: &mut dyn FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    let file = file.try_clone().map_err(Error::io("read", path))?;
    let columns = metadata.schema().fields().iter().enumerate();
    let roots = columns.filter(|(_, column)| names.contains(&&**column.name()));
    let roots = roots.map(|(i, _)| i);
    let mut batches = catch_panic(path, || {
        let mask = ProjectionMask::roots(metadata.parquet_schema(), roots);
        ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| parquet_error("read", path, error))
    })?;
    loop {
        let batch = catch_panic(path, || {
            let batch = batches.next().transpose();
            batch.map_err(|error| parquet_error("read", path, error.into()))
        })?;
        let Some(batch) = batch else { return Ok(()) };
        on_batch(&batch)?;
    }
}

/// The `parquet` crate (56) panics on some damaged pages: of 597 files with flipped bits, on 21.
fn catch_panic<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let what = format!("`{}` is damaged", path.display());
        Err(Error::invalid(what).with_hint("make it again"))
    })
}
