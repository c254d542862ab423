//! The hashes that the hub names its files by: sha256 for those in large file storage, git's for the others.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What a file's contents hash to, in hexadecimal; also the name of its blob in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hash {
    /// Of the contents.
    Sha256(String),
    /// Git's: sha1 of `blob`, the size, a zero byte, and the contents.
    GitSha1(String),
}

impl Hash {
    /// A hash by its length in hexadecimal.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_hex = text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match text.len() {
            64 if is_hex => Some(Self::Sha256(text.to_owned())),
            40 if is_hex => Some(Self::GitSha1(text.to_owned())),
            _ => None,
        }
    }

    /// The hexadecimal digits.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) => hex,
        }
    }

    /// Whether all of `file` has this hash; `on_read` gets the bytes of each piece, and may end it.
    pub(crate) fn is_of(
        &self,
        file: &mut File,
        size: u64,
        mut on_read: impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<bool> {
        if file.metadata()?.len() != size {
            return Ok(false);
        }
        let mut hasher = Hasher::new(self, size);
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(hasher.finish() == self.hex()),
                n_read => {
                    hasher.update(&piece[..n_read]);
                    on_read(n_read as u64)?;
                }
            }
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256 {hex}"),
            Self::GitSha1(hex) => write!(f, "git's sha1 {hex}"),
        }
    }
}

/// Bytes that are read at once.
pub(crate) const PIECE: usize = 1 << 20;

/// A hash of the same kind as another, in the making.
pub(crate) enum Hasher {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Hasher {
    /// The beginning, for contents of `size` bytes.
    pub(crate) fn new(kind: &Hash, size: u64) -> Self {
        match kind {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            Hash::GitSha1(_) => Self::GitSha1(Sha1::new().chain_update(format!("blob {size}\0"))),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitSha1(hasher) => hasher.update(bytes),
        }
    }

    /// In hexadecimal.
    pub(crate) fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::GitSha1(hasher) => hex(&hasher.finalize()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sha256sum`, and `git hash-object`, of the five bytes.
    #[test]
    fn hashes_are_those_of_sha256sum_and_git() {
        for hex in [
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
        ] {
            let hash = Hash::parse(hex).expect("hexadecimal");
            let mut hasher = Hasher::new(&hash, 5);
            hasher.update(b"hel");
            hasher.update(b"lo");
            assert_eq!(hasher.finish(), hex);
        }
    }
}
