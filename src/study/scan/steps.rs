//! A scan, one step after another.

use std::path::Path;

use gguf_tools::new_file::Overwrite;

use super::parts::{Parts, Progress, Totals};
use super::settings::Settings;
use super::shard::ScanItems;
use crate::study::pictures::{Item, none_read};
use crate::study::pictures::{Scan, read_items};
use crate::{Error, Result, llama};

/// What happens in a scan.
#[derive(Debug)]
pub enum ScanEvent<'a> {
    /// The model's files are read through, so that only the same ones go on with what is done.
    Checking,
    /// Items are read; an earlier run has done that many.
    Reading {
        /// Items that are done.
        n_done: usize,
    },
    /// An item has been read.
    Read,
    /// An item cannot be read, and is left out.
    Skipped(&'a Error),
    /// The table is written.
    Joining,
    /// The scan fails, and what is done of it is kept for the next one.
    Kept {
        /// Items that are done.
        n_done: usize,
    },
}

/// Writes the features of `items` into the table `target`, from where an earlier run stopped; of several SAEs
/// in one pass of the model. A shard may be empty.
/// `on_event` is told what happens.
///
/// # Errors
/// Those of [`read_items`], two SAEs of the same id, parts of a scan with other settings or of another shard,
/// another scan that is running, a file that cannot be written; without shards, no picture that could be read.
pub fn scan_items(
    scan: &Scan<'_>,
    items: &ScanItems,
    target: &Path,
    overwrite: Overwrite,
    on_event: &mut dyn FnMut(ScanEvent<'_>),
) -> Result<Totals> {
    let saes = scan.files.open_saes()?;
    on_event(ScanEvent::Checking);
    let settings = Settings::new(scan.files, &saes, scan.options, scan.reading, scan.cancel)?;
    let settings = settings.for_parts(scan.dir, items.shard())?;
    let computed_by = llama::computed_by(scan.options.gpu_layers != 0);
    let mut parts = Parts::open(target, settings, computed_by, saes, items.items())?;
    let read = read_rest(scan, &mut parts, items.items(), on_event);
    // Where there is no room, both fail, for the same reason.
    let read = read.and(parts.finish_part());
    let Progress { n_done, n_skipped } = parts.progress();
    if read.is_ok() && n_done == n_skipped && items.shard().is_none() {
        parts.discard()?;
        return Err(none_read(
            scan.reading.kind(),
            &format!("`{}`", scan.dir.display()),
            n_done,
        ));
    }
    let joined = read.and_then(|()| {
        on_event(ScanEvent::Joining);
        parts.join(items, overwrite, scan.cancel)
    });
    if joined.is_err() && n_done > 0 {
        on_event(ScanEvent::Kept { n_done });
    }
    joined
}

/// Reads the items that are in no part yet.
fn read_rest(
    scan: &Scan<'_>,
    parts: &mut Parts,
    items: &[Item],
    on_event: &mut dyn FnMut(ScanEvent<'_>),
) -> Result<()> {
    let rest: Vec<_> = items.iter().filter(|item| !parts.has(item)).collect();
    on_event(ScanEvent::Reading {
        n_done: items.len() - rest.len(),
    });
    read_items(scan, &rest, &mut |i, result| {
        on_event(match &result {
            Ok(_) => ScanEvent::Read,
            Err(error) => ScanEvent::Skipped(error),
        });
        parts.add(rest[i], result.ok())
    })
}
