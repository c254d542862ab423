//! Reads the SAEs of OpenMOSS' Language-Model-SAEs: Llama Scope's (`hyperparams.json` and
//! `checkpoints/final.safetensors`) and newer ones (`config.json` and `sae_weights.safetensors`).
//!
//! Llama Scope after `get_llama_scope_config_from_hf` and `llama_scope_sae_huggingface_loader` in
//! SAELens' `loading/pretrained_sae_loaders.py` (6.54): one threshold for all features, which is meant
//! for activations of the model's own size, and so is multiplied with the norm factor.
//!
//! The newer ones after `encode` and `compute_norm_factor` in Language-Model-SAEs'
//! `src/lm_saes/sae.py`, later `models/sae.py`:
//!
//! ```text
//! h = (s·x)·W_enc + b_enc,   s = √d_model / the data set's average norm, from a tensor of that name
//! a = h where h·‖w_dec‖ > exp(log_jumprelu_threshold), else 0; without `sparsity_include_decoder_norm`
//!     where h is above it
//! ```
//!
//! With top-k, the `k` largest `h·‖w_dec‖` stay, and become the activations of decoder rows of unit
//! length, as `standardize_parameters_of_dataset_norm` and `transform_to_unit_decoder_norm` make them
//! for inference.

use std::path::Path;

use serde::Deserialize;

use super::meta::{Architecture, NormalizeActivations};
use super::saelens::{transcoder, unsupported};
use super::source::{FeatureMatrix, Format, Layout, Source, decoder_shape};
use super::tensor_file::TensorFile;
use crate::json_file::read_json;
use crate::weights::StoredTensor;
use crate::{Error, ErrorKind, Result};

pub(super) const LLAMA_SCOPE_CONFIG: &str = "hyperparams.json";
pub(super) const LLAMA_SCOPE_WEIGHTS: &str = "checkpoints/final.safetensors";
pub(super) const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "sae_weights.safetensors";

/// Weights as `torch.nn.Linear` has them, and as plain matrices: encoder, its bias, decoder, its bias,
/// and where the matrices have their features.
type Names = ([&'static str; 4], [Layout; 2]);
const LINEAR: Names = (
    [
        "encoder.weight",
        "encoder.bias",
        "decoder.weight",
        "decoder.bias",
    ],
    [Layout::FeaturesInRows, Layout::FeaturesInColumns],
);
const PLAIN: Names = (
    ["W_E", "b_E", "W_D", "b_D"],
    [Layout::FeaturesInColumns, Layout::FeaturesInRows],
);

/// The names of the thresholds' logarithms.
const LOG_THRESHOLDS: [&str; 2] = [
    "log_jumprelu_threshold",
    "activation_function.log_jumprelu_threshold",
];

/// What average norms are called, before the hook point.
const AVERAGE_NORM: &str = "dataset_average_activation_norm.";

/// The configuration; keys that make no difference to inference are left out.
#[derive(Deserialize)]
struct Config {
    sae_type: Option<String>,
    hook_point_in: Option<String>,
    hook_point_out: Option<String>,
    act_fn: Option<String>,
    top_k: Option<usize>,
    jump_relu_threshold: Option<f32>,
    norm_activation: Option<String>,
    dataset_average_activation_norm: Option<AverageNorm>,
    use_glu_encoder: Option<bool>,
    use_decoder_bias: Option<bool>,
    apply_decoder_bias_to_pre_encoder: Option<bool>,
    sparsity_include_decoder_norm: Option<bool>,
}

#[derive(Deserialize)]
struct AverageNorm {
    r#in: f32,
}

/// Reads a folder of Llama Scope.
///
/// # Errors
/// Files that are missing or malformed, a transcoder, no hook point, what is no plain jumprelu SAE.
pub(super) fn open_llama_scope(dir: &Path, hook_name: Option<&str>) -> Result<Source> {
    let path = dir.join(LLAMA_SCOPE_CONFIG);
    let config: Config = read_json(&path)?;
    let refused = |what: String| Err(Error::invalid(format!("`{}`: {what}", path.display())));
    if let Some(word) = config.act_fn.as_ref().filter(|word| *word != "jumprelu") {
        return refused(format!(
            "`act_fn` is `{word}`, but only `jumprelu` is supported"
        ));
    }
    let (Some(threshold), Some(AverageNorm { r#in: average })) = (
        config.jump_relu_threshold,
        &config.dataset_average_activation_norm,
    ) else {
        return refused(
            "`jump_relu_threshold` or `dataset_average_activation_norm` is missing".to_owned(),
        );
    };
    if !(average.is_finite() && *average > 0.0 && threshold.is_finite()) {
        return refused(format!(
            "the average norm {average} and the threshold {threshold} must be finite, and the norm above 0"
        ));
    }
    let hook_name = config.hook_name(&path, dir, hook_name)?;
    let mut weights = TensorFile::open(dir.join(LLAMA_SCOPE_WEIGHTS))?;
    let source = read(Format::LlamaScope, &config, &mut weights, hook_name)?;
    weights.check_empty("an SAE of Llama Scope")?;
    let norm_factor = (source.d_in as f32).sqrt() / average;
    Ok(Source {
        architecture: Architecture::JumpRelu,
        normalize_activations: NormalizeActivations::ExpectedAverageOnlyIn,
        is_centred: None,
        norm_factor: Some(norm_factor),
        model_name: Some("meta-llama/Llama-3.1-8B".to_owned()),
        threshold: Some(vec![threshold * norm_factor; source.d_sae]),
        ..source
    })
}

/// Reads a folder of the newer layout.
///
/// # Errors
/// Files that are missing or malformed, no hook point, and an activation function, a normalisation or
/// a kind of dictionary that is not supported.
pub(super) fn open(dir: &Path, hook_name: Option<&str>) -> Result<Source> {
    let path = dir.join(CONFIG_FILE);
    let config: Config = read_json(&path)?;
    let unsupported = |key: &str, word: &str, hint: &str| Err(unsupported(&path, key, word, hint));
    if let Some(word) = config.sae_type.as_ref().filter(|word| *word != "sae") {
        return unsupported("sae_type", word, "`sae`");
    }
    let normalize_activations = match config.norm_activation.as_deref() {
        Some("dataset-wise") => NormalizeActivations::ExpectedAverageOnlyIn,
        Some("token-wise") => NormalizeActivations::ConstantNormRescale,
        Some("inference") => NormalizeActivations::None,
        word => {
            let known = "`dataset-wise`, `token-wise` and `inference`";
            return unsupported("norm_activation", word.unwrap_or_default(), known);
        }
    };
    let used_hook = config.hook_name(&path, dir, hook_name)?;
    let mut weights = TensorFile::open(dir.join(WEIGHTS_FILE))?;
    let mut source = read(Format::OpenMoss, &config, &mut weights, used_hook)?;
    let is_scaled = config.sparsity_include_decoder_norm.unwrap_or(true);
    match config.act_fn.as_deref() {
        Some("jumprelu") => {
            source.architecture = Architecture::JumpRelu;
            source.threshold = Some(thresholds(&mut weights, &source, is_scaled)?);
        }
        None | Some("relu") => {}
        Some("topk") => {
            let k = config.top_k.ok_or_else(|| {
                Error::invalid(format!("`{}` has no key `top_k`", path.display()))
            })?;
            source.architecture = Architecture::TopK { k };
            source.rescale_by_decoder_norm = is_scaled;
        }
        Some(word) => {
            let known = "`relu`, `jumprelu` and `topk`; Language-Model-SAEs makes a jumprelu SAE of a batchtopk one";
            return unsupported("act_fn", word, known);
        }
    }
    let norms = weights.take_all(AVERAGE_NORM);
    if normalize_activations == NormalizeActivations::ExpectedAverageOnlyIn {
        let own = config
            .hook_point()
            .map(|hook| format!("{AVERAGE_NORM}{hook}"));
        let norm = own
            .and_then(|name| norms.get(&name))
            .or(norms.values().next());
        source.norm_factor = norm
            .map(|norm| norm_factor(norm, source.d_in))
            .transpose()?;
    }
    weights.check_empty("an SAE of Language-Model-SAEs")?;
    Ok(Source {
        normalize_activations,
        ..source
    })
}

/// `√d_in` over the average norm in a tensor of one number.
fn norm_factor(tensor: &StoredTensor, d_in: usize) -> Result<f32> {
    tensor.check(&[])?;
    let average = tensor.read_all()?[0];
    if average > 0.0 {
        return Ok((d_in as f32).sqrt() / average);
    }
    Err(Error::invalid(format!(
        "{} is {average}, expected a number above 0",
        tensor.describe()
    )))
}

/// What `h` must exceed, `[d_sae]`. Where it is compared with `h·‖w_dec‖`, the norm goes to the
/// threshold; a row of zeros is never active.
fn thresholds(weights: &mut TensorFile, source: &Source, is_scaled: bool) -> Result<Vec<f32>> {
    let [name, other] = LOG_THRESHOLDS;
    let name = if weights.has(other) { other } else { name };
    let logarithms = weights.take_vector(name, source.d_sae)?;
    let mut thresholds: Vec<f32> = logarithms.into_iter().map(f32::exp).collect();
    if is_scaled {
        for (threshold, norm) in thresholds.iter_mut().zip(source.w_dec.norms()?) {
            *threshold = (*threshold / norm).min(f32::MAX);
        }
    }
    Ok(thresholds)
}

/// What both layouts have: an SAE without activation function and normalisation.
fn read(
    format: Format,
    config: &Config,
    weights: &mut TensorFile,
    hook_name: String,
) -> Result<Source> {
    let ([w_enc, b_enc, w_dec, b_dec], [of_encoder, of_decoder]) = if weights.has(PLAIN.0[0]) {
        PLAIN
    } else {
        LINEAR
    };
    let w_dec = weights.take(w_dec)?;
    let shape @ [d_sae, d_in] = decoder_shape(&w_dec, of_decoder)?;
    Ok(Source {
        format,
        architecture: Architecture::Standard,
        d_in,
        d_sae,
        hook_name,
        output: None,
        apply_b_dec_to_input: config.apply_decoder_bias_to_pre_encoder.unwrap_or(false),
        normalize_activations: NormalizeActivations::None,
        is_centred: None,
        norm_factor: None,
        model_name: None,
        w_enc: FeatureMatrix::new(weights.take(w_enc)?, of_encoder, shape)?,
        w_dec: FeatureMatrix::new(w_dec, of_decoder, shape)?,
        encoder_factors: Vec::new(),
        decoder_factors: Vec::new(),
        rescale_by_decoder_norm: false,
        b_enc: weights.take_vector(b_enc, d_sae)?,
        b_dec: if config.use_decoder_bias == Some(false) {
            vec![0.0; d_in]
        } else {
            weights.take_vector(b_dec, d_in)?
        },
        threshold: None,
        log_sparsity: None,
    })
}

impl Config {
    fn hook_point(&self) -> Option<&String> {
        self.hook_point_in.as_ref().or(self.hook_point_out.as_ref())
    }

    /// The hook point: the one given, or that of the configuration or of the folder's name.
    ///
    /// # Errors
    /// None at all, a transcoder, or an encoder with a gate.
    fn hook_name(&self, path: &Path, dir: &Path, given: Option<&str>) -> Result<String> {
        if let (Some(hook_in), Some(out)) = (&self.hook_point_in, &self.hook_point_out)
            && hook_in != out
        {
            return Err(transcoder(path, hook_in, out));
        }
        if self.use_glu_encoder == Some(true) {
            return Err(Error::invalid(format!(
                "`{}`: `use_glu_encoder` is true, which is not supported",
                path.display()
            )));
        }
        if let Some(name) = given.or(self.hook_point().map(String::as_str)) {
            return Ok(name.to_owned());
        }
        let dir = dir.canonicalize().map_err(Error::io("read", dir))?;
        let folder = dir.file_name().unwrap_or_default().to_string_lossy();
        hook_of_folder(&folder).ok_or_else(|| {
            Error::invalid(format!(
                "neither `{}` nor the folder's name `{folder}` says which hook point this SAE belongs to",
                path.display()
            ))
            .of_kind(ErrorKind::HookPointMissing)
            .with_hint("name the hook point, such as `blocks.15.hook_resid_post`")
        })
    }
}

/// The hook point that a folder is called by: `L15R` or `Llama3_1-8B-Base-L15R-8x` is the residual
/// stream after block 15, with `M` what its feed-forward part adds, with `A` what attention does.
fn hook_of_folder(name: &str) -> Option<String> {
    name.split('-').find_map(|word| {
        let place = word.strip_prefix('L')?;
        let (layer, site) = place.split_at_checked(place.len().checked_sub(1)?)?;
        let site = match site {
            "R" => "hook_resid_post",
            "M" => "hook_mlp_out",
            "A" => "hook_attn_out",
            _ => return None,
        };
        Some(format!("blocks.{}.{site}", layer.parse::<usize>().ok()?))
    })
}
