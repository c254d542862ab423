//! Image embeddings on the disk, so that a picture goes through the vision encoder once and not again.
//!
//! A file is named by what its content depends on, begins with a checksum, and is renamed into place
//! when it is whole; so processes that share a folder need no lock, and what is damaged counts as
//! missing. The files that were used longest ago go when a new one makes them too many.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gguf_tools::gguf::Gguf;

use crate::Result;

/// To be raised whenever the vision encoder's numbers change, as another llama.cpp may change them.
const FORMAT: u32 = 1;
const EXTENSION: &str = "image-rows";
const TEMPORARY_PREFIX: &str = ".image-rows-";
/// What a process that was killed left behind is removed after this time.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
/// Bytes of each tensor that tell one projector from another.
const TENSOR_SAMPLE_BYTES: u64 = 4096;
const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

/// A folder of image embeddings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageCache {
    dir: PathBuf,
    max_bytes: u64,
}

/// What a picture's embeddings depend on.
pub(crate) struct Key(blake3::Hash);

impl ImageCache {
    /// A cache in `dir`, which is made when something is kept, of at most `max_bytes`.
    pub fn new(dir: PathBuf, max_bytes: u64) -> Self {
        Self { dir, max_bytes }
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
        if let Err(error) = self.write(key, values).and_then(|()| self.evict()) {
            let dir = self.dir.display();
            log::debug!("image embeddings are not kept in `{dir}`: {error}");
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{}.{EXTENSION}", key.0.to_hex()))
    }

    fn write(&self, key: &Key, values: &[f32]) -> io::Result<()> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        if (CHECKSUM_BYTES + bytes.len()) as u64 > self.max_bytes {
            return Ok(());
        }
        std::fs::create_dir_all(&self.dir)?;
        let mut file = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempfile_in(&self.dir)?;
        file.write_all(blake3::hash(&bytes).as_bytes())?;
        file.write_all(&bytes)?;
        file.persist(self.path(key))?;
        Ok(())
    }

    /// Removes what is too much, and what was abandoned.
    fn evict(&self) -> io::Result<()> {
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
            } else if name.to_string_lossy().starts_with(TEMPORARY_PREFIX)
                && modified.elapsed().is_ok_and(|age| age > ABANDONED_AFTER)
            {
                let _ = std::fs::remove_file(path);
            }
        }
        kept.sort();
        let mut n_bytes: u64 = kept.iter().map(|file| file.1).sum();
        for (_, length, path) in kept {
            if n_bytes <= self.max_bytes {
                break;
            }
            let _ = std::fs::remove_file(path);
            n_bytes -= length;
        }
        Ok(())
    }
}

impl Key {
    /// The key of `pixels`, prepared for the projector of that fingerprint, which computes with these
    /// `settings`.
    pub(crate) fn new(pixels: &[u8], projector: &blake3::Hash, settings: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&FORMAT.to_le_bytes());
        hasher.update(projector.as_bytes());
        // Of variable length, so each by its hash.
        hasher.update(blake3::hash(settings.as_bytes()).as_bytes());
        hasher.update(blake3::hash(pixels).as_bytes());
        Self(hasher.finalize())
    }
}

/// What tells a projector's file from others without reading all of it: its header, the beginning of
/// each tensor, its length and the time of its last change.
pub(crate) fn fingerprint(path: &Path) -> Result<blake3::Hash> {
    let gguf = Gguf::open(path)?;
    let read = || -> io::Result<blake3::Hash> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&metadata.len().to_le_bytes());
        let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        let modified = modified.unwrap_or_default().as_nanos();
        hasher.update(&modified.to_le_bytes());
        let tensors = gguf.tensors();
        let header_bytes = tensors.iter().map(|tensor| tensor.offset).min();
        let header = (0, header_bytes.unwrap_or(metadata.len()));
        let samples = tensors
            .iter()
            .map(|tensor| (tensor.offset, tensor.n_bytes.min(TENSOR_SAMPLE_BYTES)));
        for (offset, n_bytes) in std::iter::once(header).chain(samples) {
            file.seek(SeekFrom::Start(offset))?;
            hasher.update_reader((&mut file).take(n_bytes))?;
        }
        Ok(hasher.finalize())
    };
    Ok(read().map_err(gguf_tools::Error::io("read", path))?)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{ImageCache, Key};

    fn key(name: &str) -> Key {
        Key::new(name.as_bytes(), &blake3::hash(b"projector"), "settings")
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

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(&dir, 2);
        for (name, age) in [("a", 30), ("b", 20)] {
            cache.put(&key(name), &[1.0; 4]);
            let file = std::fs::File::options()
                .append(true)
                .open(cache.path(&key(name)));
            let then = SystemTime::now() - Duration::from_secs(age);
            let set = file.and_then(|file| file.set_modified(then));
            set.expect("our own file");
        }
        assert!(cache.get(&key("a"), 4).is_some(), "used just now");
        cache.put(&key("c"), &[1.0; 4]);
        let found = ["a", "b", "c"].map(|name| cache.get(&key(name), 4).is_some());
        assert_eq!(found, [true, false, true]);
        // More than all that may be kept.
        cache.put(&key("d"), &[1.0; 100]);
        assert_eq!(cache.get(&key("d"), 100), None);
    }

    #[test]
    fn keys_differ_by_each_part() {
        let of = |pixels: &[u8], projector: &[u8], settings: &str| {
            Key::new(pixels, &blake3::hash(projector), settings).0
        };
        let one = of(b"pixels", b"projector", "settings");
        assert_eq!(of(b"pixels", b"projector", "settings"), one);
        for other in [
            of(b"pixel", b"projector", "settings"),
            of(b"pixels", b"another", "settings"),
            of(b"pixels", b"projector", "setting"),
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
        assert!(
            files.count() <= 3 + 4,
            "a file for each thread at most is too many"
        );
    }
}
