//! Files that this program made need no trial.

use std::path::Path;

use llava_sae_cpp::probe::SeenFiles;

/// Spares a file that was just made the trial that other new files get.
pub(super) fn note_as_seen(file: &Path) {
    let noted = SeenFiles::of_user().map(|seen| seen.add(file));
    if let Some(Err(error)) = noted {
        log::debug!(
            "`{}` will be tried before it is used: {error}",
            file.display()
        );
    }
}
