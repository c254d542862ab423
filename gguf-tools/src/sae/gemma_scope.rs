//! Reads the SAEs of Gemma Scope (for Gemma 2: `params.npz`, without a configuration) and Gemma
//! Scope 2 (for Gemma 3: `config.json` and `params.safetensors`).
//!
//! All are jumprelu ones on activations as they are, and `b_dec` is not subtracted from the input
//! (`get_gemma_2_config_from_hf` and `get_gemma_3_config_from_hf` in SAELens'
//! `loading/pretrained_sae_loaders.py`, 6.54).
//!
//! Transcoders write what the feed-forward part adds to the residual stream. Those of Gemma Scope read rows just behind the
//! norm before that part, without the norm's weight, which was folded into the next matrices (Lieberum et al. 2024,
//! arXiv:2408.05147v2, page 18; `ln2.hook_normalized` in TransformerLens); those of Gemma Scope 2 read the norm's output,
//! and some add a product with the row that they read (`affine_skip_connection`).

use std::path::Path;

use serde::Deserialize;
use tempfile::TempDir;

use super::circuit_tracer;
use super::meta::{Architecture, NormalizeActivations};
use super::npz;
use super::source::{FeatureMatrix, Format, Layout, Output, Source, decoder_shape};
use super::tensor_file::TensorFile;
use crate::json_file::read_json;
use crate::{Error, ErrorKind, Result};

pub(super) const NPZ_FILE: &str = "params.npz";
pub(super) const WEIGHTS_FILE: &str = "params.safetensors";
pub(super) const CONFIG_FILE: &str = "config.json";

/// Reads a folder of Gemma Scope. Its hook point and model stand in the names of the folders above,
/// as `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`; `hook_name` counts where they do not.
///
/// # Errors
/// Files that are missing or malformed, a hook point that is not known.
pub(super) fn open(dir: &Path, hook_name: Option<&str>) -> Result<(Source, Option<TempDir>)> {
    let path = dir.join(NPZ_FILE);
    let (tensors, unpacked) = npz::read(&path)?;
    let place = Place::of(&dir.canonicalize().map_err(Error::io("read", dir))?);
    let hook_name_out = match place.is_transcoder {
        true => Some(place.hook_name(dir, "hook_mlp_out")?),
        false => None,
    };
    let own = || place.hook_name(dir, place.site.unwrap_or_default());
    let hook_name = hook_name.map_or_else(own, |name| Ok(name.to_owned()))?;
    let names = if tensors.contains_key("w_enc") {
        LOWER_CASE
    } else {
        UPPER_CASE
    };
    let weights = TensorFile::new(path, tensors);
    let places = (hook_name, hook_name_out);
    let source = read(Format::GemmaScope, weights, names, places, place.model)?;
    Ok((source, unpacked))
}

/// Reads a folder of Gemma Scope 2.
///
/// # Errors
/// Files that are missing or malformed, a hook point that is not known.
pub(super) fn open_2(dir: &Path, hook_name: Option<&str>) -> Result<Source> {
    let path = dir.join(CONFIG_FILE);
    let config: Config = read_json(&path)?;
    if config.architecture != "jump_relu" {
        return Err(Error::invalid(format!(
            "`{}`: `architecture` is `{}`, which is not supported",
            path.display(),
            config.architecture
        ))
        .with_hint("supported: `jump_relu`"));
    }
    let places = config.places(&path, hook_name)?;
    let weights = TensorFile::open(dir.join(WEIGHTS_FILE))?;
    let model = config.model_name;
    read(Format::GemmaScope2, weights, LOWER_CASE, places, model)
}

/// The block of a cross-layer transcoder's file: `params_layer_12.safetensors`.
pub(super) fn layer_of(file_name: &str) -> Option<usize> {
    circuit_tracer::number_of(file_name, "params_layer_")
}

/// Reads the features of one block of a cross-layer transcoder of Gemma Scope 2, in a file of that block. They read and
/// write where its transcoders do (`_infer_gemma_3_raw_cfg_dict` in SAELens' loaders); the decoder has a part for each
/// block, of which those before the features' own are nothing (`load_gemma_scope_2_clt` in circuit-tracer's
/// `transcoder/cross_layer_transcoder.py`). The skip connection is of the block's reconstruction, which other blocks'
/// features are part of.
///
/// # Errors
/// A file that is missing or malformed.
pub(super) fn open_cross_layer(path: &Path, hook_name: Option<&str>) -> Result<Source> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let layer = layer_of(&file_name).expect("so it was recognised");
    let mut weights = TensorFile::open(path.to_owned())?;
    let w_enc = weights.take("w_enc")?;
    let shape @ [d_sae, d_in] = decoder_shape(&w_enc, Layout::FeaturesInColumns)?;
    let source = circuit_tracer::cross_layer(
        Format::GemmaScope2,
        layer,
        "hook_mlp_out",
        FeatureMatrix::new(w_enc, Layout::FeaturesInColumns, shape)?,
        FeatureMatrix::of_parts(weights.take("w_dec")?, d_sae, layer)?,
        [
            weights.take_vector("b_enc", d_sae)?,
            weights.take_vector("b_dec", d_in)?,
        ],
        Some(weights.take_vector("threshold", d_sae)?),
    );
    if weights.has(SKIP) {
        weights.take(SKIP)?.check(&[d_in, d_in])?;
    }
    weights.check_empty("a cross-layer transcoder of Gemma Scope 2")?;
    Ok(Source {
        hook_name: hook_name.map_or_else(|| format!("blocks.{layer}.mlp.hook_in"), str::to_owned),
        ..source
    })
}

/// `W_enc`, `W_dec`, `b_enc`, `b_dec`, `threshold`.
type Names = [&'static str; 5];
const UPPER_CASE: Names = ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"];
const LOWER_CASE: Names = ["w_enc", "w_dec", "b_enc", "b_dec", "threshold"];
/// `[d_in, d_out]`.
const SKIP: &str = "affine_skip_connection";

/// Where it reads, and where it writes, if that is elsewhere.
type Places = (String, Option<String>);

fn read(
    format: Format,
    mut weights: TensorFile,
    [w_enc, w_dec, b_enc, b_dec, threshold]: Names,
    (hook_name, hook_name_out): Places,
    model_name: Option<String>,
) -> Result<Source> {
    let w_dec = weights.take(w_dec)?;
    let shape @ [d_sae, d_out] = decoder_shape(&w_dec, Layout::FeaturesInRows)?;
    let w_enc = weights.take(w_enc)?;
    let d_in = match (&hook_name_out, w_enc.shape()) {
        (Some(_), &[d_in, _]) => d_in,
        _ => d_out,
    };
    let output = match hook_name_out {
        None => None,
        Some(hook_name) => Some(Output {
            hook_names: vec![hook_name],
            d_out,
            w_skip: match weights.has(SKIP) {
                true => Some(FeatureMatrix::new(
                    weights.take(SKIP)?,
                    Layout::FeaturesInColumns,
                    [d_out, d_in],
                )?),
                false => None,
            },
        }),
    };
    let source = Source {
        format,
        architecture: Architecture::JumpRelu,
        d_in,
        d_sae,
        hook_name,
        output,
        apply_b_dec_to_input: false,
        normalize_activations: NormalizeActivations::None,
        is_centred: None,
        norm_factor: None,
        model_name,
        w_enc: FeatureMatrix::new(w_enc, Layout::FeaturesInColumns, [d_sae, d_in])?,
        w_dec: FeatureMatrix::new(w_dec, Layout::FeaturesInRows, shape)?,
        encoder_factors: Vec::new(),
        decoder_factors: Vec::new(),
        rescale_by_decoder_norm: false,
        b_enc: weights.take_vector(b_enc, d_sae)?,
        b_dec: weights.take_vector(b_dec, d_out)?,
        threshold: Some(weights.take_vector(threshold, d_sae)?),
        log_sparsity: None,
    };
    weights.check_empty("an SAE of Gemma Scope")?;
    Ok(source)
}

/// What the names of a Gemma Scope folder, and of those above it, say.
#[derive(Default)]
struct Place {
    layer: Option<usize>,
    site: Option<&'static str>,
    model: Option<String>,
    is_embedding: bool,
    is_transcoder: bool,
}

impl Place {
    fn of(dir: &Path) -> Self {
        let mut place = Self::default();
        for part in dir.iter().filter_map(|part| part.to_str()) {
            if let Some(layer) = part.strip_prefix("layer_") {
                place.layer = layer.parse().ok();
            }
            place.is_embedding |= part == "embedding";
            // The repository: `gemma-scope-2b-pt-res`, or `models--google--gemma-scope-2b-pt-res`.
            let Some((_, repository)) = part.split_once("gemma-scope-") else {
                continue;
            };
            let words: Vec<&str> = repository.split('-').collect();
            place.site = words.iter().find_map(|word| match *word {
                "res" => Some("hook_resid_post"),
                "mlp" => Some("hook_mlp_out"),
                "att" => Some("attn.hook_z"),
                "transcoders" => Some("ln2.hook_normalized"),
                _ => None,
            });
            place.is_transcoder = words.contains(&"transcoders");
            place.model = match words[..] {
                [size, "pt", ..] => Some(format!("gemma-2-{size}")),
                [size, "it", ..] => Some(format!("gemma-2-{size}-it")),
                _ => None,
            };
        }
        place
    }

    /// The hook point of the folder's layer with this site; none has the name "".
    fn hook_name(&self, dir: &Path, site: &str) -> Result<String> {
        if self.is_embedding {
            return Err(Error::invalid(format!(
                "`{}` contains an SAE of the embeddings, not of a layer",
                dir.display()
            ))
            .with_hint("use an SAE of the residual stream after a layer"));
        }
        match self.layer {
            Some(layer) if !site.is_empty() => Ok(format!("blocks.{layer}.{site}")),
            _ => Err(Error::invalid(format!(
                "`{}` does not say which hook point this SAE belongs to",
                dir.display()
            ))
            .of_kind(ErrorKind::HookPointMissing)
            .with_hint(
                "keep the repository's folders, such as `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`, or name the hook point, such as `blocks.20.hook_resid_post`",
            )),
        }
    }
}

/// `config.json` of Gemma Scope 2.
#[derive(Deserialize)]
struct Config {
    architecture: String,
    model_name: Option<String>,
    hf_hook_point_in: Option<String>,
    hf_hook_point_out: Option<String>,
}

impl Config {
    /// Hugging Face's modules in TransformerLens' words; where it reads is `given`, if that is.
    fn places(&self, path: &Path, given: Option<&str>) -> Result<Places> {
        let hook_of = |module: &str| {
            hook_of_module(module).ok_or_else(|| {
                Error::invalid(format!(
                    "`{}`: the hook point `{module}` is not known",
                    path.display()
                ))
                .of_kind(ErrorKind::HookPointMissing)
                .with_hint("use an SAE of the residual stream, `model.layers.L.output`, or name its hook point, `blocks.L.hook_resid_post`")
            })
        };
        let (hook_in, out) = (&self.hf_hook_point_in, &self.hf_hook_point_out);
        let hook_name_out = match (hook_in, out) {
            (Some(hook_in), Some(out)) if hook_in != out => Some(hook_of(out)?),
            _ => None,
        };
        let hook_name = match given {
            Some(name) => name.to_owned(),
            None => hook_of(hook_in.as_ref().or(out.as_ref()).map_or("", String::as_str))?,
        };
        Ok((hook_name, hook_name_out))
    }
}

/// The hook point of a module of Gemma 3 in Hugging Face's transformers.
pub(super) fn hook_of_module(module: &str) -> Option<String> {
    let (layer, site) = module.split_once("layers.")?.1.split_once('.')?;
    let site = match site {
        "output" => "hook_resid_post",
        "self_attn.o_proj.input" => "attn.hook_z",
        "pre_feedforward_layernorm.output" => "mlp.hook_in",
        "post_feedforward_layernorm.output" => "hook_mlp_out",
        _ => return None,
    };
    let layer = layer.parse::<usize>().ok()?;
    Some(format!("blocks.{layer}.{site}"))
}
