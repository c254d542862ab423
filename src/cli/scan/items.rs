//! What is to be scanned: the pictures of a folder, of a manifest, or by their names on stdin.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::pictures::Item;
use llava_sae_cpp::scan::{ItemList, ScanItems, Separator, Shard};
use llava_sae_cpp::{Error, Result};

use crate::cli::folder::pictures_in;
use crate::cli::progress::Verbosity;

/// Stands for stdin.
const STDIN: &str = "-";

/// What to scan.
#[derive(Args)]
pub(super) struct ItemArgs {
    /// The folder; pictures in folders below it have a class, their folder's name. `-` reads paths from stdin, a
    /// line each. With a manifest, where its relative paths begin [default: the manifest's folder]
    #[arg(required_unless_present_any = ["manifest", "worker"])]
    dir: Option<PathBuf>,
    /// Scan the pictures that this table lists, Parquet, CSV or JSON lines (by its name), in the column `path`, and
    /// take classes from its column `class`, if it has one
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Paths on stdin end with a zero byte, as `find -print0` writes them
    #[arg(short = '0', long, conflicts_with = "manifest")]
    null: bool,
    /// Scan one of N equal parts of the pictures, which count from 1: `3/64`. `scan merge` joins them
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
}

impl ItemArgs {
    /// Where relative paths begin.
    pub(super) fn base(&self) -> PathBuf {
        let in_manifest = |manifest: &PathBuf| match manifest.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        match &self.dir {
            Some(dir) if self.manifest.is_some() || !is_stdin(dir) => dir.clone(),
            _ => self
                .manifest
                .as_ref()
                .map_or_else(|| ".".into(), in_manifest),
        }
    }

    /// The file that lists the pictures.
    pub(super) fn manifest(&self) -> Option<&PathBuf> {
        self.manifest.as_ref()
    }

    /// The pictures, or a shard of them.
    ///
    /// # Errors
    /// A folder or a list that cannot be read, or has no pictures.
    pub(super) fn read(&self, verbosity: Verbosity) -> Result<ScanItems> {
        let items = match (&self.manifest, self.dir.as_deref()) {
            (Some(manifest), _) => listed(ItemList::read_manifest(manifest)?, manifest, verbosity)?,
            (None, Some(dir)) if is_stdin(dir) => {
                let separator = match self.null {
                    true => Separator::Nul,
                    false => Separator::Newline,
                };
                let names = ItemList::read_names(&mut io::stdin().lock(), separator)?;
                listed(names, Path::new("stdin"), verbosity)?
            }
            (None, dir) => pictures_in(dir.expect("clap requires one"), verbosity)?,
        };
        Ok(ScanItems::new(items, self.shard, &self.base()))
    }
}

fn is_stdin(dir: &Path) -> bool {
    dir.as_os_str() == STDIN
}

/// The items of a list; what is ignored of it is said.
fn listed(list: ItemList, shown: &Path, verbosity: Verbosity) -> Result<Vec<Item>> {
    let shown = shown.display();
    if !list.other_columns.is_empty() && !verbosity.is_quiet() {
        let columns = Vec::from_iter(list.other_columns).join(", ");
        eprintln!(
            "left out, other columns of `{shown}`: {}",
            one_line(&columns)
        );
    }
    if list.items.is_empty() {
        return Err(Error::invalid(format!("no pictures in `{shown}`")));
    }
    Ok(list.items)
}
