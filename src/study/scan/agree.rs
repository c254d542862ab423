//! Whether tables belong together: shards of one scan, or scans of one kind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::sidecar::Contents;
use crate::{Error, Result};

/// Tables that belong together, as far as they have been added.
#[derive(Default)]
pub(super) struct Agreement {
    first: Option<(PathBuf, Contents)>,
    shards: BTreeMap<u32, PathBuf>, // by their numbers
    paths: BTreeSet<PathBuf>,
}

impl Agreement {
    /// Adds a file.
    ///
    /// # Errors
    /// One that is given twice.
    pub(super) fn add_path(&mut self, path: &Path) -> Result<()> {
        let full = path.canonicalize().map_err(Error::io("read", path))?;
        if self.paths.insert(full) {
            return Ok(());
        }
        let what = format!("`{}` is given twice", path.display());
        Err(Error::invalid(what).with_hint("give each file once"))
    }

    /// Adds what a file says of its rows.
    ///
    /// # Errors
    /// When it was not made as the others were, is a shard of another scan, or a shard that another
    /// file is already.
    pub(super) fn add(&mut self, path: &Path, contents: &Contents) -> Result<()> {
        if let Some((first_path, first)) = &self.first {
            check_alike((first_path, first), (path, contents))?;
        }
        if let Some(shard) = contents.shard
            && let Some(other) = self.shards.insert(shard.index(), path.to_owned())
        {
            let (path, other) = (path.display(), other.display());
            let what = format!("`{other}` and `{path}` are the same shard, {shard}");
            return Err(Error::invalid(what).with_hint("give each shard once"));
        }
        self.first.get_or_insert_with(|| {
            // Of the counts, each of which may be as large as there are classes, nothing is needed.
            let contents = Contents {
                shard: contents.shard,
                listing: contents.listing.clone(),
                ..Contents::new(contents.settings.clone(), contents.saes.clone())
            };
            (path.to_owned(), contents)
        });
        Ok(())
    }

    /// The numbers of shards that are missing for a whole scan; none where no shard was added.
    pub(super) fn missing(&self) -> Vec<u32> {
        let shard = self.first.as_ref().and_then(|(_, first)| first.shard);
        let numbers = 1..=shard.map_or(0, |shard| shard.count());
        numbers
            .filter(|index| !self.shards.contains_key(index))
            .collect()
    }

    /// The shards, in order, and what they have in common; none where no shard was added.
    pub(super) fn into_shards(self) -> Option<(Contents, impl Iterator<Item = PathBuf>)> {
        let (_, first) = self.first?;
        Some((first, self.shards.into_values()))
    }
}

/// Checks that two tables are of scans of one kind, and shards of the same one if they are shards.
fn check_alike(one: (&Path, &Contents), other: (&Path, &Contents)) -> Result<()> {
    let shown = [one.0.display(), other.0.display()];
    let differ = |what: String| {
        Err(Error::invalid(format!(
            "`{}` and `{}` do not belong together: {what}",
            shown[1], shown[0]
        ))
        .with_hint("give the files of one scan"))
    };
    let (one, other) = (one.1, other.1);
    let differences = other.settings.differences(&one.settings);
    if !differences.is_empty() {
        return differ(format!("of the first, {differences}"));
    }
    if one.saes != other.saes {
        return differ("their SAEs have other names or sizes".to_owned());
    }
    match (one.shard, other.shard) {
        (None, None) => return Ok(()),
        (Some(one), Some(other)) if one.count() == other.count() => {}
        (Some(one), Some(other)) => {
            return differ(format!("the first is shard {other}, and the second {one}"));
        }
        _ => return differ("one is a shard, and the other a whole scan".to_owned()),
    }
    if one.listing == other.listing {
        return Ok(());
    }
    let n_items = |contents: &Contents| {
        contents
            .listing
            .as_ref()
            .map_or(0, |listing| listing.n_items)
    };
    differ(match (n_items(other), n_items(one)) {
        (n, m) if n == m => "the pictures or classes that were to be scanned are others".to_owned(),
        (n, m) => format!("the first is a shard of {n} pictures, and the second of {m}"),
    })
}
