//! The command line: arguments to a session, results to stdout, all else to stderr.

mod args;
mod baseline;
mod capture;
mod compared;
mod convert;
mod describe;
mod explain;
mod export_cvec;
mod feature;
mod features;
mod folder;
#[cfg(feature = "scan")]
mod gallery;
#[cfg(feature = "scan")]
mod globs;
mod hints;
mod interventions;
mod labels;
mod llama_flags;
mod metrics;
mod one_of;
mod open;
mod outcome;
mod page;
mod processor;
mod progress;
#[cfg(feature = "pull")]
mod pull;
mod reproduce;
#[cfg(feature = "scan")]
mod scan;
mod seen;
#[cfg(feature = "serve")]
mod serve;
mod sweep;
#[cfg(feature = "scan")]
mod top;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use llava_sae_cpp::{CancelFlag, Error};

pub use open::{Opened, open};

use describe::DescribeArgs;
use outcome::{CommandResult, INTERRUPTED, print};
use progress::Verbosity;

/// See the features of a text-only sparse autoencoder that an image activates in a vision-language
/// model, and steer the model by them.
#[derive(Parser)]
#[command(name = "llava-sae-cpp", version, about, after_long_help = EXAMPLES)]
#[command(subcommand_negates_reqs = true, override_usage = USAGE)]
struct Cli {
    #[command(flatten)]
    describe: DescribeArgs,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    verbosity: Verbosity,
}

#[derive(Subcommand)]
enum Command {
    Features(features::FeaturesArgs),
    Labels(labels::LabelsArgs),
    Feature(feature::FeatureArgs),
    Sweep(sweep::SweepArgs),
    Explain(explain::ExplainArgs),
    Capture(capture::CaptureArgs),
    Metrics(metrics::MetricsArgs),
    Convert(convert::ConvertArgs),
    #[cfg(feature = "pull")]
    Pull(pull::PullArgs),
    Baseline(baseline::BaselineArgs),
    ExportCvec(export_cvec::ExportCvecArgs),
    #[cfg(feature = "scan")]
    Scan(scan::ScanArgs),
    #[cfg(feature = "scan")]
    Top(top::TopArgs),
    #[cfg(feature = "scan")]
    Gallery(gallery::GalleryArgs),
    Reproduce(reproduce::ReproduceArgs),
    #[cfg(feature = "serve")]
    Serve(serve::ServeArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a man page
    Man {
        /// The command that it is about; without one, the program
        command: Option<String>,
    },
}

const USAGE: &str = "llava-sae-cpp [OPTIONS] [IMAGE]\n       llava-sae-cpp <COMMAND>";

const EXAMPLES: &str = "\
Examples:
  llava-sae-cpp assets/pictures/carrot-mushroom.png
      Describe a picture with the embedded demo model
  llava-sae-cpp --steer mushroom:-12 --compare --top 5 assets/pictures/carrot-mushroom.png
      … list the features that it activates, and subtract the mushroom feature
  llava-sae-cpp -d llava-gemma-2b --steer 4501:-6 --compare photo.jpg
      … with a published model, downloaded if it is not here, or a model folder that `convert` made
  llava-sae-cpp -d llava-gemma-2b --clamp 4501:20 --at image --json photo.jpg > set.json
      … set the feature's activation on the image's rows
  llava-sae-cpp -d llava-gemma-2b --interventions set.json other.jpg
      … and do the same to another picture
  llava-sae-cpp sweep --steer 4501:-8..0:2 --word dog -d llava-gemma-2b photo.jpg
      Several strengths at once, to pick one
  llava-sae-cpp explain --word dog -d llava-gemma-2b photo.jpg
      Which features, and where, made the model say a word
  llava-sae-cpp features --top 20 --json photo.jpg
      The features of an image, as JSON
  llava-sae-cpp labels mushroom
      The features whose labels hold a word
  llava-sae-cpp feature mushroom
      What the weights say of a feature: its neighbours, the tokens that it promotes and suppresses
  llava-sae-cpp capture -n 0 -o rows.safetensors photo.jpg
      Everything the hook saw, for a notebook
  llava-sae-cpp pull --list
      The published models that `-d` and `pull` know by name
  llava-sae-cpp convert --llava llava-gemma-2b-hf --sae gemma-2b-res-jb -o llava-gemma-2b
      Make a model folder
  llava-sae-cpp baseline -d llava-gemma-2b pictures/ -o sae-with-baseline.gguf
      Measure what features usually do on pictures, so that rankings show what is special about one
  llava-sae-cpp scan -d llava-gemma-2b pictures/ -o features.parquet
      The features of a folder of pictures, as a table
  llava-sae-cpp top features.parquet --class pizza
      What pictures in the folder `pizza` activate more than the others
  llava-sae-cpp gallery features.parquet --images pictures/ -d llava-gemma-2b -o gallery
      A folder of pages: what activates each feature, with heat maps
  llava-sae-cpp reproduce -d llava-gemma-2b --images pictures/ -o report.html
      Whether the original experiment's claims hold on pictures of your own
  llava-sae-cpp serve
      A page to see and steer features on, and OpenAI's API, at http://127.0.0.1:8080

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.";

/// Runs the command that `args` say, the program's name first, and returns its exit code. Wrong usage, and what
/// only prints help, end the process.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = parse(args).unwrap_or_else(|error| error.exit());
    cli.verbosity.start_logging();
    llava_sae_cpp::llama::leave_models_to_the_system();
    let cancel = match &cli.command {
        // They only read, so that they can end at once.
        #[cfg(feature = "scan")]
        Some(Command::Top(_)) => CancelFlag::default(),
        #[cfg(feature = "scan")]
        Some(Command::Scan(args)) if args.is_worker() => CancelFlag::default(),
        _ => stop_on_ctrl_c(),
    };
    let result = match cli.command {
        None => describe::run(cli.describe, cli.verbosity, cancel),
        Some(Command::Features(args)) => features::run(args, cli.verbosity, cancel),
        Some(Command::Labels(args)) => labels::run(&args, cli.verbosity, &cancel),
        Some(Command::Feature(args)) => feature::run(&args, cli.verbosity, &cancel),
        Some(Command::Explain(args)) => explain::run(args, cli.verbosity, cancel),
        Some(Command::Sweep(args)) => sweep::run(args, cli.verbosity, cancel),
        Some(Command::Capture(args)) => capture::run(args, cli.verbosity, cancel),
        Some(Command::Metrics(args)) => metrics::run(args, cli.verbosity, cancel),
        Some(Command::Convert(args)) => convert::run(args, cli.verbosity, cancel),
        #[cfg(feature = "pull")]
        Some(Command::Pull(args)) => pull::run(args, cli.verbosity, cancel),
        Some(Command::Baseline(args)) => baseline::run(args, cli.verbosity, cancel),
        Some(Command::ExportCvec(args)) => export_cvec::run(args, cli.verbosity, cancel),
        #[cfg(feature = "scan")]
        Some(Command::Scan(args)) => scan::run(args, cli.verbosity, cancel),
        #[cfg(feature = "scan")]
        Some(Command::Top(args)) => top::run(&args),
        #[cfg(feature = "scan")]
        Some(Command::Gallery(args)) => gallery::run(args, cli.verbosity, cancel),
        Some(Command::Reproduce(args)) => reproduce::run(args, cli.verbosity, cancel),
        #[cfg(feature = "serve")]
        Some(Command::Serve(args)) => serve::run(&args, cli.verbosity, &cancel),
        Some(Command::Completions { shell }) => print(|out| {
            let mut buffer = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "llava-sae-cpp", &mut buffer);
            out.write_all(&buffer)
        }),
        Some(Command::Man { command }) => man(command.as_deref()),
    };
    outcome::exit_code(result)
}

/// Reads the command line. The main command's options in front of a subcommand would be lost, so
/// they are refused there, except for `-v` and `-q`, which every command has.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let args = llama_flags::with_long_names(&command, args.into_iter());
    let matches = command.try_get_matches_from_mut(args)?;
    if let Some(subcommand) = matches.subcommand_name() {
        let misplaced = command.get_arguments().find(|argument| {
            let id = argument.get_id().as_str();
            let given = matches.value_source(id) == Some(ValueSource::CommandLine);
            given && !argument.is_global_set()
        });
        if let Some(argument) = misplaced {
            let reason = format!("`{argument}` must come after `{subcommand}`");
            return Err(command.error(ErrorKind::ArgumentConflict, reason));
        }
    }
    Cli::from_arg_matches(&matches)
}

/// Prints the man page of a command, or of the program.
fn man(name: Option<&str>) -> CommandResult {
    let mut program = Cli::command();
    program.build();
    let command = match name {
        None => program,
        Some(name) => program.find_subcommand(name).cloned().ok_or_else(|| {
            Error::invalid(format!("no command `{name}`"))
                .with_hint("`llava-sae-cpp --help` lists them")
        })?,
    };
    print(|out| clap_mangen::Man::new(command).render(out))
}

/// A flag that Ctrl-C and `kill` set; the second time, the process ends at once.
fn stop_on_ctrl_c() -> CancelFlag {
    let cancel = CancelFlag::default();
    let flag = cancel.clone();
    let installed = ctrlc::set_handler(move || {
        if flag.is_cancelled() {
            llava_sae_cpp::llama::exit_at_once(INTERRUPTED.into());
        }
        flag.cancel();
    });
    if let Err(error) = installed {
        log::warn!("Ctrl-C will end the program at once: {error}");
    }
    cancel
}
