//! `export-cvec`: interventions as a control vector of llama.cpp.

use std::path::PathBuf;

use clap::Args;
use gguf_tools::new_file::Overwrite;
use llava_sae_cpp::CancelFlag;

use super::args::ModelArgs;
use super::interventions::{self, InterventionArgs};
use super::outcome::{CommandResult, Outcome};
use super::progress::Verbosity;

/// Write interventions as a control vector, for llama.cpp's own programs
///
/// llama-cli, llama-server and llama-mtmd-cli take the file as `--control-vector FILE`, with the same
/// model. It adds one vector to every row of a layer, so only `--steer` and `--vector` at all positions fit.
#[derive(Args)]
#[command(mut_group(interventions::ANY, |group| group.required(true)))]
pub(super) struct ExportCvecArgs {
    /// The GGUF file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    interventions: InterventionArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: ExportCvecArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    overwrite.check(&args.output)?;
    let interventions = args.interventions.read()?;
    let session = match interventions.are_vectors() {
        true => args.model.open_sae_or_none(verbosity, &cancel)?,
        false => args.model.open(verbosity, &cancel)?,
    };
    let steering = interventions.steering(session.model())?;
    let steering = steering.expect("an intervention is required");
    session
        .model()
        .write_control_vector(&steering, &args.output, overwrite)?;
    Ok(Outcome::Done)
}
