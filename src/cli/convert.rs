//! `convert`: a Hugging Face folder and an SAE become a folder ready for `-d`.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use gguf_tools::gguf::TensorType;
use gguf_tools::llava::{self, LlavaFiles, LlavaOptions};
use gguf_tools::new_file::Overwrite;
use gguf_tools::output_dir::OutputDir;
use gguf_tools::sae::{self, Published, SaeOptions};
use llava_sae_cpp::llama::{Quant, quantize};
use llava_sae_cpp::{CancelFlag, Error, ErrorKind, HookPoint, ModelFiles};

use super::one_of::one_of;
use super::outcome::{CommandResult, Outcome};
use super::progress::{self, Spinner, Verbosity};
use super::seen::note_as_seen;

/// Convert a checkpoint of a LLaVA, Gemma 3 or 4, SmolVLM or InternVL and an SAE to a model folder
#[derive(Args)]
#[command(group = ArgGroup::new("source").args(["llava", "sae"]).required(true).multiple(true))]
pub(super) struct ConvertArgs {
    /// A Hugging Face folder of a LLaVA, a LLaVA-NeXT, a Gemma 3, a Gemma 4 (without what hears), a SmolVLM, an
    /// Idefics3 or an InternVL
    #[arg(long, value_name = "DIR")]
    llava: Option<PathBuf>,
    /// An SAE or transcoder of SAELens, Gemma Scope (2), sparsify, Llama Scope, OpenMOSS or circuit-tracer: its folder,
    /// or a file of it
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ModelType {
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
    pub(super) fn name(self) -> &'static str {
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

    /// Bits that a weight takes, about: a K-quantisation mixes types.
    #[cfg(feature = "pull")]
    pub(super) fn bits(self) -> f64 {
        match self {
            Self::F32 => 32.0,
            Self::F16 | Self::Bf16 => 16.0,
            Self::Q8_0 => 8.5,
            Self::Q6K => 6.6,
            Self::Q5KM => 5.7,
            Self::Q4KM => 4.9,
        }
    }
}

/// The types of projectors and SAEs.
pub(super) const SMALL_TYPES: [TensorType; 3] =
    [TensorType::F32, TensorType::F16, TensorType::Q8_0];

/// The number types of the files that are made.
#[derive(Clone, Copy)]
pub(super) struct Types {
    pub(super) model: ModelType,
    pub(super) mmproj: TensorType,
    pub(super) sae: TensorType,
}

/// An SAE to convert.
pub(super) struct SaeSource<'a> {
    /// A folder, or a file of one.
    pub(super) path: &'a Path,
    pub(super) labels: Vec<PathBuf>,
    pub(super) norm_factor: Option<f32>,
    pub(super) hook_name: Option<String>,
    /// What SAELens' list says of it.
    pub(super) published: Option<Published<'a>>,
}

/// What is converted.
pub(super) struct Conversion<'a> {
    /// A checkpoint's folder.
    pub(super) llava: Option<&'a Path>,
    pub(super) sae: Option<SaeSource<'a>>,
    pub(super) types: Types,
}

/// The files that a conversion makes.
pub(super) struct Targets {
    model: Option<PathBuf>,
    mmproj: Option<PathBuf>,
    sae: Option<PathBuf>,
}

impl Targets {
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.sae, &self.model, &self.mmproj].into_iter().flatten()
    }
}

impl Conversion<'_> {
    /// The files that it makes in `dir`, if language model and projector are ones that are converted.
    fn targets(&self, dir: &Path) -> Targets {
        let file = |role: &str, name: &str| dir.join(format!("{role}-{name}.gguf"));
        let Types { model, mmproj, sae } = self.types;
        Targets {
            model: self.llava.map(|_| file("model", model.name())),
            mmproj: self.llava.map(|_| file("mmproj", mmproj.name())),
            sae: self.sae.as_ref().map(|_| file("sae", sae.name())),
        }
    }

    /// Makes files in `dir`, checks that they fit together, and returns them. What is made on the way stays
    /// there, too.
    pub(super) fn run(
        &self,
        dir: &Path,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<Targets> {
        let mut targets = self.targets(dir);
        // The SAE first: it is small, and its errors come without a long wait.
        if let (Some(source), Some(target)) = (&self.sae, &targets.sae) {
            convert_sae(source, target, self.types.sae, verbosity, cancel)?;
        }
        if let (Some(source), Some(target)) = (self.llava, targets.model.take()) {
            let made = convert_llava(source, self.types, target, verbosity, cancel.clone())?;
            (targets.model, targets.mmproj) = (made.model, made.mmproj);
        }
        if let (Some(model), Some(sae)) = (&targets.model, &targets.sae) {
            ModelFiles {
                model: model.clone(),
                mmproj: targets.mmproj.clone(),
                saes: vec![sae.clone()],
            }
            .check()?;
        }
        Ok(targets)
    }
}

pub(super) fn run(args: ConvertArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    let conversion = Conversion {
        llava: args.llava.as_deref(),
        sae: args.sae.as_deref().map(|path| SaeSource {
            path,
            labels: args.labels.clone(),
            norm_factor: args.norm_factor,
            hook_name: args.hook_name.clone(),
            published: None,
        }),
        types: Types {
            model: args.model_type,
            mmproj: args.mmproj_type,
            sae: args.sae_type,
        },
    };
    let mut targets = conversion.targets(&args.output);
    if let Some(dir) = conversion.llava
        && !llava::sees(dir)?
    {
        targets.mmproj = None;
    }
    for target in targets.paths() {
        overwrite.check(target)?;
    }
    let _output = OutputDir::create(&args.output)?;
    // Everything is made in a folder beside the targets and renamed, so nothing half-made stays.
    let work = tempfile::Builder::new()
        .prefix(".convert-")
        .tempdir_in(&args.output)
        .map_err(|error| Error::io("write to", &args.output)(error.kind().into()))?;
    let made = conversion.run(work.path(), verbosity, &cancel)?;
    for file in made.paths() {
        let target = args
            .output
            .join(file.file_name().expect("targets are files"));
        std::fs::rename(file, &target).map_err(Error::io("write", &target))?;
        note_as_seen(&target);
        say(verbosity, &[format!("wrote `{}`", target.display())]);
    }
    // Files of other types may lie there already. What was not made is not looked for.
    let unless_made = |target: &Option<PathBuf>| target.is_none().then(PathBuf::new);
    let found = ModelFiles::find(
        Some(&args.output),
        unless_made(&made.model),
        unless_made(&made.mmproj),
        unless_made(&made.sae).into_iter().collect(),
    );
    if let Err(error) = found {
        log::warn!("{error}");
    }
    say(verbosity, &[next_command(&args.output, &made)]);
    Ok(Outcome::Done)
}

fn convert_sae(
    source: &SaeSource,
    target: &Path,
    sae_type: TensorType,
    verbosity: Verbosity,
    cancel: &CancelFlag,
) -> llava_sae_cpp::Result<()> {
    let options = SaeOptions {
        weight_type: sae_type,
        norm_factor: source.norm_factor,
        hook_name: source.hook_name.clone(),
        labels: source.labels.clone(),
        overwrite: Overwrite::Refuse,
    };
    let mut bar = progress::byte_bar("SAE", verbosity, cancel.clone());
    let made = sae::convert_published(source.path, target, &options, source.published, &mut bar)?;
    say(verbosity, &made.report);
    let mut names = std::iter::once(&made.meta.hook_name).chain(&made.meta.hook_names_out);
    let known = names.try_for_each(|name| HookPoint::parse(name).map(drop));
    known.map_err(|error| {
        let hint = error.hint().unwrap_or_default().to_owned();
        error
            .of_kind(ErrorKind::HookPointMissing)
            .with_hint(format!(
                "{hint}; if the files name a wrong one, give the right one"
            ))
    })?;
    Ok(())
}

/// What can be done with what lies in the output folder now.
fn next_command(output: &Path, made: &Targets) -> String {
    let folder = output.display();
    let file = |path: &Path| {
        path.file_name()
            .map(|name| output.join(name))
            .expect("a file")
    };
    if let Ok(found) = ModelFiles::find(Some(output), None, None, Vec::new()) {
        let asked = match found.mmproj {
            Some(_) => "IMAGE",
            None => "--prompt TEXT",
        };
        return format!("next: `llava-sae-cpp -d {folder} {asked}`");
    }
    match (&made.model, &made.mmproj, &made.sae) {
        (None, None, Some(sae)) => format!(
            "next: `llava-sae-cpp -m MODEL.gguf --mmproj MMPROJ.gguf --sae {} IMAGE`",
            file(sae).display()
        ),
        (None, Some(mmproj), sae) => format!(
            "next: `llava-sae-cpp -m MODEL.gguf --mmproj {} --sae {} IMAGE`",
            file(mmproj).display(),
            sae.as_deref()
                .map_or("SAE.gguf".into(), |sae| file(sae).display().to_string()),
        ),
        _ => format!("next: `llava-sae-cpp convert --sae DIR -o {folder}`"),
    }
}

/// Prints lines on stderr, unless that is to be quiet.
pub(super) fn say(verbosity: Verbosity, lines: &[String]) {
    if !verbosity.is_quiet() {
        lines.iter().for_each(|line| eprintln!("{line}"));
    }
}

/// Writes the language model to `model`, and the projector beside it, as far as they are converted.
fn convert_llava(
    source: &Path,
    types: Types,
    model: PathBuf,
    verbosity: Verbosity,
    cancel: CancelFlag,
) -> llava_sae_cpp::Result<LlavaFiles> {
    let (model_type, k_quant) = match types.model {
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
        mmproj_type: types.mmproj,
        overwrite: Overwrite::Refuse,
    };
    let dir = model.parent().expect("it is in the output folder");
    let mut bar = progress::byte_bar("model", verbosity, cancel.clone());
    let made = llava::convert(source, dir, &options, &mut bar)?;
    say(verbosity, &made.report);
    if let (Some(converted), Some(k_quant)) = (&made.model, k_quant) {
        let spinner = Spinner::start("quantising", verbosity);
        quantize_or_stop(converted, &model, k_quant, &cancel)?;
        spinner.finish();
    }
    Ok(LlavaFiles {
        model: made.model.map(|_| model),
        ..made
    })
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
