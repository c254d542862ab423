//! The arguments and their help texts.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use gguf_tools::gguf::TensorType;

/// Converts checkpoints of LLaVA, Gemma 3 and 4, SmolVLM and InternVL and sparse autoencoders (SAEs) to GGUF, and shows GGUF files.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  gguf-tools llava llava-gemma-2b/ -o models/
  gguf-tools sae gemma_2b_blocks.12.hook_resid_post_16384/ -o models/sae-f16.gguf --labels 12-res-jb.jsonl.gz
  gguf-tools show models/sae-f16.gguf"
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    Llava(LlavaArguments),
    Sae(SaeArguments),
    Show(ShowArguments),
}

/// Convert a Hugging Face folder of a LLaVA, Gemma 3 or 4, SmolVLM or InternVL to a model and a projector
#[derive(Args)]
#[command(after_help = "Examples:
  gguf-tools llava llava-gemma-2b/ -o models/
  gguf-tools llava llava-gemma-2b/ -o models/ --type f16 --mmproj-type f32 --force")]
pub(super) struct LlavaArguments {
    /// The folder with `config.json`, tokenizer and weights
    pub(super) dir: PathBuf,
    /// The folder to write `model-TYPE.gguf` and `mmproj-TYPE.gguf` to
    #[arg(short = 'o', long = "output", value_name = "OUT_DIR")]
    pub(super) out_dir: PathBuf,
    /// The language model's number type
    #[arg(long = "type", value_name = "TYPE", default_value = "q8_0", value_parser = one_of(MODEL_TYPES))]
    pub(super) model_type: TensorType,
    /// The image encoder's and projector's number type
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = one_of(SMALL_TYPES))]
    pub(super) mmproj_type: TensorType,
    /// Overwrite files
    #[arg(long)]
    pub(super) force: bool,
}

/// Convert an SAE to one file with weights, hook point and labels
#[derive(Args)]
#[command(after_help = "Examples:
  gguf-tools sae gemma_2b_blocks.12.hook_resid_post_16384/ -o models/sae-f16.gguf
  gguf-tools sae my-sae/ -o models/sae-q8_0.gguf --type q8_0 --labels batch-0.jsonl.gz batch-1.jsonl.gz
  gguf-tools sae my-sae/ -o models/sae-f16.gguf --norm-factor 0.25")]
pub(super) struct SaeArguments {
    /// An SAE or transcoder of SAELens, Gemma Scope (2), sparsify, Llama Scope, OpenMOSS or circuit-tracer: its folder, or a
    /// file of it
    #[arg(value_name = "DIR|FILE")]
    pub(super) source: PathBuf,
    /// The file to write
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub(super) target: PathBuf,
    /// The number type of encoder and decoder
    #[arg(long = "type", value_name = "TYPE", default_value = "f16", value_parser = one_of(SMALL_TYPES))]
    pub(super) weight_type: TensorType,
    /// Neuronpedia's labels: a JSON array or JSON lines, plain or gzipped; if a feature has several,
    /// the first counts
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(super) labels: Vec<PathBuf>,
    /// The factor that normalises activations, if the SAE needs one and its files lack it
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(super) norm_factor: Option<f32>,
    /// The hook point, instead of the one in the files, such as `blocks.20.hook_resid_post`
    #[arg(long, value_name = "NAME")]
    pub(super) hook_name: Option<String>,
    /// Overwrite the file
    #[arg(long)]
    pub(super) force: bool,
}

/// Show a GGUF file's metadata and tensors
#[derive(Args)]
#[command(after_help = "Examples:
  gguf-tools show model.gguf
  gguf-tools show model.gguf --json | jq '.metadata[\"general.architecture\"]'")]
pub(super) struct ShowArguments {
    /// A GGUF file
    pub(super) file: PathBuf,
    /// Print one JSON object, with arrays and texts in full
    #[arg(long)]
    pub(super) json: bool,
}

/// The types of a language model.
const MODEL_TYPES: [TensorType; 4] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::Bf16,
    TensorType::Q8_0,
];
/// The types of projectors and SAEs.
const SMALL_TYPES: [TensorType; 3] = [TensorType::F32, TensorType::F16, TensorType::Q8_0];

fn one_of<const N: usize>(types: [TensorType; N]) -> impl TypedValueParser<Value = TensorType> {
    let names = PossibleValuesParser::new(types.map(TensorType::name));
    names.map(move |text| {
        let named = types.into_iter().find(|one| one.name() == text);
        named.expect("clap lets no other name through")
    })
}
