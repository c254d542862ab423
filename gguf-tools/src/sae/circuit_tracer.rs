//! Reads the transcoders of circuit-tracer: `layer_N.safetensors`, one file for each block, with `config.yaml` beside
//! them, which says where they read and write.
//!
//! After `SingleLayerTranscoder` and `load_transcoder` in circuit-tracer's `transcoder/single_layer_transcoder.py`, and
//! `get_mwhanna_transcoder_config_from_hf` in SAELens' `loading/pretrained_sae_loaders.py` (6.54), whose places are taken
//! where there is no configuration: what the MLP reads, and what it gives.

use std::path::Path;

use super::meta::{Architecture, NormalizeActivations};
use super::source::{FeatureMatrix, Format, Layout, Output, Source, decoder_shape};
use super::tensor_file::TensorFile;
use crate::{Error, ErrorKind, Result, input_file};

/// The configuration, of which three keys at the left margin are read.
pub(super) const CONFIG_FILE: &str = "config.yaml";
/// Longest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const THRESHOLD: &str = "activation_function.threshold";

/// The block of a file that is called as a transcoder's is: `layer_12.safetensors`.
pub(super) fn layer_of(file_name: &str) -> Option<usize> {
    let number = file_name
        .strip_prefix("layer_")?
        .strip_suffix(".safetensors")?;
    let is_plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| number.parse().ok())?
}

/// Reads the file of one block.
///
/// # Errors
/// A file that is missing or malformed, places that are not known, tensors that are missing, superfluous or of the wrong
/// shape or number type.
pub(super) fn open(path: &Path, hook_name: Option<&str>) -> Result<Source> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let layer = layer_of(&file_name).expect("so it was recognised");
    let config = Config::read(&path.with_file_name(CONFIG_FILE))?;
    let output_hook = config.output_hook(path)?;
    let mut weights = TensorFile::open(path.to_owned())?;
    let w_dec = weights.take("W_dec")?;
    let shape @ [d_sae, d_out] = decoder_shape(&w_dec, Layout::FeaturesInRows)?;
    let w_enc = weights.take("W_enc")?;
    let d_in = match w_enc.shape() {
        &[_, d_in] => d_in,
        _ => d_out,
    };
    let threshold = match weights.has(THRESHOLD) {
        true => Some(weights.take_vector(THRESHOLD, d_sae)?),
        false => None,
    };
    let source = Source {
        format: Format::CircuitTracer,
        architecture: match threshold {
            Some(_) => Architecture::JumpRelu,
            None => Architecture::Standard,
        },
        d_in,
        d_sae,
        hook_name: hook_name.map_or_else(
            || {
                format!(
                    "blocks.{layer}.{}",
                    config.input_hook.as_deref().unwrap_or("mlp.hook_in")
                )
            },
            str::to_owned,
        ),
        output: Some(Output {
            hook_names: vec![format!("blocks.{layer}.{output_hook}")],
            d_out,
            w_skip: match weights.has("W_skip") {
                true => Some(FeatureMatrix::new(
                    weights.take("W_skip")?,
                    Layout::FeaturesInRows,
                    [d_out, d_in],
                )?),
                false => None,
            },
        }),
        apply_b_dec_to_input: false,
        normalize_activations: NormalizeActivations::None,
        is_centred: None,
        norm_factor: None,
        model_name: config.model_name,
        w_enc: FeatureMatrix::new(w_enc, Layout::FeaturesInRows, [d_sae, d_in])?,
        w_dec: FeatureMatrix::new(w_dec, Layout::FeaturesInRows, shape)?,
        encoder_factors: Vec::new(),
        decoder_factors: Vec::new(),
        rescale_by_decoder_norm: false,
        b_enc: weights.take_vector("b_enc", d_sae)?,
        b_dec: weights.take_vector("b_dec", d_out)?,
        threshold,
        log_sparsity: None,
    };
    weights.check_empty("a transcoder of circuit-tracer with a ReLU or a JumpReLU")?;
    Ok(source)
}

#[derive(Default)]
struct Config {
    model_name: Option<String>,
    input_hook: Option<String>,
    output_hook: Option<String>,
}

impl Config {
    /// Reads the plain values at the left margin of a YAML file, if there is one.
    fn read(path: &Path) -> Result<Self> {
        let mut config = Self::default();
        if !path.exists() {
            return Ok(config);
        }
        let bytes = input_file::read(path, MAX_CONFIG_BYTES)?;
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.split(" #").next().unwrap_or_default().trim();
            let value = value.trim_matches(|c| matches!(c, '"' | '\''));
            let known = match key {
                "model_name" => &mut config.model_name,
                "feature_input_hook" => &mut config.input_hook,
                "feature_output_hook" => &mut config.output_hook,
                _ => continue,
            };
            *known = (!value.is_empty()).then(|| value.to_owned());
        }
        Ok(config)
    }

    /// The site that is written. What the MLP's module gives is what is added to the stream where no norm follows it, as
    /// in Llama and Qwen.
    fn output_hook(&self, path: &Path) -> Result<String> {
        let site = self.output_hook.as_deref().unwrap_or("hook_mlp_out");
        if site != "mlp.hook_out" {
            return Ok(site.to_owned());
        }
        let model = self.model_name.as_deref().unwrap_or_default();
        let name = model.to_lowercase();
        if name.contains("qwen") || name.contains("llama") {
            return Ok("hook_mlp_out".to_owned());
        }
        let shown = path.display();
        let what = format!(
            "`{shown}` writes `mlp.hook_out` of `{model}`, which may be before a norm, and is not supported"
        );
        Err(Error::new(ErrorKind::Unsupported, what)
            .with_hint(format!("where no norm follows the MLP, write `feature_output_hook: hook_mlp_out` into `{CONFIG_FILE}`")))
    }
}
