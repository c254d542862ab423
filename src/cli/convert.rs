//! `convert`: a Hugging Face folder and an SAE become a folder ready for `-d`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::llava::{self, LlavaOptions};
use gguf_tools::sae::{self, SaeOptions};
use llava_sae_cpp::Error;
use llava_sae_cpp::llama::{Quant, quantize};

use super::args::Verbosity;
use super::progress::{self, Spinner};
use super::{CommandResult, Outcome};

/// Convert a LLaVA-Gemma checkpoint and an SAE to a model folder
#[derive(Args)]
pub(super) struct ConvertArgs {
    /// A Hugging Face LLaVA-Gemma folder
    #[arg(long, value_name = "DIR", required_unless_present = "sae")]
    llava: Option<PathBuf>,
    /// An SAELens folder, or its `cfg.json` or weights file
    #[arg(long, value_name = "DIR|FILE")]
    sae: Option<PathBuf>,
    /// The folder to write to
    #[arg(short, long, value_name = "OUT_DIR")]
    output: PathBuf,
    /// Number type of the language model
    #[arg(long = "type", value_name = "TYPE", default_value = "q8_0")]
    model_type: ModelType,
    /// Number type of the vision encoder and projector
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    mmproj_type: SmallType,
    /// Number type of the SAE
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    sae_type: SmallType,
    /// Neuronpedia's labels for the SAE: JSON or JSON lines
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "sae")]
    labels: Vec<PathBuf>,
    /// The factor that SAELens multiplies activations with, where the config asks for one
    #[arg(long, value_name = "X", requires = "sae")]
    norm_factor: Option<f32>,
    /// Overwrite files
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModelType {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q6_k")]
    Q6K,
    #[value(name = "q5_k_m")]
    Q5KM,
    #[value(name = "q4_k_m")]
    Q4KM,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SmallType {
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl SmallType {
    fn tensor_type(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::Q8_0 => TensorType::Q8_0,
        }
    }
}

pub(super) fn run(
    args: ConvertArgs,
    verbosity: Verbosity,
    interrupt: Arc<AtomicBool>,
) -> CommandResult {
    let overwrite = if args.force {
        Overwrite::Replace
    } else {
        Overwrite::Refuse
    };
    std::fs::create_dir_all(&args.output).map_err(gguf_tools::Error::io("create", &args.output))?;
    // The SAE first: it is small, and its errors come without a long wait.
    if let Some(source) = &args.sae {
        let name = format!("sae-{}.gguf", args.sae_type.tensor_type().name());
        let options = SaeOptions {
            weight_type: args.sae_type.tensor_type(),
            norm_factor: args.norm_factor,
            labels: args.labels.clone(),
            overwrite,
        };
        let mut bar = progress::byte_bar("SAE", verbosity, Arc::clone(&interrupt));
        sae::convert(source, &args.output.join(name), &options, &mut bar)?;
    }
    if let Some(source) = &args.llava {
        convert_llava(source, &args, overwrite, verbosity, interrupt)?;
    }
    Ok(Outcome::Done)
}

fn convert_llava(
    source: &Path,
    args: &ConvertArgs,
    overwrite: Overwrite,
    verbosity: Verbosity,
    interrupt: Arc<AtomicBool>,
) -> llava_sae_cpp::Result<()> {
    let (model_type, k_quant) = match args.model_type {
        ModelType::F32 => (TensorType::F32, None),
        ModelType::F16 => (TensorType::F16, None),
        ModelType::Bf16 => (TensorType::Bf16, None),
        ModelType::Q8_0 => (TensorType::Q8_0, None),
        // llama.cpp's quantiser starts from a file that holds the checkpoint's own precision.
        ModelType::Q6K => (llava::weight_type(source)?, Some((Quant::Q6K, "q6_k"))),
        ModelType::Q5KM => (llava::weight_type(source)?, Some((Quant::Q5KM, "q5_k_m"))),
        ModelType::Q4KM => (llava::weight_type(source)?, Some((Quant::Q4KM, "q4_k_m"))),
    };
    let mut options = LlavaOptions {
        model_type,
        mmproj_type: args.mmproj_type.tensor_type(),
        overwrite,
    };
    let mut bar = progress::byte_bar("model", verbosity, Arc::clone(&interrupt));
    let Some((k_quant, name)) = k_quant else {
        llava::convert(source, &args.output, &options, &mut bar)?;
        return Ok(());
    };
    let target = args.output.join(format!("model-{name}.gguf"));
    let mmproj = args
        .output
        .join(format!("mmproj-{}.gguf", options.mmproj_type.name()));
    for path in [&target, &mmproj] {
        overwrite.check(path)?;
    }
    // Everything is made in a folder beside the targets and renamed, so nothing half-made stays.
    let work = tempfile::Builder::new()
        .prefix(".convert-")
        .tempdir_in(&args.output)
        .map_err(gguf_tools::Error::io("write to", &args.output))?;
    options.overwrite = Overwrite::Replace;
    let made = llava::convert(source, work.path(), &options, &mut bar)?;
    let quantized = work.path().join("quantized.gguf");
    let spinner = Spinner::start("quantising", verbosity);
    quantize_or_stop(&made.model, &quantized, k_quant, &interrupt)?;
    spinner.finish();
    for (from, to) in [(&quantized, &target), (&made.mmproj, &mmproj)] {
        std::fs::rename(from, to).map_err(gguf_tools::Error::io("write", to))?;
    }
    Ok(())
}

/// llama.cpp's quantiser cannot be stopped, so it runs on a thread of its own: on Ctrl-C the caller
/// removes the folder that it writes to and ends the process.
fn quantize_or_stop(
    source: &Path,
    target: &Path,
    k_quant: Quant,
    interrupt: &AtomicBool,
) -> llava_sae_cpp::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (source, target) = (source.to_owned(), target.to_owned());
    let worker = std::thread::spawn(move || quantize(&source, &target, k_quant, threads));
    while !worker.is_finished() {
        if interrupt.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    worker.join().expect("the quantiser does not panic")
}
