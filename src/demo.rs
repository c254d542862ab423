//! The demo model that is embedded in the program: a small LLaVA-Gemma and its text-only SAE.
//! `assets/README.md` says what it is. Without the feature `demo` there is none, and who asks for it is told.

use std::path::{Path, PathBuf};

use gguf_tools::new_file::NewFile;

use crate::model::files::ModelFiles;
use crate::{Error, ErrorKind, Result};

#[cfg(feature = "demo")]
const FILES: Option<[&[u8]; 3]> = {
    use llava_sae_demo::{MMPROJ, MODEL, SAE};
    Some([MODEL, MMPROJ, SAE])
};
#[cfg(not(feature = "demo"))]
const FILES: Option<[&[u8]; 3]> = None;

/// Names and contents of pictures to begin with, PNG files.
#[cfg(feature = "demo")]
pub(crate) use llava_sae_demo::PICTURES;
#[cfg(not(feature = "demo"))]
pub(crate) static PICTURES: &[(&str, &[u8])] = &[];

/// The file of the picture that `path` names as `demo:NAME`; none where it names another one.
///
/// # Errors
/// When there is no such picture.
pub(crate) fn picture(path: &Path) -> Result<Option<&'static [u8]>> {
    let Some(name) = path.to_str().and_then(|path| path.strip_prefix("demo:")) else {
        return Ok(None);
    };
    if path.exists() {
        return Ok(None);
    }
    let found = PICTURES.iter().find(|(known, _)| *known == name);
    let (_, file) = found.ok_or_else(|| {
        let names: Vec<_> = PICTURES.iter().map(|(name, _)| *name).collect();
        let reason = format!("the demo has no picture `{name}`");
        Error::new(ErrorKind::Missing, reason).with_hint(match names.is_empty() {
            true => "this was compiled without the feature `demo`".to_owned(),
            false => format!("it has `{}`", names.join("`, `")),
        })
    })?;
    Ok(Some(*file))
}

/// The demo's files, written to the user's cache folder where they are not there yet: llama.cpp
/// reads models from files only.
///
/// # Errors
/// When neither the cache folder nor the system's temporary folder can be written; without the feature `demo`.
pub fn files() -> Result<ModelFiles> {
    contents()?;
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
/// When the folder cannot be written; without the feature `demo`.
pub fn files_in(dir: &Path) -> Result<ModelFiles> {
    let [model, mmproj, sae] = contents()?;
    Ok(ModelFiles {
        model: write_once(dir, "demo-model", model)?,
        mmproj: Some(write_once(dir, "demo-mmproj", mmproj)?),
        saes: vec![write_once(dir, "demo-sae", sae)?],
    })
}

/// The language model, the projector and the SAE.
fn contents() -> Result<[&'static [u8]; 3]> {
    FILES.ok_or_else(|| {
        let reason = "there is no demo model: this was compiled without the feature `demo`";
        Error::new(ErrorKind::Missing, reason).with_hint("name a model, or compile with it")
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
