//! Reads the transcoders of circuit-tracer: `layer_N.safetensors`, one file for each block, with `config.yaml` beside
//! them, which says where they read and write; and of its cross-layer transcoders one block's features, in
//! `W_enc_N.safetensors` and `W_dec_N.safetensors`, which write at the same site of each block from there on.
//!
//! After `SingleLayerTranscoder` and `load_transcoder` in circuit-tracer's `transcoder/single_layer_transcoder.py`, and
//! `get_mwhanna_transcoder_config_from_hf` in SAELens' `loading/pretrained_sae_loaders.py` (6.54), whose places are taken
//! where there is no configuration: what the MLP reads, and what it gives. Cross-layer ones after `load_clt` in
//! `transcoder/cross_layer_transcoder.py`, by which they read the stream before the MLP.

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
    number_of(file_name, "layer_")
}

/// The block of a cross-layer transcoder's file: `W_enc_12.safetensors`.
pub(super) fn layer_of_encoder(file_name: &str) -> Option<usize> {
    number_of(file_name, "W_enc_")
}

/// The file with that block's decoder.
pub(super) fn decoder_of(layer: usize) -> String {
    format!("W_dec_{layer}.safetensors")
}

/// The number between `start` and the ending of a file of weights.
pub(super) fn number_of(file_name: &str, start: &str) -> Option<usize> {
    let number = file_name
        .strip_prefix(start)?
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
    let threshold = weights.take_vector_if_any(THRESHOLD, d_sae)?;
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

/// Reads the features of one block of a cross-layer transcoder.
///
/// # Errors
/// As [`open`].
pub(super) fn open_cross_layer(path: &Path, hook_name: Option<&str>) -> Result<Source> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let layer = layer_of_encoder(&file_name).expect("so it was recognised");
    let config = Config::read(&path.with_file_name(CONFIG_FILE))?;
    let output_hook = config.output_hook(path)?;
    let input_hook = config.input_hook.as_deref().unwrap_or("hook_resid_mid");
    let mut weights = TensorFile::open(path.to_owned())?;
    let name = |name: &str| format!("{name}_{layer}");
    let w_enc = weights.take(&name("W_enc"))?;
    let shape @ [d_sae, d_in] = decoder_shape(&w_enc, Layout::FeaturesInRows)?;
    let threshold = weights.take_vector_if_any(&name("threshold"), d_sae)?;
    let (b_enc, b_dec) = (name("b_enc"), name("b_dec"));
    let mut decoder = TensorFile::open(path.with_file_name(decoder_of(layer)))?;
    let w_dec = FeatureMatrix::of_parts(decoder.take(&name("W_dec"))?, d_sae, 0)?;
    decoder.check_empty("a cross-layer transcoder's decoder")?;
    let source = Source {
        hook_name: hook_name.map_or_else(|| format!("blocks.{layer}.{input_hook}"), str::to_owned),
        ..cross_layer(
            Format::CircuitTracer,
            layer,
            &output_hook,
            FeatureMatrix::new(w_enc, Layout::FeaturesInRows, shape)?,
            w_dec,
            [
                weights.take_vector(&b_enc, d_sae)?,
                weights.take_vector(&b_dec, d_in)?,
            ],
            threshold,
        )
    };
    weights.check_empty("a cross-layer transcoder's encoder")?;
    Ok(Source {
        model_name: config.model_name,
        ..source
    })
}

/// The features of the block `layer` of a cross-layer transcoder, which read and write rows of one width: without a place
/// where they read, and a model.
pub(super) fn cross_layer(
    format: Format,
    layer: usize,
    output_hook: &str,
    w_enc: FeatureMatrix,
    w_dec: FeatureMatrix,
    [b_enc, b_dec]: [Vec<f32>; 2],
    threshold: Option<Vec<f32>>,
) -> Source {
    let (d_in, d_sae) = (w_enc.d_in(), b_enc.len());
    let layers = layer..layer + w_dec.d_in() / d_in.max(1);
    Source {
        format,
        architecture: match threshold {
            Some(_) => Architecture::JumpRelu,
            None => Architecture::Standard,
        },
        d_in,
        d_sae,
        hook_name: String::new(),
        output: Some(Output {
            hook_names: layers
                .map(|layer| format!("blocks.{layer}.{output_hook}"))
                .collect(),
            d_out: d_in,
            w_skip: None,
        }),
        apply_b_dec_to_input: false,
        normalize_activations: NormalizeActivations::None,
        is_centred: None,
        norm_factor: None,
        model_name: None,
        w_enc,
        w_dec,
        encoder_factors: Vec::new(),
        decoder_factors: Vec::new(),
        rescale_by_decoder_norm: false,
        b_enc,
        b_dec,
        threshold,
        log_sparsity: None,
    }
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
