//! Files by pattern, for shells that leave patterns to the program.

use std::path::PathBuf;

use llava_sae_cpp::{Error, Result};

/// The files that are named, and those that match what names none and is a pattern.
///
/// # Errors
/// A pattern that matches nothing.
pub(super) fn expanded(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in given {
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']));
        let matches = pattern.filter(|_| !path.exists()).map(glob::glob);
        let Some(Ok(matches)) = matches else {
            files.push(path.clone());
            continue;
        };
        let n_before = files.len();
        files.extend(matches.flatten());
        if files.len() == n_before {
            let what = format!("no file matches `{}`", path.display());
            return Err(Error::invalid(what));
        }
    }
    Ok(files)
}
