//! What a scan has done so far: small complete tables with sidecars in a folder beside the target, which
//! a later run goes on with and which are joined in the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs4::fs_std::FileExt;
use gguf_tools::gguf::Overwrite;
use tempfile::{NamedTempFile, TempPath};

use super::file::ScanFile;
use super::folder::{FoundPicture, class_of};
use super::settings::Settings;
use super::sidecar::{Contents, CoveredPicture, Sidecar};
use super::table::{ActiveFeature, Row, TableWriter};
use crate::{Error, Result};

/// Pictures of a part, at most.
const PART_PICTURES: usize = 64;
/// Rows of a part, about at most: they wait in memory.
const PART_ROWS: usize = 1 << 20;
/// The time after which a part is finished, however few pictures it has.
const PART_TIME: Duration = Duration::from_secs(30);

const PREFIX: &str = "part-";
const SUFFIX: &str = ".parquet";
/// Ends the names of files that are being written.
const UNFINISHED: &str = ".unfinished";
/// Locked while a scan runs.
const LOCK: &str = "lock";

/// How far a scan is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pictures in finished parts.
    pub n_done: usize,
    /// Those of them that could not be read.
    pub n_skipped: usize,
}

/// What a finished file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Pictures that were read.
    pub n_images: u64,
    /// Pictures that could not be read.
    pub n_skipped: u64,
    /// Rows.
    pub n_rows: u64,
}

/// The parts of a scan.
pub struct Parts {
    dir: PathBuf,
    target: PathBuf,
    settings: Settings,
    d_sae: usize,
    labels: Vec<String>,             // [d_sae], or empty
    paths: BTreeMap<usize, PathBuf>, // of finished parts, by the position of their first picture
    next_part_idx: usize,            // behind the last part
    done: HashSet<String>,
    n_skipped: usize,
    waiting: Vec<(CoveredPicture, Vec<ActiveFeature>)>, // of the next part
    waiting_positions: Range<usize>,                    // of the waiting pictures
    n_waiting_rows: usize,
    last_part: Instant,
    lock: Option<File>,
}

impl Parts {
    /// Opens the parts of `target`, or begins with none. Parts that are damaged, or whose pictures are
    /// no longer as they were, are removed with a warning.
    ///
    /// # Errors
    /// A folder that cannot be made or read; parts of a scan with other settings; another scan that is
    /// running.
    pub fn open(
        target: &Path,
        settings: Settings,
        d_sae: usize,
        labels: Vec<String>,
        pictures: &[FoundPicture],
    ) -> Result<Self> {
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        let mut dir = target.clone().into_os_string();
        dir.push(".parts");
        let mut parts = Self {
            dir: dir.into(),
            target,
            settings,
            d_sae,
            labels,
            paths: BTreeMap::new(),
            next_part_idx: 0,
            done: HashSet::new(),
            n_skipped: 0,
            waiting: Vec::new(),
            waiting_positions: 0..0,
            n_waiting_rows: 0,
            last_part: Instant::now(),
            lock: None,
        };
        parts.lock = lock(&parts.dir)?;
        let by_path: HashMap<&str, &FoundPicture> = pictures
            .iter()
            .map(|picture| (&*picture.path, picture))
            .collect();
        for name in parts.names()? {
            if name.ends_with(UNFINISHED) {
                remove(&parts.dir.join(name))?;
            } else if let Some(part_idx) = part_idx(&name) {
                parts.next_part_idx = parts.next_part_idx.max(part_idx + 1);
                parts.take_up(parts.dir.join(name), &by_path)?;
            } else if let Some(table) = name
                .strip_suffix(".json")
                .filter(|name| part_idx(name).is_some())
                && !parts.dir.join(table).exists()
            {
                remove(&parts.dir.join(name))?;
            }
        }
        Ok(parts)
    }

    /// The folder that holds them.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a picture is in a finished part.
    pub fn has(&self, picture: &FoundPicture) -> bool {
        self.done.contains(&picture.path)
    }

    /// How far the scan is.
    pub fn progress(&self) -> Progress {
        Progress {
            n_done: self.done.len(),
            n_skipped: self.n_skipped,
        }
    }

    /// Adds a picture's features, or that it cannot be read, and finishes a part when it is time.
    ///
    /// # Errors
    /// A part that cannot be written.
    pub fn add(
        &mut self,
        picture: &FoundPicture,
        result: Result<Vec<ActiveFeature>>,
    ) -> Result<()> {
        // A part has all pictures between its first and its last, so that parts have an order.
        if self.waiting_positions.end != picture.position {
            self.finish_part()?;
        }
        if self.waiting.is_empty() {
            self.waiting_positions.start = picture.position;
        }
        self.waiting_positions.end = picture.position + 1;
        let covered = CoveredPicture {
            path: picture.path.clone(),
            n_bytes: picture.n_bytes,
            modified_ns: picture.modified_ns,
            is_skipped: result.is_err(),
        };
        let active = result.unwrap_or_default();
        self.n_waiting_rows += active.len();
        self.waiting.push((covered, active));
        let is_due = self.waiting.len() >= PART_PICTURES
            || self.n_waiting_rows >= PART_ROWS
            || self.last_part.elapsed() >= PART_TIME;
        if is_due { self.finish_part() } else { Ok(()) }
    }

    /// Finishes a part of the pictures that wait for it.
    ///
    /// # Errors
    /// A part that cannot be written.
    pub fn finish_part(&mut self) -> Result<()> {
        self.last_part = Instant::now();
        if self.waiting.is_empty() {
            return Ok(());
        }
        let path = self
            .dir
            .join(format!("{PREFIX}{:06}{SUFFIX}", self.next_part_idx));
        let (file, temporary) = self.temporary(&path)?;
        let mut table = TableWriter::new(file, &path)?;
        let mut contents = Contents::new(self.settings.clone(), self.d_sae);
        for (covered, active) in &self.waiting {
            let class = class_of(&covered.path);
            match covered.is_skipped {
                true => contents.n_skipped += 1,
                false => contents.add_images(class, 1),
            }
            for &active in active {
                table.push(&Row {
                    path: &covered.path,
                    class,
                    label: self
                        .labels
                        .get(active.feature)
                        .map(String::as_str)
                        .filter(|label| !label.is_empty()),
                    active,
                })?;
            }
        }
        contents.pictures = self.waiting.drain(..).map(|(covered, _)| covered).collect();
        self.n_waiting_rows = 0;
        let sidecar = Sidecar::new(table.finish()?, contents);
        self.publish(temporary, &sidecar, &path, Overwrite::Refuse)?;
        self.next_part_idx += 1;
        self.note(sidecar.contents, self.waiting_positions.start, path);
        Ok(())
    }

    /// Joins the parts into the target and removes them. `on_part` is told how many have been joined,
    /// of how many, and may stop it.
    ///
    /// # Errors
    /// No picture that could be read; a part that cannot be read, a target that cannot be written, an
    /// error of `on_part`. The parts stay then.
    pub fn join(
        mut self,
        overwrite: Overwrite,
        on_part: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Totals> {
        self.finish_part()?;
        check_output(&self.target, overwrite)?;
        let (file, temporary) = self.temporary(&self.target)?;
        let mut table = TableWriter::new(file, &self.target)?;
        let mut contents = Contents::new(self.settings.for_all_to_see(), self.d_sae);
        let mut n_rows = 0;
        for (i, path) in self.paths.values().enumerate() {
            on_part(i, self.paths.len())?;
            let (part, of_part) = ScanFile::open_whole(path)?;
            for class in &of_part.classes {
                contents.add_images(class.class.as_deref(), class.n_images);
            }
            contents.n_skipped += of_part.n_skipped;
            n_rows += part.n_rows();
            part.for_each_row(&mut |row| table.push(&row))?;
        }
        let totals = Totals {
            n_images: contents.n_images(),
            n_skipped: contents.n_skipped,
            n_rows,
        };
        let sidecar = Sidecar::new(table.finish()?, contents);
        self.publish(temporary, &sidecar, &self.target, overwrite)?;
        self.paths.values().try_for_each(|path| remove_part(path))?;
        Ok(totals)
    }

    /// Removes the parts.
    ///
    /// # Errors
    /// A part that cannot be removed.
    pub fn discard(self) -> Result<()> {
        self.paths.values().try_for_each(|path| remove_part(path))
    }

    /// Takes up a part that an earlier run finished.
    fn take_up(&mut self, path: PathBuf, pictures: &HashMap<&str, &FoundPicture>) -> Result<()> {
        let shown = path.display();
        let Ok((_, contents)) = ScanFile::open_whole(&path) else {
            log::warn!("`{shown}` is damaged: its pictures are read again");
            return remove_part(&path);
        };
        let differences = contents.settings.differences(&self.settings);
        if !differences.is_empty() {
            return Err(Error::invalid(format!(
                "`{}` holds the parts of another scan: {differences}",
                self.dir.display()
            ))
            .with_hint(
                "go on with the options of that scan, give another output, or remove that folder to start anew",
            ));
        }
        let is_still = |covered: &CoveredPicture| {
            let picture = pictures.get(&*covered.path);
            picture.is_some_and(|picture| covered.is_still(picture))
        };
        if let Some(changed) = contents.pictures.iter().find(|covered| !is_still(covered)) {
            log::warn!(
                "`{}` is not as it was: the pictures of `{shown}` are read again",
                changed.path
            );
            return remove_part(&path);
        }
        let mut covered = contents.pictures.iter().map(|covered| &*covered.path);
        let first = covered.clone().next().and_then(|path| pictures.get(path));
        match first.map(|picture| picture.position) {
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

    /// The names in the folder, sorted.
    fn names(&self) -> Result<Vec<String>> {
        let read_error = || Error::io("read", &self.dir);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(read_error())? {
            let name = entry.map_err(read_error())?.file_name();
            names.extend(name.into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// A file in the folder, for what will be `target`.
    fn temporary(&self, target: &Path) -> Result<(File, TempPath)> {
        // Not tempfile's own way to create the file: its files are private.
        let mut builder = tempfile::Builder::new();
        let builder = builder.suffix(UNFINISHED);
        let made = builder.make_in(&self.dir, |path| File::create_new(path));
        let made = made.map(NamedTempFile::into_parts);
        made.map_err(Error::io("write", target))
    }

    /// Gives a table and its sidecar their names, the sidecar first: alone it is nothing, so that whoever
    /// finds the table finds both. Should the program die in between, and there was an older table, that
    /// has a sidecar that is not its own, which is an error to readers, and no wrong counts; what the
    /// new one is made of is still there.
    fn publish(
        &self,
        table: TempPath,
        sidecar: &Sidecar,
        target: &Path,
        overwrite: Overwrite,
    ) -> Result<()> {
        let path = Sidecar::path_of(target);
        let (mut file, temporary) = self.temporary(&path)?;
        file.write_all(&sidecar.to_json())
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(temporary.persist(&path)?))
            .map_err(Error::io("write", &path))?;
        let persisted = match overwrite {
            Overwrite::Refuse => table.persist_noclobber(target),
            Overwrite::Replace => table.persist(target),
        };
        persisted.map_err(|error| Error::io("write", target)(error.error))
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // They stay where another scan has them, or where there is something in the folder.
        if let Some(lock) = self.lock.take() {
            let _ = fs::remove_file(self.dir.join(LOCK));
            drop(lock);
            let _ = fs::remove_dir(&self.dir);
        }
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

/// Makes the folder and locks it, as far as its file system can.
fn lock(dir: &Path) -> Result<Option<File>> {
    let path = dir.join(LOCK);
    loop {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", dir)(error));
            }
            _ => {}
        }
        let file = match File::create(&path) {
            // Another scan has ended meanwhile, here and below, and removed its folder.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(Error::io("write", &path))?,
        };
        match file.try_lock_exclusive() {
            Ok(false) => {
                return Err(Error::invalid(format!(
                    "another scan is writing to `{}`",
                    dir.display()
                ))
                .with_hint("let it end, or give another output"));
            }
            Ok(true) => {}
            Err(error) => log::debug!("`{}` cannot be locked: {error}", path.display()),
        }
        if path.exists() {
            return Ok(Some(file));
        }
    }
}

fn part_idx(name: &str) -> Option<usize> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    digits.parse().ok()
}

/// Removes a table and its sidecar.
fn remove_part(path: &Path) -> Result<()> {
    remove(path)?;
    remove(&Sidecar::path_of(path))
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
