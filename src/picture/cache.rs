//! Image embeddings on the disk, so that a picture goes through the vision encoder once and not again.
//!
//! A file is named by what its content depends on, begins with a checksum, and is renamed into place
//! when it is whole; so processes that share a folder need no lock, and what is damaged counts as
//! missing. The files that were used longest ago go when a new one makes them too many: a ledger knows
//! about how many bytes there are, so that the folder is looked through when it is full, and not at each
//! new file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use gguf_tools::new_file::{NewFile, UNFINISHED};

use crate::{Error, Result};

/// To be raised whenever a file's form changes.
const FORMAT: u32 = 2;
const EXTENSION: &str = "image-rows";
/// Numbers of bytes, a line each: those that were counted when the folder was last looked through, and
/// those of each file since.
const LEDGER: &str = "ledger";
/// The part of a full cache that is emptied, so that it is not full again at once.
const EMPTIED_PART: u64 = 8;
/// What a process that was killed left behind is removed after this time.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

/// A folder of image embeddings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageCache {
    dir: PathBuf,
    max_bytes: u64,
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Full,
    ReadOnly,
}

/// What a picture's embeddings depend on.
pub(crate) struct Key(blake3::Hash);

impl ImageCache {
    /// A cache in `dir`, which is made when something is kept, of at most `max_bytes`.
    pub fn new(dir: PathBuf, max_bytes: u64) -> Self {
        Self {
            dir,
            max_bytes,
            access: Access::Full,
        }
    }

    /// The same cache for a run through many pictures: what is there is used, and nothing is added,
    /// since that would push out the pictures that are looked at again and again.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self {
            access: Access::ReadOnly,
            ..self
        }
    }

    /// A cache in the user's cache folder, where the system has one.
    pub fn of_user(max_bytes: u64) -> Option<Self> {
        let dirs = directories::ProjectDirs::from("", "", "llava-sae-cpp")?;
        Some(Self::new(dirs.cache_dir().join("images"), max_bytes))
    }

    /// The embeddings of `key`, `n_values` numbers, if they are there and whole.
    pub(crate) fn get(&self, key: &Key, n_values: usize) -> Option<Vec<f32>> {
        let path = self.path(key);
        let mut file = File::open(&path).ok()?;
        let n_bytes = n_values * size_of::<f32>();
        // No more is read than there should be.
        let mut bytes = Vec::new();
        let limit = (CHECKSUM_BYTES + n_bytes + 1) as u64;
        (&mut file).take(limit).read_to_end(&mut bytes).ok()?;
        let (checksum, content) = bytes.split_at_checked(CHECKSUM_BYTES)?;
        if content.len() != n_bytes || blake3::hash(content).as_bytes() != checksum {
            log::debug!("`{}` is damaged, and replaced", path.display());
            return None;
        }
        // Where that fails, the file goes earlier than it should.
        let _ = File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        let values = content.as_chunks().0.iter();
        Some(values.map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Keeps embeddings. A cache that cannot be written is no error: the picture is encoded again.
    pub(crate) fn put(&self, key: &Key, values: &[f32]) {
        if self.access == Access::ReadOnly {
            return;
        }
        if let Err(error) = self.write(key, values) {
            let dir = self.dir.display();
            log::debug!("image embeddings are not kept in `{dir}`: {error}");
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{}.{EXTENSION}", key.0.to_hex()))
    }

    fn write(&self, key: &Key, values: &[f32]) -> Result<()> {
        let mut bytes = vec![0; CHECKSUM_BYTES];
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let (checksum, content) = bytes.split_at_mut(CHECKSUM_BYTES);
        checksum.copy_from_slice(blake3::hash(content).as_bytes());
        let n_bytes = bytes.len() as u64;
        if n_bytes > self.max_bytes {
            return Ok(());
        }
        std::fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        NewFile::in_cache(&self.path(key))?.finish_with(&bytes)?;
        let ledger = self.dir.join(LEDGER);
        match self.noted_bytes() {
            Some(noted) if noted + n_bytes <= self.max_bytes => {
                let opened = File::options().append(true).open(&ledger);
                opened
                    .and_then(|mut file| file.write_all(format!("{n_bytes}\n").as_bytes()))
                    .map_err(Error::io("write", &ledger))
            }
            _ => {
                let n_kept = self.evict().map_err(Error::io("empty", &self.dir))?;
                NewFile::in_cache(&ledger)?.finish_with(format!("{n_kept}\n").as_bytes())
            }
        }
    }

    /// The ledger's sum, if there is a ledger. Files that were replaced or removed are in it still, so
    /// that it is too large rather than too small.
    fn noted_bytes(&self) -> Option<u64> {
        let ledger = std::fs::read_to_string(self.dir.join(LEDGER)).ok()?;
        let mut numbers = ledger.lines().map(|line| line.parse::<u64>().ok());
        numbers.try_fold(0_u64, |sum, number| sum.checked_add(number?))
    }

    /// Removes what is too much and what was abandoned, and counts the bytes that stay.
    fn evict(&self) -> io::Result<u64> {
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another process may have removed it meanwhile, here and below.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let modified = metadata.modified()?;
            let path = entry.path();
            let name = entry.file_name();
            if path
                .extension()
                .is_some_and(|extension| extension == EXTENSION)
            {
                kept.push((modified, metadata.len(), path));
            } else if name.to_string_lossy().ends_with(UNFINISHED)
                && modified.elapsed().is_ok_and(|age| age > ABANDONED_AFTER)
            {
                let _ = std::fs::remove_file(path);
            }
        }
        kept.sort();
        let mut n_bytes: u64 = kept.iter().map(|file| file.1).sum();
        if n_bytes > self.max_bytes {
            let most = self.max_bytes - self.max_bytes / EMPTIED_PART;
            for (_, length, path) in kept {
                if n_bytes <= most {
                    break;
                }
                let _ = std::fs::remove_file(path);
                n_bytes -= length;
            }
        }
        Ok(n_bytes)
    }
}

impl Key {
    /// The key of `pixels`, prepared for the projector of that fingerprint, which computes with these
    /// `settings`.
    pub(crate) fn new(pixels: &[u8], projector: &blake3::Hash, settings: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&FORMAT.to_le_bytes());
        hasher.update(projector.as_bytes());
        // Of variable length, so each by its hash.
        for setting in settings {
            hasher.update(blake3::hash(setting.as_bytes()).as_bytes());
        }
        hasher.update(blake3::hash(pixels).as_bytes());
        Self(hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{ImageCache, Key};

    fn key(name: &str) -> Key {
        Key::new(name.as_bytes(), &blake3::hash(b"projector"), &["settings"])
    }

    fn cache(dir: &tempfile::TempDir, n_files: u64) -> ImageCache {
        ImageCache::new(dir.path().join("images"), n_files * (32 + 16))
    }

    #[test]
    fn what_was_kept_is_found_again() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 9);
        let values = [1.5, -0.0, f32::MIN_POSITIVE, 1e30];
        assert_eq!(cache.get(&key("a"), 4), None);
        cache.put(&key("a"), &values);
        assert_eq!(cache.get(&key("a"), 4), Some(values.to_vec()));
        assert_eq!(cache.get(&key("b"), 4), None);
        // Of another length than the projector gives.
        assert_eq!(cache.get(&key("a"), 3), None);
        assert_eq!(cache.get(&key("a"), 5), None);
    }

    #[test]
    fn what_is_damaged_is_missing() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 9);
        cache.put(&key("a"), &[1.0; 4]);
        let path = cache.path(&key("a"));
        let whole = std::fs::read(&path).expect("kept");
        let mut flipped = whole.clone();
        flipped[40] ^= 1;
        for damaged in [&whole[..47], &whole[..20], &[], &flipped] {
            std::fs::write(&path, damaged).expect("our own folder");
            assert_eq!(cache.get(&key("a"), 4), None);
        }
        cache.put(&key("a"), &[1.0; 4]);
        assert!(cache.get(&key("a"), 4).is_some());
    }

    /// How many of the names are there; their time of last use is not touched.
    fn found(cache: &ImageCache, names: &[&str]) -> Vec<bool> {
        let exists = |name: &&str| cache.path(&key(name)).exists();
        names.iter().map(exists).collect()
    }

    /// Makes a file look as if it had been used that many seconds ago.
    fn age(cache: &ImageCache, name: &str, seconds: u64) {
        let file = std::fs::File::options()
            .append(true)
            .open(cache.path(&key(name)));
        let then = SystemTime::now() - Duration::from_secs(seconds);
        let set = file.and_then(|file| file.set_modified(then));
        set.expect("our own file");
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 8);
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        for (i, name) in names.iter().enumerate() {
            cache.put(&key(name), &[1.0; 4]);
            age(&cache, name, 30 - i as u64);
        }
        assert_eq!(found(&cache, &names), [true; 8]);
        assert!(cache.get(&key("a"), 4).is_some(), "used just now");
        cache.put(&key("i"), &[1.0; 4]);
        // An eighth is emptied.
        assert_eq!(
            found(&cache, &["a", "b", "c", "d", "i"]),
            [true, false, false, true, true]
        );
        // More than all that may be kept.
        cache.put(&key("j"), &[1.0; 200]);
        assert_eq!(cache.get(&key("j"), 200), None);
    }

    /// The folder is looked through when it is full, and when nobody knows how full it is.
    #[test]
    fn a_ledger_knows_how_full_it_is() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 8);
        for name in ["a", "b", "c"] {
            cache.put(&key(name), &[1.0; 4]);
        }
        assert_eq!(cache.noted_bytes(), Some(3 * 48));
        // What the ledger does not know of is found when it is gone or damaged.
        for damaged in [None, Some("48\nx\n"), Some("99999999999999999999")] {
            let ledger = cache.dir.join(super::LEDGER);
            match damaged {
                None => std::fs::remove_file(ledger).expect("our own file"),
                Some(text) => std::fs::write(ledger, text).expect("our own file"),
            }
            cache.put(&key("a"), &[1.0; 4]);
            assert_eq!(cache.noted_bytes(), Some(3 * 48));
        }
        // A file that is written again is counted twice until the folder is looked through.
        for _ in 0..6 {
            cache.put(&key("a"), &[1.0; 4]);
        }
        assert_eq!(cache.noted_bytes(), Some(3 * 48));
    }

    #[test]
    fn a_read_only_cache_keeps_nothing() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 8);
        cache.put(&key("a"), &[1.0; 4]);
        let reader = cache.clone().read_only();
        reader.put(&key("b"), &[1.0; 4]);
        assert!(reader.get(&key("a"), 4).is_some());
        assert_eq!(cache.get(&key("b"), 4), None);
    }

    #[test]
    fn keys_differ_by_each_part() {
        let of = |pixels: &[u8], projector: &[u8], settings: &[&str]| {
            Key::new(pixels, &blake3::hash(projector), settings).0
        };
        let one = of(b"pixels", b"projector", &["device", "auto"]);
        assert_eq!(of(b"pixels", b"projector", &["device", "auto"]), one);
        for other in [
            of(b"pixel", b"projector", &["device", "auto"]),
            of(b"pixels", b"another", &["device", "auto"]),
            of(b"pixels", b"projector", &["another", "auto"]),
            of(b"pixels", b"projector", &["device", "on"]),
            of(b"pixels", b"projector", &["devicea", "uto"]),
        ] {
            assert_ne!(other, one);
        }
    }

    #[test]
    fn threads_share_a_folder() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..50 {
                        let key = key(&(i % 7).to_string());
                        let values = [(i % 7) as f32; 4];
                        cache.put(&key, &values);
                        // Another thread may have removed it, but never half of it.
                        let found = cache.get(&key, 4);
                        assert!(found.is_none_or(|found| found == values));
                    }
                });
            }
        });
        let files = std::fs::read_dir(&cache.dir).expect("our own folder");
        let files = files
            .flatten()
            .filter(|file| file.file_name() != super::LEDGER);
        assert!(
            files.count() <= 3 + 4,
            "a file for each thread at most is too many"
        );
    }
}
