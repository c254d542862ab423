//! The demo model that is embedded in the program: a small LLaVA-Gemma and its text-only SAE.
//! `assets/README.md` says what it is.

use std::path::{Path, PathBuf};

use gguf_tools::new_file::NewFile;

use crate::model::files::ModelFiles;
use crate::{Error, Result};

const MODEL: &[u8] = include_bytes!("../assets/model-f16.gguf");
const MMPROJ: &[u8] = include_bytes!("../assets/mmproj-f16.gguf");
const SAE: &[u8] = include_bytes!("../assets/sae-f16.gguf");

/// The demo's files, written to the user's cache folder where they are not there yet: llama.cpp
/// reads models from files only.
///
/// # Errors
/// When neither the cache folder nor the system's temporary folder can be written.
pub fn files() -> Result<ModelFiles> {
    let cache = directories::ProjectDirs::from("", "", "llava-sae-cpp")
        .map(|dirs| dirs.cache_dir().to_path_buf());
    let temporary = std::env::temp_dir().join("llava-sae-cpp");
    let mut outcome = None;
    for dir in cache.into_iter().chain([temporary]) {
        match files_in(&dir) {
            Ok(files) => {
                if let Some(error) = outcome {
                    log::warn!("{error}; the demo model is in `{}` instead", dir.display());
                }
                return Ok(files);
            }
            Err(error) => outcome = outcome.or(Some(error)),
        }
    }
    Err(outcome.unwrap_or_else(|| Error::invalid("there is no folder for the demo model")))
}

/// The demo's files in a folder of one's choice.
///
/// # Errors
/// When the folder cannot be written.
pub fn files_in(dir: &Path) -> Result<ModelFiles> {
    Ok(ModelFiles {
        model: write_once(dir, "demo-model", MODEL)?,
        mmproj: Some(write_once(dir, "demo-mmproj", MMPROJ)?),
        saes: vec![write_once(dir, "demo-sae", SAE)?],
    })
}

/// Writes `bytes` to a file named by their hash. It is renamed into place when it is complete, so
/// two processes that start at once both end with a whole file, and a damaged one is replaced.
fn write_once(dir: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let hash = blake3::hash(bytes);
    let path = dir.join(format!("{name}-{}.gguf", &hash.to_hex()[..16]));
    let is_whole = std::fs::read(&path).is_ok_and(|found| blake3::hash(&found) == hash);
    if is_whole {
        return Ok(path);
    }
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    NewFile::in_cache(&path)?.finish_with(bytes)?;
    Ok(path)
}
