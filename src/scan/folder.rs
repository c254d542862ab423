//! The pictures in a folder and the folders below it.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::Result;

/// How the names of pictures end, in upper or lower case.
pub const PICTURE_EXTENSIONS: [&str; 8] =
    ["png", "jpg", "jpeg", "gif", "webp", "bmp", "tif", "tiff"];

/// A file that should be a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPicture {
    /// Below the folder, with `/` between its parts.
    pub path: String,
    /// Its length in bytes.
    pub(super) n_bytes: u64,
    /// When it was changed, in nanoseconds since 1970.
    pub(super) modified_ns: u64,
    /// Its place among the pictures of the folder.
    pub(super) position: usize,
}

impl FoundPicture {
    /// The name of the folder that it lies in; none directly in the scanned one.
    pub fn class(&self) -> Option<&str> {
        class_of(&self.path)
    }
}

/// The name of the folder that a picture lies in, by its path below the scanned one.
pub(super) fn class_of(path: &str) -> Option<&str> {
    let (folder, _) = path.rsplit_once('/')?;
    Some(folder.rsplit('/').next().unwrap_or(folder))
}

/// The pictures in `dir` and below, sorted by path. Links are followed, but not in circles.
///
/// # Errors
/// A folder that cannot be read.
pub fn pictures_in(dir: &Path) -> Result<Vec<FoundPicture>> {
    let mut found = Vec::new();
    walk(dir, "", &mut Vec::new(), &mut found)?;
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    for (position, picture) in found.iter_mut().enumerate() {
        picture.position = position;
    }
    Ok(found)
}

/// Adds the pictures in `dir`, whose path ends in `prefix`; `ancestors` are the folders above it.
fn walk(
    dir: &Path,
    prefix: &str,
    ancestors: &mut Vec<PathBuf>,
    found: &mut Vec<FoundPicture>,
) -> Result<()> {
    let read_error = || gguf_tools::Error::io("read", dir);
    let canonical = dir.canonicalize().map_err(read_error())?;
    if ancestors.contains(&canonical) {
        return Ok(());
    }
    ancestors.push(canonical);
    for entry in fs::read_dir(dir).map_err(read_error())? {
        let entry = entry.map_err(read_error())?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // A link that leads nowhere is a picture that cannot be read.
        let metadata = fs::metadata(entry.path()).ok();
        if metadata.as_ref().is_some_and(Metadata::is_dir) {
            walk(&entry.path(), &format!("{path}/"), ancestors, found)?;
        } else if is_picture(&path) {
            let modified = metadata.as_ref().and_then(|metadata| {
                let time = metadata.modified().ok()?;
                let since = time.duration_since(UNIX_EPOCH).ok()?;
                u64::try_from(since.as_nanos()).ok()
            });
            found.push(FoundPicture {
                path,
                n_bytes: metadata.map_or(0, |metadata| metadata.len()),
                modified_ns: modified.unwrap_or(0),
                position: 0,
            });
        }
    }
    ancestors.pop();
    Ok(())
}

fn is_picture(path: &str) -> bool {
    let extension = Path::new(path).extension().and_then(|name| name.to_str());
    extension.is_some_and(|extension| {
        PICTURE_EXTENSIONS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(extension))
    })
}
