//! `convert`: a Hugging Face folder and an SAE become a folder ready for `-d`.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use gguf_tools::gguf::TensorType;
use gguf_tools::llava::{self, LlavaOptions};
use gguf_tools::new_file::Overwrite;
use gguf_tools::output_dir::OutputDir;
use gguf_tools::sae::{self, SaeOptions};
use llava_sae_cpp::llama::{Quant, quantize};
use llava_sae_cpp::{CancelFlag, Error, ErrorKind, HookPoint, ModelFiles};

use super::args::{note_as_seen, one_of};
use super::outcome::{CommandResult, Outcome};
use super::progress::{self, Spinner, Verbosity};

/// Convert a LLaVA-Gemma checkpoint and an SAE to a model folder
#[derive(Args)]
#[command(group = ArgGroup::new("source").args(["llava", "sae"]).required(true).multiple(true))]
pub(super) struct ConvertArgs {
    /// A Hugging Face LLaVA-Gemma folder
    #[arg(long, value_name = "DIR")]
    llava: Option<PathBuf>,
    /// An SAE of SAELens, Gemma Scope (2), sparsify, Llama Scope or OpenMOSS: its folder, or a file of it
    #[arg(long, value_name = "DIR|FILE")]
    sae: Option<PathBuf>,
    /// The folder to write to
    #[arg(short, long, value_name = "OUT_DIR")]
    output: PathBuf,
    /// Number type of the language model
    #[arg(long = "type", value_name = "TYPE", default_value = "q8_0")]
    model_type: ModelType,
    /// Number type of the vision encoder and projector
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = one_of(SMALL_TYPES, TensorType::name))]
    mmproj_type: TensorType,
    /// Number type of the SAE
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = one_of(SMALL_TYPES, TensorType::name))]
    sae_type: TensorType,
    /// Neuronpedia's labels for the SAE: JSON or JSON lines
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "sae")]
    labels: Vec<PathBuf>,
    /// The factor that normalises activations, if the SAE needs one and its files lack it
    #[arg(long, value_name = "X", requires = "sae")]
    norm_factor: Option<f32>,
    /// The hook point, instead of the one in the SAE's files, such as `blocks.20.hook_resid_post`
    #[arg(long, value_name = "NAME", requires = "sae")]
    hook_name: Option<String>,
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

impl ModelType {
    /// As the command line and llama.cpp write it.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q5KM => "q5_k_m",
            Self::Q4KM => "q4_k_m",
        }
    }
}

/// The types of projectors and SAEs.
const SMALL_TYPES: [TensorType; 3] = [TensorType::F32, TensorType::F16, TensorType::Q8_0];

pub(super) fn run(args: ConvertArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    let in_output = |role: &str, name: &str| args.output.join(format!("{role}-{name}.gguf"));
    let sae = in_output("sae", args.sae_type.name());
    let model = in_output("model", args.model_type.name());
    let mmproj = in_output("mmproj", args.mmproj_type.name());
    let targets = [
        args.sae.as_ref().map(|_| &sae),
        args.llava.as_ref().map(|_| &model),
        args.llava.as_ref().map(|_| &mmproj),
    ];
    for target in targets.into_iter().flatten() {
        overwrite.check(target)?;
    }
    let _output = OutputDir::create(&args.output)?;
    // Everything is made in a folder beside the targets and renamed, so nothing half-made stays.
    let work = tempfile::Builder::new()
        .prefix(".convert-")
        .tempdir_in(&args.output)
        .map_err(|error| Error::io("write to", &args.output)(error.kind().into()))?;
    let in_work = |target: &Path| {
        let name = target.file_name().expect("targets are files");
        work.path().join(name)
    };
    // The SAE first: it is small, and its errors come without a long wait.
    if let Some(source) = &args.sae {
        let options = SaeOptions {
            weight_type: args.sae_type,
            norm_factor: args.norm_factor,
            hook_name: args.hook_name.clone(),
            labels: args.labels.clone(),
            overwrite: Overwrite::Refuse,
        };
        let mut bar = progress::byte_bar("SAE", verbosity, cancel.clone());
        let made = sae::convert(source, &in_work(&sae), &options, &mut bar)?;
        say(verbosity, &made.report);
        HookPoint::parse(&made.meta.hook_name).map_err(|error| {
            let hint = error.hint().unwrap_or_default().to_owned();
            error
                .of_kind(ErrorKind::HookPointMissing)
                .with_hint(format!(
                    "{hint}; if the files name a wrong one, give the right one"
                ))
        })?;
    }
    if let Some(source) = &args.llava {
        convert_llava(source, &args, &in_work(&model), verbosity, cancel)?;
    }
    if args.sae.is_some() && args.llava.is_some() {
        let files = ModelFiles {
            model: in_work(&model),
            mmproj: Some(in_work(&mmproj)),
            saes: vec![in_work(&sae)],
        };
        files.check()?;
    }
    for target in targets.into_iter().flatten() {
        std::fs::rename(in_work(target), target).map_err(Error::io("write", target))?;
        note_as_seen(target);
        say(verbosity, &[format!("wrote `{}`", target.display())]);
    }
    // Files of other types may lie there already.
    let unless_made = |target| (!targets.contains(&Some(target))).then(|| target.clone());
    let found = ModelFiles::find(
        Some(&args.output),
        unless_made(&model),
        unless_made(&mmproj),
        unless_made(&sae).into_iter().collect(),
    );
    if let Err(error) = found {
        log::warn!("{error}");
    }
    say(verbosity, &[next_command(&args, &sae)]);
    Ok(Outcome::Done)
}

/// What can be done with what lies in the output folder now.
fn next_command(args: &ConvertArgs, sae: &Path) -> String {
    let folder = args.output.display();
    if ModelFiles::find(Some(&args.output), None, None, Vec::new()).is_ok() {
        format!("next: `llava-sae-cpp -d {folder} IMAGE`")
    } else if args.llava.is_none() {
        format!(
            "next: `llava-sae-cpp -m MODEL.gguf --mmproj MMPROJ.gguf --sae {} IMAGE`",
            sae.display()
        )
    } else {
        format!("next: `llava-sae-cpp convert --sae DIR -o {folder}`")
    }
}

/// Prints lines on stderr, unless that is to be quiet.
fn say(verbosity: Verbosity, lines: &[String]) {
    if !verbosity.is_quiet() {
        lines.iter().for_each(|line| eprintln!("{line}"));
    }
}

/// Writes the language model to `model`, and the projector beside it.
fn convert_llava(
    source: &Path,
    args: &ConvertArgs,
    model: &Path,
    verbosity: Verbosity,
    cancel: CancelFlag,
) -> llava_sae_cpp::Result<()> {
    let (model_type, k_quant) = match args.model_type {
        ModelType::F32 => (TensorType::F32, None),
        ModelType::F16 => (TensorType::F16, None),
        ModelType::Bf16 => (TensorType::Bf16, None),
        ModelType::Q8_0 => (TensorType::Q8_0, None),
        // llama.cpp's quantiser starts from a file that holds the checkpoint's own precision.
        ModelType::Q6K => (llava::weight_type(source)?, Some(Quant::Q6K)),
        ModelType::Q5KM => (llava::weight_type(source)?, Some(Quant::Q5KM)),
        ModelType::Q4KM => (llava::weight_type(source)?, Some(Quant::Q4KM)),
    };
    let options = LlavaOptions {
        model_type,
        mmproj_type: args.mmproj_type,
        overwrite: Overwrite::Refuse,
    };
    let dir = model.parent().expect("it is in the output folder");
    let mut bar = progress::byte_bar("model", verbosity, cancel.clone());
    let made = llava::convert(source, dir, &options, &mut bar)?;
    say(verbosity, &made.report);
    if let Some(k_quant) = k_quant {
        let spinner = Spinner::start("quantising", verbosity);
        quantize_or_stop(&made.model, model, k_quant, &cancel)?;
        spinner.finish();
    }
    Ok(())
}

/// llama.cpp's quantiser cannot be stopped, so it runs on a thread of its own: on Ctrl-C the caller
/// removes the folder that it writes to and ends the process.
fn quantize_or_stop(
    source: &Path,
    target: &Path,
    k_quant: Quant,
    cancel: &CancelFlag,
) -> llava_sae_cpp::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (source, target) = (source.to_owned(), target.to_owned());
    let worker = std::thread::spawn(move || quantize(&source, &target, k_quant, threads));
    while !worker.is_finished() {
        if cancel.is_cancelled() {
            return Err(Error::interrupted());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    worker.join().expect("the quantiser does not panic")
}
