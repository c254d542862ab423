//! The pictures or texts of a folder, for commands that go through all of them, and what is said of the rest.

use std::collections::BTreeMap;
use std::path::Path;

use gguf_tools::terminal::one_line;
use llava_sae_cpp::pictures::{Folder, Item, ItemKind, PICTURE_EXTENSIONS, TEXT_EXTENSION};
use llava_sae_cpp::{Error, Result};

use super::progress::Verbosity;

/// Types of files that a line names.
const MAX_TYPES: usize = 8;

/// The pictures, or the texts, in `dir` and below. What makes them incomplete is always said, and what
/// else is left out where the user wants to read it.
///
/// # Errors
/// A folder that cannot be read or has none.
pub(super) fn items_in(dir: &Path, kind: ItemKind, verbosity: Verbosity) -> Result<Vec<Item>> {
    let folder = Folder::read(dir, kind)?;
    for failure in &folder.failures {
        warn_of_gap(failure);
    }
    if !folder.failures.is_empty() {
        let n_failures = folder.failures.len();
        warn_of_gap(&format!(
            "left out, folders and links that cannot be read: {n_failures}"
        ));
    }
    if !folder.unread_pictures.is_empty() {
        let types = counted(&folder.unread_pictures);
        warn_of_gap(&format!(
            "left out, pictures of types that are not read: {types}; convert them to JPEG or PNG"
        ));
    }
    if !verbosity.is_quiet() {
        if folder.n_hidden > 0 {
            let n_hidden = folder.n_hidden;
            eprintln!("left out, files and folders that are hidden or the system's: {n_hidden}");
        }
        if !folder.other_files.is_empty() {
            let types = counted(&folder.other_files);
            eprintln!("left out, other files: {}", one_line(&types));
        }
    }
    if folder.items.is_empty() {
        let hint = match kind {
            ItemKind::Pictures => {
                let known = PICTURE_EXTENSIONS.join(", ");
                format!("give a folder with PNG, JPEG, GIF, WebP, BMP or TIFF files ({known})")
            }
            ItemKind::Texts => format!("give a folder with files that end in `.{TEXT_EXTENSION}`"),
        };
        let what = format!("no {} in `{}`", kind.name(), dir.display());
        return Err(Error::invalid(what).with_hint(hint));
    }
    Ok(folder.items)
}

/// Says what is missing from a result, on stderr, even where nothing but results and errors is wanted.
pub(super) fn warn_of_gap(what: &str) {
    eprintln!("warning: {}", one_line(what));
}

/// How many files there are of each type, most first.
fn counted(types: &BTreeMap<String, usize>) -> String {
    let mut sorted: Vec<_> = types.iter().collect();
    sorted.sort_by_key(|(_, n_files)| std::cmp::Reverse(**n_files));
    let shown = sorted.iter().take(MAX_TYPES);
    let mut shown: Vec<_> = shown
        .map(|(name, n_files)| format!("{n_files} {name}"))
        .collect();
    let n_others: usize = sorted.iter().skip(MAX_TYPES).map(|(_, n)| **n).sum();
    if n_others > 0 {
        shown.push(format!("{n_others} of other types"));
    }
    shown.join(", ")
}
