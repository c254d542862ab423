//! A Hugging Face checkpoint of a LLaVA, a LLaVA-NeXT, a Gemma 3, a Gemma 4, an Idefics3, a SmolVLM or an InternVL becomes the two files that llama.cpp
//! runs.
//!
//! ```text
//! config.json, preprocessor_config.json ─► config ─────┬─► language_model, vision: names and metadata
//! tokenizer.model or tokenizer.json     ─► tokenizer ──┤
//! *.safetensors                         ─► checkpoint ─┴─► output ─► model-*.gguf, mmproj-*.gguf
//! ```
//!
//! Everything that can be checked without reading the weights is checked before the first of them
//! is read. This module knows nothing of sparse autoencoders.

mod checkpoint;
mod config;
mod gemma4;
mod language_model;
mod output;
mod report;
mod tokenizer;
mod vision;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use self::checkpoint::Checkpoint;
pub use self::checkpoint::{WEIGHT_FILES, weight_files};
use self::config::{Config, Family, Text, TextConfig};
use self::output::OutputTensor;
use self::report::report;
use self::tokenizer::Tokenizer;
use crate::gguf::{Overwrite, TensorType, Writer};
use crate::new_file::CompleteFile;
use crate::output_dir::OutputDir;
use crate::progress::{Meter, Progress};
use crate::{Error, ErrorKind, Result};

/// What [`convert`] reads of a checkpoint folder beside the weights, as far as it is there.
pub const SMALL_FILES: [&str; 11] = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
];

/// How [`convert`] writes.
#[derive(Clone, Copy, Debug)]
pub struct LlavaOptions {
    /// Of the language model's matrices; norms are always f32.
    pub model_type: TensorType,
    /// Of the image encoder's and projector's matrices; norms, biases, positions and the patch
    /// convolution are always f32.
    pub mmproj_type: TensorType,
    /// What to do where one of the two files exists.
    pub overwrite: Overwrite,
}

/// What [`convert`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LlavaFiles {
    /// The language model with its tokenizer: `model-<type>.gguf`; `None` if it is not one that is converted.
    pub model: Option<PathBuf>,
    /// The image encoder with its projector: `mmproj-<type>.gguf`; `None` if the checkpoint has none.
    pub mmproj: Option<PathBuf>,
    /// What was read and decided, in lines for people.
    pub report: Vec<String>,
}

/// A language model that is converted.
struct LanguageModel<'a> {
    config: &'a TextConfig,
    tokenizer: Tokenizer,
    tensors: Vec<OutputTensor>,
}

/// Converts the checkpoint folder `dir` into two GGUF files in `out_dir`, which is made if need be.
/// `progress` gets bytes of weights read.
///
/// A language model of another kind, or with another kind of tokenizer, is left out with a warning that says what to
/// take in its place; so is what hears in a Gemma 4.
/// The weights pass through in blocks of some megabytes, whatever the model's size.
///
/// # Errors
/// A checkpoint that is incomplete, malformed, or of another family; settings that llama.cpp does not
/// compute; an output file that exists; everything that reading and writing can meet;
/// [`ErrorKind::Interrupted`]
/// where `progress` asks for it. Nothing is left behind then: the files get their names when both are complete,
/// and the first loses it again where the second cannot have its own. Only then is a file lost that the first
/// was to replace.
pub fn convert(
    dir: &Path,
    out_dir: &Path,
    options: &LlavaOptions,
    progress: Progress,
) -> Result<LlavaFiles> {
    let model_path = out_dir.join(format!("model-{}.gguf", options.model_type.name()));
    let mmproj_path = out_dir.join(format!("mmproj-{}.gguf", options.mmproj_type.name()));
    options.overwrite.check(&model_path)?;
    let model_file_type = file_type(options.model_type)?;
    let mmproj_file_type = file_type(options.mmproj_type)?;

    let config = Config::read(dir)?;
    if config.sight.is_some() {
        options.overwrite.check(&mmproj_path)?;
    }
    let checkpoint = Checkpoint::open(dir)?;
    checkpoint.warn_of_unused_file();
    if checkpoint.iter().any(|(name, _)| hears(&config, name)) {
        log::warn!("what hears in {} is left out", config.one());
    }
    let model = language_model(dir, &config, options)?;
    let model_tensors = model.as_ref().map_or(&[][..], |model| &model.tensors);
    let d_text = config.text.d_model();
    let mmproj_tensors = config.sight.as_ref().map_or(Vec::new(), |sight| {
        vision::tensors(sight, d_text, options.mmproj_type)
    });
    check_tensors(&checkpoint, &config, model_tensors, &mmproj_tensors)?;
    if let Some(model) = &model {
        language_model::check_output(model.config, &checkpoint)?;
    }
    let report = report(&config, model.as_ref(), &checkpoint, options);
    output::warn_of_fallback(&model_path, model_tensors, options.model_type);
    output::warn_of_fallback(&mmproj_path, &mmproj_tensors, options.mmproj_type);

    let _out_dir = OutputDir::create(out_dir)?;
    let n_bytes = model_tensors
        .iter()
        .chain(&mmproj_tensors)
        .map(|tensor| tensor.n_source_bytes(&checkpoint));
    let mut meter = Meter::new(progress, n_bytes.sum());
    let general = |writer: &mut Writer, architecture: &str, kind: &str, file_type: u32| {
        writer.set("general.architecture", architecture);
        writer.set("general.type", kind);
        write_general(dir, &config, file_type, writer);
    };
    let mmproj = match &config.sight {
        Some(sight) => {
            let mut writer = Writer::create(&mmproj_path, options.overwrite)?;
            general(&mut writer, "clip", "mmproj", mmproj_file_type);
            vision::write_metadata(sight, d_text, &mut writer);
            Some(writer)
        }
        None => None,
    };
    let model = match model {
        Some(model) => {
            let mut writer = Writer::create(&model_path, options.overwrite)?;
            let architecture = model.config.architecture.name();
            general(&mut writer, architecture, "model", model_file_type);
            language_model::write_metadata(model.config, &mut writer);
            model.tokenizer.write_metadata(&mut writer);
            Some(write_tensors(
                writer,
                &model.tensors,
                &checkpoint,
                &mut meter,
            )?)
        }
        None => None,
    };
    let mmproj = match mmproj {
        Some(writer) => Some(write_tensors(
            writer,
            &mmproj_tensors,
            &checkpoint,
            &mut meter,
        )?),
        None => None,
    };
    let model = match model {
        Some(model) => {
            model.publish()?;
            Some(model_path)
        }
        None => None,
    };
    let mmproj = match mmproj.map(CompleteFile::publish) {
        Some(Err(error)) => {
            // What is left if this fails too is a whole file, and the first error is the one to tell.
            let _ = model.map(fs::remove_file);
            return Err(error);
        }
        published => published.map(|_| mmproj_path),
    };
    Ok(LlavaFiles {
        model,
        mmproj,
        report,
    })
}

/// The language model, unless it is one that is not converted.
fn language_model<'a>(
    dir: &Path,
    config: &'a Config,
    options: &LlavaOptions,
) -> Result<Option<LanguageModel<'a>>> {
    const WAY_OUT: &str =
        "take a published GGUF file of it, or convert it with llama.cpp's `convert_hf_to_gguf.py`";
    let leave_out = |why: Error| match config.sight {
        Some(_) => {
            log::warn!("the language model is left out: {why}; {WAY_OUT}");
            Ok(None)
        }
        None => Err(why.with_hint(WAY_OUT)),
    };
    let text = match &config.text {
        Text::Known(text) => text,
        Text::Other { model_type, .. } => {
            return leave_out(Error::invalid(format!(
                "`text_config.model_type` is `{model_type}`"
            )));
        }
    };
    let tokenizer = match Tokenizer::read(dir, text, config.image_token_id) {
        Err(error) if error.kind() == ErrorKind::Unsupported => return leave_out(error),
        tokenizer => tokenizer?,
    };
    Ok(Some(LanguageModel {
        config: text,
        tokenizer,
        tensors: language_model::tensors(text, options.model_type),
    }))
}

/// Whether the checkpoint has a vision tower, so that two files are made of it.
///
/// # Errors
/// A `config.json` that [`convert`] would refuse.
pub fn sees(dir: &Path) -> Result<bool> {
    Config::read(dir).map(|config| config.sight.is_some())
}

/// The number type of the checkpoint's weights: the smallest that holds all of them exactly. Tensors
/// of integers, such as `position_ids`, do not count.
///
/// # Errors
/// Weights that cannot be found or read.
pub fn weight_type(dir: &Path) -> Result<TensorType> {
    Checkpoint::open(dir).map(|checkpoint| type_of(&checkpoint))
}

fn type_of(checkpoint: &Checkpoint) -> TensorType {
    let mut types = checkpoint
        .iter()
        .filter_map(|(_, tensor)| tensor.tensor_type());
    let first = types.next().unwrap_or(TensorType::F32);
    if types.all(|tensor_type| tensor_type == first) {
        first
    } else {
        TensorType::F32
    }
}

fn write_tensors(
    mut writer: Writer,
    tensors: &[OutputTensor],
    checkpoint: &Checkpoint,
    meter: &mut Meter,
) -> Result<CompleteFile> {
    for tensor in tensors {
        tensor.declare(&mut writer);
    }
    let mut writer = writer.begin()?;
    for tensor in tensors {
        tensor.write(checkpoint, &mut writer, meter)?;
    }
    writer.complete()
}

/// `general.file_type`: `llama_ftype` of llama.cpp.
fn file_type(tensor_type: TensorType) -> Result<u32> {
    match tensor_type {
        TensorType::F32 => Ok(0),
        TensorType::F16 => Ok(1),
        TensorType::Q8_0 => Ok(7),
        TensorType::Bf16 => Ok(32),
        TensorType::Other(_) => Err(Error::invalid(format!(
            "cannot write tensors of type `{}`",
            tensor_type.name()
        ))
        .with_hint("types to choose from: `f32`, `f16`, `bf16`, `q8_0`")),
    }
}

/// What the checkpoint in `dir` is called: as its folder, or, in the hub's cache
/// (`models--ORG--NAME/snapshots/COMMIT`), as its repository.
fn name_of(dir: &Path) -> Option<String> {
    let dir = fs::canonicalize(dir).ok()?;
    let name = |dir: &Path| Some(dir.file_name()?.to_string_lossy().into_owned());
    let repository = || {
        let snapshots = dir.parent().filter(|dir| dir.ends_with("snapshots"))?;
        let repository = name(snapshots.parent()?)?;
        let (_, repository) = repository.strip_prefix("models--")?.split_once("--")?;
        Some(repository.to_owned())
    };
    repository().or_else(|| name(&dir))
}

fn write_general(dir: &Path, config: &Config, file_type: u32, writer: &mut Writer) {
    if let Some(name) = name_of(dir) {
        writer.set("general.name", name);
    }
    let version = env!("CARGO_PKG_VERSION");
    let description = format!("{}, converted by gguf-tools {version}", config.name());
    writer.set("general.description", description);
    writer.set("general.file_type", file_type);
    // `GGML_QNT_VERSION` of ggml.
    writer.set("general.quantization_version", 2u32);
}

/// Whether a tensor of this plain name belongs to what hears in a Gemma 4.
fn hears(config: &Config, name: &str) -> bool {
    const PARTS: [&str; 2] = ["audio_tower.", "embed_audio."];
    config.family == Family::Gemma4 && PARTS.iter().any(|part| name.starts_with(part))
}

/// Checks that the checkpoint has all tensors of the output files in the right shape, and no
/// others than those known to be of no use.
fn check_tensors(
    checkpoint: &Checkpoint,
    config: &Config,
    of_model: &[OutputTensor],
    of_mmproj: &[OutputTensor],
) -> Result<()> {
    let mut used = HashSet::new();
    for tensor in of_model.iter().chain(of_mmproj) {
        tensor.check(checkpoint)?;
        used.extend(tensor.source());
    }
    for (name, stored) in checkpoint.iter() {
        let known = used.contains(name)
            || name == language_model::OUTPUT
            || (of_model.is_empty() && name.starts_with(language_model::PREFIX))
            || name.ends_with(".rotary_emb.inv_freq") // follows from `rope_theta`
            || match &config.sight {
                Some(sight) => vision::is_unused(&sight.vision, name),
                None => false,
            }
            || hears(config, name)
            || matches!(&config.text, Text::Known(text) if gemma4::is_unused(text, name));
        if !known {
            return Err(Error::invalid(format!(
                "{} does not belong in {}",
                stored.describe(),
                config.one()
            ))
            .with_hint("the checkpoint, or its `config.json`, is of another architecture"));
        }
    }
    Ok(())
}
