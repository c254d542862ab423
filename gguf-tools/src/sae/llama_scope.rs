//! Reads the SAEs of Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`.
//!
//! After `get_llama_scope_config_from_hf` and `llama_scope_sae_huggingface_loader` in SAELens'
//! `loading/pretrained_sae_loaders.py` (6.54): one threshold for all features, which is meant for
//! activations of the model's own size, and so is multiplied with the norm factor.

use std::path::Path;

use serde::Deserialize;

use super::saelens::transcoder;
use super::schema::{Architecture, NormalizeActivations};
use super::source::{FeatureMatrix, Format, Layout, Source, decoder_shape};
use super::tensor_file::TensorFile;
use crate::json_file::read_json;
use crate::{Error, Result};

pub(super) const CONFIG_FILE: &str = "hyperparams.json";
const WEIGHTS_FILE: &str = "checkpoints/final.safetensors";

/// `hyperparams.json`; keys that make no difference to inference are left out.
#[derive(Deserialize)]
struct Config {
    hook_point_in: String,
    hook_point_out: Option<String>,
    act_fn: Option<String>,
    jump_relu_threshold: f32,
    dataset_average_activation_norm: AverageNorm,
    use_glu_encoder: Option<bool>,
    apply_decoder_bias_to_pre_encoder: Option<bool>,
}

#[derive(Deserialize)]
struct AverageNorm {
    r#in: f32,
}

/// Reads the folder `dir`.
///
/// # Errors
/// Files that are missing or malformed, a transcoder, what is no plain jumprelu SAE.
pub(super) fn open(dir: &Path) -> Result<Source> {
    let path = dir.join(CONFIG_FILE);
    let config: Config = read_json(&path)?;
    config.check(&path)?;
    let mut weights = TensorFile::open(dir.join(WEIGHTS_FILE))?;
    let w_dec = weights.take("decoder.weight")?;
    let shape @ [d_sae, d_in] = decoder_shape(&w_dec, Layout::FeaturesInColumns)?;
    let norm_factor = (d_in as f32).sqrt() / config.dataset_average_activation_norm.r#in;
    let source = Source {
        format: Format::LlamaScope,
        architecture: Architecture::JumpRelu,
        d_in,
        d_sae,
        hook_name: config.hook_point_in,
        apply_b_dec_to_input: config.apply_decoder_bias_to_pre_encoder.unwrap_or(false),
        normalize_activations: NormalizeActivations::ExpectedAverageOnlyIn,
        norm_factor: Some(norm_factor),
        model_name: Some("meta-llama/Llama-3.1-8B".to_owned()),
        w_enc: FeatureMatrix::new(
            weights.take("encoder.weight")?,
            Layout::FeaturesInRows,
            shape,
        )?,
        w_dec: FeatureMatrix::new(w_dec, Layout::FeaturesInColumns, shape)?,
        encoder_factors: Vec::new(),
        decoder_factors: Vec::new(),
        rescale_by_decoder_norm: false,
        b_enc: weights.take_vector("encoder.bias", d_sae)?,
        b_dec: weights.take_vector("decoder.bias", d_in)?,
        threshold: Some(vec![config.jump_relu_threshold * norm_factor; d_sae]),
        log_sparsity: None,
    };
    weights.check_empty("an SAE of Llama Scope")?;
    Ok(source)
}

impl Config {
    fn check(&self, path: &Path) -> Result<()> {
        if let Some(out) = self
            .hook_point_out
            .as_ref()
            .filter(|out| **out != self.hook_point_in)
        {
            return Err(transcoder(path, &self.hook_point_in, out));
        }
        let refused = |what: String| Err(Error::invalid(format!("`{}`: {what}", path.display())));
        if let Some(word) = self.act_fn.as_ref().filter(|word| *word != "jumprelu") {
            return refused(format!(
                "`act_fn` is `{word}`, and only `jumprelu` is supported"
            ));
        }
        if self.use_glu_encoder == Some(true) {
            return refused("`use_glu_encoder` is true, which is not supported".to_owned());
        }
        let average = self.dataset_average_activation_norm.r#in;
        if !(average.is_finite() && average > 0.0 && self.jump_relu_threshold.is_finite()) {
            return refused(format!(
                "the average norm {average} and the threshold {} must be finite, and the norm above 0",
                self.jump_relu_threshold
            ));
        }
        Ok(())
    }
}
