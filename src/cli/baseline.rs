//! `baseline`: what features usually do on pictures, measured and written into a copy of the SAE.

use std::path::PathBuf;

use clap::Args;
use gguf_tools::new_file::Overwrite;
use gguf_tools::sae::SaeFile;
use llava_sae_cpp::CancelFlag;
use llava_sae_cpp::baseline::measure;
use llava_sae_cpp::scan::Scan;

use super::args::{ModelArgs, PromptArgs, note_as_seen};
use super::folder::{pictures_in, warn_of_gap};
use super::outcome::{CommandResult, Outcome};
use super::progress::{Counter, Verbosity};

/// Measure what features usually do on pictures, so that rankings show what is particular to one
#[derive(Args)]
pub(super) struct BaselineArgs {
    /// A folder of varied pictures, those in folders below it included
    dir: PathBuf,
    /// The SAE file to write: a copy of the model's, with the baseline
    #[arg(short, long, value_name = "SAE.gguf")]
    output: PathBuf,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: BaselineArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    overwrite.check(&args.output)?;
    let pictures = pictures_in(&args.dir, verbosity)?;
    let files = args.model.announced_files(verbosity)?;
    let sae = SaeFile::open(files.only_sae()?)?;
    files.projector()?;
    let options = args.model.options();
    args.model.probe(&files, &options, verbosity, &cancel)?;
    let counter = Counter::start("pictures", pictures.len(), verbosity);
    let mut n_skipped = 0;
    let scan = Scan {
        files: &files,
        options: &options,
        prompt: args.prompt.scanned(),
        dir: &args.dir,
        jobs: 1,
        cancel: &cancel,
    };
    let measured = measure(&scan, &pictures, sae.meta.d_sae, &mut |read| {
        if let Err(error) = read {
            n_skipped += 1;
            counter.suspend(|| warn_of_gap(&format!("skipped: {error}")));
        }
        counter.advance();
    });
    counter.finish();
    let baseline = measured?;
    if n_skipped > 0 {
        warn_of_gap(&format!(
            "skipped {n_skipped} of {} pictures",
            pictures.len()
        ));
    }
    baseline.write(&sae, &args.output, overwrite)?;
    note_as_seen(&args.output);
    Ok(Outcome::Done)
}
