//! Image embeddings on the disk, so that a picture goes through the vision encoder once and not again.

use std::path::PathBuf;

use crate::file_cache::FileCache;

/// To be raised whenever a file's form changes.
const FORMAT: u32 = 2;
const EXTENSION: &str = "image-rows";

/// A folder of image embeddings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageCache(FileCache);

/// What a picture's embeddings depend on.
pub(crate) struct Key(blake3::Hash);

impl ImageCache {
    /// A cache in `dir`, which is made when something is kept, of at most `max_bytes`.
    pub fn new(dir: PathBuf, max_bytes: u64) -> Self {
        Self(FileCache::new(dir, EXTENSION, max_bytes))
    }

    /// The same cache for a run through many pictures: what is there is used, and nothing is added,
    /// since that would push out the pictures that are looked at again and again.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self(self.0.read_only())
    }

    /// A cache in the user's cache folder, where the system has one.
    pub fn of_user(max_bytes: u64) -> Option<Self> {
        FileCache::of_user("images", EXTENSION, max_bytes).map(Self)
    }

    /// The embeddings of `key`, `n_values` numbers, if they are there and whole.
    pub(crate) fn get(&self, key: &Key, n_values: usize) -> Option<Vec<f32>> {
        let n_bytes = n_values * size_of::<f32>();
        let content = self.0.get(&key.0, n_bytes as u64)?;
        let values = content
            .as_chunks()
            .0
            .iter()
            .copied()
            .map(f32::from_le_bytes);
        (content.len() == n_bytes).then(|| values.collect())
    }

    /// Keeps embeddings. A cache that cannot be written is no error: the picture is encoded again.
    pub(crate) fn put(&self, key: &Key, values: &[f32]) {
        let content: Vec<u8> = values.iter().copied().flat_map(f32::to_le_bytes).collect();
        self.0.put(&key.0, &content);
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
    use super::{ImageCache, Key};

    #[test]
    fn embeddings_are_kept_to_the_bit() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let cache = ImageCache::new(dir.path().join("images"), 1000);
        let key = Key::new(b"pixels", &blake3::hash(b"projector"), &["settings"]);
        let values = [1.5, -0.0, f32::MIN_POSITIVE, 1e30];
        cache.put(&key, &values);
        let found = cache.get(&key, 4).expect("it was kept");
        assert_eq!(
            found.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            values.map(f32::to_bits)
        );
        // Of another length than the projector gives.
        assert_eq!(cache.get(&key, 3), None);
        assert_eq!(cache.get(&key, 5), None);
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
}
