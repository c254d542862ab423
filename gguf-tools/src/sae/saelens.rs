//! Reads SAELens' folders: `cfg.json`, `sae_weights.safetensors`, and `sparsity.safetensors` where
//! there is one.
//!
//! The spellings of SAELens 0.x to 6.54 are read, after `handle_pre_6_0_config` and
//! `read_sae_components_from_disk` in its `loading/pretrained_sae_loaders.py`.

use std::path::Path;

use serde::Deserialize;

use super::gemma_scope;
use super::meta::{Architecture, NormalizeActivations};
use super::schema::LOG_SPARSITY;
use super::source::{FeatureMatrix, Format, Layout, Output, Source, decoder_shape};
use super::tensor_file::TensorFile;
use crate::json_file::read_json;
use crate::{Error, ErrorKind, Result};

pub(super) const CONFIG_FILE: &str = "cfg.json";
pub(super) const WEIGHTS_FILE: &str = "sae_weights.safetensors";
const SPARSITY_FILE: &str = "sparsity.safetensors";

/// The names of the factors on each feature's activation that fine-tuning leaves behind.
const SCALING_FACTORS: [&str; 2] = ["scaling_factor", "finetuning_scaling_factor"];

/// How far a fine-tuning factor may be from 1 to count as none (`torch.allclose`, to which SAELens
/// leaves this).
const ONES_TOLERANCE: f32 = 1e-5;

/// `cfg.json`; keys that make no difference to inference are left out.
#[derive(Deserialize)]
struct Config {
    architecture: Option<String>,
    d_in: Option<usize>,
    d_sae: Option<usize>,
    /// Of a transcoder.
    d_out: Option<usize>,
    hook_name: Option<String>,
    /// Before SAELens 3; may hold `{layer}`.
    hook_point: Option<String>,
    hook_point_layer: Option<LayerIdx>,
    /// Before SAELens 3, and in what version 6 makes of older files.
    activation_fn: Option<String>,
    /// SAELens 3 to 5: the same.
    activation_fn_str: Option<String>,
    activation_fn_kwargs: Option<ActivationArguments>,
    /// With architecture `topk`.
    k: Option<K>,
    rescale_acts_by_decoder_norm: Option<bool>,
    normalize_activations: Option<BoolOrWord>,
    apply_b_dec_to_input: Option<bool>,
    finetuning_scaling_factor: Option<bool>,
    model_name: Option<String>,
    model_from_pretrained_kwargs: Option<ModelArguments>,
    hook_head_index: Option<usize>,
    hook_point_head_index: Option<usize>,
    /// Of a transcoder.
    hook_name_out: Option<String>,
    /// SAELens 6.
    metadata: Option<ConfigMetadata>,
}

#[derive(Deserialize)]
struct ConfigMetadata {
    hook_name: Option<String>,
    hook_name_out: Option<String>,
    /// The module of Hugging Face's that SAELens' `hook_name` of Gemma Scope 2's transcoders stands for.
    hf_hook_name: Option<String>,
    hook_head_index: Option<usize>,
    model_name: Option<String>,
    model_from_pretrained_kwargs: Option<ModelArguments>,
}

/// How `TransformerLens` loads the model (`load_model` in SAELens' `load_model.py`, which asks for no processing
/// beside this).
#[derive(Clone, Copy, Deserialize)]
struct ModelArguments {
    center_writing_weights: Option<bool>,
}

#[derive(Deserialize)]
struct ActivationArguments {
    k: Option<K>,
}

/// How many features stay; Python writes some as `32.0`.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum K {
    Whole(usize),
    Float(f64),
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

/// How an SAE of SAELens encodes; a gated one differs in its tensors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoder {
    Plain(Architecture),
    Gated,
    /// A transcoder's (`saes/transcoder.py`).
    Transcoder {
        architecture: Architecture,
        has_skip: bool,
    },
}

/// SAELens' words for transcoders, with what they encode by and whether they have a skip connection.
const TRANSCODERS: [(&str, Architecture, bool); 4] = [
    ("transcoder", Architecture::Standard, false),
    ("skip_transcoder", Architecture::Standard, true),
    ("jumprelu_transcoder", Architecture::JumpRelu, false),
    ("jumprelu_skip_transcoder", Architecture::JumpRelu, true),
];

/// Reads the configuration and the weights' header of the folder `dir`.
///
/// # Errors
/// Files that are missing or malformed, an architecture or normalisation that is not supported,
/// tensors that are missing, superfluous or of the wrong shape or number type.
pub(super) fn open(dir: &Path, hook_name: Option<&str>) -> Result<Source> {
    let path = dir.join(CONFIG_FILE);
    let config: Config = read_json(&path)?;
    let encoder = config.encoder(&path)?;
    let normalize_activations = config.normalization(&path)?;
    let hook_name = match hook_name {
        Some(name) => name.to_owned(),
        None => config.hook_name(&path)?,
    };

    let mut weights = TensorFile::open(dir.join(WEIGHTS_FILE))?;
    let w_dec = weights.take("W_dec")?;
    let shape @ [d_sae, d_out] = decoder_shape(&w_dec, Layout::FeaturesInRows)?;
    let w_enc = weights.take("W_enc")?;
    let is_transcoder = matches!(encoder, Encoder::Transcoder { .. });
    let d_in = match w_enc.shape() {
        &[d_in, _] if is_transcoder => d_in,
        _ => d_out,
    };
    let sizes = [
        (
            "d_in",
            config.d_in,
            d_in,
            [&w_dec, &w_enc][usize::from(is_transcoder)],
        ),
        ("d_sae", config.d_sae, d_sae, &w_dec),
        (
            "d_out",
            config.d_out.filter(|_| is_transcoder),
            d_out,
            &w_dec,
        ),
    ];
    for (key, said, found, tensor) in sizes {
        if said.is_some_and(|said| said != found) {
            return Err(Error::invalid(format!(
                "`{}`: `{key}` is {}, but {} has shape {:?}",
                path.display(),
                said.unwrap_or_default(),
                tensor.describe(),
                tensor.shape()
            )));
        }
    }
    let w_dec = FeatureMatrix::new(w_dec, Layout::FeaturesInRows, shape)?;
    let w_enc = FeatureMatrix::new(w_enc, Layout::FeaturesInColumns, [d_sae, d_in])?;
    let output = match encoder {
        Encoder::Plain(_) | Encoder::Gated => None,
        Encoder::Transcoder { has_skip, .. } => Some(Output {
            hook_names: vec![config.hook_name_out(&path)?],
            d_out,
            w_skip: match has_skip {
                true => Some(FeatureMatrix::new(
                    weights.take("W_skip")?,
                    Layout::FeaturesInRows,
                    [d_out, d_in],
                )?),
                false => None,
            },
        }),
    };
    let pre = PreActivations::take(encoder, &mut weights, d_sae)?;
    let source = Source {
        format: Format::SaeLens,
        architecture: match encoder {
            Encoder::Plain(architecture) | Encoder::Transcoder { architecture, .. } => architecture,
            Encoder::Gated => Architecture::JumpRelu,
        },
        d_in,
        d_sae,
        hook_name,
        apply_b_dec_to_input: config.apply_b_dec_to_input.unwrap_or(output.is_none()),
        output,
        normalize_activations,
        is_centred: config.is_centred(),
        norm_factor: None,
        w_enc,
        w_dec,
        encoder_factors: pre.factors,
        decoder_factors: scaling_factors(&mut weights, d_sae, &config)?,
        rescale_by_decoder_norm: config.rescale_acts_by_decoder_norm == Some(true),
        b_enc: pre.biases,
        b_dec: weights.take_vector("b_dec", d_out)?,
        threshold: pre.thresholds,
        log_sparsity: read_log_sparsity(&dir.join(SPARSITY_FILE), d_sae),
        model_name: config
            .metadata
            .and_then(|metadata| metadata.model_name)
            .or(config.model_name),
    };
    weights.check_empty(&format!("architecture `{}`", encoder.name()))?;
    Ok(source)
}

/// What becomes of the products with the encoder's rows: `h = factor · product + bias`, active above
/// a threshold.
struct PreActivations {
    factors: Vec<f32>,
    biases: Vec<f32>,
    thresholds: Option<Vec<f32>>,
}

impl PreActivations {
    /// A gated SAE (Rajamanoharan et al. 2024, arXiv:2404.16014; `gated_sae.py` in SAELens) is active
    /// where `p + b_gate > 0` for the product `p`, with the activation
    /// `h = exp(r_mag)·p + b_mag` where that is above 0. As `exp(r_mag)` is above 0, the first says
    /// `h > b_mag − b_gate·exp(r_mag)`: it is a jumprelu SAE with that threshold.
    fn take(encoder: Encoder, weights: &mut TensorFile, d_sae: usize) -> Result<Self> {
        let mut vector = |name| weights.take_vector(name, d_sae);
        match encoder {
            Encoder::Plain(architecture) | Encoder::Transcoder { architecture, .. } => Ok(Self {
                factors: Vec::new(),
                biases: vector("b_enc")?,
                thresholds: match architecture {
                    Architecture::JumpRelu => Some(vector("threshold")?),
                    Architecture::Standard | Architecture::TopK { .. } => None,
                },
            }),
            Encoder::Gated => {
                let mut factors = vector("r_mag")?;
                factors.iter_mut().for_each(|r_mag| *r_mag = r_mag.exp());
                let biases = vector("b_mag")?;
                let gates = vector("b_gate")?;
                let thresholds = biases.iter().zip(&gates).zip(&factors);
                Ok(Self {
                    thresholds: Some(
                        thresholds
                            .map(|((b_mag, b_gate), factor)| b_mag - b_gate * factor)
                            .collect(),
                    ),
                    factors,
                    biases,
                })
            }
        }
    }
}

impl Encoder {
    fn transcoder(&(_, architecture, has_skip): &(&str, Architecture, bool)) -> Self {
        Self::Transcoder {
            architecture,
            has_skip,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain(architecture) => architecture.name(),
            Self::Gated => "gated",
            Self::Transcoder { .. } => {
                let mut known = TRANSCODERS
                    .iter()
                    .filter(|known| self == Self::transcoder(known));
                known.next().expect("the table holds every one").0
            }
        }
    }
}

/// The factor on each decoder row; empty where there is none. SAELens used to write a tensor of
/// ones, which says nothing.
fn scaling_factors(weights: &mut TensorFile, d_sae: usize, config: &Config) -> Result<Vec<f32>> {
    let Some(name) = SCALING_FACTORS.into_iter().find(|name| weights.has(name)) else {
        return Ok(Vec::new());
    };
    let factors = weights.take_vector(name, d_sae)?;
    if factors
        .iter()
        .all(|factor| (factor - 1.0).abs() <= ONES_TOLERANCE)
    {
        return Ok(Vec::new());
    }
    if config.finetuning_scaling_factor != Some(true) {
        return Err(Error::invalid(format!(
            "tensor `{name}` of `{}` holds factors other than 1, but `finetuning_scaling_factor` is false in `{CONFIG_FILE}`",
            weights.path().display(),
        )));
    }
    Ok(factors)
}

/// The error for a transcoder in a format of which none is known to be published.
pub(super) fn transcoder(path: &Path, hook_in: &str, hook_out: &str) -> Error {
    Error::invalid(format!(
        "`{}`: this is a transcoder from `{hook_in}` to `{hook_out}`, which is not read in this format",
        path.display()
    ))
    .with_hint("transcoders of SAELens (architecture `transcoder` and its kin), Gemma Scope, sparsify and circuit-tracer are read")
}

impl Config {
    /// The architecture. Before SAELens 6, a top-k SAE was a standard one whose activation function
    /// was `topk`.
    fn encoder(&self, path: &Path) -> Result<Encoder> {
        let word = self.architecture.as_deref().unwrap_or("standard");
        let metadata = self.metadata.as_ref();
        let hook_out = metadata.and_then(|metadata| metadata.hook_name_out.as_ref());
        let known = TRANSCODERS.iter().find(|known| known.0 == word);
        if known.is_none()
            && let Some(out) = hook_out.or(self.hook_name_out.as_ref())
        {
            let hook_in = self.hook_name(path).unwrap_or_default();
            return Err(transcoder(path, &hook_in, out));
        }
        let head = metadata.and_then(|metadata| metadata.hook_head_index);
        if let Some(head) = head.or(self.hook_head_index).or(self.hook_point_head_index) {
            return Err(Error::invalid(format!(
                "`{}`: it reads attention head {head} alone, which is not supported",
                path.display()
            ))
            .with_hint("use an SAE of all heads, or of the residual stream"));
        }
        let activation_fn = self
            .activation_fn
            .as_ref()
            .or(self.activation_fn_str.as_ref());
        let is_topk = match (word, activation_fn.map(String::as_str)) {
            (_, Some("topk")) | ("topk", _) => true,
            (_, None | Some("relu")) => false,
            (_, Some(word)) => {
                let key = self
                    .activation_fn
                    .as_ref()
                    .map_or("activation_fn_str", |_| "activation_fn");
                return Err(unsupported(path, key, word, "`relu` and `topk`"));
            }
        };
        if let (Some(known), false) = (known, is_topk) {
            return Ok(Encoder::transcoder(known));
        }
        match word {
            "standard" | "topk" if is_topk => {
                Ok(Encoder::Plain(Architecture::TopK { k: self.k(path)? }))
            }
            "standard" => Ok(Encoder::Plain(Architecture::Standard)),
            "jumprelu" if !is_topk => Ok(Encoder::Plain(Architecture::JumpRelu)),
            "gated" if !is_topk => Ok(Encoder::Gated),
            word if word.contains("batchtopk") => Err(Error::invalid(format!(
                "`{}`: `architecture` is `{word}`: this is a checkpoint of the training, in which features depend on the rest of the batch",
                path.display()
            ))
            .with_hint("save it for inference, with SAELens: `TrainingSAE.load_from_disk(folder).save_inference_model(other_folder)` makes a `jumprelu` SAE of it")),
            word => Err(unsupported(
                path,
                "architecture",
                word,
                "`standard`, `jumprelu` (which BatchTopK SAEs are saved as), `topk`, `gated`, and of transcoders `transcoder`, `skip_transcoder`, `jumprelu_transcoder` and `jumprelu_skip_transcoder`",
            )),
        }
    }

    /// Whether the model's rows had their mean subtracted, where the file says it.
    fn is_centred(&self) -> Option<bool> {
        let metadata = self.metadata.as_ref();
        let of_metadata = metadata.and_then(|metadata| metadata.model_from_pretrained_kwargs);
        of_metadata
            .or(self.model_from_pretrained_kwargs)?
            .center_writing_weights
    }

    fn k(&self, path: &Path) -> Result<usize> {
        let arguments = self.activation_fn_kwargs.as_ref();
        match arguments.and_then(|arguments| arguments.k).or(self.k) {
            Some(K::Whole(k)) => Ok(k),
            Some(K::Float(k)) if k.fract() == 0.0 && k >= 0.0 => Ok(k as usize),
            Some(K::Float(k)) => Err(unsupported(path, "k", &k.to_string(), "a whole number")),
            None => Err(Error::invalid(format!(
                "`{}` has no key `k`, which says how many features a top-k SAE keeps",
                path.display()
            ))),
        }
    }

    fn normalization(&self, path: &Path) -> Result<NormalizeActivations> {
        match &self.normalize_activations {
            None | Some(BoolOrWord::Bool(false)) => Ok(NormalizeActivations::None),
            Some(BoolOrWord::Bool(true)) => Ok(NormalizeActivations::ExpectedAverageOnlyIn),
            Some(BoolOrWord::Word(word)) if word == "covariance_whitening" => {
                Err(Error::invalid(format!(
                    "`{}`: the SAE reads whitened activations (`covariance_whitening`), but the whitening matrix is not in the files",
                    path.display()
                ))
                .with_hint("fold it into the weights with `fold_activation_whitening` of SAELens and save the SAE again"))
            }
            Some(BoolOrWord::Word(word)) => {
                NormalizeActivations::from_name(word).ok_or_else(|| {
                    unsupported(
                        path,
                        "normalize_activations",
                        word,
                        "`none`, `expected_average_only_in`, `constant_norm_rescale` and `layer_norm`",
                    )
                })
            }
        }
    }

    /// Where a transcoder writes.
    fn hook_name_out(&self, path: &Path) -> Result<String> {
        let metadata = self.metadata.as_ref();
        let of_metadata = metadata.and_then(|metadata| metadata.hook_name_out.as_ref());
        let name = of_metadata.or(self.hook_name_out.as_ref());
        name.cloned().ok_or_else(|| {
            Error::invalid(format!(
                "`{}` has no key `hook_name_out`, which says where the transcoder writes",
                path.display()
            ))
            .with_hint(
                "add it to its `metadata`, such as `\"hook_name_out\": \"blocks.12.hook_mlp_out\"`",
            )
        })
    }

    fn hook_name(&self, path: &Path) -> Result<String> {
        let metadata = self.metadata.as_ref();
        let spellings = [
            metadata.and_then(|metadata| metadata.hook_name.as_ref()),
            self.hook_name.as_ref(),
            self.hook_point.as_ref(),
        ];
        let Some(name) = spellings.into_iter().flatten().next() else {
            return Err(
                Error::invalid(format!("`{}` has no key `hook_name`", path.display()))
                    .of_kind(ErrorKind::HookPointMissing)
                    .with_hint("name the hook point, such as `blocks.12.hook_resid_post`"),
            );
        };
        // SAELens calls what its Gemma Scope 2 transcoders read `hook_mlp_in`, which is another place in
        // TransformerLens.
        let module = metadata.and_then(|metadata| metadata.hf_hook_name.as_deref());
        if name.ends_with(".hook_mlp_in")
            && let Some(name) = module.and_then(gemma_scope::hook_of_module)
        {
            return Ok(name);
        }
        Ok(match self.hook_point_layer {
            Some(LayerIdx::Plain(layer) | LayerIdx::Listed([layer])) => {
                name.replace("{layer}", &layer.to_string())
            }
            None => name.clone(),
        })
    }
}

/// The error for a key of a configuration with a value that is not read.
pub(super) fn unsupported(path: &Path, key: &str, word: &str, supported: &str) -> Error {
    Error::invalid(format!(
        "`{}`: `{key}` is `{word}`, which is not supported",
        path.display()
    ))
    .with_hint(format!("supported: {supported}"))
}

/// Nothing computes with these numbers, so a file that is not as it should be is left out.
fn read_log_sparsity(path: &Path, d_sae: usize) -> Option<Vec<f32>> {
    if !path.exists() {
        return None;
    }
    TensorFile::open(path.to_owned())
        .and_then(|mut file| file.take_vector("sparsity", d_sae))
        .inspect_err(|error| log::warn!("`{LOG_SPARSITY}` is left out: {error}"))
        .ok()
}
