//! A Hugging Face LLaVA-Gemma checkpoint becomes the two files that llama.cpp runs.
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
mod language_model;
mod output;
mod tokenizer;
mod vision;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use self::checkpoint::Checkpoint;
pub use self::checkpoint::{WEIGHT_FILES, weight_files};
use self::config::Config;
use self::output::OutputTensor;
use self::tokenizer::Tokenizer;
use crate::gguf::{Overwrite, TensorType, Writer};
use crate::new_file::CompleteFile;
use crate::output_dir::OutputDir;
use crate::progress::{Meter, Progress};
use crate::{Error, Result};

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
    /// The language model with its tokenizer: `model-<type>.gguf`.
    pub model: PathBuf,
    /// The image encoder with its projector: `mmproj-<type>.gguf`.
    pub mmproj: PathBuf,
    /// What was read and decided, in lines for people.
    pub report: Vec<String>,
}

/// Converts the checkpoint folder `dir` into two GGUF files in `out_dir`, which is made if need be.
/// `progress` gets bytes of weights read.
///
/// The weights pass through in blocks of some megabytes, whatever the model's size.
///
/// # Errors
/// A checkpoint that is incomplete, malformed, or not a LLaVA of CLIP and Gemma 1; an output file that exists;
/// everything that reading and writing can meet; [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted)
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
    for path in [&model_path, &mmproj_path] {
        options.overwrite.check(path)?;
    }
    let model_file_type = file_type(options.model_type)?;
    let mmproj_file_type = file_type(options.mmproj_type)?;

    let config = Config::read(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    checkpoint.warn_of_unused_file();
    let model_tensors = language_model::tensors(&config.text, options.model_type);
    let mmproj_tensors = vision::tensors(&config, options.mmproj_type);
    check_tensors(
        &checkpoint,
        &config,
        model_tensors.iter().chain(&mmproj_tensors),
    )?;
    let tokenizer = Tokenizer::read(dir, &config)?;
    language_model::check_output(&config.text, &checkpoint)?;
    let report = report(&config, &tokenizer, &checkpoint, options);
    output::warn_of_fallback(&model_path, &model_tensors, options.model_type);
    output::warn_of_fallback(&mmproj_path, &mmproj_tensors, options.mmproj_type);

    let _out_dir = OutputDir::create(out_dir)?;
    let mut model = Writer::create(&model_path, options.overwrite)?;
    model.set("general.architecture", "gemma");
    model.set("general.type", "model");
    write_general(dir, model_file_type, &mut model);
    language_model::write_metadata(&config.text, &mut model);
    tokenizer.write_metadata(&mut model);

    let mut mmproj = Writer::create(&mmproj_path, options.overwrite)?;
    mmproj.set("general.architecture", "clip");
    mmproj.set("general.type", "mmproj");
    write_general(dir, mmproj_file_type, &mut mmproj);
    vision::write_metadata(&config, &mut mmproj);

    let all_tensors = model_tensors.iter().chain(&mmproj_tensors);
    let n_bytes = all_tensors
        .map(|tensor| tensor.n_source_bytes(&checkpoint))
        .sum();
    let mut meter = Meter::new(progress, n_bytes);
    let model = write_tensors(model, &model_tensors, &checkpoint, &mut meter)?;
    let mmproj = write_tensors(mmproj, &mmproj_tensors, &checkpoint, &mut meter)?;
    model.publish()?;
    if let Err(error) = mmproj.publish() {
        // What is left if this fails too is a whole file, and the first error is the one to tell.
        let _ = fs::remove_file(&model_path);
        return Err(error);
    }
    Ok(LlavaFiles {
        model: model_path,
        mmproj: mmproj_path,
        report,
    })
}

fn report(
    config: &Config,
    tokenizer: &Tokenizer,
    checkpoint: &Checkpoint,
    options: &LlavaOptions,
) -> Vec<String> {
    let Config { text, vision, .. } = config;
    let [mean, std] = [vision.image_mean, vision.image_std].map(|colours| {
        let [red, green, blue] = colours;
        format!("({red:.4}, {green:.4}, {blue:.4})")
    });
    vec![
        format!(
            "read a LLaVA of Gemma: {} blocks of width {}, {} rows of vocabulary, tokens from `{}`",
            text.n_layers, text.d_model, text.vocab_size, tokenizer.source
        ),
        format!(
            "vision tower: CLIP of {} blocks of width {}, of which {} run, since `vision_feature_layer` is {}",
            vision.n_layers, vision.d_model, vision.n_feature_layers, vision.feature_layer
        ),
        format!(
            "pictures: {0} × {0} pixels in patches of {1}; mean {mean}, deviation {std}",
            vision.image_size, vision.patch_size
        ),
        format!(
            "weights: {}, written as {} (language model) and {} (vision tower and projector)",
            type_of(checkpoint).name(),
            options.model_type.name(),
            options.mmproj_type.name()
        ),
    ]
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

fn write_general(dir: &Path, file_type: u32, writer: &mut Writer) {
    if let Some(name) = name_of(dir) {
        writer.set("general.name", name);
    }
    let description = concat!(
        "LLaVA-Gemma, converted by gguf-tools ",
        env!("CARGO_PKG_VERSION")
    );
    writer.set("general.description", description);
    writer.set("general.file_type", file_type);
    // `GGML_QNT_VERSION` of ggml.
    writer.set("general.quantization_version", 2u32);
}

/// Checks that the checkpoint has all tensors of the output files in the right shape, and no
/// others than those known to be of no use.
fn check_tensors<'a>(
    checkpoint: &Checkpoint,
    config: &Config,
    tensors: impl Iterator<Item = &'a OutputTensor>,
) -> Result<()> {
    let mut used = HashSet::new();
    for tensor in tensors {
        tensor.check(checkpoint)?;
        used.extend(tensor.source());
    }
    for (name, stored) in checkpoint.iter() {
        let known = used.contains(name)
            || name == language_model::OUTPUT
            || name.ends_with(".rotary_emb.inv_freq") // follows from `rope_theta`
            || vision::is_unused(&config.vision, name);
        if !known {
            return Err(Error::invalid(format!(
                "{} does not belong in a LLaVA-Gemma",
                stored.describe()
            ))
            .with_hint("the checkpoint, or its `config.json`, is of another architecture"));
        }
    }
    Ok(())
}
