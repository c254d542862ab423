//! What is to be scanned: the pictures of a folder, of a manifest, or by their names on stdin; or texts.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;
use gguf_tools::new_file::folder_of;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::metrics::TEXT_CONTEXT;
use llava_sae_cpp::pictures::{Item, ItemKind, Reading};
use llava_sae_cpp::scan::{ItemList, ScanItems, Separator, Shard};
use llava_sae_cpp::{Error, Result};

use crate::cli::args::TextArgs;
use crate::cli::folder::items_in;
use crate::cli::progress::Verbosity;

/// Stands for stdin.
const STDIN: &str = "-";
/// What it is called.
const STDIN_NAME: &str = "stdin";

/// What to scan.
#[derive(Args)]
pub(super) struct ItemArgs {
    /// The folder; pictures in folders below it have a class, their folder's name. `-` reads paths from stdin, a
    /// line each. With a manifest, where its relative paths begin [default: the manifest's folder]. With `--texts`, a
    /// corpus
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
    /// Scan texts, raw, instead of pictures: DIR is a corpus of JSON lines (`.jsonl`) or Parquet (`.parquet`) with a
    /// text in each row, one plain file, a folder of `.txt` files, or `-` for JSON lines on stdin
    #[arg(long, conflicts_with_all = ["manifest", "null", "prompt", "raw_prompt"])]
    texts: bool,
    /// The corpus's column of texts [default: `text`]
    #[arg(long, value_name = "NAME", requires = "texts")]
    text_column: Option<String>,
    /// Cut texts into contexts of this many tokens, with the one that begins them (`<bos>`) [default: 128]
    #[arg(long, value_name = "N", requires = "texts")]
    text_context: Option<NonZeroUsize>,
}

impl ItemArgs {
    /// What is scanned.
    pub(super) fn kind(&self) -> ItemKind {
        match self.texts {
            true => ItemKind::Texts,
            false => ItemKind::Pictures,
        }
    }

    /// What is read of the items; `prompt` goes with pictures.
    pub(super) fn reading<'a>(&self, prompt: &'a TextArgs) -> Reading<'a> {
        match self.kind() {
            ItemKind::Pictures => Reading::Pictures(prompt.scanned()),
            ItemKind::Texts => Reading::Texts {
                context_size: self.text_context.map_or(TEXT_CONTEXT, NonZeroUsize::get),
            },
        }
    }

    /// Where relative paths begin.
    pub(super) fn base(&self) -> PathBuf {
        let beside = |file: &PathBuf| folder_of(file).to_owned();
        match (&self.dir, &self.manifest) {
            (Some(dir), Some(_)) => dir.clone(),
            (Some(dir), None) if is_stdin(dir) => PathBuf::from("."),
            (Some(dir), None) if self.texts && !dir.is_dir() => beside(dir),
            (Some(dir), None) => dir.clone(),
            (None, manifest) => manifest.as_ref().map_or_else(|| ".".into(), beside),
        }
    }

    /// The file that lists or holds the items.
    pub(super) fn list(&self) -> Option<&PathBuf> {
        self.manifest
            .as_ref()
            .or(self.dir.as_ref().filter(|_| self.texts))
    }

    /// The items, or a shard of them.
    ///
    /// # Errors
    /// A folder or a list that cannot be read, or has none.
    pub(super) fn read(&self, verbosity: Verbosity) -> Result<ScanItems> {
        let listed = |list, shown: &Path| listed(list, self.kind(), shown, verbosity);
        let items = match (&self.manifest, self.dir.as_deref()) {
            (None, Some(dir)) if self.texts && !self.is_folder_of_texts(dir)? => {
                listed(self.read_texts(dir)?, dir)?
            }
            (Some(manifest), _) => listed(ItemList::read_manifest(manifest)?, manifest)?,
            (None, Some(dir)) if is_stdin(dir) => {
                let separator = match self.null {
                    true => Separator::Nul,
                    false => Separator::Newline,
                };
                let names = ItemList::read_names(&mut io::stdin().lock(), separator)?;
                listed(names, Path::new(STDIN_NAME))?
            }
            (None, dir) => items_in(dir.expect("clap requires one"), self.kind(), verbosity)?,
        };
        Ok(ScanItems::new(items, self.shard, &self.base()))
    }

    /// Whether texts are the files of a folder.
    ///
    /// # Errors
    /// When these, or the one file, should have columns.
    fn is_folder_of_texts(&self, dir: &Path) -> Result<bool> {
        if self.text_column.is_some() && !is_stdin(dir) && !ItemList::is_corpus(dir) {
            let what = format!("`{}` has no columns", dir.display());
            return Err(Error::invalid(what).with_hint(
                "a corpus is a Parquet file or JSON lines, and ends in `.parquet` or `.jsonl`",
            ));
        }
        Ok(dir.is_dir())
    }

    /// The texts of a corpus, or of a plain file.
    fn read_texts(&self, file: &Path) -> Result<ItemList> {
        let column = self.text_column.as_deref().unwrap_or("text");
        if is_stdin(file) {
            ItemList::read_text_lines(&mut io::stdin().lock(), STDIN_NAME, column)
        } else if ItemList::is_corpus(file) {
            ItemList::read_corpus(file, column)
        } else {
            ItemList::of_file(file)
        }
    }
}

fn is_stdin(dir: &Path) -> bool {
    dir.as_os_str() == STDIN
}

/// The items of a list; what is ignored of it is said.
fn listed(list: ItemList, kind: ItemKind, shown: &Path, verbosity: Verbosity) -> Result<Vec<Item>> {
    let shown = shown.display();
    if !list.other_columns.is_empty() && !verbosity.is_quiet() {
        let columns = Vec::from_iter(list.other_columns).join(", ");
        eprintln!(
            "left out, other columns of `{shown}`: {}",
            one_line(&columns)
        );
    }
    if list.items.is_empty() {
        return Err(Error::invalid(format!("no {} in `{shown}`", kind.name())));
    }
    Ok(list.items)
}
