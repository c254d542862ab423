//! Which files this machine has seen: markers in a folder.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use gguf_tools::gguf::{Gguf, ShardName};
use gguf_tools::new_file::NewFile;

use crate::llama::BINDINGS_VERSION;
use crate::model::fingerprint::fingerprint;
use crate::{Error, Result};

/// To be raised whenever a trial finds more than it did.
const FORMAT: u32 = 1;
/// What runs the files besides the processor.
const DEVICES: [bool; 3] = [
    cfg!(feature = "cuda"),
    cfg!(feature = "metal"),
    cfg!(feature = "vulkan"),
];

/// A folder of markers, small files that processes share without a lock.
///
/// A file has two of them, named by hashes, which llama.cpp's version and devices are part of too: one of
/// its fingerprint (header, the beginning of each tensor, length, time of the last change), by which it
/// is known wherever it lies, and one of its place (path, length, times, and on Unix its inode), by which
/// it is known without being opened. Where the folder cannot be written, files are tried each time,
/// with a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenFiles {
    dir: PathBuf,
}

/// What is written when a file has been seen.
#[derive(Debug, Default)]
pub(super) struct Markers(Vec<PathBuf>);

impl SeenFiles {
    /// Markers in `dir`, which is made for the first of them.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Markers in the user's cache folder, where the system has one.
    pub fn of_user() -> Option<Self> {
        let dirs = directories::ProjectDirs::from("", "", "llava-sae-cpp")?;
        Some(Self::new(dirs.cache_dir().join("seen")))
    }

    /// Notes that a file is known to run, such as one that a conversion has just made.
    ///
    /// # Errors
    /// A file that cannot be read, a folder that cannot be written.
    pub fn add(&self, file: &Path) -> Result<()> {
        let place = self.place(file);
        let markers = place.into_iter().chain([self.content(file)?]);
        self.note(file, &Markers(markers.collect()))
    }

    /// The markers that a file lacks; `None` where it was seen.
    pub(super) fn missing(&self, file: &Path) -> Option<Markers> {
        let place = self.place(file);
        if place.as_ref().is_some_and(|place| place.exists()) {
            return None;
        }
        // Where a file cannot be read, the checks that follow say why.
        let Ok(content) = self.content(file) else {
            return Some(Markers::default());
        };
        if content.exists() {
            // Should it fail, the file is read the next time too.
            let _ = self.note(file, &Markers(place.into_iter().collect()));
            return None;
        }
        Some(Markers(place.into_iter().chain([content]).collect()))
    }

    /// The marker of what a file holds.
    fn content(&self, file: &Path) -> Result<PathBuf> {
        let gguf = Gguf::open_with_shards(file)?;
        let fingerprint = fingerprint(gguf.paths(), gguf.tensors())?;
        Ok(self.marker("content", fingerprint.as_bytes()))
    }

    /// The marker of where a file lies; none for one of several shards, which say nothing of the others.
    fn place(&self, file: &Path) -> Option<PathBuf> {
        let name = file.file_name()?.to_str();
        if name.is_none_or(|name| ShardName::parse(name).is_some()) {
            return None;
        }
        let path = file.canonicalize().ok()?;
        let metadata = path.metadata().ok()?;
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let modified = since(metadata.modified().ok()?)?.as_nanos();
        let inode = inode(&metadata);
        let place = format!("{path:?} {} {modified} {inode:?}", metadata.len());
        Some(self.marker("place", place.as_bytes()))
    }

    fn marker(&self, kind: &str, of: &[u8]) -> PathBuf {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&FORMAT.to_le_bytes());
        hasher.update(&DEVICES.map(u8::from));
        hasher.update(blake3::hash(BINDINGS_VERSION.as_bytes()).as_bytes());
        hasher.update(of);
        self.dir
            .join(format!("{}.{kind}", hasher.finalize().to_hex()))
    }

    /// Writes markers of `file`.
    pub(super) fn note(&self, file: &Path, markers: &Markers) -> Result<()> {
        std::fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        let for_people = format!("{}\n", file.display());
        let write =
            |marker: &PathBuf| NewFile::in_cache(marker)?.finish_with(for_people.as_bytes());
        markers.0.iter().try_for_each(write)
    }
}

/// Device, inode, and the time of the last change of either content or name, which nobody can set.
#[cfg(unix)]
fn inode(metadata: &Metadata) -> [i128; 4] {
    use std::os::unix::fs::MetadataExt;
    let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
    [
        metadata.dev().into(),
        metadata.ino().into(),
        seconds.into(),
        nanoseconds.into(),
    ]
}

#[cfg(not(unix))]
fn inode(_: &Metadata) {}
