//! Which format an SAE is in, by the files of its folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::source::{Format, Source};
use super::{circuit_tracer, gemma_scope, openmoss, saelens, sparsify};
use crate::{Error, Result};

/// The formats by the file that identifies them, except OpenMOSS', which shares its file with SAELens.
const FORMATS: [(&str, Format); 5] = [
    (saelens::WEIGHTS_FILE, Format::SaeLens),
    (gemma_scope::NPZ_FILE, Format::GemmaScope),
    (gemma_scope::WEIGHTS_FILE, Format::GemmaScope2),
    (sparsify::WEIGHTS_FILE, Format::Sparsify),
    (openmoss::LLAMA_SCOPE_CONFIG, Format::LlamaScope),
];

/// Configurations, which may be named in the place of their folder.
const CONFIG_FILES: [&str; 2] = [saelens::CONFIG_FILE, gemma_scope::CONFIG_FILE];

/// How the folders of Gemma Scope 2's crosscoders are called, whose files have the names of those of its cross-layer
/// transcoders.
const CROSSCODER: &str = "crosscoder";

/// Files that hold the features of one block each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BlockFile {
    Transcoder,
    CrossLayer,
    CrossLayer2,
}

impl BlockFile {
    /// What a file is that is called so.
    fn of(file_name: &str) -> Option<Self> {
        let is = |layer: Option<usize>, kind| layer.map(|_| kind);
        is(circuit_tracer::layer_of(file_name), Self::Transcoder)
            .or(is(
                circuit_tracer::layer_of_encoder(file_name),
                Self::CrossLayer,
            ))
            .or(is(gemma_scope::layer_of(file_name), Self::CrossLayer2))
    }
}

/// Endings of pickles: files that run a program when they are read.
const PICKLES: [&str; 4] = ["pt", "pth", "pkl", "bin"];

/// Opens the SAE at `source`, a folder or a file of one; and the folder that parts of it were
/// unpacked to, which has to outlive it. A `hook_name` that is given overrides the files'.
///
/// # Errors
/// What is no SAE of a known format, and what each format's reader refuses.
pub(super) fn open(source: &Path, hook_name: Option<&str>) -> Result<(Source, Option<TempDir>)> {
    if let Some(file) = block_file(source) {
        let source_dir = source.canonicalize().map_err(Error::io("read", source))?;
        let mut folders = source_dir.iter().filter_map(|part| part.to_str());
        if file == BlockFile::CrossLayer2 && folders.any(|part| part.starts_with(CROSSCODER)) {
            return Err(crosscoder(source));
        }
        let source = match file {
            BlockFile::Transcoder => circuit_tracer::open(source, hook_name)?,
            BlockFile::CrossLayer => circuit_tracer::open_cross_layer(source, hook_name)?,
            BlockFile::CrossLayer2 => gemma_scope::open_cross_layer(source, hook_name)?,
        };
        return Ok((source, None));
    }
    let (dir, format) = recognize(source)?;
    Ok(match format {
        Format::SaeLens => (saelens::open(&dir, hook_name)?, None),
        Format::GemmaScope => gemma_scope::open(&dir, hook_name)?,
        Format::GemmaScope2 => (gemma_scope::open_2(&dir, hook_name)?, None),
        Format::Sparsify => (sparsify::open(&dir, hook_name)?, None),
        Format::LlamaScope => (openmoss::open_llama_scope(&dir, hook_name)?, None),
        Format::OpenMoss => (openmoss::open(&dir, hook_name)?, None),
        Format::CircuitTracer => unreachable!("its files are known one by one"),
    })
}

/// Which files of a folder that is elsewhere belong to the SAE of one block in the file `name`: none if it is called as no
/// such file is. Paths are those of all files in the folder.
pub fn files_of_block<'a>(name: &'a str, paths: &[&'a str]) -> Vec<&'a str> {
    if BlockFile::of(name).is_none() {
        return Vec::new();
    }
    let decoder = circuit_tracer::layer_of_encoder(name).map(circuit_tracer::decoder_of);
    let is_needed = |path: &&str| {
        *path == name || *path == circuit_tracer::CONFIG_FILE || Some(*path) == decoder.as_deref()
    };
    paths.iter().copied().filter(is_needed).collect()
}

/// Which files of a folder that is elsewhere belong to the SAE in it, by the paths of all files below it, with
/// slashes. An error calls the folder `shown`.
///
/// # Errors
/// What is no SAE of a known format: a folder of several, pickles, anything else.
pub fn files_of<'a>(paths: &[&'a str], shown: &str) -> Result<Vec<&'a str>> {
    if let Some(format) = format_with(|file| paths.contains(&file)) {
        let is_needed = |path: &&&str| match format {
            Format::LlamaScope if **path == openmoss::LLAMA_SCOPE_WEIGHTS => true,
            _ => {
                let ending = path.rsplit('.').next().unwrap_or_default();
                !path.contains('/') && ["json", "npz", "safetensors"].contains(&ending)
            }
        };
        return Ok(paths.iter().filter(is_needed).copied().collect());
    }
    let folder = |path: &&str| {
        let file_name = path.rsplit('/').next().unwrap_or_default();
        if BlockFile::of(file_name).is_some() {
            return Some(PathBuf::from(path));
        }
        let mut folders = FORMATS
            .iter()
            .filter_map(|(file, _)| path.strip_suffix(file));
        folders
            .find_map(|folder| folder.strip_suffix('/'))
            .map(PathBuf::from)
    };
    let mut below = SaesBelow {
        found: paths
            .iter()
            .filter_map(folder)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        n_left: 0,
    };
    below.found.sort_by_key(|path| by_number(path));
    if !below.found.is_empty() {
        return Err(below.error(Path::new(shown)));
    }
    match paths.iter().map(Path::new).find(|path| is_pickle(path)) {
        Some(path) => Err(pickle_error(path)),
        None => Err(unknown(Path::new(shown))),
    }
}

/// What a file of one block's features is, if it is one.
fn block_file(source: &Path) -> Option<BlockFile> {
    let file_name = source.file_name()?.to_string_lossy();
    BlockFile::of(&file_name).filter(|_| source.is_file())
}

fn recognize(source: &Path) -> Result<(PathBuf, Format)> {
    let kind = std::fs::metadata(source).map_err(Error::io("read", source))?;
    let dir = if kind.is_dir() {
        source.to_owned()
    } else {
        folder_of(source)?
    };
    if let Some(format) = format_of(&dir) {
        return Ok((dir, format));
    }
    let saes = SaesBelow::of(&dir);
    if !saes.found.is_empty() {
        return Err(saes.error(source));
    }
    match pickle_in(&dir) {
        Some(path) => Err(pickle_error(&path)),
        None => Err(unknown(source)),
    }
}

fn format_of(dir: &Path) -> Option<Format> {
    format_with(|file| dir.join(file).exists())
}

/// The format of a folder, by the files that it has.
fn format_with(has: impl Fn(&str) -> bool) -> Option<Format> {
    let (_, format) = FORMATS.iter().find(|(file, _)| has(file))?;
    let is_openmoss =
        *format == Format::SaeLens && !has(saelens::CONFIG_FILE) && has(openmoss::CONFIG_FILE);
    Some(if is_openmoss {
        Format::OpenMoss
    } else {
        *format
    })
}

/// The SAEs in the folders below one that is none itself.
struct SaesBelow {
    found: Vec<PathBuf>,
    /// How many more folders are looked at.
    n_left: usize,
}

impl SaesBelow {
    /// Deep enough for `layer_20/width_16k/average_l0_71` in a folder of repositories.
    const MAX_DEPTH: usize = 5;
    const MAX_FOLDERS: usize = 10_000;
    const SHOWN: usize = 12;

    fn of(dir: &Path) -> Self {
        let mut saes = Self {
            found: Vec::new(),
            n_left: Self::MAX_FOLDERS,
        };
        saes.look(dir, Path::new(""), Self::MAX_DEPTH);
        saes.found.sort_by_key(|path| by_number(path));
        saes
    }

    /// Looks in the folders of `dir`, which is called `name` from where the search began. Links are not
    /// followed.
    fn look(&mut self, dir: &Path, name: &Path, depth: usize) {
        let entries = dir.read_dir().into_iter().flatten().flatten();
        for entry in entries {
            let file_name = entry.file_name();
            if BlockFile::of(&file_name.to_string_lossy()).is_some() {
                self.found.push(name.join(file_name));
            }
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if self.n_left == 0 {
                return;
            }
            self.n_left -= 1;
            let name = name.join(entry.file_name());
            if format_of(&entry.path()).is_some() {
                self.found.push(name);
            } else if depth > 1 {
                self.look(&entry.path(), &name, depth - 1);
            }
        }
    }

    fn error(&self, source: &Path) -> Error {
        let n_found = self.found.len();
        let shown: Vec<String> = self.found[..n_found.min(Self::SHOWN)]
            .iter()
            .map(|path| format!("`{}`", path.display()))
            .collect();
        let more = match n_found.saturating_sub(Self::SHOWN) {
            0 => String::new(),
            n_more => format!(" and {n_more} more"),
        };
        Error::invalid(format!(
            "`{}` is not an SAE, but a folder with {n_found} of them below",
            source.display()
        ))
        .with_hint(format!("give one of these: {}{more}", shown.join(", ")))
    }
}

/// The path with its numbers in the order of numbers: `layers.2` is before `layers.10`.
fn by_number(path: &Path) -> String {
    let mut key = String::new();
    for part in path
        .to_string_lossy()
        .split_inclusive(|c: char| !c.is_ascii_digit())
    {
        let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
        key += &"0".repeat(12_usize.saturating_sub(digits.len()) * usize::from(!digits.is_empty()));
        key += part;
    }
    key
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

/// The error for a file of a crosscoder.
fn crosscoder(source: &Path) -> Error {
    Error::invalid(format!(
        "`{}` belongs to a crosscoder, whose features read several layers at once",
        source.display()
    ))
    .with_hint("use an SAE of one layer, such as those in Gemma Scope 2's folder `resid_post`")
}

fn unknown(source: &Path) -> Error {
    let known: Vec<String> = FORMATS
        .iter()
        .map(|(file, format)| format!("{} (`{file}`)", format.name()))
        .collect();
    Error::invalid(format!(
        "`{}` is not an SAE of a known format",
        source.display()
    ))
    .with_hint(format!(
        "give a folder of one of these: {}, {} (`{}` beside `{}`), or a file of {} (`layer_N.safetensors`, `W_enc_N.safetensors`) or Gemma Scope 2 (`params_layer_N.safetensors`)",
        known.join(", "),
        Format::OpenMoss.name(),
        openmoss::CONFIG_FILE,
        saelens::WEIGHTS_FILE,
        Format::CircuitTracer.name()
    ))
}
