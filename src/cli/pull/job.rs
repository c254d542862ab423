//! What is to be pulled, and what the folder is called.

use clap::ValueEnum;
use gguf_tools::gguf::TensorType;
use std::path::Path;

use llava_sae_cpp::{Error, ErrorKind, ModelFiles};
use llava_sae_hub::models::{PAIRS, Pair};
use llava_sae_hub::{LabelsAddress, ModelAddress, SaeAddress};
use serde::{Deserialize, Serialize};

use super::super::convert::{ModelType, SMALL_TYPES, Types};

/// What a folder is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Recipe {
    pub(super) model: Option<ModelAddress>,
    pub(super) sae: Option<SaeAddress>,
    pub(super) labels: Option<LabelsAddress>,
    pub(super) norm_factor: Option<f32>,
    pub(super) hook_name: Option<String>,
}

impl Recipe {
    /// That of a published pair.
    pub(super) fn of_pair(name: &str) -> Option<Self> {
        let pair = Pair::find(name)?;
        Some(Self {
            model: Some(pair.model()),
            sae: Some(pair.sae()),
            labels: pair.labels(),
            norm_factor: None,
            hook_name: None,
        })
    }
}

/// A folder to make.
pub(super) struct Job {
    /// What it is called.
    pub(super) name: String,
    pub(super) recipe: Recipe,
    pub(super) types: Types,
}

/// Longest part of a name that is made of an address.
const MAX_NAME: usize = 60;

impl Job {
    /// A folder of that name, or of one that is made of the addresses and differs where they or the types do.
    ///
    /// # Errors
    /// A name that is a path.
    pub(super) fn new(
        name: Option<&str>,
        recipe: Recipe,
        types: Types,
    ) -> llava_sae_cpp::Result<Self> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => made_name(&recipe, types),
        };
        let is_harmless = |c: char| c.is_alphanumeric() || "-_.+ ".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_harmless) {
            return Err(Error::invalid(format!("`{name}` is no name for a model"))
                .with_hint("a name has letters, digits, `-`, `_`, `.` and `+`"));
        }
        Ok(Self {
            name,
            recipe,
            types,
        })
    }

    /// The published pair of that name, if it is one as published.
    pub(super) fn pair(&self) -> Option<&'static Pair> {
        let pair = Pair::find(&self.name)?;
        (Recipe::of_pair(&self.name).as_ref() == Some(&self.recipe)).then_some(pair)
    }

    /// A command that uses the folder, which lies at `path`.
    pub(super) fn next_command(&self, path: &Path) -> String {
        let name = &self.name;
        let files = ModelFiles::find_sae_or_none(Some(path), None, None, Vec::new());
        let asked = match files.is_ok_and(|files| files.mmproj.is_none()) {
            true => "--prompt TEXT",
            false => "IMAGE",
        };
        match (&self.recipe.model, &self.recipe.sae) {
            (Some(_), Some(_)) => format!("llava-sae-cpp -d {name} {asked}"),
            (_, None) => format!("llava-sae-cpp -d {name} --sae SAE.gguf {asked}"),
            (None, _) => {
                format!("llava-sae-cpp -d {name} -m MODEL.gguf --mmproj MMPROJ.gguf IMAGE")
            }
        }
    }
}

fn made_name(recipe: &Recipe, types: Types) -> String {
    let whole = serde_json::to_string(&(recipe, TypeNames::from(types))).expect("plain data");
    let hash = blake3::hash(whole.as_bytes()).to_hex();
    let model = recipe.model.as_ref().map(|model| model.repo.name());
    let sae = recipe.sae.as_ref().map(|sae| match &sae.published {
        Some(published) => published.release.as_str(),
        None => sae.repo.name(),
    });
    let parts = [model, sae, Some(&hash[..8])].into_iter().flatten();
    let parts = parts.map(|part| part.chars().take(MAX_NAME).collect::<String>());
    parts.collect::<Vec<_>>().join("+")
}

/// The error of a name that is neither a folder nor that of a published model.
pub(super) fn unknown(name: &str) -> Error {
    let what = format!("there is neither a folder nor a published model called `{name}`");
    let known: Vec<_> = PAIRS
        .iter()
        .map(|pair| format!("`{}`", pair.name))
        .collect();
    Error::new(ErrorKind::NotPublished, what).with_hint(format!(
        "published are {} (`llava-sae-cpp pull --list`); others are given by their addresses (`--hf-repo`, `--sae-hf`)",
        known.join(", ")
    ))
}

/// Types by their names, as `sources.json` has them.
#[derive(Serialize, Deserialize)]
pub(super) struct TypeNames {
    model: String,
    mmproj: String,
    sae: String,
}

impl From<Types> for TypeNames {
    fn from(types: Types) -> Self {
        Self {
            model: types.model.name().to_owned(),
            mmproj: types.mmproj.name().to_owned(),
            sae: types.sae.name().to_owned(),
        }
    }
}

impl TryFrom<TypeNames> for Types {
    type Error = String;

    fn try_from(names: TypeNames) -> Result<Self, String> {
        let small = |name: &str| {
            let mut known = SMALL_TYPES.into_iter();
            known
                .find(|known| known.name() == name)
                .ok_or_else(|| format!("`{name}` is no type"))
        };
        Ok(Self {
            model: ModelType::from_str(&names.model, false)?,
            mmproj: small(&names.mmproj)?,
            sae: small(&names.sae)?,
        })
    }
}

impl Default for Types {
    fn default() -> Self {
        Self {
            model: ModelType::Q8_0,
            mmproj: TensorType::F16,
            sae: TensorType::F16,
        }
    }
}
