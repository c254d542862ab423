//! What a scan has done so far: small complete tables with sidecars in a folder beside the target, which
//! a later run goes on with and which are joined in the end.

mod dir;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gguf_tools::new_file::Overwrite;

use self::dir::{PartsDir, remove_part};
use super::join::Joined;
use super::settings::Settings;
use super::shard::ScanItems;
use super::sidecar::{Contents, CoveredPicture, ScannedSaes, Sidecar};
use super::table::{TableWriter, rows_of};
use super::table_file::TableFile;
use crate::study::pictures::{Item, ItemFeatures, ItemKind};
use crate::{CancelFlag, Error, Result, SaeSet};

/// Items of a part, at most.
const PART_ITEMS: usize = 64;
/// Rows of a part, about at most: they wait in memory.
const PART_ROWS: usize = 1 << 20;
/// The time after which a part is finished, however few items it has.
const PART_TIME: Duration = Duration::from_secs(30);

/// How far a scan is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Pictures in finished parts.
    pub(super) n_done: usize,
    /// Those of them that could not be read.
    pub(super) n_skipped: usize,
}

/// What a finished file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// What was scanned.
    pub kind: ItemKind,
    /// Pictures, or texts, that were read.
    pub n_images: u64,
    /// Those that could not be read.
    pub n_skipped: u64,
    /// Rows.
    pub n_rows: u64,
}

/// The parts of a scan.
pub(super) struct Parts {
    dir: PartsDir,
    target: PathBuf,
    settings: Settings,
    computed_by: String,
    saes: SaeSet,
    paths: BTreeMap<usize, PathBuf>, // of finished parts, by the position of their first picture
    next_part_idx: usize,            // behind the last part
    done: HashSet<String>,
    n_skipped: usize,
    waiting: Vec<(CoveredPicture, Option<ItemFeatures>)>, // of the next part; none of what cannot be read
    waiting_positions: Range<usize>,                      // of the waiting pictures
    n_waiting_rows: usize,
    last_part: Instant,
}

impl Parts {
    /// Opens the parts of `target`, or begins with none. Parts that are damaged, or whose pictures are
    /// no longer as they were, are removed with a warning.
    ///
    /// # Errors
    /// A folder that cannot be made or read; parts of a scan with other settings; another scan that is
    /// running.
    pub(super) fn open(
        target: &Path,
        settings: Settings,
        computed_by: String,
        saes: SaeSet,
        items: &[Item],
    ) -> Result<Self> {
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        let (dir, earlier) = PartsDir::open(&target)?;
        let mut parts = Self {
            dir,
            target,
            settings,
            computed_by,
            saes,
            paths: BTreeMap::new(),
            next_part_idx: 0,
            done: HashSet::new(),
            n_skipped: 0,
            waiting: Vec::new(),
            waiting_positions: 0..0,
            n_waiting_rows: 0,
            last_part: Instant::now(),
        };
        let by_name: HashMap<&str, &Item> = items.iter().map(|item| (&*item.name, item)).collect();
        for (part_idx, path) in earlier {
            parts.next_part_idx = part_idx + 1;
            parts.take_up(path, &by_name)?;
        }
        Ok(parts)
    }

    /// Whether a picture is in a finished part.
    pub(super) fn has(&self, item: &Item) -> bool {
        self.done.contains(&item.name)
    }

    /// How far the scan is.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            n_done: self.done.len(),
            n_skipped: self.n_skipped,
        }
    }

    /// Adds an item's features, or that it cannot be read, and finishes a part when it is time.
    ///
    /// # Errors
    /// A part that cannot be written.
    pub(super) fn add(&mut self, item: &Item, features: Option<ItemFeatures>) -> Result<()> {
        // A part has all pictures between its first and its last, so that parts have an order.
        if self.waiting_positions.end != item.position {
            self.finish_part()?;
        }
        if self.waiting.is_empty() {
            self.waiting_positions.start = item.position;
        }
        self.waiting_positions.end = item.position + 1;
        let covered = CoveredPicture {
            path: item.name.clone(),
            class: item.class.as_deref().map(str::to_owned),
            stamp: item
                .stamp
                .expect("items are looked at before they are read"),
            is_skipped: features.is_none(),
        };
        let active = features.iter().flat_map(|features| &features.active);
        self.n_waiting_rows += active.map(Vec::len).sum::<usize>();
        self.waiting.push((covered, features));
        let is_due = self.waiting.len() >= PART_ITEMS
            || self.n_waiting_rows >= PART_ROWS
            || self.last_part.elapsed() >= PART_TIME;
        if is_due { self.finish_part() } else { Ok(()) }
    }

    /// Finishes a part of the pictures that wait for it.
    ///
    /// # Errors
    /// A part that cannot be written.
    pub(super) fn finish_part(&mut self) -> Result<()> {
        self.last_part = Instant::now();
        if self.waiting.is_empty() {
            return Ok(());
        }
        let path = self.dir.part(self.next_part_idx);
        let file = self.dir.new_file(&path, Overwrite::Refuse)?;
        let saes = ScannedSaes::new(&self.saes);
        let mut table = TableWriter::new(file, &saes, self.settings.kind())?;
        let mut contents = Contents::new(self.settings.clone(), saes);
        contents.computed_by.insert(self.computed_by.clone());
        for (covered, features) in &self.waiting {
            let class = covered.class.as_deref();
            let Some(features) = features else {
                contents.n_skipped += 1;
                continue;
            };
            contents.add_images(class, 1);
            for row in rows_of(&self.saes, &covered.path, class, features) {
                table.push(&row)?;
            }
        }
        contents.pictures = self.waiting.drain(..).map(|(covered, _)| covered).collect();
        self.n_waiting_rows = 0;
        let (checksum, table) = table.finish()?;
        let sidecar = Sidecar::new(checksum, contents);
        self.dir.publish(table, &sidecar, &path)?;
        self.next_part_idx += 1;
        self.note(sidecar.contents, self.waiting_positions.start, path);
        Ok(())
    }

    /// Joins the parts, which are of `items`, into the target and removes them. `cancel` stops it.
    ///
    /// # Errors
    /// A part that cannot be read, a target that cannot be written, a cancellation. The parts stay then.
    pub(super) fn join(
        mut self,
        items: &ScanItems,
        overwrite: Overwrite,
        cancel: &CancelFlag,
    ) -> Result<Totals> {
        self.finish_part()?;
        check_output(&self.target, overwrite)?;
        let settings = self.settings.for_all_to_see();
        let contents = Contents {
            listing: Some(items.listing().clone()),
            shard: items.shard(),
            ..Contents::new(settings, ScannedSaes::new(&self.saes))
        };
        let file = self.dir.new_file(&self.target, overwrite)?;
        let mut joined = Joined::new(file, contents)?;
        for path in self.paths.values() {
            joined.add(path, cancel)?;
        }
        let (totals, table, sidecar) = joined.finish()?;
        self.dir.publish(table, &sidecar, &self.target)?;
        self.paths.values().try_for_each(|path| remove_part(path))?;
        Ok(totals)
    }

    /// Removes the parts.
    ///
    /// # Errors
    /// A part that cannot be removed.
    pub(super) fn discard(self) -> Result<()> {
        self.paths.values().try_for_each(|path| remove_part(path))
    }

    /// Takes up a part that an earlier run finished.
    fn take_up(&mut self, path: PathBuf, items: &HashMap<&str, &Item>) -> Result<()> {
        let shown = path.display();
        let kind = self.settings.kind().name();
        let Ok((_, contents)) = TableFile::open_whole(&path) else {
            log::warn!("`{shown}` is damaged: its {kind} are read again");
            return remove_part(&path);
        };
        let differences = contents.settings.differences(&self.settings);
        if !differences.is_empty() {
            return Err(Error::invalid(format!(
                "`{}` holds the parts of another scan: {differences}",
                self.dir.path().display()
            ))
            .with_hint(
                "resume with the options of that scan, give another output, or remove that folder to start again",
            ));
        }
        let is_still = |covered: &CoveredPicture| {
            let item = items.get(&*covered.path);
            item.is_some_and(|item| covered.is_still(item))
        };
        if let Some(changed) = contents.pictures.iter().find(|covered| !is_still(covered)) {
            log::warn!(
                "`{}` has changed: the {kind} of `{shown}` are read again",
                changed.path
            );
            return remove_part(&path);
        }
        let mut covered = contents.pictures.iter().map(|covered| &*covered.path);
        let first = covered.clone().next().and_then(|path| items.get(path));
        match first.map(|item| item.position) {
            Some(position) if !covered.any(|path| self.done.contains(path)) => {
                self.note(contents, position, path);
                Ok(())
            }
            _ => remove_part(&path),
        }
    }

    /// Counts a finished part, whose first picture has this position.
    fn note(&mut self, contents: Contents, position: usize, path: PathBuf) {
        for covered in contents.pictures {
            self.n_skipped += usize::from(covered.is_skipped);
            self.done.insert(covered.path);
        }
        self.paths.insert(position, path);
    }
}

/// Checks that a scan may write `target` and its sidecar.
///
/// # Errors
/// A file that is there and may not be replaced, a folder in its place.
pub fn check_output(target: &Path, overwrite: Overwrite) -> Result<()> {
    overwrite.check(target)?;
    // A scan's sidecar without its table is of no use.
    if !matches!(Sidecar::read(target), Ok(Some(_))) {
        overwrite.check(&Sidecar::path_of(target))?;
    }
    Ok(())
}
