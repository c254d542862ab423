//! Tables in a row become one: the parts of a scan, and the shards of one.

use std::path::Path;

use gguf_tools::new_file::{CompleteFile, NewFile};

use super::parts::Totals;
use super::sidecar::{Contents, Sidecar};
use super::table::TableWriter;
use super::table_file::TableFile;
use crate::{CancelFlag, Error, Result};

/// A table that others are joined into, row by row: its bytes are those that one scan would have written.
pub(super) struct Joined {
    table: TableWriter,
    contents: Contents,
    n_rows: u64,
}

impl Joined {
    /// Begins a table in `file`, of which `contents` says all but the counts.
    pub(super) fn new(file: NewFile, contents: Contents) -> Result<Self> {
        Ok(Self {
            table: TableWriter::new(file, &contents.saes, contents.settings.kind())?,
            contents,
            n_rows: 0,
        })
    }

    /// Adds the rows and counts of a whole table. `cancel` stops it.
    ///
    /// # Errors
    /// A table that is damaged or has no sidecar, a file that cannot be written, a cancellation.
    pub(super) fn add(&mut self, path: &Path, cancel: &CancelFlag) -> Result<()> {
        let (table, contents) = TableFile::open_whole(path)?;
        self.contents.add(&contents);
        self.n_rows += table.n_rows();
        table.for_each_row(&mut |row| {
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            self.table.push(&row)
        })
    }

    /// Completes the table and says what is in it; both still have to get their names.
    pub(super) fn finish(self) -> Result<(Totals, CompleteFile, Sidecar)> {
        let kinds = &self.contents.computed_by;
        if kinds.len() > 1 {
            let kinds: Vec<_> = kinds
                .iter()
                .map(|kind| format!("`{}`", kind.trim()))
                .collect();
            log::warn!(
                "the last bits of values depend on what computed them, and {} kinds did: {}",
                kinds.len(),
                kinds.join(", ")
            );
        }
        let totals = Totals {
            kind: self.contents.settings.kind(),
            n_images: self.contents.n_images(),
            n_skipped: self.contents.n_skipped,
            n_rows: self.n_rows,
        };
        let (checksum, table) = self.table.finish()?;
        Ok((totals, table, Sidecar::new(checksum, self.contents)))
    }
}
