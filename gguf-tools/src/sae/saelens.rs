//! Reads SAELens' folders: `cfg.json`, `sae_weights.safetensors`, and `sparsity.safetensors` where
//! there is one.
//!
//! The spellings of SAELens 0.x to 6.54 are read, after `handle_pre_6_0_config` and
//! `read_sae_components_from_disk` in its `loading/pretrained_sae_loaders.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::schema::{Architecture, LOG_SPARSITY, NormalizeActivations};
use crate::input_file::read_json;
use crate::weights::{StoredTensor, read_header};
use crate::{Error, Result};

pub(super) const CONFIG_FILE: &str = "cfg.json";
pub(super) const WEIGHTS_FILE: &str = "sae_weights.safetensors";
const SPARSITY_FILE: &str = "sparsity.safetensors";

/// Tensors that every architecture read here has.
const TENSORS: [&str; 4] = ["W_enc", "b_enc", "W_dec", "b_dec"];

/// The names of the factors on each feature's activation that fine-tuning leaves behind.
const SCALING_FACTORS: [&str; 2] = ["scaling_factor", "finetuning_scaling_factor"];

/// A SAELens folder, with what it says checked and its tensors' shapes too.
#[derive(Debug)]
pub(super) struct SaeLens {
    pub(super) architecture: Architecture,
    pub(super) d_in: usize,
    pub(super) d_sae: usize,
    pub(super) hook_name: String,
    pub(super) apply_b_dec_to_input: bool,
    pub(super) normalize_activations: NormalizeActivations,
    pub(super) model_name: Option<String>,
    /// `[d_in, d_sae]`.
    pub(super) w_enc: StoredTensor,
    /// `[d_sae]`.
    pub(super) b_enc: StoredTensor,
    /// `[d_sae, d_in]`.
    pub(super) w_dec: StoredTensor,
    /// `[d_in]`.
    pub(super) b_dec: StoredTensor,
    /// `[d_sae]`, with architecture `jumprelu`.
    pub(super) threshold: Option<StoredTensor>,
    /// `[d_sae]`: a factor on each activation before it is decoded.
    pub(super) scaling_factor: Option<StoredTensor>,
    /// Whether `cfg.json` says that `scaling_factor` is more than ones.
    pub(super) finetuning_scaling_factor: bool,
    /// `[d_sae]`: log10 of how often each feature fired in training.
    pub(super) log_sparsity: Option<Vec<f32>>,
}

/// `cfg.json`; keys that make no difference to inference are left out.
#[derive(Deserialize)]
struct Config {
    architecture: Option<String>,
    d_in: Option<usize>,
    d_sae: Option<usize>,
    hook_name: Option<String>,
    /// Before SAELens 3; may hold `{layer}`.
    hook_point: Option<String>,
    hook_point_layer: Option<LayerIdx>,
    /// Before SAELens 3, and in what version 6 makes of older files.
    activation_fn: Option<String>,
    /// SAELens 3 to 5: the same.
    activation_fn_str: Option<String>,
    normalize_activations: Option<BoolOrWord>,
    apply_b_dec_to_input: Option<bool>,
    finetuning_scaling_factor: Option<bool>,
    model_name: Option<String>,
    /// SAELens 6.
    metadata: Option<ConfigMetadata>,
}

#[derive(Deserialize)]
struct ConfigMetadata {
    hook_name: Option<String>,
    model_name: Option<String>,
}

/// An index, or a list with one.
#[derive(Deserialize)]
#[serde(untagged)]
enum LayerIdx {
    Plain(usize),
    Listed([usize; 1]),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum BoolOrWord {
    /// Before SAELens 3: whether to do what is now `expected_average_only_in`.
    Bool(bool),
    Word(String),
}

impl SaeLens {
    /// Reads the configuration and the weights' header of the folder `dir`.
    ///
    /// # Errors
    /// Files that are missing or malformed, an architecture or normalisation that is not supported,
    /// tensors that are missing, superfluous or of the wrong shape or number type.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let config_path = dir.join(CONFIG_FILE);
        let config: Config = read_json(&config_path)?;
        let architecture = config.architecture(&config_path)?;
        config.check_activation_fn(&config_path)?;
        let normalize_activations = config.normalization(&config_path)?;
        let hook_name = config.hook_name(&config_path)?;

        let mut weights = Weights::open(dir.join(WEIGHTS_FILE))?;
        let w_dec = weights.take("W_dec")?;
        let &[d_sae, d_in] = w_dec.shape() else {
            return Err(Error::invalid(format!(
                "{} has shape {:?}, expected [d_sae, d_in]",
                w_dec.describe(),
                w_dec.shape()
            )));
        };
        for (key, said, found) in [("d_in", config.d_in, d_in), ("d_sae", config.d_sae, d_sae)] {
            if said.is_some_and(|said| said != found) {
                return Err(Error::invalid(format!(
                    "`{}`: `{key}` is {}, but {} has shape {:?}",
                    config_path.display(),
                    said.unwrap_or_default(),
                    w_dec.describe(),
                    w_dec.shape()
                )));
            }
        }
        w_dec.check(&[d_sae, d_in])?;
        let sae = Self {
            architecture,
            d_in,
            d_sae,
            hook_name,
            apply_b_dec_to_input: config.apply_b_dec_to_input.unwrap_or(true),
            normalize_activations,
            model_name: config
                .metadata
                .and_then(|metadata| metadata.model_name)
                .or(config.model_name),
            w_enc: weights.take_checked("W_enc", &[d_in, d_sae])?,
            b_enc: weights.take_checked("b_enc", &[d_sae])?,
            w_dec,
            b_dec: weights.take_checked("b_dec", &[d_in])?,
            threshold: match architecture {
                Architecture::Standard => None,
                Architecture::JumpRelu => Some(weights.take_checked("threshold", &[d_sae])?),
            },
            scaling_factor: SCALING_FACTORS
                .into_iter()
                .find(|name| weights.tensors.contains_key(*name))
                .map(|name| weights.take_checked(name, &[d_sae]))
                .transpose()?,
            finetuning_scaling_factor: config.finetuning_scaling_factor.unwrap_or(false),
            log_sparsity: read_log_sparsity(&dir.join(SPARSITY_FILE), d_sae),
        };
        weights.check_empty(architecture)?;
        Ok(sae)
    }
}

impl Config {
    fn architecture(&self, path: &Path) -> Result<Architecture> {
        let word = self.architecture.as_deref().unwrap_or("standard");
        Architecture::from_name(word)
            .ok_or_else(|| unsupported(path, "architecture", word, "`standard` and `jumprelu`"))
    }

    fn check_activation_fn(&self, path: &Path) -> Result<()> {
        for (key, word) in [
            ("activation_fn", &self.activation_fn),
            ("activation_fn_str", &self.activation_fn_str),
        ] {
            match word.as_deref() {
                None | Some("relu") => {}
                Some(word) => return Err(unsupported(path, key, word, "`relu`")),
            }
        }
        Ok(())
    }

    fn normalization(&self, path: &Path) -> Result<NormalizeActivations> {
        match &self.normalize_activations {
            None | Some(BoolOrWord::Bool(false)) => Ok(NormalizeActivations::None),
            Some(BoolOrWord::Bool(true)) => Ok(NormalizeActivations::ExpectedAverageOnlyIn),
            Some(BoolOrWord::Word(word)) => {
                NormalizeActivations::from_name(word).ok_or_else(|| {
                    unsupported(
                        path,
                        "normalize_activations",
                        word,
                        "`none` and `expected_average_only_in`",
                    )
                })
            }
        }
    }

    fn hook_name(&self, path: &Path) -> Result<String> {
        let metadata = self.metadata.as_ref();
        let spellings = [
            metadata.and_then(|metadata| metadata.hook_name.as_ref()),
            self.hook_name.as_ref(),
            self.hook_point.as_ref(),
        ];
        let Some(name) = spellings.into_iter().flatten().next() else {
            return Err(Error::invalid(format!(
                "`{}` has no key `hook_name`",
                path.display()
            )));
        };
        Ok(match self.hook_point_layer {
            Some(LayerIdx::Plain(layer) | LayerIdx::Listed([layer])) => {
                name.replace("{layer}", &layer.to_string())
            }
            None => name.clone(),
        })
    }
}

fn unsupported(path: &Path, key: &str, word: &str, supported: &str) -> Error {
    Error::invalid(format!(
        "`{}`: `{key}` is `{word}`, which is not supported",
        path.display()
    ))
    .with_hint(format!("supported: {supported}"))
}

/// The tensors of a file that are not taken yet.
struct Weights {
    path: PathBuf,
    tensors: BTreeMap<String, StoredTensor>,
}

impl Weights {
    fn open(path: PathBuf) -> Result<Self> {
        let tensors = read_header(&path)?;
        Ok(Self { path, tensors })
    }

    fn take(&mut self, name: &str) -> Result<StoredTensor> {
        self.tensors.remove(name).ok_or_else(|| {
            Error::invalid(format!("`{}` has no tensor `{name}`", self.path.display()))
        })
    }

    fn take_checked(&mut self, name: &str, shape: &[usize]) -> Result<StoredTensor> {
        let tensor = self.take(name)?;
        tensor.check(shape)?;
        Ok(tensor)
    }

    /// Refuses tensors that are left over: the SAE computes something that this program does not
    /// know of, whatever its configuration calls it.
    fn check_empty(&self, architecture: Architecture) -> Result<()> {
        match self.tensors.values().next() {
            None => Ok(()),
            Some(tensor) => Err(Error::invalid(format!(
                "{} does not belong to architecture `{}`",
                tensor.describe(),
                architecture.name()
            ))
            .with_hint(format!(
                "expected {} and, with `jumprelu`, threshold",
                TENSORS.join(", ")
            ))),
        }
    }
}

/// Nothing computes with these numbers, so a file that is not as it should be is left out.
fn read_log_sparsity(path: &Path, d_sae: usize) -> Option<Vec<f32>> {
    if !path.exists() {
        return None;
    }
    Weights::open(path.to_owned())
        .and_then(|mut file| file.take_checked("sparsity", &[d_sae]))
        .and_then(|tensor| tensor.read_all())
        .inspect_err(|error| log::warn!("`{LOG_SPARSITY}` is left out: {error}"))
        .ok()
}
