//! The tensors of a checkpoint: which files hold them, and their names in one spelling.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::json_file::read_json;
use crate::weights::{StoredTensor, read_header};
use crate::{Error, Result};

/// The tensors of a checkpoint by their names, in one spelling (see [`plain_name`]).
#[derive(Debug)]
pub(super) struct Checkpoint {
    dir: PathBuf,
    tensors: BTreeMap<String, StoredTensor>,
}

/// Which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

const INDEX_FILE: &str = "model.safetensors.index.json";
const SINGLE_FILE: &str = "model.safetensors";

/// One of these is in every checkpoint: the index of its weights, or the weights.
pub const WEIGHT_FILES: [&str; 2] = [INDEX_FILE, SINGLE_FILE];

/// The files of the weights in the checkpoint folder `dir`: those that `model.safetensors.index.json` names, or
/// `model.safetensors`. Other files are never looked at, since published folders hold foreign weights beside
/// their own.
///
/// # Errors
/// An index that is malformed or names files elsewhere.
pub fn weight_files(dir: &Path) -> Result<BTreeSet<String>> {
    let index_path = dir.join(INDEX_FILE);
    if !index_path.exists() {
        return Ok(BTreeSet::from([SINGLE_FILE.to_owned()]));
    }
    let index: Index = read_json(&index_path)?;
    index.check_files(&index_path)?;
    Ok(index.weight_map.into_values().collect())
}

impl Index {
    fn check_files(&self, path: &Path) -> Result<()> {
        let is_elsewhere = |file: &&String| Path::new(file).file_name() != Some(file.as_ref());
        match self.weight_map.values().find(is_elsewhere) {
            None => Ok(()),
            Some(file) => Err(Error::invalid(format!(
                "`{}` names `{file}`, which is not a file of that folder",
                path.display()
            ))),
        }
    }
}

impl Checkpoint {
    /// Reads the headers of `dir`'s weights, in the files of [`weight_files`].
    ///
    /// # Errors
    /// Missing or malformed files, and names that the index and the files do not agree on.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let index_path = dir.join(INDEX_FILE);
        let single_path = dir.join(SINGLE_FILE);
        let mut stored = Vec::new();
        if index_path.exists() {
            let index: Index = read_json(&index_path)?;
            index.check_files(&index_path)?;
            for file in index.weight_map.values().collect::<BTreeSet<_>>() {
                let mut tensors = read_header(&dir.join(file))?;
                for (name, _) in index.weight_map.iter().filter(|(_, f)| *f == file) {
                    stored.push(tensors.remove(name).ok_or_else(|| {
                        Error::invalid(format!(
                            "`{}` has no tensor `{name}`, which `{}` lists",
                            dir.join(file).display(),
                            index_path.display()
                        ))
                    })?);
                }
            }
        } else if single_path.exists() {
            stored.extend(read_header(&single_path)?.into_values());
        } else {
            return Err(Error::invalid(format!(
                "`{}` has neither `{INDEX_FILE}` nor `{SINGLE_FILE}`",
                dir.display()
            ))
            .with_hint(
                "weights in another format must be saved again: `model.save_pretrained(folder)`",
            ));
        }

        let mut tensors = BTreeMap::new();
        for tensor in stored {
            let name = plain_name(tensor.name());
            if let Some(twin) = tensors.insert(name, tensor) {
                return Err(Error::invalid(format!(
                    "{} is present twice, under two spellings",
                    twin.describe()
                )));
            }
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            tensors,
        })
    }

    /// Warns where there is a `model.safetensors` beside the files that the index names.
    pub(super) fn warn_of_unused_file(&self) {
        let path = self.dir.join(SINGLE_FILE);
        if path.exists() && self.tensors.values().all(|tensor| tensor.path() != path) {
            log::warn!(
                "`{}` is not used: the weights are in the files that `{INDEX_FILE}` names",
                path.display()
            );
        }
    }

    /// The tensor of that plain name, if there is one.
    pub(super) fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// The tensor of that plain name.
    ///
    /// # Errors
    /// Where there is none.
    pub(super) fn require(&self, name: &str) -> Result<&StoredTensor> {
        self.get(name).ok_or_else(|| {
            Error::invalid(format!("`{}` has no tensor `{name}`", self.dir.display()))
                .with_hint("the checkpoint is incomplete, or not of the model that its `config.json` describes")
        })
    }

    /// All tensors with their plain names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
    }
}

/// Brings the spellings of transformers 4.38 to 5.x into one: `language_model.layers…`,
/// `vision_tower.encoder…`, `multi_modal_projector…`, `lm_head.weight`.
///
/// Up to 4.51 a model was written as `language_model.model.layers…`, `language_model.lm_head…` and
/// `vision_tower.vision_model.encoder…`; later ones have `model.` in front of each part instead,
/// and 5 leaves out `vision_model.`. Idefics3's and SmolVLM's are `text_model` and `vision_model`.
fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("model.").unwrap_or(name);
    if let Some(text) = name.strip_prefix("text_model.") {
        return format!("language_model.{text}");
    }
    if let Some(vision) = name.strip_prefix("vision_model.") {
        return format!("vision_tower.{vision}");
    }
    if let Some(text) = name.strip_prefix("language_model.") {
        let text = text.strip_prefix("model.").unwrap_or(text);
        return match text {
            "lm_head.weight" => text.to_owned(),
            _ => format!("language_model.{text}"),
        };
    }
    if let Some(vision) = name.strip_prefix("vision_tower.") {
        return format!(
            "vision_tower.{}",
            vision.strip_prefix("vision_model.").unwrap_or(vision)
        );
    }
    name.to_owned()
}
