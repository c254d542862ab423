//! The shards of a scan become its table.

use std::path::{Path, PathBuf};

use gguf_tools::new_file::{NewFile, Overwrite};

use super::agree::Agreement;
use super::join::Joined;
use super::parts::{Totals, check_output};
use super::sidecar::{Contents, Sidecar, no_sidecar};
use crate::study::pictures::none_read;
use crate::{CancelFlag, Error, Result};

/// Numbers that an error lists.
const MAX_LISTED: usize = 20;

/// Joins all shards of a scan, in any order, into `target`: to the byte the table and the sidecar that one scan
/// writes, where the same kind of processor and kernels computed all. `cancel` stops it.
///
/// # Errors
/// A file that is no shard, has no sidecar or is damaged, shards of different scans, a shard that is missing or
/// given twice, a file that cannot be written, a cancellation; no picture that could be read.
pub fn merge(
    shards: &[PathBuf],
    target: &Path,
    overwrite: Overwrite,
    cancel: &CancelFlag,
) -> Result<Totals> {
    check_output(target, overwrite)?;
    let mut agreement = Agreement::default();
    for path in shards {
        agreement.add_path(path)?;
        let sidecar = Sidecar::read(path)?.ok_or_else(|| no_sidecar(path))?;
        let contents = sidecar.contents;
        if contents.shard.is_none() {
            let what = format!("`{}` is no shard: it is a whole scan", path.display());
            return Err(Error::invalid(what).with_hint("give the shards of one scan"));
        }
        agreement.add(path, &contents)?;
    }
    let missing = agreement.missing();
    let (first, paths) = agreement
        .into_shards()
        .ok_or_else(|| Error::invalid("there is no shard to join"))?;
    if !missing.is_empty() {
        let what = format!(
            "of {} shards, {} {} missing: {}",
            missing.len() + shards.len(),
            missing.len(),
            if missing.len() == 1 { "is" } else { "are" },
            listed(&missing)
        );
        return Err(Error::invalid(what).with_hint("scan them, or give their files too"));
    }
    let contents = Contents {
        shard: None,
        ..first
    };
    let mut joined = Joined::new(NewFile::create(target, overwrite)?, contents)?;
    for path in paths {
        joined.add(&path, cancel)?;
    }
    let (totals, table, sidecar) = joined.finish()?;
    if totals.n_images == 0 {
        return Err(none_read(
            totals.kind,
            "the shards",
            totals.n_skipped as usize,
        ));
    }
    let beside = NewFile::create(&Sidecar::path_of(target), Overwrite::Replace)?;
    sidecar.publish(beside, table)?;
    Ok(totals)
}

/// The first of so many numbers, and how many more there are.
fn listed(numbers: &[u32]) -> String {
    let shown = numbers.iter().take(MAX_LISTED).map(u32::to_string);
    let mut shown = shown.collect::<Vec<_>>().join(", ");
    if numbers.len() > MAX_LISTED {
        shown.push_str(&format!(" and {} more", numbers.len() - MAX_LISTED));
    }
    shown
}
