//! Which format an SAE is in, by the files of its folder.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::source::{Format, Source};
use super::{gemma_scope, llama_scope, saelens, sparsify};
use crate::{Error, Result};

/// The formats by the file that gives them away.
const FORMATS: [(&str, Format); 5] = [
    (saelens::WEIGHTS_FILE, Format::SaeLens),
    (gemma_scope::NPZ_FILE, Format::GemmaScope),
    (gemma_scope::WEIGHTS_FILE, Format::GemmaScope2),
    (sparsify::WEIGHTS_FILE, Format::Sparsify),
    (llama_scope::CONFIG_FILE, Format::LlamaScope),
];

/// Configurations, which may be named in the place of their folder.
const CONFIG_FILES: [&str; 2] = [saelens::CONFIG_FILE, gemma_scope::CONFIG_FILE];

/// Endings of pickles: files that run a program when they are read.
const PICKLES: [&str; 4] = ["pt", "pth", "pkl", "bin"];

/// Opens the SAE at `source`, a folder or a file of one; and the folder that parts of it were
/// unpacked to, which has to outlive it.
///
/// # Errors
/// What is no SAE of a known format, what each format's reader refuses, and a `hook_name` that the
/// files contradict.
pub(super) fn open(source: &Path, hook_name: Option<&str>) -> Result<(Source, Option<TempDir>)> {
    let (dir, format) = recognize(source)?;
    let (sae, unpacked) = match format {
        Format::SaeLens => (saelens::open(&dir)?, None),
        Format::GemmaScope => gemma_scope::open(&dir, hook_name)?,
        Format::GemmaScope2 => (gemma_scope::open_2(&dir)?, None),
        Format::Sparsify => (sparsify::open(&dir, hook_name)?, None),
        Format::LlamaScope => (llama_scope::open(&dir)?, None),
    };
    match hook_name {
        Some(given) if given != sae.hook_name => Err(Error::invalid(format!(
            "`--hook-name` is `{given}`, but `{}` belongs to `{}`",
            source.display(),
            sae.hook_name
        ))
        .with_hint("leave `--hook-name` out")),
        _ => Ok((sae, unpacked)),
    }
}

fn recognize(source: &Path) -> Result<(PathBuf, Format)> {
    let kind = std::fs::metadata(source).map_err(Error::io("read", source))?;
    let dir = if kind.is_dir() {
        source.to_owned()
    } else {
        folder_of(source)?
    };
    if let Some((_, format)) = FORMATS.iter().find(|(file, _)| dir.join(file).exists()) {
        return Ok((dir, *format));
    }
    match pickle_in(&dir) {
        Some(path) => Err(pickle_error(&path)),
        None => Err(unknown(source)),
    }
}

/// The folder that a file of a known format belongs to.
fn folder_of(file: &Path) -> Result<PathBuf> {
    if is_pickle(file) {
        return Err(pickle_error(file));
    }
    let is_known = FORMATS
        .iter()
        .map(|(name, _)| *name)
        .chain(CONFIG_FILES)
        .any(|name| file.ends_with(name));
    match file.parent() {
        Some(parent) if is_known => Ok(Path::new(".").join(parent)),
        _ => Err(unknown(file)),
    }
}

fn pickle_in(dir: &Path) -> Option<PathBuf> {
    let entries = dir.read_dir().ok()?;
    let mut pickles: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_pickle(path))
        .collect();
    pickles.sort();
    pickles.into_iter().next()
}

fn is_pickle(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| PICKLES.contains(&ending))
}

fn pickle_error(path: &Path) -> Error {
    Error::invalid(format!(
        "`{}` is a pickle, which can run any program when it is read, so it is not",
        path.display()
    ))
    .with_hint(
        "load it where you trust it (`torch.load`, or SAELens' loader for dictionary_learning) and save it again with SAELens' `sae.save_model(folder)`",
    )
}

fn unknown(source: &Path) -> Error {
    let known: Vec<String> = FORMATS
        .iter()
        .map(|(file, format)| format!("{} (`{file}`)", format.name()))
        .collect();
    Error::invalid(format!(
        "`{}` is no SAE of a known format",
        source.display()
    ))
    .with_hint(format!(
        "give a folder of one of these: {}",
        known.join(", ")
    ))
}
