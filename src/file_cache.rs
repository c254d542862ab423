//! Files on the disk that spare later runs work: image embeddings, prompts that were read.
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

/// Numbers of bytes, a line each: those that were counted when the folder was last looked through, and
/// those of each file since.
const LEDGER: &str = "ledger";
/// The part of a full cache that is emptied, so that it is not full again at once.
const EMPTIED_PART: u64 = 8;
/// What a process that was killed left behind is removed after this time.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

/// A folder of files that are known by a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileCache {
    dir: PathBuf,
    extension: &'static str,
    max_bytes: u64,
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Full,
    ReadOnly,
}

impl FileCache {
    /// A cache in `dir`, which is made when something is kept, of at most `max_bytes`.
    pub(crate) fn new(dir: PathBuf, extension: &'static str, max_bytes: u64) -> Self {
        Self {
            dir,
            extension,
            max_bytes,
            access: Access::Full,
        }
    }

    /// A cache in a folder of the user's cache folder, where the system has one.
    pub(crate) fn of_user(name: &str, extension: &'static str, max_bytes: u64) -> Option<Self> {
        let dirs = directories::ProjectDirs::from("", "", "llava-sae-cpp")?;
        Some(Self::new(dirs.cache_dir().join(name), extension, max_bytes))
    }

    /// The same cache, to which nothing is added.
    #[must_use]
    pub(crate) fn read_only(self) -> Self {
        Self {
            access: Access::ReadOnly,
            ..self
        }
    }

    /// The content of `key`, of at most `max_bytes`, if it is there and whole.
    pub(crate) fn get(&self, key: &blake3::Hash, max_bytes: u64) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut file = File::open(&path).ok()?;
        let n_bytes = file.metadata().ok()?.len();
        let content = self.read(&mut file, n_bytes, max_bytes);
        if content.is_none() {
            log::debug!("`{}` is damaged, and replaced", path.display());
            return None;
        }
        // Where that fails, the file goes earlier than it should.
        let _ = File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        content
    }

    fn read(&self, file: &mut File, n_bytes: u64, max_bytes: u64) -> Option<Vec<u8>> {
        let n_content = n_bytes.checked_sub(CHECKSUM_BYTES as u64)?;
        if n_content > max_bytes {
            return None;
        }
        let mut checksum = [0; CHECKSUM_BYTES];
        file.read_exact(&mut checksum).ok()?;
        let mut content = Vec::with_capacity(n_content as usize);
        // No more is read than there should be.
        file.take(n_content + 1).read_to_end(&mut content).ok()?;
        let is_whole = content.len() as u64 == n_content;
        (is_whole && blake3::hash(&content) == checksum).then_some(content)
    }

    /// Keeps a content. A cache that cannot be written is no error: what is not kept is made again.
    pub(crate) fn put(&self, key: &blake3::Hash, content: &[u8]) {
        if self.access == Access::ReadOnly {
            return;
        }
        if let Err(error) = self.write(key, content) {
            let path = self.path(key);
            log::debug!("`{}` is not kept: {error}", path.display());
        }
    }

    pub(crate) fn path(&self, key: &blake3::Hash) -> PathBuf {
        self.dir
            .join(format!("{}.{}", key.to_hex(), self.extension))
    }

    fn write(&self, key: &blake3::Hash, content: &[u8]) -> Result<()> {
        let n_bytes = (CHECKSUM_BYTES + content.len()) as u64;
        if n_bytes > self.max_bytes {
            return Ok(());
        }
        std::fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        let path = self.path(key);
        let mut file = NewFile::in_cache(&path)?;
        file.write_all(blake3::hash(content).as_bytes())
            .map_err(Error::io("write", &path))?;
        file.finish_with(content)?;
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
                .is_some_and(|extension| extension == self.extension)
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::FileCache;

    fn key(name: &str) -> blake3::Hash {
        blake3::hash(name.as_bytes())
    }

    const CONTENT: [u8; 16] = [7; 16];

    fn cache(dir: &tempfile::TempDir, n_files: u64) -> FileCache {
        FileCache::new(dir.path().join("kept"), "kept", n_files * (32 + 16))
    }

    fn get(cache: &FileCache, name: &str) -> Option<Vec<u8>> {
        cache.get(&key(name), 1000)
    }

    #[test]
    fn what_was_kept_is_found_again() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 9);
        assert_eq!(get(&cache, "a"), None);
        cache.put(&key("a"), &CONTENT);
        assert_eq!(get(&cache, "a"), Some(CONTENT.to_vec()));
        assert_eq!(get(&cache, "b"), None);
        // Longer than what is asked for may be.
        assert_eq!(cache.get(&key("a"), 15), None);
        assert!(cache.get(&key("a"), 16).is_some());
    }

    #[test]
    fn what_is_damaged_is_missing() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 9);
        cache.put(&key("a"), &CONTENT);
        let path = cache.path(&key("a"));
        let whole = std::fs::read(&path).expect("kept");
        let mut flipped = whole.clone();
        flipped[40] ^= 1;
        for damaged in [&whole[..47], &whole[..20], &[], &flipped] {
            std::fs::write(&path, damaged).expect("our own folder");
            assert_eq!(get(&cache, "a"), None);
        }
        cache.put(&key("a"), &CONTENT);
        assert!(get(&cache, "a").is_some());
    }

    /// How many of the names are there; their time of last use is not touched.
    fn found(cache: &FileCache, names: &[&str]) -> Vec<bool> {
        let exists = |name: &&str| cache.path(&key(name)).exists();
        names.iter().map(exists).collect()
    }

    /// Makes a file look as if it had been used that many seconds ago.
    fn age(cache: &FileCache, name: &str, seconds: u64) {
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
            cache.put(&key(name), &CONTENT);
            age(&cache, name, 30 - i as u64);
        }
        assert_eq!(found(&cache, &names), [true; 8]);
        assert!(get(&cache, "a").is_some(), "used just now");
        cache.put(&key("i"), &CONTENT);
        // An eighth is emptied.
        assert_eq!(
            found(&cache, &["a", "b", "c", "d", "i"]),
            [true, false, false, true, true]
        );
        // More than all that may be kept.
        cache.put(&key("j"), &[7; 800]);
        assert_eq!(get(&cache, "j"), None);
    }

    /// The folder is looked through when it is full, and when nobody knows how full it is.
    #[test]
    fn a_ledger_knows_how_full_it_is() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 8);
        for name in ["a", "b", "c"] {
            cache.put(&key(name), &CONTENT);
        }
        assert_eq!(cache.noted_bytes(), Some(3 * 48));
        // What the ledger does not know of is found when it is gone or damaged.
        for damaged in [None, Some("48\nx\n"), Some("99999999999999999999")] {
            let ledger = cache.dir.join(super::LEDGER);
            match damaged {
                None => std::fs::remove_file(ledger).expect("our own file"),
                Some(text) => std::fs::write(ledger, text).expect("our own file"),
            }
            cache.put(&key("a"), &CONTENT);
            assert_eq!(cache.noted_bytes(), Some(3 * 48));
        }
        // A file that is written again is counted twice until the folder is looked through.
        for _ in 0..6 {
            cache.put(&key("a"), &CONTENT);
        }
        assert_eq!(cache.noted_bytes(), Some(3 * 48));
    }

    #[test]
    fn a_read_only_cache_keeps_nothing() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 8);
        cache.put(&key("a"), &CONTENT);
        let reader = cache.clone().read_only();
        reader.put(&key("b"), &CONTENT);
        assert!(get(&reader, "a").is_some());
        assert_eq!(get(&cache, "b"), None);
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
                        let content = [i % 7; 16];
                        cache.put(&key, &content);
                        // Another thread may have removed it, but never half of it.
                        let found = cache.get(&key, 16);
                        assert!(found.is_none_or(|found| found == content));
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
