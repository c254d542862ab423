//! Reads the SAEs of EleutherAI's sparsify, which LMMs-Lab's multimodal SAE uses too: `cfg.json` and
//! `sae.safetensors`.
//!
//! The `k` largest of `max((x − b_dec)·W_enc + b_enc, 0)` stay (`SparseCoder.encode` and
//! `fused_encoder` in eai-sparsify 1.3). A transcoder reads what a module reads, without subtracting `b_dec`, and writes
//! what the module gives, `W_skip · x` added where it has that.

use std::path::Path;

use serde::Deserialize;

use super::meta::{Architecture, NormalizeActivations};
use super::source::{FeatureMatrix, Format, Layout, Output, Source, decoder_shape};
use super::tensor_file::TensorFile;
use crate::json_file::{read_json, read_optional_json};
use crate::{Error, ErrorKind, Result};

pub(super) const WEIGHTS_FILE: &str = "sae.safetensors";
pub(super) const CONFIG_FILE: &str = "cfg.json";

/// `cfg.json`; keys that make no difference to inference are left out.
#[derive(Deserialize)]
struct Config {
    k: usize,
    d_in: Option<usize>,
    /// `topk`, where it is not said.
    activation: Option<String>,
    signed: Option<bool>,
    transcode: Option<bool>,
    skip_connection: Option<bool>,
}

/// `config.json` of the training run, in the folder above.
#[derive(Deserialize)]
struct RunConfig {
    model: Option<String>,
}

/// Reads the folder `dir`, whose name is its hook point: `layers.10` is the residual stream after
/// block 10, `layers.10.mlp` what its feed-forward part adds. `hook_name` counts where it is not.
///
/// # Errors
/// Files that are missing or malformed, a hook point that is not known, what is no plain top-k SAE or transcoder of an MLP.
pub(super) fn open(dir: &Path, hook_name: Option<&str>) -> Result<Source> {
    let config_path = dir.join(CONFIG_FILE);
    let config: Config = read_json(&config_path)?;
    config.check(&config_path)?;
    let dir = dir.canonicalize().map_err(Error::io("read", dir))?;
    let is_transcoder = config.transcode == Some(true);
    let (hook_name, hook_name_out) = match (hook_name, is_transcoder) {
        (Some(name), false) => (name.to_owned(), None),
        (None, false) => (hook_of_folder(&dir)?, None),
        (given, true) => {
            let [read, written] = places_of_mlp(&dir)?;
            (given.map_or(read, str::to_owned), Some(written))
        }
    };
    let run: Option<RunConfig> = match dir.parent() {
        Some(parent) => read_optional_json(&parent.join("config.json"))?,
        None => None,
    };
    let mut weights = TensorFile::open(dir.join(WEIGHTS_FILE))?;
    let w_dec = weights.take("W_dec")?;
    let shape @ [d_sae, d_in] = decoder_shape(&w_dec, Layout::FeaturesInRows)?;
    if config.d_in.is_some_and(|said| said != d_in) {
        return Err(Error::invalid(format!(
            "`{}`: `d_in` is {}, but {} has shape {:?}",
            config_path.display(),
            config.d_in.unwrap_or_default(),
            w_dec.describe(),
            w_dec.shape()
        )));
    }
    let output = match hook_name_out {
        None => None,
        Some(written) => Some(Output {
            hook_names: vec![written],
            d_out: d_in,
            w_skip: match config.skip_connection {
                Some(true) => Some(FeatureMatrix::new(
                    weights.take("W_skip")?,
                    Layout::FeaturesInRows,
                    [d_in, d_in],
                )?),
                _ => None,
            },
        }),
    };
    let source = Source {
        format: Format::Sparsify,
        architecture: Architecture::TopK { k: config.k },
        d_in,
        d_sae,
        hook_name,
        output,
        apply_b_dec_to_input: !is_transcoder,
        normalize_activations: NormalizeActivations::None,
        is_centred: None,
        norm_factor: None,
        model_name: run.and_then(|run| run.model),
        w_enc: FeatureMatrix::new(
            weights.take("encoder.weight")?,
            Layout::FeaturesInRows,
            shape,
        )?,
        w_dec: FeatureMatrix::new(w_dec, Layout::FeaturesInRows, shape)?,
        encoder_factors: Vec::new(),
        decoder_factors: Vec::new(),
        rescale_by_decoder_norm: false,
        b_enc: weights.take_vector("encoder.bias", d_sae)?,
        b_dec: weights.take_vector("b_dec", d_in)?,
        threshold: None,
        log_sparsity: None,
    };
    weights.check_empty("an SAE of sparsify")?;
    Ok(source)
}

impl Config {
    fn check(&self, path: &Path) -> Result<()> {
        let refused = |what: &str| {
            Err(
                Error::invalid(format!("`{}`: {what}", path.display())).with_hint(
                    "a plain top-k SAE or transcoder is read: no `signed`, and `activation` `topk`",
                ),
            )
        };
        if self.skip_connection == Some(true) && self.transcode != Some(true) {
            return refused("it has a `skip_connection`, and is no transcoder");
        }
        if self.signed == Some(true) {
            return refused("its activations have signs (`signed`), which is not supported");
        }
        match self.activation.as_deref() {
            None | Some("topk") => Ok(()),
            Some(word) => refused(&format!("`activation` is `{word}`, which is not supported")),
        }
    }
}

/// Where a transcoder reads and writes whose folder is called by an MLP, as `layers.10.mlp` is.
fn places_of_mlp(dir: &Path) -> Result<[String; 2]> {
    let written = hook_of_folder(dir)?;
    match written.strip_suffix(".hook_mlp_out") {
        Some(block) => Ok([format!("{block}.mlp.hook_in"), written]),
        None => Err(Error::invalid(format!(
            "`{}` is a transcoder of something else than an MLP",
            dir.display()
        ))
        .with_hint("use one of an MLP, in a folder such as `layers.10.mlp`")),
    }
}

/// The hook point that a folder is called by: `layers.10`, `model.layers.10`, `layers.10.mlp`. In front of the
/// layers are modules that hold language models, since vision towers have `layers` too.
fn hook_of_folder(dir: &Path) -> Result<String> {
    const HOLDERS: [&str; 4] = ["model", "language_model", "text_model", "gpt_neox"];
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let place = name.split_once("layers.").and_then(|(holders, rest)| {
        let mut holders = holders.split_terminator('.');
        if !holders.all(|holder| HOLDERS.contains(&holder)) {
            return None;
        }
        let (layer, site) = rest.split_once('.').unwrap_or((rest, ""));
        let site = match site {
            "" => "hook_resid_post",
            "mlp" => "hook_mlp_out",
            "self_attn" => "hook_attn_out",
            _ => return None,
        };
        Some((layer.parse::<usize>().ok()?, site))
    });
    match place {
        Some((layer, site)) => Ok(format!("blocks.{layer}.{site}")),
        None => Err(Error::invalid(format!(
            "the folder's name `{name}` does not say which hook point this SAE belongs to"
        ))
        .of_kind(ErrorKind::HookPointMissing)
            .with_hint("sparsify calls it `layers.10`, for example; or name the hook point, such as `blocks.10.hook_resid_post`")),
    }
}
