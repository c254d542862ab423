//! Reads SAELens' folders: `cfg.json`, `sae_weights.safetensors`, and `sparsity.safetensors` where
//! there is one.
//!
//! The spellings of SAELens 0.x to 6.54 are read, after `handle_pre_6_0_config` and
//! `read_sae_components_from_disk` in its `loading/pretrained_sae_loaders.py`.

mod config;

use std::path::Path;

use self::config::{Config, Encoder};
pub(super) use self::config::{transcoder, unsupported};
use super::meta::Architecture;
use super::schema::LOG_SPARSITY;
use super::source::{FeatureMatrix, Format, Layout, Output, Source, decoder_shape};
use super::tensor_file::TensorFile;
use crate::json_file::read_json;
use crate::{Error, Result};

pub(super) const CONFIG_FILE: &str = "cfg.json";
pub(super) const WEIGHTS_FILE: &str = "sae_weights.safetensors";
const SPARSITY_FILE: &str = "sparsity.safetensors";

/// The names of the factors on each feature's activation that fine-tuning leaves behind.
const SCALING_FACTORS: [&str; 2] = ["scaling_factor", "finetuning_scaling_factor"];

/// How far a fine-tuning factor may be from 1 to count as none (`torch.allclose`, to which SAELens
/// leaves this).
const ONES_TOLERANCE: f32 = 1e-5;
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
        model_name: config.model_name(),
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
