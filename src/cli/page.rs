//! The file of `--html`.

use std::path::{Path, PathBuf};

use gguf_tools::gguf::Overwrite;
use gguf_tools::new_file::{NewFile, check_is_no_input};

use super::args::ModelArgs;

/// Checks, before any work, that a page can be written to `path`, where it takes the place of no input, and starts its
/// file; none without a path. Inputs are the model's files and `others`.
pub(super) fn start(
    path: Option<&Path>,
    overwrite: Overwrite,
    model: &ModelArgs,
    others: impl Iterator<Item = PathBuf>,
) -> llava_sae_cpp::Result<Option<NewFile>> {
    let Some(path) = path else { return Ok(None) };
    check_is_no_input(path, model.given_files().into_iter().chain(others))?;
    NewFile::create(path, overwrite).map(Some)
}
