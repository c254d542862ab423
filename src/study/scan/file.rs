//! What was scanned, as a reader sees it: a table, or several that are of one kind, unmerged shards among them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use super::agree::Agreement;
use super::sidecar::{ClassSize, Contents, ScannedSaes};
use super::table::Row;
use super::table_file::TableFile;
use crate::study::pictures::ItemKind;
use crate::{Error, Result};

/// A file of `scan`, or what another program has made of one; or several.
pub struct ScanFile {
    tables: Vec<TableFile>,
    contents: Option<Contents>,
    saes: ScannedSaes,
    missing_shards: Vec<u32>,
}

/// Why nothing but the rows is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoContents {
    /// There is no sidecar.
    NoSidecar,
    /// Another program has written the table since.
    Rewritten,
}

impl ScanFile {
    /// Opens a file. If it is as a scan wrote it, it is checked from end to end; if another program has written
    /// it, the names of several SAEs are looked for in all its rows.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged, or that lacks one of a scan's columns.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_all(&[path.to_owned()])
    }

    /// As [`ScanFile::open`], the rows of several files: the shards of a scan, which count as one, or
    /// scans with the same model and settings. All stay open.
    ///
    /// # Errors
    /// As [`ScanFile::open`]; no file, one that is given twice, files that do not belong together.
    pub fn open_all(paths: &[PathBuf]) -> Result<Self> {
        let tables = paths.iter().map(|path| TableFile::open(path));
        let mut tables: Vec<_> = tables.collect::<Result<_>>()?;
        let Some(first) = tables.first() else {
            return Err(Error::invalid("there is no table to read"));
        };
        let saes = common_saes(first, &tables[1..])?;
        let mut agreement = Agreement::default();
        for table in &tables {
            agreement.add_path(&table.path)?;
            if let Ok(contents) = &table.contents {
                agreement.add(&table.path, contents)?;
            }
        }
        let missing_shards = agreement.missing();
        // As in the merged table, so that sums are the same to the bit.
        tables.sort_by_key(|table| {
            let shard = table
                .contents
                .as_ref()
                .ok()
                .and_then(|contents| contents.shard);
            shard.map(|shard| shard.index())
        });
        let all: Option<Vec<_>> = tables
            .iter()
            .map(|table| table.contents.as_ref().ok())
            .collect();
        let contents = all.map(|all| {
            let mut contents = all[0].clone();
            all[1..].iter().for_each(|other| contents.add(other));
            contents.shard = contents.shard.filter(|_| all.len() == 1);
            contents
        });
        Ok(Self {
            tables,
            contents,
            saes,
            missing_shards,
        })
    }

    /// What the scan says about its rows, where it is known.
    pub fn contents(&self) -> Option<&Contents> {
        self.contents.as_ref()
    }

    /// The tables of which nothing but the rows is known, and why.
    pub fn unknown(&self) -> impl Iterator<Item = (&Path, NoContents)> {
        self.tables.iter().filter_map(|table| {
            let reason = table.contents.as_ref().err()?;
            Some((&*table.path, *reason))
        })
    }

    /// The shards that are missing for the whole scan, if these are shards of one.
    pub fn missing_shards(&self) -> &[u32] {
        &self.missing_shards
    }

    /// The SAEs whose features the rows are: those of the scan, or, where that is not known, those that rows name.
    pub fn saes(&self) -> &ScannedSaes {
        &self.saes
    }

    /// What was scanned.
    pub fn kind(&self) -> ItemKind {
        match self
            .tables
            .iter()
            .all(|table| table.kind == ItemKind::Texts)
        {
            true => ItemKind::Texts,
            false => ItemKind::Pictures,
        }
    }

    /// The images, or texts, of each class: those that were scanned, or, where that is not known, those that have
    /// a row, which takes a pass over the rows and memory for the images' paths.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn class_sizes(&self) -> Result<Cow<'_, [ClassSize]>> {
        if let Some(contents) = &self.contents {
            return Ok(Cow::Borrowed(&contents.classes));
        }
        let mut paths = BTreeMap::<Option<String>, HashSet<String>>::new();
        self.for_each_row(&mut |row| {
            let class = row.class.map(str::to_owned);
            let paths = paths.entry(class).or_default();
            if !paths.contains(row.path) {
                paths.insert(row.path.to_owned());
            }
            Ok(())
        })?;
        let size = |(class, paths): (_, HashSet<String>)| ClassSize {
            class,
            n_images: paths.len() as u64,
        };
        Ok(paths.into_iter().map(size).collect())
    }

    /// The number of rows.
    pub fn n_rows(&self) -> u64 {
        self.tables.iter().map(TableFile::n_rows).sum()
    }

    /// Gives every row to `on_row`, in the files' order, with few of them in memory.
    ///
    /// # Errors
    /// A file that cannot be read, an error of `on_row`.
    pub fn for_each_row(&self, on_row: &mut dyn FnMut(Row<'_>) -> Result<()>) -> Result<()> {
        let mut tables = self.tables.iter();
        tables.try_for_each(|table| table.for_each_row(on_row))
    }
}

/// The SAEs of tables that belong together.
fn common_saes(first: &TableFile, others: &[TableFile]) -> Result<ScannedSaes> {
    let mut saes = first.saes.clone();
    for table in others {
        match (&mut saes, &table.saes) {
            (ScannedSaes::One { d_sae }, ScannedSaes::One { d_sae: other }) => {
                *d_sae = (*d_sae).max(*other);
            }
            (ScannedSaes::Several { saes }, ScannedSaes::Several { saes: others }) => {
                let known: BTreeSet<_> = saes.iter().map(|sae| sae.id.clone()).collect();
                let others = others.iter().filter(|sae| !known.contains(&sae.id));
                saes.extend(others.cloned());
            }
            _ => {
                return Err(Error::invalid(format!(
                    "one of `{}` and `{}` has a column `sae`, and the other has none",
                    first.path.display(),
                    table.path.display()
                ))
                .with_hint("give tables that have the same columns"));
            }
        }
    }
    Ok(saes)
}
