//! Free space on disks.

use std::path::{Path, PathBuf};

use indicatif::DecimalBytes;
use llava_sae_cpp::{Error, ErrorKind, Result};

/// Space that is needed in a folder, which need not be there yet.
pub(super) struct Need {
    pub(super) dir: PathBuf,
    pub(super) n_bytes: u64,
}

/// Checks that there is room for everything, together where it is on one disk.
///
/// # Errors
/// When there is not.
pub(super) fn check(needs: &[Need]) -> Result<()> {
    for need in needs {
        let on_same_disk = needs
            .iter()
            .filter(|other| is_same_disk(&need.dir, &other.dir));
        let n_needed: u64 = on_same_disk.map(|other| other.n_bytes).sum();
        let n_free = free(&need.dir)?;
        if n_needed > n_free {
            let what = format!(
                "there is too little space for `{}`: {} are needed and {} are free",
                need.dir.display(),
                DecimalBytes(n_needed),
                DecimalBytes(n_free)
            );
            return Err(Error::new(ErrorKind::DiskFull, what).with_hint(
                "free some space, or use another disk: `HF_HOME` moves downloads, `LLAVA_SAE_MODELS` models",
            ));
        }
    }
    Ok(())
}

/// The free space where `dir` is, or will be.
pub(super) fn free(dir: &Path) -> Result<u64> {
    let there = existing(dir);
    fs4::available_space(there).map_err(Error::io("find the free space of", there))
}

fn existing(dir: &Path) -> &Path {
    let mut above = dir.ancestors();
    above.find(|dir| dir.exists()).unwrap_or(Path::new("."))
}

/// Whether two folders are on one disk.
#[cfg(unix)]
pub(super) fn is_same_disk(dir: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let disk = |dir: &Path| existing(dir).metadata().map(|metadata| metadata.dev()).ok();
    disk(dir) == disk(other)
}

/// Where it cannot be told, one disk has to have room for all.
#[cfg(not(unix))]
pub(super) fn is_same_disk(_: &Path, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_on_one_disk_add_up() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let need = |name: &str, n_bytes| Need {
            dir: dir.path().join(name).join("not yet"),
            n_bytes,
        };
        let n_free = free(dir.path()).expect("a disk");
        let most = n_free / 3 * 2;
        assert!(check(&[need("a", most)]).is_ok());
        let error = check(&[need("a", most), need("b", most)]).expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::DiskFull);
    }
}
